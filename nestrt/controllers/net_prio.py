"""net_prio: priorities by interface; v1 only. Documentation/admin-guide/cgroup-v1/net_prio.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, asked, limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Resources

V1 = (
    limit("net_prio.ifpriomap", "map", "keys"),
    File("net_prio.prioidx", "index", "count"),
)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """One write for each interface."""
    if version != 1:
        return ()
    return tuple(Setting("net_prio.ifpriomap", f"{name} {priority}") for name, priority in limits.net_prio)


def resources(resources: Resources, version: int) -> tuple[Setting, ...]:
    """linux.resources.network.priorities."""
    if version != 1:
        return ()
    return tuple(
        asked("net_prio.ifpriomap", f"{name} {priority}", "network.priorities") for name, priority in resources.net_prio
    )


CONTROLLER = Controller("net_prio", "net_prio", V1, (), settings, "", ("map",), resources=resources)
