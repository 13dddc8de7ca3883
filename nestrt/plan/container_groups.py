"""The groups of a bundle's container: the engine's path is the limit group. Values in, Steps out."""

from __future__ import annotations

from nestrt.controllers import oci_devices
from nestrt.controllers.table import missing, resource_settings
from nestrt.errors import HostError
from nestrt.plan.facts import Facts, Hierarchy
from nestrt.plan.groups import group_steps, parents
from nestrt.plan.host_steps import AttachDeviceProgram, FillCpuset, MakeGroup, SetFile
from nestrt.plan.ids import Identity
from nestrt.plan.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.resources import DeviceRule
    from nestrt.plan.bundle import Bundle


def device_steps(rules: tuple[DeviceRule, ...], facts: Facts, h: Hierarchy, group: str) -> list[Step]:
    """The ordered device *rules* of a group: v1's files, else a program; not from inside a user namespace."""
    on_v1 = any("devices" in other.controllers and other.version == 1 for other in facts.hierarchies)
    if facts.in_userns or on_v1 != (h.version == 1) or (on_v1 and "devices" not in h.controllers):
        return []
    if on_v1:
        return [
            SetFile(h, group, setting.file, setting.value, setting.optional, setting.field)
            for setting in oci_devices.v1_settings(rules)
        ]
    return [AttachDeviceProgram(h, group, tuple(map(oci_devices.text, rules)), oci_devices.program(rules))]


def resource_steps(bundle: Bundle, facts: Facts, h: Hierarchy, rules: tuple[DeviceRule, ...]) -> list[Step]:
    """The document's resources and the ordered device *rules* on the limit group in one hierarchy."""
    steps: list[Step] = [
        SetFile(h, bundle.cgroup, setting.file, setting.value, setting.optional, setting.field, setting.unless)
        for setting in resource_settings(bundle.spec.resources, h.controllers, h.version)
    ]
    return steps + device_steps(rules, facts, h, bundle.cgroup)


def require_controllers(bundle: Bundle, facts: Facts) -> None:
    """Raises HostError for a resource whose controller no hierarchy of this level has."""
    unified = next((h.controllers for h in facts.hierarchies if h.version == 2), None)
    absent = missing(bundle.spec.resources, {name for h in facts.hierarchies for name in h.controllers}, unified)
    if absent:
        raise HostError(
            "limit",
            f"container {bundle.id}",
            f"no cgroup hierarchy here has the controller for {', '.join(absent)}",
            "take it out of linux.resources, or boot with that controller",
        )


def container_groups(bundle: Bundle, facts: Facts, generation: str, who: Identity, created: int) -> list[Step]:
    """Everything from the groups above the limit group down to where the first process begins.

    Without a policy that is the limit group itself, as under runc. Raises HostError for a
    resource whose controller no hierarchy of this level has.
    """
    if not bundle.cgroup:
        return []
    require_controllers(bundle, facts)
    if bundle.request is not None:
        rules = bundle.rules
        more = lambda h: resource_steps(bundle, facts, h, rules)  # noqa: E731
        return group_steps(bundle.request, facts, generation, who, created, more)
    steps: list[Step] = []
    for h in facts.hierarchies:
        steps += parents(h, bundle.cgroup, shared=True)
        steps.append(MakeGroup(h, bundle.cgroup, exist_ok=True))
        if h.version == 1 and "cpuset" in h.controllers:
            steps.append(FillCpuset(h, bundle.cgroup, inherit=False))
        steps += resource_steps(bundle, facts, h, bundle.rules)
    return steps
