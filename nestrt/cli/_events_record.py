"""Events that are kept in files, and those that the broker's audit has.

Kept are the fields of an event, with "at" for its time, and "time" for when the line was written: as the audit's are,
by outermost guest, so that what one guest does pushes out no other's.
"""

from __future__ import annotations

from nestrt.broker.audit_line import audit_directory
from nestrt.broker.audit_read import Entry, Reader
from nestrt.broker.audit_read import Follower as LineFollower
from nestrt.broker.lines import Lines
from nestrt.cli._formats import encode
from nestrt.errors import InputError, NotFound
from nestrt.host.event import Event, Guests, from_row

DIRECTORY = "/var/log/nestrt/events"
LONGEST = 60000  # bytes of a line
MOST_EVENTS = 100_000  # read of them
LATE = 60.0  # s; a line is written at most so much after what it tells of


class Recorder:
    """Writes events down in *directory*. Raises HostError, KernelError where it cannot be made."""

    def __init__(self, directory: str) -> None:
        if not directory.startswith("/"):
            raise InputError("record events in", directory, "it is no absolute path", "write NAME before --record")
        self._lines = Lines(directory, "events", "--record DIR")

    def write(self, event: Event) -> None:
        """Write down one. What cannot be written is counted, and told in the next line."""
        row = event.row()
        row["at"] = row.pop("time")
        body = encode(row)
        if len(body) > LONGEST:
            body = encode({**row, "group": None, "binds": None, "detail": None})
        self._lines.write(event.name.partition("/")[0], body[1:-1])

    def close(self) -> None:
        """End."""
        self._lines.close()


def recorded(directory: str, since: float, until: float) -> list[Event]:
    """The events kept in *directory*, by when they were written; [] where there are none. Raises KernelError."""
    found = []
    try:
        for entry in Reader(directory).read(None, since, until + LATE, MOST_EVENTS):
            event = from_row({**entry, "time": entry.get("at")})
            if event is not None and since <= event.time < until:
                found.append(event)
    except NotFound:
        pass
    return found


def _changed(entry: Entry, guests: Guests) -> Event | None:
    """A line of the audit as an event."""
    name, group, verdict = (entry.get(key) for key in ("guest", "group", "verdict"))
    if not isinstance(name, str) or not isinstance(group, str):
        return None
    guest = guests.known.get(name) or next((one for one in guests.known.values() if one.name == name), None)
    root = guest.root if guest else ""
    peer = entry.get("peer")
    pid, uid = (peer.get(key) for key in ("pid", "uid")) if isinstance(peer, dict) else (None, None)
    done = verdict == "done"
    detail = f"{entry.get('method')} {entry.get('old')} → {entry.get('new')}"
    if not done:
        detail += f": {entry.get('message') or verdict}"
    return Event(
        time=_seconds(str(entry["time"])), kind="change" if done else "refused", name=guest.name if guest else name,
        level=guest.level if guest else -1, claim=guest.claim if guest else False,
        path=root + ("" if group == "/" else group), group=group, key=str(entry.get("key") or "") or None,
        count=1 + entry["repeated"] if type(entry.get("repeated")) is int else 1, detail=detail[:1000],
        pid=pid if type(pid) is int else None, uid=uid if type(uid) is int else None, source="audit",
    )  # fmt: skip


def _seconds(stamp: str) -> float:
    from datetime import datetime

    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return 0.0


def audited(guests: Guests, since: float, until: float) -> list[Event]:
    """What the audit has."""
    try:
        entries = list(Reader(audit_directory()).read(None, since, until, MOST_EVENTS))
    except NotFound:
        return []
    return [event for event in (_changed(entry, guests) for entry in entries) if event]


class AuditFollower:
    """The same, from now on."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests
        self._follower: LineFollower | None = None
        self.poll()

    def poll(self) -> list[Event]:
        """What has come since the last time."""
        try:
            if self._follower is None:
                self._follower = LineFollower(Reader(audit_directory()))
            entries = self._follower.poll()
        except NotFound:  # there is no audit yet
            return []
        return [event for event in (_changed(entry, self._guests) for entry in entries) if event]
