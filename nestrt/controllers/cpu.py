"""cpu: quota and weight. Documentation/scheduler/sched-bwc.rst, sched-design-CFS.rst (v1), cgroup-v2.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, limit, number, own
from nestrt.level.units import PERIOD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits

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


CONTROLLER = Controller("cpu", "cpu", V1, V2, settings, "divide_cpu", ("quota", "weight", "stat"))
