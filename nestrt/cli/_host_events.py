"""``nestrt events``, the host's form: what happens to all guests at all levels, and what has happened."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time

from nestrt.cli._events_out import Out, Texts
from nestrt.cli._events_record import DIRECTORY, Recorder, audited, recorded
from nestrt.cli._formats import add_options, write_text
from nestrt.cli.audit import moment
from nestrt.errors import HostError, InputError, NotFound
from nestrt.host.event import KINDS, USUAL, Event, Known
from nestrt.host.history import guests_of, kills, merge, starts
from nestrt.host.pressure import LONGEST_WINDOW, SHORTEST_WINDOW, Trigger
from nestrt.host.short import may_be_short, pick, split, whole_name
from nestrt.host.walk import walk, walk_to
from nestrt.level.values import suggestion
from nestrt.probe.facts import read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from nestrt.plan.facts import Hierarchy

RECENT = 86400.0  # s
USUAL_PRESSURE = "10%/2s"
OF_EVENTS = ("follow", "since", "until", "kinds", "record")
UNITS = {"ms": 1000, "s": 1_000_000}
PRESSURE = re.compile(r"(?:(memory|io|cpu):)?([0-9]{1,3}(?:\.[0-9]{1,3})?)%/([0-9]{1,5})(ms|s)")
EPILOG = """
Without --follow: what the kernel still knows. Its log has the out-of-memory kills, as far back as it goes, and
marks of guests that are there have their starts; `nestrt events --follow --record` writes down everything, and is read
where it has. Without --since that is the last day; with --follow nothing that has been.

TIME is 10m, 2h or 3d ago, or like 2026-11-30T12:00, 2026-11-30T12:00:00Z or 12:00. A NAME stands for the guest and
those inside it; it may be one that is still to come, by its whole name. KINDS are, with commas between, some of:
{kinds}.
Usual are all but change and refused, which are `nestrt audit`'s. PRESSURE is the share of a window in which processes
waited, as 10%/2s, of memory and I/O, or memory:5%/1s,io:20%/2s,cpu:50%/10s; the window is 500ms to 10s.
"""


class _Ended(Exception):
    """A signal asked for the end."""


def main(argv: list[str]) -> int:
    """Carry out ``nestrt events ARGV``. Returns 0; raises InputError, NotFound, HostError, KernelError."""
    options = _options(argv)
    kinds = _kinds(options.kinds)
    triggers = _triggers(options.pressure)
    now = time.time()
    since, until = (moment(text, now) if text else None for text in (options.since, options.until))
    if options.record is not None and not options.follow:
        raise InputError("use", "--record without --follow", "what has been is known", "add --follow")
    given = next((flag for flag in OF_EVENTS if getattr(options, flag) not in (None, False)), None)
    if options.totals and given:
        raise InputError("use", f"--totals with --{given}", "it counts, and shows no event", "leave one of them out")
    hierarchies = read_hierarchies()
    if not hierarchies:
        raise HostError("watch", "the groups of this machine", "no cgroup hierarchy is mounted", "mount one")
    if os.geteuid() != 0:
        print("nestrt: marks and the kernel's log are for root to read: run it as root to see more", file=sys.stderr)
    options.names = [_whole(name, options, hierarchies) for name in options.names]
    if options.totals:
        if nobody := next((name for name in options.names if not _known([name], hierarchies)), ""):
            raise NotFound("count for", f"guest {nobody}", "there is none", "nestrt ls shows all guests")
        from nestrt.cli._events_totals import totals

        return totals(options, hierarchies, lambda name, path: _is_named(options.names, name, path))
    texts = Texts(options)
    if options.follow:
        return _follow(options, texts, hierarchies, kinds, triggers, since, until)
    since = now - RECENT if since is None else since
    found = _history(options, hierarchies, kinds, since, now if until is None else until)
    if not found and options.names and not _known(options.names, hierarchies):
        raise NotFound("watch", f"guest {options.names[0]}", "there is none, and nothing is known of one", "nestrt ls")
    return write_text(texts.of(event).decode(sys.stdout.encoding or "utf-8") for event in found)


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="nestrt events",
        description="Show what happens to guests: memory that runs out, limits that are hit, groups and guests that "
        "come and go, freezes, pressure. With the id of a container of this runtime: its statistics.",
        epilog=EPILOG.format(kinds=", ".join(KINDS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="these guests only, with their guests")
    parser.add_argument("-f", "--follow", action="store_true", help="what happens from now on, until it is stopped")
    parser.add_argument("--since", metavar="TIME", help="also what has happened since then")
    parser.add_argument("--until", metavar="TIME", help="only what happens before")
    parser.add_argument("--kinds", metavar="KINDS", help="these kinds of events only")
    parser.add_argument("--pressure", metavar="PRESSURE", default=USUAL_PRESSURE, help="how much is told (10%%/2s)")
    parser.add_argument("--totals", action="store_true", help="no events: how often what has happened so far")
    parser.add_argument(
        "--record", metavar="DIR", nargs="?", const=DIRECTORY, help=f"write all down as well (default: {DIRECTORY})"
    )
    parser.add_argument("--directory", metavar="DIR", default=DIRECTORY, help="where such files are to be read")
    add_options(parser, ("text", "json", "yaml", "csv"), "text")
    return parser.parse_args(argv)


def _kinds(text: str | None) -> frozenset[str]:
    if text is None:
        return USUAL
    found = frozenset(filter(None, text.split(",")))
    for kind in sorted(found - set(KINDS)):
        raise InputError("use", f"--kinds {kind[:60]}", "there is no such kind", suggestion(kind, tuple(KINDS)))
    if not found:
        raise InputError("use", "--kinds without a kind", "nothing is left", f"there are {', '.join(KINDS)}")
    return found


def _triggers(text: str) -> tuple[Trigger, ...]:
    """PSI's triggers, or a level of v1's where this kernel has no PSI."""
    if not os.path.exists("/proc/pressure"):
        return (Trigger("memory.pressure_level", "medium"),)
    found = []
    for part in text.split(","):
        match = PRESSURE.fullmatch(part)
        window = int(match[3]) * UNITS[match[4]] if match else 0
        stall = int(float(match[2]) / 100 * window) if match else 0
        if match is None or not SHORTEST_WINDOW <= window <= LONGEST_WINDOW or not 0 < stall <= window:
            remedy = "write 10%/2s, or memory:5%/1s,io:20%/2s; the window is 500ms to 10s"
            raise InputError("use", f"--pressure {part[:60]}", "it is no share of such a window", remedy)
        for resource in (match[1],) if match[1] else ("memory", "io"):
            found.append(Trigger(f"{resource}.pressure", f"some {stall} {window}", stall, window))
    return tuple(found)


def _is_named(names: list[str], name: str, path: str) -> bool:
    """Whether a guest, or a group of it at *path*, is one of *names*, or inside one."""
    return not names or any(
        one in (name, path) or name.startswith(one + "/") or (one[0:1] == "/" and path.startswith(one + "/"))
        for one in names
    )


def _whole(name: str, options: argparse.Namespace, hierarchies: tuple[Hierarchy, ...]) -> str:
    """*name* with whole ids for their beginnings: of guests that are there, or of ended ones, where the past is asked
    for. Raises InputError."""
    if not may_be_short(name):
        return name
    guests = walk_to(hierarchies, [name]).guests
    word, rest = split(name)
    found = pick(word, [guest.name for guest in guests if not guest.claim])
    if found is None and (options.since or not options.follow):
        found = pick(word, {event.name for event in recorded(options.directory, 0.0, time.time()) if not event.claim})
    return whole_name((found or word) + rest, guests)


def _leads(names: list[str], guest: Known) -> bool:
    """Whether *guest* is named, or has to be looked into for one that is."""
    inner = any(one.startswith((guest.name + "/", guest.path + "/")) for one in names)
    return inner or _is_named(names, guest.name, guest.path)


def _keeps(options: argparse.Namespace, kinds: frozenset[str], event: Event) -> bool:
    if event.kind == "lost" and not event.name:
        return True
    return event.kind in kinds | {"lost"} and _is_named(options.names, event.name, event.path)


def _known(names: list[str], hierarchies: tuple[Hierarchy, ...]) -> bool:
    return any(_is_named(names, guest.name, guest.path) for guest in walk(hierarchies).everyone())


def _history(
    options: argparse.Namespace, hierarchies: tuple[Hierarchy, ...], kinds: frozenset[str], since: float, until: float
) -> list[Event]:
    """What is known to have happened from *since* until before *until*, by time."""
    guests = guests_of(walk(hierarchies))
    known = kills(guests, since, until) + starts(guests, since, until)
    found = merge(recorded(options.directory, since, until), known)
    if kinds - USUAL:
        found = sorted(found + audited(guests, since, until), key=lambda event: event.time)
    return [event for event in found if _keeps(options, kinds, event)]


def _follow(
    options: argparse.Namespace,
    texts: Texts,
    hierarchies: tuple[Hierarchy, ...],
    kinds: frozenset[str],
    triggers: tuple[Trigger, ...],
    since: float | None,
    until: float | None,
) -> int:
    from nestrt.cli._events_record import AuditFollower
    from nestrt.host.follow import Follower

    recorder = Recorder(options.record) if options.record is not None else None
    began = time.time()
    try:
        follower = Follower(hierarchies, kinds, triggers, lambda guest: _leads(options.names, guest))
    except OSError as error:
        remedy = "more: sysctl fs.inotify.max_user_instances, ulimit -n"
        raise HostError("watch", "the groups of this machine", error.strerror or "it failed", remedy) from error
    audit = AuditFollower(follower.guests) if kinds - USUAL else None
    out = Out(texts)
    out.attach(follower.epoll)
    _until_signal()
    try:
        if since is not None:
            for event in _history(options, hierarchies, kinds, since, began if until is None else min(began, until)):
                out.put(event)
        while until is None or time.time() < until:
            out.flush()
            left = max(until - time.time(), 0.0) if until is not None else None
            events = follower.step(min(1.0, left or 1.0) if audit else left)
            for event in events + (audit.poll() if audit else []):
                if _keeps(options, kinds, event):
                    if recorder:
                        recorder.write(event)
                    out.put(event)
        out.flush()
    except _Ended:
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        if recorder:
            recorder.close()
        follower.close()
    return 0


def _until_signal() -> None:
    def end(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_IGN)
        raise _Ended

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
