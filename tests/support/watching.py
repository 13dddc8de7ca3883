"""Guests made by hand, as the broker serves them, and what it tells of them: without the daemon and its sockets.

::

    /nestrt-eye-NAME-PID        limit group, with a mark
                   └ guest      guest root, with the guest's limits
                       ├ init
                       └ web    what a test makes
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio

from nestrt.broker import idl
from nestrt.broker.events import METHODS as EVENTS
from nestrt.broker.peer import Peer
from nestrt.broker.reactions import METHODS as REACTIONS
from nestrt.broker.request import Request
from nestrt.broker.served import Served
from nestrt.broker.watch import Watcher
from nestrt.probe.facts import primary, read_hierarchies
from support.byhand import enter, make_group, remove_groups
from support.hostside import group_file, groups, has_v1
from support.need import SLOW

PYTHON = ("/usr/bin/python3", "-IS", "-c")
# Waits for a line, takes so many MiB page by page, says so, and waits again.
HOG = """
import mmap, sys
sys.stdin.readline()
size = int(sys.argv[1]) << 20
memory = mmap.mmap(-1, size)
for at in range(0, size, 4096):
    memory[at] = 1
print("done", flush=True)
sys.stdin.readline()
"""


class Audit:
    """What the broker's audit is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str, Any, Any, str]] = []

    def record(
        self, guest: str, group: str, key: str, old: Any, new: Any, verdict: str, peer: Any = None, method: str = ""
    ) -> None:
        self.lines.append((group, key, method, old, new, verdict))


class Eye:
    """As much of a broker as watching takes."""

    def __init__(self) -> None:
        self.audit = Audit()
        self.guests: dict[str, Served] = {}
        self.watcher = Watcher(self)  # type: ignore[arg-type]

    def listening(self, guest: Served) -> int:
        """How many subscribers the guest has."""
        watch = self.watcher.guests.get(guest.limit)
        return sum(interest.below for interest in watch.interests) if watch else 0

    async def call(self, guest: Served, method: str, user: int = 0, **parameters: Any) -> dict[str, Any]:
        """A method of a process of *guest* whose user there is *user*."""
        request = self.request(guest, method, user, parameters)
        return await {**EVENTS, **REACTIONS}[method](request)

    def request(self, guest: Served, method: str, user: int, parameters: dict[str, Any], more: Any = None) -> Request:
        """The call as its method gets it; *more* takes the replies of a stream."""
        checked = idl.interface("io.nestrt.Guest").check(method, parameters)
        uid = user + (guest.ids[0][1] if guest.ids else 0)
        peer = Peer(os.getpid(), uid, uid, -1, user, user == 0)
        return Request(self, guest, peer, method, checked, more is not None, more)  # type: ignore[arg-type]


class Stream:
    """What a subscriber was told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.came = trio.Event()

    async def take(self, reply: dict[str, Any]) -> None:
        """One reply of the stream: of the form that the interface says, and JSON."""
        json.dumps(idl.interface("io.nestrt.Guest").reply("Events", reply))
        if reply["event"]["kind"] == "listening":
            assert not self.events, "told before it listened"
            return
        self.events.append(reply["event"])
        self.came.set()

    def all(self, kind: str, group: str = "") -> list[dict[str, Any]]:
        """The events of one kind."""
        return [e for e in self.events if e["kind"] == kind and (not group or e["group"] == group)]

    async def wait(self, kind: str, group: str = "", seconds: float = 10.0, text: str = "") -> dict[str, Any]:
        """The first event of the kind (whose detail has *text* in it), which is to come soon."""
        end = trio.current_time() + seconds * SLOW
        while trio.current_time() < end:
            for event in self.all(kind, group):
                if text in (event["detail"] or ""):
                    return event
            self.came = trio.Event()
            with trio.move_on_at(end):
                await self.came.wait()
        last = [{key: value for key, value in event.items() if value is not None} for event in self.events[-20:]]
        raise AssertionError(f"no {kind} {text} of {group or 'any group'} in {seconds * SLOW} s: {last}")


async def until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> None:
    """Wait until *condition* is true, which is to be soon; AssertionError."""
    with trio.move_on_after(seconds * SLOW):
        while not condition():
            await trio.sleep(0.02)
    assert condition(), what


@asynccontextmanager
async def eye() -> AsyncIterator[Eye]:
    """A broker that watches."""
    broker = Eye()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.watcher.run)
        try:
            yield broker
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def subscribed(
    broker: Eye, guest: Served, group: str = "/", kinds: tuple[str, ...] = (), user: int = 0
) -> AsyncIterator[Stream]:
    """A stream of events, from when it is told of what happens."""
    stream = Stream()
    request = broker.request(guest, "Events", user, {"group": group, "kinds": list(kinds)}, stream.take)
    before = broker.listening(guest)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(EVENTS["Events"], request)
        with trio.fail_after(10 * SLOW):
            while broker.listening(guest) == before or broker.watcher.guests[guest.limit].fresh:
                await trio.sleep(0.01)
        yield stream
        nursery.cancel_scope.cancel()


@contextmanager
def guest_by_hand(name: str, memory: str = "", uids: int = 0) -> Iterator[Served]:
    """A guest, with *memory* for its limit; *uids*: its root is that user here."""
    limit = f"/nestrt-eye-{name}-{os.getpid()}"
    mark: dict[str, Any] = {"v": 1, "name": f"eye-{name}", "level": 1, "max_level": 3, "state": "running", "pid": 1}
    mark["view"] = {"cpus": "renumbered", "mount": "rw"}
    if uids:
        mark["ids"] = [[0, uids, 65536]]
    found = read_hierarchies()
    try:
        for group in (limit, f"{limit}/guest", f"{limit}/guest/init"):
            make_group(group)
        place, raw = primary(found).path(limit), json.dumps(mark).encode()
        try:
            os.setxattr(place, "trusted.nestrt", raw)
        except PermissionError:  # a user namespace
            os.setxattr(place, "user.nestrt", raw)
        if memory:
            for group in (limit, f"{limit}/guest"):
                memory_limit(group, memory)
        served = Served(f"eye-{name}", limit, found, primary(found))
        yield served
        if served.tree is not None:
            served.tree.close()
    finally:
        remove_groups(limit)


def memory_limit(group: str, size: str) -> None:
    """Give *group* (from the host's root) a memory limit, and no swap beyond it where that is v2's."""
    group_file("memory", group, "memory.limit_in_bytes", "memory.max").write_text(size)
    swap = group_file("memory", group, "memory.memsw.limit_in_bytes", "memory.swap.max")
    if swap.exists():
        swap.write_text(size if has_v1("memory") else "0")


def make(guest: Served, group: str, memory: str = "") -> str:
    """A child group of the guest; its path from the host's root."""
    path = f"{guest.limit}/guest{group}"
    make_group(path)
    if memory:
        memory_limit(path, memory)
    return path


@contextmanager
def running(group: str, *argv: str, go: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """A process in *group* (from the host's root); it gets a line on its standard input when it is there."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        enter(group, process.pid)
        if go:
            process.stdin.write(b"\n")
            process.stdin.flush()
        yield process
    finally:
        process.kill()
        # v1 keeps it frozen all the same.
        for place in groups(group):
            for file, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if (place / file).exists():
                    (place / file).write_text(text)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def hog(group: str, mebibytes: int) -> Any:
    """A process in *group* that takes so much memory."""
    return running(group, *PYTHON, HOG, str(mebibytes))


async def ended(process: subprocess.Popen[bytes], seconds: float = 10.0) -> int:
    """Its exit status, which is to come soon."""
    with trio.fail_after(seconds * SLOW):
        while process.poll() is None:
            await trio.sleep(0.02)
    assert process.returncode is not None
    return process.returncode


async def said(process: subprocess.Popen[bytes], seconds: float = 10.0) -> bytes:
    """The line that it writes soon."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    with trio.fail_after(seconds * SLOW):
        while not (line := process.stdout.readline()):
            await trio.sleep(0.02)
    return line
