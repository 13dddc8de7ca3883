"""What a reaction does to a group, and what holds the group until it is done: writes, for a thread of the guest's.

While it is being decided what happens to a group without memory, its tasks must wait, and the kernel's killer too:

v1   memory.oom_control holds 1: a task that faults sleeps until memory is freed, the limit raised, or the file holds 0
     again (cgroup-v1/memory.rst, section 10); a system call that needs memory fails with ENOMEM. The killer comes back
     when the broker has gone, however (guard.py), when nothing is to be done, and when what should be done cannot be.
v2   memory.high stands a little below memory.max: what goes beyond it is slowed down, up to 2 s for each 256 KiB, while
     the broker decides, and while an answer is awaited it stands so low that it is that slow at once. It is no wait
     without end: many tasks that allocate at a time, or one that gets more than that at once, reach memory.max, and
     there the kernel kills. And a group that does well between the two is slower than without a reaction.

kill needs neither: v2's kernel kills the whole group itself (memory.oom.group), with or without a broker. v1's kills
one process of it, and the broker the others after it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Callable

from nestrt.broker.reaction_text import Reaction, high_below, is_near, raised
from nestrt.broker.served import Tree
from nestrt.guest import client
from nestrt.guest.client import GuestError, Hierarchy, Setting, View
from nestrt.kernel import freezer

if TYPE_CHECKING:
    from nestrt.broker.guard import Guard

HIGH, GROUP, CONTROL = "memory.high", "memory.oom.group", "memory.oom_control"
KILL_PATIENCE = 10.0  # seconds
STOP_PATIENCE = 2.0
KILLER_PATIENCE = 5.0
STEP = 0.01
ATTEMPTS = 3  # to freeze


def memory(view: View, group: str) -> Hierarchy:
    """The hierarchy with the group's memory. Raises GuestError where it has none that could be limited."""
    hierarchy = view.holder("memory")
    file = CONTROL if hierarchy and hierarchy.version == 1 else "memory.max"
    if hierarchy is None or not os.path.exists(f"{hierarchy.dir(group)}/{file}"):
        reason = "its memory is not counted by itself"
        raise GuestError(5, f"react for group {group}", reason, f"{view.command} set {group} memory.max=SIZE")
    return hierarchy


def enable(tree: Tree, group: str) -> None:
    """Have the group's memory counted: v2's controllers are given downwards. Raises GuestError."""
    undo: list[tuple[str, str | None]] = []
    try:
        client.enable(tree.view, group, {"memory"}, undo)
        memory(tree.view, group)
    except BaseException:
        client.undone(undo)
        raise


def numbers(path: str) -> dict[str, int]:
    """The file's lines "name number"; {} where it is not there."""
    rows = [line.split() for line in (client.read(path) or "").splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def is_starving(view: View, group: str) -> bool:
    """v1: whether tasks of the group wait for memory."""
    hierarchy = view.holder("memory")
    return hierarchy is not None and bool(numbers(f"{hierarchy.dir(group)}/{CONTROL}").get("under_oom"))


def is_pressed(view: View, group: str, high: int) -> bool:
    """v2: whether the group is at its memory.high, with nothing left that could be taken from it."""
    hierarchy = view.holder("memory")
    if hierarchy is None:
        return False
    place = hierarchy.dir(group)
    stat = numbers(f"{place}/memory.stat")
    cache = stat.get("inactive_file", 0) + stat.get("active_file", 0) + stat.get("slab_reclaimable", 0)
    swap, used = (client.read(f"{place}/memory.swap.{name}") or "0" for name in ("max", "current"))
    left = client.parse_size(swap) - int(used)
    if left > 0:
        # In KiB; proc_meminfo(5).
        rows = [line.split() for line in (client.read("/proc/meminfo") or "").splitlines()]
        left = min(left, next((int(row[1]) << 10 for row in rows if row[0] == "SwapFree:"), 0))
    return is_near(int(client.read(f"{place}/memory.current") or 0), high, cache, left)


def kills_groups(view: View, group: str) -> bool:
    """Whether the kernel kills the whole group itself, and tells that it did: v2, since Linux 5.17."""
    hierarchy = view.holder("memory")
    return hierarchy is not None and "oom_group_kill" in numbers(f"{hierarchy.dir(group)}/memory.events.local")


def before(tree: Tree, reaction: Reaction) -> dict[str, str]:
    """What the files hold that Hold.set() writes to. Raises GuestError."""
    if reaction.on != "oom":
        return {}
    hierarchy = memory(tree.view, reaction.group)
    place = hierarchy.dir(reaction.group)
    if hierarchy.version == 1:
        disabled = numbers(f"{place}/{CONTROL}").get("oom_kill_disable", 0)
        return {CONTROL: str(disabled)} if reaction.waits else {}
    file = HIGH if reaction.waits else GROUP
    text = client.read(f"{place}/{file}")
    return {} if text is None else {file: text}


class Hold:
    """What holds one group for one reaction. *was*: what its files held before; *key*: for the guard.

    No thread of the guest's can be called back, so one may still be at work when the group is released: under *lock*
    it sees that, and leaves the files, which may be another Hold's by then, alone.
    """

    def __init__(self, reaction: Reaction, was: dict[str, str], guard: Guard, key: str) -> None:
        self.reaction = reaction
        self.group = reaction.group
        self.was = was
        self.guard = guard
        self.key = key
        self.maximum: float | None = None  # the memory.max at set()
        self.threshold: int | None = None  # v2: the use in bytes at which something is to be done
        self.high: int | None = None  # v2: what memory.high holds because of this
        self.by_kernel = False  # v2 kills the group itself
        self.lock = threading.Lock()
        self.released = False

    def set(self, tree: Tree) -> None:
        """Hold the group, from now on. May be done again. Raises GuestError, OSError."""
        if self.reaction.on != "oom":
            return
        hierarchy = memory(tree.view, self.group)
        with self.lock:
            high = None if self.released else self._set(tree, hierarchy)
        if high is not None:
            self._write_high(hierarchy.dir(self.group), high)

    def _set(self, tree: Tree, hierarchy: Hierarchy) -> int | None:
        """What is to be written to v2's memory.high: that may take long, and nobody waits for the lock meanwhile."""
        place = hierarchy.dir(self.group)
        if not self.reaction.waits:
            if hierarchy.version == 2:
                self._set_group(place)
            return None
        self.maximum = tree.view.value(self.group, "memory.max")
        if hierarchy.version == 2:
            return self._high(place)
        if self._is_done():
            client.write(f"{place}/{CONTROL}", self.was.get(CONTROL, "0"))
            self.guard.drop(self.key)
        else:
            self._guard(f"{place}/{CONTROL}", self.was.get(CONTROL, "0"))
            client.write(f"{place}/{CONTROL}", "1")
        return None

    def _is_done(self) -> bool:
        """Whether the group has all that it may be raised to, and nothing else is to be done: there is nothing to wait
        for."""
        reaction = self.reaction
        most = client.parse_size(reaction.most or "max")
        done = self.maximum is not None and self.maximum >= most
        return done and reaction.action == "raise" and reaction.fallback in (None, "nothing")

    def is_stale(self, tree: Tree) -> bool:
        """Whether memory.max is another one than at set()."""
        return self.reaction.waits and tree.view.value(self.group, "memory.max") != self.maximum

    def release(self, tree: Tree) -> None:
        """Put back what was there, as far as nobody else has changed it since."""
        hierarchy = tree.view.holder("memory")
        files = dict(self.was)
        if hierarchy is None or self.reaction.on != "oom":
            files = {}
        elif hierarchy.version == 1 and self.reaction.waits:
            files.setdefault(CONTROL, "0")
        with self.lock:
            self.released = True
            for file, text in files.items():
                path = f"{hierarchy.dir(self.group)}/{file}" if hierarchy else ""
                if file == HIGH and client.read(path) != str(self.high):
                    continue
                try:
                    client.write(path, text)
                except OSError:  # the group has gone
                    continue
            self.guard.drop(self.key)

    def let_go(self) -> None:
        """As release(), where the guest's tree cannot be had any more, or the group may have another name."""
        with self.lock:
            self.released = True
            self.guard.drop(self.key, put_back=True)

    def set_killer(self, place: str, text: str) -> None:
        """v1: write *text* to memory.oom_control in the directory *place*, unless the group was released. Raises
        OSError."""
        with self.lock:
            if not self.released:
                client.write(f"{place}/{CONTROL}", text)

    def tighten(self, tree: Tree) -> None:
        """v2: while an answer is awaited, let nothing that allocates go on at its own speed."""
        hierarchy = memory(tree.view, self.group)
        if self.high is not None:
            use = int(client.read(f"{hierarchy.dir(self.group)}/memory.current") or 0)
            self._write_high(hierarchy.dir(self.group), min(self.high, use * 3 // 4 // 4096 * 4096))

    def let_kernel(self, tree: Tree) -> None:
        """Let the kernel do what it would have done. v1: back when it has; v2: set() comes later."""
        hierarchy = memory(tree.view, self.group)
        place = hierarchy.dir(self.group)
        if hierarchy.version == 2:
            with self.lock:
                if self.high is not None and not self.released:
                    client.write(f"{place}/{HIGH}", self.was.get(HIGH, "max"))
                    self.high = None
            return
        killed = numbers(f"{place}/{CONTROL}").get("oom_kill", 0)
        if not self._is_held(place):
            return
        self.set_killer(place, "0")
        try:
            # Those that wait are woken, and try once more: only then does it kill.
            if not _until(lambda: numbers(f"{place}/{CONTROL}").get("oom_kill", killed) != killed, KILLER_PATIENCE / 5):
                _until(lambda: not is_starving(tree.view, self.group), KILLER_PATIENCE)
        finally:
            self.set_killer(place, "1")

    @staticmethod
    def _is_held(place: str) -> bool:
        return bool(numbers(f"{place}/{CONTROL}").get("oom_kill_disable"))

    def _set_group(self, place: str) -> None:
        try:
            client.write(f"{place}/{GROUP}", "1")
            self.by_kernel = True
        except OSError:  # before Linux 4.19
            self.by_kernel = False

    def _high(self, place: str) -> int | None:
        limited = self.maximum is not None and not self._is_done()
        self.threshold = high_below(self.maximum or 0, self.reaction.seconds) if limited else None
        before = self.was.get(HIGH, "max")
        if self.threshold is None or client.parse_size(before) <= self.threshold:
            # It has no limit or all it can get, or its owner holds it lower than we would.
            if self.high is not None:
                client.write(f"{place}/{HIGH}", before)
            self.high = None
            self.guard.drop(self.key)
            return None
        self._guard(f"{place}/{HIGH}", before)
        return self.threshold

    def _guard(self, path: str, text: str) -> None:
        if self.key not in self.guard.held:
            self.guard.hold(self.key, path, text)

    def _write_high(self, place: str, value: int) -> None:
        path = f"{place}/{HIGH}"
        with self.lock:
            late = self.released
            if not late:
                self.high = value
        if late:
            return
        # First what it will hold, then the write: that one reclaims, and takes its time.
        client.write(path, str(value))
        with self.lock:
            # release() may have looked just before this value was there.
            if self.released and client.read(path) == str(value):
                client.write(path, self.was.get(HIGH, "max"))


def _until(done: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(STEP)
    return True


# The actions. Each returns what was done, for a person: (key, old, new). Raises GuestError, OSError.


def kill(tree: Tree, group: str) -> tuple[str, str, str]:
    """End all processes of the group and of those below."""
    view = tree.view
    groups = view.tree(group)[::-1]
    count = len(set().union(*map(view.processes, groups)))
    client.kill(view, groups, time.monotonic() + KILL_PATIENCE)
    return "processes", str(count), "0"


def freeze(tree: Tree, group: str, hold: Hold | None) -> tuple[str, str, str]:
    """Stop all processes of the group and of those below; *hold*: v1's tasks that wait for memory because of it are let
    out of that to be stopped too, and wait again when the group is thawed."""
    view = tree.view
    place, version = _freezer(view, group, "freeze")
    # Who runs now may have to wait for memory a moment later, and then cannot be stopped.
    for _ in range(ATTEMPTS):
        if hold and is_starving(view, group):
            _stop_waiting(view, hold, place, version)
        if freezer.freeze(place, version):
            return "frozen", "0", "1"
        if not (hold and is_starving(view, group)):
            break
    raise GuestError(4, f"freeze group {group}", "some of its processes do not stop", "they go on")


def _stop_waiting(view: View, hold: Hold, place: str, version: int) -> None:
    """v1: have tasks that wait for memory try once more, and run into the freezer then."""
    state = freezer.V1_STATE if version == 1 else freezer.V2_STATE
    client.write(f"{place}/{state}", "FROZEN" if version == 1 else "1")
    # Those that run, run into it. One that is still on its way there, and needs memory while the killer is back, has it
    # kill.
    time.sleep(STEP)
    _until(lambda: not freezer.goes_on(place), STOP_PATIENCE)
    control = memory(view, hold.group).dir(hold.group)
    hold.set_killer(control, "0")
    try:
        _until(lambda: _has_stopped(place, version), STOP_PATIENCE)
    finally:
        hold.set_killer(control, "1")


def thaw(tree: Tree, group: str) -> tuple[str, str, str]:
    """Let all processes of the group go on."""
    freezer.thaw(*_freezer(tree.view, group, "thaw"))
    return "frozen", "1", "0"


def is_stopped(view: View, group: str) -> bool:
    """Whether all processes of the group have stopped."""
    return _has_stopped(*_freezer(view, group, "freeze"))


def _freezer(view: View, group: str, operation: str) -> tuple[str, int]:
    """The group's directory in the hierarchy that freezes, and that one's version. Raises GuestError."""
    places = [h for h in view.hierarchies if h.version == 1 and "freezer" in h.controllers]
    places += [h for h in view.hierarchies if h.version == 2]
    found = next((h for h in places if os.path.isdir(h.dir(group))), None)
    if found is None:
        raise GuestError(5, f"{operation} group {group}", "no hierarchy of this guest can", "see nestrt check")
    return found.dir(group), found.version


def _has_stopped(place: str, version: int) -> bool:
    if version == 1:
        return client.read(f"{place}/{freezer.V1_STATE}") == "FROZEN"
    return "frozen 1" in (client.read(f"{place}/{freezer.V2_EVENTS}") or "")


def raise_limit(tree: Tree, reaction: Reaction) -> tuple[str, str, str]:
    """Give the group one step more memory, at most as much as those above it can give."""
    view, group = tree.view, reaction.group
    operation = f"raise memory.max of group {group}"
    now = view.value(group, "memory.max")
    if reaction.step is None or reaction.most is None or now is None:
        raise GuestError(5, operation, "nothing says by how much, or it has no memory.max", "")
    step, most = client.parse_size(reaction.step), client.parse_size(reaction.most)
    above = [(view.value(one, "memory.max"), _held(view, one)) for one in client.ancestors(group)]
    new = raised(now, step, most, [(limit, use) for limit, use in above if limit not in (None, client.MAX)])
    if new <= now:
        full = next((g for g, (limit, use) in zip(client.ancestors(group), above, strict=True)
                     if limit is not None and limit - use < client.parse_size("64K")), "")  # fmt: skip
        why = f"group {full} has no more" if full else f"it has {client.show_size(now)} of at most {reaction.most}"
        raise GuestError(5, operation, why, "")
    setting = Setting("memory.max", new, client.show_size(new))
    client.check_setting(view, group, setting)
    undo: list[tuple[str, str | None]] = []
    try:
        client.apply(view, group, [setting], undo)
    except BaseException:
        client.undone(undo)
        raise
    return "memory.max", client.show_size(now), client.show_size(new)


def _held(view: View, group: str) -> float:
    """Bytes in use of a group that the kernel could not take from it at once: all but files in memory."""
    hierarchy = view.holder("memory")
    stat = numbers(f"{hierarchy.dir(group)}/memory.stat") if hierarchy else {}
    prefix = "total_" if hierarchy and hierarchy.version == 1 else ""
    cache = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return max((view.use(group, "memory.max") or 0) - cache, 0)
