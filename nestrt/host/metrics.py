"""Guests in the OpenMetrics text format, which Prometheus reads; and in its older one, text 0.0.4.

A limit that is not set is +Inf, so that usage/limit is a number; what no hierarchy of this host counts, or is not
known, has no sample. A guest has in it what its guests use: sums are for guests of one level. Labels hold names as
people are shown them, with control characters and what is not UTF-8 as ``\\x1b`` (marks.escape()), so that two names
are never one. No two guests have one label: of guests that claim one name, all but this level's own are called by the
path of their limit group. Sources: OpenMetrics 1.0.0; prometheus.io, Metric and label naming, Exposition formats.
"""

from __future__ import annotations

import os
import time

from nestrt.host.counters import CounterReader, Counters
from nestrt.host.marks import escape
from nestrt.host.metrics_share import share
from nestrt.host.sample import inside
from nestrt.host.sight import Sight, count_groups
from nestrt.host.walk import Group, Guest
from nestrt.level.units import MAX, PERIOD
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from nestrt.plan.facts import Hierarchy

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
MOST_GUESTS, MOST_GROUPS = 10_000, 10_000
LONGEST_LABEL = 1024  # characters
SUMS = 0.05  # of the time is for sums over the groups below groups, which v1 does not make
STATES = ("creating", "running", "paused", "stopped")


@record
class Family:
    """A metric: *name* without the prefix and without _total, *kind* (counter, gauge, info, stateset), *unit*, *help*.

    *source* is a field of Counters, or a limit's key with *effective* or without; "" where code knows.
    """

    name: str
    kind: str
    unit: str
    help: str
    source: str = ""
    effective: bool = False


PRESSURE = Family(
    "pressure_seconds", "counter", "seconds", "Time in which some, or all (full), of its processes waited.", "pressure"
)
INFO = Family("", "info", "", "Its limit group, and what its mark says: claim is true where a guest or a user said it.")
STATE = Family("state", "stateset", "", "What it is doing.")
GUEST_ONLY = (
    INFO,
    STATE,
    Family("start_time_seconds", "gauge", "seconds", "When it was created, in seconds since 1970, as its mark says."),
    Family("groups", "gauge", "", "Groups below its limit group, at all levels."),
    Family("unread_groups", "gauge", "", "Groups of it that could not be looked into."),
    Family("cpu_user_seconds", "counter", "seconds", "CPU time used in user mode.", "user_usec"),
    Family("cpu_system_seconds", "counter", "seconds", "CPU time used in the kernel.", "system_usec"),
    Family("cpu_periods", "counter", "", "Periods of its CPU quota.", "periods"),
    Family("cpu_throttled_periods", "counter", "", "Periods in which its CPU quota was used up.", "throttled_periods"),
    Family("memory_peak_bytes", "gauge", "bytes", "The most memory that it has used.", "memory_peak"),
    Family("memory_cache_bytes", "gauge", "bytes", "Page cache in its memory.", "cache"),
    Family("memory_limit_hits", "counter", "", "How often a memory limit was reached.", "memory_limit_hits"),
    Family("pids_limit_hits", "counter", "", "How often the limit of processes was reached.", "pids_limit_hits"),
    PRESSURE,
)
BOTH = (
    Family("cpu_seconds", "counter", "seconds", "CPU time used.", "cpu_usec"),
    Family("cpu_throttled_seconds", "counter", "seconds", "Time that its CPU quota made it wait.", "throttled_usec"),
    Family("cpu_limit_cores", "gauge", "cores", "Its CPU quota, in CPUs.", "cpu.max"),
    Family("cpu_effective_limit_cores", "gauge", "cores", "The CPU quota that works, in CPUs.", "cpu.max", True),
    Family("memory_usage_bytes", "gauge", "bytes", "Memory used, page cache included.", "memory"),
    Family("memory_swap_bytes", "gauge", "bytes", "Swap used.", "swap"),
    Family("memory_limit_bytes", "gauge", "bytes", "Its memory limit.", "memory.max"),
    Family("memory_effective_limit_bytes", "gauge", "bytes", "The memory limit that works.", "memory.max", True),
    Family("oom_kills", "counter", "", "Processes that the out-of-memory killer has ended.", "oom_kills"),
    Family("pids", "gauge", "", "Processes and threads.", "pids"),
    Family("pids_limit", "gauge", "", "Its limit of processes and threads.", "pids.max"),
    Family("pids_effective_limit", "gauge", "", "The limit of processes and threads that works.", "pids.max", True),
    Family("io_read_bytes", "counter", "bytes", "Read from disks.", "io_read_bytes"),
    Family("io_written_bytes", "counter", "bytes", "Written to disks.", "io_write_bytes"),
    Family("io_reads", "counter", "", "Read operations.", "io_reads"),
    Family("io_writes", "counter", "", "Write operations.", "io_writes"),
    Family("frozen", "gauge", "", "1 where all its processes are stopped.", "frozen"),
)
OWN = (
    Family("guests", "gauge", "", "Guests that have samples here."),
    Family("guests_left_out", "gauge", "", "Guests that have none: too many, or names that are too long."),
    Family("groups", "gauge", "", "Groups that have samples here."),
    Family("groups_left_out", "gauge", "", "Groups of guests that have none though groups are shown."),
    Family("unread_groups", "gauge", "", "Groups that could not be looked into."),
    Family("duration_seconds", "gauge", "seconds", "How long it took to collect this."),
)
LIMITS = ("cpu.max", "memory.max", "pids.max")
GROUP_FIELDS = frozenset(family.source for family in BOTH if "." not in family.source)

NOTHING = Counters()

Lines = list[str]


def escape_value(text: str) -> str:
    r"""*text* between the quotes of a label: OpenMetrics escapes ``\``, ``"`` and the line's end."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def label(name: str, value: str) -> str:
    """``name="value"`` of what anybody may have written."""
    return f'{name}="{escape_value(escape(value))}"'


def seconds(microseconds: float) -> str:
    """µs as seconds, without an exponent."""
    return f"{int(microseconds) // 1_000_000}.{int(microseconds) % 1_000_000:06}"


class Collector:
    """Takes pictures of *guests*, and of their groups; keeps files open between two. For one thread at a time."""

    def __init__(
        self, hierarchies: tuple[Hierarchy, ...], groups: bool, most_guests: int = MOST_GUESTS, most: int = MOST_GROUPS
    ) -> None:
        self.groups = groups
        self.most_guests = most_guests
        self.most_groups = most
        self.of_guests = CounterReader(hierarchies, descriptors=0.4 if groups else 1.0)
        self.of_groups = CounterReader(hierarchies, GROUP_FIELDS, SUMS, 0.6) if groups else None

    def close(self) -> None:
        """Close all files."""
        self.of_guests.close()
        if self.of_groups:
            self.of_groups.close()

    def picture(self, sight: Sight, guests: list[Guest], began: float) -> Picture:
        """What there is to say of *guests*; *began* is when looking at them began (monotonic, s)."""
        picture = Picture(self.groups)
        tops = _tops(sight, guests)
        fit = [guest for guest in guests if max(len(escape(guest.name)), len(escape(guest.path))) <= LONGEST_LABEL]
        chosen = share(fit, [tops[guest.path] for guest in fit], [guest.level for guest in fit], self.most_guests)
        labels = _labels(fit, chosen)
        gone = set()
        for guest in chosen:
            counters = self.of_guests.read(guest.path, guest.hierarchies)
            if counters == NOTHING and not _is_there(sight, guest):
                gone.add(guest.path)
            else:
                picture.guest(sight, guest, labels[guest.path], counters)
        picture.gone = len(gone)
        if gone:
            guests = [guest for guest in guests if guest.path not in gone]
            chosen = [guest for guest in chosen if guest.path not in gone]
        shown = left = 0
        if self.of_groups:
            pairs = [(guest, group) for guest in chosen for group in guest.groups]
            fit_pairs = [pair for pair in pairs if len(_group_label(*pair)) <= LONGEST_LABEL]
            depths = [group.path.count("/") for _, group in fit_pairs]
            kept = share(fit_pairs, [tops[guest.path] for guest, _ in fit_pairs], depths, self.most_groups)
            for guest, group in kept:
                labels_of = f"{labels[guest.path]},{label('group', inside(guest, group.path))}"
                counters = self.of_groups.read(group.path, group.hierarchies)
                if counters == NOTHING:  # it is gone, or no hierarchy counts anything here
                    continue
                picture.counted("nestrt_group_", BOTH, labels_of, counters)
                picture.limits("nestrt_group_", sight, group.path, group.hierarchies, labels_of)
            shown, left = len(kept), sum(len(guest.groups) for guest in guests) - len(kept)
            self.of_groups.keep({group.path for _, group in kept})
        self.of_guests.keep({guest.path for guest in chosen})
        unread = sum(len(guest.unread) for guest in guests)
        numbers = (len(chosen), len(guests) - len(chosen), shown, left, unread)
        for family, number in zip(OWN[:-1], numbers, strict=True):
            picture.add("nestrt_scrape_", family, "", str(number))
        picture.add("nestrt_scrape_", OWN[-1], "", f"{time.monotonic() - began:.6f}")
        return picture


def _group_label(guest: Guest, group: Group) -> str:
    return escape(inside(guest, group.path))


def _is_there(sight: Sight, guest: Guest) -> bool:
    return any(os.path.isdir(h.path(guest.path)) for h in sight.view.hierarchies if h.name in guest.hierarchies)


def _tops(sight: Sight, guests: list[Guest]) -> dict[str, str]:
    """By the path of each guest: that of the outermost guest around it, whose share of the samples it has."""
    found = {inner.path: top.path for top in sight.view.guests for inner in top.everyone()}
    return {guest.path: found.get(guest.path, guest.path) for guest in guests}


def _labels(guests: list[Guest], chosen: list[Guest]) -> dict[str, str]:
    """The labels that say which guest it is, by its path."""
    taken: dict[str, list[Guest]] = {}
    for guest in guests:
        taken.setdefault(guest.name, []).append(guest)
    labels = {}
    for guest in chosen:
        same = taken[guest.name]
        own = [each for each in same if not each.claim] or same
        name = guest.name if same == [guest] or own == [guest] else guest.path
        # A name is escaped already where it is not one of nestrt's own.
        text = escape_value(name) if name is guest.name else escape_value(escape(name))
        labels[guest.path] = f'guest="{text}",level="{guest.level}"'
    return labels


class Picture:
    """Samples by metric. *groups*: those of groups are asked for. *gone*: guests that had gone since they were seen."""

    def __init__(self, groups: bool) -> None:
        self.gone = 0
        self.families: dict[tuple[str, str], tuple[Family, Lines]] = {}
        for prefix, families in (
            ("nestrt_guest_", GUEST_ONLY + BOTH),
            ("nestrt_group_", BOTH if groups else ()),
            ("nestrt_scrape_", OWN),
        ):
            for family in families:
                self.families[prefix, family.name] = family, []

    def add(self, prefix: str, family: Family, labels: str, value: str) -> None:
        suffix = {"counter": "_total", "info": "info"}.get(family.kind, "")
        braces = f"{{{labels}}}" if labels else ""
        self.families[prefix, family.name][1].append(f"{prefix}{family.name}{suffix}{braces} {value}\n")

    def guest(self, sight: Sight, guest: Guest, labels: str, counters: Counters) -> None:
        mark, prefix = guest.mark, "nestrt_guest_"
        words = {"path": guest.path, "id": mark.id, "runtime": mark.runtime, "engine": mark.engine}
        words["claim"] = "true" if guest.claim else "false"
        self.add(prefix, INFO, ",".join([labels, *(label(name, word) for name, word in words.items())]), "1")
        state = _state(sight, guest, counters)
        for each in STATES:
            self.add(prefix, STATE, f'{labels},nestrt_guest_state="{each}"', "1" if each == state else "0")
        known = (mark.created if mark.created >= 0 else None, count_groups(guest), len(guest.unread))
        for family, number in zip(GUEST_ONLY[2:5], known, strict=True):
            if number is not None:
                self.add(prefix, family, labels, str(number))
        self.counted(prefix, GUEST_ONLY + BOTH, labels, counters)
        for resource, figures in (counters.pressure or {}).items():
            for kind in ("some", "full"):
                which = f'{labels},resource="{resource}",kind="{kind}"'
                self.add(prefix, PRESSURE, which, seconds(figures[f"{kind}_total_usec"]))
        self.limits(prefix, sight, guest.path, guest.hierarchies, labels)

    def counted(self, prefix: str, families: tuple[Family, ...], labels: str, counters: Counters) -> None:
        values = counters.__dict__
        for family in families:
            value = values.get(family.source)
            if value is not None and family is not PRESSURE:
                self.add(prefix, family, labels, seconds(value) if family.unit == "seconds" else str(int(value)))

    def limits(self, prefix: str, sight: Sight, path: str, names: tuple[str, ...], labels: str) -> None:
        found = {}
        for hierarchy in sight.view.hierarchies:
            if hierarchy.name in names:
                for key in sight.reader.keys(hierarchy, path):
                    if key.name in LIMITS and key.name not in found:
                        own, works = sight.reader.pair(hierarchy, key, path)
                        if own is not None and works is not None:
                            found[key.name] = own, works[0]
        for family in BOTH:
            if family.source in found:
                value = found[family.source][family.effective]
                if isinstance(value, int):
                    text = str(value / PERIOD) if family.unit == "cores" else str(value)
                    self.add(prefix, family, labels, "+Inf" if value == MAX else text)

    def text(self, openmetrics: bool = True) -> Iterator[str]:
        """The exposition: a piece for each metric."""
        for (prefix, _), (family, lines) in self.families.items():
            if not lines:
                continue
            name, kind = (prefix + family.name).rstrip("_"), family.kind
            if not openmetrics:
                name += {"counter": "_total", "info": "_info"}.get(kind, "")
                kind = "counter" if kind == "counter" else "gauge"
            unit = f"# UNIT {name} {family.unit}\n" if openmetrics and family.unit else ""
            yield f"# TYPE {name} {kind}\n{unit}# HELP {name} {family.help}\n" + "".join(lines)
        if openmetrics:
            yield "# EOF\n"


def _state(sight: Sight, guest: Guest, counters: Counters) -> str:
    """As Sight.state() has it, from the counters where they tell."""
    alive = counters.pids and counters.populated
    if alive and (guest.mark.state != "creating" or guest.claim) and counters.frozen is not None:
        return "paused" if counters.frozen else "running"
    return sight.state(guest)


def exposition(sight: Sight, guests: list[Guest], groups: bool) -> Iterator[str]:
    """OpenMetrics text of *guests*, and of their groups where *groups*, in pieces of whole lines."""
    began = time.monotonic()
    collector = Collector(sight.view.hierarchies, groups)
    try:
        picture = collector.picture(sight, guests, began)
    finally:
        collector.close()
    return picture.text()
