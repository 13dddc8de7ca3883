"""Other device rules for a live container. Values in, lines out: pure.

v1: a group that has children takes no "a" (cgroup-v1/devices.rst, security/device_cgroup.c), so rules
go and come line by line. What the limit group loses, the kernel takes from all groups below;
what it gets, they can have. v2: one program in the place of another.
"""

from __future__ import annotations

from nestrt.controllers import oci_devices
from nestrt.errors import HostError
from nestrt.level.devices import EVERYTHING, DeviceRule, format_rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nestrt.oci.resources import DeviceRule as OrderedRule

    Rights = dict[str, set[str]]  # "c 1:3": {"r", "w"}

ALL = "a *:* rwm"


def _rights(lines: Iterable[str]) -> Rights:
    found: Rights = {}
    for line in lines:
        node, _, access = line.rpartition(" ")
        found.setdefault(node, set()).update(access)
    return found


def v1_changes(text: str, rules: tuple[OrderedRule, ...]) -> tuple[list[str], list[str]]:
    """What to allow, then what to deny, in a group whose devices.list has *text*, so that it has *rules*.

    Allowed first: a child's rule that both lists have stays. Raises HostError where a group with
    children cannot get there, or v1 cannot say it.
    """
    listed = oci_devices.as_allow_list(rules)
    if text.strip() == ALL:
        if listed == EVERYTHING:
            return [], []
        raise HostError(
            "set",
            oci_devices.FIELD,
            "the group has groups below and all devices, of which cgroup v1 can take none away then",
            "give device rules at create, or end the groups below",
        )
    if listed is None:
        oci_devices.v1_settings(rules)  # raises, where v1 has no words for it at all
        raise HostError("set", oci_devices.FIELD, "the group has groups below", "allow the devices one by one")
    if listed == EVERYTHING:
        listed = tuple(DeviceRule(kind, None, None, "rwm") for kind in "bc")
    wanted = "\n".join(format_rule(DeviceRule(k, r.major, r.minor, r.access)) for r in listed for k in _kinds(r))
    return v1_more(wanted, text), v1_more(text, wanted)


def _kinds(rule: DeviceRule) -> str:
    return "bc" if rule.type == "a" else rule.type


def v1_more(text: str, than: str) -> list[str]:
    """What a devices.list of *text* has beyond one of *than*."""
    less = _rights(than.splitlines())
    found = []
    for node, rights in _rights(text.splitlines()).items():
        beyond = rights - less.get(node, set())
        if beyond:
            found.append(f"{node} {''.join(letter for letter in 'rwm' if letter in beyond)}")
    return found


def v1_begins_anew(text: str, rules: tuple[OrderedRule, ...]) -> bool:
    """Whether a group without children, whose devices.list has *text*, gets to *rules* by "a" only."""
    return text.strip() == ALL or oci_devices.as_allow_list(rules) in (None, EVERYTHING)


def v1_former(text: str, rules: tuple[OrderedRule, ...]) -> list[tuple[str, str]]:
    """(file, line) that give a group without children again what it had: *text* in devices.list, and *rules*.

    Of a group that has all devices but some the kernel shows only that it has all.
    """
    if text.strip() != ALL:
        return [("devices.deny", "a"), *(("devices.allow", line) for line in text.splitlines())]
    return v1_whole(rules) if oci_devices.as_allow_list(rules) is None else [("devices.allow", "a")]


def v1_whole(rules: tuple[OrderedRule, ...]) -> list[tuple[str, str]]:
    """(file, line) for a group without children. Raises HostError."""
    return [(setting.file, setting.value) for setting in oci_devices.v1_settings(rules)]


def program(rules: tuple[OrderedRule, ...]) -> bytes:
    """The device program for *rules*. Raises InputError."""
    return oci_devices.program(rules)
