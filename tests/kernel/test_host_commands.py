"""Processes as the host describes them: command lines that cannot be read, names that lie, and who is gone.

/nestrt-test-commands-PID            limit group, marked
                     └ guest         silent, plain
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nestrt.host import commands
from nestrt.host.commands import STALL, Commands
from nestrt.host.processes import Process, _describe, _Users, add_commands, start_time
from support.byhand import enter, make_group, remove_groups
from support.hostside import groups
from support.need import SLOW
from support.runner import Nestrt, again, wait_for
from support.silent_command import silent_commands

TOP = f"/nestrt-test-commands-{os.getpid()}"
# argv[0] is the name (PR_SET_NAME), then come the arguments.
NAMED = "import ctypes, sys, time; ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1])); time.sleep(1000)"


@pytest.fixture
def guest() -> Iterator[str]:
    """The guest root of a guest made by hand; what is in it ends with the test."""
    make_group(TOP)
    make_group(TOP + "/guest")
    mark = {"v": 1, "name": TOP[1:], "id": "x", "state": "running", "command": []}
    for directory in groups(TOP):
        os.setxattr(directory, "trusted.nestrt", json.dumps(mark).encode())
    yield TOP + "/guest"
    remove_groups(TOP)


def describe(pid: int) -> Process:
    found = _describe(pid, _Users())
    assert found
    add_commands([found])
    return found


@pytest.mark.slow_on_vm  # and FUSE's writes keep nobody waiting before Linux 6.16
def test_a_command_line_that_is_never_told(nestrt: Nestrt, guest: str, tmp_path: Path) -> None:
    """It is said so, the others are shown all the same, and every command ends at once."""
    with subprocess.Popen(["sleep", "1007"]) as other, silent_commands(tmp_path, "silent-1", "silent-2") as silent:
        try:
            for pid in (silent[0], other.pid, silent[1]):
                enter(guest, pid)
            for words in (("tree", TOP[1:], "-p"), ("show", TOP[1:]), ("ps", TOP[1:])):
                began = time.monotonic()
                done = nestrt.run(*words, timeout=30).ok()
                assert time.monotonic() - began < STALL + 8 * SLOW
                assert "sleep 1007" in done.out, done
                for name in ("silent-1", "silent-2"):
                    assert f"[{name}] (its command line cannot be read" in done.out, done
            # Without commands to read there is nothing to wait for.
            assert nestrt.run("tree", TOP[1:], timeout=30).ok()

            reader = Commands()
            keys = [(pid, start_time(pid)) for pid in (silent[0], other.pid, silent[1], os.getpid())]
            for limit in (STALL, commands.PATIENCE * 10):  # the second time it is known who says nothing
                began = time.monotonic()
                found = reader.read(keys)
                assert time.monotonic() - began < limit + 8 * SLOW
                assert set(found) == {keys[1], keys[3]}
            assert found[keys[1]] == b"sleep\x001007\x00"
            assert set(reader.held) == {keys[0], keys[2]}
        finally:
            other.kill()
    # The readers are free again, and the processes gone.
    wait_for(lambda: len(reader.read(keys)) == 4, "the readers that were held up")
    assert reader.held == {}


@pytest.mark.parametrize(
    ("name", "comm"),
    [
        (b"a) R 1 (b", "a) R 1 (b"),
        (b"\x1b]0;x\x07", "\x1b]0;x\x07"),
        (b"a\nUid:\t7", "a\nUid:\t7"),
        (b"\xff\xfe \\n", "\udcff\udcfe \\n"),
        (b"", ""),
    ],
)
@pytest.mark.slow_on_vm
def test_names_that_lie(name: bytes, comm: str) -> None:
    with running(sys.executable, "-ISc", NAMED, name.hex()) as pid:
        wait_for(lambda: Path(f"/proc/{pid}/comm").read_bytes() == name + b"\n", "its name")
        wait_for(lambda: ") S " in Path(f"/proc/{pid}/stat").read_text(errors="replace"), "its sleep")
        found = describe(pid)
    assert (found.name, found.state, found.parent, found.threads) == (comm, "S", os.getpid(), 1)
    assert found.command.endswith(f"-ISc {NAMED} {name.hex()}".rstrip())
    assert found.uid == found.guest_uid == os.getuid()


@contextmanager
def running(*argv: str | bytes) -> Iterator[int]:
    """The pid of a process of the program argv[0]; it waits for its standard input."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_long_odd_empty_and_ended_command_lines() -> None:
    odd = b"1000.\xff\n\x1b"
    with running("sleep", "1000", *["0"] * 65000) as long, running("sh", "-c", "sleep 1000; :", odd) as other:
        # execve(2) gives it the name before it has its arguments; before that, those of its parent.
        wait_for(lambda: Path(f"/proc/{long}/cmdline").read_bytes().startswith(b"sleep\0"), "exec")
        wait_for(lambda: Path(f"/proc/{other}/cmdline").read_bytes().startswith(b"sh\0"), "exec")
        assert describe(long).command == ("sleep 1000" + " 0" * 65000)[:4096].rstrip()
        assert describe(other).command == "sh -c sleep 1000; : 1000.\udcff\n\x1b"
    with running("bash", "-c", "exec -a '' cat") as nameless:
        wait_for(lambda: Path(f"/proc/{nameless}/comm").read_text() == "cat\n", "exec")
        wait_for(lambda: Path(f"/proc/{nameless}/cmdline").read_bytes() == b"\0", "its arguments")
        assert describe(nameless).command == "[cat]"
    # A zombie has no memory, so no command line.
    process = subprocess.Popen(["sleep", "0"])
    wait_for(lambda: ") Z " in Path(f"/proc/{process.pid}/stat").read_text(), "its end")
    found = describe(process.pid)
    assert (found.command, found.state, found.rss) == ("[sleep]", "Z", 0)
    # It is gone, and another process may have its number: nothing is said of that one.
    found.start, found.command = start_time(os.getpid()) - 1, "[sleep]"
    found.pid = os.getpid()
    add_commands([found])
    assert found.command == "[sleep]"
    process.wait()
    assert _describe(process.pid, _Users()) is None


@pytest.mark.slow_on_vm
def test_the_cost_of_many() -> None:
    """One thread for all: ten thousand in a second, even where tests run side by side."""
    keys = [(os.getpid(), start_time(os.getpid()))] * 10_000

    def cost() -> None:
        began = time.monotonic()
        assert len(Commands().read(keys)) == 1
        assert time.monotonic() - began < SLOW

    again(cost)
