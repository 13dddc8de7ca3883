"""Running the command as a user does, and finding what a guest has left behind."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from support.hostside import groups, limit_group
from support.need import SLOW
from support.rootfs import CHECKOUT

STATE = Path("/run/nestrt")


@dataclass(frozen=True)
class Result:
    """What a command came back with: status (negative: its signal), standard output and error."""

    args: tuple[str, ...]
    rc: int
    out: str
    err: str

    def ok(self) -> Result:
        """The result itself if the status is 0; AssertionError with all of it if not."""
        assert self.rc == 0, self
        return self

    def __str__(self) -> str:
        return f"{' '.join(self.args)}\n  status {self.rc}\n  out: {self.out!r}\n  err: {self.err!r}"


def _spool(text: str = "") -> IO[bytes]:
    spool = tempfile.TemporaryFile()
    spool.write(text.encode())
    spool.seek(0)
    return spool


def _text(spool: IO[bytes]) -> str:
    spool.seek(0)
    return spool.read().decode(errors="replace")


class Nestrt:
    """The command from the checkout, started as the stub that a user calls."""

    command = str(CHECKOUT / "hooks" / "nestrt")

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def run(
        self,
        *args: str | os.PathLike[str],
        input: str = "",
        timeout: float = 20.0,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> Result:
        """Run ``nestrt ARGS`` and wait for it, not for a guest that it leaves running.

        *timeout* is in seconds on the machine itself and grows with NESTRT_SLOW.
        Files, not pipes, take the output: a detached guest may keep them open.
        """
        argv = (self.command, *(os.fspath(arg) for arg in args))
        if env is not None:
            env = {"NESTRT_AUDIT": os.environ["NESTRT_AUDIT"], **env}
        with _spool(input) as given, _spool() as out, _spool() as err:
            done = subprocess.run(argv, stdin=given, stdout=out, stderr=err, timeout=timeout * SLOW, env=env, cwd=cwd)
            return Result(argv, done.returncode, _text(out), _text(err))

    def launch(self, *args: str | os.PathLike[str], **named: Any) -> Result:
        """Run ``nestrt launch ARGS`` in the foreground (see run)."""
        return self.run("launch", *args, **named)

    def start(self, *args: str | os.PathLike[str], **named: Any) -> subprocess.Popen[bytes]:
        """Start ``nestrt ARGS`` and return at once; the test's end kills it. *named* goes to Popen."""
        named.setdefault("stdin", subprocess.DEVNULL)
        named.setdefault("stdout", subprocess.PIPE)
        named.setdefault("stderr", subprocess.PIPE)
        argv = (self.command, *(os.fspath(arg) for arg in args))
        process: subprocess.Popen[bytes] = subprocess.Popen(argv, **named)
        self.started.append(process)
        return process

    def stop(self) -> None:
        """Kill what start() started and close its pipes."""
        for process in self.started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self.started.clear()


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 10.0) -> Any:
    """Poll until *condition* is true and return its value; AssertionError after *timeout* s (times NESTRT_SLOW)."""
    end = time.monotonic() + timeout * SLOW
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {timeout * SLOW:.0f} s for {what}"
        time.sleep(0.01 * SLOW**0.5)


def again(check: Callable[[], Any], times: int = 4) -> Any:
    """*check*, whose measurement a machine that stands still for a moment spoils, until it holds: AssertionError of the
    last of *times*."""
    for _ in range(times - 1):
        try:
            return check()
        except AssertionError:
            continue
    return check()


def links() -> frozenset[str]:
    """Network interfaces of the host that are no bridges (nestrt's own bridge may stay)."""
    net = Path("/sys/class/net")
    return frozenset(name for name in os.listdir(net) if not (net / name / "bridge").exists())


def _commands() -> Iterator[tuple[int, str]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
                yield int(entry), b" ".join(words).decode(errors="replace")
            except OSError:  # it has ended
                continue


def leftovers(name: str) -> list[str]:
    """What is still there of the guest *name*: groups, mounts, state, processes, as lines for a reader."""
    found = [f"group {directory}" for directory in groups(limit_group(name))]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if name in line]
    for directory, subdirectories, files in os.walk(STATE):
        for entry in (*subdirectories, *files):
            path, target = os.path.join(directory, entry), ""
            with suppress(OSError):  # no link, or gone meanwhile
                target = os.readlink(path)
            if name in (entry, target):
                found.append(f"state {path}")
    found += [f"process {pid}: {command}" for pid, command in _commands() if name in command]
    return found
