"""How much a guest may ask: a bucket of requests that fills at a steady rate, and connections by user. Pure."""

from __future__ import annotations

import time

from nestrt.record import record


@record
class Options:
    """*requests* a second and *burst* of one guest, *connections* of one guest, *message_bytes* of one call.
    *audit* is a directory, *version* nestrt's."""

    requests: int = 1000
    connections: int = 64
    message_bytes: int = 65536
    audit: str = "/var/log/nestrt/audit"
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


class Bucket:
    """Requests in hand; each takes one, a long one more, and whoever finds none waits for the next."""

    def __init__(self, rate: int, burst: int) -> None:
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
