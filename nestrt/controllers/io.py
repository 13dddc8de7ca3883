"""io, v1's blkio. Documentation/admin-guide/cgroup-v1/blkio-controller.rst, cgroup-v2.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, asked, limit, not_here, number, own
from nestrt.errors import InputError
from nestrt.level.units import MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import BlockIo, Resources

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


# THROTTLES' keys, BlockIo's fields and the document's words.
DOCUMENTED = (
    ("rbps", "throttle_read_bps", "throttleReadBpsDevice"),
    ("wbps", "throttle_write_bps", "throttleWriteBpsDevice"),
    ("riops", "throttle_read_iops", "throttleReadIOPSDevice"),
    ("wiops", "throttle_write_iops", "throttleWriteIOPSDevice"),
)


def _weight(value: int, field: str) -> int:
    if not 10 <= value <= 1000:
        raise InputError("use", f"linux.resources.blockIO.{field} {value}", "out of range", "use 10 to 1000")
    return value


def _weights(block: BlockIo, version: int) -> list[Setting]:
    """Weights: v1's CFQ files or else BFQ's, v2's BFQ file or else io.weight, whose scale is [1, 10000]."""
    given = [("", block.weight, block.leaf_weight, "")]
    given += [(f"{item.major}:{item.minor} ", item.weight, item.leaf_weight, "Device") for item in block.weight_device]
    found: list[Setting] = []
    for device, weight, leaf, which in given:
        field = f"weight{which}"
        if weight:
            _weight(weight, field)
            if version == 1:
                end = "_device" if which else ""
                names, values = (f"blkio.weight{end}", f"blkio.bfq.weight{end}"), (weight, weight)
            else:
                # runc's and crun's line, [10, 1000] onto [1, 10000].
                names, values = ("io.bfq.weight", "io.weight"), (weight, 1 + (weight - 10) * 9999 // 990)
            found.append(asked(names[0], f"{device}{values[0]}", f"blockIO.{field}", optional=True))
            found.append(asked(names[1], f"{device}{values[1]}", f"blockIO.{field}", unless=names[0]))
        if leaf:
            if version == 2:
                raise not_here(f"blockIO.leafWeight{which}", "cgroup v2 has no weight of a group against its children")
            name = "blkio.leaf_weight_device" if which else "blkio.leaf_weight"
            found.append(asked(name, f"{device}{_weight(leaf, 'leafWeight')}", f"blockIO.leafWeight{which}"))
    return found


def resources(resources: Resources, version: int) -> tuple[Setting, ...]:
    """linux.resources.blockIO: weights (0 is not said), then throttles (0 lifts one).

    Raises InputError (weight out of range), HostError (leaf weights on v2).
    """
    block = resources.block_io
    found = _weights(block, version)
    files = dict(THROTTLES)
    for key, name, word in DOCUMENTED:
        for item in getattr(block, name):
            device = f"{item.major}:{item.minor}"
            if version == 1:
                found.append(asked(files[key], f"{device} {item.rate}", f"blockIO.{word}"))
            else:
                found.append(asked("io.max", f"{device} {key}={item.rate or 'max'}", f"blockIO.{word}"))
    return tuple(found)


CONTROLLER = Controller(
    "io",
    "blkio",
    V1,
    V2,
    settings,
    "divide_io",
    ("stat", "operations", "max", "max_rbps", "max_wbps", "max_riops", "max_wiops"),
    resources=resources,
)
