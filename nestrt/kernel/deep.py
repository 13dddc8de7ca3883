"""Groups nested deeper than a path can say: PATH_MAX is 4096 bytes, and cgroup v1 has no limit of depth.

They are walked by descriptors, one at a time, down by name and up by ``..``. Only for the rare
group where cgroup.below() raises ENAMETOOLONG: there is a guest that wants not to be found.

Source: path_resolution(7), openat(2).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def _names(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def walk(path: str, enter: Callable[[int], object], leave: Callable[[int, str], object]) -> None:
    """Call enter(fd) for *path* and every group below, a parent before its children, and leave(fd of the parent, name)
    on the way back from each below. Raises OSError."""
    fd = os.open(path, _DIRECTORY)
    try:
        enter(fd)
        above: list[str] = []
        left = [_names(fd)]
        while left[-1] or above:
            down = bool(left[-1])
            name = left[-1].pop() if down else ".."
            try:
                following = os.open(name, _DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                if not down:
                    raise
                continue  # removed meanwhile
            os.close(fd)
            fd = following
            if down:
                enter(fd)
                above.append(name)
                left.append(_names(fd))
            else:
                left.pop()
                leave(fd, above.pop())
    finally:
        os.close(fd)


def processes(path: str) -> set[int]:
    """The pids in *path* and all groups below."""
    found: set[int] = set()

    def enter(fd: int) -> None:
        try:
            with open(os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd), "rb") as file:
                found.update(map(int, file.read().split()))
        except OSError:
            pass  # removed meanwhile, or a threaded group, whose processes stand above

    walk(path, enter, lambda fd, name: None)
    return found


def write(path: str, file: str, value: str) -> None:
    """Write *value* to *file* of *path* and all groups below, where that can be."""

    def enter(fd: int) -> None:
        try:
            target = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=fd)
        except OSError:
            return
        try:
            os.write(target, value.encode())
        except OSError:
            pass
        finally:
            os.close(target)

    walk(path, enter, lambda fd, name: None)


def remove(path: str) -> None:
    """Remove all groups below *path*. Raises OSError: EBUSY for one with processes."""

    def leave(fd: int, name: str) -> None:
        try:
            os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            pass

    walk(path, lambda fd: None, leave)
