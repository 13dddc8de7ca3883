"""The processes in a group and below it, and signals that reach no others.

A pid read from cgroup.procs may be another process's by the time it is used. So a pidfd is opened
first, and only then /proc is asked where the process with that number is: as long as the one of the pidfd lives,
nobody else has its number; if it has ended, the signal goes nowhere.

Sources: pidfd_open(2), pidfd_send_signal(2), cgroups(7).
"""

from __future__ import annotations

import os

from nestrt.kernel import cgroup, pidfd
from nestrt.kernel.mountinfo import read_cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.plan.facts import Hierarchy

ROUNDS = 20  # looks for processes that were forked meanwhile


def key(hierarchy: Hierarchy) -> tuple[str, ...]:
    """How /proc/PID/cgroup names *hierarchy*, as read_cgroups() has it."""
    return tuple(name for name in hierarchy.options.split(",") if name not in ("", "none"))


def within(group: str, path: str) -> bool:
    """Whether *path* is *group*, or below it."""
    return path == group or path.startswith(group.rstrip("/") + "/")


def is_member(hierarchies: tuple[Hierarchy, ...], group: str, pid: int | str) -> bool:
    """Whether a thread of process *pid* is in *group* or below, in any of the *hierarchies*; False where it has ended.

    On v1 the threads of one process can be in different groups, and one whose first thread has ended has its others.
    """
    keys = {key(hierarchy) for hierarchy in hierarchies}
    try:
        for task in (pid, *(f"{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task"))):
            try:
                groups = read_cgroups(task)
            except FileNotFoundError:
                continue
            if any(name in keys and within(group, path) for name, path in groups.items()):
                return True
    except (FileNotFoundError, ProcessLookupError):
        pass
    return False


def send(hierarchies: tuple[Hierarchy, ...], group: str, pid: int, number: int) -> bool:
    """Send signal *number* to *pid* if that is in *group* or below; whether it was sent. Raises OSError: EPERM."""
    if pid <= 0:  # outside of this pid namespace
        return False
    try:
        descriptor = pidfd.open(pid)
    except OSError:
        return False  # it has ended; or it is a thread's number, and its process is listed as well
    try:
        return is_member(hierarchies, group, pid) and pidfd.send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def living(hierarchies: tuple[Hierarchy, ...], group: str) -> list[int]:
    """The pids in *group* and below, in any of the *hierarchies*; 0 for those outside of this pid namespace."""
    found: set[int] = set()
    for hierarchy in hierarchies:
        found |= cgroup.processes_below(hierarchy.path(group))
    return sorted(found)


def signal_everyone(hierarchies: tuple[Hierarchy, ...], group: str, number: int) -> int:
    """Send *number* once to every process in *group* and below, those forked meanwhile too; how many got it.

    Where they fork faster than they can be told, that ends after ROUNDS looks: stop them first.
    """
    told: set[tuple[int, int | None]] = set()
    for _ in range(ROUNDS):
        new = {(pid, pidfd.start_time(pid)) for pid in living(hierarchies, group) if pid} - told
        if not new:
            break
        for pid, _ in new:
            send(hierarchies, group, pid, number)
        told |= new
    return len(told)
