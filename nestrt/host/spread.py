"""Many guests, told of by several processes side by side: to read a group's files is the kernel's work and ours, both
of which one CPU does in turn.

The guests are cut into pieces; of N processes the i-th tells pieces i, i+N, i+2N… one after the other into its own
pipe (pipe(7)), and the pieces are taken from the pipes in their order. Nothing is kept but what fits a pipe: who reads
slowly makes all wait.
"""

from __future__ import annotations

import fcntl
import os
import struct

from nestrt.errors import HostError, NestrtError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

PIECE = 4  # items
FEWEST = 64  # of less the processes cost more than they save
MOST = 8  # processes: one who looks on should not be the load that he sees
FRAME = 1 << 15  # bytes, and what one part is more
AHEAD = 1 << 20  # bytes that a process may be ahead of who takes them
_LENGTH = struct.Struct("=q")


class Told(NestrtError):
    """What a process that tells a part says of why it cannot: its exit status, 0 for a bug, and its words."""

    def __init__(self, text: str) -> None:
        status, _, words = text.partition(" ")
        self.status = int(status) or HostError.status
        bug = f"cannot show the guests: looking at a part of them failed: {words}; this is a bug of nestrt"
        super().__init__("show", "the guests", bug if status == "0" else words)

    def __str__(self) -> str:
        return self.reason


def spread(items: list[T], tell: Callable[[T], Iterator[str]], between: str) -> Iterator[str]:
    """What *tell* says of each of *items*, in order, with *between* between two; ASCII.

    Raises HostError where one of the processes ended before it was done. Where none can be started this one does all.
    """
    pieces = [items[at : at + PIECE] for at in range(0, len(items), PIECE)]
    count = min(len(os.sched_getaffinity(0)), MOST)
    workers: list[tuple[int, int]] = []  # pid, pipe
    try:
        if len(items) >= FEWEST and count > 1:
            try:
                for number in range(count):
                    _start(pieces[number::count], tell, between, workers)
            except OSError:  # EAGAIN, ENOMEM, EMFILE
                _end(workers)
        for number, piece in enumerate(pieces):
            if number:
                yield between
            if workers:
                yield from _piece(workers[number % count][1])
            else:
                yield from _told(piece, tell, between)
    finally:
        _end(workers)


def _told(piece: list[T], tell: Callable[[T], Iterator[str]], between: str) -> Iterator[str]:
    for number, item in enumerate(piece):
        if number:
            yield between
        yield from tell(item)


def _end(workers: list[tuple[int, int]]) -> None:
    """Let go of all. Who has not finished gets EPIPE."""
    for _, pipe in workers:
        os.close(pipe)
    while workers:
        try:
            os.waitpid(workers.pop()[0], 0)
        except ChildProcessError:  # whoever started us ignores SIGCHLD, and we inherited that
            pass


def _start(
    pieces: list[list[T]], tell: Callable[[T], Iterator[str]], between: str, workers: list[tuple[int, int]]
) -> None:
    """Fork the process that tells *pieces*. OSError."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, AHEAD)
    except OSError:  # EPERM: this user has many pipes
        pass
    try:
        pid = os.fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        raise
    if pid:
        workers.append((pid, ours))
        os.close(theirs)
        return
    status = 1
    try:
        for pipe in (ours, *(pipe for _, pipe in workers)):
            os.close(pipe)
        for piece in pieces:
            _send(theirs, _told(piece, tell, between))
        status = 0
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except BaseException as error:
        text = f"0 {type(error).__name__}: {error}"
        if isinstance(error, NestrtError):
            text = f"{error.status} {error}"
        _frame(theirs, [text.encode("ascii", "backslashreplace").decode("ascii")], -1)
    finally:
        os._exit(status)


def _send(pipe: int, parts: Iterator[str]) -> None:
    """Write *parts* in frames, each its length and so many bytes; a length of 0 is the end of a piece, a negative one
    that of what went wrong."""
    kept: list[str] = []
    size = 0
    for part in parts:
        kept.append(part)
        size += len(part)
        if size >= FRAME:
            _frame(pipe, kept)
            kept, size = [], 0
    if size:
        _frame(pipe, kept)
    _frame(pipe, [])


def _frame(pipe: int, parts: list[str], sign: int = 1) -> None:
    text = "".join(parts).encode("ascii")
    view = memoryview(_LENGTH.pack(sign * len(text)) + text)
    while view:
        view = view[os.write(pipe, view) :]


def _piece(pipe: int) -> Iterator[str]:
    """The frames of one piece."""
    while length := _LENGTH.unpack(_read(pipe, _LENGTH.size))[0]:
        text = _read(pipe, abs(length)).decode("ascii")
        if length < 0:
            raise Told(text)
        yield text


def _read(pipe: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = os.read(pipe, min(length - len(data), AHEAD))
        if not part:
            reason = "a process that looked at a part of them ended"
            raise HostError("show", "the guests", reason, "see what the kernel's log says of it, and try again")
        data += part
    return bytes(data)
