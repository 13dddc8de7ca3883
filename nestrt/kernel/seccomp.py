"""A seccomp filter that makes a few system calls fail with EPERM.

Sources: seccomp(2), include/uapi/linux/seccomp.h, include/uapi/linux/audit.h,
Documentation/networking/filter.rst (classic BPF).
"""

from __future__ import annotations

import ctypes
import os
from struct import pack

from nestrt.kernel.prctl import prctl

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ERRNO_EPERM = 0x00050001
SECCOMP_RET_ALLOW = 0x7FFF0000

# struct seccomp_data { int nr; __u32 arch; … }
_LOAD_NUMBER = pack("=HBBI", 0x20, 0, 0, 0)
_LOAD_ARCH = pack("=HBBI", 0x20, 0, 0, 4)

# open_by_handle_at(2) of every ABI that a machine's kernel runs: AUDIT_ARCH_* → numbers (x86_64: also as x32).
_BY_HANDLE: dict[str, dict[int, tuple[int, ...]]] = {
    "x86_64": {0xC000003E: (304, 304 | 0x40000000), 0x40000003: (342,)},
    "aarch64": {0xC00000B7: (265,), 0x40000028: (371,)},
    "riscv64": {0xC00000F3: (265,)},
}


class _Program(ctypes.Structure):
    """struct sock_fprog { unsigned short len; struct sock_filter *filter; }"""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def filter_code(calls: dict[int, tuple[int, ...]]) -> bytes:
    """The filter (struct sock_filter[], 8 bytes each) that refuses *calls*: AUDIT_ARCH_* → numbers."""
    refuse = pack("=HBBI", 0x06, 0, 0, SECCOMP_RET_ERRNO_EPERM)
    allow = pack("=HBBI", 0x06, 0, 0, SECCOMP_RET_ALLOW)
    code = _LOAD_ARCH
    for arch, numbers in calls.items():
        tests = b"".join(
            # to the refusal behind the tests and the allowance, or on to the next test
            pack("=HBBI", 0x15, len(numbers) - index, 0, number)
            for index, number in enumerate(numbers)
        )
        block = _LOAD_NUMBER + tests + allow + refuse
        code += pack("=HBBI", 0x15, 0, len(block) // 8, arch) + block
    return code + allow


def forbid_handles() -> bool:
    """Make open_by_handle_at(2) fail with EPERM for this process and all its descendants, for ever.

    Returns whether there is a filter for this machine. Raises OSError: EACCES
    without CAP_SYS_ADMIN and no_new_privs; EINVAL where the kernel has no seccomp.
    """
    calls = _BY_HANDLE.get(os.uname().machine)
    if calls is None:
        return False
    code = filter_code(calls)
    program = _Program(len(code) // 8, code)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), obj="seccomp filter")
    return True
