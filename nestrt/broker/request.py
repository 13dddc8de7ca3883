"""One call of a guest's process, on its way through the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Awaitable, Callable

from nestrt.broker.peer import Peer
from nestrt.broker.served import Served

if TYPE_CHECKING:
    from nestrt.broker.server import Broker


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


Method = Callable[[Request], Awaitable[dict[str, Any]]]
