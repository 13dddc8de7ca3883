"""Be told what changes in files and directories: inotify(7).

On cgroupfs the kernel itself says IN_MODIFY of ``cgroup.events``, ``memory.events`` and their like when their
content changes (kernfs_notify(), fs/kernfs/file.c), not only when somebody writes. The removal of a group is said
by its parent's directory alone: there is no IN_DELETE_SELF, no IN_IGNORED, and a watch of something that has gone
keeps its inode until it is removed (Linux 6.18). One event is one::

    struct inotify_event { int wd; uint32_t mask; uint32_t cookie; uint32_t len; char name[len]; };
"""

from __future__ import annotations

import ctypes
import os
from struct import Struct

from nestrt.kernel.libc import check, libc

# include/uapi/linux/inotify.h
IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000
IN_DONT_FOLLOW = 0x2000000
IN_ISDIR = 0x40000000

_HEAD = Struct("iIII")
_BUFFER = 16384  # 500 events or so: whoever reads on one thread with others lets these have their turn between


def open() -> int:
    """inotify_init1(2): a descriptor, close-on-exec and non-blocking. OSError: EMFILE (also max_user_instances)."""
    return check(libc.inotify_init1(ctypes.c_int(os.O_CLOEXEC | os.O_NONBLOCK)), "inotify")


def add(descriptor: int, path: str, mask: int) -> int:
    """inotify_add_watch(2): the number of the watch, the same for the same inode.

    OSError: ENOENT, ENOSPC (max_user_watches), ENOTDIR with IN_ONLYDIR.
    """
    return check(libc.inotify_add_watch(ctypes.c_int(descriptor), os.fsencode(path), ctypes.c_uint32(mask)), path)


def remove(descriptor: int, watch: int) -> None:
    """inotify_rm_watch(2); it is no error if it is gone."""
    libc.inotify_rm_watch(ctypes.c_int(descriptor), ctypes.c_int(watch))


def parse(content: bytes) -> list[tuple[int, int, bytes]]:
    """The events in what was read: watch (-1 with IN_Q_OVERFLOW), mask, name in the directory."""
    found = []
    at = 0
    while at < len(content):
        watch, mask, _cookie, length = _HEAD.unpack_from(content, at)
        at += _HEAD.size + length
        found.append((watch, mask, content[at - length : at].rstrip(b"\0")))
    return found


def read(descriptor: int) -> list[tuple[int, int, bytes]]:
    """What has happened since the last call, as parse(); never blocks."""
    try:
        return parse(os.read(descriptor, _BUFFER))
    except BlockingIOError:
        return []
