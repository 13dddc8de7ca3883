"""Counters of groups, read again and again: what top and metrics show.

One pread(2) of a cgroup file costs 1 µs, and with open(2) and close(2) around it 4 µs (Linux 6.18), so
descriptors stay open as far as there is room. Each holds a page of kernel memory (fs/seq_file.c keeps
its buffer), which bounds how many. A group that goes away takes its files with it: they
say ENODEV, and another group may have its name by then.

v1 counts out-of-memory kills, and forks that were refused, in the very group where
they happened. There the groups below are read too: anew only when
/proc/vmstat says that any kill has happened, and so seldom that it takes a tenth of the time at most.
"""

from __future__ import annotations

import os
import resource
import time

from nestrt.host.counters_files import TABLES, Counters, File
from nestrt.host.processes import read_text
from nestrt.host.walk import LONGEST_PATH, open_deep, scan
from nestrt.plan.facts import Hierarchy
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container

__all__ = ["ALL", "CounterReader", "Counters"]

ALL: frozenset[str] = frozenset(name for table in TABLES.values() for file in table for name in file.fields)

MOST_DESCRIPTORS = 16384  # 64 MiB of the kernel's memory
SPARE_DESCRIPTORS = 64  # for all else that the process opens
ASK_AGAIN = 30.0  # s, for a file that was not there: controllers are enabled later
RESUM_SHARE = 10.0  # a sum that took 1 ms is made anew after 10 ms
MOST_BUDGET = 0.2  # s of the bounded time that may be saved up
LOOK_FOR_KILLS = 0.2  # s between two looks at /proc/vmstat


@record
class _Wanted:
    """A file of a table in one hierarchy."""

    hierarchy: Hierarchy
    file: File


class _Open:
    """The files of one group: (descriptor or path, size, parse) each, and those that count locally."""

    __slots__ = ("files", "local", "names", "renew")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.files: list[tuple[int | str, int, Callable[[bytes, Counters], None]]] = []
        self.local: list[_Local] = []
        self.renew = float("inf")


class _Local:
    """The sum over a group and all below it of a counter that v1 keeps in each."""

    __slots__ = ("_kills", "_next", "field", "value", "wanted")

    def __init__(self, wanted: _Wanted) -> None:
        self.wanted = wanted
        self.field = wanted.file.fields[0]
        self.value: int | None = None
        self._kills = -1
        self._next = 0.0

    def is_due(self, kills: int, now: float) -> bool:
        """Whether the sum may be another one. *kills* is the machine's number of kills, *now* the monotonic time, s."""
        return now >= self._next and (kills != self._kills or self.field != "oom_kills")

    def add(self, path: str, kills: int, now: float) -> float:
        """Make the sum anew; how long that took, in s."""
        # Where the machine has killed nothing, nothing here has been killed.
        total = self._sum(path, self.field) if kills or self.field != "oom_kills" else 0
        # A group that has gone has taken its count with it; a counter never goes back.
        if total is not None:
            self.value = max(total, self.value or 0)
        self._kills = kills
        spent = time.monotonic() - now
        self._next = now + RESUM_SHARE * spent
        return spent

    def _sum(self, path: str, field: str) -> int | None:
        hierarchy, file = self.wanted.hierarchy, self.wanted.file
        total = None
        for seen in scan(hierarchy.mountpoint, "" if path == "/" else path):
            found = Counters()
            try:
                file.parse(_read_once(hierarchy.path(seen.path or "/", file.names[0]), file.size), found)
            except (OSError, ValueError, IndexError):
                continue
            value = found.__dict__[field]
            if value is not None:
                total = value + (total or 0)
        return total


def _open(path: str) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC
    return os.open(path, flags) if len(path) <= LONGEST_PATH else open_deep(path, flags)


def _read_once(path: str, size: int) -> bytes:
    fd = _open(path)
    try:
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def _room() -> int:
    """How many descriptors can be kept; raises the soft RLIMIT_NOFILE to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass
    try:
        taken = len(os.listdir("/proc/self/fd"))
    except OSError:
        taken = SPARE_DESCRIPTORS
    most = MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, MOST_DESCRIPTORS)
    return max(0, most - taken - SPARE_DESCRIPTORS)


class CounterReader:
    """Reads counters of groups in *hierarchies*: the *wanted* fields of Counters only, from the files that have them.

    With *share*, sums that v1 does not make take at most that share of the time, and may be old or missing. A file that
    several readers of one process keep open counts for each of them: *descriptors* is this one's part of those that
    there are. Not for use in two threads at once.
    """

    def __init__(
        self,
        hierarchies: tuple[Hierarchy, ...],
        wanted: frozenset[str] = ALL,
        share: float = 0.0,
        descriptors: float = 1.0,
    ) -> None:
        self._hierarchies = hierarchies
        self._fields = wanted
        self._share = share
        self._budget = MOST_BUDGET
        self._counted = time.monotonic()
        self._room = int(_room() * descriptors)
        self._plans: dict[tuple[str, ...], tuple[_Wanted, ...]] = {}
        self._groups: dict[str, _Open] = {}
        self._kills = -1
        self._looked = 0.0

    def read(self, path: str, names: tuple[str, ...]) -> Counters:
        """The counters of the group *path* ("/nestrt/web"), which the hierarchies *names* have.

        Never raises: what cannot be read, or is gone, is None.
        """
        group = self._groups.get(path)
        if group is None or group.names != names or time.monotonic() > group.renew:
            return self._first(path, names, self._forget(path))
        counters = Counters()
        try:
            for place, size, parse in group.files:
                parse(os.pread(place, size, 0) if place.__class__ is int else _read_once(place, size), counters)  # type: ignore[arg-type]
        except (OSError, ValueError, IndexError):
            # ENODEV: it is gone, or has been made again. EOPNOTSUPP: cgroup.pressure was written to.
            self._forget(path)
            return self._first(path, names, [])
        if group.local:
            self._add_local(group, counters, path)
        return counters

    def keep(self, paths: Container[str]) -> None:
        """Close what is open of groups that are not in *paths*."""
        for path in [path for path in self._groups if path not in paths]:
            self._forget(path)

    def close(self) -> None:
        """Close everything; a later read() opens it again."""
        self.keep(())

    def _first(self, path: str, names: tuple[str, ...], before: list[_Local]) -> Counters:
        """Open the group's files and read them. The sums *before* go on."""
        group = _Open(names)
        counters = Counters()
        missing = False
        for wanted in self._plan(names):
            if wanted.file.local:
                group.local.append(next((local for local in before if local.wanted is wanted), _Local(wanted)))
            elif not self._open_file(group, wanted, path, counters):
                missing = True
        if not group.files:
            return Counters()
        if missing:
            group.renew = time.monotonic() + ASK_AGAIN
        self._groups[path] = group
        if group.local:
            self._add_local(group, counters, path)
        return counters

    def _open_file(self, group: _Open, wanted: _Wanted, path: str, counters: Counters) -> bool:
        """Read the first of the file's names that is there, and keep it; whether one is."""
        for name in wanted.file.names:
            place = wanted.hierarchy.path(path, name)
            try:
                fd = _open(place)
            except OSError:
                continue
            try:
                wanted.file.parse(os.pread(fd, wanted.file.size, 0), counters)
            except (OSError, ValueError, IndexError):
                os.close(fd)
                continue
            if self._room > 0:
                self._room -= 1
                group.files.append((fd, wanted.file.size, wanted.file.parse))
            else:
                os.close(fd)
                group.files.append((place, wanted.file.size, wanted.file.parse))
            return True
        return False

    def _plan(self, names: tuple[str, ...]) -> tuple[_Wanted, ...]:
        """The files to read of a group that the hierarchies *names* have, v1's before v2's."""
        if names not in self._plans:
            present = [h for h in self._hierarchies if h.name in names]
            on_v1 = {controller for h in present if h.version == 1 for controller in h.controllers}
            found = []
            for hierarchy in sorted(present, key=lambda h: h.version):
                for file in TABLES[hierarchy.version]:
                    if hierarchy.version == 1:
                        there = set(file.controllers) <= set(hierarchy.controllers)
                    else:
                        there = not file.controllers or not on_v1.issuperset(file.controllers)
                    if there and not self._fields.isdisjoint(file.fields):
                        found.append(_Wanted(hierarchy, file))
            self._plans[names] = tuple(found)
        return self._plans[names]

    def _add_local(self, group: _Open, counters: Counters, path: str) -> None:
        now = time.monotonic()
        if now - self._looked > LOOK_FOR_KILLS:
            self._looked, self._kills = now, _kills()
        if self._share:
            self._budget = min(self._budget + (now - self._counted) * self._share, MOST_BUDGET)
            self._counted = now
        for local in group.local:
            if self._budget > 0 and local.is_due(self._kills, now):
                spent = local.add(path, self._kills, now)
                self._budget -= spent if self._share else 0
            counters.__dict__[local.field] = local.value

    def _forget(self, path: str) -> list[_Local]:
        group = self._groups.pop(path, None)
        if group is None:
            return []
        for place, _, _ in group.files:
            if isinstance(place, int):
                os.close(place)
                self._room += 1
        return group.local


def _kills() -> int:
    """How many processes this kernel's out-of-memory killer has ended since it was booted; another number each
    time where it does not say so (before Linux 4.13)."""
    try:
        words = read_text("/proc/vmstat").split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        return time.monotonic_ns()
