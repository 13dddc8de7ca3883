"""Out of memory: the kernel's log, which names who was killed where, and v1's eventfds, which say whose memory it was.

Both are told besides the counters of v2, and of v1's memory.oom_control: the log of groups that are gone by the time
when their counters could be read; but not of every kill where there are many (mm/oom_kill.c, oom_rs), and not to
everybody. What the log has told, a counter does not tell again.
"""

from __future__ import annotations

import errno
import os
import select
import time

from nestrt.host.effective import ancestors
from nestrt.host.event_sources import EVENTFD
from nestrt.host.follow_place import Place
from nestrt.host.follow_tree import Tree
from nestrt.host.kill_log import Kill, parse_kill
from nestrt.kernel import kmsg, oom

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.event import Event, Guests
    from nestrt.host.follow_files import Files

RECORDS = 1000  # of the log, read at once
MOST_CREDITS = 4096  # groups
MOST_EVENTFDS = 4096  # a v1 memory group takes one
MOST_INSIDE = 256  # of one guest
SPARE = 256  # descriptors, for all else
SAME = 0.05  # s; what one cause makes v1 tell several groups comes this close together
INITIAL_NAMESPACE = 0xEFFFFFFB  # include/linux/proc_ns.h, PROC_CGROUP_INIT_INO
OOM_CONTROL = "memory.oom_control"
COUNTERS = (OOM_CONTROL, "memory.failcnt")  # what v1 does not notify, and has changed then


def sees_paths() -> bool:
    """Whether the paths in the kernel's log are those that we see: we are in the initial cgroup namespace."""
    try:
        return os.stat("/proc/self/ns/cgroup").st_ino == INITIAL_NAMESPACE
    except OSError:
        return False


def kill_event(kill: Kill, guests: Guests, at: float) -> Event | None:
    """The event of a kill in the log; None where it was in no guest."""
    guest = guests.of(kill.group) or guests.gone(kill.group)
    if guest is None:
        return None
    return guests.event(
        "oom_kill", kill.group, guest, at, count=1, task=kill.task, pid=kill.pid, uid=kill.uid, binds=kill.limit,
        source="kernel",
    )  # fmt: skip


class Log:
    """The kernel's log from now on. *descriptor* is -1 where it cannot be read, or tells of other paths than ours."""

    def __init__(self) -> None:
        self.descriptor = -1
        self._credits: dict[str, int] = {}
        if sees_paths():
            try:
                self.descriptor = kmsg.open(at_end=True)
            except OSError:
                pass

    def close(self) -> None:
        """Read no more."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def read(self, tree: Tree, files: Files) -> None:
        """Tell the kills of the records that are there now."""
        if self.descriptor < 0:
            return
        messages, _ = kmsg.read(self.descriptor, RECORDS)
        boot = kmsg.boot()
        for message in messages:
            if message.facility != kmsg.KERNEL:
                continue
            kill = parse_kill(message.text)
            if kill is None:
                continue
            self._credits[kill.group] = self._credits.get(kill.group, 0) + 1
            if len(self._credits) > MOST_CREDITS:
                del self._credits[next(iter(self._credits))]
            for group in {kill.group, kill.limit or kill.group}:
                files.mark(group, COUNTERS)
            # The log's own time, by which it is known again when the log is read later.
            event = kill_event(kill, tree.guests, boot + message.microseconds / 1e6)
            if event and "oom_kill" in tree.kinds:
                guest = tree.guests.of(kill.group)
                if guest is None or tree.wanted(guest):
                    tree.tell(event)

    def told(self, path: str, most: int) -> int:
        """How many kills of the group *path* have been told that its counter, which shows *most* more, shows now."""
        known = self._credits.pop(path, 0)
        if known > most:
            self._credits[path] = known - most
        return min(known, most)


class OomEvents:
    """v1's eventfds. *starved* are groups that have been told of, and not looked at."""

    def __init__(self, tree: Tree, epoll: select.epoll, files: Files) -> None:
        self.tree = tree
        self.epoll = epoll
        self.files = files
        self.starved: dict[tuple[str, int], tuple[float, int, str]] = {}
        self._places: dict[int, Place] = {}
        self._counts: dict[str, int] = {}  # by outermost guest
        self._tops: dict[int, str] = {}
        self._meant: dict[str, float] = {}
        self._most = min(MOST_EVENTFDS, max(os.sysconf("SC_OPEN_MAX") - SPARE, 16))

    def listen(self, place: Place) -> None:
        """Have v1 tell when the group has no memory."""
        source = place.files.get(OOM_CONTROL)
        if source is None or EVENTFD not in source.how or place.event >= 0 or "oom" not in self.tree.kinds:
            return
        top = self.tree.guests.top(place.path)
        if len(self._places) >= self._most or self._counts.get(top, 0) >= MOST_INSIDE:
            return
        try:
            event = oom.listen(place.hierarchy.path(place.path))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._most = len(self._places)
            return
        place.event = event
        self._places[event] = place
        self._tops[event] = top
        self._counts[top] = self._counts.get(top, 0) + 1
        self.epoll.register(event, select.EPOLLIN)

    def leave(self, place: Place) -> None:
        """The group has gone. The kernel says so by its eventfd too."""
        if place.event >= 0:
            del self._places[place.event]
            top = self._tops.pop(place.event)
            self._counts[top] -= 1
            if not self._counts[top]:
                del self._counts[top]
            self.epoll.unregister(place.event)
            os.close(place.event)
            place.event = -1

    def close(self) -> None:
        """Let go of all."""
        for place in list(self._places.values()):
            self.leave(place)

    def ready(self, descriptors: set[int]) -> None:
        """Take what the eventfds among *descriptors* say."""
        for descriptor in descriptors & self._places.keys():
            place = self._places[descriptor]
            try:
                count = os.eventfd_read(descriptor)
            except BlockingIOError:
                continue
            key = (place.path, place.inode)
            before = self.starved.get(key, (0.0, 0, ""))[1]
            self.starved[key] = (time.monotonic(), before + count, place.hierarchy.path(place.path))

    def look(self, wall: float) -> None:
        """v1 tells the group that is at its limit and all below it: the topmost is the one that is meant. It also
        tells a group that is removed, once."""
        starved, self.starved = self.starved, {}
        now = time.monotonic()
        self._meant = {path: at for path, at in self._meant.items() if now - at < 1.0}
        for (path, inode), (at, count, directory) in sorted(starved.items(), key=lambda one: one[0][0].count("/")):
            try:
                alive = os.stat(directory).st_ino == inode
            except OSError:
                alive = False
            if count <= (not alive):
                continue
            self.files.mark(path, COUNTERS)
            above = [self._meant[one] for one in ancestors(path)[:-1] if one in self._meant]
            self._meant[path] = at
            if not any(abs(at - one) < SAME for one in above):
                self.tree.report("oom", path, wall, key="memory.max", count=count - (not alive))
