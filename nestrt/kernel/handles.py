"""File handles: name_to_handle_at(2), open_by_handle_at(2), Linux 2.6.39.

A handle names a file of one filesystem for ever, whatever is mounted where. Whoever may open
by handle therefore reaches groups above the root of his own mount.
"""

from __future__ import annotations

import ctypes
import os
from struct import pack, unpack_from

from nestrt.kernel.libc import check, libc

_MOST = 128  # MAX_HANDLE_SZ, include/linux/exportfs.h


def name(path: str) -> bytes:
    """The struct file_handle ``{ unsigned int handle_bytes; int handle_type; unsigned char f_handle[]; }`` of *path*.

    Raises OSError: EOPNOTSUPP where the filesystem has none.
    """
    buffer = ctypes.create_string_buffer(pack("@Ii", _MOST, 0), 8 + _MOST)
    mount_id = ctypes.c_int()
    check(libc.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount_id), 0), path)
    size = unpack_from("@I", buffer.raw)[0]
    return buffer.raw[: 8 + size]


def open_by(mount: int, handle: bytes, flags: int) -> int:
    """Open the file of *handle*, of the filesystem that the descriptor *mount* is on.

    Raises OSError: EPERM (no CAP_DAC_READ_SEARCH over the filesystem, or a filter), ESTALE (gone, or outside of what
    the caller may reach).
    """
    buffer = ctypes.create_string_buffer(handle, len(handle))
    return check(libc.open_by_handle_at(mount, buffer, flags | os.O_CLOEXEC), "file handle")
