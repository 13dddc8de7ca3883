"""Seccomp filters: one of our own that forbids handles, loading any, and handing a listener out.

Sources: seccomp(2), seccomp_unotify(2), pidfd_getfd(2), include/uapi/linux/seccomp.h,
include/uapi/linux/audit.h, Documentation/networking/filter.rst (classic BPF).
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import pack
from time import monotonic

from nestrt.kernel.board import BOARD_SIZE
from nestrt.kernel.libc import SYS_capset, check, libc, syscall
from nestrt.kernel.prctl import prctl

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_RET_ERRNO_EPERM = 0x00050001
SECCOMP_RET_ALLOW = 0x7FFF0000

SECCOMP_FILTER_FLAG_TSYNC = 1 << 0
SECCOMP_FILTER_FLAG_LOG = 1 << 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5  # Linux 5.19, only beside NEW_LISTENER

SYS_seccomp = 317 if os.uname().machine == "x86_64" else 277
SYS_pidfd_getfd = 438

_PROT_READ, _PROT_WRITE, _MAP_SHARED = 1, 2, 1
_MAP_FAILED = ctypes.c_void_p(-1).value
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

# struct seccomp_data { int nr; __u32 arch; … }
_LOAD_NUMBER = pack("=HBBI", 0x20, 0, 0, 0)
_LOAD_ARCH = pack("=HBBI", 0x20, 0, 0, 4)

# open_by_handle_at(2) of every ABI that a machine's kernel runs: AUDIT_ARCH_* → numbers (x86_64: also as x32).
_BY_HANDLE: dict[str, dict[int, tuple[int, ...]]] = {
    "x86_64": {0xC000003E: (304, 304 | 0x40000000), 0x40000003: (342,)},
    "aarch64": {0xC00000B7: (265,), 0x40000028: (371,)},
    "riscv64": {0xC00000F3: (265,)},
}


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
    load(filter_code(calls), 0)
    return True


def load(code: bytes, flags: int) -> int | None:
    """Load *code* (struct sock_filter[]) for the calling thread; return the listener if the *flags* ask for one.

    seccomp(2), SECCOMP_SET_MODE_FILTER. The listener is close-on-exec. Raises
    OSError: EACCES without CAP_SYS_ADMIN and no_new_privs; EBUSY for a second
    listener; EINVAL for what the kernel does not know, and more than 4096 instructions.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; }
    program = pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    if not flags:
        # Kernels and outer filters that know no seccomp(2) know this.
        pointer = ctypes.create_string_buffer(program, len(program))
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(pointer), obj="seccomp filter")
        return None
    result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, ctypes.c_char_p(program), obj="seccomp filter")
    return result if flags & SECCOMP_FILTER_FLAG_NEW_LISTENER else None


# How long a first process waits with its listener for the launcher.
RELEASE_SECONDS = 30.0


def flags_supported(flags: int) -> bool:
    """Whether this kernel knows all of the SECCOMP_FILTER_FLAG_ bits *flags*, which must go together."""
    try:
        # It looks at the flags first, and then for the filter, at no address.
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, ctypes.c_void_p(None))
    except OSError as error:
        return error.errno == errno.EFAULT
    return False


def load_with_board(code: bytes, flags: int, board: int) -> None:
    """``load`` in this process as the trampoline does it: write a listener on the *board*, wait for ``release``.

    No system call is made between the load and the launcher's leave.
    """
    if not flags & SECCOMP_FILTER_FLAG_NEW_LISTENER:
        load(code, flags)
        return
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    address = libc.mmap(None, BOARD_SIZE, _PROT_READ | _PROT_WRITE, _MAP_SHARED, board, 0)
    if address == _MAP_FAILED:
        check(-1, "board")
    words = (ctypes.c_uint32 * 3).from_address(address)
    listener = load(code, flags)
    words[0] = (listener or 0) + 1
    last = monotonic() + RELEASE_SECONDS  # by the vDSO: no system call
    while not words[1]:
        if monotonic() > last:
            words[2] = 4 << 16 | errno.ETIMEDOUT
            os._exit(127)
    os.close(listener or 0)


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Give the calling thread these sets, as masks, by capset(2) alone, with no other system call.

    What leaves the inheritable set leaves the ambient one. Raises OSError: EPERM.
    """
    low, high = [[mask >> shift & 0xFFFFFFFF for mask in (effective, permitted, inheritable)] for shift in (0, 32)]
    header = pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    syscall(SYS_capset, ctypes.c_char_p(header), ctypes.c_char_p(pack("=6I", *low, *high)), obj="capabilities")


def get_fd(pidfd: int, number: int) -> int:
    """Return a copy, close-on-exec, of descriptor *number* of the process behind *pidfd*.

    pidfd_getfd(2), Linux 5.6. Raises OSError: EBADF, ESRCH, EPERM (needs the right to trace it).
    """
    return syscall(SYS_pidfd_getfd, pidfd, number, 0, obj=f"descriptor {number} of the first process")
