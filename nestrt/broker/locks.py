"""What keeps others from a guest's groups: one change at a time in the broker, and the lock of ``nestrt lock``."""

from __future__ import annotations

import os

import trio

from nestrt.broker.refusal import Refusal
from nestrt.plan import lock

# What nestrt lock leaves on a limit group.
LOCK = ("trusted.nestrt.lock", "user.nestrt.lock")


class Changing:
    """A lock for a guest's changes, in the order in which they come; its *host* is for those of the host, which go
    before all that wait: of the guest's, one at a time wants that too."""

    def __init__(self) -> None:
        self.host = trio.Lock()
        self._guest = trio.Lock()

    def locked(self) -> bool:
        """Whether something changes just now."""
        return bool(self.host.locked())

    async def __aenter__(self) -> None:
        await self._guest.acquire()
        try:
            await self.host.acquire()
        except BaseException:
            self._guest.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.host.release()
        self._guest.release()


def refuse_locked(directory: str | int, operation: str, guest: str) -> None:
    """Refuse where *directory*, a limit group's as a descriptor or one below as a path, is locked. Raises Refusal."""
    try:
        found = [name for name in os.listxattr(directory) if name in LOCK]
        text = os.getxattr(directory, found[0]).decode() if found else ""
    except (OSError, ValueError):
        return
    # user.* below the limit group is the word of the guest, which can as well leave its groups alone.
    if found and (found[0] == LOCK[0] or isinstance(directory, int)):
        doc = lock.parse_doc(text)
        by, name = (doc.by, doc.name) if doc else ("host", guest)
        reason = f"guest {name} is locked by the {by}"
        raise Refusal("Locked", f"cannot {operation}: {reason}", f"ask there for: nestrt unlock {name}")
