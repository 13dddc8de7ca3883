"""net_cls: a traffic class on what a group sends; v1 only. Documentation/admin-guide/cgroup-v1/net_cls.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, Setting, limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits

V1 = (limit("net_cls.classid", "class", "count"),)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """The class id, 0xAAAABBBB for tc's AAAA:BBBB. New groups take their parent's."""
    return () if version != 1 or limits.net_cls is None else (Setting("net_cls.classid", str(limits.net_cls)),)


CONTROLLER = Controller("net_cls", "net_cls", V1, (), settings, "", ("class",))
