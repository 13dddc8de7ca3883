"""A nest of many guests, for what has to work at scale: real groups with real marks and limits, some with processes.

    /nestrt-nest                     the nest's own parent group
    └ g0007                          limit group, marked: 512M, 100 processes
      └ guest                        guest root, stamped
        ├ init
        └ c0 … c9                    child groups, each with limits
          └ g0007x                   of every tenth guest: a guest of its own, a claim
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nestrt.plan.facts import Hierarchy
from nestrt.probe.facts import read_hierarchies

PARENT = "/nestrt-nest"
CONTROLLERS = ("memory", "cpu", "pids")
MEMORY, PIDS = 512 << 20, 100
# By controller: v1's file, v2's file, the value for a guest's limit group, the one for its child groups.
LIMITS = {
    "memory": ("memory.limit_in_bytes", "memory.max", str(MEMORY), str(MEMORY // 8)),
    "pids": ("pids.max", "pids.max", str(PIDS), str(PIDS // 4)),
    "cpu": ("cpu.shares", "cpu.weight", "200", "50"),
}


def chosen(controllers: Iterable[str] = CONTROLLERS) -> tuple[Hierarchy, ...]:
    """The hierarchies with one of *controllers*, and the v2 tree."""
    wanted = set(controllers)
    return tuple(h for h in read_hierarchies() if h.version == 2 or wanted & set(h.controllers))


def _mark(name: str, level: int, whole: bool, pid: int) -> str:
    known = {"v": 1, "name": name, "id": f"{hash(name) & 0xFFFFFFFFFFFFFFFF:016x}"}
    if whole:
        known |= {
            "level": level, "state": "running", "pid": pid, "start": _start(pid), "created": int(time.time()),
            "rootfs": "/srv/nest", "command": ["sleep", "infinity"], "policy": "nested", "max_level": 3, "ids": [],
            "view": {"mount": "rw", "controllers": "all", "start_in": "init", "cpus": "host"},
            "limits": {"memory": MEMORY, "pids": PIDS}, "partition": {"cpu": True}, "runtime": "launch",
        }  # fmt: skip
    return json.dumps(known)


def _start(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) if pid > 0 else -1


class Nest:
    """The groups below PARENT in *hierarchies*; *processes* of all guests have a sleeping one."""

    def __init__(self, hierarchies: tuple[Hierarchy, ...], parent: str = PARENT) -> None:
        self.hierarchies = hierarchies
        self.parent = parent
        self.sleepers: list[subprocess.Popen[bytes]] = []

    def _directory(self, hierarchy: Hierarchy, path: str, kind: int, leaf: bool = False) -> None:
        directory = hierarchy.path(path)
        os.mkdir(directory)
        # v2: what has processes gives its children no controllers.
        if hierarchy.version == 2 and not leaf:
            self._enable(directory)
        for controller in hierarchy.controllers:
            if kind >= 0 and controller in LIMITS:
                v1, v2, *values = LIMITS[controller]
                Path(directory, v2 if hierarchy.version == 2 else v1).write_text(values[kind])

    @staticmethod
    def _enable(directory: str) -> None:
        has = Path(directory, "cgroup.controllers").read_text().split()
        wanted = [f"+{name}" for name in has if name in CONTROLLERS]
        if wanted:
            Path(directory, "cgroup.subtree_control").write_text(" ".join(wanted))

    def make(self, guests: int, children: int, processes: int = 0, nested: bool = True) -> None:
        """*guests*, of which *processes* have one; every tenth has a guest of its own with *nested*."""
        for hierarchy in self.hierarchies:
            self._directory(hierarchy, self.parent, -1)
        for number in range(guests):
            name = f"g{number:04}"
            pid = -1
            if number < processes:
                self.sleepers.append(subprocess.Popen(["sleep", "infinity"], close_fds=True))
                pid = self.sleepers[-1].pid
            self.guest(name, f"{self.parent}/{name}", 1, children, pid, "trusted.nestrt")
            if nested and number % 10 == 0 and children:
                inner = f"{self.parent}/{name}/guest/c0/{name}x"
                self.guest(f"{name}x", inner, 2, 1, -1, "user.nestrt")

    def guest(self, name: str, path: str, level: int, children: int, pid: int, attribute: str) -> None:
        """One guest with its child groups, and *pid* in its first one."""
        for number, hierarchy in enumerate(self.hierarchies):
            self._directory(hierarchy, path, 0)
            os.setxattr(hierarchy.path(path), attribute, _mark(name, level, number == 0, pid).encode())
            self._directory(hierarchy, f"{path}/guest", -1)
            stamp = json.dumps({"v": 1, "name": name, "level": level, "set_by": "host"})
            os.setxattr(hierarchy.path(f"{path}/guest"), "user.nestrt", stamp.encode())
            self._directory(hierarchy, f"{path}/guest/init", -1, leaf=True)
            for child in range(children):
                # The first one can have a guest in it.
                self._directory(hierarchy, f"{path}/guest/c{child}", 1, leaf=child > 0)
            if pid > 0:
                Path(hierarchy.path(f"{path}/guest/init"), "cgroup.procs").write_text(str(pid))

    def sleep_in(self, path: str) -> int:
        """The pid of one more sleeping process, in the group *path* below PARENT in every hierarchy."""
        self.sleepers.append(subprocess.Popen(["sleep", "infinity"], close_fds=True))
        pid = self.sleepers[-1].pid
        for hierarchy in self.hierarchies:
            Path(hierarchy.path(f"{self.parent}/{path}"), "cgroup.procs").write_text(str(pid))
        return pid

    def remove(self) -> None:
        """All of it."""
        for sleeper in self.sleepers:
            sleeper.kill()
            sleeper.wait()
        for hierarchy in self.hierarchies:
            for directory, _, _ in os.walk(hierarchy.path(self.parent), topdown=False):
                _rmdir(directory)

    def directories(self) -> Iterator[str]:
        """Every directory of it."""
        for hierarchy in self.hierarchies:
            for directory, _, _ in os.walk(hierarchy.path(self.parent)):
                yield directory


def _rmdir(directory: str) -> None:
    for _ in range(100):
        try:
            return os.rmdir(directory)
        except FileNotFoundError:
            return None
        except OSError:  # EBUSY: what was killed is still leaving
            time.sleep(0.02)
    os.rmdir(directory)
    return None


@contextmanager
def nest(
    guests: int, children: int, processes: int = 0, nested: bool = True, parent: str = PARENT
) -> Iterator[Nest]:
    """That nest, removed in the end."""
    made = Nest(chosen(), parent)
    try:
        made.make(guests, children, processes, nested)
        yield made
    finally:
        made.remove()
