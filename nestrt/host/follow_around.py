"""Where outermost guests are in the hierarchies that are not gone through: their parent groups are watched there.

A guest is known by its mark, in the primary hierarchy, and often before its groups are there in the others; the first
guest of a host before even the group is there that all of them are in. What there is of the way to it is watched
then, so that each next group of the way is heard of when it is made.
"""

from __future__ import annotations

import os

from nestrt.host.follow_place import Place
from nestrt.kernel import inotify
from nestrt.plan.facts import Hierarchy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.follow_tree import Tree

AWAIT = 5  # looks, one in a second, for what a guest has in the other hierarchies
MOST_AWAITED = 1000  # guests
MADE, GONE = inotify.IN_CREATE | inotify.IN_MOVED_TO, inotify.IN_DELETE | inotify.IN_MOVED_FROM
MASK = MADE | GONE | inotify.IN_ATTRIB | inotify.IN_ONLYDIR | inotify.IN_DONT_FOLLOW
DIRECTORY = ""  # the key of the directory itself, among a place's files


class Around:
    """Of the guests in *tree*. *awaited*: limit groups that other hierarchies may still get, and how often to look;
    after that they are found only if the kernel tells of their way."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.awaited: dict[str, int] = {}
        self._last = ("", 0.0, True)

    @property
    def due(self) -> bool:
        """Whether there is something to look for in a second."""
        return any(self.awaited.values())

    def watch(self, path: str, now: float) -> None:
        """Watch the group in which the outermost guest *path* is, in the other hierarchies too."""
        tree, parent = self._tree, path.rpartition("/")[0]
        if tree.guests.of(parent) is not None:
            return
        if tree.visited is None or (parent, now) != self._last[:2]:
            there = [self._watch(one, parent, now) for one in tree.hierarchies if one is not tree.primary]
            self._last = (parent, now, all(there))
        if self._last[2]:
            self.awaited.pop(path, None)
        elif len(self.awaited) < MOST_AWAITED:
            self.awaited.setdefault(path, AWAIT)

    def _watch(self, hierarchy: Hierarchy, parent: str, now: float) -> bool:
        """Watch the group *parent*, or the last one on the way to it that is there. Whether it was *parent*."""
        group = parent if os.path.isdir(hierarchy.path(parent or "/")) else ""
        try:
            while True:
                # Downwards, as far as there is something: a long way that is not there costs one look.
                while group != parent and os.path.isdir(hierarchy.path(_next(group, parent))):
                    group = _next(group, parent)
                self._add(hierarchy, group, now)
                # What was made before this one was watched nobody will tell.
                if group == parent or not os.path.isdir(hierarchy.path(_next(group, parent))):
                    return group == parent
        except OSError:  # it went away, or may not be watched
            return False

    def _add(self, hierarchy: Hierarchy, group: str, now: float) -> None:
        tree = self._tree
        directory, key = hierarchy.path(group or "/"), (hierarchy.name, group)
        inode = os.stat(directory).st_ino
        place = tree.places.get(key)
        if place is None or place.inode != inode:
            if place is not None:
                tree.let_go(tree.places.pop(key))
            place = Place(hierarchy, group, inode)
        tree.add(place, DIRECTORY, directory, MASK, None, now)
        tree.places[key] = place
        if tree.visited is not None:
            tree.visited.add((*key, False))

    def nearer(self, path: str, now: float) -> None:
        """The group *path*, outside guests, was made in some hierarchy: it may be on the way to one that is awaited."""
        for one in [one for one in self.awaited if one.startswith(path + "/")]:
            self._again(one, now)

    def look(self, now: float) -> None:
        """The awaited ones again, once a second, and not for ever: some are never in all hierarchies."""
        for path, times in list(self.awaited.items()):
            if times > 0:
                self.awaited[path] = times - 1
                self._again(path, now)

    def _again(self, path: str, now: float) -> None:
        if path not in self._tree.guests.known:
            self.awaited.pop(path, None)
            return
        # A parent group that is watched only now may have had the guest in it for a while.
        self.watch(path, now)
        for hierarchy in self._tree.hierarchies:
            if (hierarchy.name, path) not in self._tree.places:
                self._tree.made(hierarchy, path, now)


def _next(group: str, below: str) -> str:
    """The group one step from *group* on the way to *below*."""
    end = below.find("/", len(group) + 1)
    return below[:end] if end > 0 else below
