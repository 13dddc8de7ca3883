"""pids: how many processes and threads. Documentation/admin-guide/cgroup-v1/pids.rst, cgroup-v2.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, asked, limit, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Resources

FILES = (
    limit("pids.max", "max", "count", "min"),
    File("pids.current", "current", "count"),
    File("pids.peak", "peak", "count"),
    File("pids.events", "events", "keys"),
    File("pids.events.local", "events_local", "keys"),
)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """pids.max; v1 spells no limit "max" too."""
    return () if limits.pids is None else (Setting("pids.max", number(limits.pids, 2)),)


def resources(resources: Resources, version: int) -> tuple[Setting, ...]:
    """linux.resources.pids.limit; 0 and less are no limit, as in runc 1.1."""
    count = resources.pids
    return () if count is None else (asked("pids.max", count if count > 0 else "max", "pids.limit"),)


CONTROLLER = Controller(
    "pids", "pids", FILES, FILES, settings, "divide_pids", ("current", "max", "peak"), resources=resources
)
