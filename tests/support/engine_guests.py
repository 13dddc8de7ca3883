"""A container that an engine runs as a guest, asked in two ways: what its engine says of it, and what nestrt does.

::

    engine ──▶ runc, by nestrt's hook or wrap ──▶ guest            engine's inspect, stats, top
                                                    └── nestrt show, ps, top … NAME, in the engine's Nest
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.hostside import hierarchy_of, is_v2_only, processes, read
from support.plugin import COMMAND
from support.plugin_engines import POLICY, HookedPodman, WrappedContainerd, WrappedDocker, bytes_of, pid
from support.runner import Result, wait_for

MIB = 1 << 20
GIVEN_MEMORY, GIVEN_CPUS, GIVEN_PIDS = 64 * MIB, 0.5, 50
CPUS = os.cpu_count() or 1
# What a guest runs unless it is told otherwise.
SLEEPERS = "sleep 4001 & exec sleep 4000"
DURATION = {"h": 3600e6, "m": 60e6, "s": 1e6, "ms": 1e3, "µs": 1.0, "ns": 1e-3}


@dataclass(frozen=True)
class Figures:
    """What an engine's statistics say, in bytes; None: its command does not say."""

    memory: float
    limit: float | None
    pids: int
    written: float | None


class EngineGuest:
    """A container with GIVEN_MEMORY, GIVEN_CPUS and, where the engine takes it, GIVEN_PIDS.

    *id* is the engine's name of it, *name* is nestrt's, *group* its limit group. *pids* is the limit of processes.
    """

    kind = ""
    engine: Any
    pids: int | None = GIVEN_PIDS
    cpus = "0"

    def __init__(self, id: str, group: str, nest: Any) -> None:
        self.id = id
        self.group = group
        self.nest = nest
        self.name = group.rpartition("/")[2].removeprefix("libpod-")

    @property
    def first(self) -> int:
        """The host's pid of the first process, by the engine."""
        raise NotImplementedError

    def figures(self) -> Figures:
        raise NotImplementedError

    def engine_cpu(self) -> float:
        """µs of CPU time, by the engine."""
        raise NotImplementedError

    def ended(self) -> int | None:
        """The exit status that the engine has of it; None while it runs."""
        raise NotImplementedError

    def listed(self) -> str:
        """The engine's list of the processes in it, as text with host pids."""
        raise NotImplementedError

    def nestrt(self, *words: str, **named: Any) -> Result:
        """Run ``nestrt WORDS`` where the engine is."""
        return self.nest.run(COMMAND, *words, **named)  # type: ignore[no-any-return]

    def json(self, *words: str) -> Any:
        return json.loads(self.nestrt(*words, "--format", "json").ok().out)

    def row(self) -> dict[str, Any]:
        """What ``nestrt top`` says of it, once."""
        (found,) = json.loads(self.nestrt("top", "-b", "-n", "1", "--format", "json", self.name).ok().out)
        assert isinstance(found, dict)
        return found

    def metrics(self) -> dict[str, float]:
        """What ``nestrt metrics`` says of it: values by name, with the labels other than guest and level."""
        found = {}
        for line in self.nestrt("metrics", self.name).ok().out.splitlines():
            match = re.fullmatch(r'(\w+)\{guest="([^"]*)",level="1",?(.*)\} (\S+)', line)
            if match:
                assert match[2] == self.name, line
                found[match[1] + match[3]] = float(match[4])
        return found

    def cpu(self) -> float:
        """µs of CPU time, by the kernel's file of the limit group."""
        hierarchy = hierarchy_of("cpu")
        assert hierarchy is not None
        if hierarchy.version == 1:
            return int(read("cpuacct", self.group, "cpuacct.usage", "")) / 1000
        return int(read("cpu", self.group, "", "cpu.stat").split()[1])


class PodmanGuest(EngineGuest):
    kind = "podman"

    def __init__(self, podman: HookedPodman, *options: str, program: str) -> None:
        self.engine = podman
        given = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "--cpuset-cpus", "0")
        id = podman.start(*POLICY, *given, *options, "--", "sh", "-c", program)
        super().__init__(id, podman.group(id), podman.nest)

    @property
    def first(self) -> int:
        return pid(self.engine, self.id)

    def _row(self) -> dict[str, str]:
        (row,) = json.loads(self.engine("stats", "--no-stream", "--format", "json", self.id).ok().out)
        assert isinstance(row, dict)
        return row

    def figures(self) -> Figures:
        row = self._row()
        usage, limit = row["mem_usage"].split(" / ")
        written = bytes_of(row["block_io"].split(" / ")[1])
        return Figures(bytes_of(usage), bytes_of(limit), int(row["pids"]), written)

    def engine_cpu(self) -> float:
        parts = re.findall(r"([\d.]+)(h|ms|m|µs|ns|s)", self._row()["cpu_time"])
        return sum(float(number) * DURATION[unit] for number, unit in parts)

    def ended(self) -> int | None:
        state = self.engine.inspect(self.id)["State"]
        return int(state["ExitCode"]) if state["Status"] == "exited" else None

    def listed(self) -> str:
        return str(self.engine("top", self.id, "hpid", "args").ok().out)


class DockerGuest(EngineGuest):
    kind = "docker"

    def __init__(self, docker: WrappedDocker, *options: str, program: str) -> None:
        self.engine = docker
        given = ("--network", "none", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "--cpuset-cpus", "0")
        id = docker.start(*given, *options, "--", "sh", "-c", program)
        super().__init__(id, docker.group(id), docker.nest)

    @property
    def first(self) -> int:
        return pid(self.engine, self.id)

    def figures(self) -> Figures:
        row = json.loads(self.engine("stats", "--no-stream", "--format", "{{json .}}", self.id).ok().out)
        usage, limit = row["MemUsage"].split(" / ")
        # On v1 containerd counts I/O by BFQ's files wherever there are some, and they stay 0 under other schedulers.
        written = bytes_of(row["BlockIO"].split(" / ")[1]) if is_v2_only() else None
        return Figures(bytes_of(usage), bytes_of(limit), int(row["PIDs"]), written)

    def engine_cpu(self) -> float:
        """``docker stats`` has but a percentage: what it is made of, by the same request of docker's API."""
        found = self._ask(f"/containers/{self.id}/stats?stream=false&one-shot=true")
        return int(found["cpu_stats"]["cpu_usage"]["total_usage"]) / 1000

    def _ask(self, path: str) -> Any:
        place = os.open(self.nest.inside(f"{self.engine.store}/d.sock"), os.O_PATH)
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(f"/proc/self/fd/{place}")
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()
            os.close(place)

    def ended(self) -> int | None:
        state = self.engine.inspect(self.id)["State"]
        return int(state["ExitCode"]) if state["Status"] == "exited" else None

    def listed(self) -> str:
        return str(self.engine("top", self.id).ok().out)


class ContainerdGuest(EngineGuest):
    """``ctr`` takes no limit of processes and no list of CPUs."""

    kind = "containerd"
    pids = None
    cpus = f"0-{CPUS - 1}" if CPUS > 1 else "0"

    def __init__(self, containerd: WrappedContainerd, *options: str, program: str) -> None:
        self.engine = containerd
        given = ("--memory-limit", str(GIVEN_MEMORY), "--cpus", "0.5")
        containerd.run("seen", *POLICY, *given, *options, "-d", "--", "sh", "-c", program).ok()
        super().__init__("seen", containerd.group("seen"), containerd.nest)

    def _task(self) -> list[str]:
        rows = [line.split() for line in self.engine("task", "ls").ok().out.splitlines()]
        return next((row for row in rows if row[0] == self.id), ["", "0", ""])

    @property
    def first(self) -> int:
        return int(self._task()[1])

    def _metrics(self) -> dict[str, str]:
        rows = [line.split() for line in self.engine("task", "metrics", self.id).ok().out.splitlines()]
        return {row[0]: row[1] for row in rows if len(row) == 2}

    def figures(self) -> Figures:
        found, v2 = self._metrics(), is_v2_only()
        usage = float(found["memory.usage" if v2 else "memory.usage_in_bytes"])
        limit = None if v2 else float(found["memory.limit_in_bytes"])
        return Figures(usage, limit, int(found["pids.current"]), None)

    def engine_cpu(self) -> float:
        found = self._metrics()
        return float(found["cpu.usage_usec"]) if is_v2_only() else int(found["cpuacct.usage"]) / 1000

    def ended(self) -> int | None:
        """``ctr task ls`` has no exit status: ``task delete`` tells of it, once."""
        if self._task()[2] != "STOPPED":
            return None
        told = re.search(r"exit code (\d+)", self.engine("task", "delete", self.id).err)
        return int(told[1]) if told else 0

    def listed(self) -> str:
        rows = self.engine("task", "ps", self.id).ok().out.splitlines()[1:]
        pids = [line.split()[0] for line in rows]
        return "\n".join(f"{one} {command(int(one))}" for one in pids)


def command(of: int) -> str:
    """The command line of a process, "" once it has gone."""
    try:
        return Path(f"/proc/{of}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def bind(kind: str, source: Path, target: str) -> tuple[str, ...]:
    """The engine's options that bind *source* to *target* of the container."""
    if kind == "containerd":
        return ("--mount", f"type=bind,src={source},dst={target},options=rbind:rw")
    return ("-v", f"{source}:{target}")


def follow(nest: Any, file: Path) -> subprocess.Popen[bytes]:
    """A ``nestrt events --follow`` where the engine is, which writes to *file*."""
    argv = nest.words(COMMAND, "events", "--follow", "--format", "json")
    with file.open("wb") as out:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, env=nest.env)


MAKERS: dict[str, Callable[..., EngineGuest]] = {
    "podman": PodmanGuest,
    "docker": DockerGuest,
    "containerd": ContainerdGuest,
}
# The fixtures of tests/engines that give their engines.
FIXTURES = {"podman": "hooked_podman", "docker": "wrapped_docker", "containerd": "wrapped_containerd"}


class Start:
    """Starts guests of the engine *kind*."""

    def __init__(self, kind: str, engine: Any) -> None:
        self.kind = kind
        self.engine = engine

    def __call__(self, *options: str, program: str = SLEEPERS, disk: Path | None = None) -> EngineGuest:
        """One that runs *program*, with the host's directory *disk* at /disk."""
        more = bind(self.kind, disk, "/disk") if disk else ()
        return MAKERS[self.kind](self.engine, *options, *more, program=program)


def every(*kinds: str) -> pytest.MarkDecorator:
    """A test of every engine, or of those: its fixture *start* starts guests of each in turn."""
    return pytest.mark.parametrize("start", kinds or list(MAKERS), indirect=True)


def sleepers(guest: EngineGuest) -> dict[int, str]:
    """The processes of a guest of SLEEPERS by the kernel's files, once both run."""

    def both() -> dict[int, str]:
        found = {one: command(one) for one in processes(guest.group)}
        return found if sorted(found.values()) == ["sleep 4000", "sleep 4001"] else {}

    return wait_for(both, "both processes")  # type: ignore[no-any-return]
