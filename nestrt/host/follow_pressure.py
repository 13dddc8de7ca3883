"""Pressure on guests: the kernel's triggers on their limit groups, which count all that is below.

A trigger says at most once in its window that there is pressure. As long as it lasts that is told every AGAIN seconds.
"""

from __future__ import annotations

import os
import select
import time

from nestrt.host.event import Known
from nestrt.host.follow_tree import Tree
from nestrt.host.pressure import Trigger, open_trigger
from nestrt.host.processes import read_text

# The kernel keeps a thread for each group with triggers (kernel/sched/psi.c, psimon).
MOST_GUESTS = 256
MOST_INSIDE = 8  # guests inside one guest, which may make as many as it likes
AGAIN = 10.0  # s


class _Open:
    __slots__ = ("count", "path", "place", "told", "trigger")

    def __init__(self, path: str, place: str, trigger: Trigger) -> None:
        self.path = path
        self.place = place
        self.trigger = trigger
        self.told = 0.0
        self.count = 0


class Pressure:
    """One descriptor for each guest and each of *triggers*, all in *epoll*: a trigger is asked by one only."""

    def __init__(self, tree: Tree, epoll: select.epoll, triggers: tuple[Trigger, ...]) -> None:
        self.tree = tree
        self.epoll = epoll
        self.triggers = triggers if "pressure" in tree.kinds else ()
        self._open: dict[int, _Open] = {}
        self._guests: dict[str, list[int]] = {}

    def open(self, guest: Known) -> None:
        """Have the kernel watch the pressure on *guest*."""
        if not self.triggers or not self.tree.wanted(guest):
            return
        top = self.tree.guests.top(guest.path)
        inside = sum(path.startswith(top + "/") for path in self._guests) if top != guest.path else 0
        if len(self._guests) >= MOST_GUESTS or inside >= MOST_INSIDE:
            return
        found = self._guests.setdefault(guest.path, [])
        for hierarchy in self.tree.hierarchies:
            place = hierarchy.path(guest.path)
            for trigger in self.triggers:
                # v1's levels are for where there is no PSI.
                if (hierarchy.version == 2) == bool(trigger.window):
                    try:
                        descriptor, events = open_trigger(place, trigger)
                    except OSError:  # not in this hierarchy, or not in this kernel
                        continue
                    self.epoll.register(descriptor, events)
                    self._open[descriptor] = _Open(guest.path, place, trigger)
                    found.append(descriptor)

    def close(self, guest: Known) -> None:
        """The guest has gone."""
        for descriptor in self._guests.pop(guest.path, ()):
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        if self._open.pop(descriptor, None):
            self.epoll.unregister(descriptor)
            os.close(descriptor)

    def close_all(self) -> None:
        """Watch none any more."""
        for descriptor in list(self._open):
            self._close(descriptor)
        self._guests.clear()

    def ready(self, descriptors: set[int]) -> None:
        """Tell what the triggers among *descriptors* say."""
        for descriptor in descriptors & self._open.keys():
            one = self._open[descriptor]
            if not one.trigger.window:
                try:
                    os.eventfd_read(descriptor)
                except BlockingIOError:
                    continue
            try:
                text = read_text(f"{one.place}/{one.trigger.file}") if one.trigger.window else ""
            except OSError:  # the group has gone: the kernel would say so for ever
                self._close(descriptor)
                continue
            one.count += 1
            now = time.monotonic()
            if now - one.told < AGAIN:
                continue
            kind = one.trigger.text.split()[0]
            row = next((row for row in text.splitlines() if row.startswith(kind + " ")), one.trigger.text)
            resource = one.trigger.file.partition(".")[0]
            detail = row.partition(" total=")[0]
            self.tree.report("pressure", one.path, time.time(), key=resource, count=one.count, detail=detail)
            one.told = now
            one.count = 0
