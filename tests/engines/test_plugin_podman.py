"""podman with Debian's runc and nestrt's precreate hook: guests of another runtime, and podman none the wiser.

::

    podman ──config──▶ nestrt hook precreate ──config──▶ podman ──▶ conmon ──▶ runc ──▶ nestrt hook createRuntime, …

    libpod-ID       limit group: podman's path, its limits, its stats
     └ guest        guest root: the container's "/", runc's group
        ├ init      its first process
        └ web       a child group of its own
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.broker import running
from support.engines import kill
from support.guests import script
from support.hostside import group_file, groups, hierarchies, mark, read
from support.plugin import COMMAND, memberships
from support.plugin_engines import (
    FILE,
    MEMORY,
    PATHS,
    POLICY,
    SLEEP,
    VIEW,
    WEB,
    HookedPodman,
    bytes_of,
    check_view,
    is_first,
    nothing_left,
    pid,
    seen_by_host,
)
from support.podman import IMAGE
from support.runner import wait_for


@pytest.fixture
def podman(hooked_podman: HookedPodman) -> HookedPodman:
    return hooked_podman


def status(podman: HookedPodman, name: str) -> str:
    return str(podman.inspect(name)["State"]["Status"])


# The laws, in the words of a user of podman; whatever else is asked of podman, they hold.
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--uidmap", "0:100000:5000", "--gidmap", "0:200000:5000"),
        ("--userns", "auto:size=4000"),
        ("--privileged",),
        ("--cgroupns", "host"),
        ("--cgroupns", "private"),
        ("--network", "host"),
        ("--pid", "host", "--ipc", "host"),
        ("--read-only", "--init"),
        ("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        ("--security-opt", "seccomp=unconfined", "--cap-add", "SYS_ADMIN"),
        ("-v", "/sys/fs/cgroup:/sys/fs/cgroup"),
        ("-v", "/sys/fs/cgroup:/sys/fs/cgroup:ro"),
        ("--systemd", "always", "--cgroupns", "private"),
        ("--tmpfs", "/mnt"),
    ],
    ids=" ".join,
)
def test_view(podman: HookedPodman, options: tuple[str, ...]) -> None:
    words = ("--rm", *POLICY, *options, "--memory", "64m", "--pids-limit", "50")
    check_view(podman.run(*words, "--", "sh", "-c", script(VIEW)).ok().out)
    nothing_left(podman)


def test_a_user_namespace_and_the_hosts_network(podman: HookedPodman) -> None:
    """podman binds the host's /sys then, with all that is mounted below."""
    words = ("--rm", *POLICY, "--memory", "64m", "--uidmap", "0:100000:5000", "--gidmap", "0:200000:5000")
    check_view(podman.run(*words, "--network", "host", "--", "sh", "-c", script(VIEW)).ok().out)


def test_the_whole_host_bound(podman: HookedPodman) -> None:
    """``-v /:/host``: the host's groups are not in it, or not writable."""
    name = podman.start(*POLICY, "--privileged", "--pids-limit", "50", "-v", "/:/host", *SLEEP)
    group = podman.group(name)
    file = group_file("pids", group, "pids.max", "pids.max")
    assert podman("exec", name, "sh", "-c", f"echo 4000 > /host{file}").rc != 0
    assert file.read_text() == "50\n"


# Law 7, opt-in: without a policy it is podman's container, as under runc.
def test_without_a_policy(podman: HookedPodman) -> None:
    name = podman.start("--memory", "64m", *SLEEP)
    group = podman.group(name)
    assert set(memberships(pid(podman, name)).values()) == {group}
    assert not podman.records()
    for place in groups(group):
        assert not [key for key in os.listxattr(place) if "nestrt" in key]
    assert not [hook for hooks in _hooks(podman, name).values() for hook in hooks if "nestrt" in hook["path"]]


def _hooks(podman: HookedPodman, name: str) -> dict[str, list[dict[str, str]]]:
    path = podman.nest.inside(podman.inspect(name)["OCIConfigPath"])
    found: dict[str, list[dict[str, str]]] = json.loads(path.read_text()).get("hooks") or {}
    return found


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--cgroups=disabled",), "cgroup-manager"),  # which runc has not: it says so first
        (("--annotation", "nestrt.level.max_level=many"), "nestrt.level.max_level"),
        (("--annotation", "nestrt.policy=nosuch"), "nosuch"),
        (("--cgroupns", "ns:/proc/self/ns/cgroup"), "cgroup namespace"),
        (("--cgroup-manager", "systemd"), "systemd"),
    ],
    ids=str,
)
def test_refused(podman: HookedPodman, options: tuple[str, ...], told: str) -> None:
    """The user reads our one line; nothing was made."""
    if options[0] == "--cgroup-manager":
        result = podman(*options, "run", "--rm", *POLICY, IMAGE, "true")
    elif options[0] == "--cgroups=disabled":
        result = podman("run", "--rm", *POLICY, *options, IMAGE, "true")  # with a parent podman itself refuses it
    else:
        result = podman.run("--rm", *POLICY, *options, "--", "true")
    assert result.rc != 0, result
    assert told in result.err, result
    assert "Traceback" not in result.err
    nothing_left(podman)


def test_exit_statuses(podman: HookedPodman) -> None:
    for command, expected, told in (
        (("sh", "-c", "exit 3"), 3, ""),
        (("sh", "-c", "echo wrong >&2; exit 130"), 130, "wrong"),
        (("nosuch",), 127, "executable file not found in $PATH"),
        (("/etc",), 126, "permission denied"),
    ):
        result = podman.run("--rm", *POLICY, "--", *command)
        assert result.rc == expected, result
        assert told in result.err
        nothing_left(podman)


def test_stats_and_the_rest(podman: HookedPodman) -> None:
    """stats, top, exec, pause, kill: they count and reach the child groups too."""
    program = f"mkdir {WEB}; (echo 0 > {WEB}/cgroup.procs; exec sleep 999) & sleep 998 & wait"
    name = podman.start(*POLICY, "--memory", "64m", "--", "sh", "-c", program)
    group = podman.group(name)
    web = group_file("memory", f"{group}/guest/web", "cgroup.procs", "cgroup.procs")
    wait_for(lambda: web.exists() and web.read_text().split(), "its child group to have a process")
    inner = int(web.read_text().split()[0])
    assert is_first(podman, name)
    row = json.loads(podman("stats", "--no-stream", "--format", "json", name).ok().out)[0]
    assert row["mem_usage"].split(" / ")[1] == "67.11MB", row
    assert int(row["pids"]) == int(read("pids", group, "pids.current", "pids.current")) == 3
    shown = seen_by_host(podman, group)
    assert (shown["made_by"], shown["claim"], shown["pid"]) == ("podman/plugin", False, pid(podman, name))
    assert (shown["memory"]["effective"], shown["pids"]["usage"], shown["group_count"]) == (64 << 20, 3, 3)
    assert abs(shown["memory"]["usage"] - bytes_of(row["mem_usage"].split(" / ")[0])) < 4 << 20, (shown, row)
    assert len(podman("top", name, "pid").ok().out.split()) >= 3
    rows = podman("exec", name, "cat", "/proc/self/cgroup").ok().out.split()
    assert {row.split(":")[2] for row in rows} <= {"/", "/init"}
    assert podman("exec", "-i", name, "cat", input="given").ok().out == "given"
    assert podman("exec", "-t", name, "tty").ok().out.strip() == "/dev/pts/0"
    podman("pause", name).ok()
    stat = Path(f"/proc/{inner}/stat").read_text()
    assert status(podman, name) == "paused"
    assert Path(f"/proc/{inner}/stat").read_text() == stat
    podman("unpause", name).ok()
    found = mark(group)
    assert (found["name"], found["state"]) == (podman.inspect(name)["Id"], "running")
    assert podman.inspect(name)["Id"][:12] in podman.nest.run(COMMAND, "ls").ok().out
    podman("kill", name).ok()
    wait_for(lambda: not os.path.exists(f"/proc/{inner}"), "the process of its child group to end")
    podman("rm", "-f", "-t", "0", name).ok()
    nothing_left(podman)


def test_again(podman: HookedPodman) -> None:
    """stop and start, restart, and one that restarts by itself: a guest each time, of the same name."""
    name = podman.start(*POLICY, "--pids-limit", "40", "--", "sh", "-c", f"{PATHS}; exec sleep 1000")
    podman("stop", "-t", "0", name).ok()
    wait_for(lambda: not podman.leftovers(), "the groups to go")
    podman("start", name).ok()
    assert is_first(podman, name)
    podman("restart", "-t", "0", name).ok()
    assert is_first(podman, name)
    assert read("pids", podman.group(name), "pids.max", "pids.max") == "40"
    assert len(podman.records()) == 1
    wait_for(lambda: podman("logs", name).out.split() == ["/init"] * 3, "its log")
    podman("rm", "-f", "-t", "0", name).ok()
    nothing_left(podman)
    name = podman.start(*POLICY, "--restart", "on-failure:2", "--", "sh", "-c", f"{PATHS}; exit 5")
    wait_for(lambda: podman("logs", name).out.split() == ["/init"] * 3, "it to be started three times")
    wait_for(lambda: status(podman, name) == "exited", "it to give up")
    nothing_left(podman)


def test_update(podman: HookedPodman) -> None:
    """runc's own update reaches only its group, the guest root: podman's limits are the limit group's."""
    name = podman.start(*POLICY, "--memory", "64m", *SLEEP)
    podman("update", "--memory", "32m", name)
    held = int(read(MEMORY[0], podman.group(name), *MEMORY[1:]))
    shown = int(podman("exec", name, "cat", str(FILE)).ok().out)
    assert shown == 32 << 20
    assert held in (32 << 20, 64 << 20), held  # never more than was asked for first


def test_pod(podman: HookedPodman) -> None:
    """A pod's containers are guests each, below the pod's group; its own container has no policy."""
    podman("pod", "create", "--cgroup-parent", podman.nest.group, "--name", "duo").ok()
    for name in ("one", "two"):
        podman("run", "-d", *POLICY, "--memory", "64m", "--pod", "duo", "--name", name, IMAGE, "sleep", "1000").ok()
    for name in ("one", "two"):
        assert is_first(podman, name)
        assert podman("exec", name, "cat", str(FILE)).ok().out.strip() == str(64 << 20)
    assert len(podman("pod", "stats", "--no-stream", "duo").ok().out.splitlines()) == 4
    podman("pod", "stop", "-t", "0", "duo").ok()
    podman("pod", "start", "duo").ok()
    assert is_first(podman, "one")
    podman("pod", "rm", "-f", "-t", "0", "duo").ok()
    nothing_left(podman)


def test_health_check(podman: HookedPodman) -> None:
    options = ("--health-cmd", "test -e /well", "--health-interval", "disable")
    name = podman.start(*POLICY, *options, *SLEEP)
    assert podman("healthcheck", "run", name).rc == 1
    podman("exec", name, "touch", "/well").ok()
    assert podman("healthcheck", "run", name).rc == 0


def test_many_at_once(podman: HookedPodman) -> None:
    """Six started and ended side by side: none takes what is another's."""
    running = [podman.begin("--rm", *POLICY, "--pids-limit", str(40 + n), "--", "sleep", "1") for n in range(6)]
    assert [process.wait(60) for process in running] == [0] * 6
    nothing_left(podman)


# --- what is killed ------------------------------------------------------------------------------------------


def processes_of(podman: HookedPodman, *words: str) -> list[int]:
    """The processes in the Nest of which the command line has *words*."""
    return [number for number, text in podman.nest.processes().items() if all(word in text for word in words)]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold flock(2) on *path*: what wants it waits."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def slow_hook(podman: HookedPodman, stage: str) -> Callable[[], None]:
    """A hook of another's before nestrt's, which waits until what this gives is called."""
    gate = podman.nest.inside(f"{podman.nest.store}/gate")
    gate.unlink(missing_ok=True)
    path = podman.nest.write("slow", f"#!/bin/sh\nwhile [ ! -e {podman.nest.store}/gate ]; do sleep 0.02; done\n")
    podman.nest.inside(path).chmod(0o755)
    podman.hook(stage, path, "slow", name="a-slow")
    return gate.touch


def removed(podman: HookedPodman) -> None:
    """What podman removes, it removes; what is left then is gone with gc."""
    for name in podman("ps", "-aq").out.split():
        podman("rm", "-f", "-t", "0", name)
    wait_for(lambda: not processes_of(podman, "conmon"), "the monitors to end")

    def left() -> list[str]:
        podman.gc().ok()
        found = [line for line in podman.leftovers() if line.startswith(("record", "group"))]
        return [line for line in found if "conmon" not in line]

    # What nobody has started yet is left alone for ten seconds.
    wait_for(lambda: not left(), f"gc to remove {left()}", 20)


def test_killed_monitor(podman: HookedPodman) -> None:
    """podman forgets the container without asking the runtime, whose ``delete`` by hand removes it wholly."""
    name = podman.start(*POLICY, *SLEEP)
    first = pid(podman, name)
    conmon = int(podman.inspect(name)["State"]["ConmonPid"])
    os.kill(conmon, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{conmon}"), "conmon to end")
    podman("rm", "-f", "-t", "0", name)
    podman.nest.run("runc", "delete", "--force", name)
    wait_for(lambda: not os.path.exists(f"/proc/{first}"), "its first process to end")
    removed(podman)


@pytest.mark.parametrize("stage", ["prestart", "createContainer"])
def test_killed_runtime(podman: HookedPodman, stage: str) -> None:
    """runc is killed in the middle of create, before nestrt's hook, or after it."""
    release = slow_hook(podman, stage)
    # A createContainer hook runs in the container's namespaces, and is known by the network's alone.
    starting = podman.begin("--name", "victim", "--network", "host", *POLICY, *SLEEP)
    wait_for(lambda: processes_of(podman, "/slow"), "the hook of another")
    kill(wait_for(lambda: processes_of(podman, "runc", "create"), "the runtime"))
    release()
    assert starting.wait(30) != 0
    removed(podman)


def test_killed_create_runtime_hook(podman: HookedPodman) -> None:
    """Killed while it waits for its record: the container does not start, and all goes."""
    release = slow_hook(podman, "createRuntime")
    starting = podman.begin("--name", "victim", *POLICY, *SLEEP)
    wait_for(lambda: processes_of(podman, "/slow"), "the hook of another")
    (name,) = podman.records()
    with locked(podman.nest.inside(f"/run/nestrt/plugin/{name}")):
        release()
        kill(wait_for(lambda: processes_of(podman, "hooks/nestrt", "createRuntime"), "nestrt's hook"))
    assert starting.wait(60) != 0
    removed(podman)


def test_killed_precreate_hook(podman: HookedPodman) -> None:
    """Killed when it has its record and no group: podman says so, and nothing starts."""
    lock = podman.nest.inside("/run/nestrt/parent.lock")
    lock.parent.mkdir(mode=0o755, exist_ok=True)
    with locked(lock):
        starting = podman.begin("--name", "victim", *POLICY, *SLEEP)
        wait_for(podman.records, "the record")
        kill(processes_of(podman, "hooks/nestrt", "precreate"))
        assert starting.wait(60) != 0
    removed(podman)


def test_killed_engine(podman: HookedPodman) -> None:
    """podman is killed between precreate and the runtime: nobody comes for the group, and a later start sweeps it."""
    release = slow_hook(podman, "precreate")
    podman.hook("precreate", f"{podman.nest.store}/slow", "slow", name="z-slow")
    podman.nest.inside(f"{podman.directory}/a-slow.json").unlink()
    starting = podman.begin("--name", "victim", *POLICY, *SLEEP)
    wait_for(lambda: podman.records() and processes_of(podman, "/slow"), "the hook behind nestrt's")
    (record,) = podman.records().values()
    assert all((h.group(record["group"])).is_dir() for h in hierarchies())
    kill(processes_of(podman, "podman", "--name victim"))
    starting.wait(60)
    release()
    podman.nest.inside(f"{podman.directory}/z-slow.json").unlink()
    podman("rm", "-f", "-t", "0", "victim")
    wait_for(lambda: podman.gc().rc == 0 and not podman.records(), "gc to take what nobody came for", 20)
    assert not groups(record["group"])


def test_a_broker(podman: HookedPodman) -> None:
    """The policy requires one: with a broker its socket is in the container, which divides by it; without, no start."""
    words = (*POLICY, "--annotation", "nestrt.level.broker=required", "--memory", "64m")
    refused = podman.run("--rm", *words, "--", "true")
    assert refused.rc != 0
    nothing_left(podman)
    nest = podman.nest
    with running(before=nest.words(), host_socket=str(nest.inside("/run/nestrt/host.sock"))) as broker:
        name = podman.start(*words, *SLEEP)
        assert podman("exec", name, "ls", "/run/nestrt").ok().out.split() == ["guest.sock"]
        group = podman.group(name)
        served = lambda: [guest["cgroup"] for guest in broker.call("Guests")["guests"]]  # noqa: E731
        assert group in served()
        podman("rm", "--force", "--time", "0", name).ok()
        wait_for(lambda: group not in served(), "the broker to let go of it")
