"""Locks on whole files and directories, which the kernel lets go of with the last descriptor: flock(2)."""

from __future__ import annotations

import fcntl
import struct
import time

PAUSE = 0.005  # seconds between tries: flock(2) waits for ever, or not at all


def take(fd: int, patience: float) -> bool:
    """Lock what *fd* is for this descriptor alone; False where another still has it after *patience* seconds.

    Raises OSError: ENOLCK.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(PAUSE)


# Who waits by take() is in no queue: others that share the lock by turns keep it out for ever, unless they are told.
# A read lock on the open file description (fcntl(2), F_OFD_SETLK) says so: it keeps nobody out, and ends as the other.


def announce(fd: int, on: bool = True) -> None:
    """Tell those that ask that *fd* is about to be locked, or no longer. Raises OSError: ENOLCK."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole(fcntl.F_RDLCK if on else fcntl.F_UNLCK))


def announced(fd: int) -> bool:
    """Whether what *fd* is has been announced by another. Raises OSError."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole(fcntl.F_WRLCK))
    return bool(struct.unpack_from("h", found)[0] != fcntl.F_UNLCK)


def _whole(kind: int) -> bytes:
    return struct.pack("hhqqi4x", kind, 0, 0, 0, 0)  # struct flock, from the first byte to the last
