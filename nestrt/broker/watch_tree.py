"""The groups of one guest that are looked at: their inotify watches, eventfds, and what their files said last.

A group is one of several directories, one in each hierarchy, and each has an inode: where that is another one, the
group was removed and made again, and what was watched of it is watched anew. A watch of what has been removed stays
until it is taken away (see kernel/inotify.py).
"""

from __future__ import annotations

import errno
import os
import select
from typing import Callable, Iterable

from nestrt.broker.refusal import Refusal
from nestrt.broker.served import Tree
from nestrt.broker.watch_descriptors import Descriptors
from nestrt.guest import client
from nestrt.host import event_sources as sources
from nestrt.host.event_sources import EVENTFD, TOLD, Source
from nestrt.kernel import inotify, oom

MOST_GROUPS = 2000  # looked at for one guest
MOST_WATCHES = 8192  # inotify watches
MOST_EVENTFDS = 256  # descriptors: a v1 memory group takes one

DIRECTORY = ""  # the key of the group's directory itself, among its files
# v1's groups can be renamed.
MADE, GONE = inotify.IN_CREATE | inotify.IN_MOVED_TO, inotify.IN_DELETE | inotify.IN_MOVED_FROM
DIRECTORY_MASK = MADE | GONE | inotify.IN_ONLYDIR
CONTROL = "cgroup.subtree_control"  # what is written there gives child groups files, or takes them
REMEDIES = {
    errno.ENOSPC: "more: sysctl fs.inotify.max_user_watches",
    errno.EMFILE: "more: LimitNOFILE of the broker, sysctl fs.inotify.max_user_instances",
    errno.ENFILE: "more: sysctl fs.file-max",
}
Key = tuple[str, str]  # a hierarchy's name, and a file


def full(reason: str, remedy: str = "ask for the events of one group, or for fewer kinds") -> Refusal:
    """There is no room for more."""
    return Refusal("QuotaExceeded", f"cannot watch more of the guest: {reason}", remedy)


def no_room(error: OSError) -> Refusal | None:
    """The kernel's word that there is no room, as a Refusal; None of another error."""
    code = error.errno or 0
    return full(os.strerror(code), REMEDIES[code]) if code in REMEDIES else None


def fitting(
    view: client.View, hierarchy: client.Hierarchy, kinds: frozenset[str], root: bool = False
) -> list[Source]:
    """The sources for *kinds* in *hierarchy* of a guest; *root*: of its root."""
    only = hierarchy is view.hierarchies[0] and hierarchy.version == 1
    return list(sources.fitting(hierarchy.version, hierarchy.controllers, kinds, only, root))


def children(hierarchy: client.Hierarchy, group: str) -> list[str]:
    """The groups right below *group* in one hierarchy."""
    try:
        with os.scandir(hierarchy.dir(group)) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # just removed
        return []
    return [f"{group if group != '/' else ''}/{name}" for name in sorted(names)]


def walk(tree: Tree, tops: Iterable[str]) -> list[str]:
    """The groups *tops* and all below, or some more than can be looked at: for a thread."""
    found: list[str] = []
    waiting = list(tops)
    while waiting and len(found) <= MOST_GROUPS:
        found.append(waiting.pop())
        waiting += tree.view.children(found[-1])
    return found


class Group:
    """One that is looked at. *inodes*: of its directory, by hierarchy: those that have it. *ooms*: how often v1 has
    said that it has no memory."""

    __slots__ = ("eventfds", "files", "inodes", "ooms", "said", "watches")

    def __init__(self) -> None:
        self.inodes: dict[str, int] = {}
        self.watches: dict[Key, int] = {}
        self.files: dict[Key, Source] = {}
        self.said: dict[Key, dict[str, int]] = {}
        self.eventfds: dict[str, int] = {}
        self.ooms = 0


class Watched:
    """The groups of one guest, by name. *watch* and *unwatch* are the watcher's, with keys of this guest;
    *starving* is called with a v1 group's name and inode, and how often it had no memory."""

    def __init__(
        self,
        watch: Callable[[str, int, tuple[str, str, str]], int],
        unwatch: Callable[[int, tuple[str, str, str]], None],
        descriptors: Descriptors,
        starving: Callable[[str, int, int], None],
    ) -> None:
        self.groups: dict[str, Group] = {}
        self.watches = 0
        self.eventfds = 0
        self._watch = watch
        self._unwatch = unwatch
        self._descriptors = descriptors
        self._starving = starving

    def ensure(self, tree: Tree, name: str, kinds: frozenset[str], directories: set[str], divided: bool) -> bool:
        """Watch of the group *name* what tells of *kinds*, its directory in the hierarchies *directories*, and, where
        *divided*, what controllers it gives its child groups; nothing else. Whether it is another group than the one
        that had the name at the last look. Raises Refusal (QuotaExceeded)."""
        group = self.groups.get(name)
        if group is None:
            if len(self.groups) >= MOST_GROUPS:
                raise full(f"it has more than {MOST_GROUPS} groups")
            group = self.groups[name] = Group()
        keep: set[Key] = set()
        other = False
        for hierarchy in tree.view.hierarchies:
            found = fitting(tree.view, hierarchy, kinds, name == "/")
            if not found and hierarchy.name not in directories:
                continue
            try:
                place = tree.open(hierarchy, name)
            except OSError as error:
                if room := no_room(error):
                    raise room from None
                continue
            try:
                other = not self._is_same(group, name, hierarchy.name, os.fstat(place).st_ino) or other
                keep |= self._files(group, name, hierarchy.name, place, found)
                if hierarchy.name in directories:
                    keep.add((hierarchy.name, DIRECTORY))
                    self._add(group, name, (hierarchy.name, DIRECTORY), f"/proc/self/fd/{place}/.", DIRECTORY_MASK)
                    if divided and hierarchy.version == 2:
                        keep.add((hierarchy.name, CONTROL))
                        path = f"/proc/self/fd/{place}/{CONTROL}"
                        self._add(group, name, (hierarchy.name, CONTROL), path, inotify.IN_MODIFY)
            finally:
                os.close(place)
        self._let_go(group, name, [key for key in {**group.files, **group.watches} if key not in keep])
        return other

    def is_there(self, tree: Tree, hierarchy: str, name: str) -> bool:
        """Whether the directory that is known as *name*, and no other, is there."""
        group = self.groups.get(name)
        place = next((h for h in tree.view.hierarchies if h.name == hierarchy), None)
        if group is None or place is None:
            return False
        try:
            inode = os.stat(place.dir(name)).st_ino
        except OSError:
            return False
        return group.inodes.get(hierarchy, -1) in (0, inode)

    def gone(self, hierarchy: str, name: str) -> list[str]:
        """The directory of *name* in *hierarchy* was removed. The groups that are no more anywhere, deepest first."""
        group = self.groups.get(name)
        if group is None:
            return []
        group.inodes.pop(hierarchy, None)
        self._let_go(group, name, [key for key in {**group.files, **group.watches} if key[0] == hierarchy])
        if group.inodes:
            return []
        lost = sorted((one for one in self.groups if client.below(one, name)), key=len, reverse=True)
        for one in lost:
            self.forget(one)
        return lost

    def forget(self, name: str) -> None:
        """Watch nothing of *name* any more."""
        group = self.groups.pop(name)
        self._let_go(group, name, list({**group.files, **group.watches}))

    def rest(self, name: str, key: Key) -> None:
        """The watcher removes one watch until the next ensure(); what the file said last stays known."""
        if group := self.groups.get(name):
            if group.watches.pop(key, None) is not None:
                self.watches -= 1
            group.files.pop(key, None)

    # -- one group --------------------------------------------------------------------------------

    def _is_same(self, group: Group, name: str, hierarchy: str, inode: int) -> bool:
        """Whether the directory is the one that is watched; if not, what is watched of the old one is let go of."""
        known = group.inodes.get(hierarchy, 0)
        group.inodes[hierarchy] = inode
        if known in (0, inode):
            return True
        self._let_go(group, name, [key for key in {**group.files, **group.watches} if key[0] == hierarchy])
        group.ooms = 0
        return False

    def _files(self, group: Group, name: str, hierarchy: str, place: int, found: Iterable[Source]) -> set[Key]:
        """Watch the files of *found* in the directory *place*; the keys of those that are there."""
        keep = set()
        for source in found:
            file, path = source.file, f"/proc/self/fd/{place}/{source.file}"
            if source.instead and not os.path.exists(path):
                file, path = source.instead, f"/proc/self/fd/{place}/{source.instead}"
            key = (hierarchy, file)
            if key not in group.files:
                text = client.read(path)
                if text is None:
                    continue
                if TOLD in source.how:
                    self._add(group, name, key, path, inotify.IN_MODIFY)
                if EVENTFD in source.how:
                    self._listen(group, name, hierarchy, f"/proc/self/fd/{place}")
                group.files[key] = source
                # A second time, now that a change would be told of; or what it said before it had to rest.
                group.said.setdefault(key, sources.parse_counts(file, client.read(path) or text))
            keep.add(key)
        return keep

    def _add(self, group: Group, name: str, key: Key, path: str, mask: int) -> None:
        if key in group.watches:
            return
        if self.watches >= MOST_WATCHES:
            raise full(f"it has {MOST_WATCHES} watches")
        try:
            group.watches[key] = self._watch(path, mask, (*key, name))
        except OSError as error:
            if room := no_room(error):
                raise room from None
            return  # it has gone
        self.watches += 1

    def _listen(self, group: Group, name: str, hierarchy: str, place: str) -> None:
        if self.eventfds >= MOST_EVENTFDS:
            raise full(f"{MOST_EVENTFDS} of its groups are listened to")

        inode = group.inodes[hierarchy]

        def happened() -> None:
            try:
                count = os.eventfd_read(event)
            except BlockingIOError:
                return
            group.ooms += count
            self._starving(name, inode, count)

        try:
            event = oom.listen(place)
        except OSError as error:
            if room := no_room(error):
                raise room from None
            return
        try:
            self._descriptors.add(event, select.EPOLLIN, happened)
        except OSError as error:
            os.close(event)
            raise no_room(error) or error from None
        self.eventfds += 1
        group.eventfds[hierarchy] = event

    def _let_go(self, group: Group, name: str, keys: list[Key]) -> None:
        for key in keys:
            source = group.files.pop(key, None)
            group.said.pop(key, None)
            watch = group.watches.pop(key, None)
            if watch is not None:
                self.watches -= 1
                self._unwatch(watch, (*key, name))
            if source is not None and EVENTFD in source.how and key[0] in group.eventfds:
                self.eventfds -= 1
                self._descriptors.close(group.eventfds.pop(key[0]))
