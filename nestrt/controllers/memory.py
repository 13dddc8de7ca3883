"""memory, with swap. Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, limit, number, own
from nestrt.errors import InputError
from nestrt.level.units import MAX, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits

V1 = (
    limit("memory.limit_in_bytes", "max", "bytes", "min"),
    limit("memory.memsw.limit_in_bytes", "memsw_max", "bytes", "min"),  # memory and swap together
    limit("memory.soft_limit_in_bytes", "low", "bytes"),
    limit("memory.kmem.limit_in_bytes", "kmem_max", "bytes", "min"),
    limit("memory.kmem.tcp.limit_in_bytes", "kmem_tcp_max", "bytes", "min"),
    File("memory.usage_in_bytes", "current", "bytes"),
    File("memory.memsw.usage_in_bytes", "memsw_current", "bytes"),
    own("memory.max_usage_in_bytes", "peak", "bytes"),
    own("memory.memsw.max_usage_in_bytes", "memsw_peak", "bytes"),
    own("memory.failcnt", "failcnt", "count"),
    own("memory.memsw.failcnt", "memsw_failcnt", "count"),
    File("memory.kmem.usage_in_bytes", "kmem_current", "bytes"),
    own("memory.kmem.max_usage_in_bytes", "kmem_peak", "bytes"),
    own("memory.kmem.failcnt", "kmem_failcnt", "count"),
    File("memory.kmem.slabinfo", "kmem_slabinfo", "keys"),
    File("memory.kmem.tcp.usage_in_bytes", "kmem_tcp_current", "bytes"),
    own("memory.kmem.tcp.max_usage_in_bytes", "kmem_tcp_peak", "bytes"),
    own("memory.kmem.tcp.failcnt", "kmem_tcp_failcnt", "count"),
    File("memory.stat", "stat", "keys"),
    File("memory.numa_stat", "numa_stat", "keys"),
    own("memory.oom_control", "oom", "keys"),
    own("memory.swappiness", "swappiness", "count"),
    own("memory.force_empty", "reclaim", "bytes"),
    own("memory.pressure_level", "pressure", "keys"),
    own("memory.move_charge_at_immigrate", "move_charge", "bool"),
    limit("memory.use_hierarchy", "hierarchy", "bool"),
)
V2 = (
    limit("memory.max", "max", "bytes", "min"),
    limit("memory.swap.max", "swap_max", "bytes", "min"),
    limit("memory.high", "high", "bytes", "min"),
    limit("memory.swap.high", "swap_high", "bytes", "min"),
    limit("memory.low", "low", "bytes", "min"),
    limit("memory.min", "min", "bytes", "min"),
    limit("memory.zswap.max", "zswap_max", "bytes", "min"),
    limit("memory.zswap.writeback", "zswap_writeback", "bool", "min"),
    File("memory.current", "current", "bytes"),
    File("memory.swap.current", "swap_current", "bytes"),
    File("memory.zswap.current", "zswap_current", "bytes"),
    own("memory.peak", "peak", "bytes"),
    own("memory.swap.peak", "swap_peak", "bytes"),
    File("memory.events", "events", "keys"),
    File("memory.events.local", "events_local", "keys"),
    File("memory.swap.events", "swap_events", "keys"),
    File("memory.stat", "stat", "keys"),
    File("memory.numa_stat", "numa_stat", "keys"),
    own("memory.oom.group", "oom_group", "bool"),  # delegated: /sys/kernel/cgroup/delegate
    own("memory.reclaim", "reclaim", "bytes"),
    own("memory.pressure", "pressure", "keys"),
)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """Memory, then swap. v1 counts both together, so its swap is a limit only beside one of memory.

    Raises InputError for swap without memory on v1.
    """
    found: list[Setting] = []
    if limits.memory is not None:
        found.append(Setting("memory.limit_in_bytes" if version == 1 else "memory.max", number(limits.memory, version)))
    if limits.swap is None:
        return tuple(found)
    if version == 2:
        return (*found, Setting("memory.swap.max", number(limits.swap, 2)))
    if limits.swap != MAX and limits.memory in (None, MAX):
        raise InputError(
            "limit",
            f"swap to {format_size(limits.swap)}",
            "a cgroup v1 host limits memory and swap together, and memory has no limit",
            "give a memory limit too",
        )
    both = MAX if limits.swap == MAX or limits.memory is None else limits.memory + limits.swap
    # The kernel refuses memory.memsw.limit_in_bytes below memory.limit_in_bytes: this one comes second.
    return (*found, Setting("memory.memsw.limit_in_bytes", number(both, 1)))


CONTROLLER = Controller(
    "memory", "memory", V1, V2, settings, "divide_memory", ("current", "max", "swap_current", "swap_max", "peak")
)
