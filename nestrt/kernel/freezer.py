"""Stop all that runs in a group and below, and let it go on: cgroup v1's freezer.state, v2's cgroup.freeze.

Sources: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst (cgroup.freeze, cgroup.events).
"""

from __future__ import annotations

import os
import select
import time

from nestrt.kernel import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

V1_STATE, V1_SELF = "freezer.state", "freezer.self_freezing"
V2_STATE, V2_EVENTS = "cgroup.freeze", "cgroup.events"
# As runc: v1 writes FROZEN up to 1000 times (processes that are forked or moved in meanwhile make it fail)
# and now and then lets all run for a moment; v2 waits 10 s.
ATTEMPTS, REST_EVERY, REST = 1000, 50, 0.01
PATIENCE = 10.0


# Where a process sleeps that has stopped (kernel/freezer.c; kernel/signal.c): /proc/PID/wchan.
_STOPPED = ("__refrigerator", "do_freezer_trap")


def freeze(directory: str, version: int, late: Callable[[], object] | None = None) -> bool:
    """Stop every process of the group *directory*; whether all have stopped. If not, or on an error, they go on.

    *late* is called where they have not, before they go on. Takes up to ten seconds. Raises OSError.
    """
    stopped = False
    try:
        stopped = _freeze_v1(directory) if version == 1 else _freeze_v2(directory)
        if not stopped and late is not None:
            late()
    finally:
        if not stopped:
            thaw(directory, version)
    return stopped


def not_stopped(directory: str) -> list[int]:
    """The processes in a group that was told to stop, and below, that wait for something else; [] where the kernel does
    not say what for: "0", as of those that run and are about to stop."""
    found = []
    for pid in sorted(cgroup.processes_below(directory)):
        try:
            with open(f"/proc/{pid}/wchan", encoding="ascii", errors="replace") as file:
                place = file.read(256)
        except OSError:
            continue  # it has ended
        if place not in (*_STOPPED, "", "0"):
            found.append(pid)
    return found


def goes_on(directory: str) -> bool:
    """Whether a task of a group that was told to stop, or of one below, still runs: it goes on with what it is at,
    such as a system call, until it comes to stop. proc_pid_stat(5): state R."""
    for pid in cgroup.processes_below(directory):
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
                    if file.read().rpartition(b") ")[2].startswith(b"R"):
                        return True
        except OSError:
            continue  # it has ended
    return False


def thaw(directory: str, version: int) -> None:
    """Let the processes of the group go on, where no group above is frozen and none below is by itself. OSError."""
    cgroup.write(f"{directory}/{V1_STATE if version == 1 else V2_STATE}", "THAWED" if version == 1 else "0")


def asked(directory: str, version: int) -> bool:
    """Whether the group itself was told to stop, whatever those above and below were told. OSError."""
    return cgroup.read(f"{directory}/{V1_SELF if version == 1 else V2_STATE}") == "1"


def _freeze_v1(directory: str) -> bool:
    state = f"{directory}/{V1_STATE}"
    for attempt in range(ATTEMPTS):
        if attempt % REST_EVERY == REST_EVERY - 1:
            cgroup.write(state, "THAWED")
            time.sleep(REST)
        cgroup.write(state, "FROZEN")
        if attempt % REST_EVERY == REST_EVERY // 2:
            time.sleep(REST)  # a slow machine needs time before a look, not another write
        if cgroup.read(state) == "FROZEN":
            return True
    return False


def _freeze_v2(directory: str) -> bool:
    """Write cgroup.freeze and wait until cgroup.events says ``frozen 1``, by poll(2) on it."""
    deadline = time.monotonic() + PATIENCE
    fd = os.open(f"{directory}/{V2_EVENTS}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        cgroup.write(f"{directory}/{V2_STATE}", "1")
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while b"frozen 1" not in os.pread(fd, 4096, 0):
            if time.monotonic() > deadline:
                return False
            poll.poll(100)
        return True
    finally:
        os.close(fd)
