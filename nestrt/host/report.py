"""What ``--format json`` prints: stable names, raw numbers, null for "no limit" and for "not known".

A guest, everywhere::

    {"name": "web/db", "level": 2, "state": "running|paused|stopped|creating", "pid": 4242,
     "claim": true, "mark": "trusted.nestrt", "runtime": "launch", "engine": null, "locked": false, "owner": 0,
     "id": "9f3c…", "path": "/nestrt/web/guest/nestrt/db",
     "created": 1763770000, "rootfs": "/srv/db", "command": ["sh"],
     "cpus": "0-1", "cpu_quota": 150000, "cpu_usec": 81234,
     "memory": {LIMIT}, "pids": {LIMIT}, "group_count": 5, "unread": []}

*claim*: what the mark says (id, created, rootfs, command, runtime, engine) was said inside a guest, or by another
user. *runtime* is "launch", "nestrt" or "plugin", *engine* what called it. *pid* is the first process as seen from here. *cpus*, *cpu_quota* (µs per
100000 µs) are effective. *cpu_usec* is µs of CPU time used. *group_count* is of all groups below the
limit group, at every level. *unread* are groups that could not be looked into. A limit::

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

from nestrt.host.effective import Limit
from nestrt.host.processes import Process
from nestrt.host.sight import Sight, count_groups
from nestrt.host.walk import Group, Guest
from nestrt.level.units import MAX, format_cpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nestrt.host.keys import Value

    Json = dict[str, Any]


def _known(number: int) -> int | None:
    return number if number >= 0 else None


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
        "locked": mark.locked,
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


def _group(sight: Sight, found: Group, members: list[Process] | None) -> Json:
    shown: Json = {
        "path": found.path,
        "hierarchies": list(found.hierarchies),
        "limits": [limit(each) for each in sight.limits(found.path, found.hierarchies)],
    }
    if members is not None:
        shown["processes"] = [process(each) for each in members if each.group == found.path]
    return shown


def _groups(sight: Sight, found: Guest, with_processes: bool, depth: int | None) -> Iterator[Json]:
    members = sight.processes(found) if with_processes else None
    deepest = None if depth is None else found.root.count("/") + depth
    yield _group(sight, Group(found.path, found.hierarchies), members)
    for group in found.groups:
        if deepest is None or group.path.count("/") <= deepest:
            yield _group(sight, group, members)


def tree(sight: Sight, guests: list[Guest], with_processes: bool, depth: int | None) -> list[Json]:
    """The guests with "groups" (path, hierarchies, limits, on demand processes) and, nested, "guests"."""
    return [
        {
            **guest(sight, found),
            "groups": list(_groups(sight, found, with_processes, depth)),
            "guests": tree(sight, found.guests, with_processes, depth),
        }
        for found in guests
    ]


def tree_text(sight: Sight, guests: list[Guest], with_processes: bool, depth: int | None) -> Iterator[str]:
    """tree() as JSON text in pieces, a line for each guest and each group: of 10,000 groups none is kept."""
    from json import dumps

    yield "["
    for number, found in enumerate(guests):
        yield (",\n" if number else "\n") + dumps(guest(sight, found))[:-1] + ', "groups": ['
        mark = "\n"
        for shown in _groups(sight, found, with_processes, depth):
            yield mark + dumps(shown)
            mark = ",\n"
        yield '], "guests": '
        yield from tree_text(sight, found.guests, with_processes, depth)
        yield "}"
        sight.forget(found)
    yield "]"


def everything(sight: Sight, found: Guest) -> Json:
    """``show --format json``: a guest and all that there is to say of it.

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
        "ids": [list(row) for row in mark.ids],
        "view": mark.view,
        "net": mark.net,
        "rm": mark.rm,
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
