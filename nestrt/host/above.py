"""What the level or the guest above a guest has, of which it can be given no more."""

from __future__ import annotations

from nestrt.host.effective import Reader
from nestrt.level.check import Has
from nestrt.level.units import MAX
from nestrt.probe.level import read_stamp, what_level_has
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.walk import Guest, View

NUMBERS = {"memory.max": "memory", "memory.swap.max": "swap", "cpu.max": "cpu_quota", "pids.max": "pids"}
SETS = {"cpuset.cpus": "cpus", "cpuset.mems": "mems"}


def outer(view: View, guest: Guest) -> Guest | None:
    """The guest whose guest *guest* is; None for one of this level."""
    around = [other for other in view.everyone() if guest.path.startswith(other.path + "/")]
    return max(around, key=lambda other: len(other.path), default=None)


def what_is_above(view: View, guest: Guest) -> Has:
    """What works in the group above the limit group, the level's own limits and the machine's memory among it.

    Device rules are not in it, nor which controllers there are. Raises HostError for a damaged stamp.
    """
    level, stamped = read_stamp(view.hierarchies)
    found = what_level_has(view.hierarchies, level, stamped)
    around = outer(view, guest)
    path, reader = guest.path.rpartition("/")[0] or "/", Reader()
    values: dict[str, object] = {}
    for hierarchy in view.hierarchies:
        for key in reader.keys(hierarchy, path):
            limit = reader.limit(hierarchy, key, path) if key.name in NUMBERS or key.name in SETS else None
            if limit is None:
                continue
            if isinstance(limit.effective, frozenset):
                if limit.effective:
                    field = SETS[key.name]
                    has = getattr(found, field)
                    values[field] = limit.effective if has is None else limit.effective & has
            elif isinstance(limit.effective, int) and limit.effective != MAX:
                field = NUMBERS[key.name]
                has = getattr(found, field)
                values[field] = limit.effective if has == MAX else min(has, limit.effective)
    name = found.name if around is None else f"guest {around.name}"
    return replace(found, level=0, devices=None, controllers=None, name=name, **values)
