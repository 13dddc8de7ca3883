"""Statistics of a container in the form of runc's ``events``: runc, types/events.go.

They are read from the limit group, so what the guest's own child groups use is in them.
The tables say what is where (stats_v1.py, stats_v2.py); here are the ways to read a file,
and the form of the result. Times are in nanoseconds, sizes in bytes.
"""

from __future__ import annotations

import os

from nestrt.controllers.names import expand, variable_part
from nestrt.host import stats_v1, stats_v2
from nestrt.kernel import cgroup
from nestrt.level.units import parse_cpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nestrt.plan.facts import Hierarchy

TICK = 10_000_000  # ns: USER_HZ is 100 on every architecture that python runs on
NO_LIMIT = stats_v2.NO_LIMIT

# The result, in runc's order. Places that end in "!" are there when they are zero too.
SHAPE = """
cpu.usage.total cpu.usage.percpu cpu.usage.percpu_kernel cpu.usage.percpu_user cpu.usage.kernel! cpu.usage.user!
cpu.throttling.periods cpu.throttling.throttledPeriods cpu.throttling.throttledTime cpu.psi
cpuset.cpus cpuset.cpu_exclusive! cpuset.mems cpuset.mem_hardwall! cpuset.mem_exclusive! cpuset.memory_migrate!
cpuset.memory_spread_page! cpuset.memory_spread_slab! cpuset.memory_pressure! cpuset.sched_load_balance!
cpuset.sched_relax_domain_level!
memory.cache
memory.usage.limit! memory.usage.usage memory.usage.max memory.usage.failcnt!
memory.swap.limit! memory.swap.usage memory.swap.max memory.swap.failcnt!
memory.kernel.limit! memory.kernel.usage memory.kernel.max memory.kernel.failcnt!
memory.kernelTCP.limit! memory.kernelTCP.usage memory.kernelTCP.max memory.kernelTCP.failcnt!
memory.raw memory.psi
pids.current pids.limit
blkio.ioServiceBytesRecursive blkio.ioServicedRecursive blkio.ioQueueRecursive blkio.ioServiceTimeRecursive
blkio.ioWaitTimeRecursive blkio.ioMergedRecursive blkio.ioTimeRecursive blkio.sectorsRecursive blkio.psi
""".split()


def _number(text: str) -> int:
    """An unsigned number as runc takes it: "max" is 2^64-1, and what is below 0 (-1, no limit) is 0."""
    return NO_LIMIT if text == "max" else max(0, int(text))


def _keys(text: str) -> dict[str, int]:
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: _number(row[1]) for row in rows if len(row) == 2}


def _cpu_stat(text: str) -> dict[str, int]:
    return {key: value * 1000 if key.endswith("_usec") else value for key, value in _keys(text).items()}


def _columns(text: str) -> dict[str, list[int]]:
    """A table with a header: the columns by name."""
    header, *rows = [line.split() for line in text.splitlines()]
    return {name: [int(row[place]) for row in rows] for place, name in enumerate(header)}


def _blkio(text: str) -> list[dict[str, Any]]:
    """``8:0 Read 4096`` and ``8:0 4096``; the line of the grand total has no device."""
    found = []
    for line in text.splitlines():
        device, *rest = line.split()
        if ":" in device:
            found.append(_entry(device, rest[0] if len(rest) == 2 else "", int(rest[-1])))
    return found


def _entry(device: str, operation: str, value: int) -> dict[str, Any]:
    """One entry of runc's BlkioEntry, which leaves out what is zero or empty."""
    major, _, minor = device.partition(":")
    entry = {"major": int(major), "minor": int(minor), "op": operation, "value": value}
    return {key: item for key, item in entry.items() if item}


def _io_stat(text: str) -> dict[str, list[dict[str, Any]]]:
    """``8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`` in v1's two tables, Read and Write."""
    found: dict[str, list[dict[str, Any]]] = {"bytes": [], "ios": []}
    for line in text.splitlines():
        device, *words = line.split()
        for word in words:
            key, _, value = word.partition("=")
            if key[:1] in ("r", "w") and key[1:] in found:
                found[key[1:]].append(_entry(device, {"r": "Read", "w": "Write"}[key[0]], int(value)))
    return found


def _pressure(text: str) -> dict[str, dict[str, float]]:
    """``some avg10=0.00 avg60=0.00 avg300=0.00 total=0`` and the same for ``full``: psi.rst."""
    found = {}
    for line in text.splitlines():
        kind, *words = line.split()
        pairs = [word.partition("=") for word in words]
        found[kind] = {key: int(value) if key == "total" else float(value) for key, _, value in pairs}
    return found


def _single(read: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    return lambda text: {"": read(text)}


READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "number": _single(_number),
    "signed": _single(int),
    "count": _single(lambda text: 0 if text == "max" else int(text)),  # runc says "no limit" of pids by 0
    "numbers": _single(lambda text: [int(word) for word in text.split()]),
    "list": _single(lambda text: sorted(parse_cpus(text)) if text else []),
    "keys": _keys,
    "ticks": lambda text: {key: value * TICK for key, value in _keys(text).items()},
    "cpu_stat": _cpu_stat,
    "columns": _columns,
    "io_stat": _io_stat,
    "pressure": _single(_pressure),
}


def _read(hierarchy: Hierarchy, group: str, file: str) -> str | None:
    """A file's text; None where this kernel or group has none such (EOPNOTSUPP: pressure that is switched off)."""
    try:
        return cgroup.read(hierarchy.path(group, file))
    except OSError:
        return None


def _blkio_values(hierarchy: Hierarchy, group: str) -> dict[str, Any]:
    for family in stats_v1.BLKIO_FAMILIES:
        tables = {place: _blkio(_read(hierarchy, group, file) or "") for file, place in family}
        if tables[family[0][1]]:
            return tables
    return {}


def _hugetlb(hierarchy: Hierarchy, group: str) -> dict[str, dict[str, int]]:
    table, sizes = (
        (stats_v1.HUGETLB, stats_v1.HUGETLB_SIZES)
        if hierarchy.version == 1
        else (stats_v2.HUGETLB, stats_v2.HUGETLB_SIZES)
    )
    found: dict[str, dict[str, int]] = {}
    for name in sorted(expand([sizes], os.listdir(hierarchy.path(group)))):
        size = variable_part(sizes, name)
        entry = {"failcnt": 0}
        for word, key, files in table:
            for file in files:
                text = _read(hierarchy, group, file.replace("*", size))
                if text is not None:
                    value = _keys(text).get(key, 0) if key else _number(text)
                    if value or word == "failcnt":
                        entry[word] = value
                    break
        found[size] = entry
    return found


def _processes(hierarchy: Hierarchy, group: str) -> int:
    top = hierarchy.path(group)
    return len(cgroup.processes_below(top))


def read_values(hierarchies: tuple[Hierarchy, ...], group: str) -> dict[str, Any]:
    """What the tables find in *group*, by place ("memory.usage.limit").

    The v2 tree of a hybrid host is asked only for what no v1 hierarchy has.
    Raises FileNotFoundError where no hierarchy has the group.
    """
    present = [h for h in hierarchies if os.path.isdir(h.path(group))]
    if not present:
        raise FileNotFoundError(2, os.strerror(2), group)
    on_v1 = {name for h in present if h.version == 1 for name in h.controllers}
    # v1 splits in two what v2 calls cpu
    taken = on_v1 | ({"cpu"} if "cpuacct" in on_v1 else set()) | ({"io"} if "blkio" in on_v1 else set())
    values: dict[str, Any] = {}
    for hierarchy in present:
        rows = stats_v1.ROWS if hierarchy.version == 1 else stats_v2.ROWS
        for controller, file, how, places in rows:
            elsewhere = controller not in hierarchy.controllers if hierarchy.version == 1 else controller in taken
            if elsewhere:
                continue
            text = _read(hierarchy, group, file)
            if text is not None:
                found = READERS[how](text)
                values.update({place: found if key == "*" else found.get(key, 0) for key, place in places})
        if hierarchy.version == 1 and "blkio" in hierarchy.controllers:
            values.update(_blkio_values(hierarchy, group))
        if "hugetlb" in hierarchy.controllers:
            values["hugetlb"] = _hugetlb(hierarchy, group)
        if hierarchy.version == 2:
            if "memory" not in taken:
                stats_v2.as_v1_counts(values)
            if "pids" not in taken and "pids.current" not in values:
                values["pids.current"] = _processes(hierarchy, group)
    return values


def shaped(values: dict[str, Any]) -> dict[str, Any]:
    """*values* as runc's Stats: nested, in its order, without what is zero and may be left out."""
    stats: dict[str, Any] = {}
    for place in SHAPE:
        name = place.rstrip("!")
        *path, last = name.split(".")
        inner = stats
        for part in path:
            inner = inner.setdefault(part, {})
        value = values.get(name, 0)
        if value or place != name:
            inner[last] = value
    stats["hugetlb"] = values.get("hugetlb", {})
    stats["intel_rdt"] = {}
    stats["network_interfaces"] = None
    return stats


def read_stats(hierarchies: tuple[Hierarchy, ...], group: str) -> dict[str, Any]:
    """The ``data`` of a "stats" event for the container whose limit group is *group*. Raises FileNotFoundError."""
    return shaped(read_values(hierarchies, group))
