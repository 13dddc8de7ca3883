"""What a picture of the nest shows: a box for each guest and group, and the figures of each.

    host                          what the machine has
    ├─ web        limit group and guest root: one box
    │  ├─ init    a group
    │  └─ db      a guest of web; a group that only holds guests, without a limit, is left out
    └─ ci

Everything in a Box is fit to be shown: what guests may have written has been escaped for people, not for a format.
"""

from __future__ import annotations

import os
import time

from nestrt.host.effective import cpu_time
from nestrt.host.marks import escape
from nestrt.host.processes import read_text
from nestrt.host.render import human, moment, word
from nestrt.host.sight import Sight, count_groups
from nestrt.host.walk import LONGEST_PATH, Group, Guest
from nestrt.level.units import MAX, PERIOD, format_quota
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nestrt.host.effective import Limit

RESOURCES = ("memory", "cpu", "pids")
FULL, NEARLY = 0.9, 0.75


@record
class Part:
    """What a group has of one resource: bytes, µs of CPU time per 100000 µs, or processes.

    *own* is its own limit, *given* what works (never more than the machine has), *binds* the path of the
    group that sets it, "" where nothing does; -1 is no limit. *used* is None where nothing counts.
    """

    own: int
    given: int
    binds: str
    used: int | None

    @property
    def fill(self) -> float | None:
        """The part of *given* that is used; None where it is not known."""
        return None if self.used is None else self.used / self.given if self.given > 0 else 1.0


@record
class Box:
    """A "level", a "guest" or a "group" of a picture, and those *below* it in order of path.

    *part* is that of the resource that the picture is of, *note* a few words, *state* a guest's
    state, *figures* (what, how much) all there is to say.
    """

    kind: str
    name: str
    level: int
    part: Part
    state: str
    note: str
    claim: bool
    figures: tuple[tuple[str, str], ...]
    below: list[Box]

    def everyone(self) -> Iterable[Box]:
        """This box and all below it."""
        yield self
        for box in self.below:
            yield from box.everyone()


def amount(resource: str, value: int) -> str:
    """A value of *resource* for people: 12M, 1.5 CPUs, 20."""
    if resource == "cpu":
        text = format_quota(round(value, -3)) if value != MAX else "max"
        return f"{text} CPU" if text == "1" else f"{text} CPUs"
    return human(value) if resource == "memory" else "max" if value == MAX else str(value)


def used_of(resource: str, part: Part) -> str:
    """What is used, without the unit that stands behind the whole: "0.5" of 1.5 CPUs; "" where it is not known."""
    return "" if part.used is None else amount(resource, part.used).partition(" ")[0]


def percent(fill: float) -> str:
    """A part as percent, with a decimal below 1."""
    if 0 < fill < 0.00995:
        return f"{100 * fill:.1f}%" if fill >= 0.0005 else "<0.1%"
    return f"{100 * fill:.0f}%"


def span(usec: int) -> str:
    """µs of CPU time: 1.5 s, 12 min, 3.4 h."""
    for unit, length in (("h", 3_600_000_000), ("min", 60_000_000)):
        if usec >= 2 * length:
            return f"{usec / length:.1f} {unit}"
    return f"{usec / 1_000_000:.1f} s"


def machine() -> dict[str, int]:
    """What there is of each resource. OSError where /proc is not there."""
    return {
        "memory": meminfo("MemTotal"),
        "cpu": (os.cpu_count() or 1) * PERIOD,
        "pids": min(int(read_text(f"/proc/sys/kernel/{name}")) for name in ("pid_max", "threads-max")),
    }


def meminfo(key: str) -> int:
    """A line of /proc/meminfo, in bytes; proc_meminfo(5). 0 if it is not there."""
    for line in read_text("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 0


class Rates:
    """CPU time of groups, read twice: how much of it they use now."""

    def __init__(self, sight: Sight, groups: dict[str, tuple[str, ...]], seconds: float) -> None:
        self._hierarchies = sight.view.hierarchies
        self.times: dict[str, int] = {}
        self.rates: dict[str, int] = {}
        before = self._read(groups)
        if seconds > 0:
            time.sleep(seconds)
            for path, (usec, when) in self._read(groups).items():
                if path in before and when > before[path][1]:
                    used = max(0, usec - before[path][0])
                    self.rates[path] = round(used * PERIOD / 1_000_000 / (when - before[path][1]))
                self.times[path] = usec
        else:
            self.times = {path: usec for path, (usec, _) in before.items()}

    def _read(self, groups: dict[str, tuple[str, ...]]) -> dict[str, tuple[int, float]]:
        found = {}
        for path, names in groups.items():
            usec = cpu_time(tuple(h for h in self._hierarchies if h.name in names), path)
            if usec is not None:
                found[path] = usec, time.monotonic()
        return found


class Painter:
    """Makes the boxes of one picture of *by* (a name of RESOURCES); CPU use is watched for *seconds*.

    *depth*: groups at most so far below a guest root, guests always.
    """

    def __init__(self, sight: Sight, by: str, depth: int | None = None, seconds: float = 0.0) -> None:
        self.sight, self.by, self.depth, self.seconds = sight, by, depth, seconds
        self.machine = machine()
        self.rates = Rates(sight, {}, 0.0)

    def nest(self) -> Box:
        """The whole nest, the level that looks on top."""
        view = self.sight.view
        everywhere = Group("/", tuple(h.name for h in view.hierarchies))
        self._watch(view.guests, everywhere)
        parts = {resource: self._part(resource, everywhere) for resource in RESOURCES}
        count = sum(1 for _ in view.everyone())
        figures = (("level", str(view.level)), ("guests", str(count)), *self._figures(parts, "/"))
        below = [self.guest(guest) for guest in view.guests if self._is_there(guest)]
        note = f"level {view.level} · {count} guest{'' if count == 1 else 's'}"
        return Box("level", escape(view.name), view.level, parts[self.by], "", note, False, figures, below)

    def one(self, guest: Guest) -> Box:
        """One guest with all below it."""
        self._watch([guest], None)
        return self.guest(guest)

    def _watch(self, guests: list[Guest], top: Group | None) -> None:
        groups = {top.path: top.hierarchies} if top else {}
        for guest in (inner for outer in guests for inner in outer.everyone()):
            groups[guest.path] = guest.hierarchies
            groups |= {group.path: group.hierarchies for group in guest.groups if self._is_drawn(guest, group)}
        self.rates = Rates(self.sight, groups, self.seconds)

    def _is_drawn(self, guest: Guest, group: Group) -> bool:
        return self.depth is None or group.path.count("/") - guest.root.count("/") <= self.depth

    def guest(self, guest: Guest) -> Box:
        """A guest, its groups and its guests."""
        parts = {resource: self._part(resource, guest) for resource in RESOURCES}
        state, mark = self.sight.state(guest), guest.mark
        figures = [("level", str(guest.level)), ("state", state)]
        figures += self._figures(parts, guest.path)
        if guest.claim:
            figures.append(("claim", "who it is was said inside a guest, or by another user"))
        else:
            figures.append(("mark", f"the word of this level ({word(self.sight, guest)})"))
        if mark.made_by:
            figures.append(("made by", escape(mark.made_by)))
        if mark.locked:
            figures.append(("locked", "it may not change its tree"))
        figures.append(("groups", str(count_groups(guest))))
        if mark.created >= 0:
            figures.append(("created", moment(mark.created)))
        if mark.command:
            figures.append(("command", escape(" ".join(mark.command))[:200]))
        figures.append(("path", escape(guest.path)))
        note = " · ".join([f"level {guest.level}", state] + ["claim"] * guest.claim + ["locked"] * mark.locked)
        name = escape(guest.name)
        box = Box("guest", name, guest.level, parts[self.by], state, note, guest.claim, tuple(figures), [])
        self._add_below(guest, box)
        return box

    def _add_below(self, guest: Guest, box: Box) -> None:
        entries: list[Group | Guest] = [*guest.groups, *guest.guests]
        around = [(guest.path, box)]
        for entry in sorted(entries, key=lambda entry: entry.path.split("/")):
            while len(around) > 1 and not entry.path.startswith(around[-1][0] + "/"):
                around.pop()
            outer = around[-1][1]
            if not self._is_there(entry):
                continue
            if isinstance(entry, Guest):
                outer.below.append(self.guest(entry))
            elif entry.path == guest.root:
                around.append((entry.path, outer))
            elif self._is_drawn(guest, entry):
                outer.below.append(self._group(guest, entry))
                around.append((entry.path, outer.below[-1]))
        box.below = list(_without_holders(box.below))

    def _group(self, guest: Guest, group: Group) -> Box:
        parts = {resource: self._part(resource, group) for resource in RESOURCES}
        name = escape(group.path.rpartition("/")[2])
        owner = escape(guest.name)
        figures = (("guest", owner), *self._figures(parts, group.path), ("path", escape(group.path)))
        return Box("group", name, guest.level, parts[self.by], "", "", False, figures, [])

    def _is_there(self, group: Group | Guest) -> bool:
        """Whether it has not gone since the walk: nothing would be known of it."""
        places = [h.path(group.path) for h in self.sight.view.hierarchies if h.name in group.hierarchies]
        return any(os.path.isdir(place) or len(place) > LONGEST_PATH for place in places)

    def _limit(self, key: str, group: Group | Guest) -> Limit | None:
        reader = self.sight.reader
        for hierarchy in self.sight.view.hierarchies:
            if hierarchy.name in group.hierarchies:
                for candidate in reader.keys(hierarchy, group.path):
                    if candidate.name == key and (found := reader.limit(hierarchy, candidate, group.path)):
                        return found
        return None

    def _part(self, resource: str, group: Group | Guest) -> Part:
        if resource == "cpu":
            return self._cpu(group)
        if self._is_hosts_root(group):
            return Part(MAX, self.machine[resource], "", self._hosts_use(resource))
        found, most = self._limit(f"{resource}.max", group), self.machine[resource]
        if found is None or not isinstance(found.limit, int) or not isinstance(found.effective, int):
            return Part(MAX, most, "", None)
        if found.effective == MAX or found.effective > most:
            return Part(found.limit, most, "", found.usage)
        return Part(found.limit, found.effective, str(found.binds), found.usage)

    def _cpu(self, group: Group | Guest) -> Part:
        """A group has the CPUs of its set, and of these as much time as its quota allows."""
        most = Part(MAX, self.machine["cpu"], "", self.rates.rates.get(group.path))
        if self._is_hosts_root(group):
            return most
        quota, cpus = self._limit("cpu.max", group), self._limit("cpuset.cpus", group)
        found = [quota] if quota else []
        for limit in [*found, *([cpus] if cpus else [])]:
            own, given = limit.limit, limit.effective
            if isinstance(given, frozenset):
                own = given = len(given) * PERIOD if given else MAX
                own = own if limit.binds == group.path else MAX
            if isinstance(own, int) and own != MAX and (most.own == MAX or own < most.own):
                most.own = own
            if isinstance(given, int) and given not in (MAX, 0) and given < most.given:
                most.given, most.binds = given, str(limit.binds)
        return most

    def _is_hosts_root(self, group: Group | Guest) -> bool:
        """The root of a hierarchy has no limits, counts little, and has not the files of other groups."""
        return group.path == "/" and self.sight.view.level == 0

    def _hosts_use(self, resource: str) -> int:
        if resource == "memory":
            return max(0, self.machine["memory"] - meminfo("MemFree"))
        return int(read_text("/proc/loadavg").split()[3].partition("/")[2])

    def _figures(self, parts: dict[str, Part], path: str) -> list[tuple[str, str]]:
        found = []
        for resource, part in parts.items():
            used = used_of(resource, part)
            given = amount(resource, part.given)
            text = f"{used} of {given} ({percent(part.fill or 0.0)})" if used else given
            found.append((resource, f"{text}; {self._who_binds(resource, part, path)}"))
        if path in self.rates.times:
            found.append(("CPU time", span(self.rates.times[path])))
        return found

    def _who_binds(self, resource: str, part: Part, path: str) -> str:
        own = "no limit of its own" if part.own == MAX else f"limit {amount(resource, part.own)}"
        if part.binds == path:
            return own
        if path == "/" and not part.binds:
            return "all that the machine has"
        if not part.binds:
            return own if part.own == MAX else f"{own}, the machine has less"
        return f"{own}, {escape(self.sight.names.get(part.binds, part.binds))} binds"


def _without_holders(boxes: list[Box]) -> Iterable[Box]:
    """*boxes*, those below in place of groups that hold guests and nothing else, and have no limit."""
    for box in boxes:
        box.below = list(_without_holders(box.below))
        holds = box.kind == "group" and box.below and all(inner.kind == "guest" for inner in box.below)
        if holds and box.part.own == MAX:
            yield from box.below
        else:
            yield box
