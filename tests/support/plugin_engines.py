"""Engines in a Nest whose containers the plugin makes guests: podman by its hooks, docker and containerd by wrap."""

from __future__ import annotations

import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.daemons import Containerd, Daemon, Docker
from support.engines import Nest, removed
from support.guests import Answers, parse
from support.hostside import below, group_file, groups, hierarchies
from support.need import SLOW
from support.plugin import COMMAND, RUNC, memberships, records
from support.podman import IMAGE, Podman, split
from support.runner import Result, wait_for

MEMORY = "memory", "memory.limit_in_bytes", "memory.max"
FILE = group_file("memory", "/", *MEMORY[1:])
WEB = FILE.parent / "web"
PATHS = "cut -d: -f3 /proc/self/cgroup | sort -u"
VIEW = {
    "cgroup": PATHS,
    "own": f"cat {FILE}",
    "raise": f"echo 1073741824 > {FILE}",
    "make": f"mkdir {WEB} && echo 16777216 > {WEB}/{FILE.name} && cat {WEB}/{FILE.name}",
    "move": f"echo 0 > {WEB}/cgroup.procs && grep -c /web /proc/self/cgroup",
    "above": f"ls -d {FILE.parent}/libpod* {FILE.parent}/../libpod*",
}
POLICY = ("--annotation", "nestrt.policy=nested")
SLEEP = ("--", "sleep", "1000")


def check_view(text: str) -> Answers:
    """That *text* are a guest's answers to VIEW, whose container has 64 MiB of memory."""
    answers = parse(text)
    assert answers.text("cgroup") == "/init"
    assert answers.text("own") == str(64 << 20)
    assert "Read-only" in answers.refused("raise") or "ermission" in answers.refused("raise")
    assert answers.text("make") == str(16 << 20)
    assert int(answers.text("move")) >= 1
    answers.refused("above")
    return answers


def fail_if_left(engine: Engine) -> None:
    """Remove the engine's containers; the test fails if anything of them or of nestrt stays."""
    left = engine.clear()
    if left:
        engine.gc()
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


def nothing_left(engine: Engine) -> None:
    wait_for(lambda: not engine.leftovers(), "nothing to be left")


def seen_by_host(engine: HookedPodman | WrappedDocker, group: str) -> dict[str, Any]:
    """What ``nestrt ls`` says of the guest whose limit group that is."""
    rows = json.loads(engine.nest.run(COMMAND, "ls", "--format", "json").ok().out)
    found: list[dict[str, Any]] = [row for row in rows if row["path"] == group]
    assert len(found) == 1, rows
    return found[0]


def bytes_of(text: str) -> float:
    """Bytes of what engines' stats print: 1.2MiB, 804kB."""
    number = text.rstrip("kKMGiB")
    letter = text[len(number) : len(number) + 1].upper()
    base = 1024 if "i" in text else 1000
    power = " KMG".index(letter if letter in "KMG" else " ")
    return float(number) * float(base**power)


def pid(engine: HookedPodman | WrappedDocker, name: str) -> int:
    return int(engine.inspect(name)["State"]["Pid"])


def is_first(engine: HookedPodman | WrappedDocker, name: str) -> bool:
    """Whether the container's first process is in its first group in every hierarchy."""
    return set(memberships(pid(engine, name)).values()) == {f"{engine.group(name)}/guest/init"}


class Plugged:
    """What every engine with the plugin has."""

    nest: Nest

    def records(self) -> dict[str, dict[str, Any]]:
        return records(self.nest.inside("/run/nestrt/plugin"))

    def gc(self) -> Result:
        """``nestrt gc`` where the engine's /run is."""
        return self.nest.run(COMMAND, "gc")


class HookedPodman(Plugged):
    """A Podman whose runtime is Debian's runc, and whose hooks.d has nestrt's precreate hook.

    *scripts* is a directory of the Nest for hooks that a test adds. The images are the Podman's.
    """

    def __init__(self, podman: Podman) -> None:
        self.podman = podman
        self.nest = podman.nest
        self.directory = f"{podman.nest.store}/hooks.d"
        podman.nest.inside(self.directory).mkdir(exist_ok=True)
        self.hook("precreate", COMMAND, "nestrt", "hook", "precreate", "--tell")
        # A flag would not do: what podman itself starts again has only its configuration.
        text = podman.nest.inside(podman.env["CONTAINERS_CONF"]).read_text()
        words = f'[engine]\nhooks_dir = ["{self.directory}"]'
        # podman itself refuses --cgroups=disabled for runtimes that are not named, and with --runtime for all.
        text = text.replace('runtime = "nestrt"', 'runtime = "runc"\nruntime_supports_nocgroup = ["runc"]')
        path = podman.nest.write("podman/hooked.conf", text.replace("[engine]", words))
        self.env = {**podman.env, "CONTAINERS_CONF": path}
        self.flags = podman.flags

    def hook(self, stage: str, path: str, *args: str, name: str = "") -> Path:
        """Have podman add a hook to every container; the file that says so."""
        value = {
            "version": "1.0.0",
            "hook": {"path": path, "args": list(args)},
            "when": {"always": True},
            "stages": [stage],
        }
        file = self.nest.inside(f"{self.directory}/{name or stage}.json")
        file.write_text(json.dumps(value))
        return file

    def __call__(self, *argv: str, **named: Any) -> Result:
        return self.nest.run("podman", *self.flags, *argv, env=self.env, **named)

    def words(self, *argv: str) -> tuple[str, ...]:
        """``podman run OPTIONS IMAGE COMMAND``, the two parts of *argv* separated by "--"."""
        options, program = split(argv)
        return ("run", "--cgroup-parent", self.nest.group, *options, IMAGE, *program)

    def run(self, *argv: str, **named: Any) -> Result:
        return self(*self.words(*argv), **named)

    def start(self, *argv: str, **named: Any) -> str:
        """``podman run -d``; the new container's id."""
        return self.run("-d", *argv, **named).ok().out.strip()

    def begin(self, *argv: str) -> subprocess.Popen[bytes]:
        """``podman run`` (see words) in the background; its output goes nowhere."""
        null = subprocess.DEVNULL
        words = self.nest.words("podman", *self.flags, *self.words(*argv))
        return subprocess.Popen(words, stdin=null, stdout=null, stderr=null, env={**self.nest.env, **self.env})

    def inspect(self, name: str) -> dict[str, Any]:
        return self.podman.inspect(name)

    def group(self, name: str) -> str:
        """The group that podman has named for the container *name*: its limit group."""
        found = [path for path in self.limit_groups() if self.inspect(name)["Id"] in path]
        return found[0] if found else f"{self.nest.group}/libpod-{self.inspect(name)['Id']}"

    def limit_groups(self) -> list[str]:
        """The paths of podman's groups, by one hierarchy."""
        top = hierarchies()[0].group(self.nest.group)
        places = (path for path in below(top) if path.name.startswith("libpod-") and "conmon" not in path.name)
        return [f"/{path.relative_to(hierarchies()[0].mountpoint)}" for path in places]

    def clear(self) -> list[str]:
        """Remove every container and pod; what is left of them and of their guests afterwards, as lines."""
        for file in self.nest.inside(self.directory).iterdir():
            if file.name != "precreate.json":
                file.unlink()
        if self("pod", "ps", "-q").out:
            self("pod", "rm", "-af", "-t", "0")
        if self("ps", "-aq").out:
            self("rm", "-af", "-t", "0")
        end = time.monotonic() + 10 * SLOW
        while (left := self.leftovers()) and time.monotonic() < end:
            time.sleep(0.05)  # conmon's own clean-up may still be at it
        for place in groups(self.nest.group):
            # podman leaves a pod's group where it has no controller, as it does under runc alone.
            for pod in place.glob("[0-9a-f]" * 64):
                wait_for(partial(removed, pod), f"{pod} to be empty")
        return left

    def leftovers(self) -> list[str]:
        state = self.nest.inside("/run/runc")
        found = [f"state {entry}" for entry in (os.listdir(state) if state.exists() else ())]
        found += [f"record {name}" for name in self.records()]
        return [*found, *self.podman.leftovers()]


class WrappedDocker(Plugged, Docker):
    """dockerd whose runtimes are Debian's runc by ``nestrt wrap``: "guests", the default, makes every container one
    by the policy nested; "open" those that the host's rules name. Without networks of its own."""

    def __init__(self, nest: Nest, archive: str) -> None:
        Daemon.__init__(self, nest, "wrapped-docker")
        self.roots = tuple(f"{self.store}/exec/runtime-{name}/moby" for name in ("guests", "open"))
        self.env = {"DOCKER_HOST": f"unix://{self.store}/d.sock", "DOCKER_CONFIG": f"{self.store}/client"}
        wrap = ["wrap", "--runtime", RUNC]
        configuration = {
            "runtimes": {
                "guests": {"path": COMMAND, "runtimeArgs": [*wrap, "--policy", "nested", "--"]},
                "open": {"path": COMMAND, "runtimeArgs": [*wrap, "--"]},
            },
            "default-runtime": "guests",
            "data-root": f"{self.store}/data",
            "exec-root": f"{self.store}/exec",
            "pidfile": f"{self.store}/pid",
            "hosts": [f"unix://{self.store}/d.sock"],
            "bridge": "none",
            "iptables": False,
            "storage-driver": "overlay2",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "cgroup-parent": nest.group,
            "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 4096}},
            "log-level": "warn",
        }
        self.begin("dockerd", "--config-file", nest.write("wrapped-docker/daemon.json", json.dumps(configuration)))
        self("load", "-q", "-i", archive).ok()
        # The host's network namespace, and that of none, get mounts that stay.
        for network in ("host", "none"):
            self("run", "--rm", "--network", network, IMAGE, "true").ok()
        self.idle = nest.mounts(f"{self.store}/")

    def leftovers(self) -> list[str]:
        return [*super().leftovers(), *(f"record {name}" for name in self.records())]


class WrappedContainerd(Plugged):
    """A Containerd whose containers are Debian's runc's, by a script that calls ``nestrt wrap``, as a BinaryName is."""

    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd
        self.nest = containerd.nest
        self.runtime = containerd.nest.write(
            "containerd/nestrt-wrap", f'#!/bin/sh\nexec {COMMAND} wrap --runtime {RUNC} -- "$@"\n'
        )
        self.nest.inside(self.runtime).chmod(0o755)

    def __call__(self, *argv: str, **named: Any) -> Result:
        return self.containerd(*argv, **named)

    def run(self, name: str, *argv: str, runtime: str = "", **named: Any) -> Result:
        """``ctr run OPTIONS IMAGE NAME COMMAND``, the two parts of *argv* separated by "--"."""
        options, program = split(argv)
        words = ("--runc-binary", runtime or self.runtime, "--cgroup", self.group(name), *options)
        return self("run", *words, IMAGE, name, *program, **named)

    def group(self, name: str) -> str:
        return self.containerd.group(name)

    def clear(self) -> list[str]:
        self.containerd.clear()
        return self.leftovers()

    def leftovers(self) -> list[str]:
        return [*self.containerd.leftovers(), *(f"record {name}" for name in self.records())]


Engine = HookedPodman | WrappedDocker | WrappedContainerd
