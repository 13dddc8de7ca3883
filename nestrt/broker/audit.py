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
from typing import Any, Iterator, Protocol

from nestrt.broker.audit_read import DIRECTORY, Reader
from nestrt.broker.lines import FILE_BYTES, FILES, Lines
from nestrt.broker.refusal import Refusal

# Bytes of one value in a line, escapes counted: all together are less than LONGEST_LINE.
ROOM = {"guest": 4096, "method": 256, "group": 8192, "key": 1024, "old": 16384, "new": 16384, "message": 4096}
ROOM_REFUSED = {**ROOM, "group": 1024, "key": 256, "old": 1024, "new": 1024, "message": 1024}
WINDOW = 10.0  # seconds in which like refusals of one guest are counted as one
MOST_KINDS = 16  # different refusals of one guest in it; all others are alike

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=repr).encode


class Who(Protocol):
    """What the audit wants of a broker.peer.Peer. *user*, *guest_pid* and *guest_gid* are as the guest counts."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def user(self) -> int: ...
    @property
    def guest_pid(self) -> int | None: ...
    @property
    def guest_gid(self) -> int | None: ...


class _Like:
    """A refusal that has been written, and how often the same has come since."""

    __slots__ = ("again", "begun", "body")

    def __init__(self, body: str, begun: float) -> None:
        self.body = body
        self.begun = begun
        self.again = 0


def cut(value: Any, room: int) -> str:
    """*value* as JSON of at most *room* bytes; what is longer becomes a text that says so."""
    try:
        text = _encode(value)
    except (TypeError, ValueError, RecursionError):
        value = text = _encode(f"a {type(value).__name__} that is no JSON")
    if len(text) <= room:
        return text
    whole = value if isinstance(value, str) else text
    # A character takes up to twelve bytes, or two at most where none but quotes and backslashes are escaped.
    kept = (room - 64) // (2 if whole.isascii() and whole.isprintable() else 12)
    return _encode(f"{whole[:kept]}… ({len(whole)} characters)")


def _who(peer: Who) -> str:
    pid, gid = ("null" if number is None else number for number in (peer.guest_pid, peer.guest_gid))
    host = f'"pid":{peer.pid},"uid":{peer.uid},"gid":{peer.gid}'
    return f'{{{host},"user":{peer.user},"guest_pid":{pid},"guest_gid":{gid}}}'


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
        done = verdict == "done"
        room = ROOM if done else ROOM_REFUSED
        if isinstance(verdict, Refusal):
            name, message = verdict.name, verdict.message
        else:
            name, _, message = verdict.partition(": ")
        who = "null" if peer is None else _who(peer)
        head = f'"guest":{cut(guest, ROOM["guest"])},"method":{cut(method, room["method"])},"peer":'
        what = f',"group":{cut(group, room["group"])},"key":{cut(key, room["key"])},"old":{cut(old, room["old"])}'
        what += f',"new":{cut(new, room["new"])},"verdict":{cut(name, 256)}'
        if not done:
            what += f',"message":{cut(message, room["message"])}'
        with self._lock:
            now = time.monotonic()
            if now >= self._next_flush:
                self._flush(now)
            if done or self._first(guest, head + who + what, (head, peer.uid if peer else -1, what), name, now):
                self._lines.write(guest, head + who + what)

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
