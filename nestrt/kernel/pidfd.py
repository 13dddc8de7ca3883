"""Processes that are sure to be the ones meant: pidfd_open(2), and start times from /proc."""

from __future__ import annotations

import errno
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # signal.py imports enum


def open(pid: int, start: int | None = None) -> int:
    """Return a descriptor, close-on-exec, of process *pid*, which began at *start* if that is given.

    pidfd_open(2). Raises OSError: ESRCH if there is no such process, or another one by now.
    """
    descriptor = os.pidfd_open(pid)
    try:
        # Only now: while the descriptor is open the process it is for keeps its number until it is reaped.
        if start is not None and start_time(pid) != start:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), str(pid))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def send_signal(pidfd: int, signal: int) -> bool:
    """Send *signal*; return False if the process has ended.

    pidfd_send_signal(2). Raises OSError: EPERM. The first process of a pid
    namespace gets only what it has a handler for, SIGKILL and SIGSTOP.
    """
    try:
        _signal.pidfd_send_signal(pidfd, signal)
    except ProcessLookupError:
        return False
    return True


def wait(pidfd: int, seconds: float) -> bool:
    """Wait up to *seconds* for the process to end, which need not be a child; return whether it has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(int(seconds * 1000)))


def start_time(pid: int) -> int | None:
    """Return when *pid* began, in clock ticks since boot; None if there is no such process.

    proc_pid_stat(5), field 22. With the pid this names a process of this boot for ever.
    """
    found = _stat(pid)
    return None if found is None else found[1]


def parent(pid: int) -> int:
    """The pid of *pid*'s parent, 0 if there is no such process or its parent is outside this pid namespace."""
    found = _stat(pid)
    return 0 if found is None else found[2]


def alive(pid: int, start: int) -> bool:
    """Whether the process *pid* that began at *start* is still there and has not ended: a zombie has."""
    found = _stat(pid)
    return found is not None and found[1] == start and found[0] not in (b"Z", b"X", b"x")


def _stat(pid: int) -> tuple[bytes, int, int] | None:
    """The state, the start time and the parent of *pid*."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        content = os.read(descriptor, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    # The second field is the program's name in parentheses, which may hold anything, also parentheses.
    fields = content[content.rindex(b")") + 2 :].split()
    return fields[0], int(fields[19]), int(fields[1])
