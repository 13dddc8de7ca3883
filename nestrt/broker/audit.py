"""The audit: a line for each change that a guest's process has asked for, done or refused.

::

    {"time":"2026-11-30T12:00:00.123456Z","guest":"web","method":"Set","peer":{"pid":4711,"uid":100000,"gid":100000,
     "user":0},"group":"/db","key":"memory.max","old":"64M","new":"128M","verdict":"done"}

A refusal's verdict is the error's name, and "message" the reason. One that is like another of the last seconds is only
counted: "repeated" says how many a line stands for that were not written each. "lost" counts lines of this guest that
could not be written before this one. All is ASCII JSON: no value ends a line or moves a terminal's cursor.

Every guest has files of its own, so that none can push out another's lines. A line is one write(2) to a file opened to
append, and a full file is renamed: killed at any point, the broker leaves whole files and at most one unfinished last
line, after which the next begins anew. Lines are not flushed to the disk one by one; a machine that loses power may
lose the last seconds.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from typing import Any, Iterator, Protocol

from nestrt.broker.audit_read import DIRECTORY, LONGEST_LINE, Reader, file_name, stamp
from nestrt.broker.refusal import Refusal
from nestrt.errors import HostError, KernelError

FILE_BYTES = 1 << 20
FILES = 4
# Bytes of one value in a line, escapes counted: all together are less than LONGEST_LINE.
ROOM = {"guest": 4096, "method": 256, "group": 8192, "key": 1024, "old": 16384, "new": 16384, "message": 4096}
ROOM_REFUSED = {**ROOM, "group": 1024, "key": 256, "old": 1024, "new": 1024, "message": 1024}
WINDOW = 10.0  # seconds in which like refusals of one guest are counted as one
MOST_KINDS = 16  # different refusals of one guest in it; all others are alike

_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=repr).encode


class Who(Protocol):
    """What the audit wants of a broker.peer.Peer. *user* is as the guest counts."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def user(self) -> int: ...


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


class Audit:
    """Writes below *directory*: of each guest *files* files of at most *file_bytes*, the newest always among them."""

    def __init__(self, directory: str = DIRECTORY, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        """Makes the directory. Raises HostError where it belongs to another user, KernelError."""
        self.directory = directory
        self.file_bytes = max(file_bytes, LONGEST_LINE)
        self.files = max(files, 1)
        self.lost: dict[str, int] = {}
        self._lock = threading.Lock()
        self._ends: dict[str, tuple[int, int]] = {}  # of files that end in a whole line: (st_ino, st_size)
        self._likes: dict[str, dict[Any, _Like]] = {}
        self._next_flush = 0.0
        self._second: tuple[int, str] = (0, "")
        self._fd = self._open_directory()

    def _open_directory(self) -> int:
        try:
            os.makedirs(os.path.dirname(self.directory) or ".", 0o755, exist_ok=True)
            try:
                os.mkdir(self.directory, 0o700)
            except FileExistsError:
                pass
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            found = os.fstat(fd)
            if found.st_uid != os.geteuid():
                os.close(fd)
                reason = f"the directory belongs to user {found.st_uid}"
                raise HostError("keep", f"the audit in {self.directory}", reason, "name another directory: --audit DIR")
            if stat.S_IMODE(found.st_mode) != 0o700:
                os.fchmod(fd, 0o700)
            return fd
        except OSError as error:
            obj = f"the audit in {self.directory}"
            raise KernelError("keep", obj, error.errno or 0, "name another directory: --audit DIR") from error

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
        who = f'{{"pid":{peer.pid},"uid":{peer.uid},"gid":{peer.gid},"user":{peer.user}}}' if peer else "null"
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
                self._write(guest, head + who + what)

    def flush(self) -> None:
        """Write down what has been counted for WINDOW seconds. A call every few seconds is enough."""
        with self._lock:
            self._flush(time.monotonic())

    def close(self) -> None:
        """Write down all that has been counted, and end."""
        with self._lock:
            self._flush(float("inf"))
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1

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
                        self._write(guest, f'{like.body},"repeated":{like.again}')
            if not likes:
                del self._likes[guest]
        self._next_flush = now + WINDOW / 4

    # -- files --------------------------------------------------------------------------------

    def _stamp(self) -> str:
        """stamp() of now; the text of a second is made once."""
        nanoseconds = time.time_ns()
        seconds = nanoseconds // 1_000_000_000
        if self._second[0] != seconds:
            self._second = seconds, stamp(seconds * 1_000_000_000)[:-8]
        return f"{self._second[1]}.{nanoseconds // 1000 % 1_000_000:06d}Z"

    def _write(self, guest: str, body: str) -> None:
        lost = self.lost.get(guest, 0)
        tail = f',"lost":{lost}' if lost else ""
        line = f'{{"time":"{self._stamp()}",{body}{tail}}}\n'.encode()
        try:
            self._append(file_name(guest), line)
        except OSError:
            self.lost[guest] = lost + 1
        else:
            if lost:
                del self.lost[guest]

    def _append(self, name: str, line: bytes) -> None:
        """One line to the end of the file, or of a new one. Raises OSError where it is not there as a whole."""
        fd = self._open(name)
        try:
            found = os.fstat(fd)
            if found.st_size and found.st_size + len(line) > self.file_bytes:
                self._rotate(name)
                os.close(fd)
                fd = self._open(name)
                found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "no file", name)
            inode, size = found.st_ino, found.st_size
            if size and self._ends.get(name) != (inode, size) and os.pread(fd, 1, size - 1) != b"\n":
                line = b"\n" + line
            written = os.write(fd, line)
            if written < len(line):
                if os.fstat(fd).st_size == size + written:
                    os.ftruncate(fd, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
            if len(self._ends) > 4096:
                self._ends.clear()
            self._ends[name] = inode, size + written
        finally:
            os.close(fd)

    def _open(self, name: str) -> int:
        try:
            return os.open(name, _APPEND, 0o600, dir_fd=self._fd)
        except FileNotFoundError:  # somebody has removed the directory
            try:
                fresh = self._open_directory()
            except (HostError, KernelError) as error:
                raise OSError(errno.ENOENT, str(error), name) from None
            os.close(self._fd)
            self._fd = fresh
            return os.open(name, _APPEND, 0o600, dir_fd=self._fd)

    def _rotate(self, name: str) -> None:
        """web.jsonl → .1 → .2 …, as far as there is no gap: a rotation that was cut short is thereby finished."""
        names = [name, *(f"{name}.{number}" for number in range(1, self.files))]
        end = 1
        while end < len(names) and _is_there(names[end], self._fd):
            end += 1
        if end == len(names):  # the oldest goes
            end -= 1
        for number in range(end, 0, -1):
            os.rename(names[number - 1], names[number], src_dir_fd=self._fd, dst_dir_fd=self._fd)
        for number in (self.files, 0) if self.files == 1 else (self.files,):
            try:
                os.unlink(f"{name}.{number}" if number else name, dir_fd=self._fd)
            except FileNotFoundError:
                pass

    def read(self, guest: str | None = None, **named: Any) -> Iterator[dict[str, Any]]:
        """The lines of *guest*, or of all, as audit_read.Reader.read() has them."""
        self.flush()
        return Reader(self.directory).read(guest, **named)


def _is_there(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
