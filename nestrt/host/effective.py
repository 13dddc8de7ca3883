"""Limit, effective limit, and which ancestor binds, for any group.

A group gets what it was given only where none of the groups around it was given
less. The *chain* of a group is its own value and its ancestors', from the
hierarchy's root down; how a chain combines is the kind of the limit:

``min``        the smallest number: memory, pids, CPU time, huge pages (and, by key, I/O)
``intersect``  what is in all of them: CPUs and memory nodes

Of equal values the outermost binds: its usage counts all its descendants, so it is reached first.

    /nestrt              memory.max  max
    /nestrt/web          memory.max  512M   ← binds
    /nestrt/web/guest    memory.max  512M
    …/guest/job          memory.max  2G     → effective 512M, /nestrt/web binds

Sources: Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import os

from nestrt.host.keys import Key, keys_of
from nestrt.host.processes import read_text
from nestrt.level.units import MAX
from nestrt.plan.facts import Hierarchy
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.keys import Value


@record
class Limit:
    """One limit of one group, as it stands and as it works.

    *limit* and *effective* are numbers (-1: none), sets of numbers, or, for I/O, numbers by "8:0 rbps";
    *binds* is the path of the ancestor, or the group itself, that sets *effective*, "" where nothing does;
    for I/O a path for each key. *usage* is None where the kernel counts none.
    """

    key: str
    controller: str
    hierarchy: str
    unit: str
    limit: Value
    effective: Value
    binds: str | dict[str, str]
    usage: int | None


def smallest(chain: list[tuple[str, int]]) -> tuple[int, str]:
    """The effective value of (path, number) pairs from the root down, and the path that binds ("" if none)."""
    effective, binds = MAX, ""
    for path, value in chain:
        if value != MAX and (effective == MAX or value < effective):
            effective, binds = value, path
    return effective, binds


def intersection(chain: list[tuple[str, frozenset[int]]]) -> tuple[frozenset[int], str]:
    """The effective set of (path, set) pairs from the root down, and the path that last made it smaller.

    An empty set stands for what the parent has; so does, on v2, one that has nothing in common
    with it (cgroup-v2.rst, cpuset.cpus). The outermost group with a set has all that there is, and does not bind.
    """
    effective: frozenset[int] | None = None
    binds = ""
    for path, value in chain:
        if effective is None:
            effective = value or None
            binds = path if effective and path != "/" else ""
        elif value & effective and value & effective != effective:
            effective, binds = value & effective, path
    return effective or frozenset(), binds


def smallest_by_key(chain: list[tuple[str, dict[str, int]]]) -> tuple[dict[str, int], dict[str, str]]:
    """smallest() for each key of (path, {key: number}) pairs."""
    effective, binds = {}, {}
    for key in sorted({key for _, values in chain for key in values}):
        effective[key], binds[key] = smallest([(path, values.get(key, MAX)) for path, values in chain])
    return effective, binds


def ancestors(path: str) -> list[str]:
    """The path of the hierarchy's root ("/"), of every group on the way, and *path* itself."""
    parts = [part for part in path.split("/") if part]
    return ["/"] + ["/" + "/".join(parts[: end + 1]) for end in range(len(parts))]


class Reader:
    """Reads limits, and each file of each group only once: chains of neighbours share their ancestors."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Value | None] = {}
        self._keys: dict[tuple[str, str], tuple[Key, ...]] = {}
        self._alike: dict[str, tuple[Key, ...]] = {}

    def keys(self, hierarchy: Hierarchy, path: str) -> tuple[Key, ...]:
        """The keys that the group *path* has; () if it is gone.

        Groups with the same controllers have the same files, so one of them is listed for all. On
        v1 that is any group but the root.
        """
        directory = hierarchy.path(path)
        if directory not in self._alike:
            try:
                enabled = read_text(directory + "/cgroup.controllers") if hierarchy.version == 2 else ""
                alike = (hierarchy.name, enabled)
                if alike not in self._keys:
                    self._keys[alike] = keys_of(hierarchy.controllers, hierarchy.version, os.listdir(directory))
            except OSError:
                return ()
            self._alike[directory] = self._keys[alike]
        return self._alike[directory]

    def value(self, hierarchy: Hierarchy, key: Key, path: str) -> Value | None:
        """The group's own value; None if it has no such file (the root, a disabled controller) or is gone."""
        directory = hierarchy.path(path)
        if (directory, key.name) not in self._values:
            value: Value | None
            try:
                value = key.read(lambda file: read_text(f"{directory}/{file}").strip())
            except (OSError, ValueError):
                value = None
            self._values[directory, key.name] = value
        return self._values[directory, key.name]

    def limit(self, hierarchy: Hierarchy, key: Key, path: str) -> Limit | None:
        """The limit *key* of the group *path* and its effective value; None if the group does not have it."""
        own = self.value(hierarchy, key, path)
        if own is None:
            return None
        chain = [(group, self.value(hierarchy, key, group)) for group in ancestors(path)]
        binds: str | dict[str, str]
        effective: Value
        if isinstance(own, frozenset):
            effective, binds = intersection([(group, v) for group, v in chain if isinstance(v, frozenset)])
        elif isinstance(own, dict):
            effective, binds = smallest_by_key([(group, v) for group, v in chain if isinstance(v, dict)])
        else:
            effective, binds = smallest([(group, v) for group, v in chain if isinstance(v, int)])
        used = usage(hierarchy, key, path)
        return Limit(key.name, key.controller, hierarchy.name, key.unit, own, effective, binds, used)

    def limits(self, hierarchies: tuple[Hierarchy, ...], path: str) -> list[Limit]:
        """All limits of the group *path*, by hierarchy and controller."""
        found = [self.limit(h, key, path) for h in hierarchies for key in self.keys(h, path)]
        return [limit for limit in found if limit is not None]


def usage(hierarchy: Hierarchy, key: Key, path: str) -> int | None:
    """What the group and its descendants use, in the key's unit; None where the kernel counts none."""
    try:
        return int(read_text(hierarchy.path(path, key.usage))) if key.usage else None
    except (OSError, ValueError):
        return None


def cpu_time(hierarchies: tuple[Hierarchy, ...], path: str) -> int | None:
    """µs of CPU time that the group and its descendants used; None where no hierarchy counts it.

    v2's cpu.stat is there in every group, with or without the controller; v1's cpuacct.usage is in ns.
    """
    for hierarchy in hierarchies:
        try:
            if "cpuacct" in hierarchy.controllers:
                return int(read_text(hierarchy.path(path, "cpuacct.usage"))) // 1000
            if hierarchy.version == 2:
                words = read_text(hierarchy.path(path, "cpu.stat")).split()
                return int(words[words.index("usage_usec") + 1])
        except (OSError, ValueError, IndexError):
            continue
    return None
