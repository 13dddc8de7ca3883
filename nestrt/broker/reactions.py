"""The methods React, Forget, Reactions and Answer: what is to happen when a group runs out of memory, or is under
pressure, registered by who owns the group or the one above.

A reaction is kept on the group itself, as an extended attribute of its directory in the primary hierarchy: it is there
as long as the group, and a broker that starts finds it. ``trusted.nestrt.reactions`` is the broker's own word. Where
the broker is in a user namespace it is ``user.nestrt.reactions``, which whoever owns the directory can write as well:
so what it says is taken for his wish, and carried out where he may ask for it. A broker that can write the one
never reads the other. fs/kernfs/inode.c bounds them, to 64 KiB each.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, AsyncIterator

from nestrt.broker import reacting_acts as acts
from nestrt.broker.reacting import FAILURES
from nestrt.broker.reaction_text import ANSWERS, LARGEST, Reaction, decode, encode, parse
from nestrt.broker.refusal import Refusal, from_error, not_permitted
from nestrt.broker.request import Method, Request
from nestrt.broker.served import Served, Tree
from nestrt.guest import client
from nestrt.guest.client import Hierarchy
from nestrt.host.marks import TRUSTED
from nestrt.record import replace

if TYPE_CHECKING:
    from nestrt.broker.server import Broker

ATTRIBUTES = ("trusted.nestrt.reactions", "user.nestrt.reactions")
MOST_REACTIONS = 64  # of one guest
MOST_SCANNED = 100_000  # groups
Kept = list[tuple[Reaction, dict[str, str]]]


# On the group.


def attribute(guest: Served) -> str:
    """The attribute's name: as the guest's own mark has it, which the same level has made."""
    return ATTRIBUTES[guest.known.attribute != TRUSTED]


def places(guest: Served, tree: Tree) -> list[Hierarchy]:
    """The hierarchies in which reactions are kept: the primary one, and for a group that is not in it, memory's."""
    first = [h for h in tree.view.hierarchies if h.name == guest.primary.name]
    memory = tree.view.holder("memory")
    return first + ([memory] if memory and memory not in first else [])


def read_kept(guest: Served, tree: Tree, group: str) -> Kept:
    """What is kept on *group*."""
    for hierarchy in places(guest, tree):
        try:
            return decode(os.getxattr(hierarchy.dir(group), attribute(guest)), group)
        except OSError:
            continue
    return []


def keep(guest: Served, tree: Tree, group: str, kept: Kept) -> None:
    """Keep it on *group*. Raises Refusal, OSError."""
    place = next((h.dir(group) for h in places(guest, tree) if os.path.isdir(h.dir(group))), None)
    if place is None:
        reason = "it is in no hierarchy that would remember it"
        raise Refusal("NotPossible", f"cannot react for group {group}: {reason}", "set its memory.max")
    if kept:
        raw = encode(kept)
        if len(raw) > LARGEST:
            raise Refusal("BadValue", f"cannot react for group {group}: that is too long", "write less")
        os.setxattr(place, attribute(guest), raw)
        return
    try:
        os.removexattr(place, attribute(guest))
    except OSError:  # there was none
        pass


def scan(guest: Served, tree: Tree) -> list[tuple[str, bytes]]:
    """(group, attribute's value) of all groups of the guest that have one. Below a group with a guest's mark they are
    those of that guest, for the level that has made it."""
    name = attribute(guest)
    found: dict[str, bytes] = {}
    guests: set[str] = set()  # the primary hierarchy has the marks, and comes first
    for hierarchy in places(guest, tree):
        waiting, seen = ["/"], 0
        while waiting and seen < MOST_SCANNED:
            group, seen = waiting.pop(), seen + 1
            try:
                names = os.listxattr(hierarchy.dir(group))
                if name in names:
                    found.setdefault(group, os.getxattr(hierarchy.dir(group), name))
                # A level keeps its reactions where it keeps its marks; what others can write says nothing here.
                if guest.known.attribute in names:
                    guests.add(group)
                if group in guests:
                    continue
                with os.scandir(hierarchy.dir(group)) as entries:
                    inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            except OSError:  # removed meanwhile
                continue
            waiting += [f"{group if group != '/' else ''}/{one}" for one in inner]
    return sorted(found.items())


def may_claim(guest: Served, tree: Tree, reaction: Reaction) -> bool:
    """Whether the owner of a group's directory, who can write its ``user.*`` attributes, may ask for *reaction*."""
    place = next((h.dir(reaction.group) for h in places(guest, tree) if os.path.isdir(h.dir(reaction.group))), "")
    owner = os.stat(place).st_uid if place else -1
    if owner in (guest.root_uid, os.geteuid()) or not (reaction.action == "raise" or reaction.step):
        return True
    above = client.ancestors(reaction.group)
    return any(guest.owner(tree, one) == owner for one in above if one != "/")


# The methods.


def _check(request: Request, tree: Tree) -> tuple[Reaction, Kept, bool]:
    """The reaction that is asked for, what is kept on its group, and whether the caller owns the group above."""
    guest, peer, values = request.guest, request.peer, request["reaction"]
    group = guest.group(tree, values["group"], "react for")
    guest.require(tree, peer, group, "react for")
    reaction = parse(values, group)
    above = client.ancestors(group)[0]
    owner = peer.root if above == "/" else guest.owns(tree, peer, above)
    if reaction.action == "raise":
        guest.require_above(tree, peer, group, "raise limits of")
    if reaction.step and not guest.may_divide("memory"):
        reason = "this guest may not divide memory"
        raise Refusal("NotPossible", f"cannot react for group {group}: {reason}", "the policy above says so")
    kept = read_kept(guest, tree, group)
    _check_old(request, kept, group, reaction.on, owner, "change the reaction of")
    return replace(reaction, above=owner), kept, owner


def _check_old(request: Request, kept: Kept, group: str, on: str, owner: bool, operation: str) -> None:
    """What the owner of the group above has registered is his to change."""
    if not owner and any(old.on == on and old.above for old, _ in kept):
        raise not_permitted(f"{operation} group {group}", request.peer.who())


@asynccontextmanager
async def _alone(request: Request) -> AsyncIterator[None]:
    """Nobody else changes the guest's reactions, and nobody locks it."""
    async with request.broker.watcher.reactor.lock(request.guest):
        with request.unlocked():
            yield


async def react(request: Request) -> dict[str, Any]:
    """Register a reaction, in the place of the one that there is for the same event."""
    guest, reactor = request.guest, request.broker.watcher.reactor
    async with _alone(request):
        reaction, kept, _ = guest.now(lambda tree: _check(request, tree))
        group, on = reaction.group, reaction.on
        armed = reactor.of(guest)
        if (group, on) not in armed and len(armed) >= MOST_REACTIONS:
            reason = f"the guest has {MOST_REACTIONS} reactions"
            raise Refusal("QuotaExceeded", f"cannot react for group {group}: {reason}", "forget one")
        old = next(((one, was) for one, was in kept if one.on == on), None)
        request.note(group, f"reaction on {on}", old and old[0].shown(), reaction.shown())
        await reactor.disarm(guest, group, on)
        others = [one for one in kept if one[0].on != on]
        try:
            await _arm_new(request, reaction, others)
        except BaseException as error:
            # As it was: nothing half done stays.
            try:
                guest.now(lambda tree: keep(guest, tree, group, others + ([old] if old else [])))
                if old and isinstance(error, Exception):
                    await reactor.arm(guest, *old)
            except FAILURES:  # the group has gone meanwhile, or it cannot keep any
                pass
            raise
    return {}


async def _arm_new(request: Request, reaction: Reaction, others: Kept) -> None:
    guest, reactor = request.guest, request.broker.watcher.reactor
    if reaction.on == "oom":
        await guest.later(lambda tree: acts.enable(tree, reaction.group))
    was: dict[str, str] = guest.now(lambda tree: acts.before(tree, reaction))
    # Kept before it is armed: what it changes is known to whoever comes next.
    guest.now(lambda tree: keep(guest, tree, reaction.group, [*others, (reaction, was)]))
    await reactor.arm(guest, reaction, was)


async def forget(request: Request) -> dict[str, Any]:
    """Take a reaction back, and with it what was set for it."""
    guest, reactor, on = request.guest, request.broker.watcher.reactor, request["on"]
    async with _alone(request):
        tree = guest.open()
        group = guest.group(tree, request["group"], "forget a reaction of")
        guest.require(tree, request.peer, group, "forget a reaction of")
        kept = read_kept(guest, tree, group)
        if not any(reaction.on == on for reaction, _ in kept):
            what = f"cannot forget the reaction on {on[:40]} of group {group}"
            raise Refusal("NotFound", f"{what}: there is none", "Reactions lists them")
        above = client.ancestors(group)[0]
        owner = request.peer.root if above == "/" else guest.owns(tree, request.peer, above)
        _check_old(request, kept, group, on, owner, "forget the reaction of")
        old = next(reaction for reaction, _ in kept if reaction.on == on)
        request.note(group, f"reaction on {on}", old.shown(), None)
        await reactor.disarm(guest, group, on)
        guest.now(lambda tree: keep(guest, tree, group, [one for one in kept if one[0].on != on]))
    return {}


async def reactions(request: Request) -> dict[str, Any]:
    """Those of the groups that the caller owns."""
    guest = request.guest
    tree = guest.open()
    armed = sorted(request.broker.watcher.reactor.of(guest).items())
    return {"reactions": [one.reaction.shown() for (group, _), one in armed if guest.owns(tree, request.peer, group)]}


async def answer(request: Request) -> dict[str, Any]:
    """What is to happen to a group that the guest was asked about."""
    guest, number, action = request.guest, request["id"], request["action"]
    question = request.broker.watcher.reactor.questions.get(number)
    if question is None or question.armed.guest is not guest:
        what = f"cannot answer {number}: nothing is asked by that number"
        raise Refusal("NotFound", what, "the time to answer is over, or somebody has")
    if action not in ANSWERS:
        what = f"cannot answer {number}: no action is called {action[:40]!r}"
        raise Refusal("BadValue", what, f"name one of {', '.join(ANSWERS)}")
    reaction, tree = question.armed.reaction, guest.open()
    if action == "raise" and reaction.step is None:
        what = f"cannot raise group {reaction.group}: the reaction has no step and no most"
        raise Refusal("BadValue", what, "register it with both")
    guest.require(tree, request.peer, reaction.group, "answer for")
    if reaction.above or action == "raise":
        guest.require_above(tree, request.peer, reaction.group, "answer for")
    request.note(reaction.group, f"answer {number}", None, action)
    question.take(action)
    return {}


# For the broker.


async def restore(broker: Broker, guest: Served) -> None:
    """Take up what is kept on the groups of a guest that is served again. Raises Refusal, OSError."""
    reactor = broker.watcher.reactor
    trusted = attribute(guest) == ATTRIBUTES[0]
    for group, raw in await guest.later(lambda tree: scan(guest, tree)):
        for reaction, was in decode(raw, group):
            if len(reactor.of(guest)) >= MOST_REACTIONS:
                return
            try:
                if not trusted and not may_claim(guest, guest.open(), reaction):
                    continue
                armed = await reactor.arm(guest, reaction, was)
                broker.watcher.start(reactor.confirm, armed)
            except FAILURES as error:
                verdict, key = f"not restored: {from_error(error).message}", f"reaction on {reaction.on}"
                broker.audit.record(guest.name, group, key, reaction.shown(), None, verdict, None, "restore")


def forget_guest(broker: Broker, guest: Served) -> None:
    """The guest has ended, or is served no longer: nothing in it waits for the broker any more."""
    broker.watcher.reactor.forget_guest(guest)


METHODS: dict[str, Method] = {"React": react, "Forget": forget, "Reactions": reactions, "Answer": answer}
