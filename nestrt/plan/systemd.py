"""The systemd driver's words: unit names, where a unit's group lies, and limits as unit properties. Pure.

A container under the systemd driver is a transient unit, a scope with ``Delegate=yes``. Limits are
properties of it because systemd writes what it knows of a unit again whenever it likes, on a
daemon-reload for one; what only stands in files is then lost.

Source: runc's and opencontainers/cgroups' systemd managers, whose choices engines rely on;
systemd.resource-control(5); org.freedesktop.systemd1(5); Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from nestrt.controllers.cpu import documented_weight
from nestrt.controllers.memory import documented_swap
from nestrt.errors import InputError
from nestrt.plan.systemd_text import Property, annotated
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.resources import Cpu, DeviceRule, Memory, Resources

INFINITY = 2**64 - 1
PERIOD = 100_000  # the kernel's, in µs: sched-bwc.rst
QUOTA_STEP = 10_000  # systemd keeps a quota as whole percents of a CPU
SLICE, SCOPE = ".slice", ".scope"
NAME_MAX = 255  # UNIT_NAME_MAX, src/basic/unit-name.h, with its NUL 256
NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.-\\@")
FORM = 'cgroupsPath is "slice:prefix:name" with the systemd driver, such as "system.slice:nestrt:web"'
# The systemd that first has it.
CPU_PERIOD, DEVICES_BY_NUMBER, CPUSET, CPU_IDLE, OOM_POLICY, COLLECT_MODE = 242, 240, 244, 252, 253, 236

BYTES = {
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.max": "MemoryMax",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
}
CPUSETS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}
OOM_POLICIES = {"0": "continue", "1": "kill"}


@record
class Unit:
    """A container's unit: *name* with its suffix, the *slice* it lies in, *title* for its description."""

    name: str
    slice: str
    title: str

    @property
    def is_slice(self) -> bool:
        return self.name.endswith(SLICE)

    def group(self, manager: str = "") -> str:
        """The unit's group, below the root that systemd's manager sees.

        *manager* is the manager's own ControlGroup property where that is not "/": a user's
        manager makes its slices below it. Raises InputError for a slice that is no name of one.
        """
        return f"{manager.rstrip('/')}{expand_slice(self.slice).rstrip('/')}/{self.name}"


def parse_path(text: str, container: str, rootless: bool = False) -> Unit:
    """The unit that ``cgroupsPath`` names: "slice:prefix:name", or "" for one after the container's id.

    A *name* that ends in ``.slice`` is the unit itself, else it is ``prefix-name.scope``. An empty
    slice is system.slice, and user.slice for a user without root.

    Raises InputError: not of three parts, or no names of units.
    """
    parts = text.split(":") if text else ["", "nestrt", container]
    if len(parts) != 3:
        raise InputError(
            "use",
            f'cgroupsPath "{text}"',
            f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "{text}" instead',
            FORM,
        )
    slice_, prefix, name = parts
    unit = Unit(unit_name(prefix, name), slice_ or ("user.slice" if rootless else "system.slice"), name)
    expand_slice(unit.slice)
    if unit.is_slice:
        expand_slice(unit.name)
    return unit


def unit_name(prefix: str, name: str) -> str:
    """The unit's whole name. Raises InputError: letters that systemd does not take, or too long."""
    unit = name if name.endswith(SLICE) else f"{prefix}-{name}{SCOPE}"
    if not name or len(unit) > NAME_MAX or not NAME_LETTERS.issuperset(unit):
        reason = f"longer than {NAME_MAX} letters" if len(unit) > NAME_MAX else "not a valid unit name"
        raise InputError("use", f"unit {unit}", reason, "unit names have letters, digits and :_.-\\@ (systemd.unit(5))")
    return unit


def expand_slice(name: str) -> str:
    """Where a slice lies: "a-b.slice" is /a.slice/a-b.slice, "-.slice" is "/".

    Source: systemd.slice(5). Raises InputError.
    """
    stem = name.removesuffix(SLICE)
    if stem == "-" and name.endswith(SLICE):
        return "/"
    parts = stem.split("-")
    if stem == name or not all(parts) or not NAME_LETTERS.issuperset(name) or len(name) > NAME_MAX:
        raise InputError("use", f"slice {name}", f"invalid slice name: {name}", FORM)
    return "".join(f"/{'-'.join(parts[: count + 1])}{SLICE}" for count in range(len(parts)))


def start_properties(
    unit: Unit,
    resources: Resources,
    unified: bool,
    version: int,
    annotations: tuple[tuple[str, str], ...] = (),
) -> tuple[Property, ...]:
    """What the unit is made with, but its limits (see ``properties``) and its processes.

    *unified* is a host of v2 alone, *version* systemd's. Raises InputError (a bad annotation or value).
    """
    found = [Property("Description", "s", f"nestrt container {unit.title}")]
    if unit.is_slice:
        found.append(Property("Wants", "as", (unit.slice,)))
    else:
        found += [Property("Slice", "s", unit.slice), Property("Delegate", "b", True)]
    accounting = ("MemoryAccounting", "CPUAccounting", "IOAccounting" if unified else "BlockIOAccounting")
    found += [Property(name, "b", True) for name in (*accounting, "TasksAccounting")]
    found.append(Property("DefaultDependencies", "b", False))
    if version >= COLLECT_MODE:
        # A unit that failed is forgotten without ResetFailedUnit: the name is free again.
        found.append(Property("CollectMode", "s", "inactive-or-failed"))
    found += annotated(annotations)
    group = dict(resources.unified).get("memory.oom.group", "").strip()
    if unified and version >= OOM_POLICY and group in OOM_POLICIES:
        # Not to be changed later: systemd refuses it for a scope that runs.
        found.append(Property("OOMPolicy", "s", OOM_POLICIES[group]))
    return tuple(found)


def properties(
    resources: Resources, unified: bool, version: int, devices: tuple[DeviceRule, ...] | None = None
) -> tuple[Property, ...]:
    """The limits of *resources* as unit properties; what has none is left to the files of the group.

    *devices* is the whole list of rules, the runtime's own after the document's; None leaves devices
    alone, as an update does. *unified* is a host of v2 alone, *version* systemd's.

    Raises InputError for a value that is none.
    """
    cpu, weight = resources.cpu, resources.block_io.weight
    found = [] if devices is None else device_properties(devices, unified, version)
    found += _memory(resources.memory, unified)
    found += _weight(cpu, unified, version)
    found += quota_properties(cpu.quota or 0, cpu.period or 0, version)
    if weight:
        # The line from 10-1000 to 1-10000 that runc and crun draw.
        scaled = 1 + (weight - 10) * 9999 // 990
        found.append(Property("IOWeight", "t", scaled) if unified else Property("BlockIOWeight", "t", weight))
    if resources.pids is not None:
        found.append(_tasks(resources.pids))
    for name, text in (("AllowedCPUs", cpu.cpus), ("AllowedMemoryNodes", cpu.mems)):
        if text and version >= CPUSET:
            found.append(Property(name, "ay", bits(text)))
    if unified:
        found += unified_properties(resources.unified, version)
    return tuple(found)


def settled(resources: Resources) -> Resources:
    """*resources* with the quota that systemd makes of it: what the group's own files are to have."""
    quota, period = resources.cpu.quota or 0, resources.cpu.period or PERIOD
    if quota <= 0:
        return resources
    return replace(resources, cpu=replace(resources.cpu, quota=_per_second(quota, period) * period // 1_000_000))


def quota_properties(quota: int, period: int, version: int) -> list[Property]:
    """CPUQuotaPeriodUSec and CPUQuotaPerSecUSec for µs of *quota* in *period*; 0 is not said, -1 no limit."""
    found = []
    if period and version >= CPU_PERIOD:
        found.append(Property("CPUQuotaPeriodUSec", "t", period))
    if quota or period:
        most = _per_second(quota, period or PERIOD) if quota > 0 else INFINITY
        found.append(Property("CPUQuotaPerSecUSec", "t", most))
    return found


def device_properties(rules: tuple[DeviceRule, ...], unified: bool, version: int) -> list[Property]:
    """DevicePolicy and DeviceAllow for *rules*, in which the last that matches decides.

    systemd has a list of what is allowed, without "any major" beside one minor. A list that says more
    is the group's own to keep. On v2 that is the runtime's device program, which stays when systemd
    writes its own: there systemd allows all. v1 has one list for both, so that systemd's must not
    allow more: there it denies what it cannot say. Raises InputError as oci_devices.effective() does.
    """
    from nestrt.controllers.oci_devices import as_allow_list
    from nestrt.level.devices import EVERYTHING

    listed = as_allow_list(rules)
    clear = Property("DeviceAllow", "a(ss)", ())  # takes away what the unit had
    paths = [_device_path(rule.type, rule.major, rule.minor, version) for rule in listed or ()]
    if listed == EVERYTHING or (unified and (listed is None or not all(paths))):
        return [clear, Property("DevicePolicy", "s", "auto")]
    allowed = tuple((path, rule.access) for path, rule in zip(paths, listed or (), strict=True) if path)
    return [clear, Property("DevicePolicy", "s", "strict"), Property("DeviceAllow", "a(ss)", allowed)]


def _device_path(kind: str, major: int | None, minor: int | None, version: int) -> str:
    """What systemd calls these devices, "" for what it has no word for: systemd.resource-control(5), DeviceAllow."""
    word = "block" if kind == "b" else "char"
    if major is not None and minor is not None:
        return f"/dev/{word}/{major}:{minor}"
    if major is not None:
        return f"{word}-{major}" if version >= DEVICES_BY_NUMBER else ""
    return f"{word}-*" if minor is None else ""


def unified_properties(unified: tuple[tuple[str, str], ...], version: int) -> list[Property]:
    """The properties for files of v2; a file that systemd has no word for is left out. Raises InputError."""
    found: list[Property] = []
    texts = {key: value.strip() for key, value in unified}
    idle = texts.get("cpu.idle") == "1" and version >= CPU_IDLE
    for key, text in texts.items():
        if "/" in key or key.find(".") <= 0:
            reason = "must be a file name (no slashes)" if "/" in key else "must be in the form CONTROLLER.PARAMETER"
            raise InputError("set", f"unified resource {key}", reason, "the files are those of cgroup-v2.rst")
        if key == "cpu.idle" and idle:
            found.append(Property("CPUWeight", "t", 0))
        elif key == "cpu.weight" and not idle:
            found.append(Property("CPUWeight", "t", _number(key, text)))
        elif key == "cpu.max":
            parts = text.split()
            if len(parts) not in (1, 2):
                raise _no_value(key, text)
            quota = 0 if parts[0] == "max" else _number(key, parts[0])
            found += quota_properties(quota, _number(key, parts[1]) if len(parts) == 2 else PERIOD, version)
        elif key in CPUSETS and version >= CPUSET:
            found.append(Property(CPUSETS[key], "ay", bits(text)))
        elif key in BYTES:
            found.append(Property(BYTES[key], "t", INFINITY if text == "max" else _number(key, text)))
        elif key == "pids.max":
            found.append(_tasks(-1 if text == "max" else _number(key, text)))
    return found


def bits(text: str) -> bytes:
    """The mask of a list such as "0-2,8": bit n of byte n // 8, as AllowedCPUs takes it. Raises InputError."""
    mask = 0
    for part in text.split(","):
        part = part.strip()
        if not part:
            continue
        first, dash, last = part.partition("-")
        low, high = _number("list", first), _number("list", last if dash else first)
        if low > high or high >= 1 << 16:
            raise _no_value("list", text)
        mask |= (1 << high + 1) - (1 << low)
    if not mask:
        raise _no_value("list", text)
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _no_value(key: str, text: str) -> InputError:
    return InputError("set", key, f"{text!r} is no value of it", "")


def _number(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > INFINITY:
        raise _no_value(key, text)
    return int(text)


def _unsigned(value: int) -> int:
    """-1, "no limit" in the document, is the largest number in systemd's."""
    return INFINITY if value < 0 else value


def _tasks(limit: int) -> Property:
    return Property("TasksMax", "t", _unsigned(limit) or 1)  # systemd does not take 0


def _weight(cpu: Cpu, unified: bool, version: int) -> list[Property]:
    if unified and cpu.idle == 1 and version >= CPU_IDLE:
        return [Property("CPUWeight", "t", 0)]  # 0 is cpu.idle
    if not cpu.shares:
        return []
    if unified:
        return [Property("CPUWeight", "t", documented_weight(cpu.shares))]
    return [Property("CPUShares", "t", cpu.shares)]


def _memory(memory: Memory, unified: bool) -> list[Property]:
    """v1's unit has no word for reservation and swap."""
    limit, swap = memory.limit or 0, documented_swap(memory)
    found = [Property("MemoryMax" if unified else "MemoryLimit", "t", _unsigned(limit))] if limit else []
    if unified and memory.reservation:
        found.append(Property("MemoryLow", "t", _unsigned(memory.reservation)))
    if unified and swap:
        # A document counts memory and swap together, v2 swap alone.
        found.append(Property("MemorySwapMax", "t", INFINITY if swap < 0 else swap - limit))
    return found


def _per_second(quota: int, period: int) -> int:
    """µs of CPU time a second, up to the next step that systemd keeps."""
    return -(-(quota * 1_000_000 // period) // QUOTA_STEP) * QUOTA_STEP
