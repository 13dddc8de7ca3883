"""Changing what a live group has: the order of writes that the kernel takes, and what holds afterwards.

A new group can be written in any sensible order (table.resource_settings()). A
live one has values, and the kernel refuses a pair of limits that does not fit
even for a moment. The orders here never allow more than the old or the new
limits do. What the group has is asked for by *read*, the current text of one
of its files, which raises OSError where there is none.
"""

from __future__ import annotations

from nestrt.controllers import cpu, memory
from nestrt.controllers.base import Setting, asked, number
from nestrt.controllers.table import for_hierarchy, unified_settings
from nestrt.errors import InputError, StateError
from nestrt.level.units import MAX, PERIOD
from nestrt.oci.resources import BlockIo, Cpu, Memory, Resources
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    Read = Callable[[str], str]
    T = TypeVar("T")

# v1 counts pages in a long, and shows the most of them for no limit (PAGE_COUNTER_MAX, include/linux/page_counter.h).
_V1_NONE = 2**62


def update_settings(
    old: Resources | None, new: Resources, controllers: Iterable[str], version: int, read: Read
) -> tuple[Setting, ...]:
    """Every write, in order, that makes a live group of a hierarchy with these *controllers* have what *new* says.

    *old* is what the document of the container says so far, None where nobody
    knows. As in runc, 0 and "" leave a value as it is, -1 lifts a limit. Device
    rules are not among them: oci_devices.

    Raises InputError (values that do not fit what the group has), HostError (as
    table.resource_settings()), StateError (checkBeforeUpdate: in use already).
    """
    names = tuple(controllers)
    before = old or Resources()
    said = replace(new, pids=new.pids or None)
    found: list[Setting] = []
    for item in for_hierarchy(names, version):
        if item.name == "cpu":
            found += _cpu(before.cpu, new.cpu, version, read)
        elif item.name == "memory":
            found += _memory(before.memory, new.memory, version, read)
        else:
            found += item.resources(said, version)
    if version == 2:
        found += unified_settings(new, names)
    return tuple(found)


def _text(read: Read, file: str) -> str:
    try:
        return read(file).strip()
    except OSError:
        return ""


def _number(read: Read, file: str) -> int | None:
    """The number in *file*; MAX for none, None where there is no such file."""
    text = _text(read, file)
    if text == "max":
        return MAX
    try:
        value = int(text)
    except ValueError:
        return None
    return MAX if value < 0 or value >= _V1_NONE else value


def _cpu(old: Cpu, new: Cpu, version: int, read: Read) -> list[Setting]:
    found = cpu.idle_and_shares(new, version)
    if version == 2:
        cpu.no_realtime(new)
        bandwidth: list[Setting] = []
        if new.quota or new.period:
            words = _text(read, "cpu.max").split()
            known = len(words) == 2 and words[1].isdigit()
            has, per = (words[0], int(words[1])) if known else (old.quota or MAX, old.period or PERIOD)
            quota = new.quota or (MAX if has == "max" else int(has))
            field = "cpu.quota" if new.quota else "cpu.period"
            bandwidth.append(asked("cpu.max", cpu.quota_words(quota, new.period or per), field))
    else:
        bandwidth = _pair("cpu.cfs_", "quota_us", (new.quota, new.period), ("cpu.quota", "cpu.period"), read)
    if new.burst is not None:
        burst = cpu.burst_setting(new.burst, version)
        has_burst = _number(read, burst.file)
        # The kernel wants no more burst than quota: less of it goes first, more of it last.
        shrinks = has_burst is not None and has_burst != MAX and new.burst <= has_burst
        bandwidth.insert(0 if shrinks else len(bandwidth), burst)
    found += bandwidth
    if version == 1:
        values = (new.realtime_runtime, new.realtime_period)
        found += _pair("cpu.rt_", "runtime_us", values, ("cpu.realtimeRuntime", "cpu.realtimePeriod"), read)
    return found


def _pair(
    prefix: str, amount: str, values: tuple[int | None, int | None], fields: tuple[str, str], read: Read
) -> list[Setting]:
    """A v1 amount of time in a period: a longer period goes first, a shorter one last.

    So the share of CPU between the two writes is not more than that before or
    after, which the parent's share bounds (__cfs_schedulable(), kernel/sched/core.c).
    """
    found = [
        asked(prefix + file, value, field)
        for file, value, field in ((amount, values[0], fields[0]), ("period_us", values[1], fields[1]))
        if value
    ]
    has = _number(read, prefix + "period_us")
    if len(found) == 2 and values[1] is not None and (has is None or values[1] >= has):
        found.reverse()
    return found


def _memory(old: Memory, new: Memory, version: int, read: Read) -> list[Setting]:
    limit, swap = new.limit or 0, new.swap or 0
    check = old.check_before_update if new.check_before_update is None else new.check_before_update
    if check:
        _check(limit, swap, version, read)
    has = _number(read, "memory.limit_in_bytes" if version == 1 else "memory.max")
    if has is None:
        has = old.limit or 0
    both = memory.documented_swap(replace(new, limit=limit or has))
    if not swap and limit != MAX:
        both = 0  # the group's own is MAX, which nobody asked for
    found: list[Setting] = []
    if limit:
        file = "memory.limit_in_bytes" if version == 1 else "memory.max"
        found.append(asked(file, number(limit, version), "memory.limit"))
    if both:
        swaps = memory.swap_setting(limit or has, both, version, said=bool(swap))
        # v1 wants memory within memory and swap at every moment; v2 counts them apart, and runc writes swap first.
        first = version == 2 or both == MAX or (has != MAX and both >= has)
        found.insert(0 if first else len(found), swaps)
    elif version == 1 and limit:
        has_both = _number(read, "memory.memsw.limit_in_bytes")
        if has_both not in (None, MAX) and limit > (has_both or 0):
            reason = f"memory+swap limit should be >= memory limit, and is {has_both}"
            raise InputError(
                "use", f"linux.resources.memory.limit {limit}", reason, "give memory.swap too, or -1 for no limit of it"
            )
    found += memory.other_words(new, version)
    if version == 1 and new.disable_oom_killer is False and old.disable_oom_killer:
        found.append(asked("memory.oom_control", 0, "memory.disableOOMKiller"))
    return found


def _check(limit: int, swap: int, version: int, read: Read) -> None:
    """checkBeforeUpdate: raises StateError where the group uses as much already, if that can be told."""
    if version == 1:
        used, total = _number(read, "memory.usage_in_bytes"), _number(read, "memory.memsw.usage_in_bytes")
    else:
        used, swapped = _number(read, "memory.current"), _number(read, "memory.swap.current")
        total = None if used is None else used + (swapped or 0)
    for asked_for, usage, word, field in (
        (swap, used if total is None else total, "memory+swap", "swap"),
        (limit, used, "memory", "limit"),
    ):
        if asked_for > 0 and usage is not None and asked_for <= usage:
            reason = f"rejecting {word} limit {asked_for} <= usage {usage}"
            raise StateError("update", f"linux.resources.memory.{field}", reason, "allow more, or free memory first")


# Where 0 is a value like any other, and None alone is not said.
_ZERO_COUNTS = ("idle", "burst", "swappiness", "disable_oom_killer", "use_hierarchy", "check_before_update")


def _over(old: T, new: T) -> T:
    """The record *old* with what *new* says instead."""
    changes = {
        name: value
        for name, value in new.__dict__.items()
        if value is not None and (value or name in _ZERO_COUNTS) and not (name == "swappiness" and value == -1)
    }
    return replace(old, **changes)


def _by_key(old: tuple[T, ...], new: tuple[T, ...], key: Callable[[T], object]) -> tuple[T, ...]:
    """The entries of both, *new*'s instead of *old*'s where they have the same key."""
    again = {key(item) for item in new}
    return (*(item for item in old if key(item) not in again), *new)


def merge(old: Resources, new: Resources) -> Resources:
    """What a container with *old* has after update_settings() with *new*, for its state file.

    Lists go by device, page size, interface or file; device rules, having an order, are replaced whole.
    """
    block = _over(old.block_io, new.block_io)
    lists = {
        name: _by_key(value, getattr(new.block_io, name), lambda item: (item.major, item.minor))
        for name, value in old.block_io.__dict__.items()
        if name in BlockIo.FIELDS and isinstance(value, tuple)  # type: ignore[attr-defined]
    }
    return Resources(
        devices=new.devices or old.devices,
        memory=_over(old.memory, new.memory),
        cpu=_over(old.cpu, new.cpu),
        pids=new.pids or old.pids,
        block_io=replace(block, **lists),
        hugepages=_by_key(old.hugepages, new.hugepages, lambda item: item[0]),
        rdma=_by_key(old.rdma, new.rdma, lambda item: item[0]),
        net_class=new.net_class or old.net_class,
        net_prio=_by_key(old.net_prio, new.net_prio, lambda item: item[0]),
        unified=_by_key(old.unified, new.unified, lambda item: item[0]),
    )
