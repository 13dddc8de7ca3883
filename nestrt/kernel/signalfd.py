"""Signals as something to poll: sigprocmask(2) and signalfd(2).

A blocked signal waits for the descriptor to be read, so none is lost between
the look at it and the sleep, and each says who sent it. A child inherits what
is blocked, also through execve(2): it must give back the old mask.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from struct import unpack_from

from nestrt.kernel.libc import check, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Iterable
else:
    import _signal  # signal.py imports enum

SI_KERNEL = 0x80  # include/uapi/asm-generic/siginfo.h: no process sent it
_SIZE = 128  # struct signalfd_siginfo
_SIGSET_SIZE = 128  # sigset_t of the C library; the kernel uses its first 64 bits


def block(signals: Iterable[int]) -> set[int]:
    """Block *signals* and return those that were blocked before."""
    return set(_signal.pthread_sigmask(_signal.SIG_BLOCK, signals))


def set_blocked(signals: Iterable[int]) -> None:
    """Block *signals* and no others: those that wait are delivered now."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, signals)


def open(signals: Iterable[int]) -> int:
    """Return a descriptor, close-on-exec and non-blocking, that can be read when one of *signals* (blocked) waits.

    signalfd(2). Raises OSError: EMFILE, ENFILE, ENOMEM.
    """
    mask = sum(1 << signal - 1 for signal in signals)
    buffer = ctypes.create_string_buffer(mask.to_bytes(8, sys.byteorder), _SIGSET_SIZE)
    return check(libc.signalfd(ctypes.c_int(-1), buffer, ctypes.c_int(os.O_CLOEXEC | os.O_NONBLOCK)), "signalfd")


def read(descriptor: int) -> list[tuple[int, int]]:
    """Return the signals that wait: each one's number, and its si_code (SI_KERNEL: a key, a lost terminal)."""
    try:
        content = os.read(descriptor, 16 * _SIZE)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        return []
    # struct signalfd_siginfo { __u32 ssi_signo; __s32 ssi_errno; __s32 ssi_code; __u32 ssi_pid; … };
    found = [unpack_from("=Iii", content, at) for at in range(0, len(content), _SIZE)]
    return [(number, code) for number, _errno, code in found]
