"""The tables: what is written for a limit, on v1 and on v2, which files are locked, and unknown controllers."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.controllers.base import Setting
from nestrt.controllers.cpu import shares_of, weight_of
from nestrt.controllers.names import expand, variable_part
from nestrt.controllers.table import (
    CONTROLLERS,
    by_name,
    canonical,
    core_controllers,
    for_hierarchy,
    limit_files,
    settings_for,
)
from nestrt.errors import InputError
from nestrt.level.devices import DEFAULT_RULES, DeviceRule, allowed, parse_rule, parse_rules
from nestrt.level.limits import Limits, parse_ios
from nestrt.level.policy import Policy
from nestrt.level.units import MAX

# A group of Linux 6.12, v2, with nsdelegate and every controller.
GROUP_V2 = """cgroup.controllers cgroup.events cgroup.freeze cgroup.kill cgroup.max.depth cgroup.max.descendants
cgroup.pressure cgroup.procs cgroup.stat cgroup.subtree_control cgroup.threads cgroup.type cpu.idle cpu.max
cpu.max.burst cpu.pressure cpu.stat cpu.stat.local cpu.weight cpu.weight.nice cpuset.cpus cpuset.cpus.effective
cpuset.cpus.exclusive cpuset.cpus.exclusive.effective cpuset.cpus.partition cpuset.mems cpuset.mems.effective
hugetlb.2MB.current hugetlb.2MB.events hugetlb.2MB.events.local hugetlb.2MB.max hugetlb.2MB.numa_stat
hugetlb.2MB.rsvd.current hugetlb.2MB.rsvd.max io.max io.pressure io.stat memory.current memory.events
memory.events.local memory.high memory.low memory.max memory.min memory.numa_stat memory.oom.group memory.peak
memory.pressure memory.reclaim memory.stat memory.swap.current memory.swap.events memory.swap.high memory.swap.max
memory.swap.peak memory.zswap.current memory.zswap.max memory.zswap.writeback misc.current misc.events misc.max
misc.peak pids.current pids.events pids.max pids.peak rdma.current rdma.max""".split()
NAMES_V2 = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc")
# /sys/kernel/cgroup/delegate of that kernel: these are the guest's.
DELEGATED = {"cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "memory.oom.group", "memory.reclaim"}
KERNEL_NAMES = (
    "cpuset cpu cpuacct blkio memory devices freezer net_cls perf_event net_prio hugetlb pids rdma misc".split()
)
# What only the group's own processes feel; nsdelegate would keep it from the guest, a lock need not.
HARMLESS = {"cgroup.freeze", "cgroup.kill", "cgroup.pressure", "cgroup.type", "memory.peak", "memory.swap.peak"}


def written(limits: Limits, name: str, version: int) -> list[tuple[str, str]]:
    return [(item.file, item.value) for item in by_name(name).settings(limits, version)]


def test_every_controller_of_the_kernel_has_its_file() -> None:
    assert sorted(item.v1_name or "" for item in CONTROLLERS) == sorted(KERNEL_NAMES)
    assert len({item.name for item in CONTROLLERS}) == len(KERNEL_NAMES)
    for item in CONTROLLERS:
        assert item.divided_by in ("", *Policy.FIELDS)  # type: ignore[attr-defined]
        for version in (1, 2):
            files = item.files(version)
            assert len({file.meaning for file in files}) == len(files), item.name
            assert len({file.name for file in files}) == len(files), item.name
            assert all(file.writable for file in files if file.limit), item.name
        meanings = {file.meaning for version in (1, 2) for file in item.files(version)}
        assert set(item.usage) <= meanings, item.name
        assert set(item.fill) <= {file.name for file in item.v1}


def test_names_of_v1_and_v2() -> None:
    assert canonical("blkio") == "io"
    assert canonical("io") == "io"
    assert canonical("dmem") == "dmem"
    assert by_name("blkio") is by_name("io")
    assert by_name("io").kernel_name(1) == "blkio"
    assert by_name("io").kernel_name(2) == "io"


def test_memory() -> None:
    limits = Limits(memory=1 << 29, swap=1 << 20)
    assert written(limits, "memory", 2) == [("memory.max", "536870912"), ("memory.swap.max", "1048576")]
    # The sum, and second: the kernel refuses it below memory.limit_in_bytes.
    assert written(limits, "memory", 1) == [
        ("memory.limit_in_bytes", "536870912"),
        ("memory.memsw.limit_in_bytes", "537919488"),
    ]
    assert written(Limits(memory=1 << 29, swap=0), "memory", 1)[1] == ("memory.memsw.limit_in_bytes", "536870912")
    assert written(Limits(memory=1 << 29), "memory", 1) == [("memory.limit_in_bytes", "536870912")]
    assert written(Limits(memory=1 << 29), "memory", 2) == [("memory.max", "536870912")]
    assert written(Limits(swap=0), "memory", 2) == [("memory.swap.max", "0")]
    assert written(Limits(memory=MAX, swap=MAX), "memory", 1) == [
        ("memory.limit_in_bytes", "-1"),
        ("memory.memsw.limit_in_bytes", "-1"),
    ]
    assert written(Limits(memory=MAX, swap=MAX), "memory", 2) == [("memory.max", "max"), ("memory.swap.max", "max")]


@pytest.mark.parametrize("memory", [None, MAX])
def test_v1_limits_no_swap_alone(memory: int | None) -> None:
    with pytest.raises(InputError, match="memory limit too"):
        by_name("memory").settings(Limits(memory=memory, swap=0), 1)


def test_cpu() -> None:
    limits = Limits(cpu_quota=150_000, cpu_weight=100)
    assert written(limits, "cpu", 2) == [("cpu.max", "150000 100000"), ("cpu.weight", "100")]
    assert written(limits, "cpu", 1) == [
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "150000"),
        ("cpu.shares", "1024"),
    ]
    assert written(Limits(cpu_quota=MAX), "cpu", 2) == [("cpu.max", "max 100000")]
    assert written(Limits(cpu_quota=MAX), "cpu", 1)[1] == ("cpu.cfs_quota_us", "-1")


@given(st.integers(1, 10_000))
def test_shares_and_weights_are_inverses(weight: int) -> None:
    assert 2 <= shares_of(weight) <= 262_144
    assert weight_of(shares_of(weight)) == weight
    assert shares_of(min(10_000, weight + 1)) >= shares_of(weight)


def test_shares_at_the_ends_and_the_default() -> None:
    assert [shares_of(weight) for weight in (1, 100, 10_000)] == [2, 1024, 262_144]
    assert [weight_of(shares) for shares in (0, 2, 1024, 262_144, 10**9)] == [1, 1, 100, 10_000, 10_000]


@pytest.mark.parametrize("version", [1, 2])
def test_what_both_versions_spell_alike(version: int) -> None:
    cpus = Limits(cpus=frozenset({0, 1, 3}), mems=frozenset({0}))
    assert written(cpus, "cpuset", version) == [("cpuset.cpus", "0-1,3"), ("cpuset.mems", "0")]
    assert written(Limits(pids=100), "pids", version) == [("pids.max", "100")]
    assert written(Limits(pids=MAX), "pids", version) == [("pids.max", "max")]
    rdma = Limits(rdma=(("mlx4_0", "hca_handle=2 hca_object=max"),))
    assert written(rdma, "rdma", version) == [("rdma.max", "mlx4_0 hca_handle=2 hca_object=max")]
    assert written(Limits(misc=(("sev", "10"),)), "misc", version) == [("misc.max", "sev 10")]


def test_io() -> None:
    limits = Limits(io=parse_ios(["8:0 rbps=1M wiops=max", "8:16 wbps=2M"]))
    assert written(limits, "io", 2) == [("io.max", "8:0 rbps=1048576 wiops=max"), ("io.max", "8:16 wbps=2097152")]
    # 0 lifts a throttle in v1, as max does in v2.
    assert written(limits, "io", 1) == [
        ("blkio.throttle.read_bps_device", "8:0 1048576"),
        ("blkio.throttle.write_iops_device", "8:0 0"),
        ("blkio.throttle.write_bps_device", "8:16 2097152"),
    ]


def test_hugetlb_limits_reservations_where_the_kernel_can() -> None:
    limits = Limits(hugetlb=(("2MB", 1 << 26), ("1GB", MAX)))
    assert by_name("hugetlb").settings(limits, 2) == (
        Setting("hugetlb.2MB.rsvd.max", "67108864", optional=True),
        Setting("hugetlb.2MB.max", "67108864"),
        Setting("hugetlb.1GB.rsvd.max", "max", optional=True),
        Setting("hugetlb.1GB.max", "max"),
    )
    assert written(limits, "hugetlb", 1)[1] == ("hugetlb.2MB.limit_in_bytes", "67108864")
    assert written(limits, "hugetlb", 1)[3] == ("hugetlb.1GB.limit_in_bytes", "-1")


def test_net() -> None:
    limits = Limits(net_cls=0x100001, net_prio=(("eth0", 5), ("lo", 0)))
    assert written(limits, "net_cls", 1) == [("net_cls.classid", "1048577")]
    assert written(limits, "net_prio", 1) == [("net_prio.ifpriomap", "eth0 5"), ("net_prio.ifpriomap", "lo 0")]
    assert written(limits, "net_cls", 2) == written(limits, "net_prio", 2) == []


def by_v1_files(lines: list[tuple[str, str]]) -> tuple[DeviceRule, ...]:
    """The rules of a group that allowed all, after these writes: devcgroup_update_access(), which reads "a" alone."""
    rules: dict[tuple[str, int | None, int | None], str] = {("a", None, None): "rwm"}
    for file, value in lines:
        if value.startswith("a"):
            rules = {("a", None, None): "rwm"} if file == "devices.allow" else {}
            continue
        rule = parse_rule(value)
        node = (rule.type, rule.major, rule.minor)
        assert file == "devices.allow"
        rules[node] = rules.get(node, "") + rule.access
    return tuple(DeviceRule(*node, access) for node, access in rules.items())


@pytest.mark.parametrize(
    "rules",
    [
        (),
        DEFAULT_RULES,
        parse_rules(["all"]),
        parse_rules(["a *:* r"]),
        parse_rules(["a 1:* rw", "c 1:3 m", "b 8:0 rm"]),
    ],
)
def test_v1_device_files_end_up_with_the_rules(rules: tuple[DeviceRule, ...]) -> None:
    after = by_v1_files(written(Limits(devices=rules), "devices", 1))
    for kind in "bc":
        for major in (1, 5, 8, 10, 136, 999):
            for minor in (0, 3, 200):
                for access in ("r", "w", "rw", "m"):
                    wanted = allowed(rules, kind, major, minor, access)
                    assert allowed(after, kind, major, minor, access) == wanted, (kind, major, minor, access)


def test_devices_are_denied_before_any_is_allowed() -> None:
    lines = written(Limits(devices=DEFAULT_RULES), "devices", 1)
    assert lines[0] == ("devices.deny", "a")
    assert all(file == "devices.allow" for file, _ in lines[1:])
    # The parent may have mknod from a wider rule than open, and answers each line by one rule.
    assert ("devices.allow", "c 1:3 rw") in lines
    assert ("devices.allow", "c 1:3 m") in lines
    assert written(Limits(devices=None), "devices", 1) == []
    assert written(Limits(devices=()), "devices", 1) == [("devices.deny", "a")]
    assert written(Limits(devices=DEFAULT_RULES), "devices", 2) == []


@pytest.mark.parametrize("version", [1, 2])
def test_nothing_asked_is_nothing_written(version: int) -> None:
    assert settings_for(Limits(), [*KERNEL_NAMES, "io"], version) == ()


def test_a_hierarchy_gets_its_own_controllers_settings_and_no_others() -> None:
    limits = Limits(memory=1 << 29, pids=5, cpu_quota=100_000)
    assert [item.file for item in settings_for(limits, ("pids",), 1)] == ["pids.max"]
    assert settings_for(limits, (), 1) == ()
    assert [item.file for item in settings_for(limits, ("memory", "cpu"), 2)] == ["cpu.max", "memory.max"]


def test_an_unknown_controller_passes_through() -> None:
    found = for_hierarchy(("dmem", "memory"), 2)
    assert [item.name for item in found] == ["memory", "dmem"]
    assert found[1].settings(Limits(memory=1), 2) == ()
    assert found[1].kernel_name(1) == "dmem"
    assert found[1].file("current", 2) is None
    listing = ["dmem.current", "dmem.max", "dmem.min", "memory.max"]
    assert expand(limit_files(2, ("dmem",)), listing) == ("dmem.max",)


def test_core_of_v2_is_not_taken_for_what_a_hierarchy_has() -> None:
    assert [item.name for item in for_hierarchy(("cpu",), 2)] == ["cpu"]
    assert {item.name for item in core_controllers()} == {"devices", "freezer", "cpuacct", "perf_event"}


def test_each_file_of_a_v2_group_is_known_and_all_that_could_widen_it_are_locked() -> None:
    locked = set(expand(limit_files(2, NAMES_V2), GROUP_V2))
    known = {file.name for name in NAMES_V2 for file in by_name(name).v2}
    controllers = [name for name in GROUP_V2 if not name.startswith("cgroup.")]
    assert set(expand(known, controllers)) == set(controllers)
    for name in ("cgroup.max.depth", "cgroup.max.descendants", "memory.max", "hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"):
        assert name in locked
    endings = (".current", ".events", ".local", ".stat", "numa_stat", "effective", ".controllers", "pressure")
    read_only = {name for name in GROUP_V2 if name.endswith((*endings, "misc.peak", "pids.peak"))}
    assert set(GROUP_V2) - locked == DELEGATED | HARMLESS | read_only
    assert not locked & (DELEGATED | read_only)


@pytest.mark.parametrize("version", [1, 2])
def test_every_file_that_a_limit_is_written_to_is_locked(version: int) -> None:
    limits = Limits(
        memory=1, swap=1, cpus=frozenset({0}), mems=frozenset({0}), cpu_quota=1000, cpu_weight=1, pids=1,
        io=parse_ios(["8:0 rbps=1 wbps=1 riops=1 wiops=1"]), devices=DEFAULT_RULES, hugetlb=(("2MB", 1),),
        rdma=(("a", "hca_handle=1"),), misc=(("a", "1"),), net_cls=1, net_prio=(("lo", 1),),
    )  # fmt: skip
    names = KERNEL_NAMES if version == 1 else NAMES_V2
    files = {item.file for item in settings_for(limits, names, version)}
    assert len(files) >= 10
    assert set(expand(limit_files(version, names), sorted(files))) == files


def test_patterns_stand_for_one_part() -> None:
    listing = ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.max", "hugetlb.1GB.max"]
    assert expand(["hugetlb.*.max"], listing) == ("hugetlb.2MB.max", "hugetlb.1GB.max")
    assert expand(["pids.max"], ["pids.max", "pids_max", "pids.max.x"]) == ("pids.max",)
    assert variable_part("hugetlb.*.max", "hugetlb.2MB.max") == "2MB"
    assert variable_part("hugetlb.*.max", "hugetlb.2MB.rsvd.max") == ""
    assert variable_part("pids.max", "pids.max") == ""


def test_meanings_that_hosts_and_guests_ask_for() -> None:
    for name, meaning, v1, v2 in (
        ("memory", "max", "memory.limit_in_bytes", "memory.max"),
        ("memory", "current", "memory.usage_in_bytes", "memory.current"),
        ("pids", "max", "pids.max", "pids.max"),
        ("cpu", "weight", "cpu.shares", "cpu.weight"),
        ("cpu", "quota", "cpu.cfs_quota_us", "cpu.max"),
        ("cpuset", "effective_cpus", "cpuset.effective_cpus", "cpuset.cpus.effective"),
        ("freezer", "state", "freezer.state", "cgroup.freeze"),
    ):
        for version, wanted in ((1, v1), (2, v2)):
            file = by_name(name).file(meaning, version)
            assert file is not None
            assert file.name == wanted
    limit = by_name("memory").file("max", 2)
    assert limit is not None
    assert (limit.combine, limit.unit, limit.limit) == ("min", "bytes", True)
    assert by_name("memory").file("swap_max", 1) is None


HERE = {
    name: Path("/sys/fs/cgroup") / name for name in KERNEL_NAMES if (Path("/sys/fs/cgroup") / name / "tasks").exists()
}


@pytest.mark.parametrize("name", sorted(HERE) or ["none"])
def test_this_machines_v1_files_are_known(name: str) -> None:
    """Of each hierarchy that is mounted alone here: no file that can be written is missing in the table."""
    if name == "none":
        pytest.skip("no v1 hierarchy is mounted below /sys/fs/cgroup")
    writable = [file.name for file in HERE[name].glob(f"{name}.*") if file.stat().st_mode & stat.S_IWUSR]
    table = [file.name for file in by_name(name).v1]
    unknown = set(writable) - set(expand(table, writable))
    # A hierarchy's root alone has the first; the second is no file of the kernel's.
    assert unknown <= {"cpuset.memory_pressure_enabled", "memory.shown_ram_in_bytes"}
