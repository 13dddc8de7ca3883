"""Events of a guest's groups, from a real kernel: nestrt/broker/watch*.py and events.py, without the daemon.

The guest is made by hand (support/watching.py); what happens in it is what guests do, by their own hand.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from nestrt.broker import events, watch_guest, watch_pressure, watch_tree
from nestrt.broker.refusal import Refusal
from nestrt.guest.client import GuestError
from support.byhand import remove_groups
from support.hostside import cpus_online, group_file, has_v1, hierarchies, v2_hierarchy
from support.need import SLOW, require
from support.watching import (
    HOG,
    PYTHON,
    Stream,
    ended,
    eye,
    guest_by_hand,
    hog,
    make,
    memory_limit,
    running,
    subscribed,
    until,
)

BUSY = "import sys\nsys.stdin.readline()\nwhile True: pass"


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main)


def watches() -> int:
    """How many inotify watches this process has: proc_pid_fdinfo(5)."""
    count = 0
    for fd in os.listdir("/proc/self/fdinfo"):
        try:
            count += Path("/proc/self/fdinfo", fd).read_text().count("inotify wd:")
        except OSError:
            continue
    return count


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# A guest; /web and what is below are made and removed, in every hierarchy.
def test_groups_that_come_and_go_are_told_of_once_each() -> None:
    async def main() -> None:
        with guest_by_hand("tree") as guest:
            async with eye() as broker, subscribed(broker, guest, kinds=("created", "removed")) as stream:
                make(guest, "/web")
                make(guest, "/web/a")
                make(guest, "/web/a/b")
                await stream.wait("created", "/web/a/b")
                remove_groups(f"{guest.limit}/guest/web/a")
                await stream.wait("removed", "/web/a")
                make(guest, "/web/a")
                await stream.wait("created", "/web/a")
                remove_groups(f"{guest.limit}/guest/web")
                await stream.wait("removed", "/web")
                await trio.sleep(0.3)
                told = [(event["kind"], event["group"]) for event in stream.events]
                assert told == [
                    ("created", "/web"), ("created", "/web/a"), ("created", "/web/a/b"),
                    ("removed", "/web/a/b"), ("removed", "/web/a"), ("created", "/web/a"),
                    ("removed", "/web/a"), ("removed", "/web"),
                ]  # fmt: skip

    run(main)


# A group that is in one hierarchy alone, made by hand, is a group too.
def test_a_group_of_one_hierarchy_is_told_of() -> None:
    async def main() -> None:
        with guest_by_hand("one") as guest:
            async with eye() as broker, subscribed(broker, guest, kinds=("created", "removed")) as stream:
                for number, hierarchy in enumerate(hierarchies()):
                    place = hierarchy.group(f"{guest.limit}/guest/g{number}")
                    place.mkdir()
                    await stream.wait("created", f"/g{number}")
                    place.rmdir()
                    await stream.wait("removed", f"/g{number}")
                assert len(stream.events) == 2 * len(hierarchies())

    run(main)


# v1's groups can be renamed, which is one group less and another one more.
@pytest.mark.v1
def test_a_group_that_is_renamed_is_told_of() -> None:
    async def main() -> None:
        with guest_by_hand("rename", "64M") as guest:
            top = group_file("memory", f"{guest.limit}/guest", "", "")
            (top / "old").mkdir()
            async with eye() as broker, subscribed(broker, guest, kinds=("created", "removed", "oom")) as stream:
                (top / "old").rename(top / "new")
                await stream.wait("created", "/new")
                assert [(event["kind"], event["group"]) for event in stream.events] == [
                    ("removed", "/old"),
                    ("created", "/new"),
                ]
                (top / "new/memory.limit_in_bytes").write_text("16M")
                with running(f"{guest.limit}/guest/init", *PYTHON, HOG, "40", go=False) as process:
                    (top / "new/cgroup.procs").write_text(str(process.pid))
                    assert process.stdin is not None
                    process.stdin.write(b"\n")
                    process.stdin.flush()
                    assert await ended(process) == -9
                await stream.wait("oom", "/new")

    run(main)


# Names: blanks, what a terminal obeys, no UTF-8, all of 255 bytes. As in every reply, undecodable bytes are surrogates.
def test_names_are_told_as_they_are() -> None:
    names = [b"a b", b"\x1b[31m", b"\xff\xfe", b"x" * 255, "µ".encode(), b"web\\n", b"-rf"]

    async def main() -> None:
        with guest_by_hand("names") as guest:
            top = (v2_hierarchy() or hierarchies()[0]).group(f"{guest.limit}/guest")
            async with eye() as broker, subscribed(broker, guest) as stream:
                for name in names:
                    os.mkdir(os.path.join(os.fsencode(top), name))
                for name in names:
                    await stream.wait("created", "/" + os.fsdecode(name))
                for name in names:
                    os.rmdir(os.path.join(os.fsencode(top), name))
                for name in names:
                    await stream.wait("removed", "/" + os.fsdecode(name))

    run(main)


#   /web 24M            a hog in /web/b: /web is out of memory, and nothing below it by itself
#   ├── a 16M           a hog in /web/a: /web/a is, and /web is not
#   └── b
def test_running_out_of_memory_is_told_of_the_group_whose_limit_it_is() -> None:
    async def main() -> None:
        with guest_by_hand("oom", "64M") as guest:
            web, a, b = make(guest, "/web", "24M"), make(guest, "/web/a", "16M"), make(guest, "/web/b")
            assert web
            async with eye() as broker, subscribed(broker, guest, "/web", ("oom", "oom_kill")) as stream:
                for group, meant, victim in ((a, "/web/a", "/web/a"), (b, "/web", "/web/b")):
                    stream.events.clear()
                    with hog(group, 48) as process:
                        assert await ended(process) == -9
                        oom = await stream.wait("oom", meant)
                        kill = await stream.wait("oom_kill", victim)
                        await trio.sleep(0.2 * SLOW)
                    assert oom["count"] >= 1
                    assert kill["count"] >= 1
                    assert {event["group"] for event in stream.all("oom")} == {meant}
                    assert {event["group"] for event in stream.all("oom_kill")} == {victim}

    run(main)


# The guest's own limit: told of "/". A removed v1 group tells its listeners once more, which is no event.
def test_the_guests_own_limit_is_told_of_its_root() -> None:
    async def main() -> None:
        with guest_by_hand("own", "24M") as guest:
            web = make(guest, "/web", "20M")
            async with eye() as broker, subscribed(broker, guest, kinds=("oom",)) as stream:
                remove_groups(web)
                web = make(guest, "/web")
                await trio.sleep(0.3)
                assert not stream.events
                with hog(web, 48) as process:
                    assert await ended(process) == -9
                    await stream.wait("oom", "/")
                    await trio.sleep(0.2)
                assert {event["group"] for event in stream.events} == {"/"}

    run(main)


#   /web    pids.max 1: a shell in it cannot fork
def test_a_refused_fork_is_told_of() -> None:
    async def main() -> None:
        with guest_by_hand("pids") as guest:
            web = make(guest, "/web")
            group_file("pids", web, "pids.max", "pids.max").write_text("1")
            async with eye() as broker, subscribed(broker, guest, kinds=("limit",)) as stream:
                script = "read line; /bin/true & wait; true"
                with running(web, "/bin/sh", "-c", script) as process:
                    await ended(process)
                event = await stream.wait("limit", "/web")
                assert event["key"] in ("pids.events", "pids.events.local")
                assert event["count"] >= 1

    run(main)


# Processes come to /web/a and go; what is below fills the groups above too. Then it is frozen and thawed.
def test_filling_and_freezing_is_told_of() -> None:
    async def main() -> None:
        with guest_by_hand("states") as guest:
            web = make(guest, "/web")
            inner = make(guest, "/web/a")
            kinds = ("populated", "empty", "frozen", "thawed")
            async with eye() as broker, subscribed(broker, guest, "/web", kinds) as stream:
                with running(inner, "sleep", "1000"):
                    await stream.wait("populated", "/web")
                    await stream.wait("populated", "/web/a")
                    state = group_file("freezer", web, "freezer.state", "x") if has_v1("freezer") else None
                    state = state or v2_hierarchy().group(web) / "cgroup.freeze"  # type: ignore[union-attr]
                    state.write_text("FROZEN" if state.name == "freezer.state" else "1")
                    await stream.wait("frozen", "/web")
                    state.write_text("THAWED" if state.name == "freezer.state" else "0")
                    await stream.wait("thawed", "/web")
                await stream.wait("empty", "/web/a")
                await stream.wait("empty", "/web")
                assert {event["group"] for event in stream.events} == {"/web", "/web/a"}

    run(main)


# The level above takes a CPU from the guest, and gives it back: what is CPU 0 inside may be another one.
def test_other_cpus_are_told_of_in_the_guests_numbers() -> None:
    async def main() -> None:
        online = sorted(os.sched_getaffinity(0))
        require("two CPUs", "" if cpus_online() > 1 else "this host has one")
        with guest_by_hand("cpus") as guest:
            files = [
                group_file("cpuset", group, "cpuset.cpus", "cpuset.cpus")
                for group in (f"{guest.limit}/guest/init", f"{guest.limit}/guest", guest.limit)
            ]

            def give(cpus: str) -> None:
                # v1 wants a child to have no more than its parent at any time.
                for file in files if cpus == str(online[1]) else files[::-1]:
                    if has_v1("cpuset") or file == files[-1]:
                        file.write_text(cpus)

            async with eye() as broker, subscribed(broker, guest, kinds=("cpus",)) as stream:
                give(str(online[1]))
                event = await stream.wait("cpus", "/")
                assert event["detail"] == "0 of 1"
                stream.events.clear()
                give(f"{online[0]},{online[1]}")
                event = await stream.wait("cpus", "/", text="of 2")
                assert event["detail"] == "0-1 of 2"

    run(main)


# Two busy loops on one CPU stall each other: PSI says so. One loop alone does not.
def test_pressure_is_told_of() -> None:
    async def main() -> None:
        with guest_by_hand("psi") as guest:
            web = make(guest, "/web")
            tree = v2_hierarchy()
            require("psi", "" if tree and (tree.group(web) / "cpu.pressure").exists() else "no cpu.pressure")
            async with eye() as broker, subscribed(broker, guest, "/web", ("pressure",)) as stream:
                cpu = {min(os.sched_getaffinity(0))}
                with running(web, *PYTHON, BUSY, go=False) as one, running(web, *PYTHON, BUSY, go=False) as other:
                    for process in (one, other):
                        os.sched_setaffinity(process.pid, cpu)
                        assert process.stdin is not None
                        process.stdin.write(b"\n")
                        process.stdin.flush()
                    event = await stream.wait("pressure", "/web", 12.0 if SLOW == 1 else 2.0)
                assert event["key"] == "cpu.pressure"
                assert event["count"] > 0
                assert event["detail"].startswith("some avg10=")

    run(main)


# v2: the files of a controller come to the child groups when their parent gives it to them.
@pytest.mark.v2
def test_a_controller_that_is_given_later_is_followed() -> None:
    async def main() -> None:
        with guest_by_hand("later", "64M") as guest:
            top = hierarchies()[0].group(f"{guest.limit}/guest")
            (top / "outer/web").mkdir(parents=True)
            async with eye() as broker, subscribed(broker, guest, kinds=("oom_kill",)) as stream:
                (top / "outer/cgroup.subtree_control").write_text("+memory")
                await trio.sleep(0.2 * SLOW)
                web = f"{guest.limit}/guest/outer/web"
                memory_limit(web, "16M")
                with hog(web, 48) as process:
                    assert await ended(process) == -9
                await stream.wait("oom_kill", "/outer/web")

    run(main)


# Two guests: each hears of its own groups only, and of the group that was asked for.
def test_others_events_are_not_heard() -> None:
    async def main() -> None:
        with guest_by_hand("mine") as mine, guest_by_hand("other") as other:
            make(mine, "/web")
            async with eye() as broker, subscribed(broker, mine, "/web") as narrow, subscribed(broker, mine) as wide:
                make(other, "/secret")
                make(mine, "/db")
                make(mine, "/web/a")
                await narrow.wait("created", "/web/a")
                await wide.wait("created", "/db")
                await trio.sleep(0.3)
                assert {event["group"] for event in narrow.events} == {"/web/a"}
                assert "/secret" not in {event["group"] for event in wide.events}

    run(main)


# A second subscriber comes while groups are being made: neither misses one, and the newcomer is not told of old ones.
def test_a_newcomer_takes_nothing_from_others() -> None:
    async def main() -> None:
        with guest_by_hand("new") as guest:
            async with eye() as broker, subscribed(broker, guest, kinds=("created",)) as first:
                for number in range(20):
                    make_one(guest.limit, f"g{number}")
                async with subscribed(broker, guest, kinds=("created",)) as second:
                    make_one(guest.limit, "last")
                    await first.wait("created", "/last")
                    await second.wait("created", "/last")
                    assert sorted(e["group"] for e in first.events) == sorted(
                        ["/last", *(f"/g{number}" for number in range(20))]
                    )
                    assert len(first.events) == 21
                    assert {e["group"] for e in second.events} == {"/last"}

    run(main)


# Removed and made again between two looks, and somebody looks: the new one is watched, and not the old one's inode.
def test_a_group_that_was_made_again_is_watched_anew() -> None:
    async def main() -> None:
        with guest_by_hand("anew") as guest:
            async with eye() as broker, subscribed(broker, guest) as first:
                web = make(guest, "/web")
                await first.wait("created", "/web")
                await trio.sleep(0.2)
                first.events.clear()
                remove_groups(web)
                make(guest, "/web")
                async with subscribed(broker, guest) as second:
                    await first.wait("removed", "/web")
                    await first.wait("created", "/web")
                    await trio.sleep(0.2)
                    assert not second.all("created")
                    with running(web, "sleep", "1000"):
                        await first.wait("populated", "/web")
                        await second.wait("populated", "/web")
                watched = broker.watcher.guests[guest.limit].watched
                await until(lambda: watches() == watched.watches, "what the second one wanted to be let go of")

    run(main)


def make_one(limit: str, name: str) -> None:
    """A group in one hierarchy: quickly."""
    (v2_hierarchy() or hierarchies()[0]).group(f"{limit}/guest/{name}").mkdir()


def test_nothing_is_held_when_nobody_listens() -> None:
    async def main() -> None:
        with guest_by_hand("idle") as guest:
            guest.open()
            async with eye() as broker:
                before, files = watches(), descriptors()
                async with subscribed(broker, guest) as stream:
                    web = make(guest, "/web")
                    await stream.wait("created", "/web")
                    assert watches() > before
                    assert descriptors() > files
                await until(lambda: not broker.watcher.guests, "nobody to be watched")
                # The one inotify descriptor stays.
                await until(lambda: watches() == before and descriptors() <= files + 1, "all to be let go of")
                # What was removed meanwhile leaves nothing either.
                async with subscribed(broker, guest) as stream:
                    remove_groups(web)
                    await stream.wait("removed", "/web")
                    with_init = watches()
                    web = make(guest, "/web")
                    await stream.wait("created", "/web")
                    remove_groups(web)
                    await until(lambda: watches() == with_init, "nothing of it to be watched")
                await until(lambda: watches() == before, "all to be let go of")

    run(main)


def test_what_ends_with_the_guest() -> None:
    async def main() -> None:
        with guest_by_hand("end") as guest:
            async with eye() as broker:
                before = watches()
                async with subscribed(broker, guest) as stream:
                    broker.watcher.forget_guest(guest)
                    await stream.wait("removed", "/")
                    assert watches() == before

    run(main)


def test_what_is_asked_wrongly_is_refused() -> None:
    async def main() -> None:
        with guest_by_hand("wrong") as guest:
            async with eye() as broker:

                async def refused(**parameters: object) -> str:
                    stream = Stream()
                    request = broker.request(guest, "Events", 0, parameters, stream.take)
                    with pytest.raises((Refusal, GuestError)) as caught:
                        await events.METHODS["Events"](request)
                    return str(caught.value)

                with pytest.raises(Refusal) as caught:
                    await broker.call(guest, "Events")
                assert caught.value.name == "org.varlink.service.ExpectedMore"
                assert "burnt" in await refused(kinds=["burnt"])
                await refused(group="/none")
                await refused(group="../..")
                assert not broker.watcher.guests

    run(main)


# As many streams as a guest may have; the last ones are for its root.
def test_streams_are_counted() -> None:
    async def main() -> None:
        with guest_by_hand("many") as guest:
            async with eye() as broker, trio.open_nursery() as nursery:
                refusals: list[Refusal] = []

                async def listen(user: int) -> None:
                    try:
                        request = broker.request(guest, "Events", user, {"kinds": ["lost"]}, Stream().take)
                        await events.METHODS["Events"](request)
                    except Refusal as refusal:
                        refusals.append(refusal)

                for _ in range(events.MOST_SUBSCRIPTIONS):
                    nursery.start_soon(listen, 1000)
                await until(lambda: len(refusals) >= events.MOST_SUBSCRIPTIONS - events.FOR_USERS, "their refusals")
                await trio.sleep(0.2)
                assert len(refusals) == events.MOST_SUBSCRIPTIONS - events.FOR_USERS
                for _ in range(events.MOST_SUBSCRIPTIONS):
                    nursery.start_soon(listen, 0)
                await until(lambda: len(refusals) >= events.MOST_SUBSCRIPTIONS, "root's refusals")
                await trio.sleep(0.2)
                assert len(refusals) == events.MOST_SUBSCRIPTIONS
                assert {refusal.name for refusal in refusals} == {"QuotaExceeded"}
                nursery.cancel_scope.cancel()

    run(main)


def test_watches_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with guest_by_hand("room") as guest:
            async with eye() as broker:
                before = watches()
                for module, name, most in (
                    (watch_tree, "MOST_GROUPS", 1), (watch_tree, "MOST_WATCHES", 3),
                    (watch_pressure, "MOST_TRIGGERS", 1), (watch_tree, "MOST_EVENTFDS", 0),
                ):  # fmt: skip
                    if name == "MOST_EVENTFDS" and not has_v1("memory"):
                        continue
                    with monkeypatch.context() as patch:
                        patch.setattr(module, name, most)
                        request = broker.request(guest, "Events", 0, {}, Stream().take)
                        with pytest.raises(Refusal) as caught:
                            await events.METHODS["Events"](request)
                        assert caught.value.name == "QuotaExceeded", name
                        assert caught.value.remedy
                        assert watches() == before
                        assert not broker.watcher.guests

    run(main)


# Two subscribers of one guest; one never reads. The other hears all, and what is kept for the first is bounded.
def test_one_who_never_reads_is_waited_for_by_nobody() -> None:
    async def main() -> None:
        with guest_by_hand("slow") as guest:
            async with eye() as broker, trio.open_nursery() as nursery:

                begun = trio.Event()

                async def never(reply: dict[str, Any]) -> None:
                    if reply["event"]["kind"] != "listening":
                        await trio.sleep_forever()
                    begun.set()

                request = broker.request(guest, "Events", 0, {"kinds": ["created"]}, never)
                nursery.start_soon(events.METHODS["Events"], request)
                await begun.wait()
                async with subscribed(broker, guest, kinds=("created",)) as stream:
                    await trio.sleep(0.1)
                    many = events.LONGEST + 50
                    for number in range(many):
                        make_one(guest.limit, f"g{number}")
                        if number % 50 == 0:
                            await trio.sleep(0.01)
                    await stream.wait("created", f"/g{many - 1}", 20)
                    assert len(stream.events) == many
                    slow = max(events._subscriptions[guest], key=lambda one: one.lost)
                    assert len(slow.queue) < events.LONGEST
                    assert slow.lost == many - len(slow.queue) - 1
                nursery.cancel_scope.cancel()

    run(main)


FLOOD = """
import os, sys, time
end = time.process_time() + float(sys.argv[2])
while time.process_time() < end:
    for number in range(20):
        os.mkdir(f"{sys.argv[1]}/g{number}")
    for number in range(20):
        os.rmdir(f"{sys.argv[1]}/g{number}")
"""


# One guest makes and removes groups as fast as the kernel can. Another one is still told at once, the broker's loop
# does not stand still, and the one that did it hears that something was lost, and is watched again afterwards.
@pytest.mark.slow_on_vm
def test_a_guest_at_full_speed_costs_the_others_nothing() -> None:
    async def main() -> None:
        with guest_by_hand("wild") as wild, guest_by_hand("calm") as calm:
            place = str((v2_hierarchy() or hierarchies()[0]).group(f"{wild.limit}/guest"))
            async with eye() as broker, subscribed(broker, wild) as noise, subscribed(broker, calm) as quiet:
                before = watches()
                process = subprocess.Popen([*PYTHON, FLOOD, place, "3"])
                gaps, late, number, arrived = [0.0], [0.0], 0, 0
                while process.poll() is None:
                    began = time.monotonic()
                    await trio.sleep(0.01)
                    gaps.append(time.monotonic() - began - 0.01)
                    arrived = max(arrived, broker.watcher.guests[wild.limit].arrived)
                    if len(gaps) % 20 == 0:
                        number += 1
                        began = time.monotonic()
                        make_one(calm.limit, f"c{number}")
                        await quiet.wait("created", f"/c{number}")
                        late.append(time.monotonic() - began)
                assert process.returncode == 0
                await noise.wait("lost")
                assert not quiet.all("lost")
                assert arrived < watch_guest.FLOOD + 1000  # more is not even read
                assert sorted(late)[len(late) // 2] < 1.0
                assert max(late) < 5.0
                assert sorted(gaps)[len(gaps) * 9 // 10] < 0.1
                # Looked over again: nothing is left of what was, and what comes is told of.
                make_one(wild.limit, "after")
                await noise.wait("created", "/after")
                watched = broker.watcher.guests[wild.limit].watched
                await until(lambda: set(watched.groups) == {"/", "/init", "/after"}, "no other", 20)
                quiet_ones = broker.watcher.guests[calm.limit].watched
                assert watches() == watched.watches + quiet_ones.watches > before

    run(main)


# The kernel's queue holds 16384 events; while the broker does not come to read it, more happen.
@pytest.mark.slow_on_vm
def test_a_full_queue_is_told_to_all_and_looked_over() -> None:
    async def main() -> None:
        with guest_by_hand("full") as one, guest_by_hand("too") as other:
            limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
            require("a short queue", "" if limit <= 1 << 15 else f"fs.inotify.max_queued_events is {limit}")
            top = (v2_hierarchy() or hierarchies()[0]).group(f"{one.limit}/guest")
            async with eye() as broker, subscribed(broker, one) as first, subscribed(broker, other) as second:
                for _ in range(limit // 2 + 100):
                    (top / "x").mkdir()
                    (top / "x").rmdir()
                (top / "kept").mkdir()
                make_one(other.limit, "kept")
                await first.wait("lost")
                await second.wait("lost")
                await first.wait("created", "/kept")
                await second.wait("created", "/kept")

    run(main)
