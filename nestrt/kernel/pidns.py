"""A process's number in another pid namespace: ioctl_nsfs(2), pid_namespaces(7), proc_pid_status(5).

Linux 6.11 translates by itself (include/uapi/linux/nsfs.h). Before that a process tells its numbers in all the
namespaces that it is in (NSpid), the reader's first, without saying which namespaces those are; NS_GET_PARENT
climbs from one to the next, and inode numbers tell them apart::

    NSpid:  7068   15   1          the reader's, the guest's, one that the guest has made
            depth 0 └─ 1 └─ 2      of /proc/7068/ns/pid: 2
"""

from __future__ import annotations

import errno
import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NS_GET_USERNS = 0xB701  # _IO(0xb7, 1)
NS_GET_PARENT = 0xB702  # _IO(0xb7, 2), include/uapi/linux/nsfs.h
NS_GET_TGID_FROM_PIDNS = 0x8004B707  # _IOR(0xb7, 7, int), Linux 6.11
NS_GET_TGID_IN_PIDNS = 0x8004B709  # _IOR(0xb7, 9, int)
LARGEST = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h

# Whether this kernel translates, until it has said that it does not.
translates = True


def numbers(pid: int) -> tuple[int, ...]:
    """The process's numbers in its pid namespaces, the reader's first. Raises OSError where it is gone."""
    with open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"NSpid:"):
                return tuple(map(int, line.split()[1:]))
    return (pid,)


def identity(fd: int | str) -> tuple[int, int]:
    """What tells one namespace, of a descriptor or of its file in /proc, from all others."""
    found = os.stat(fd)
    return found.st_dev, found.st_ino


def _climb(fd: int, steps: int) -> int:
    """A descriptor of the namespace *steps* above that of *fd*. OSError: EPERM where that is not below the reader's."""
    found = os.dup(fd)
    for _ in range(steps):
        try:
            above = fcntl.ioctl(found, NS_GET_PARENT)
        finally:
            os.close(found)
        found = above
    return found


def _ask(fd: int, request: int, number: int) -> int | None:
    """The kernel's translation, 0: no such process; None where it cannot translate."""
    global translates
    if not translates:
        return None
    try:
        return fcntl.ioctl(fd, request, number)
    except ProcessLookupError:
        return 0
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        translates = False
        return None


class PidNamespace:
    """The pid namespace of process *pid*, held open. Raises OSError where the process is gone."""

    def __init__(self, pid: int) -> None:
        self.fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._depth = -1

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> PidNamespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def depth(self) -> int:
        """How far below the reader's it is. Raises OSError: EPERM where it is not below."""
        if self._depth < 0:
            depth, fd = 0, os.dup(self.fd)
            try:
                own = os.stat("/proc/self/ns/pid")
                while identity(fd) != (own.st_dev, own.st_ino):
                    above = _climb(fd, 1)
                    os.close(fd)
                    fd, depth = above, depth + 1
            finally:
                os.close(fd)
            self._depth = depth
        return self._depth

    @property
    def user_namespace(self) -> tuple[int, int]:
        """What tells the user namespace that owns it from others. Raises OSError: EPERM where that is above ours."""
        fd = fcntl.ioctl(self.fd, NS_GET_USERNS)
        try:
            return identity(fd)
        finally:
            os.close(fd)

    def inside(self, pid: int) -> int:
        """The number that process *pid* has there; 0 where it has none, or is gone."""
        found = _ask(self.fd, NS_GET_TGID_IN_PIDNS, pid)
        if found is not None:
            return found
        try:
            every, depth = numbers(pid), self.depth
            if not depth:
                return every[0]  # all that are in sight are in it, or below
            if depth >= len(every):
                return 0
            fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return 0
        try:
            # Another namespace of the same depth has numbers of its own.
            above = _climb(fd, len(every) - 1 - depth)
        finally:
            os.close(fd)
        try:
            return every[depth] if identity(above) == identity(self.fd) else 0
        finally:
            os.close(above)

    def outside(self, number: int, candidates: Callable[[], Iterable[int]]) -> int:
        """The pid of the process with *number* there, or of which that is a thread; 0 where there is none.

        *candidates* gives the pids to look through where the kernel does not translate; threads are not found then.
        Who ends meanwhile leaves the number to another: hold a pidfd, and ask inside() once more.
        """
        if not 0 < number <= LARGEST:
            return 0
        found = _ask(self.fd, NS_GET_TGID_FROM_PIDNS, number)
        if found is not None:
            return found
        if not self.depth:
            return number if os.path.exists(f"/proc/{number}") else 0
        return next((pid for pid in candidates() if pid > 0 and self.inside(pid) == number), 0)
