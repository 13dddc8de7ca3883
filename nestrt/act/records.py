"""The records of guests that another runtime starts.

::

    /run/nestrt/plugin/KEY    one guest's: JSON, locked (flock) by whoever makes or removes it just now

A record is written before anything else is made, and goes last, so that whatever is killed
on the way can be found; what it says is only where to look. That a group is this guest's is the
mark's word: both have the same random id.
"""

from __future__ import annotations

import os

from nestrt import jsontext
from nestrt.errors import InputError, KernelError, StateError
from nestrt.kernel import flock
from nestrt.plan.facts import Hierarchy
from nestrt.plan.request import STATE_DIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DIRECTORY = f"{STATE_DIR}/plugin"
RECORD_LIMIT = 1 << 20  # bytes
PATIENCE = 10.0  # seconds that another may take who has a record locked
DETACHED = "/proc/self/fd/"
NAME_LIMIT = 200


def key(text: str) -> str:
    """The name of a record: *text* says whose, a limit group's path or a runtime's own name for a container."""
    name = "".join(_QUOTED.get(c, c) for c in text.strip("/"))
    if len(name) < NAME_LIMIT and name.isascii():
        return name
    from _blake2 import blake2b

    return f"{name[:40] if name.isascii() else ''}%{blake2b(text.encode(errors='replace'), digest_size=16).hexdigest()}"


_QUOTED = {"%": "%25", "/": "%2F", "\0": "%00", ".": "%2E"}


class Record:
    """One guest's record, locked while this object holds *fd*.

    *values*: ``group`` the limit group, ``id`` as in its mark, ``made`` whether the group was not there
    before, ``parents`` groups above it that were not, ``bundle``, ``maker`` and ``began`` the process that goes
    on to start the runtime (pid and start time), ``created`` seconds since 1970; ``root`` and ``container`` what a
    wrapped runtime calls it.
    """

    def __init__(self, name: str, fd: int, content: bytes = b"") -> None:
        """*content* is what the file has in it."""
        self.name = name
        self.fd = fd
        self.values = parse(content)

    @property
    def path(self) -> str:
        return f"{DIRECTORY}/{self.name}"

    def text(self, field: str) -> str:
        value = self.values.get(field)
        return value if isinstance(value, str) else ""

    def number(self, field: str) -> int:
        value = self.values.get(field)
        return value if type(value) is int else 0

    @property
    def parents(self) -> tuple[str, ...]:
        value = self.values.get("parents")
        return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()

    def save(self) -> None:
        """Add *values* as one more line, of which the last whole one holds: a write that is cut off changes nothing.

        Raises OSError, InputError (a line longer than half of RECORD_LIMIT).
        """
        content = b"\n" + jsontext.dumps(self.values).encode() + b"\n"
        if len(content) > RECORD_LIMIT // 2:
            reason = f"its record would be longer than {RECORD_LIMIT >> 11} KiB"
            raise InputError("keep", f"guest in {self.text('group')[:99]}", reason, "shorten its linux.cgroupsPath")
        end = os.fstat(self.fd).st_size
        if end + len(content) > RECORD_LIMIT:
            end = 0  # after some hundred updates
            os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, content, end)

    def forget(self) -> None:
        """Remove the file, and let go of it."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_record(name: str, make: bool = False, patience: float = PATIENCE) -> Record | None:
    """The record *name*, locked; None where there is none and it is not to be made.

    Raises StateError where another has it for longer than *patience* seconds, KernelError where /run/nestrt
    cannot be written.
    """
    path = f"{DIRECTORY}/{name}"
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if make else 0)
    try:
        if make:
            os.makedirs(DIRECTORY, mode=0o700, exist_ok=True)
        while True:
            fd = os.open(path, flags, 0o600)
            if not flock.take(fd, patience):
                os.close(fd)
                raise StateError("use", f"record {path}", "the guest is being made or removed", "try again")
            try:
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    break
            except FileNotFoundError:
                pass
            os.close(fd)  # removed by whom we have waited for
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError("open record", path, error.errno or 0, "let root own /run/nestrt") from error
    return Record(name, fd, os.pread(fd, RECORD_LIMIT, 0))


def parse(content: bytes) -> dict[str, Any]:
    """What a record's file says: its last whole line. {} where it has none: then nothing was made."""
    for line in reversed(content.split(b"\n")):
        try:
            value = jsontext.loads(line.decode()) if line else None
        except ValueError:
            continue  # cut off
        if isinstance(value, dict):
            return value
    return {}


def names() -> list[str]:
    """The names of all records here."""
    try:
        return sorted(os.listdir(DIRECTORY))
    except (FileNotFoundError, NotADirectoryError):
        return []


def hierarchies(record: Record) -> tuple[Hierarchy, ...]:
    """The hierarchies that the guest has groups in, as they were when it was made; () where it was never made.

    One that was reached by a detached mount is mounted again, for this process. Raises InputError, OSError.
    """
    found = []
    try:
        for row in record.values.get("hierarchies") or ():
            name, version, controllers, options, mountpoint, links, read_only = row
            if mountpoint.startswith(DETACHED):
                from nestrt.kernel.mount import new_mount  # ctypes: hierarchies that are mounted nowhere are rare

                mountpoint = f"{DETACHED}{new_mount('cgroup', options)}"
            found.append(Hierarchy(name, version, tuple(controllers), options, mountpoint, tuple(links), read_only))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError("read", f"record {record.path}", "it is damaged", "remove the groups by hand") from error
    return tuple(found)


def rows(hierarchies: tuple[Hierarchy, ...]) -> list[list[object]]:
    """*hierarchies* as a record has them."""
    return [
        [h.name, h.version, list(h.controllers), h.options, h.mountpoint, list(h.links), h.read_only]
        for h in hierarchies
    ]


def moved(text: str, record: Record, now: tuple[Hierarchy, ...]) -> str:
    """*text*, JSON with paths of the record's time, with those of hierarchies that this process has mounted anew."""
    for row, h in zip(record.values.get("hierarchies") or (), now, strict=True):
        if row[4] != h.mountpoint:
            text = text.replace(f'"{row[4]}/', f'"{h.mountpoint}/')
    return text
