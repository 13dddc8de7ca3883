"""The clone of a container's first process where some of its namespaces exist already.

The launcher enters what its own rights are needed for (a network namespace of
the host is not the container's root to join), clones, and goes back; pid and
time namespaces hold for its children only, so nothing is to be undone there. A
user namespace that exists is entered by a helper, for nobody comes back from
one, and its clone is the launcher's child (CLONE_PARENT)::

    launcher ─ fork ─▶ helper: enter the others, then the user namespace
        │                └─ clone (CLONE_PARENT) ─▶ first process
        └◀─────── pid ───┘

Sources: setns(2), clone(2), namespaces(7), user_namespaces(7), ioctl_ns(2).
"""

from __future__ import annotations

import errno
import os

from nestrt.errors import InputError, NotFound
from nestrt.kernel import namespaces
from nestrt.kernel import pidfd as pidfds
from nestrt.kernel.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# OCI name: (name in /proc/PID/ns, clone flag)
KINDS = {
    "pid": ("pid_for_children", CLONE_NEWPID),
    "network": ("net", CLONE_NEWNET),
    "mount": ("mnt", CLONE_NEWNS),
    "ipc": ("ipc", CLONE_NEWIPC),
    "uts": ("uts", CLONE_NEWUTS),
    "user": ("user", CLONE_NEWUSER),
    "cgroup": ("cgroup", CLONE_NEWCGROUP),
    "time": ("time_for_children", CLONE_NEWTIME),
}
# Entered by the first process itself: where it is decides what a mount or a group is.
LATER = ("mount", "cgroup")


def open_all(joins: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """Descriptors of the namespaces to join, by type. Raises NotFound, InputError (a file that is none), OSError."""
    found: dict[str, int] = {}
    for kind, path in joins:
        try:
            found[kind] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(
                "join", f"the {kind} namespace {path}", "no such file or directory", "name one that is there"
            ) from error
        if namespaces.kind(found[kind]) != KINDS[kind][1]:
            raise InputError(
                "join", f"the {kind} namespace {path}", f"it is no {kind} namespace", "correct linux.namespaces"
            )
    return found


def clone_into(flags: int, joined: dict[str, int]) -> tuple[int, int]:
    """Clone with *flags* into the namespaces *joined*: (pid, pidfd) in the launcher, (0, -1) in the first process.

    Raises OSError: EPERM, EINVAL (a user namespace that is the caller's own already), ENOSPC.
    """
    # The helper's own pid namespace decides which number it sees of its clone: that must be the launcher's.
    helped = [kind for kind in ("pid", "user") if kind in joined] if "user" in joined else []
    own: dict[str, int] = {}
    try:
        for kind in joined:
            if kind not in LATER and kind not in helped:
                own[kind] = os.open(f"/proc/self/ns/{KINDS[kind][0]}", os.O_RDONLY | os.O_CLOEXEC)
                namespaces.setns(joined[kind], KINDS[kind][1])
        if helped:

            def enter(keep: int) -> None:
                for kind in helped:
                    namespaces.setns(joined[kind], KINDS[kind][1])

            pid, pidfd = by_helper(flags, enter)
        else:
            pid, pidfd = namespaces.clone(flags)
        if pid == 0:
            own = {}
    finally:
        for kind, fd in own.items():
            namespaces.setns(fd, KINDS[kind][1])
            os.close(fd)
    return pid, pidfd


def by_helper(flags: int, enter: Callable[[int], object]) -> tuple[int, int]:
    """A clone with *flags*, made by a helper that has called *enter* first: the caller's child, where *enter* led.

    *enter* is given a descriptor that it must not close. Returns (pid, pidfd) as clone_into(). Raises OSError.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    helper = os.fork()
    if helper == 0:
        try:
            enter(writer)
            pid = namespaces.clone(flags | namespaces.CLONE_PARENT)[0]
            if pid == 0:
                os.close(writer)
                return 0, -1
            os.write(writer, b"%d" % pid)
        except BaseException as error:  # nothing may run on: what cleans up after a failure is the launcher's
            os.write(writer, b"-%d" % (isinstance(error, OSError) and error.errno or errno.EIO))
        os._exit(0)
    os.close(writer)
    try:
        answer = int(os.read(reader, 32) or b"0")
    finally:
        os.close(reader)
        os.waitpid(helper, 0)
    if answer <= 0:
        raise OSError(-answer or errno.EIO, os.strerror(-answer or errno.EIO), "namespaces")
    if pidfds.parent(answer) != os.getpid():
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), f"process {answer}")
    return answer, os.pidfd_open(answer)
