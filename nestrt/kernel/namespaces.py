"""clone3(2), unshare(2), setns(2).

Sources: clone(2), user_namespaces(7), cgroup_namespaces(7), include/uapi/linux/sched.h.
"""

from __future__ import annotations

import ctypes
import fcntl

from nestrt.kernel.libc import SYS_clone3, check, libc, syscall

CLONE_NEWTIME = 0x80
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 3), include/uapi/linux/nsfs.h
SIGCHLD = 17


class _CloneArgs(ctypes.Structure):
    """struct clone_args (include/uapi/linux/sched.h), the first 88 bytes: CLONE_ARGS_SIZE_VER2."""

    _fields_ = [
        (n, ctypes.c_uint64)
        for n in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


def clone(flags: int) -> tuple[int, int]:
    """Fork into new namespaces: (pid, pidfd) in the parent, (0, -1) in the child.

    One clone3(2) puts the child into all of them at once and makes it a direct
    child of the caller, which two forks would not. The interpreter goes on in
    the child as after fork(2): the caller must have one thread only.
    Raises OSError: EPERM, ENOSPC (a namespace limit of /proc/sys/user), EINVAL, ENOMEM.
    """
    pidfd = ctypes.c_int(-1)
    # A sibling ends with the signal of the caller, and clone3(2) refuses another.
    signal = 0 if flags & CLONE_PARENT else SIGCHLD
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=signal)
    pid = syscall(SYS_clone3, ctypes.byref(args), ctypes.sizeof(args))
    return (pid, pidfd.value) if pid else (0, -1)


def unshare(flags: int) -> None:
    """unshare(2). OSError: EPERM, ENOSPC, EINVAL."""
    check(libc.unshare(flags))


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2)."""
    check(libc.setns(fd, nstype))


def kind(fd: int) -> int:
    """Which CLONE_NEW* the namespace file *fd* is of, 0 if it is none: ioctl_ns(2), Linux 4.11."""
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError:
        return 0
