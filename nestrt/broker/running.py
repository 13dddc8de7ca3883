"""What runs in a group: Processes, Freeze, Thaw, Kill."""

from __future__ import annotations

import os
import signal
import time
from typing import Any
from weakref import WeakKeyDictionary

import trio

from nestrt.broker.guest_names import reader
from nestrt.broker.moves import frozen
from nestrt.broker.peer import inside
from nestrt.broker.refusal import Refusal
from nestrt.broker.request import Method, Request
from nestrt.broker.served import Served, Tree
from nestrt.broker.threads import ABANDON
from nestrt.broker.victims import all_pids, look, namespace_of
from nestrt.guest import client
from nestrt.guest.client import GuestError, Hierarchy
from nestrt.kernel import freezer, pidfd

LONGEST_COMMAND = 4096  # characters
MOST_TEXT = 1 << 20  # characters of all commands of one reply
PATIENCE = 2.0  # seconds for reading commands, 10 s for processes to end (client.kill())
KILL_PATIENCE = 10.0
SIGNALS = range(1, 65)

# Freezing and killing wait for processes, which can take their time: apart from what serves everybody, and the
# guest's root (True) apart from its users.
_waiting: WeakKeyDictionary[Served, dict[bool, trio.CapacityLimiter]] = WeakKeyDictionary()


def _apart(request: Request) -> trio.CapacityLimiter:
    both = {True: trio.CapacityLimiter(2), False: trio.CapacityLimiter(2)}
    return _waiting.setdefault(request.guest, both)[request.peer.root]


# Processes


Found = list[tuple[int, int | None, dict[str, Any]]]


def _list(request: Request, tree: Tree) -> Found:
    """(pid, start, what Processes answers of it, with its name for the command)."""
    guest, view = request.guest, tree.view
    top = guest.group(tree, request["group"] or "/", "list the processes of")
    pids: dict[int, None] = {}
    for group in view.tree(top) if request["recursive"] else [top]:
        pids.update(dict.fromkeys(sorted(view.processes(group))))
    found: Found = []
    with namespace_of(request.peer, f"list the processes of group {top}") as numbers:
        for pid in pids:
            number, start, process = numbers.inside(pid) if pid else 0, pidfd.start_time(pid), look(pid)
            groups = set(client.places(pid, view.hierarchies).values()) - {None}
            if number and process and groups:
                user = inside(guest.ids, process.uids[0])
                group = str(groups.pop()) if len(groups) == 1 else ""
                entry = {"pid": number, "user": user, "group": group, "command": f"[{process.name}]"}
                found.append((pid, start, entry))
    return found


def _commands(found: Found) -> None:
    """Fill in the command lines; a process without one keeps its name in brackets."""
    left = MOST_TEXT
    for pid, start, entry in found:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read(LONGEST_COMMAND).rstrip(b"\0")
        except OSError:
            continue
        text = words.replace(b"\0", b" ").decode("utf-8", "replace")
        # Another process that has the number by now is not of this guest, maybe, and its words are nobody's here.
        if text and len(text) <= left and pidfd.start_time(pid) == start:
            entry["command"] = text
            left -= len(text)


async def processes(request: Request) -> dict[str, Any]:
    """The processes of a group, and with recursive of those below, that the caller's pid namespace has numbers for."""
    found = await request.later(lambda tree: _list(request, tree))
    # A command line is read with the process's memory map locked, and a process that maps something over a file of
    # its own filesystem (FUSE) can hold that lock for ever. So a thread reads that nobody has to wait for.
    copies = [(pid, start, dict(entry)) for pid, start, entry in found]
    done = [entry for _, _, entry in found]
    with trio.move_on_after(PATIENCE):
        await trio.to_thread.run_sync(_commands, copies, limiter=reader(request.guest), **ABANDON)
        done = [entry for _, _, entry in copies]
    return {"processes": done}


# Freeze, Thaw


def _below_root(request: Request, tree: Tree, operation: str) -> str:
    """The group that is asked for, which the caller owns, and is not the guest root."""
    group = request.guest.group(tree, request["group"], operation)
    if group == "/":
        reason = "it is the whole guest, the caller too"
        remedy = "the level above stops and ends guests; name a group below"
        raise Refusal("NotPossible", f"cannot {operation} group /: {reason}", remedy)
    request.guest.require(tree, request.peer, group, operation)
    return group


def _freezers(view: client.View, group: str) -> list[Hierarchy]:
    """The hierarchies that can freeze *group*, the one to use first."""
    found = [h for h in view.hierarchies if h.version == 1 and "freezer" in h.controllers]
    found += [h for h in view.hierarchies if h.version == 2]
    return [h for h in found if os.path.isdir(h.dir(group))]


def _freeze(request: Request, tree: Tree) -> None:
    view, peer = tree.view, request.peer
    group = _below_root(request, tree, "freeze")
    own = client.places(peer.pid, view.hierarchies).values()
    if any(place is not None and client.below(place, group) for place in own):
        remedy = "call from a process outside of it"
        raise Refusal("NotPossible", f"cannot freeze group {group}: the caller is in it", remedy)
    places = _freezers(view, group)
    if not places:
        raise GuestError(5, f"freeze group {group}", "no hierarchy of this guest can", "see nestrt check")
    request.note(group, "frozen", bool(frozen(view, group)), True)
    if not freezer.freeze(places[0].dir(group), places[0].version):
        reason = "some of its processes do not stop; they all go on"
        raise GuestError(4, f"freeze group {group}", reason, "see what they wait for: cat /proc/PID/stack")


async def freeze(request: Request) -> dict[str, Any]:
    """Stop what runs in a group and below; back when all have stopped."""
    await request.change(lambda tree: _freeze(request, tree), _apart(request))
    return {}


def _thaw(request: Request, tree: Tree) -> None:
    group = _below_root(request, tree, "thaw")
    request.note(group, "frozen", bool(frozen(tree.view, group)), False)
    # In both, where a host has both: the guest may have frozen it by its own hand in the other one.
    for hierarchy in _freezers(tree.view, group):
        freezer.thaw(hierarchy.dir(group), hierarchy.version)
    if above := frozen(tree.view, client.ancestors(group)[0]):
        raise GuestError(4, f"thaw group {group}", f"group {above} is frozen", f"thaw {above}")


async def thaw(request: Request) -> dict[str, Any]:
    """Let what runs in a group go on."""
    await request.change(lambda tree: _thaw(request, tree))
    return {}


# Kill


def _kill_all(tree: Tree, group: str) -> int:
    """SIGKILL to all in *group* and below; how many there were. Raises GuestError where some do not end."""
    view = tree.view
    groups = view.tree(group)[::-1]
    pids = {pid for pid in all_pids(tree, group) if pid}
    v2 = next((h for h in view.hierarchies if h.version == 2), None)
    texts = [client.read(f"{v2.dir(one)}/cgroup.procs") or "" for one in groups] if v2 else []
    inside_v2 = {int(pid) for text in texts for pid in text.split()}
    v1_freezer = any(h.version == 1 and "freezer" in h.controllers for h in view.hierarchies)
    if v2 and pids <= inside_v2 and not v1_freezer:
        try:
            client.write(v2.dir(group) + "/cgroup.kill", "1")
            return len(pids)
        except OSError:
            pass  # before Linux 5.14, or a group of threads
    client.kill(view, groups, time.monotonic() + KILL_PATIENCE)
    if left := {pid for pid in all_pids(tree, group) if pid}:
        raise GuestError(4, f"kill group {group}", f"{len(left)} of its processes do not end", "see what they wait for")
    return len(pids)


def _signal_all(tree: Tree, group: str, number: int) -> int:
    """Signal *number* to each in *group* and below; how many got it."""
    count = 0
    for pid in {pid for pid in all_pids(tree, group) if pid}:
        try:
            fd = pidfd.open(pid)
        except OSError:
            continue
        try:
            # Whoever has the number now is held; is it still one of the group?
            places = client.places(pid, tree.view.hierarchies).values()
            if any(place is not None and client.below(place, group) for place in places):
                count += pidfd.send_signal(fd, number)
        finally:
            os.close(fd)
    return count


def _kill(request: Request, tree: Tree) -> int:
    number = signal.SIGKILL if request["signal"] is None else request["signal"]
    group = _below_root(request, tree, "kill")
    if number not in SIGNALS:
        raise Refusal("BadValue", f"cannot kill group {group}: there is no signal {number}", "signals are 1 to 64")
    request.note(group, "signal", None, int(number))
    return _kill_all(tree, group) if number == signal.SIGKILL else _signal_all(tree, group, number)


async def kill(request: Request) -> dict[str, Any]:
    """A signal, SIGKILL where none is named, to all in a group and below, the caller too if it is there."""
    return {"processes": await request.later(lambda tree: _kill(request, tree), _apart(request))}


METHODS: dict[str, Method] = {"Processes": processes, "Freeze": freeze, "Thaw": thaw, "Kill": kill}
