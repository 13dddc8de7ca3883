"""What the kernel still knows of what has happened: its log, and the marks of guests that are there.

No store is kept for it. The log is a ring, of some hundred KiB (log_buf_len): what has been overwritten is not told.
"""

from __future__ import annotations

import time
from collections import deque

from nestrt.host.event import Event, Guests, Known
from nestrt.host.follow_oom import kill_event, sees_paths
from nestrt.host.kill_log import parse_kill
from nestrt.host.walk import View, is_host_root
from nestrt.kernel import kmsg

MOST_EVENTS = 100_000
RECORDS = 4096  # read at once
SAME = 2.0  # s: times of two sources that may be of one event differ by less; marks have whole seconds


def guests_of(view: View) -> Guests:
    """The guests that a walk has found."""
    guests = Guests(view.level, is_host_root())
    for guest in view.everyone():
        guests.known[guest.path] = Known(guest.name, guest.path, guest.root, guest.level, guest.claim, guest.mark)
    return guests


def kills(guests: Guests, since: float, until: float) -> list[Event]:
    """The out-of-memory kills in guests that are in the kernel's log, in its order; [] where we may not read it."""
    found: deque[Event] = deque(maxlen=MOST_EVENTS)
    if not sees_paths():
        return []
    try:
        descriptor = kmsg.open()
    except OSError:
        return []
    boot = kmsg.boot()
    now = int(time.monotonic() * 1e6)
    try:
        while messages := kmsg.read(descriptor, RECORDS)[0]:
            for message in messages:
                kill = parse_kill(message.text) if message.facility == kmsg.KERNEL else None
                at = boot + message.microseconds / 1e6
                event = kill_event(kill, guests, at) if kill and since <= at < until else None
                if event:
                    found.append(event)
            if messages[-1].microseconds > now:  # whoever writes faster than we read does not keep us here
                break
    finally:
        kmsg.close(descriptor)
    return list(found)


def starts(guests: Guests, since: float, until: float) -> list[Event]:
    """When the guests that are there were started, as their marks say."""
    found = []
    for guest in guests.known.values():
        at = float(guest.mark.created)
        if guest.mark.created >= 0 and since <= at < until:
            found.append(guests.event("started", guest.path, guest, at, detail=guest.started(), source="mark"))
    return found


def merge(recorded: list[Event], known: list[Event]) -> list[Event]:
    """All of them by time, those of *known* that have been recorded once."""
    marks: dict[tuple[str, str, int | None], list[float]] = {}
    for event in recorded:
        marks.setdefault((event.kind, event.path, event.pid), []).append(event.time)
    fresh = [
        event
        for event in known
        if not any(abs(at - event.time) < SAME for at in marks.get((event.kind, event.path, event.pid), ()))
    ]
    return sorted(recorded + fresh, key=lambda event: event.time)
