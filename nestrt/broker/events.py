"""The method Events: a stream of what happens to a guest's groups.

Whoever subscribes has a queue of his own, of LONGEST events. One who does not read is waited for by nobody: what does
not fit is dropped, and he is told how much that was, in its place among the others.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

import trio

from nestrt.broker.interest import Interest
from nestrt.broker.refusal import Refusal
from nestrt.broker.request import Method, Request
from nestrt.broker.served import Served, Tree
from nestrt.host.event_sources import KINDS, RESOURCES
from nestrt.host.pressure import Trigger, parse_threshold

LONGEST = 256  # events that wait for a reader
MOST_SUBSCRIPTIONS = 16  # of one guest
FOR_USERS = 12  # of those, for others than its root
# What a subscriber is told of that names no threshold: a tenth of two seconds, which any broker may ask for.
USUAL = "some 200000 2000000"

_subscriptions: WeakKeyDictionary[Served, dict[Subscription, bool]] = WeakKeyDictionary()


class Subscription:
    """The queue between the watcher, which never waits, and one reader, who may."""

    def __init__(self) -> None:
        self.queue: deque[dict[str, Any]] = deque()
        self.lost = 0
        self.ready = trio.Event()

    def put(self, event: dict[str, Any]) -> None:
        """Take an event, or count it where there is no room."""
        # One place is left for the word that something was lost.
        if len(self.queue) >= LONGEST - 1:
            self.lost += 1
        else:
            self._tell_lost()
            self.queue.append(event)
        self.ready.set()

    async def next(self) -> dict[str, Any]:
        """The next event; waits for it."""
        while not self.queue:
            if self.lost:
                self._tell_lost()
                break
            self.ready = trio.Event()
            await self.ready.wait()
        return self.queue.popleft()

    def _tell_lost(self) -> None:
        if self.lost:
            detail = "the reader was too slow"
            self.queue.append(
                {
                    "time": time.time(), "kind": "lost", "group": "/", "key": None, "count": self.lost,
                    "detail": detail, "id": None, "seconds": None,
                }
            )  # fmt: skip
            self.lost = 0


def pressure(tree: Tree, group: str) -> tuple[Trigger, ...]:
    """The triggers for whoever subscribes to the pressure on *group*: PSI's, of all resources, else v1's level."""
    texts = [f"{resource} {USUAL}" for resource in RESOURCES]
    files = [trigger for trigger in map(parse_threshold, texts) if trigger]
    found = [trigger for trigger in files if _has(tree, group, trigger)]
    level = parse_threshold("medium")
    return tuple(found) or tuple(one for one in (level,) if one and _has(tree, group, one))


def _has(tree: Tree, group: str, trigger: Trigger) -> bool:
    for hierarchy in tree.view.hierarchies:
        try:
            with open(f"{hierarchy.dir(group)}/{trigger.file}", "rb") as file:
                return not trigger.window or bool(file.read(16))
        except OSError:  # not in this hierarchy; EOPNOTSUPP: switched off
            continue
    return False


def _admit(request: Request, subscription: Subscription) -> dict[Subscription, bool]:
    """Count it. Raises Refusal (QuotaExceeded)."""
    found = _subscriptions.setdefault(request.guest, {})
    users = sum(1 for root in found.values() if not root)
    if len(found) >= MOST_SUBSCRIPTIONS or (not request.peer.root and users >= FOR_USERS):
        reason = f"the guest has {len(found)} streams of events"
        raise Refusal("QuotaExceeded", f"cannot subscribe: {reason}", "end one of them, or share it")
    found[subscription] = request.peer.root
    return found


async def events(request: Request) -> dict[str, Any]:
    """Stream the events of a group and of those below, until the other end closes. Pressure is the group's own, which
    PSI counts with those below."""
    if not request.more:
        raise Refusal("org.varlink.service.ExpectedMore", "Events is a stream: call it with more")
    guest, watcher = request.guest, request.broker.watcher
    kinds = request["kinds"] or list(KINDS)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        what = f"cannot subscribe: no event is called {unknown[0][:40]!r}"
        raise Refusal("BadValue", what, f"there are {', '.join(KINDS)}")
    tree = guest.open()
    group = guest.group(tree, request["group"] or "/", "subscribe to")
    triggers = pressure(tree, group) if "pressure" in kinds else ()
    if "pressure" in (request["kinds"] or ()) and not triggers:
        what = f"cannot subscribe to the pressure on group {group}: nothing in this kernel tells of it"
        raise Refusal("NotPossible", what, "boot it with psi=1")
    subscription = Subscription()
    all_of_guest = _admit(request, subscription)
    interest = Interest(group, frozenset(kinds), True, subscription.put, triggers)
    try:
        await watcher.add(guest, interest)
        # Whoever does something now is told of it.
        await request.send({"event": {"time": time.time(), "kind": "listening", "group": group}})
        while True:
            await request.send({"event": await subscription.next()})
    finally:
        watcher.drop(guest, interest)
        all_of_guest.pop(subscription, None)


METHODS: dict[str, Method] = {"Events": events}
