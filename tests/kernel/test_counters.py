"""Counters of groups as top and metrics read them, against the kernel's files.

TOP                       quota, 24 MiB of memory        read here
└ inner                   a process burns, writes, is killed for memory, and has ended
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestrt.host import counters as module
from nestrt.host.counters import ALL, CounterReader, Counters
from nestrt.kernel import freezer
from nestrt.probe.facts import read_hierarchies
from support.hostside import group_file, hierarchies, hierarchy_of, read, v2_hierarchy
from support.need import SLOW
from support.runner import wait_for

TOP = f"/nestrt-test-counters-{os.getpid()}"
NAMES = tuple(h.name for h in read_hierarchies())
MEMORY = 24 << 20
WRITTEN = 1 << 20
# Burn 0.1 s, write to the disk, read it back, and then ask for more memory than there is.
WORK = f"""
import os, sys, time
end = time.process_time() + 0.1
while time.process_time() < end: pass
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(fd, b"x" * {WRITTEN})
os.fsync(fd)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
os.lseek(fd, 0, 0)
os.read(fd, {WRITTEN})
if os.fork() == 0: b = bytearray({4 * MEMORY})
print(os.wait()[1], flush=True)
"""


def remove(path: str) -> None:
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy.group(path), topdown=False):
            wait_for(lambda directory=directory: _gone(directory), f"{directory} to be removable")


def _gone(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def make(path: str, enable: bool = True) -> None:
    for hierarchy in hierarchies():
        hierarchy.group(path).mkdir()
        if hierarchy.version == 2 and enable:
            for name in hierarchy.controllers:
                for directory in (hierarchy.group(path).parent, hierarchy.group(path)):
                    (directory / "cgroup.subtree_control").write_text("+" + name)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if hierarchy.version == 1 and (hierarchy.group(path) / file).exists():
                (hierarchy.group(path) / file).write_text((hierarchy.group(path).parent / file).read_text())


@pytest.fixture
def top() -> Iterator[str]:
    make(TOP)
    try:
        yield TOP
    finally:
        remove(TOP)


def enter(path: str) -> None:
    for hierarchy in hierarchies():
        (hierarchy.group(path) / "cgroup.procs").write_text(str(os.getpid()))


def numbers(text: str) -> dict[str, int]:
    return {words[0]: int(words[1]) for words in (line.split() for line in text.splitlines())}


def check_against_files(counters: Counters) -> None:
    """What does not change any more is what the kernel's files say, read in another way."""
    v1 = hierarchy_of("cpu")
    assert v1 is not None
    usage = read("cpuacct" if v1.version == 1 else "cpu", TOP, "cpuacct.usage", "cpu.stat")
    used = int(usage) // 1000 if v1.version == 1 else numbers(usage)["usage_usec"]
    assert counters.cpu_usec == used
    assert used >= 100_000
    assert counters.user_usec is not None
    assert counters.system_usec is not None
    assert abs(counters.user_usec + counters.system_usec - used) <= 30_000
    stat = numbers(read("cpu", TOP, "cpu.stat", "cpu.stat"))
    assert (counters.periods, counters.throttled_periods) == (stat["nr_periods"], stat["nr_throttled"])
    assert stat["nr_throttled"] > 0
    throttled = stat["throttled_time"] // 1000 if "throttled_time" in stat else stat["throttled_usec"]
    assert counters.throttled_usec == throttled
    assert counters.pids == 0
    assert counters.memory is not None
    assert abs(counters.memory - int(read("memory", TOP, "memory.usage_in_bytes", "memory.current"))) <= 1 << 20
    assert counters.memory_peak == int(read("memory", TOP, "memory.max_usage_in_bytes", "memory.peak"))
    assert MEMORY // 2 < counters.memory_peak <= MEMORY
    assert counters.memory_limit_hits
    # The kernel may find no memory more than once before a process has gone.
    assert counters.oom_kills in (1, 2, 3)
    assert counters.io_write_bytes is not None
    assert counters.io_read_bytes is not None
    if os.major(os.stat("/var/tmp").st_dev):  # a disk, and not a tmpfs or what a virtual machine shares
        assert counters.io_write_bytes >= WRITTEN
        assert counters.io_writes
    assert counters.frozen is False
    v2 = v2_hierarchy()
    if v2 is not None and (v2.group(TOP) / "cpu.pressure").exists():
        text = (v2.group(TOP) / "cpu.pressure").read_text()
        assert counters.pressure is not None
        assert counters.pressure["cpu"]["some_total_usec"] == int(text.split()[4].partition("=")[2])
        assert counters.pressure["cpu"]["some_total_usec"] > 0


def test_what_a_group_below_used_is_in_it(top: str, tmp_path: Path) -> None:
    group_file("memory", top, "memory.limit_in_bytes", "memory.max").write_text(str(MEMORY))
    no_swap = group_file("memory", top, "memory.swappiness", "memory.swap.max")
    if no_swap.exists():
        no_swap.write_text("0")
    quota = group_file("cpu", top, "cpu.cfs_quota_us", "cpu.max")
    quota.write_text("10000" if SLOW == 1 else "50000")
    make(top + "/inner", enable=False)
    reader = CounterReader(read_hierarchies())
    try:
        before = reader.read(top, NAMES)
        assert (before.cpu_usec, before.pids, before.oom_kills, before.io_write_bytes) == (0, 0, 0, 0)
        # On a disk: a tmpfs writes nowhere.
        place = Path(f"/var/tmp/nestrt-counters-{os.getpid()}")
        done = subprocess.run(
            [sys.executable, "-ISc", WORK, str(place)],
            preexec_fn=lambda: enter(top + "/inner"),
            capture_output=True,
            text=True,
            timeout=30 * SLOW,
        )
        place.unlink()
        assert done.stdout == "9\n", done  # SIGKILL
        quota.write_text("-1" if quota.name == "cpu.cfs_quota_us" else "max 100000")
        wait_for(lambda: reader.read(top, NAMES).pids == 0, "the processes to be gone")
        time.sleep(0.3)  # /proc/vmstat is looked at five times a second
        check_against_files(reader.read(top, NAMES))
        fresh = CounterReader(read_hierarchies())
        try:
            check_against_files(fresh.read(top, NAMES))
        finally:
            fresh.close()
    finally:
        reader.close()


def test_frozen(top: str) -> None:
    reader = CounterReader(read_hierarchies(), frozenset(["frozen"]))
    for hierarchy in hierarchies():
        if hierarchy.version == 2 or "freezer" in hierarchy.controllers:
            assert reader.read(top, NAMES).frozen is False
            freezer.freeze(str(hierarchy.group(top)), hierarchy.version)
            assert reader.read(top, NAMES).frozen is True
            freezer.thaw(str(hierarchy.group(top)), hierarchy.version)
    assert reader.read(top, NAMES).frozen is False
    assert reader.read(top, NAMES).cpu_usec is None  # not wanted
    reader.close()


def test_a_group_that_goes_away_and_comes_again(top: str) -> None:
    """Descriptors of a group that is gone say ENODEV, whoever has its name."""
    open_before = len(os.listdir("/proc/self/fd"))
    reader = CounterReader(read_hierarchies())
    for _ in range(3):
        make(top + "/inner", enable=False)
        assert reader.read(top + "/inner", NAMES).pids == 0
        assert reader.read(top + "/inner", NAMES).memory is not None
        remove(top + "/inner")
        assert reader.read(top + "/inner", NAMES) == Counters()
        make(top + "/inner", enable=False)
        assert reader.read(top + "/inner", NAMES).pids == 0
        remove(top + "/inner")
        make(top + "/inner", enable=False)  # between two readings, and never seen to be gone
        assert reader.read(top + "/inner", NAMES).pids == 0
        remove(top + "/inner")
    assert reader.read(top + "/never", NAMES) == Counters()
    assert reader.read(top, ()) == Counters()
    assert reader.read(top, NAMES).pids == 0
    reader.keep({top})
    assert len(os.listdir("/proc/self/fd")) > open_before
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_without_room_for_descriptors_it_reads_the_same(top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1024), hard))
        with_room = CounterReader(read_hierarchies())
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard  # raised to what is allowed
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr(module, "MOST_DESCRIPTORS", 0)
    open_before = len(os.listdir("/proc/self/fd"))
    without = CounterReader(read_hierarchies())
    for _ in range(2):
        one, other = with_room.read(top, NAMES), without.read(top, NAMES)
        one.pressure = other.pressure = None
        assert one == other
        assert one.memory is not None
        assert len(os.listdir("/proc/self/fd")) - open_before >= 5  # those of the other reader
    with_room.close()
    assert len(os.listdir("/proc/self/fd")) <= open_before
    without.close()


def open_files() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # that of the listing
            continue
    return found


def read_path(group: str) -> str:
    return str(group_file("pids", group, "pids.current", "pids.current"))


def test_only_what_is_wanted_is_opened(top: str) -> None:
    before = open_files()
    reader = CounterReader(read_hierarchies(), frozenset(["pids"]))
    assert reader.read(top, NAMES).pids == 0
    assert open_files() - before == {read_path(top)}
    reader.close()
    assert {"cpu_usec", "pressure", "oom_kills", "frozen"} <= ALL
    assert set(Counters.FIELDS) == ALL  # type: ignore[attr-defined]
