"""Statistics of a v2 group: which file says what, in the words of runc's ``events``. cgroup-v2.rst.

Every counter of v2 is that of the group with all below it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nestrt.host.stats_v1 import Row

NO_LIMIT = (1 << 64) - 1  # what runc makes of "max"

# cpu.stat is there without the controller (cgroup-v2.rst, "CPU Interface Files"), and so are the pressure files.
ROWS: tuple[Row, ...] = (
    (
        "cpu",
        "cpu.stat",
        "cpu_stat",
        (
            ("usage_usec", "cpu.usage.total"),
            ("system_usec", "cpu.usage.kernel"),
            ("user_usec", "cpu.usage.user"),
            ("nr_periods", "cpu.throttling.periods"),
            ("nr_throttled", "cpu.throttling.throttledPeriods"),
            ("throttled_usec", "cpu.throttling.throttledTime"),
        ),
    ),
    ("cpu", "cpu.pressure", "pressure", (("", "cpu.psi"),)),
    ("memory", "memory.stat", "keys", (("*", "memory.raw"), ("file", "memory.cache"))),
    ("memory", "memory.current", "number", (("", "memory.usage.usage"),)),
    ("memory", "memory.max", "number", (("", "memory.usage.limit"),)),
    ("memory", "memory.peak", "number", (("", "memory.usage.max"),)),  # since Linux 5.19
    ("memory", "memory.swap.current", "number", (("", "memory.swap.usage"),)),
    ("memory", "memory.swap.max", "number", (("", "memory.swap.limit"),)),
    ("memory", "memory.pressure", "pressure", (("", "memory.psi"),)),
    (
        "io",
        "io.stat",
        "io_stat",
        (("bytes", "blkio.ioServiceBytesRecursive"), ("ios", "blkio.ioServicedRecursive")),
    ),
    ("io", "io.pressure", "pressure", (("", "blkio.psi"),)),
    ("pids", "pids.current", "number", (("", "pids.current"),)),
    ("pids", "pids.max", "count", (("", "pids.limit"),)),
)

HUGETLB: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("usage", "", ("hugetlb.*.rsvd.current", "hugetlb.*.current")),
    ("failcnt", "max", ("hugetlb.*.events",)),
)
HUGETLB_SIZES = "hugetlb.*.current"


def as_v1_counts(values: dict[str, Any]) -> None:
    """Make *swap* memory and swap together, as v1 counts and every reader of ``events`` expects."""
    if "memory.usage.usage" not in values:
        return
    values["memory.swap.usage"] = values.get("memory.swap.usage", 0) + values["memory.usage.usage"]
    both = values.get("memory.swap.limit", 0) + values.get("memory.usage.limit", 0)
    values["memory.swap.limit"] = min(both, NO_LIMIT)
