"""Statistics of a v1 group: which file says what, in the words of runc's ``events``.

Documentation/admin-guide/cgroup-v1: cpuacct.rst, memory.rst, blkio-controller.rst, pids.rst, cpusets.rst, hugetlb.rst.
The counters are those of the group with all below it: cpuacct, pids and hugetlb
count so by themselves, memory by use_hierarchy (always on since Linux 5.11), blkio in its *_recursive files.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    # controller (kernel name), file, how it is read (stats.READERS), (key in it, place in the result) …
    Row = tuple[str, str, str, tuple[tuple[str, str], ...]]


def _memory(file: str, place: str) -> tuple[Row, ...]:
    """The four counters of one kind of memory: memory.rst, section 3."""
    words = (("usage_in_bytes", "usage"), ("limit_in_bytes", "limit"), ("max_usage_in_bytes", "max"))
    rows = (*words, ("failcnt", "failcnt"))
    return tuple(("memory", f"{file}.{word}", "number", (("", f"{place}.{name}"),)) for word, name in rows)


def _flag(name: str, place: str = "") -> Row:
    return ("cpuset", f"cpuset.{name}", "number", (("", f"cpuset.{place or name}"),))


ROWS: tuple[Row, ...] = (
    ("cpuacct", "cpuacct.usage", "number", (("", "cpu.usage.total"),)),  # ns
    ("cpuacct", "cpuacct.usage_percpu", "numbers", (("", "cpu.usage.percpu"),)),
    (
        "cpuacct",
        "cpuacct.usage_all",  # since Linux 4.9
        "columns",
        (("system", "cpu.usage.percpu_kernel"), ("user", "cpu.usage.percpu_user")),
    ),
    ("cpuacct", "cpuacct.stat", "ticks", (("system", "cpu.usage.kernel"), ("user", "cpu.usage.user"))),
    (
        "cpu",
        "cpu.stat",
        "keys",
        (
            ("nr_periods", "cpu.throttling.periods"),
            ("nr_throttled", "cpu.throttling.throttledPeriods"),
            ("throttled_time", "cpu.throttling.throttledTime"),  # ns
        ),
    ),
    ("cpuset", "cpuset.cpus", "list", (("", "cpuset.cpus"),)),
    ("cpuset", "cpuset.mems", "list", (("", "cpuset.mems"),)),
    _flag("cpu_exclusive"),
    _flag("mem_hardwall"),
    _flag("mem_exclusive"),
    _flag("memory_migrate"),
    _flag("memory_spread_page"),
    _flag("memory_spread_slab"),
    _flag("memory_pressure"),
    _flag("sched_load_balance"),
    ("cpuset", "cpuset.sched_relax_domain_level", "signed", (("", "cpuset.sched_relax_domain_level"),)),
    ("memory", "memory.stat", "keys", (("*", "memory.raw"), ("cache", "memory.cache"))),
    *_memory("memory", "memory.usage"),
    *_memory("memory.memsw", "memory.swap"),  # memory and swap together
    *_memory("memory.kmem", "memory.kernel"),
    *_memory("memory.kmem.tcp", "memory.kernelTCP"),
    ("pids", "pids.current", "number", (("", "pids.current"),)),
    ("pids", "pids.max", "count", (("", "pids.limit"),)),
)

_BLKIO = (
    ("io_serviced_recursive", "blkio.ioServicedRecursive"),
    ("io_service_bytes_recursive", "blkio.ioServiceBytesRecursive"),
)
_SCHEDULER = (
    ("sectors_recursive", "blkio.sectorsRecursive"),
    ("io_service_time_recursive", "blkio.ioServiceTimeRecursive"),
    ("io_wait_time_recursive", "blkio.ioWaitTimeRecursive"),
    ("io_merged_recursive", "blkio.ioMergedRecursive"),
    ("io_queued_recursive", "blkio.ioQueueRecursive"),
    ("time_recursive", "blkio.ioTimeRecursive"),
    *_BLKIO,
)
# Families of files, of which the first one is taken whose first file says anything: the disk's
# scheduler (BFQ with its debugging counters, BFQ, the former CFQ), else the throttling layer.
BLKIO_FAMILIES: tuple[tuple[tuple[str, str], ...], ...] = (
    tuple((f"blkio.bfq.{file}", place) for file, place in _SCHEDULER),
    tuple((f"blkio.bfq.{file}", place) for file, place in _BLKIO),
    tuple((f"blkio.{file}", place) for file, place in _SCHEDULER),
    tuple((f"blkio.throttle.{file}", place) for file, place in _BLKIO),
    tuple((f"blkio.throttle.{file.removesuffix('_recursive')}", place) for file, place in _BLKIO),
)

# For each word of the result the files that may say it, the first that is there; * is the page size.
HUGETLB: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("usage", "", ("hugetlb.*.rsvd.usage_in_bytes", "hugetlb.*.usage_in_bytes")),
    ("max", "", ("hugetlb.*.rsvd.max_usage_in_bytes", "hugetlb.*.max_usage_in_bytes")),
    ("failcnt", "", ("hugetlb.*.rsvd.failcnt", "hugetlb.*.failcnt")),
)
HUGETLB_SIZES = "hugetlb.*.usage_in_bytes"
