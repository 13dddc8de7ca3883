"""perf_event: perf_event_open(2) by group; it has no files. v2 has it in every group, named nowhere (cgroup-v2.rst)."""

from __future__ import annotations

from nestrt.controllers.base import Controller

CONTROLLER = Controller("perf_event", "perf_event", core=True)
