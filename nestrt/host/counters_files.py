"""Which file of a group says which counter: a table for v1 and one for v2, and how each text is read.

A parser gets the bytes of one file and fills a Counters. It runs for each file of each
group once a second, so it looks only for what it needs. Sources: Documentation/admin-guide/cgroup-v2.rst;
cgroup-v1/cpuacct.rst, memory.rst, blkio-controller.rst, pids.rst, freezer-subsystem.rst; accounting/psi.rst.
"""

from __future__ import annotations

from nestrt.host.stats import TICK
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Pressure = dict[str, dict[str, float]]


@record
class Counters:
    """What one group used, with all groups below it. None where no hierarchy counts it, or the group is gone.

    Sizes are bytes, ``_usec`` is µs, the rest are counts. *cpu_usec*, *user_usec*, *system_usec*: CPU time;
    the latter two are known to 10 ms on v1. *periods* of the group's own CPU quota, *throttled_periods* in which it
    was used up, *throttled_usec* that CPUs had to wait for the next. *memory* has the page *cache* in it, not *swap*.
    *memory_limit_hits* and *pids_limit_hits*: how often a limit was reached; on v1 memory's is that of the group's
    own limit. *oom_kills* and *pids_limit_hits* of groups that are gone are not in it on v1.
    *pressure* is by resource ("cpu", "memory", "io"): some_avg10, some_total_usec, full_avg10, full_total_usec, the
    averages in percent; without the resources that the kernel does not watch. *frozen*: everything in it is stopped.
    *populated*: something in it lives, where *pids* counts what has ended and waits for its parent, too.
    """

    cpu_usec: int | None = None
    user_usec: int | None = None
    system_usec: int | None = None
    throttled_usec: int | None = None
    throttled_periods: int | None = None
    periods: int | None = None
    memory: int | None = None
    memory_peak: int | None = None
    swap: int | None = None
    cache: int | None = None
    oom_kills: int | None = None
    memory_limit_hits: int | None = None
    pids: int | None = None
    pids_limit_hits: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    io_reads: int | None = None
    io_writes: int | None = None
    pressure: Pressure | None = None
    frozen: bool | None = None
    populated: bool | None = None


def _number(field: str) -> Callable[[bytes, Counters], None]:
    def parse(data: bytes, into: Counters) -> None:
        into.__dict__[field] = int(data)

    return parse


def _keys(divisor: int, **fields: str) -> Callable[[bytes, Counters], None]:
    """Flat-keyed text; *fields*: key in the file → field, divided by *divisor* where that ends in ``_usec``."""
    wanted = {key.encode(): (field, divisor if field.endswith("_usec") else 1) for key, field in fields.items()}

    def parse(data: bytes, into: Counters) -> None:
        words = data.split()
        for key, value in zip(words[::2], words[1::2], strict=False):
            if key in wanted:
                field, by = wanted[key]
                into.__dict__[field] = int(value) // by

    return parse


def _line(key: bytes, field: str) -> Callable[[bytes, Counters], None]:
    """One key of a long flat-keyed text."""
    start = key + b" "

    def parse(data: bytes, into: Counters) -> None:
        place = 0 if data.startswith(start) else data.find(b"\n" + start) + 1
        if place or data.startswith(start):
            into.__dict__[field] = int(data[place + len(start) : data.index(b"\n", place)])

    return parse


def _nanoseconds(data: bytes, into: Counters) -> None:
    into.cpu_usec = int(data) // 1000


def _ticks(data: bytes, into: Counters) -> None:
    """``user 12\\nsystem 3``, in USER_HZ."""
    words = data.split()
    into.user_usec, into.system_usec = int(words[1]) * TICK // 1000, int(words[3]) * TICK // 1000


def _with_swap(data: bytes, into: Counters) -> None:
    """v1 counts memory and swap together; the two files are not read at the same moment."""
    if into.memory is not None:
        into.swap = max(0, int(data) - into.memory)


def _add_hits(data: bytes, into: Counters) -> None:
    """A charge fails at memory's limit or at that of memory and swap together, whichever is reached first."""
    into.memory_limit_hits = int(data) + (into.memory_limit_hits or 0)


def _blkio(read: str, write: str) -> Callable[[bytes, Counters], None]:
    """``254:0 Read 4096``, ``254:0 Write 0``, …, for each device; ``Total 4096``."""

    def parse(data: bytes, into: Counters) -> None:
        words = data.split()
        reads = writes = 0
        for place, word in enumerate(words):
            if word == b"Read":
                reads += int(words[place + 1])
            elif word == b"Write":
                writes += int(words[place + 1])
        into.__dict__[read], into.__dict__[write] = reads, writes

    return parse


IO_STAT = {b"rbytes": "io_read_bytes", b"wbytes": "io_write_bytes", b"rios": "io_reads", b"wios": "io_writes"}


def _io_stat(data: bytes, into: Counters) -> None:
    """``254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0``, for each device."""
    found = dict.fromkeys(IO_STAT.values(), 0)
    for word in data.split():
        key, _, value = word.partition(b"=")
        if key in IO_STAT:
            found[IO_STAT[key]] += int(value)
    into.__dict__.update(found)


NO_PRESSURE = {"some_avg10": 0.0, "some_total_usec": 0, "full_avg10": 0.0, "full_total_usec": 0}


def _pressure(resource: str) -> Callable[[bytes, Counters], None]:
    """``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``; ``full`` is the second line, if there is one."""

    def parse(data: bytes, into: Counters) -> None:
        words = data.split()
        found: dict[str, float] = dict(NO_PRESSURE)
        for place in range(0, len(words) - 4, 5):
            kind = words[place].decode()
            found[kind + "_avg10"] = float(words[place + 1][6:])
            found[kind + "_total_usec"] = int(words[place + 4][6:])
        if into.pressure is None:
            into.pressure = {}
        into.pressure[resource] = found

    return parse


def _v1_frozen(data: bytes, into: Counters) -> None:
    into.frozen = bool(into.frozen) or data.startswith(b"FROZEN")


def _events(data: bytes, into: Counters) -> None:
    into.populated = b"populated 1" in data
    if b"frozen " in data:  # since Linux 5.2
        into.frozen = bool(into.frozen) or b"frozen 1" in data


@record
class File:
    """A file with counters: the *fields* it fills, the *controllers* (kernel names) it belongs to, its possible
    *names*, the first that is there, the most *size* bytes of it, and how to *parse* it. *local*: it counts what
    happened in this very group, so all those below have to be read too."""

    fields: tuple[str, ...]
    controllers: tuple[str, ...]
    names: tuple[str, ...]
    size: int
    parse: Callable[[bytes, Counters], None]
    local: bool = False


_SHORT, _LONG = 64, 16384  # a number; a table of devices or of statistics

CPU_FIELDS = ("cpu_usec", "user_usec", "system_usec")
THROTTLING = ("throttled_usec", "throttled_periods", "periods")
BYTES, OPERATIONS = ("io_read_bytes", "io_write_bytes"), ("io_reads", "io_writes")

V1: tuple[File, ...] = (
    File(("cpu_usec",), ("cpuacct",), ("cpuacct.usage",), _SHORT, _nanoseconds),
    File(("user_usec", "system_usec"), ("cpuacct",), ("cpuacct.stat",), 256, _ticks),
    File(
        THROTTLING,
        ("cpu",),
        ("cpu.stat",),
        512,
        _keys(1000, nr_periods="periods", nr_throttled="throttled_periods", throttled_time="throttled_usec"),
    ),
    File(("memory", "swap"), ("memory",), ("memory.usage_in_bytes",), _SHORT, _number("memory")),
    File(("memory_peak",), ("memory",), ("memory.max_usage_in_bytes",), _SHORT, _number("memory_peak")),
    File(("swap",), ("memory",), ("memory.memsw.usage_in_bytes",), _SHORT, _with_swap),
    File(("cache",), ("memory",), ("memory.stat",), _LONG, _line(b"total_cache", "cache")),
    File(("memory_limit_hits",), ("memory",), ("memory.failcnt",), _SHORT, _add_hits),
    File(("memory_limit_hits",), ("memory",), ("memory.memsw.failcnt",), _SHORT, _add_hits),
    File(("oom_kills",), ("memory",), ("memory.oom_control",), 256, _keys(1, oom_kill="oom_kills"), local=True),
    File(("pids",), ("pids",), ("pids.current",), _SHORT, _number("pids")),
    File(("pids_limit_hits",), ("pids",), ("pids.events",), 256, _keys(1, max="pids_limit_hits"), local=True),
    # On older kernels the throttling layer has no sums over groups.
    File(
        BYTES,
        ("blkio",),
        ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"),
        _LONG,
        _blkio(*BYTES),
    ),
    File(
        OPERATIONS,
        ("blkio",),
        ("blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"),
        _LONG,
        _blkio(*OPERATIONS),
    ),
    File(("frozen",), ("freezer",), ("freezer.state",), _SHORT, _v1_frozen),
)

# A file is left out where all its controllers (v1's names) stand in v1 hierarchies that have the group. cpu.stat is
# there without the controller, and so are cgroup.events and the pressure files, which no v1 hierarchy has.
V2: tuple[File, ...] = (
    File(
        CPU_FIELDS + THROTTLING,
        ("cpuacct", "cpu"),
        ("cpu.stat",),
        1024,
        _keys(
            1,
            usage_usec="cpu_usec",
            user_usec="user_usec",
            system_usec="system_usec",
            nr_periods="periods",
            nr_throttled="throttled_periods",
            throttled_usec="throttled_usec",
        ),
    ),
    File(("memory",), ("memory",), ("memory.current",), _SHORT, _number("memory")),
    File(("memory_peak",), ("memory",), ("memory.peak",), _SHORT, _number("memory_peak")),  # since Linux 5.19
    File(("swap",), ("memory",), ("memory.swap.current",), _SHORT, _number("swap")),
    File(("cache",), ("memory",), ("memory.stat",), _LONG, _line(b"file", "cache")),
    File(
        ("oom_kills", "memory_limit_hits"),
        ("memory",),
        ("memory.events",),
        256,
        _keys(1, oom_kill="oom_kills", max="memory_limit_hits"),
    ),
    File(("pids",), ("pids",), ("pids.current",), _SHORT, _number("pids")),
    File(("pids_limit_hits",), ("pids",), ("pids.events",), 256, _keys(1, max="pids_limit_hits")),
    File(BYTES + OPERATIONS, ("blkio",), ("io.stat",), _LONG, _io_stat),
    *(
        File(("pressure",), (), (f"{resource}.pressure",), 512, _pressure(resource))
        for resource in ("cpu", "memory", "io")
    ),
    File(("frozen", "populated"), (), ("cgroup.events",), 256, _events),
)

TABLES = {1: V1, 2: V2}
