"""What the files of watched groups say, and what has changed in it.

A change is told at once, and then that file is left alone for a second: a counter that runs is one event a second,
with how often it was. Of one freezing, and of counts that are those of groups below too, only the group where it
happened is told.
"""

from __future__ import annotations

import os
import time

from nestrt.host import event_sources as sources
from nestrt.host.effective import ancestors
from nestrt.host.event_sources import ASKED
from nestrt.host.follow_oom import Log
from nestrt.host.follow_place import Place, froze_itself, read_counts
from nestrt.host.follow_tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.event_sources import Source

    Key = tuple[str, str, str]  # hierarchy, path, file

MOST_OPEN = 4096  # of them; each holds a page of the kernel's
MOST_ASKED = 500  # files read in a second because nobody tells of them
HOLD = 1.0  # s
LONGEST_LOOK = 0.1  # s until the rest has to wait for the next look
# Which limit it is that a file counts hits of.
LIMITS = {
    "memory.events.local": "memory.max",
    "memory.events": "memory.max",
    "memory.failcnt": "memory.max",
    "memory.oom_control": "memory.max",
    "memory.swap.events": "memory.swap.max",
    "pids.events.local": "pids.max",
    "pids.events": "pids.max",
}


class Files:
    """Looks at what is *dirty*; *later* at what is left alone for now. *asked* is read in turn."""

    def __init__(self, tree: Tree, log: Log) -> None:
        self.tree = tree
        self.log = log
        self.dirty: dict[Key, None] = {}
        self.later: dict[Key, None] = {}
        self.asked: dict[Key, None] = {}
        self._turn: list[Key] = []
        self._open: dict[Key, int] = {}
        self._raw: dict[Key, bytes] = {}  # what was read of it last
        self._frozen: dict[str, set[str]] = {}  # by group: the hierarchies in which it is

    def listen(self, place: Place) -> None:
        """Take in what *place* has, and look at all of it once."""
        for file, source in place.files.items():
            key = (place.hierarchy.name, place.path, file)
            # v1's eventfds and the kernel's log tell of kills, and whoever freezes writes to the file.
            told = file == "freezer.state" or (file == "memory.oom_control" and self.log.descriptor >= 0)
            if ASKED in source.how and not told:
                self.asked[key] = None
            if not self.tree.quiet:
                self.dirty[key] = None
        if place.frozen:
            self._frozen.setdefault(place.path, set()).add(place.hierarchy.name)

    def leave(self, place: Place) -> None:
        """A directory has gone."""
        for file in place.files:
            key = (place.hierarchy.name, place.path, file)
            self.asked.pop(key, None)
            self.later.pop(key, None)
            self._raw.pop(key, None)
            if (descriptor := self._open.pop(key, -1)) >= 0:
                os.close(descriptor)
        found = self._frozen.get(place.path)
        if found is not None:
            found.discard(place.hierarchy.name)
            if not found:
                del self._frozen[place.path]

    def mark(self, path: str, files: tuple[str, ...]) -> None:
        """Look at *files* of the group *path*, those that it has."""
        group = self.tree.groups.get(path)
        for name in group.hierarchies if group else ():
            place = self.tree.places.get((name, path))
            for file in files if place else ():
                if place and file in place.files:
                    self.dirty[name, path, file] = None
                    self.later[name, path, file] = None  # once more, for what is counted only after it was told

    def tick(self, now: float) -> None:
        """Once a second."""
        later, self.later = self.later, {}
        self.dirty.update(later)
        if not self._turn:
            self._turn = list(self.asked)
        turn, self._turn = self._turn[:MOST_ASKED], self._turn[MOST_ASKED:]
        self.dirty.update((key, None) for key in turn if key in self.asked and self._is_other(key))

    def _is_other(self, key: Key) -> bool:
        """Whether a file says another thing than when it was asked last. As far as there is room it stays open: to
        open and close it is most of what a look costs."""
        name, path, file = key
        descriptor = self._open.get(key, -1)
        try:
            if descriptor < 0:
                if len(self._open) >= MOST_OPEN:
                    return True
                place = self.tree.places[name, path]
                descriptor = self._open[key] = os.open(place.file(file), os.O_RDONLY | os.O_CLOEXEC)
            raw = os.pread(descriptor, 4096, 0)
        except (OSError, KeyError):  # the group has gone, or there is no room
            return key not in self._open
        before = self._raw.get(key)
        self._raw[key] = raw
        return raw != before

    def close(self) -> None:
        """Let go of everything."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def look(self, now: float, wall: float) -> None:
        """Compare all that is dirty with what was said before."""
        # Deepest first: what counts those below too is told of where it happened.
        waiting, self.dirty = sorted(self.dirty, key=lambda key: -key[1].count("/")), {}
        told: set[tuple[str, str]] = set()
        end = time.monotonic() + LONGEST_LOOK
        for done, key in enumerate(waiting):
            if time.monotonic() > end:
                self.dirty.update(dict.fromkeys(waiting[done:]))
                break
            name, path, file = key
            place = self.tree.places.get((name, path))
            source = place.files.get(file) if place else None
            if place is None or source is None:
                continue
            if now < place.held.get(file, 0.0):
                self.later[key] = None
                continue
            try:
                self._compare(place, file, source, now, wall, told)
            except (OSError, ValueError):  # the group has gone
                continue

    def _compare(
        self, place: Place, file: str, source: Source, now: float, wall: float, told: set[tuple[str, str]]
    ) -> None:
        new = read_counts(place, file)
        old = place.said.get(file, {})
        place.said[file] = new
        for kind, total, _ in sources.changes(source, old, new):
            if kind in ("frozen", "thawed"):
                self._froze(place, kind == "frozen", wall)
            elif kind in ("populated", "empty"):
                guest = self.tree.guests.known.get(place.path)
                if guest is not None:
                    self.tree.lives.look(guest, wall)
            elif total is not None:
                field = next(field for field, one in source.kinds if one == kind)
                count = total - old.get(field, 0)
                if kind == "oom_kill":
                    # The kernel logs a kill before it counts it: what is counted may be there since a moment ago.
                    self.log.read(self.tree, self)
                    count -= self.log.told(place.path, count)
                if source.whole:
                    if (file, place.path) in told:
                        continue
                    told.update((file, above) for above in ancestors(place.path))
                place.held[file] = now + HOLD
                if count > 0 and kind in self.tree.kinds:
                    limit = "memory.high" if kind == "high" else LIMITS.get(file)
                    key = None if kind == "oom_kill" else limit
                    self.tree.report(kind, place.path, wall, key=key, count=count, total=total)
        if file == "freezer.state" and not new.get("frozen") and froze_itself(place):
            self.later[place.hierarchy.name, place.path, file] = None  # not all of its processes have stopped yet

    def _froze(self, place: Place, frozen: bool, wall: float) -> None:
        """A group was frozen, or thawed, in one hierarchy: an event where it is the first one, or the last."""
        path, name = place.path, place.hierarchy.name
        if frozen and froze_itself(place):
            found = self._frozen.setdefault(path, set())
            if not found:
                self.tree.report("frozen", path, wall)
            found.add(name)
        elif not frozen and name in self._frozen.get(path, ()):
            self._frozen[path].discard(name)
            if not self._frozen[path]:
                del self._frozen[path]
                self.tree.report("thawed", path, wall)
