"""cpuset: which CPUs and memory nodes. cpuset(7), Documentation/admin-guide/cgroup-v1/cpusets.rst, cgroup-v2.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, asked, limit, own
from nestrt.level.units import format_cpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Resources

V1 = (
    limit("cpuset.cpus", "cpus", "numbers", "intersect"),
    limit("cpuset.mems", "mems", "numbers", "intersect"),
    File("cpuset.effective_cpus", "effective_cpus", "numbers"),
    File("cpuset.effective_mems", "effective_mems", "numbers"),
    # What siblings of the guest root would feel, or the scheduler's domains: the launching level's.
    limit("cpuset.cpu_exclusive", "cpu_exclusive", "bool"),
    limit("cpuset.mem_exclusive", "mem_exclusive", "bool"),
    limit("cpuset.mem_hardwall", "mem_hardwall", "bool"),
    limit("cpuset.sched_load_balance", "load_balance", "bool"),
    limit("cpuset.sched_relax_domain_level", "relax_domain_level", "count"),
    own("cpuset.memory_migrate", "memory_migrate", "bool"),
    own("cpuset.memory_spread_page", "memory_spread_page", "bool"),
    own("cpuset.memory_spread_slab", "memory_spread_slab", "bool"),
    File("cpuset.memory_pressure", "memory_pressure", "count"),
)
V2 = (
    limit("cpuset.cpus", "cpus", "numbers", "intersect"),  # "": the parent's
    limit("cpuset.mems", "mems", "numbers", "intersect"),
    File("cpuset.cpus.effective", "effective_cpus", "numbers"),
    File("cpuset.mems.effective", "effective_mems", "numbers"),
    limit("cpuset.cpus.exclusive", "exclusive_cpus", "numbers", "intersect"),
    File("cpuset.cpus.exclusive.effective", "effective_exclusive_cpus", "numbers"),
    limit("cpuset.cpus.partition", "partition", "word"),
)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """CPUs and memory nodes; the names are the same in v1 and v2."""
    found: list[Setting] = []
    if limits.cpus is not None:
        found.append(Setting("cpuset.cpus", format_cpus(limits.cpus)))
    if limits.mems is not None:
        found.append(Setting("cpuset.mems", format_cpus(limits.mems)))
    return tuple(found)


def resources(resources: Resources, version: int) -> tuple[Setting, ...]:
    """linux.resources.cpu.cpus and .mems, in the document's own words; "" is not said."""
    cpu = resources.cpu
    found = (("cpuset.cpus", cpu.cpus, "cpu.cpus"), ("cpuset.mems", cpu.mems, "cpu.mems"))
    return tuple(asked(file, value, field) for file, value, field in found if value)


CONTROLLER = Controller(
    "cpuset",
    "cpuset",
    V1,
    V2,
    settings,
    "divide_cpu",
    ("cpus", "mems", "effective_cpus", "effective_mems"),
    fill=("cpuset.cpus", "cpuset.mems"),
    resources=resources,
)
