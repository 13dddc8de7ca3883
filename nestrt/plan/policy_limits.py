"""A bundle's resources as the Limits of its policy: what is checked against the level, marked and shown. Pure."""

from __future__ import annotations

from nestrt.controllers import oci_devices
from nestrt.level.limits import IoLimit, Limits
from nestrt.level.policy import Policy
from nestrt.level.units import MAX, PERIOD, parse_cpus
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.devices import DeviceRule as LevelRule
    from nestrt.oci.model import Spec
    from nestrt.oci.resources import BlockIo, DeviceRule, Memory, Resources

THROTTLES = (
    ("throttle_read_bps", "rbps"),
    ("throttle_write_bps", "wbps"),
    ("throttle_read_iops", "riops"),
    ("throttle_write_iops", "wiops"),
)


def _swap(memory: Memory) -> int | None:
    """Swap alone, from v1's sum of both."""
    if memory.swap is None:
        return None
    return MAX if memory.swap < 0 or memory.limit is None else max(0, memory.swap - memory.limit)


def _io(block: BlockIo) -> tuple[IoLimit, ...]:
    found: dict[str, dict[str, int]] = {}
    for field, key in THROTTLES:
        for entry in getattr(block, field):
            found.setdefault(f"{entry.major}:{entry.minor}", {})[key] = entry.rate or MAX
    return tuple(IoLimit(device, **rates) for device, rates in found.items())


def limits_of(resources: Resources, rules: tuple[DeviceRule, ...]) -> Limits:
    """*resources* in a policy's words; *rules* are the whole list of device rules that will hold.

    What has no word there (shares, unified) stands on the limit group all the same.
    """
    cpu, memory = resources.cpu, resources.memory
    quota = None
    if cpu.quota is not None:
        quota = MAX if cpu.quota <= 0 else cpu.quota * PERIOD // (cpu.period or PERIOD)
    pids = resources.pids
    return Limits(
        memory=None if not memory.limit else MAX if memory.limit < 0 else memory.limit,
        swap=_swap(memory) if memory.limit else None,
        cpus=parse_cpus(cpu.cpus) if cpu.cpus else None,
        mems=parse_cpus(cpu.mems) if cpu.mems else None,
        cpu_quota=quota,
        pids=None if pids is None else MAX if pids <= 0 else pids,
        io=_io(resources.block_io),
        devices=oci_devices.as_allow_list(rules),
        hugetlb=resources.hugepages,
    )


def for_bundle(
    policy: Policy, spec: Spec, held: tuple[LevelRule, ...] | None = None
) -> tuple[Policy, Spec, tuple[DeviceRule, ...]]:
    """*policy* with the document's limits and ids, the document within the policy's limits, and its device rules.

    Of two limits the smaller holds. The user namespace, the capabilities and no_new_privs are the
    document's own affair. *held* are this level's own devices, if it has not all. Raises InputError
    where nothing satisfies both.
    """
    limits = policy.limits
    if limits != Limits():
        from nestrt.plan.narrow import device_rules, within  # not for a policy that limits nothing

        spec = replace(spec, resources=within(limits, spec.resources))
        rules = device_rules(limits, oci_devices.with_defaults(spec.resources.devices, spec.devices, held))
    else:
        rules = oci_devices.with_defaults(spec.resources.devices, spec.devices, held)
    found = replace(
        policy,
        limits=limits_of(spec.resources, rules),
        user_namespace="map" if spec.uid_mappings else "none",
        uid_map=spec.uid_mappings,
        gid_map=spec.gid_mappings,
    )
    return found, spec, rules
