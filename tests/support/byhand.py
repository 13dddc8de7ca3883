"""Containers made by hand: groups in every hierarchy, a process in them, and the state file that the verbs read.

::

    /nestrt-test-NAME-PID              limit group
                   └ guest             guest root        with virtualized=True
                       └ init          first group
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.hostside import below, groups, hierarchies, pids_below
from support.need import SLOW

FIRST = "/guest/init"


@dataclass
class ByHand:
    """A container: *state* is its --root, *cgroup* its limit group, *process* its first process."""

    state: Path
    id: str
    cgroup: str
    process: subprocess.Popen[bytes]
    virtualized: bool

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def words(self) -> tuple[str, ...]:
        """The global flags by which the command finds it."""
        return ("--root", str(self.state))

    def document(self) -> dict[str, Any]:
        """The state file."""
        found: dict[str, Any] = json.loads((self.state / self.id / "state.json").read_text())
        return found


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def make_group(group: str, controller: str = "") -> None:
    """Make *group* as a runtime does, in every hierarchy or in that of *controller*: v1 cpusets filled, v2 controllers
    enabled above it."""
    for hierarchy in hierarchies():
        if controller and controller not in hierarchy.controllers:
            continue
        directory = hierarchy.group(group)
        if hierarchy.version == 2:
            enable = " ".join(f"+{name}" for name in (directory.parent / "cgroup.controllers").read_text().split())
            (directory.parent / "cgroup.subtree_control").write_text(enable)
        directory.mkdir(exist_ok=True)
        if "cpuset" in hierarchy.controllers and hierarchy.version == 1:
            for file in ("cpuset.cpus", "cpuset.mems"):
                (directory / file).write_text((directory.parent / file).read_text())


def enter(group: str, pid: int) -> None:
    """Move *pid* to *group* in every hierarchy."""
    for directory in groups(group):
        (directory / "cgroup.procs").write_text(str(pid))


def remove_groups(group: str) -> None:
    """Kill what is in *group* and below, thawed, and remove it all."""
    end = time.monotonic() + 10 * SLOW
    while found := groups(group):
        for top in found:
            for directory in reversed(below(top)):
                for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                    if (directory / file).exists():
                        (directory / file).write_text(value)
                for pid in pids_below(directory):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                try:
                    directory.rmdir()
                except OSError:
                    assert time.monotonic() < end, f"{directory} cannot be removed"
        time.sleep(0.01)


@contextmanager
def container(
    state: Path, name: str, *command: str, virtualized: bool = False, **document: Any
) -> Iterator[ByHand]:
    """A container named *name* that runs *command* (``sleep``); its state file gets *document* too."""
    cgroup = f"/nestrt-test-{name}-{os.getpid()}"
    levels = [cgroup, f"{cgroup}/guest", cgroup + FIRST] if virtualized else [cgroup]
    process = None
    try:
        for group in levels:
            make_group(group)
        process = subprocess.Popen(command or ("sleep", "1000"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        enter(levels[-1], process.pid)
        directory = state / name
        directory.mkdir(parents=True)
        values = {
            "id": name,
            "pid": process.pid,
            "start": start_time(process.pid),
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "bundle": str(state),
            "cgroup": cgroup,
            "driver": "cgroupfs",
            "virtualized": virtualized,
            **document,
        }
        (directory / "state.json").write_text(json.dumps(values))
        yield ByHand(state, name, cgroup, process, virtualized)
    finally:
        remove_groups(cgroup)
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


# The command line as an engine's call reaches it: global flags, verb, flags, id.
CALL = """
import sys
from nestrt.cli import engine
flags, _, words = engine.parse_globals(sys.argv[1:])
sys.exit(engine.run(words[0], flags, words[1:]))
"""
