"""What a level's groups right below "/" have, for nestrt host: kernel reads → plan.host_split.State."""

from __future__ import annotations

import os

from nestrt.kernel import cgroup
from nestrt.plan.facts import Hierarchy
from nestrt.plan.host_split import DEFAULT, FILES, Group, State, parse_kept

ATTRIBUTE = ".split"  # after the name of the level's marks
PF_KTHREAD = 0x00200000  # include/linux/sched.h; field 9 of proc_pid_stat(5)
UNLIMITED = 1 << 62


def is_user_process(pid: int) -> bool:
    """Whether *pid* is there and no kernel thread."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return not int(fields[6]) & PF_KTHREAD and fields[0] not in (b"Z", b"X")
    except (OSError, ValueError, IndexError):
        return False


def user_processes(directory: str) -> list[int]:
    """The processes of the group itself that are the user's; 0 stands for one of another pid namespace."""
    return [pid for pid in cgroup.processes(directory) if pid == 0 or is_user_process(pid)]


def _threads(pids: list[int]) -> int:
    count = 0
    for pid in pids:
        try:
            count += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            count += pid == 0
    return count


def _number(path: str, default: int) -> int:
    try:
        text = cgroup.read(path)
    except OSError:
        return default
    return int(text) if text.lstrip("-").isdigit() else default


def _groups(h: Hierarchy, mark: str) -> tuple[Group, ...]:
    found = []
    for name in cgroup.children(h.path("/")):
        path = f"/{name}"
        try:
            kept = parse_kept(os.getxattr(h.path(path), mark + ATTRIBUTE).decode())
        except (OSError, ValueError):
            kept = None
        weight = _number(h.path(path, FILES["weight"][h.version]), DEFAULT[h.version])
        found.append(Group(path, weight, kept))
    return tuple(found)


def _cpus(h: Hierarchy | None) -> float:
    """How many CPUs the level has: those that it may run on, or what its quota is worth."""
    found = float(len(os.sched_getaffinity(0)))
    if h is None:
        return found
    try:
        if h.version == 2:
            quota, period = cgroup.read(h.path("/", "cpu.max")).split()
        else:
            quota, period = (cgroup.read(h.path("/", f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        return min(found, int(quota) / int(period)) if quota.isdigit() and int(quota) else found
    except (OSError, ValueError):  # the root of a host has none
        return found


def _bytes(h: Hierarchy | None) -> int:
    """The memory of the level: the machine's, or its limit."""
    with open("/proc/meminfo", encoding="ascii") as file:
        total = int(file.readline().split()[1]) << 10
    limit = _number(h.path("/", FILES["memory"][h.version]), UNLIMITED) if h else UNLIMITED
    return min(total, limit) if limit > 0 else total


def read_state(hierarchies: tuple[Hierarchy, ...], mark: str) -> State:
    """One level as it stands. *mark* is the attribute of its marks."""
    cpu = next((h for h in hierarchies if "cpu" in h.controllers), None)
    memory = next((h for h in hierarchies if "memory" in h.controllers), None)
    pids = user_processes(cpu.path("/")) if cpu else []
    groups = _groups(cpu, mark) if cpu else ()
    of_memory = groups if memory == cpu else _groups(memory, mark) if memory else ()
    return State(
        cpu=cpu,
        groups=groups,
        memory=memory,
        memory_groups=of_memory,
        processes=len(pids),
        threads=_threads(pids),
        cpus=_cpus(cpu),
        bytes=_bytes(memory),
        usage={g.path: _number(memory.path(g.path, FILES["usage"][memory.version]), 0) for g in of_memory if memory},
        systemd=os.path.isdir("/run/systemd/system"),
    )
