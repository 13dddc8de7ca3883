"""Memory pressure on a real kernel: v1's levels and PSI, as events and as what a reaction waits for.

::

    /nestrt-eye-NAME-PID      limit group, 256M     ◀── nestrt events: host/follow_pressure.py
                    └ guest   256M                  ◀── Events of "/"
                      └ web   16M                   ◀── Events and React: broker/watch_pressure.py
                              a process in it keeps 9M, and half a MiB more each time that it writes and reads a file of
                              32M: the kernel has to take the file's pages back all the time, and finds ever fewer that
                              it can, until it kills the process, and the next one begins anew
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

from nestrt.broker.reaction_text import MIB
from nestrt.broker.served import Served
from nestrt.host.follow import Follower
from nestrt.host.pressure import Trigger
from nestrt.probe.facts import read_hierarchies
from support.hostside import has_v1, read, v2_hierarchy
from support.need import SLOW, require
from support.watching import PYTHON, Eye, eye, guest_by_hand, make, running, subscribed

LEVELS = ("low", "medium", "critical")
TELLS = ("reaction", "lost")
PATIENCE = 30.0
CHURN = """
import ctypes, os, signal, sys
sys.stdin.readline()
path = sys.argv[1]

def churn():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    kept = []
    piece = bytes(65536)
    with open(path, "w+b", 0) as file:
        while os.getppid() == parent:
            for _ in range(9 << 4 if not kept else 8):
                kept.append(bytearray(b"1" * 65536))
            file.seek(0)
            for _ in range(512):
                file.write(piece)
            file.seek(0)
            while file.read(65536):
                pass

parent = os.getpid()
while True:
    child = os.fork()
    if child == 0:
        churn()
        os._exit(0)
    os.waitpid(child, 0)
    os.truncate(path, 0)
"""


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main)


@pytest.fixture
def churning(tmp_path: Path) -> Callable[[str], AbstractContextManager[Any]]:
    """A process in a group that presses on its memory."""
    return lambda group: running(group, *PYTHON, CHURN, str(tmp_path / "file"))


async def react(broker: Eye, guest: Served, threshold: str, **values: Any) -> None:
    reaction = {"group": "/web", "on": "pressure", "threshold": threshold, **values}
    await broker.call(guest, "React", reaction=reaction)


def without_psi(group: str) -> None:
    """As on a kernel without PSI: there are no pressure files in *group*."""
    tree = v2_hierarchy()
    if tree is not None and (tree.group(group) / "cgroup.pressure").exists():
        (tree.group(group) / "cgroup.pressure").write_text("0")
    assert tree is None or not (tree.group(group) / "memory.pressure").exists()


def need_psi(group: str) -> None:
    tree = v2_hierarchy()
    file = tree.group(group) / "memory.pressure" if tree is not None else None
    problem = "no memory.pressure"
    if file is not None and file.exists():
        try:
            problem = "" if file.read_bytes() else problem
        except OSError as error:
            problem = f"memory.pressure: {error.strerror}"
    require("psi", problem)


# Each level, and a reaction of each kind that goes on afterwards.
@pytest.mark.v1
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_reacted_to(level: str, churning: Callable[[str], Any]) -> None:
    async def main() -> None:
        with guest_by_hand(level, "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, level, action="freeze")
                await trio.sleep(0.2)
                assert not stream.events, "without any pressure"
                with churning(web):
                    event = await stream.wait("reaction", "/web", PATIENCE, text="freeze")
                    assert (event["key"], event["group"]) == ("pressure", "/web")
                    assert read("freezer", web, "freezer.state", "x") == "FROZEN"
                await broker.call(guest, "Forget", group="/web", on="pressure")
                assert (await broker.call(guest, "Reactions"))["reactions"] == []

    run(main)


# What presses is given more, step by step, as much as the reaction may.
@pytest.mark.v1
def test_a_level_raises_the_limit(churning: Callable[[str], Any]) -> None:
    async def main() -> None:
        with guest_by_hand("more", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, "low", action="raise", step="24M", most="64M")
                with churning(web):
                    event = await stream.wait("reaction", "/web", PATIENCE, text="raise")
                    assert event["detail"] == "raise: memory.max 16M → 40M"
                assert 40 * MIB <= int(read("memory", web, "memory.limit_in_bytes", "x")) <= 64 * MIB

    run(main)


# No PSI in these groups: subscribers are told of v1's "medium", at the group and the one above, whoever else listens.
@pytest.mark.v1
def test_a_level_is_an_event_at_every_group_above(churning: Callable[[str], Any]) -> None:
    async def main() -> None:
        with guest_by_hand("levels", "256M") as guest:
            web = make(guest, "/web", "16M")
            for group in (f"{guest.limit}/guest", web):
                without_psi(group)
            async with (
                eye() as broker,
                subscribed(broker, guest, "/web", ("pressure",)) as inner,
                subscribed(broker, guest, "/", ("pressure",)) as outer,
            ):
                await react(broker, guest, "low", action="raise", step="1M", most="1M")
                with churning(web):
                    for stream, group in ((inner, "/web"), (outer, "/")):
                        event = await stream.wait("pressure", group, PATIENCE)
                        assert (event["key"], event["detail"]) == ("memory.pressure_level", "medium")

    run(main)


# The host is told too: a guest in which somebody listens cannot keep it from it.
@pytest.mark.v1
def test_the_host_is_told_of_a_level(churning: Callable[[str], Any]) -> None:
    async def main() -> None:
        with guest_by_hand("host", "256M") as guest:
            web = make(guest, "/web", "16M")
            without_psi(web)
            follower = Follower(
                read_hierarchies(), frozenset(("pressure",)), (Trigger("memory.pressure_level", "medium"),),
                lambda one: one.path == guest.limit,
            )  # fmt: skip
            try:
                async with eye() as broker, subscribed(broker, guest, "/web", ("pressure",)) as stream:
                    with churning(web):
                        await stream.wait("pressure", "/web", PATIENCE)
                        found: list[Any] = []
                        end = time.monotonic() + PATIENCE * SLOW
                        while not found and time.monotonic() < end:
                            found = [one for one in follower.step(0.1) if one.kind == "pressure"]
                            await trio.sleep(0)
            finally:
                follower.close()
            assert found, "the host was told nothing"
            assert (found[0].path, found[0].key, found[0].detail) == (guest.limit, "memory", "medium")

    run(main)


# PSI counts who waits for memory wherever the memory controller stands: in the v2 tree of a hybrid host, too.
def test_waiting_for_memory_is_reacted_to_and_an_event(churning: Callable[[str], Any]) -> None:
    async def main() -> None:
        with guest_by_hand("psi", "256M") as guest:
            web = make(guest, "/web", "16M")
            need_psi(web)
            async with (
                eye() as broker,
                subscribed(broker, guest, "/web", TELLS) as told,
                subscribed(broker, guest, "/web", ("pressure",)) as stream,
            ):
                with churning(web):
                    with trio.fail_after(PATIENCE * SLOW):
                        while not (pressed := [one for one in stream.events if one["key"] == "memory.pressure"]):
                            await trio.sleep(0.05)
                    assert (pressed[0]["kind"], pressed[0]["group"]) == ("pressure", "/web")
                    assert pressed[0]["count"] > 0
                    assert pressed[0]["detail"].startswith("some avg10=")
                    await react(broker, guest, "memory some 5000 500000", action="freeze")
                    # What waits for memory in the kernel may not stop in time; then it is tried again.
                    event = await told.wait("reaction", "/web", 2 * PATIENCE, text="frozen 0")
                    assert event["key"] == "pressure"
                    if has_v1("freezer"):
                        assert read("freezer", web, "freezer.state", "x") == "FROZEN"

    run(main)
