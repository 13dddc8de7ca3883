"""Device nodes of this level."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.devices import DeviceRule


def device_node(rule: DeviceRule) -> str:
    """The path in /dev of a rule's one device, as the kernel names it in sysfs; "" if there is none."""
    if rule.major is None or rule.minor is None or rule.type == "a":
        return ""
    kind = "block" if rule.type == "b" else "char"
    try:
        with open(f"/sys/dev/{kind}/{rule.major}:{rule.minor}/uevent", encoding="utf-8", errors="replace") as file:
            names = [line.strip()[8:] for line in file if line.startswith("DEVNAME=")]
    except OSError:
        return ""
    return f"/dev/{names[0]}" if names and os.path.exists(f"/dev/{names[0]}") else ""
