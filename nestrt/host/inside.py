"""What a guest has inside, as the kernel tells of its first process: namespaces, and the mounts of its view.

Nothing is entered, and no file of the guest is opened: namespaces(7), proc_pid_mountinfo(5). The text of
mountinfo is the kernel's, but targets in it are names that the guest chose, and there can be
fs.mount-max (100,000) lines of it.
"""

from __future__ import annotations

import os

from nestrt.host.processes import read_text
from nestrt.kernel.mountinfo import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KINDS = ("user", "mnt", "pid", "cgroup", "net", "ipc", "uts", "time")
MOST_TEXT = 4 << 20  # bytes of mountinfo
MOST_MOUNTS = 256


def namespaces(pid: int) -> dict[str, bool]:
    """For each kind of namespace whether process *pid* has another than we have; without those that cannot be read."""
    found = {}
    for kind in KINDS:
        try:
            found[kind] = os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        except OSError:
            continue
    return found


def view_mounts(pid: int, controllers: frozenset[str]) -> list[dict[str, Any]]:
    """The mounts of cgroup hierarchies that the process *pid* sees, at most MOST_MOUNTS; [] if it has ended.

    *controllers* are the kernel's names of those that there are.

    {"target": "/sys/fs/cgroup/memory", "version": 1, "controllers": "memory", "root": "/", "read_only": false}
    """
    try:
        text = read_text(f"/proc/{pid}/mountinfo", MOST_TEXT)
    except OSError:
        return []
    lines = [line for line in text.split("\n") if " - cgroup" in line]
    if len(text) >= MOST_TEXT:
        lines = lines[:-1]  # cut off in the middle
    found = []
    for line in lines[:MOST_MOUNTS]:
        for mount in parse(line):
            if mount.fstype in ("cgroup", "cgroup2"):
                names = [name for name in mount.super_options if name in controllers or name.startswith("name=")]
                found.append(
                    {
                        "target": mount.target,
                        "version": 1 if mount.fstype == "cgroup" else 2,
                        "controllers": ",".join(names) if mount.fstype == "cgroup" else "",
                        "root": mount.root,
                        "read_only": "ro" in mount.options,
                    }
                )
    return found
