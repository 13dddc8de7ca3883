"""Rules that are set, set again and forgotten, without a kernel: which of them are carried out, and how often groups
are looked through."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from nestrt.broker import classify, rules_store
from nestrt.broker.classify import Classifier
from nestrt.broker.rules_store import Stored

T = TypeVar("T")


class Guest:
    """As Served, with one group and nobody in it."""

    name, root, ids, gids = "a", "/a/guest", (), ()
    known = SimpleNamespace(view={})

    def __init__(self) -> None:
        self.changing = trio.Lock()
        self.looks: list[tuple[float, float]] = []
        self.lasts = 0.0  # seconds that a look through its groups does
        self.view = SimpleNamespace(tree=self.tree, processes=lambda group: [])

    def tree(self, top: str) -> list[str]:
        began = time.monotonic()
        time.sleep(self.lasts)
        self.looks.append((began, time.monotonic()))
        return ["/"]

    async def later(self, action: Callable[[Any], T]) -> T:
        return await trio.to_thread.run_sync(action, self)


class Slow(Classifier):
    """Hears nothing, once *go* lets it."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.go = trio.Event()
        self.works = 0
        self.sockets: list[socket.socket] = []

    async def listen(self) -> None:
        await self.go.wait()
        if self.events is None:
            self.sockets += socket.socketpair()
            self.events = self.sockets[-2]  # type: ignore[assignment]

    async def _work(self, one: classify.Placing) -> None:
        self.works += 1
        try:
            await super()._work(one)
        finally:
            self.works -= 1


def run(action: Callable[[Slow, Any], Awaitable[None]], marks: dict[str, Stored], patch: pytest.MonkeyPatch) -> None:
    """*action* while a classifier runs, with *marks* on the groups of its guest."""
    patch.setattr(rules_store, "load", lambda guest, attribute: marks.get(attribute, Stored()))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(classifier.run)
            with trio.fail_after(20):
                await trio.testing.wait_all_tasks_blocked()
                await action(classifier, Guest())
            nursery.cancel_scope.cancel()

    classifier = Slow()
    trio.run(main)
    for one in classifier.sockets:
        one.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.005)


def test_of_several_calls_at_once_one_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest marks are; nobody works for the others, and their callers do not wait for what is not done."""
    marks = {rules_store.OWN: Stored(("* * old",))}
    placed: list[classify.Placing] = []

    async def action(classifier: Slow, guest: Any) -> None:
        async def place() -> None:
            found = await classifier.place(guest)
            assert found is not None
            placed.append(found)
            await found.settled.wait()

        async with trio.open_nursery() as nursery:
            for number in range(5):
                marks[rules_store.OWN] = Stored((f"* * new{number}",))
                nursery.start_soon(place)
                await trio.testing.wait_all_tasks_blocked()
            classifier.go.set()
        await until(lambda: classifier.works == 1)
        (one,) = classifier.guests.values()
        assert one in placed
        assert [one.may_leave(f"/new{number}") for number in (3, 4)] == [False, True]
        marks.clear()
        assert await classifier.place(guest) is None
        await until(lambda: classifier.works == 0)
        assert classifier.events is None

    run(action, marks, monkeypatch)


def test_rules_that_hold_no_longer_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = {rules_store.OWN: Stored(("* * x",))}

    async def action(classifier: Slow, guest: Any) -> None:
        classifier.go.set()
        async with guest.changing:
            first = await classifier.place(guest)
            assert first is not None
            first.add(1)  # its turn does not come
            await until(lambda: not first.waiting)
            assert await classifier.place(guest) is not first
            await first.settled.wait()

    run(action, marks, monkeypatch)


def test_a_guest_that_ends_meanwhile_is_not_put_in(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = {rules_store.OWN: Stored(("* * x",))}

    async def action(classifier: Slow, guest: Any) -> None:
        found: list[classify.Placing | None] = []

        async def place() -> None:
            found.append(await classifier.place(guest))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(place)
            await trio.testing.wait_all_tasks_blocked()
            classifier.forget_guest(guest)
            classifier.go.set()
        assert found == [None]
        assert classifier.guests == {}
        assert classifier.events is None, "nobody has rules"

    run(action, marks, monkeypatch)


def test_looks_through_the_groups_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long each is, and however often rules are set."""
    monkeypatch.setattr(classify, "RESCAN", 0.2)
    marks = {rules_store.OWN: Stored(("* * x",))}

    async def action(classifier: Slow, guest: Any) -> None:
        classifier.go.set()
        guest.lasts = 0.25
        while len(guest.looks) < 3:
            one = await classifier.place(guest)
            assert one is not None
            one.look_through()
            await trio.sleep(0.05)
        pauses = [after[0] - before[1] for before, after in zip(guest.looks, guest.looks[1:], strict=False)]
        assert min(pauses) >= 0.19, pauses

    run(action, marks, monkeypatch)


def test_what_takes_cpu_time_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = {rules_store.OWN: Stored(("* * x",))}

    async def action(classifier: Slow, guest: Any) -> None:
        classifier.go.set()
        one = await classifier.place(guest)
        assert one is not None
        await one.settled.wait()

        def busy(tree: Any) -> None:
            end = time.thread_time() + 0.1
            while time.thread_time() < end:
                pass

        one.pace.bucket.filled, one.pace.bucket.at = 0.0, time.monotonic()
        began = time.monotonic()
        await classifier._later(one, busy)
        wait = one.pace.bucket.take(0)
        assert time.monotonic() - began + wait >= 0.19, "half a CPU"
        again = await classifier.place(guest)
        assert again is not None
        assert again.pace is one.pace, "new rules are no way to have more done"

    run(action, marks, monkeypatch)
