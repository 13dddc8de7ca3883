"""linux.resources of a bundle, and of ``update``: what a limit group is to have.

None is what the document does not say. -1 in a limit means none ("max"), as in runc.
v1's words are the specification's; the controllers turn them into v2's.

Source: runtime-spec, config-linux.md, "Control groups"; config-linux.md, "Unified".
"""

from __future__ import annotations

from nestrt.record import record

LARGEST = 2**63 - 1  # of the specification's int64


def together(memory: int, swap: int) -> int:
    """Limits of memory and of swap alone as the specification counts swap; of what it cannot say, the most it can."""
    return min(memory + swap, LARGEST)


@record
class DeviceRule:
    """One entry of ``devices``, in order: the last that matches decides. *type* a, b or c; None is any number."""

    allow: bool
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


@record
class Memory:
    """Bytes. *swap* is memory and swap together, as v1 counts; *swappiness* 0 to 100."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool | None = None
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


@record
class Cpu:
    """*shares* 2 to 262144; *quota*, *period*, *burst* and the realtime ones in µs; *cpus*, *mems* as lists."""

    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str = ""
    mems: str = ""
    idle: int | None = None


@record
class WeightDevice:
    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


@record
class ThrottleDevice:
    """*rate* in bytes or operations a second."""

    major: int
    minor: int
    rate: int


@record
class BlockIo:
    """*weight* 10 to 1000."""

    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: tuple[WeightDevice, ...] = ()
    throttle_read_bps: tuple[ThrottleDevice, ...] = ()
    throttle_write_bps: tuple[ThrottleDevice, ...] = ()
    throttle_read_iops: tuple[ThrottleDevice, ...] = ()
    throttle_write_iops: tuple[ThrottleDevice, ...] = ()


@record
class Resources:
    """*devices* () where not said. *hugepages* are (page size, bytes), *rdma* (device, handles, objects),
    *net_prio* (interface, priority), *unified* (file, value): pairs in the document's order."""

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory = Memory()
    cpu: Cpu = Cpu()
    pids: int | None = None
    block_io: BlockIo = BlockIo()
    hugepages: tuple[tuple[str, int], ...] = ()
    rdma: tuple[tuple[str, int | None, int | None], ...] = ()
    net_class: int | None = None
    net_prio: tuple[tuple[str, int], ...] = ()
    unified: tuple[tuple[str, str], ...] = ()
