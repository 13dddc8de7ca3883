"""What is watched of one guest: only what somebody wants to be told, for as long as he does.

The tree of groups is followed by the order in which the kernel's one queue tells of directories made and removed;
what a group's files said last is kept, and the difference is the event. A group that comes and goes faster than it
can be looked at is still told of, from the queue alone.

What a guest can make the broker do is bounded: groups, watches and descriptors by number, and what it does at full
speed by letting it rest: what has changed too often is not watched until the next second, and whoever listens is told
that something was lost. The guest's tree is looked over again then.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING

import trio

from nestrt.broker.interest import Interest, cpus_of
from nestrt.broker.refusal import Refusal
from nestrt.broker.served import Served, Tree
from nestrt.broker.watch_pressure import Triggers
from nestrt.broker.watch_tree import CONTROL, MADE, Watched, children, walk
from nestrt.guest import client
from nestrt.host import event_sources as sources
from nestrt.host.event_sources import ASKED, STARVING
from nestrt.host.pressure import Trigger
from nestrt.kernel import inotify

if TYPE_CHECKING:
    from nestrt.broker.watch import Watcher

MOST_MOVES = 8192  # directories made and removed, not looked at yet
FLOOD = 4000  # notifications in a second
MOST_ASKED = 500  # files read in a second because nobody tells of them
SETTLE = 0.01  # s; what the kernel tells of one cause comes this close together
SAME = 0.005  # s; what one cause makes it tell several groups comes this close together
PAUSE = 0.05  # s between two looks, so that a counter that runs is a few events a second
SLICE = 0.001  # s until others have their turn
LONGEST_LOOK = 0.1  # s until the rest has to wait for the next look
REST = 1.0  # s between two looks at everything
IDLE = 4  # times as long as a look has taken is the pause after it: a fifth of the broker's time is one guest's most
OOM_CONTROL = "memory.oom_control"


class GuestWatch:
    """All that is watched of *guest*. Belongs to the watcher, which calls notified() and tick()."""

    def __init__(self, watcher: Watcher, guest: Served) -> None:
        self.watcher = watcher
        self.guest = guest
        self.interests: list[Interest] = []
        self.watched = Watched(
            lambda path, mask, key: watcher.watch(path, mask, (self, *key)),
            lambda number, key: watcher.unwatch(number, (self, *key)),
            watcher.descriptors,
            self._starving,
        )
        self.triggers = Triggers(guest, watcher.descriptors, self.report)
        self.fresh: Interest | None = None  # being added: what there is already is no event for it
        self.joining = 0
        self.cpus: dict[str, tuple[frozenset[int], frozenset[int]]] = {}
        # What has been told and not looked at.
        self.moves: deque[tuple[str, str, bool]] = deque()  # hierarchy, group, made
        self.dirty: dict[tuple[str, str, str], None] = {}  # hierarchy, file, group
        self.divided: dict[str, None] = {}  # groups that give their child groups other controllers
        self.starved: dict[tuple[str, int], tuple[float, int]] = {}  # group and its inode: when, how often
        self.meant: dict[str, float] = {}  # v1 groups that ran out of memory a moment ago
        self.arrived = 0
        self.resting = False
        self.complained = False
        self.again = False  # look everything over
        self.missed = False  # because something was lost: what has been told before is told no more
        self.looked = self.took = 0.0
        self.asked = 0
        self.until = 0.0
        self.lock = trio.Lock()
        self.wake = trio.Event()
        self.scope = trio.CancelScope()

    # -- interests --------------------------------------------------------------------------------

    async def add(self, interest: Interest) -> None:
        """Begin to tell *interest*. Raises Refusal (QuotaExceeded, NotFound, NotPossible), OSError of a trigger."""
        self.joining += 1
        try:
            while not await self._begin(interest):
                await trio.sleep(max(self.looked + self.took * IDLE - time.monotonic(), 0))
        except BaseException:
            self.joining -= 1
            self.drop(interest)
            raise
        self.joining -= 1

    async def _begin(self, interest: Interest) -> bool:
        """Watch for *interest*; False where it is too early, for a guest whose tree takes long to look at."""
        async with self.lock:
            if time.monotonic() < self.looked + self.took * IDLE:
                return False
            self.interests.append(interest)
            self.fresh = interest
            try:
                for trigger in interest.triggers:
                    self.triggers.open(interest.group, trigger)
                await self._cover()
            finally:
                self.fresh = None
            return True

    def drop(self, interest: Interest) -> None:
        """Stop telling it. What nobody else wants is let go of soon, and all of it at once where it was the last."""
        if interest in self.interests:
            self.interests.remove(interest)
            self.again = True
            self.wake.set()
        for trigger in interest.triggers:
            if not any(one.group == interest.group and trigger in one.triggers for one in self.interests):
                self.triggers.close(interest.group, trigger)
        if not self.interests and not self.joining:
            self.watcher.release(self)

    def close(self) -> None:
        """Let go of everything."""
        self.scope.cancel()
        self.interests = []
        for name in list(self.watched.groups):
            self.watched.forget(name)
        self.triggers.close_all()

    def report(
        self,
        kind: str,
        group: str,
        key: str | None = None,
        count: int | None = None,
        detail: str | None = None,
        asked: tuple[int, float] | None = None,
        trigger: Trigger | None = None,
    ) -> None:
        """Tell an event to whoever wants it. *asked*: the id of a question and the seconds for an answer; *trigger*:
        only to those who wanted that one."""
        number, seconds = asked or (None, None)
        event = {
            "time": time.time(), "kind": kind, "group": group, "key": key, "count": count, "detail": detail,
            "id": number, "seconds": seconds,
        }  # fmt: skip
        for one in list(self.interests):
            wants = kind in one.kinds and one.covers(group) and (trigger is None or trigger in one.triggers)
            if (kind == "lost" or wants) and not (one is self.fresh and kind in sources.TREE):
                one.tell(event)

    # -- what the kernel tells --------------------------------------------------------------------

    def notified(self, hierarchy: str, file: str, group: str, mask: int, name: bytes) -> bool:
        """Take a notification of inotify(7). False: the guest does too much, and this watch is to rest."""
        self.arrived += 1
        if self.arrived > FLOOD:
            if not self.resting:
                self.resting = True
                self.report("lost", "/", detail="groups or counters changed too fast to follow; looked over again soon")
            self.watched.rest(group, (hierarchy, file))
            return False
        if file == CONTROL:
            self.divided[group] = None
        elif file:
            self.dirty[hierarchy, file, group] = None
        elif mask & inotify.IN_ISDIR:
            child = f"{group if group != '/' else ''}/{os.fsdecode(name)}"
            self.moves.append((hierarchy, child, bool(mask & MADE)))
            if len(self.moves) > MOST_MOVES:
                self.overflowed("groups were made and removed too fast to follow; looked over again soon")
        self.wake.set()
        return True

    def overflowed(self, why: str) -> None:
        """Something was missed: tell so, and look everything over."""
        self.moves.clear()
        if not self.missed:
            self.report("lost", "/", detail=why)
        self.again = self.missed = True
        self.wake.set()

    def tick(self) -> None:
        """Once a second: what nobody tells of is asked for, and a guest that had to rest may go on."""
        self.arrived = 0
        self.complained = False
        if self.resting:
            self.resting = False
            self.again = self.missed = True
        ask = [
            (*key, name)
            for name, group in self.watched.groups.items()
            for key, source in group.files.items()
            if ASKED in source.how
        ]
        self.dirty.update(dict.fromkeys(ask[self.asked : self.asked + MOST_ASKED]))
        self.asked = self.asked + MOST_ASKED if self.asked + MOST_ASKED < len(ask) else 0
        if self.dirty or self.again or self.cpus:
            self.wake.set()

    def _starving(self, name: str, inode: int, count: int) -> None:
        """v1 says that a group, or one above it, has no memory."""
        self.starved[name, inode] = (time.monotonic(), self.starved.get((name, inode), (0.0, 0))[1] + count)
        self.report(STARVING, name)
        self.wake.set()

    async def run(self) -> None:
        """Look at what has been told, as long as anything is watched."""
        with self.scope:
            while True:
                await self.wake.wait()
                await trio.sleep(SETTLE)
                self.wake = trio.Event()
                began = time.monotonic()
                try:
                    async with self.lock:
                        await self._look()
                except (Refusal, OSError) as error:  # the guest has ended, or has more than can be watched
                    if not self.complained:
                        self.report("lost", "/", detail=str(error))
                    self.complained = True
                except Exception as error:
                    self.watcher.say_bug(error)
                    self.overflowed(f"watching failed: {type(error).__name__}; looked over again soon")
                    await trio.sleep(REST)
                await trio.sleep(min(max(PAUSE, IDLE * (time.monotonic() - began)), REST))

    # -- looking ----------------------------------------------------------------------------------

    async def _breathe(self) -> Tree:
        """Let others have their turn where this one has taken long. The tree, which may be another one after that."""
        if time.monotonic() > self.until:
            await trio.lowlevel.checkpoint()
            self.until = time.monotonic() + SLICE
        return self.guest.open()

    async def _look(self) -> None:
        began = time.monotonic()
        if self.again and began - self.looked >= max(REST, IDLE * self.took):  # else the next tick() wakes us again
            if self.missed:
                self.moves.clear()
            self.again = self.missed = False
            await self._cover()
            for name, group in self.watched.groups.items():
                self.dirty.update(dict.fromkeys((*key, name) for key in group.files))
        while self.divided:
            tree = await self._breathe()
            for child in tree.view.children(self.divided.popitem()[0]):
                if child in self.watched.groups:
                    self._ensure(await self._breathe(), child)
        while self.moves:
            if time.monotonic() - began > LONGEST_LOOK:
                self.wake.set()
                break
            hierarchy, name, made = self.moves.popleft()
            if made:
                await self._made(hierarchy, name)
            else:
                self._gone(await self._breathe(), hierarchy, name)
        if self.starved:
            self._report_starved(await self._breathe())
        # Deepest first: what counts those below too is told of where it happened.
        waiting, self.dirty = sorted(self.dirty, key=lambda one: -one[2].count("/")), {}
        told: set[tuple[str, str]] = set()
        for hierarchy, file, name in waiting:
            self._compare(await self._breathe(), hierarchy, file, name, told)
        if self.cpus:
            self._compare_cpus(await self._breathe())

    def _compare(self, tree: Tree, hierarchy: str, file: str, name: str, told: set[tuple[str, str]]) -> None:
        """Report what *file* says that it did not say before. *told*: (file, group) of whole counts that a group below
        has just been reported for."""
        group = self.watched.groups.get(name)
        source = group.files.get((hierarchy, file)) if group else None
        place = next((h for h in tree.view.hierarchies if h.name == hierarchy), None)
        text = client.read(f"{place.dir(name)}/{file}") if place and source else None
        if group is None or source is None or text is None:
            return
        new = sources.parse_counts(file, text)
        old, group.said[hierarchy, file] = group.said.get((hierarchy, file), {}), new
        for kind, count, detail in sources.changes(source, old, new):
            seen = (file, name) in told
            if source.whole:
                told.update((file, above) for above in client.ancestors(name))
            if not seen:
                self.report(kind, name, file.removeprefix(sources.ABOVE), count, detail)

    def _compare_cpus(self, tree: Tree) -> None:
        """A guest that counts its CPUs from 0 calls another one by the same number where its set has changed."""
        for group, old in list(self.cpus.items()):
            new = cpus_of(tree.view, group)
            if new == old or not new[0]:
                continue
            self.cpus[group] = new
            if tree.view.cpus:
                tree.view.cpus = sorted(new[1])
            renumbered = tree.view.stamp.get("cpus") == "renumbered"
            shown = [i for i, cpu in enumerate(sorted(new[1])) if cpu in new[0]] if renumbered else sorted(new[0])
            self.report("cpus", group, "cpuset.cpus", detail=f"{client.show_list(shown)} of {len(new[1])}")

    def _report_starved(self, tree: Tree) -> None:
        """v1 tells the group that is at its limit and all below it: the topmost is the one that is meant. It also
        tells a group that is removed, once."""
        starved, self.starved = self.starved, {}
        self.meant = {name: at for name, at in self.meant.items() if time.monotonic() - at < REST}
        memory = tree.view.holder("memory")
        for (name, inode), (at, count) in sorted(starved.items(), key=lambda one: one[0][0].count("/")):
            try:
                alive = memory is not None and os.stat(memory.dir(name)).st_ino == inode
            except OSError:
                alive = False
            if count <= (not alive):
                continue
            self.meant[name] = at
            group = self.watched.groups.get(name) if alive else None
            if memory and group:
                self.dirty[memory.name, OOM_CONTROL, name] = None
            if not any(abs(at - self.meant.get(above, 0.0)) < SAME for above in client.ancestors(name)):
                self.report("oom", name, OOM_CONTROL, group.ooms if group else None)

    # -- the tree ---------------------------------------------------------------------------------

    def _ensure(self, tree: Tree, name: str) -> None:
        """Watch of *name* what is wanted of it."""
        kinds: set[str] = set()
        directories: set[str] = set()
        below = False
        for one in self.interests:
            if one.covers(name):
                kinds |= one.kinds
                below = below or one.below
            elif "oom" in one.kinds and client.below(one.group, name):
                kinds.add(STARVING)  # to know whose memory it is that there is none of
            if one.covers(name) if one.below else name == (client.ancestors(one.group) or [""])[0]:
                directories |= one.hierarchies(tree.view)
        if self.watched.ensure(tree, name, frozenset(kinds), directories, below):
            self.triggers.close_group(name)
            self.report("removed", name)
            self.report("created", name)

    async def _made(self, hierarchy: str, name: str) -> None:
        """A directory was made in *hierarchy*."""
        waiting = [(name, {hierarchy})]
        while waiting:
            tree = await self._breathe()
            name, places = waiting.pop()
            if not any(one.below and one.covers(name) for one in self.interests):
                continue
            new = name not in self.watched.groups
            self._ensure(tree, name)
            group = self.watched.groups[name]
            group.inodes = dict.fromkeys(places, 0) | group.inodes
            if new:
                self.report("created", name)
            # What was made in it before it was watched.
            found: dict[str, set[str]] = {}
            for h in tree.view.hierarchies:
                for child in children(h, name) if h.name in group.inodes else ():
                    known = self.watched.groups.get(child)
                    if known is None or h.name not in known.inodes:
                        found.setdefault(child, set()).add(h.name)
            waiting += sorted(found.items(), reverse=True)

    def _gone(self, tree: Tree, hierarchy: str, name: str) -> None:
        """A directory was removed in *hierarchy*."""
        if self.watched.is_there(tree, hierarchy, name):
            return  # it was one that had the name before
        for lost in self.watched.gone(hierarchy, name):
            self.triggers.close_group(lost)
            self.report("removed", lost)

    async def _cover(self) -> None:
        """Bring what is watched in line with what is wanted and there; groups that are new or gone are events."""
        began = time.monotonic()
        wanted: set[str] = set()
        for one in list(self.interests):
            wanted.update((one.group, *client.ancestors(one.group)[: None if "oom" in one.kinds else 1]))
        tops = {one.group for one in self.interests if one.below}
        tops = {top for top in tops if not tops.intersection(client.ancestors(top))}
        if tops:
            wanted.update(await self.guest.later(lambda tree: walk(tree, tops)))
        known = set(self.watched.groups)
        for name in sorted(wanted):
            self._ensure(await self._breathe(), name)
            if name not in known:
                self.report("created", name)
        for name in sorted(known - wanted, key=len, reverse=True):
            tree = await self._breathe()
            if name in self.watched.groups:
                self.watched.forget(name)
                if not tree.view.exists(name):
                    self.triggers.close_group(name)
                    self.report("removed", name)
        view = (await self._breathe()).view
        asked = {one.group for one in self.interests if "cpus" in one.kinds}
        self.cpus = {group: self.cpus.get(group) or cpus_of(view, group) for group in asked}
        self.looked = time.monotonic()
        self.took = self.looked - began
