"""Limits that a guest is to have from now on, as a document's resources say them to an update. Pure."""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.units import MAX, PERIOD, format_cpus, format_size
from nestrt.oci.resources import BlockIo, Cpu, Memory, Resources, ThrottleDevice, together
from nestrt.plan.narrow import THROTTLES
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits


def completed(new: Limits, had: Limits) -> Limits:
    """*new* with what it takes of *had* besides: a document counts memory and swap together.

    Raises InputError where memory is to have no limit, and nothing is said of swap, which has one.
    """
    if new.swap is not None and new.memory is None:
        return replace(new, memory=had.memory)
    if new.memory is None or new.swap is not None:
        return new
    if new.memory != MAX:
        return replace(new, swap=None if had.swap == MAX else had.swap)
    if had.swap not in (None, MAX):
        reason = "swap has a limit, and both are counted together"
        raise InputError("set", "memory to max", reason, "give swap too: max, or less than max for both")
    return replace(new, swap=MAX)


def resources_of(limits: Limits) -> Resources:
    """*limits*, completed(), where -1 lifts a limit and 0 a throttle; without device rules.

    Raises InputError for a limit of swap where memory has none.
    """
    swap = limits.swap
    if swap is not None and swap != MAX:
        if limits.memory is None or limits.memory == MAX:
            raise InputError(
                "limit",
                f"swap to {format_size(swap)}",
                "memory has no limit, and both are counted together",
                "give a memory limit too: -m SIZE",
            )
        swap = together(limits.memory, swap)
    shares = None
    if limits.cpu_weight is not None:
        from nestrt.controllers.cpu import shares_of  # it imports math

        shares = shares_of(limits.cpu_weight)
    quota = limits.cpu_quota
    return Resources(
        memory=Memory(limit=limits.memory, swap=swap),
        cpu=Cpu(
            shares=shares,
            quota=quota,
            period=None if quota in (None, MAX) else PERIOD,
            cpus="" if limits.cpus is None else format_cpus(limits.cpus),
            mems="" if limits.mems is None else format_cpus(limits.mems),
        ),
        pids=limits.pids,
        block_io=_throttles(limits),
    )


def _throttles(limits: Limits) -> BlockIo:
    found: dict[str, list[ThrottleDevice]] = {}
    for limit in limits.io:
        major, _, minor = limit.device.partition(":")
        for field, key in THROTTLES:
            rate = getattr(limit, key)
            if rate is not None:
                found.setdefault(field, []).append(ThrottleDevice(int(major), int(minor), max(0, rate)))
    return replace(BlockIo(), **{field: tuple(items) for field, items in found.items()})
