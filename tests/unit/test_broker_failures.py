"""What goes wrong in the broker costs one guest, and only for a while: deep trees, too few descriptors, guests that
have ended or take long to take up. Plain directories stand for groups."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from nestrt.broker import server, sockets, watch_guest, watch_pressure
from nestrt.broker.interest import Interest
from nestrt.broker.quota import Options
from nestrt.broker.served import Served
from nestrt.broker.server import Broker
from nestrt.broker.watch import Watcher
from nestrt.broker.watch_descriptors import Descriptors
from nestrt.broker.watch_pressure import Triggers
from nestrt.host.marks import Mark
from nestrt.host.pressure import Trigger
from nestrt.plan.facts import Hierarchy
from nestrt.record import replace

DEPTH = 1100  # more than Python's calls may be nested
MARK = Mark("trusted.nestrt", name="web", pid=os.getpid(), broker="wanted", state="running")


async def until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)


def guest_in(directory: Path) -> Served:
    """A guest whose groups are below *directory*/guest."""
    hierarchy = Hierarchy("memory", 1, ("memory",), "memory", str(directory))
    guest = Served("web", "/web", (hierarchy,), hierarchy)
    guest.mark = MARK
    (directory / "web/guest").mkdir(parents=True)
    return guest


def watching(guest: Served, body: Callable[[Watcher, list[dict[str, Any]]], Awaitable[None]]) -> None:
    """Run *body* while groups made in *guest* are told."""
    told: list[dict[str, Any]] = []

    async def main() -> None:
        watcher = Watcher(SimpleNamespace())  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.run)
            await watcher.add(guest, Interest("/", frozenset(("created",)), True, told.append))
            await body(watcher, told)
            nursery.cancel_scope.cancel()

    trio.run(main)
    guest.close()


def created(told: list[dict[str, Any]]) -> list[str]:
    return [event["group"] for event in told if event["kind"] == "created"]


# Events.


def test_groups_nested_deeper_than_calls_may_be(tmp_path: Path) -> None:
    """All are told of, and those that are made afterwards."""
    guest = guest_in(tmp_path)
    place = os.open(tmp_path, os.O_RDONLY)
    for number in range(DEPTH):
        name = "team" if number == 0 else "d"
        os.mkdir(name, dir_fd=place)
        inner = os.open(name, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)

    async def body(watcher: Watcher, told: list[dict[str, Any]]) -> None:
        os.rename(tmp_path / "team", tmp_path / "web/guest/team")
        await until(lambda: len(told) >= DEPTH or any(event["kind"] == "lost" for event in told))
        assert created(told) == ["/team" + "/d" * number for number in range(DEPTH)]
        (tmp_path / "web/guest/other").mkdir()
        await until(lambda: "/other" in created(told))

    try:
        watching(guest, body)
    finally:  # pytest cannot, for the same reason
        subprocess.run(["rm", "-rf", "web", "team"], cwd=tmp_path, check=True)


def test_a_mistake_in_watching_costs_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever listens is told that something was lost, and what happened meanwhile is found."""
    guest = guest_in(tmp_path)
    ensure = watch_guest.GuestWatch._ensure
    said: list[Exception] = []

    def failing_once(watch: Any, tree: Any, name: str) -> None:
        if name == "/bad" and not said:
            raise RecursionError("too deep")
        ensure(watch, tree, name)

    monkeypatch.setattr(watch_guest, "REST", 0.01)
    monkeypatch.setattr(watch_guest.GuestWatch, "_ensure", failing_once)

    async def body(watcher: Watcher, told: list[dict[str, Any]]) -> None:
        monkeypatch.setattr(watcher, "say_bug", said.append)
        (tmp_path / "web/guest/bad").mkdir()
        await until(lambda: "/bad" in created(told))
        assert [event["kind"] for event in told] == ["lost", "created"]
        assert [str(error) for error in said] == ["too deep"]

    watching(guest, body)


# Pressure.


@pytest.mark.parametrize("ended", [False, True])
def test_pressure_while_no_descriptor_is_free(monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    """It is told all the same, each time; of a group that has gone it is told no more."""
    told: list[tuple[Any, ...]] = []

    class Guest:
        def open(self) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        event = os.eventfd(0, os.EFD_NONBLOCK)
        trigger = Trigger("memory.pressure_level", "medium")
        monkeypatch.setattr(watch_pressure, "open_trigger", lambda place, trigger: (event, select.EPOLLIN))
        monkeypatch.setattr(watch_pressure, "is_gone", lambda descriptor: ended)
        async with trio.open_nursery() as nursery:
            descriptors = Descriptors(nursery.start_soon)
            triggers = Triggers(Guest(), descriptors, lambda *args, **named: told.append(args))  # type: ignore[arg-type]
            with monkeypatch.context() as patch:
                patch.setattr(triggers, "_place", lambda name, trigger: "/there")
                triggers.open("/web", trigger)
            nursery.start_soon(descriptors.run)
            os.eventfd_write(event, 1)
            await until(lambda: told or not triggers._open)
            if not ended:
                os.eventfd_write(event, 1)
                await until(lambda: len(told) == 2)
            assert [one[:3] for one in told] == [] if ended else [("pressure", "/web", "memory.pressure_level")] * 2
            assert bool(triggers._open) != ended
            nursery.cancel_scope.cancel()
        descriptors.close_all()

    trio.run(main)


# Guests.


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Broker:
    """One with no groups to find, whose guests' sockets are in a directory of the test's; notified has what the service
    manager was told."""
    hierarchy = Hierarchy("memory", 1, ("memory",), "memory", str(tmp_path / "groups"))
    monkeypatch.setattr(server, "read_hierarchies", lambda make: (hierarchy,))
    monkeypatch.setattr(server, "primary", lambda hierarchies: hierarchy)
    monkeypatch.setattr(server, "socket_directory", lambda name, limit: str(tmp_path / name))
    monkeypatch.setattr(server, "walk", lambda hierarchies, inside: SimpleNamespace(guests=()))
    monkeypatch.setattr(sockets, "directories", list)
    notified: list[str] = []
    monkeypatch.setattr(sockets, "notify", lambda text, fds=(): notified.append(text))
    found = Broker(Options(audit=str(tmp_path / "audit")))
    found.notified = notified  # type: ignore[attr-defined]
    return found


def test_a_kept_socket_of_a_guest_that_has_ended(broker: Broker, tmp_path: Path) -> None:
    """It is let go of: the next guest of that name has one that can be mounted."""
    kept = sockets.listen(str(tmp_path / "web"), 0o600)
    sockets.forget(str(tmp_path / "web"))
    broker.kept = {"web": [kept]}

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            broker.nursery = nursery
            await broker._find_guests()
            assert kept.fileno() < 0
            assert broker.notified == ["FDSTOREREMOVE=1\nFDNAME=web"]  # type: ignore[attr-defined]
            broker.announce("web", "/web")
            assert (tmp_path / "web" / sockets.SOCKET_NAME).is_socket()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_guest_whose_process_cannot_be_looked_at_has_not_ended(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no descriptor is free it is looked at again; it ends when there is no such process."""
    errors = [errno.EMFILE, errno.ENFILE]

    def opened(pid: int, start: int) -> int:
        if errors:
            raise OSError(errors[0], os.strerror(errors.pop(0)))
        return os.pidfd_open(pid)

    def learn(guest: Served) -> bool:
        guest.mark = MARK
        return True

    monkeypatch.setattr(server.pidfd, "open", opened)
    monkeypatch.setattr(Served, "learn", learn)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            broker.nursery = nursery
            os.makedirs(broker.primary.path("/web"))
            guest = broker.announce("web", "/web")
            await until(lambda: guest.process >= 0)
            assert broker.guests == {"/web": guest}
            assert not errors
            broker.end(guest)
            errors.append(errno.ESRCH)
            broker.announce("web", "/web")
            await until(lambda: not broker.guests)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_guest_that_takes_long_to_take_up_keeps_no_other_waiting(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The broker is ready at once, and the other is answered; the slow one only when it has what it had registered."""
    found = [SimpleNamespace(claim=False, mark=replace(MARK, name=name), path=f"/{name}") for name in ("slow", "web")]
    slow, answered = trio.Event(), []

    class Answering:
        def __init__(self, broker: Broker, guest: Served, connection: socket.socket) -> None:
            answered.append(guest.name)
            connection.close()

        async def run(self) -> None:
            pass

    def learn(guest: Served) -> bool:
        guest.mark = MARK
        return True

    async def restore(broker: Broker, guest: Served) -> None:
        if guest.name == "slow":
            await slow.wait()

    async def nothing(*args: Any) -> None:
        pass

    monkeypatch.setattr(server, "walk", lambda hierarchies, inside: SimpleNamespace(guests=found))
    monkeypatch.setattr(server.pidfd, "open", lambda pid, start: os.pidfd_open(pid))
    monkeypatch.setattr(Served, "learn", learn)
    monkeypatch.setattr(Broker, "put_socket", nothing)
    monkeypatch.setattr(server, "restore_reactions", restore)
    monkeypatch.setattr(server, "restore_rules", nothing)
    monkeypatch.setattr(server, "Connection", Answering)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(30):
                await nursery.start(broker.run)
            assert [guest.name for guest in broker.guests.values()] == ["slow", "web"]
            connections = []
            for name in ("slow", "web"):
                connections.append(socket.socket(socket.AF_UNIX))
                connections[-1].connect(str(tmp_path / name / sockets.SOCKET_NAME))
            await until(lambda: answered)
            assert answered == ["web"]
            slow.set()
            await until(lambda: len(answered) == 2)
            for one in connections:
                one.close()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_refusals_that_were_counted_are_written_in_time() -> None:
    """Though nobody asks for anything any more."""
    flushed: list[float] = []
    audit = SimpleNamespace(flush=lambda: flushed.append(trio.current_time()))

    async def main() -> None:
        with trio.move_on_after(10 * server.TIDY + 1):
            await server.Broker._tidy(SimpleNamespace(audit=audit, guests={}))  # type: ignore[arg-type]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(flushed) == 10
