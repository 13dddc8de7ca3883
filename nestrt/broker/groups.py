"""The methods about groups: Info, List, Create, Remove, Get, Set. What the guest's own commands do, done by the level
above: nestrt.guest.client checks and writes, here it works below the guest root that the socket stands for."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, Iterable

from nestrt.broker import devices, served
from nestrt.broker.peer import inside, outside
from nestrt.broker.refusal import Refusal
from nestrt.broker.request import Method, Request
from nestrt.broker.served import Served, Tree
from nestrt.broker.victims import namespace_of
from nestrt.controllers.table import by_name, canonical
from nestrt.guest import client
from nestrt.guest.client import GuestError, View

# Below the limit group these two are nestrt's own.
ROOT_AND_FIRST = 2
# What a write to these makes the kernel do takes no time: it is done at once. The rest goes to a thread.
QUICK = frozenset(("cpu.max", "cpu.weight", "pids.max", "cpu.shares", "memory.oom.group", "memory.low"))
# Keys read at once by one call, and by any call: a thousand files take longer than others want to wait.
FEW_KEYS, MOST_KEYS = 8, 256
MOST_GROUPS = 4096  # of one List
MOST_CPUS = 1 << 14  # named in one list, each as often as it is
# Processes have methods of their own, and these show or take the numbers of the broker's level.
PID_FILES = frozenset(("cgroup.procs", "cgroup.threads", "tasks"))
# A trigger lives as long as the descriptor that it was written to, which is the broker's own.
TRIGGERS = ("pressure", "pressure_level", "event_control")


def _limits(view: View, group: str) -> dict[str, dict[str, Any]]:
    found = {}
    for name in client.KEYS:
        value = view.value(group, name)
        if value is not None:
            use = view.use(group, name)
            found[name] = {"value": view.show(name, value), "use": None if use is None else str(use)}
    return found


def used_groups(tree: Tree) -> int:
    """How many groups there are below the limit group; counted by the kernel where it counts."""
    for hierarchy in tree.view.hierarchies:
        if hierarchy.version == 2:
            for line in (client.read(hierarchy.root + "/../cgroup.stat") or "").splitlines():
                if line.startswith("nr_descendants "):
                    return int(line.split()[1])
    return len(tree.view.tree("/"))


async def info(request: Request) -> dict[str, Any]:
    """Who the guest is, who asks, what there is and what may be divided."""
    guest, peer = request.guest, request.peer
    mark = guest.known
    view = guest.now(lambda tree: tree.view)
    own = client.membership(str(peer.pid)) if peer.pid > 0 else {}
    found = [client.below(own[h.options], guest.root) for h in view.hierarchies if h.options in own]
    cpus = len(view.effective("/", "cpuset.cpus") or os.sched_getaffinity(0))
    counted = any(h.version == 2 for h in view.hierarchies)
    used = guest.now(used_groups) if counted else await request.later(used_groups)
    return {
        "name": guest.name,
        "level": max(mark.level, 0),
        "max_level": max(mark.max_level, 0),
        "user": peer.user,
        "root": peer.root,
        "group": next((group for group in found if group), "/"),
        "view": str((mark.view or {}).get("mount", "rw")),
        "cpus": cpus,
        "cpu_numbers": "renumbered" if view.cpus else "host",
        "controllers": view.controllers,
        "may_divide": [name for name in view.controllers if guest.may_divide(name)],
        "limits": _limits(view, "/"),
        "quota": {
            "groups": max(mark.max_groups, 0),
            "groups_used": used,
            "depth": max(mark.max_depth, 0),
            "connections_used": guest.connections,
            **guest.quota.told,
        },
    }


def _group(guest: Served, tree: Tree, name: str) -> dict[str, Any]:
    view = tree.view
    frozen = populated = False
    for hierarchy in view.hierarchies:
        place = hierarchy.dir(name)
        if hierarchy.version == 2:
            events = client.read(place + "/cgroup.events") or ""
            populated = populated or "populated 1" in events
            frozen = frozen or "frozen 1" in events
        elif "freezer" in hierarchy.controllers:
            frozen = frozen or (client.read(place + "/freezer.state") or "THAWED") != "THAWED"
    processes = len(view.processes(name))
    return {
        "name": name,
        "owner": inside(guest.ids, guest.owner(tree, name)) if name != "/" else 0,
        "processes": processes,
        "populated": populated or processes > 0,
        "frozen": frozen,
        "limits": _limits(view, name),
    }


def _below(view: View, top: str, recursive: bool) -> list[str]:
    """The group *top* and those right below it, or all. Raises Refusal where they are too many for one reply."""
    found: list[str] = []
    waiting = [top]
    while waiting and len(found) + len(waiting) <= MOST_GROUPS:
        found.append(waiting.pop())
        if recursive or found[-1] == top:
            waiting += reversed(view.children(found[-1]))
    if waiting:
        reason = f"there are more than {MOST_GROUPS} groups"
        raise Refusal("QuotaExceeded", f"cannot list group {top}: {reason}", "list those below it one by one")
    return found


async def list_groups(request: Request) -> dict[str, Any]:
    """The group, and those right below it, or all."""

    def look(tree: Tree) -> list[dict[str, Any]]:
        top = request.guest.group(tree, request["group"] or "/", "list")
        names = _below(tree.view, top, bool(request["recursive"]))
        return [_group(request.guest, tree, name) for name in names if tree.view.exists(name)]

    return {"groups": await request.later(look)}


async def get(request: Request) -> dict[str, Any]:
    """Values of keys and files of a group."""
    keys = request["keys"] or []
    hidden = [key for key in keys if key in PID_FILES or "/" in key]
    if hidden:
        raise Refusal("BadValue", f"cannot read {hidden[0][:80]}: it is no limit", "ask for Processes")
    if len(keys) > MOST_KEYS:
        raise Refusal("BadValue", f"cannot read {len(keys)} keys: {MOST_KEYS} may be named at once", "name fewer")

    def look(tree: Tree) -> dict[str, str]:
        return client.values_of(tree.view, request.guest.group(tree, request["group"], "read"), keys)

    # What else there is among a group's files may take the kernel long: memory.stat gathers from all groups below.
    quick = len(keys) <= FEW_KEYS and all(client.SHORT.get(key, key) in client.KEYS for key in keys)
    return {"values": request.guest.now(look) if quick else await request.later(look)}


def _pairs(settings: dict[str, str]) -> list[str]:
    for key, value in settings.items():
        if "=" in key:
            raise Refusal("BadValue", f"cannot set {key[:80]!r}: no key is called so", "write it like memory.max")
        spans = re.findall(r"([0-9]{1,5})-([0-9]{1,5})", value)
        if sum(int(last) - int(first) for first, last in spans if int(last) > int(first)) > MOST_CPUS:
            raise Refusal("BadValue", f"cannot set {key[:80]}: {value[:80]!r} is too long a list", "write it like 0-3")
    return [f"{client.SHORT.get(key, key)}={value}" for key, value in settings.items()]


def check_keys(guest: Served, tree: Tree, group: str, pairs: list[str]) -> None:
    """Refuse what the policy does not let the guest divide, and files that are not for the level above to write.

    Raises Refusal, GuestError.
    """
    for pair in pairs:
        name = pair.partition("=")[0]
        known = client.KEYS.get(name)
        prefix = canonical(name.partition(".")[0])
        controller = known.controller if known else prefix
        operation = f"set {name} of group {group}"
        if controller == "devices":
            raise GuestError(2, operation, "device rules are no setting", "nestrt guest devices GROUP allow RULE")
        if prefix in ("freezer", "cgroup") and name not in client.DELEGATED:
            raise GuestError(2, operation, "it is no limit", "there are freeze, thaw, kill and attach")
        if not guest.may_divide(controller):
            raise GuestError(5, operation, f"this guest may not divide {controller}", "the policy above says so")
        if known or name in client.DELEGATED:
            continue
        writable = {file.name for version in (1, 2) for file in by_name(prefix).files(version) if file.writable}
        if name not in writable or name.endswith(TRIGGERS):
            raise GuestError(2, operation, "no such key", "keys are " + ", ".join(client.KEYS))


def _known(request: Request, pids: Iterable[int]) -> list[int]:
    """The processes *pids* of the broker's level, for an error: as the caller numbers them."""
    try:
        with namespace_of(request.peer, "name processes") as numbers:
            return sorted(number for number in map(numbers.inside, pids) if number)
    except (Refusal, OSError):
        return []


def _change(request: Request, tree: Tree, group: str, settings: dict[str, str], made: bool = False) -> None:
    tree.view.known = lambda pids: _known(request, pids)
    pairs = _pairs(settings)
    check_keys(request.guest, tree, group, pairs)
    before = {}
    for name in settings:
        name = client.SHORT.get(name, name)
        try:
            before[name] = client.values_of(tree.view, group, [name])[name]
        except (GuestError, ValueError):
            before[name] = None
    for name, value in settings.items():
        name = client.SHORT.get(name, name)
        request.note(group, name, before[name], value)
    client.change(tree.view, group, pairs, made)


def _quick(tree: Tree, group: str, settings: dict[str, str]) -> bool:
    """Whether nothing in *settings* makes the kernel work before it answers: reclaim, migrate, move, make groups."""
    for key, text in settings.items():
        name = client.SHORT.get(key, key)
        if name not in QUICK and name != "memory.max":
            return False
        if not client.has_file(tree.view, group, name):
            return False
        try:
            if name == "memory.max" and client.parse_size(text) < (tree.view.use(group, name) or 0):
                return False
        except ValueError:
            continue  # refused in a moment
    return tree.is_whole(group)


def _set(request: Request, tree: Tree, at_once: bool) -> bool:
    """Set the limits, *at_once* only what the kernel does not work for; whether they are set."""
    guest, settings = request.guest, request["settings"]
    group = guest.group(tree, request["group"], "set limits of")
    guest.require_above(tree, request.peer, group, "set limits of")
    if group == "/" and not request.peer.root:
        guest.require(tree, request.peer, group, "set limits of")
    if at_once and not _quick(tree, group, settings):
        return False
    _change(request, tree, group, settings, made=at_once)
    return True


async def set_limits(request: Request) -> dict[str, Any]:
    """All of the settings, or none."""
    guest = request.guest

    def at_once(tree: Tree) -> bool:
        with request.unlocked():
            return _set(request, tree, True)

    # What is done at once needs the lock to be free, and need not take it: nobody comes between.
    if guest.changing.locked() or not guest.now(at_once):
        async with guest.changing:
            await request.change(lambda tree: _set(request, tree, False))
    return {}


def _check_depth(guest: Served, group: str) -> None:
    depth, most = group.count("/") + 1, guest.known.max_depth
    if 0 <= most < depth:
        reason = f"it would be {depth} deep, and the guest has {most}"
        raise Refusal("QuotaExceeded", f"cannot create group {group}: {reason}", "make it higher up")


def check_room(guest: Served, tree: Tree, group: str, new: int) -> None:
    """Refuse where the guest would have too many groups, or too deep ones: v2's kernel says so too, v1's never."""
    mark = guest.known
    _check_depth(guest, group)
    if 0 <= mark.max_groups < used_groups(tree) + new:
        reason = f"the guest has as many groups as it may have ({mark.max_groups})"
        raise Refusal("QuotaExceeded", f"cannot create group {group}: {reason}", "remove one")


def _own(guest: Served, tree: Tree, group: str, owner: int) -> None:
    """Make *owner*, a uid of the broker's level, the owner of a new *group*.

    Where the guest has a view to write to, by its directory and what the kernel lets delegate; else by a mark,
    so that the broker stays the only way.
    """
    view = tree.view
    if guest.writes:
        for hierarchy in view.divided:
            place = hierarchy.dir(group)
            names = ("cgroup.procs", "tasks", "cgroup.threads", *client.DELEGATED)
            for path in (place, *(f"{place}/{name}" for name in names)):
                if os.path.exists(path):
                    os.chown(path, owner, -1)  # the guest has group ids of its own, and none of them is asked here
        return
    place = view.hierarchies[0].dir(group)
    try:
        os.setxattr(place, served.OWNER[0], str(owner).encode())
    except PermissionError:  # not the initial user namespace
        os.setxattr(place, served.OWNER[1], str(owner).encode())


def _create(request: Request, tree: Tree) -> None:
    guest, peer, view = request.guest, request.peer, tree.view
    group = client.parse_group(request["group"], "create", view.controllers)
    _check_depth(guest, group)  # before anything is looked for in each of a thousand groups above
    if view.exists(group):
        raise GuestError(4, f"create group {group}", "it exists", f"set its limits: {view.command} set {group}")
    missing = [one for one in client.ancestors(group)[::-1] if not view.exists(one)]
    if missing and not request["parents"]:
        raise GuestError(3, f"create group {group}", f"there is no group {missing[0]}", "make it too: parents")
    guest.require_above(tree, peer, (missing or [group])[0], "create")
    owner = peer.user if request["owner"] is None else request["owner"]
    uid = outside(guest.ids, owner)
    if uid < 0:
        raise Refusal("BadValue", f"cannot create group {group}: this guest has no user {owner}", "name one it has")
    check_room(guest, tree, group, len(missing) + 1)
    settings = request["settings"] or {}
    check_keys(guest, tree, group, _pairs(settings))
    request.note(group, "group", None, {**settings, "owner": owner})
    made = [*missing, group]
    try:
        _change(request, tree, group, settings)
        for one in made:
            if uid != outside(guest.ids, 0):
                _own(guest, tree, one, uid)
        if request["devices"] is not None:
            devices.set_rules(guest, tree, group, request["devices"])
    except BaseException:
        for one in reversed(made):
            client.undone([(h.dir(one), None) for h in view.hierarchies])
        raise


async def create(request: Request) -> dict[str, Any]:
    """A group in every hierarchy, with its limits, device rules and owner; or nothing."""
    async with request.guest.changing:
        await request.change(lambda tree: _create(request, tree))
    return {}


def _remove(request: Request, tree: Tree) -> None:
    guest = request.guest
    group = guest.group(tree, request["group"], "remove")
    guest.require_above(tree, request.peer, group, "remove")
    request.note(group, "group", "there", None)
    if request["recursive"] and group != "/":
        guest.refuse_locked(f"remove group {group}", *tree.view.tree(group))
    args = argparse.Namespace(group=group, recursive=bool(request["recursive"]), kill=bool(request["kill"]))
    tree.view.known = lambda pids: _known(request, pids)
    client.do_rm(tree.view, args)


async def remove(request: Request) -> dict[str, Any]:
    """Remove a group; recursive with those below, kill with what runs in them."""
    async with request.guest.changing:
        await request.change(lambda tree: _remove(request, tree))
    return {}


METHODS: dict[str, Method] = {
    "Info": info,
    "List": list_groups,
    "Create": create,
    "Remove": remove,
    "Get": get,
    "Set": set_limits,
}
