"""devices: v1's allow-list by files, v2's by a program on the group (device_program.py).

Documentation/admin-guide/cgroup-v1/devices.rst; cgroup-v2.rst, "Device controller".
"""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting
from nestrt.level.devices import DeviceRule, format_rule, questions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits

V1 = (
    File("devices.allow", "allow", "rules", limit=True, writable=True),
    File("devices.deny", "deny", "rules", limit=True, writable=True),
    File("devices.list", "max", "rules", combine="intersect"),
)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """v1: deny all, then allow each rule. () for v2, where a program says the same.

    The kernel refuses "a" (EINVAL) in a group that has children, so these come
    before the guest root is made; it begins with a copy of its parent's rules.
    """
    if version != 1 or limits.devices is None:
        return ()
    if any(
        rule.type == "a" and (rule.major, rule.minor) == (None, None) and rule.access == "rwm"
        for rule in limits.devices
    ):
        return (Setting("devices.allow", "a"),)
    found = [Setting("devices.deny", "a")]
    for rule in limits.devices:
        # "a" with numbers or less than rwm: the kernel reads the letter alone and would allow all.
        for kind in "bc" if rule.type == "a" else rule.type:
            # The parent must have the whole of a line in one rule of its own, and may have mknod
            # from a wider rule than open: two lines, which the kernel makes one again. Both stay
            # even where a wider rule has the m: a runtime inside writes "c 1:3 rwm" in one line.
            for access in questions(rule.access):
                found.append(Setting("devices.allow", format_rule(DeviceRule(kind, rule.major, rule.minor, access))))
    return tuple(found)


CONTROLLER = Controller("devices", "devices", V1, (), settings, "divide_devices", ("max",), core=True)
