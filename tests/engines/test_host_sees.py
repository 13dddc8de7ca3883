"""Guests of podman, docker and containerd, looked at from the host: every command names them, and its figures hold.

::

    PARENT                     the engines' group, right below "/"
     ├ libpod-ID, ID, ctr-X    limit group: 64 MiB, half a CPU, 50 processes, as the engine was asked
     │  └ guest
     │     └ init              what nestrt ps lists; podman stats and docker stats count the same
     └ …
    nestrt                     where nestrt host looks for guests, unless it is told of PARENT
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.engine_guests import GIVEN_CPUS, GIVEN_MEMORY, MIB, Start, command, every, follow, sleepers
from support.engines import Nest
from support.hostside import processes, read
from support.need import SLOW
from support.runner import wait_for
from support.stream import Stream, is_listening

# It holds 8 MiB, writes 4 MiB past the page cache, whose pages anybody's sync would write in his own name, and burns,
# for so long at most.
BUSY = """
dd if=/dev/zero of=/dev/shm/held bs=1M count=8 2>/dev/null
dd if=/dev/zero of=/disk/file bs=1M count=4 oflag=direct 2>/dev/null
: > /disk/ready
exec timeout 60 sh -c 'while :; do :; done'
"""
# It holds more than all of its memory, in a process of its own, once it is told to.
HOG = """
while [ ! -e /disk/go ]; do sleep 0.1; done
dd if=/dev/zero of=/dev/null bs=100M count=1
exec sleep 4000
"""


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory of the host's, on its disk where it has one."""
    place = Path(tempfile.mkdtemp(prefix="nestrt-sees-", dir="/tmp"))
    yield place
    shutil.rmtree(place)


def guest_pid(of: int) -> int:
    rows = Path(f"/proc/{of}/status").read_text().splitlines()
    return int(next(row for row in rows if row.startswith("NSpid:")).split()[-1])


@every()
def test_who_it_is_and_what_it_has(start: Start) -> None:
    """show, tree, why: the name, who made it, the limits that the engine was given, and what binds."""
    guest = start()
    pids = sleepers(guest)
    found = guest.json("show", guest.name)
    assert found == {**found, "name": guest.name, "path": guest.group, "level": 1, "claim": False, "locked": False}
    assert found == {**found, "engine": guest.kind, "runtime": "plugin", "made_by": f"{guest.kind}/plugin"}
    assert (found["state"], found["pid"], found["policy"]) == ("running", guest.first, "nested")
    limits = {row["key"]: (row["limit"], row["effective"]) for row in found["limits"]}
    assert limits["memory.max"] == (GIVEN_MEMORY, GIVEN_MEMORY)
    assert limits["cpu.max"] == (GIVEN_CPUS * 100_000,) * 2
    assert limits["pids.max"] == (guest.pids, guest.pids)
    assert limits["cpuset.cpus"][1] == guest.cpus
    assert found["memory"]["binds"] == guest.group
    assert found["pids"]["usage"] == len(pids) == guest.figures().pids
    assert guest.name in guest.nestrt("show", guest.name).ok().out
    assert guest.json("show", guest.group)["name"] == guest.name

    head, *rest = guest.nestrt("tree", "-p", guest.name).ok().out.splitlines()
    assert head.startswith(f"{guest.name}  level 1, running, pid {guest.first}, memory ")
    assert f"by {guest.kind}/plugin" in head
    assert "/64M, pids 2" in head
    for one, words in pids.items():
        assert any(line.endswith(f"{one} ({guest_pid(one)}) {words}") for line in rest), rest

    for subject in (guest.name, str(guest.first)):
        why = guest.json("why", subject, "memory.max")
        assert (why["guest"], why["level"]) == (guest.name, 1)
        (limit,) = why["limits"]
        assert (limit["effective"], limit["binds"]) == (GIVEN_MEMORY, guest.group)
        chain = [row["group"] for row in limit["chain"]]
        assert chain[:3] == ["/", guest.group.rpartition("/")[0], guest.group]
    assert why["process"]["pid"] == guest.first
    assert [line for line in guest.nestrt("why", guest.name).ok().out.splitlines() if guest.group in line and
            "64M" in line and "← binds" in line]  # fmt: skip


@every()
def test_its_processes_and_pictures(start: Start) -> None:
    """ps, ps -t, top, graph, metrics."""
    guest = start()
    pids = sleepers(guest)
    rows = guest.json("ps", guest.name)
    assert {row["pid"]: row["guest_pid"] for row in rows} == {one: guest_pid(one) for one in pids}
    assert {row["pid"]: row["command"] for row in rows} == pids
    assert {(row["guest"], row["level"], row["guest_group"]) for row in rows} == {(guest.name, 1, "/init")}
    listed = guest.listed()
    assert all(str(one) in listed.split() for one in pids), listed
    tree = guest.nestrt("ps", "-t", guest.name).ok().out
    assert f"{guest.name}  level 1, 2 processes" in tree
    assert all(f"{one} ({guest_pid(one)})" in tree for one in pids), tree

    row = guest.row()
    assert row == {**row, "name": guest.name, "path": guest.group, "kind": "guest", "level": 1, "claim": False}
    assert (row["state"], row["made_by"]) == ("running", f"{guest.kind}/plugin")
    assert (row["memory"]["limit"], row["pids"]["limit"], row["pids"]["usage"]) == (GIVEN_MEMORY, guest.pids, 2)
    assert row["cpu_quota"] == GIVEN_CPUS * 100_000

    picture = ElementTree.fromstring(guest.nestrt("graph", guest.name).ok().out)
    titles = [one.text or "" for one in picture.iter("{http://www.w3.org/2000/svg}title")]
    (told,) = [text for text in titles if text.startswith(f"{guest.name}\n")]
    assert "limit 64M" in told
    assert f"made by: {guest.kind}/plugin" in told
    assert f"path: {guest.group}" in told
    assert f"<title>{guest.name}\n" in guest.nestrt("graph", "--by", "pids", guest.name).ok().out

    figures = guest.metrics()
    info = [key for key in figures if key.startswith("nestrt_guest_info")]
    assert len(info) == 1
    assert f'path="{guest.group}"' in info[0]
    assert f'engine="{guest.kind}"' in info[0]
    assert figures["nestrt_guest_memory_limit_bytes"] == GIVEN_MEMORY
    assert figures["nestrt_guest_cpu_limit_cores"] == GIVEN_CPUS
    assert figures["nestrt_guest_pids"] == 2
    assert figures["nestrt_guest_pids_limit"] == (guest.pids or math.inf)


@every()
def test_events_of_its_life(start: Start, nest: Nest, disk: Path, tmp_path: Path) -> None:
    """Its start, the process of it that is killed for memory, its end: each heard once, of the right guest."""
    process = follow(nest, tmp_path / "events")
    try:
        wait_for(lambda: is_listening(process.pid), "everything to be watched", 40)
        stream = Stream(process, tmp_path / "events")
        guest = start(program=HOG, disk=disk)
        begun = stream.wait("started", name=guest.name)
        assert (begun["path"], begun["level"], begun["claim"]) == (guest.group, 1, False)
        assert f"by {guest.kind}/plugin" in begun["detail"]
        (disk / "go").touch()
        killed = stream.wait("oom_kill", name=guest.name)
        assert killed["binds"] in (guest.group, f"{guest.group}/guest")
        assert killed["group"] in (None, "/", "/init"), killed
        assert not stream.all("ended")
        os.kill(guest.first, signal.SIGKILL)
        assert stream.wait("ended", name=guest.name)["path"] == guest.group
        wait_for(lambda: guest.ended() is not None, "its engine to see it")
        counts = Counter(event["kind"] for event in stream.all(name=guest.name))
        assert (counts["started"], counts["oom_kill"], counts["ended"]) == (1, 1, 1), counts
    finally:
        process.terminate()
        assert process.wait(10 * SLOW) == 0


def between(low: float, value: float, high: float, unit: float) -> bool:
    return low - unit <= value <= high + unit


@every()
def test_figures_of_a_busy_one(start: Start, disk: Path) -> None:
    """CPU time, memory, processes, bytes written: top's and metrics', the kernel's and the engine's are one."""
    guest = start(program=BUSY, disk=disk)
    wait_for((disk / "ready").exists, "it to have written", 20)
    burning = wait_for(lambda: [one for one in processes(guest.group) if "while" in command(one)], "it to burn")[0]
    # An engine rounds to what it shows: podman to 10 ns, ctr and the kernel not at all; nestrt to a µs.
    before = guest.row()["cpu_usec"]
    kernel, engine = guest.cpu(), guest.engine_cpu()
    after = guest.metrics()["nestrt_guest_cpu_seconds_total"] * 1e6
    assert before < after, "it burns"
    assert between(before, kernel, after, 1), (before, kernel, after)
    assert between(kernel, engine, after, 1), (kernel, engine, after)
    last = guest.row()["cpu_usec"]
    assert between(after, last, guest.cpu(), 1)
    os.kill(burning, signal.SIGSTOP)  # nothing changes any more
    row, figures, engine = guest.row(), guest.metrics(), guest.figures()
    usage = int(read("memory", guest.group, "memory.usage_in_bytes", "memory.current"))
    assert usage >= 8 * MIB
    for told in (row["memory"]["usage"], figures["nestrt_guest_memory_usage_bytes"]):
        assert abs(told - usage) <= MIB, (told, usage)  # the kernel counts in batches for each CPU
    assert engine.limit in (None, GIVEN_MEMORY) or engine.limit == pytest.approx(GIVEN_MEMORY, rel=1e-3)
    # docker leaves page cache out that is not in use: the file
    assert usage - 6 * MIB <= engine.memory <= usage + MIB, (usage, engine)
    count = int(read("pids", guest.group, "pids.current", "pids.current"))
    assert row["pids"]["usage"] == figures["nestrt_guest_pids"] == engine.pids == count >= 2
    if os.major(os.stat(disk).st_dev):  # not a tmpfs, or what a virtual machine shares
        assert row["io_write_bytes"] >= 4 * MIB
        assert figures["nestrt_guest_io_written_bytes_total"] == row["io_write_bytes"]
        if engine.written is not None:
            assert engine.written == pytest.approx(row["io_write_bytes"], rel=0.06)


# What nestrt host makes of engines' groups: those are not /nestrt.
def test_the_split_of_the_host_tells_of_it(start: Start) -> None:
    guest = start()
    parent = guest.group.rpartition("/")[0]
    found = guest.json("host", "status")
    assert parent in found["guests_elsewhere"]
    assert f"--guests {parent}" in found["note"]
    (line,) = [line for line in guest.nestrt("host", "status").ok().out.splitlines() if line.startswith("note: ")]
    assert f"--guests {parent}" in line
    dry = guest.nestrt("host", "init", "--dry-run").ok()
    (line,) = [line for line in dry.err.splitlines() if "count as the system" in line]
    assert line.startswith("nestrt: note: guests in ")
    words = line.partition("nestrt host init ")[2].partition(", with")[0].split()
    assert words[:2] == ["--guests", "/nestrt"]
    followed = guest.nestrt("host", "init", *words, "--dry-run").ok()
    assert f"--guests {parent}" not in followed.err
    assert f"/cpu{parent}/" in followed.out or f"/cgroup{parent}/" in followed.out
