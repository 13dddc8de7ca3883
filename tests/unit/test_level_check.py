"""What a level cannot give is refused in one line that names the object and the remedy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.errors import HostError, InputError
from nestrt.level.check import Has, check, max_level, problems
from nestrt.level.devices import DEFAULT_RULES, EVERYTHING, DeviceRule, parse_rules
from nestrt.level.limits import Limits, parse_ios
from nestrt.level.policy import Policy
from nestrt.level.units import MAX

GIB = 1 << 30
ALL = ("cpu", "cpuset", "memory", "pids", "io", "devices", "freezer", "hugetlb", "rdma", "misc", "net_cls", "net_prio")
LEVEL = Has(
    level=1,
    max_level=2,
    memory=GIB,
    swap=0,
    cpus=frozenset({0, 1}),
    mems=frozenset({0}),
    cpu_quota=150_000,
    pids=100,
    devices=DEFAULT_RULES,
    controllers=ALL,
    name="level 1 (web)",
)
FITS = Limits(
    memory=GIB,
    swap=0,
    cpus=frozenset({1}),
    mems=frozenset({0}),
    cpu_quota=150_000,
    pids=100,
    devices=parse_rules(["c 1:3 rw"]),
)


def test_what_fits_is_given() -> None:
    check(Policy(), FITS, LEVEL)
    check(Policy(), Limits(), LEVEL)
    check(Policy(), FITS, Has())


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (Limits(memory=GIB + 1), "memory 1073741825"),
        (Limits(memory=2 * GIB), "memory 2G"),
        (Limits(swap=1 << 20), "swap 1M"),
        (Limits(cpus=frozenset({0, 1, 2, 3})), "CPUs 2-3"),
        (Limits(mems=frozenset({1})), "memory nodes 1"),
        (Limits(cpu_quota=150_001), "cpu_quota 1.50001"),
        (Limits(pids=101), "pids 101"),
        (Limits(devices=parse_rules(["default", "c 10:229 rw"])), "c 10:229 rw"),
        (Limits(devices=EVERYTHING), "a *:* rwm"),
    ],
)
def test_more_than_the_level_has_is_refused_unless_overridden(asked: Limits, named: str) -> None:
    with pytest.raises(InputError) as caught:
        check(Policy(), asked, LEVEL)
    assert named in caught.value.obj
    assert "level 1 (web)" in str(caught.value)
    assert caught.value.remedy
    assert len(problems(Policy(), asked, LEVEL)) == 1
    check(Policy(override=True), asked, LEVEL)


def test_max_asks_for_nothing() -> None:
    check(Policy(), Limits(memory=MAX, swap=MAX, cpu_quota=MAX, pids=MAX), LEVEL)


def test_too_little_memory_to_start_in_is_refused_even_on_a_host() -> None:
    with pytest.raises(InputError, match="256K or more"):
        check(Policy(override=True), Limits(memory=4096), Has())


@pytest.mark.parametrize("override", [False, True])
def test_levels_are_never_overridden(override: bool) -> None:
    with pytest.raises(InputError, match="level 3"):
        check(Policy(override=override), Limits(), Has(level=2, max_level=2))
    with pytest.raises(InputError, match="max_level to 2"):
        check(Policy(override=override, max_level=1), Limits(), Has(level=1))
    check(Policy(max_level=1), Limits(), Has())


@given(st.integers(0, 32), st.integers(0, 32), st.integers(1, 32), st.booleans())
def test_a_guest_starts_if_both_say_so(level: int, limit: int, policy: int, override: bool) -> None:
    found = problems(Policy(max_level=policy, override=override), Limits(), Has(level=level, max_level=limit))
    assert (not found) == (level + 1 <= limit and level + 1 <= policy)
    assert len(found) <= 1


def test_guests_of_the_guest_go_no_deeper_than_either() -> None:
    assert max_level(Policy(max_level=9), Has(max_level=2)) == 2
    assert max_level(Policy(max_level=2), Has(max_level=32)) == 2


@pytest.mark.parametrize(
    ("asked", "controller"),
    [
        (Limits(memory=GIB), "memory"),
        (Limits(swap=1), "memory"),
        (Limits(cpus=frozenset({0})), "cpuset"),
        (Limits(cpu_weight=1), "cpu"),
        (Limits(pids=1), "pids"),
        (Limits(io=parse_ios(["8:0 rbps=1"])), "io"),
        (Limits(hugetlb=(("2MB", 0),)), "hugetlb"),
        (Limits(rdma=(("mlx", "hca_handle=1"),)), "rdma"),
        (Limits(misc=(("sev", "1"),)), "misc"),
        (Limits(net_cls=0), "net_cls"),
        (Limits(net_prio=(("eth0", 1),)), "net_prio"),
    ],
)
def test_a_limit_needs_its_controller_even_with_override(asked: Limits, controller: str) -> None:
    lacking = Has(controllers=tuple(name for name in ALL if name != controller))
    with pytest.raises(HostError, match=f"no controller {controller} "):
        check(Policy(override=True), asked, lacking)
    check(Policy(), asked, Has(controllers=(controller,)))


def test_a_view_needs_its_controllers_but_not_those_of_the_core() -> None:
    v2 = Has(controllers=("cpu", "memory"))
    check(Policy(controllers=("cpu", "devices", "freezer", "cpuacct", "perf_event")), Limits(), v2)
    check(Policy(controllers=None), Limits(), Has(controllers=()))
    with pytest.raises(HostError, match="controller io"):
        check(Policy(controllers=("io",)), Limits(), v2)


def test_all_problems_are_found_each_in_one_line() -> None:
    asked = Limits(memory=2 * GIB, pids=1000, cpus=frozenset({9}), devices=(DeviceRule("b", 8, 0, "r"),))
    found = problems(Policy(max_level=1), asked, LEVEL)
    assert len(found) == 5
    assert all(str(problem).isprintable() and problem.remedy for problem in found)
