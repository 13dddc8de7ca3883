"""Following what happens to all guests: one epoll(7) of inotify(7), the kernel's log, eventfds and pressure.

What the kernel notifies costs nothing until it happens. Nobody tells of some counters of v1: these are read in turn,
MOST_ASKED a second. What guests can make this do is bounded: a guest whose groups or counters change more than FLOOD
times in a second is not watched for a while, longer each time, and looked over again then; the others lose nothing.
"""

from __future__ import annotations

import os
import select
import time

from nestrt.host.event import Event, Guests, Known
from nestrt.host.follow_around import GONE, MADE
from nestrt.host.follow_files import Files
from nestrt.host.follow_oom import Log, OomEvents
from nestrt.host.follow_place import Place
from nestrt.host.follow_pressure import Pressure
from nestrt.host.follow_tree import CONTROL, Tree
from nestrt.host.pressure import Trigger
from nestrt.host.walk import empty_view, is_host_root
from nestrt.kernel import inotify
from nestrt.plan.facts import Hierarchy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FLOOD = 2000  # notifications in a second
LONGEST_REST = 16.0  # s
CHUNKS = 2  # of some 500 notifications, before anything else is looked at
SETTLE = 0.01  # s; what the kernel tells of one cause comes this close together
PAUSE = 0.05  # s between two looks at files
SECOND = 1.0
IDLE = 4  # times as long as it took is the pause after everything was gone through
OVERFLOW = "the kernel's queue was full: groups that came and went meanwhile are not told"


class _Unit:
    """What one guest, or one part of the tree outside guests, has made us do."""

    __slots__ = ("arrived", "rest", "until")

    def __init__(self) -> None:
        self.arrived = 0
        self.rest = SECOND
        self.until = 0.0  # monotonic; it rests until then


class Follower:
    """Follows *kinds* of events in *hierarchies*, of the guests that *wanted* says, and pressure by *triggers*.

    What there is already is known after the initialiser, and is no event. Raises OSError (EMFILE: no inotify(7)).
    """

    def __init__(
        self,
        hierarchies: tuple[Hierarchy, ...],
        kinds: frozenset[str],
        triggers: tuple[Trigger, ...] = (),
        wanted: Callable[[Known], bool] = lambda guest: True,
    ) -> None:
        self.events: list[Event] = []
        self.epoll = select.epoll()
        level = empty_view(hierarchies).level
        self.guests = Guests(level, is_host_root())
        self.tree = Tree(hierarchies, self.guests, kinds, self.events.append, wanted)
        self.epoll.register(self.tree.inotify, select.EPOLLIN)
        self.log = Log()
        self.files = Files(self.tree, self.log)
        self.oom = OomEvents(self.tree, self.epoll, self.files)
        self.pressure = Pressure(self.tree, self.epoll, triggers)
        if self.log.descriptor >= 0:
            self.epoll.register(self.log.descriptor, select.EPOLLIN)
        self.tree.listens = self._listens
        self.tree.leaves = self._leaves
        self.tree.found = self.pressure.open
        self.tree.ended = self.pressure.close
        self._units: dict[str, _Unit] = {}
        self._again = 0.0  # monotonic: everything is gone through then
        self._took = 0.0
        self._looked = self._ticked = 0.0
        self._look_at = 0.0
        self.tree.quiet = True
        self._cover("")
        self.tree.quiet = False

    def close(self) -> None:
        """Let go of everything."""
        self.oom.close()
        self.files.close()
        self.pressure.close_all()
        self.log.close()
        os.close(self.tree.inotify)
        self.epoll.close()

    def _listens(self, place: Place) -> None:
        self.files.listen(place)
        self.oom.listen(place)

    def _leaves(self, place: Place) -> None:
        self.files.leave(place)
        self.oom.leave(place)

    # -- one round ------------------------------------------------------------------------------------------------

    def step(self, timeout: float | None) -> list[Event]:
        """Wait *timeout* s at the most (None: for ever) for anything; the events since the last time. Returns early
        where a descriptor that somebody else has registered with ``epoll`` is ready."""
        self._plan_look()
        ready = {descriptor for descriptor, _ in self.epoll.poll(self._wait(timeout), 64)}
        if self.tree.inotify in ready:
            self._notifications()
        if self.log.descriptor in ready:
            self.log.read(self.tree, self.files)
        self.oom.ready(ready)
        self.pressure.ready(ready)
        self._plan_look()
        now = time.monotonic()
        if self._look_at and now >= self._look_at:
            self._look(now)
        if now >= self._ticked + SECOND:
            self._tick(now)
        found = self.events[:]
        self.events.clear()
        return found

    def _plan_look(self) -> None:
        """Look soon, where there is something to look at: also at what the last look, or the last second, has left."""
        if not self._look_at and (self.files.dirty or self.oom.starved):
            self._look_at = max(time.monotonic() + SETTLE, self._looked + PAUSE)

    def _wait(self, timeout: float | None) -> float | None:
        now = time.monotonic()
        ends = [now + timeout] if timeout is not None else []
        if self._look_at:
            ends.append(self._look_at)
        asked = self.files.asked or self.files.later or self.tree.around.due
        if asked or self._units or self._again or not self.tree.v2:
            ends.append(self._ticked + SECOND)
        return max(0.0, min(ends) - now) if ends else None

    def _look(self, now: float) -> None:
        self._look_at = 0.0
        self._looked = now
        wall = time.time()
        self.log.read(self.tree, self.files)  # it names who was killed, the counters do not
        self.oom.look(wall)
        self.files.look(now, wall)

    def _tick(self, now: float) -> None:
        """Once a second, while there is anything to do then."""
        self._ticked = now
        self.files.tick(now)
        self.tree.around.look(time.time())
        if self._again and now >= self._again:
            self._again = 0.0
            self._cover("")
            self._again = 0.0
        for top, unit in list(self._units.items()):
            unit.arrived = 0
            if unit.until and now >= unit.until:
                unit.until = 0.0
                self._cover(top)
                unit.rest = min(unit.rest * 2, LONGEST_REST)
            elif not unit.until:
                unit.rest /= 2
                if unit.rest < SECOND:
                    del self._units[top]
        if not self.tree.v2:
            for guest in list(self.guests.known.values()):
                self.tree.lives.look(guest, time.time())

    def _cover(self, top: str) -> None:
        began = time.monotonic()
        self.tree.cover(top, time.time())
        for place in self.tree.below(top):
            self.files.listen(place)
        self._took = time.monotonic() - began

    # -- inotify --------------------------------------------------------------------------------------------------

    def _notifications(self) -> None:
        wall = time.time()
        for _ in range(CHUNKS):
            found = inotify.read(self.tree.inotify)
            if not found:
                return
            for number, mask, name in found:
                if mask & inotify.IN_Q_OVERFLOW:
                    self._overflowed(wall)
                elif number in self.tree.keys and not mask & inotify.IN_IGNORED:
                    self._notified(number, mask, name, wall)

    def _overflowed(self, wall: float) -> None:
        if not self._again:
            self._again = time.monotonic() + SECOND + self._took * IDLE
            self.events.append(Event(wall, "lost", detail=OVERFLOW, source="nestrt"))

    def _notified(self, number: int, mask: int, name: bytes, wall: float) -> None:
        place, file = self.tree.keys[number]
        path = place.path
        top = self.guests.top(path) or "/".join(path.split("/")[:3])
        unit = self._units.get(top)
        if unit is None:
            unit = self._units[top] = _Unit()
        unit.arrived += 1
        if unit.arrived > FLOOD or unit.until:
            if not unit.until:
                unit.until = time.monotonic() + unit.rest
                detail = f"groups or counters change too fast to follow; looked over again in {unit.rest:.0f} s"
                self.tree.report("lost", top, wall, detail=detail)
            self.tree.rest(number)
            return
        if file == CONTROL:
            for child in self._children(place.hierarchy.name, path):
                self.tree.files(self.tree.places[place.hierarchy.name, child], self.guests.of(child), wall)
        elif file:
            if file == "cgroup.events":
                self.tree.lives.stirred(place, wall)
            self.files.dirty[place.hierarchy.name, path, file] = None
        elif mask & inotify.IN_ISDIR:
            child = f"{path}/{os.fsdecode(name)}" if name else path
            if mask & MADE:
                self.tree.made(place.hierarchy, child, wall)
            elif mask & GONE:
                gone = self.tree.renamed if mask & inotify.IN_MOVED_FROM else self.tree.gone
                gone(place.hierarchy.name, child, wall)
            elif name:
                self.tree.marked(place.hierarchy, child, wall)

    def _children(self, hierarchy: str, path: str) -> list[str]:
        try:
            with os.scandir(self.tree.places[hierarchy, path].file("")) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (OSError, KeyError):
            return []
        return [child for child in (f"{path}/{name}" for name in names) if (hierarchy, child) in self.tree.places]
