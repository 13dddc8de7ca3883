"""Attacks on the plugin by way of an engine: podman with runc, and nestrt bound to it by one precreate hook.

::

    podman ──config──▶ nestrt hook precreate ──config'──▶ podman ──▶ conmon ──▶ runc ──▶ nestrt hook createRuntime …
      image, annotations, volumes: the attacker's
"""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nestrt.act.records import parse
from support.engines import kill, thaw
from support.hostside import groups, hierarchy_of, processes
from support.need import SLOW
from support.podman import IMAGE, Podman, split
from support.rootfs import CHECKOUT
from support.runner import Result, wait_for

RUNC = "/usr/sbin/runc"
COMMAND = str(CHECKOUT / "hooks/nestrt")
NESTED = ("--annotation", "nestrt.policy=nested")
SLEEP = ("--", "sleep", "600")


class Hooked:
    """podman, its hooks directory, and runc."""

    def __init__(self, podman: Podman) -> None:
        self.podman = podman
        self.nest = podman.nest
        place = f"{podman.nest.store}/hooks.d"
        podman.nest.inside(place).mkdir(exist_ok=True)
        hook = {"path": COMMAND, "args": ["nestrt", "hook", "precreate"]}
        text = json.dumps({"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": ["precreate"]})
        podman.nest.write("hooks.d/nestrt.json", text)
        self.flags = ("--hooks-dir", place, "--runtime", RUNC)

    def __call__(self, *argv: str, **named: Any) -> Result:
        return self.podman(*self.flags, *argv, **named)

    def run(self, *argv: str, **named: Any) -> Result:
        options, program = split(argv)
        return self("run", "--cgroup-parent", self.nest.group, *options, IMAGE, *program, **named)

    def start(self, *argv: str) -> str:
        return self.run("-d", *argv).ok().out.strip()

    def records(self) -> dict[str, dict[str, Any]]:
        """What nestrt has noted, in the Nest's own /run."""
        place = self.nest.inside("run/nestrt/plugin")
        found = {}
        for path in place.iterdir() if place.is_dir() else ():
            with suppress(FileNotFoundError):  # it went meanwhile
                found[path.name] = parse(path.read_bytes())
        return found

    def collect(self) -> None:
        """``nestrt gc``, for which everything is old."""
        for name, values in self.records().items():
            self.nest.inside(f"run/nestrt/plugin/{name}").write_text(json.dumps({**values, "created": 0}))
        self.nest.run(COMMAND, "gc").ok()

    def remove(self, name: str) -> None:
        self("rm", "-f", "-t", "0", name, timeout=60).ok()


@pytest.fixture
def hooked(podman: Podman) -> Hooked:
    return Hooked(podman)


def limits(group: str) -> dict[str, str]:
    found = {}
    for controller, v1, v2 in (
        ("memory", "memory.limit_in_bytes", "memory.max"),
        ("pids", "pids.max", "pids.max"),
        ("cpu", "cpu.cfs_quota_us", "cpu.max"),
    ):
        tree = hierarchy_of(controller)
        assert tree is not None
        found[controller] = (tree.group(group) / (v1 if tree.version == 1 else v2)).read_text().strip()
    return found


# The image's author and podman's user say what they like: no container, and nothing left. (podman 4.3 keeps to itself
# what a precreate hook says.)
@pytest.mark.parametrize(
    "annotations",
    [
        ("nestrt.policy=nosuch",),
        ("nestrt.policy=\x1b[31m",),
        ("nestrt.level.override=true",),
        ("io.nestrt.limit-group=/nestrt-other", "nestrt.policy=nested"),
        ("io.nestrt.limit-group=/..",),
    ],
)
def test_what_podmans_user_asks_for(hooked: Hooked, annotations: tuple[str, ...]) -> None:
    options = [word for annotation in annotations for word in ("--annotation", annotation)]
    result = hooked.run("--rm", *options, "--", "true")
    assert result.rc in (125, 126), result
    assert "\x1b[31m" not in result.err, result
    assert "Traceback" not in result.err, result
    assert hooked.records() == {}
    assert not hooked.podman.clear()


# An image's environment, and its working directory, with what would be run there by a careless hook.
def test_an_images_environment(hooked: Hooked, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "sitecustomize.py").write_text(f"open({str(evil / 'ran')!r}, 'w')\n")
    values = {
        "PYTHONPATH": str(evil),
        "PYTHONHOME": str(evil),
        "PYTHONSTARTUP": str(evil / "sitecustomize.py"),
        "LD_PRELOAD": "/evil.so",
        "LD_DEBUG": "files",
        "LD_DEBUG_OUTPUT": str(evil / "loader"),
        "PATH": f"{evil}:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    env = [word for name, value in values.items() for word in ("-e", f"{name}={value}")]
    name = hooked.start(*NESTED, *env, "-w", "/tmp", *SLEEP)
    hooked("exec", name, "true").ok()
    hooked.remove(name)
    assert [path.name for path in evil.iterdir()] == ["sitecustomize.py"]
    assert hooked.records() == {}


# A volume of the host's whole root, as monitoring agents ask for: it does not bring the limit group with it.
@pytest.mark.parametrize("option", ["/:/host", "/:/host:ro", "/sys:/host/sys", "/sys/fs/cgroup:/host/sys/fs/cgroup"])
def test_volumes_of_the_host(hooked: Hooked, option: str) -> None:
    name = hooked.start(*NESTED, "--memory", "64m", "--pids-limit", "50", "-v", option, *SLEEP)
    group = hooked.podman.group(name)
    stands = limits(group)
    tree = hierarchy_of("pids")
    assert tree is not None
    for place in (f"/host{tree.mountpoint}{group}", f"/host{tree.mountpoint}"):
        hooked("exec", name, "sh", "-c", f"echo 4000 > {place}/pids.max")
    assert limits(group) == stands
    hooked.remove(name)


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# A guest freezes itself (v1: what is frozen cannot die, and runc waits for it). podman gives up; whatever of nestrt's
# comes by next, the hook of another container or gc, thaws what is to be killed.
def test_a_frozen_guest_is_removed(hooked: Hooked) -> None:
    script = """
file=freezer.state word=FROZEN
cd /sys/fs/cgroup/freezer 2> /dev/null || { cd /sys/fs/cgroup; file=cgroup.freeze word=1; }
mkdir cold; sleep 600 & echo $! > cold/cgroup.procs; echo $word > cold/$file; sleep 600
"""
    name = hooked.start(*NESTED, "--", "sh", "-c", script)
    group = hooked.podman.group(name)
    time.sleep(0.5 * SLOW)
    inside = processes(group)
    try:
        if hooked("rm", "-f", "-t", "0", name, timeout=60).rc:
            hooked.nest.run(COMMAND, "gc").ok()
            hooked("rm", "-f", "-t", "0", name, timeout=60).ok()
        wait_for(lambda: not [pid for pid in inside if lives(pid)], "its processes to end")
    finally:
        thaw(group)
        hooked("rm", "-f", "-t", "0", name, timeout=60)
    assert not groups(group)
    assert hooked.records() == {}


# conmon and podman are killed: the guest runs on within its limits, and podman or gc removes it later, wholly.
@pytest.mark.parametrize("victim", ["conmon", "podman"])
def test_the_engine_is_killed(hooked: Hooked, victim: str) -> None:
    name = hooked.start(*NESTED, "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5", *SLEEP)
    group = hooked.podman.group(name)
    stands = limits(group)
    victims = [pid for pid, words in hooked.nest.processes().items() if words.partition(" ")[0].endswith(victim)]
    kill(victims)
    # podman takes a monitor for a living one until it is reaped.
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in victims), f"{victim} to end")
    assert processes(group)
    assert limits(group) == stands
    hooked.remove(name)
    if victim == "conmon":
        # podman 4.3 does not have the runtime delete a container whose monitor has gone.
        hooked.nest.run(RUNC, "delete", "--force", name)
        hooked.collect()
    assert not groups(group)
    assert hooked.records() == {}


# podman is killed while it starts containers: never one without its limits. What is left goes with podman's rm and gc.
def test_podman_killed_while_it_starts(hooked: Hooked) -> None:
    for number in range(6):
        options = (*NESTED, "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5", "--name", f"killed{number}")
        options += ("--network", "none")  # podman's own mount for a network would stay
        words = ("podman", *hooked.podman.flags, *hooked.flags, "run", "-d", "--cgroup-parent", hooked.nest.group)
        env = {**hooked.nest.env, **hooked.podman.env}
        with subprocess.Popen(
            hooked.nest.words(*words, *options, IMAGE, "sleep", "600"),
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as starting:
            time.sleep((0.1 + 0.07 * number) * SLOW)
            starting.kill()
        time.sleep(0.5 * SLOW)
        for top in groups(hooked.nest.group):
            for directory in top.glob("libpod-*"):
                if not directory.name.endswith("conmon") and (directory / "guest").is_dir():
                    group = f"{hooked.nest.group}/{directory.name}"
                    if processes(group):
                        with suppress(OSError):  # what podman has left behind is removed at this moment
                            stands = limits(group)
                            assert (stands["pids"], stands["memory"]) == ("50", str(64 << 20))
    if hooked("rm", "-a", "-f", "-t", "0", timeout=60).rc:
        # podman was killed with a mount of its own half made.
        for point in hooked.nest.mounts(f"{hooked.nest.store}/"):
            if point.endswith("/userdata/shm"):
                hooked.nest.run("umount", "-l", point)
        hooked("rm", "-a", "-f", "-t", "0", timeout=60)
    # Containers that podman does not know any more, for it was killed before it wrote them down: the runtime does.
    for container in hooked.nest.run(RUNC, "list", "-q").ok().out.split():
        hooked.nest.run(RUNC, "delete", "--force", container).ok()
    hooked.collect()
    assert hooked.records() == {}
    assert not hooked.podman.clear()


# Each start of the same container begins with the limits, in one group and with one record.
def test_restarts(hooked: Hooked) -> None:
    name = hooked.start(*NESTED, "--pids-limit", "50", *SLEEP)
    for _ in range(3):
        hooked("restart", "-t", "0", name).ok()
        assert limits(hooked.podman.group(name))["pids"] == "50"
        assert len(hooked.records()) == 1
        inside = hooked("exec", name, "cut", "-d:", "-f3", "/proc/self/cgroup").ok().out.split()
        assert set(inside) == {"/"}
    hooked.remove(name)
    assert hooked.records() == {}
