"""What is more than what: the host's policy as the upper bound of what a bundle may ask for.

More is, field by field: a deeper max_level; override; not to be strict; a broker; a mount that is rw before ro
before none; more controllers; more to divide; more groups, and deeper ones. What a
guest starts in and how it counts CPUs is nobody's loss: free. Limits are not compared
but met: of two, the smaller holds, as between a group and its parent. Quotas of the broker are compared
where the bound has them; where it has none, the broker's own are the bound, which only the broker knows.
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.devices import DeviceRule, intersect
from nestrt.level.limits import IO_KEYS, IoLimit, Limits
from nestrt.level.policy import QUOTAS, Policy
from nestrt.level.units import MAX, format_cpus, format_size
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NUMBERS = ("max_level", "max_groups", "max_depth")
SWITCHES = ("override", "divide_cpu", "divide_memory", "divide_pids", "divide_io", "divide_devices")
MOUNT_ORDER = ("none", "ro", "rw")
BOUNDED = (*NUMBERS, *SWITCHES, "strict", "broker", *QUOTAS, "mount", "controllers")
FREE = ("start_in", "cpus")
# Holds where the host says nothing: every built-in policy is within it, and override is not.
DEFAULT_BOUND = Policy(broker="required", max_groups=4000, max_depth=20, source="built in")


@record
class Excess:
    """One field by which a policy is more than its bound, with both values as a user writes them."""

    field: str
    asked: str
    allowed: str


def written(value: object) -> str:
    """A field's value as annotations spell it: ``true``, ``3``, ``cpu,memory``, ``all``."""
    if value is None:
        return "all"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "no controller"
    return str(value)


def said(policy: Policy, field: str) -> str:
    """written() of a field of *policy*; of a quota also whether it holds only where the broker's own is not less."""
    value = getattr(policy, field)
    if field not in QUOTAS:
        return written(value)
    if value is None:
        return "the broker's"
    text = format_size(value) if field == "broker_message" else str(value)
    return f"at most {text}" if field in policy.broker_most else text


def excesses(policy: Policy, bound: Policy) -> tuple[Excess, ...]:
    """Where *policy* is more than *bound*; () where it is not. Limits and free choices never are."""
    least = clamp(policy, bound)
    return tuple(
        Excess(field, said(policy, field), said(bound, field))
        for field in BOUNDED
        if getattr(policy, field) != getattr(least, field)
    )


def clamp(policy: Policy, bound: Policy) -> Policy:
    """*policy* with every field that is more than *bound*'s brought down to it; limits are left as they are."""
    values: dict[str, object] = {field: min(getattr(policy, field), getattr(bound, field)) for field in NUMBERS}
    values.update({field: getattr(policy, field) and getattr(bound, field) for field in SWITCHES})
    values["strict"] = policy.strict or bound.strict
    # Wanted or required is the bundle's own choice wherever it may have one.
    values["broker"] = "none" if bound.broker == "none" else policy.broker
    for field in QUOTAS:
        mine, most = getattr(policy, field), getattr(bound, field)
        values[field] = mine if mine is None or most is None else min(mine, most)
    values["mount"] = min(policy.mount, bound.mount, key=MOUNT_ORDER.index)
    if bound.controllers is not None:
        asked = bound.controllers if policy.controllers is None else policy.controllers
        values["controllers"] = tuple(name for name in asked if name in bound.controllers)
    return replace(policy, **values)


def quotas(policy: Policy, base: Policy | None, bound: Policy) -> dict[str, object]:
    """The quotas of a *policy* that is within *bound*, with broker_most.

    What the host itself gives, as much as its *bound* or its own policy *base* says, takes the place of the broker's.
    What only somebody else says, and what the bound says of a quota that nobody asked for, can but lower it.
    """
    values: dict[str, object] = {}
    most = []
    for field in QUOTAS:
        mine, allowed, given = (getattr(one, field, None) for one in (policy, bound, base))
        values[field] = allowed if mine is None else mine
        if mine is None or (allowed is None and (given is None or mine > given)):
            most.append(field)
    return {**values, "broker_most": tuple(field for field in most if values[field] is not None)}


def least(one: int | None, other: int | None) -> int | None:
    """The smaller of two limits; None is not said, MAX none, and a number less than both."""
    if one is None or other is None:
        return other if one is None else one
    if MAX in (one, other):
        return max(one, other)
    return min(one, other)


def smaller(one: Limits, other: Limits) -> Limits:
    """Limits that ask for no more than *one* and no more than *other*, whichever order they come in.

    CPUs, memory nodes and device rules are those that both have. Of two net_cls classes,
    which are names and not amounts, *other*'s stays. Raises InputError where CPUs or
    nodes have nothing in common: a group with none runs nothing.
    """
    return Limits(
        memory=least(one.memory, other.memory),
        swap=least(one.swap, other.swap),
        cpus=_common(one.cpus, other.cpus, "CPUs"),
        mems=_common(one.mems, other.mems, "memory nodes"),
        cpu_quota=least(one.cpu_quota, other.cpu_quota),
        cpu_weight=least(one.cpu_weight, other.cpu_weight),
        pids=least(one.pids, other.pids),
        io=_io(one.io, other.io),
        devices=_devices(one.devices, other.devices),
        hugetlb=_pairs(one.hugetlb, other.hugetlb),
        rdma=_rdma(one.rdma, other.rdma),
        misc=_misc(one.misc, other.misc),
        net_cls=one.net_cls if other.net_cls is None else other.net_cls,
        net_prio=_pairs(one.net_prio, other.net_prio),
    )


def _devices(one: tuple[DeviceRule, ...] | None, other: tuple[DeviceRule, ...] | None) -> tuple[DeviceRule, ...] | None:
    if one is None or other is None:
        return other if one is None else one
    return intersect(one, other)


def _common(one: frozenset[int] | None, other: frozenset[int] | None, what: str) -> frozenset[int] | None:
    if one is None or other is None:
        return other if one is None else one
    if not one & other:
        raise InputError(
            "limit",
            f"{what} to {format_cpus(one)}",
            f"the host's policy allows {format_cpus(other)}, which are others",
            f"choose from {format_cpus(other)}",
        )
    return one & other


def _io(one: tuple[IoLimit, ...], other: tuple[IoLimit, ...]) -> tuple[IoLimit, ...]:
    found = {limit.device: limit for limit in one}
    for limit in other:
        if mine := found.get(limit.device):
            limit = IoLimit(limit.device, *(least(getattr(mine, key), getattr(limit, key)) for key in IO_KEYS))
        found[limit.device] = limit
    return tuple(found.values())


def _pairs(one: Iterable[tuple[str, int]], other: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    found = dict(one)
    for name, value in other:
        mine = least(found.get(name), value)
        assert mine is not None
        found[name] = mine
    return tuple(found.items())


def _count(text: str) -> int:
    return MAX if text == "max" else int(text)


def _text(number: int) -> str:
    return "max" if number == MAX else str(number)


def _misc(one: Iterable[tuple[str, str]], other: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    met = _pairs(tuple((name, _count(text)) for name, text in one), tuple((name, _count(text)) for name, text in other))
    return tuple((name, _text(number)) for name, number in met)


def rdma_numbers(text: str) -> dict[str, int]:
    """``hca_handle=2 hca_object=max`` as numbers by key."""
    return {key: _count(value) for key, _, value in (word.partition("=") for word in text.split())}


def _rdma(one: Iterable[tuple[str, str]], other: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    found = dict(one)
    for name, text in other:
        met = _pairs(rdma_numbers(found.get(name, "")).items(), rdma_numbers(text).items())
        found[name] = " ".join(f"{key}={_text(number)}" for key, number in met)
    return tuple(found.items())
