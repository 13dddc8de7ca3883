"""dockerd with Debian's runc, wrapped: its containers are guests by the host's word, and docker none the wiser.

::

    dockerd ──▶ containerd ──▶ shim ──▶ nestrt wrap --runtime runc --policy nested ──exec──▶ runc

    ID              limit group: docker's path, its limits, its stats; on v1 the first process waits here
     └ guest        guest root: the container's "/", runc's group
        ├ init      its first process
        └ web       a child group of its own
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemons import DOCKER
from support.guests import script
from support.hostside import group_file, read
from support.plugin import COMMAND, memberships
from support.plugin_engines import (
    FILE,
    MEMORY,
    PATHS,
    SLEEP,
    VIEW,
    WEB,
    WrappedDocker,
    bytes_of,
    check_view,
    is_first,
    nothing_left,
    pid,
    seen_by_host,
)
from support.podman import IMAGE, on_terminal
from support.runner import wait_for

# docker's --privileged asks for every capability, and a machine may have fewer.
RIGHTS = ("--cap-add", "SYS_ADMIN", "--cap-add", "DAC_READ_SEARCH", "--security-opt", "seccomp=unconfined")


@pytest.fixture
def docker(wrapped_docker: WrappedDocker) -> WrappedDocker:
    return wrapped_docker


@pytest.mark.parametrize(
    "options",
    [
        ("--network", "none"),
        ("--network", "host", *RIGHTS),
        ("--network", "host", "--cgroupns", "host"),
        ("--network", "host", "--pid", "host"),
        ("--network", "none", "--read-only", "--init", "--cap-drop", "ALL"),
        ("--network", "none", "-v", "/sys/fs/cgroup:/sys/fs/cgroup"),
    ],
    ids=" ".join,
)
def test_view(docker: WrappedDocker, options: tuple[str, ...]) -> None:
    words = ("--rm", *options, "--memory", "64m", "--pids-limit", "50")
    check_view(docker.run(*words, "--", "sh", "-c", script(VIEW)).ok().out)
    nothing_left(docker)


def test_the_whole_host_bound(docker: WrappedDocker) -> None:
    """``-v /:/host``: the host's groups are not in it, or not writable."""
    name = docker.start("--network", "none", *RIGHTS, "--pids-limit", "50", "-v", "/:/host", *SLEEP)
    group = docker.group(name)
    file = group_file("pids", group, "pids.max", "pids.max")
    assert docker("exec", name, "sh", "-c", f"echo 4000 > /host{file}").rc != 0
    assert file.read_text() == "50\n"


def test_exit_statuses(docker: WrappedDocker) -> None:
    for command, expected, told in (
        (("sh", "-c", "echo wrong >&2; exit 3"), 3, "wrong"),
        (("nosuch",), 127, 'exec: "nosuch": executable file not found in $PATH'),
        (("/etc",), 126, 'exec: "/etc": permission denied'),
    ):
        result = docker.run("--rm", "--network", "none", "--", *command)
        assert result.rc == expected, result
        assert told in result.err
        nothing_left(docker)


def test_a_real_terminal(docker: WrappedDocker) -> None:
    asked = "while [ \"$(stty size)\" != '33 111' ]; do sleep 0.1; done; stty size; tty; read x; echo got $x; exit 4"
    argv = docker.nest.words(DOCKER, "run", "--rm", "--network", "none", "-it", IMAGE, "sh", "-c", asked)
    rc, text = on_terminal(argv, "word\r", env={**docker.nest.env, **docker.env}, rows=33, columns=111)
    assert rc == 4, text
    assert "33 111" in text
    assert "got word" in text


def test_stats_and_the_rest(docker: WrappedDocker) -> None:
    """stats, top, exec, pause, update, kill: they count, limit and reach the child groups too."""
    program = f"mkdir {WEB}; (echo 0 > {WEB}/cgroup.procs; exec sleep 999) & exec sleep 998"
    name = docker.start("--network", "none", "--memory", "64m", "--pids-limit", "50", "--", "sh", "-c", program)
    group = docker.group(name)
    web = group_file("memory", f"{group}/guest/web", "cgroup.procs", "cgroup.procs")
    wait_for(lambda: web.exists() and web.read_text().split(), "its child group to have a process")
    assert is_first(docker, name)
    row = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", name).ok().out)
    assert row["MemUsage"].endswith(" / 64MiB"), row
    assert row["PIDs"] == read("pids", group, "pids.current", "pids.current") == "2", row
    shown = seen_by_host(docker, group)
    assert (shown["made_by"], shown["claim"], shown["pid"]) == ("docker/plugin", False, pid(docker, name))
    assert (shown["memory"]["effective"], shown["pids"]["usage"], shown["pids"]["effective"]) == (64 << 20, 2, 50)
    assert abs(shown["memory"]["usage"] - bytes_of(row["MemUsage"].split()[0])) < 4 << 20, (shown, row)
    assert len(docker("top", name).ok().out.splitlines()) == 3
    rows = docker("exec", name, "cat", "/proc/self/cgroup").ok().out.split()
    assert {row.split(":")[2] for row in rows} <= {"/", "/init"}
    assert docker("exec", "-i", name, "cat", input="given").ok().out == "given"
    assert docker("exec", name, "nosuch").rc in (126, 127)
    docker("pause", name).ok()
    assert docker.inspect(name)["State"]["Status"] == "paused"
    docker("unpause", name).ok()
    docker("update", "--memory", "32m", "--memory-swap", "32m", "--pids-limit", "40", "--cpus", "0.25", name).ok()
    for below in ("", "/guest"):
        assert read(MEMORY[0], group + below, *MEMORY[1:]) == str(32 << 20)
        assert read("pids", group + below, "pids.max", "pids.max") == "40"
        assert read("cpu", group + below, "cpu.cfs_quota_us", "cpu.max").split()[0] == "25000"
    assert docker("exec", name, "cat", str(FILE)).ok().out.strip() == str(32 << 20)
    docker("update", "--memory", "128m", "--memory-swap", "128m", name).ok()
    assert read(MEMORY[0], group, *MEMORY[1:]) == str(128 << 20)
    assert name[:12] in docker.nest.run(COMMAND, "ls").ok().out
    inner = int(web.read_text().split()[0])
    docker("rm", "-f", name).ok()
    wait_for(lambda: not os.path.exists(f"/proc/{inner}"), "the process of its child group to end")
    nothing_left(docker)


def test_again(docker: WrappedDocker) -> None:
    """stop and start, restart, and one that restarts by itself: a guest each time."""
    words = ("--network", "none", "--pids-limit", "40")
    name = docker.start(*words, "--", "sh", "-c", f"{PATHS}; exec sleep 1000")
    docker("stop", "-t", "0", name).ok()
    nothing_left(docker)
    docker("start", name).ok()
    docker("restart", "-t", "0", name).ok()
    assert is_first(docker, name)
    assert len(docker.records()) == 1
    wait_for(lambda: docker("logs", name).out.split() == ["/init"] * 3, "its log")
    docker("rm", "-f", name).ok()
    nothing_left(docker)
    name = docker.start(*words, "--restart", "on-failure:2", "--", "sh", "-c", f"{PATHS}; exit 5")
    wait_for(lambda: docker("logs", name).out.split() == ["/init"] * 3, "it to be started three times", 20)
    wait_for(lambda: docker.inspect(name)["State"]["Status"] == "exited", "it to give up")
    nothing_left(docker)


@pytest.fixture
def rules(docker: WrappedDocker) -> Iterator[Path]:
    """/etc/nestrt of the Nest."""
    directory = docker.nest.inside("/etc/nestrt")
    directory.mkdir(mode=0o755)
    yield directory
    shutil.rmtree(directory)


def test_rules_of_the_host(docker: WrappedDocker, rules: Path) -> None:
    """A runtime without --policy: the host's rules say which containers are guests, and what bounds them."""
    plain = docker.start("--runtime", "open", "--network", "none", *SLEEP)
    assert set(memberships(pid(docker, plain)).values()) == {docker.group(plain)}
    (rules / "policies").mkdir(mode=0o755)
    (rules / "policies" / "small.toml").write_text('[limits]\nmemory = "48M"\n')
    (rules / "bindings.toml").write_text('[[rule]]\nmatch = { engine = "docker" }\npolicy = "small"\n')
    name = docker.start("--runtime", "open", "--network", "none", "--memory", "64m", *SLEEP)
    group = docker.group(name)
    assert is_first(docker, name)
    assert read(MEMORY[0], group, *MEMORY[1:]) == str(48 << 20)
    docker("update", "--memory", "1g", "--memory-swap", "1g", name).ok()
    assert read(MEMORY[0], group, *MEMORY[1:]) == str(48 << 20)
    # What ran before the rule goes on as it was.
    docker("update", "--pids-limit", "30", plain).ok()
    docker("rm", "-f", plain, name).ok()
    nothing_left(docker)
    (rules / "bindings.toml").write_text('[[rule]]\npolicy = "nosuch"\n')
    result = docker.run("--rm", "--runtime", "open", "--network", "none", "--", "true")
    assert result.rc != 0
    assert "nosuch" in result.err, result


def processes_of(docker: WrappedDocker, *words: str) -> list[int]:
    """The processes in the Nest of which the command line has *words*."""
    return [number for number, text in docker.nest.processes().items() if all(word in text for word in words)]


def test_killed_shim(docker: WrappedDocker) -> None:
    """containerd cleans up after a shim that was killed: by the runtime's delete, which is nestrt's too."""
    name = docker.start("--network", "none", *SLEEP)
    first = pid(docker, name)
    (shim,) = processes_of(docker, "containerd-shim", name)
    os.kill(shim, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{first}"), "its first process to end", 20)
    wait_for(lambda: docker.inspect(name)["State"]["Status"] == "exited", "docker to see it", 20)
    docker("rm", "-f", name).ok()
    wait_for(lambda: docker.gc().rc == 0 and not docker.leftovers(), "nothing to be left", 20)


def test_killed_first_process(docker: WrappedDocker) -> None:
    name = docker.start("--network", "none", *SLEEP)
    os.kill(pid(docker, name), signal.SIGKILL)
    assert docker("wait", name).ok().out.strip() == "137"
    nothing_left(docker)


def test_many_at_once(docker: WrappedDocker) -> None:
    names = [docker.start("--network", "none", "--pids-limit", str(40 + n), "--", "sleep", "1") for n in range(4)]
    assert docker("wait", *names).ok().out.split() == ["0"] * 4
    nothing_left(docker)
