"""What guests and groups use, sampled again and again: rates of counters, against effective limits.

A rate is a difference of two readings of one group, divided by the time between these two. It is None until there are
two, and where a counter went back: another group has the name now.
"""

from __future__ import annotations

import os
import time

from nestrt.host.counters import CounterReader, Counters
from nestrt.host.effective import Limit, Reader
from nestrt.host.finder import Finder
from nestrt.host.processes import pids_in
from nestrt.host.walk import scan
from nestrt.level.units import MAX, PERIOD
from nestrt.plan.facts import Hierarchy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from nestrt.host.keys import Key
    from nestrt.host.walk import Guest

WANTED = frozenset(
    "cpu_usec throttled_periods memory swap oom_kills pids io_read_bytes pressure frozen".split()
)  # with each the others of its file
LIMITS = ("cpu.max", "memory.max", "pids.max")
SHORTEST = 0.02  # s between two readings that make a rate
SUMS = 0.05  # of the time is for sums that v1 does not make
QUIET_TURNS = 10  # a group in which nothing runs is read every so many samples: its memory may still shrink
STEPS = 32  # rows between two looks at the clock
LIMITS_AGE = 2.0  # s that limits are believed at least
LOOKING = 0.1  # s of a sample are for cgroup.procs, where nothing else tells whether anything lives


class Usage:
    """One row: a guest, one of its groups, or all guests of one level together.

    *kind* is "guest", "group" or "level", *path* its group ("" of a level), *parent* the path of the row it is inside
    of. CPU is in percent of one CPU; *quota_percent* of the effective CPU quota; *throttled_percent* of the quota's
    periods; *read_rate* and *write_rate* in bytes per second. *limits* are by key. *quiet*: nothing
    runs in it, and all rates and pressures have come down to zero.
    """

    __slots__ = (
        "claim", "counters", "cpu_percent", "guest", "hierarchies", "killed", "kind", "level", "limits",
        "limits_read", "name", "parent", "path", "quiet", "quota_percent", "read", "read_rate",
        "throttled_percent", "write_rate",
    )  # fmt: skip

    def __init__(self, kind: str, path: str, hierarchies: tuple[str, ...]) -> None:
        self.kind = kind
        self.path = path
        self.hierarchies = hierarchies
        self.name = path
        self.parent = ""
        self.level = 0
        self.claim = False
        self.guest: Guest | None = None
        self.limits: dict[str, Limit | None] = {}
        self.limits_read = -1.0
        self.counters = Counters()
        self.read = -1.0
        self.killed = -1.0
        self.quiet = False
        self.forget_rates()

    def forget_rates(self) -> None:
        self.cpu_percent: float | None = None
        self.quota_percent: float | None = None
        self.throttled_percent: float | None = None
        self.read_rate: float | None = None
        self.write_rate: float | None = None

    def update(self, new: Counters, now: float) -> None:
        """Take a reading of the moment *now* (monotonic, s). *killed* becomes the moment when a kill was seen."""
        old, seconds = self.counters, now - self.read
        if self.read < 0 or seconds < SHORTEST or (new.cpu_usec or 0) < (old.cpu_usec or 0):
            self.forget_rates()
        else:
            used = _difference(new.cpu_usec, old.cpu_usec)
            self.cpu_percent = None if used is None else used / seconds / 10_000
            self.read_rate = _rate(new.io_read_bytes, old.io_read_bytes, seconds)
            self.write_rate = _rate(new.io_write_bytes, old.io_write_bytes, seconds)
            periods = _difference(new.periods, old.periods)
            throttled = _difference(new.throttled_periods, old.throttled_periods)
            if periods:
                self.throttled_percent = min(100.0, 100.0 * (throttled or 0) / periods)
            else:
                self.throttled_percent = None if periods is None else 0.0
            quota = self.effective("cpu.max")
            self.quota_percent = None
            if quota and self.cpu_percent is not None:
                self.quota_percent = self.cpu_percent * PERIOD / quota
            if _difference(new.oom_kills, old.oom_kills):
                self.killed = now
        self.counters, self.read = new, now
        self.quiet = self._is_quiet()

    def effective(self, key: str) -> int | None:
        """What works of the limit *key*; None where nothing does."""
        limit = self.limits.get(key)
        if limit is None or not isinstance(limit.effective, int) or limit.effective == MAX:
            return None
        return limit.effective

    def percent(self, key: str, used: int | None) -> float | None:
        """*used* in percent of the effective limit *key*."""
        limit = self.effective(key)
        return None if limit is None or used is None else 100.0 * used / limit if limit else 100.0

    def _is_quiet(self) -> bool:
        if self.counters.pids != 0 or self.cpu_percent != 0.0 or self.read_rate or self.write_rate:
            return False
        return not any(self.pressure)

    @property
    def state(self) -> str:
        """running, paused, stopped, or "" where no hierarchy tells."""
        alive = self.counters.populated
        if alive is None and self.counters.pids is not None:
            alive = self.counters.pids > 0
        if alive is False:
            return "stopped"
        if self.counters.frozen:
            return "paused"
        return "running" if alive else ""

    @property
    def pressure(self) -> tuple[float | None, float | None, float | None]:
        """The percentage of the last ten seconds in which something waited for CPU, memory, I/O."""
        by = self.counters.pressure or {}
        found = [by[name]["some_avg10"] if name in by else None for name in ("cpu", "memory", "io")]
        return found[0], found[1], found[2]


def _difference(new: int | None, old: int | None) -> int | None:
    return None if new is None or old is None or new < old else new - old


def _rate(new: int | None, old: int | None, seconds: float) -> float | None:
    change = _difference(new, old)
    return None if change is None else change / seconds


SUMMED = ("cpu_percent", "read_rate", "write_rate")
COUNTED = ("cpu_usec", "memory", "swap", "pids", "oom_kills", "io_read_bytes", "io_write_bytes")


def by_level(usages: list[Usage]) -> list[Usage]:
    """All guests of each level as one. A guest's own guests are in what it uses, so levels are not to be added up."""
    found: dict[int, Usage] = {}
    counts: dict[int, int] = {}
    for usage in usages:
        if usage.kind != "guest":
            continue
        total = found.get(usage.level)
        if total is None:
            total = found[usage.level] = Usage("level", "", ())
            total.level = usage.level
        counts[usage.level] = counts.get(usage.level, 0) + 1
        for field in SUMMED:
            value = getattr(usage, field)
            if value is not None:
                setattr(total, field, (getattr(total, field) or 0.0) + value)
        counters, into = usage.counters, total.counters.__dict__
        for field in COUNTED:
            value = counters.__dict__[field]
            if value is not None:
                into[field] = (into[field] or 0) + value
        total.killed = max(total.killed, usage.killed)
        into["pressure"] = _higher(counters.pressure, into["pressure"])
    for level, total in found.items():
        total.name = f"level {level}: {counts[level]} guest{'' if counts[level] == 1 else 's'}"
    return [found[level] for level in sorted(found)]


def _higher(
    new: dict[str, dict[str, float]] | None, old: dict[str, dict[str, float]] | None
) -> dict[str, dict[str, float]] | None:
    """The pressure of whoever waits most."""
    if not new or not old:
        return new or old
    return {name: max(new[name], old.get(name, new[name]), key=lambda each: each["some_avg10"]) for name in new}


def inside(guest: Guest, path: str) -> str:
    """The group *path* as the guest calls it: "/", "/init"; "../x" for one beside its root."""
    if path == guest.root or path.startswith(guest.root + "/"):
        return path[len(guest.root) :] or "/"
    return ".." + path[len(guest.path) :]


class Sampler:
    """The guests in sight, with *groups* all their groups too, and what they use; with *below*, see Finder, only those.

    *usages* are the rows, guests and groups in the order of their paths, *own* is all of the level that looks.
    """

    def __init__(self, hierarchies: tuple[Hierarchy, ...], groups: bool = False, below: tuple[str, ...] = ()) -> None:
        self.hierarchies = hierarchies
        self.below = below
        self.finder = Finder(hierarchies, groups, below)
        self.usages: list[Usage] = []
        self.own = Usage("level", "/", tuple(h.name for h in hierarchies))
        self.own.name = f"level {self.finder.view.level}: {self.finder.view.name}"
        self.own.level = self.finder.view.level
        self.cpus = os.cpu_count() or 1
        self._reader = CounterReader(hierarchies, WANTED, share=SUMS)
        self._rows: dict[str, Usage] = {}
        self._limits = Reader()
        self._limits_next = 0
        self._samples = 0
        self._pass: Iterator[None] | None = None
        self._new: list[Usage] = []
        self._stale = False
        # The rows that are there stay until a new finder has seen everything.
        self._replacing = False

    def find(self, seconds: float) -> None:
        """Look for guests for up to *seconds*."""
        if self.finder.look(seconds):
            self._stale = True
        if self._stale and (self.finder.complete or not self._replacing):
            self._stale = self._replacing = False
            self._take_view()

    def show_groups(self, groups: bool) -> None:
        """From now on with *groups*, or without; they are looked for anew."""
        self.finder = Finder(self.hierarchies, groups, self.below)
        self._replacing = bool(self.usages)

    def find_all(self, patience: float = float("inf")) -> None:
        """Look for guests until the primary hierarchy has been seen, and the others too, or *patience* s are over."""
        while not self.finder.settled:
            self.find(1.0)
        end = time.monotonic() + patience
        while not self.finder.complete and time.monotonic() < end:
            self.find(0.2)

    def _take_view(self) -> None:
        rows: dict[str, Usage] = {}
        for guest in self.finder.view.everyone():
            row = self._row(rows, "guest", guest.path, guest.hierarchies)
            row.guest, row.name, row.level, row.claim = guest, guest.name, guest.level, guest.claim
            for group in guest.groups:
                inner = self._row(rows, "group", group.path, group.hierarchies)
                inner.guest, inner.level, inner.claim = guest, guest.level, guest.claim
                inner.name = f"{guest.name}:{inside(guest, group.path)}"
        for path, row in rows.items():
            above = path.rpartition("/")[0]
            while above and above not in rows:
                above = above.rpartition("/")[0]
            row.parent = above
        self._rows = rows
        self.usages = [rows[path] for path in sorted(rows, key=lambda path: path.split("/"))]
        self._new = [row for row in reversed(self.usages) if row.limits_read < 0]
        self._reader.keep({"/": None, **rows})

    def _row(self, rows: dict[str, Usage], kind: str, path: str, hierarchies: tuple[str, ...]) -> Usage:
        row = self._rows.get(path)
        if row is None or row.kind != kind or row.hierarchies != hierarchies:
            row = Usage(kind, path, hierarchies)
        rows[path] = row
        return row

    def sample(self) -> None:
        """Read the counters of all rows. Those that are gone are no longer in *usages*."""
        while not self.sample_some(1.0):
            pass

    def sample_some(self, seconds: float) -> bool:
        """Go on with a sample for *seconds*; whether it is done. Rows that come meanwhile wait for the next one."""
        if self._pass is None:
            self._pass = self._reading()
        end = time.monotonic() + seconds
        for _ in self._pass:
            if time.monotonic() >= end:
                return False
        self._pass = None
        return True

    def _reading(self) -> Iterator[None]:
        gone = []
        clock, read = time.monotonic, self._reader.read
        self._samples += 1
        looking = LOOKING
        self.own.update(read("/", self.own.hierarchies), clock())
        for place, row in enumerate(self.usages):
            if place % STEPS == 0:
                yield
            if row.quiet and (place + self._samples) % QUIET_TURNS:
                around = self._rows.get(row.parent)
                if around is not None and around.counters.pids == 0:
                    # Nothing runs in the group around it, so nothing can have run here.
                    row.read = clock()
                    continue
            counters = read(row.path, row.hierarchies)
            if counters.cpu_usec is None and counters.memory is None and counters.pids is None:
                gone.append(row)
            elif counters.pids and not counters.populated and looking > 0:
                began = clock()
                self._look_for_members(row, counters, began + looking)
                looking -= clock() - began
            row.update(counters, clock())
        if gone:
            left = set(gone)
            self.usages = [row for row in self.usages if row not in left]
            self.finder.gone([row.path for row in gone])

    def _look_for_members(self, row: Usage, counters: Counters, end: float) -> None:
        """Find out whether anything lives in *row* where v1 counts its processes, which tells of each group alone;
        until *end* (monotonic, s) at most."""
        for hierarchy in self.hierarchies:
            if hierarchy.version == 1 and "pids" in hierarchy.controllers and hierarchy.name in row.hierarchies:
                for seen in scan(hierarchy.mountpoint, row.path):
                    if pids_in(hierarchy.path(seen.path)):
                        counters.populated = True
                        return
                    if time.monotonic() >= end:
                        return
                counters.populated = False

    def read_limits(self, seconds: float) -> None:
        """Read the effective limits of rows that have none yet, then those not read for longest, for *seconds*.

        One at least is read. A picture of the groups above is kept as long as it takes to come round.
        """
        now = time.monotonic()
        end = now + seconds
        if now - self.own.limits_read > LIMITS_AGE:
            # A hierarchy's root has other files than all its groups: a reader that begins there misses theirs.
            known, self._limits = self._limits, Reader()
            self._read_limits(self.own, now)
            self._limits = known
        while self._new:
            row = self._new.pop()
            if row.limits_read < 0:
                self._read_limits(row, now)
            if time.monotonic() >= end:
                return
        for _ in range(len(self.usages)):
            if self._limits_next >= len(self.usages):
                self._limits_next = 0
                self._limits = Reader()
            row = self.usages[self._limits_next]
            if now - row.limits_read < LIMITS_AGE:
                break
            self._limits_next += 1
            self._read_limits(row, now)
            if time.monotonic() >= end:
                break

    def _read_limits(self, row: Usage, now: float) -> None:
        found: dict[str, Limit | None] = {}
        for hierarchy, key in self._keys(row):
            if key.name in LIMITS and found.get(key.name) is None:
                found[key.name] = self._limits.limit(hierarchy, key, row.path)
        row.limits, row.limits_read = found, now

    def _keys(self, row: Usage) -> Iterator[tuple[Hierarchy, Key]]:
        for hierarchy in self.hierarchies:
            if hierarchy.name in row.hierarchies:
                yield from ((hierarchy, key) for key in self._limits.keys(hierarchy, row.path))

    def close(self) -> None:
        self._reader.close()
