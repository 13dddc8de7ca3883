"""How much a guest may ask: a bucket of requests that fills at a steady rate, and connections by user. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Generic, TypeVar

from nestrt.broker.audit_line import DIRECTORY
from nestrt.level.policy import QUOTAS
from nestrt.record import record, replace

if TYPE_CHECKING:
    from nestrt.host.marks import Mark

A = TypeVar("A")
T = TypeVar("T")


@record
class Options:
    """*requests* a second and *burst* of one guest, *connections* of one guest, *message_bytes* of one call.
    *audit* is a directory, *version* nestrt's."""

    requests: int = 1000
    connections: int = 64
    message_bytes: int = 65536
    audit: str = DIRECTORY
    version: str = ""

    @property
    def burst(self) -> int:
        """How many may come at once after a rest."""
        return max(self.requests // 4, 10)

    @property
    def per_user(self) -> int:
        """Connections of one user that is not the guest's root."""
        return max(self.connections // 4, 1)

    @property
    def users(self) -> int:
        """Connections of all those users together: root keeps the rest."""
        return max(self.connections * 3 // 4, 1)


# What a policy calls a quota, and the option of the broker that it is about.
OPTIONS = {"requests": "requests", "connections": "connections", "message": "message_bytes"}


def of_guest(flags: Options, mark: Mark) -> Options:
    """*flags*, with what the policy of the guest with that *mark* says instead of them (plan.groups.quota()).

    Only the launching level writes marks; still, what no policy can say counts as if it was not there.
    """

    def said(values: dict[str, Any] | None, key: str) -> int | None:
        value = (values or {}).get(key)
        low, high = QUOTAS[f"broker_{key}"]
        return value if type(value) is int and low <= value <= high else None

    found = {}
    for key, option in OPTIONS.items():
        instead, most, flag = said(mark.quota, key), said(mark.quota_most, key), getattr(flags, option)
        value = flag if instead is None else instead
        found[option] = value if most is None else min(value, most)
    return replace(flags, **found)


# Of a processor, what calls take beyond ORDINARY seconds each: those of a guest's root and those of its other users.
SHARE, AT_ONCE, ORDINARY = 0.5, 1.0, 0.0005


class Bucket:
    """Requests in hand; each takes one, a long one more, and whoever finds none waits for the next. Or seconds."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = float(burst)
        self.filled = self.burst
        self.at = time.monotonic()

    def take(self, number: float = 1) -> float:
        """Take *number*; how long to wait before they are there, in seconds."""
        now = time.monotonic()
        self.filled = min(self.burst, self.filled + (now - self.at) * self.rate)
        self.at = now
        self.filled -= number
        return 0.0 if self.filled >= 0 else -self.filled / self.rate


class Quota:
    """What one guest may ask and has asked: by the broker's *flags*, until learn() has told what its policy says."""

    def __init__(self, flags: Options) -> None:
        self.flags = self.options = flags
        self.bucket = Bucket(flags.requests, flags.burst)
        self.time = {root: Bucket(SHARE, AT_ONCE) for root in (True, False)}

    def learn(self, mark: Mark) -> None:
        """Follow the *mark*. Requests that wait do so for as long as they were told."""
        self.options = of_guest(self.flags, mark)
        self.bucket.rate, self.bucket.burst = self.options.requests, float(self.options.burst)

    def spend(self, root: bool, seconds: float) -> None:
        """A call of the guest's *root*, or of another user, has taken the broker that long."""
        if seconds > ORDINARY:
            self.time[root].take(seconds - ORDINARY)

    def take(self, root: bool, number: float) -> float:
        """Take *number* requests; how long to wait before they are there, in seconds."""
        return max(self.bucket.take(number), self.time[root].take(0))

    @property
    def told(self) -> dict[str, int]:
        """As both interfaces have it."""
        one = self.options
        return {
            "requests_per_second": one.requests,
            "connections": one.connections,
            "message_bytes": one.message_bytes,
        }


class Timed(Generic[A, T]):
    """*action*, and the seconds of a processor's time that it has *spent*."""

    def __init__(self, action: Callable[[A], T]) -> None:
        self.action = action
        self.spent = 0.0

    def __call__(self, what: A) -> T:
        began = time.thread_time()
        try:
            return self.action(what)
        finally:
            self.spent = time.thread_time() - began
