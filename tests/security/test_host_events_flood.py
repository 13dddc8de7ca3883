"""``nestrt events --follow`` and guests that make and remove groups, and hit limits, as fast as they can.

/nestrt/loud     makes and removes groups in all hierarchies at full speed: lost is told, and it is left alone
/nestrt/calm     a group made, a process killed: told as ever
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestrt.cli import _events_out
from nestrt.host.event import Event
from support.guests import directory
from support.hostside import guest_root
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, wait_for

LOUD = """
import os, sys, glob
tops = [os.path.dirname(path) for path in glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True)]
tops = [top for top in tops if not os.path.basename(top) == "init"][:8]
while True:
    for number in range(50):
        for top in tops:
            os.mkdir(f"{top}/x\\x1b[2J{number}")
        for top in tops:
            os.rmdir(f"{top}/x\\x1b[2J{number}")
"""


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def is_listening(pid: int) -> bool:
    """Whether the process catches SIGTERM: it does so once all is watched."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) & 1 << (signal.SIGTERM - 1))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10


@pytest.mark.slow_on_vm
def test_a_loud_guest_is_left_alone_and_others_are_seen(
    nestrt: Nestrt, python: PythonRoot, busybox: Path, new_guest: Callable[[], str], tmp_path: Path
) -> None:
    loud, calm = new_guest(), new_guest()
    file = tmp_path / "events"
    with file.open("wb") as out:
        follow = nestrt.start("events", "-f", "--format", "json", loud, calm, stdout=out)
    unread = nestrt.start("events", "-f", "--format", "json", loud, calm, stdout=subprocess.PIPE)
    for process in (follow, unread):
        wait_for(lambda pid=process.pid: is_listening(pid), "everything to be watched", 40)  # type: ignore[misc]
    everything = ("--userns", "none", "--capabilities", "all")
    nestrt.launch("-d", "--name", loud, *everything, *python.options, "--", "python3", "-IS", "-c", LOUD).ok()
    wait_for(
        lambda: [e for e in events(file) if (e["kind"], e["name"]) == ("lost", loud)], "a word that it is lost", 20
    )
    began, used = time.monotonic(), cpu_seconds(follow.pid)
    group = directory("memory", "/calm")
    nestrt.launch("-d", "--name", calm, "--rootfs", busybox, "--", "sh", "-c", f"mkdir {group}; sleep 600").ok()
    root = guest_root(calm)
    for wanted in (("created", f"{root}/calm"), ("started", root.removesuffix("/guest"))):
        wait_for(lambda w=wanted: w in [(e["kind"], e["path"]) for e in events(file)], f"{wanted}")  # type: ignore[misc]
    nestrt.run("delete", "--force", calm).ok()
    time.sleep(2.0 * SLOW**0.5)
    share = (cpu_seconds(follow.pid) - used) / (time.monotonic() - began)
    assert share < 0.5, f"{share:.0%} of a CPU"
    assert resident(follow.pid) < 150
    assert resident(unread.pid) < 150
    told = len([e for e in events(file) if e["name"] == loud])
    assert told < 3000 * (4 + (time.monotonic() - began)), told
    nestrt.run("delete", "--force", loud).ok()
    wait_for(
        lambda: [e for e in events(file) if (e["kind"], e["path"]) == ("removed", f"/nestrt/{loud}")], "its end", 25
    )
    assert follow.poll() is None
    assert unread.poll() is None
    text = nestrt.run("events", loud, "--since", "1m").out
    assert "\x1b" not in text


# A reader of a pipe that reads nothing, then everything.
def test_a_slow_reader_is_told_what_was_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(_events_out, "MOST_BYTES", 20_000)
    with open(writing, "w") as pipe, open(reading, "rb", buffering=0) as reader:
        monkeypatch.setattr(_events_out.sys, "stdout", pipe)
        options = argparse.Namespace(format="json", raw=False, no_headings=False)
        out = _events_out.Out(_events_out.Texts(options))
        began = time.monotonic()
        for number in range(5000):
            out.put(Event(float(number), "created", "web", path="/nestrt/web/guest/" + "x" * 3000))
            out.flush()
        assert time.monotonic() - began < 20 * SLOW, "it waits"
        os.set_blocking(reading, False)
        text = b""
        for _ in range(100):
            text += reader.read(1 << 20) or b""
            out.flush()
        rows = [json.loads(line) for line in text.splitlines()]
    kept = [row for row in rows if row["kind"] == "created"]
    lost = [row for row in rows if row["kind"] == "lost"]
    assert [row["time"] for row in kept] == sorted(row["time"] for row in kept)
    assert len(kept) + sum(row["count"] for row in lost) == 5000
    assert len(lost) == 1
    assert lost[0]["detail"] == "the reader was too slow"
