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
from nestrt.host.processes import control_text
from nestrt.level.units import MAX
from nestrt.plan.facts import Hierarchy
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nestrt.host.keys import Value

    # What works in a group, and the path of the group that sets it: by key where the value is.
    Bound = tuple[Value, str | dict[str, str]]


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


def tighten(above: Bound | None, path: str, own: Value) -> Bound:
    """What works in the group *path*, whose own value is *own*, below a group where *above* does (None: below none).

    Numbers: the smallest. Sets: what is in both; an empty one stands for what the group above has, and so does, on
    v2, one that has nothing in common with it (cgroup-v2.rst, cpuset.cpus); the outermost group with a set
    has all that there is, and does not bind. Numbers by key: the smallest for each.
    """
    if isinstance(own, int):
        if own == MAX or (above and above[0] != MAX and own >= above[0]):  # type: ignore[operator]
            return above or (MAX, "")
        return own, path
    if isinstance(own, frozenset):
        if not above or not above[0]:
            return own, path if own and path != "/" else ""
        both = own & above[0]  # type: ignore[operator]
        return (both, path) if both and both != above[0] else above
    if not own:
        return above or ({}, {})
    effective: dict[str, int]
    binds: dict[str, str]
    effective, binds = (dict(part) for part in above or ({}, {}))  # type: ignore[arg-type, assignment]
    for key, number in own.items():
        if key not in effective or number < effective[key]:
            effective[key], binds[key] = number, path
    return effective, binds


def ancestors(path: str) -> list[str]:
    """The path of the hierarchy's root ("/"), of every group on the way, and *path* itself."""
    parts = [part for part in path.split("/") if part]
    return ["/"] + ["/" + "/".join(parts[: end + 1]) for end in range(len(parts))]


class Reader:
    """Reads limits, and each file of each group only once: chains of neighbours share their ancestors."""

    def __init__(self) -> None:
        # By directory and key: the group's own value, and what works there.
        self._groups: dict[str, dict[str, tuple[Value | None, Bound | None]]] = {}
        self._keys: dict[tuple[str, str, bool], tuple[Key, ...]] = {}
        self._alike: dict[str, tuple[Key, ...]] = {}

    def keys(self, hierarchy: Hierarchy, path: str) -> tuple[Key, ...]:
        """The keys that the group *path* has; () if it is gone.

        Groups with the same controllers have the same files, so one of them is listed for all; the root
        has others.
        """
        directory = hierarchy.path(path)
        if directory not in self._alike:
            try:
                enabled = control_text(directory + "/cgroup.controllers") if hierarchy.version == 2 else ""
                alike = (hierarchy.name, enabled, path == "/")
                if alike not in self._keys:
                    self._keys[alike] = keys_of(hierarchy.controllers, hierarchy.version, os.listdir(directory))
            except OSError:
                return ()
            self._alike[directory] = self._keys[alike]
        return self._alike[directory]

    def _known(self, hierarchy: Hierarchy, key: Key, path: str) -> tuple[Value | None, Bound | None]:
        """The value of *path* and what works there, having looked at the groups above as far as they are not known."""
        missing: list[str] = []
        above: Bound | None = None
        while True:
            found = self._groups.setdefault(hierarchy.path(path), {}).get(key.name)
            if found is not None:
                if not missing:
                    return found
                above = found[1]
                break
            missing.append(path)
            if path == "/":
                break
            path = path.rpartition("/")[0] or "/"
        for path in reversed(missing):
            directory = hierarchy.path(path)
            own: Value | None
            try:
                own = key.read(lambda file: control_text(f"{directory}/{file}").strip())  # noqa: B023  it is called here
            except (OSError, ValueError):
                own = None
            above = above if own is None else tighten(above, path, own)
            self._groups[directory][key.name] = found = own, above
        assert found is not None
        return found

    def value(self, hierarchy: Hierarchy, key: Key, path: str) -> Value | None:
        """The group's own value; None if it has no such file (the root, a disabled controller) or is gone."""
        return self._known(hierarchy, key, path)[0]

    def pair(self, hierarchy: Hierarchy, key: Key, path: str) -> tuple[Value | None, Bound | None]:
        """The group's own value as value() has it, and what works there and which group binds."""
        return self._known(hierarchy, key, path)

    def limit(self, hierarchy: Hierarchy, key: Key, path: str) -> Limit | None:
        """The limit *key* of the group *path* and its effective value; None if the group does not have it."""
        own, works = self._known(hierarchy, key, path)
        if own is None or works is None:
            return None
        used = usage(hierarchy, key, path)
        return Limit(key.name, key.controller, hierarchy.name, key.unit, own, works[0], works[1], used)

    def forget(self, directories: Iterable[str]) -> None:
        """Keep nothing of groups that nobody asks for again."""
        for directory in directories:
            self._groups.pop(directory, None)
            self._alike.pop(directory, None)

    def limits(self, hierarchies: tuple[Hierarchy, ...], path: str) -> list[Limit]:
        """All limits of the group *path*, by hierarchy and controller."""
        found = [self.limit(h, key, path) for h in hierarchies for key in self.keys(h, path)]
        return [limit for limit in found if limit is not None]


def usage(hierarchy: Hierarchy, key: Key, path: str) -> int | None:
    """What the group and its descendants use, in the key's unit; None where the kernel counts none."""
    try:
        return int(control_text(hierarchy.path(path, key.usage))) if key.usage else None
    except (OSError, ValueError):
        return None


def cpu_time(hierarchies: tuple[Hierarchy, ...], path: str) -> int | None:
    """µs of CPU time that the group and its descendants used; None where no hierarchy counts it.

    v2's cpu.stat is there in every group, with or without the controller; v1's cpuacct.usage is in ns. Where both are
    it is v1's, which counters.py takes too.
    """
    for hierarchy in sorted(hierarchies, key=lambda h: h.version):
        try:
            if "cpuacct" in hierarchy.controllers:
                return int(control_text(hierarchy.path(path, "cpuacct.usage"))) // 1000
            if hierarchy.version == 2:
                words = control_text(hierarchy.path(path, "cpu.stat")).split()
                return int(words[words.index("usage_usec") + 1])
        except (OSError, ValueError, IndexError):
            continue
    return None
