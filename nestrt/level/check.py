"""Whether a level can give what a policy and its limits ask for."""

from __future__ import annotations

from nestrt.errors import HostError, InputError, NestrtError
from nestrt.level.devices import DeviceRule, format_rule, subset
from nestrt.level.limits import Limits
from nestrt.level.policy import Policy
from nestrt.level.units import MAX, format_cpus, format_quota, format_size
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Which controller carries which fields of Limits; devices need none where there is a v2 tree.
CARRIERS = (
    ("memory", ("memory", "swap")),
    ("cpuset", ("cpus", "mems")),
    ("cpu", ("cpu_quota", "cpu_weight")),
    ("pids", ("pids",)),
    ("io", ("io",)),
    ("hugetlb", ("hugetlb",)),
    ("rdma", ("rdma",)),
    ("misc", ("misc",)),
    ("net_cls", ("net_cls",)),
    ("net_prio", ("net_prio",)),
)
# Controllers of v1 that the v2 tree has in its core, so that its cgroup.controllers never names them.
CORE = ("devices", "freezer", "cpuacct", "perf_event")
MEMORY_LEAST = 256 << 10  # bytes: in 128 KiB the first exec is killed (tried on Linux 6.18)


@record
class Has:
    """What the launching level has itself; MAX (-1) and None where it is unlimited or unknown.

    *level* is its own number (host: 0) and *max_level* how deep it may go.
    *memory* and *swap* are bytes, *cpu_quota* µs in each 100000 µs, *cpus* and
    *mems* numbers as the level counts them, *devices* its allow-list.
    *controllers* are canonical names of all its hierarchies.
    """

    level: int = 0
    max_level: int = 32
    memory: int = MAX
    swap: int = MAX
    cpus: frozenset[int] | None = None
    mems: frozenset[int] | None = None
    cpu_quota: int = MAX
    pids: int = MAX
    devices: tuple[DeviceRule, ...] | None = None
    controllers: tuple[str, ...] | None = None
    name: str = "the host"


def check(policy: Policy, limits: Limits, has: Has) -> None:
    """Raise the first of problems(): InputError (status 2), or HostError (status 5) where the level lacks a part."""
    for problem in problems(policy, limits, has):
        raise problem


def problems(policy: Policy, limits: Limits, has: Has) -> tuple[NestrtError, ...]:
    """Each thing that *policy* and *limits* ask of the level *has* and that it has not; () if it can give all.

    *limits* are those asked for in all, the policy's own among them (limits.over()).
    An explicit ``max`` asks for nothing: ancestors go on holding. With
    policy.override amounts are not compared; levels and controllers always are.
    """
    found: list[NestrtError] = [*_levels(policy, has), *_controllers(policy, limits, has)]
    if limits.memory is not None and 0 <= limits.memory < MEMORY_LEAST:
        found.append(
            InputError(
                "give the guest",
                f"memory {format_size(limits.memory)}",
                "no program fits in it",
                "ask for 256K or more",
            )
        )
    if not policy.override:
        found += [*_amounts(limits, has), *_sets(limits, has)]
    return tuple(found)


def max_level(policy: Policy, has: Has) -> int:
    """How deep guests of the guest may go: what the policy says, and never deeper than the launching level may."""
    return min(policy.max_level, has.max_level)


def _levels(policy: Policy, has: Has) -> Iterator[NestrtError]:
    level = has.level + 1
    if level > has.max_level:
        remedy = f"raise [level] max_level to {level} where {has.name} was launched" if has.level else ""
        yield InputError("launch", f"a guest at level {level}", f"{has.name} may go to level {has.max_level}", remedy)
    elif level > policy.max_level:
        yield InputError(
            "launch",
            f"a guest at level {level}",
            f"policy {policy.source} ends at level {policy.max_level}",
            f"set [level] max_level to {level} or more (the host is 0)",
        )


def _controllers(policy: Policy, limits: Limits, has: Has) -> Iterator[NestrtError]:
    if has.controllers is None:
        return
    known = ", ".join(has.controllers) or "none"
    for name in policy.controllers or ():
        if name not in has.controllers and name not in CORE:
            yield HostError(
                "show the guest",
                f"controller {name}",
                f"{has.name} has {known}",
                'take it out of [view] controllers, or write controllers = "all" for what there is',
            )
    for name, fields in CARRIERS:
        asked = [field for field in fields if getattr(limits, field) not in (None, (), MAX)]
        if asked and name not in has.controllers:
            yield HostError(
                "limit", asked[0], f"{has.name} has no controller {name} (it has {known})", f"launch without {asked[0]}"
            )


def _amounts(limits: Limits, has: Has) -> Iterator[NestrtError]:
    for what, asked, there, form in (
        ("memory", limits.memory, has.memory, format_size),
        ("swap", limits.swap, has.swap, format_size),
        ("cpu_quota", limits.cpu_quota, has.cpu_quota, format_quota),
        ("pids", limits.pids, has.pids, str),
    ):
        if asked is not None and there != MAX and asked > there:
            yield InputError(
                "give the guest",
                f"{what} {form(asked)}",
                f"{has.name} has {form(there)}",
                f"ask for {form(there)} or less",
            )


def _sets(limits: Limits, has: Has) -> Iterator[NestrtError]:
    for what, asked, there in (("CPUs", limits.cpus, has.cpus), ("memory nodes", limits.mems, has.mems)):
        if asked is not None and there is not None and asked - there:
            names = format_cpus(there) or "none"
            yield InputError(
                "give the guest",
                f"{what} {format_cpus(asked - there)}",
                f"{has.name} has {names}",
                f"choose from {names}",
            )
    if limits.devices is not None and has.devices is not None:
        rule = subset(limits.devices, has.devices)
        if rule is not None:
            rules = ", ".join(format_rule(item) for item in has.devices[:12]) or "no device"
            yield InputError(
                "give the guest", f"device '{format_rule(rule)}'", f"{has.name} is not allowed it", f"it has {rules}"
            )
