"""Reading the audit while it is written: by guest, by time, the last lines, and those to come.

Files are found by their inodes, since a full one is renamed: from the newest name to the oldest, so that one which is
renamed meanwhile is met twice and never missed. None stays open, and none is read as a whole unless its end is wanted.
What is no line of the audit is left out: the unfinished last line of a broker that was killed, or what somebody else
has put there.
"""

from __future__ import annotations

import heapq
import json
import os
import stat
from typing import Any, Callable, Iterator

from nestrt.broker.audit_line import DIRECTORY
from nestrt.broker.lines import COMMANDS, LONGEST_LINE, SUFFIX, file_name, stamp
from nestrt.errors import KernelError, NotFound

CHUNK = 1 << 16
LOOKS = 10  # at a guest's files, until none has become the newest meanwhile
MOST_READ = 1 << 28  # bytes of one file whose last lines are wanted; the broker's are a mebibyte
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

Entry = dict[str, Any]
Place = tuple[int, int]  # inode and offset: what lies before has been read
Keep = Callable[[Entry], bool]


def parse(line: bytes) -> Entry | None:
    """A line of the audit; None for anything else."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("time"), str) else None


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return 0


def _names(guest: str) -> list[str]:
    return [file_name(guest), file_name(guest, COMMANDS)]


class Reader:
    """The audit in *directory*."""

    def __init__(self, directory: str = DIRECTORY) -> None:
        self.directory = directory

    def read(
        self,
        guest: str | None = None,
        since: float | None = None,
        until: float | None = None,
        lines: int | None = None,
        keep: Keep | None = None,
        before: dict[str, Place] | None = None,
    ) -> Iterator[Entry]:
        """The lines of *guest*, or of all, in the order of time: of *since* and later, before *until* (seconds since
        the epoch), those that *keep* takes, the last *lines* of them; of places() only what lies *before*.

        Raises NotFound where there is no audit or none of that guest, KernelError.
        """
        names = self.names() if guest is None else _names(guest)
        if guest is not None and not any(map(self._files, names)):
            where = f"there is none in {self.directory}"
            raise NotFound("read", f"the audit of guest {guest}", where, "nestrt audit shows all guests'")
        low = "" if since is None else stamp(int(since * 1e9))
        high = "~" if until is None else stamp(int(until * 1e9))

        def wanted(entry: Entry) -> bool:
            return low <= entry["time"] < high and (keep is None or keep(entry))

        def start(entry: Entry) -> str:
            return str(entry["time"])

        if lines is None and before is None:
            return heapq.merge(*(filter(wanted, self._entries(name, since)) for name in names), key=start)
        last: list[Entry] = []
        for name in names:
            place = None if before is None else before.get(name, (0, 0))
            last = heapq.nlargest(lines, [*last, *self._last(name, lines, wanted, place)], key=start) if lines else []
        return iter(sorted(last, key=start))

    def names(self) -> list[str]:
        """Of each guest its newest files' names, whether or not they are there just now. NotFound, KernelError."""
        try:
            found = os.listdir(self.directory)
        except FileNotFoundError:
            remedy = "the broker and commands write it; --directory DIR names another place"
            raise NotFound("read", f"the audit in {self.directory}", "there is none", remedy) from None
        except OSError as error:
            raise KernelError("read", f"the audit in {self.directory}", error.errno or 0, "as root") from None
        bases = {name if name.endswith(SUFFIX) else name.rpartition(".")[0] for name in found}
        return sorted(name for name in bases if name.endswith(SUFFIX))

    def places(self, guest: str | None = None) -> dict[str, Place]:
        """Where each guest's lines end now."""
        found: dict[str, Place] = {}
        for name in self.names() if guest is None else _names(guest):
            files = self._files(name)
            found[name] = (files[-1].st_ino, files[-1].st_size) if files else (0, 0)
        return found

    def _paths(self, name: str) -> Iterator[str]:
        """A guest's files, the newest first; a rotation that was cut short leaves one gap."""
        number = missing = 0
        while missing < 3:
            path = f"{self.directory}/{name}{f'.{number}' if number else ''}"
            missing = 0 if os.path.lexists(path) else missing + 1
            number += 1
            if not missing:
                yield path

    def _files(self, name: str) -> list[os.stat_result]:
        """The same as the kernel has them, the oldest first, each once."""
        for _ in range(LOOKS):
            newest = _inode(f"{self.directory}/{name}")
            found: dict[int, os.stat_result] = {}
            for path in self._paths(name):
                try:
                    status = os.lstat(path)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.setdefault(status.st_ino, status)
            # One that has become the newest meanwhile may have been seen behind those that it is newer than.
            if _inode(f"{self.directory}/{name}") == newest:
                break
        return list(found.values())[::-1]

    def _bytes(self, name: str, inode: int, offset: int, most: int) -> bytes | None:
        """What is in the file *inode* from *offset* on; None where it has gone."""
        for path in self._paths(name):
            try:
                fd = os.open(path, _READ)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise KernelError("read", path, error.errno or 0, "as root") from None
            try:
                if os.fstat(fd).st_ino == inode:
                    return os.pread(fd, most, offset)
            finally:
                os.close(fd)
        return None

    def after(self, name: str, place: Place) -> Iterator[tuple[bytes, Place]]:
        """The whole lines behind *place* that are there now, and the place behind each chunk of them."""
        inode, offset = place
        rest = b""
        while True:
            inodes = [status.st_ino for status in self._files(name)]
            if inode not in inodes:  # never begun, or pushed out
                if not inodes:
                    return
                inode, offset, rest = inodes[0], 0, b""
            data = self._bytes(name, inode, offset, CHUNK)
            if data:
                whole, newline, rest = (rest + data).rpartition(b"\n")
                offset += len(data)
                if newline:
                    yield whole, (inode, offset - len(rest))
                elif len(rest) > 2 * LONGEST_LINE:
                    rest = rest[:LONGEST_LINE]  # no line of ours: it is left out as a whole
            elif inode == inodes[-1]:
                return
            else:
                # It was no longer the newest before its end was read: nothing comes to it any more.
                inode, offset, rest = inodes[inodes.index(inode) + 1], 0, b""

    def _entries(self, name: str, since: float | None) -> Iterator[Entry]:
        place: Place = (0, 0)
        for status in self._files(name):
            if since is not None and status.st_mtime < since:
                place = (status.st_ino, status.st_size)
        for chunk, _ in self.after(name, place):
            yield from filter(None, map(parse, chunk.split(b"\n")))

    def _last(self, name: str, lines: int | None, wanted: Keep, before: Place | None) -> list[Entry]:
        """The last *lines* that are *wanted*, the newest first."""
        found: list[Entry] = []
        files = self._files(name)[::-1]
        inodes = [status.st_ino for status in files]
        if before is not None:
            files = files[inodes.index(before[0]) :] if before[0] in inodes else []
        for status in files:
            end = before[1] if before is not None and status.st_ino == before[0] else MOST_READ
            data = self._bytes(name, status.st_ino, 0, min(end, MOST_READ)) or b""
            for line in reversed(data.split(b"\n")):
                entry = parse(line)
                if entry is not None and wanted(entry):
                    found.append(entry)
                    if lines is not None and len(found) >= lines:
                        return found
        return found


class Follower:
    """What comes to the audit of *guest*, or of all, from now on."""

    def __init__(self, reader: Reader, guest: str | None = None, keep: Keep | None = None) -> None:
        self.reader = reader
        self.guest = guest
        self.keep = keep
        self.places = reader.places(guest)
        self.begun = dict(self.places)  # for Reader.read(before=…)

    def poll(self) -> list[Entry]:
        """The lines since the last time, in the order of time. Does not wait."""
        found: list[Entry] = []
        for name in self.reader.names() if self.guest is None else _names(self.guest):
            for chunk, place in self.reader.after(name, self.places.get(name, (0, 0))):
                self.places[name] = place
                found += filter(self.keep, filter(None, map(parse, chunk.split(b"\n"))))
        return sorted(found, key=lambda entry: str(entry["time"]))
