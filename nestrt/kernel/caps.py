"""Capabilities, capabilities(7): their names, and the five sets of the calling thread.

A set is a frozenset of numbers. What a kernel does not know is left out of
what is asked of it: such a right cannot be had and need not be taken away.
"""

from __future__ import annotations

import ctypes
import errno

from nestrt.errors import InputError
from nestrt.kernel.libc import SYS_capget, SYS_capset, syscall
from nestrt.kernel.prctl import prctl
from nestrt.record import record

# In the order of their numbers, include/uapi/linux/capability.h.
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
_NUMBERS = {name: number for number, name in enumerate(NAMES)}

# What engines give uid 0 of a guest without a user namespace: enough to run a distribution's packages,
# nothing that reaches beyond the guest (moby's profile; those of containerd and podman lie within it or equal it).
DEFAULT_NAMES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
DEFAULT = frozenset(_NUMBERS[name] for name in DEFAULT_NAMES)

_LINUX_CAPABILITY_VERSION_3 = 0x20080522

# include/uapi/linux/prctl.h
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_IS_SET = 1
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct { __u32 version; int pid; }; pid 0 is the caller."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    """struct __user_cap_data_struct: of version 3 there are two, low words first."""

    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@record
class Sets:
    """The five sets of a thread."""

    effective: frozenset[int]
    permitted: frozenset[int]
    inheritable: frozenset[int]
    bounding: frozenset[int]
    ambient: frozenset[int]


def by_name(name: str) -> int:
    """Return the number of ``CAP_SYS_ADMIN``, ``sys_admin`` and the like; raises InputError, with the nearest name."""
    wanted = name.upper()
    if not wanted.startswith("CAP_"):
        wanted = "CAP_" + wanted
    number = _NUMBERS.get(wanted)
    if number is None:
        from difflib import get_close_matches  # 10 ms, on this way only

        begun = [name for name in NAMES if name.startswith(wanted)]
        near = begun if len(begun) == 1 else get_close_matches(wanted, NAMES, n=1)
        remedy = f"did you mean {near[0]}?" if near else "capabilities(7) has the names"
        raise InputError("use", f"capability {name!r}", "no such capability", remedy)
    return number


def to_name(number: int) -> str:
    """Return the kernel's name, or the number itself for one that is newer than nestrt."""
    return NAMES[number] if number < len(NAMES) else str(number)


def last() -> int:
    """Return the highest capability that the kernel knows, from /proc/sys/kernel/cap_last_cap or by trying."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", "rb", buffering=0) as file:
            return int(file.read())
    except (OSError, ValueError):
        number = 0
        while _is_known(number + 1):
            number += 1
        return number


def known() -> frozenset[int]:
    """Return every capability that the kernel knows, named or not."""
    return frozenset(range(last() + 1))


def current() -> Sets:
    """Return the sets of the calling thread: capget(2), prctl(2)."""
    data = (_Data * 2)()
    syscall(SYS_capget, ctypes.byref(_Header(_LINUX_CAPABILITY_VERSION_3, 0)), data, obj="capabilities")
    numbers = sorted(known())
    return Sets(
        effective=_numbers(data[0].effective | data[1].effective << 32),
        permitted=_numbers(data[0].permitted | data[1].permitted << 32),
        inheritable=_numbers(data[0].inheritable | data[1].inheritable << 32),
        bounding=frozenset(n for n in numbers if prctl(PR_CAPBSET_READ, n) == 1),
        ambient=frozenset(n for n in numbers if prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, n) == 1),
    )


def apply(
    effective: frozenset[int],
    permitted: frozenset[int],
    inheritable: frozenset[int],
    bounding: frozenset[int],
    ambient: frozenset[int],
) -> None:
    """Give the calling thread these sets, as the last thing before execve(2).

    The bounding set can only shrink: what it lacks already stays away. It goes
    first, while CAP_SETPCAP is still there to do it; the ambient set last, since
    it may only hold what is permitted and inheritable by then. Asking to keep
    what the thread does not have is an error.

    Raises OSError: EPERM (more than the thread has, or no CAP_SETPCAP to shrink
    the bounding set, or ambient beyond permitted and inheritable), naming what.
    """
    everything = known()
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, obj="ambient capabilities")
    for number in sorted(everything - bounding):
        if prctl(PR_CAPBSET_READ, number) == 1:
            prctl(PR_CAPBSET_DROP, number, obj=f"bounding capability {to_name(number)}")
    data = (_Data * 2)()
    for field, numbers in (("effective", effective), ("permitted", permitted), ("inheritable", inheritable)):
        mask = sum(1 << number for number in numbers & everything)
        setattr(data[0], field, mask & 0xFFFFFFFF)
        setattr(data[1], field, mask >> 32)
    syscall(SYS_capset, ctypes.byref(_Header(_LINUX_CAPABILITY_VERSION_3, 0)), data, obj="capabilities")
    for number in sorted(ambient & everything):
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, obj=f"ambient capability {to_name(number)}")


def _is_known(number: int) -> bool:
    """Whether the kernel knows *number*: prctl(2) refuses others with EINVAL."""
    try:
        prctl(PR_CAPBSET_READ, number)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _numbers(mask: int) -> frozenset[int]:
    return frozenset(number for number in range(64) if mask >> number & 1)
