"""Law 3, lock: the guest root's limit files show the guest its limits, and nobody in the guest writes them.

    /nestrt/NAME               64M, 40 processes, half a CPU, one CPU     the launching level's
      guest   ("/" inside)     the same numbers, locked: by ownership     user namespace
                                                     by read-only covers  without one, or ids shared with the level
        web                    the guest's own: files of the same names are free
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.guests import MODES, ask, inside
from support.hostside import guest_root, hierarchies, hierarchy_of, is_v2_only, limit_group, read
from support.runner import Nestrt

CPU = max(os.sched_getaffinity(0))
LIMITS = ("-m", "64M", "--pids", "40", "--cpu-quota", "0.5", "--cpu-weight", "200", "--cpus", str(CPU))
# controller, v1 file, v2 file, what it shows on v1 and on v2, what a guest would like there
SHOWN = [
    ("memory", "memory.limit_in_bytes", "memory.max", "67108864", "67108864", "134217728"),
    ("pids", "pids.max", "pids.max", "40", "40", "max"),
    ("cpu", "cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000", "90000"),
    ("cpu", "cpu.shares", "cpu.weight", "2452", "200", "300"),  # runc's curve: 200 is 2452 shares
    ("cpuset", "cpuset.cpus", "cpuset.cpus", str(CPU), str(CPU), "0-1"),
]
# What launching levels keep to themselves, by the kernel's documents; files of other controllers are not there.
LIMIT_FILES = {
    1: """memory.limit_in_bytes memory.memsw.limit_in_bytes memory.soft_limit_in_bytes memory.kmem.limit_in_bytes
        memory.kmem.tcp.limit_in_bytes memory.use_hierarchy pids.max cpu.cfs_quota_us cpu.cfs_period_us
        cpu.cfs_burst_us cpu.shares cpu.idle cpu.rt_runtime_us cpu.rt_period_us cpuset.cpus cpuset.mems
        cpuset.cpu_exclusive cpuset.mem_exclusive cpuset.mem_hardwall cpuset.sched_load_balance
        cpuset.sched_relax_domain_level devices.allow devices.deny blkio.throttle.read_bps_device
        blkio.throttle.write_bps_device blkio.throttle.read_iops_device blkio.throttle.write_iops_device
        blkio.weight blkio.weight_device blkio.bfq.weight blkio.bfq.weight_device blkio.prio.class
        hugetlb.2MB.limit_in_bytes net_cls.classid net_prio.ifpriomap""",
    2: """memory.max memory.high memory.low memory.min memory.swap.max memory.swap.high memory.zswap.max
        memory.zswap.writeback pids.max cpu.max cpu.max.burst cpu.weight cpu.weight.nice cpu.idle cpuset.cpus
        cpuset.mems cpuset.cpus.exclusive cpuset.cpus.partition io.max io.weight io.latency io.prio.class
        io.bfq.weight hugetlb.2MB.max hugetlb.1GB.max hugetlb.2MB.rsvd.max hugetlb.1GB.rsvd.max rdma.max misc.max
        cgroup.max.depth cgroup.max.descendants""",
}
# The files that the guest's root may open for writing in its own root.
DELEGATED = {1: {"cgroup.procs", "tasks"}, 2: set(Path("/sys/kernel/cgroup/delegate").read_text().split())}
# A user namespace that maps 0 to 0: guest root is the host's root, so ownership locks nothing.
ALL_MODES = {**MODES, "shared ids": ("--userns", "0:0:65536")}
BY_OWNERSHIP, BY_COVER = "Permission denied", "Read-only file system"


def opened(directory: str) -> str:
    """A shell command: the names of the files in *directory* that open for writing; nothing is written."""
    return f"cd {directory}; for file in *; do [ -f $file ] && (: >> $file) 2>/dev/null && echo $file; done; true"


# The guest reads its numbers, tries to write each limit file, then the same name in a group of its own.
@pytest.mark.parametrize("mode", ALL_MODES)
def test_limits_are_shown_and_locked(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    questions = {}
    for controller, v1, v2, _, _, wish in SHOWN:
        path = inside(controller, "/", v1, v2)
        questions[f"show {v2}"] = f"cat {path}"
        questions[f"write {v2}"] = f"echo {wish} > {path}"
        questions[f"still {v2}"] = f"cat {path}"
    for number, hierarchy in enumerate(hierarchies()):
        questions[f"opened {number}"] = opened(str(hierarchy.mountpoint))
        questions[f"own {number}"] = f"mkdir {hierarchy.mountpoint}/web; {opened(f'{hierarchy.mountpoint}/web')}"
    options = ("--rootfs", busybox, "--name", guest_name, *LIMITS, *ALL_MODES[mode])
    answers = ask(nestrt, questions, *options)

    lock = BY_OWNERSHIP if mode == "userns" else BY_COVER
    for controller, v1, v2, on_v1, on_v2, _ in SHOWN:
        hierarchy = hierarchy_of(controller)
        assert hierarchy is not None
        value = on_v1 if hierarchy.version == 1 else on_v2
        assert answers.text(f"show {v2}") == value, v2
        assert lock in answers.refused(f"write {v2}")
        assert answers.text(f"still {v2}") == value, v2
        # The host agrees: on the guest root, and on the limit group, where it counts.
        assert read(controller, guest_root(guest_name), v1, v2) == value
        assert read(controller, limit_group(guest_name), v1, v2) == value
    for number, hierarchy in enumerate(hierarchies()):
        limits = set(LIMIT_FILES[hierarchy.version].split())
        files = set(os.listdir(hierarchy.group(guest_root(guest_name))))
        free = set(answers.text(f"opened {number}").split())
        assert free & limits == set(), hierarchy
        if mode == "userns":
            assert free == DELEGATED[hierarchy.version] & files, hierarchy
        # In a group of the guest's own they are all free, but for what only the host's root may (devices, rt).
        in_web = set(answers.text(f"own {number}").split())
        expected = limits & set(os.listdir(hierarchy.group(guest_root(guest_name)) / "web"))
        assert expected <= in_web, (hierarchy, expected - in_web)


# No limit is asked for: the files say so, and stay locked all the same.
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_an_unlimited_guest_cannot_limit_its_root(
    nestrt: Nestrt, guest_name: str, busybox: Path, mode: str
) -> None:
    memory = inside("memory", "/", "memory.limit_in_bytes", "memory.max")
    answers = ask(
        nestrt,
        {"show": f"cat {memory}", "write": f"echo 1048576 > {memory}", "still": f"cat {memory}"},
        *("--rootfs", busybox, "--name", guest_name, *MODES[mode]),
    )
    unlimited = "max" if is_v2_only() else "9223372036854771712"
    assert answers.text("show") == answers.text("still") == unlimited
    assert (BY_OWNERSHIP if mode == "userns" else BY_COVER) in answers.refused("write")


# Ownership: guest root cannot change modes or owners either. Covers: a guest without CAP_SYS_ADMIN cannot take them
# off, remount them, or mount the hierarchy anew elsewhere.
def test_locks_cannot_be_picked(nestrt: Nestrt, new_guest: object, busybox: Path) -> None:
    assert callable(new_guest)
    path = inside("pids", "/", "pids.max", "pids.max")
    place = os.path.dirname(path)
    kind = "-t cgroup2" if is_v2_only() else "-t cgroup -o pids"
    attempts = {
        "chmod": f"chmod 666 {path} && echo 100 > {path}",
        "chown": f"chown 0:0 {path} && echo 100 > {path}",
        "rename": f"mv {path} {place}/other",
        "remove": f"rm -f {path}",
        "over": f"mount -o bind /etc/passwd {path} && umount {path} && echo 100 > {path}",
        "take off": f"umount {path} && echo 100 > {path}",
        "lazily": f"umount -l {path} && echo 100 > {path}",
        "remount": f"mount -o remount,bind,rw {path} && echo 100 > {path}",
        "anew": f"mount {kind} none /mnt && echo 100 > /mnt/pids.max",
    }
    for mode in ("userns", "nouserns"):
        name = new_guest()
        questions = {**attempts, "still": f"cat {path}"}
        options = ("--rootfs", busybox, "--name", name, "--pids", "40", "--mount", "type=tmpfs,target=/mnt")
        answers = ask(nestrt, questions, *options, *MODES[mode])
        for attempt in attempts:
            answers.refused(attempt)
        assert answers.text("still") == "40"
        for group in (limit_group(name), guest_root(name)):
            assert read("pids", group, "pids.max", "pids.max") == "40"


# Nothing is mounted over what it owns: the host's "nestrt delete" and "gc" need no mount of the guest's.
def test_covers_are_the_guests_alone(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    answers = ask(
        nestrt,
        {"covers": "grep -c 'cgroup2\\? .*pids.max\\|pids.max .*cgroup' /proc/self/mountinfo"},
        *("--rootfs", busybox, "--name", guest_name, *MODES["nouserns"]),
    )
    assert answers.text("covers") == "1"
    assert "pids.max" not in Path("/proc/self/mountinfo").read_text()
