"""What the launching level is and has: its stamp, its limits, its ids, where a free range of ids is."""

from __future__ import annotations

import os

from nestrt import jsontext
from nestrt.controllers.table import canonical
from nestrt.errors import HostError, InputError, NotFound
from nestrt.kernel import cgroup
from nestrt.kernel.id_maps import read_id_map
from nestrt.level.check import Has
from nestrt.level.limits import Limits, from_mark
from nestrt.level.units import MAX, parse_cpus
from nestrt.plan.facts import Facts, Hierarchy, IdRange, Level
from nestrt.plan.ids import UNIT, units
from nestrt.plan.request import STATE_DIR, Request
from nestrt.probe.facts import primary, read_hierarchies

STAMPS = ("security.nestrt", "user.nestrt")
STAMP_LIMIT = 65536
# systemd's range for containers (systemd.io/UIDS-GIDS): above every login's, below the sign bit.
AUTOMATIC = (524288, 1879048192)
ALL_IDS = 4294967295
NO_V1_LIMIT = 1 << 62  # v1 says "no memory limit" with a number near 2**63, rounded to pages


def read_stamp(hierarchies: tuple[Hierarchy, ...]) -> tuple[Level, Limits]:
    """This level as its launcher stamped it on the root of its view; the host (level 0) where there is no stamp."""
    root = primary(hierarchies).path("/")
    for attribute in STAMPS:
        try:
            raw = os.getxattr(root, attribute)
        except OSError:
            continue
        try:
            value = jsontext.loads(raw[:STAMP_LIMIT].decode())
            level = Level(
                number=int(value["level"]),
                name=str(value["name"])[:64],
                max_level=int(value["max_level"]),
                renumbered=value.get("cpus") == "renumbered",
                claimed=attribute.startswith("user."),
            )
            return level, from_mark(value.get("limits", {}))
        except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            raise HostError(
                "read", f"{attribute} of {root}", f"it is damaged ({error})", "have the launching level set it again"
            ) from error
    return Level(), Limits()


def _number(hierarchies: tuple[Hierarchy, ...], controller: str, v1: str, v2: str) -> int:
    """A limit file of this level's root group as a number; MAX where there is none."""
    for hierarchy in hierarchies:
        if controller in hierarchy.controllers:
            try:
                text = cgroup.read(hierarchy.path("/", v1 if hierarchy.version == 1 else v2))
            except OSError:
                return MAX
            value = text.split()[0] if text else "max"
            number = MAX if value in ("max", "-1") else int(value)
            return MAX if number >= NO_V1_LIMIT else number
    return MAX


def _quota(hierarchies: tuple[Hierarchy, ...]) -> int:
    """µs of CPU time in each 100000 µs that this level's root group may use."""
    for hierarchy in hierarchies:
        if "cpu" in hierarchy.controllers:
            try:
                if hierarchy.version == 2:
                    quota, period = cgroup.read(hierarchy.path("/", "cpu.max")).split()
                else:
                    quota = cgroup.read(hierarchy.path("/", "cpu.cfs_quota_us"))
                    period = cgroup.read(hierarchy.path("/", "cpu.cfs_period_us"))
            except OSError:
                return MAX
            return MAX if quota in ("max", "-1") else int(quota) * 100_000 // int(period)
    return MAX


def _set(hierarchies: tuple[Hierarchy, ...], kind: str) -> frozenset[int] | None:
    """The effective CPUs ("cpus") or memory nodes ("mems") of this level's root group; None if no cpuset says."""
    for hierarchy in hierarchies:
        if "cpuset" in hierarchy.controllers:
            names = (
                (f"cpuset.effective_{kind}", f"cpuset.{kind}")
                if hierarchy.version == 1
                else (f"cpuset.{kind}.effective",)
            )
            for name in names:
                try:
                    text = cgroup.read(hierarchy.path("/", name))
                except OSError:
                    continue
                if text:
                    return parse_cpus(text)
    return None


def _memory_total() -> int:
    """MemTotal of /proc/meminfo, in bytes."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return int(file.readline().split()[1]) * 1024


def what_level_has(hierarchies: tuple[Hierarchy, ...], level: Level, stamped: Limits) -> Has:
    """What this level may give away: its root group's limits, the host's memory where that has none."""
    memory = _number(hierarchies, "memory", "memory.limit_in_bytes", "memory.max")
    return Has(
        level=level.number,
        max_level=level.max_level,
        memory=_memory_total() if memory == MAX else memory,
        swap=_number(hierarchies, "memory", "", "memory.swap.max") if level.number else MAX,
        cpus=_set(hierarchies, "cpus"),
        mems=_set(hierarchies, "mems"),
        cpu_quota=_quota(hierarchies),
        pids=_number(hierarchies, "pids", "pids.max", "pids.max"),
        devices=stamped.devices if level.number else None,
        controllers=tuple(sorted({canonical(name) for h in hierarchies for name in h.controllers})),
        name="the host" if level.number == 0 else f"level {level.number} ({level.name})",
    )


def _subordinate() -> tuple[int, int] | None:
    """The range that /etc/subuid and /etc/subgid both give to ``nestrt`` (subuid(5)), as (start, end)."""
    found = []
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                rows = [line.strip().split(":") for line in file]
        except OSError:
            return None
        mine = [
            (int(r[1]), int(r[2]))
            for r in rows
            if len(r) == 3 and r[0] == "nestrt" and r[1].isdigit() and r[2].isdigit()
        ]
        if not mine:
            return None
        found.append(mine[0])
    (uid, uids), (gid, gids) = found
    return (uid, uid + min(uids, gids)) if uid == gid else None


def _taken() -> list[tuple[int, int]]:
    """The (start, end) of every range of ids that a guest of this level has."""
    try:
        links = os.listdir(f"{STATE_DIR}/ids")
    except FileNotFoundError:
        return []
    ranges = [link.partition("-") for link in links]
    return [(int(a), int(a) + int(b)) for a, _, b in ranges if a.isdigit() and b.isdigit()]


def free_ids(wanted: int, low: int, high: int, seed: str) -> IdRange | None:
    """A free run of UNITs of ids in [low, high): *wanted* of them, or a quarter of that and so on down to one.

    The search begins where *seed* says, so that launches at the same moment do not meet.
    """
    taken = _taken()
    while wanted >= 1:
        size = wanted * UNIT
        slots = (high - low) // size
        begin = sum(seed.encode()) * 40503 % slots if slots > 0 else 0
        for slot in range(min(slots, 2 * len(taken) + 2)):
            start = low + (begin + slot) % slots * size
            if all(start >= b or start + size <= a for a, b in taken):
                return IdRange(0, start, size)
        for slot in range(slots):
            start = low + slot * size
            if all(start >= b or start + size <= a for a, b in taken):
                return IdRange(0, start, size)
        wanted //= 4
    return None


def _identity(kind: str) -> tuple[IdRange, ...]:
    return tuple(IdRange(inside, inside, count) for inside, _, count in read_id_map(kind))


def _free(request: Request, level: Level, own: tuple[IdRange, ...], in_userns: bool) -> IdRange | None:
    if request.policy.user_namespace != "auto":
        return None
    deepest = min(request.policy.max_level, level.max_level)
    wanted = units(deepest - level.number - 1)
    if in_userns:
        # Beyond this level's own first 65536, as far as its mapping goes.
        end = own[0].inside + own[0].count if own and own[0].inside == 0 else 0
        return free_ids(wanted, UNIT, end, request.name) if end >= 2 * UNIT else None
    low, high = _subordinate() or AUTOMATIC
    return free_ids(wanted, low, high, request.name)


def gather(request: Request) -> Facts:
    """Everything that the plan of *request* depends on.

    Raises NotFound and InputError for the root filesystem, HostError where this
    level has no usable hierarchy or no right to launch.
    """
    try:
        root = os.stat(request.rootfs)
    except OSError as error:
        raise NotFound(
            "open", f"root filesystem {request.rootfs}", error.strerror or "", "name a directory with --rootfs"
        ) from error
    if not os.path.isdir(request.rootfs):
        raise InputError("open", f"root filesystem {request.rootfs}", "it is not a directory", "unpack the image first")
    if os.geteuid() != 0:
        raise HostError(
            "launch",
            f"guest {request.name}",
            "this takes root of the launching level",
            "run it as root, or inside a guest as its root",
        )
    hierarchies = read_hierarchies(make=True)
    level, stamped = read_stamp(hierarchies)
    if level.number:
        # What this level may not divide its guests share with it: they stay in its own group there.
        hierarchies = tuple(h for h in hierarchies if os.access(h.path("/"), os.W_OK))
        if not hierarchies:
            raise HostError(
                "launch",
                f"guest {request.name}",
                f"level {level.number} ({level.name}) may write no hierarchy of its view",
                "have it launched with a view that is rw",
            )
    uids = read_id_map("uid_map")
    in_userns = uids != [(0, 0, ALL_IDS)]
    own = _identity("uid_map")
    try:
        delegate = tuple(cgroup.read("/sys/kernel/cgroup/delegate").split())
    except OSError:
        delegate = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")  # before Linux 4.15
    return Facts(
        hierarchies=hierarchies,
        primary=primary(hierarchies),
        level=level,
        mark="user.nestrt" if in_userns else "trusted.nestrt",
        stamp="user.nestrt" if in_userns else "security.nestrt",
        in_userns=in_userns,
        own_uids=own,
        own_gids=_identity("gid_map"),
        free_ids=_free(request, level, own, in_userns),
        delegate=delegate,
        rootfs_uid=root.st_uid,
        has=what_level_has(hierarchies, level, stamped),
    )
