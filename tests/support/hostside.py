"""The host's cgroup files as a test reads them, with a mountinfo parser of its own.

Nothing here comes from nestrt: what nestrt says is checked against it.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# The v1 name of a controller that v2 renamed.
V1_NAMES = {"io": "blkio"}
MARKS = ("trusted.nestrt", "user.nestrt")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy; *controllers* in the kernel's names, a named one has only *name*."""

    mountpoint: Path
    version: int
    controllers: frozenset[str]
    name: str = ""

    def group(self, path: str) -> Path:
        """The directory of the group *path* ("/nestrt/web/guest")."""
        return self.mountpoint / path.strip("/")


def _known_controllers() -> frozenset[str]:
    rows = Path("/proc/cgroups").read_text().splitlines()[1:] if os.path.exists("/proc/cgroups") else []
    return frozenset(row.split()[0] for row in rows)


@cache
def hierarchies() -> tuple[Hierarchy, ...]:
    """Every hierarchy mounted below /sys/fs/cgroup, once each (proc_pid_mountinfo(5))."""
    found: dict[str, Hierarchy] = {}
    known = _known_controllers()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        _, _, device, _, mountpoint, *_ = left.split()
        kind, _, super_options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2") or device in found or not mountpoint.startswith("/sys/fs/cgroup"):
            continue
        place = Path(mountpoint.encode().decode("unicode_escape"))
        if kind == "cgroup2":
            names = (place / "cgroup.controllers").read_text().split()
            found[device] = Hierarchy(place, 2, frozenset(names))
            continue
        options = super_options.split(",")
        name = next((option[5:] for option in options if option.startswith("name=")), "")
        found[device] = Hierarchy(place, 1, frozenset(options) & known, name)
    return tuple(found.values())


def hierarchy_of(controller: str) -> Hierarchy | None:
    """The hierarchy that has *controller* (its v2 name), or None where none has."""
    for hierarchy in hierarchies():
        name = V1_NAMES.get(controller, controller) if hierarchy.version == 1 else controller
        if name in hierarchy.controllers:
            return hierarchy
    return None


def v2_hierarchy() -> Hierarchy | None:
    """The v2 tree, with or without controllers, or None on a pure v1 host."""
    return next((hierarchy for hierarchy in hierarchies() if hierarchy.version == 2), None)


def has_v1(controller: str) -> bool:
    """Whether *controller* (its v2 name) stands in a v1 hierarchy here."""
    hierarchy = hierarchy_of(controller)
    return hierarchy is not None and hierarchy.version == 1


def is_v2_only() -> bool:
    """Whether this is a pure v2 host."""
    return all(hierarchy.version == 2 for hierarchy in hierarchies())


def limit_group(name: str) -> str:
    """The limit group of a guest that the host launched."""
    return f"/nestrt/{name}"


def guest_root(name: str) -> str:
    """The guest root of a guest that the host launched."""
    return f"/nestrt/{name}/guest"


def group_file(controller: str, group: str, v1: str, v2: str) -> Path:
    """The file of *group* that has one meaning in two versions; AssertionError without the controller."""
    hierarchy = hierarchy_of(controller)
    assert hierarchy is not None, f"no hierarchy has {controller}"
    return hierarchy.group(group) / (v1 if hierarchy.version == 1 else v2)


def read(controller: str, group: str, v1: str, v2: str) -> str:
    """The content of such a file, stripped."""
    return group_file(controller, group, v1, v2).read_text().strip()


def groups(path: str) -> list[Path]:
    """The directories of the group *path* in all hierarchies, those that exist."""
    return [hierarchy.group(path) for hierarchy in hierarchies() if hierarchy.group(path).is_dir()]


def below(directory: Path) -> list[Path]:
    """*directory* and all directories below it, each after the one above it.

    What is removed meanwhile is passed over, as os.walk does; Path.rglob (Python 3.11) raises FileNotFoundError.
    """
    return [Path(place) for place, _, _ in os.walk(directory)]


def directories(path: str) -> list[Path]:
    """The directories of the group *path* and of all below it, in every hierarchy (see below)."""
    return [directory for hierarchy in hierarchies() for directory in below(hierarchy.group(path))]


def pids_below(directory: Path) -> set[int]:
    """Process ids in the group *directory* and below it; not 0, which is one that ends at this moment.

    A group that is removed meanwhile has none (ENOENT, ENODEV), nor has one of threads alone (EOPNOTSUPP): the
    processes of its threads are those of the domain above it.
    """
    found: set[int] = set()
    for place in below(directory):
        try:
            found.update(int(word) for word in (place / "cgroup.procs").read_text().split())
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                raise
    return found - {0}


def processes(path: str) -> set[int]:
    """Process ids in the group *path* and below it, in any hierarchy (see pids_below)."""
    return {pid for hierarchy in hierarchies() for pid in pids_below(hierarchy.group(path))}


def mark(path: str) -> dict[str, Any]:
    """The whole mark of the limit group *path*: that in the v2 tree, else in name=systemd, else in the first."""
    ordered = sorted(hierarchies(), key=lambda h: (h.version != 2, h.name != "systemd", str(h.mountpoint)))
    for attribute in MARKS:
        try:
            text = os.getxattr(ordered[0].group(path), attribute)
        except OSError:
            continue
        value = json.loads(text)
        assert isinstance(value, dict)
        return value
    raise AssertionError(f"no mark on {path}")


def scratch_disk() -> str:
    """MAJ:MIN of a whole disk that the io controller can limit; "" where there is none."""
    for name in sorted(os.listdir("/sys/block")):
        if not name.startswith(("loop", "ram", "zram", "sr", "fd", "nbd")):
            return Path("/sys/block", name, "dev").read_text().strip()
    return ""


def cpus_online() -> int:
    """How many CPUs the host has."""
    return len(os.sched_getaffinity(0))
