"""What a process may use and when it runs: limits, CPUs, scheduler, I/O priority, personality.

Sources: prlimit(2), sched_setattr(2), sched_setaffinity(2), ioprio_set(2), personality(2).
Every function raises OSError with the errno of its man page, naming what was to be set.
"""

from __future__ import annotations

import ctypes
import os

from nestrt.kernel.libc import check, libc, syscall
from nestrt.record import record

# include/uapi/asm-generic/resource.h, in the order of their numbers; x86 and arm64 use these.
RLIMITS = (
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
)
RLIM_INFINITY = 2**64 - 1

# x86_64, or the generic table of include/uapi/asm-generic/unistd.h. Asked once: a personality changes the answer.
_X86 = os.uname().machine == "x86_64"
SYS_sched_setattr = 314 if _X86 else 274
SYS_sched_getattr = 315 if _X86 else 275
SYS_ioprio_set = 251 if _X86 else 30
SYS_ioprio_get = 252 if _X86 else 31

IOPRIO_WHO_PROCESS = 1
IOPRIO_CLASS_SHIFT = 13

# A mask longer than the kernel's own is cut by it: more CPUs than any kernel is built for (CONFIG_NR_CPUS).
_ALL_CPUS = b"\xff" * 1024


class _Rlimit(ctypes.Structure):
    """struct rlimit { rlim_t rlim_cur; rlim_t rlim_max; }; 64 bits each, on every machine for prlimit(2)."""

    _fields_ = [("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64)]


class _SchedAttr(ctypes.Structure):
    """struct sched_attr (include/uapi/linux/sched/types.h), 56 bytes: SCHED_ATTR_SIZE_VER1."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
        ("util_min", ctypes.c_uint32),
        ("util_max", ctypes.c_uint32),
    ]


@record
class Scheduling:
    """The numbers of struct sched_attr; *runtime*, *deadline*, *period* in nanoseconds."""

    policy: int
    flags: int = 0
    nice: int = 0
    priority: int = 0
    runtime: int = 0
    deadline: int = 0
    period: int = 0


def limits(pid: int, resource: int) -> tuple[int, int]:
    """(soft, hard) of *resource*, an index of RLIMITS, of process *pid* (0: the caller); RLIM_INFINITY for none."""
    old = _Rlimit()
    check(libc.prlimit(ctypes.c_int(pid), ctypes.c_int(resource), None, ctypes.byref(old)), RLIMITS[resource])
    return old.soft, old.hard


def set_limits(pid: int, resource: int, soft: int, hard: int) -> None:
    """prlimit(2). OSError: EPERM (a higher hard limit without CAP_SYS_RESOURCE, another user's process),
    EINVAL (soft above hard, a number that the kernel does not know), ESRCH."""
    new = _Rlimit(soft, hard)
    check(libc.prlimit(ctypes.c_int(pid), ctypes.c_int(resource), ctypes.byref(new), None), RLIMITS[resource])


def set_affinity(pid: int, cpus: tuple[int, ...] | None) -> None:
    """Let process *pid* run on *cpus* only; None: on every CPU that its cpuset has, now and later.

    sched_setaffinity(2). OSError: EINVAL (none of these is there, or in the process's cpuset), EPERM, ESRCH.
    """
    mask = _ALL_CPUS
    if cpus is not None:
        bits = sum(1 << cpu for cpu in set(cpus))
        # The kernel wants whole unsigned longs.
        mask = bits.to_bytes((bits.bit_length() + 63) // 64 * 8 or 8, "little")
    check(libc.sched_setaffinity(ctypes.c_int(pid), ctypes.c_size_t(len(mask)), mask), "CPU affinity")


def set_scheduling(what: Scheduling) -> None:
    """Schedule the calling thread so: sched_setattr(2).

    OSError: EPERM (no CAP_SYS_NICE; SCHED_DEADLINE with a narrowed affinity), EINVAL, EBUSY (no bandwidth left),
    E2BIG (a kernel before 5.3).
    """
    attr = _SchedAttr(
        ctypes.sizeof(_SchedAttr),
        what.policy,
        what.flags,
        what.nice,
        what.priority,
        what.runtime,
        what.deadline,
        what.period,
    )
    syscall(SYS_sched_setattr, 0, ctypes.byref(attr), 0, obj="scheduler")


def scheduling(pid: int) -> Scheduling:
    """How process *pid* (0: the caller) is scheduled: sched_getattr(2)."""
    attr = _SchedAttr()
    syscall(SYS_sched_getattr, pid, ctypes.byref(attr), ctypes.sizeof(attr), 0, obj="scheduler")
    return Scheduling(attr.policy, attr.flags, attr.nice, attr.priority, attr.runtime, attr.deadline, attr.period)


def set_io_priority(io_class: int, level: int) -> None:
    """Set the caller's I/O class (1 realtime, 2 best effort, 3 idle) and its level, 0 first to 7 last.

    ioprio_set(2). OSError: EPERM (realtime without CAP_SYS_NICE or CAP_SYS_ADMIN), EINVAL.
    """
    value = io_class << IOPRIO_CLASS_SHIFT | level
    syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value, obj="I/O priority")


def io_priority(pid: int) -> tuple[int, int]:
    """(class, level) of process *pid* (0: the caller): ioprio_get(2)."""
    value = syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, pid, obj="I/O priority")
    return value >> IOPRIO_CLASS_SHIFT, value & (1 << IOPRIO_CLASS_SHIFT) - 1


def set_personality(persona: int) -> None:
    """personality(2): PER_LINUX 0, PER_LINUX32 8 (include/uapi/linux/personality.h)."""
    check(libc.personality(ctypes.c_ulong(persona)), "personality")
