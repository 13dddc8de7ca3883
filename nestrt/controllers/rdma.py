"""rdma: handles and objects of RDMA devices. Documentation/admin-guide/cgroup-v1/rdma.rst, cgroup-v2.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, asked, limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Resources

FILES = (
    limit("rdma.max", "max", "keys", "min"),  # "mlx4_0 hca_handle=2 hca_object=max"
    File("rdma.current", "current", "keys"),
)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """One line for each device, alike in v1 and v2."""
    return tuple(Setting("rdma.max", f"{device} {words}") for device, words in limits.rdma)


def resources(resources: Resources, version: int) -> tuple[Setting, ...]:
    """linux.resources.rdma: one line for each device, of what is said about it."""
    found: list[Setting] = []
    for device, handles, objects in resources.rdma:
        given = (("hca_handle", handles), ("hca_object", objects))
        words = [f"{key}={value}" for key, value in given if value is not None]
        if words:
            found.append(asked("rdma.max", " ".join([device, *words]), f"rdma[{device}]"))
    return tuple(found)


CONTROLLER = Controller("rdma", "rdma", FILES, FILES, settings, "", ("current", "max"), resources=resources)
