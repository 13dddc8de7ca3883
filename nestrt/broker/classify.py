"""Rules carried out: the kernel tells what processes do, and those that a rule fits are moved.

::

    kernel ── exec, uid, gid, session, name ──▶ run ── the guest it is in ──▶ one task per guest with rules
                                                          └ waiting: 256 at most      └ 16 at a time, 250 a second

Which processes: those in the guest's first group, where everything starts, and in groups that its rules name. What the
guest has put elsewhere by its own hand stays there; libcgroup's daemon takes such a process away at its next exec.
A group is one that rules name where it is what one of their destinations can mean, so nothing has to be remembered.
Processes of the guest's own guests are theirs. Children are where their parent is when they are born, and are
looked at when they do something themselves.

A guest in which thousands of programs start each second does not get more than its share: what does not fit into its
queue, and what the kernel's queue has lost, is found by looking through the groups concerned once the rest is
done, once a second at most. Nothing is lost but time. Sources: cgrulesengd(8), Documentation/driver-api/connector.rst.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Callable, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import trio

from nestrt.broker import groups, moves, rules_store, rules_text
from nestrt.broker.peer import IdMap, inside
from nestrt.broker.quota import Bucket, Timed
from nestrt.broker.refusal import Refusal, from_error
from nestrt.broker.rules_store import Stored
from nestrt.broker.rules_text import Rule, Subject
from nestrt.broker.served import Served, Tree
from nestrt.broker.victims import ended, look
from nestrt.errors import NestrtError, one_line
from nestrt.guest import client
from nestrt.guest.client import GuestError
from nestrt.host.marks import TRUSTED, USER
from nestrt.kernel import pidfd
from nestrt.kernel.pidns import PidNamespace

if TYPE_CHECKING:
    from nestrt.broker.server import Broker
    from nestrt.net.process_events import ProcessEvents

T = TypeVar("T")

TURN = 32  # events looked at before others have theirs: about a millisecond
MOST_WAITING = 256  # processes of one guest
BATCH = 16
RATE, BURST = 250, 100  # processes looked at per second, of one guest, at most
LOOK = 0.002  # seconds of CPU time that count as one process more: all in all RATE * LOOK, half a CPU, at most
RESCAN = 1.0  # seconds between looks through a guest's groups


class Pace:
    """How fast a guest's rules are carried out. It outlives them: new ones are no way to have more done."""

    def __init__(self) -> None:
        self.bucket = Bucket(RATE, BURST)
        self.looking = trio.Lock()  # held while the guest's groups are looked through
        self.again = -RESCAN  # when they may be looked through once more


class Placing:
    """A guest with rules: what they are, and who is waiting to be looked at."""

    def __init__(self, guest: Served, host: Stored, own: Stored, before: Stored, pace: Pace) -> None:
        """*before*: rules that held until now; what they have placed is placed anew. Raises BadRule."""
        self.guest = guest
        self.gids: IdMap = guest.ids
        self.root = guest.root
        self.rules: list[Rule] = [*host.rules(), *own.rules()]
        self.users = {number: name for one in (own, host) for name, number in reversed((one.users or {}).items())}
        self.groups = {number: name for one in (own, host) for name, number in reversed((one.groups or {}).items())}
        view = guest.known.view or {}
        self.first = "/" if view.get("start_in") == "." else "/init"
        all_rules = (*self.rules, *rules_text.parse(list(before.lines)))
        destinations = dict.fromkeys(part.destination for rule in all_rules for part in rule.parts)
        self.patterns = list(map(rules_text.pattern, destinations))
        self.numbers = "P" in rules_text.templates(self.rules)
        self.waiting: dict[int, None] = {}
        self.lost = True  # begin with those that there are
        self.pace = pace
        self.wake = trio.Event()
        self.settled = trio.Event()
        self.scope = trio.CancelScope()

    def add(self, pid: int) -> None:
        """Have *pid* looked at."""
        if len(self.waiting) < MOST_WAITING:
            self.waiting[pid] = None
        else:
            self.lost = True
        self.wake.set()

    def look_through(self) -> None:
        """Have all looked at."""
        self.lost = True
        self.wake.set()

    def may_leave(self, group: str) -> bool:
        """Whether processes in *group* are for rules to place."""
        return group == self.first or any(pattern.fits(group) for pattern in self.patterns)

    def candidates(self, tree: Tree) -> list[int]:
        """All that rules may place."""
        found = {pid for group in tree.view.tree("/") if self.may_leave(group) for pid in tree.view.processes(group)}
        return sorted(found - {0})

    # -- one process; in a thread ---------------------------------------------------------------

    def subject(self, pid: int, fd: int) -> Subject | None:
        """The process as rules see it; None where it has ended."""
        process = look(pid)
        if process is None or process.ended:
            return None
        try:
            program = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            program = ""
        ids = self.guest.ids
        number = 0
        if self.numbers:
            try:
                with PidNamespace(self.guest.known.pid) as namespace:
                    number = namespace.inside(pid)
            except OSError:
                return None
        # Effective ids, as libcgroup's: what the process may do now.
        found = Subject(
            pid=number,
            uid=inside(ids, process.uids[1]),
            gid=inside(self.gids, process.gids[1]),
            groups=frozenset(inside(self.gids, group) for group in process.groups) - {-1},
            name=process.name,
            program=program,
        )
        return None if ended(fd) else found

    def place(self, broker: Broker, tree: Tree, pid: int) -> None:
        """Move *pid* to where the first rule that fits wants it. What fails is a line of the audit."""
        try:
            fd = pidfd.open(pid)
        except OSError:
            return
        try:
            subject = self.subject(pid, fd)
            rule = rules_text.first(self.rules, subject) if subject else None
            for part in rule.parts if subject and rule else ():
                assert subject is not None
                view = tree.view
                group = rules_text.expand(part.destination, subject, self.users, self.groups, view.controllers)
                try:
                    with self.guest.unlocked(f"place process {pid} in group {group}", group):
                        left = self._move(tree, pid, fd, group, rules_store.hierarchies_for(view, part.controllers))
                except (Refusal, GuestError, NestrtError, OSError) as error:
                    if not ended(fd):
                        refusal = from_error(error)
                        broker.audit.record(self.guest.name, group, "rules", None, subject.name, refusal, None, "Rules")
                    continue
                if left:
                    old = " ".join(sorted(set(left.values())))
                    broker.audit.record(self.guest.name, group, f"process {pid}", old, group, "done", None, "Rules")
        finally:
            os.close(fd)

    def _move(self, tree: Tree, pid: int, fd: int, to: str, only: tuple[client.Hierarchy, ...]) -> dict[str, str]:
        """What moves.move() returns; {} where it is not for rules to place. Raises as that, and where the group cannot
        be made."""
        now = client.places(pid, only)
        places = {group for group in now.values() if group is not None}
        if not only or None in now.values() or not places - {to} or not all(map(self.may_leave, places)):
            return {}
        operation = f"place process {pid} in group {to}"
        client.parse_group(to, operation, tree.view.controllers)
        if any(self._is_a_guest_in(tree, group) for group in (*places, to)):
            return {}
        missing = [
            group for group in (*client.ancestors(to)[-2::-1], to)
            if not all(os.path.isdir(hierarchy.dir(group)) for hierarchy in tree.view.divided)
        ]  # fmt: skip
        if missing:
            groups.check_room(self.guest, tree, to, len(missing))
            client.change(tree.view, to, [])
        return moves.move(self.guest, tree, None, pid, fd, to, operation, only)

    def _is_a_guest_in(self, tree: Tree, group: str) -> bool:
        """Whether *group* is one of a guest of this guest, or is below one: marked as such."""
        root = next((h for h in tree.view.hierarchies if h.name == self.guest.primary.name), tree.view.hierarchies[0])
        for one in (group, *client.ancestors(group)) if group != "/" else ():
            try:
                if one != "/" and {TRUSTED, USER} & set(os.listxattr(root.dir(one))):
                    return True
            except OSError:
                continue
        return False


class Classifier:
    """The broker's: hears the kernel from when the first guest has rules until the last has none."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.guests: dict[str, Placing] = {}  # by guest root
        self.events: ProcessEvents | None = None
        self.nursery: trio.Nursery | None = None
        self._opening = trio.Lock()
        self._opened = trio.Event()
        self._paces: WeakKeyDictionary[Served, Pace] = WeakKeyDictionary()
        self._gone: WeakSet[Served] = WeakSet()

    # -- which guests -----------------------------------------------------------------------------

    async def listen(self) -> None:
        """Hear the kernel. Raises HostError where this level cannot, KernelError."""
        async with self._opening:
            if self.events is None:
                from nestrt.net.process_events import ProcessEvents  # in a thread: pyroute2 takes 300 ms to import

                self.events = await trio.to_thread.run_sync(ProcessEvents)
                self._opened.set()

    async def place(self, guest: Served, before: Stored | None = None) -> Placing | None:
        """Carry out what *guest*'s marks say from now on; None where they say nothing, or it has ended. Raises
        HostError, KernelError, Refusal."""
        while True:
            host, own = rules_store.load(guest, rules_store.HOST), rules_store.load(guest, rules_store.OWN)
            if self.events is not None or not host.lines and not own.lines:
                break
            await self.listen()  # marks may be others afterwards, and the socket closed again
        # From here on nothing waits: of several calls each has the guest to itself, and the last has the newest marks.
        self._drop(guest)
        try:
            if guest in self._gone or not host.lines and not own.lines:
                return None
            pace = self._paces.setdefault(guest, Pace())
            found = self.guests[guest.root] = Placing(guest, host, own, before or Stored(), pace)
        except rules_text.BadRule as error:
            raise Refusal("BadValue", f"cannot place processes of {guest.name}: {error.reason}", error.remedy) from None
        finally:
            self.close_unused()
        if self.nursery is not None:
            self.nursery.start_soon(self._work, found)
        return found

    async def restore(self, guest: Served) -> None:
        """Carry out the rules of a guest that is served again."""
        try:
            await self.place(guest)
        except (Refusal, GuestError, NestrtError, OSError) as error:
            self.broker.audit.record(guest.name, "/", "rules", None, None, from_error(error), None, "Rules")

    def forget_guest(self, guest: Served) -> None:
        """The guest has ended: place nothing of its any more."""
        self._gone.add(guest)
        self._drop(guest)
        self.close_unused()

    def _drop(self, guest: Served) -> None:
        for root, one in list(self.guests.items()):
            if one.guest is guest:
                one.scope.cancel()
                del self.guests[root]

    def close_unused(self) -> None:
        """Hear the kernel no longer where no guest has rules."""
        if not self.guests and self.events is not None:
            events, self.events = self.events, None
            self._opened = trio.Event()
            if self.nursery is not None:
                trio.lowlevel.notify_closing(events)
            events.close()

    # -- tasks ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                for one in self.guests.values():
                    nursery.start_soon(self._work, one)
                while True:
                    await self._opened.wait()
                    try:
                        await self._hear()
                    except trio.ClosedResourceError:
                        continue
        finally:
            self.nursery = None
            if self.events is not None:
                self.events.close()
                self.events = None

    async def _hear(self) -> None:
        while (events := self.events) is not None:
            await trio.lowlevel.wait_readable(events)
            if events is not self.events:
                continue  # closed since
            pids, lost = events.read(TURN)
            for one in self.guests.values() if lost else ():
                one.look_through()
            for pid in pids:
                if whose := self.whose(pid):
                    whose.add(pid)

    def whose(self, pid: int) -> Placing | None:
        """The guest with rules that the process is in, by the hierarchy that has the marks."""
        if not self.guests:
            return None
        keys = next(iter(self.guests.values())).guest.primary_keys
        now = client.membership(str(pid))
        group = next((now[key] for key in keys if key in now), "/")
        return next((self.guests[root] for root in (group, *client.ancestors(group)) if root in self.guests), None)

    async def _work(self, one: Placing) -> None:
        """Look at the processes of one guest, in turns, for as long as it has rules."""
        try:
            with one.scope:
                while True:
                    if one.waiting:
                        await self._turn(one)
                    elif one.lost and trio.current_time() >= one.pace.again:
                        await self._look_through(one)
                    elif one.lost:
                        with trio.move_on_at(one.pace.again):
                            await one.wake.wait()
                        one.wake = trio.Event()
                    else:
                        one.settled.set()
                        await one.wake.wait()
                        one.wake = trio.Event()
        finally:
            one.settled.set()  # who waits for these rules waits for nothing

    async def _look_through(self, one: Placing) -> None:
        """Have all looked at that are in the guest's groups."""
        # A thread is at it to its end, even for rules that hold no longer.
        async with one.pace.looking:
            if trio.current_time() < one.pace.again:
                return
            one.lost = False
            try:
                pids = await self._later(one, one.candidates)
            finally:
                one.pace.again = trio.current_time() + max(RESCAN, one.pace.bucket.take(0))
            one.waiting.update(dict.fromkeys(pids or ()))

    async def _turn(self, one: Placing) -> None:
        batch = list(one.waiting)[:BATCH]
        for pid in batch:
            del one.waiting[pid]
        delay = one.pace.bucket.take(len(batch))
        if delay:
            await trio.sleep(delay)

        # The map of users is a guess at that of groups, where that cannot be told.
        one.gids = one.guest.ids if one.guest.gids is None else one.guest.gids

        def place(tree: Tree) -> None:
            for pid in batch:
                one.place(self.broker, tree, pid)

        async with one.guest.changing:
            await self._later(one, place)

    async def _later(self, one: Placing, action: Callable[[Tree], T]) -> T | None:
        """As Served.later(). A guest that goes away meanwhile is no error, and any other is not all guests'."""
        timed = Timed(action)
        try:
            return await one.guest.later(timed)
        except (Refusal, GuestError, OSError):
            pass
        except Exception as error:
            bug = f"placing processes of {one.guest.name} failed: {type(error).__name__}: {error}"
            print(one_line(f"nestrt broker: {bug}; this is a bug of nestrt"), file=sys.stderr)
        finally:
            one.pace.bucket.take(timed.spent / LOOK)
        return None
