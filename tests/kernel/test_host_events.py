"""``nestrt events``, the host's form: real kills, limits, freezes, pressure, groups and guests, each seen once.

/nestrt/one              limit group: 256M, 40 processes
  guest                  "/" of level 1
    web                  16M: a process is killed
    bomb                 3 processes: a fork is refused
    ice                  frozen and thawed
    fleeting             made and removed
    nestrt/two           a guest of the guest's own
      guest/job          16M: a process is killed there
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nestrt.host.event import USUAL
from nestrt.host.follow import Follower
from nestrt.kernel import inotify
from nestrt.probe.facts import read_hierarchies
from support.guests import directory, inside, nested
from support.hostside import group_file, guest_root, limit_group, v2_hierarchy
from support.need import SLOW, require
from support.nest import nest
from support.rootfs import PythonRoot
from support.runner import Nestrt, wait_for
from support.stream import Stream, is_listening

POLICY = '[level]\nmax_level = 2\n[user]\ncapabilities = "all"\n'
HOG = "exec dd if=/dev/zero of=/dev/null bs=60M count=1"


@pytest.fixture
def follow(nestrt: Nestrt, tmp_path: Path) -> Iterator[Callable[..., Stream]]:
    streams = []

    def start(*options: str | os.PathLike[str]) -> Stream:
        file = tmp_path / f"events{len(streams)}"
        with file.open("wb") as out, (tmp_path / "errors").open("ab") as errors:
            process = nestrt.start("events", "--follow", "--format", "json", *options, stdout=out, stderr=errors)
        streams.append(Stream(process, file))
        wait_for(lambda: is_listening(process.pid), "everything to be watched", 40)
        return streams[-1]

    yield start
    for stream in streams:
        if stream.process.poll() is None:
            stream.process.terminate()
            assert stream.process.wait(10 * SLOW) == 0
    assert (tmp_path / "errors").read_text() == ""


def enter(controller: str, group: str, command: str) -> str:
    """A shell command that runs *command* in the guest's group."""
    return "sh -c " + shlex.quote(f"echo $$ > {directory(controller, group)}/cgroup.procs; {command}")


def limited(group: str) -> str:
    """Make a group with 16M of memory, and have a process in it want more, once there is a line to read."""
    limit = inside("memory", group, "memory.limit_in_bytes", "memory.max")
    return f"mkdir {directory('memory', group)}; echo 16M > {limit}; read line; {enter('memory', group, HOG)}"


def freeze(group: str) -> str:
    tree = v2_hierarchy()
    assert tree is not None
    place = tree.group(group)
    return f"mkdir {place}; echo 1 > {place}/cgroup.freeze; read line; echo 0 > {place}/cgroup.freeze"


def fleeting(count: int) -> str:
    place = directory("memory", "/fleeting")
    return f"for i in $(seq {count}); do mkdir {place}$i; rmdir {place}$i; done"


def bomb() -> str:
    forks = enter("pids", "/bomb", "for i in 1 2 3 4 5; do sleep 1000 & done; wait")
    return f"mkdir {directory('pids', '/bomb')}; echo 3 > {inside('pids', '/bomb', 'pids.max', 'pids.max')}; {forks}"


def script(python: PythonRoot) -> str:
    inner = f"{limited('/job')}; read line || true"  # so that its counters can be read
    two = nested(python, "--rm --name two --userns none --capabilities all", f"sh -c {shlex.quote(inner)}")
    return "\n".join((limited("/web"), bomb(), freeze("/ice"), fleeting(5), two, "read line || true"))


def one(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(events) == 1, events
    return events[0]


def check(told: list[dict[str, Any]], guest_name: str) -> None:
    """Each thing of the scene was told once, with all that there is to say of it."""
    root, limit = guest_root(guest_name), limit_group(guest_name)
    inner, two = f"{root}/nestrt/two", f"{guest_name}/two"

    def seen(kind: str, path: str) -> dict[str, Any]:
        return one([event for event in told if event["kind"] == kind and event["path"] == path])

    for name, path, level in ((guest_name, limit, 1), (two, inner, 2)):
        for kind in ("started", "ended", "created", "removed"):
            event = seen(kind, path)
            assert event["level"] == (1 if kind == "created" and level == 2 else level)
            assert event["name"] in (name, guest_name)
        assert seen("started", path)["claim"] is (level == 2)
    assert "by launch: sh -c" in seen("started", inner)["detail"]
    for path, name, group in ((f"{root}/web", guest_name, "/web"), (f"{inner}/guest/job", two, "/job")):
        kill = seen("oom_kill", path)
        assert (kill["name"], kill["group"], kill["count"]) == (name, group, 1)
        assert (kill["task"], kill["binds"], kill["source"]) == ("dd", path, "kernel")
        assert kill["pid"] > 0
        # The kernel may come to it more than once before the process has gone: mm/memcontrol.c, mem_cgroup_oom().
        assert {e["key"] for e in told if (e["kind"], e["path"]) == ("oom", path)} == {"memory.max"}
        hits = [event for event in told if (event["kind"], event["path"]) == ("limit", path)]
        assert {event["key"] for event in hits} == {"memory.max"}
        assert sum(event["count"] for event in hits) == hits[-1]["total"]
    refused = one([event for event in told if event["key"] == "pids.max"])
    assert (refused["name"], refused["kind"]) == (guest_name, "limit")
    assert refused["count"] == refused["total"] >= 1
    assert seen("frozen", f"{root}/ice")["time"] < seen("thawed", f"{root}/ice")["time"]
    for number in range(1, 6):
        came, went = (seen(kind, f"{root}/fleeting{number}") for kind in ("created", "removed"))
        assert came["group"] == went["group"] == f"/fleeting{number}"


# The scene above, followed from before the guest is there until it has gone.
def test_each_thing_is_seen_once(
    nestrt: Nestrt, follow: Callable[..., Stream], python: PythonRoot, guest_name: str, tmp_path: Path
) -> None:
    policy = tmp_path / "two.toml"
    policy.write_text(POLICY)
    record = tmp_path / "record"
    began = time.time()
    stream = follow("--record", str(record), guest_name)
    mine = follow(f"{guest_name}/two")
    text = nestrt.start("events", "-f", "--kinds", "oom_kill", guest_name)
    wait_for(lambda: is_listening(text.pid), "another one to watch", 40)
    guest = nestrt.start(
        "launch", "--rm", "--policy", policy, "--name", guest_name, *python.options,
        "--mount", "type=tmpfs,target=/tmp", "-m", "256M", "--pids", "40", "--", "sh", "-c", script(python),
        stdin=subprocess.PIPE,
    )  # fmt: skip
    assert guest.stdout is not None
    assert guest.stdin is not None
    root, limit = guest_root(guest_name), limit_group(guest_name)
    inner, two = f"{root}/nestrt/two", f"{guest_name}/two"

    def go_on_after(kind: str, path: str) -> None:
        # Who follows may be late: v1 tells of an OOM only whoever listens by then.
        assert guest.stdin is not None
        stream.wait(kind, path=path, timeout=40)
        guest.stdin.write(b"\n")
        guest.stdin.flush()

    go_on_after("created", f"{root}/web")
    go_on_after("frozen", f"{root}/ice")
    stream.wait("thawed", path=f"{root}/ice")
    go_on_after("created", f"{inner}/guest/job")
    for kind in ("oom", "oom_kill"):
        stream.wait(kind, path=f"{inner}/guest/job")
    go_on_after("limit", f"{inner}/guest/job")
    stream.wait("ended", name=two)
    mine.wait("ended", name=two)
    stream.wait("limit", name=guest_name, key="pids.max")
    stream.wait("limit", path=f"{root}/web", key="memory.max")
    for kind in ("oom", "oom_kill"):
        stream.wait(kind, path=f"{root}/web")
    assert text.stdout is not None
    lines = [text.stdout.readline().decode() for _ in range(2)]
    guest.stdin.close()
    stream.wait("removed", path=limit)
    assert guest.wait(20 * SLOW) == 0, guest.stderr

    told = [event for event in stream.all() if (event["name"] or "").split("/")[0] == guest_name]
    assert not stream.all("lost")
    assert all(began <= event["time"] <= time.time() for event in told)

    check(told, guest_name)
    assert {event["name"] for event in mine.all()} == {two}

    text.terminate()
    out, err = text.communicate(timeout=10 * SLOW)
    assert (text.returncode, out, err) == (0, b"", b"")
    assert [line.split()[1:4] for line in lines] == [
        ["oom_kill", guest_name, "/web:"], ["oom_kill", two, "(claim)"],
    ]  # fmt: skip
    assert f"was killed: {root}/web had no memory left" in lines[0]

    # What has been: from the kernel's log, now that the guest has gone, and from what was recorded.
    kernel = history(nestrt, guest_name, "--since", "10m", "--directory", str(tmp_path / "none"))
    assert [(e["kind"], e["name"], e["path"]) for e in kernel] == [
        ("oom_kill", guest_name, f"{root}/web"), ("oom_kill", two, f"{inner}/guest/job"),
    ]  # fmt: skip
    kills = {event["path"]: event["time"] for event in told if event["kind"] == "oom_kill"}
    assert all(abs(event["time"] - kills[event["path"]]) < 10 * SLOW for event in kernel)
    stream.process.terminate()
    assert stream.process.wait(10 * SLOW) == 0
    both = history(nestrt, guest_name, "--since", "10m", "--directory", str(record))
    assert both == sorted(told, key=lambda event: event["time"])
    before = nestrt.run("events", guest_name, "--until", "10m", "--directory", record)
    assert (before.rc, before.out) == (3, "")


def history(nestrt: Nestrt, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in nestrt.run("events", "--format", "json", *options).ok().out.splitlines()]


# A nest of guests is made, looked over again, and removed: all of it is told once, and nothing is kept of it.
@pytest.mark.slow_on_vm
def test_nothing_is_kept_of_what_has_gone() -> None:
    parent = f"/nestrt-evnest-{os.getpid()}"
    follower = Follower(read_hierarchies(), USUAL, wanted=lambda guest: guest.path.startswith(parent))
    tree = follower.tree
    before = len(os.listdir("/proc/self/fd"))

    def told(expected: int) -> Counter[str]:
        """What is told until it is as much as *expected*, and a moment longer."""
        found: Counter[str] = Counter()
        end = time.monotonic() + (20 * SLOW if expected else 0.0)
        while found.total() < expected and time.monotonic() < end:
            found.update(event.kind for event in follower.step(0.5) if event.path.startswith(parent))
        end = time.monotonic() + 0.5 * SLOW**0.5
        while (left := end - time.monotonic()) > 0:
            found.update(event.kind for event in follower.step(left) if event.path.startswith(parent))
        return found

    with nest(10, 3, processes=2, parent=parent) as made:
        groups = len({os.path.relpath(path, h.mountpoint) for h in made.hierarchies for path in made.directories()
                      if path.startswith(h.mountpoint)}) - 1  # fmt: skip
        assert told(groups + 2) == {"created": groups, "started": 2}
        tree.cover("", time.time())
        tree.cover(f"{parent}/g0000", time.time())
        assert not told(0)
        assert len([path for path in tree.groups if path.startswith(parent)]) == groups
    assert told(groups + 2) == {"removed": groups, "ended": 2}
    assert not any(path.startswith(parent) for _, path in tree.places)
    for kept in (tree.groups, tree.guests.known, tree.lives.populated, tree._counts, tree._taken):
        assert not any(path.startswith(parent) and kept[path] for path in kept), kept
    assert len(os.listdir("/proc/self/fd")) <= before
    follower.close()


def await_(follower: Follower, condition: Callable[[list[tuple[str, str]]], bool]) -> None:
    """Follow until it holds for what was told by then, (kind, path) each."""
    told: list[tuple[str, str]] = []
    end = time.monotonic() + 20 * SLOW
    while not condition(told):
        assert time.monotonic() < end, told
        told += [(event.kind, event.path) for event in follower.step(0.5)]


# Pure v2: nothing is read in turn there, so nothing else makes it look at a counter that was left alone for a second.
@pytest.mark.slow_on_vm
def test_what_is_left_for_later_is_looked_at_though_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = f"/nestrt-evlater-{os.getpid()}"
    tree = tuple(one for one in read_hierarchies() if one.version == 2)
    require("v2", "" if tree else "no v2 tree")
    with nest(1, 1, parent=parent, nested=False):
        follower = Follower(tree, USUAL, wanted=lambda guest: guest.path.startswith(parent))
        while follower.step(1.2) or follower._wait(None) is not None:
            pass
        files, wait = follower.files, follower._wait

        def waits(timeout: float | None) -> float | None:
            seconds = wait(timeout)
            assert seconds is not None or not files.dirty, "it would wait for ever"
            return seconds

        monkeypatch.setattr(follower, "_wait", waits)
        key = next((*place, "cgroup.events") for place in follower.tree.places if place[1] == f"{parent}/g0000")
        files.later[key] = None
        while files.later or files.dirty:
            follower.step(None)
        follower.close()


# A claim in one hierarchy of v1 alone, again and again: it goes as it came, and what is kept does not grow.
@pytest.mark.v1
def test_a_guest_of_a_guest_in_one_hierarchy_alone() -> None:
    parent = f"/nestrt-evone-{os.getpid()}"
    with nest(1, 1, parent=parent, nested=False) as made:
        follower = Follower(read_hierarchies(), USUAL, wanted=lambda guest: guest.path.startswith(parent))
        memory = next(h for h in made.hierarchies if "memory" in h.controllers)
        path = f"{parent}/g0000/guest/x"
        kept = set(follower.tree.groups)
        for _ in range(3):
            os.mkdir(memory.path(path))
            os.setxattr(memory.path(path), "user.nestrt", b'{"v": 1, "name": "x"}')
            await_(follower, lambda told: path in follower.guests.known)
            os.rmdir(memory.path(path))
            await_(follower, lambda told: ("removed", path) in told)
            assert set(follower.tree.groups) == kept
            assert path not in follower.guests.known
        follower.close()


# What may not be watched, as by a security module: the guest is followed in the other hierarchies, and nothing hangs.
@pytest.mark.v1
def test_a_group_that_may_not_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = f"/nestrt-evdeny-{os.getpid()}"
    denied = next(h for h in read_hierarchies() if "memory" in h.controllers).path(parent)
    add = inotify.add

    def refuse(descriptor: int, path: str, mask: int) -> int:
        if path == denied:
            raise PermissionError(errno.EACCES, "denied", path)
        return add(descriptor, path, mask)

    monkeypatch.setattr(inotify, "add", refuse)
    follower = Follower(read_hierarchies(), USUAL, wanted=lambda guest: guest.path.startswith(parent))
    with nest(1, 1, parent=parent, nested=False):
        await_(follower, lambda told: ("created", f"{parent}/g0000") in told)
    await_(follower, lambda told: ("removed", f"{parent}/g0000") in told)
    follower.close()


# A guest that is paused by the host; one that has to wait for its memory.
def test_pause_and_pressure(nestrt: Nestrt, follow: Callable[..., Stream], busybox: Path, guest_name: str) -> None:
    require("psi", "" if os.path.exists("/proc/pressure/memory") else "no PSI in this kernel")
    stream = follow("--kinds", "frozen,thawed,pressure,high", "--pressure", "memory:1%/500ms", guest_name)
    began = time.monotonic()
    write = "while :; do dd if=/dev/zero of=/big bs=1M count=100 2>/dev/null; done"
    nestrt.launch("-d", "--rm", "--name", guest_name, "--rootfs", busybox, "-m", "24M", "--", "sh", "-c", write).ok()
    pressed = stream.wait("pressure", timeout=30)
    assert (pressed["path"], pressed["key"]) == (limit_group(guest_name), "memory")
    assert pressed["detail"].startswith("some avg10=")
    nestrt.run("freeze", guest_name).ok()
    frozen = stream.wait("frozen")
    nestrt.run("thaw", guest_name).ok()
    stream.wait("thawed")
    assert frozen["name"] == guest_name
    assert len(stream.all("frozen")) == len(stream.all("thawed")) == 1
    # Every 10 s, for each guest.
    assert len(stream.all("pressure")) <= 1 + (time.monotonic() - began) / 10, "it is told again and again"
    nestrt.run("delete", "--force", guest_name).ok()


# Whoever may write to /dev/kmsg writes the kernel's own words, with any level and facility.
def test_forged_records_are_not_believed(
    nestrt: Nestrt, follow: Callable[..., Stream], busybox: Path, guest_name: str
) -> None:
    stream = follow("--kinds", "oom_kill")
    nestrt.launch("-d", "--name", guest_name, "--rootfs", busybox, "--", "sleep", "600").ok()
    group = guest_root(guest_name)
    words = (
        f"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg={group},"
        f"task_memcg={group},task=forged,pid=1,uid=0\n"
    )
    with open("/dev/kmsg", "wb", buffering=0) as log:
        for prefix in ("", "<0>", "<6>", "<8>", "<2048>", "<18446744073709551608>"):
            log.write((prefix + words).encode())
    group_file("memory", group, "memory.limit_in_bytes", "memory.max")
    time.sleep(0.5 * SLOW**0.5)
    assert not stream.all(task="forged")
    assert not [e for e in history(nestrt, "--since", "5m") if e["task"] == "forged"]
    nestrt.run("delete", "--force", guest_name).ok()


# A reader that goes away, one that never reads, and an unknown name.
def test_readers_and_names(nestrt: Nestrt, busybox: Path, guest_name: str, tmp_path: Path) -> None:
    gone = nestrt.start("events", "-f", guest_name)
    wait_for(lambda: is_listening(gone.pid), "everything to be watched", 40)
    assert gone.stdout is not None
    gone.stdout.close()
    assert gone.wait(20 * SLOW) == 0, "it lives on without a reader, though nothing happens"
    result = nestrt.run("events", "nestrt-no-such-guest")
    assert (result.rc, result.out) != (0, "")
    result = nestrt.run("events", "--since", "1h", "nestrt-no-such-guest")
    assert (result.rc, result.out) == (3, "")
    assert len(result.err.splitlines()) == 1
    for bad in (
        ["--kinds", "omo"],
        ["--pressure", "10%"],
        ["--pressure", "cpu:10%/20s"],
        ["--record"],
        ["--since", "x"],
    ):
        result = nestrt.run("events", *bad)
        assert (result.rc, result.out, len(result.err.splitlines())) == (2, "", 1), result
    strange = tmp_path / "strange"
    strange.mkdir(mode=0o755)
    (strange / "mine.txt").touch()
    for bad, status in (("web", 2), (str(strange), 5)):
        result = nestrt.run("events", "-f", "--record", bad)
        assert (result.rc, result.out, len(result.err.splitlines())) == (status, "", 1), result
    assert strange.stat().st_mode & 0o777 == 0o755
    late = nestrt.run("events", "-f", "--until", "1s", guest_name)
    assert (late.rc, late.out) == (0, "")
    with contextlib.suppress(subprocess.TimeoutExpired):
        ended = nestrt.start("events", "-f", guest_name, stdout=subprocess.DEVNULL)
        wait_for(lambda: is_listening(ended.pid), "everything to be watched", 40)
        ended.send_signal(signal.SIGINT)
        assert ended.wait(20 * SLOW) == 0
    nestrt.launch("-d", "--rm", "--name", guest_name, "--rootfs", busybox, "--", "sleep", "600").ok()
    started = one(history(nestrt, guest_name, "--kinds", "started"))
    assert (started["source"], started["detail"]) == ("mark", "by launch: sleep 600")
    row = one(json.loads(nestrt.run("events", "--totals", "--format", "json", guest_name).ok().out))
    assert (row["name"], row["oom_kills"], row["frozen"]) == (guest_name, 0, False)
    nestrt.run("delete", "--force", guest_name).ok()
