"""Reactions, on a real kernel: what happens when a guest's group runs out of memory, and what stays of it when the
broker is killed. nestrt/broker/react*.py and guard.py, without the daemon.

::

    /nestrt-eye-NAME-PID/guest     256M
                         └ web     16M: a process in it takes 40 MiB
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from nestrt.broker import reacting_acts as acts
from nestrt.broker import reactions, watch_guest
from nestrt.broker.reaction_text import MIB, parse
from nestrt.broker.reactions import ATTRIBUTES
from nestrt.broker.refusal import Refusal
from nestrt.broker.served import Served
from nestrt.guest import client
from nestrt.guest.client import GuestError
from nestrt.host.marks import TRUSTED, USER
from support.byhand import remove_groups
from support.hostside import group_file, groups, has_v1, read, v2_hierarchy
from support.need import SLOW, require
from support.rootfs import CHECKOUT, OPT, PythonRoot
from support.runner import Nestrt, wait_for
from support.watching import (
    PYTHON,
    Eye,
    ended,
    eye,
    guest_by_hand,
    hog,
    make,
    memory_limit,
    running,
    said,
    subscribed,
    until,
)

TELLS = ("reaction", "oom", "oom_kill", "lost")
BUSY = "import sys\nsys.stdin.readline()\nwhile True: pass"
RAISE = {"action": "raise", "step": "8M", "most": "64M"}


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main)


async def react(broker: Eye, guest: Served, user: int = 0, **values: Any) -> None:
    await broker.call(guest, "React", user, reaction={"group": "/web", "on": "oom", **values})


async def listed(broker: Eye, guest: Served, user: int = 0) -> list[dict[str, Any]]:
    """What Reactions says, without what is not set."""
    found = (await broker.call(guest, "Reactions", user))["reactions"]
    return [{key: value for key, value in one.items() if value is not None} for one in found]


def limit_of(group: str) -> int:
    return int(read("memory", group, "memory.limit_in_bytes", "memory.max"))


def held(group: str) -> bool:
    """Whether *group* is held for a decision: v1's killer is off, v2's memory.high stands below memory.max."""
    if has_v1("memory"):
        return "oom_kill_disable 1" in read("memory", group, "memory.oom_control", "x")
    return read("memory", group, "x", "memory.high") != "max"


def frozen(group: str) -> bool:
    if has_v1("freezer"):
        return read("freezer", group, "freezer.state", "x") == "FROZEN"
    tree = v2_hierarchy()
    assert tree is not None
    return "frozen 1" in (tree.group(group) / "cgroup.events").read_text()


def thaw(group: str) -> None:
    file = group_file("freezer", group, "freezer.state", "x") if has_v1("freezer") else None
    tree = v2_hierarchy()
    if file is not None:
        file.write_text("THAWED")
    elif tree is not None:
        (tree.group(group) / "cgroup.freeze").write_text("0")


def give(group: str, size: str) -> None:
    """Raise its memory limit. v1 wants memory and swap together not to be below memory alone."""
    if has_v1("memory"):
        group_file("memory", group, "memory.memsw.limit_in_bytes", "x").write_text(size)
    memory_limit(group, size)


def kept(group: str) -> list[str]:
    """The attributes with reactions on the directories of *group*, in all hierarchies."""
    return [name for place in groups(group) for name in os.listxattr(place) if name in ATTRIBUTES]


# -- what happens -----------------------------------------------------------------------------------------------------


# By 8M at a time, until it has enough; then everything is as it was.
def test_raise_gives_it_more() -> None:
    async def main() -> None:
        with guest_by_hand("raise", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, **RAISE)
                assert held(web)
                with hog(web, 40) as process:
                    assert await said(process, 20) == b"done\n"
                assert 40 * MIB < limit_of(web) <= 64 * MIB
                done = [event["detail"] for event in stream.all("reaction", "/web")]
                assert done[0] == "raise: memory.max 16M → 24M"
                assert not stream.all("oom_kill")
                raised = [line for line in broker.audit.lines if line[1] == "memory.max"]
                assert raised[0] == ("/web", "memory.max", "reaction raise", "16M", "24M", "done")
                await broker.call(guest, "Forget", group="/web", on="oom")
                assert not held(web)
                assert not kept(web)
                assert await listed(broker, guest) == []

    run(main)


# Up to 24M and no further: then the kernel does what it does, and the process is killed, not left waiting.
def test_raise_ends_at_most_and_leaves_the_rest_to_the_kernel() -> None:
    async def main() -> None:
        with guest_by_hand("most", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, action="raise", step="8M", most="24M")
                with hog(web, 40) as process:
                    assert await ended(process, 25) == -9
                assert limit_of(web) == 24 * MIB
                await stream.wait("oom_kill", "/web")
                # There is nothing left to wait for, until it is given less again.
                assert not held(web)
                group_file("memory", web, "memory.limit_in_bytes", "memory.max").write_text("16M")
                await until(lambda: held(web), "it to be held again")

    run(main)


#   /  32M, /web 16M by up to 1G: never more than 32M, whatever is asked
def test_raise_never_gives_more_than_the_guest_has() -> None:
    async def main() -> None:
        with guest_by_hand("above", "32M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS):
                await react(broker, guest, action="raise", step="512M", most="1G")
                with hog(web, 64) as process:
                    assert await ended(process, 25) == -9
                assert 16 * MIB < limit_of(web) <= 32 * MIB
                assert limit_of(f"{guest.limit}/guest") == 32 * MIB

    run(main)


# Given all that there is, and then frozen: the fallback.
def test_what_cannot_be_raised_any_more_gets_the_fallback() -> None:
    async def main() -> None:
        with guest_by_hand("fall", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, action="raise", step="8M", most="24M", fallback="freeze")
                with hog(web, 40) as process:
                    event = await stream.wait("reaction", text="freeze: ", seconds=20)
                    assert "it has 24M of at most 24M" in event["detail"]
                    assert frozen(web)
                    assert process.poll() is None
                assert limit_of(web) == 24 * MIB
                assert any("not raised" in line[5] for line in broker.audit.lines)

    run(main)


# Frozen whole, with its memory; given more and thawed, it goes on as if nothing had been.
def test_freeze_stops_it_and_it_can_go_on() -> None:
    async def main() -> None:
        with guest_by_hand("freeze", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, action="freeze")
                with hog(web, 40) as process, running(web, "sleep", "1000"):
                    await stream.wait("reaction", "/web", text="freeze")
                    assert frozen(web), stream.events
                    await trio.sleep(0.5)
                    assert process.poll() is None, stream.events
                    assert len(stream.all("reaction")) == 1, stream.events
                    give(web, "64M")
                    thaw(web)
                    assert await said(process, 20) == b"done\n"
                assert not stream.all("oom_kill")

    run(main)


#   /web          a process waits for memory; another runs, and gets a millisecond of CPU time in a second
# To stop the first one, the kernel's killer comes back for a moment: not before the other one has stopped, too.
@pytest.mark.v1
def test_the_killer_is_not_back_while_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with guest_by_hand("runs", "256M") as guest:
            web, slow = make(guest, "/web", "16M"), make(guest, "/slow")
            for file, value in (("cpu.cfs_period_us", "1000000"), ("cpu.cfs_quota_us", "1000")):
                group_file("cpu", slow, file, "x").write_text(value)
            states: list[str] = []

            def watched(path: str, text: str) -> None:
                if path.endswith(acts.CONTROL) and text == "0":
                    states.append(Path(f"/proc/{busy.pid}/stat").read_text().rpartition(")")[2].split()[0])
                write(path, text)

            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, action="freeze")
                with running(web, *PYTHON, BUSY) as busy:
                    group_file("cpu", slow, "cgroup.procs", "x").write_text(str(busy.pid))
                    stat = group_file("cpu", slow, "cpu.stat", "x")
                    await until(lambda: "nr_throttled 0" not in stat.read_text(), "it to be throttled")
                    write = client.write
                    with monkeypatch.context() as patch:
                        patch.setattr(client, "write", watched)
                        patch.setattr(acts, "STOP_PATIENCE", 60.0)  # whatever else this machine has to do
                        with hog(web, 40) as process:
                            await stream.wait("reaction", "/web", 60.0, text="freeze: ")
                            assert frozen(web)
                            assert process.poll() is None
                assert states
                assert "R" not in states

    run(main)


# Given more and thawed in the moment in which it is being frozen: it must not stay frozen for that.
def test_what_gets_memory_while_it_is_frozen_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with guest_by_hand("race", "256M") as guest:
            web = make(guest, "/web", "16M")

            def late(tree: Any, group: str, held: bool) -> tuple[str, str, str]:
                give(web, "64M")
                thaw(web)
                return before(tree, group, held)

            before = acts.freeze
            monkeypatch.setattr(acts, "freeze", late)
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, action="freeze")
                with hog(web, 40) as process:
                    assert await said(process, 10) == b"done\n"
                    await stream.wait("reaction", "/web", text="thaw: frozen 1 → 0; its memory.max is another one")
                assert [line[2:] for line in broker.audit.lines][-1] == ("reaction thaw", "1", "0", "done")

    run(main)


# Given a little more while the question stands, and then to be frozen: that is what was answered, so it stays.
def test_an_answer_is_for_what_the_group_has_by_then() -> None:
    async def main() -> None:
        with guest_by_hand("then", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, action="tell", seconds=50, fallback="kill")
                with hog(web, 64) as process:
                    asked = await stream.wait("reaction", "/web", text="answer")
                    give(web, "18M")
                    await broker.call(guest, "Answer", id=asked["id"], action="freeze")
                    await stream.wait("reaction", "/web", text="freeze: ")
                    await trio.sleep(0.5)
                    assert frozen(web)
                    assert process.poll() is None
                assert not [event for event in stream.all("reaction") if "thaw" in event["detail"]]

    run(main)


# Thawed without more memory, it stops again: it neither waits unseen nor is killed.
def test_what_is_thawed_without_memory_stops_again() -> None:
    async def main() -> None:
        with guest_by_hand("again", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, action="freeze")
                with hog(web, 40) as process:
                    await stream.wait("reaction", "/web", text="freeze")
                    stream.events.clear()
                    thaw(web)
                    await stream.wait("reaction", "/web", text="freeze")
                    assert frozen(web)
                    assert process.poll() is None

    run(main)


# Two processes: one takes the memory, both are killed. The guest's other group is not.
def test_kill_ends_the_whole_group() -> None:
    async def main() -> None:
        with guest_by_hand("kill", "256M") as guest:
            web, db = make(guest, "/web", "16M"), make(guest, "/db", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, action="kill")
                with running(web, "sleep", "1000") as other, running(db, "sleep", "1000") as third:
                    with hog(web, 40) as process:
                        assert await ended(process) == -9
                        assert await ended(other) == -9
                    await stream.wait("reaction", "/web", text="kill")
                    assert third.poll() is None
                assert [line[0] for line in broker.audit.lines] == ["/web"]

    run(main)


@pytest.mark.parametrize("answer", ["kill", "freeze", "raise", "nothing", ""])
def test_tell_does_what_is_answered_or_else_the_fallback(answer: str) -> None:
    async def main() -> None:
        with guest_by_hand("tell", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=("reaction", "oom_kill")) as stream:
                seconds = 10.0 * min(SLOW, 6) if answer else 1.0
                await react(broker, guest, **{**RAISE, "action": "tell"}, seconds=seconds, fallback="freeze")
                with hog(web, 24) as process:
                    asked = await stream.wait("reaction", "/web", text="answer")
                    assert asked["seconds"] == seconds
                    if answer:
                        await broker.call(guest, "Answer", id=asked["id"], action=answer)
                        await trio.sleep(0.2)
                        with pytest.raises(Refusal, match="nothing is asked"):
                            await broker.call(guest, "Answer", id=asked["id"], action=answer)
                    if answer == "raise":
                        # A second question may follow the first step.
                        with trio.move_on_after(10 * SLOW):
                            while limit_of(web) == 16 * MIB:
                                await trio.sleep(0.05)
                        assert limit_of(web) == 24 * MIB
                    elif answer in ("freeze", ""):
                        why = await stream.wait("reaction", "/web", text="freeze: ")
                        assert why["detail"].endswith("answered" if answer else "no answer")
                        assert frozen(web)
                    else:
                        assert await ended(process, 25) == -9
                        if answer == "nothing":
                            await stream.wait("oom_kill", "/web")
                        else:
                            await stream.wait("reaction", "/web", text="kill: ")

    run(main)


# What got memory while the guest was asked about it is left alone.
@pytest.mark.v1
def test_what_has_memory_again_is_left_alone() -> None:
    async def main() -> None:
        with guest_by_hand("well", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, action="tell", seconds=5, fallback="kill")
                with hog(web, 24) as process:
                    await stream.wait("reaction", "/web", text="answer")
                    give(web, "64M")
                    assert await said(process) == b"done\n"
                    await stream.wait("reaction", "/web", text="it has memory again")
                    assert process.poll() is None

    run(main)


#   /web 24M, reaction: raise     /web/a 16M, reaction: freeze. A hog in /web/a is its own matter.
@pytest.mark.v1
def test_the_group_that_is_meant_is_the_one_at_its_limit() -> None:
    async def main() -> None:
        with guest_by_hand("meant", "256M") as guest:
            web, inner = make(guest, "/web", "24M"), make(guest, "/web/a", "64M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, **RAISE)
                await react(broker, guest, group="/web/a", action="freeze")
                with hog(inner, 40) as process:
                    assert await said(process, 20) == b"done\n"
                assert limit_of(web) > 40 * MIB
                assert not stream.all("reaction", "/web/a")

    run(main)


# Two busy loops on one CPU, in a group with a reaction on the pressure: frozen, which ends it.
def test_pressure_is_reacted_to() -> None:
    async def main() -> None:
        with guest_by_hand("press") as guest:
            web = make(guest, "/web")
            tree = v2_hierarchy()
            require("psi", "" if tree and (tree.group(web) / "cpu.pressure").exists() else "no cpu.pressure")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, on="pressure", threshold="cpu some 100000 1000000", action="freeze")
                cpu = {min(os.sched_getaffinity(0))}
                with running(web, *PYTHON, BUSY, go=False) as one, running(web, *PYTHON, BUSY, go=False) as other:
                    for process in (one, other):
                        os.sched_setaffinity(process.pid, cpu)
                        assert process.stdin is not None
                        process.stdin.write(b"\n")
                        process.stdin.flush()
                    event = await stream.wait("reaction", "/web", 12.0 if SLOW == 1 else 2.0)
                    assert event["key"] == "pressure"
                    assert frozen(web)
                await broker.call(guest, "Forget", group="/web", on="pressure")

    run(main)


# -- what stays -------------------------------------------------------------------------------------------------------


# The mark is the group's: it goes with it, and a group of the same name is another one.
def test_a_group_that_is_made_again_has_no_reaction() -> None:
    async def main() -> None:
        with guest_by_hand("anew", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=("removed", "created")) as stream:
                await react(broker, guest, action="freeze")
                assert kept(web) == ["trusted.nestrt.reactions"]
                remove_groups(web)
                make(guest, "/web", "16M")
                await stream.wait("removed", "/web")
                with trio.fail_after(10 * SLOW):
                    while await listed(broker, guest):
                        await trio.sleep(0.02)
                assert not held(web)
                assert not broker.watcher.reactor.guard.held
                # And one can be registered at once, whatever is still told of the old one.
                await react(broker, guest, action="freeze")
                await trio.sleep(0.3 * SLOW)
                assert await listed(broker, guest) == [{"group": "/web", "on": "oom", "action": "freeze"}]

    run(main)


# Registered for a group that was made a moment ago, in the place of one of the same name: what is still told of the old
# one does not end it.
def test_the_end_of_the_old_group_is_not_the_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_guest, "SETTLE", 0.3 * SLOW**0.5)  # what is told is looked at after the registration

    async def main() -> None:
        with guest_by_hand("old", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, action="freeze")
                for _ in range(3):
                    remove_groups(web)
                    make(guest, "/web", "16M")
                    await react(broker, guest, action="freeze")
                await trio.sleep(1.0 * SLOW**0.5)
                assert await listed(broker, guest) == [{"group": "/web", "on": "oom", "action": "freeze"}]
                with hog(web, 40):
                    await stream.wait("reaction", "/web", text="freeze")

    run(main)


# v1: under another name the group has no reaction, and the kernel's own killer.
@pytest.mark.v1
def test_a_group_that_is_renamed_is_let_go_of() -> None:
    async def main() -> None:
        with guest_by_hand("moved", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker:
                await react(broker, guest, action="freeze")
                assert held(web)
                place = group_file("memory", web, "", "")
                place.rename(place.parent / "other")
                with trio.fail_after(10 * SLOW):
                    while await listed(broker, guest):
                        await trio.sleep(0.02)
                assert "oom_kill_disable 0" in (place.parent / "other/memory.oom_control").read_text()

    run(main)


def test_one_takes_the_place_of_the_other_and_what_was_before_is_put_back() -> None:
    async def main() -> None:
        with guest_by_hand("place", "256M") as guest:
            web = make(guest, "/web", "16M")
            if not has_v1("memory"):
                group_file("memory", web, "x", "memory.high").write_text("15900K")
            async with eye() as broker:
                await react(broker, guest, action="freeze")
                await react(broker, guest, on="pressure", threshold="memory some 100000 1000000", action="kill")
                await react(broker, guest, action="kill")
                found = await listed(broker, guest)
                assert [(one["on"], one["action"]) for one in found] == [("oom", "kill"), ("pressure", "kill")]
                if not has_v1("memory"):
                    assert read("memory", web, "x", "memory.high") == str(15900 << 10)
                    assert read("memory", web, "x", "memory.oom.group") == "1"
                else:
                    assert not held(web)
                await broker.call(guest, "Forget", group="/web", on="oom")
                assert [one["on"] for one in await listed(broker, guest)] == ["pressure"]
                if not has_v1("memory"):
                    assert read("memory", web, "x", "memory.oom.group") == "0"

    run(main)


# A broker that ends in order leaves nothing that waits for it; the next one finds the reactions.
def test_the_next_broker_takes_them_up() -> None:
    async def main() -> None:
        with guest_by_hand("next", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as first:
                await react(first, guest, **RAISE)
                before = await listed(first, guest)
                await first.watcher.stand_down()
                assert not held(web)
            async with eye() as second, subscribed(second, guest, kinds=TELLS) as stream:
                await reactions.restore(second, guest)  # type: ignore[arg-type]
                assert await listed(second, guest) == before
                assert held(web)
                with hog(web, 40) as process:
                    assert await said(process, 20) == b"done\n"
                assert stream.all("reaction", "/web")
                reactions.forget_guest(second, guest)  # type: ignore[arg-type]
                assert not held(web)
                assert not second.watcher.reactor.guests

    run(main)


CHILD = """
import json, sys, trio
sys.path[:0] = json.loads(sys.argv[1])
from nestrt.broker import reacting_acts as acts
from nestrt.broker import reactions, watch_guest
from nestrt.broker.served import Served
from nestrt.probe.facts import primary, read_hierarchies
from support.watching import eye
async def main():
    found = read_hierarchies()
    guest = Served(sys.argv[2], sys.argv[3], found, primary(found))
    async with eye() as broker:
        for reaction in json.loads(sys.argv[4]):
            await broker.call(guest, "React", reaction=reaction)
        process = broker.watcher.reactor.guard.process
        print(process.pid if process else 0, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def broker_process(guest: Served, *given: dict[str, Any]) -> tuple[subprocess.Popen[bytes], int]:
    """A broker in a process of its own, with reactions; and the pid of its guard."""
    found = json.dumps([{"group": "/web", "on": "oom", **one} for one in given])
    paths = json.dumps([str(CHECKOUT), str(CHECKOUT / "tests")])
    argv = [sys.executable, "-c", CHILD, paths, guest.name, guest.limit, found]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


# Killed while a process waits for its decision: the kernel's killer is back, and the process does not wait for ever.
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_nothing_waits_for_a_broker_that_was_killed(number: signal.Signals) -> None:
    async def main() -> None:
        with guest_by_hand("dead", "256M") as guest:
            web = make(guest, "/web", "16M")
            broker, guard = broker_process(guest, {"action": "tell", "seconds": 60, "fallback": "freeze"})
            try:
                assert guard
                assert held(web)
                with hog(web, 40) as process:
                    await trio.sleep(1.0 * SLOW**0.5)
                    assert process.poll() is None
                    broker.send_signal(number)
                    broker.wait()
                    assert await ended(process, 20) == -9
                wait_for(lambda: not held(web), "the kernel's killer")
                wait_for(lambda: not Path(f"/proc/{guard}").exists(), "the guard's end")
                # And what was registered is there for the next one.
                async with eye() as second:
                    await reactions.restore(second, guest)  # type: ignore[arg-type]
                    assert [one["action"] for one in await listed(second, guest)] == ["tell"]
                    assert held(web)
                assert not held(web)
            finally:
                end(broker)

    run(main)


# Both killed at one stroke: v1's tasks wait, and the next broker sees that they do. v2's memory.high stays where it was
# held, which slows the group down at most; it is put back to what it was before, not to what was found.
def test_the_next_broker_finds_what_waits() -> None:
    async def main() -> None:
        with guest_by_hand("both", "256M") as guest:
            web = make(guest, "/web", "16M")
            broker, guard = broker_process(guest, RAISE)
            try:
                # Stopped first, so that neither sees the other's end.
                for pid in (guard, broker.pid):
                    os.kill(pid, signal.SIGSTOP)
                with hog(web, 40) as process:
                    await trio.sleep(0.5)
                    for pid in (guard, broker.pid):
                        os.kill(pid, signal.SIGKILL)
                    broker.wait()
                    await trio.sleep(0.5)
                    assert held(web)
                    if has_v1("memory"):
                        assert process.poll() is None
                    async with eye() as second, subscribed(second, guest, kinds=TELLS) as stream:
                        await reactions.restore(second, guest)  # type: ignore[arg-type]
                        if has_v1("memory"):
                            assert await said(process, 20) == b"done\n"
                            assert stream.all("reaction", "/web")
                        await second.call(guest, "Forget", group="/web", on="oom")
                        assert not held(web)
            finally:
                end(broker)

    run(main)


# The guard alone is killed: the broker starts another one, which serves as well.
def test_a_guard_that_was_killed_is_replaced() -> None:
    async def main() -> None:
        with guest_by_hand("guard", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker:
                await react(broker, guest, action="freeze")
                guard = broker.watcher.reactor.guard
                assert guard.process
                first = guard.process.pid
                os.kill(first, signal.SIGKILL)
                await until(lambda: guard.process and guard.process.pid != first, "another guard", 15)
                assert held(web)
            assert not held(web)

    run(main)


# -- who may ----------------------------------------------------------------------------------------------------------


#   /web of user 1000, /web/a of user 1000: he may have /web killed or frozen, and /web/a raised, which is his to give
def test_limits_are_raised_for_who_gives_them() -> None:
    async def main() -> None:
        with guest_by_hand("who", "256M") as guest:
            web, inner = make(guest, "/web", "64M"), make(guest, "/web/a", "16M")
            make(guest, "/db", "16M")
            for place in (*groups(web), *groups(inner)):
                os.chown(place, 1000, 1000)
            async with eye() as broker:
                with pytest.raises(Refusal) as caught:
                    await react(broker, guest, 1000, **RAISE)
                assert caught.value.name == "NotPermitted"
                for group in ("/db", "/init"):
                    with pytest.raises(Refusal) as caught:
                        await react(broker, guest, 1000, group=group, action="kill")
                    assert caught.value.name == "NotPermitted"
                await react(broker, guest, 1000, group="/web/a", **RAISE)
                await react(broker, guest, 1000, action="kill")
                # Root changes it, and then it is root's.
                await react(broker, guest, action="freeze")
                for refused in (
                    react(broker, guest, 1000, action="kill"),
                    broker.call(guest, "Forget", 1000, group="/web", on="oom"),
                ):
                    with pytest.raises(Refusal) as caught:
                        await refused
                    assert caught.value.name == "NotPermitted"
                assert {one["group"] for one in await listed(broker, guest, 1000)} == {"/web", "/web/a"}
                assert await listed(broker, guest, 1001) == []
                assert len(await listed(broker, guest)) == 2

    run(main)


# Who may not ask may not answer, and another guest's questions are nobody's here.
def test_answers_are_for_those_who_may_ask() -> None:
    async def main() -> None:
        with guest_by_hand("ask", "256M") as guest, guest_by_hand("alien", "256M") as alien:
            web = make(guest, "/web", "16M")
            for place in groups(web):
                os.chown(place, 1000, 1000)
            async with eye() as broker, subscribed(broker, guest, kinds=TELLS) as stream:
                await react(broker, guest, 1000, **{**RAISE, "action": "tell"}, seconds=50, fallback="freeze")
                with hog(web, 24) as process:
                    number = (await stream.wait("reaction", "/web", text="answer"))["id"]
                    for who, user, action, error in (
                        (alien, 0, "kill", "NotFound"), (guest, 1001, "kill", "NotPermitted"),
                        (guest, 1000, "raise", "NotPermitted"), (guest, 1000, "explode", "BadValue"),
                    ):  # fmt: skip
                        with pytest.raises(Refusal) as caught:
                            await broker.call(who, "Answer", user, id=number, action=action)
                        assert caught.value.name == error
                    assert process.poll() is None
                    await broker.call(guest, "Answer", 1000, id=number, action="kill")
                    assert await ended(process) == -9

    run(main)


def test_what_cannot_be_is_refused_and_leaves_nothing() -> None:
    async def main() -> None:
        with guest_by_hand("bad", "256M") as guest:
            web = make(guest, "/web", "16M")
            async with eye() as broker:
                for group in ("/", "/none", "/..", "/web/../init"):
                    with pytest.raises((Refusal, GuestError)):
                        await react(broker, guest, group=group, action="kill")
                with pytest.raises(Refusal) as caught:
                    await broker.call(guest, "Forget", group="/web", on="oom")
                assert caught.value.name == "NotFound"
                with pytest.raises(Refusal) as caught:
                    await react(broker, guest, on="pressure", threshold="x", action="kill")
                assert caught.value.name == "BadValue"
                assert not kept(web)
                assert not broker.watcher.guests
                # More than there may be.
                for number in range(reactions.MOST_REACTIONS + 1):
                    name = f"/g{number}"
                    Path(guest.primary.path(f"{guest.limit}/guest{name}")).mkdir()
                    values = {"on": "pressure", "threshold": "memory some 100000 2000000", "action": "kill"}
                    if number < reactions.MOST_REACTIONS:
                        await react(broker, guest, group=name, **values)
                    else:
                        with pytest.raises(Refusal) as caught:
                            await react(broker, guest, group=name, **values)
                        assert caught.value.name == "QuotaExceeded"

    if v2_hierarchy() is None:
        require("psi", "no v2 tree")
    run(main)


# -- what a guest forges ----------------------------------------------------------------------------------------------


# On a host the broker's word is trusted.*; a guest can set user.* on its own groups, which is nothing.
def test_a_guests_own_attribute_is_nothing_on_a_host() -> None:
    async def main() -> None:
        with guest_by_hand("forge", "256M") as guest:
            web = make(guest, "/web", "16M")
            raw = json.dumps({"v": 1, "reactions": [{"on": "oom", **RAISE, "above": True}]}).encode()
            for place in groups(web):
                os.setxattr(place, "user.nestrt.reactions", raw)
            async with eye() as broker:
                await reactions.restore(broker, guest)  # type: ignore[arg-type]
                assert await listed(broker, guest) == []
                assert not held(web)
                # A guest that is root of the host can write the other one: it is read as strictly as a call.
                unknown = {"v": 1, "reactions": [{"on": "oom", "action": "boom"}]}
                for junk in (b"\xff", b"{}", json.dumps(unknown).encode()):
                    for place in groups(web):
                        os.setxattr(place, "trusted.nestrt.reactions", junk)
                    await reactions.restore(broker, guest)  # type: ignore[arg-type]
                    assert await listed(broker, guest) == []

    run(main)


#   A broker in a user namespace, whose own marks are user.*:
#   /web of user 1000 of the guest: he can write its attribute, so that says what he may ask for and no more
def test_below_a_user_namespace_an_attribute_is_its_owners_wish() -> None:
    async def main() -> None:
        with guest_by_hand("claim", "256M", uids=100_000) as guest:
            mark = os.getxattr(guest.primary.path(guest.limit), "trusted.nestrt")
            os.removexattr(guest.primary.path(guest.limit), "trusted.nestrt")
            os.setxattr(guest.primary.path(guest.limit), "user.nestrt", mark)
            for place in groups(f"{guest.limit}/guest"):
                os.chown(place, 100_000, 100_000)
            for name, owner in (("/web", 101_000), ("/db", 100_000), ("/kill", 101_000)):
                for place in groups(make(guest, name, "16M")):
                    os.chown(place, owner, owner)
            async with eye() as broker:
                await react(broker, guest, group="/db", **RAISE)
                assert set(kept(f"{guest.limit}/guest/db")) == {"user.nestrt.reactions"}
            raises = json.dumps({"v": 1, "reactions": [{"on": "oom", **RAISE}]}).encode()
            kills = json.dumps({"v": 1, "reactions": [{"on": "oom", "action": "kill"}]}).encode()
            os.setxattr(guest.primary.path(f"{guest.limit}/guest/web"), "user.nestrt.reactions", raises)
            os.setxattr(guest.primary.path(f"{guest.limit}/guest/kill"), "user.nestrt.reactions", kills)
            async with eye() as broker:
                await reactions.restore(broker, guest)  # type: ignore[arg-type]
                assert {one["group"] for one in await listed(broker, guest)} == {"/db", "/kill"}

    run(main)


NESTED = """
import json, os, trio
from nestrt.broker import reactions
from support.watching import eye, guest_by_hand, hog, make, said, subscribed
async def main():
    with guest_by_hand("below", "128M") as guest:
        web = make(guest, "/web", "16M")
        async with eye() as broker, subscribed(broker, guest) as stream:
            given = json.loads(os.environ["RAISE"])
            await broker.call(guest, "React", reaction={"group": "/web", "on": "oom", **given})
            make(guest, "/later")
            await stream.wait("created", "/later")
            with hog(web, 40) as process:
                assert await said(process, 20) == b"done\\n"
                await stream.wait("reaction", "/web", text="raise")
                await stream.wait("populated", "/web")
        names = os.listxattr(guest.primary.path(guest.limit + "/guest/web"))
        async with eye() as broker:
            await reactions.restore(broker, guest)
            found = await broker.call(guest, "Reactions")
        print(json.dumps([names, [one["action"] for one in found["reactions"]]]))
trio.run(main)
"""


# A broker one level down, in a user namespace, for a guest of its own: it watches and reacts as the host's does.
def test_the_same_one_level_down(nestrt: Nestrt, python: PythonRoot, guest_name: str) -> None:
    site = str(Path(trio.__file__).parents[1]).replace(str(CHECKOUT), OPT)
    code = f"import sys; sys.path[:0] = ['{OPT}', '{OPT}/tests', '{site}']\n{NESTED}"
    result = nestrt.launch(
        "--name", guest_name, "-m", "256M", *python.options, "--env", f"RAISE={json.dumps(RAISE)}",
        "--env", f"NESTRT_SLOW={SLOW:g}", "--", "/usr/bin/python3", "-c", code, timeout=60,
    ).ok()  # fmt: skip
    assert json.loads(result.out) == [["user.nestrt.reactions"], ["raise"]], result


# Hundreds of groups without any reaction, and one: found by what it costs to look at each once.
@pytest.mark.slow_on_vm
def test_looking_for_them_is_cheap() -> None:
    async def main() -> None:
        with guest_by_hand("scan", "256M") as guest:
            for number in range(300):
                Path(guest.primary.path(f"{guest.limit}/guest/g{number}")).mkdir()
            async with eye() as broker:
                began = time.process_time()
                await reactions.restore(broker, guest)  # type: ignore[arg-type]
                assert time.process_time() - began < 1.0
                assert not broker.watcher.guests

    run(main)


#   /lower            a guest of the guest: a reaction of the guest's own
#     └ guest/web     one of that guest's, for the level that has made it
#   /alice/web        below a group with a mark of the other kind, which anybody can set on his own group
def test_those_of_a_guest_in_the_guest_are_left_to_it() -> None:
    def kept_on(guest: Served, group: str) -> None:
        make(guest, group)
        reaction = parse({**dict.fromkeys(("threshold", "step", "most", "seconds", "fallback")),
                          "on": "oom", "action": "kill"}, group)  # fmt: skip
        guest.now(lambda tree: reactions.keep(guest, tree, group, [(reaction, {})]))

    async def main() -> None:
        with guest_by_hand("upper", "256M") as guest:
            for group in ("/lower", "/lower/guest", "/lower/guest/web", "/alice", "/alice/web"):
                kept_on(guest, group)
            top, mine = f"{guest.limit}/guest", guest.known.attribute
            os.setxattr(guest.primary.path(f"{top}/lower"), mine, b"{}")
            if mine == TRUSTED:
                os.setxattr(guest.primary.path(f"{top}/alice"), USER, b"{}")
            async with eye() as broker:
                await reactions.restore(broker, guest)  # type: ignore[arg-type]
                armed = [group for group, _ in broker.watcher.reactor.of(guest)]
                assert sorted(armed) == ["/alice", "/alice/web", "/lower"]

    run(main)
