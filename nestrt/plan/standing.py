"""What stands on a group that another runtime has made: texts of its files in, Limits out. Pure."""

from __future__ import annotations

from nestrt.controllers.io import THROTTLES
from nestrt.level.bound import smaller
from nestrt.level.devices import EVERYTHING, DeviceRule, merge, parse_rule, subset
from nestrt.level.limits import IoLimit, Limits
from nestrt.level.units import PERIOD, digits, parse_cpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nestrt.plan.facts import Hierarchy

    # File names to texts, of one group of one hierarchy
    Texts = Mapping[str, str]

NO_V1_LIMIT = 1 << 62  # v1 says "no memory limit" with a number near 2**63, rounded to pages
ALIKE = ("memory.high", "memory.swap.high")  # v2 limits without a word in Limits that the guest root shows as well


def _number(text: str, version: int) -> int | None:
    """A limit file's number; None for none."""
    word = text.split()[0] if text.split() else ""
    value = digits(word)
    return None if value is None or (version == 1 and value >= NO_V1_LIMIT) else value


def _quota(h: Hierarchy, texts: Texts) -> int | None:
    if h.version == 1:
        quota, period = texts.get("cpu.cfs_quota_us", "-1"), texts.get("cpu.cfs_period_us", "")
    else:
        quota, _, period = texts.get("cpu.max", "max").partition(" ")
    number = digits(quota)
    return None if number is None else number * PERIOD // (digits(period) or PERIOD)


def _swap(h: Hierarchy, texts: Texts, memory: int | None) -> int | None:
    if h.version == 2:
        return _number(texts.get("memory.swap.max", "max"), 2)
    both = _number(texts.get("memory.memsw.limit_in_bytes", ""), 1)
    return None if both is None or memory is None else max(0, both - memory)


def _io(h: Hierarchy, texts: Texts) -> tuple[IoLimit, ...]:
    rates: dict[str, dict[str, int]] = {}
    if h.version == 1:
        for key, name in THROTTLES:
            for line in texts.get(name, "").splitlines():
                device, _, value = line.partition(" ")
                if number := digits(value.strip()):
                    rates.setdefault(device, {})[key] = number
    else:
        for line in texts.get("io.max", "").splitlines():
            device, *words = line.split()
            for word in words:
                key, _, value = word.partition("=")
                if number := digits(value):
                    rates.setdefault(device, {})[key] = number
    return tuple(IoLimit(device, **found) for device, found in rates.items())


def _hugetlb(h: Hierarchy, texts: Texts) -> tuple[tuple[str, int], ...]:
    found = []
    for name, text in texts.items():
        parts = name.split(".")
        if len(parts) == 3 and parts[0] == "hugetlb" and parts[2] == ("limit_in_bytes" if h.version == 1 else "max"):
            number = _number(text, 1)  # v2 spells "no limit" as a number here, too
            if number is not None:
                found.append((parts[1], number))
    return tuple(found)


def _set(texts: Texts, above: Texts, name: str) -> frozenset[int] | None:
    """CPUs or memory nodes; None where they are all that the group above has."""
    text = texts.get(name, "")
    return parse_cpus(text, name) if text and text != above.get(name) else None


def standing(h: Hierarchy, texts: Texts, above: Texts) -> Limits:
    """The limits on a group of *h* whose files have *texts*; *above* are those of the group above it."""
    memory = _number(texts.get("memory.limit_in_bytes" if h.version == 1 else "memory.max", ""), h.version)
    rules = None
    if h.version == 1 and "devices" in h.controllers:
        rules = merge(parse_rule("a" if line.startswith("a") else line) for line in texts["devices.list"].splitlines())
    return Limits(
        memory=memory,
        swap=_swap(h, texts, memory),
        cpus=_set(texts, above, "cpuset.cpus"),
        mems=_set(texts, above, "cpuset.mems"),
        cpu_quota=_quota(h, texts),
        pids=_number(texts.get("pids.max", ""), 2),
        io=_io(h, texts),
        devices=rules,
        hugetlb=_hugetlb(h, texts),
    )


def together(found: list[Limits]) -> Limits:
    """What stands in all hierarchies; each limit is one hierarchy's."""
    limits = Limits()
    for one in found:
        limits = smaller(limits, one)
    return limits


def is_everything(rules: tuple[DeviceRule, ...] | None) -> bool:
    """Whether *rules* allow all devices."""
    return rules is not None and subset(EVERYTHING, rules) is None


def tighter(limits: Limits, stands: Limits) -> Limits:
    """Of *limits* those that *stands* does not have yet; memory and swap, which v1 counts together, as a pair."""
    changes = {key: value for key, value in limits.__dict__.items() if value != getattr(stands, key)}
    if "swap" in changes:
        changes["memory"] = limits.memory
    elif "memory" in changes and limits.swap is not None:
        changes["swap"] = limits.swap
    return Limits(**{**changes, "devices": None})
