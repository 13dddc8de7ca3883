"""The directories that are watched while events are followed: guests found, groups made and removed.

::

    outside guests    one watch on each directory of the primary hierarchy: a group is made, or gets a mark; in the
                      others only on those in which guests are, and on the way to one that is not there yet
    in a guest        one on each directory of every hierarchy, and one on each file that tells of something

inotify(7) tells a directory of its children's attributes too: so a mark is seen when it is set. Directories are gone
through as they are found, watched first and listed then: what is made meanwhile is met by one of the two. A
directory has an inode: where that is another one, the group was removed and made again.
"""

from __future__ import annotations

import errno
import os

from nestrt.host import event_sources as sources
from nestrt.host.event import Event, Guests, Known
from nestrt.host.follow_around import DIRECTORY, MASK, Around
from nestrt.host.follow_lives import Lives
from nestrt.host.follow_place import Place, froze_itself, most_watches, read_counts
from nestrt.host.marks import read_mark
from nestrt.host.walk import DEEPEST, MOST_LEVELS
from nestrt.kernel import inotify
from nestrt.plan.facts import Hierarchy
from nestrt.probe.facts import primary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nestrt.host.event_sources import Source
    from nestrt.host.marks import Mark

MOST_GROUPS = 2000  # of one guest with all its guests
SHARE = 8  # one guest takes an eighth of the watches at the most
LONGEST = 3700  # bytes of a directory's path to which a file's name can be added (PATH_MAX)
STATES = frozenset(("populated", "empty"))
CONTROL = "cgroup.subtree_control"  # what is written there gives child groups files


class Group:
    """A group of a guest: the names of the *hierarchies* that have it; *top*: the outermost guest's limit group."""

    __slots__ = ("hierarchies", "top")

    def __init__(self, top: str) -> None:
        self.hierarchies: set[str] = set()
        self.top = top


class Tree:
    """What is watched. *tell* takes events, *wanted* says which guests are looked into; *listens* is called with each
    place that has files to look at, *leaves* with each that goes, *found* with each guest that comes, *ended* with
    each that goes. *quiet*: what is found is no event. Times are in seconds since 1970."""

    def __init__(
        self,
        hierarchies: tuple[Hierarchy, ...],
        guests: Guests,
        kinds: frozenset[str],
        tell: Callable[[Event], None],
        wanted: Callable[[Known], bool],
    ) -> None:
        self.hierarchies = hierarchies
        self.primary = primary(hierarchies)
        self.guests = guests
        self.kinds = kinds
        self.tell = tell
        self.wanted = wanted
        self.inotify = inotify.open()
        self.places: dict[tuple[str, str], Place] = {}
        self.groups: dict[str, Group] = {}
        self.keys: dict[int, tuple[Place, str]] = {}
        self.lives = Lives(self)
        self.around = Around(self)
        self.most = most_watches()
        self.quiet = False
        # While all is gone through: what has been met, and whether as a group of a guest.
        self.visited: set[tuple[str, str, bool]] | None = None
        self.full = False
        self._counts: dict[str, int] = {}  # groups, by outermost guest
        self._taken: dict[str, int] = {}  # watches
        self._crowded: set[str] = set()
        self._work: list[tuple[Hierarchy, str]] = []
        self._fresh: list[Known] = []
        self._fitting: dict[tuple[str, bool], list[Source]] = {}
        self.v2 = any(h.version == 2 for h in hierarchies)
        self.listens: Callable[[Place], None] = lambda place: None
        self.leaves: Callable[[Place], None] = lambda place: None
        self.found: Callable[[Known], None] = lambda guest: None
        self.ended: Callable[[Known], None] = lambda guest: None

    # -- telling --------------------------------------------------------------------------------------------------

    def report(self, kind: str, path: str, now: float, **more: object) -> None:
        """Tell an event of the group *path*, unless nobody wants it, or all that is found is news of no one."""
        if self.quiet or (kind not in self.kinds and kind != "lost"):
            return
        guest = self.guests.of(path)
        if guest is None or self.wanted(guest):
            self.tell(self.guests.event(kind, path, guest, now, **more))

    # -- going through --------------------------------------------------------------------------------------------

    def cover(self, top: str, now: float) -> None:
        """Go through all at and below *top* ("": everything): watch what is not watched, and find what has gone."""
        self.visited = set()
        in_guest = self.guests.top(top)
        for hierarchy in self.hierarchies if in_guest else (self.primary,):
            self.made(hierarchy, top, now)
        visited, self.visited = self.visited, None
        below = top + "/"
        for path in sorted((p for p in self.groups if p == top or p.startswith(below)), key=len, reverse=True):
            group = self.groups.get(path)
            for name in list(group.hierarchies) if group else ():
                if (name, path, True) not in visited:
                    self.gone(name, path, now)
        for key in [key for key in self.places if key[1] == top or key[1].startswith(below)]:
            if (*key, False) not in visited and key[1] not in self.groups:
                self.gone(*key, now)

    def made(self, hierarchy: Hierarchy, path: str, now: float) -> None:
        """The directory *path* was made in *hierarchy*, or may be there: all at and below it is met."""
        self._work.append((hierarchy, path))
        if len(self._work) > 1:
            return  # called by what follows
        while self._work:
            self._meet(*self._work[-1], now)
        fresh, self._fresh = self._fresh, []
        for guest in fresh:
            self.found(guest)
            self.lives.look(guest, now)

    def _meet(self, hierarchy: Hierarchy, path: str, now: float) -> None:
        done = len(self._work) - 1
        guest = self.guests.of(path)
        limit = guest is not None and path == guest.path
        heard = hierarchy is self.primary or self._is_heard(hierarchy, path, limit)
        if not heard or (limit and not os.path.isdir(hierarchy.path(path))):  # it is not in every hierarchy
            del self._work[done]
            if guest is None:
                self.around.nearer(path, now)
            return
        below: list[str] = []
        met = (hierarchy.name, path, guest is not None)
        if guest is not None and not self.wanted(guest):
            if self.visited is not None:
                self.visited.add((hierarchy.name, path, False))
        elif self.visited is not None and met in self.visited:
            pass
        elif guest is None or self._admit(hierarchy, path, guest, now):
            below = self._watch(hierarchy, path, guest, now)
        if self.visited is not None and limit and hierarchy is self.primary:
            self.around.watch(path, now)
            self._work += [(h, path) for h in self.hierarchies if h is not hierarchy]
        del self._work[done]
        # One that has just turned out to be a guest comes again as one.
        if self.guests.known.get(path, guest) is guest:
            self._work += [(hierarchy, f"{path}/{name}") for name in below]

    def _is_heard(self, hierarchy: Hierarchy, path: str, limit: bool) -> bool:
        """Whether a group is one in a guest, in a hierarchy that is not the primary one, and its end will be heard of:
        limit groups are looked for before the group above them is met."""
        if limit:
            return (hierarchy.name, path.rpartition("/")[0]) in self.places
        return self.guests.of(path) is not None

    def _admit(self, hierarchy: Hierarchy, path: str, guest: Known, now: float) -> bool:
        """Count *path* among the groups of its guest; False where that has too many."""
        group = self.groups.get(path)
        if group is None:
            top = self.guests.top(path)
            if self._counts.get(top, 0) >= MOST_GROUPS:
                self._crowd(top, f"it has more than {MOST_GROUPS} groups: what happens in others is not seen", now)
                return False
            self._counts[top] = self._counts.get(top, 0) + 1
            group = self.groups[path] = Group(top)
            self.report("created", path, now)
        group.hierarchies.add(hierarchy.name)
        return True

    def _crowd(self, top: str, detail: str, now: float) -> None:
        """Say once that a guest has more than is watched."""
        if top not in self._crowded:
            self._crowded.add(top)
            self.report("lost", top, now, detail=detail)

    def _watch(self, hierarchy: Hierarchy, path: str, guest: Known | None, now: float) -> list[str]:
        """Watch one directory and its files, and look at its mark. The names of its child groups."""
        directory = hierarchy.path(path or "/")
        longer = len(path) > LONGEST // 4 and len(os.fsencode(directory)) > LONGEST
        if longer or path.count("/") > DEEPEST:
            return []
        try:
            status = os.stat(directory)
            key = (hierarchy.name, path)
            place = self.places.get(key)
            if place and place.inode != status.st_ino:
                if path in self.groups and hierarchy is self.primary:
                    for name in list(self.groups[path].hierarchies):
                        self.gone(name, path, now)
                    self._work.append((hierarchy, path))
                    return []
                self.let_go(place)
                place = None
            if place is None:
                place = self.places[key] = Place(hierarchy, path, status.st_ino)
                place.top = self.guests.top(path)
            if self.visited is not None:
                self.visited.add((*key, guest is not None))
            if not self.add(place, DIRECTORY, directory, MASK, guest, now) and self.visited is None:
                return []
            if guest is not None:
                self.files(place, guest, now)
            self._mark(hierarchy, path, directory, guest, now)
            if os.stat(directory).st_nlink == 2:
                return []
            with os.scandir(directory) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:  # it went away
            return []

    def _mark(self, hierarchy: Hierarchy, path: str, directory: str, guest: Known | None, now: float) -> None:
        none = guest is not None and (path == guest.root or guest.level - self.guests.level >= MOST_LEVELS)
        if none or path in self.guests.known or not path:
            return
        names = os.listxattr(directory)
        mark = read_mark(directory, names) if names else None
        if mark is not None:
            self._guest(path, mark, os.stat(directory).st_uid, now)

    def marked(self, hierarchy: Hierarchy, path: str, now: float) -> None:
        """An attribute of the directory was set."""
        if path in self.guests.known or (self.guests.of(path) is None and hierarchy is not self.primary):
            return
        try:
            self._mark(hierarchy, path, hierarchy.path(path), self.guests.of(path), now)
        except OSError:
            return

    def _guest(self, path: str, mark: Mark, owner: int, now: float) -> None:
        """A limit group: the guest is watched in all hierarchies from now on."""
        guest = self.guests.add(path, mark, owner)
        self.lives.populated[path] = None
        self._fresh.append(guest)
        self.around.watch(path, now)
        # Where all is gone through, the others follow when it is met again in the first.
        for hierarchy in self.hierarchies if self.visited is None else (self.primary,):
            self.made(hierarchy, path, now)

    def gone(self, name: str, path: str, now: float) -> None:
        """The directory *path* was removed in the hierarchy *name*."""
        place = self.places.pop((name, path), None)
        if place is not None:
            self.let_go(place)
        group = self.groups.get(path)
        if group is None:
            if name == self.primary.name:
                self.guests.remove(path)  # one that nobody wants
                self.around.awaited.pop(path, None)
                self._nothing_below(path, now)
            return
        group.hierarchies.discard(name)
        if group.hierarchies:
            return
        del self.groups[path]
        self._counts[group.top] = max(self._counts.get(group.top, 0) - 1, 0)
        guest = self.guests.known.get(path)
        if guest is None:
            self.report("removed", path, now)
            return
        if self.lives.populated.pop(path, False):
            self.report("ended", path, now)
        self.report("removed", path, now)
        self.ended(guest)
        self.guests.remove(path)
        self.around.awaited.pop(path, None)
        self._crowded.discard(path)

    def _nothing_below(self, path: str, now: float) -> None:
        """A group outside guests has gone, which may have been watched in other hierarchies for guests in it. Whether
        it goes there too nobody will tell."""
        around = [h.name for h in self.hierarchies if (h.name, path) in self.places]
        if around:
            below = path + "/"
            for one in sorted((p for p in self.groups if p.startswith(below)), key=len, reverse=True):
                for name in list(self.groups[one].hierarchies):
                    self.gone(name, one, now)
            for name in around:
                self.let_go(self.places.pop((name, path)))

    def renamed(self, name: str, path: str, now: float) -> None:
        """v1: all below the directory has another path from now on."""
        below = path + "/"
        for one in sorted((p for n, p in self.places if n == name and p.startswith(below)), key=len, reverse=True):
            self.gone(name, one, now)
        self.gone(name, path, now)

    # -- watches --------------------------------------------------------------------------------------------------

    def files(self, place: Place, guest: Known | None, now: float) -> None:
        """Watch those files of *place* that are wanted and there."""
        hierarchy = place.hierarchy
        if hierarchy.version == 2:
            self.add(place, CONTROL, place.file(CONTROL), inotify.IN_MODIFY, guest, now)
        only = hierarchy is self.primary and not self.v2
        fitting = self._fitting.get((hierarchy.name, only))
        if fitting is None:
            found = sources.fitting(hierarchy.version, hierarchy.controllers, self.kinds | STATES, only)
            fitting = self._fitting[hierarchy.name, only] = [source for source in found if not source.lacking]
        for source in fitting:
            if source.file in place.files or source.instead in place.files:
                continue
            for file in filter(None, (source.file, source.instead)):
                try:
                    said = read_counts(place, file)
                except (OSError, ValueError):
                    continue
                # All that a new group has counted has happened since it is there; what had to rest goes on.
                place.said.setdefault(file, said if self.quiet else dict.fromkeys(said, 0))
                told = sources.TOLD in source.how or file == "freezer.state"
                if not told or self.add(place, file, place.file(file), inotify.IN_MODIFY, guest, now):
                    place.files[file] = source
                break
        if self.quiet:
            place.frozen = any(said.get("frozen") for said in place.said.values()) and froze_itself(place)
        self.listens(place)

    def add(self, place: Place, file: str, path: str, mask: int, guest: Known | None, now: float) -> bool:
        """One watch. False where there is no room for it. OSError: it went away."""
        if file in place.watches:
            return True
        # A quarter is kept for limit groups and guest roots.
        inner = guest is not None and place.path not in (guest.path, guest.root)
        room = self.most * 3 // 4 if inner else self.most
        taken = self._taken.get(place.top, 0)
        if inner and taken >= self.most // SHARE:
            self._crowd(place.top, f"{taken} of its files and directories are watched, and no more will be", now)
            return False
        if len(self.keys) < room:
            try:
                number = inotify.add(self.inotify, path, mask)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    if file:
                        return False
                    raise
            else:
                self.keys[number] = (place, file)
                place.watches[file] = number
                self._taken[place.top] = taken + 1
                return True
        if not self.full:
            self.full = True
            detail = f"{len(self.keys)} files and directories are watched: of more guests not all groups will be"
            remedy = "; more: sysctl fs.inotify.max_user_watches"
            self.tell(Event(now, "lost", detail=detail + remedy, source="nestrt"))
        return False

    def rest(self, number: int) -> None:
        """Remove one watch, until the next cover()."""
        place, file = self.keys.pop(number)
        place.watches.pop(file, None)
        self._give_back(place, 1)
        if file:
            place.files.pop(file, None)
        inotify.remove(self.inotify, number)

    def let_go(self, place: Place) -> None:
        """Watch a directory and its files no longer."""
        for number in place.watches.values():
            self.keys.pop(number, None)
            inotify.remove(self.inotify, number)
        self._give_back(place, len(place.watches))
        self.leaves(place)

    def _give_back(self, place: Place, count: int) -> None:
        left = self._taken.get(place.top, 0) - count
        self._taken[place.top] = left
        if left <= 0:
            del self._taken[place.top]

    def below(self, top: str) -> Iterable[Place]:
        """The places at and below *top*."""
        return [place for place in self.places.values() if place.path == top or place.path.startswith(top + "/")]
