"""Locks on whole files and directories, which the kernel lets go of with the last descriptor: flock(2)."""

from __future__ import annotations

import fcntl
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
