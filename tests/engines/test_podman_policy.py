"""podman's containers with a CONTAINER_LEVEL policy, by annotation: trees of their own, and podman none the wiser.

::

    libpod-ID       limit group: podman's path, its limits, its stats
     └ guest        guest root: the container's "/"
        ├ init      its first process
        └ web       a child group of its own
"""

from __future__ import annotations

import json
import os
import signal

import pytest

from support.engines import STATE
from support.guests import parse, script
from support.hostside import group_file, groups, read
from support.need import SLOW
from support.podman import Podman
from support.runner import wait_for

VIRTUALIZE = ("--annotation", "nestrt.level.virtualize=true")


def test_virtualized_view(podman: Podman) -> None:
    """The container sees its own tree, divides it, and cannot raise its own limit."""
    memory = group_file("memory", "/", "memory.limit_in_bytes", "memory.max")
    directory = memory.parent
    web = directory / "web"
    questions = {
        "cgroup": "cut -d: -f3 /proc/self/cgroup | sort -u",
        "own": f"cat {memory}",
        "raise": f"echo 1073741824 > {memory}",
        "make": f"mkdir {web} && echo 16777216 > {web}/{memory.name} && cat {web}/{memory.name}",
        "move": f"echo 0 > {web}/cgroup.procs && grep -c /web /proc/self/cgroup",
        "above": f"ls -d {directory}/libpod* {directory}/../libpod*",
    }
    options = ("--rm", *VIRTUALIZE, "--memory", "64m", "--pids-limit", "50")
    answers = parse(podman.run(*options, "--", "sh", "-c", script(questions)).ok().out)
    assert answers.text("cgroup") == "/init"
    assert answers.text("own") == str(64 << 20)
    assert "Read-only" in answers.refused("raise") or "ermission" in answers.refused("raise")
    assert answers.text("make") == str(16 << 20)
    assert int(answers.text("move")) >= 1
    answers.refused("above")


def test_virtualized_and_the_engine(podman: Podman) -> None:
    """stats counts the child groups too, exec, pause, update and kill reach all of it, and nothing remains."""
    memory = group_file("memory", "/", "memory.limit_in_bytes", "memory.max")
    procs = f"{memory.parent}/web/cgroup.procs"
    program = f"mkdir {memory.parent}/web; (echo 0 > {procs}; exec sleep 999) & sleep 998 & wait"
    name = podman.start(*VIRTUALIZE, "--memory", "64m", "--", "sh", "-c", program)
    group = podman.group(name)
    web = group_file("memory", f"{group}/guest/web", "cgroup.procs", "cgroup.procs")
    wait_for(lambda: web.exists() and web.read_text().split(), "its child group to have a process")
    inner = int(web.read_text().split()[0])
    assert read("memory", group, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert not read("memory", group, "cgroup.procs", "cgroup.procs")
    row = json.loads(podman("stats", "--no-stream", "--format", "json", name).ok().out)[0]
    assert row["mem_usage"].split(" / ")[1] == "67.11MB", row
    assert int(row["pids"]) == 3, row
    assert {line.split(":")[2] for line in podman("exec", name, "cat", "/proc/self/cgroup").out.split()} == {"/init"}
    assert len(podman("top", name, "pid").ok().out.split()) >= 3
    podman("pause", name).ok()
    assert json.loads(podman.nest.nestrt("state", name).out)["status"] == "paused"
    podman("unpause", name).ok()
    podman("update", "--memory", "32m", name).ok()
    shown = podman("exec", name, "cat", str(memory)).ok().out.strip()
    assert shown == str(32 << 20)
    podman("rm", "-f", "-t", "0", name).ok()
    wait_for(lambda: not os.path.exists(f"/proc/{inner}"), "the process of its child group to end")
    assert not podman.clear()
    assert not groups(group)


@pytest.mark.parametrize("profile", ["nested", "strict"])
def test_policy_by_name(podman: Podman, profile: str) -> None:
    answer = podman.run("--rm", "--annotation", f"nestrt.policy={profile}", "--", "cat", "/proc/self/cgroup").ok().out
    assert {line.split(":")[2] for line in answer.split()} == {"/init"}


def test_killed_monitor(podman: Podman) -> None:
    """conmon is killed: podman forgets the container without asking the runtime, whose ``delete`` removes it wholly."""
    name = podman.start(*VIRTUALIZE, "--", "sleep", "1000")
    conmon = int(podman.inspect(name)["State"]["ConmonPid"])
    os.kill(conmon, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{conmon}"), "conmon to end", 10 * SLOW)
    podman("rm", "-f", "-t", "0", name)
    podman.nest.nestrt("delete", "--force", name).ok()
    assert podman.nest.nestrt("list", "-q").ok().out == ""
    assert not (podman.nest.inside(STATE) / name).exists()
