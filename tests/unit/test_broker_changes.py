"""Who changes a guest's groups, and when: the guest's calls, the host's before them, and nestrt lock before both.

locker ── announce ─▶ flock(LOCK_EX) of the limit group     here a directory
call   ── changing ─▶ a thread ─▶ flock(LOCK_SH) of it
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from nestrt.broker import limits, quota, wire
from nestrt.broker.connection import Connection
from nestrt.broker.locks import Changing
from nestrt.broker.peer import Peer
from nestrt.broker.refusal import Refusal
from nestrt.broker.request import Request
from nestrt.broker.served import Served
from nestrt.guest import client
from nestrt.host.marks import TRUSTED, parse
from nestrt.kernel import flock
from nestrt.plan.facts import Hierarchy


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Served]:
    """Its groups are directories."""
    (tmp_path / "limit/guest/web").mkdir(parents=True)
    primary = Hierarchy("unified", 2, (), "", str(tmp_path))
    served = Served("web", "/limit", (primary,), primary)
    text = b'{"v":1,"name":"web","state":"running","root":"guest","limits":{"pids":10}}'
    served.mark = parse(text, TRUSTED)
    served.learn = lambda: True  # type: ignore[method-assign]
    yield served
    served.close()


def request(guest: Served, method: str = "Create", root: bool = True) -> Request:
    broker: Any = None
    peer = Peer(1, 0, 0, -1, 0 if root else 1000, root)
    return Request(broker, guest, peer, method, {"group": "web"}, False, lambda _: trio.sleep(0))


def limit(guest: Served) -> int:
    return os.open(guest.primary.path("/limit"), os.O_RDONLY | os.O_DIRECTORY)


def is_free(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def test_what_is_announced_ends_with_whoever_did(tmp_path: Path) -> None:
    """By others it is seen, several may, and a killed one leaves nothing."""
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    try:
        assert not flock.announced(fds[0])
        flock.announce(fds[1])
        flock.announce(fds[2])
        assert flock.announced(fds[0])
        flock.announce(fds[1], False)
        assert flock.announced(fds[0])
        os.close(fds.pop())
        assert not flock.announced(fds[0])
        read, write = os.pipe()
        if not (pid := os.fork()):
            own = os.open(tmp_path, os.O_RDONLY)
            flock.announce(own)
            os.write(write, b".")
            signal.pause()
            os._exit(1)
        os.read(read, 1)
        assert flock.announced(fds[0])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not flock.announced(fds[0])
        os.close(read)
        os.close(write)
    finally:
        for fd in fds:
            os.close(fd)


def test_no_change_begins_once_a_lock_is_announced(guest: Served) -> None:
    fd = limit(guest)
    try:
        with guest.unlocked("change it", "/web"):
            flock.announce(fd)
            assert not is_free(fd)
            with pytest.raises(Refusal, match="is being locked") as caught, guest.unlocked("change it", "/web"):
                pass
        assert caught.value.name == "Locked"
        assert is_free(fd)
        flock.announce(fd, False)
        with guest.unlocked("change it", "/web"):
            pass
        with pytest.raises(BlockingIOError), guest.unlocked("change it", "/web"):
            raise BlockingIOError  # the change's own
    finally:
        os.close(fd)


def test_a_call_that_waits_keeps_no_lock_out(guest: Served) -> None:
    """Only where its thread is at work; and one whose turn comes too late is refused."""
    fd, found = limit(guest), []

    async def ask() -> None:
        async with guest.changing:
            try:
                found.append(await request(guest).change(lambda _: is_free(fd)))
            except Refusal as refusal:
                found.append(refusal.name)

    async def main() -> None:
        async with trio.open_nursery() as nursery, guest.changing:
            for _ in range(3):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert is_free(fd)
        assert found == [False] * 3
        async with trio.open_nursery() as nursery, guest.changing:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            flock.announce(fd)
        assert found[3:] == ["Locked"]

    try:
        trio.run(main)
    finally:
        os.close(fd)


def test_the_host_goes_before_all_that_wait() -> None:
    """But one of the guest's, which wanted it before."""
    order: list[str] = []

    async def change(name: str, lock: Any) -> None:
        async with lock:
            order.append(name)
            await trio.sleep(0)

    async def main() -> None:
        changing = Changing()
        async with trio.open_nursery() as nursery, changing:
            assert changing.locked()
            for number in range(5):
                nursery.start_soon(change, f"guest {number}", changing)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(change, "host", changing.host)
            await trio.testing.wait_all_tasks_blocked()
        assert not changing.locked()
        with trio.CancelScope() as scope:
            async with changing.host:
                scope.cancel()
                await change("given up", changing)
        async with changing:
            pass

    trio.run(main)
    assert order.index("host") <= 1
    assert len(order) == 6


class HostCall:
    """What set_limits() wants of a HostRequest."""

    def __init__(self, guest: Served, closed: list[bool]) -> None:
        self.guest, self.closed = guest, closed

    def __getitem__(self, key: str) -> Any:
        return {"pids.max": "5"} if key == "settings" else None

    def served(self) -> Served:
        return self.guest

    def gone(self) -> bool:
        return bool(self.closed)

    def note(self, *_: Any) -> None:
        pass


def test_a_host_call_that_nobody_waits_for_any_more_does_nothing(
    guest: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is waited for goes before the guest's, and has a thread, whatever the guest's own are at."""
    done: list[Any] = []
    monkeypatch.setattr(limits, "change", lambda guest, new, *_: done.append(new.pids) or new)

    async def main() -> None:
        closed: list[bool] = []
        call: Any = HostCall(guest, closed)
        guest.workers.total_tokens = 1
        async with guest.workers:
            with trio.fail_after(30):
                await limits.set_limits(call)
        assert done == [5]
        async with trio.open_nursery() as nursery, guest.changing:
            for _ in range(3):
                nursery.start_soon(wait_as_guest)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(limits.set_limits, call)
            await trio.testing.wait_all_tasks_blocked()
        assert done == [5, 5, "guest", "guest", "guest"]
        del done[1:]
        async with trio.open_nursery() as nursery, guest.changing:
            nursery.start_soon(expect_busy, call)
            await trio.testing.wait_all_tasks_blocked()
            closed.append(True)
        assert done == [5]

    async def wait_as_guest() -> None:
        async with guest.changing:
            done.append("guest")

    async def expect_busy(call: Any) -> None:
        with pytest.raises(Refusal, match="has not waited"):
            await limits.set_limits(call)

    trio.run(main)


def test_limits_begin_from_the_mark_as_it_is(guest: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine's update has changed it, past the broker."""
    seen: list[Any] = []

    def learn() -> bool:
        text = b'{"v":1,"name":"web","state":"running","root":"guest","limits":{"pids":20}}'
        guest.mark = parse(text, TRUSTED)
        return True

    guest.learn = learn  # type: ignore[method-assign]
    monkeypatch.setattr(limits.update, "change", lambda *given: seen.append(given[2].pids))
    monkeypatch.setattr(limits, "follow", lambda *_: None)
    had = limits.change(guest, limits.parse({"pids.max": "5"}), None, lambda *_: None)
    assert (had.pids, seen) == (20, [20])


def test_a_call_is_paid_for_by_the_time_that_it_takes(guest: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long makes its user wait, and not the guest's root; what is short costs nothing more."""
    now, used = [100.0], [0.0]
    monkeypatch.setattr(quota.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(quota.time, "thread_time", lambda: used[0])
    own = guest.quota = quota.Quota(quota.Options())

    def look(seconds: float) -> float:
        def action(_: Any) -> None:
            used[0] += seconds

        trio.run(request(guest, "List", root=False).later, action)
        return own.take(False, 0)

    assert look(quota.ORDINARY) == 0
    assert look(quota.AT_ONCE) == 0
    wait = look(1.0)
    assert wait == pytest.approx(1.0 / quota.SHARE, rel=0.01)
    assert own.take(True, 1) == 0
    now[0] += wait + 0.001
    assert own.take(False, 1) == 0


def test_who_has_closed_is_gone_and_who_has_only_said_all_is_not() -> None:
    broker: Any = SimpleNamespace(options=quota.Options())
    ours, theirs = socket.socketpair()
    one = Connection(broker, None, ours)
    assert not one.gone()
    theirs.sendall(b"{}\0")
    theirs.shutdown(socket.SHUT_WR)
    assert select.select([ours], [], [], 5)[0]
    assert not one.gone()
    theirs.close()
    assert one.gone()
    ours.close()


def test_groups_are_walked_for_whoever_may_remove_them_and_in_a_thread(
    guest: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other guests wait for what is done in the thread of trio."""
    walked: list[bool] = []
    tree = client.View.tree

    def noted(view: client.View, group: str) -> list[str]:
        walked.append(threading.current_thread() is threading.main_thread())
        return tree(view, group)

    monkeypatch.setattr(client.View, "tree", noted)
    audit = SimpleNamespace(record=lambda *_: None)
    broker: Any = SimpleNamespace(options=quota.Options(), audit=audit)
    ours, theirs = socket.socketpair()

    def remove(group: str, root: bool) -> str:
        one = Connection(broker, guest, ours)
        one.peer = Peer(1, 0 if root else 1000, 0, -1, 0 if root else 1000, root)
        call = wire.Call("io.nestrt.Guest.Remove", {"group": group, "recursive": True}, False, False)
        try:
            trio.run(one.dispatch, call)
        except Refusal as refusal:
            return refusal.name
        return "done"

    try:
        assert (remove("web", False), remove("/", False), remove("/", True)) == ("NotPermitted", "BadValue", "BadValue")
        assert walked == []
        assert remove("web", True) == "done"
        assert set(walked) == {False}
    finally:
        ours.close()
        theirs.close()
