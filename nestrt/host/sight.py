"""What the host says of a guest: its state, limits, usage, groups, processes and devices.

Everything is read when it is asked for, and what is asked for twice is read once
(for one picture: a Sight is made for each command and thrown away).
"""

from __future__ import annotations

import fcntl
import os

from nestrt.errors import InputError, NotFound
from nestrt.host.effective import Limit, Reader, cpu_time
from nestrt.host.marks import escape, read_stamp, valid_name
from nestrt.host.processes import Process, add_commands, control_text, first_process, is_running, processes
from nestrt.host.short import whole_name
from nestrt.host.walk import Guest, View
from nestrt.kernel import bpf
from nestrt.level.values import closest
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATE_DIR = "/run/nestrt/guests"


@record
class Devices:
    """Device rules of a limit group: *rules* as v1's devices.list has them (the kernel keeps them
    within the parent's), or the ids of the *programs* attached to it and to its ancestors on v2."""

    rules: tuple[str, ...] = ()
    programs: tuple[int, ...] = ()
    inherited: tuple[int, ...] = ()


class Sight:
    """One picture of the guests in *view*; *names* are what groups are called where they bind."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.names = {guest.path: guest.name for guest in view.everyone()}
        # Seen from inside a guest, "/" is its guest root, which shows what the levels above allow.
        self.names["/"] = f"level {view.level}"
        self.reader = Reader()
        self._running: dict[str, bool] = {}
        self._processes: dict[str, list[Process]] = {}
        self._commands: set[str] = set()

    def processes(self, guest: Guest) -> list[Process]:
        """The processes in the guest's own groups, without those of its guests."""
        found = self.members(guest)
        if guest.path not in self._commands:
            self._commands.add(guest.path)
            add_commands(found)
        return found

    def members(self, guest: Guest) -> list[Process]:
        """The same; the command lines may not have been read, and commands be names in brackets."""
        if guest.path not in self._processes:
            self._processes[guest.path] = processes(guest, self.view, commands=False)
        return self._processes[guest.path]

    def pid(self, guest: Guest) -> int:
        """The guest's first process, by the number that we see it under; -1 if it has ended."""
        return first_process(guest, self.members(guest) if guest.claim else [])

    def state(self, guest: Guest) -> str:
        """creating, running, paused or stopped, as things are and not as a mark says.

        *creating*: its launcher holds the lock on the state file. *paused*: it has processes and its
        limit group is frozen. *stopped*: no group of it, in no hierarchy, has a process.
        """
        if guest.mark.state == "creating" and not guest.claim and is_launching(guest.mark.name):
            return "creating"
        if not is_running(guest, self.view, self._running):
            return "stopped"
        return "paused" if self._frozen(guest) else "running"

    def _frozen(self, guest: Guest) -> bool:
        for hierarchy in self.view.hierarchies:
            v2 = hierarchy.version == 2
            if v2 or "freezer" in hierarchy.controllers:
                try:
                    text = control_text(hierarchy.path(guest.path, "cgroup.events" if v2 else "freezer.state"))
                except OSError:
                    continue
                if "frozen 1" in text or text.startswith("FROZEN"):
                    return True
        return False

    def limit(self, guest: Guest, key: str) -> Limit | None:
        """The limit *key* ("memory.max") of the guest's limit group; None where no hierarchy has it."""
        for hierarchy in self.view.hierarchies:
            if hierarchy.name in guest.hierarchies:
                for candidate in self.reader.keys(hierarchy, guest.path):
                    if candidate.name == key and (found := self.reader.limit(hierarchy, candidate, guest.path)):
                        return found
        return None

    def limits(self, path: str, names: tuple[str, ...]) -> list[Limit]:
        """All limits of the group *path*, which the hierarchies *names* have."""
        return self.reader.limits(tuple(h for h in self.view.hierarchies if h.name in names), path)

    def forget(self, guest: Guest) -> None:
        """Keep nothing of *guest* that was read for this picture: nobody asks again."""
        self._processes.pop(guest.path, None)
        for hierarchy in self.view.hierarchies:
            self.reader.forget(hierarchy.path(path) for path in (guest.path, *(g.path for g in guest.groups)))

    def cpu_time(self, guest: Guest) -> int | None:
        """µs of CPU time that the guest used, its guests included; None where nothing counts it."""
        return cpu_time(tuple(h for h in self.view.hierarchies if h.name in guest.hierarchies), guest.path)

    def caps(self, guest: Guest) -> dict[str, int | None]:
        """The caps on "groups" and "depth" below the limit group; -1: none, None: no v2 tree to have them."""
        found: dict[str, int | None] = {"groups": None, "depth": None}
        for hierarchy in self.view.hierarchies:
            if hierarchy.version == 2 and hierarchy.name in guest.hierarchies:
                for key, file in (("groups", "cgroup.max.descendants"), ("depth", "cgroup.max.depth")):
                    try:
                        text = control_text(hierarchy.path(guest.path, file)).strip()
                        found[key] = -1 if text == "max" else int(text)
                    except (OSError, ValueError):
                        continue
        return found

    def devices(self, guest: Guest) -> Devices:
        """The device rules on the limit group. Without the right to ask (bpf(2)) there are no ids."""
        found = Devices()
        for hierarchy in self.view.hierarchies:
            if hierarchy.name not in guest.hierarchies:
                continue
            path = hierarchy.path(guest.path)
            try:
                if "devices" in hierarchy.controllers:
                    found.rules = tuple(control_text(path + "/devices.list").splitlines())
                elif hierarchy.version == 2:
                    found.programs = bpf.query(path)
                    effective = bpf.query(path, effective=True)
                    found.inherited = tuple(number for number in effective if number not in found.programs)
            except OSError:
                continue
        return found

    def stamp(self, guest: Guest) -> dict[str, Any]:
        """What the guest root tells the guest about itself; {} if nothing."""
        for hierarchy in self.view.hierarchies:
            if stamp := read_stamp(hierarchy.path(guest.root)):
                return stamp
        return {}


def is_launching(name: str) -> bool:
    """Whether a launcher holds the lock on the guest's state file (flock(2)).

    A shared lock is tried, and only where the mark says "creating": two lookers do not
    hinder each other, and a launcher has had its lock since before there was a mark.
    """
    if not valid_name(name):
        return False
    try:
        fd = os.open(f"{STATE_DIR}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def count_groups(guest: Guest) -> int:
    """The groups of a guest and of all its guests, guest roots and limit groups inside it included."""
    return sum(len(inner.groups) for inner in guest.everyone()) + sum(1 for _ in guest.everyone()) - 1


def _is_group(guest: Guest, name: str) -> bool:
    """Whether *name* is a guest's ("web") and that of a group in it ("web/job")."""
    path = guest.root + name[len(guest.name) :]
    return name.startswith(guest.name + "/") and any(group.path == path for group in guest.groups)


def find(view: View, name: str) -> Guest:
    """The guest called *name* ("web", "web/db"), or whose limit group's path that is ("/nestrt/web").

    The beginning of an engine's id will do: see short.py. A guest of this level comes before a claim of the same name.
    Raises NotFound, naming what is close, and InputError where claims of one name, or ids, cannot be told apart.
    """
    given, name = name, whole_name(name, view.guests)
    everyone = list(view.everyone())
    found = [guest for guest in everyone if name in (guest.name, guest.path)]
    found = [guest for guest in found if not guest.claim] or found
    if len(found) == 1:
        return found[0]
    if found:
        paths = " or ".join(guest.path for guest in found[:8])
        raise InputError("tell which guest is meant by", name, f"{len(found)} groups claim this name", f"say {paths}")
    around = next((guest for guest in everyone if _is_group(guest, name)), None)
    near = f"{around.name}:{name[len(around.name) :]}" if around else closest(name, [g.name for g in everyone[:1000]])
    remedy = f"did you mean {escape(near)}?" if near else "nestrt ls shows all guests"
    if not everyone:
        remedy = "there is no guest in sight at all"
    raise NotFound("find", f"guest {given}", "there is no such guest", remedy)
