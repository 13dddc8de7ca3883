"""The device rules of a guest as a whole, on its limit group: which it has, and others in their place.

For the broker, and for whoever changes a guest from the host without one. Nothing here waits or asks a broker.
"""

from __future__ import annotations

from nestrt.act.update_devices import LIST
from nestrt.broker.device_rules import Change, Rules, known_program, put_program, read_given
from nestrt.errors import HostError, InputError
from nestrt.host.marks import MOST_ITEMS, read_stamp
from nestrt.kernel import bpf, cgroup
from nestrt.level.devices import DEFAULT_RULES, parse_rules
from nestrt.plan import child_devices as plan
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nestrt.plan.facts import Hierarchy


@record
class Owner:
    """A guest: *limit* and *root* are the paths of its limit group and guest root, *limits* what its mark says;
    *launched*: by ``launch``."""

    limit: str
    root: str
    limits: dict[str, Any] | None
    launched: bool


def chosen(hierarchies: tuple[Any, ...]) -> Any:
    """The hierarchy that has device rules: v1's, else the v2 tree. Raises HostError where there is neither."""
    v1 = [h for h in hierarchies if h.version == 1 and "devices" in h.controllers]
    found = v1 + [h for h in hierarchies if h.version == 2]
    if not found:
        raise HostError("set", "device rules", "this host has neither v1's devices controller nor a v2 tree", "")
    return found[0]


def known_rules(owner: Owner, hierarchy: Hierarchy) -> Rules | None:
    """The guest's own rules in the v2 *hierarchy*, None where nobody knows them.

    The program on the limit group was made from what was written there, else from the mark; a guest of
    ``launch`` has the usual rules where that says nothing, within this level's: its stamp has them.
    """
    limit = hierarchy.path(owner.limit)
    before = read_given(limit)
    attached = bpf.query(limit) if before else ()
    for given in before:
        if given.program in attached:
            return given.rules
    found = [owner.limits]
    if owner.launched:
        found.append(read_stamp(hierarchy.path(owner.root)).get("limits"))
    for limits in found:
        texts = limits.get("devices") if isinstance(limits, dict) else None
        if isinstance(texts, list) and len(texts) < MOST_ITEMS:  # longer ones are cut off
            try:
                return plan.plain(parse_rules(str(text) for text in texts))
            except InputError:
                continue
    return plan.plain(DEFAULT_RULES) if len(found) > 1 else None


def rules_now(owner: Owner, hierarchy: Hierarchy) -> Rules | None:
    """The guest's own rules, by the kernel's word on v1; None where nobody knows them. Raises OSError."""
    if hierarchy.version == 1:
        return plan.listed(cgroup.read(hierarchy.path(owner.limit, LIST)))
    return known_rules(owner, hierarchy)


def put_rules(owner: Owner, hierarchy: Hierarchy, rules: Rules) -> Rules | None:
    """Give the guest the *rules* and no others, at once: on v1 also guest root and all groups that have no rules of
    their own. What it had, None where nobody knows. Raises NestrtError, OSError; then nothing has changed."""
    before = rules_now(owner, hierarchy)
    if hierarchy.version == 1:
        Change(hierarchy.path(owner.limit), follow=(hierarchy.path(owner.root),)).carry_out(rules)
    else:
        put_program(hierarchy.path(owner.limit), rules, known_program(hierarchy.path(owner.limit)))
    return before
