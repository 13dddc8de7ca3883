"""Freeze a container's limit group with all below it, and thaw it again.

v1: freezer.state (cgroup-v1/freezer-subsystem.rst); v2: cgroup.freeze (cgroup-v2.rst). Both
reach every group below, the guest's own too. What a guest has frozen itself stays
frozen when the container is thawed, and counts for nothing here: freezer.self_freezing
and cgroup.freeze say only what was asked of the limit group itself.
A hybrid host has both; there the v1 freezer is used, as runc does, and v2's where that is missing.
"""

from __future__ import annotations

import os
import select
import time

from nestrt.errors import HostError, StateError
from nestrt.kernel import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.act.containers import Container

V1_PLACE = "/sys/fs/cgroup/freezer"
V2_PLACES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
V1_STATE, V1_SELF = "freezer.state", "freezer.self_freezing"
V2_STATE, V2_EVENTS = "cgroup.freeze", "cgroup.events"
# As runc: v1 writes FROZEN up to 1000 times (processes that are forked or moved in meanwhile make it fail)
# and now and then lets all run for a moment; v2 waits 10 s.
ATTEMPTS, REST_EVERY, REST = 1000, 50, 0.01
PATIENCE = 10.0


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
    files = [f"{v1}{container.cgroup}/{V1_SELF}"] if v1 else []
    for file in (*files, *(f"{tree}{container.cgroup}/{V2_STATE}" for tree in trees)):
        try:
            return cgroup.read(file) == "1"
        except OSError:
            continue
    return False


def _directory(container: Container, operation: str) -> tuple[str, int]:
    directory, version = _group(container.cgroup) if container.cgroup else ("", 0)
    if not directory:
        reason = "it has no group that could be frozen" if container.cgroup else "it was made without groups"
        raise HostError(operation, f"container {container.id}", reason, "create it with a cgroupsPath that can be had")
    return directory, version


def freeze(container: Container) -> None:
    """Stop every process of the container, and return when all have stopped.

    Raises StateError where they do not stop in time, having let them go on; HostError without a group; OSError.
    """
    directory, version = _directory(container, "pause")
    stopped = False
    try:
        stopped = _freeze_v1(directory) if version == 1 else _freeze_v2(directory)
    finally:
        if not stopped:
            _thaw(directory, version)
    if not stopped:
        raise StateError(
            "pause",
            f"container {container.id}",
            "some of its processes do not stop",
            f"see what they wait for: cat /proc/PID/stack; group {directory}",
        )


def thaw(container: Container) -> None:
    """Let the processes of the container go on. Raises HostError without a group, OSError."""
    directory, version = _directory(container, "resume")
    _thaw(directory, version)


def _thaw(directory: str, version: int) -> None:
    cgroup.write(f"{directory}/{V1_STATE if version == 1 else V2_STATE}", "THAWED" if version == 1 else "0")


def _freeze_v1(directory: str) -> bool:
    state = f"{directory}/{V1_STATE}"
    for attempt in range(ATTEMPTS):
        if attempt % REST_EVERY == REST_EVERY - 1:
            cgroup.write(state, "THAWED")
            time.sleep(REST)
        cgroup.write(state, "FROZEN")
        if attempt % REST_EVERY == REST_EVERY // 2:
            time.sleep(REST)  # a slow machine needs time before a look, not another write
        if cgroup.read(state) == "FROZEN":
            return True
    return False


def _freeze_v2(directory: str) -> bool:
    """Write cgroup.freeze and wait until cgroup.events says ``frozen 1``, by poll(2) on it."""
    deadline = time.monotonic() + PATIENCE
    fd = os.open(f"{directory}/{V2_EVENTS}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        cgroup.write(f"{directory}/{V2_STATE}", "1")
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while b"frozen 1" not in os.pread(fd, 4096, 0):
            if time.monotonic() > deadline:
                return False
            poll.poll(100)
        return True
    finally:
        os.close(fd)
