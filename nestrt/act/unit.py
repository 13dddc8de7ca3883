"""The systemd unit of a bundle's container, as this host's systemd will make it."""

from __future__ import annotations

import os

from nestrt.act.scope import Manager
from nestrt.kernel.sdbus import is_users
from nestrt.plan.systemd import parse_path, properties, settled, start_properties
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import Spec
    from nestrt.oci.resources import DeviceRule
    from nestrt.plan.systemd_text import Property


@record
class Scope:
    """*name* of the unit, its *cgroup* below the root that systemd sees, its *properties*, and the document
    with the values that systemd makes of it."""

    name: str
    cgroup: str
    properties: tuple[Property, ...]
    spec: Spec


def scope_of(spec: Spec, id: str, rules: tuple[DeviceRule, ...]) -> Scope:
    """Raises InputError (cgroupsPath, annotations), HostError (no systemd to ask)."""
    user = is_users()
    unit = parse_path(spec.cgroups_path, id, user)
    unified = not os.path.exists("/sys/fs/cgroup/systemd")
    with Manager(user) as manager:
        version = manager.version()
        group = unit.group(manager.group() if user else "")
    values = start_properties(unit, spec.resources, unified, version, spec.annotations)
    values += properties(spec.resources, unified, version, rules)
    return Scope(unit.name, group, values, replace(spec, resources=settled(spec.resources)))
