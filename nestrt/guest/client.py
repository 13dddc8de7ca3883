"""``nestrt guest status|mount|create|set|get|move|ls|rm``: guest root's own hand on its control groups.

Does what mkdir and echo in the guest's view can do, with checks before the write. This file stands alone: standard
library only, Python 3.9 and later, so that a guest may also keep a copy and run ``python3 client.py status``. What
needs the broker is in remote.py, which adds to this one.

Keys are the v2 names of cgroups(7) and Documentation/admin-guide/cgroup-v2.rst on every kind of host; KEYS says which
v1 files stand for them. Groups are named from the guest root, "/"; CPUs count from 0 where the guest is stamped so.
"""

# ruff: noqa: B905 (Python 3.9 has no zip(strict=))
from __future__ import annotations

import argparse
import errno
import json
import math
import os
import re
import signal
import sys
import time
from contextlib import suppress
from functools import cached_property
from typing import Any, Callable, Iterable, NamedTuple, NoReturn, Sequence

MAX = float("inf")
PERIOD = 100_000  # µs, the kernel's own default (CFS bandwidth control)
INITIAL_CGROUP_NAMESPACE = "cgroup:[4026531835]"  # PROC_CGROUP_INIT_INO in include/linux/proc_ns.h
DELEGATED = ("cgroup.subtree_control", "memory.oom.group", "memory.reclaim")  # as /sys/kernel/cgroup/delegate has it
V1_THROTTLE = {
    "rbps": "blkio.throttle.read_bps_device", "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device", "wiops": "blkio.throttle.write_iops_device",
}  # fmt: skip
STATUS = {errno.ENOENT: 3, errno.ENODEV: 3, errno.EEXIST: 4, errno.EBUSY: 4, errno.EROFS: 5, errno.EOPNOTSUPP: 5}
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EAGAIN)  # EAGAIN: cgroup.max.descendants
HINTS = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "the level or user that owns it must do it"),
    errno.EROFS: 'it is mounted read-only; ask for mount = "rw" in the policy',
    errno.EINVAL: "the kernel takes no such value here; compare the parent's and the child groups' values",
    errno.EAGAIN: "the guest has as many or as deep groups as it may have; remove one",
    errno.ENOSPC: "cpuset.cpus or cpuset.mems of the group is empty; set them first",
}


class GuestError(Exception):
    """One line for the user. *status* is the exit status: 1 the kernel refused, 2 bad input, 3 no such group or
    file, 4 exists or in use, 5 this guest cannot. *operation* reads "set memory.max of group /web", *code* is the
    kernel's errno, 0 where it was not asked."""

    def __init__(self, status: int, operation: str, reason: str, remedy: str = "", code: int = 0) -> None:
        super().__init__(operation, reason)
        self.status, self.operation, self.reason, self.remedy, self.code = status, operation, reason, remedy, code
        self.text = printable(f"nestrt: cannot {operation}: {reason}" + (f"; {remedy}" if remedy else ""))


def refused(error: OSError, operation: str, remedy: str = "") -> GuestError:
    """The kernel's refusal as a GuestError."""
    code = error.errno or 0
    return GuestError(STATUS.get(code, 1), operation, os.strerror(code), remedy or HINTS.get(code, ""), code)


def printable(text: str) -> str:
    """*text* without anything that a terminal obeys: group names and stamps come from anyone."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# Values: what a user writes and a kernel file holds. Parsers raise ValueError(reason, remedy).


def parse_size(text: str) -> float:
    """Bytes, from "512M" (IEC: K M G T P), "max" or v1's -1; a v1 file's nearly 2⁶³ is no limit either."""
    found = re.fullmatch(r"([0-9]{1,19})([KMGTP]?)", text.strip().upper())
    if text.strip().lower() in ("max", "-1"):
        return MAX
    if not found:
        raise ValueError(f"{text!r} is not a size", "write it like 512M, 2G or max")
    value = int(found[1]) << 10 * " KMGTP".index(found[2] or " ")
    return value if value < 1 << 62 else MAX


def parse_count(text: str) -> float:
    """A number of things, or "max"."""
    if text.strip() in ("max", "-1"):
        return MAX
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise ValueError(f"{text!r} is not a number", "write it like 100 or max")
    return int(text)


def parse_weight(text: str) -> float:
    """1 to 10000, 100 is the default (v1's 1024 shares)."""
    if not re.fullmatch(r"[0-9]{1,5}", text.strip()) or not 1 <= int(text) <= 10000:
        raise ValueError(f"{text!r} is not a weight", "write a number from 1 to 10000; 100 is the default")
    return int(text)


def parse_quota(text: str) -> tuple[float, int]:
    """(quota, period) in µs, from CPUs ("1.5"), a quota with a period ("150000 100000"), or "max"."""
    found = re.fullmatch(r"(max|[0-9]{1,12}(?:\.[0-9]{1,6})?)(?:\s+([0-9]{1,7}))?", text.strip())
    if not found or ("." in found[1] and found[2]):
        raise ValueError(f"{text!r} is not CPU time", "write CPUs like 1.5, µs like '150000 100000', or max")
    period = int(found[2] or PERIOD)
    quota = MAX if found[1] == "max" else int(found[1]) if found[2] else round(float(found[1]) * PERIOD)
    if quota < 1000 or not 1000 <= period <= 1_000_000:
        raise ValueError(f"{text!r} is outside what the kernel takes", "give at least 0.01 CPUs or 1000 µs")
    return quota, period


def parse_list(text: str) -> frozenset[int]:
    """CPUs or memory nodes, from "0-1,3" (cpuset(7), list format)."""
    numbers: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip())
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise ValueError(f"{text!r} is not a list of numbers", "write it like 0-1,3")
        numbers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return frozenset(numbers)


def parse_io(text: str) -> dict[str, dict[str, float]]:
    """{"8:0": {"rbps": bytes/s, "wbps": …, "riops": operations/s, "wiops": …}}, from lines as io.max has them."""
    limits: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        device, *pairs = line.replace(",", " ").split()
        limits[device] = {key: parse_size(value) for key, _, value in (pair.partition("=") for pair in pairs)}
        if not re.fullmatch(r"[0-9]+:[0-9]+", device) or not pairs or not set(limits[device]) <= set(V1_THROTTLE):
            raise ValueError(f"{line!r} is not an I/O limit", "write it like '8:0 rbps=1M wiops=100'")
    return limits


def weight_of(shares: int) -> int:
    """v2's cpu.weight for v1's cpu.shares, 100 for 1024: runc's formula (opencontainers/cgroups, utils.go)."""
    exponent = math.log2(min(max(shares, 2), 262144))
    return round(10 ** ((exponent * exponent + 125 * exponent) / 612 - 7 / 34))


def shares_of(weight: int) -> int:
    """The inverse of weight_of."""
    exponent = (math.sqrt(15625 + 2448 * (math.log10(weight) + 7 / 34)) - 125) / 2
    return min(max(round(2**exponent), 2), 262144)


def show_size(value: float) -> str:
    """The shortest text that parse_size reads back as the same."""
    if value == MAX:
        return "max"
    size, unit = int(value), 0
    while size and size % 1024 == 0 and unit < 5:
        size, unit = size // 1024, unit + 1
    return f"{size}{' KMGTP'[unit].strip()}"


def show_count(value: float) -> str:
    """Digits, or "max"."""
    return "max" if value == MAX else str(int(value))


def show_quota(value: tuple[float, int]) -> str:
    """CPUs."""
    return "max" if value[0] == MAX else f"{value[0] / value[1]:g}"


def show_list(numbers: Iterable[int]) -> str:
    """ "0-1,3" """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def show_io(limits: dict[str, dict[str, float]]) -> str:
    """Devices separated by "; ", "max" where none is limited."""
    texts = [" ".join([d] + [f"{k}={show_size(v)}" for k, v in limits[d].items()]) for d in sorted(limits)]
    return "; ".join(texts) or "max"


class Key(NamedTuple):
    """A limit: its v2 file's name, short names, controller (v2's name), v1 file, kind of value, files with the use."""

    name: str
    short: tuple[str, ...]
    controller: str
    v1: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str]
    use: tuple[str, str] = ("", "")


KEYS = {key.name: key for key in (
    Key("memory.max", ("memory", "memory.limit_in_bytes"), "memory", "memory.limit_in_bytes", parse_size, show_size,
        ("memory.current", "memory.usage_in_bytes")),
    Key("memory.swap.max", ("swap",), "memory", "memory.memsw.limit_in_bytes", parse_size, show_size,
        ("memory.swap.current", "memory.memsw.usage_in_bytes")),
    Key("cpu.max", ("cpu", "cpu-quota"), "cpu", "cpu.cfs_quota_us", parse_quota, show_quota),
    Key("cpu.weight", ("cpu-weight",), "cpu", "cpu.shares", parse_weight, show_count),
    Key("cpuset.cpus", ("cpus",), "cpuset", "cpuset.cpus", parse_list, show_list),
    Key("cpuset.mems", ("mems",), "cpuset", "cpuset.mems", parse_list, show_list),
    Key("pids.max", ("pids",), "pids", "pids.max", parse_count, show_count, ("pids.current", "pids.current")),
    Key("io.max", ("io",), "io", "blkio.throttle.read_bps_device", parse_io, show_io),
)}  # fmt: skip
SHORT = {short: name for name, key in KEYS.items() for short in key.short}
CPU_FILE = re.compile(r"cpuset\.(cpus|effective_cpus|cpus\.(effective|exclusive|exclusive\.effective|isolated))")


def parse_group(text: str, operation: str, controllers: Iterable[str] = ()) -> str:
    """A group's name from the guest root, checked: "web/worker" → "/web/worker"; "/" is the guest root."""
    parts = [] if text == "/" else text.strip("/").split("/")
    for part in parts:
        prefix, dot, _ = part.partition(".")
        bad = (
            "an empty name" if not part
            else "a name that leads elsewhere" if part in (".", "..")
            else "a line break or NUL in a name" if "\n" in part or "\0" in part
            else "a name of more than 255 bytes" if len(os.fsencode(part)) > 255
            else f"a name that looks like a file of {prefix}" if dot and prefix in ("cgroup", "blkio", *controllers)
            else ""
        )  # fmt: skip
        if bad:
            raise GuestError(2, f"{operation} group {text[:80]!r}", bad, "name it like web or web/worker")
    return "/" + "/".join(parts)


def below(group: str, base: str) -> str | None:
    """*group* as seen from *base*, by components ("/a/b" from "/a" is "/b"); None where it is elsewhere."""
    if base == "/":
        return None if group == "/.." or group.startswith("/../") else group
    return "/" if group == base else group[len(base) :] if group.startswith(base + "/") else None


def ancestors(group: str) -> list[str]:
    """The groups above *group*, the nearest first, "/" last."""
    found = []
    while group != "/":
        group = group.rpartition("/")[0] or "/"
        found.append(group)
    return found


def read(path: str) -> str | None:
    """What the file holds, stripped; None where it is not there or not for us to read."""
    try:
        with open(path, "rb", 0) as file:  # as text it takes twice the time
            return file.read().decode("utf-8", "surrogateescape").strip()
    except OSError:
        return None


def write(path: str, value: str) -> None:
    """Write in one write(2), as cgroupfs wants it. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, os.fsencode(value + "\n"))
    finally:
        os.close(descriptor)


def is_directory(path: str) -> bool:
    """os.path.isdir() in half the time: a name with a slash behind it is a directory's or none (path_resolution(7))."""
    return os.access(path + "/", os.F_OK)


# The view: which hierarchies there are and where the guest root is in each.


class Hierarchy(NamedTuple):
    """*root* is the guest root's directory, *base* what /proc/PID/cgroup calls it, *own* this process's group there,
    *name* its directory in a view, *options* the mount(2) data of v1; *controllers* in v2's names (io)."""

    version: int
    controllers: tuple[str, ...]
    root: str
    base: str
    own: str
    name: str
    options: str
    read_only: bool = False

    def dir(self, group: str) -> str:
        """The directory of a group, "/" is the guest root."""
        return self.root + (group if group != "/" else "")

    def at(self, root: str, base: str, own: str) -> Hierarchy:
        """The same with its guest root elsewhere: v2 may have other controllers there."""
        names = v2_controllers(root) if self.version == 2 else self.controllers
        return self._replace(controllers=names, root=root, base=base, own=own)


def v2_controllers(directory: str) -> tuple[str, ...]:
    """What a v2 group has."""
    return tuple((read(directory + "/cgroup.controllers") or "").split())


class Mount(NamedTuple):
    """A line of proc_pid_mountinfo(5)."""

    device: str
    root: str
    point: str
    fstype: str
    options: tuple[str, ...]
    read_only: bool


def parse_mountinfo(text: str) -> list[Mount]:
    """The cgroup and cgroup2 mounts, in the order of the kernel; the root "/../.." is one of a level above."""
    mounts = []
    for line in text.splitlines():
        front, _, back = line.partition(" - ")
        fields, (fstype, _, options) = front.split(" "), back.split(" ", 2)
        if fstype in ("cgroup", "cgroup2"):
            root, point = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), f) for f in fields[3:5])
            read_only = "ro" in fields[5].split(",") or "ro" in options.split(",")
            mounts.append(Mount(fields[2], root, point, fstype, tuple(options.split(",")), read_only))
    return mounts


def membership(pid: str = "self") -> dict[str, str]:
    """/proc/PID/cgroup (cgroups(7)): {"cpu,cpuacct": "/x", "name=systemd": "/x", "" (v2): "/x"}; {}: it has ended."""
    try:
        # A group's name may have every line break in it but this one, and spaces at its end.
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            lines = [line.split(":", 2) for line in file.read().split("\n") if line]
    except OSError:
        return {}
    return {controllers: group for _, controllers, group in lines}


def read_hierarchies() -> tuple[Hierarchy, ...]:
    """The hierarchies mounted for this process, v2 first, then as /proc/self/cgroup lists them; each once."""
    mounts = parse_mountinfo(read("/proc/self/mountinfo") or "")
    groups, found = membership(), []
    for options in sorted(groups, key=lambda o: o != ""):
        version = 1 if options else 2
        fit = [m for m in mounts if (m.fstype == "cgroup2") == (version == 2)]
        fit = [m for m in fit if version == 2 or set(options.split(",")) <= set(m.options)]
        fit = [m for m in fit if below(m.root, "/") and is_there(m)]
        if fit:
            best = min(fit, key=lambda m: (len(m.root), m.read_only))
            names = [name.replace("blkio", "io") for name in options.split(",") if "name=" not in name]
            own = below(groups[options], best.root) or ""
            label = os.path.basename(best.point) if len(groups) > 1 else ""
            v2 = v2_controllers(best.point)
            found.append(Hierarchy(version, tuple(names) if options else v2, best.point, best.root, own, label, options,
                                   best.read_only))  # fmt: skip
    return tuple(found)


def is_there(mount: Mount) -> bool:
    """Whether its mount point still shows this mount's directory: others may lie over it, and a locked limit file is
    a mount of its own."""
    try:
        found = os.stat(mount.point)
    except OSError:
        return False
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    return device == mount.device and os.path.isdir(mount.point)


def is_true_root(hierarchy: Hierarchy) -> bool:
    """Whether this is a hierarchy's very root, which no guest has: v2 has no cgroup.events there, v1 has this file."""
    v2 = hierarchy.version == 2
    return os.path.exists(hierarchy.root + ("/cgroup.events" if v2 else "/cgroup.sane_behavior")) != v2


def delegated(hierarchy: Hierarchy) -> Hierarchy | None:
    """Where no cgroup namespace hides what is above: the highest of our groups that our user owns (a systemd user
    session); None for root, to whom all belongs."""
    for group in [*ancestors(hierarchy.own), hierarchy.own][::-1] if os.geteuid() and hierarchy.own else ():
        if os.stat(hierarchy.dir(group)).st_uid == os.geteuid():
            return hierarchy.at(hierarchy.dir(group), group, below(hierarchy.own, group) or "")
    return None


def read_stamp(hierarchies: Iterable[Hierarchy]) -> dict[str, Any]:
    """What the launching level wrote on the guest root: {} where there is none or it is not what it should be."""
    for attribute in ("security.nestrt", "user.nestrt"):
        for hierarchy in hierarchies:
            try:
                stamp = json.loads(os.getxattr(hierarchy.root, attribute))
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(stamp, dict):
                return stamp
    return {}


class View:
    """A guest's hierarchies, and its groups and limits by meaning. *owner* (uid, gid) is given from the host only:
    what new groups are to belong to. *command* is how the user calls this."""

    def __init__(
        self, hierarchies: tuple[Hierarchy, ...], stamp: dict[str, Any], owner: tuple[int, int] | None = None,
        command: str = "nestrt guest",
    ) -> None:  # fmt: skip
        self.hierarchies = hierarchies
        self.owner = owner
        self.command = command
        self.known: Callable[[Iterable[int]], list[int]] = sorted  # process ids as the user has them
        self.stamp = stamp
        texts = {k: v for k, v in stamp.items() if isinstance(v, str) and len(v) < 256}
        self.name = texts.get("name", "")
        self.set_by = texts.get("set_by", "the level above")
        self.controllers = sorted({c for h in hierarchies for c in h.controllers})
        # Where this guest may make groups: its policy can keep a v1 hierarchy from it.
        self.divided = tuple(
            h for h in hierarchies
            if (os.stat(h.root).st_uid == owner[0] if owner else not h.read_only and os.access(h.root, os.W_OK))
        )  # fmt: skip
        self.holders = {c: h for h in reversed(hierarchies) for c in h.controllers}

    @cached_property
    def cpus(self) -> list[int]:
        """Guest CPU i is the i-th of these, the host's numbers; empty: numbers as the host has them."""
        renumbered = self.stamp.get("cpus") == "renumbered"
        return sorted(self.effective("/", "cpuset.cpus") or ()) if renumbered else []

    def holder(self, controller: str) -> Hierarchy | None:
        """The hierarchy with a controller (v2's name)."""
        return self.holders.get(controller)

    def exists(self, group: str) -> bool:
        """Whether any hierarchy has the group."""
        return any(is_directory(h.dir(group)) for h in self.hierarchies)

    def children(self, group: str) -> list[str]:
        """The groups right below, whichever hierarchy has them, by name."""
        names: set[str] = set()
        for hierarchy in self.hierarchies:
            try:
                with os.scandir(hierarchy.dir(group)) as entries:
                    names.update(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            except OSError:  # not in this hierarchy, or just removed
                pass
        return [("" if group == "/" else group) + "/" + name for name in sorted(names)]

    def tree(self, group: str) -> list[str]:
        """The group and all below it, each before its children."""
        found, waiting = [], [group]
        while waiting:
            found.append(waiting.pop())
            waiting += reversed(self.children(found[-1]))
        return found

    def processes(self, group: str) -> set[int]:
        """Process ids in the group itself, in any hierarchy; 0 is one of another pid namespace."""
        files = (read(h.dir(group) + "/cgroup.procs") or "" for h in self.hierarchies)
        return {int(pid) for text in files for pid in text.split()}

    def effective(self, group: str, name: str) -> frozenset[int] | None:
        """The CPUs or memory nodes (*name*: cpuset.cpus, cpuset.mems) that a group has, in the host's numbers."""
        hierarchy = self.holder("cpuset")
        short = name.partition(".")[2]
        for file in (f"{name}.effective", f"cpuset.effective_{short}", name) if hierarchy else ():
            text = read(f"{hierarchy.dir(group)}/{file}") if hierarchy else None
            if text:
                return parse_list(text)
        return None

    def value(self, group: str, name: str) -> Any:
        """A limit of KEYS, parsed (CPUs in the host's numbers); None where the group has no such file."""
        key, hierarchy = KEYS[name], self.holder(KEYS[name].controller)
        directory = hierarchy.dir(group) if hierarchy else ""
        if not hierarchy or hierarchy.version == 2:
            text = read(f"{directory}/{name}") if hierarchy else None
            return None if text is None else parse_quota(text) if name == "cpu.max" else key.parse(text)
        text = read(f"{directory}/{key.v1}")
        if text is None:
            return None
        if name == "cpu.max":
            return parse_size(text), int(read(f"{directory}/cpu.cfs_period_us") or PERIOD)
        if name == "cpu.weight":
            return weight_of(int(text))
        if name == "memory.swap.max":  # v1 counts memory and swap together
            memory = self.value(group, "memory.max")
            both = parse_size(text)
            return MAX if both == MAX else max(both - memory, 0) if memory != MAX else both
        if name == "io.max":
            limits: dict[str, dict[str, float]] = {}
            for rate, file in V1_THROTTLE.items():
                for line in (read(f"{directory}/{file}") or "").splitlines():
                    limits.setdefault(line.split()[0], {})[rate] = int(line.split()[1])
            return limits
        return key.parse(text)

    def use(self, group: str, name: str) -> float | None:
        """How much of a limit is in use: bytes, processes; seconds of CPU time ever used for cpu.max."""
        if name == "cpu.max":
            for hierarchy in self.hierarchies:
                found = re.match(r"usage_usec (\d+)", read(hierarchy.dir(group) + "/cpu.stat") or "")
                nanoseconds = read(hierarchy.dir(group) + "/cpuacct.usage")
                if found or nanoseconds:
                    return int(found[1]) / 1e6 if found else int(nanoseconds or 0) / 1e9
        hierarchy = self.holder(KEYS[name].controller)  # type: ignore[assignment]
        file = KEYS[name].use[2 - hierarchy.version] if hierarchy else ""
        text = read(f"{hierarchy.dir(group)}/{file}") if file else None
        if not text or not text.isdigit():
            return None
        both = name == "memory.swap.max" and hierarchy.version == 1
        return int(text) - (self.use(group, "memory.max") or 0) if both else int(text)

    def to_host(self, numbers: frozenset[int], operation: str) -> frozenset[int]:
        """Guest CPU numbers as the host's."""
        cpus = self.cpus
        if cpus and max(numbers, default=0) >= len(cpus):
            reason = f"no CPU {max(numbers)}: this guest has {show_list(range(len(cpus)))}"
            raise GuestError(2, operation, reason, "its CPUs are numbered from 0")
        return frozenset(cpus[n] for n in numbers) if cpus else numbers

    def show(self, name: str, value: Any) -> str:
        """A limit as the user writes it, CPUs in the guest's numbers."""
        if name == "cpuset.cpus" and (cpus := self.cpus):
            value = [i for i, number in enumerate(cpus) if number in value]
        return KEYS[name].show(value)

    def limits(self, group: str) -> dict[str, dict[str, Any]]:
        """{key: {"limit": …, "use": …}} for JSON: bytes, CPUs, numbers, lists as text; "max" where there is none."""
        values = [(name, self.value(group, name)) for name in KEYS]
        return {n: {"limit": self.plain(n, v), "use": self.use(group, n)} for n, v in values if v is not None}

    def plain(self, name: str, value: Any) -> Any:
        """A limit as JSON has it."""
        if isinstance(value, tuple):
            value = MAX if value[0] == MAX else value[0] / value[1]
        if isinstance(value, dict):
            return {device: {k: self.plain(name, v) for k, v in rates.items()} for device, rates in value.items()}
        return "max" if value == MAX else self.show(name, value) if isinstance(value, frozenset) else value


def local_view() -> View:
    """The view of the guest that this process is in."""
    hierarchies = read_hierarchies()
    if not hierarchies:
        raise GuestError(5, "find this guest's view", "no cgroup is mounted", "nestrt guest mount /sys/fs/cgroup")
    inner = [h if not is_true_root(h) else delegated(h) for h in hierarchies]
    found = tuple(h for h in inner if h)
    if not found:
        reason = f"{hierarchies[0].root} is the host's own tree"
        raise GuestError(5, "find this guest's view", reason, "from the host, use nestrt guest --of NAME")
    # The primary hierarchy carries the stamp: v2, else name=systemd, else the first by name.
    primary = sorted(found, key=lambda h: (h.version == 1, h.options != "name=systemd", h.options))
    return View(found, read_stamp(primary))


# Settings: parse, check against what is above, then the writes in an order that the kernel takes.


class Setting(NamedTuple):
    """*name* is a key of KEYS with a parsed *value*, or any other kernel file with the *text* to write."""

    name: str
    value: Any
    text: str


def parse_setting(view: View, group: str, pair: str) -> Setting:
    """ "memory=512M" """
    name, equals, text = pair.partition("=")
    name, text = SHORT.get(name, name), text.strip()
    operation = f"set {name} of group {group}"
    if not equals or not text or not text.isprintable():
        raise GuestError(2, f"set {pair[:80]!r}", "it is not KEY=VALUE", "write it like memory.max=512M")
    if name in KEYS and not view.holder(KEYS[name].controller):
        have = ", ".join(view.controllers) or "none"
        raise GuestError(5, operation, f"this guest has no {KEYS[name].controller} controller", f"it has: {have}")
    holder = view.holder(KEYS[name].controller) if name in KEYS else None
    if holder and holder not in view.divided and group != "/":
        reason = f"this guest may not divide {KEYS[name].controller}"
        raise GuestError(5, operation, reason, "the policy of the level above says so")
    if name in ("tasks", "cgroup.procs", "cgroup.threads"):
        raise GuestError(2, operation, "processes are no limit", f"{view.command} move GROUP PID")
    if name not in KEYS and not re.fullmatch(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)*", name):
        raise GuestError(2, operation, "no such key", "keys are " + ", ".join(KEYS))
    try:
        value = KEYS[name].parse(text) if name in KEYS else None
        if CPU_FILE.fullmatch(name):
            value = view.to_host(parse_list(text), operation)
            text = show_list(value)
    except ValueError as error:
        raise GuestError(2, operation, str(error.args[0]), str(error.args[-1])) from None
    return Setting(name, value, text)


def check_setting(view: View, group: str, setting: Setting) -> None:
    """Refuse what is more than the groups above have, and any limit of the guest root."""
    name, value = setting.name, setting.value
    operation = f"set {name} of group {group}"
    if group == "/" and name not in DELEGATED:
        raise locked(view, setting)
    for above in ancestors(group) if name in KEYS and name != "cpu.weight" else ():
        lists = isinstance(value, frozenset)
        have = view.effective(above, name) if lists else view.value(above, name)
        # v1's I/O throttling does not look at the groups above: there, "max" is more than any limit.
        flat = isinstance(value, dict) and any(h.version == 1 and "io" in h.controllers for h in view.hierarchies)
        if have is not None and exceeds(value, have, flat):
            text, most = view.show(name, value), view.show(name, have)
            raise GuestError(2, operation, f"{text} is more than group {above} has ({most})", f"give at most {most}")


def exceeds(value: Any, have: Any, flat: bool = False) -> bool:
    """Whether a limit is more than another of its kind. "max" is not, unless *flat*: it leaves it to those above."""
    if isinstance(value, frozenset):
        return not value <= have
    if isinstance(value, dict):
        pairs = [(v, have.get(d, {}).get(k, MAX)) for d, rates in value.items() for k, v in rates.items()]
        return any(most < v and (flat or v < MAX) for v, most in pairs)
    if isinstance(value, tuple):
        value, have = value[0] / value[1], have[0] / have[1]
    return bool(have < value < MAX)


def locked(view: View, setting: Setting) -> GuestError:
    """The answer to a write to the guest root's limit: its value, who set it, and the child group to make."""
    name, value = setting.name, setting.value
    guest = f"guest {view.name}" if view.name else "this guest"
    have = view.value("/", name) if name in KEYS else None
    more = have is not None and (exceeds(value, have) or value == MAX or isinstance(value, dict))
    text = view.show(name, have if more else value) if name in KEYS else setting.text
    reason = f"it is the limit of {guest}" + (f" ({view.show(name, have)})" if have is not None else "")
    remedy = f"make a child group: {view.command} create {view.name.rpartition('/')[2] or 'group'}1 {name}={text}"
    return GuestError(5, f"set {name} of group /", f"{reason}, set by {view.set_by}", remedy)


def writes(view: View, group: str, settings: list[Setting]) -> list[tuple[str, str, str]]:
    """(key, file, text) to write, in an order in which each write is allowed and none loosens a limit on its way."""
    found: list[tuple[str, str, str]] = []
    memory: dict[str, float] = {}
    for name, value, text in settings:
        if name not in KEYS:
            at = [path for h in view.hierarchies for path in [f"{h.dir(group)}/{name}"] if os.path.exists(path)]
            if not at:
                raise GuestError(3, f"set {name} of group {group}", "no such file", "keys are " + ", ".join(KEYS))
            found.append((name, at[0], text))
            continue
        hierarchy = view.holder(KEYS[name].controller)
        assert hierarchy is not None  # parse_setting has seen to it
        at1, directory = hierarchy.version == 1, hierarchy.dir(group)
        path = f"{directory}/{KEYS[name].v1 if at1 else name}"
        if name == "cpu.max":
            quota = show_count(value[0])
            old, period = view.value(group, name) or (MAX, PERIOD) if at1 else (MAX, 0)
            pair = [(name, path, quota.replace("max", "-1"))]
            if period != value[1] and value[0] != MAX:
                # The quota first where it shrinks, else the period: the share on the way is above neither the old
                # one nor the new one, so no limit above forbids it.
                pair.insert(int(value[0] <= old < MAX), (name, f"{directory}/cpu.cfs_period_us", str(value[1])))
            found += pair if at1 else [(name, path, quota if quota == "max" else f"{quota} {value[1]}")]
        elif name == "io.max" and at1:
            for device, rates in value.items():
                for rate, most in rates.items():
                    found.append((name, f"{directory}/{V1_THROTTLE[rate]}", f"{device} {0 if most == MAX else most}"))
        elif name.startswith("memory.") and at1:
            memory[name] = value
        elif name == "cpu.weight" and at1:
            found.append((name, path, str(shares_of(value))))
        elif name == "io.max":
            for device, rates in value.items():  # the kernel reads bare numbers here: "1M" would be 1
                found.append((name, path, " ".join([device, *(f"{k}={show_count(v)}" for k, v in rates.items())])))
        else:
            found.append((name, path, KEYS[name].show(value)))
    return found + (v1_memory(view, group, memory) if memory else [])


def v1_memory(view: View, group: str, new: dict[str, float]) -> list[tuple[str, str, str]]:
    """v1's memory.memsw.limit_in_bytes (both together) may never be below memory.limit_in_bytes: raise it first,
    lower it last. A group's swap stays what it was where only its memory is set."""
    operation = f"set memory.swap.max of group {group}"
    hierarchy = view.holder("memory")
    directory = hierarchy.dir(group) if hierarchy else ""
    files = [f"{directory}/{KEYS[name].v1}" for name in ("memory.max", "memory.swap.max")]
    old_swap = view.value(group, "memory.swap.max")
    memory = new.get("memory.max", view.value(group, "memory.max"))
    if "memory.swap.max" in new and old_swap is None:
        raise GuestError(5, operation, "this kernel does not account swap", "boot it with swapaccount=1")
    swap = MAX if memory == MAX and "memory.swap.max" not in new else new.get("memory.swap.max", old_swap)
    if memory == MAX and swap not in (MAX, None):
        raise GuestError(2, operation, "on cgroup v1 swap is limited only with memory", "set memory.max too")
    limits = [memory] if swap is None else [memory, memory + swap]
    texts = [show_count(limit).replace("max", "-1") for limit in limits]
    pair = list(zip(("memory.max", "memory.swap.max"), files, texts))
    raised = swap is not None and limits[1] >= parse_size(read(files[1]) or "max")
    return pair[::-1] if raised else pair


def undone(undo: list[tuple[str, str | None]]) -> None:
    """Take back what was done, the last first, as far as the kernel lets: (path, the text it had, or None: a new
    directory)."""
    for path, text in reversed(undo):
        try:
            if text is None:
                os.rmdir(path)
            else:
                write(path, text)
        except OSError:
            pass


def enable(view: View, group: str, needed: set[str], undo: list[tuple[str, str | None]]) -> None:
    """v2: give the group its controllers, by cgroup.subtree_control of every group above it: all that can be had,
    and an error for one that is *needed*. A group that has processes cannot (cgroup-v2.rst, "No Internal Process
    Constraint"); its threaded controllers could, but would turn its children into unusable ones, so none is tried."""
    for hierarchy in (h for h in view.divided if h.version == 2):
        for above in reversed(ancestors(group)):
            directory = hierarchy.dir(above)
            path = directory + "/cgroup.subtree_control"
            missing = set((read(directory + "/cgroup.controllers") or "").split()) - set((read(path) or "").split())
            pids = (read(directory + "/cgroup.procs") or "").split() if missing else []
            for controller in sorted(missing):
                operation = f"give {controller} to group {group}"
                try:
                    if pids:
                        raise OSError(errno.EBUSY, "")
                    write(path, "+" + controller)
                    undo.append((path, "-" + controller))
                except OSError as error:
                    if controller not in needed:
                        continue
                    if error.errno != errno.EBUSY:
                        raise refused(error, operation) from None
                    init = (above if above != "/" else "") + "/init"
                    some = " ".join(map(str, view.known(map(int, pids))[:8])) or "PID"
                    make = f"{view.command} create {init}"
                    reason = f"group {above} itself holds processes ({some}), and such a group cannot divide"
                    remedy = f"move them first: {make}; {view.command} move {init} {some}"
                    raise GuestError(4, operation, reason, remedy) from None
            if view.owner and missing & set((read(path) or "").split()):
                for child in view.children(above):
                    own_new(hierarchy.dir(child), os.stat(directory))


def own_new(directory: str, above: os.stat_result) -> None:
    """From the host: what enabling has made in a group is whose it would be if the owner of the group *above* had done
    it: limits are his, what is delegated is the group's owner's. All else is somebody's already."""
    with suppress(FileNotFoundError):  # just removed, or in other hierarchies only
        for file in os.scandir(directory):
            owner = os.stat(directory) if file.name in DELEGATED else above
            if file.is_file() and not file.name.startswith("cgroup.") and os.stat(file).st_uid == os.geteuid():
                os.chown(file, owner.st_uid, owner.st_gid, follow_symlinks=False)


def own(view: View, directory: str) -> None:
    """From the host: a new group and its files belong to the guest root's owner, as if made inside."""
    if view.owner:
        for path in [directory, *(f"{directory}/{name}" for name in os.listdir(directory))]:
            if path == directory or not os.path.isdir(path):
                os.chown(path, *view.owner, follow_symlinks=False)


def make(view: View, group: str, undo: list[tuple[str, str | None]]) -> None:
    """Make the group in every hierarchy that does not have it, ready to use."""
    for hierarchy in view.divided:
        directory = hierarchy.dir(group)
        if os.path.isdir(directory):
            continue
        try:
            os.mkdir(directory)
            undo.append((directory, None))
            # A v1 cpuset starts empty, and v1 throttling does not look at the groups above: both take the parent's.
            v1 = ("cpuset.cpus", "cpuset.mems", *V1_THROTTLE.values()) if hierarchy.version == 1 else ()
            for file in v1 if {"cpuset", "io"} & set(hierarchy.controllers) else ():
                if not read(f"{directory}/{file}"):
                    for line in (read(f"{directory}/../{file}") or "").splitlines():
                        write(f"{directory}/{file}", line)
            own(view, directory)
        except OSError as error:
            raise refused(error, f"create group {group} in {hierarchy.root}") from None


def has_file(view: View, group: str, name: str) -> bool:
    """Whether the group has the file of a setting, and so the controller; v1 needs nothing of the groups above."""
    if name not in KEYS:  # every group has cgroup.subtree_control, whatever it may have in it
        files = (f"{h.dir(group)}/{name}" for h in view.hierarchies)
        return not name.startswith("cgroup.") and any(map(os.path.exists, files))
    hierarchy = view.holder(KEYS[name].controller)
    return hierarchy is not None and (hierarchy.version == 1 or os.path.exists(f"{hierarchy.dir(group)}/{name}"))


def apply(view: View, group: str, settings: list[Setting], undo: list[tuple[str, str | None]]) -> None:
    """Write the settings; raises GuestError at the first that the kernel refuses."""
    needed = {KEYS[s.name].controller if s.name in KEYS else s.name.partition(".")[0] for s in settings}
    if undo or not all(has_file(view, group, s.name) for s in settings):
        enable(view, group, needed, undo)
    for name, path, text in writes(view, group, settings):
        old = read(path)
        if old == text:
            continue
        try:
            write(path, text)
        except OSError as error:
            more = "a child group or a process has more" if error.errno in (errno.EBUSY, errno.EINVAL) else ""
            raise refused(error, f"set {name} of group {group}", more) from None
        if old and "\n" not in old and name != "io.max":
            undo.append((path, old))


# Commands: each takes the view and the parsed arguments and returns the lines to print, or values for JSON.


def existing(view: View, text: str, operation: str) -> str:
    """The checked name of a group that is there."""
    group = parse_group(text, operation, view.controllers)
    if not view.exists(group):
        raise GuestError(3, f"{operation} group {group}", "no such group", f"see {view.command} ls -r")
    return group


def do_create(view: View, args: argparse.Namespace) -> None:
    """Make a group in every hierarchy, with limits: all or nothing."""
    group = parse_group(args.group, "create", view.controllers)
    if view.exists(group):
        raise GuestError(4, f"create group {group}", "it exists", f"{view.command} set {group} KEY=VALUE")
    above = ancestors(group)[0]
    if not args.parents and not view.exists(above):
        raise GuestError(3, f"create group {group}", f"there is no group {above}", "make it too with -p")
    change(view, group, args.settings)


def do_set(view: View, args: argparse.Namespace) -> None:
    """Set limits of a group: all or nothing."""
    change(view, existing(view, args.group, "set limits of"), args.settings)


def change(view: View, group: str, pairs: list[str], made: bool = False) -> None:
    """Check the settings, make what is missing of the group (*made*: nothing is), write; take all back on failure."""
    settings = [parse_setting(view, group, pair) for pair in pairs]
    names = [s.name for s in settings if s.name != "io.max"]
    if len(set(names)) < len(names):
        raise GuestError(2, f"set limits of group {group}", "a key is given twice", "give each key once")
    for setting in settings:
        check_setting(view, group, setting)
    if not view.divided:
        reason = f"the view at {view.hierarchies[0].root} cannot be written by this user"
        raise GuestError(5, f"change group {group}", reason, 'as guest root; with mount = "rw" in the policy')
    undo: list[tuple[str, str | None]] = []
    try:
        new = group != "/" and not made and not all(is_directory(h.dir(group)) for h in view.divided)
        for step in [*ancestors(group)[-2::-1], group] if new else ():
            make(view, step, undo)
        apply(view, group, settings, undo)
        for hierarchy in view.divided if new else ():
            if view.owner and (hierarchy.dir(group), None) in undo:
                own(view, hierarchy.dir(group))
    except BaseException:
        undone(undo)
        raise


def values_of(view: View, group: str, keys: Iterable[str], plain: bool = False) -> dict[str, Any]:
    """Limits of a group, or any of its files, as text; *plain*: as JSON has them. Without *keys* all limits it has."""
    shown: dict[str, Any] = {}
    for name in [SHORT.get(k, k) for k in keys] or [k for k in KEYS if view.value(group, k) is not None]:
        value = view.value(group, name) if name in KEYS else None
        if value is not None:
            shown[name] = view.plain(name, value) if plain else view.show(name, value)
            continue
        files = (read(f"{h.dir(group)}/{name}") for h in view.hierarchies if "/" not in name)
        text = next((text for text in files if text is not None), None)
        if text is None:
            raise GuestError(3, f"read {name} of group {group}", "no such file", "keys are " + ", ".join(KEYS))
        shown[name] = view.show("cpuset.cpus", parse_list(text)) if CPU_FILE.fullmatch(name) else text
    return shown


def do_get(view: View, args: argparse.Namespace) -> Any:
    """Limits of a group, or any of its files."""
    group = existing(view, args.group, "read")
    shown = values_of(view, group, args.keys, args.format == "json")
    if args.format == "json":
        return shown
    return [f"{name} {value}" if "\n" not in value else f"{name}\n{value}" for name, value in shown.items()]


LS_HEADER: tuple[str, ...] = ("group", "procs", "memory", "swap", "cpu", "weight", "cpus", "pids")
LS_KEYS = ("memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "cpuset.cpus", "pids.max")


def do_ls(view: View, args: argparse.Namespace) -> Any:
    """Groups with their processes, limits and use."""
    top = existing(view, args.group, "list")
    groups = view.tree(top) if args.recursive else [top, *view.children(top)]
    if args.format == "json":
        return [{"group": g, "processes": len(view.processes(g)), "limits": view.limits(g)} for g in groups]
    lines = [LS_HEADER]
    for group in groups:
        cells = [limit_text(view, group, name) for name in LS_KEYS]
        lines.append((printable(group), str(len(view.processes(group))), *cells))
    return table(lines)


def limit_text(view: View, group: str, name: str) -> str:
    """ "12.3M/512M": use and limit; "-" where the group has no such limit."""
    value = view.value(group, name)
    return "-" if value is None else used(name, view.show(name, value), view.use(group, name))


def used(name: str, text: str, use: float | None) -> str:
    """The limit *text* with what is in use of it."""
    if use is None or name == "cpu.max":
        return text
    return f"{about(use) if name.startswith('memory.') else use}/{text}"


def about(size: float) -> str:
    """Bytes with three digits or so: "12.3M"."""
    unit = 0
    while size >= 1024 and unit < 4:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f}".rstrip("0").rstrip(".") + " KMGT"[unit].strip()


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns under each other, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def do_status(view: View, args: argparse.Namespace) -> Any:
    """What this guest is, has, uses and may divide."""
    first = view.hierarchies[0]
    partition = view.stamp.get("partition")
    partition = partition if isinstance(partition, dict) else {}
    mine = {c for h in view.divided for c in h.controllers}
    if not (read("/proc/self/uid_map") or "4294967295").endswith("4294967295"):
        mine.discard("devices")  # v1's device rules cannot be written from a user namespace
    flag = {"cpuset": "cpu"}
    may = [c for c in view.controllers if c in mine and partition.get(flag.get(c, c), True) is True]
    cpus = len(view.effective("/", "cpuset.cpus") or os.sched_getaffinity(0))
    whole = {k: v for k, v in {**view.stamp, **partition}.items() if type(v) is int}
    found: dict[str, Any] = {
        "name": view.name, "level": whole.get("level"), "max_level": whole.get("max_level"), "set_by": view.set_by,
        "view": "rw" if view.divided else "ro", "locked": view.stamp.get("locked") is True,
        "locked_by": str(view.stamp.get("locked_by", ""))[:256] or None, "root": first.root,
        "own_group": first.own or None, "cpus": cpus,
        "cpu_numbers": "renumbered" if view.cpus else "host", "controllers": view.controllers, "may_divide": may,
        "max_groups": whole.get("max_groups"), "max_depth": whole.get("max_depth"), "limits": view.limits("/"),
    }  # fmt: skip
    return found if args.format == "json" else status_lines(found, lambda name: limit_text(view, "/", name))


def status_lines(found: dict[str, Any], limit: Callable[[str], str]) -> list[str]:
    """The status for a person; *limit* gives the text of each limit."""
    shown = {k: v if not isinstance(v, list) else " ".join(v) or "nothing" for k, v in found.items() if k != "limits"}
    shown = {k: ("no", "yes")[v] if isinstance(v, bool) else v for k, v in shown.items()}
    lines = [(k.replace("_", " "), "-" if v in (None, "") else printable(str(v))) for k, v in shown.items()]
    return table(lines) + [""] + table([("limit", "use/value"), *((name, limit(name)) for name in found["limits"])])


def places(pid: int, hierarchies: Iterable[Hierarchy]) -> dict[Hierarchy, str | None]:
    """The group of a process in each hierarchy, None where it is not in this guest; {} where there is no process."""
    now = membership(str(pid)) if pid > 0 else {}
    return {h: below(now.get(h.options, "/.."), h.base) for h in hierarchies} if now else {}


def move(
    pid: int, group: str, old: dict[Hierarchy, str], operation: str,
    sure: Callable[[list[Hierarchy]], None] = lambda written: None,
) -> None:  # fmt: skip
    """Move a process from its *old* groups to *group*: in all of those hierarchies, or in none. *sure* is told after
    each write which have been written, and raises where the number may have become another process's."""
    undo: list[tuple[str, str | None]] = []
    for done, hierarchy in enumerate(old):
        try:
            write(hierarchy.dir(group) + "/cgroup.procs", str(pid))
        except OSError as error:
            sure([*old][:done])
            undone(undo)
            sure([*old][:done])
            busy = "it gives controllers to child groups, and only those hold processes then: move it to one"
            raise refused(error, operation, busy if error.errno == errno.EBUSY else "") from None
        undo.append((f"{hierarchy.dir(old[hierarchy])}/cgroup.procs", str(pid)))
        sure([*old][: done + 1])


def do_move(view: View, args: argparse.Namespace) -> None:
    """Move processes to a group, in every hierarchy: each wholly or not."""
    group = existing(view, args.group, "move processes to")
    if not view.divided:
        raise GuestError(5, f"move processes to group {group}", "this user may not write to the view", "as guest root")
    for pid in args.pids:
        operation = f"move process {pid} to group {group}"
        old = places(pid, view.hierarchies)
        if not old:
            raise GuestError(3, operation, "no such process", "name processes by their ids")
        if None in old.values():
            raise GuestError(4, operation, "it is not in this guest", "only the guest's own processes can be moved")
        move(pid, group, {h: old[h] or "/" for h in view.divided}, operation)


def do_rm(view: View, args: argparse.Namespace) -> None:
    """Remove a group; with -r what is below, with --kill what runs in it."""
    group = existing(view, args.group, "remove")
    operation = f"remove group {group}"
    if group == "/":
        raise GuestError(2, operation, "it is the guest root", "the level above removes it with the guest")
    groups = view.tree(group)[::-1]
    if len(groups) > 1 and not args.recursive:
        raise GuestError(4, operation, f"it has child groups ({groups[-2]}, …)", "remove them too with -r")
    pids = sorted(set().union(*map(view.processes, groups)))
    if os.getpid() in pids:
        raise GuestError(4, operation, "this command itself runs in it", f"{view.command} move GROUP {os.getppid()}")
    if pids and not args.kill:
        some = " ".join(map(str, view.known(pids)[:8])) + (" …" if len(pids) > 8 else "")
        raise GuestError(4, operation, f"processes are in it ({some})", "move them, or end them with --kill")
    deadline = time.monotonic() + 10
    if args.kill:
        kill(view, groups, deadline)
    for hierarchy in view.hierarchies:
        for child in groups:
            while True:
                try:
                    os.rmdir(hierarchy.dir(child))
                except FileNotFoundError:
                    pass
                except OSError as error:
                    if args.kill and error.errno == errno.EBUSY and time.monotonic() < deadline:
                        time.sleep(0.01)  # a killed process leaves its group a little later
                        continue
                    raise refused(error, f"remove group {child}", "processes or groups are in it") from None
                break


def kill(view: View, groups: list[str], deadline: float) -> None:
    """SIGKILL to all in the groups (children first), thawed from above so that it reaches them. By pidfd, and looked
    up again once that is held: a process id may have been taken by another meanwhile."""
    for above in ancestors(groups[-1]):
        # A v1 group stays frozen below a frozen one, and a signal waits there for ever (v2's cgroup.kill does not).
        if any((read(h.dir(above) + "/freezer.state") or "THAWED") != "THAWED" for h in view.hierarchies):
            remedy = f"thaw it: {view.command} set {above} freezer.state=THAWED"
            raise GuestError(4, f"end the processes of group {groups[-1]}", f"group {above} is frozen", remedy)
    for group in reversed(groups):
        for hierarchy in view.hierarchies:
            for file, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0"), ("cgroup.kill", "1")):
                try:
                    write(f"{hierarchy.dir(group)}/{file}", text)
                except OSError:  # another version, or gone; the signals below serve as well
                    pass
    while time.monotonic() < deadline:
        pids = {(pid, group) for group in groups for pid in view.processes(group) if pid}
        for pid, group in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if pid in view.processes(group):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            except OSError:
                pass
            finally:
                os.close(descriptor)
        if not pids:
            return
        time.sleep(0.01)


def do_mount(args: argparse.Namespace) -> None:
    """Mount this guest's hierarchies below a directory, laid out as a host has them; all or nothing."""
    operation = f"mount the guest's hierarchies at {args.directory}"
    if os.readlink("/proc/self/ns/cgroup") == INITIAL_CGROUP_NAMESPACE:
        reason = "this process is in no guest but in the host's own cgroup namespace"
        raise GuestError(5, operation, reason, "a mount from here would change options of the whole host")
    if not os.path.isdir(args.directory):
        raise GuestError(3, operation, "no such directory", f"mkdir -p {args.directory}")
    import ctypes  # mount(2) has no other way from the standard library, and a small guest has no mount program

    libc = ctypes.CDLL(None, use_errno=True)
    wanted = set((args.controllers or "").replace("blkio", "io").split(",")) - {""}
    known = {h.options: h for h in read_hierarchies()}
    names = {o: o.replace("name=", "") for o in membership()}
    have = {o: set(o.replace("blkio", "io").split(",")) if o else set(known[o].controllers if o in known else ())
            for o in names}  # fmt: skip
    if wanted - set().union(*have.values()):
        lacks = ", ".join(sorted(wanted - set().union(*have.values())))
        raise GuestError(5, operation, f"this guest has no controller {lacks}", "see nestrt guest status")
    if "" in names and len(names) > 1:
        names[""] = known[""].name if "" in known else "unified"
    # A tmpfs between where DIR has a view: the kernel mounts no filesystem right on itself (EBUSY).
    under = os.path.realpath(args.directory) in [m.point for m in parse_mountinfo(read("/proc/self/mountinfo") or "")]
    todo = [("tmpfs", "", "mode=755")] if any(names.values()) or under else []
    todo += [("cgroup" if o else "cgroup2", name, o if "name=" not in o else "none," + o)
             for o, name in names.items() if not wanted or wanted & have[o]]  # fmt: skip
    done: list[str] = []
    try:
        for fstype, name, data in todo:
            point = os.path.join(args.directory, name) if name else args.directory
            os.makedirs(point, exist_ok=True)
            arguments = (fstype.encode(), os.fsencode(point), fstype.encode(), 2 | 4 | 8)  # MS_NOSUID, NODEV, NOEXEC
            if libc.mount(*arguments, data.encode() if data else None):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            done.append(point)
            for link in name.split(",") if "," in name else ():
                os.symlink(name, os.path.join(args.directory, link))
    except OSError as error:
        for point in reversed(done):
            libc.umount2(os.fsencode(point), 2)  # MNT_DETACH
        raise refused(error, f"{operation} ({name or fstype})") from None


class Parser(argparse.ArgumentParser):
    """Its errors are this command's errors: one line, status 2."""

    def error(self, message: str) -> NoReturn:
        raise GuestError(2, "read the command line", message, f"see {self.prog} --help")


def make_parser() -> tuple[Parser, Any]:
    """The command line: the parser, and the commands' own (argparse's, to which others may be added)."""
    parser = Parser(prog="nestrt guest", description="What guest root can do with its own control groups.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in (
        ("status", do_status.__doc__), ("get", do_get.__doc__), ("ls", do_ls.__doc__), ("create", do_create.__doc__),
        ("set", do_set.__doc__), ("move", do_move.__doc__), ("rm", do_rm.__doc__), ("mount", do_mount.__doc__),
    ):  # fmt: skip
        command = commands.add_parser(name, help=about, description=about)
        if name in ("status", "get", "ls"):
            command.add_argument("--format", choices=("text", "json"), default="text")
        if name == "mount":
            command.add_argument("directory", metavar="DIR")
            command.add_argument("--controllers", metavar="A,B", help="only the hierarchies with these")
        elif name != "status":
            top = {"nargs": "?", "default": "/"} if name == "ls" else {}
            command.add_argument("group", metavar="GROUP", help="from the guest root, like web/worker", **top)  # type: ignore[arg-type]
        if name in ("ls", "rm"):
            command.add_argument("-r", "--recursive", action="store_true", help="groups below too")
        if name == "rm":
            command.add_argument("--kill", action="store_true", help="end the processes in it")
        if name == "create":
            command.add_argument("-p", "--parents", action="store_true", help="make missing groups above too")
        if name in ("create", "set"):
            keys = ", ".join(f"{key} ({KEYS[key].short[0]})" if KEYS[key].short else key for key in KEYS)
            many = "*" if name == "create" else "+"
            command.add_argument("settings", nargs=many, metavar="KEY=VALUE", help=f"{keys}, or a kernel file's name")
        if name == "get":
            command.add_argument("keys", nargs="*", metavar="KEY")
        if name == "move":
            command.add_argument("pids", nargs="+", type=int, metavar="PID")
    return parser, commands


COMMANDS = {"status": do_status, "get": do_get, "ls": do_ls, "create": do_create, "set": do_set, "move": do_move,
            "rm": do_rm}  # fmt: skip


def perform(args: argparse.Namespace, find: Callable[[], View]) -> Any:
    """One command on the view that *find* gives: what is to be shown."""
    if args.command != "mount":
        view = find()
        try:
            return COMMANDS[args.command](view, args)
        except GuestError as error:
            none = error.status == 5 and not view.divided  # asked of the kernel, or known before
            if view.stamp.get("locked") is not True or not (error.code in DENIED or none):
                raise
            by, name = (printable(str(view.stamp.get(key, ""))[:256]) for key in ("locked_by", "unlock"))
            reason = f"guest {view.name} is locked by the {by or 'level above'}"
            raise GuestError(4, error.operation, reason, f"ask there for: nestrt unlock {name}", error.code) from None
    if find is not local_view:
        raise GuestError(5, "mount from the host", "a mount belongs into the guest", "run it in the guest")
    return do_mount(args)


def run(argv: list[str], action: Callable[[list[str]], tuple[argparse.Namespace, Any]]) -> int:
    """Print what *action* makes of the command line, or its error; returns the exit status."""
    try:
        args, shown = action(argv)
        if shown is not None:
            text = json.dumps(shown, indent=2) if args.format == "json" else "\n".join(shown)
            print(text, flush=True)
        return 0
    except SystemExit as end:  # argparse, after --help
        return int(end.code or 0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    except GuestError as error:
        print(error.text, file=sys.stderr)
        return error.status
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        print(printable(f"nestrt: cannot {argv[0]} as asked: {reason}; see nestrt guest status"), file=sys.stderr)
        return 1


def main(argv: list[str], find: Callable[[], View] = local_view) -> int:
    """Run one command on the view that *find* gives; returns the exit status."""

    def action(argv: list[str]) -> tuple[argparse.Namespace, Any]:
        args = make_parser()[0].parse_args(argv)
        return args, perform(args, find)

    return run(argv, action)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
