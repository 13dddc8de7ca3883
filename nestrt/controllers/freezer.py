"""freezer: v1 stops a group by freezer.state, v2 by cgroup.freeze of its core.

Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst; cgroup-v2.rst, "Core Interface Files".
"""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, own

V1 = (
    own("freezer.state", "state", "word"),  # THAWED, FREEZING, FROZEN
    File("freezer.self_freezing", "self_freezing", "bool"),
    File("freezer.parent_freezing", "parent_freezing", "bool"),
)
V2 = (
    own("cgroup.freeze", "state", "bool"),
    File("cgroup.events", "events", "keys"),  # frozen 0|1, populated 0|1
)

CONTROLLER = Controller("freezer", "freezer", V1, V2, usage=("state",), core=True)
