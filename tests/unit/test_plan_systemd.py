"""Unit names, slices, limits as unit properties, and properties that annotations name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.errors import InputError
from nestrt.kernel.sdbus import split
from nestrt.oci.resources import BlockIo, Cpu, DeviceRule, Memory, Resources
from nestrt.plan.systemd import (
    INFINITY,
    Unit,
    bits,
    device_properties,
    expand_slice,
    parse_path,
    properties,
    settled,
    start_properties,
)
from nestrt.plan.systemd_text import Property, annotated, parse_value

NEW = 252


def said(found: object) -> dict[str, object]:
    assert isinstance(found, (tuple, list))
    return {item.name: item.value for item in found}


@pytest.mark.parametrize(
    ("text", "rootless", "name", "group"),
    [
        ("", False, "nestrt-id1.scope", "/system.slice/nestrt-id1.scope"),
        ("", True, "nestrt-id1.scope", "/user.slice/nestrt-id1.scope"),
        ("machine.slice:libpod:1f", False, "libpod-1f.scope", "/machine.slice/libpod-1f.scope"),
        (":docker:1f", False, "docker-1f.scope", "/system.slice/docker-1f.scope"),
        ("-.slice:docker:1f", False, "docker-1f.scope", "/docker-1f.scope"),
        ("a-b.slice:cri:x", False, "cri-x.scope", "/a.slice/a-b.slice/cri-x.scope"),
        ("machine.slice::machine-pod.slice", False, "machine-pod.slice", "/machine.slice/machine-pod.slice"),
    ],
)
def test_cgroups_path_names_a_unit_and_its_group(text: str, rootless: bool, name: str, group: str) -> None:
    unit = parse_path(text, "id1", rootless)
    assert unit.name == name
    assert unit.group() == group


def test_a_users_manager_has_its_slices_below_its_own_group() -> None:
    unit = parse_path("", "web", True)
    assert unit.group("/user.slice/user-1000.slice/user@1000.service") == (
        "/user.slice/user-1000.slice/user@1000.service/user.slice/nestrt-web.scope"
    )


@pytest.mark.parametrize(
    "text",
    [
        "/machine/web", "a.slice:b", "a.slice:b:c:d", "a:b:c", ".slice:b:c", "a--b.slice:b:c", "-a.slice:b:c",
        "../x.slice:b:c", "a/b.slice:b:c", "a.slice:b:", "a.slice:b:../c", "a.slice:b:c d", "a.slice:b:" + "c" * 260,
        "a.slice::x/y.slice", "a.slice::x--y.slice",
    ],
)  # fmt: skip
def test_what_names_no_unit_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_path(text, "id1")


def test_the_wrong_form_is_told_in_runcs_words() -> None:
    with pytest.raises(InputError, match='expected cgroupsPath to be of format "slice:prefix:name"'):
        parse_path("/user/defined", "id1")


def test_slices_nest_by_their_dashes() -> None:
    assert expand_slice("-.slice") == "/"
    assert expand_slice("system.slice") == "/system.slice"
    assert expand_slice("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"


def test_a_scope_is_delegated_and_lies_in_its_slice() -> None:
    found = said(start_properties(parse_path("m.slice:p:web", "x"), Resources(), True, NEW))
    assert found["Delegate"] is True
    assert found["DefaultDependencies"] is False
    assert found["Slice"] == "m.slice"
    assert found["CollectMode"] == "inactive-or-failed"
    assert found["IOAccounting"] is True
    assert "web" in str(found["Description"])


def test_a_slice_wants_its_slice_and_v1_counts_block_io() -> None:
    found = said(start_properties(Unit("m-x.slice", "m.slice", "x"), Resources(), False, 230))
    assert found["Wants"] == ("m.slice",)
    assert not {"Delegate", "Slice", "CollectMode", "IOAccounting"} & set(found)
    assert found["BlockIOAccounting"] is True


def test_oom_group_can_only_be_set_at_the_start() -> None:
    resources = Resources(unified=(("memory.oom.group", "1"),))
    unit = parse_path("", "x")
    assert said(start_properties(unit, resources, True, 253))["OOMPolicy"] == "kill"
    assert "OOMPolicy" not in said(start_properties(unit, resources, True, 252))
    assert properties(resources, True, 253) == ()


FULL = Resources(
    memory=Memory(limit=1 << 26, swap=1 << 27, reservation=1 << 25),
    cpu=Cpu(shares=1024, quota=25_500, period=50_000, cpus="0-1", mems="0"),
    pids=33,
    block_io=BlockIo(weight=1000),
)


def test_limits_on_v2() -> None:
    assert properties(FULL, True, NEW) == (
        Property("MemoryMax", "t", 1 << 26),
        Property("MemoryLow", "t", 1 << 25),
        Property("MemorySwapMax", "t", 1 << 26),
        Property("CPUWeight", "t", 39),
        Property("CPUQuotaPeriodUSec", "t", 50_000),
        Property("CPUQuotaPerSecUSec", "t", 510_000),
        Property("IOWeight", "t", 10_000),
        Property("TasksMax", "t", 33),
        Property("AllowedCPUs", "ay", b"\x03"),
        Property("AllowedMemoryNodes", "ay", b"\x01"),
    )


def test_limits_on_v1() -> None:
    assert properties(FULL, False, 243) == (
        Property("MemoryLimit", "t", 1 << 26),
        Property("CPUShares", "t", 1024),
        Property("CPUQuotaPeriodUSec", "t", 50_000),
        Property("CPUQuotaPerSecUSec", "t", 510_000),
        Property("BlockIOWeight", "t", 1000),
        Property("TasksMax", "t", 33),
    )


def test_minus_one_is_no_limit_and_zero_is_not_said() -> None:
    none = Resources(memory=Memory(limit=-1), cpu=Cpu(quota=-1), pids=-1)
    assert said(properties(none, True, NEW)) == dict.fromkeys(
        ("MemoryMax", "MemorySwapMax", "CPUQuotaPerSecUSec", "TasksMax"), INFINITY
    )
    assert properties(Resources(memory=Memory(limit=0), cpu=Cpu(shares=0, quota=0)), True, NEW) == ()
    assert said(properties(Resources(pids=0), True, NEW)) == {"TasksMax": 1}
    same = Resources(memory=Memory(limit=4096, swap=4096))
    assert said(properties(same, True, NEW))["MemorySwapMax"] == 0


@given(quota=st.integers(1000, 10**7), period=st.integers(1000, 10**6))
def test_a_quota_is_rounded_up_to_whole_percents_and_the_files_get_the_same(quota: int, period: int) -> None:
    resources = Resources(cpu=Cpu(quota=quota, period=period))
    per_second = said(properties(resources, True, NEW))["CPUQuotaPerSecUSec"]
    assert isinstance(per_second, int)
    assert per_second % 10_000 == 0
    assert 0 <= per_second - quota * 1_000_000 // period < 10_000
    assert settled(resources).cpu.quota == per_second * period // 1_000_000


def test_a_quota_without_a_period_and_none_at_all() -> None:
    found = said(properties(Resources(cpu=Cpu(quota=123_456)), True, NEW))
    assert found == {"CPUQuotaPerSecUSec": 1_240_000}
    assert settled(Resources(cpu=Cpu(quota=123_456))).cpu.quota == 124_000
    assert settled(Resources(cpu=Cpu(quota=-1))).cpu.quota == -1
    assert said(properties(Resources(cpu=Cpu(period=50_000)), True, NEW)) == {
        "CPUQuotaPeriodUSec": 50_000,
        "CPUQuotaPerSecUSec": INFINITY,
    }


def test_idle_beats_shares() -> None:
    cpu = Cpu(shares=1024, idle=1)
    assert said(properties(Resources(cpu=cpu), True, 252)) == {"CPUWeight": 0}
    assert said(properties(Resources(cpu=cpu), True, 251)) == {"CPUWeight": 39}
    assert said(properties(Resources(cpu=cpu), False, 252)) == {"CPUShares": 1024}


def test_files_of_v2_by_their_names() -> None:
    unified = (
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "200"),
        ("cpuset.cpus", "0,3-4"),
        ("hugetlb.2MB.max", "0"),
        ("memory.high", " max "),
        ("memory.max", "4096"),
        ("memory.swap.max", "0"),
        ("pids.max", "max"),
    )
    found = said(properties(Resources(unified=unified), True, NEW))
    assert found == {
        "CPUQuotaPeriodUSec": 100_000,
        "CPUQuotaPerSecUSec": 500_000,
        "CPUWeight": 200,
        "AllowedCPUs": b"\x19",
        "MemoryHigh": INFINITY,
        "MemoryMax": 4096,
        "MemorySwapMax": 0,
        "TasksMax": INFINITY,
    }
    both = Resources(unified=(("cpu.weight", "200"), ("cpu.idle", "1")))
    assert properties(both, True, NEW) == (Property("CPUWeight", "t", 0),)


@pytest.mark.parametrize(
    ("key", "value"),
    [("memory.max", "1G"), ("cpu.max", ""), ("cpu.max", "1 2 3"), ("../x.y", "1"), ("memory", "1"), (".x", "1"),
     ("cpuset.cpus", ""), ("cpuset.cpus", "3-1"), ("pids.max", "-1"), ("cpu.weight", "ten")],
)  # fmt: skip
def test_what_v2s_files_would_not_take_is_refused(key: str, value: str) -> None:
    with pytest.raises(InputError):
        properties(Resources(unified=((key, value),)), True, NEW)


@given(st.sets(st.integers(0, 2000), min_size=1))
def test_a_list_becomes_a_mask(numbers: set[int]) -> None:
    mask = bits(",".join(map(str, numbers)))
    assert {8 * at + bit for at, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1} == numbers
    assert mask[-1]


DENY = DeviceRule(False)


def devices(*rules: DeviceRule, unified: bool = True, version: int = NEW) -> tuple[object, object]:
    found = said(device_properties(rules, unified, version))
    return found["DevicePolicy"], found["DeviceAllow"]


def test_devices_that_are_allowed_one_by_one() -> None:
    rules = (
        DENY,
        DeviceRule(True, "c", None, None, "m"),
        DeviceRule(True, "c", 1, 3, "rwm"),
        DeviceRule(True, "c", 136, None, "rwm"),
        DeviceRule(True, "b", 8, 0, "r"),
    )
    policy, allowed = devices(*rules)
    assert policy == "strict"
    assert set(allowed) == {  # type: ignore[call-overload]
        ("char-*", "m"), ("/dev/char/1:3", "rwm"), ("char-136", "rwm"), ("/dev/block/8:0", "r"),
    }  # fmt: skip
    # What the unit had is taken away first.
    assert device_properties(rules, True, NEW)[0] == Property("DeviceAllow", "a(ss)", ())


def test_all_devices_and_none() -> None:
    assert devices(DeviceRule(True)) == ("auto", ())
    assert devices(DENY) == ("strict", ())
    assert devices() == ("strict", ())


def test_what_systemd_cannot_say_is_left_to_the_groups_program_and_denied_on_v1() -> None:
    hole = (DeviceRule(True), DeviceRule(False, "c", 1, 3, "w"))
    assert devices(*hole) == ("auto", ())
    assert devices(*hole, unified=False) == ("strict", ())
    any_major = (DENY, DeviceRule(True, "c", None, 3, "r"), DeviceRule(True, "c", 1, 5, "r"))
    assert devices(*any_major) == ("auto", ())
    assert devices(*any_major, unified=False) == ("strict", (("/dev/char/1:5", "r"),))


def test_without_devices_they_are_left_alone() -> None:
    assert not {"DevicePolicy", "DeviceAllow"} & set(said(properties(FULL, True, NEW)))
    assert "DevicePolicy" in said(properties(FULL, True, NEW, ()))


@pytest.mark.parametrize(
    ("text", "signature", "value"),
    [
        ("'inactive-or-failed'", "s", "inactive-or-failed"),
        ('"a \\"b\\" \\u00e9\\n"', "s", 'a "b" é\n'),
        ("true", "b", True),
        ("12", "i", 12),
        ("-0x10", "i", -16),
        ("017", "i", 15),
        ("uint64 123", "t", 123),
        ("@t 123", "t", 123),
        ("byte 0xff", "y", 255),
        ("1.5", "d", 1.5),
        ("['a', 'b']", "as", ("a", "b")),
        ("[uint32 1, 2]", "au", (1, 2)),
        ("@as []", "as", ()),
        ("[['a'], ['b', 'c']]", "aas", (("a",), ("b", "c"))),
    ],
)
def test_values_as_text(text: str, signature: str, value: object) -> None:
    assert parse_value(text, "k") == (signature, value)


@pytest.mark.parametrize(
    "text",
    ["", "word", "'open", "uint64 -1", "uint16 65536", "uint64 'a'", "[1, 'a']", "[", "[]", "[1,]", "[1 2]", "1 2",
     "@q", "@zz 1", "uint64 uint64 1", "boolean 1", "2147483648", "'a\\x' '", "[uint64 1, int16 2]", "@t 1.5",
     "'\\u12'", "'\\UFFFFFFFF'", "]", "''x"],
)  # fmt: skip
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"annotation k="):
        parse_value(text, "k")


@given(st.text(alphabet="[]'\",@ uint64\\tas1-.xe+", max_size=12))
def test_any_text_is_a_value_or_an_input_error(text: str) -> None:
    try:
        signature, _ = parse_value(text, "k")
    except InputError:
        return
    assert len(split(signature)) == 1


def test_annotations_become_properties_and_seconds_microseconds() -> None:
    found = annotated(
        (
            ("org.systemd.property.TimeoutStopSec", "uint64 5"),
            ("org.systemd.property.RuntimeMaxSec", "1.5"),
            ("org.systemd.property.TimeoutStopUSec", "uint64 5"),
            ("org.systemd.property.CollectMode", "'inactive'"),
            ("org.example", "no property"),
        )
    )
    assert found == [
        Property("TimeoutStopUSec", "t", 5_000_000),
        Property("RuntimeMaxUSec", "t", 1_500_000),
        Property("TimeoutStopUSec", "t", 5),
        Property("CollectMode", "s", "inactive"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [("ab", "1"), ("Bad-Name", "1"), ("", "1"), ("TimeoutStopSec", "'five'"), ("TimeoutStopSec", "-5"),
     ("RuntimeMaxSec", "1e999"), ("Tasks", "x")],
)  # fmt: skip
def test_annotations_that_are_refused(name: str, text: str) -> None:
    with pytest.raises(InputError, match=r"org\.systemd\.property"):
        annotated(((f"org.systemd.property.{name}", text),))


def test_a_signature_is_cut_into_its_types() -> None:
    assert split("ssa(sv)a(sa(sv))") == ["s", "s", "a(sv)", "a(sa(sv))"]
    assert split("") == []
    assert split("aayau") == ["aay", "au"]
