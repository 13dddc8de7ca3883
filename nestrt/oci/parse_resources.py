"""``linux.resources`` of a bundle's config.json, which is also what ``update --resources`` reads.

Source: runtime-spec, config-linux.md, "Control groups".
"""

from __future__ import annotations

from nestrt.oci.getter import (
    INT64,
    UINT16,
    UINT32,
    UINT64,
    Wrong,
    boolean,
    integer,
    list_of,
    one_of,
    pairs_of,
    read,
    record_of,
    required_text,
    short,
    text,
)
from nestrt.oci.resources import BlockIo, Cpu, DeviceRule, Memory, Resources, ThrottleDevice, WeightDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

int64 = integer(-INT64 - 1, INT64)
uint16 = integer(0, UINT16)
uint32 = integer(0, UINT32)
uint64 = integer(0, UINT64)
HUGE_UNITS = ("KB", "MB", "GB")


def _any_number(value: Any) -> int | None:
    """A device number of a rule: -1 is any."""
    found = integer(-1, UINT32)(value)
    return None if found == -1 else found


def _access(value: Any) -> str:
    found = text(value)
    if not found or found.strip("rwm"):
        raise Wrong(f"{short(found)} is no access", 'write one or more of "rwm"')
    return found


def _device_rule(value: Any) -> DeviceRule:
    found = read(DEVICE_RULE, value, ("access",))
    return DeviceRule(**{"allow": False, **found})


def _page_size(value: Any) -> str:
    """It becomes a part of a file's name: hugetlb.2MB.limit_in_bytes."""
    found = text(value)
    if not (found[:-2].isascii() and found[:-2].isdigit() and found[-2:] in HUGE_UNITS):
        raise Wrong(f"{short(found)} is no page size", 'write it like "2MB" or "1GB"')
    return found


def _hugepage(value: Any) -> tuple[str, int]:
    found = read(HUGEPAGE, value, ("pageSize", "limit"))
    return found["size"], found["limit"]


def _rdma(value: Any) -> tuple[tuple[str, int | None, int | None], ...]:
    found = pairs_of(lambda entry: read(RDMA, entry))(value)
    return tuple((device, entry.get("handles"), entry.get("objects")) for device, entry in found)


def _priority(value: Any) -> tuple[str, int]:
    found = read(PRIORITY, value, ("name", "priority"))
    return found["name"], found["priority"]


def _unified(value: Any) -> tuple[tuple[str, str], ...]:
    found: tuple[tuple[str, str], ...] = pairs_of(text)(value)
    for file, _ in found:
        controller, dot, name = file.partition(".")
        if "/" in file or not (controller and dot and name):
            mistake = Wrong(f"{short(file)} is no file of cgroup v2", 'write it like "memory.high"')
            mistake.at(file)
            raise mistake
    return found


def _weight(low: int, high: int) -> Any:
    """A weight from *low* to *high*; 0, which engines write for none, is let through."""
    within = integer(low, high)

    def parse(value: Any) -> int:
        return 0 if value == 0 and type(value) is int else within(value)

    return parse


def parse_resources(value: Any) -> Resources:
    """``linux.resources``. Raises Wrong."""
    found = read(RESOURCES, value)
    # pids and network are objects in the document, and plain fields in the record
    found.update(found.pop("pids_", {}))
    found.update(found.pop("network_", {}))
    return Resources(**found)


DEVICE_RULE = {
    "allow": ("allow", boolean),
    "type": ("type", lambda value: one_of(("a", "b", "c"), "type of a device rule")(value) if value != "" else "a"),
    "major": ("major", _any_number),
    "minor": ("minor", _any_number),
    "access": ("access", _access),
}
MEMORY = {
    "limit": ("limit", int64),
    "reservation": ("reservation", int64),
    "swap": ("swap", int64),
    "kernel": ("kernel", int64),
    "kernelTCP": ("kernel_tcp", int64),
    "swappiness": ("swappiness", integer(0, 100)),
    "disableOOMKiller": ("disable_oom_killer", boolean),
    "useHierarchy": ("use_hierarchy", boolean),
    "checkBeforeUpdate": ("check_before_update", boolean),
}
CPU = {
    "shares": ("shares", uint64),
    "quota": ("quota", int64),
    "burst": ("burst", uint64),
    "period": ("period", uint64),
    "realtimeRuntime": ("realtime_runtime", int64),
    "realtimePeriod": ("realtime_period", uint64),
    "cpus": ("cpus", text),
    "mems": ("mems", text),
    "idle": ("idle", int64),
}
WEIGHT = _weight(10, 1000)
# dev_t has 12 bits for the major number and 20 for the minor: include/linux/kdev_t.h
NUMBERS = {"major": ("major", integer(0, 2**12 - 1)), "minor": ("minor", integer(0, 2**20 - 1))}
WEIGHT_DEVICE = {**NUMBERS, "weight": ("weight", WEIGHT), "leafWeight": ("leaf_weight", WEIGHT)}
THROTTLE = {**NUMBERS, "rate": ("rate", uint64)}
throttles = list_of(record_of(ThrottleDevice, THROTTLE, ("major", "minor", "rate")))
BLOCK_IO = {
    "weight": ("weight", WEIGHT),
    "leafWeight": ("leaf_weight", WEIGHT),
    "weightDevice": ("weight_device", list_of(record_of(WeightDevice, WEIGHT_DEVICE, ("major", "minor")))),
    "throttleReadBpsDevice": ("throttle_read_bps", throttles),
    "throttleWriteBpsDevice": ("throttle_write_bps", throttles),
    "throttleReadIOPSDevice": ("throttle_read_iops", throttles),
    "throttleWriteIOPSDevice": ("throttle_write_iops", throttles),
}
HUGEPAGE = {"pageSize": ("size", _page_size), "limit": ("limit", uint64)}
RDMA = {"hcaHandles": ("handles", uint32), "hcaObjects": ("objects", uint32)}
PRIORITY = {"name": ("name", required_text), "priority": ("priority", uint32)}
PIDS = {"limit": ("pids", int64)}
NETWORK = {"classID": ("net_class", uint32), "priorities": ("net_prio", list_of(_priority))}
RESOURCES = {
    "devices": ("devices", list_of(_device_rule)),
    "memory": ("memory", record_of(Memory, MEMORY)),
    "cpu": ("cpu", record_of(Cpu, CPU)),
    "pids": ("pids_", lambda value: read(PIDS, value)),
    "blockIO": ("block_io", record_of(BlockIo, BLOCK_IO)),
    "hugepageLimits": ("hugepages", list_of(_hugepage)),
    "network": ("network_", lambda value: read(NETWORK, value)),
    "rdma": ("rdma", _rdma),
    "unified": ("unified", _unified),
}
TABLES = (
    RESOURCES, DEVICE_RULE, MEMORY, CPU, WEIGHT_DEVICE, THROTTLE, BLOCK_IO, HUGEPAGE, RDMA, PRIORITY, PIDS, NETWORK,
)  # fmt: skip
