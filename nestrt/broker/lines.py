"""Lines that are kept: JSON objects with a time, each guest's in files of its own. The audit is such, and recorded
events are.

Every guest has files of its own, so that none can push out another's lines. A line is one write(2) to a file opened to
append, and a full file is renamed: killed at any point, the writer leaves whole files and at most one unfinished last
line, after which the next begins anew. Lines are not flushed to the disk one by one; a machine that loses power may
lose the last seconds. audit_read.Reader reads them.

A file has one writer at a time. That of Lines, a daemon, is the only one; those of SharedLines, commands, have files of
their own beside it and take turns. So a command that is stopped half-way keeps no daemon waiting, and what a guest has
the broker write pushes out nothing of what the host's root has done to it.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from nestrt.errors import HostError, KernelError, NestrtError, StateError
from nestrt.kernel import flock

LONGEST_LINE = 65536
SUFFIX = ".jsonl"
COMMANDS = "%host"  # before SUFFIX; no name of a guest is written so, for a % is followed by hexadecimal digits there
FILE_BYTES = 1 << 20
FILES = 4
MOST_FILES = 4096  # FILES of them are one guest's
PATIENCE = 2.0  # s
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def file_name(guest: str, writer: str = "") -> str:
    """The name of a guest's newest file, of *writer* "" or COMMANDS: "web/inner" → "web%2Finner.jsonl",
    "web%2Finner%host.jsonl"; older ones end in ".1", ".2"."""
    kept = b"-_.abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    raw = guest.encode(errors="surrogatepass")
    text = "".join(chr(b) if b in kept else f"%{b:02X}" for b in raw)
    if text.startswith("."):
        text = "%2E" + text[1:]
    text = text or "%"  # the level itself
    if len(text) > 200:
        from hashlib import blake2b  # few names are so long

        text = f"{text[:160]}%{blake2b(raw, digest_size=12).hexdigest()}"
    return text + writer + SUFFIX


def stamp(nanoseconds: int) -> str:
    """RFC 3339 in UTC, with microseconds: texts of the same order as the times."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 1000:06d}Z"


class Lines:
    """Writes below *directory*: of each guest *files* files of at most *file_bytes*, the newest always among them, and
    of all guests *most* files. *what* they are, and which *option* names another directory, is for errors. *lost*:
    lines of a guest that could not be written, and have not been told of."""

    def __init__(
        self,
        directory: str,
        what: str,
        option: str,
        file_bytes: int = FILE_BYTES,
        files: int = FILES,
        most: int = MOST_FILES,
    ) -> None:
        """Makes the directory. Raises HostError where it belongs to another user, KernelError."""
        self.most = most
        self.directory = directory
        self.what = what
        self.option = option
        self.file_bytes = max(file_bytes, LONGEST_LINE)
        self.files = max(files, 1)
        self.lost: dict[str, int] = {}
        self._ends: dict[str, tuple[int, int]] = {}  # of files that end in a whole line: (st_ino, st_size)
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
                raise HostError(
                    "keep", f"{self.what} in {self.directory}", reason, f"name another directory: {self.option}"
                )
            if stat.S_IMODE(found.st_mode) != 0o700:
                if not all(map(is_ours, os.listdir(fd))):
                    os.close(fd)
                    reason = "other files are in it, and only root would be let in"
                    remedy = f"name another directory: {self.option}; or see that only root needs them, and chmod 700"
                    raise HostError("keep", f"{self.what} in {self.directory}", reason, remedy)
                os.fchmod(fd, 0o700)
            return fd
        except OSError as error:
            obj = f"{self.what} in {self.directory}"
            raise KernelError("keep", obj, error.errno or 0, f"name another directory: {self.option}") from error

    def _stamp(self) -> str:
        """stamp() of now; the text of a second is made once."""
        nanoseconds = time.time_ns()
        seconds = nanoseconds // 1_000_000_000
        if self._second[0] != seconds:
            self._second = seconds, stamp(seconds * 1_000_000_000)[:-8]
        return f"{self._second[1]}.{nanoseconds // 1000 % 1_000_000:06d}Z"

    def write(self, guest: str, body: str) -> None:
        """A line of *guest*: the time, and *body*, the other members of a JSON object. What cannot be written is
        counted: nothing is raised."""
        lost = self.lost.get(guest, 0)
        tail = f',"lost":{lost}' if lost else ""
        try:
            self._append(file_name(guest), self._line(body + tail))
        except OSError:
            self.lost[guest] = lost + 1
        else:
            if lost:
                del self.lost[guest]

    def _line(self, body: str) -> bytes:
        return f'{{"time":"{self._stamp()}",{body}}}\n'.encode()

    def _append(self, name: str, line: bytes) -> None:
        """One line to the end of the file, or of a new one. Raises OSError where it is not there as a whole."""
        if name not in self._ends and not _is_there(name, self._fd):
            self.prune(self.most - 1)
        fd = self._open(name)
        try:
            found = os.fstat(fd)
            if found.st_size and found.st_size + len(line) > self.file_bytes:
                self._rotate(name)
                self.prune(self.most - 1)
                fresh = self._open(name)
                os.close(fd)
                fd = fresh
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
            except NestrtError as error:
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

    def _is_own(self, name: str) -> bool:
        """Whether a file is one of this writer's."""
        return is_ours(name) and COMMANDS + SUFFIX not in name

    def prune(self, most: int) -> None:
        """Remove the own files that have not been written for longest, so that there are *most* at the most."""
        found = []
        try:
            names = os.listdir(self._fd)
        except FileNotFoundError:  # somebody has removed the directory
            return
        for name in filter(self._is_own, names):
            try:
                found.append((os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mtime, name))
            except FileNotFoundError:
                continue
        for _, name in sorted(found)[: -most or None]:
            try:
                os.unlink(name, dir_fd=self._fd)
            except OSError:  # gone, or no file of ours
                continue

    def close(self) -> None:
        """End."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class SharedLines(Lines):
    """The same by several processes: from the first line to close() each keeps the others waiting, so it is to be
    short. Raises StateError too, where another process does not come to its end."""

    def _open_directory(self) -> int:
        fd, what = super()._open_directory(), f"{self.what} in {self.directory}"
        try:
            taken = flock.take(fd, PATIENCE)
        except OSError as error:
            os.close(fd)
            raise KernelError("keep", what, error.errno or 0, f"name another directory: {self.option}") from error
        if not taken:
            os.close(fd)
            raise StateError("keep", what, "another command that writes to it does not end", "end it")
        return fd

    def write(self, guest: str, body: str) -> None:
        """A line of *guest*, as Lines has it. Raises KernelError where it is not there as a whole."""
        try:
            self._append(file_name(guest, COMMANDS), self._line(body))
        except OSError as error:
            remedy = f"make room, or name another directory: {self.option}"
            raise KernelError("keep", f"{self.what} in {self.directory}", error.errno or 0, remedy) from error

    def _is_own(self, name: str) -> bool:
        return is_ours(name) and COMMANDS + SUFFIX in name


def is_ours(name: str) -> bool:
    """Whether a file in the directory is called as one of ours."""
    base, dot, number = name.rpartition(SUFFIX)
    return bool(base and dot) and (not number or (number[0] == "." and number[1:].isdigit()))


def _is_there(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
