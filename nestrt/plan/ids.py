"""Whose ids a guest has: the user namespace's mapping, and whether the root filesystem must be shifted. Pure."""

from __future__ import annotations

from nestrt.errors import HostError, InputError
from nestrt.plan.facts import Facts, IdRange
from nestrt.plan.request import Request
from nestrt.record import record

# One guest's worth of ids, as systemd-nspawn, LXC and podman count them.
UNIT = 65536
# A guest that may have guests gets room for three of them, and each of those for three.
UNITS_A_LEVEL = 4

Ranges = tuple[tuple[int, int, int], ...]


@record
class Identity:
    """*uids* and *gids* map (inside, outside, count); *root_uid* is guest root's id at the launching
    level, None without a user namespace. *shift*: the root filesystem is to be id-mapped.
    *private*: the launching level's root is not mapped, so ownership alone locks the limits."""

    uids: Ranges = ()
    gids: Ranges = ()
    root_uid: int | None = None
    root_gid: int | None = None
    shift: bool = False
    private: bool = False


def units(levels_below: int) -> int:
    """How many UNITs of ids a guest with that many levels below it asks for: 1, 4, 16, at most 256."""
    return int(UNITS_A_LEVEL ** min(max(levels_below, 0), 4))


def _outside(ranges: Ranges, kind: str) -> int:
    for inside, outside, _ in ranges:
        if inside == 0:
            return outside
    raise InputError("use", f"[user] {kind}", "it does not map id 0", f'add "0:OUTSIDE:COUNT" to {kind}')


def _holds_root(ranges: Ranges) -> bool:
    """Whether the launching level's id 0 is mapped."""
    return any(outside == 0 for _, outside, _ in ranges)


def _identity(ranges: tuple[IdRange, ...]) -> Ranges:
    return tuple((r.inside, r.inside, r.count) for r in ranges)


def choose(request: Request, facts: Facts) -> Identity:
    """The identity of the guest that *request* asks for.

    ``auto`` takes the free range of *facts*. Inside a user namespace the kernel
    id-maps only filesystems mounted there; where it refuses, the guest shares
    this level's ids in a user namespace of its own, and its limits are locked by
    covers rather than by ownership. Raises HostError where no range is free.
    """
    mode = request.policy.user_namespace
    if mode == "none":
        return Identity()
    if mode == "map":
        uids, gids = request.policy.uid_map, request.policy.gid_map
    elif facts.in_userns and (facts.free_ids is None or not facts.can_shift):
        uids, gids = _identity(facts.own_uids), _identity(facts.own_gids)
    elif facts.free_ids is None:
        raise HostError(
            "find",
            f"{UNIT} free user and group ids",
            "all are taken",
            "remove ended guests (nestrt gc --all), give nestrt a range in /etc/subuid, or use --userns none",
        )
    else:
        free = facts.free_ids
        uids = gids = ((0, free.outside, free.count),)
    root_uid, root_gid = _outside(uids, "uid_map"), _outside(gids, "gid_map")
    # Root of the guest overrides the permissions of whatever id is mapped, this level's root among them.
    private = all(not _holds_root(ranges) for ranges in (uids, gids))
    return Identity(uids, gids, root_uid, root_gid, shift=facts.rootfs_uid != root_uid, private=private)


def moved_first(facts: Facts, identity: Identity) -> bool:
    """Whether the first process must be in its first group before it takes the guest's ids.

    In a v1 hierarchy a mover who is not the host's root moves only processes of its own uid
    (__cgroup1_procs_write() in kernel/cgroup/cgroup-v1.c).
    """
    return identity.root_uid not in (None, 0) and facts.in_userns and any(h.version == 1 for h in facts.hierarchies)
