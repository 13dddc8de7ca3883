"""A policy's limits on a document's resources: the smaller holds, in every field, and nothing else changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.controllers.cpu import shares_of
from nestrt.errors import InputError
from nestrt.level.devices import DEFAULT_RULES, allowed
from nestrt.level.devices import DeviceRule as Allowed
from nestrt.level.limits import IoLimit, Limits
from nestrt.level.units import MAX
from nestrt.oci.resources import BlockIo, Cpu, DeviceRule, Memory, Resources, ThrottleDevice
from nestrt.plan.narrow import device_rules, within

M = 1 << 20
WHOLE = Resources(
    devices=(DeviceRule(False), DeviceRule(True, "c", 1, 3)),
    memory=Memory(limit=100 * M, swap=150 * M, reservation=5),
    cpu=Cpu(shares=512, quota=50_000, period=50_000, burst=9, cpus="0-1", mems="0"),
    pids=10,
    block_io=BlockIo(throttle_read_bps=(ThrottleDevice(8, 0, 50),)),
    hugepages=(("2MB", 4),),
    rdma=(("m0", 2, None),),
    net_class=5,
    net_prio=(("eth0", 3),),
    unified=(("memory.high", "5"),),
)


def test_no_limits_change_nothing() -> None:
    assert within(Limits(), WHOLE) == WHOLE
    assert within(Limits(), Resources()) == Resources()


def test_what_the_document_leaves_open_the_policy_closes() -> None:
    limits = Limits(
        memory=64 * M,
        swap=0,
        cpus=frozenset({0, 1}),
        mems=frozenset({0}),
        cpu_quota=150_000,
        cpu_weight=100,
        pids=7,
        io=(IoLimit("8:0", 5, None, MAX, 9),),
        hugetlb=(("2MB", 4),),
        rdma=(("m0", "hca_handle=2 hca_object=max"),),
        misc=(("sev", "2"),),
        net_cls=5,
        net_prio=(("eth0", 1),),
    )
    assert within(limits, Resources()) == Resources(
        memory=Memory(limit=64 * M, swap=64 * M),
        cpu=Cpu(shares=shares_of(100), quota=150_000, period=100_000, cpus="0-1", mems="0"),
        pids=7,
        block_io=BlockIo(
            throttle_read_bps=(ThrottleDevice(8, 0, 5),),
            throttle_write_iops=(ThrottleDevice(8, 0, 9),),
        ),
        hugepages=(("2MB", 4),),
        rdma=(("m0", 2, None),),
        net_class=5,
        net_prio=(("eth0", 1),),
        unified=(("misc.max", "sev 2"),),
    )


@pytest.mark.parametrize(
    ("limits", "given_", "wanted"),
    [
        # The document: (limit, swap with memory); wanted the same.
        (Limits(memory=64 * M), (100 * M, 150 * M), (64 * M, 114 * M)),
        (Limits(memory=200 * M), (100 * M, 150 * M), (100 * M, 150 * M)),
        (Limits(memory=64 * M), (100 * M, -1), (64 * M, MAX)),
        (Limits(memory=64 * M), (-1, -1), (64 * M, MAX)),
        (Limits(memory=64 * M), (0, None), (64 * M, None)),
        (Limits(memory=64 * M, swap=8 * M), (-1, -1), (64 * M, 72 * M)),
        (Limits(swap=8 * M), (100 * M, 150 * M), (100 * M, 108 * M)),
        (Limits(swap=80 * M), (100 * M, 150 * M), (100 * M, 150 * M)),
        (Limits(swap=8 * M), (100 * M, None), (100 * M, 108 * M)),
        (Limits(swap=8 * M), (2**63 - 1, None), (2**63 - 1, 2**63 - 1)),
        (Limits(swap=MAX), (None, None), (None, MAX)),
        (Limits(memory=MAX), (None, None), (MAX, None)),
        (Limits(memory=MAX), (100 * M, None), (100 * M, None)),
    ],
)
def test_memory_and_swap_together(limits: Limits, given_: tuple[int, int], wanted: tuple[int, int]) -> None:
    found = within(limits, Resources(memory=Memory(limit=given_[0], swap=given_[1]))).memory
    assert (found.limit, found.swap) == wanted


def test_swap_needs_memory() -> None:
    with pytest.raises(InputError, match="give a memory limit too"):
        within(Limits(swap=5), Resources())


@pytest.mark.parametrize(
    ("policy", "quota", "period", "wanted"),
    [
        (150_000, None, None, (150_000, 100_000)),
        (150_000, -1, 50_000, (75_000, 50_000)),
        (50_000, 20_000, 50_000, (20_000, 50_000)),
        (50_000, 50_000, 50_000, (25_000, 50_000)),
        (1000, 5000, 10_000, (1000, 10_000)),
        (MAX, 5000, 10_000, (5000, 10_000)),
    ],
)
def test_quotas_are_compared_by_the_cpus_that_they_are(
    policy: int, quota: int | None, period: int | None, wanted: tuple[int, int]
) -> None:
    found = within(Limits(cpu_quota=policy), Resources(cpu=Cpu(quota=quota, period=period, burst=4000))).cpu
    assert (found.quota, found.period) == wanted
    assert found.burst == min(4000, wanted[0])


def test_sets_are_what_both_have() -> None:
    found = within(Limits(cpus=frozenset({1, 2}), mems=frozenset({0})), WHOLE).cpu
    assert (found.cpus, found.mems) == ("1", "0")
    with pytest.raises(InputError, match=r"linux.resources.cpu.cpus 0-1: the host's policy allows 2; choose from 2"):
        within(Limits(cpus=frozenset({2})), WHOLE)


@pytest.mark.parametrize(("file", "limits"), [
    ("memory.max", Limits(memory=5)),
    ("memory.swap.max", Limits(memory=5, swap=5)),
    ("cpu.max", Limits(cpu_quota=5000)),
    ("cpuset.cpus", Limits(cpus=frozenset({1}))),
    ("io.max", Limits(io=(IoLimit("8:0", 1),))),
    ("hugetlb.2MB.max", Limits(hugetlb=(("2MB", 1),))),
    ("pids.max", Limits(pids=4)),
])  # fmt: skip
def test_unified_does_not_get_past_a_limit(file: str, limits: Limits) -> None:
    resources = Resources(unified=((file, "max"), ("memory.high", "1")))
    with pytest.raises(InputError, match=f"unified {file}"):
        within(limits, resources)
    assert within(Limits(net_cls=1), resources).unified == resources.unified


rules = st.lists(
    st.builds(
        DeviceRule,
        st.booleans(),
        st.sampled_from("abc"),
        st.none() | st.integers(0, 2),
        st.none() | st.integers(0, 2),
        st.sampled_from(["r", "w", "m", "rw", "rwm"]),
    ),
    max_size=5,
).map(tuple)
lists = st.lists(
    st.builds(
        Allowed,
        st.sampled_from("abc"),
        st.none() | st.integers(0, 2),
        st.none() | st.integers(0, 2),
        st.sampled_from(["r", "w", "m", "rw", "rwm"]),
    ),
    max_size=4,
).map(tuple)


def decided(ordered: tuple[DeviceRule, ...], kind: str, major: int, minor: int, letter: str) -> bool:
    """What ordered rules say of one kind of access, nothing being allowed at first."""
    answer = False
    for rule in ordered:
        if (
            rule.type in ("a", kind)
            and rule.major in (None, major)
            and rule.minor in (None, minor)
            and letter in rule.access
        ):
            answer = rule.allow
    return answer


@given(rules, lists)
def test_devices_are_what_the_document_and_the_policy_both_allow(
    ordered: tuple[DeviceRule, ...], policy: tuple[Allowed, ...]
) -> None:
    found = device_rules(Limits(devices=policy), ordered)
    for kind in "bc":
        for major in range(3):
            for minor in range(3):
                for letter in "rwm":
                    both = decided(ordered, kind, major, minor, letter) and allowed(policy, kind, major, minor, letter)
                    assert decided(found, kind, major, minor, letter) == both


def test_all_devices_become_those_of_the_policy() -> None:
    found = device_rules(Limits(devices=DEFAULT_RULES), (DeviceRule(False), DeviceRule(True)))
    assert found[0] == DeviceRule(False)
    assert decided(found, "c", 1, 3, "r")
    assert not decided(found, "b", 8, 0, "r")
