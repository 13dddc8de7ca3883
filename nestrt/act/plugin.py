"""Guests that another runtime starts: their records, their groups carried out, and all of it taken back.

::

    /run/nestrt/plugin/KEY    a guest's record: JSON, locked (flock) by whoever makes or removes it just now

A record is written before anything else is made, and goes last, so that whatever is killed
on the way can be found; what it says is only where to look. That a group is this guest's is the
mark's word: both have the same random id.
"""

from __future__ import annotations

import fcntl
import os
import time
from _blake2 import blake2b

from nestrt import jsontext
from nestrt.act import groups, remove
from nestrt.act.explain import explain
from nestrt.errors import KernelError, NestrtError, StateError
from nestrt.kernel import pidfd
from nestrt.plan.request import STATE_DIR
from nestrt.plan.steps import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from nestrt.plan.facts import Hierarchy
    from nestrt.plan.steps import Step

DIRECTORY = f"{STATE_DIR}/plugin"
RECORD_LIMIT = 65536
PATIENCE = 10.0  # seconds that another may take who has a record locked
# Between the making of a limit group and the runtime's first process: an engine that is killed there
# may have left a monitor that goes on for a moment.
GRACE = 10.0  # seconds
SWEEP_LIMIT = 256  # records looked at by the way


class Worker:
    """Carries steps out that make or change groups (act.groups.Maker): *pid* is the guest's first process, or 0."""

    def __init__(self, name: str, pid: int = 0) -> None:
        self.plan = Plan(name, (), ())
        self.pid = pid
        self.parent_lock = -1

    def run(self, steps: Iterable[Step]) -> None:
        """Raises NestrtError for the first that the kernel refuses."""
        for step in steps:
            try:
                groups.STEPS[type(step)](self, step)
            except OSError as error:
                raise explain(step, error) from error

    def release(self) -> None:
        """Let go of the groups that guests share."""
        if self.parent_lock >= 0:
            os.close(self.parent_lock)
            self.parent_lock = -1


def key(text: str) -> str:
    """The name of a record: *text* says whose, a limit group's path or a runtime's own name for a container."""
    return blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


class Record:
    """One guest's record, locked while this object holds *fd*.

    *values*: ``group`` the limit group, ``id`` as in its mark, ``made`` whether the group was not there
    before, ``parents`` groups above it that were not, ``bundle``, ``maker`` and ``began`` the process that goes
    on to start the runtime (pid and start time), ``created`` seconds since 1970; ``root`` and ``container`` what a
    wrapped runtime calls it.
    """

    def __init__(self, name: str, fd: int, values: dict[str, Any]) -> None:
        self.name = name
        self.fd = fd
        self.values = values

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
        """Write *values*, whole: the file is this object's alone. Raises OSError."""
        content = jsontext.dumps(self.values).encode()
        os.pwrite(self.fd, content, 0)
        os.ftruncate(self.fd, len(content))

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


def _wait_for_lock(fd: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)


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
            if not _wait_for_lock(fd, patience):
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
    return Record(name, fd, _values(os.pread(fd, RECORD_LIMIT, 0)))


def _values(content: bytes) -> dict[str, Any]:
    try:
        value = jsontext.loads(content.decode())
    except ValueError:
        return {}  # killed before it was written: then nothing was made
    return value if isinstance(value, dict) else {}


def names() -> list[str]:
    """The names of all records here."""
    try:
        return sorted(os.listdir(DIRECTORY))
    except (FileNotFoundError, NotADirectoryError):
        return []


def marked_id(hierarchies: tuple[Hierarchy, ...], group: str) -> str | None:
    """The id in the mark of *group*, "" where a group has none, None where there is no group in any hierarchy."""
    found: str | None = None
    for hierarchy in hierarchies:
        if os.path.isdir(hierarchy.path(group)):
            value = remove.read_mark(hierarchy, group).get("id")
            if isinstance(value, str) and value:
                return value
            found = ""
    return found


def take_back(record: Record, hierarchies: tuple[Hierarchy, ...]) -> None:
    """End what lives of the guest and remove all that is its own: groups, those above that were made for it, record.

    The caller has the record locked. Raises StateError and KernelError: it is then kept for another try.
    """
    group = record.text("group")
    known = marked_id(hierarchies, group) if group.strip("/") else None
    ours = known == record.text("id") or (known == "" and record.values.get("made") is True)
    if known is not None and ours and (known or not remove.living(hierarchies, group)):
        remove.remove_tree(group, hierarchies)
    if record.parents:
        remove.remove_parent(hierarchies, record.parents, remove.PATIENCE / 10)
    record.forget()


def is_over(record: Record, hierarchies: tuple[Hierarchy, ...]) -> bool:
    """Whether nobody will come for the guest any more: its engine has removed it, or never went on to start it.

    The caller has the record locked.
    """
    group = record.text("group")
    if group.strip("/") and remove.living(hierarchies, group):
        return False
    bundle = record.text("bundle")
    if record.values.get("started") is True:
        return not bundle or not os.path.isdir(bundle)
    maker, began = record.number("maker"), record.number("began")
    if maker and pidfd.start_time(maker) == began:
        return False
    return time.time() - record.number("created") > GRACE


def sweep(hierarchies: tuple[Hierarchy, ...], but: str = "") -> list[str]:
    """Remove what killed hooks, engines and runtimes have left; the limit groups of what was removed.

    *but* is a record that is in use. What cannot be removed is left for the next one, or for ``gc``.
    """
    found = []
    for name in names()[:SWEEP_LIMIT]:
        if name == but:
            continue
        try:
            record = open_record(name, patience=0)
        except NestrtError:
            continue
        if record is None:
            continue
        try:
            if is_over(record, hierarchies):
                take_back(record, hierarchies)
                found.append(record.text("group"))
        except (NestrtError, OSError):
            continue
        finally:
            record.close()
    return found
