"""Reactions at work: who waits for what, and what happens then.

One Armed for each reaction. It sleeps as an Interest of the watcher's, which costs a callback. When the kernel tells
of its group, a task looks whether it is meant (a v1 group below one without memory is told too; memory.high is
touched long before memory runs out), asks the guest if that is the action, acts in a thread of the guest's, and tells
subscribers and the audit what was done. One task at a time; what is told meanwhile makes it look again.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, Callable

import trio

from nestrt.broker import reacting_acts as acts
from nestrt.broker.guard import Guard
from nestrt.broker.interest import Interest
from nestrt.broker.reaction_text import Reaction
from nestrt.broker.refusal import Refusal, from_error
from nestrt.broker.served import Served, Tree
from nestrt.errors import NestrtError
from nestrt.guest import client
from nestrt.guest.client import GuestError
from nestrt.host import event_sources as sources
from nestrt.host.pressure import parse_threshold

if TYPE_CHECKING:
    from nestrt.broker.server import Broker
    from nestrt.broker.watch import Watcher

EVERY = 0.5  # seconds between two acts of one reaction
AGAIN = 0.05  # between two looks
ABOVE = 0.2  # between two looks at whether a group above has memory again
QUIET = 10.0  # until a v2 group that nothing was to be done about is held again
CONFIRM = 3.0  # until a broker that was started again looks whether the last one's guard has undone what it did
Done = tuple[str, str, str]
FAILURES = (Refusal, GuestError, NestrtError, OSError, ValueError)


class Question:
    """What the guest is asked, and its answer."""

    def __init__(self, armed: Armed) -> None:
        self.armed = armed
        self.answered = trio.Event()
        self.answer = ""

    def take(self, answer: str) -> None:
        """The answer; the first one counts. What the guest has given the group by now it gave before it answered."""
        if not self.answer:
            self.armed.look_at_limit()
            self.answer = answer
        self.answered.set()


class Armed:
    """One *reaction* of *guest*, as long as it is registered and its group is there."""

    def __init__(self, reactor: Reactor, guest: Served, reaction: Reaction, was: dict[str, str]) -> None:
        self.reactor = reactor
        self.guest = guest
        self.reaction = reaction
        self.group = reaction.group
        self.hold = acts.Hold(reaction, was, reactor.guard, reactor.number())
        self.given: float | None = None  # its memory.max when it was last looked at
        self.told: set[str] = set()
        self.busy = False
        self.last = -EVERY
        self.ended = False
        self.scope = trio.CancelScope()
        self.interest = Interest(self.group, frozenset(("removed",)), False, self._tell)

    async def arm(self) -> None:
        """Begin. Raises Refusal, GuestError, OSError."""
        memory = self.guest.now(lambda tree: tree.view.holder("memory"))
        v1 = memory is not None and memory.version == 1
        if self.reaction.on == "pressure":
            trigger = parse_threshold(self.reaction.threshold or "")
            kinds, triggers = {"pressure"}, (trigger,) if trigger else ()
        elif self.reaction.waits:
            kinds, triggers = {sources.RESIZED, *((sources.STARVING,) if v1 else ("oom", "high"))}, ()
        else:
            by_kernel = self.guest.now(lambda tree: acts.kills_groups(tree.view, self.group))
            kinds, triggers = {sources.OOM_GROUP if by_kernel else "oom"}, ()
        self.interest = Interest(self.group, frozenset((*kinds, "removed")), False, self._tell, triggers)
        await self.reactor.watcher.add(self.guest, self.interest)
        try:
            await self.guest.later(self.hold.set)
        except BaseException:
            self.end()
            self.hold.let_go()  # it may hold the group already
            raise
        if self.reaction.waits:
            self._tell({"kind": sources.STARVING if v1 else "high"})  # it may be so already

    def end(self) -> None:
        """Wait for nothing any more; what is under way is given up."""
        self.ended = True
        self.scope.cancel()
        self.reactor.watcher.drop(self.guest, self.interest)

    # -- when -------------------------------------------------------------------------------------

    def _tell(self, event: dict[str, Any]) -> None:
        """The watcher's event."""
        kind = event["kind"]
        if kind == "removed":
            self.reactor.gone(self)
        elif kind != "lost" and not self.ended:
            self.told.add(kind)
            if not self.busy:
                self.busy = True
                self.reactor.watcher.start(self._work)

    async def _work(self) -> None:
        self.scope = trio.CancelScope()
        with self.scope:
            try:
                while self.told and not self.ended:
                    told, self.told = self.told, set()
                    await trio.sleep(max(AGAIN, self.last + EVERY - time.monotonic()))
                    await self._look(told)
            finally:
                self.busy = False

    async def _look(self, told: set[str]) -> None:
        try:
            if self.guest.now(self.hold.is_stale):
                await self.guest.later(self.hold.set)
            self.given = self.hold.maximum
            if not await self._meant(told):
                return
            self.last = time.monotonic()
            await self._react()
        except FAILURES as error:
            self._report("", f"failed: {from_error(error).message}")
            self._audit(self.reaction.action, ("", "", ""), f"failed: {from_error(error).message}")
            if self.reaction.waits:
                try:
                    await self.guest.later(self.hold.let_kernel)
                    await self.guest.later(self.hold.set)
                except FAILURES:  # its group has gone
                    pass
        self.last = time.monotonic()

    async def _meant(self, told: set[str]) -> bool:
        """Whether it is this group that has come to what the reaction is for."""
        if told & {"oom", sources.OOM_GROUP, "pressure"}:
            return True
        if "high" in told:
            threshold = self.hold.threshold
            return threshold is not None and self.guest.now(lambda t: acts.is_pressed(t.view, self.group, threshold))
        while sources.STARVING in told and self._starves(self.group):
            if not any(self._starves(above) for above in client.ancestors(self.group)):
                return True
            await trio.sleep(ABOVE)
        return False

    def _starves(self, group: str) -> bool:
        return self.guest.now(lambda tree: acts.is_starving(tree.view, group))

    # -- what -------------------------------------------------------------------------------------

    async def _react(self) -> None:
        action, asked = self.reaction.action, False
        if action == "kill" and self.hold.by_kernel:
            self._report("kill", "by the kernel, the group as one")
            self._audit("kill", ("memory.oom.group", "", ""), "done")
            return
        if action == "tell":
            action, asked = await self._ask()
            if not action:
                await self.guest.later(self.hold.set)
                self._report("nothing", "it has memory again")
                return
        why = "answered" if asked else "no answer" if self.reaction.action == "tell" else ""
        if action == "raise":
            try:
                await self._act("raise", lambda tree: acts.raise_limit(tree, self.reaction), why)
                await self.guest.later(self.hold.set)
                return
            except FAILURES as error:
                action, why = self.reaction.fallback or "nothing", f"not raised: {from_error(error).message}"
                self._audit("raise", ("memory.max", "", self.reaction.step or ""), why)
        await self._other(action, why)

    async def _other(self, action: str, why: str) -> None:
        """Kill, freeze, or nothing."""
        if action == "kill":
            await self._act("kill", lambda tree: acts.kill(tree, self.group), why)
        elif action == "freeze":
            await self._freeze(why)
        else:
            self._report("nothing", why)
            self._audit("nothing", ("", "", ""), "done")
            if self.reaction.waits:
                await self.guest.later(self.hold.let_kernel)
                if self.hold.threshold is not None:
                    await trio.sleep(QUIET)
        if self.reaction.waits:
            await self.guest.later(self.hold.set)

    async def _freeze(self, why: str) -> None:
        """Freeze, unless nothing in the group runs as it is. Whoever gives the group another memory.max and thaws it
        while this is under way may have thawed it too early, so that is done after him."""
        if self.guest.now(self._is_stopped):
            if why:  # the guest was asked
                self._report("freeze", "; ".join(("it is frozen already", why)))
                self._audit("freeze", ("frozen", "1", "1"), "done")
            return
        hold = self.hold if self.reaction.waits else None
        await self._act("freeze", lambda tree: acts.freeze(tree, self.group, hold), why)
        if self.guest.now(self._maximum) != self.given:
            await self._act("thaw", lambda tree: acts.thaw(tree, self.group), "its memory.max is another one by now")

    async def _act(self, action: str, act: Callable[[Tree], Done], why: str) -> None:
        if action == "kill":  # a locked guest's processes may end
            done = await self.guest.later(act)
        elif action in ("freeze", "thaw"):
            with self.guest.unlocked(f"{action} group {self.group}", self.group):
                done = await self.guest.later(act)
        else:
            async with self.guest.changing:
                with self.guest.unlocked(f"raise memory.max of group {self.group}", self.group):
                    done = await self.guest.later(act)
        key, old, new = done
        self._report(action, "; ".join(filter(None, (f"{key} {old} → {new}", why))))
        self._audit(action, done, "done")

    async def _ask(self) -> tuple[str, bool]:
        """What the guest answers, and True; or the fallback, "" where all is well by then, and False."""
        question, seconds = Question(self), self.reaction.seconds or 0.0
        number = self.reactor.ask(question)
        try:
            # The question first: to slow the group down takes time, and the guest's answer does too.
            what = "out of memory" if self.reaction.on == "oom" else "under pressure"
            self._report("tell", f"{what}: answer kill, freeze, raise or nothing", (number, seconds))
            with trio.move_on_after(seconds):
                if self.hold.high is not None:
                    await self.guest.later(self.hold.tighten)
                await question.answered.wait()
        finally:
            self.reactor.questions.pop(number, None)
        if question.answer:
            return question.answer, True
        self.look_at_limit()
        if self.reaction.waits and not self.guest.now(self._still):
            return "", False
        return self.reaction.fallback or "nothing", False

    def look_at_limit(self) -> None:
        """From now on another memory.max is one that the group was given while something is done to it."""
        try:
            self.given = self.guest.now(self._maximum)
        except FAILURES:  # its group has gone
            pass

    def _maximum(self, tree: Tree) -> float | None:
        return tree.view.value(self.group, "memory.max") if self.reaction.waits else None

    def _is_stopped(self, tree: Tree) -> bool:
        waiting = self.reaction.waits and acts.is_starving(tree.view, self.group)
        return not waiting and acts.is_stopped(tree.view, self.group)

    def _still(self, tree: Tree) -> bool:
        """Whether the group still has no memory."""
        threshold = self.hold.threshold
        if threshold is None:
            return acts.is_starving(tree.view, self.group)
        return acts.is_pressed(tree.view, self.group, threshold)

    # -- who is told ------------------------------------------------------------------------------

    def _report(self, action: str, detail: str, asked: tuple[int, float] | None = None) -> None:
        detail = ": ".join(filter(None, (action, detail)))
        watcher = self.reactor.watcher
        watcher.report(self.guest, "reaction", self.group, key=self.reaction.on, detail=detail, asked=asked)

    def _audit(self, action: str, done: Done, verdict: str) -> None:
        key, old, new = done
        name = f"reaction {action}"
        self.reactor.broker.audit.record(self.guest.name, self.group, key or action, old, new, verdict, None, name)


class Reactor:
    """All reactions that are armed. Belongs to the watcher."""

    def __init__(self, broker: Broker, watcher: Watcher) -> None:
        self.broker = broker
        self.watcher = watcher
        self.guard = Guard()
        self.guests: dict[str, dict[tuple[str, str], Armed]] = {}  # by limit group; by group and event
        self.questions: dict[int, Question] = {}
        self.locks: dict[str, trio.Lock] = {}
        self.ending = False
        self._numbers = itertools.count(1)

    def number(self) -> str:
        """One that nothing else has."""
        return str(next(self._numbers))

    def of(self, guest: Served) -> dict[tuple[str, str], Armed]:
        """The guest's reactions."""
        return self.guests.get(guest.limit, {})

    def lock(self, guest: Served) -> trio.Lock:
        """Held while the guest's reactions are changed."""
        return self.locks.setdefault(guest.limit, trio.Lock())

    def ask(self, question: Question) -> int:
        """The id of a question to a guest."""
        number = int(self.number())
        self.questions[number] = question
        return number

    async def arm(self, guest: Served, reaction: Reaction, was: dict[str, str]) -> Armed:
        """Begin to react. Raises Refusal, GuestError, OSError."""
        if self.ending:
            raise Refusal("NotPossible", f"cannot react for group {reaction.group}: the broker is ending", "try again")
        armed = Armed(self, guest, reaction, was)
        await armed.arm()
        if guest.scope.cancel_called or self.ending:
            self._release(armed)
            raise Refusal("NotFound", f"cannot react for group {reaction.group}: the guest or the broker is ending", "")
        self.guests.setdefault(guest.limit, {})[reaction.group, reaction.on] = armed
        return armed

    async def disarm(self, guest: Served, group: str, on: str) -> None:
        """No longer, and put back what was before."""
        if armed := self._pop(guest, group, on):
            armed.end()
            try:
                await guest.later(armed.hold.release)
            except BaseException:  # the guest has just ended
                self._release(armed)
                raise

    def gone(self, armed: Armed) -> None:
        """Its group was removed, and its mark with it."""
        if self.of(armed.guest).get((armed.group, armed.reaction.on)) is armed:
            self._pop(armed.guest, armed.group, armed.reaction.on)
        armed.end()
        armed.hold.let_go()  # v1's may have been given another name only

    def forget_guest(self, guest: Served) -> None:
        """The guest has ended, or is not served any longer: nothing in it may wait for the broker."""
        for armed in self.guests.pop(guest.limit, {}).values():
            self._release(armed)
        self.locks.pop(guest.limit, None)

    async def confirm(self, armed: Armed) -> None:
        """The guard of a broker that was killed may have put things back after a new one had set them."""
        await trio.sleep(CONFIRM)
        if self.of(armed.guest).get((armed.group, armed.reaction.on)) is armed and not armed.busy:
            await armed.guest.later(armed.hold.set)

    def tick(self) -> None:
        """Once a second."""
        if self.guard.missing and not self.ending:
            self.watcher.start(self._mend)

    async def _mend(self) -> None:
        await trio.to_thread.run_sync(self.guard.ensure)

    async def stand_down(self) -> None:
        """The broker ends: nothing may wait for it. The next one finds the reactions in the groups' marks."""
        self.ending = True
        every = [armed for one in self.guests.values() for armed in one.values()]
        for armed in every:
            armed.scope.cancel()
        await trio.to_thread.run_sync(self._let_go, every)

    def close(self) -> None:
        """As stand_down(), where nobody can wait."""
        self.ending = True
        self._let_go([armed for one in self.guests.values() for armed in one.values()])

    def _let_go(self, every: list[Armed]) -> None:
        for armed in every:
            armed.hold.let_go()
        self.guard.close()

    @staticmethod
    def _release(armed: Armed) -> None:
        """As disarm(), at once."""
        armed.end()
        try:
            armed.guest.now(armed.hold.release)
        except (Refusal, OSError):  # its groups have gone
            armed.hold.let_go()

    def _pop(self, guest: Served, group: str, on: str) -> Armed | None:
        found = self.guests.get(guest.limit, {})
        armed = found.pop((group, on), None)
        if not found:
            self.guests.pop(guest.limit, None)
        return armed
