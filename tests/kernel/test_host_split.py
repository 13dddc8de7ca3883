"""``nestrt host``: measured, inside a guest on any host, where "/" is the guest root, and on the real root of a v2 VM.

host
└ /nestrt/G/guest        one CPU; "/" of what follows
  ├ init                 G's own tasks: the "system", 10 %
  └ nestrt               the parent of guests: 90 %
    └ inner/guest/init   a guest that wants all
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.broker import BrokerGuest, start_guest
from support.guests import nested
from support.hostside import has_v1, hierarchies, hierarchy_of
from support.need import SLOW
from support.rootfs import COMMAND, PythonRoot
from support.runner import Nestrt, again, wait_for

BUSY = "while :; do :; done"
SECONDS = 3.0
KILLER = r"""
import os, signal, sys
sys.path.insert(0, "/opt/nestrt")
import nestrt.kernel.cgroup as cgroup, nestrt.__main__ as main
left = int(sys.argv[1])
def counting(call):
    def counted(*args, **named):
        global left
        found = call(*args, **named)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return counted
for name in ("setxattr", "removexattr", "mkdir", "rmdir"):
    setattr(os, name, counting(getattr(os, name)))
cgroup.write = counting(cgroup.write)
sys.exit(main.main(["nestrt", "host", *sys.argv[2:]]))
"""


def used(group: str) -> float:
    """Seconds of CPU time that the group has used, on the host's clock."""
    hierarchy = hierarchy_of("cpuacct") or hierarchy_of("cpu")
    assert hierarchy is not None
    if hierarchy.version == 1:
        return int((hierarchy.group(group) / "cpuacct.usage").read_text()) / 1e9
    rows = (hierarchy.group(group) / "cpu.stat").read_text().splitlines()
    return int(next(row.split()[1] for row in rows if row.startswith("usage_usec"))) / 1e6


def rates(groups: dict[str, str], seconds: float = SECONDS) -> dict[str, float]:
    """CPU time per second of each group, over some seconds."""
    before, start = {name: used(group) for name, group in groups.items()}, time.monotonic()
    time.sleep(seconds * SLOW**0.5)
    span = time.monotonic() - start
    return {name: (used(group) - before[name]) / span for name, group in groups.items()}


def cpu_files(group: str) -> dict[str, str]:
    """What a group has of CPU time and memory."""
    found = {}
    for controller in ("cpu", "memory"):
        hierarchy = hierarchy_of(controller)
        assert hierarchy is not None
        for name in ("cpu.shares", "cpu.cfs_quota_us", "cpu.weight", "cpu.max", "memory.limit_in_bytes", "memory.max"):
            path = hierarchy.group(group) / name
            if path.exists():
                found[name] = path.read_text().strip()
    return found


@pytest.fixture
def guest(nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> BrokerGuest:
    """A guest on one CPU, with a guest in it; both have all that they need to be busy."""
    options = ("--cpus", "0", "--mount", "type=tmpfs,target=/tmp", "-m", "512M")
    one = start_guest(nestrt, python, new_guest(), "--broker=none", *options)
    one.spawn(nested(python, "--name inner", "/bin/sh -c 'exec sleep 1000'"))
    hierarchy = hierarchy_of("cpu")
    assert hierarchy is not None
    procs = hierarchy.group(f"/nestrt/{one.name}/guest/nestrt/inner/guest/init") / "cgroup.procs"
    wait_for(lambda: procs.exists() and procs.read_text().split(), "the inner guest", 30)
    return one


def host(guest: BrokerGuest, words: str) -> str:
    return guest.shell(f"{COMMAND} host {words}")


def busy_inner(guest: BrokerGuest, groups: dict[str, str]) -> int:
    """A busy loop in the inner guest, put there by the level around it; its pid."""
    hierarchy = hierarchy_of("cpu")
    assert hierarchy is not None
    inside = str(hierarchy.group("nestrt/inner/guest/init"))
    return guest.spawn(f"for place in /sys/fs/cgroup/* /sys/fs/cgroup; do "
                       f"echo $$ > $place/nestrt/inner/guest/init/cgroup.procs 2>/dev/null; done; "
                       f"grep -q . {inside}/cgroup.procs && {BUSY}")  # fmt: skip


@pytest.mark.slow_on_vm
def test_a_tenth_for_the_system_inside_a_guest(guest: BrokerGuest) -> None:
    """Busy both: 10 to 90, within what a loaded machine measures; alone each has all; with --hard guests have 90 %."""
    top = f"/nestrt/{guest.name}/guest"
    groups = {"system": f"{top}/init", "guests": f"{top}/nestrt"}
    before = {path: cpu_files(path) for path in groups.values()}
    dry = host(guest, "init --system-cpu 10% --dry-run")
    weight, value = ("cpu.shares", "9216") if has_v1("cpu") else ("cpu.weight", "900")
    assert f"write '{value}' to" in dry
    assert {path: cpu_files(path) for path in groups.values()} == before
    for _ in range(2):  # again is as once
        host(guest, "init --system-cpu 10%")
        assert cpu_files(groups["guests"])[weight] == value
    found = json.loads(host(guest, "status --format json"))
    rows = {row["path"]: row for row in found["groups"]}
    assert rows["/nestrt"]["role"] == "guests"
    assert rows["/init"]["cpu_share_alone"] == pytest.approx(0.1)
    (inner,) = [one for one in found["guests"] if one["name"] == "inner"]
    assert inner["cpu_share"] == pytest.approx(0.9)

    theirs, own = busy_inner(guest, groups), guest.spawn(BUSY)

    def shared() -> None:
        guest.shell(f"kill -CONT {theirs} {own}")
        both = rates(groups)
        share = both["system"] / (both["system"] + both["guests"])
        assert 0.05 < share < 0.17, both
        guest.shell(f"kill -STOP {theirs}")
        alone = rates(groups, 1.5)
        assert alone["system"] > 4 * both["system"], (both, alone)
        guest.shell(f"kill -CONT {theirs}; kill -STOP {own}")
        alone = rates(groups, 1.5)
        assert alone["guests"] > 0.8 * both["guests"], (both, alone)

    again(shared)

    host(guest, "init --system-cpu 40% --hard --system-memory 25%")
    files = cpu_files(groups["guests"])
    assert files.get("cpu.cfs_quota_us", files.get("cpu.max", "").split(" ")[0]) == "60000"
    limit = files.get("memory.limit_in_bytes") or files["memory.max"]
    assert int(limit) == 384 << 20

    def capped() -> None:
        found = rates(groups, 2)
        assert 0.1 < found["guests"] < 0.64, found

    again(capped)

    host(guest, "init --system-cpu 10%")  # what it does not ask for goes back
    assert {**cpu_files(groups["guests"]), weight: ""} == {**before[groups["guests"]], weight: ""}
    host(guest, "reset")
    assert {path: cpu_files(path) for path in groups.values()} == before
    second = guest.order("shell", command=f"{COMMAND} host reset")
    assert (second["rc"], "there is none" in second["err"]) == (4, True)
    guest.shell(f"kill -9 {theirs} {own}")


@pytest.mark.slow_on_vm
def test_killed_at_any_point_and_all_or_nothing(guest: BrokerGuest) -> None:
    """init and reset killed after each change: reset gives back what was; a step that fails takes all back."""
    top = f"/nestrt/{guest.name}/guest"
    paths = [f"{top}/init", f"{top}/nestrt", f"{top}/other"]
    before = [cpu_files(path) for path in paths]
    options = "init --system-cpu 20% --hard --guests /nestrt"
    guest.python(f"open('/tmp/kill.py', 'w').write({KILLER!r})")
    ways = [options, "reset"] if SLOW == 1 else [options]
    for words in ways:
        number = 1
        while True:
            if words == "reset":
                host(guest, options)
            killed = guest.order("shell", command=f"python3 -IS /tmp/kill.py {number} {words}")
            if killed["rc"] == 0:
                break
            assert killed["rc"] in (-9, 137), killed
            if words == "reset" and number % 2:
                host(guest, options)
            back = guest.order("shell", command=f"{COMMAND} host reset")
            assert back["rc"] in (0, 4), back
            assert [cpu_files(path) for path in paths] == before, (words, number)
            number += 1 if SLOW == 1 else 3
        assert number > 3
    # memory.max of a group that uses more cannot be had; nothing of the rest stays
    guest.order("shell", command=f"{COMMAND} host reset")
    held = guest.spawn(
        "for place in /sys/fs/cgroup/* /sys/fs/cgroup; do echo $$ > $place/nestrt/inner/guest/init/cgroup.procs "
        "2>/dev/null; done; exec python3 -c 'x = bytes(range(256)) * (1 << 19); import time; time.sleep(1000)'"
    )
    file = "memory.usage_in_bytes" if has_v1("memory") else "memory.current"
    hierarchy = hierarchy_of("memory")
    assert hierarchy is not None
    wait_for(lambda: int((hierarchy.group(paths[1]) / file).read_text()) > 120 << 20, "the memory to be used", 20)
    refused = guest.order("shell", command=f"{COMMAND} host init --system-memory 450M")
    assert (refused["rc"], "guests use" in refused["err"]) == (4, True), refused
    assert [cpu_files(path) for path in paths] == before
    guest.shell(f"kill -9 {held}")


@pytest.fixture
def loops() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.v2
def test_the_real_root(
    nestrt: Nestrt, guest_name: str, busybox: Path, loops: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """In a VM of its own: the root group's processes go to /system, weigh a tenth, and come back."""
    root = next(h for h in hierarchies() if h.version == 2)
    loops.append(subprocess.Popen(["sleep", "1000"]))
    (root.mountpoint / "cgroup.procs").write_text(str(loops[0].pid))
    nestrt.run("host", "init", "--system-cpu", "10%", "--move-tasks", "--system-memory", "64M", timeout=60).ok()
    left = [pid for pid in (root.mountpoint / "cgroup.procs").read_text().split() if is_users(pid)]
    assert left == []
    assert (root.group("/system") / "memory.low").read_text().strip() == str(64 << 20)
    nestrt.launch("-d", "--rootfs", busybox, "--name", guest_name, "--", "sh", "-c", BUSY, timeout=60).ok()
    assert (root.group("/nestrt") / "cpu.weight").read_text().strip() == "900"
    assert str(loops[0].pid) in (root.group("/system") / "cgroup.procs").read_text().split()
    loops.append(subprocess.Popen(["sh", "-c", BUSY]))
    (root.group("/system") / "cgroup.procs").write_text(str(loops[1].pid))
    os.sched_setaffinity(loops[1].pid, {0})
    (pid,) = (root.group(f"/nestrt/{guest_name}/guest/init") / "cgroup.procs").read_text().split()
    os.sched_setaffinity(int(pid), {0})

    def shared() -> None:
        os.kill(int(pid), signal.SIGCONT)
        both = rates({"system": "/system", "guests": "/nestrt"})
        share = both["system"] / (both["system"] + both["guests"])
        assert 0.05 < share < 0.2, both
        os.kill(int(pid), signal.SIGSTOP)
        assert rates({"system": "/system"}, 1.5)["system"] > 0.6

    again(shared)
    loops[1].kill()
    loops[1].wait()
    nestrt.run("delete", "--force", guest_name, timeout=60).ok()
    nestrt.run("gc", timeout=60).ok()
    assert (root.group("/nestrt") / "cpu.weight").read_text().strip() == "900"  # it stays without guests
    nestrt.run("host", "reset", timeout=60).ok()
    assert str(loops[0].pid) in (root.mountpoint / "cgroup.procs").read_text().split()
    assert not root.group("/system").exists()


def is_users(pid: str) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
