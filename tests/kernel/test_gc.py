"""nestrt gc takes what is over, and nothing else.

    /nestrt/NAME          a guest: running, ended, ended and launched with --rm
    /nestrt/nestrt-t-hand somebody's group with a process in it, made without nestrt
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.hostside import Hierarchy, hierarchies, limit_group, v2_hierarchy
from support.need import SLOW
from support.runner import Nestrt, leftovers, wait_for


@pytest.fixture
def by_hand() -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A group below nestrt's parent that nestrt has not made, with a process in it."""
    tree: Hierarchy = v2_hierarchy() or next(h for h in hierarchies() if "pids" in h.controllers)
    group = tree.group(f"/nestrt/nestrt-t-hand-{os.getpid()}")
    group.mkdir(parents=True)
    process = subprocess.Popen(["sleep", "600"])
    try:
        (group / "cgroup.procs").write_text(str(process.pid))
        yield group, process
    finally:
        process.kill()
        process.wait()
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the process to leave")
        group.rmdir()
        if not any(child.is_dir() for child in group.parent.iterdir()):
            group.parent.rmdir()


def test_what_nestrt_has_not_made_is_left_alone(nestrt: Nestrt, by_hand: tuple[Path, subprocess.Popen[bytes]]) -> None:
    group, process = by_hand
    assert group.name not in nestrt.run("gc", "--all").ok().out.split()
    assert process.poll() is None
    assert (group / "cgroup.procs").read_text().split() == [str(process.pid)]


def test_ended_and_running(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    running, ended, throwaway = new_guest(), new_guest(), new_guest()
    root = ("--rootfs", busybox)
    nestrt.run("launch", *root, "--name", running, "-d", "--", "sleep", "600").ok()
    nestrt.run("launch", *root, "--name", ended, "--", "true").ok()
    nestrt.run("launch", *root, "--name", throwaway, "-d", "--rm", "--", "true").ok()

    def empty() -> bool:
        return not any(line.startswith("process ") for line in leftovers(throwaway))

    wait_for(empty, "the end of the detached guest")
    assert throwaway in nestrt.run("gc").ok().out.split()
    assert leftovers(throwaway) == []
    assert any(h.group(limit_group(ended)).is_dir() for h in hierarchies())
    assert ended in nestrt.run("gc", "--all").ok().out.split()
    assert leftovers(ended) == []
    assert running in nestrt.run("ls", "-q").ok().out.split()


@pytest.mark.slow_on_vm
def test_launches_side_by_side_do_not_lose_the_group_that_they_share(nestrt: Nestrt, busybox: Path) -> None:
    """The last guest's end removes /nestrt, which another launch has just made."""
    names = [f"nestrt-t-side-{os.getpid()}-{number}" for number in range(24)]
    argv = [nestrt.command, "launch", "--rootfs", str(busybox), "--rm", "--name"]
    for batch in range(0, len(names), 3):
        started = [
            subprocess.Popen([*argv, name, "--", "true"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for name in names[batch : batch + 3]
        ]
        for process in started:
            _, error = process.communicate(timeout=20 * SLOW)
            assert (process.returncode, error) == (0, b"")
    assert [line for name in names for line in leftovers(name)] == []
