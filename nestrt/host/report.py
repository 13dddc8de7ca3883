"""What ``--format json`` prints: stable names, raw numbers, null for "no limit" and for "not known".

A guest, everywhere::

    {"name": "web/db", "level": 2, "state": "running|paused|stopped|creating", "pid": 4242,
     "claim": true, "mark": "trusted.nestrt", "runtime": "launch", "engine": null, "made_by": "launch",
     "locked": false, "owner": 0, "id": "9f3c…", "path": "/nestrt/web/guest/nestrt/db",
     "created": 1763770000, "rootfs": "/srv/db", "command": ["sh"],
     "cpus": "0-1", "cpu_quota": 150000, "cpu_usec": 81234,
     "memory": {LIMIT}, "pids": {LIMIT}, "group_count": 5, "unread": []}

*claim*: what the mark says (id, created, rootfs, command, runtime, engine) was said inside a guest, or by another
user. *runtime* is "launch", "nestrt" or "plugin", *engine* what called it. *pid* is the first process as seen from
here. *cpus*, *cpu_quota* (µs per 100000 µs) are effective. *cpu_usec* is µs of CPU time used. *group_count* is of all
groups below the limit group, at every level. *unread* are groups that could not be looked into. A limit::

    {"key": "memory.max", "controller": "memory", "hierarchy": "memory", "unit": "bytes",
     "limit": 536870912, "effective": 268435456, "binds": "/nestrt/web", "usage": 1048576}

where *limit* is the group's own, *binds* the path of the group that sets *effective*; sets are
texts ("0-1"), I/O is an object by "8:0 rbps". A process::

    {"pid": 4242, "guest_pid": 1, "pids": [4242, 1], "uid": 524288, "guest_uid": 0, "start": 567890,
     "command": "sh", "group": "/nestrt/web/guest/init", "elsewhere": {"memory": "/nestrt/web/guest"}}

*pids* are its numbers in every pid namespace from here inwards; *start* is in clock ticks since
boot; *elsewhere* are hierarchies in which it is in another group. A pid of null is outside our pid namespace.
"""

from __future__ import annotations

import json

from nestrt.host import inside
from nestrt.host.counters import CounterReader
from nestrt.host.effective import Limit
from nestrt.host.marks import STAMPS
from nestrt.host.processes import Process
from nestrt.host.sight import Sight, count_groups
from nestrt.host.spread import spread
from nestrt.host.walk import Group, Guest
from nestrt.level.units import MAX, format_cpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nestrt.host.keys import Value
    from nestrt.host.marks import Mark

    Json = dict[str, Any]


dumps = json.JSONEncoder().encode  # in C, where json.dumps() with an indent is not
# The fields of a guest that ls can compare.
FILTERS = ("name", "level", "state", "pid", "claim", "mark", "runtime", "engine", "made_by", "locked", "owner", "id")


def _known(number: int) -> int | None:
    return number if number >= 0 else None


def told(mark: Mark, value: Any) -> Any:
    """*value* of a mark; None where that is for root to read, and all that is known is of the stamp."""
    return None if mark.attribute == STAMPS[0] else value


def value(value: Value) -> Any:
    """A limit's value: a number, null for none, a list of numbers as text, or an object."""
    if isinstance(value, frozenset):
        return format_cpus(value)
    if isinstance(value, dict):
        return {key: _known(number) for key, number in value.items()}
    return None if value == MAX else value


def limit(found: Limit | None) -> Json | None:
    """A limit, or null where there is none of that kind."""
    if found is None:
        return None
    return {
        "key": found.key,
        "controller": found.controller,
        "hierarchy": found.hierarchy,
        "unit": found.unit,
        "limit": value(found.limit),
        "effective": value(found.effective),
        "binds": found.binds or None,
        "usage": found.usage,
    }


def process(found: Process) -> Json:
    """A process."""
    return {
        "pid": found.pid or None,
        "guest_pid": _known(found.guest_pid),
        "pids": list(found.pids),
        "uid": _known(found.uid),
        "guest_uid": _known(found.guest_uid),
        "start": _known(found.start),
        "command": found.command,
        "group": found.group,
        "elsewhere": dict(found.elsewhere),
    }


def guest(sight: Sight, found: Guest) -> Json:
    """A guest, without its groups, processes and guests: an element of ``ls --format json``."""
    mark = found.mark
    cpus, quota = sight.limit(found, "cpuset.cpus"), sight.limit(found, "cpu.max")
    return {
        "name": found.name,
        "level": found.level,
        "state": sight.state(found),
        "pid": _known(sight.pid(found)),
        "claim": found.claim,
        "mark": mark.attribute,
        "runtime": mark.runtime or None,
        "engine": mark.engine or None,
        "made_by": mark.made_by or None,
        "locked": told(mark, mark.locked),
        "owner": found.owner,
        "id": mark.id,
        "path": found.path,
        "created": _known(mark.created),
        "rootfs": mark.rootfs,
        "command": list(mark.command),
        "cpus": value(cpus.effective) if cpus else None,
        "cpu_quota": value(quota.effective) if quota else None,
        "cpu_usec": sight.cpu_time(found),
        "memory": limit(sight.limit(found, "memory.max")),
        "pids": limit(sight.limit(found, "pids.max")),
        "group_count": count_groups(found),
        "unread": found.unread,
    }


def _group(
    sight: Sight, found: Group, members: list[Process] | None, controllers: frozenset[str] | None = None
) -> Json:
    limits = sight.limits(found.path, found.hierarchies)
    shown: Json = {
        "path": found.path,
        "hierarchies": list(found.hierarchies),
        "limits": [limit(each) for each in limits if controllers is None or each.controller in controllers],
    }
    if members is not None:
        shown["processes"] = [process(each) for each in members if each.group == found.path]
    return shown


def tree_text(
    sight: Sight,
    guests: list[Guest],
    with_processes: bool,
    depth: int | None,
    controllers: frozenset[str] | None = None,
) -> Iterator[str]:
    """The guests with "groups" (path, hierarchies, limits, on demand processes) and, nested, "guests", as JSON text in
    pieces, a line for each guest and each group: of 10,000 groups none is kept.

    Groups at most *depth* below the guest roots; of limits those of *controllers*. Raises HostError, as spread().
    """

    def tell(found: Guest) -> Iterator[str]:
        yield dumps(guest(sight, found))[:-1] + ', "groups": ['
        members = sight.processes(found) if with_processes else None
        deepest = None if depth is None else found.root.count("/") + depth
        yield dumps(_group(sight, Group(found.path, found.hierarchies), members, controllers))
        for group in found.groups:
            if deepest is None or group.path.count("/") <= deepest:
                yield ",\n" + dumps(_group(sight, group, members, controllers))
        yield '], "guests": '
        yield from listed(found.guests)
        yield "}"
        sight.forget(found)

    def listed(inner: list[Guest]) -> Iterator[str]:
        yield "[\n" if inner else "["
        for number, found in enumerate(inner):
            if number:
                yield ",\n"
            yield from tell(found)
        yield "]"

    yield "[\n" if guests else "["
    yield from spread(guests, tell, ",\n")
    yield "]"


def tree_rows(
    sight: Sight, guests: list[Guest], depth: int | None, controllers: frozenset[str] | None = None
) -> Iterator[Json]:
    """A row for each limit of each group that tree_text() has, with "guest", "level" and "group"."""
    for top in guests:
        for found in top.everyone():
            deepest = None if depth is None else found.root.count("/") + depth
            for group in (Group(found.path, found.hierarchies), *found.groups):
                if group.path == found.path or deepest is None or group.path.count("/") <= deepest:
                    for each in _group(sight, group, None, controllers)["limits"]:
                        yield {"guest": found.name, "level": found.level, "group": group.path, **each}
        for found in top.everyone():
            sight.forget(found)


def everything(sight: Sight, found: Guest) -> Json:
    """A guest and all that its groups and marks say of it; ``show --format json`` has live() too.

    Beyond the fields of every guest: "policy", "virtualize", "max_level", "ids", "view", "net", "rm", "asked" (the
    limits of the mark), "problems" (what of the mark cannot be read) and "stamp", as marked; "caps"
    (groups, depth; null: no cap or no v2 tree); "limit_group" (directory by hierarchy); "limits" of the limit
    group; "groups"; "processes"; "devices" (rules, programs, inherited: see Devices); "guests" (names).
    """
    mark = found.mark
    devices = sight.devices(found)
    hierarchies = [h for h in sight.view.hierarchies if h.name in found.hierarchies]
    return {
        **guest(sight, found),
        "policy": mark.policy,
        "virtualize": mark.virtualize,
        "max_level": _known(mark.max_level),
        "ids": told(mark, [list(row) for row in mark.ids]),
        "view": mark.view,
        "net": mark.net,
        "rm": told(mark, mark.rm),
        "asked": mark.limits,
        "problems": list(mark.problems),
        "stamp": sight.stamp(found),
        "caps": {key: _known(-1 if cap is None else cap) for key, cap in sight.caps(found).items()},
        "limit_group": {h.name: h.path(found.path) for h in hierarchies},
        "limits": [limit(each) for each in sight.limits(found.path, found.hierarchies)],
        "groups": [_group(sight, each, None) for each in found.groups],
        "processes": [process(each) for each in sight.processes(found)],
        "devices": {
            "rules": list(devices.rules),
            "programs": list(devices.programs),
            "inherited": list(devices.inherited),
        },
        "guests": [inner.name for inner in found.guests],
    }


def guest_numbers(sight: Sight, found: Guest, cpus: frozenset[int]) -> str | None:
    """Host CPUs as the guest numbers them: its CPU i is the i-th of its set (level/policy.py, view.cpus); null if it
    has the host's numbers."""
    if (found.mark.view or {}).get("cpus") != "renumbered":
        return None
    own = sight.limit(found, "cpuset.cpus")
    order = sorted(own.effective) if own and isinstance(own.effective, frozenset) else []
    return format_cpus(frozenset(number for number, cpu in enumerate(order) if cpu in cpus))


def shown_inside(sight: Sight, found: Guest, own: Limit) -> Any:
    """What the guest is shown of a limit of its limit group: the value of its guest root, CPUs in its own numbers."""
    for hierarchy in sight.view.hierarchies:
        if hierarchy.name == own.hierarchy:
            key = next((key for key in sight.reader.keys(hierarchy, found.root) if key.name == own.key), None)
            root = sight.reader.value(hierarchy, key, found.root) if key else None
            if isinstance(root, frozenset) and own.key == "cpuset.cpus" and isinstance(own.effective, frozenset):
                return guest_numbers(sight, found, root or own.effective) or value(root or own.effective)
            return None if root is None else value(root)
    return None


def live(sight: Sight, found: Guest) -> Json:
    """What ``show`` has besides everything(), of the guest as it runs.

    "namespaces": by kind whether the guest has its own. "mounts" of its view: see inside.view_mounts(). "counters"
    since it was made and "pressure": see counters.Counters. "guest_limits": by key what the guest is shown of its
    limits.
    """
    pid = sight.pid(found)
    controllers = frozenset(name for h in sight.view.hierarchies for name in h.controllers)
    reader = CounterReader(sight.view.hierarchies)
    try:
        counted = dict(reader.read(found.path, found.hierarchies).__dict__)
    finally:
        reader.close()
    pressure = counted.pop("pressure")
    del counted["populated"]  # "state" is more exact
    limits = sight.limits(found.path, found.hierarchies)
    return {
        "namespaces": inside.namespaces(pid) if pid > 0 else {},
        "mounts": inside.view_mounts(pid, controllers) if pid > 0 else [],
        "counters": counted,
        "pressure": pressure,
        "guest_limits": {each.key: shown_inside(sight, found, each) for each in limits},
    }
