"""Law 5, subset: whatever a child group is given, it has no more than its parent.

    limit group     64M, 20 processes, a fifth of a CPU, one CPU, no disk
      guest root    the same
        web         asks for more of each, gets what is above it
          deeper    asks for more than web
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.guests import MODES, ask, directory, inside
from support.hostside import guest_root, has_v1, is_v2_only, limit_group, read, scratch_disk
from support.need import require
from support.runner import Nestrt

CPUS = sorted(os.sched_getaffinity(0))
# On v2 the guest's capabilities change nothing of this.
all_modes = pytest.mark.parametrize("mode", ["userns", "nouserns", pytest.param("root", marks=pytest.mark.slow_on_vm)])


def enter(controller: str, group: str = "/web") -> str:
    return f"echo 0 > {inside(controller, group, 'cgroup.procs', 'cgroup.procs')}"


# dd fills a buffer of 96 MiB in a group that says 1G; five sleeps too many start in one that says 1000.
@all_modes
def test_memory_and_pids(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    files = {
        "memory": (inside("memory", "/web", "memory.limit_in_bytes", "memory.max"), 1 << 30),
        "pids": (inside("pids", "/many", "pids.max", "pids.max"), 1000),
    }
    memory, pids = directory("memory", "/web"), directory("pids", "/many")
    deeper = directory("memory", "/web/deeper")
    enable = f"echo +memory > {memory}/cgroup.subtree_control;" if is_v2_only() else ""
    limit = "memory.max" if is_v2_only() else "memory.limit_in_bytes"
    more = "for n in 1 2 3 4 5; do for m in 1 2 3 4 5; do sleep 100 & p=\"$p $!\"; done; done"
    questions = {
        "make": f"mkdir -p {memory} {pids}",
        "more memory": f"echo {files['memory'][1]} > {files['memory'][0]} && cat {files['memory'][0]}",
        "more pids": f"echo {files['pids'][1]} > {files['pids'][0]} && cat {files['pids'][0]}",
        "fill": f"{enter('memory')}; dd if=/dev/zero of=/dev/null bs=96M count=1",
        "less": f"mkdir -p {deeper}; {enable} echo 16777216 > {memory}/{limit}; echo 33554432 > {deeper}/{limit}",
        "fill deeper": f"{enter('memory', '/web/deeper')}; dd if=/dev/zero of=/dev/null bs=24M count=1",
        "fits": "dd if=/dev/zero of=/dev/null bs=24M count=1",
        # The last: until they are reaped, the dead count.
        "fork": f"{enter('pids', '/many')}; trap 'kill $p' EXIT; {more}",
    }
    options = ("--rootfs", busybox, "--name", guest_name, "-m", "64M", "--swap", "0", "--pids", "20", *MODES[mode])
    answers = ask(nestrt, questions, *options)
    # The kernel takes both numbers, in both versions: a limit above the parent's means no more than the parent's.
    assert answers.text("more memory") == str(1 << 30)
    assert answers.text("more pids") == "1000"
    assert answers["fill"].rc in (9, 137), answers["fill"]
    assert "can't fork" in answers.refused("fork")
    assert answers["fill deeper"].rc in (9, 137), answers["fill deeper"]
    answers.text("fits")
    for group in (limit_group(guest_name), guest_root(guest_name)):
        assert read("memory", group, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
        assert read("pids", group, "pids.max", "pids.max") == "20"


# v1 refuses a quota above the parent's; v2 takes it, and the parent's throttles.
@all_modes
def test_cpu_time(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    file = inside("cpu", "/web", "cpu.cfs_quota_us", "cpu.max")
    stat = inside("cpu", "/", "cpu.stat", "cpu.stat")
    value = "90000" if has_v1("cpu") else "90000 100000"
    answers = ask(
        nestrt,
        {
            "more": f"mkdir {directory('cpu', '/web')}; echo '{value}' > {file}",
            "shows": f"cat {file}",
            "busy": f"{enter('cpu')}; until grep 'nr_throttled [1-9]' {stat}; do :; done",
        },
        *("--rootfs", busybox, "--name", guest_name, "--cpu-quota", "0.2", *MODES[mode]),
    )
    if has_v1("cpu"):
        assert "Invalid argument" in answers.refused("more")
        assert answers.text("shows") == "-1"
    else:
        assert answers.text("shows") == value
    answers.text("busy")


# A CPU that the guest does not have: v1 refuses it, v2 takes it and gives what the guest has.
@all_modes
def test_cpus(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    require("cpus", "" if len(CPUS) > 1 else "this machine has one CPU")
    mine, other = CPUS[-1], CPUS[0]
    place = directory("cpuset", "/web")
    answers = ask(
        nestrt,
        {
            "more": f"mkdir {place}; echo {other} > {place}/cpuset.cpus",
            "effective": f"cat {inside('cpuset', '/web', 'cpuset.effective_cpus', 'cpuset.cpus.effective')}",
            "runs on": f"{enter('cpuset')} && grep Cpus_allowed_list /proc/self/status",
            "taskset": f"taskset {1 << other:x} true",
        },
        *("--rootfs", busybox, "--name", guest_name, "--cpus", str(mine), *MODES[mode]),
    )
    if has_v1("cpuset"):
        answers.refused("more")
    assert answers.text("effective") == str(mine)
    assert answers.text("runs on").split()[-1] == str(mine)
    assert "Invalid argument" in answers.refused("taskset")


# A device that no rule of the guest's allows, the kernel's log: no child group has it, whatever it writes.
def test_devices(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    v1 = has_v1("devices")
    place = directory("devices" if v1 else "pids", "/web")
    allow = f"echo 'c 1:11 rwm' > {place}/devices.allow || echo a > {place}/devices.allow" if v1 else "false"
    questions = {
        "node": "mknod /mnt/kmsg c 1 11",
        "first": ": < /mnt/kmsg",
        "allow": f"mkdir {place}; {allow}",
        "child": f"echo 0 > {place}/cgroup.procs && : < /mnt/kmsg",
        "null": f"echo 0 > {place}/cgroup.procs && echo > /dev/null",
        "list": f"cat {place}/devices.list",
    }
    assert os.close(os.open("/dev/kmsg", os.O_RDONLY)) is None  # the host has it
    answers = ask(nestrt, questions, "--rootfs", busybox, "--name", guest_name, "--overlay", *MODES["root"])
    answers.text("node")
    for name in ("first", "child"):
        assert "Operation not permitted" in answers.refused(name), name
    answers.refused("allow")
    answers.text("null")
    if v1:
        assert answers.text("list").splitlines() == [
            *("c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm"),
            *("c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm"),
        ]


# 16 KiB a second for the guest: reading 64 KiB takes four seconds and not half of one, whatever a child group says.
# v1 throttles each group for itself: there the guest may make none, and its first group has the limit.
def test_io(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    v1 = has_v1("io")
    disk = disk_of(busybox) if v1 else scratch_disk()
    require("disk", "" if disk else "no disk that can be limited")
    node = "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{disk}"))
    source, options = ("/bin/busybox", MODES["userns"]) if v1 else (node, ("--device", f"{node}:r", *MODES["root"]))
    web = directory("io", "/web")
    files = "blkio.throttle.read_bps_device", "io.max"
    read_disk = f"dd if={source} of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null && touch /mnt/done"
    enter_web = "true" if v1 else enter("io")
    answers = ask(
        nestrt,
        {
            "shown": f"cat {inside('io', '/', *files)}",
            "more": f"mkdir {web} && echo '{disk} rbps={1 << 30}' > {web}/io.max",
            "first": f"echo '{disk} 0' > {inside('io', '/init', *files)}",
            "read": f"{enter_web}; {read_disk} & sleep 0.5; ls /mnt; wait; ls /mnt",
        },
        *("--rootfs", busybox, "--name", guest_name, "--mount", "type=tmpfs,target=/mnt"),
        *("--io", f"{node} rbps=16K", *options),
    )
    limited = f"{disk} 16384" if v1 else f"{disk} rbps=16384 wbps=max riops=max wiops=max"
    assert answers.text("shown") == limited
    if v1:
        answers.refused("more")
        answers.refused("first")
        assert read("io", f"{guest_root(guest_name)}/init", *files) == limited
    else:
        answers.text("more")
    assert answers.text("read").split() == ["done"]  # once: only after the wait


def disk_of(path: Path) -> str:
    """MAJ:MIN of the whole disk that *path* is on, "" if it is on none."""
    device = path.stat().st_dev
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if not place.exists():
        return ""
    return ((place.parent if (place / "partition").exists() else place) / "dev").read_text().strip()
