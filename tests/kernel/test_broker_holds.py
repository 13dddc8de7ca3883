"""What a reaction does to a group is undone however the reaction ends, on a real kernel: while a thread is at work, and
where it never really began. nestrt/broker/react*.py, without the daemon."""

from __future__ import annotations

import errno
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

from nestrt.broker import reacting_acts as acts
from nestrt.broker.refusal import Refusal
from nestrt.broker.served import Served
from nestrt.guest import client
from support.hostside import has_v1, read
from support.need import SLOW
from support.watching import Eye, ended, eye, guest_by_hand, hog, make, until

RAISE = {"action": "raise", "step": "8M", "most": "64M"}


async def react(broker: Eye, guest: Served, **values: Any) -> None:
    await broker.call(guest, "React", reaction={"group": "/web", "on": "oom", **values})


async def forget(broker: Eye, guest: Served) -> None:
    await broker.call(guest, "Forget", group="/web", on="oom")


async def release(broker: Eye, guest: Served) -> None:
    broker.watcher.reactor.forget_guest(guest)


async def again(broker: Eye, guest: Served) -> None:
    await react(broker, guest, **RAISE)
    await forget(broker, guest)


async def drain(broker: Eye, guest: Served) -> None:
    await broker.watcher.stand_down()


def held(group: str) -> bool:
    """Whether *group* is held for a decision: v1's killer is off, v2's memory.high stands below memory.max."""
    if has_v1("memory"):
        return "oom_kill_disable 1" in read("memory", group, "memory.oom_control", "x")
    return read("memory", group, "x", "memory.high") != "max"


# The reaction ends while the kernel's killer is let do its work: whoever waited for that does not switch it off again.
@pytest.mark.v1
@pytest.mark.parametrize("end", [forget, again, release, drain])
def test_the_killer_is_back_for_good(
    end: Callable[[Eye, Served], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go = threading.Event(), threading.Event()

    def wait(*_: Any) -> bool:
        waiting.set()
        return go.wait(60 * SLOW)

    async def main() -> None:
        with guest_by_hand("for-good", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker:
                await react(broker, guest, action="tell", seconds=0.1, fallback="nothing")
                assert held(web)
                monkeypatch.setattr(acts, "_until", wait)
                with hog(web, 40) as process:
                    await until(waiting.is_set, "the kernel to be let")
                    try:
                        await end(broker, guest)
                    finally:
                        go.set()
                    await until(lambda: guest.workers.borrowed_tokens == 0, "the thread to end")
                    assert not held(web)
                    assert not broker.watcher.reactor.guard.held
                    assert await ended(process) != 0

    trio.run(main)


def check_nothing_is_left(broker: Eye, web: str) -> None:
    assert not held(web)
    reactor = broker.watcher.reactor
    assert not reactor.guard.held
    assert not reactor.guests


# The group goes between the guard's opening the file and the write.
def test_what_cannot_be_set_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, text: str) -> None:
        if path.endswith(("/web/memory.oom_control", "/web/memory.high")):
            write(path, text)
            raise OSError(errno.ENODEV, "", path)
        write(path, text)

    async def main() -> None:
        with guest_by_hand("fail", "256M") as guest:
            web = make(guest, "/web", "32M")
            async with eye() as broker:
                with monkeypatch.context() as patch:
                    patch.setattr(client, "write", fail)
                    with pytest.raises(OSError, match="Errno 19"):
                        await react(broker, guest, **RAISE)
                    check_nothing_is_left(broker, web)
                await react(broker, guest, **RAISE)
                assert held(web)

    write = client.write
    trio.run(main)


# Either comes while React is in its thread: the host's Release, or the broker's end.
@pytest.mark.parametrize("what", ["released", "ending"])
def test_what_ends_while_it_begins_leaves_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with guest_by_hand("begins", "256M") as guest:
            web = make(guest, "/web", "32M")
            async with eye() as broker:

                def late(hold: acts.Hold, tree: Any) -> None:
                    before(hold, tree)
                    seen.append(held(web))
                    if what == "released":
                        trio.from_thread.run_sync(guest.scope.cancel)
                    else:
                        broker.watcher.reactor.ending = True

                monkeypatch.setattr(acts.Hold, "set", late)
                with pytest.raises(Refusal):
                    await react(broker, guest, **RAISE)
                assert seen == [True]
                check_nothing_is_left(broker, web)

    before, seen = acts.Hold.set, list[bool]()
    trio.run(main)


# The guest is served no longer by the time Forget would have it released in a thread.
def test_what_is_forgotten_too_late_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any) -> None:
        raise Refusal("NotFound", "it has ended", "")

    async def main() -> None:
        with guest_by_hand("too-late", "256M") as guest:
            web = make(guest, "/web", "32M")
            async with eye() as broker:
                await react(broker, guest, **RAISE)
                assert held(web)
                monkeypatch.setattr(guest, "later", refuse)
                with suppress(Refusal):
                    await forget(broker, guest)
                check_nothing_is_left(broker, web)

    trio.run(main)
