"""Law 8 for containers: whatever is killed, and whenever, ``delete --force`` takes all of it, and nothing ran looser.

launcher        1  2  3 … clone … save state … park        each number is a step of the plan; after each
first process                1  2  3 … park │ → program    of them the launcher, or the first process, is killed
                                            └ start
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nestrt.__main__
import nestrt.act.container
import nestrt.cli._bundle
from support.bundles import Bundle
from support.hostside import hierarchies, pids_below, processes, read, v2_hierarchy
from support.killing import await_end, first_process, gone, kill_at_removal, run_forked
from support.need import SLOW
from support.runner import wait_for

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewBundle = Callable[..., Bundle]
LIMITS: dict[str, Any] = {
    "memory": {"limit": 64 << 20},
    "pids": {"limit": 40},
    "cpu": {"quota": 50000, "period": 100000},
}
# How many parts the exhaustive loops are cut into, so that none is long.
PARTS = 4
MODES = ["plain", "policy", "userns"]


def prepared(bundle: Bundle, mode: str, witness: Path) -> Bundle:
    """Limits, and a program that leaves a file with the container's id when it runs."""
    bundle.resources(**LIMITS).mount(str(witness), "/witness")
    if mode != "plain":
        bundle.virtual()
    if mode == "userns":
        bundle.user_namespace()
    return bundle.shell(f"echo ran > /witness/{bundle.id}; exec sleep 600")


@pytest.fixture
def witness(scratch: Path) -> Path:
    """A directory that every container may write to."""
    place = scratch / "oci-witness"
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    return place


def limits_hold(bundle: Bundle) -> None:
    """What was asked for stands on the group that all of its processes are in or below."""
    assert read("memory", bundle.cgroup, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert read("pids", bundle.cgroup, "pids.max", "pids.max") == "40"
    assert read("cpu", bundle.cgroup, "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    for hierarchy in hierarchies():
        # A process leaves all of its groups at once when it ends.
        inside = pids_below(hierarchy.group(bundle.cgroup)) or not processes(bundle.cgroup)
        assert inside, f"the program is not in its group of {hierarchy.mountpoint}"


def steps_of(bundle: Bundle, place: Path) -> list[tuple[str, int]]:
    """All points of create: ("host" or "guest", number of the step), as --debug tells them."""
    log = place / "steps"
    log.unlink(missing_ok=True)
    words = bundle.words("create")
    bundle.nestrt.run("--debug", "--log", str(log), *words).ok()
    bundle.delete("--force").ok()
    lines = log.read_text()
    return [(who, number + 1) for who in ("host", "guest") for number in range(lines.count(f"{who}: "))]


def kill_at(errors: Path, victim: str, point: tuple[str, int], argv: list[str]) -> tuple[bool, int, str]:
    """Run ``nestrt ARGV`` and kill *victim* ("launcher" or "first") right after *point*.

    Whether the point was reached, the launcher's exit status (negative: its signal), and what it wrote.
    """
    at, tell = os.pipe()
    go, release = os.pipe()
    seen = [0]

    def observe(side: str, step: object) -> None:
        if side == point[0]:
            seen[0] += 1
            if seen[0] == point[1]:
                os.close(release)
                os.write(tell, b".")
                os.read(go, 1)  # until the test has killed, and closed its end

    def body() -> int:
        nestrt.cli._bundle.trace = lambda flags, creator: setattr(creator, "observe", observe)
        # The pipes of this test outlive the first process's closing of what it does not know.
        kept = nestrt.act.container.keep_only
        nestrt.act.container.keep_only = lambda fds: kept({*fds, tell, go, release})
        return nestrt.__main__.main(["nestrt", *argv])

    pid = run_forked(errors, body)
    os.close(tell)
    os.close(go)
    try:
        # A parked process holds the other end too, so that the end of the launcher has to be looked for.
        while not (reached := bool(select.select([at], [], [], 0.05)[0]) and os.read(at, 1) == b".") and not gone(pid):
            pass
        first = first_process(pid)
        if reached and (victim == "launcher" or first):
            os.kill(pid if victim == "launcher" else first, signal.SIGKILL)
        if victim != "launcher":
            os.close(release)
            release = -1
        status = await_end(pid, f"{victim} was killed at {point}")
    finally:
        os.close(at)
        if release >= 0:
            os.close(release)
    if first and victim == "first":
        wait_for(lambda: gone(first), "the first process to end")
    return reached, os.waitstatus_to_exitcode(status), errors.read_text()


def settle(bundle: Bundle, witness: Path, patience: float = 0.5) -> bool:
    """Wait until nothing runs or the program does; whether it does, and then within its limits.

    *patience*, in seconds, is for a process that waits to be started and so does neither.
    """
    ran = witness / bundle.id
    end = time.monotonic() + patience * SLOW
    while time.monotonic() < end and not ran.exists() and processes(bundle.cgroup):
        time.sleep(0.01)
    if ran.exists() and processes(bundle.cgroup):
        limits_hold(bundle)
    return ran.exists()


def everything_goes(bundle: Bundle, point: object) -> None:
    """Each verb says something sensible of what is left, and delete --force takes it."""
    state = bundle.verb("state", bundle.id)
    assert "Traceback" not in state.err, (point, state)
    assert "bug" not in state.err, (point, state)
    assert bundle.delete("--force").rc == 0, point
    assert bundle.leftovers() == [], point
    assert not processes(bundle.cgroup), point


def kill_the_launcher(new_bundle: NewBundle, witness: Path, mode: str, verb: str, part: slice) -> None:
    points = steps_of(prepared(new_bundle(), mode, witness), witness)
    for point in points[part]:
        bundle = prepared(new_bundle(), mode, witness)
        words = bundle.words(verb, *(["--detach"] if verb == "run" else []))
        reached, status, err = kill_at(witness / "errors", "launcher", point, words)
        if reached:
            assert status == -9, (point, status, err)
        else:  # what comes behind the parking, or run has not
            assert status == 0, (point, err)
            assert point in points[-8:] or verb == "run", point
        ran = settle(bundle, witness, 0.5 if verb == "run" else 0.02)
        if verb == "create":
            assert not ran, point
        everything_goes(bundle, point)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("mode", ["plain", "userns"])
def test_create_killed_after_each_step(new_bundle: NewBundle, witness: Path, mode: str, part: int) -> None:
    kill_the_launcher(new_bundle, witness, mode, "create", slice(part, None, PARTS))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("mode", ["policy"])
def test_run_killed_after_each_step(new_bundle: NewBundle, witness: Path, mode: str, part: int) -> None:
    kill_the_launcher(new_bundle, witness, mode, "run", slice(part, None, PARTS))


@pytest.mark.parametrize("mode", MODES)
def test_create_killed_at_some_steps(new_bundle: NewBundle, witness: Path, mode: str) -> None:
    kill_the_launcher(new_bundle, witness, mode, "create", slice(5, None, 17))


# The first process is killed: the launcher says so in one line and takes everything back itself.
@pytest.mark.parametrize("mode", MODES)
def test_the_first_process_killed_after_steps(new_bundle: NewBundle, witness: Path, mode: str) -> None:
    points = [point for point in steps_of(prepared(new_bundle(), mode, witness), witness) if point[0] == "guest"]
    for point in points[:: 3 if SLOW == 1 else 12]:
        bundle = prepared(new_bundle(), mode, witness)
        reached, status, err = kill_at(witness / "errors", "first", point, bundle.words("create"))
        assert reached, (point, err)
        assert "Traceback" not in err
        if status:
            assert (status, len(err.splitlines())) == (1, 1), (point, err)
            assert bundle.leftovers() == [], (point, err)
        else:  # it had parked
            assert bundle.status == "stopped", point
        assert not (witness / bundle.id).exists(), point
        everything_goes(bundle, point)


# A parked first process that is killed: the container has stopped, and start says so.
@pytest.mark.slow_on_vm(False)
def test_a_parked_process_is_killed(bundle: Bundle, witness: Path) -> None:
    prepared(bundle, "policy", witness).create().ok()
    os.kill(bundle.pid, signal.SIGKILL)
    bundle.await_status("stopped")
    started = bundle.start()
    assert (started.rc, len(started.err.splitlines())) == (1, 1), started
    assert bundle.exec("true").rc == 255
    bundle.delete().ok()
    assert bundle.leftovers() == []
    assert not (witness / bundle.id).exists()


# start is killed at any moment: the container is created still, or runs; never something between.
def test_start_is_killed(new_bundle: NewBundle, witness: Path) -> None:
    for delay in (0.0, 0.02, 0.04, 0.06, 0.1):
        bundle = prepared(new_bundle(), "policy", witness)
        bundle.create().ok()
        starting = bundle.begin(*bundle.globals, "start", bundle.id)
        time.sleep(delay * SLOW)
        starting.process.kill()
        starting.finish()
        if settle(bundle, witness):
            wait_for(lambda bundle=bundle: bundle.exec("true").rc == 0, "the container to run")
        elif bundle.status == "created":
            again = bundle.start()
            assert "Traceback" not in again.err, again
        everything_goes(bundle, delay)


# exec is killed: what it has begun ends with it or is in the container's groups, where delete finds it.
@pytest.mark.parametrize("mode", ["plain", "policy"])
def test_exec_is_killed(bundle: Bundle, witness: Path, mode: str) -> None:
    prepared(bundle, mode, witness).run("--detach").ok()
    everywhere = {hierarchy.mountpoint for hierarchy in hierarchies()}
    for number in range(8):
        executing = bundle.begin(*bundle.globals, "exec", bundle.id, "sleep", f"{77000 + number}")
        time.sleep(0.02 * number * SLOW)
        executing.process.kill()
        executing.finish()
        time.sleep(0.05 * SLOW)
        for pid in _sleepers(77000 + number):
            inside = {h.mountpoint for h in hierarchies() if pid in pids_below(h.group(bundle.cgroup))}
            assert inside == everywhere or pid not in _sleepers(77000 + number), (number, inside)
    limits_hold(bundle)
    everything_goes(bundle, mode)
    assert not [pid for number in range(8) for pid in _sleepers(77000 + number)]


def _sleepers(seconds: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and Path("/proc", entry, "cmdline").read_bytes() == b"sleep\0%d\0" % seconds:
                found.append(int(entry))
        except OSError:
            continue
    return found


# delete is killed after each thing that it removed, and started again.
@pytest.mark.slow_on_vm(False)
@pytest.mark.parametrize("mode", ["plain", "policy"])
def test_delete_killed_half_way(bundle: Bundle, witness: Path, mode: str) -> None:
    prepared(bundle, mode, witness).run("--detach").ok()
    tree = v2_hierarchy()
    if mode == "policy" and tree is not None:
        (tree.group(bundle.cgroup) / "guest/web/deep").mkdir(parents=True)
    kills = 0
    while bundle.leftovers():
        kill_at_removal(witness / "errors", 1, [*bundle.globals, "delete", "--force", bundle.id])
        kills += 1
        assert kills < 200, bundle.leftovers()
    assert kills >= 2
    assert not processes(bundle.cgroup)


# A launcher in the foreground is killed: the container is not left without anybody that knows of it.
def test_run_in_the_foreground_is_killed(bundle: Bundle, witness: Path) -> None:
    running = bundle.begin(*prepared(bundle, "policy", witness).words("run"))
    wait_for((witness / bundle.id).exists, "the program")
    running.process.kill()
    running.finish()
    if processes(bundle.cgroup):
        limits_hold(bundle)
    assert bundle.status in ("running", "stopped")
    everything_goes(bundle, "run")
