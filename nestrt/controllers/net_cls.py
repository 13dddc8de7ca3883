"""net_cls: a traffic class on what a group sends; v1 only. Documentation/admin-guide/cgroup-v1/net_cls.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, Setting, asked, limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Resources

V1 = (limit("net_cls.classid", "class", "count"),)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """The class id, 0xAAAABBBB for tc's AAAA:BBBB. New groups take their parent's."""
    return () if version != 1 or limits.net_cls is None else (Setting("net_cls.classid", str(limits.net_cls)),)


def resources(resources: Resources, version: int) -> tuple[Setting, ...]:
    """linux.resources.network.classID; 0 is no class, which a new group has where its parent has none."""
    if version != 1 or not resources.net_class:
        return ()
    return (asked("net_cls.classid", resources.net_class, "network.classID"),)


CONTROLLER = Controller("net_cls", "net_cls", V1, (), settings, "", ("class",), resources=resources)
