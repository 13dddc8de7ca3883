"""A policy's [limits] on a bundle: its document's resources brought down to them. Pure.

The document's resources are the engine's, and change with ``update``; the policy's limits
hold beside them. Of two, the smaller is written to the limit group, so that there is one
limit, and what engines and guests read there is the true one.
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.bound import least, rdma_numbers
from nestrt.level.devices import DeviceRule as Allowed
from nestrt.level.devices import intersect
from nestrt.level.units import MAX, PERIOD, format_cpus, parse_cpus
from nestrt.oci.resources import BlockIo, Cpu, DeviceRule, Memory, Resources, ThrottleDevice, together
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits

LEAST_QUOTA = 1000  # µs: the kernel takes no less (Documentation/scheduler/sched-bwc.rst)
# Which file of "unified" would say again what a field of Limits has limited.
UNIFIED = {
    "memory.max": "memory",
    "memory.swap.max": "swap",
    "cpuset.cpus": "cpus",
    "cpuset.mems": "mems",
    "cpu.max": "cpu_quota",
    "cpu.weight": "cpu_weight",
    "cpu.weight.nice": "cpu_weight",
    "pids.max": "pids",
    "io.max": "io",
    "rdma.max": "rdma",
    "misc.max": "misc",
}
THROTTLES = (
    ("throttle_read_bps", "rbps"),
    ("throttle_write_bps", "wbps"),
    ("throttle_read_iops", "riops"),
    ("throttle_write_iops", "wiops"),
)


def within(limits: Limits, resources: Resources) -> Resources:
    """*resources* with nothing above *limits*; what they do not say, *limits* says. For create and for update.

    Device rules are those of the document only: device_rules() is for the whole list, the
    runtime's own defaults among them. What is within *limits* stays as it is.
    Raises InputError for CPUs or memory nodes that have
    nothing in common, swap limited where memory is not, and a file in ``unified`` that is limited.
    """
    misc = tuple(("misc.max", "\n".join(f"{name} {count}" for name, count in limits.misc)) for _ in limits.misc[:1])
    unified = tuple(pair for pair in resources.unified if pair not in misc)  # said here before
    for file, _ in unified:
        field = "hugetlb" if file.startswith("hugetlb.") else UNIFIED.get(file, "")
        if field and getattr(limits, field) not in (None, ()):
            raise InputError(
                "set",
                f"linux.resources.unified {file}",
                f"the host's policy limits {field}, and a file in unified would stand above it",
                "say it in the other fields of linux.resources: the smaller of both then holds",
            )
    hugepages = dict(resources.hugepages)
    for page, size in limits.hugetlb:
        hugepages[page] = _least(hugepages.get(page), size)
    priorities = dict(resources.net_prio)
    for name, priority in limits.net_prio:
        priorities[name] = _least(priorities.get(name), priority)
    return replace(
        resources,
        devices=device_rules(limits, resources.devices),
        memory=_memory(limits, resources.memory),
        cpu=_cpu(limits, resources.cpu),
        pids=least(_pids(resources.pids), limits.pids),
        block_io=_block_io(limits, resources.block_io),
        hugepages=tuple(hugepages.items()),
        rdma=_rdma(limits, resources.rdma),
        net_class=resources.net_class if limits.net_cls is None else limits.net_cls,
        net_prio=tuple(priorities.items()),
        unified=unified + misc,
    )


def device_rules(limits: Limits, rules: tuple[DeviceRule, ...]) -> tuple[DeviceRule, ...]:
    """*rules*, of which the last that matches decides and which begin with nothing allowed, within limits.devices.

    Each rule that allows is cut down to what both allow; those that deny stay. By the
    end exactly that is allowed which *rules* and the policy's list both allow.
    """
    if limits.devices is None:
        return rules
    found: list[DeviceRule] = []
    for rule in rules:
        if not rule.allow:
            found.append(rule)
            continue
        kinds = "bc" if rule.type == "a" else rule.type
        wanted = tuple(Allowed(kind, rule.major, rule.minor, rule.access) for kind in kinds)
        found += [DeviceRule(True, r.type, r.major, r.minor, r.access) for r in intersect(wanted, limits.devices)]
    return tuple(found)


def _least(one: int | None, other: int) -> int:
    found = least(one, other)
    return other if found is None else found


def _pids(value: int | None) -> int | None:
    """runc takes a limit of 0 and every negative one for none."""
    return MAX if value is not None and value <= 0 else value


def _memory(limits: Limits, memory: Memory) -> Memory:
    """Memory, and swap in the specification's way: both together."""
    if limits.memory is None and limits.swap is None:
        return memory
    given = memory.limit if memory.limit is None or memory.limit > 0 else MAX
    limit = least(given, limits.memory)
    alone: int | None = None
    if memory.swap is not None:
        # Both together cannot be less than memory; without a limit of memory there is no knowing swap's part.
        known = given is not None and given != MAX and memory.swap > 0
        alone = max(0, memory.swap - given) if known and given is not None else MAX
    alone = least(alone, limits.swap)
    if alone is None:
        return replace(memory, limit=limit)
    if alone == MAX:
        return replace(memory, limit=limit, swap=MAX)
    if limit is None or limit == MAX:
        raise InputError(
            "limit",
            "swap",
            "the host's policy limits it, and neither the policy nor linux.resources limits memory",
            "give a memory limit too: the specification counts both together",
        )
    return replace(memory, limit=limit, swap=together(limit, alone))


def _cpu(limits: Limits, cpu: Cpu) -> Cpu:
    changes: dict[str, object] = {}
    if limits.cpu_quota is not None and limits.cpu_quota != MAX:
        period = cpu.period or PERIOD
        most = max(LEAST_QUOTA, limits.cpu_quota * period // PERIOD)
        quota = most if cpu.quota is None or cpu.quota <= 0 else min(cpu.quota, most)
        changes.update(quota=quota, period=period)
        if cpu.burst is not None:
            changes["burst"] = min(cpu.burst, quota)  # the kernel takes no burst above the quota
    if limits.cpu_weight is not None:
        from nestrt.controllers.cpu import shares_of  # it imports math

        shares = shares_of(limits.cpu_weight)
        changes["shares"] = min(cpu.shares or shares, shares)
    for key, allowed in (("cpus", limits.cpus), ("mems", limits.mems)):
        text = getattr(cpu, key)
        if allowed is None:
            continue
        asked = parse_cpus(text, f"linux.resources.cpu.{key}") if text.strip() else allowed
        if not asked & allowed:
            raise InputError(
                "use",
                f"linux.resources.cpu.{key} {text}",
                f"the host's policy allows {format_cpus(allowed)}",
                f"choose from {format_cpus(allowed)}",
            )
        changes[key] = format_cpus(asked & allowed)
    return replace(cpu, **changes)


def _block_io(limits: Limits, block_io: BlockIo) -> BlockIo:
    changes: dict[str, object] = {}
    for field, key in THROTTLES:
        rates = {(throttle.major, throttle.minor): throttle.rate for throttle in getattr(block_io, field)}
        for limit in limits.io:
            rate = getattr(limit, key)
            if rate is None or rate == MAX:
                continue
            major, _, minor = limit.device.partition(":")
            node = (int(major), int(minor))
            # 0 is runc's way to take a throttle away
            rates[node] = min(rates.get(node) or rate, rate)
        changes[field] = tuple(ThrottleDevice(major, minor, rate) for (major, minor), rate in rates.items())
    return replace(block_io, **changes) if limits.io else block_io


def _rdma(
    limits: Limits, rdma: tuple[tuple[str, int | None, int | None], ...]
) -> tuple[tuple[str, int | None, int | None], ...]:
    found = {device: (handles, objects) for device, handles, objects in rdma}
    for device, text in limits.rdma:
        allowed = rdma_numbers(text)
        handles, objects = found.get(device, (None, None))
        pair = tuple(
            mine if (limit := allowed.get(key, MAX)) == MAX else _least(mine, limit)
            for mine, key in ((handles, "hca_handle"), (objects, "hca_object"))
        )
        found[device] = (pair[0], pair[1])
    return tuple((device, handles, objects) for device, (handles, objects) in found.items())
