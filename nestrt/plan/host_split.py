"""The classic split of a host: system tasks always get their share, guests divide the rest. Values in, Steps out.

    /                    its own threads compete one by one, as if each stood in a group of weight 100 (1024 shares)
    ├ system …           groups of the system: their weights are left alone
    └ nestrt …           the parents of guests: together as heavy as is left of 100 % beside the heaviest of those

CPU time goes by weight, so nobody waits for what is idle: Documentation/admin-guide/cgroup-v2.rst, "Weights" and "CPU
controller root cgroup process behaviour"; scheduler/sched-design-CFS.rst, "Group scheduler extensions", for v1. Where
several groups of the system are busy they get more together, never less. A quota (hard) holds for guests even then.
"""

from __future__ import annotations

from nestrt import jsontext
from nestrt.errors import HostError, InputError, StateError
from nestrt.plan.facts import Hierarchy
from nestrt.plan.host_steps import EnableControllers, FillCpuset, MakeGroup, SetFile
from nestrt.plan.steps import Step
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VERSION = 1
PERIOD = 100_000  # µs
SYSTEM = "/system"
GUESTS = "/nestrt"
# Files of a group, v1 and v2, by what they mean; the range of a weight, and the weight of one thread of nice 0.
FILES = {
    "weight": {1: "cpu.shares", 2: "cpu.weight"},
    "quota": {1: "cpu.cfs_quota_us", 2: "cpu.max"},
    "memory": {1: "memory.limit_in_bytes", 2: "memory.max"},
    "usage": {1: "memory.usage_in_bytes", 2: "memory.current"},
    "low": {2: "memory.low"},
}
WEIGHTS = {1: (2, 262144), 2: (1, 10000)}
DEFAULT = {1: 1024, 2: 100}


@record
class Split:
    """What was asked for: *share* of the CPU time for the system (0 to 1), *memory* bytes for it, None: not divided.

    *guests* are the parents of guests, groups right below "/". *hard*: guests get no more even of what is idle. *move*:
    the user's processes of the root group go to *system*.
    """

    share: float
    guests: tuple[str, ...] = (GUESTS,)
    hard: bool = False
    memory: int | None = None
    system: str = SYSTEM
    move: bool = False


@record
class Group:
    """A group right below "/", as it stands: its cpu weight, and what this command remembers of it (Kept)."""

    path: str
    weight: int
    kept: Kept | None = None


@record
class Kept:
    """What is remembered on a group that the split has changed, in one hierarchy.

    *role*: "guests" or "system". *was* has the former text of each file, *made*: the group was not there before.
    *system*: where the processes of the root group were to go, "" if nowhere.
    """

    role: str
    was: dict[str, str]
    made: bool = False
    system: str = ""


@record
class State:
    """One level as it stands: the hierarchies with cpu and memory (the same one on v2), the groups below "/" in each,
    how many user processes and threads the root group itself has, *cpus* and *memory* bytes that the level has.

    *usage* has the bytes in use by group. *systemd*: it runs this level, and owns the groups right below "/".
    """

    cpu: Hierarchy | None
    groups: tuple[Group, ...]
    memory: Hierarchy | None
    memory_groups: tuple[Group, ...]
    processes: int
    threads: int
    cpus: float
    bytes: int
    usage: dict[str, int]
    systemd: bool = False


@record
class Keep(Step):
    """Write down what a group has in files that are to be changed; a text that is "" is read, unless it is written
    down already."""

    hierarchy: Hierarchy
    group: str
    kept: Kept

    def describe(self) -> str:
        what = f"what it has in {', '.join(sorted(self.kept.was))}" if self.kept.was else "that it is of the split"
        return f"remember on {self.hierarchy.path(self.group)} {what}"


@record
class Forget(Step):
    """Take that off again."""

    hierarchy: Hierarchy
    group: str

    def describe(self) -> str:
        return f"remember nothing on {self.hierarchy.path(self.group)}"


@record
class MoveTasks(Step):
    """Move the user's processes of group *source* to *target*, those born meanwhile too; kernel threads stay."""

    hierarchy: Hierarchy
    source: str
    target: str

    def describe(self) -> str:
        source, target = (self.hierarchy.path(group) for group in (self.source, self.target))
        return f"move the user processes of {source} to {target}"


@record
class RemoveGroup(Step):
    """Remove a group that the split has made, if nothing is in it."""

    hierarchy: Hierarchy
    group: str

    def describe(self) -> str:
        return f"remove {self.hierarchy.path(self.group)} if it is empty"


def format_kept(kept: Kept) -> str:
    """The attribute's text."""
    return jsontext.dumps({"v": VERSION, **kept.__dict__})


def parse_kept(text: str) -> Kept | None:
    """What format_kept() wrote; None for anything else."""
    try:
        value = jsontext.loads(text)
        was = {str(file): str(before) for file, before in value["was"].items()}
        kept = Kept(str(value["role"]), was, value["made"] is True, str(value["system"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return kept if value["v"] == VERSION and not any("/" in file for file in was) else None


# Shares


def heaviest(state: State, guests: Iterable[str], moved: bool) -> int:
    """The weight of the heaviest group that is no parent of guests, or of one thread of the root group."""
    assert state.cpu is not None
    default = DEFAULT[state.cpu.version]
    file = FILES["weight"][state.cpu.version]
    others = [
        int(group.kept.was.get(file, group.weight)) if group.kept else group.weight  # it gets that back
        for group in state.groups
        if group.path not in guests
    ]
    return max([*others, *([default] if moved or state.threads or not others else [])])


def guests_weight(share: float, system: int, version: int, count: int) -> int:
    """What each of *count* parents of guests weighs, so that *system* gets *share* of the CPU time beside all of them.

    Raises InputError where the kernel has no such weight.
    """
    low, high = WEIGHTS[version]
    weight = round(system * (1 - share) / share / count)
    if weight > high or weight < low:
        most, least = system / (system + low * count), system / (system + high * count)
        obj, reason = f"the system's share to {share:.3%}", f"weights go from {low} to {high}"
        raise InputError("set", obj, reason, f"give at least {least:.2%} and at most {most:.2%}")
    return weight


def shares(state: State) -> dict[str, float]:
    """The share of the CPU time of each group below "/" when all are busy, and of all threads of "/" itself."""
    if state.cpu is None:
        return {}
    own = state.threads * DEFAULT[state.cpu.version]
    whole = sum(group.weight for group in state.groups) + own
    found = {group.path: group.weight / whole for group in state.groups} if whole else {}
    return {**found, **({"/": own / whole} if own else {})}


def system_alone(state: State, guests: Iterable[str]) -> dict[str, float]:
    """The share of each group of the system where it alone is busy beside all parents of guests; "/": one thread."""
    if state.cpu is None:
        return {}
    theirs = sum(group.weight for group in state.groups if group.path in guests)
    others = {group.path: group.weight for group in state.groups if group.path not in guests}
    if state.threads:
        others["/"] = DEFAULT[state.cpu.version]
    return {path: weight / (weight + theirs) for path, weight in others.items()}


# Steps


def init_steps(state: State, split: Split) -> list[Step]:
    """All that makes the split, and takes back what an earlier one has set and this one does not.

    Raises InputError, HostError, StateError.
    """
    if state.cpu is None:
        raise HostError("split", "the CPU time", "no hierarchy of this level has the cpu controller", "mount it")
    _check(state, split)
    steps: list[Step] = []
    v2 = state.cpu.version == 2
    if v2:
        both = split.memory is not None and state.memory == state.cpu
        steps.append(EnableControllers(state.cpu, "/", ("cpu", "memory") if both else ("cpu",)))
    system = heaviest(state, split.guests, split.move)
    weight = guests_weight(split.share, system, state.cpu.version, len(split.guests))
    for h, groups in _places(state):
        wanted: dict[str, dict[str, str]] = {}
        for path in split.guests:
            wanted[path] = {**(_cpu(state, split, weight) if h == state.cpu else {}), **_memory(state, split, h)}
        if split.move and h == state.cpu:
            wanted[split.system] = _system(state, split, h)
        if h != state.cpu and split.memory is None:
            wanted = {}
        steps += _groups(h, groups, wanted, split)
        if split.move and split.system in wanted:
            steps.append(MoveTasks(h, "/", split.system))
    return steps


def _places(state: State) -> list[tuple[Hierarchy, tuple[Group, ...]]]:
    assert state.cpu is not None
    found = [(state.cpu, state.groups)]
    if state.memory is not None and state.memory != state.cpu:
        found.append((state.memory, state.memory_groups))
    return found


def _cpu(state: State, split: Split, weight: int) -> dict[str, str]:
    assert state.cpu is not None
    version = state.cpu.version
    found = {FILES["weight"][version]: str(weight)}
    if split.hard:
        quota = max(round(state.cpus * (1 - split.share) * PERIOD), 1000)
        if version == 1:
            found["cpu.cfs_period_us"] = str(PERIOD)
        found[FILES["quota"][version]] = f"{quota} {PERIOD}" if version == 2 else str(quota)
    return found


def _memory(state: State, split: Split, h: Hierarchy) -> dict[str, str]:
    if split.memory is None or h != state.memory:
        return {}
    return {FILES["memory"][h.version]: str((state.bytes - split.memory) // 4096 * 4096)}


def _system(state: State, split: Split, h: Hierarchy) -> dict[str, str]:
    """The system's group: v2 keeps its memory from being taken for the guests."""
    found = {FILES["weight"][h.version]: str(DEFAULT[h.version])}
    if split.memory is not None and h == state.memory and h.version == 2:
        found[FILES["low"][2]] = str(split.memory // 4096 * 4096)
    return found


def _groups(h: Hierarchy, groups: Iterable[Group], wanted: Mapping[str, Mapping[str, str]], split: Split) -> list[Step]:
    """Take the groups of one hierarchy to what is *wanted* of each, and the rest that the split had to what was."""
    known = {group.path: group for group in groups}
    steps: list[Step] = []
    for path, files in wanted.items():
        group = known.get(path)
        role = "system" if path == split.system and split.move else "guests"
        if group is None:
            steps.append(MakeGroup(h, path, exist_ok=True))
            if h.version == 1 and "cpuset" in h.controllers:
                steps.append(FillCpuset(h, path))
        kept = group.kept if group and group.kept else Kept(role, {}, made=group is None)
        steps.append(Keep(h, path, Kept(role, {**dict.fromkeys(files, ""), **kept.was}, kept.made, _moved_to(split))))
        steps += [SetFile(h, path, file, text) for file, text in kept.was.items() if file not in files]
        steps += [SetFile(h, path, file, text) for file, text in files.items()]
        if any(file not in files for file in kept.was):
            left = {file: kept.was.get(file, "") for file in files}
            steps.append(Keep(h, path, Kept(role, left, kept.made, _moved_to(split))))
    for path, group in known.items():
        if group.kept is not None and path not in wanted:
            steps += _back(h, group)
    return steps


def _moved_to(split: Split) -> str:
    return split.system if split.move else ""


def _back(h: Hierarchy, group: Group) -> list[Step]:
    assert group.kept is not None
    # By name from the last: v1's quota before its period.
    was = sorted(group.kept.was.items(), reverse=True)
    steps: list[Step] = [SetFile(h, group.path, file, text) for file, text in was]
    if group.kept.role == "system":
        steps.append(MoveTasks(h, group.path, "/"))
    steps.append(Forget(h, group.path))
    return [*steps, RemoveGroup(h, group.path)] if group.kept.made else steps


def reset_steps(state: State) -> list[Step]:
    """All that gives back what was there before. Raises StateError where there is no split."""
    steps: list[Step] = []
    for h, groups in _places(state) if state.cpu is not None else []:
        for group in groups:
            steps += _back(h, group) if group.kept is not None else []
    if not steps:
        raise StateError("reset", "the split", "there is none", "nestrt host init --system-cpu 10% makes one")
    return steps


def _check(state: State, split: Split) -> None:
    if not 0 < split.share < 1:
        raise InputError("set", f"the system's share to {split.share:.0%}", "it is not between 0 and 100 %", "say 10%")
    for path in (*split.guests, split.system):
        if path.count("/") != 1 or not path.startswith("/") or path in ("/", "/.", "/..") or "\n" in path:
            reason = "it is not right below the root group, where CPU time is divided"
            raise InputError("split", f"by group {path}", reason, "name it like /nestrt or /machine.slice")
    if split.system in split.guests:
        raise InputError("split", f"by group {split.system}", "it cannot be the system's and the guests'", "name two")
    if len(split.guests) > 1 and (split.hard or split.memory is not None):
        what = "--hard" if split.hard else "--system-memory"
        raise InputError("use", what, "a limit holds for one group", "name one parent of guests")
    if split.move and state.systemd:
        reason = "systemd manages this level, and its own tasks are in system.slice, user.slice and init.scope"
        raise InputError("use", "--move-tasks", reason, "leave it out: those groups are the system's share")
    if split.memory is not None:
        _check_memory(state, split)


def _check_memory(state: State, split: Split) -> None:
    assert split.memory is not None
    if state.memory is None:
        raise HostError("split", "the memory", "no hierarchy of this level has the memory controller", "mount it")
    left = state.bytes - split.memory
    if split.memory <= 0 or left < 1 << 24:
        reason = f"this level has {state.bytes} bytes, and guests need some"
        raise InputError("keep", f"{split.memory} bytes for the system", reason, "give less")
    used = state.usage.get(split.guests[0], 0)
    if used > left:
        reason = f"guests use {used} bytes already, and would get {left}"
        raise StateError("keep", f"{split.memory} bytes for the system", reason, "give less, or end some")
