"""Moving processes between a guest's groups: Attach, and what rules do by the same function.

Who may: the guest's root, everything in the guest. Anybody else, as the kernel would let him by his own hand: only
processes that are wholly his (cgroup-v1.c, __cgroup1_procs_write()), and only from and to groups below one that
he owns (cgroup-v2.rst, "Delegation Containment"): of two groups given to him one by one, what was started in the
first stays there.

The write names the process by its number, there is no other way. Between the last look and the write it can end and its
number go to another, of the host's or of another guest's. A pidfd tells that afterwards; then what was moved by mistake
is put back where its parent is, where it was a moment before, when it was born.

What the kernel does not let a broker in a user namespace do on v1, the one of the level above does for it, if there is
one and it may: it looks at the same numbers and groups as at those of its own guest.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import Any, NoReturn

from nestrt.broker import above
from nestrt.broker.peer import Peer
from nestrt.broker.refusal import Refusal, from_error
from nestrt.broker.request import Method, Request
from nestrt.broker.served import Served, Tree
from nestrt.broker.victims import Process, ended, find, look, namespace_of
from nestrt.guest import client
from nestrt.guest.client import GuestError, Hierarchy
from nestrt.kernel import cgroup, pidfd

METHOD = "io.nestrt.Guest.Attach"
# Processes moved before others of the guest, who wait for the same lock, have their turn.
TURN = 32
# Seconds. v1 shows a process on its way out in "/" already, where it looks like a stranger's.
EXITING = 0.05


def common(one: str, other: str) -> str:
    """The nearest group that both are in or below: "/a/b" and "/a/c" → "/a"."""
    above = {other, *client.ancestors(other)}
    return next(group for group in (one, *client.ancestors(one)) if group in above)


def frozen(view: client.View, group: str) -> str:
    """The nearest group, *group* or one above it, that is frozen by itself; "" where none is."""
    files = [(h, "cgroup.freeze") for h in view.hierarchies if h.version == 2]
    files += [(h, "freezer.self_freezing") for h in view.hierarchies if h.version == 1 and "freezer" in h.controllers]
    for one in (group, *client.ancestors(group)):
        if any(client.read(f"{hierarchy.dir(one)}/{file}") == "1" for hierarchy, file in files):
            return one
    return ""


def _check_owner(guest: Served, tree: Tree, who: Peer, process: Process, old: set[str], to: str, what: str) -> None:
    """Refuse what *who*, not the guest's root, may not do: *process* is in the groups *old*."""
    if set(process.uids) != {who.uid}:
        reason = f"it is not, or not only, a process of {who.who()}"
        raise Refusal("NotPermitted", f"cannot {what}: {reason}", "let its owner, or the guest's root, do it")
    for group in sorted(old):
        above = common(group, to)
        if not guest.owns(tree, who, above):
            reason = f"it is in group {group}, and {who.who()} does not own group {above}, above both"
            raise Refusal("NotPermitted", f"cannot {what}: {reason}", "let the guest's root do it")


def _put_back(guest: Served, pid: int, wrong: dict[Hierarchy, tuple[str, str]]) -> bool:
    """Another process has the number *pid* now: put it back where we have moved it from, if we have. *wrong* are the
    groups that we may have moved it to. Whether it is where it belongs.

    It was born after we looked, so it belongs where its parent is. clone3(2) can place a child elsewhere, in v2's
    tree only; what the other hierarchies say of itself serves where the parent has gone.
    """
    try:
        fd = pidfd.open(pid)
    except OSError:
        return True  # nobody has it
    try:
        now, process = client.membership(str(pid)), look(pid)
        theirs = client.membership(str(process.parent)) if process and process.parent else {}
        keys = {hierarchy.options for hierarchy in wrong}
        others = [group for key, group in now.items() if key not in keys]
        back = True
        for hierarchy, groups in wrong.items():
            place, belongs = now.get(hierarchy.options), theirs.get(hierarchy.options)
            if place == belongs or place not in {(hierarchy.base + group).rstrip("/") for group in groups}:
                continue
            host = next(h for h in guest.hierarchies if h.name == hierarchy.name)
            back = back and any(_write(host.path(to), to, pid) for to in ([belongs] if belongs else others))
        return back or ended(fd)
    finally:
        os.close(fd)


def _write(directory: str, group: str, pid: int) -> bool:
    """Move *pid* to *group*, as this level names it, whose *directory* that is; whether it was done."""
    try:
        cgroup.write(directory + "/cgroup.procs", str(pid))
    except OSError as error:
        if error.errno != errno.EACCES or not above.needed():
            return False
        try:
            above.ask(METHOD, {"group": group, "pids": [pid]})
        except Refusal:
            return False
    return True


def _by_the_level_above(guest: Served, pid: int, to: str, hierarchies: tuple[Hierarchy, ...], operation: str) -> None:
    """Have *pid* moved to group *to* of *guest*, which divides *hierarchies*. Raises Refusal."""
    own = {hierarchy.name for hierarchy in hierarchies}
    others = [h.name for h in guest.hierarchies if h.name not in own and os.access(h.mountpoint, os.W_OK)]
    if others:
        reason = f"the level above moves processes in all hierarchies of this one, and {others[0]} is not divided here"
        raise Refusal("NotPossible", f"cannot {operation}: {reason}", "have the guest's policy divide that too")
    above.ask_for(guest, METHOD, guest.root + to.rstrip("/"), {"pids": [pid]})


def move(
    guest: Served, tree: Tree, who: Peer | None, pid: int, fd: int, to: str, operation: str,
    only: tuple[Hierarchy, ...] | None = None,
) -> dict[str, str]:  # fmt: skip
    """Move the process *pid*, of which *fd* is a pidfd, to group *to*, in the hierarchies *only*, all where not given.

    *who* asks; None: it is done with the authority of the guest's root. Returns the group that it has left in each
    hierarchy, by its options, {} where it was there. All hierarchies or none. Raises Refusal, GuestError.
    """
    hierarchies = tree.view.divided if only is None else only
    if not hierarchies:
        raise GuestError(5, operation, "this guest may divide nothing", "the policy of the level above says so")
    places, process = client.places(pid, hierarchies), look(pid)
    gone = Refusal("NotFound", f"cannot {operation}: the process has ended", "")
    if ended(fd) or process is None or process.ended or not places:
        raise gone
    old = {hierarchy: group for hierarchy, group in places.items() if group is not None}
    if len(old) < len(places):
        if pidfd.wait(fd, EXITING):
            raise gone
        remedy = "only the guest's own processes can be moved"
        raise Refusal("NotPermitted", f"cannot {operation}: it is not in this guest", remedy)
    if who is not None and not who.root:
        _check_owner(guest, tree, who, process, set(old.values()), to, operation)
    if stopped := frozen(tree.view, to):
        reason = f"group {stopped} is frozen, and it would stop there"
        raise GuestError(4, operation, reason, "thaw the group, or freeze it after")
    old = {hierarchy: group for hierarchy, group in old.items() if group != to}
    for hierarchy in old:
        if not os.path.isdir(hierarchy.dir(to)):
            reason = f"there is no group {to} in hierarchy {hierarchy.name or 'cgroup2'}"
            raise GuestError(3, operation, reason, "make it there too: set a limit of the group")

    def sure(written: list[Hierarchy]) -> None:
        if ended(fd):
            if not _put_back(guest, pid, {hierarchy: (to, old[hierarchy]) for hierarchy in written}):
                reason = f"its number went to another process, which is in group {to} now"
                raise Refusal("Refused", f"cannot {operation}: {reason}", "move that one back")
            raise gone

    try:
        client.move(pid, to, old, operation, sure)
    except GuestError as error:
        # v1 lets nobody but root of the initial user namespace move other users' processes (cgroup-v1.c,
        # __cgroup1_procs_write()).
        if error.code != errno.EACCES or not above.needed():
            raise
        _by_the_level_above(guest, pid, to, hierarchies, operation)
        sure([*old])
    return {hierarchy.options: group for hierarchy, group in old.items()}


def _attach(request: Request, begin: int, tree: Tree) -> None:
    guest, peer, numbers = request.guest, request.peer, request["pids"]
    group = guest.group(tree, request["group"], "move processes to")
    guest.require(tree, peer, group, "move processes to")
    with namespace_of(peer, f"move processes to group {group}") as namespace:
        for done, number in enumerate(numbers[begin : begin + TURN], begin):
            operation = f"move process {number} to group {group}" if number else f"move the caller to group {group}"
            try:
                pid, fd = find(tree, namespace, peer, number, operation)
                try:
                    left = move(guest, tree, peer, pid, fd, group, operation)
                finally:
                    os.close(fd)
            except (Refusal, GuestError, OSError) as error:
                _so_far(from_error(error), done, len(numbers))
            if left:
                request.note(group, f"process {pid}", " ".join(sorted(set(left.values()))), group)


def _so_far(refusal: Refusal, done: int, of: int) -> NoReturn:
    """Raise *refusal*, telling how many were moved before."""
    if not done:
        raise refusal
    message = f"{refusal.message}; {done} of {of} were moved before"
    raise Refusal(refusal.name, message, refusal.remedy, refusal.errno)


async def attach(request: Request) -> dict[str, Any]:
    """Move processes to a group, one by one: each in every hierarchy, or in none. The first that cannot be ends it."""
    for begin in range(0, max(len(request["pids"]), 1), TURN):
        async with request.guest.changing:
            await request.change(partial(_attach, request, begin))
    return {}


METHODS: dict[str, Method] = {"Attach": attach}
