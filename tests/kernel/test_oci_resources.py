"""linux.resources on real groups: what the kernel takes, what it says afterwards, and what runc makes of the same.

::

    <each hierarchy>/nestrt-oci-PID       the settings of a document are written here
                    /nestrt-runc-PID      runc's, for the same document (hybrid hosts)
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nestrt.controllers.base import Setting
from nestrt.controllers.oci_devices import as_allow_list, program, v1_settings, with_defaults
from nestrt.controllers.table import missing, resource_settings
from nestrt.controllers.update import update_settings
from nestrt.kernel import bpf, cgroup
from nestrt.level.devices import allowed, parse_rule
from nestrt.oci.resources import BlockIo, Cpu, DeviceRule, Memory, Resources, ThrottleDevice
from support.hostside import Hierarchy, has_v1, hierarchies, hierarchy_of, scratch_disk, v2_hierarchy
from support.need import require
from support.rootfs import busybox_root

M = 1 << 20
NUMBERS = itertools.count()


def enable(tree: Hierarchy) -> None:
    """Let groups at the top of the v2 *tree* have its controllers, as whoever makes groups there does."""
    control = tree.mountpoint / "cgroup.subtree_control"
    for name in tree.controllers - set(control.read_text().split()):
        control.write_text(f"+{name}")


@pytest.fixture
def group() -> Iterator[str]:
    """A new group in every hierarchy, its cpusets filled."""
    path = f"/nestrt-oci-{os.getpid()}-{next(NUMBERS)}"
    made: list[Path] = []
    try:
        for hierarchy in hierarchies():
            if hierarchy.version == 2:
                enable(hierarchy)
            directory = hierarchy.group(path)
            try:
                directory.mkdir()
            except PermissionError as error:
                require("root", str(error))
            made.append(directory)
            if hierarchy.version == 1 and "cpuset" in hierarchy.controllers:
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (directory / file).write_text((hierarchy.mountpoint / file).read_text())
        yield path
    finally:
        for directory in made:
            directory.rmdir()


def write(directory: Path, settings: Iterable[Setting]) -> list[str]:
    """Carry *settings* out as the launcher does; return the files that were written."""
    written = []
    for item in settings:
        if item.unless and (directory / item.unless).exists():
            continue
        if item.optional and not (directory / item.file).exists():
            continue
        cgroup.write(str(directory / item.file), item.value)
        written.append(item.file)
    return written


def apply(resources: Resources, group: str) -> dict[str, str]:
    """Write *resources* to *group* in every hierarchy; the text of each file that was written."""
    found: dict[str, str] = {}
    v2 = v2_hierarchy()
    every = {name for hierarchy in hierarchies() for name in hierarchy.controllers}
    assert missing(resources, every, v2.controllers if v2 else None) == []
    for hierarchy in hierarchies():
        directory = hierarchy.group(group)
        names = sorted(hierarchy.controllers)
        for file in write(directory, resource_settings(resources, names, hierarchy.version)):
            found[file] = (directory / file).read_text().strip()
    return found


def update(old: Resources, new: Resources, group: str) -> None:
    for hierarchy in hierarchies():
        directory = hierarchy.group(group)
        names = sorted(hierarchy.controllers)

        def read(file: str, directory: Path = directory) -> str:
            return (directory / file).read_text()

        write(directory, update_settings(old, new, names, hierarchy.version, read))


def needs(*controllers: str) -> None:
    absent = [name for name in controllers if hierarchy_of(name) is None]
    require("controllers", f"no hierarchy has {', '.join(absent)}" if absent else None)


def test_the_kernel_takes_and_shows_a_whole_document(group: str) -> None:
    needs("memory", "cpu", "cpuset", "pids")
    resources = Resources(
        memory=Memory(limit=64 * M, reservation=32 * M),
        cpu=Cpu(shares=2048, quota=30_000, period=60_000, burst=10_000, cpus="0", mems="0"),
        pids=33,
    )
    shown = apply(resources, group)
    assert shown["pids.max"] == "33"
    assert (shown["cpuset.cpus"], shown["cpuset.mems"]) == ("0", "0")
    if has_v1("cpu"):
        assert (shown["cpu.cfs_quota_us"], shown["cpu.cfs_period_us"]) == ("30000", "60000")
        assert (shown["cpu.shares"], shown["cpu.cfs_burst_us"]) == ("2048", "10000")
    else:
        assert (shown["cpu.max"], shown["cpu.weight"], shown["cpu.max.burst"]) == ("30000 60000", "79", "10000")
    if has_v1("memory"):
        assert shown["memory.limit_in_bytes"] == str(64 * M)
        assert shown["memory.soft_limit_in_bytes"] == str(32 * M)
    else:
        assert (shown["memory.max"], shown["memory.low"]) == (str(64 * M), str(32 * M))


def test_what_engines_send_for_no_limit_is_taken(group: str) -> None:
    needs("memory", "cpu", "pids")
    apply(Resources(memory=Memory(limit=-1, swap=-1), cpu=Cpu(quota=-1, shares=0), pids=-1), group)
    apply(Resources(memory=Memory(limit=-1), pids=0, cpu=Cpu(burst=0, idle=0)), group)
    apply(Resources(memory=Memory(swappiness=-1, disable_oom_killer=False, kernel=M)), group)


def test_throttles(group: str) -> None:
    needs("io")
    disk = scratch_disk()
    require("disk", None if disk else "no disk to throttle")
    major, minor = map(int, disk.split(":"))
    block = BlockIo(
        throttle_read_bps=(ThrottleDevice(major, minor, 3 * M),),
        throttle_write_iops=(ThrottleDevice(major, minor, 70),),
    )
    shown = apply(Resources(block_io=block), group)
    if has_v1("io"):
        assert shown["blkio.throttle.read_bps_device"] == f"{disk} {3 * M}"
        assert shown["blkio.throttle.write_iops_device"] == f"{disk} 70"
    else:
        assert shown["io.max"] == f"{disk} rbps={3 * M} wbps=max riops=max wiops=70"
    lifted = BlockIo(
        throttle_read_bps=(ThrottleDevice(major, minor, 0),), throttle_write_iops=(ThrottleDevice(major, minor, 0),)
    )
    assert set(apply(Resources(block_io=lifted), group).values()) == {""}


def test_a_weight_goes_where_this_kernel_has_it_and_is_never_lost(group: str) -> None:
    needs("io")
    hierarchy = hierarchy_of("io")
    assert hierarchy is not None
    names = ("blkio.weight", "blkio.bfq.weight") if hierarchy.version == 1 else ("io.bfq.weight", "io.weight")
    there = [name for name in names if (hierarchy.group(group) / name).exists()]
    if there:
        shown = apply(Resources(block_io=BlockIo(weight=300)), group)
        assert list(shown) == there[:1]
        assert shown[there[0]].split()[-1] in ("300", "2930")
    else:
        with pytest.raises(FileNotFoundError):
            apply(Resources(block_io=BlockIo(weight=300)), group)


def test_huge_pages(group: str) -> None:
    needs("hugetlb")
    shown = apply(Resources(hugepages=(("2MB", 4 * M),)), group)
    assert set(shown.values()) == {str(4 * M)}
    assert len(shown) == 2, "at use and at reservation"


def test_unified_reaches_the_v2_tree_of_a_hybrid_host_too(group: str) -> None:
    require("cgroup-v2", None if v2_hierarchy() else "no cgroup2 mount")
    assert apply(Resources(unified=(("cgroup.max.descendants", "5"),)), group) == {"cgroup.max.descendants": "5"}


def test_memory_grows_and_shrinks_with_swap(group: str) -> None:
    needs("memory")
    old = Resources(memory=Memory(limit=64 * M, swap=96 * M))
    shown = apply(old, group)
    if len(shown) < 2:
        require("swap", "this kernel counts no swap")
    steps = [(256, 300), (32, 40), (40, 40), (64, -1), (-1, -1), (32, 32), (-1, 0), (16, 4000), (8, 16)]
    for limit, swap in steps:
        limit, swap = (value * M if value > 0 else value for value in (limit, swap))
        update(old, Resources(memory=Memory(limit=limit, swap=swap)), group)
        hierarchy = hierarchy_of("memory")
        assert hierarchy is not None
        directory = hierarchy.group(group)
        if hierarchy.version == 1:
            has = int((directory / "memory.limit_in_bytes").read_text())
            both = int((directory / "memory.memsw.limit_in_bytes").read_text())
            wanted = (limit if limit > 0 else 2**63 - 4096, swap if swap > 0 else 2**63 - 4096)
            assert (has, both) == wanted
        else:
            assert (directory / "memory.max").read_text().strip() == (str(limit) if limit > 0 else "max")
            alone = str(swap - limit) if swap > 0 else "max"
            assert (directory / "memory.swap.max").read_text().strip() == alone


def test_quota_and_period_change_in_every_direction(group: str) -> None:
    needs("cpu")
    hierarchy = hierarchy_of("cpu")
    assert hierarchy is not None
    directory = hierarchy.group(group)
    if hierarchy.version == 1:
        # The group's parent bounds it: a child of a group with one CPU.
        (directory / "cpu.cfs_quota_us").write_text("100000")
        inner = f"{group}/inner"
        hierarchy.group(inner).mkdir()
    else:
        inner = group
    try:
        values = [
            (50_000, 100_000),
            (5_000, 10_000),
            (900_000, 1_000_000),
            (1_000, 1_000_000),
            (1_000, 1_000),
            (-1, 5_000),
        ]
        for before, after in itertools.permutations(values, 2):
            for quota, period in (before, after):
                new = Resources(cpu=Cpu(quota=quota, period=period))
                place = hierarchy.group(inner)
                read = lambda file, place=place: (place / file).read_text()  # noqa: E731
                write(place, update_settings(None, new, ("cpu",), hierarchy.version, read))
                if hierarchy.version == 1:
                    shown = [(place / file).read_text().strip() for file in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
                    assert shown == [str(quota), str(period)]
                else:
                    assert (place / "cpu.max").read_text().split() == [str(quota) if quota > 0 else "max", str(period)]
    finally:
        if inner != group:
            hierarchy.group(inner).rmdir()


# --- devices


def inside(directory: Path, action: Callable[[], object]) -> int:
    """The errno of *action* in a process of the group *directory*; 0 if it succeeded."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            (directory / "cgroup.procs").write_text(str(os.getpid()))
            action()
            status = 0
        except OSError as error:
            status = error.errno or 254
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hold(directory: Path, rules: tuple[DeviceRule, ...]) -> None:
    """The ordered *rules* are what a process of *directory* finds, for null, zero and full."""
    for name, minor in (("null", 3), ("zero", 5), ("full", 7)):
        for flags, asked in ((os.O_RDONLY, "r"), (os.O_WRONLY, "w"), (os.O_RDWR, "rw")):
            wanted = all(
                [item.allow for item in rules if letter in item.access and (item.minor in (None, minor))][-1]
                for letter in asked
            )
            done = inside(directory, lambda name=name, flags=flags: os.open(f"/dev/{name}", flags))
            assert done == (0 if wanted else errno.EPERM), (name, asked)


ORDERED = [
    (DeviceRule(False), DeviceRule(True, "c", 1, 3), DeviceRule(True, "c", 1, 5, "r")),
    (DeviceRule(True), DeviceRule(False, "c", 1, 5, "w"), DeviceRule(False, "c", 1, 7)),
    (DeviceRule(True), DeviceRule(False), DeviceRule(True, "c", 1, None), DeviceRule(False, "c", 2, 2)),
    (
        DeviceRule(False, "c", 1, 3),
        DeviceRule(False),
        DeviceRule(True, "a", 1, 3, "r"),
        DeviceRule(True, "c", 1, 3, "w"),
    ),
]


@pytest.mark.v1
@pytest.mark.parametrize("rules", ORDERED)
def test_ordered_rules_hold_by_v1_files(group: str, rules: tuple[DeviceRule, ...]) -> None:
    needs("devices")
    hierarchy = hierarchy_of("devices")
    assert hierarchy is not None
    directory = hierarchy.group(group)
    write(directory, v1_settings(rules))
    hold(directory, rules)
    # Again, over what is there, and over its opposite.
    write(directory, v1_settings((DeviceRule(True),)))
    write(directory, v1_settings(rules))
    hold(directory, rules)


@pytest.mark.parametrize("rules", [*ORDERED, (DeviceRule(True, "c", 1, None), DeviceRule(False, "c", 1, 5, "w"))])
def test_ordered_rules_hold_by_program(group: str, rules: tuple[DeviceRule, ...]) -> None:
    tree = v2_hierarchy()
    require("cgroup-v2", None if tree else "no cgroup2 mount")
    assert tree is not None
    directory = tree.group(group)
    loaded = bpf.load_device_program(program(rules))
    try:
        bpf.attach(str(directory), loaded)
        hold(directory, rules)
    finally:
        os.close(loaded)


# --- beside runc


def runc(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["runc", *words], capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL
    )  # its own errors are shown by the caller


@pytest.fixture
def by_runc(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], str]]:
    """Runs a bundle with these linux.resources under runc; gives the path of its groups."""
    require("runc", None if shutil.which("runc") else "runc is not installed")
    name = f"nestrt-runc-{os.getpid()}"
    root = f"--root={tmp_path}/state"

    def run(resources: dict[str, Any]) -> str:
        bundle = tmp_path / "bundle"
        busybox_root(bundle / "rootfs")
        assert runc("spec", "--bundle", str(bundle)).returncode == 0
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(terminal=False, args=["/bin/busybox", "sleep", "50"])
        config["process"].pop("rlimits", None)
        config["linux"].update(cgroupsPath=f"/{name}", resources=resources)
        (bundle / "config.json").write_text(json.dumps(config))
        with (tmp_path / "log").open("w+") as log:
            done = subprocess.run(
                ["runc", root, "run", "--detach", "--bundle", str(bundle), name],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=50,
            )  # fmt: skip
            log.seek(0)
            assert done.returncode == 0, log.read()
        return f"/{name}"

    yield run
    runc(root, "delete", "--force", name)
    assert not any(hierarchy.group(f"/{name}").exists() for hierarchy in hierarchies())


def device_list(directory: Path) -> tuple[Any, ...]:
    return tuple(parse_rule(line) for line in (directory / "devices.list").read_text().splitlines())


@pytest.mark.v1
def test_groups_are_as_runc_makes_them(group: str, by_runc: Callable[[dict[str, Any]], str]) -> None:
    needs("memory", "cpu", "cpuset", "pids", "io", "devices")
    disk = scratch_disk()
    major, minor = map(int, disk.split(":"))
    throttle = {"major": major, "minor": minor, "rate": 5 * M}
    config = {
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
            {"allow": True, "type": "b", "major": 7, "access": "r"},
            {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
        ],
        "memory": {"limit": 64 * M, "swap": 80 * M, "reservation": 32 * M, "swappiness": 10, "disableOOMKiller": True},
        "cpu": {"shares": 333, "quota": 20_000, "period": 40_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 77},
        "blockIO": {"weight": 400, "throttleReadBpsDevice": [throttle], "throttleWriteIOPSDevice": [throttle]},
    }
    device = ThrottleDevice(major, minor, 5 * M)
    resources = Resources(
        devices=(
            DeviceRule(False),
            DeviceRule(True, "c", 10, 229),
            DeviceRule(True, "b", 7, None, "r"),
            DeviceRule(True, "c", 10, 200),
        ),
        memory=Memory(limit=64 * M, swap=80 * M, reservation=32 * M, swappiness=10, disable_oom_killer=True),
        cpu=Cpu(shares=333, quota=20_000, period=40_000, cpus="0", mems="0"),
        pids=77,
        block_io=BlockIo(weight=400, throttle_read_bps=(device,), throttle_write_iops=(device,)),
    )
    mine = apply(resources, group)
    assert len(mine) >= 14
    theirs = by_runc(config)
    for hierarchy in hierarchies():
        for file in sorted(mine):
            if (path := hierarchy.group(group) / file).exists():
                # The kernel's counters of its OOM killer stand in the same file.
                lines = [place.read_text().splitlines() for place in (path, hierarchy.group(theirs) / file)]
                if file == "memory.oom_control":
                    lines = [[line for line in each if line.startswith("oom_kill_disable")] for each in lines]
                assert lines[0] == lines[1], file
        # Nothing is left out that runc writes: every other control file is as in runc's group, too.
        for path in sorted(hierarchy.group(theirs).iterdir()):
            quiet = (
                "limit",
                "max",
                "weight",
                "shares",
                "quota",
                "period",
                "burst",
                "idle",
                "swappiness",
                "cpus",
                "mems",
            )
            if path.name.endswith(quiet) or path.name.endswith(("_us", "_device", "limit_in_bytes")):
                assert (hierarchy.group(group) / path.name).read_text() == path.read_text(), path.name


@pytest.mark.v1
def test_device_rules_are_as_runc_makes_them(group: str, by_runc: Callable[[dict[str, Any]], str]) -> None:
    needs("devices")
    hierarchy = hierarchy_of("devices")
    assert hierarchy is not None
    rules = (
        DeviceRule(False),
        DeviceRule(True, "c", 10, 229),
        DeviceRule(True, "b", 7, None, "r"),
        DeviceRule(True, "c", 10, 229, "rwm"),
        DeviceRule(False, "c", 10, 229, "w"),
        DeviceRule(True, "c", 10, 200),
    )
    document = [
        {"allow": rule.allow, "type": rule.type, "access": rule.access}
        | ({} if rule.major is None else {"major": rule.major})
        | ({} if rule.minor is None else {"minor": rule.minor})
        for rule in rules
    ]
    # runc 1.1 refuses to take a right that its own rule for all mknods gives, so the last deny is of "w" alone.
    write(hierarchy.group(group), v1_settings(with_defaults(rules)))
    theirs = device_list(hierarchy.group(by_runc({"devices": document})))
    ours = device_list(hierarchy.group(group))
    listed = as_allow_list(with_defaults(rules))
    assert listed is not None
    for kind, major, minor, asked in itertools.product(
        "bc", (1, 5, 7, 8, 10, 136), (0, 1, 2, 3, 5, 7, 8, 9, 200, 229), ("r", "w", "rw", "m")
    ):
        question = (kind, major, minor, asked)
        assert allowed(ours, *question) == allowed(theirs, *question), question
        assert allowed(ours, *question) == allowed(listed, *question), question
