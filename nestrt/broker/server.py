"""``nestrt broker``: one listener per guest, one task per connection, all below one nursery.

::

    Broker.run                                    ends everything below it when it ends
    ├── host: io.nestrt.Host on /run/nestrt/host.sock
    ├── ended: the pidfds of all guests' first processes
    ├── tidy: guests that were announced and never made, trees that nobody uses
    ├── watcher, classifier: when somebody has asked for events or rules
    └── serve(guest), one per guest: accepts
        └── talk(connection), one per connection: one call at a time, in order

A guest is served from the moment it is announced (Serve, by launch, create and the hooks) or found by its mark, until
its first process has ended. Nothing is kept here that is not in the kernel's tree, in marks or in state files:
a broker that is killed and started again finds the same guests, and puts new sockets into those that run.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
from typing import Any

import trio

from nestrt.act import inject
from nestrt.broker import sockets
from nestrt.broker.audit import Audit
from nestrt.broker.connection import Connection
from nestrt.broker.quota import Options, Quota
from nestrt.broker.reactions import forget_guest as forget_reactions
from nestrt.broker.reactions import restore as restore_reactions
from nestrt.broker.refusal import Refusal
from nestrt.broker.rules import Classifier
from nestrt.broker.rules import forget_guest as forget_rules
from nestrt.broker.rules import restore as restore_rules
from nestrt.broker.served import Served
from nestrt.broker.threads import ABANDON
from nestrt.broker.watch import Watcher
from nestrt.errors import NestrtError, one_line
from nestrt.guest.client import GuestError
from nestrt.host.walk import walk
from nestrt.kernel import pidfd
from nestrt.plan.broker import GUEST_SOCKET, SOCKET_NAME, socket_directory
from nestrt.probe.facts import primary, read_hierarchies

TIDY = 5.0  # seconds between looks
SOON = 0.05  # to the first
ANNOUNCED = 60.0  # seconds that an announced guest may take to be made
IDLE = 30.0  # seconds until the tree of a guest that nobody asks about is closed
DRAIN = 10.0  # seconds that calls under way may take when the broker ends
INJECTORS = 4  # helpers at a time
RESTORERS = 64  # guests at a time, each in a thread
ENDED = (errno.ESRCH, errno.EINVAL, errno.ENOENT)  # no such process, or its number is by now that of a thread


class Broker:
    """All that is served on this level. *only*: one guest's limit group, for a broker that a launch keeps to itself."""

    def __init__(self, options: Options, only: str = "") -> None:
        self.options = options
        self.only = only
        self.hierarchies = read_hierarchies(make=True)
        self.primary = primary(self.hierarchies)
        self.guests: dict[str, Served] = {}  # by limit group
        self.audit = Audit(options.audit)
        self.watcher = Watcher(self)
        self.classifier = Classifier(self)
        self.processes = select.epoll()
        self.by_pidfd: dict[int, Served] = {}
        self.kept: dict[str, list[socket.socket]] = {}  # what systemd has kept for us
        self.injectors = trio.CapacityLimiter(INJECTORS)
        self.restorers = trio.CapacityLimiter(RESTORERS)
        self.draining = False
        self.busy = 0  # calls under way
        self.nursery: trio.Nursery
        self.stop: trio.CancelScope

    # -- guests -------------------------------------------------------------------------------

    def find(self, name: str) -> Served | None:
        """The guest called *name*, or whose limit group that is."""
        if name in self.guests:
            return self.guests[name]
        return next((guest for guest in self.guests.values() if guest.name == name), None)

    def announce(self, name: str, limit: str, found: bool = False) -> Served:
        """Listen for guest *name*, whose limit group is or will be *limit*; *found*: an earlier broker may have served
        it. Raises OSError."""
        if limit in self.guests:
            old = self.guests[limit]
            if old.alive():
                return old
            self.end(old)
        guest = Served(name, limit, self.hierarchies, self.primary)
        guest.directory = socket_directory(name, limit)
        guest.quota = Quota(self.options)
        kept = self.kept.pop(os.path.basename(guest.directory), [])
        for one in kept[1:]:
            one.close()
        guest.listener = kept[0] if kept else sockets.listen(guest.directory, 0o666)
        if not kept:
            name = os.path.basename(guest.directory)
            sockets.notify(f"FDSTORE=1\nFDNAME={name}", (guest.listener.fileno(),))
        guest.kept = bool(kept)
        self.guests[limit] = guest
        self.nursery.start_soon(self._serve, guest, found)
        self.nursery.start_soon(self._expect, guest)
        return guest

    def end(self, guest: Served) -> None:
        """Stop serving *guest* and close what is its own."""
        if self.guests.get(guest.limit) is not guest:
            return
        del self.guests[guest.limit]
        self.watcher.forget_guest(guest)
        forget_reactions(self, guest)
        forget_rules(self, guest)
        if guest.process >= 0:
            self.by_pidfd.pop(guest.process, None)
            self.processes.unregister(guest.process)
            os.close(guest.process)
            guest.process = -1
        guest.scope.cancel()  # _serve() closes the listener once nobody waits for it
        sockets.notify(f"FDSTOREREMOVE=1\nFDNAME={os.path.basename(guest.directory)}")
        sockets.forget(guest.directory)

    def begin(self, guest: Served) -> bool:
        """Take note of the first process of a *guest* that has been made; False where it is not known yet."""
        if guest.process >= 0:
            return True
        if not guest.learn() or is_being_made(guest):
            return False
        try:
            process = pidfd.open(guest.known.pid, guest.known.start)
        except OSError as error:
            if error.errno in ENDED:
                self.end(guest)
            return False  # else there is no room for now: _expect() comes again
        try:
            self.processes.register(process, select.EPOLLIN)
        except OSError:
            os.close(process)
            return False
        guest.process = process
        self.by_pidfd[process] = guest
        return True

    async def put_socket(self, guest: Served) -> None:
        """Mount the listener in a guest that runs already. What goes wrong is that guest's own, and is said once."""
        mark = guest.known
        source = f"{guest.directory}/{SOCKET_NAME}"
        try:
            await trio.to_thread.run_sync(
                inject.put_socket, mark.pid, mark.start, source, GUEST_SOCKET, limiter=self.injectors, **ABANDON
            )
        except NestrtError as error:
            say(f"guest {guest.name}: {error}")

    async def _find_guests(self) -> None:
        """Serve the guests that there are already: their policy says who wants to be."""
        view = await trio.to_thread.run_sync(lambda: walk(self.hierarchies, inside=False))
        for found in view.guests:
            # A claim is the word of a user of this level, who may not have us enter what it likes.
            if found.claim or found.mark.broker not in ("wanted", "required") or found.path in self.guests:
                continue
            directory = socket_directory(found.mark.name, found.path)
            if sockets.is_held(directory) or (self.only and found.path != self.only):
                continue
            try:
                self.begin(self.announce(found.mark.name, found.path, found=True))
            except OSError as error:
                say(f"guest {found.mark.name}: cannot listen for it: {error.strerror}")
        self._forget_kept()
        served = {guest.directory for guest in self.guests.values()}
        for directory in sockets.directories() if not self.only else ():
            if directory not in served and not sockets.is_held(directory):
                try:
                    sockets.forget(directory)
                except OSError as error:  # whoever put it there can remove it
                    say(f"cannot remove {directory}: {error.strerror}")

    def _forget_kept(self) -> None:
        """Let go of what systemd has kept for guests that have ended meanwhile: nobody can connect to it."""
        for name, listeners in self.kept.items():
            for one in listeners:
                one.close()
            sockets.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
        self.kept = {}

    async def _take_over(self, guest: Served) -> None:
        """What an earlier broker has done for a guest that is there already. Nobody in it is answered before: what it
        has registered would seem not to be there, and what is taken back would come again."""
        if not is_being_made(guest):
            await self._take_up(guest)
        else:  # whoever makes it may ask meanwhile, and has registered nothing yet
            self.nursery.start_soon(self._take_up, guest)

    async def _take_up(self, guest: Served) -> None:
        # One that is being made may have an earlier broker's socket already: _expect() waits for it to run.
        while self.guests.get(guest.limit) is guest and guest.process < 0:
            await trio.sleep(SOON)
        if self.guests.get(guest.limit) is guest:
            if not guest.kept:
                self.nursery.start_soon(self.put_socket, guest)
            async with self.restorers:
                await self._restore(guest)

    async def _restore(self, guest: Served) -> None:
        """What the guest has registered stands in its groups' marks. The rules first: some are the host's, and do not
        wait for what a guest's many groups take."""
        for restore in (restore_rules, restore_reactions):
            try:
                await restore(self, guest)
            except (Refusal, GuestError):
                return  # it has just ended
            except Exception as error:
                # Whatever a guest has left in its marks, the others are served.
                say(f"guest {guest.name}: cannot restore what it has registered: {type(error).__name__}: {error}")

    def drain(self) -> None:
        """End in order: nobody new, what has been asked is answered, reactions are let go of."""
        if not self.draining:
            self.draining = True
            self.nursery.start_soon(self._drain)

    async def _drain(self) -> None:
        for guest in self.guests.values():
            guest.accepting.cancel()
        with trio.move_on_after(DRAIN):
            while self.busy:
                await trio.sleep(0.02)
        await self.watcher.stand_down()
        self.stop.cancel()

    def close(self) -> None:
        """What is left to close. The sockets of guests that run stay: the next broker puts others in their place."""
        for guest in list(self.guests.values()):
            if self.only or not guest.alive():
                sockets.forget(guest.directory)
        self.audit.close()

    # -- tasks --------------------------------------------------------------------------------

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled or drained."""
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            nursery.start_soon(self._ended)
            await self._find_guests()
            nursery.start_soon(self._tidy)
            nursery.start_soon(self.watcher.run)
            nursery.start_soon(self.classifier.run)
            task_status.started(self)
            await trio.sleep_forever()

    async def _expect(self, guest: Served) -> None:
        """Wait until an announced guest has a first process, whose end is the guest's; or until it will have none."""
        pause, known = SOON, False
        while self.guests.get(guest.limit) is guest and not self.begin(guest):
            known = known or guest.mark is not None
            late = time.monotonic() - guest.announced > ANNOUNCED
            if (known or late) and not os.path.isdir(self.primary.path(guest.limit)):
                self.end(guest)
            await trio.sleep(pause)
            pause = min(pause * 2, TIDY)

    async def _serve(self, guest: Served, found: bool) -> None:
        """Accept the connections of one guest; each has a task of its own, and all end with the guest."""
        try:
            with guest.scope:
                async with trio.open_nursery() as nursery:
                    with guest.accepting:
                        if found:
                            await self._take_over(guest)
                        await self._accept(guest, nursery)
        finally:
            guest.listener.close()
            guest.close()

    async def _accept(self, guest: Served, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(guest.listener)
            try:
                one, _ = guest.listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    await trio.sleep(0.1)
                continue
            one.setblocking(False)
            nursery.start_soon(Connection(self, guest, one).run)

    async def _ended(self) -> None:
        """End the service of guests whose first process has ended."""
        while True:
            await trio.lowlevel.wait_readable(self.processes.fileno())
            for fd, _ in self.processes.poll(0):
                if guest := self.by_pidfd.get(fd):
                    self.end(guest)
            await trio.lowlevel.checkpoint()

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(TIDY)
            self.audit.flush()
            now = time.monotonic()
            for guest in list(self.guests.values()):
                guest.close_idle(now - IDLE)
                await trio.lowlevel.checkpoint()


def is_being_made(guest: Served) -> bool:
    """Whether its mark names no first process yet that runs as it should."""
    return guest.mark is None or guest.mark.pid <= 0 or guest.mark.state == "creating"


def say(text: str) -> None:
    """A line for the journal, or whoever looks at standard error."""
    print(one_line(f"nestrt broker: {text}"), file=sys.stderr, flush=True)

