"""Device rules: what a group may read, write and make of device nodes.

A tuple of rules is an allow-list: everything that no rule names is denied. The
kernel asks for ``m`` (mknod) alone, or for ``r``, ``w`` or both (open), and one
rule must answer the whole question, in a v1 group (match_exception() in
security/device_cgroup.c) as in a device program. The arithmetic here answers
alike.
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.units import digits, shown
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Node = tuple[str, int | None, int | None]

MAJOR_LIMIT = 2**12  # MINORBITS is 20 of 32 (include/linux/kdev_t.h)
MINOR_LIMIT = 2**20
MOST_IN_COMMON = 65536
RULES_LIMIT = 1024  # more than a device program can hold, and more than anyone writes
REMEDY = "write TYPE MAJOR:MINOR ACCESS like 'c 1:3 rwm', 'b 8:* r' or 'a *:* rwm'"


@record
class DeviceRule:
    """*type* is a (both), b (block) or c (character); None as a number is any (``*``).

    *access* is made of r (read), w (write) and m (mknod), in this order.
    """

    type: str
    major: int | None
    minor: int | None
    access: str


def _number(text: str, limit: int, rule: str) -> int | None:
    if text == "*":
        return None
    value = digits(text)
    if value is None or value >= limit:
        raise InputError("read", f"device rule {shown(rule)}", f"{shown(text)} is no device number", REMEDY)
    return value


def parse_rule(text: str) -> DeviceRule:
    """The rule in ``c 1:3 rwm``, as devices.allow takes it (cgroup-v1/devices.rst); ``a`` alone is everything.

    Raises InputError.
    """
    parts = text.split()
    if parts == ["a"]:
        return DeviceRule("a", None, None, "rwm")
    if len(parts) != 3 or parts[0] not in ("a", "b", "c"):
        raise InputError("read", f"device rule {shown(text)}", "not a device rule", REMEDY)
    major, colon, minor = parts[1].partition(":")
    if not colon:
        raise InputError("read", f"device rule {shown(text)}", f"{shown(parts[1])} is not MAJOR:MINOR", REMEDY)
    given = parts[2]
    if not given or any(letter not in "rwm" for letter in given) or len(set(given)) != len(given):
        raise InputError("read", f"device rule {shown(text)}", f"{shown(given)} is no access", REMEDY)
    access = "".join(letter for letter in "rwm" if letter in given)
    return DeviceRule(parts[0], _number(major, MAJOR_LIMIT, text), _number(minor, MINOR_LIMIT, text), access)


def parse_rules(texts: Iterable[str]) -> tuple[DeviceRule, ...]:
    """The rules in *texts*, in their order and merged; ``default`` stands for DEFAULT_RULES, ``all`` for ``a``.

    Raises InputError.
    """
    rules: list[DeviceRule] = []
    for text in texts:
        if text == "default":
            rules.extend(DEFAULT_RULES)
        else:
            rules.append(parse_rule("a" if text == "all" else text))
    if len(rules) > RULES_LIMIT:
        raise InputError("use", f"{len(rules)} device rules", "too many", f"give at most {RULES_LIMIT}")
    return merge(rules)


def format_rule(rule: DeviceRule) -> str:
    """*rule* as devices.allow takes it: ``c 1:3 rwm``."""
    major = "*" if rule.major is None else str(rule.major)
    minor = "*" if rule.minor is None else str(rule.minor)
    return f"{rule.type} {major}:{minor} {rule.access}"


# The OCI runtime specification's default devices (config-linux.md, "Default Devices") and any
# mknod, which makes a node but does not open it; no /dev/net/tun, which runc once gave to all.
DEFAULT_RULES: tuple[DeviceRule, ...] = (
    DeviceRule("c", None, None, "m"),
    DeviceRule("b", None, None, "m"),
    DeviceRule("c", 1, 3, "rwm"),  # null
    DeviceRule("c", 1, 5, "rwm"),  # zero
    DeviceRule("c", 1, 7, "rwm"),  # full
    DeviceRule("c", 1, 8, "rwm"),  # random
    DeviceRule("c", 1, 9, "rwm"),  # urandom
    DeviceRule("c", 5, 0, "rwm"),  # tty
    DeviceRule("c", 5, 1, "rwm"),  # console
    DeviceRule("c", 5, 2, "rwm"),  # ptmx
    DeviceRule("c", 136, None, "rwm"),  # pts/*
)
EVERYTHING: tuple[DeviceRule, ...] = (DeviceRule("a", None, None, "rwm"),)


def merge(rules: Iterable[DeviceRule]) -> tuple[DeviceRule, ...]:
    """*rules* with those for the same nodes made one, as a v1 group does with what is written to it."""
    merged: dict[tuple[str, int | None, int | None], str] = {}
    for rule in rules:
        node = (rule.type, rule.major, rule.minor)
        merged[node] = "".join(letter for letter in "rwm" if letter in merged.get(node, "") + rule.access)
    return tuple(DeviceRule(*node, access) for node, access in merged.items())


def questions(access: str) -> tuple[str, ...]:
    """What the kernel asks when *access* is used to the full: open with r and w together, and mknod by itself."""
    opened = "".join(letter for letter in "rw" if letter in access)
    return tuple(question for question in (opened, "m" if "m" in access else "") if question)


def _answers(rule: DeviceRule, kind: str, major: int | None, minor: int | None, question: str) -> bool:
    """Whether *rule* alone allows *question* on these nodes; None as a number is all of them."""
    return (
        rule.type in ("a", kind)
        and (rule.major is None or rule.major == major)
        and (rule.minor is None or rule.minor == minor)
        and all(letter in rule.access for letter in question)
    )


def allowed(rules: Iterable[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    """Whether *rules* let a process use *access* ("rw", "m"…) on the node *kind* ("b" or "c") *major*:*minor*."""
    known = tuple(rules)
    return all(any(_answers(rule, kind, major, minor, asked) for rule in known) for asked in questions(access))


class AllowList:
    """Rules by their nodes, for many questions: lists may be long, and somebody else's."""

    def __init__(self, rules: Iterable[DeviceRule]) -> None:
        self.rules = tuple(rules)
        self.access: dict[Node, set[str]] = {}
        for rule in self.rules:
            self.access.setdefault((rule.type, rule.major, rule.minor), set()).add(rule.access)

    def covers(self, rule: DeviceRule) -> bool:
        """Whether all that *rule* allows is allowed, each question by one rule here."""
        for kind in "bc" if rule.type == "a" else rule.type:
            found = [self.access[node] for node in _wider(kind, rule.major, rule.minor) if node in self.access]
            for asked in questions(rule.access):
                if not any(set(asked) <= set(access) for accesses in found for access in accesses):
                    return False
        return True


def _wider(kind: str, major: int | None, minor: int | None) -> set[Node]:
    """The nodes whose rules are about this one too."""
    return {(t, a, i) for t in (kind, "a") for a in (major, None) for i in (minor, None)}


def subset(child: Iterable[DeviceRule], parent: Iterable[DeviceRule]) -> DeviceRule | None:
    """The first rule of *child* that allows more than *parent* does, or None where there is none."""
    known = AllowList(parent)
    return next((rule for rule in child if not known.covers(rule)), None)


def _meet(one: DeviceRule, other: DeviceRule) -> DeviceRule | None:
    """The rule for what both rules allow, or None for nothing."""
    if "a" not in (one.type, other.type) and one.type != other.type:
        return None
    numbers: list[int | None] = []
    for mine, yours in ((one.major, other.major), (one.minor, other.minor)):
        if mine is not None and yours is not None and mine != yours:
            return None
        numbers.append(yours if mine is None else mine)
    access = "".join(letter for letter in one.access if letter in other.access)
    if not access:
        return None
    return DeviceRule(other.type if one.type == "a" else one.type, numbers[0], numbers[1], access)


def _met(one: tuple[DeviceRule, ...], other: tuple[DeviceRule, ...], most: int) -> list[DeviceRule]:
    """The rules for what two of them both allow, in order."""
    numbers: dict[tuple[int | None, int | None], list[int]] = {}
    majors: dict[int | None, list[int]] = {}
    minors: dict[int | None, list[int]] = {}
    for place, rule in enumerate(other):
        numbers.setdefault((rule.major, rule.minor), []).append(place)
        majors.setdefault(rule.major, []).append(place)
        minors.setdefault(rule.minor, []).append(place)
    found: list[DeviceRule] = []
    for mine in one:
        if mine.major is None and mine.minor is None:
            near: Iterable[int] = range(len(other))
        elif mine.minor is None:
            near = sorted([*majors.get(mine.major, ()), *majors.get(None, ())])
        elif mine.major is None:
            near = sorted([*minors.get(mine.minor, ()), *minors.get(None, ())])
        else:
            nodes = ((a, i) for a in (mine.major, None) for i in (mine.minor, None))
            near = sorted(place for node in nodes for place in numbers.get(node, ()))
        found += [both for place in near if (both := _meet(mine, other[place])) is not None]
        if len(found) > most:
            raise InputError("compare", "device rules", f"they have more than {most} in common", "use fewer wildcards")
    return found


def intersect(
    one: Iterable[DeviceRule], other: Iterable[DeviceRule], most: int = MOST_IN_COMMON
) -> tuple[DeviceRule, ...]:
    """Rules that allow what *one* and *other* both allow, and nothing else; none says more than the rest.

    Wildcards that cross have as many as their product: raises InputError for more than *most*.
    """
    met = _met(tuple(one), tuple(other), most)
    single = AllowList(met)
    kept = AllowList(())
    found: list[DeviceRule] = []
    for rule in met:
        # Of two that say the same, the first stays.
        if not kept.covers(rule) and not _strictly_within(rule, single):
            found.append(rule)
            kept.access.setdefault((rule.type, rule.major, rule.minor), set()).add(rule.access)
    return tuple(found)


def _strictly_within(rule: DeviceRule, others: AllowList) -> bool:
    """Whether a single one of *others* allows all of *rule*, and more."""
    own = (rule.type, rule.major, rule.minor)
    for node in _wider(rule.type, rule.major, rule.minor):
        for access in others.access.get(node, ()):
            if set(rule.access) <= set(access) and (node != own or set(rule.access) < set(access)):
                return True
    return False
