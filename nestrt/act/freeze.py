"""Freeze a container's limit group with all below it, and thaw it again.

v1: freezer.state (cgroup-v1/freezer-subsystem.rst); v2: cgroup.freeze (cgroup-v2.rst). Both
reach every group below, the guest's own too. What a guest has frozen itself stays
frozen when the container is thawed, and counts for nothing here: freezer.self_freezing
and cgroup.freeze say only what was asked of the limit group itself.
A hybrid host has both; there the v1 freezer is used, as runc does, and v2's where that is missing.
"""

from __future__ import annotations

import os

from nestrt.errors import HostError, StateError
from nestrt.kernel import freezer
from nestrt.kernel.freezer import V1_STATE, V2_STATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.act.containers import Container

V1_PLACE = "/sys/fs/cgroup/freezer"
V2_PLACES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
FILES = {1: V1_STATE, 2: V2_STATE}
MOST_SHOWN = 5  # pids in an error


def _places() -> tuple[str, tuple[str, ...]]:
    """The mountpoints of the v1 freezer, "" where there is none, and of v2 trees."""
    trees = tuple(place for place in V2_PLACES if os.path.exists(f"{place}/cgroup.controllers"))
    if os.path.isdir(V1_PLACE) or trees:
        return V1_PLACE if os.path.isdir(V1_PLACE) else "", trees
    from nestrt.kernel.mountinfo import read_mounts  # only where cgroups are mounted in no usual place

    mounts = read_mounts()
    v1 = [mount.target for mount in mounts if mount.fstype == "cgroup" and "freezer" in mount.super_options]
    return v1[0] if v1 else "", tuple(mount.target for mount in mounts if mount.fstype == "cgroup2")


def _group(path: str) -> tuple[str, int]:
    """The directory by which the limit group *path* is frozen, and its version; ("", 0) if there is none."""
    v1, trees = _places()
    if v1 and os.path.exists(f"{v1}{path}/{V1_STATE}"):
        return v1 + path, 1
    for tree in trees:
        if os.path.exists(f"{tree}{path}/{V2_STATE}"):
            return tree + path, 2
    return "", 0


def frozen(container: Container) -> bool:
    """Whether the container was frozen, or is being frozen; False where its group has gone."""
    v1, trees = _places()
    places = [(v1, 1)] if v1 else []
    for place, version in (*places, *((tree, 2) for tree in trees)):
        try:
            return freezer.asked(place + container.cgroup, version)
        except OSError:
            continue
    return False


def places(path: str) -> list[tuple[str, int]]:
    """Every directory by which the group *path* can be stopped, and its version, the one to be used first."""
    v1, trees = _places()
    found = [(v1 + path, 1)] if v1 else []
    found += [(tree + path, 2) for tree in trees]
    return [(place, version) for place, version in found if os.path.exists(f"{place}/{FILES[version]}")]


def _directory(container: Container, operation: str, what: str) -> tuple[str, int]:
    directory, version = _group(container.cgroup) if container.cgroup else ("", 0)
    if not directory:
        reason = "it has no group that could be frozen" if container.cgroup else "it was made without groups"
        raise HostError(operation, what, reason, "create it with a cgroupsPath that can be had")
    return directory, version


def freeze(container: Container, operation: str = "pause", what: str = "") -> None:
    """Stop every process of the container, and return when all have stopped.

    Errors say that *operation* failed on *what*. Raises StateError where they do not stop in time, having let
    them go on; HostError without a group; OSError.
    """
    what = what or f"container {container.id}"
    directory, version = _directory(container, operation, what)
    late: list[int] = []
    if not freezer.freeze(directory, version, lambda: late.extend(freezer.not_stopped(directory))):
        shown = f" (pid {', '.join(map(str, late[:MOST_SHOWN]))}{', …' if len(late) > MOST_SHOWN else ''})"
        raise StateError(
            operation,
            what,
            f"some of its processes do not stop{shown if late else ''}",
            f"see what they wait for: cat /proc/PID/stack; group {directory}",
        )


def thaw(container: Container) -> None:
    """Let the processes of the container go on. Raises HostError without a group, OSError."""
    directory, version = _directory(container, "resume", f"container {container.id}")
    freezer.thaw(directory, version)
