"""Why a group gets no more: for each limit the chain from the group up to the root, and who said what.

    /                             max
    /nestrt/web           512M    400M used   ← binds   host (policy nested)
    /nestrt/web/guest     512M    400M used             host
    /nestrt/web/guest/job   2G     20M used             web
    in the way: /nestrt/web/guest/db 380M

Only directories on the way are looked at, so that it takes as long on a host with ten groups as with
a hundred thousand. "Who" follows from where a group is: a limit group and its guest root are written by the level
that made the guest, what is below by the guest, what is outside of guests by the level that looks.
"""

from __future__ import annotations

import os

from nestrt.errors import InputError, NotFound
from nestrt.host.effective import Reader, ancestors, usage
from nestrt.host.keys import Key
from nestrt.host.marks import escape
from nestrt.host.processes import Process, processes, read_text
from nestrt.host.short import LONGEST_PID
from nestrt.host.sight import find
from nestrt.host.walk import Guest, View, along, at, walk_to
from nestrt.kernel.mountinfo import read_cgroups
from nestrt.level.units import MAX, PERIOD
from nestrt.plan.facts import Hierarchy
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.keys import Value

# Of the groups beside ours that use most of what binds, so many are named; more than so many are not looked at.
MOST_NAMED = 3
MOST_SIBLINGS = 10000


@record
class Step:
    """One group on the way: its own *value* (None: it has no such file), its *usage* where the kernel counts it, who
    set the value ("" for none), and what is left of it (-1: no limit or not counted)."""

    group: str
    value: Value | None
    usage: int | None
    set_by: str
    left: int


@record
class Answer:
    """All about one *key* of one group. *effective* and *binds* as in effective.Limit; *left* is the least that any
    group on the way has left, in *tightest*; *others* are the groups beside ours there that use most: (path, usage).
    *machine* is what all groups of a host share, -1 where that is not known."""

    key: Key
    hierarchy: Hierarchy
    steps: list[Step]
    effective: Value
    binds: str | dict[str, str]
    left: int
    tightest: str
    others: list[tuple[str, int]]
    machine: int = -1


@record
class Subject:
    """What is asked about: the groups of the hierarchies' names, and, for a pid, the process. *view* has the guests
    around it."""

    groups: dict[str, str]
    view: View
    process: Process | None = None

    def guest(self, path: str) -> Guest | None:
        """The innermost guest that the group *path* is of."""
        found = None
        for guest in self.view.everyone():
            if path == guest.path or path.startswith(guest.path + "/"):
                found = guest
        return found


def subject(hierarchies: tuple[Hierarchy, ...], text: str) -> Subject:
    """What *text* means: a pid, a guest's name ("web", "web/db") or short id, a group of one ("web:/job"), a group's
    path ("/nestrt/web") or directory ("/sys/fs/cgroup/memory/nestrt/web"). Raises NotFound, InputError."""
    if text.isascii() and text.isdigit() and len(text) <= LONGEST_PID:
        return _of_pid(hierarchies, int(text))
    name, colon, inner = text.partition(":")
    if text.startswith("/"):
        groups = _existing(hierarchies, _below_mountpoint(hierarchies, text))
    else:
        guest = _guest(hierarchies, name)
        path = guest.root + (_clean(inner) if colon else "")
        # What the guest has is what its root shows; a guest that is not virtualized has none.
        groups = _existing(hierarchies, path) or (_existing(hierarchies, guest.path) if not colon else {})
    if not groups:
        raise NotFound("explain", f"group {escape(text)}", "no hierarchy has it", "nestrt tree shows all groups")
    return Subject(groups, along(hierarchies, groups))


def _guest(hierarchies: tuple[Hierarchy, ...], name: str) -> Guest:
    """The guest *name*, where launch puts it if it is there, else by looking everywhere. Raises NotFound."""
    likely = "/nestrt/" + "/guest/nestrt/".join(name.split("/"))
    if groups := _existing(hierarchies, likely):
        near = [guest for guest in along(hierarchies, groups).everyone() if guest.name == name]
        if near and not near[0].claim:
            return near[0]
    return find(walk_to(hierarchies, [name]), name)


def _clean(path: str) -> str:
    """*path* with one slash before each name, "" for the root. Raises InputError for ``..`` and NUL."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise InputError("explain", f"group {escape(path)}", "it is no path of a group", "leave out ..")
    return "".join("/" + part for part in parts)


def _below_mountpoint(hierarchies: tuple[Hierarchy, ...], text: str) -> str:
    """The path of a group, whether the mountpoint is in front of it or not; "/" for the root."""
    path = _clean(text)
    # The longest first: /sys/fs/cgroup may be one, and /sys/fs/cgroup/unified another.
    for hierarchy in sorted(hierarchies, key=lambda h: -len(h.mountpoint)):
        for top in (hierarchy.mountpoint, *(os.path.dirname(hierarchy.mountpoint) + f"/{n}" for n in hierarchy.links)):
            if path == top or path.startswith(top + "/"):
                return path[len(top) :] or "/"
    return path or "/"


def _existing(hierarchies: tuple[Hierarchy, ...], path: str) -> dict[str, str]:
    found = {}
    for hierarchy in hierarchies:
        try:
            at(hierarchy.path(path), os.stat)
        except (OSError, ValueError):
            continue
        found[hierarchy.name] = path
    return found


def _of_pid(hierarchies: tuple[Hierarchy, ...], pid: int) -> Subject:
    """Where the process is, in each hierarchy. Raises NotFound; InputError for one outside of what we see."""
    try:
        places = read_cgroups(str(pid))
    except OSError as error:
        reason = "there is no such process" if error.errno in (2, 3) else error.strerror or "it cannot be read"
        raise NotFound("explain", f"pid {pid}", reason, "nestrt ps shows the processes of guests") from error
    groups = {}
    for hierarchy in hierarchies:
        names = tuple(name for name in hierarchy.options.split(",") if name != "none") if hierarchy.version == 1 else ()
        place = places.get(names)
        if place and not place.startswith("/.."):
            groups[hierarchy.name] = place
    if not groups:
        reason = "its groups are outside of what this level sees"
        raise InputError("explain", f"pid {pid}", reason, "ask at the level above")
    view = along(hierarchies, groups)
    found = Subject(groups, view)
    everyone = list(view.everyone())
    for guest in reversed(everyone):
        if process := next((one for one in processes(guest, view) if one.pid == pid), None):
            found.process = process
            break
    return found


def _setter(found: Subject, group: str) -> str:
    """Who writes the limits of *group*."""
    view = found.view
    here = "host" if view.level == 0 else f"level {view.level} ({view.name})"
    if group == "/":
        return "the kernel" if view.level == 0 else f"level {view.level - 1}"
    chain = [g for g in view.everyone() if group == g.path or group.startswith(g.path + "/")]
    if not chain:
        return here
    guest = chain[-1]
    if group.startswith(guest.root + "/") and guest.root != guest.path:
        return guest.name
    if group not in (guest.path, guest.root):
        return guest.name if len(chain) > 1 else here
    return chain[-2].name if len(chain) > 1 else here


def answers(found: Subject, reader: Reader, hierarchies: tuple[Hierarchy, ...]) -> list[Answer]:
    """Every limit of the groups of *found*, by hierarchy and controller; a group that goes away has none."""
    result = []
    for hierarchy in hierarchies:
        path = found.groups.get(hierarchy.name)
        for key in reader.keys(hierarchy, path) if path else ():
            assert path is not None
            answer = _answer(found, reader, hierarchy, key, path)
            if answer is not None:
                result.append(answer)
    return result


def _answer(found: Subject, reader: Reader, hierarchy: Hierarchy, key: Key, path: str) -> Answer | None:
    limit = reader.limit(hierarchy, key, path)
    if limit is None:
        return None
    steps = []
    left, tightest = -1, ""
    for group in ancestors(path):
        value = reader.value(hierarchy, key, group)
        used = usage(hierarchy, key, group) if value is not None else None
        room = max(0, value - used) if isinstance(value, int) and value != MAX and used is not None else -1
        if room >= 0 and (left < 0 or room < left):
            left, tightest = room, group
        limited = value is not None and value not in (MAX, frozenset(), {})
        steps.append(Step(group, value, used, _setter(found, group) if limited else "", room))
    others = _others(hierarchy, key, tightest, path) if tightest and tightest != path else []
    machine = _machine(key.name) if found.view.level == 0 else -1
    return Answer(key, hierarchy, steps, limit.effective, limit.binds, left, tightest, others, machine)


def _machine(key: str) -> int:
    """What the machine has of a key, in its unit; -1 where the root's own file says it, or nothing does."""
    try:
        if key == "memory.max":
            words = read_text("/proc/meminfo").split()
            return int(words[words.index("MemTotal:") + 1]) << 10
        if key == "cpu.max":
            return (os.cpu_count() or -1) * PERIOD
        if key == "pids.max":
            # proc_sys_kernel(5): each bounds tasks, and pids are of tasks.
            return min(int(read_text(f"/proc/sys/kernel/{name}")) for name in ("pid_max", "threads-max"))
    except (OSError, ValueError, IndexError):
        pass
    return -1


def _others(hierarchy: Hierarchy, key: Key, group: str, path: str) -> list[tuple[str, int]]:
    """The groups below *group*, beside the way to *path*, that use most of what *group* has: not those above others,
    nor those below *path*, which are no others."""
    on_the_way = set(ancestors(path))
    used = []
    for above in ancestors(path)[:-1]:
        if above != group and not above.startswith(group.rstrip("/") + "/"):
            continue
        try:
            with os.scandir(hierarchy.path(above)) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        for name in names[:MOST_SIBLINGS]:
            beside = f"{above.rstrip('/')}/{name}"
            if beside not in on_the_way and (number := usage(hierarchy, key, beside)):
                used.append((beside, number))
    return sorted(used, key=lambda item: (-item[1], item[0]))[:MOST_NAMED]


def guest_path(found: Subject, group: str) -> str | None:
    """What the guest that *group* is of calls it ("/job"); None outside of guest roots."""
    guest = found.guest(group)
    if guest is None or not (group == guest.root or group.startswith(guest.root + "/")):
        return None
    return group[len(guest.root) :] or "/"
