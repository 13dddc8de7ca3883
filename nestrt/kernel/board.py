"""The page that the launcher shares with a process behind a system call filter.

A filter whose rules notify has a listener, which must reach the launcher from a
process in which any system call may be waiting for that listener's owner already.
So the two share a page, the board: three 32-bit words, ::

    0   the listener's descriptor in the first process, plus one   written there
    1   not zero: the launcher has fetched it, go on               written by the launcher
    2   what failed after the load, trampoline.failure             written there
"""

from __future__ import annotations

import os
from struct import pack, unpack

BOARD_SIZE = 4096


def new_board() -> int:
    """Make a board; return its descriptor, close-on-exec: memfd_create(2)."""
    board = os.memfd_create("nestrt-board", os.MFD_CLOEXEC)
    os.ftruncate(board, BOARD_SIZE)
    return board


def read_board(board: int) -> tuple[int | None, int]:
    """The listener's descriptor in the first process, None while there is none, and the failure word, 0 for none."""
    listener, _go, failure = unpack("=III", os.pread(board, 12, 0))
    return listener - 1 if listener else None, failure


def release(board: int) -> None:
    """Let the first process go on: it waits for this once it has written its listener's number."""
    os.pwrite(board, pack("=I", 1), 4)
