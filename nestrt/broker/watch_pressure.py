"""The pressure on one guest's groups that somebody wants to be told of: PSI's triggers, and v1's levels."""

from __future__ import annotations

import os
import select
from typing import Any, Callable

from nestrt.broker.refusal import Refusal
from nestrt.broker.served import Served
from nestrt.broker.watch_descriptors import Descriptors
from nestrt.broker.watch_tree import full, no_room
from nestrt.guest import client
from nestrt.host.pressure import Trigger, open_trigger

MOST_TRIGGERS = 64  # descriptors of one guest


def is_gone(descriptor: int) -> bool:
    """Whether the kernel takes no more part in a trigger of PSI's: its group was removed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLPRI)
    return any(events & select.POLLERR for _, events in poll.poll(0))


class Triggers:
    """One descriptor for each group and trigger. *report* is GuestWatch.report()."""

    def __init__(self, guest: Served, descriptors: Descriptors, report: Callable[..., None]) -> None:
        self._guest = guest
        self._descriptors = descriptors
        self._report = report
        self._open: dict[tuple[str, Trigger], int] = {}

    def open(self, name: str, trigger: Trigger) -> None:
        """Have the kernel watch the pressure on group *name*. Raises Refusal, OSError."""
        if (name, trigger) in self._open:
            return
        if len(self._open) >= MOST_TRIGGERS:
            raise full(f"the pressure on {MOST_TRIGGERS} of its groups is watched", "ask for fewer")
        place = self._place(name, trigger)
        if place is None:
            reason = f"group {name} has no {trigger.file}"
            raise Refusal("NotPossible", f"cannot watch the pressure: {reason}", "see which pressure files it has")
        try:
            descriptor, events = open_trigger(place, trigger)
        except OSError as error:
            if room := no_room(error):
                raise room from None
            reason = f"the kernel does not take {trigger.text!r} for {trigger.file} of group {name} ({error.strerror})"
            remedy = "boot it with psi=1; another window; memory.pressure_level takes low, medium and critical"
            raise Refusal("NotPossible", f"cannot watch the pressure: {reason}", remedy, error.errno or 0) from None
        try:
            self._descriptors.add(descriptor, events, lambda: self._happened(name, trigger, descriptor))
        except OSError as error:
            os.close(descriptor)
            raise no_room(error) or error from None
        self._open[name, trigger] = descriptor

    def close(self, name: str, trigger: Trigger) -> None:
        """No longer; it is no error where it was not."""
        descriptor = self._open.pop((name, trigger), None)
        if descriptor is not None:
            self._descriptors.close(descriptor)

    def close_group(self, name: str) -> None:
        """A group has gone."""
        for key in [key for key in self._open if key[0] == name]:
            self.close(*key)

    def close_all(self) -> None:
        """The guest has gone, or nobody wants to know."""
        for key in list(self._open):
            self.close(*key)

    def _place(self, name: str, trigger: Trigger) -> str | None:
        """The directory of the group in the hierarchy that has the trigger's file."""
        for hierarchy in self._guest.open().view.hierarchies:
            if os.path.exists(f"{hierarchy.dir(name)}/{trigger.file}"):
                return hierarchy.dir(name)
        return None

    def _happened(self, name: str, trigger: Trigger, descriptor: int) -> None:
        try:
            place = self._place(name, trigger)
        except Refusal:  # the guest has ended
            place = None
        except OSError:  # there is no descriptor to look with; that something has happened is known
            place = None if is_gone(descriptor) else ""
        if place is None:  # the kernel would say so for ever
            self.close(name, trigger)
            return
        if not trigger.window:
            try:
                os.eventfd_read(descriptor)
            except BlockingIOError:
                return
            self._report("pressure", name, trigger.file, None, trigger.text, trigger=trigger)
            return
        kind = trigger.text.split()[0]
        rows = ((place and client.read(f"{place}/{trigger.file}")) or "").splitlines()
        row, _, total = next((row for row in rows if row.startswith(kind)), "").partition(" total=")
        found: dict[str, Any] = {"count": int(total) if total.isdigit() else None, "detail": row or trigger.text}
        self._report("pressure", name, trigger.file, **found, trigger=trigger)
