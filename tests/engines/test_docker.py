"""dockerd from the distribution's package, with nestrt as its default runtime.

::

    /nestrt-engines-PID/ID      the group that docker names: limits, processes
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemons import DOCKER, Docker
from support.engines import group_of
from support.guests import parse, script
from support.hostside import group_file, groups, read
from support.podman import IMAGE, on_terminal
from support.runner import wait_for

SLEEP = ("--", "sleep", "1000")


def pid(docker: Docker, name: str) -> int:
    return int(docker.inspect(name)["State"]["Pid"])


@pytest.mark.parametrize(
    ("command", "expected", "told"),
    [
        (("sh", "-c", "echo out; echo wrong >&2; exit 3"), 3, "wrong"),
        (("nosuch",), 127, 'exec: "nosuch": executable file not found in $PATH'),
        (("/etc",), 126, 'exec: "/etc": permission denied'),
    ],
)
def test_run(docker: Docker, command: tuple[str, ...], expected: int, told: str) -> None:
    result = docker.run("--rm", "--", *command)
    assert result.rc == expected, result
    assert told in result.err, result
    assert result.out == ("out\n" if expected == 3 else "")


def test_standard_streams_and_files(docker: Docker) -> None:
    questions = {
        "given": "cat /proc/self/fd/3 2>/dev/null; echo $A; pwd; id -u; id -G; hostname",
        "root": "touch /x",
        "tmpfs": "touch /t/x && df -k /t | tail -1",
        "bound": "ls /mnt/daemon.json && touch /mnt/x",
        "device": "head -c 1 /dev/zzz | wc -c",
        "rights": "grep -E 'CapEff|Seccomp:' /proc/self/status",
        "pid1": "cat /proc/1/cmdline | tr '\\0' ' '",
        "shm": "df -k /dev/shm | tail -1",
        "dns": "grep 198.51.100.7 /etc/resolv.conf",
    }
    options = (
        *("--rm", "-e", "A=b c", "-w", "/tmp", "--hostname", "box", "--read-only", "--tmpfs", "/t:size=2m"),
        *("-v", f"{docker.store}:/mnt:ro", "--device", "/dev/zero:/dev/zzz:r", "--init", "--shm-size", "3m"),
        *("--cap-drop", "ALL", "--dns", "198.51.100.7", "--group-add", "60"),
    )
    answers = parse(docker.run(*options, "--", "sh", "-c", script(questions)).ok().out)
    assert answers.text("given").splitlines() == ["b c", "/tmp", "0", "0 60", "box"]
    assert "Read-only" in answers.refused("root")
    assert "2048" in answers.text("tmpfs")
    assert "Read-only" in answers.refused("bound")
    assert answers.text("device") == "1"
    assert answers.text("rights").split() == ["CapEff:", "0" * 16, "Seccomp:", "2"]
    assert "init" in answers.text("pid1")
    assert "3072" in answers.text("shm")
    answers.text("dns")
    result = docker.run("--rm", "-i", "-u", "1000", "--", "sh", "-c", "cat; id -u", input="given\n").ok()
    assert result.out == "given\n1000\n"
    docker.run("--rm", "--privileged", "--", "mount", "-t", "tmpfs", "none", "/mnt").ok()


def test_a_real_terminal(docker: Docker) -> None:
    """``docker run -it`` on a terminal of 33 x 111: the container's gets that size, and keys arrive."""
    asked = "while [ \"$(stty size)\" != '33 111' ]; do sleep 0.1; done; stty size; tty; read x; echo got $x; exit 4"
    argv = docker.nest.words(DOCKER, "run", "--rm", "-it", IMAGE, "sh", "-c", asked)
    rc, text = on_terminal(argv, "word\r", env={**docker.nest.env, **docker.env}, rows=33, columns=111)
    assert rc == 4, text
    assert "33 111" in text
    assert "/dev/pts/0" in text
    assert "got word" in text


def test_exec(docker: Docker) -> None:
    name = docker.start("-e", "A=b", *SLEEP)
    found = docker("exec", "-e", "C=d", "-w", "/tmp", "-u", "1000", name, "sh", "-c", "echo $A$C; pwd; id -u; exit 5")
    assert (found.rc, found.out.split()) == (5, ["bd", "/tmp", "1000"]), found
    assert docker("exec", "-i", name, "cat", input="given").ok().out == "given"
    assert docker("exec", "-t", name, "tty").ok().out.strip() == "/dev/pts/0"
    refused = docker("exec", name, "nosuch")
    assert refused.rc in (126, 127)  # the engine's choice: 126 up to 20.10, 127 from 23 on
    assert "executable file not found in $PATH" in refused.out + refused.err
    docker("exec", "-d", name, "sleep", "999").ok()
    members = group_file("pids", docker.group(name), "cgroup.procs", "cgroup.procs")
    wait_for(lambda: len(members.read_text().split()) == 2, "the command in the background")
    assert "sleep 999" in docker("top", name).ok().out
    assert f" {pid(docker, name)} " in docker("top", name).out


def test_life(docker: Docker) -> None:
    """Detached: logs, pause, kill, stop, start, restart, rm; its groups come and go with it."""
    program = "trap 'echo one' USR1; trap 'echo ending; exit 7' TERM; echo begun; while :; do sleep 0.1; done"
    name = docker.start("--", "sh", "-c", program)
    wait_for(lambda: "begun" in docker("logs", name).out, "its log")
    group = docker.group(name)
    assert set(group_of(pid(docker, name)).values()) == {group}
    docker("pause", name).ok()
    assert docker.inspect(name)["State"]["Status"] == "paused"
    stat = Path(f"/proc/{pid(docker, name)}/stat")
    before = stat.read_text()
    time.sleep(0.3)
    assert stat.read_text() == before
    docker("unpause", name).ok()
    docker("kill", "-s", "USR1", name).ok()
    wait_for(lambda: "one" in docker("logs", name).out, "the signal")
    docker("stop", name).ok()
    assert docker.inspect(name)["State"]["ExitCode"] == 7
    assert "ending" in docker("logs", name).out
    assert not groups(group)
    docker("start", name).ok()
    assert docker.inspect(name)["State"]["Status"] == "running"
    docker("kill", name).ok()
    assert docker("wait", name).ok().out.strip() == "137"
    docker("rm", name).ok()


def test_limits(docker: Docker) -> None:
    """What is asked for stands on docker's group, is shown by stats, and can be changed while it runs."""
    options = ("--memory", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--pids-limit", "30", "--cpuset-cpus", "0")
    name = docker.start(*options, "--cpu-shares", "512", *SLEEP)
    group = docker.group(name)
    assert read("memory", group, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert read("pids", group, "pids.max", "pids.max") == "30"
    assert read("cpu", group, "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    assert read("cpuset", group, "cpuset.cpus", "cpuset.cpus") == "0"
    row = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", name).ok().out)
    assert row["MemUsage"].endswith(" / 64MiB"), row
    assert row["PIDs"] == "1"
    docker("update", "--memory", "32m", "--memory-swap", "32m", "--cpus", "0.25", "--pids-limit", "40", name).ok()
    assert read("memory", group, "memory.limit_in_bytes", "memory.max") == str(32 << 20)
    assert read("cpu", group, "cpu.cfs_quota_us", "cpu.max").split()[0] == "25000"
    assert read("pids", group, "pids.max", "pids.max") == "40"


def test_networks(docker: Docker) -> None:
    """none, host, another container's, and docker's bridge, on which one container reaches another."""
    assert docker.run("--rm", "--network", "none", "--", "ls", "/sys/class/net").ok().out.split() == ["lo"]
    own = os.readlink(f"/proc/{docker.nest.holder.pid}/ns/net")
    assert docker.run("--rm", "--network", "host", "--", "readlink", "/proc/self/ns/net").ok().out.strip() == own
    server = docker.start("--", "sh", "-c", "while :; do echo hello | nc -l -p 80; done")
    address = docker.inspect(server)["NetworkSettings"]["IPAddress"]
    asked = f"for n in $(seq 50); do nc -w 5 {address} 80 </dev/null && exit; sleep 0.2; done; exit 1"
    assert "hello" in docker.run("--rm", "--", "sh", "-c", asked).ok().out
    assert address in docker.run("--rm", "--network", f"container:{server}", "--", "ip", "-4", "addr").ok().out


def test_build(docker: Docker) -> None:
    """``docker build`` runs its steps with nestrt."""
    text = f"FROM {IMAGE}\nRUN echo made > /made && cat /proc/self/cgroup > /groups\nCMD cat /made\n"
    docker("build", "-q", "-t", "localhost/made", "-", input=text, timeout=120).ok()
    assert docker("run", "--rm", "localhost/made").ok().out == "made\n"
    docker("rmi", "localhost/made").ok()


@pytest.fixture
def bound_to_default(docker: Docker) -> Iterator[None]:
    """A rule of the host, in the Nest's own /etc: every container of docker has the policy "default"."""
    directory = docker.nest.inside("/etc/nestrt")
    directory.mkdir(mode=0o755)
    (directory / "bindings.toml").write_text('[[rule]]\nmatch = { engine = "docker" }\npolicy = "default"\n')
    yield
    shutil.rmtree(directory)


@pytest.mark.usefixtures("bound_to_default")
def test_virtualized(docker: Docker) -> None:
    """The host's rule gives docker's containers trees of their own; top, pause, update and kill reach all of it.

    ::

        ID             limit group: docker's path, its limits
         └ guest       guest root: the container's "/"
            ├ init     its first process
            └ web      a child group of its own
    """
    memory = group_file("memory", "/", "memory.limit_in_bytes", "memory.max")
    web = memory.parent / "web"
    program = f"mkdir {web}; (echo 0 > {web}/cgroup.procs; exec sleep 999) & exec sleep 998"
    name = docker.start("--memory", "64m", "--", "sh", "-c", program)
    group = docker.group(name)
    file = group_file("memory", f"{group}/guest/web", "cgroup.procs", "cgroup.procs")
    wait_for(lambda: file.exists() and file.read_text().split(), "its child group to have a process")
    assert read("memory", group, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    questions = {
        "view": "cut -d: -f3 /proc/self/cgroup | sort -u",
        "own": f"cat {memory}",
        "raise": f"echo 1073741824 > {memory}",
        "divide": f"echo 16777216 > {web}/{memory.name} && cat {web}/{memory.name}",
    }
    answers = parse(docker("exec", name, "sh", "-c", script(questions)).ok().out)
    assert answers.text("view") == "/init"
    assert answers.text("own") == str(64 << 20)
    assert "Read-only" in answers.refused("raise")
    assert answers.text("divide") == str(16 << 20)
    assert len(docker("top", name).ok().out.splitlines()) == 3
    docker("pause", name).ok()
    docker("unpause", name).ok()
    docker("update", "--memory", "48m", "--memory-swap", "48m", name).ok()
    assert docker("exec", name, "cat", str(memory)).ok().out.strip() == str(48 << 20)
    inner = file.read_text().split()[0]
    docker("rm", "-f", name).ok()
    wait_for(lambda: not os.path.exists(f"/proc/{inner}"), "the process of its child group to end")
    wait_for(lambda: not groups(group), "the groups to go")
