"""containerd from the distribution's package, asked by ``ctr``, with nestrt as its runtime.

::

    /nestrt-engines-PID/ctr-NAME      the group that containerd is told to use
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from support.daemons import Containerd
from support.engines import group_of
from support.hostside import group_file, groups, is_v2_only, read
from support.podman import IMAGE, on_terminal
from support.runner import wait_for

SLEEP = ("-d", "--", "sleep", "1000")


def task(containerd: Containerd, name: str) -> tuple[int, str]:
    """(pid, status) of the container's task, (0, "") where there is none."""
    for line in containerd("task", "ls").ok().out.splitlines()[1:]:
        words = line.split()
        if words[0] == name:
            return int(words[1]), words[2]
    return 0, ""


@pytest.mark.parametrize(
    ("command", "expected", "told"),
    [
        (("sh", "-c", "echo out; exit 3"), 3, ""),
        (("nosuch",), 1, 'exec: "nosuch": executable file not found in $PATH'),
        (("/etc",), 1, 'exec: "/etc": permission denied'),
    ],
)
def test_run(containerd: Containerd, command: tuple[str, ...], expected: int, told: str) -> None:
    result = containerd.run("one", "--rm", "--", *command)
    assert result.rc == expected, result
    assert told in result.err, result
    assert result.out == ("out\n" if expected == 3 else "")


def test_task(containerd: Containerd) -> None:
    """A task in the background: its list, processes, metrics; exec; pause and resume; kill and delete."""
    containerd.run("one", "--memory-limit", str(64 << 20), "--env", "A=b", *SLEEP).ok()
    group = containerd.group("one")
    pid, status = task(containerd, "one")
    assert status == "RUNNING"
    assert set(group_of(pid).values()) == {group}
    assert read("memory", group, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    found = containerd("task", "exec", "--exec-id", "x", "--cwd", "/tmp", "one", "sh", "-c", "echo $A; pwd; exit 5")
    assert (found.rc, found.out.split()) == (5, ["b", "/tmp"]), found
    refused = containerd("task", "exec", "--exec-id", "y", "one", "nosuch")
    assert refused.rc != 0
    assert "executable file not found in $PATH" in refused.err
    containerd("task", "exec", "-d", "--exec-id", "z", "one", "sleep", "999").ok()
    rows = [int(line.split()[0]) for line in containerd("task", "ps", "one").ok().out.splitlines()[1:]]
    assert pid in rows
    assert sorted(rows) == sorted(int(word) for word in read("pids", group, "cgroup.procs", "cgroup.procs").split())
    assert len(rows) == 2
    assert str(64 << 20) in containerd("task", "metrics", "one").ok().out
    containerd("task", "kill", "-s", "KILL", "one").ok()
    wait_for(lambda: task(containerd, "one")[1] == "STOPPED", "the task to stop")
    containerd("task", "delete", "one")
    wait_for(lambda: not groups(group), "the groups to go")


def test_pause(containerd: Containerd) -> None:
    containerd.run("one", "-d", "--", "sh", "-c", "while :; do :; done").ok()
    pid, _ = task(containerd, "one")
    stat = Path(f"/proc/{pid}/stat")
    containerd("task", "pause", "one").ok()
    assert task(containerd, "one")[1] == "PAUSED"
    before = stat.read_text()
    time.sleep(0.2)
    assert stat.read_text() == before
    containerd("task", "resume", "one").ok()
    wait_for(lambda: stat.read_text() != before, "it to go on")


def test_terminal(containerd: Containerd) -> None:
    """``ctr run -t`` and ``task exec -t`` on real terminals."""
    words = ("ctr", "--address", f"{containerd.store}/c.sock", "--namespace", "nestrt")
    run = ("run", "--rm", "-t", "--runc-binary", containerd.runtime, "--cgroup", containerd.group("one"), IMAGE, "one")
    argv = containerd.nest.words(*words, *run, "sh", "-c", "tty; read x; echo got $x; exit 4")
    rc, text = on_terminal(argv, "word\r", env=containerd.nest.env)
    assert rc == 4, text
    assert "/dev/pts/0" in text
    assert "got word" in text
    containerd.run("two", *SLEEP).ok()
    argv = containerd.nest.words(*words, "task", "exec", "-t", "--exec-id", "x", "two", "tty")
    rc, text = on_terminal(argv, "", env=containerd.nest.env)
    assert rc == 0, text
    assert "/dev/pts/0" in text


def test_rights(containerd: Containerd) -> None:
    """--seccomp, a user namespace, --privileged, --read-only, --mount, --net-host."""
    ids = ("--uidmap", "0:100000:5000", "--gidmap", "0:200000:5000")
    for options, rows in ((("--seccomp",), "0 0"), (ids, "0 100000 5000")):
        asked = "cat /proc/self/status /proc/self/uid_map /proc/self/gid_map"
        text = containerd.run("one", "--rm", *options, "--", "sh", "-c", asked).ok().out
        found = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        assert rows in " ".join(text.split())
        assert found["Uid"].split() == ["0"] * 4
        assert not int(found["CapEff"], 16) >> 21 & 1  # CAP_SYS_ADMIN
        assert found["NoNewPrivs"] == "1"
        assert found["Seccomp"] == ("2" if options == ("--seccomp",) else "0")
    mount = f"type=bind,src={containerd.store},dst=/mnt,options=rbind:ro"
    asked = "touch /x || ls /mnt/c.sock; readlink /proc/self/ns/net"
    words = ("--rm", "--read-only", "--net-host", "--mount", mount, "--", "sh", "-c", asked)
    result = containerd.run("two", *words).ok()
    net = os.readlink(f"/proc/{containerd.nest.holder.pid}/ns/net")
    assert result.out.split() == ["/mnt/c.sock", net]
    assert "Read-only" in result.err
    containerd.run("three", "--rm", "--privileged", "--", "mount", "-t", "tmpfs", "none", "/mnt").ok()


def test_virtualized(containerd: Containerd) -> None:
    """With the annotation the container has its own tree; ps, pause and kill still reach all of it.

    Metrics are the limit group's, the child group's included: the shim takes the group that the first process is in
    when create returns. ctr's document has no cgroup mount: the view is there all the same.
    """
    memory = group_file("memory", "/", "memory.limit_in_bytes", "memory.max")
    web = memory.parent / "web"
    program = f"mkdir {web}; (echo 0 > {web}/cgroup.procs; exec sleep 999) & exec sleep 998"
    annotation = ("--annotation", "nestrt.level.virtualize=true")
    options = (*annotation, "--memory-limit", str(64 << 20), "-d")
    containerd.run("one", *options, "--", "sh", "-c", program).ok()
    group = containerd.group("one")
    file = group_file("memory", f"{group}/guest/web", "cgroup.procs", "cgroup.procs")
    wait_for(lambda: file.exists() and file.read_text().split(), "its child group to have a process")
    asked = ("cat", "/proc/self/cgroup", str(memory))
    *rows, limit = containerd("task", "exec", "--exec-id", "x", "one", *asked).ok().out.split()
    assert {row.split(":")[2] for row in rows} == {"/init"}
    assert limit == str(64 << 20)
    assert len(containerd("task", "ps", "one").ok().out.splitlines()) == 3
    metrics = containerd("task", "metrics", "one").ok().out
    if not is_v2_only():
        assert str(64 << 20) in metrics, metrics
        pids = next(line.split()[1] for line in metrics.splitlines() if line.startswith("pids.current"))
        assert pids == read("pids", group, "pids.current", "pids.current")
    containerd("task", "pause", "one").ok()
    containerd("task", "resume", "one").ok()
    containerd("task", "kill", "-a", "-s", "KILL", "one").ok()
    wait_for(lambda: task(containerd, "one")[1] == "STOPPED", "the task to stop")
    containerd("task", "delete", "one")
    wait_for(lambda: not groups(group), "the groups to go")
