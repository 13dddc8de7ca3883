"""The audit: a line for each change that a guest's process has asked for, done or refused.

::

    {"time":"2026-11-30T12:00:00.123456Z","guest":"web","method":"Set","peer":{"pid":4711,"uid":100000,"gid":100000,
     "user":0,"guest_pid":7,"guest_gid":0},"group":"/db","key":"memory.max","old":"64M","new":"128M","verdict":"done"}

A refusal's verdict is the error's name, and "message" the reason. One that is like another of the last seconds is only
counted: "repeated" says how many a line stands for that were not written each. "lost" counts lines of this guest that
could not be written before this one. All is ASCII JSON: no value ends a line or moves a terminal's cursor.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any, Iterator

from nestrt.broker.audit_line import DIRECTORY, parts, who
from nestrt.broker.audit_read import Reader
from nestrt.broker.lines import FILE_BYTES, FILES, Lines
from nestrt.broker.refusal import Refusal

if TYPE_CHECKING:
    from nestrt.broker.audit_line import Who

WINDOW = 10.0  # seconds in which like refusals of one guest are counted as one
MOST_KINDS = 16  # different refusals of one guest in it; all others are alike

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=repr).encode


class _Like:
    """A refusal that has been written, and how often the same has come since."""

    __slots__ = ("again", "begun", "body")

    def __init__(self, body: str, begun: float) -> None:
        self.body = body
        self.begun = begun
        self.again = 0


class Audit:
    """Writes below *directory*: of each guest *files* files of at most *file_bytes*, the newest always among them."""

    def __init__(self, directory: str = DIRECTORY, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        """Makes the directory. Raises HostError where it belongs to another user, KernelError."""
        self.directory = directory
        self._lines = Lines(directory, "the audit", "--audit DIR", file_bytes, files)
        self._lock = threading.Lock()
        self._likes: dict[str, dict[Any, _Like]] = {}
        self._next_flush = 0.0

    @property
    def lost(self) -> dict[str, int]:
        """By guest: lines that could not be written, and have not been told of."""
        return self._lines.lost

    def record(
        self,
        guest: str,
        group: str,
        key: str,
        old: Any,
        new: Any,
        verdict: str | Refusal,
        peer: Who | None = None,
        method: str = "",
    ) -> None:
        """The *group*'s *key* was *old*, and is now *new* or was to be. *verdict*: "done", or why not: a Refusal, or
        its "NAME: MESSAGE". What cannot be written is counted: nothing is raised."""
        if isinstance(verdict, Refusal):
            name, message = verdict.name, verdict.message
        else:
            name, _, message = verdict.partition(": ")
        head, what = parts(guest, method, (group, key, old, new), (name, message), _encode)
        body, done = f'{head},"peer":{who(peer)},{what}', verdict == "done"
        with self._lock:
            now = time.monotonic()
            if now >= self._next_flush:
                self._flush(now)
            if done or self._first(guest, body, (head, peer.uid if peer else -1, what), name, now):
                self._lines.write(guest, body)

    def flush(self) -> None:
        """Write down what has been counted for WINDOW seconds. A call every few seconds is enough."""
        with self._lock:
            self._flush(time.monotonic())

    def close(self) -> None:
        """Write down all that has been counted, and end."""
        with self._lock:
            self._flush(float("inf"))
            self._lines.close()

    # -- what is alike ------------------------------------------------------------------------

    def _first(self, guest: str, body: str, same: tuple[Any, ...], name: str, now: float) -> bool:
        """Whether a refusal is to be written; one like it, of the last seconds, is counted."""
        likes = self._likes.setdefault(guest, {})
        # The process does not count: a flood may come from many.
        mark: Any = hash(same)
        if mark not in likes and len(likes) >= MOST_KINDS:
            mark = name
        found = likes.get(mark)
        if found is None:
            likes[mark] = _Like(body, now)
            return True
        found.again += 1
        found.body = body
        return False

    def _flush(self, now: float) -> None:
        for guest, likes in list(self._likes.items()):
            for mark, like in list(likes.items()):
                if now - like.begun >= WINDOW:
                    del likes[mark]
                    if like.again:
                        self._lines.write(guest, f'{like.body},"repeated":{like.again}')
            if not likes:
                del self._likes[guest]
        self._next_flush = now + WINDOW / 4

    def read(self, guest: str | None = None, **named: Any) -> Iterator[dict[str, Any]]:
        """The lines of *guest*, or of all, as audit_read.Reader.read() has them."""
        self.flush()
        return Reader(self.directory).read(guest, **named)
