"""Law 4, freedom: guest root divides what it has with mkdir, echo and mount, at once, from a busybox shell.

    guest root   128M, 60 processes, 1 CPU of time
      init       the shell; it moves parts of itself
      web        a child group with a part of everything: the guest's own numbers
        deeper   and a part of that
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.guests import MODES, ask, controllers, directory, inside
from support.hostside import (
    group_file,
    guest_root,
    has_v1,
    hierarchies,
    hierarchy_of,
    is_v2_only,
    read,
    scratch_disk,
    v2_hierarchy,
)
from support.need import require
from support.runner import Nestrt

CPUS = sorted(os.sched_getaffinity(0))
LIMITS = ("-m", "128M", "--swap", "0", "--pids", "60", "--cpu-quota", "1", "--cpus", f"{CPUS[0]},{CPUS[-1]}")
# On v2 the guest's capabilities change nothing of this.
all_modes = pytest.mark.parametrize("mode", ["userns", "nouserns", pytest.param("root", marks=pytest.mark.slow_on_vm)])


def web(controller: str, v1: str, v2: str) -> str:
    """The path in the guest of a file of its group web."""
    return inside(controller, "/web", v1, v2)


def enter(controller: str, group: str = "/web") -> str:
    """A shell command: move this subshell to *group* in the hierarchy of *controller*."""
    return f"echo 0 > {inside(controller, group, 'cgroup.procs', 'cgroup.procs')}"


# Every controller of this host at once: a group in each hierarchy, a number in each file, read back by the host.
@all_modes
def test_child_groups_of_every_controller(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    numbers = [
        ("memory", "memory.limit_in_bytes", "memory.max", "33554432", "33554432"),
        ("pids", "pids.max", "pids.max", "7", "7"),
        ("cpu", "cpu.cfs_quota_us", "cpu.max", "20000", "20000 100000"),
        ("cpu", "cpu.shares", "cpu.weight", "512", "50"),
        ("cpuset", "cpuset.cpus", "cpuset.cpus", str(CPUS[-1]), str(CPUS[-1])),
        ("hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max", "4194304", "4194304"),
    ]
    here = [row for row in numbers if row[0] in controllers()]
    made = " ".join(f"{hierarchy.mountpoint}/web" for hierarchy in hierarchies())
    questions = {"mkdir": f"mkdir {made}", "cpuset": f"cat {web('cpuset', 'cpuset.cpus', 'cpuset.cpus.effective')}"}
    for controller, v1, v2, on_v1, on_v2 in here:
        value = on_v1 if has_v1(controller) else on_v2
        questions[v2] = f"echo {value} > {web(controller, v1, v2)} && cat {web(controller, v1, v2)}"
    questions["moves"] = (
        "".join(f"echo 0 > {h.mountpoint}/web/cgroup.procs; " for h in hierarchies())
        + "cut -d: -f3 /proc/self/cgroup | sort -u; grep Cpus_allowed_list /proc/self/status"
    )
    freeze = "freezer.state", "cgroup.freeze"
    frozen, thawed = ("FROZEN", "THAWED") if has_v1("freezer") else ("1", "0")
    if has_v1("freezer") or v2_hierarchy():
        file = web("freezer", *freeze) if has_v1("freezer") else f"{v2_mountpoint()}/web/cgroup.freeze"
        questions["freeze"] = f"echo {frozen} > {file}; cat {file}; echo {thawed} > {file}; cat {file}"
    questions["rmdir"] = f"rmdir {made} && mkdir {made}"
    for controller, v1, v2, on_v1, on_v2 in here:
        value = on_v1 if has_v1(controller) else on_v2
        questions[f"again {v2}"] = f"echo {value} > {web(controller, v1, v2)}"
    answers = ask(nestrt, questions, "--rootfs", busybox, "--name", guest_name, *LIMITS, *MODES[mode])

    answers.text("mkdir")
    assert answers.text("cpuset") == both()
    for controller, v1, v2, on_v1, on_v2 in here:
        value = on_v1 if has_v1(controller) else on_v2
        assert answers.text(v2) == value, v2
        answers.text(f"again {v2}")
        assert read(controller, f"{guest_root(guest_name)}/web", v1, v2) == value, v2
    assert answers.text("moves").split() == ["/web", "Cpus_allowed_list:", str(CPUS[-1])]
    if "freeze" in answers:
        assert answers.text("freeze").split() == [frozen, thawed]
    answers.text("rmdir")


def v2_mountpoint() -> Path:
    hierarchy = v2_hierarchy()
    assert hierarchy is not None
    return hierarchy.mountpoint


def both() -> str:
    """The guest's CPUs as the kernel prints them."""
    first, last = CPUS[0], CPUS[-1]
    return str(first) if first == last else f"{first}-{last}" if last == first + 1 else f"{first},{last}"


# What is set in a child group holds there, and there alone.
@all_modes
def test_child_limits_hold(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    memory = inside("memory", "/little", "memory.limit_in_bytes", "memory.max")
    swap = inside("memory", "/little", "memory.memsw.limit_in_bytes", "memory.swap.max")
    pids = inside("pids", "/few", "pids.max", "pids.max")
    quota, stat = inside("cpu", "/slow", "cpu.cfs_quota_us", "cpu.max"), inside("cpu", "/slow", "cpu.stat", "cpu.stat")
    places = directory("memory", "/little"), directory("pids", "/few"), directory("cpu", "/slow")
    questions = {
        "make": f"mkdir {' '.join(places)}; echo 16777216 > {memory}",
        "swap": f"echo {0 if is_v2_only() else 16777216} > {swap}",
        # dd fills a buffer of 48 MiB: 16 are too few, the guest's own 128 are enough.
        "too much": f"{enter('memory', '/little')}; dd if=/dev/zero of=/dev/null bs=48M count=1",
        "enough": "dd if=/dev/zero of=/dev/null bs=48M count=1",
        # The subshell is one, each sleep another: of five two fit.
        "pids": f"echo 3 > {pids}; {enter('pids', '/few')}; for n in 1 2 3 4 5; do sleep 100 & done; true",
        "counted": f"cat {inside('pids', '/few', 'pids.events', 'pids.events')}",
        "quota": f"echo '{2000 if has_v1('cpu') else '2000 100000'}' > {quota}",
        "busy": f"{enter('cpu', '/slow')}; until grep 'nr_throttled [1-9]' {stat}; do :; done",
    }
    answers = ask(nestrt, questions, "--rootfs", busybox, "--name", guest_name, *LIMITS, *MODES[mode])
    for name in ("make", "swap", "enough", "quota"):
        answers.text(name)
    assert answers["too much"].rc in (9, 137), answers["too much"]
    assert "can't fork" in answers["pids"].text
    assert answers.text("counted") in {"max 1", "max 2", "max 3"}
    answers.text("busy")


# cpuset: a v1 child comes filled, and so does its child, so each takes a process at once.
@all_modes
def test_cpusets_come_filled_at_any_depth(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    place = directory("cpuset", "/web/deeper")
    effective = inside("cpuset", "/web/deeper", "cpuset.cpus", "cpuset.cpus.effective")
    parent = directory("cpuset", "/web")
    enable = "true" if has_v1("cpuset") else f"echo +cpuset > {parent}/cgroup.subtree_control"
    answers = ask(
        nestrt,
        {
            "make": f"mkdir -p {place}; {enable}",
            "filled": f"cat {effective}",
            "mems": f"cat {inside('cpuset', '/web/deeper', 'cpuset.mems', 'cpuset.mems.effective')}",
            "enter": f"{enter('cpuset', '/web/deeper')} && grep '^C.*list' /proc/self/status",
            "narrow": f"echo {CPUS[0]} > {parent}/cpuset.cpus && cat {effective}",
        },
        *("--rootfs", busybox, "--name", guest_name, *LIMITS, *MODES[mode]),
    )
    assert answers.text("filled") == both()
    assert answers.text("mems") == read("cpuset", "/", "cpuset.mems", "cpuset.mems.effective")
    assert answers.text("enter").split()[-1] == both()
    if has_v1("cpuset") and len(CPUS) > 1:
        # v1: not below what a child has; the child comes first.
        assert "busy" in answers.refused("narrow").lower()
    else:
        assert answers.text("narrow") == str(CPUS[0])


# io where there is a disk: a throttle for each child group.
@all_modes
def test_io_of_a_disk_is_divided(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    disk = scratch_disk()
    require("disk", "" if disk else "no whole disk in /sys/block")
    v1 = has_v1("io")
    file = web("io", "blkio.throttle.read_bps_device", "io.max")
    value = f"{disk} 1048576" if v1 else f"{disk} rbps=1048576 wiops=100"
    answers = ask(
        nestrt,
        {"set": f"mkdir {directory('io', '/web')} && echo '{value}' > {file} && cat {file}", "enter": enter("io")},
        *("--rootfs", busybox, "--name", guest_name, *MODES[mode]),
    )
    expected = value if v1 else f"{disk} rbps=1048576 wbps=max riops=max wiops=100"
    assert answers.text("set") == expected
    answers.text("enter")
    host = group_file("io", f"{guest_root(guest_name)}/web", "blkio.throttle.read_bps_device", "io.max")
    assert host.read_text().strip() == expected


# devices: v1 takes rules from whoever has CAP_SYS_ADMIN at the host's own user namespace, and from nobody else; v2 has
# no file for it.
def test_devices_are_divided_where_the_kernel_lets_it(
    nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path
) -> None:
    zero = "head -c 1 /dev/zero | wc -c"
    for mode in MODES:
        if not has_v1("devices"):
            place = v2_mountpoint()
            answers = ask(
                nestrt,
                {"make": f"cd {place}; mkdir web && echo 0 > web/cgroup.procs && {zero}", "files": f"ls {place}/web"},
                *("--rootfs", busybox, "--name", new_guest(), *MODES[mode]),
            )
            assert answers.text("make") == "1"
            assert "devices" not in answers.text("files")
            continue
        place = directory("devices", "/web")
        answers = ask(
            nestrt,
            {
                "make": f"mkdir {place}; echo 0 > {place}/cgroup.procs; {zero}",
                "deny": f"echo 'c 1:5 rwm' > {place}/devices.deny",
                "denied": f"echo 0 > {place}/cgroup.procs; {zero}",
                "elsewhere": zero,
                "allow": f"echo 'c 1:5 rwm' > {place}/devices.allow; echo 0 > {place}/cgroup.procs; {zero}",
            },
            *("--rootfs", busybox, "--name", new_guest(), *MODES[mode]),
        )
        assert answers.text("make") == "1"
        if mode == "root":
            answers.text("deny")
            assert "Operation not permitted" in answers["denied"].text
            assert answers.text("allow") == "1"
        else:
            assert "Operation not permitted" in answers.refused("deny")
        assert answers.text("elsewhere") == "1"


# The policy says what may be divided. What may not is seen as the guest's whole, and no group of it can be made.
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_what_a_policy_keeps_together(
    nestrt: Nestrt, guest_name: str, busybox: Path, mode: str, tmp_path: Path
) -> None:
    policy = tmp_path / "together.toml"
    policy.write_text("[partition]\nmemory = false\n")
    answers = ask(
        nestrt,
        {
            "memory": f"mkdir {directory('memory', '/web')} && ls {directory('memory', '/web')}",
            "pids": f"mkdir -p {directory('pids', '/web')} && echo 5 > {web('pids', 'pids.max', 'pids.max')}",
        },
        *("--rootfs", busybox, "--name", guest_name, "--policy", policy, "-m", "64M", *MODES[mode]),
    )
    answers.text("pids")
    if has_v1("memory"):
        answers.refused("memory")
    else:
        assert "memory.max" not in answers.text("memory").split()
    hierarchy = hierarchy_of("memory")
    assert hierarchy is not None
    assert read("memory", f"/nestrt/{guest_name}", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
