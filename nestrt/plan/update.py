"""What ``update`` writes to a live container's groups, and in which order. Values in, writes out: pure.

v1 keeps every child group within its parent at every moment: a cpuset that is no
subset of its parent's, or a quota above it, is refused, on the parent as on the
child (cpusets.rst; sched-bwc.rst, "Hierarchical considerations"). So what shrinks, shrinks from the deepest
group up, and what grows, grows from the limit group down. The guest's own groups
are cut down to what is left, since the limit has to win; what they
have of their own choice does not grow with it.
"""

from __future__ import annotations

from nestrt.controllers.names import expand
from nestrt.controllers.table import limit_files
from nestrt.controllers.update import update_settings
from nestrt.level.units import MAX, PERIOD, format_cpus, parse_cpus
from nestrt.plan.update_quota import BURST, CFS_PERIOD, LEAST, QUOTA
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nestrt.controllers.base import Setting as Setting
    from nestrt.oci.resources import Resources
    from nestrt.plan.facts import Hierarchy

    Numbers = frozenset[int]

CPUSETS = ("cpuset.cpus", "cpuset.mems")
# What a group has that nobody set: sched-design-CFS.rst; block/bfq-cgroup.c.
SHARES, IO_WEIGHT = 1024, 100


@record
class Writes:
    """What one hierarchy is to get. *plain* are the limit group's, in order, *shown* the guest root's, which follow.

    *cpusets* and *quota* (None: unchanged) concern the whole tree below on v1, and are not among them.
    *late*, and *late_shown* of the guest root, is what has to fit the quota, and is written after it.
    """

    plain: tuple[Setting, ...]
    shown: tuple[Setting, ...]
    cpusets: tuple[Setting, ...]
    quota: tuple[int | None, int | None] | None
    late: tuple[Setting, ...] = ()
    late_shown: tuple[Setting, ...] = ()


def writes(
    hierarchy: Hierarchy,
    old: Resources,
    new: Resources,
    read: Callable[[str], str],
    read_root: Callable[[str], str] | None,
    root_files: Iterable[str] = (),
) -> Writes:
    """The Writes that make the container's groups in *hierarchy* have what *new* says, who had *old*.

    *read* gives a file's text in the limit group, *read_root* in the guest root, None where there is no
    guest root of ours; *root_files* are the names in it. Raises InputError, HostError, StateError.
    """
    version, controllers = hierarchy.version, hierarchy.controllers
    settings = update_settings(old, new, controllers, version, read)
    shown: tuple[Setting, ...] = ()
    if read_root is not None:
        locked = set(expand(limit_files(version, controllers), root_files))
        shown = tuple(
            s for s in update_settings(old, new, controllers, version, read_root) if s.file in locked
        )
    if version == 2:
        return Writes(settings, shown, (), None)
    found = {s.file: s.value for s in settings}
    quota = None
    if QUOTA in found or CFS_PERIOD in found:
        quota = tuple(int(found[file]) if file in found else None for file in (QUOTA, CFS_PERIOD))
    special = (*CPUSETS, QUOTA, CFS_PERIOD, BURST)
    return Writes(
        tuple(s for s in settings if s.file not in special),
        tuple(s for s in shown if s.file not in special),
        tuple(s for s in settings if s.file in CPUSETS),
        (quota[0], quota[1]) if quota else None,
        tuple(s for s in settings if s.file == BURST),
        tuple(s for s in shown if s.file == BURST),
    )


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def cpuset_moves(groups: list[tuple[str, Numbers]], target: Numbers, follower: str = "") -> list[tuple[str, Numbers]]:
    """The writes, in order, after which the first of *groups* has *target* and all others have a part of it.

    *groups* are (path, what it has), a parent before its children; an empty one stays empty. *follower* is
    the guest root, which shows what the limit group has. A group that had all that its parent had
    has so again; any other keeps what is left of its own, and all of its parent's if nothing is.
    """
    current = dict(groups)
    top = groups[0][0]
    final: dict[str, Numbers] = {top: target}
    for path, has in groups[1:]:
        above = _parent(path)
        if path == follower or (has and has == current[above]):
            final[path] = final[above]
        else:
            final[path] = (has & final[above] or final[above]) if has else has
    found: list[tuple[str, Numbers]] = []
    paths = [path for path, _ in groups]

    def move(order: Iterable[str], value: Callable[[str], Numbers]) -> None:
        for path in order:
            wanted = value(path)
            if wanted != current[path]:
                current[path] = wanted
                found.append((path, wanted))

    if all(current[path] & final[path] or not current[path] for path in paths):
        # First only less, then only more: at no moment anything that neither had.
        move(reversed(paths), lambda path: current[path] & final[path])
    else:
        # Nothing in common: a group with processes takes no empty set, so both for a moment.
        move(paths, lambda path: current[path] | final[path])
        move(reversed(paths), lambda path: final[path])
    move(paths, lambda path: final[path])
    return found


def format_numbers(numbers: Numbers) -> str:
    """A cpuset as the kernel takes it."""
    return format_cpus(numbers)


def parse_numbers(text: str) -> Numbers:
    """A cpuset file's text. Raises InputError."""
    return parse_cpus(text) if text else frozenset()


def taken_back(old: Resources, new: Resources) -> Resources:
    """*old*, and no limit where *new* has set one that *old* did not have: what undoes *new* by itself."""

    def lift(value: int | None, given: int | None, default: int) -> int | None:
        return value or (default if given else value)

    memory, cpu = old.memory, old.cpu
    limit = lift(memory.limit, new.memory.limit, MAX)
    return replace(
        old,
        memory=replace(memory, limit=limit, swap=lift(memory.swap, new.memory.swap, MAX)),
        cpu=replace(
            cpu,
            quota=lift(cpu.quota, new.cpu.quota, MAX),
            period=lift(cpu.period, new.cpu.period, PERIOD),
            shares=lift(cpu.shares, new.cpu.shares, SHARES),
        ),
        pids=lift(old.pids, new.pids, MAX),
        block_io=replace(old.block_io, weight=lift(old.block_io.weight, new.block_io.weight, IO_WEIGHT)),
    )


def marked(resources: Resources) -> dict[str, object]:
    """What marks and stamps say of *resources* (level.limits.Limits.to_mark), only what is said there."""
    memory, cpu = resources.memory, resources.cpu
    found: dict[str, object] = {}
    if memory.limit:
        found["memory"] = memory.limit
    if memory.swap == MAX or memory.limit == MAX:
        found["swap"] = MAX
    elif memory.swap and memory.limit:
        found["swap"] = memory.swap - memory.limit
    if cpu.quota:
        found["cpu_quota"] = MAX if cpu.quota < 0 else max(LEAST, cpu.quota * PERIOD // (cpu.period or PERIOD))
    if cpu.shares:
        from nestrt.controllers.cpu import weight_of

        found["cpu_weight"] = weight_of(cpu.shares)
    if resources.pids:
        found["pids"] = max(MAX, resources.pids)
    for name, text in (("cpus", cpu.cpus), ("mems", cpu.mems)):
        if text:
            found[name] = format_cpus(parse_cpus(text))
    if resources.hugepages:
        found["hugetlb"] = dict(resources.hugepages)
    return found


_MEMORY = {
    "limit": "limit", "reservation": "reservation", "swap": "swap", "kernel": "kernel", "kernelTCP": "kernel_tcp",
    "swappiness": "swappiness", "disableOOMKiller": "disable_oom_killer", "useHierarchy": "use_hierarchy",
    "checkBeforeUpdate": "check_before_update",
}  # fmt: skip
_CPU = {
    "shares": "shares", "quota": "quota", "burst": "burst", "period": "period", "idle": "idle", "cpus": "cpus",
    "mems": "mems", "realtimeRuntime": "realtime_runtime", "realtimePeriod": "realtime_period",
}  # fmt: skip
_BLOCK = {
    "weight": "weight", "leafWeight": "leaf_weight", "weightDevice": "weight_device",
    "throttleReadBpsDevice": "throttle_read_bps", "throttleWriteBpsDevice": "throttle_write_bps",
    "throttleReadIOPSDevice": "throttle_read_iops", "throttleWriteIOPSDevice": "throttle_write_iops",
}  # fmt: skip
_DEVICE = {
    "major": "major", "minor": "minor", "weight": "weight", "leafWeight": "leaf_weight", "rate": "rate",
    "allow": "allow", "type": "type", "access": "access",
}  # fmt: skip


def _object(value: object, names: dict[str, str]) -> dict[str, object]:
    """A record as a JSON object: its fields by the document's *names*, without what is not said."""
    found: dict[str, object] = {}
    for word, name in names.items():
        item = getattr(value, name, None)
        if isinstance(item, tuple):
            item = [_object(entry, _DEVICE) for entry in item]
        if item not in (None, "", []):
            found[word] = item
    return found


def as_json(resources: Resources) -> dict[str, object]:
    """*resources* as the document's linux.resources, which oci.document.load_resources() reads back."""
    found: dict[str, object] = {
        "devices": [_object(rule, _DEVICE) for rule in resources.devices],
        "memory": _object(resources.memory, _MEMORY),
        "cpu": _object(resources.cpu, _CPU),
        "blockIO": _object(resources.block_io, _BLOCK),
        "pids": {} if resources.pids is None else {"limit": resources.pids},
        "hugepageLimits": [{"pageSize": size, "limit": limit} for size, limit in resources.hugepages],
        "unified": dict(resources.unified),
        "rdma": {
            device: {
                word: value for word, value in (("hcaHandles", handles), ("hcaObjects", objects)) if value is not None
            }
            for device, handles, objects in resources.rdma
        },
        "network": {
            **({} if resources.net_class is None else {"classID": resources.net_class}),
            **(
                {"priorities": [{"name": name, "priority": priority} for name, priority in resources.net_prio]}
                if resources.net_prio
                else {}
            ),
        },
    }
    return {word: value for word, value in found.items() if value}
