"""Whose laws are looked at, and what was found. The first process is read once; nothing of it is believed."""

from __future__ import annotations

import os
import sys

from nestrt.level.policy import Policy
from nestrt.plan.facts import Hierarchy
from nestrt.plan.request import GUEST_ROOT, Request
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.laws_mounts import CgroupMount

    # Each hierarchy in which the guest has groups of its own, with the limit files of its root; None: it has none.
    Files = list[tuple[Hierarchy, tuple[str, ...] | None]]

# In their order in README.
LAWS = ("view", "clamp", "lock", "freedom", "subset", "sight", "opt-in", "nothing lost")
HOSTS_MARK = "trusted.nestrt"
SMALL = 1 << 16  # bytes, of a file of /proc or of a group
# The capabilities by which limits that only mounts protect are reached: capabilities(7).
CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN = 2, 21
ALL_IDS = ((0, 0, 4294967295),)

Key = tuple[str, ...]
Ranges = tuple[tuple[int, int, int], ...]


@record
class Finding:
    """One thing that was looked at: whether *law* *holds* there, None where it could not be told.

    *what* is one line; *remedy* says what to do where it does not hold.
    """

    law: str
    holds: bool | None
    what: str
    remedy: str = ""


@record
class Subject:
    """A guest whose laws are looked at, as the caller's level sees it.

    *limit_group* is its path in *hierarchies*, *policy* what it was to get, *mark* the attribute that the launching
    level writes. *started*: its first process has left the launching level's root filesystem behind, and locks are
    made. *waiting*: on v1 it may still stand in the limit group (plan.container.waits_above). *above* is the guest
    root around it, "" for a guest of the level that looks, and *owner* the uid of the launching level's root.
    *every_device*: the bundle's document allows all. *exact*: ask the cgroup namespace itself for its root. *first*:
    *pid* is the one that the mark names. *filtered*: whether whoever starts it is to load a system call filter that
    forbids open_by_handle_at(2), None where that is not known. *covered*: covers were mounted before it has started,
    as the plugin's document has them. *inner* is the guest root's name. *locked*: it may change nothing just now.
    """

    pid: int
    limit_group: str
    hierarchies: tuple[Hierarchy, ...]
    policy: Policy
    started: bool = True
    waiting: bool = False
    mark: str = HOSTS_MARK
    above: str = ""
    owner: int = 0
    every_device: bool = False
    exact: bool = False
    first: bool = True
    filtered: bool | None = None
    covered: bool = False
    inner: str = GUEST_ROOT
    locked: bool = False

    @property
    def root(self) -> str:
        """The guest root's path."""
        return f"{self.limit_group}/{self.inner}"

    @property
    def request(self) -> Request:
        """For plan.groups: which hierarchies the policy delegates."""
        policy = replace(self.policy, mount="ro") if self.locked else self.policy
        return Request("", "", (), policy)

    def inside(self, path: str) -> bool:
        """Whether the group *path* is the guest root or below it, by components."""
        return path == self.root or path.startswith(self.root + "/")


@record
class Process:
    """The first process, as /proc has it: its groups by hierarchy, whose ids it has, and what it may do.

    *uids* and *gids* are (inside, outside, count) as the caller's user namespace counts; *bounding* and *seccomp* as in
    proc_pid_status(5). *own_user* and *own_cgroup*: these namespaces are not the caller's. *initial*: its cgroup
    namespace is the machine's first one. *complete*: all of its mounts were read.
    """

    pid: int
    groups: dict[Key, str]
    uids: Ranges
    gids: Ranges
    own_user: bool
    own_cgroup: bool
    initial: bool
    bounding: int
    seccomp: int
    mounts: tuple[CgroupMount, ...] = ()
    complete: bool = True

    def owns(self, status: os.stat_result) -> bool:
        """Whether root of its user namespace may write a file of this *status*, whatever the mount allows.

        CAP_DAC_OVERRIDE, CAP_CHOWN and CAP_FOWNER hold there for files of which both ids are mapped
        (user_namespaces(7)); what is open to all needs neither.
        """
        uid, gid = mapped(self.uids, status.st_uid), mapped(self.gids, status.st_gid)
        return uid or (gid and bool(status.st_mode & 0o020)) or bool(status.st_mode & 0o002)

    @property
    def root_uid(self) -> int:
        """What its uid 0 is outside; -1 if it has none."""
        return next((outside for inside, outside, _ in self.uids if inside == 0), -1)

    def private(self, owner: int) -> bool:
        """Whether the launching level's root, *owner*, is nobody in its user namespace: then ownership locks."""
        return self.own_user and not mapped(self.uids, owner) and not mapped(self.gids, owner)

    @property
    def admin(self) -> bool:
        """Whether a process of it may have CAP_SYS_ADMIN, of its own user namespace at least."""
        return bool(self.bounding >> CAP_SYS_ADMIN & 1)


def mapped(ranges: Ranges, number: int) -> bool:
    """Whether the outside id *number* is in *ranges*."""
    return any(outside <= number < outside + count for _, outside, count in ranges)


def read(path: str, limit: int = SMALL) -> str:
    """At most *limit* bytes of a file. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < limit and (chunk := os.read(fd, min(SMALL, limit - len(data)))):
            data += chunk
    finally:
        os.close(fd)
    return data.decode("utf-8", "surrogateescape")


def groups_of(text: str) -> dict[Key, str]:
    """/proc/PID/cgroup (cgroups(7)): controllers, ``("name=systemd",)`` or ``()`` for v2, and the path of the group.

    A group may be called anything without a newline, so that only this ends a line.
    """
    found: dict[Key, str] = {}
    for line in text.split("\n"):
        _, colon, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if colon:
            found[tuple(names.split(",")) if names else ()] = path
    return found


def key_of(hierarchy: Hierarchy) -> Key:
    """Which line of /proc/PID/cgroup is that of *hierarchy*."""
    return () if hierarchy.version == 2 else tuple(word for word in hierarchy.options.split(",") if word != "none")


INITIAL_CGROUP = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO, include/linux/proc_ns.h


def look_at(pid: int) -> Process:
    """The process *pid*, without its mounts. Raises OSError: ENOENT, ESRCH (it has ended), EACCES."""
    here = f"/proc/{pid}"
    status = {}
    for line in read(f"{here}/status").split("\n"):
        key, _, value = line.partition(":")
        status[key] = value
    cgroup = os.stat(f"{here}/ns/cgroup").st_ino
    return Process(
        pid=pid,
        groups=groups_of(read(f"{here}/cgroup")),
        uids=_ranges(f"{here}/uid_map"),
        gids=_ranges(f"{here}/gid_map"),
        own_user=os.stat(f"{here}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino,
        own_cgroup=cgroup != os.stat("/proc/self/ns/cgroup").st_ino,
        initial=cgroup == INITIAL_CGROUP,
        bounding=int(status.get("CapBnd", "0"), 16),
        seccomp=int(status.get("Seccomp", "0")),
    )


def _ranges(path: str) -> Ranges:
    rows = [line.split() for line in read(path).splitlines()]
    return tuple((int(row[0]), int(row[1]), int(row[2])) for row in rows)


def namespace_roots(pid: int) -> dict[Key, str]:
    """The root of *pid*'s cgroup namespace in each hierarchy, as the caller's own namespace names it.

    The kernel tells it to nobody; but whoever is in the namespace sees *pid*'s groups below its root, so what both
    see alike is the rest. The caller enters for one read and comes back, and so must have one thread only. Left out
    is a hierarchy where *pid* stands outside the root ("/.."), and everything where the caller may not enter.
    """
    try:
        outside = groups_of(read(f"/proc/{pid}/cgroup"))
        inside = _seen_in(f"/proc/{pid}/ns/cgroup", f"/proc/{pid}/cgroup")
    except OSError:
        return {}
    found = {}
    for key, path in outside.items():
        seen = inside.get(key, "")
        if seen == "/":
            found[key] = path
        elif seen.startswith("/") and not seen.startswith("/..") and path.endswith(seen):
            found[key] = path[: -len(seen)] or "/"
    return found


def _seen_in(namespace: str, file: str) -> dict[Key, str]:
    own = os.open("/proc/self/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    try:
        its = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(its)
            try:
                return groups_of(read(file))
            finally:
                _enter(own)
        finally:
            os.close(its)
    finally:
        os.close(own)


def _enter(fd: int) -> None:
    if sys.version_info >= (3, 12):
        os.setns(fd, 0)
    else:
        from nestrt.kernel.namespaces import setns  # ctypes: not where mounts say enough

        setns(fd)
