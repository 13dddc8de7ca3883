"""io, v1's blkio. Documentation/admin-guide/cgroup-v1/blkio-controller.rst, cgroup-v2.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, limit, number, own
from nestrt.level.units import MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits

# Limits.io's fields, and v1's file for each: "MAJOR:MINOR NUMBER", 0 for none.
THROTTLES = (
    ("rbps", "blkio.throttle.read_bps_device"),
    ("wbps", "blkio.throttle.write_bps_device"),
    ("riops", "blkio.throttle.read_iops_device"),
    ("wiops", "blkio.throttle.write_iops_device"),
)
V1 = (
    *(limit(name, f"max_{key}", "keys", "min") for key, name in THROTTLES),
    limit("blkio.weight", "weight", "weight"),
    limit("blkio.weight_device", "weight_device", "keys"),
    limit("blkio.leaf_weight", "leaf_weight", "weight"),
    limit("blkio.leaf_weight_device", "leaf_weight_device", "keys"),
    limit("blkio.bfq.weight", "bfq_weight", "weight"),
    limit("blkio.bfq.weight_device", "bfq_weight_device", "keys"),
    limit("blkio.prio.class", "priority_class", "word"),
    limit("blkio.latency", "latency", "keys"),
    File("blkio.throttle.io_service_bytes_recursive", "stat", "keys"),  # with the groups below, as v2's io.stat
    File("blkio.throttle.io_serviced_recursive", "operations", "keys"),
    File("blkio.throttle.io_service_bytes", "stat_local", "keys"),
    File("blkio.throttle.io_serviced", "operations_local", "keys"),
    File("blkio.bfq.io_service_bytes_recursive", "bfq_stat", "keys"),
    File("blkio.bfq.io_serviced_recursive", "bfq_operations", "keys"),
    File("blkio.bfq.io_service_bytes", "bfq_stat_local", "keys"),
    File("blkio.bfq.io_serviced", "bfq_operations_local", "keys"),
    own("blkio.reset_stats", "reset", "count"),
)
V2 = (
    limit("io.max", "max", "keys", "min"),  # "8:0 rbps=… wbps=… riops=… wiops=…"
    limit("io.weight", "weight", "keys"),
    limit("io.bfq.weight", "bfq_weight", "keys"),
    limit("io.latency", "latency", "keys"),
    limit("io.prio.class", "priority_class", "word"),
    File("io.stat", "stat", "keys"),
    own("io.pressure", "pressure", "keys"),
)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """One line of io.max for each device; v1: one write for each throttle."""
    found: list[Setting] = []
    for device in limits.io:
        given = [(key, name, getattr(device, key)) for key, name in THROTTLES]
        asked = [(key, name, value) for key, name, value in given if value is not None]
        if version == 1:
            found += [Setting(name, f"{device.device} {0 if value == MAX else value}") for _, name, value in asked]
        else:
            words = [f"{key}={number(value, 2)}" for key, _, value in asked]
            found.append(Setting("io.max", " ".join([device.device, *words])))
    return tuple(found)


CONTROLLER = Controller(
    "io",
    "blkio",
    V1,
    V2,
    settings,
    "divide_io",
    ("stat", "operations", "max", "max_rbps", "max_wbps", "max_riops", "max_wiops"),
)
