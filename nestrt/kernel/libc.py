"""The one place that calls into the C library: prototypes, and errors as exceptions.

System calls that glibc 2.36 has no wrapper for go by number through syscall(2);
those added since Linux 5.1 have the same number on every architecture
(include/uapi/asm-generic/unistd.h), the older ones stand in a table.
"""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]

SYS_clone3 = 435
SYS_open_tree = 428
SYS_move_mount = 429
SYS_fsopen = 430
SYS_fsconfig = 431
SYS_fsmount = 432
SYS_openat2 = 437
SYS_mount_setattr = 442

# name: (x86_64, aarch64, riscv64 and other users of the generic table)
_OLD = {"pivot_root": (155, 41), "bpf": (321, 280), "capget": (125, 90), "capset": (126, 91), "keyctl": (250, 219)}
_COLUMN = 0 if os.uname().machine == "x86_64" else 1
SYS_pivot_root = _OLD["pivot_root"][_COLUMN]
SYS_bpf = _OLD["bpf"][_COLUMN]
SYS_capget = _OLD["capget"][_COLUMN]
SYS_capset = _OLD["capset"][_COLUMN]
SYS_keyctl = _OLD["keyctl"][_COLUMN]


def check(result: int, obj: str = "") -> int:
    """Return *result*, or raise OSError from errno, naming *obj*, if it is negative."""
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), obj)
    return result


def syscall(number: int, *args: object, obj: str = "") -> int:
    """syscall(2) with 64-bit integer arguments; raises OSError, naming *obj*."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return check(libc.syscall(ctypes.c_long(number), *converted), obj)
