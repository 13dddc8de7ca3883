"""misc: countable things such as SEV address space ids. Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/misc.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits

FILES = (
    limit("misc.max", "max", "keys", "min"),  # "sev_es 10"
    File("misc.current", "current", "keys"),
    File("misc.peak", "peak", "keys"),
    File("misc.events", "events", "keys"),
    File("misc.events.local", "events_local", "keys"),
)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """One line for each resource, alike in v1 and v2."""
    return tuple(Setting("misc.max", f"{resource} {count}") for resource, count in limits.misc)


CONTROLLER = Controller("misc", "misc", FILES, FILES, settings, "", ("current", "max"))
