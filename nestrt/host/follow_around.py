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
MADE, GONE = inotify.IN_CREATE | inotify.IN_MOVED_TO, inotify.IN_DELETE | inotify.IN_MOVED_FROM
MASK = MADE | GONE | inotify.IN_ATTRIB | inotify.IN_ONLYDIR | inotify.IN_DONT_FOLLOW
DIRECTORY = ""  # the key of the directory itself, among a place's files


class Around:
    """Of the guests in *tree*. *awaited*: limit groups that other hierarchies may still get, and how often to look."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.awaited: dict[str, int] = {}
        self._last = ("", 0.0)

    def watch(self, path: str, now: float) -> None:
        """Watch the group in which the outermost guest *path* is, in the other hierarchies too."""
        tree, parent = self._tree, path.rpartition("/")[0]
        if tree.guests.of(parent) is not None or (tree.visited is not None and (parent, now) == self._last):
            return
        self._last = (parent, now)
        there = [self._watch(one, parent, now) for one in tree.hierarchies if one is not tree.primary]
        if all(there):
            self.awaited.pop(path, None)
        else:
            self.awaited.setdefault(path, AWAIT)

    def _watch(self, hierarchy: Hierarchy, parent: str, now: float) -> bool:
        """Watch the group *parent*, or the last one on the way to it that is there. Whether it was *parent*."""
        group = parent
        while True:
            try:
                self._add(hierarchy, group, now)
            except OSError:
                if not group:  # the hierarchy is no longer mounted
                    return False
                group = group.rpartition("/")[0]
                continue
            end = parent.find("/", len(group) + 1)
            if group == parent or not os.path.isdir(hierarchy.path(parent[:end] if end > 0 else parent)):
                return group == parent
            group = parent  # it was made before the one above was watched

    def _add(self, hierarchy: Hierarchy, group: str, now: float) -> None:
        tree = self._tree
        directory, key = hierarchy.path(group or "/"), (hierarchy.name, group)
        inode = os.stat(directory).st_ino
        place = tree.places.get(key)
        if place is None or place.inode != inode:
            if place is not None:
                tree.let_go(place)
            place = tree.places[key] = Place(hierarchy, group, inode)
        tree.add(place, DIRECTORY, directory, MASK, None, now)
        if tree.visited is not None:
            tree.visited.add((*key, False))

    def nearer(self, path: str, now: float) -> None:
        """The group *path*, outside guests, was made in some hierarchy: it may be on the way to one that is awaited."""
        for one in [one for one in self.awaited if one.startswith(path + "/")]:
            self._again(one, now)

    def look(self, now: float) -> None:
        """The awaited ones again, once a second, and not for ever: some are never in all hierarchies."""
        awaited, self.awaited = self.awaited, {}
        for path, times in awaited.items():
            if path in self._tree.guests.known and times > 0:
                self._again(path, now)
                if path in self.awaited:
                    self.awaited[path] = times - 1

    def _again(self, path: str, now: float) -> None:
        # A parent group that is watched only now may have had the guest in it for a while.
        self.watch(path, now)
        for hierarchy in self._tree.hierarchies:
            if (hierarchy.name, path) not in self._tree.places:
                self._tree.made(hierarchy, path, now)
