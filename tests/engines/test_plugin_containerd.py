"""containerd with Debian's runc, wrapped: containers with a policy are guests, its metrics are the limit group's.

::

    ctr ──▶ containerd ──▶ shim ──▶ script ──exec──▶ nestrt wrap --runtime runc ──exec──▶ runc

    ctr-NAME        limit group: the path that ctr was given; on v1 the first process waits here until it is started
     └ guest        guest root: the container's "/", runc's group
        ├ init      its first process
        └ web       a child group of its own
"""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from support.engines import kill
from support.guests import script
from support.hostside import group_file, groups, hierarchies, is_v2_only, read
from support.plugin import RUNC, memberships
from support.plugin_engines import (
    FILE,
    PATHS,
    POLICY,
    VIEW,
    WEB,
    WrappedContainerd,
    check_view,
    nothing_left,
)
from support.podman import IMAGE, on_terminal
from support.runner import wait_for

LIMIT = ("--memory-limit", str(64 << 20))


@pytest.fixture
def containerd(wrapped_containerd: WrappedContainerd) -> WrappedContainerd:
    return wrapped_containerd


def task(containerd: WrappedContainerd, name: str) -> tuple[int, str]:
    """(pid, status) of the container's task, (0, "") where there is none."""
    for line in containerd("task", "ls").ok().out.splitlines()[1:]:
        words = line.split()
        if words[0] == name:
            return int(words[1]), words[2]
    return 0, ""


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--privileged",),
        ("--net-host", "--seccomp"),
        ("--read-only",),
    ],
    ids=" ".join,
)
def test_view(containerd: WrappedContainerd, options: tuple[str, ...]) -> None:
    """ctr's document has no cgroup mount: the view is there all the same. (With --uidmap ctr starts runc itself.)"""
    words = ("--rm", *POLICY, *LIMIT, *options)
    check_view(containerd.run("one", *words, "--", "sh", "-c", script(VIEW)).ok().out)
    nothing_left(containerd)


def test_without_a_policy(containerd: WrappedContainerd) -> None:
    containerd.run("one", "-d", "--", "sleep", "1000").ok()
    assert set(memberships(task(containerd, "one")[0]).values()) == {containerd.group("one")}
    assert not containerd.records()


@pytest.mark.parametrize(
    ("command", "expected", "told"),
    [
        (("sh", "-c", "echo out; exit 3"), 3, ""),
        (("nosuch",), 1, 'exec: "nosuch": executable file not found in $PATH'),
        (("/etc",), 1, 'exec: "/etc": permission denied'),
    ],
)
def test_exit_statuses(containerd: WrappedContainerd, command: tuple[str, ...], expected: int, told: str) -> None:
    result = containerd.run("one", "--rm", *POLICY, "--", *command)
    assert result.rc == expected, result
    assert told in result.err, result
    containerd("container", "delete", "one")
    nothing_left(containerd)


def test_refused(containerd: WrappedContainerd) -> None:
    """containerd's user reads our one line."""
    result = containerd.run("one", "--rm", "--annotation", "nestrt.policy=nosuch", "--", "true")
    assert result.rc != 0
    assert "nosuch" in result.err, result
    assert "this host has none of that name" in result.err, result
    containerd("container", "delete", "one")
    nothing_left(containerd)


def test_task(containerd: WrappedContainerd) -> None:
    """Metrics are the limit group's, child groups included; ps, exec, pause, kill and delete reach all of it."""
    program = f"mkdir {WEB}; (echo 0 > {WEB}/cgroup.procs; exec sleep 999) & exec sleep 998"
    containerd.run("one", *POLICY, *LIMIT, "-d", "--", "sh", "-c", program).ok()
    group = containerd.group("one")
    web = group_file("memory", f"{group}/guest/web", "cgroup.procs", "cgroup.procs")
    wait_for(lambda: web.exists() and web.read_text().split(), "its child group to have a process")
    first, status = task(containerd, "one")
    assert status == "RUNNING"
    assert set(memberships(first).values()) == {f"{group}/guest/init"}
    asked = ("cat", "/proc/self/cgroup", str(FILE))
    *rows, limit = containerd("task", "exec", "--exec-id", "x", "one", *asked).ok().out.split()
    assert {row.split(":")[2] for row in rows} <= {"/", "/init"}
    assert limit == str(64 << 20)
    assert len(containerd("task", "ps", "one").ok().out.splitlines()) == 3
    metrics = containerd("task", "metrics", "one").ok().out
    if not is_v2_only():
        assert str(64 << 20) in metrics, metrics
        pids = next(line.split()[1] for line in metrics.splitlines() if line.startswith("pids.current"))
        assert pids == read("pids", group, "pids.current", "pids.current") == "2"
    containerd("task", "pause", "one").ok()
    assert task(containerd, "one")[1] == "PAUSED"
    containerd("task", "resume", "one").ok()
    inner = int(web.read_text().split()[0])
    containerd("task", "kill", "-a", "-s", "KILL", "one").ok()
    wait_for(lambda: task(containerd, "one")[1] == "STOPPED", "the task to stop")
    containerd("task", "delete", "one")
    wait_for(lambda: not os.path.exists(f"/proc/{inner}"), "the process of its child group to end")
    nothing_left(containerd)


def test_again(containerd: WrappedContainerd) -> None:
    """A container's task is ended, and started anew: a guest again."""
    containerd.run("one", *POLICY, "-d", "--", "sleep", "1000").ok()
    for _ in range(2):
        first, _ = task(containerd, "one")
        assert set(memberships(first).values()) == {f"{containerd.group('one')}/guest/init"}
        containerd("task", "kill", "-s", "KILL", "one").ok()
        wait_for(lambda: task(containerd, "one")[1] == "STOPPED", "the task to stop")
        containerd("task", "delete", "one")
        nothing_left(containerd)
        containerd("task", "start", "-d", "one").ok()


def test_terminal(containerd: WrappedContainerd) -> None:
    words = ("ctr", "--address", f"{containerd.containerd.store}/c.sock", "--namespace", "nestrt")
    run = ("run", "--rm", "-t", "--runc-binary", containerd.runtime, "--cgroup", containerd.group("one"), *POLICY)
    argv = containerd.nest.words(*words, *run, IMAGE, "one", "sh", "-c", f"tty; {PATHS}; read x; echo got $x; exit 4")
    rc, text = on_terminal(argv, "word\r", env=containerd.nest.env)
    assert rc == 4, text
    assert "/dev/pts/0" in text
    assert "/init" in text
    assert "got word" in text


def processes_of(containerd: WrappedContainerd, *words: str) -> list[int]:
    found = containerd.nest.processes().items()
    return [number for number, text in found if all(word in text for word in words)]


def test_killed_shim(containerd: WrappedContainerd) -> None:
    """containerd cleans up by the runtime's delete, which is nestrt's too."""
    containerd.run("one", *POLICY, "-d", "--", "sleep", "1000").ok()
    first, _ = task(containerd, "one")
    (shim,) = processes_of(containerd, "containerd-shim-runc-v2", "-id one")
    os.kill(shim, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{first}"), "its first process to end", 20)
    containerd("container", "delete", "one")
    wait_for(lambda: containerd.gc().rc == 0 and not containerd.records(), "nothing to be left", 20)
    assert not groups(containerd.group("one"))


def test_killed_runtime(containerd: WrappedContainerd) -> None:
    """The runtime is killed in the middle of create, with a limit group and no container: the shim deletes by force."""
    store = containerd.containerd.store
    waits = f'case "$*" in *create*) while [ ! -e {store}/gate ]; do sleep 0.02; done;; esac'
    slow = containerd.nest.write("containerd/slow-runc", f'#!/bin/sh\n{waits}\nexec {RUNC} "$@"\n')
    wrapper = containerd.nest.inside(containerd.runtime).read_text().replace(RUNC, slow)
    path = containerd.nest.write("containerd/slow-wrap", wrapper)
    for file in (slow, path):
        containerd.nest.inside(file).chmod(0o755)
    words = ("ctr", "--address", f"{store}/c.sock", "--namespace", "nestrt", "run", "--runc-binary", path)
    options = ("--cgroup", containerd.group("one"), *POLICY, "-d", IMAGE, "one", "sleep", "9")
    argv, null = containerd.nest.words(*words, *options), subprocess.DEVNULL
    starting = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, env=containerd.nest.env)
    runtime = wait_for(lambda: processes_of(containerd, "/bin/sh", "slow-runc", "create"), "the runtime")
    assert all(h.group(containerd.group("one")).is_dir() for h in hierarchies())
    kill(runtime)
    assert starting.wait(30) != 0
    containerd.nest.inside(f"{store}/gate").touch()
    containerd("container", "delete", "one")
    wait_for(lambda: containerd.gc().rc == 0 and not containerd.records(), "nothing to be left", 20)
    assert not groups(containerd.group("one"))
