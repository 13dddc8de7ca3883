"""All controllers, found by the names that the kernel gives.

Nothing here is assumed to exist: callers pass the controllers that a hierarchy
has, and the file names that a group's directory lists.
"""

from __future__ import annotations

from nestrt.controllers import (
    cpu,
    cpuacct,
    cpuset,
    devices,
    freezer,
    hugetlb,
    io,
    memory,
    misc,
    net_cls,
    net_prio,
    perf_event,
    pids,
    rdma,
)
from nestrt.controllers.base import Controller, File, Setting, asked, limit, own
from nestrt.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Resources

CONTROLLERS: tuple[Controller, ...] = (
    cpuset.CONTROLLER,
    cpu.CONTROLLER,
    cpuacct.CONTROLLER,
    memory.CONTROLLER,
    pids.CONTROLLER,
    io.CONTROLLER,
    devices.CONTROLLER,
    freezer.CONTROLLER,
    hugetlb.CONTROLLER,
    net_cls.CONTROLLER,
    net_prio.CONTROLLER,
    perf_event.CONTROLLER,
    rdma.CONTROLLER,
    misc.CONTROLLER,
)
_BY_NAME = {name: item for item in CONTROLLERS for name in (item.name, item.v1_name)}

# What every group has, whatever its controllers: cgroup-v2.rst, "Core Interface Files", and
# cgroup-v1/cgroups.rst, section 1.6. v1 has no caps on the number and depth of groups.
CORE_V2: tuple[File, ...] = (
    limit("cgroup.max.depth", "max_depth", "count", "min"),
    limit("cgroup.max.descendants", "max_groups", "count", "min"),
    own("cgroup.procs", "processes", "keys"),
    own("cgroup.threads", "threads", "keys"),
    own("cgroup.subtree_control", "enabled", "keys"),
    own("cgroup.type", "type", "word"),
    own("cgroup.freeze", "freeze", "bool"),
    own("cgroup.kill", "kill", "bool"),
    own("cgroup.pressure", "pressure_enabled", "bool"),
    File("cgroup.controllers", "controllers", "keys"),
    File("cgroup.events", "events", "keys"),
    File("cgroup.stat", "stat", "keys"),
)
CORE_V1: tuple[File, ...] = (
    own("cgroup.procs", "processes", "keys"),
    own("tasks", "threads", "keys"),
    own("cgroup.clone_children", "clone_children", "bool"),
    own("notify_on_release", "notify", "bool"),
)


def canonical(name: str) -> str:
    """A controller's v2 name: ``io`` for ``blkio``; every other name as it is."""
    found = _BY_NAME.get(name)
    return found.name if found else name


def by_name(name: str) -> Controller:
    """The controller called *name* in v1 or v2.

    One that is not known here, being newer, gets a Controller without settings:
    its groups are made, the guest sees it, and NAME.max is locked if it is there.
    """
    found = _BY_NAME.get(name)
    if found is not None:
        return found
    files = (limit(f"{name}.max", "max", "keys"), limit(f"{name}.*.max", "max_each", "keys"))
    return Controller(name, name, files, files)


def for_hierarchy(controllers: Iterable[str], version: int) -> tuple[Controller, ...]:
    """The Controllers for the kernel's names that a hierarchy has, in this table's order, unknown ones last.

    v2's core ones (devices, freezer, cpuacct, perf_event), which the kernel does
    not name there, are not among them: core_controllers().
    """
    found = {canonical(name): by_name(name) for name in controllers}
    known = [item for item in CONTROLLERS if item.name in found]
    return (*known, *(item for name, item in found.items() if name not in _BY_NAME))


def core_controllers() -> tuple[Controller, ...]:
    """What every v2 tree does without naming it in cgroup.controllers."""
    return tuple(item for item in CONTROLLERS if item.core)


def settings_for(limits: Limits, controllers: Iterable[str], version: int) -> tuple[Setting, ...]:
    """Every write, in order, that puts *limits* on a group of a hierarchy with these *controllers*.

    Raises InputError where a controller cannot express them (swap without memory on v1).
    """
    found: list[Setting] = []
    for item in for_hierarchy(controllers, version):
        found += item.settings(limits, version)
    return tuple(found)


def resource_settings(resources: Resources, controllers: Iterable[str], version: int) -> tuple[Setting, ...]:
    """Every write, in order, that a document's *resources* ask of a new group of a hierarchy with these *controllers*.

    Device rules are not among them: oci_devices. On v2 ``unified`` comes last and
    so wins over what was converted. What no hierarchy has is in missing().

    Raises InputError for values that do not fit, HostError for what this version
    of a controller cannot honour; both name the document's field.
    """
    names = tuple(controllers)
    found: list[Setting] = []
    for item in for_hierarchy(names, version):
        found += item.resources(resources, version)
    if version == 2:
        found += unified_settings(resources, names)
    return tuple(found)


def unified_settings(resources: Resources, controllers: Iterable[str]) -> list[Setting]:
    """linux.resources.unified, line by line, for the v2 tree with these *controllers*.

    Raises InputError for a key that is no control file's name.
    """
    known = {*controllers, "cgroup"}
    found: list[Setting] = []
    for file, value in resources.unified:
        if _unified_controller(file) in known:
            for line in value.splitlines() or [""]:
                found.append(asked(file, line, f"unified[{file}]"))
    return found


def _unified_controller(file: str) -> str:
    what = f"linux.resources.unified[{file}]"
    remedy = "write a file of the v2 group, like memory.high"
    if "/" in file or "\0" in file:
        raise InputError("set", what, f'unified resource "{file}" must be a file name (no slashes)', remedy)
    controller, dot, parameter = file.partition(".")
    if not (controller and dot and parameter):
        reason = f'unified resource "{file}" must be in the form CONTROLLER.PARAMETER'
        raise InputError("set", what, reason, remedy)
    return controller


def missing(resources: Resources, controllers: Iterable[str], unified: Iterable[str] | None = None) -> list[str]:
    """The fields of a document that no hierarchy can honour ("linux.resources.network.classID"); a field is there once.

    *controllers* are those of all hierarchies together, *unified* those of the v2
    tree, None where there is none. A field that asks for no limit needs no controller.
    Raises InputError as resource_settings() does.
    """
    known = {canonical(name) for name in controllers}
    found: list[str] = []
    for item in CONTROLLERS:
        if item.name not in known:
            # v1's table has all that a document can say.
            for setting in item.resources(resources, 1):
                if setting.value not in ("-1", "max"):
                    found.append(setting.field)
    has = () if unified is None else (*unified, "cgroup")
    for file, _ in resources.unified:
        if _unified_controller(file) not in has:
            found.append(f"linux.resources.unified[{file}]")
    return list(dict.fromkeys(found))


def ignored(resources: Resources) -> list[str]:
    """The fields that are taken and do nothing, here as in runc since 1.0: for a warning."""
    memory = resources.memory
    given = ((memory.kernel, "kernel"), (memory.kernel_tcp, "kernelTCP"))
    return [f"linux.resources.memory.{word}" for value, word in given if value not in (None, 0, -1)]


def limit_files(version: int, controllers: Iterable[str]) -> tuple[str, ...]:
    """Names to lock in the guest root of a hierarchy with these *controllers*; some are patterns: expand()."""
    core = CORE_V2 if version == 2 else CORE_V1
    files = [*core, *(file for item in for_hierarchy(controllers, version) for file in item.files(version))]
    return tuple(file.name for file in files if file.limit)
