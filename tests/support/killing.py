"""Launches of the library in a process of their own, which stop at a step of the plan and are killed there.

test ──fork──▶ launcher ──clone──▶ first process
  ◀──"at"── whichever comes to the step, and waits there: what is killed is killed in just that state
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nestrt.__main__
import nestrt.cli.launch
import nestrt.kernel.cgroup
from nestrt.act.launch import Launcher
from support.need import SLOW
from support.runner import Nestrt, wait_for


@dataclass(frozen=True)
class Killed:
    """What came of one launch: wait status of the launcher, what it wrote to its standard error,
    whether the step was reached, and the pid of the first process if there was one then."""

    status: int
    err: str
    reached: bool
    first: int


def count_steps(nestrt: Nestrt, *args: str) -> dict[str, int]:
    """How many steps the plan of ``launch ARGS`` has on each side."""
    lines = nestrt.launch("--dry-run", *args).ok().out.splitlines()
    return {who: sum(line.startswith(f"{who} ") for line in lines) for who in ("host", "guest")}


def first_process(launcher: int) -> int:
    """The child of *launcher* that is the first process of its pid namespace, 0 if there is none."""
    try:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        for child in children:
            status = Path(f"/proc/{child}/status").read_text()
            numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
            if len(numbers) > 1 and numbers[-1] == "1":
                return int(child)
    except OSError:
        pass
    return 0


def gone(pid: int) -> bool:
    """Whether the process *pid* has ended (a zombie that nobody reaps has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def run_forked(errors: Path, body: Callable[[], int]) -> int:
    """Fork; the child writes standard error to *errors*, runs *body* and exits with what it returns."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", 1, closefd=False)  # not pytest's
        status = body()
    finally:
        os._exit(status)


def await_end(pid: int, after: str) -> int:
    """Reap the launcher *pid*; returns its wait status. AssertionError if it hangs, *after* saying after what."""
    end = time.monotonic() + 20 * SLOW
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"the launcher hangs after {after}")
        time.sleep(0.002)
    return found[1]


def launch_and_kill(errors: Path, victim: str, who: str, number: int, args: list[str]) -> Killed:
    """Launch with *args*; kill *victim* ("launcher" or "first") right after *who* ("host" or "guest") did a step.

    Steps count from 1.
    """
    at, tell = os.pipe()
    go, release = os.pipe()
    seen = [0]

    def observe(side: str, step: object) -> None:
        if side == who:
            seen[0] += 1
            if seen[0] == number:
                os.close(release)
                os.write(tell, b".")
                os.read(go, 1)  # until the test has killed, and closed its end

    def body() -> int:
        def make(plan: Any, signals: set[int], steps: Any, first: Any, connect: Any = None) -> Launcher:
            return Launcher(plan, signals, steps, first, connect, observe)

        nestrt.cli.launch.Launcher = make  # type: ignore[assignment, attr-defined]
        return nestrt.__main__.main(["nestrt", "launch", *args])

    pid = run_forked(errors, body)
    os.close(tell)
    os.close(go)
    try:
        reached = bool(select.select([at], [], [], 20 * SLOW)[0]) and os.read(at, 1) == b"."
        first = first_process(pid)
        if reached and victim != "launcher":
            # A child that ends while it looks hides the others, and 0 would be these tests' own process group.
            first = wait_for(lambda: first_process(pid), "the first process")
        if reached:
            os.kill(pid if victim == "launcher" else first, signal.SIGKILL)
        if victim != "launcher":
            os.close(release)
            release = -1
        status = await_end(pid, f"{victim} was killed at {who} {number}")
    finally:
        os.close(at)
        if release >= 0:
            os.close(release)
    return Killed(status, errors.read_text(), reached, first)


def kill_at_change(errors: Path, number: int, argv: list[str]) -> bool:
    """Run ``nestrt ARGV`` and kill it with SIGKILL right after its change *number* of attributes, owners, modes or
    control files; False if it ended before."""

    def body() -> int:
        done = [0]

        def counting(call: Any) -> Any:
            def counted(*args: Any, **named: Any) -> Any:
                found = call(*args, **named)
                done[0] += 1
                if done[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            return counted

        for name in ("setxattr", "removexattr", "chown", "fchown", "chmod", "fchmod"):
            setattr(os, name, counting(getattr(os, name)))
        nestrt.kernel.cgroup.write = counting(nestrt.kernel.cgroup.write)
        return nestrt.__main__.main(["nestrt", *argv])

    _, status = os.waitpid(run_forked(errors, body), 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, errors.read_text()
    return os.WIFSIGNALED(status)


def kill_at_removal(errors: Path, number: int, argv: list[str]) -> bool:
    """Run ``nestrt ARGV`` and kill it with SIGKILL right after it has removed *number* things; False if it ended."""

    def body() -> int:
        done = [0]

        def counting(call: Any) -> Any:
            def counted(*args: Any, **named: Any) -> None:
                call(*args, **named)
                done[0] += 1
                if done[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            return counted

        os.rmdir, os.unlink = counting(os.rmdir), counting(os.unlink)
        return nestrt.__main__.main(["nestrt", *argv])

    _, status = os.waitpid(run_forked(errors, body), 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, errors.read_text()
    return os.WIFSIGNALED(status)
