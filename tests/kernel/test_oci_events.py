"""ps, pause, resume and events, on containers made by hand in every hierarchy of this host.

::

    /nestrt-test-NAME-PID              limit group: what is frozen, counted, and listened to
                   └ guest             guest root
                       ├ init          first group
                       └ web           a child group, as the guest makes it
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nestrt.act import freeze
from nestrt.act.containers import load
from nestrt.cli import ps
from nestrt.kernel import oom
from support.byhand import CALL, ByHand, container, enter, make_group
from support.hostside import has_v1, hierarchy_of, v2_hierarchy
from support.need import SLOW, require
from support.rootfs import CHECKOUT
from support.runner import again, wait_for

ENVIRONMENT = {"PYTHONPATH": str(CHECKOUT), "PATH": os.environ["PATH"]}
# Grows by 1 MiB at a time and touches it, when it is told to by a byte on standard input.
HUNGRY = "import sys; sys.stdin.buffer.read(1); kept = []\nwhile True: kept.append(bytearray(b'x' * (1 << 20)))"
HUNGRY_COMMAND = ("/usr/bin/python3", "-ISc", HUNGRY)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def guest(state: Path) -> Iterator[ByHand]:
    with container(state, "h7", virtualized=True) as made:
        yield made


def nestrt(one: ByHand, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", CALL, *one.words, verb, *words]
    return subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, timeout=30 * SLOW)


def ok(one: ByHand, verb: str, *words: str) -> str:
    done = nestrt(one, verb, *words)
    assert done.returncode == 0, done
    return done.stdout


def refused(one: ByHand, verb: str, *words: str) -> str:
    done = nestrt(one, verb, *words)
    assert done.returncode != 0, done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


class Child:
    """A process in a child group "web" of the guest."""

    def __init__(self, one: ByHand, *command: str, name: str = "web") -> None:
        self.group = f"{one.cgroup}/guest/{name}"
        make_group(self.group)
        self.process = subprocess.Popen(command or ("sleep", "1000"), stdin=subprocess.PIPE)
        enter(self.group, self.process.pid)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture
def child(guest: ByHand) -> Iterator[Child]:
    made = Child(guest)
    yield made
    made.end()


def stopped(pid: int) -> bool:
    """Whether the process makes no more progress: no switches, no time on a CPU. A frozen one looks asleep."""

    def progress() -> list[str]:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return [row for row in rows if "ctxt_switches" in row] + times

    before = progress()
    time.sleep(0.1 * SLOW**0.5)
    return progress() == before


# ps


def test_ps_lists_child_groups_too(guest: ByHand, child: Child) -> None:
    assert json.loads(ok(guest, "ps", "--format", "json", guest.id)) == sorted([guest.pid, child.process.pid])
    assert json.loads(ok(guest, "ps", "-f", "json", guest.id)) == sorted([guest.pid, child.process.pid])


def test_ps_json_starts_no_program_and_imports_little(guest: ByHand) -> None:
    probe = CALL.replace("sys.exit(", "(").replace("\nfrom", "\nbefore = set(sys.modules)\nfrom", 1)
    probe += "print(*sorted(set(sys.modules) - before), file=sys.stderr)\n"
    argv = ["/usr/bin/python3", "-ISc", f"import sys\nsys.path.insert(0, {str(CHECKOUT)!r})\n" + probe]
    done = subprocess.run([*argv, *guest.words, "ps", "-f", "json", guest.id], capture_output=True, text=True)
    assert json.loads(done.stdout) == [guest.pid], done
    slow = {"subprocess", "json", "re", "enum", "ctypes", "typing", "pathlib", "argparse", "nestrt.probe.facts"}
    assert not slow & set(done.stderr.split())


@pytest.mark.slow_on_vm
def test_ps_table_has_the_rows_of_the_container_only(guest: ByHand, child: Child) -> None:
    require("procps", None if any(os.path.exists(path) for path in ps.PS) else "no ps program")
    header, *rows = ok(guest, "ps", guest.id).splitlines()
    assert "PID" in header.split()
    assert {int(row.split()[1]) for row in rows} == {guest.pid, child.process.pid}
    header, *rows = ok(guest, "ps", guest.id, "-o", "pid,comm").splitlines()
    assert sorted(rows, key=lambda row: int(row.split()[0])) == [
        row for row in sorted(rows, key=lambda row: int(row.split()[0])) if row.split()[1] == "sleep"
    ]
    assert len(rows) == 2
    assert "couldn't find PID field" in refused(guest, "ps", guest.id, "-o", "comm")
    assert "invalid format option" in refused(guest, "ps", "--format", "yaml", guest.id)


def test_ps_of_a_container_without_groups(state: Path) -> None:
    command = ("sh", "-c", "sleep 1000 & sleep 1001; wait")
    with container(state, "family", *command, cgroup="", driver="disabled") as one:
        try:
            wait_for(lambda: len(ps.family(one.pid)) == 3, "the shell's children")
            assert json.loads(ok(one, "ps", "-f", "json", one.id)) == ps.family(one.pid)
        finally:
            for pid in ps.family(one.pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow_on_vm
def test_unknown_containers(guest: ByHand) -> None:
    for words in (("ps", "nobody"), ("pause", "nobody"), ("resume", "nobody"), ("events", "nobody")):
        assert "container does not exist" in refused(guest, *words)


# pause and resume


def test_pause_stops_all_and_resume_lets_go(guest: ByHand, child: Child) -> None:
    busy = Child(guest, "sh", "-c", "while :; do :; done", name="busy")
    try:
        assert "container not paused" in refused(guest, "resume", guest.id)
        ok(guest, "pause", guest.id)
        assert load(str(guest.state), guest.id).status() == "paused"
        assert all(stopped(pid) for pid in (guest.pid, child.process.pid, busy.process.pid))
        assert "container not running" in refused(guest, "pause", guest.id)
        ok(guest, "resume", guest.id)
        assert load(str(guest.state), guest.id).status() == "running"
        wait_for(lambda: not stopped(busy.process.pid), "it to go on")
    finally:
        busy.end()


def test_resume_is_not_blocked_by_what_the_guest_froze(guest: ByHand, child: Child) -> None:
    """The guest froze its own "web": that stays so, and says nothing of the container."""
    hierarchy = hierarchy_of("freezer") or v2_hierarchy()
    assert hierarchy is not None
    v1 = hierarchy.version == 1
    file = hierarchy.group(child.group) / ("freezer.state" if v1 else "cgroup.freeze")
    file.write_text("FROZEN" if v1 else "1")
    assert load(str(guest.state), guest.id).status() == "running"
    ok(guest, "pause", guest.id)
    ok(guest, "resume", guest.id)
    assert load(str(guest.state), guest.id).status() == "running"
    assert file.read_text().strip() == ("FROZEN" if v1 else "1")
    file.write_text("THAWED" if v1 else "0")


def test_pause_while_processes_keep_coming(guest: ByHand) -> None:
    forks = Child(guest, "sh", "-c", "while :; do /bin/true; done", name="forks")
    try:
        for _ in range(3):
            ok(guest, "pause", guest.id)
            assert stopped(forks.process.pid)
            ok(guest, "resume", guest.id)
    finally:
        forks.end()


def test_the_v2_freezer_serves_where_there_is_no_other(guest: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    require("cgroup-v2", None if v2_hierarchy() else "no cgroup2 mount")
    monkeypatch.setattr(freeze, "V1_PLACE", "/nonexistent")
    one = load(str(guest.state), guest.id)
    freeze.freeze(one)
    tree = v2_hierarchy()
    assert tree is not None
    assert "frozen 1" in (tree.group(guest.cgroup) / "cgroup.events").read_text()
    assert freeze.frozen(one)
    freeze.thaw(one)
    assert not freeze.frozen(one)


@pytest.mark.slow_on_vm
def test_states(guest: ByHand) -> None:
    guest.process.kill()
    guest.process.wait()
    assert "container not running" in refused(guest, "pause", guest.id)
    assert "container not paused" in refused(guest, "resume", guest.id)
    assert "is not running" in refused(guest, "events", "--stats", guest.id)
    assert json.loads(ok(guest, "ps", "-f", "json", guest.id)) == []


# events


class Stream:
    """``nestrt events`` as it runs: its lines as they come."""

    def __init__(self, one: ByHand, *words: str) -> None:
        argv = [sys.executable, "-uc", CALL, *one.words, "events", *words, one.id]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
        self.events: list[dict[str, Any]] = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def end(self) -> int:
        """Its status, once it has ended by itself."""
        try:
            status = self.process.wait(10 * SLOW)
            self.thread.join()
            return status
        finally:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdout, self.process.stderr):
                assert pipe is not None
                pipe.close()


def test_stats_once(guest: ByHand, child: Child) -> None:
    busy = Child(guest, "sh", "-c", "while :; do :; done", name="busy")
    try:
        times = Path(f"/proc/{busy.process.pid}/stat")
        # At least 50 ms, in the kernel's ticks.
        wait_for(lambda: int(times.read_text().rpartition(")")[2].split()[11]) >= 5, "it to run")
        event = json.loads(ok(guest, "events", "--stats", guest.id))
    finally:
        busy.end()
    assert (event["type"], event["id"]) == ("stats", guest.id)
    data = event["data"]
    keys = "cpu cpuset memory pids blkio hugetlb intel_rdt network_interfaces"
    assert list(data) == keys.split()
    # 3 processes in 3 groups: what is counted is counted at the limit group.
    assert data["pids"]["current"] == 3
    assert data["cpu"]["usage"]["total"] > 10_000_000
    assert data["cpu"]["usage"]["user"] > 0
    assert data["memory"]["usage"]["usage"] > 0
    assert data["memory"]["raw"]


def test_stats_are_those_of_the_kernel(guest: ByHand) -> None:
    hierarchy = hierarchy_of("memory")
    require("memory", None if hierarchy else "no memory controller")
    assert hierarchy is not None
    v1 = hierarchy.version == 1
    (hierarchy.group(guest.cgroup) / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(64 << 20))
    data = json.loads(ok(guest, "events", "--stats", guest.id))["data"]
    assert data["memory"]["usage"]["limit"] == 64 << 20
    pids = hierarchy_of("pids")
    if pids is not None:
        (pids.group(guest.cgroup) / "pids.max").write_text("77")
        assert json.loads(ok(guest, "events", "--stats", guest.id))["data"]["pids"] == {"current": 1, "limit": 77}


def test_stats_stream_until_the_container_ends(guest: ByHand) -> None:
    stream = Stream(guest, "--interval", "100ms")
    try:
        wait_for(lambda: len(stream.of("stats")) >= 2, "statistics")
        guest.process.kill()
        guest.process.wait()
    finally:
        assert stream.end() == 0


def _limit(group: str, size: int) -> None:
    hierarchy = hierarchy_of("memory")
    require("memory", None if hierarchy else "no memory controller")
    assert hierarchy is not None
    directory = hierarchy.group(group)
    files = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if hierarchy.version == 1 else ("memory.max",)
    for file in files:
        if (directory / file).exists():
            (directory / file).write_text(str(size))
    if (directory / "memory.swap.max").exists():
        (directory / "memory.swap.max").write_text("0")


@pytest.mark.parametrize("place", ["limit group", "child group", "group made later"])
def test_oom(state: Path, place: str) -> None:
    """A v1 kernel tells an OOM to the group at its limit and to those below it alone: all have to be listened to.

    Told once, whoever was told by the kernel; which itself may come to it more than once before the process has gone.
    """
    again(lambda: told_once(state, place))


def told_once(state: Path, place: str) -> None:
    with container(state, "oom", virtualized=True) as one:
        early = Child(one, *HUNGRY_COMMAND) if place != "group made later" else None
        stream = Stream(one, "--interval", "200ms")
        wait_for(lambda: stream.of("stats"), "the stream")
        hungry = early or Child(one, *HUNGRY_COMMAND)
        try:
            _limit(one.cgroup if place == "limit group" else hungry.group, 24 << 20)
            assert hungry.process.stdin is not None
            hungry.process.stdin.write(b"x")
            hungry.process.stdin.flush()
            assert hungry.process.wait(20 * SLOW) == -signal.SIGKILL
            wait_for(lambda: stream.of("oom"), "the event")
            time.sleep(0.3 * SLOW**0.5)
            assert stream.of("oom") == [{"type": "oom", "id": one.id}]
        finally:
            hungry.end()
            one.process.kill()
            assert stream.end() == 0


def test_oom_of_the_first_process_comes_before_the_end(state: Path) -> None:
    again(lambda: told_before_the_end(state))


def told_before_the_end(state: Path) -> None:
    with container(state, "oom-first", *HUNGRY_COMMAND) as one:
        _limit(one.cgroup, 24 << 20)
        stream = Stream(one, "--interval", "200ms")
        wait_for(lambda: stream.of("stats"), "the stream")
        assert one.process.stdin is not None
        one.process.stdin.write(b"x")
        one.process.stdin.flush()
        assert one.process.wait(20 * SLOW) == -signal.SIGKILL
        assert stream.end() == 0
        assert len(stream.of("oom")) == 1


@pytest.mark.v1
def test_removed_groups_are_no_oom(guest: ByHand) -> None:
    """The kernel signals a group's removal on the same descriptor."""
    hierarchy = hierarchy_of("memory")
    require("cgroup-v1", None if hierarchy and has_v1("memory") else "memory is not on v1")
    assert hierarchy is not None
    top = hierarchy.group(guest.cgroup)
    (top / "early").mkdir()
    watch = oom.V1Watch(str(top))

    def signalled(*names: str) -> bool:
        events = [watch.events[str(top / name)] for name in names]
        return len(select.select(events, [], [], 0)[0]) == len(events)

    try:
        before = len(watch.descriptors())
        (top / "early").rmdir()
        (top / "late").mkdir()
        (top / "late" / "deep").mkdir()
        wait_for(lambda: signalled("early"), "the kernel's signal, which comes from a work queue")
        assert not watch.take()
        assert len(watch.descriptors()) == before + 1
        (top / "late" / "deep").rmdir()
        (top / "late").rmdir()
        wait_for(lambda: signalled("late", "late/deep"), "the kernel's signals")
        assert not watch.take()
    finally:
        watch.close()


@pytest.mark.slow_on_vm
def test_bad_intervals(guest: ByHand) -> None:
    for text in ("", "5", "0s", "-5s", "x", "5x", "1.2.3s", "s"):
        assert "--interval" in refused(guest, "events", f"--interval={text}", guest.id), text
