"""Files and directories of cgroupfs, v1 and v2.

Every operation raises OSError with the path in it. A write is one write(2):
the kernel takes a cgroup file's value from a single call.
"""

from __future__ import annotations

import errno
import os

# Bytes of a group's path to which a child's name and that of a file can be added: PATH_MAX is 4096.
LONGEST = 3700


def read(path: str) -> str:
    """The stripped text of a cgroup file (at most 1 MiB)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while chunk := os.read(fd, 65536):
            text += chunk
            if len(text) > 1 << 20:
                break
    finally:
        os.close(fd)
    return text.decode("utf-8", "surrogateescape").strip()


def write(path: str, value: str) -> None:
    """Write *value* to a cgroup file. OSError: EACCES, EINVAL, EBUSY, ENOSPC, ENODEV…"""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def children(path: str) -> list[str]:
    """The names of the child groups of *path*, sorted; empty if it is gone."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def processes(path: str) -> list[int]:
    """The pids in the group, as seen from here (0: outside this pid namespace); empty if it is gone."""
    try:
        return [int(pid) for pid in read(path + "/cgroup.procs").split()]
    except OSError:
        return []


def processes_below(path: str) -> set[int]:
    """The pids in the group and in all below."""
    try:
        return {pid for directory in (path, *below(path)) for pid in processes(directory)}
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    from nestrt.kernel import deep  # rare

    return deep.processes(path)


def below(path: str) -> list[str]:
    """All groups below *path*, deepest first, not *path* itself.

    Raises OSError: ENAMETOOLONG where they nest deeper than a path can say (kernel/deep.py).
    """
    found: list[str] = []
    if not os.path.isdir(path):
        return found
    queue = [path]
    while queue:
        directory = queue.pop()
        if len(directory) > LONGEST // 4 and len(os.fsencode(directory)) > LONGEST:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        inner = [f"{directory}/{name}" for name in children(directory)]
        found += inner
        queue += inner
    # A parent's path is a prefix of its children's: more slashes means deeper.
    return sorted(found, key=lambda group: -group.count("/"))
