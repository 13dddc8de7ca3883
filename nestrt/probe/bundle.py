"""What the plan of a bundle's container needs to know of this level."""

from __future__ import annotations

import os

from nestrt.errors import HostError, NestrtError, NotFound
from nestrt.kernel import cgroup
from nestrt.kernel.id_maps import read_id_map
from nestrt.kernel.mountinfo import read_cgroups
from nestrt.level.check import Has
from nestrt.level.devices import DeviceRule, merge, parse_rule
from nestrt.level.units import clean
from nestrt.plan.facts import Facts, Hierarchy, Level
from nestrt.plan.request import Request
from nestrt.probe.facts import primary, read_hierarchies
from nestrt.probe.level import ALL_IDS, gather
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import Spec
    from nestrt.plan.ids import Ranges


def cgroup_path(text: str, id: str) -> str:
    """The limit group that ``cgroupsPath`` means, as every hierarchy has it: absolute, without ``..``.

    A relative one, or none at all, is below the group of whoever calls; in the v2 tree beside that
    group, which has processes and so no room for groups with limits (cgroup-v2.rst).
    """
    if not text.startswith("/"):
        groups = read_cgroups()
        limiting = (path for names, path in groups.items() if names and not names[0].startswith("name="))
        own = next(limiting, "/")
        if () in groups and len(groups) == 1:
            own = groups[()].rpartition("/")[0]
        text = f"{own}/{text or id}"
    return clean(text)


def missing_parents(hierarchies: tuple[Hierarchy, ...], group: str) -> list[str]:
    """Which of the groups above *group* will have to be made, deepest first: they go with the container."""
    found = []
    above = group.rpartition("/")[0]
    while above:
        if all(not os.path.isdir(h.path(above)) for h in hierarchies):
            found.append(above)
        above = above.rpartition("/")[0]
    return found


def writable(hierarchy: Hierarchy, group: str) -> bool:
    """Whether *group* can be made there: the nearest group above it that is there may be written."""
    while group and not os.path.isdir(hierarchy.path(group)):
        group = group.rpartition("/")[0]
    return not hierarchy.read_only and os.access(hierarchy.path(group or "/"), os.W_OK)


def gather_bundle(cgroup: str, request: Request | None) -> Facts:
    """Facts for a bundle: with a policy those of a launch, without one only what runc would look at.

    Raises HostError where a policy asks for groups and there are none.
    """
    if request is not None:
        return _writable_only(gather(request), cgroup)
    try:
        hierarchies = tuple(h for h in read_hierarchies() if writable(h, cgroup))
    except HostError:
        hierarchies = ()
    in_userns = read_id_map("uid_map") != [(0, 0, ALL_IDS)]
    return Facts(
        hierarchies=hierarchies,
        primary=primary(hierarchies) if hierarchies else NOWHERE,
        level=Level(),
        mark="",
        stamp="",
        in_userns=in_userns,
        own_uids=(),
        own_gids=(),
        free_ids=None,
        delegate=(),
        rootfs_uid=0,
        has=Has(),
    )


def elsewhere(facts: Facts) -> tuple[Hierarchy, ...]:
    """The hierarchies that are mounted here and are not among those of *facts*."""
    try:
        return tuple(h for h in read_hierarchies() if h not in facts.hierarchies)
    except HostError:
        return ()


def held_devices(facts: Facts) -> tuple[DeviceRule, ...] | None:
    """The devices that this level may give away, None for all or where that is not known."""
    if facts.has.devices is not None:
        return facts.has.devices
    for hierarchy in facts.hierarchies:
        if hierarchy.version == 1 and "devices" in hierarchy.controllers:
            try:
                rows = cgroup.read(hierarchy.path("/", "devices.list")).splitlines()
            except OSError:
                return None
            return None if any(row.startswith("a") for row in rows) else merge(map(parse_rule, rows))
    return None


def _writable_only(facts: Facts, cgroup: str) -> Facts:
    """*facts* with those hierarchies that an ordinary user, or root of other ids, has been given. Raises HostError."""
    if not facts.in_userns:
        return facts
    hierarchies = tuple(h for h in facts.hierarchies if writable(h, cgroup))
    if not hierarchies:
        reason = "no cgroup hierarchy can be written there"
        raise HostError("make group", cgroup, reason, "run it as root or in a delegated group, or without a policy")
    return replace(facts, hierarchies=hierarchies, primary=primary(hierarchies))


NOWHERE = Hierarchy("", 2, (), "", "/sys/fs/cgroup")


def joins_own_network(spec: Spec) -> bool:
    """Whether linux.namespaces names, by a path, the network namespace that the runtime is in itself."""
    entry = spec.namespace("network")
    try:
        if entry is None or not entry.path:
            return False
        return os.path.samestat(os.stat(entry.path), os.stat("/proc/self/ns/net"))
    except OSError:
        return False  # not there: CloneInto says so


def joined_maps(spec: Spec) -> tuple[Ranges, Ranges]:
    """The id maps of the user namespace that the document joins, as this level sees them; empty ones if none."""
    entry = spec.namespace("user")
    if entry is None or not entry.path:
        return (), ()
    parts = entry.path.split("/")
    if len(parts) == 5 and parts[1] == "proc" and parts[2].isdigit():
        pid = parts[2]
        try:
            return tuple(read_id_map("uid_map", pid)), tuple(read_id_map("gid_map", pid))
        except FileNotFoundError as error:
            raise _missing(entry.path) from error
    return _ask_inside(entry.path)


def _missing(path: str) -> NotFound:
    return NotFound("join", f"the user namespace {path}", "no such file or directory", "name one that is there")


def _ask_inside(path: str) -> tuple[Ranges, Ranges]:
    """The maps of the namespace file *path*, read by a child process that enters it."""
    from nestrt.kernel.namespaces import CLONE_NEWUSER, setns  # ctypes: rarely needed

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _missing(path) from error
    gate, opened = os.pipe2(os.O_CLOEXEC)
    done, over = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(over)
        try:
            setns(fd, CLONE_NEWUSER)
            os.write(opened, b"1")
            os.read(done, 1)
        except OSError:
            pass
        os._exit(0)
    os.close(fd)
    os.close(opened)
    os.close(done)
    try:
        if os.read(gate, 1) != b"1":
            raise NestrtError("join", f"the user namespace {path}", "it cannot be entered", "correct linux.namespaces")
        return tuple(read_id_map("uid_map", str(pid))), tuple(read_id_map("gid_map", str(pid)))
    finally:
        os.close(gate)
        os.close(over)
        os.waitpid(pid, 0)
