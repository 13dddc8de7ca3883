"""The system call filters of another process, for one that is to run beside it.

The kernel gives them to a tracer: PTRACE_SECCOMP_GET_FILTER (Linux 4.4, with CONFIG_CHECKPOINT_RESTORE, for
CAP_SYS_ADMIN of the initial user namespace, and for none that has a filter itself). A helper traces, so that a process
that does not stop is let go of by killing it.

Sources: ptrace(2), include/uapi/linux/ptrace.h, kernel/seccomp.c (seccomp_get_filter()).
"""

from __future__ import annotations

import ctypes
import errno
import os

from nestrt.kernel.helped import helped
from nestrt.kernel.libc import check, libc

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
PTRACE_SECCOMP_GET_FILTER = 0x420C
WALL = 0x40000000  # __WALL of wait4(2)
MOST_INSTRUCTIONS, INSTRUCTION = 4096, 8  # BPF_MAXINSNS; bytes of a struct sock_filter
MOST_FILTERS = 64
PATIENCE = 5.0  # seconds


def _ptrace(request: int, pid: int, address: int = 0, data: object = None) -> int:
    libc.ptrace.restype = ctypes.c_long
    words = (ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), data)
    return check(libc.ptrace(*words), f"process {pid}")


def _read(pid: int) -> list[bytes]:
    """The filters of a stopped *pid*, the last that it loaded first."""
    found: list[bytes] = []
    buffer = ctypes.create_string_buffer(MOST_INSTRUCTIONS * INSTRUCTION)
    while len(found) < MOST_FILTERS:
        try:
            count = _ptrace(PTRACE_SECCOMP_GET_FILTER, pid, len(found), ctypes.byref(buffer))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return found
            raise
        found.append(buffer.raw[: count * INSTRUCTION])
    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), f"process {pid}")


def _look(pid: int) -> bytes:
    """The helper's part: it lets go of *pid* by ending."""
    _ptrace(PTRACE_SEIZE, pid)
    _ptrace(PTRACE_INTERRUPT, pid)
    os.waitpid(pid, WALL)
    return b"".join(len(code).to_bytes(4, "little") + code for code in _read(pid))


def filters_of(pid: int) -> tuple[bytes, ...]:
    """The filters (struct sock_filter[]) of process *pid*, in the order in which it has loaded them.

    Raises OSError: EPERM without the right, or where another traces it; EINVAL or EIO where the kernel cannot tell;
    ESRCH; ETIMEDOUT for a process that does not stop, being frozen.
    """
    text = helped(lambda: _look(pid), PATIENCE, f"process {pid}")
    found: list[bytes] = []
    while text:
        size = int.from_bytes(text[:4], "little")
        found.append(text[4 : 4 + size])
        text = text[4 + size :]
    return tuple(reversed(found))
