"""Begin the wait that the first move of a process between groups would cost, before it is needed."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # signal.py imports enum


def begin() -> int:
    """In a child process, write to the group that this process is in what changes nothing there.

    Every write to a cgroup.procs takes the kernel's cgroup_threadgroup_rwsem for
    writing. The first after a quiet moment waits for an RCU grace period, 10 to
    20 ms on a small machine; those that come while it waits, or soon after, do not
    wait for another (kernel/rcu/sync.c). Begun here it passes while the launcher
    imports and plans. Whatever fails is left: it only costs the time again.

    Returns the child's pid, 0 if there is none, for end().
    """
    # Ignored by some supervisors, and so inherited: the kernel would reap every child, its status lost.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    try:
        pid = os.fork()
    except OSError:  # pids.max
        return 0
    if pid:
        return pid
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            own = file.read().rpartition("0::")[2].partition("\n")[0]
        for mount in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
            try:
                fd = os.open(f"{mount}{own}/cgroup.procs", os.O_WRONLY)
            except OSError:
                continue
            os.write(fd, b"0")
            break
    finally:
        os._exit(0)


def end(pid: int) -> None:
    """Reap the child, which has ended long since where a guest was launched: no process of nestrt stays behind."""
    try:
        if pid:
            os.waitpid(pid, 0)
    except ChildProcessError:
        pass
