"""Kernel reads → Facts: which hierarchies there are and what the launching level has.

Ask the kernel, never assume: controllers come from mountinfo and
cgroup.controllers, delegatable files from /sys/kernel/cgroup/delegate.
"""

from __future__ import annotations

import os

from nestrt.errors import HostError
from nestrt.kernel import cgroup
from nestrt.kernel.mountinfo import Mount, read_cgroups, read_mounts
from nestrt.plan.facts import Hierarchy

CGROUP_ROOT = "/sys/fs/cgroup"


def _best(mounts: list[Mount], own: str) -> Mount | None:
    """The mount that reaches highest: a directory, root "/" first, below /sys/fs/cgroup first."""
    usable = []
    for mount in mounts:
        inside = mount.root == "/" or own == mount.root or own.startswith(mount.root + "/")
        # The covers over locked files are mounts of cgroupfs too, of single files.
        if inside and os.path.isdir(mount.target):
            usable.append(mount)
    usable.sort(key=lambda m: (len(m.root), not m.target.startswith(CGROUP_ROOT), "ro" in m.options, len(m.target)))
    return usable[0] if usable else None


def _name(mount: Mount) -> str:
    """A hierarchy's directory below /sys/fs/cgroup; "" for the v2 tree mounted there itself."""
    if mount.target == CGROUP_ROOT:
        return ""
    if mount.target.startswith(CGROUP_ROOT + "/"):
        return mount.target[len(CGROUP_ROOT) + 1 :]
    return mount.target.rpartition("/")[2]


def _links() -> dict[str, list[str]]:
    """Symlinks below /sys/fs/cgroup (``cpu`` → ``cpu,cpuacct``): target → names."""
    links: dict[str, list[str]] = {}
    try:
        with os.scandir(CGROUP_ROOT) as entries:
            for entry in entries:
                if entry.is_symlink():
                    links.setdefault(os.readlink(entry.path), []).append(entry.name)
    except OSError:
        pass
    return links


def _unmounted(names: tuple[str, ...], controllers: tuple[str, ...], options: str) -> Hierarchy:
    """A v1 hierarchy that is alive and not mounted here, reached by a detached mount.

    A guest's group must be made in it all the same: else the guest, in whose cgroup
    namespace it would be at its true root, could mount it and see all of it.
    """
    from nestrt.kernel.mount import new_mount  # ctypes: not for verbs that find all of them mounted

    try:
        fd = new_mount("cgroup", options)
    except OSError as error:
        raise HostError(
            "reach the hierarchy",
            ",".join(names),
            f"it is alive and not mounted here ({error.strerror})",
            f"mount it: mount -t cgroup -o {options} none DIR",
        ) from error
    return Hierarchy("", 1, controllers, options, f"/proc/self/fd/{fd}")


def read_hierarchies(make: bool = False) -> tuple[Hierarchy, ...]:
    """Every cgroup hierarchy of this level, v2 first, then by name.

    With *make*, hierarchies that are alive and not mounted here are reached by
    detached mounts of this process's own; without it they are left out.
    Raises HostError where no cgroup hierarchy can be reached at all.
    """
    groups = read_cgroups()
    by_key: dict[tuple[str, ...], list[Mount]] = {key: [] for key in groups}
    for mount in read_mounts():
        if mount.fstype == "cgroup2":
            by_key.setdefault((), []).append(mount)
        elif mount.fstype == "cgroup":
            for key in groups:
                if key and set(key) <= set(mount.super_options):
                    by_key[key].append(mount)
    links = _links()
    found = []
    for key, mounts in by_key.items():
        chosen = _best(mounts, groups.get(key, "/"))
        controllers = tuple(name for name in key if not name.startswith("name="))
        options = ",".join(key) if controllers else ",".join(("none", *key))
        if chosen is not None:
            name = _name(chosen)
            version = 1 if key else 2
            if version == 2:
                options = ""
                controllers = tuple(cgroup.read(chosen.target + "/cgroup.controllers").split())
            read_only = "ro" in chosen.options or "ro" in chosen.super_options
            found.append(
                Hierarchy(name, version, controllers, options, chosen.target, tuple(links.get(name, ())), read_only)
            )
        elif make and key:
            found.append(_unmounted(key, controllers, options))
        elif make:
            raise HostError(
                "reach the hierarchy", "cgroup2", "it is alive and not mounted here", "mount -t cgroup2 none DIR"
            )
    if not found:
        raise HostError(
            "find",
            "a cgroup hierarchy",
            "none is mounted at this level",
            "mount one: mount -t cgroup2 none /sys/fs/cgroup",
        )
    return tuple(sorted(found, key=lambda h: (-h.version, h.name)))


def primary(hierarchies: tuple[Hierarchy, ...]) -> Hierarchy:
    """The hierarchy whose marks are whole: v2, else ``name=systemd``, else the first by name."""
    named = [h for h in hierarchies if h.version == 2] + [h for h in hierarchies if "name=systemd" in h.options]
    return (named + list(hierarchies))[0]
