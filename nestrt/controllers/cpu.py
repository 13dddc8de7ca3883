"""cpu: quota and weight. Documentation/scheduler/sched-bwc.rst, sched-design-CFS.rst (v1), cgroup-v2.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, asked, limit, not_here, number, own
from nestrt.errors import InputError
from nestrt.level.units import PERIOD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Cpu, Resources

V1 = (
    limit("cpu.cfs_quota_us", "quota", "us", "min"),  # -1: none; a child's share of a CPU cannot exceed its parent's
    limit("cpu.cfs_period_us", "period", "us"),
    limit("cpu.cfs_burst_us", "burst", "us"),
    limit("cpu.shares", "weight", "shares"),
    limit("cpu.idle", "idle", "bool"),
    limit("cpu.rt_runtime_us", "rt_runtime", "us"),
    limit("cpu.rt_period_us", "rt_period", "us"),
    limit("cpu.uclamp.min", "uclamp_min", "keys"),
    limit("cpu.uclamp.max", "uclamp_max", "keys", "min"),
    File("cpu.stat", "stat", "keys"),
    File("cpu.stat.local", "stat_local", "keys"),
)
V2 = (
    limit("cpu.max", "quota", "us", "min"),  # "QUOTA PERIOD", QUOTA may be max
    limit("cpu.max.burst", "burst", "us"),
    limit("cpu.weight", "weight", "weight"),
    limit("cpu.weight.nice", "nice", "count"),
    limit("cpu.idle", "idle", "bool"),
    limit("cpu.uclamp.min", "uclamp_min", "keys"),
    limit("cpu.uclamp.max", "uclamp_max", "keys", "min"),
    File("cpu.stat", "stat", "keys"),
    File("cpu.stat.local", "stat_local", "keys"),
    own("cpu.pressure", "pressure", "keys"),
)


def shares_of(weight: int) -> int:
    """v1's cpu.shares (2 to 262144) for v2's cpu.weight (1 to 10000), so that both defaults meet: 100 is 1024.

    The inverse of ConvertCPUSharesToCgroupV2Value() of runc (opencontainers/cgroups, utils.go,
    since 2025), weight = 10 ^ ((l*l + 125*l) / 612 - 7/34) with l = log2(shares); the straight
    line that runc used before made 100 of 2597 shares.
    """
    from math import log10, sqrt

    logarithm = (sqrt(15_625 + 2448 * (log10(weight) + 7 / 34)) - 125) / 2
    return min(262_144, max(2, round(2**logarithm)))


def weight_of(shares: int) -> int:
    """v2's cpu.weight for v1's cpu.shares: shares_of() turned round, to the nearest where runc takes the next."""
    from math import log2

    logarithm = log2(min(262_144, max(2, shares)))
    return round(10 ** ((logarithm * logarithm + 125 * logarithm) / 612 - 7 / 34))


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """cpu.max and cpu.weight; v1's period first, since a quota is judged by it."""
    found: list[Setting] = []
    if limits.cpu_quota is not None:
        if version == 1:
            found.append(Setting("cpu.cfs_period_us", str(PERIOD)))
            found.append(Setting("cpu.cfs_quota_us", number(limits.cpu_quota, 1)))
        else:
            found.append(Setting("cpu.max", f"{number(limits.cpu_quota, 2)} {PERIOD}"))
    if limits.cpu_weight is not None:
        if version == 1:
            found.append(Setting("cpu.shares", str(shares_of(limits.cpu_weight))))
        else:
            found.append(Setting("cpu.weight", str(limits.cpu_weight)))
    return tuple(found)


def documented_weight(shares: int) -> int:
    """cpu.weight for a document's cpu.shares, as runc 1.1 and crun count: [2, 262144] onto [1, 10000] in a line.

    runc has another curve since 2025 (shares_of()); engines that read a group's
    weight back expect what they know.
    """
    return 1 + (min(262_144, max(2, shares)) - 2) * 9999 // 262_142


def _shares(shares: int, version: int) -> Setting:
    """Raises InputError for what v1 would silently clamp (sched_group_set_shares(), MIN_SHARES and MAX_SHARES)."""
    if version == 2:
        return asked("cpu.weight", documented_weight(shares), "cpu.shares")
    for wrong, word, bound in ((shares < 2, "minimum", 2), (shares > 262_144, "maximum", 262_144)):
        if wrong:
            reason = f"the {word} allowed cpu-shares is {bound}"
            raise InputError("use", f"linux.resources.cpu.shares {shares}", reason, "use 2 to 262144")
    return asked("cpu.shares", shares, "cpu.shares")


def idle_and_shares(cpu: Cpu, version: int) -> list[Setting]:
    """The weight, before a group becomes idle and after it is idle no more: an idle one takes none (EINVAL)."""
    found = [_shares(cpu.shares, version)] if cpu.shares else []
    if cpu.idle is not None:
        # Linux before 5.15 has no idle groups: none is what 0 asks for.
        idle = asked("cpu.idle", cpu.idle, "cpu.idle", optional=cpu.idle == 0)
        found.insert(len(found) if cpu.idle else 0, idle)
    return found


def quota_words(quota: int | None, period: int | None) -> str:
    """cpu.max for a document's *quota* and *period* in µs; runc's reading of 0 (not said) and of less (none)."""
    return f"{quota if quota and quota > 0 else 'max'} {period or PERIOD}"


def burst_setting(burst: int, version: int) -> Setting:
    """Linux before 5.14 has no burst: none is what 0 asks for."""
    return asked("cpu.cfs_burst_us" if version == 1 else "cpu.max.burst", burst, "cpu.burst", optional=burst == 0)


def no_realtime(cpu: Cpu) -> None:
    """Raises HostError where a document asks v2 for what only v1 has."""
    for value, field in (
        (cpu.realtime_runtime, "cpu.realtimeRuntime"),
        (cpu.realtime_period, "cpu.realtimePeriod"),
    ):
        if value:
            raise not_here(field, "cgroup v2 has no realtime scheduling by group")


def resources(resources: Resources, version: int) -> tuple[Setting, ...]:
    """linux.resources.cpu for a new group, whose quota is none: period, quota, then the burst that it bounds.

    As in runc 0 is not said, but for burst and idle. Raises InputError (shares
    that v1 has not), HostError (realtime on v2).
    """
    cpu = resources.cpu
    found = idle_and_shares(cpu, version)
    if version == 2:
        no_realtime(cpu)
        if cpu.quota or cpu.period:
            field = "cpu.quota" if cpu.quota else "cpu.period"
            found.append(asked("cpu.max", quota_words(cpu.quota, cpu.period), field))
    else:
        for file, value, field in (
            ("cpu.cfs_period_us", cpu.period, "cpu.period"),
            ("cpu.cfs_quota_us", cpu.quota, "cpu.quota"),
            ("cpu.rt_period_us", cpu.realtime_period, "cpu.realtimePeriod"),
            ("cpu.rt_runtime_us", cpu.realtime_runtime, "cpu.realtimeRuntime"),
        ):
            if value:
                found.append(asked(file, value, field))
    if cpu.burst is not None:
        found.append(burst_setting(cpu.burst, version))
    return tuple(found)


CONTROLLER = Controller(
    "cpu", "cpu", V1, V2, settings, "divide_cpu", ("quota", "weight", "stat"), resources=resources
)
