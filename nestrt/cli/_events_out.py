"""Events as they are written: lines for people, or any other form; to a reader who may be slow, or go away.

While events are followed nobody waits for a reader. What does not fit is dropped and counted, and told in its
place. The reader of a pipe is given 4 KiB at a time, and only when there is room for that: see pipe(7), PIPE_BUF.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from collections import deque
from datetime import datetime

from nestrt.cli._formats import Column, row_texts
from nestrt.errors import HostError
from nestrt.host.event import FIELDS, Event
from nestrt.host.marks import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PIECE = select.PIPE_BUF
MOST_BYTES = 4 << 20  # that wait for a reader
COLUMNS = tuple(Column(field.upper(), field) for field in FIELDS)
# podman events' names.
ALIASES = {"Time": "time", "Status": "kind", "Type": "kind", "Name": "name", "Details": "detail"}


def line(event: Event, raw: bool = False) -> str:
    """One event for people, escaped: TIME KIND GUEST GROUP: WORDS."""
    at = f"{event.time:.6f}" if raw else moment(event.time)
    name = (event.name or "-") + (" (claim)" if event.claim else "")
    group = event.path if event.group is None else event.group
    words = _words(event)
    return escape(f"{at} {event.kind:8} {name} {group or '-'}" + (f": {words}" if words else ""))


def moment(seconds: float) -> str:
    """ISO 8601, local time with its zone, to the millisecond."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.3f}"


def _words(event: Event) -> str:
    if event.kind == "oom_kill" and event.task is not None:
        whose = f"{event.binds} had no memory left" if event.binds else "the machine had no memory left"
        return f"{event.task} (pid {event.pid}, uid {event.uid}) was killed: {whose}"
    parts = [event.key] if event.key else []
    if event.count is not None and (event.count > 1 or event.key or event.total):
        parts.append(f"{event.count} time{'' if event.count == 1 else 's'}")
    text = " ".join(parts)
    if event.total is not None and event.total != event.count:
        text += f", {event.total} so far"
    return f"{text}: {event.detail}" if text and event.detail else text or event.detail or ""


class Texts:
    """Events one after the other in the form of *options*."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._rows: deque[dict[str, Any]] = deque()
        self._texts: Iterator[str] | None = None
        if options.format != "text":
            self._texts = row_texts(options, self._feed(), COLUMNS, ALIASES, live=True)

    def _feed(self) -> Iterator[dict[str, Any]]:
        while True:
            yield self._rows.popleft()

    def of(self, event: Event) -> bytes:
        """The event, and what has to stand before it."""
        if self._texts is None:
            text = line(event, self._options.raw) + "\n"
        else:
            self._rows.append(event.row())
            text = ""
            while self._rows:
                text += next(self._texts)
        return text.encode(sys.stdout.encoding or "utf-8", "backslashreplace")


class Out:
    """Standard output, for whoever does not wait. Register it with the epoll(7) that is waited for: attach()."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._fd = sys.stdout.fileno()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._epoll: select.epoll | None = None
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def attach(self, epoll: select.epoll) -> None:
        """Wake up whoever waits for *epoll* when the reader has gone, or can take more."""
        try:
            epoll.register(self._fd, 0)
            self._epoll = epoll
        except PermissionError:  # a file, or /dev/null: always ready
            pass

    def put(self, event: Event) -> None:
        """Take an event, or count it where there is no room."""
        if self._lost and self._size < MOST_BYTES // 2:
            self._tell_lost()
        if self._size >= MOST_BYTES:
            self._lost += 1
        else:
            self._add(event)

    def _tell_lost(self) -> None:
        lost = Event(time.time(), "lost", count=self._lost, detail="the reader was too slow", source="nestrt")
        self._lost = 0
        self._add(lost)

    def _add(self, event: Event) -> None:
        text = self._texts.of(event)
        self._size += len(text)
        self._waiting.append(text)

    def flush(self) -> None:
        """Write what can be written now. Raises BrokenPipeError where nobody reads any more, HostError."""
        while ready := self._poll.poll(0):
            if ready[0][1] & (select.POLLERR | select.POLLHUP | select.POLLNVAL) and not ready[0][1] & select.POLLOUT:
                raise BrokenPipeError
            if ready[0][1] & select.POLLERR:
                raise BrokenPipeError
            if not self._waiting and self._lost:
                self._tell_lost()
            if not self._waiting:
                break
            self._write()
        if self._epoll is not None:
            self._epoll.modify(self._fd, select.EPOLLOUT if self._waiting else 0)

    def _write(self) -> None:
        piece = self._waiting.popleft()
        while self._waiting and len(piece) + len(self._waiting[0]) <= PIECE:
            piece += self._waiting.popleft()
        try:
            done = os.write(self._fd, piece[:PIECE])
        except BrokenPipeError:
            raise
        except BlockingIOError:  # somebody has made it so
            done = 0
        except OSError as error:
            raise HostError("write to", "standard output", error.strerror or "it failed") from error
        self._size -= done
        if done < len(piece):
            self._waiting.appendleft(piece[done:])
