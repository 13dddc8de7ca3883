"""One call of a guest's process, on its way through the broker."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Iterator, TypeVar

import trio

from nestrt.broker.peer import Peer
from nestrt.broker.quota import Timed
from nestrt.broker.served import Served, Tree
from nestrt.guest import client
from nestrt.guest.client import GuestError

if TYPE_CHECKING:
    from nestrt.broker.server import Broker

T = TypeVar("T")


class Request:
    """*parameters* are checked by the interface: every key is there, None where it was left out."""

    def __init__(
        self,
        broker: Broker,
        guest: Served,
        peer: Peer,
        method: str,
        parameters: dict[str, Any],
        more: bool,
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        self.broker = broker
        self.guest = guest
        self.peer = peer
        self.method = method
        self.parameters = parameters
        self.more = more
        self.send = send  # one reply of a stream: there will be others
        self.notes: list[tuple[str, str, Any, Any]] = []

    def __getitem__(self, key: str) -> Any:
        return self.parameters[key]

    def note(self, group: str, key: str, old: Any, new: Any) -> None:
        """For the audit: the *group*'s *key* was *old* and is, or was to become, *new*."""
        self.notes.append((group, key, old, new))

    @contextmanager
    def unlocked(self) -> Iterator[None]:
        """As Served.unlocked(), while this call changes the group that it names."""
        text = self.parameters.get("group") or (self.parameters.get("reaction") or {}).get("group") or "/"
        operation = f"carry out {self.method} for group {text[:80]}"
        try:
            groups: tuple[str, ...] = (client.parse_group(text, operation),)
        except GuestError:  # its method says why not
            groups = ()
        with self.guest.unlocked(operation, *groups):
            yield

    async def later(self, action: Callable[[Tree], T], limiter: trio.CapacityLimiter | None = None) -> T:
        """As Served.later(), for what is read; the caller pays for the time that it takes of the processor."""
        timed = Timed(action)
        try:
            return await self.guest.later(timed, limiter or self.guest.readers)
        finally:
            self.guest.quota.spend(self.peer.root, timed.spent)

    async def change(self, action: Callable[[Tree], T], limiter: trio.CapacityLimiter | None = None) -> T:
        """The same, for what changes: unlocked()."""

        def guarded(tree: Tree) -> T:
            with self.unlocked():
                return action(tree)

        return await self.later(guarded, limiter or self.guest.workers)


Method = Callable[[Request], Awaitable[dict[str, Any]]]
