"""Law 8 for guests of other runtimes: whatever is killed, and whenever, all of it is found and removed, and nothing
ran with looser limits than asked for.

::

    engine ──▶ nestrt hook precreate   record · groups, limits, marks … · record · document on standard output
               runtime ──▶ hook createRuntime   groups of the guest · moves · mark · record       ──▶ program
                      └──▶ hook poststop        groups, deepest first … · record
    engine ──▶ nestrt wrap             as precreate · config.json.nestrt.PID · config.json · exec ──▶ runtime

Each dot is a call that changes something; after it, kill -9. Who removes what is left: the runtime's own end, the
engine's ``wrap … delete --force``, the next container's hook, or ``nestrt gc``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.bundles import PARENT
from support.hostside import groups, hierarchies, pids_below, processes, read, v2_hierarchy
from support.killing import gone
from support.need import SLOW
from support.plugin_attack import (
    RECORDS,
    RUNC,
    Saboteur,
    Wrapped,
    age,
    new_wrapped_fixture,  # noqa: F401
    records,
    wrapped_fixture,  # noqa: F401
)
from support.runner import wait_for

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewWrapped = Callable[..., Wrapped]
LIMITS: dict[str, Any] = {
    "memory": {"limit": 64 << 20},
    "pids": {"limit": 40},
    "cpu": {"quota": 50000, "period": 100000},
}


@pytest.fixture
def witness(scratch: Path) -> Path:
    """A directory that every container may write to."""
    place = scratch / "plugin-witness"
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    return place


@pytest.fixture
def saboteur(tmp_path: Path) -> Saboteur:
    return Saboteur(tmp_path)


def prepared(one: Wrapped, witness: Path) -> Wrapped:
    """Limits, and a program that leaves a file with the container's id when it runs."""
    one.resources(**LIMITS).mount(str(witness), "/witness")
    return one.shell(f"echo ran > /witness/{one.id}; exec sleep 600")


def limits_hold(one: Wrapped) -> None:
    """What was asked for stands on the limit group, which has all of its processes below it in every hierarchy."""
    group = one.cgroup
    assert read("memory", group, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert read("pids", group, "pids.max", "pids.max") == "40"
    assert read("cpu", group, "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    tree = v2_hierarchy()
    assert tree is not None
    assert (tree.group(group) / "cgroup.max.depth").read_text().strip().isdigit()
    for hierarchy in hierarchies():
        # A process leaves all of its groups at once when it ends.
        inside = pids_below(hierarchy.group(group)) or not processes(group)
        assert inside, f"the program is not in its group of {hierarchy.mountpoint}"


def ran(one: Wrapped, witness: Path, patience: float = 0.1) -> bool:
    """Whether the program runs within *patience* s, and then within its limits."""
    end = time.monotonic() + patience * SLOW
    while time.monotonic() < end and not (witness / one.id).exists() and processes(one.cgroup):
        time.sleep(0.01)
    if not (witness / one.id).exists():
        return False
    if processes(one.cgroup):
        limits_hold(one)
    return True


def points(names: list[str], step: int) -> list[int]:
    """Which calls to kill after: the first and the last ones, those of a rare kind, every *step*-th of the others."""
    assert names
    rare = {name for name in set(names) if names.count(name) < 4}
    ends = {*range(1, 9), *range(len(names) - 5, len(names) + 1)}
    found = {n for n, name in enumerate(names, 1) if name in rare or n % step == 0}
    return sorted(n for n in found | ends if 1 <= n <= len(names))


def tidy(left: list[Wrapped], next_one: Wrapped) -> None:
    """What engines never came back for is taken by the next container's hook, or by gc: all of it."""
    assert left
    age(*left)
    half = left[::2]
    next_one.args("true").run(timeout=60).ok()
    swept = [one for one in half if one.leftovers() == []]
    assert not half or swept
    next_one.nestrt.run("gc", timeout=60).ok()
    for one in left:
        assert one.leftovers() == [], one.record()


# --- before the runtime is called ----------------------------------------------------------------


def engine_and_precreate(one: Wrapped, saboteur: Saboteur, number: int) -> tuple[int, list[str]]:
    """An engine of one process that calls the hook and then is gone: the record names it as the maker."""
    told, tell = os.pipe()
    engine = os.fork()
    if engine == 0:
        os.close(told)
        found = saboteur.run(["hook", "precreate"], "", number, json.dumps(one.config).encode())
        os.write(tell, json.dumps(found).encode())
        os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        status, names = json.loads(pipe.read())
    os.waitpid(engine, 0)
    return status, names


# No runtime is called after a precreate hook that failed. What it had made goes.
def test_precreate_killed(new_wrapped: NewWrapped, saboteur: Saboteur, witness: Path) -> None:
    first = prepared(new_wrapped(), witness)
    status, names = engine_and_precreate(first, saboteur, 0)
    assert status == 0, saboteur.errors.read_text()
    left = [first]
    for number in points(names, 9):
        one = prepared(new_wrapped(), witness)
        status, _ = engine_and_precreate(one, saboteur, number)
        assert status in (-9, 0), saboteur.errors.read_text()
        assert not processes(one.cgroup)
        left.append(one)
    tidy(left, new_wrapped())


# Killed, and its engine begins anew with the same container, as podman does: this time it works.
def test_precreate_killed_and_called_again(new_wrapped: NewWrapped, saboteur: Saboteur, witness: Path) -> None:
    for number in (3, 4, 12, 30, 60):
        one = prepared(new_wrapped(), witness)
        engine_and_precreate(one, saboteur, number)
        result = one.stage("precreate", one.config).ok()
        (one.path / "config.json").write_text(result.out)
        one.runc("run", "--detach", "--bundle", str(one.path), one.id).ok()
        assert ran(one, witness, 5)
        one.runc("delete", "--force", one.id).ok()
        assert one.leftovers() == [], number


def kill_wrap(
    new_wrapped: NewWrapped, saboteur: Saboteur, witness: Path, stage: str, step: int, part: slice = slice(None)
) -> None:
    """Kill ``wrap run``, or the hook *stage* of its guest, at many points."""
    first = prepared(new_wrapped(), witness)
    status, names = saboteur.run(first.words("run", "--detach"), stage, 0)
    assert status == 0, saboteur.errors.read_text()
    assert ran(first, witness, 5)
    first.delete("--force").ok()
    left = []
    for number in points(names, step)[part]:
        one = prepared(new_wrapped(), witness)
        status, _ = saboteur.run(one.words("run", "--detach"), stage, number)
        err = saboteur.errors.read_text()
        assert "Traceback" not in err, (number, err)
        if stage and status:
            # runc has taken its container back, and our poststop the rest.
            assert not ran(one, witness), (number, names[number - 1])
            assert one.leftovers() == [], (number, names[number - 1])
        ran(one, witness)
        if number % 2:
            one.delete("--force").ok()
            assert one.leftovers() == [], (number, names[number - 1])
        elif (one.state_root / one.id).exists():
            one.runc("delete", "--force", one.id).ok()
            assert one.leftovers() == [], (number, names[number - 1])
        else:
            left.append(one)
    if left:
        tidy(left, new_wrapped())


@pytest.mark.parametrize("part", range(2))
def test_wrap_killed(new_wrapped: NewWrapped, saboteur: Saboteur, witness: Path, part: int) -> None:
    kill_wrap(new_wrapped, saboteur, witness, "", 4, slice(part, None, 2))


def test_create_runtime_killed(new_wrapped: NewWrapped, saboteur: Saboteur, witness: Path) -> None:
    kill_wrap(new_wrapped, saboteur, witness, "createRuntime", 3)


def test_poststart_killed(new_wrapped: NewWrapped, saboteur: Saboteur, witness: Path) -> None:
    """The program runs by then: runc ends it or lets it run, within its limits."""
    one = prepared(new_wrapped(), witness)
    one.config["annotations"]["nestrt.level.strict"] = "true"
    saboteur.run(one.words("run", "--detach"), "poststart", 1)
    ran(one, witness)
    one.delete("--force").ok()
    assert one.leftovers() == []


# --- at the end ----------------------------------------------------------------------------------


# poststop has groups of the guest's own making to remove. Killed, it leaves what each of the others takes.
def test_poststop_killed(new_wrapped: NewWrapped, saboteur: Saboteur, witness: Path) -> None:
    left = []
    names: list[str] = []
    tree = v2_hierarchy()
    assert tree is not None
    numbers = [0]
    for number in numbers:
        one = prepared(new_wrapped(), witness)
        saboteur.run(one.words("run", "--detach"), "", 0)
        assert ran(one, witness, 5)
        (tree.group(one.cgroup) / "guest/web/deep").mkdir(parents=True)
        saboteur.tally.write_text("")
        saboteur.point.write_text(f"poststop\n{number}\n{saboteur.tally}\n")
        one.runc("delete", "--force", one.id)
        assert not processes(one.cgroup)
        if not number:
            assert one.leftovers() == []
            names = saboteur.tally.read_text().split()
            numbers += points(names, 5)
            continue
        if number % 2:
            one.delete("--force").ok()
            assert one.leftovers() == [], number
        elif one.leftovers():
            left.append(one)
    gone_bundles(left)
    tidy(left, new_wrapped())


def gone_bundles(guests: list[Wrapped]) -> None:
    """As if an engine had removed the bundles of *guests*, by which one knows that it does not come back."""
    for name, values in records().items():
        if values.get("group") in [one.cgroup for one in guests]:
            (RECORDS / name).write_text(json.dumps({**values, "bundle": f"{values['bundle']}-gone"}))


# wrap … delete --force is killed after each thing that it removed, and started again.
def test_delete_killed_half_way(wrapped: Wrapped, saboteur: Saboteur, witness: Path) -> None:
    prepared(wrapped, witness).run("--detach").ok()
    assert ran(wrapped, witness, 5)
    # The hooks were never told to stop: runc's own state is lost.
    shutil.rmtree(wrapped.state_root / wrapped.id)
    kills = 0
    while wrapped.leftovers():
        saboteur.run([*wrapped.globals, "delete", "--force", wrapped.id], "", 2)
        kills += 1
        assert kills < 200, wrapped.leftovers()
    assert kills >= 5
    assert not processes(wrapped.cgroup)


# update writes the record anew. Killed between two calls, the guest is still found, and no looser than before or after.
def test_update_killed(new_wrapped: NewWrapped, saboteur: Saboteur, witness: Path) -> None:
    long = '{"pids": {"limit": 30}, "memory": {"limit": 50331648}, "cpu": {"quota": 40000, "period": 100000}}'
    short = '{"pids": {"limit": 9}}'
    numbers, killed = [0], 0
    for number in numbers:
        one = prepared(new_wrapped(), witness)
        one.run("--detach").ok()
        assert ran(one, witness, 5)
        one.verb("update", "--resources", "-", one.id, input=long).ok()
        words = [*one.globals, "update", "--resources", "-", one.id]
        status, names = saboteur.run(words, "", number, short.encode())
        if not number:
            assert status == 0, saboteur.errors.read_text()
            numbers += points(names, 5)
        killed += status == -9
        assert read("pids", one.cgroup, "pids.max", "pids.max") in ("30", "9")
        assert read("memory", one.cgroup, "memory.limit_in_bytes", "memory.max") == str(48 << 20)
        assert one.record().get("group") == one.cgroup, (number, names)
        one.delete("--force").ok()
        assert one.leftovers() == []
    assert killed > 5


# --- the engine, the runtime ---------------------------------------------------------------------


# runc is killed while it makes the container: whatever process is there is within the limits, or will not run.
def test_the_runtime_killed_at_any_moment(new_wrapped: NewWrapped, witness: Path) -> None:
    left = []
    for number in range(14):
        one = prepared(new_wrapped(), witness)
        running = one.begin(*one.words("run", "--detach"))
        time.sleep(0.012 * number * SLOW)
        running.process.kill()
        running.finish()
        for pid in processes(one.cgroup):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                groups_of = Path(f"/proc/{pid}/cgroup").read_text()
                assert one.cgroup in groups_of or gone(pid), number
        ran(one, witness, 0.3)
        if number % 2:
            one.delete("--force").ok()
            assert one.leftovers() == [], number
        else:
            left.append(one)
    for one in left:
        # The engine is gone, and with it whoever would have called delete. What lives is a guest, and stays one.
        if processes(one.cgroup) and (witness / one.id).exists():
            limits_hold(one)
        one.delete("--force").ok()
        assert one.leftovers() == []


# Both are killed and nobody has the runtime's state any more; the guest's first process lives. gc leaves it living.
def test_a_guest_without_an_engine(wrapped: Wrapped, witness: Path) -> None:
    prepared(wrapped, witness).run("--detach").ok()
    assert ran(wrapped, witness, 5)
    shutil.rmtree(wrapped.state_root / wrapped.id)
    gone_bundles([wrapped])
    age(wrapped)
    wrapped.nestrt.run("gc").ok()
    limits_hold(wrapped)
    for pid in processes(wrapped.cgroup):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes(wrapped.cgroup), "its processes to end")
    assert wrapped.cgroup in wrapped.nestrt.run("gc").ok().out.split()
    assert wrapped.leftovers() == []


# Guests come and go side by side, with one gc after the other: none is taken from under a start.
def test_gc_takes_nothing_from_starts_under_way(new_wrapped: NewWrapped, tmp_path: Path) -> None:
    collect = f"while [ ! -e {tmp_path}/stop ]; do {new_wrapped().nestrt.command} gc; done"
    collector = subprocess.Popen(["sh", "-c", collect], stdout=subprocess.DEVNULL)
    try:
        for _ in range(3):
            batch = [new_wrapped().shell("sleep 0.1; exit 7") for _ in range(4)]
            started = [one.begin(*one.words("run")) for one in batch]
            for running in started:
                result = running.finish()
                assert (result.rc, result.err) == (7, ""), result
            for one in batch:
                assert one.leftovers() == []
    finally:
        (tmp_path / "stop").touch()
        collector.wait()


# A runtime that fails by itself, before, in and after its own beginning: as little stays as without nestrt.
@pytest.mark.parametrize("how", ["no program", "bad mount", "bad hook", "bad limit", "no root"])
def test_a_runtime_that_fails(wrapped: Wrapped, how: str, tmp_path: Path) -> None:
    wrapped.args("/nosuch" if how == "no program" else "true")
    if how == "bad mount":
        wrapped.mount("/nowhere", "/mnt")
    elif how == "bad hook":
        wrapped.hook("createRuntime", "/bin/false")
    elif how == "bad limit":
        wrapped.resources(cpu={"cpus": "0-500"})
    elif how == "no root":
        wrapped.config["root"]["path"] = str(tmp_path / "nowhere")
    for verb in ("run", "create"):
        result = wrapped.verb(verb, "--bundle", str(wrapped.write().path), wrapped.id)
        assert result.rc == 1, result
        assert "Traceback" not in result.err, result
        wrapped.delete("--force").ok()
        assert wrapped.leftovers() == []
        assert not groups(PARENT)


# The real runtime cannot be executed, or is no program: what wrap has prepared for it does not stay.
@pytest.mark.parametrize("kind", ["text", "not executable", "removed interpreter"])
def test_a_runtime_that_cannot_be_executed(wrapped: Wrapped, tmp_path: Path, kind: str) -> None:
    fake = tmp_path / "runc"
    fake.write_text("#!/nowhere/sh\n" if kind == "removed interpreter" else "hello\n")
    fake.chmod(0o644 if kind == "not executable" else 0o755)
    words = [str(fake) if word == RUNC else word for word in wrapped.words("run")]
    result = wrapped.nestrt.run(*words)
    assert (result.rc, len(result.err.splitlines())) == (1, 1), result
    assert result.err.startswith("nestrt: "), result
    assert wrapped.leftovers() == []
    assert not groups(PARENT)
