"""linux.resources.devices: ordered rules of which the last that matches decides, for v1's files and v2's program.

A document allows and denies in order, beginning with nothing (runtime-spec,
config-linux.md, "Allowed Device list"). A right (r, w, m) of a node is decided
by the last rule that names the node and the right. The answer is constant on
*cells*: a node, all of a major, all of a minor, all of a type. The narrowest
cell that has a node decides about it, so cells need no order.

v1 has no order either: a group is an allow-list, or it allows all but a list
(security/device_cgroup.c). Where a document takes nodes out of one wildcard and
grants some beyond another, neither can say it.
"""

from __future__ import annotations

from nestrt.controllers.base import Setting
from nestrt.errors import HostError, InputError
from nestrt.level.devices import (
    DEFAULT_RULES,
    EVERYTHING,
    MAJOR_LIMIT,
    MINOR_LIMIT,
    DeviceRule,
    format_rule,
    questions,
    subset,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nestrt.oci.model import Device
    from nestrt.oci.resources import DeviceRule as OrderedRule

    Numbers = tuple[int | None, int | None]

FIELD = "linux.resources.devices"
TUN = DeviceRule("c", 10, 200, "rwm")
_REMEDY = "write type a, b or c, major and minor as numbers or not at all, and access of r, w and m"
# Nodes that every guest gets. A document that makes one of these paths itself says what it may do with it, as in runc.
_PATHS = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
}


def with_defaults(
    rules: Iterable[OrderedRule], nodes: Iterable[Device] = (), held: tuple[DeviceRule, ...] | None = None
) -> tuple[OrderedRule, ...]:
    """*rules*, then leave for what every guest may use: runc and crun append the same to every document.

    *nodes* are linux.devices; as in runc they get no rule of their own. Unlike
    runc's the usual ones have no /dev/net/tun. As in runc's the console that a
    guest has is a pseudo-terminal, and 5:1 would be the host's. What this level
    itself has not, where *held* says what it has, is left out: nobody asked for it.
    """
    from nestrt.oci.resources import DeviceRule as OrderedRule

    left_out = {(5, 1), *(_PATHS.get(node.path) for node in nodes)}
    usual = (rule for rule in (*DEFAULT_RULES, TUN) if (rule.major, rule.minor) not in left_out)
    if held is not None:
        usual = (rule for rule in tuple(usual) if subset((rule,), held) is None)
    return (*rules, *(OrderedRule(True, rule.type, rule.major, rule.minor, rule.access) for rule in usual))


def effective(rules: Iterable[OrderedRule]) -> tuple[DeviceRule, ...]:
    """The cells of *rules*, of types b and c, wide ones first; *access* "" where nothing is allowed.

    They are closed: where two of them meet, there is one for what both have.
    Raises InputError for a type, number or access that there is not.
    """
    known = [(rule, *_numbers(rule)) for rule in rules]
    cells: list[DeviceRule] = []
    for kind in "bc":
        mine = [item for item in known if item[0].type in ("a", kind)]
        named = {(major, minor) for _, major, minor in mine}
        majors = [major for major, minor in named if minor is None]
        minors = [minor for major, minor in named if major is None]
        crossings = {(major, minor) for major in majors for minor in minors}
        for major, minor in sorted(named | crossings | {(None, None)}, key=_width):
            rights: set[str] = set()
            for rule, majors_of, minors_of in mine:
                if majors_of in (None, major) and minors_of in (None, minor):
                    if rule.allow:
                        rights.update(rule.access)
                    else:
                        rights.difference_update(rule.access)
            cells.append(DeviceRule(kind, major, minor, _letters(rights)))
    return tuple(cells)


def _numbers(rule: OrderedRule) -> Numbers:
    """Major and minor of *rule*, -1 being any as in Go's programs. Raises InputError."""
    what = f"{FIELD}: {rule.type} {rule.major}:{rule.minor} {rule.access}"
    if rule.type not in ("a", "b", "c"):
        raise InputError("use", what, f"invalid cgroup device type {rule.type!r}", _REMEDY)
    if not rule.access or any(letter not in "rwm" for letter in rule.access):
        raise InputError("use", what, f"{rule.access!r} is no access", _REMEDY)
    found: list[int | None] = []
    for number, limit in ((rule.major, MAJOR_LIMIT), (rule.minor, MINOR_LIMIT)):
        if number is not None and not -1 <= number < limit:
            raise InputError("use", what, f"no device has the number {number}", f"use numbers below {limit}")
        found.append(None if number == -1 else number)
    return found[0], found[1]


def _width(numbers: Numbers) -> tuple[int, int, int]:
    major, minor = (-1 if number is None else number for number in numbers)
    return (major >= 0) + (minor >= 0), major, minor


def _letters(rights: Iterable[str]) -> str:
    known = tuple(rights)
    return "".join(letter for letter in "rwm" if letter in known)


def _listed(cells: Iterable[DeviceRule], *, allowed: bool) -> tuple[DeviceRule, ...] | DeviceRule:
    """The list of what *cells* allow, or deny; or the first cell that no list can say, as a wider one has more."""
    found: list[DeviceRule] = []
    for cell in cells:
        rights = _letters(letter for letter in "rwm" if (letter in cell.access) == allowed)
        wider = [rule for rule in found if _within(cell, rule)]
        if any(letter not in rights for rule in wider for letter in rule.access):
            return cell
        # The kernel allows what one rule answers whole, and so each rule of an allow-list has all rights of its node.
        if any(not any(set(asked) <= set(rule.access) for rule in wider) for asked in questions(rights)):
            found.append(DeviceRule(cell.type, cell.major, cell.minor, rights))
    return tuple(found)


def _within(cell: DeviceRule, rule: DeviceRule) -> bool:
    return rule.type == cell.type and rule.major in (None, cell.major) and rule.minor in (None, cell.minor)


def text(rule: OrderedRule) -> str:
    """*rule* for people: ``allow c 1:3 rwm``."""
    return f"{'allow' if rule.allow else 'deny'} {format_rule(DeviceRule(rule.type, *_numbers(rule), rule.access))}"


def program(rules: Iterable[OrderedRule]) -> bytes:
    """The device program for *rules* (v2). Raises InputError as device_program.build_ordered() does."""
    from nestrt.controllers.device_program import build_ordered

    return build_ordered(tuple(rules))


def as_allow_list(rules: Iterable[OrderedRule]) -> tuple[DeviceRule, ...] | None:
    """The rules as a plain allow-list for ``nestrt.level.devices``; None where they take something out of a wildcard.

    Raises InputError as effective() does.
    """
    cells = effective(rules)
    if all(cell.access == "rwm" for cell in cells):
        return EVERYTHING
    found = _listed(cells, allowed=True)
    return None if isinstance(found, DeviceRule) else found


def v1_settings(rules: Iterable[OrderedRule]) -> tuple[Setting, ...]:
    """The writes that give a v1 group *rules*, whatever it had: deny or allow all, then what differs.

    The group must have no children (EINVAL). Raises InputError as effective()
    does, and HostError where v1 cannot say it.
    """
    from nestrt.controllers.devices import settings
    from nestrt.level.limits import Limits

    known = tuple(rules)
    listed = as_allow_list(known)
    if listed is not None:
        return tuple(Setting(item.file, item.value, field=FIELD) for item in settings(Limits(devices=listed), 1))
    cells = effective(known)
    denied, hole = _listed(cells, allowed=False), _listed(cells, allowed=True)
    if isinstance(denied, DeviceRule) and isinstance(hole, DeviceRule):
        numbers = format_rule(hole).split()[1]
        raise HostError(
            "honour",
            FIELD,
            f"cgroup v1 cannot punch hole in existing wildcard rule: {hole.type} {numbers} is to have less than it",
            "allow the devices one by one, or take a host whose devices are cgroup v2's",
        )
    assert not isinstance(denied, DeviceRule)
    lines = [("devices.allow", "a"), *(("devices.deny", format_rule(rule)) for rule in denied)]
    return tuple(Setting(file, value, field=FIELD) for file, value in lines)
