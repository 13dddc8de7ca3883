"""The broker's eye on its guests' groups: one inotify(7), one epoll(7), one look a second.

::

    Watcher.run
    ├── inotify: which files and directories have changed
    ├── descriptors: eventfds and pressure
    ├── seconds: what nobody tells of
    └── GuestWatch.run, for each guest of which somebody wants to know something: what has changed in it

All of this sleeps, and nothing of it is open, until somebody subscribes to events or registers a reaction. inotify has
one queue for all guests: whoever fills it is not watched for a while (watch_guest.py), so that the others lose nothing.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Awaitable, Callable

import trio

from nestrt.broker.interest import Interest
from nestrt.broker.reacting import Reactor
from nestrt.broker.refusal import Refusal
from nestrt.broker.served import Served
from nestrt.broker.watch_descriptors import Descriptors
from nestrt.broker.watch_guest import GuestWatch
from nestrt.errors import one_line
from nestrt.kernel import inotify

if TYPE_CHECKING:
    from nestrt.broker.server import Broker

SECOND = 1.0
Key = tuple[GuestWatch, str, str, str]  # the guest, and the hierarchy, file and group


class Watcher:
    """Belongs to the broker. *reactor* carries out what guests have registered."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.guests: dict[str, GuestWatch] = {}  # by limit group
        self.descriptors = Descriptors(self.start)
        self.reactor = Reactor(broker, self)
        self._inotify = -1
        self._keys: dict[int, dict[Key, None]] = {}  # by watch; a guest's group may be in another guest
        self._opened = trio.Event()
        self._somebody = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._waiting: list[tuple[Callable[..., Awaitable[None]], tuple[Any, ...]]] = []

    # -- for events and reactions -----------------------------------------------------------------

    async def add(self, guest: Served, interest: Interest) -> None:
        """Tell *interest* of a guest's groups from now on. Raises Refusal (QuotaExceeded, NotFound, NotPossible)."""
        found = self.guests.get(guest.limit)
        if found is None:
            guest.open()
            found = self.guests[guest.limit] = GuestWatch(self, guest)
            self.start(found.run)
            self._somebody.set()
        await found.add(interest)

    def drop(self, guest: Served, interest: Interest) -> None:
        """No longer."""
        if found := self.guests.get(guest.limit):
            found.drop(interest)

    def report(self, guest: Served, kind: str, group: str, **more: Any) -> None:
        """Tell subscribers what nobody else tells: see GuestWatch.report()."""
        if found := self.guests.get(guest.limit):
            found.report(kind, group, **more)

    def forget_guest(self, guest: Served) -> None:
        """The guest has ended, or is served no longer."""
        if found := self.guests.get(guest.limit):
            found.report("removed", "/")
            self.release(found)

    async def stand_down(self) -> None:
        """The broker ends in order: nothing in the kernel may wait for it any more."""
        await self.reactor.stand_down()

    def start(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run a task of a guest's; a mistake in it costs that guest's events, and not all guests."""
        if self._nursery is None:
            self._waiting.append((task, args))
        else:
            self._nursery.start_soon(self._guarded, task, args)

    # -- for GuestWatch ---------------------------------------------------------------------------

    def watch(self, path: str, mask: int, key: Key) -> int:
        """Have changes of *path* told to *key*. The watch's number. Raises OSError."""
        if self._inotify < 0:
            self._inotify = inotify.open()
            self._opened.set()
        number = inotify.add(self._inotify, path, mask | inotify.IN_DONT_FOLLOW)
        self._keys.setdefault(number, {})[key] = None
        return number

    def unwatch(self, number: int, key: Key) -> None:
        """No longer."""
        keys = self._keys.get(number, {})
        keys.pop(key, None)
        if not keys:
            self._keys.pop(number, None)
            inotify.remove(self._inotify, number)

    @staticmethod
    def say_bug(error: Exception) -> None:
        """For the journal: a mistake of ours, which costs one guest's events."""
        text = f"nestrt broker: watching failed: {type(error).__name__}: {error}; this is a bug of nestrt"
        print(one_line(text), file=sys.stderr, flush=True)

    def release(self, watch: GuestWatch) -> None:
        """Nobody wants to know anything of a guest any more."""
        if self.guests.get(watch.guest.limit) is watch:
            del self.guests[watch.guest.limit]
        watch.close()

    # -- tasks ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._notifications)
                nursery.start_soon(self.descriptors.run)
                nursery.start_soon(self._seconds)
                waiting, self._waiting = self._waiting, []
                for task, args in waiting:
                    self.start(task, *args)
        finally:
            self._nursery = None
            self.reactor.close()
            for one in list(self.guests.values()):
                self.release(one)
            self.descriptors.close_all()
            if self._inotify >= 0:
                os.close(self._inotify)
                self._inotify = -1

    async def _guarded(self, task: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
        try:
            await task(*args)
        except Refusal:
            pass  # the guest has ended
        except Exception as error:
            self.say_bug(error)

    async def _notifications(self) -> None:
        await self._opened.wait()
        while True:
            await trio.lowlevel.wait_readable(self._inotify)
            for number, mask, name in inotify.read(self._inotify):
                if mask & inotify.IN_Q_OVERFLOW:
                    for one in list(self.guests.values()):
                        one.overflowed("the kernel's queue was full; looked over again")
                    continue
                for key in list(self._keys.get(number, ())):
                    watch, hierarchy, file, group = key
                    if not watch.notified(hierarchy, file, group, mask, name):
                        self.unwatch(number, key)
            await trio.lowlevel.checkpoint()

    async def _seconds(self) -> None:
        while True:
            if not self.guests:
                self._somebody = trio.Event()
                await self._somebody.wait()
            await trio.sleep(SECOND)
            for one in list(self.guests.values()):
                one.tick()
            self.reactor.tick()
