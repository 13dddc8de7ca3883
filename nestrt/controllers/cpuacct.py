"""cpuacct: v1's count of CPU time; v2 has it in cpu.stat of every group, with no controller.

Documentation/admin-guide/cgroup-v1/cpuacct.rst.
"""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, own

V1 = (
    own("cpuacct.usage", "usage", "ns"),
    File("cpuacct.usage_user", "usage_user", "ns"),
    File("cpuacct.usage_sys", "usage_sys", "ns"),
    File("cpuacct.usage_percpu", "usage_percpu", "keys"),
    File("cpuacct.usage_percpu_user", "usage_percpu_user", "keys"),
    File("cpuacct.usage_percpu_sys", "usage_percpu_sys", "keys"),
    File("cpuacct.usage_all", "usage_all", "keys"),
    File("cpuacct.stat", "stat", "keys"),
)
V2 = (File("cpu.stat", "stat", "keys"),)

CONTROLLER = Controller("cpuacct", "cpuacct", V1, V2, usage=("usage", "stat"), core=True)
