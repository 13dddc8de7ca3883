"""What stands on a group that another runtime has made, and whose ids a process of it has: read from the kernel."""

from __future__ import annotations

import os

from nestrt.controllers.names import expand
from nestrt.controllers.table import limit_files
from nestrt.kernel import cgroup
from nestrt.kernel.id_maps import read_id_map
from nestrt.plan.ids import Identity
from nestrt.plan.standing import ALIKE, standing, together

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits
    from nestrt.plan.facts import Hierarchy

    Alike = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def identity_of(pid: int) -> Identity:
    """The ids of *pid*'s user namespace, as plan.ids.Identity has them; none where it is this one."""
    if os.path.samestat(os.stat(f"/proc/{pid}/ns/user"), os.stat("/proc/self/ns/user")):
        return Identity()
    uids, gids = (tuple(read_id_map(kind, str(pid))) for kind in ("uid_map", "gid_map"))
    root_uid, root_gid = (next((o for i, o, _ in ranges if i == 0), None) for ranges in (uids, gids))
    private = all(outside != 0 for ranges in (uids, gids) for _, outside, _ in ranges)
    # Without a root of its own nothing of it is handed over.
    return Identity(uids, gids, root_uid, root_gid, private=private)


def _texts(h: Hierarchy, group: str, names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = cgroup.read(h.path(group, name))
        except OSError:
            continue
    return found


def _limit_names(h: Hierarchy, group: str) -> tuple[str, ...]:
    names = expand(limit_files(h.version, h.controllers), os.listdir(h.path(group)))
    return (*names, "devices.list") if h.version == 1 and "devices" in h.controllers else names


def limits_on(hierarchies: tuple[Hierarchy, ...], group: str) -> Limits:
    """The limits on *group*, in all hierarchies. Raises OSError where it has gone."""
    above = group.rpartition("/")[0] or "/"
    found = []
    for h in hierarchies:
        names = _limit_names(h, group)
        found.append(standing(h, _texts(h, group, names), _texts(h, above, names)))
    return together(found)


def device_programs(hierarchies: tuple[Hierarchy, ...], group: str) -> int:
    """How many device programs are on the limit group, where such make the rules."""
    if any(h.version == 1 and "devices" in h.controllers for h in hierarchies):
        return 0
    from nestrt.kernel import bpf

    return sum(len(bpf.query(h.path(group))) for h in hierarchies if h.version == 2)


def alike_on(hierarchies: tuple[Hierarchy, ...], group: str) -> Alike:
    """The ALIKE files of *group* that say something, by hierarchy's name: plan.lxc.Container.shown."""
    found = []
    for h in hierarchies:
        if h.version == 2:
            texts = _texts(h, group, ALIKE)
            found.append((h.name, tuple((name, text) for name, text in texts.items() if text != "max")))
    return tuple(found)
