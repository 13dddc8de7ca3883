"""Containers of runc that nestrt's plugin makes guests, and what attackers do to them and to the plugin.

::

    test ──▶ nestrt wrap --runtime runc … ──exec──▶ runc ──▶ nestrt hook createRuntime, poststart, poststop
               │                                      └─────▶ the guest
               └ /run/nestrt/plugin/RECORD, limit group, config.json
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nestrt.__main__
import nestrt.cli._plugin
from nestrt.act.records import parse
from support.bundles import PARENT, Bundle
from support.hostside import groups
from support.killing import await_end, run_forked
from support.need import SLOW
from support.rootfs import CHECKOUT
from support.runner import STATE, Nestrt, Result, wait_for

RUNC = "/usr/sbin/runc"
RECORDS = STATE / "plugin"
GRACE = 10.0  # seconds after which what nobody has gone on to start is taken for left: nestrt.act.plugin
NOTE = "io.nestrt.limit-group"
_numbers = itertools.count(1)


class Wrapped(Bundle):
    """A bundle whose verbs are ``nestrt wrap --runtime RUNC``'s; it has the policy "nested" until that is taken out."""

    def __init__(self, nestrt: Nestrt, place: Path, id: str, rootfs: Path, state: Path) -> None:
        super().__init__(nestrt, place, id, rootfs, state)
        self.globals = ["wrap", "--runtime", RUNC, "--root", str(state)]
        self.annotate(policy="nested")

    def runc(self, *words: str) -> Result:
        """The runtime itself, past the plugin."""
        argv = (RUNC, "--root", str(self.state_root), *words)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            # Files: what runs detached may keep pipes open.
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=60 * SLOW)
            out.seek(0)
            err.seek(0)
            return Result(argv, done.returncode, out.read(), err.read())

    def stage(self, stage: str, document: object, *options: str, timeout: float = 20.0) -> Result:
        """``nestrt hook STAGE`` with *document* on its standard input: bytes as they are, anything else as JSON."""
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        argv = (self.nestrt.command, "hook", *options, stage)
        with tempfile.TemporaryFile() as given:
            given.write(data)
            given.seek(0)
            done = subprocess.run(argv, stdin=given, capture_output=True, timeout=timeout * SLOW)
        return Result(argv, done.returncode, done.stdout.decode(), done.stderr.decode())

    def hook_state(self, **changes: Any) -> dict[str, Any]:
        """What runc gives to a hook (runtime.md, "State"), with *changes*; the container need not be there."""
        found = {
            "ociVersion": "1.0.2-dev",
            "id": self.id,
            "pid": 0,
            "status": "stopped",
            "bundle": str(self.path),
            "annotations": {**self.config.get("annotations", {}), NOTE: self.cgroup},
        }
        return {**found, **changes}

    def record(self) -> dict[str, Any]:
        """What nestrt has noted of it; {} if nothing."""
        return next((values for values in records().values() if values.get("group") == self.cgroup), {})

    def limits(self) -> dict[str, str]:
        """Every file of the limit group that can be written and bounds something, as the host's kernel has it."""
        return limits_of_group(self.cgroup)

    def leftovers(self) -> list[str]:
        found = super().leftovers()
        found += [f"record {name}" for name, values in records().items() if values.get("group") == self.cgroup]
        found += [f"file {path}" for path in self.path.iterdir() if ".nestrt." in path.name]
        return found


def records() -> dict[str, dict[str, Any]]:
    """All records of the plugin, those that are cut off as {}."""
    found: dict[str, dict[str, Any]] = {}
    for path in RECORDS.iterdir() if RECORDS.is_dir() else ():
        try:
            found[path.name] = parse(path.read_bytes())
        except FileNotFoundError:
            continue
    return found


def age(*guests: Wrapped) -> None:
    """Make the records of *guests* so old that nobody is waited for any more (GRACE)."""
    for name, values in records().items():
        if values.get("group") in [guest.cgroup for guest in guests]:
            (RECORDS / name).write_text(json.dumps({**values, "created": 0}))


LIMIT_WORDS = ("max", "limit", "quota", "shares", "weight", "_device", "cpus", "mems", "devices.list", "high", "low")
COUNTERS = ("usage", "events", "effective", "failcnt", "peak", "max_usage")


def limits_of_group(group: str) -> dict[str, str]:
    """The content of every limit file of *group*, by its path."""
    found = {}
    for directory in groups(group):
        for file in directory.iterdir():
            if not file.is_file() or not any(word in file.name for word in LIMIT_WORDS):
                continue
            if any(word in file.name for word in COUNTERS):
                continue
            try:
                found[str(file)] = file.read_text()
            except OSError:  # write-only, or of a controller that has none
                continue
    return found


# What a process does to itself: it is killed right after its NUMBER-th call that changes something on the host (a write
# to its standard output is one), or right before it becomes another program. The names of all go to the file TALLY.
SABOTAGE = """
import os, signal
def arm(number, tally):
    calls, done, mine = {name: getattr(os, name) for name in dir(os)}, [0], os.getpid()
    def count(name):
        if os.getpid() != mine:  # a child, which becomes the runtime
            return
        done[0] += 1
        if tally:
            fd = calls["open"](tally, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            calls["write"](fd, name.encode() + b"\\n")
            calls["close"](fd)
        if done[0] == number:
            calls["kill"](os.getpid(), signal.SIGKILL)
    def after(name):
        def counted(*args, **named):
            result = calls[name](*args, **named)
            count(name)
            return result
        return counted
    def before(name):
        def counted(*args, **named):
            count(name)
            return calls[name](*args, **named)
        return counted
    def open_(path, flags, *args, **named):
        fd = calls["open"](path, flags, *args, **named)
        if flags & os.O_CREAT:
            count("open")
        return fd
    for name in ("mkdir", "rmdir", "unlink", "rename", "write", "pwrite", "ftruncate", "setxattr", "chown", "fchmod"):
        setattr(os, name, after(name))
    os.open, os.execv = open_, before("execv")
"""
# A hook that is told by a file, STAGE NUMBER TALLY, when to kill itself.
HOOK = f"""#!/usr/bin/python3 -IS
import sys
{SABOTAGE}
stage, number, tally = open("POINT").read().split("\\n")[:3]
sys.path.insert(0, {str(CHECKOUT)!r})
if sys.argv[-1] == stage:
    arm(int(number), tally)
from nestrt.__main__ import main
status = main(sys.argv)
sys.stdout.flush()
os._exit(status)
"""


class Saboteur:
    """``nestrt wrap`` and the hooks of its guests in processes that kill themselves."""

    def __init__(self, place: Path) -> None:
        self.errors = place / "errors"
        self.tally = place / "tally"
        self.point = place / "point"
        self.hook = place / "hook"
        self.hook.write_text(HOOK.replace("POINT", str(self.point)))
        self.hook.chmod(0o755)

    def run(self, argv: list[str], stage: str, number: int, stdin: bytes = b"") -> tuple[int, list[str]]:
        """Run ``nestrt ARGV``; what it does in *stage* ("" itself, else that hook) ends after *number* calls.

        Its exit status (negative: its signal), and the names of the calls.
        """
        self.tally.write_text("")
        self.point.write_text(f"{stage or '-'}\n{number}\n{self.tally}\n")

        def body() -> int:
            if stdin:
                given = os.memfd_create("input")
                os.write(given, stdin)
                os.lseek(given, 0, os.SEEK_SET)
                os.dup2(given, 0)
                sys.stdin = open(0, closefd=False)  # not pytest's
            nestrt.cli._plugin.program = lambda policy_name: (str(self.hook), "nestrt", "hook")
            if not stage:
                names: dict[str, Any] = {}
                exec(SABOTAGE, names)
                names["arm"](number, str(self.tally))
            return nestrt.__main__.main(["nestrt", *argv])

        status = await_end(run_forked(self.errors, body), f"{stage or argv[0]} was killed at {number}")
        return os.waitstatus_to_exitcode(status), self.tally.read_text().split()


@pytest.fixture(name="new_wrapped")
def new_wrapped_fixture(nestrt: Nestrt, busybox: Path) -> Iterator[Callable[..., Wrapped]]:
    """A function that makes them. At the end each is deleted, and the test fails if anything stays."""
    made: list[Wrapped] = []
    base = Path(tempfile.mkdtemp(prefix="nestrt-wrapped-", dir="/tmp"))
    base.chmod(0o755)

    def stale() -> set[str]:
        own = {name for name, values in records().items() if str(values.get("group")).startswith(PARENT + "/")}
        return own | {name for name in records() if base.name in name}

    def new(id: str = "", rootfs: Path | None = None) -> Wrapped:
        name = id or f"nestrt-p-{os.getpid():x}-{next(_numbers)}"
        place = base / name
        place.mkdir()
        made.append(Wrapped(nestrt, place, name, rootfs or busybox, base / "runc"))
        return made[-1]

    yield new
    nestrt.stop()
    left: list[str] = []
    for one in made:
        try:
            done = one.delete("--force")
            if done.rc:
                left.append(str(done))
        except subprocess.TimeoutExpired as error:
            left.append(str(error))
    try:
        wait_for(lambda: not any(one.leftovers() for one in made), "what was killed last to go", 10)
    except AssertionError:
        left += [line for one in made for line in one.leftovers()]
    left += [f"record {name}" for name in stale()]
    for one in made:
        one.sweep()
    for name in stale():
        (RECORDS / name).unlink(missing_ok=True)
    for top in groups(PARENT):
        subprocess.run(
            ["find", str(top), "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"], stderr=subprocess.DEVNULL
        )
    shutil.rmtree(base, ignore_errors=True)
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(name="wrapped")
def wrapped_fixture(new_wrapped: Callable[..., Wrapped]) -> Wrapped:
    """This test's one guest of runc."""
    return new_wrapped()
