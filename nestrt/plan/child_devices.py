"""The device rules of a guest's child groups: what is asked becomes a list, and a list becomes v1's lines. Pure.

Rules are allow-lists (level/devices.py), here of types b and c only. A v1 group that has children takes no "a", denies
only entries that it has, and lets one entry answer the whole question (security/device_cgroup.c), so
a list becomes another one entry by entry, in four runs::

    early   entries that only say in other words what the old list allows
    deny    what the new list does not allow
    late    what the old list does not allow
    tidy    what the new list says in other words: denied as an entry

All that a group allows on the way, and where the way ends too early, one of the lists allows. What both allow stays
allowed throughout, but where rules only cross (``c 1:*`` and ``c *:3``), or one entry trades one right for another.
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.devices import (
    AllowList,
    DeviceRule,
    format_rule,
    intersect,
    merge,
    parse_rule,
    questions,
    subset,
)
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Rules = tuple[DeviceRule, ...]
    Node = tuple[str, int | None, int | None]
    Rights = dict[Node, set[str]]

ALL = "a *:* rwm"  # of a v1 group's devices.list: all, but for exceptions that the kernel does not list
MANY = 12  # rules in an error
MOST = 4096  # rules that two lists may have in common: wildcards that cross have as many as their product


def plain(rules: Iterable[DeviceRule]) -> Rules:
    """*rules* of types b and c: v1 has no other but the "a" of a group that allows everything."""
    return merge(DeviceRule(kind, r.major, r.minor, r.access) for r in rules for kind in _kinds(r))


def _kinds(rule: DeviceRule) -> str:
    return "bc" if rule.type == "a" else rule.type


def listed(text: str) -> Rules:
    """The rules of a devices.list."""
    return plain(parse_rule(line) for line in text.splitlines() if line.strip())


def shown(rules: Iterable[DeviceRule]) -> str:
    """The first of *rules*, for an error."""
    texts = [format_rule(rule) for rule in rules]
    return ", ".join(texts[:MANY] + ["…"] * (len(texts) > MANY)) or "none"


def equal(one: Iterable[DeviceRule], other: Iterable[DeviceRule]) -> bool:
    """Whether both lists allow the same."""
    mine, yours = tuple(one), tuple(other)
    return subset(mine, yours) is None and subset(yours, mine) is None


def common(one: Rules, other: Rules) -> Rules | None:
    """What both lists allow: *one* as it is where that is all of it, None where it cannot be listed."""
    if subset(one, other) is None:
        return one
    try:
        return intersect(one, other, MOST)
    except InputError:
        return None


def fit(rules: Iterable[DeviceRule], above: Rules) -> Rules:
    """What of *rules* a v1 group can have below one with the rules *above*: it has one entry for a node.

    Raises InputError where that are more than MOST.
    """
    known = tuple(rules)
    if subset(known, above) is None:
        return known
    allowed, asked = AllowList(above), AllowList(known)
    found: dict[Node, DeviceRule] = {}
    for rule in intersect(known, above, MOST):
        node = (rule.type, rule.major, rule.minor)
        (merged,) = merge((found.get(node, rule), rule))
        if allowed.covers(merged) and asked.covers(merged):
            found[node] = merged
    return tuple(found.values())


def changed(rules: Rules, allow: Rules, deny: Rules) -> Rules:
    """*rules* with *allow* and without *deny*. Raises InputError where a wider rule would still allow what is denied.

    Of that only mknod may stay, where opening is denied too: a node that cannot be opened is nothing.
    """
    gone = _rights(deny)
    left: list[DeviceRule] = []
    for rule in merge((*rules, *allow)):
        nodes = [(rule.type, a, i) for a in {rule.major, None} for i in {rule.minor, None}]
        letters = {letter for node in nodes for letter in gone.get(node, ())}
        if access := "".join(letter for letter in rule.access if letter not in letters):
            left.append(DeviceRule(rule.type, rule.major, rule.minor, access))
    for denied in deny:
        meant = "".join(letter for letter in denied.access if letter in "rw") or denied.access
        for wider in intersect(left, (DeviceRule(denied.type, denied.major, denied.minor, meant),)):
            rule = next(rule for rule in left if intersect((rule,), (wider,)))
            raise InputError(
                "deny",
                f"device rule {format_rule(denied)}",
                f"rule {format_rule(rule)} allows it, and rules have no exceptions",
                "deny that one, and allow what is to stay",
            )
    return tuple(left)


@record
class Lines:
    """What to write to a v1 group, in this order: *early* and *late* to devices.allow, the others to devices.deny."""

    early: tuple[str, ...]
    deny: tuple[str, ...]
    late: tuple[str, ...]
    tidy: tuple[str, ...]


def _rights(rules: Iterable[DeviceRule]) -> Rights:
    found: Rights = {}
    for rule in rules:
        found.setdefault((rule.type, rule.major, rule.minor), set()).update(rule.access)
    return found


def _lines(node: Node, letters: Iterable[str]) -> list[str]:
    """Lines for *letters*: one for opening and one for mknod, which the group above may have from two of its own."""
    access = "".join(letter for letter in "rwm" if letter in letters)
    return [format_rule(DeviceRule(*node, asked)) for asked in questions(access)]


def _silent(node: Node, has: set[str], more: set[str], rules: AllowList) -> set[str]:
    """Those of *more* that an entry for *node*, which *has* some, can have without allowing more than *rules*."""
    found = {"m"} & more if rules.covers(DeviceRule(*node, "m")) else set()
    for opened in (more & {"r", "w"}, more & {"r"}, more & {"w"}):
        access = "".join(letter for letter in "rw" if letter in (has | opened))
        if opened and rules.covers(DeviceRule(*node, access)):
            return found | opened
    return found


def v1_lines(old: Rules, new: Rules) -> Lines:
    """What makes a v1 group, whose devices.list says *old*, have *new*; neither is everything by an "a"."""
    has, wanted = _rights(old), _rights(new)
    before, then = AllowList(old), AllowList(new)
    early: list[str] = []
    deny: list[str] = []
    late: list[str] = []
    tidy: list[str] = []
    for node, letters in wanted.items():
        now = has.get(node, set())
        silent = _silent(node, now, letters - now, before)
        early += _lines(node, silent)
        late += _lines(node, letters - now - silent)
    for node, letters in has.items():
        kept = wanted.get(node, set())
        silent = _silent(node, kept, letters - kept, then)
        deny += _lines(node, letters - kept - silent)
        tidy += _lines(node, silent)
    return Lines(tuple(early), tuple(deny), tuple(late), tuple(tidy))


def missing(now: Rules, wanted: Rules, above: Rules) -> list[str]:
    """Lines for devices.allow that give a v1 group with the rules *now*, below one with *above*, what it lacks of
    *wanted*; no entry becomes more than one above."""
    has, held, allowed = _rights(now), AllowList(now), AllowList(above)
    found: list[str] = []
    for rule in wanted:
        node = (rule.type, rule.major, rule.minor)
        mine = has.get(node, set())
        if not held.covers(rule):
            found += _lines(node, _silent(node, mine, set(rule.access) - mine, allowed))
    return found
