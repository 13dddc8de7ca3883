"""Time namespaces, and the domain name of a UTS namespace: time_namespaces(7), setdomainname(2)."""

from __future__ import annotations

import ctypes
import os

from nestrt.kernel.libc import check, libc
from nestrt.kernel.namespaces import CLONE_NEWTIME, setns, unshare


def enter(offsets: tuple[tuple[str, int, int], ...], root: int = -1) -> None:
    """Make a time namespace with *offsets*, (clock, seconds, nanoseconds), and move the caller into it.

    *clock* is monotonic or boottime; *root* is a directory with a true /proc, -1 for
    the caller's own root. clone3(2) with CLONE_NEWTIME would make the
    namespace with a member, and from then on its offsets are fixed; unshare(2)
    makes it for children only, so that there is a moment to write them.

    Raises OSError: EPERM (no CAP_SYS_ADMIN, no CAP_SYS_TIME in its user namespace), EACCES (/proc/self is not
    the caller's: after a change of user), ERANGE, EINVAL, ENOENT (a kernel without CONFIG_TIME_NS), ENOSPC.
    """
    at, proc = (root, "proc/self") if root >= 0 else (None, "/proc/self")
    unshare(CLONE_NEWTIME)
    if offsets:
        text = "".join(f"{clock} {seconds} {nanoseconds}\n" for clock, seconds, nanoseconds in offsets)
        fd = os.open(f"{proc}/timens_offsets", os.O_WRONLY | os.O_CLOEXEC, dir_fd=at)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    fd = os.open(f"{proc}/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        setns(fd, CLONE_NEWTIME)
    finally:
        os.close(fd)


def set_domainname(name: str) -> None:
    """setdomainname(2). OSError: EINVAL (more than 64 bytes), EPERM (not root of the UTS namespace's owner)."""
    value = name.encode()
    check(libc.setdomainname(value, ctypes.c_size_t(len(value))), name)
