"""What the plan needs to know of systemd: its version, and where its units' groups lie."""

from __future__ import annotations

from nestrt.controllers.oci_devices import with_defaults
from nestrt.errors import NestrtError
from nestrt.kernel.sdbus import Bus, BusError, is_users
from nestrt.plan.systemd import parse_path, properties, settled, start_properties
from nestrt.probe.facts import read_hierarchies
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import Spec
    from nestrt.oci.resources import Resources
    from nestrt.plan.systemd_text import Property


@record
class SystemdUnit:
    """The unit *name* that a container is to be, its group *cgroup*, and what it is started with.

    *resources* are the document's as the group's own files are to have them: systemd rounds.
    """

    name: str
    cgroup: str
    properties: tuple[Property, ...]
    resources: Resources


def systemd_unit(spec: Spec, id: str) -> SystemdUnit:
    """The unit of the container *id*, by its document and the systemd that runs here.

    Raises InputError (cgroupsPath, annotations, resources), HostError (no systemd).
    """
    user = is_users()
    unit = parse_path(spec.cgroups_path, id, user)
    version, manager = ask(user)
    unified = is_unified()
    devices = with_defaults(spec.resources.devices, spec.devices)
    made = start_properties(unit, spec.resources, unified, version, spec.annotations)
    limits = properties(spec.resources, unified, version, devices)
    return SystemdUnit(unit.name, unit.group(manager), (*made, *limits), settled(spec.resources))


def update_properties(resources: Resources) -> tuple[Property, ...]:
    """The properties that an update to *resources* changes; devices stay. Raises InputError, HostError."""
    version, _ = ask(is_users())
    return properties(resources, is_unified(), version)


def is_unified() -> bool:
    """Whether systemd has v2 alone for limits: with v1 beside it, limits are v1's."""
    return all(hierarchy.version == 2 for hierarchy in read_hierarchies())


def ask(user: bool) -> tuple[int, str]:
    """systemd's version, and the group in which its slices begin. Raises HostError, NestrtError."""
    with Bus(user) as bus:
        try:
            return bus.version(), bus.manager_text("ControlGroup").rstrip("/") if user else ""
        except BusError as error:
            raise NestrtError("ask", "systemd", error.text, "see: systemctl status") from error
