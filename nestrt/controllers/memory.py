"""memory, with swap. Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, asked, limit, not_here, number, own
from nestrt.errors import InputError
from nestrt.level.units import MAX, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Memory, Resources

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


def documented_swap(memory: Memory) -> int:
    """A document's memory.swap, which counts memory and swap together: 0 where it says none, MAX for no limit.

    An unlimited memory without a word about swap has unlimited swap too, as in runc.
    Raises InputError where the two do not fit.
    """
    limit, swap = memory.limit or 0, memory.swap or 0
    if swap == 0 and limit == MAX:
        return MAX
    if swap in (0, MAX):
        return swap
    what = f"linux.resources.memory.swap {swap}"
    if limit in (0, MAX):
        raise InputError("use", what, "unable to set swap limit without memory limit", "give memory.limit too")
    if swap < limit:
        reason = f"memory+swap limit should be >= memory limit, which is {limit}"
        raise InputError("use", what, reason, "give memory and swap together, or -1 for no limit")
    return swap


def swap_setting(limit: int, swap: int, version: int, *, said: bool) -> Setting:
    """The limit of swap for documented_swap()'s *swap*. *said*: the document has the word, and means it."""
    if version == 1:
        return asked("memory.memsw.limit_in_bytes", swap, "memory.swap", optional=swap == MAX or not said)
    alone = MAX if swap == MAX else swap - limit
    # A kernel that counts no swap has no file, and neither limit to keep: runc leaves these two as well.
    return asked("memory.swap.max", number(alone, 2), "memory.swap", optional=alone in (0, MAX))


def other_words(memory: Memory, version: int) -> list[Setting]:
    """What does not depend on the memory limit: reservation, swappiness, OOM killer, hierarchy.

    Raises InputError (swappiness beyond 100), HostError (what v2 has not).
    """
    found: list[Setting] = []
    if memory.reservation:
        file = "memory.soft_limit_in_bytes" if version == 1 else "memory.low"
        found.append(asked(file, number(memory.reservation, version), "memory.reservation"))
    # -1, also as Go's unsigned one, is how an engine says nothing.
    if memory.swappiness is not None and memory.swappiness not in (-1, 2**64 - 1):
        if not 0 <= memory.swappiness <= 100:
            reason = f"invalid memory swappiness value: {memory.swappiness} (valid range is 0-100)"
            raise InputError("use", "linux.resources.memory.swappiness", reason, "use 0 to 100")
        if version == 2:
            raise not_here("memory.swappiness", "cgroup v2 has no swappiness of a group")
        found.append(asked("memory.swappiness", memory.swappiness, "memory.swappiness"))
    if memory.disable_oom_killer:
        if version == 2:
            raise not_here("memory.disableOOMKiller", "cgroup v2 cannot turn the OOM killer off")
        found.append(asked("memory.oom_control", 1, "memory.disableOOMKiller"))
    if memory.use_hierarchy is False:
        if version == 2:
            raise not_here("memory.useHierarchy", "cgroup v2 always counts with the groups below")
        found.append(asked("memory.use_hierarchy", 0, "memory.useHierarchy"))
    return found


def resources(resources: Resources, version: int) -> tuple[Setting, ...]:
    """linux.resources.memory for a new group. 0 is not said; kernel and kernelTCP are nobody's since Linux 5.4.

    runc 1.0 and later leave those two out as well (table.ignored()).
    Raises InputError, HostError.
    """
    memory = resources.memory
    swap = documented_swap(memory)
    found: list[Setting] = []
    if memory.limit:
        file = "memory.limit_in_bytes" if version == 1 else "memory.max"
        found.append(asked(file, number(memory.limit, version), "memory.limit"))
    if swap:
        found.append(swap_setting(memory.limit or 0, swap, version, said=bool(memory.swap)))
    return (*found, *other_words(memory, version))


CONTROLLER = Controller(
    "memory",
    "memory",
    V1,
    V2,
    settings,
    "divide_memory",
    ("current", "max", "swap_current", "swap_max", "peak"),
    resources=resources,
)
