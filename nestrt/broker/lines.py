"""Lines that are kept: JSON objects with a time, each guest's in files of its own. The audit is such, and recorded
events are.

Every guest has files of its own, so that none can push out another's lines. A line is one write(2) to a file opened to
append, and a full file is renamed: killed at any point, the writer leaves whole files and at most one unfinished last
line, after which the next begins anew. Lines are not flushed to the disk one by one; a machine that loses power may
lose the last seconds. audit_read.Reader reads them.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from nestrt.broker.audit_read import LONGEST_LINE, SUFFIX, file_name, stamp
from nestrt.errors import HostError, KernelError

FILE_BYTES = 1 << 20
FILES = 4
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Lines:
    """Writes below *directory*: of each guest *files* files of at most *file_bytes*, the newest always among them.
    *what* they are, and which *option* names another directory, is for errors. *lost*: lines of a guest that could not
    be written, and have not been told of."""

    def __init__(
        self, directory: str, what: str, option: str, file_bytes: int = FILE_BYTES, files: int = FILES
    ) -> None:
        """Makes the directory. Raises HostError where it belongs to another user, KernelError."""
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

    def prune(self, most: int) -> None:
        """Remove the files that have not been written for longest, so that there are *most* at the most."""
        found = []
        for name in filter(is_ours, os.listdir(self._fd)):
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
