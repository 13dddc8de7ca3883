"""Rules as they are kept: in marks on the groups of their guest.

The guest's own stand on its root (``trusted.nestrt.rules``), the host's for it on its limit group
(``trusted.nestrt.host-rules``). A mark is JSON: the lines as they were given, and the numbers of the names in them::

    {"v":1,"rules":["alice:postgres memory db"],"users":{"alice":1000},"groups":{}}

A guest with CAP_SYS_ADMIN over the host can write to its root's mark past the broker: what is read is a claim, and
checked as if it were asked for anew.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from nestrt.broker import rules_text
from nestrt.broker.refusal import Refusal
from nestrt.broker.rules_text import Rule
from nestrt.broker.served import Served, Tree
from nestrt.guest import client
from nestrt.guest.client import GuestError, Hierarchy
from nestrt.record import record

OWN, HOST = "trusted.nestrt.rules", "trusted.nestrt.host-rules"
VERSION = 1
LARGEST = 61440  # bytes of a mark; an extended attribute has 64 KiB at most


@record
class Stored:
    """*lines* as given, and the numbers of the names that they need."""

    lines: tuple[str, ...] = ()
    users: dict[str, int] | None = None
    groups: dict[str, int] | None = None

    def rules(self) -> list[Rule]:
        """With numbers for names. Raises BadRule."""
        return rules_text.numbered(rules_text.parse(list(self.lines)), self.users or {}, self.groups or {})


def place(guest: Served, attribute: str) -> str:
    """The directory of the mark."""
    return guest.primary.path(guest.limit if attribute == HOST else guest.root)


def _numbers(value: Any) -> dict[str, int]:
    rows = value.items() if isinstance(value, dict) else ()
    return {k: v for k, v in rows if type(v) is int and 0 <= v <= rules_text.LARGEST_ID}


def load(guest: Served, attribute: str) -> Stored:
    """What the mark says; nothing where there is none, or it is not what it should be."""
    try:
        found = json.loads(os.getxattr(place(guest, attribute), attribute))
    except (OSError, ValueError, RecursionError):
        return Stored()
    if not isinstance(found, dict) or found.get("v") != VERSION or not isinstance(found.get("rules"), list):
        return Stored()
    lines = tuple(line for line in found["rules"][: rules_text.MOST_RULES] if isinstance(line, str))
    return Stored(lines, _numbers(found.get("users")), _numbers(found.get("groups")))


def save(guest: Served, attribute: str, stored: Stored) -> None:
    """Write the mark, or remove it where there are no rules. Raises Refusal."""
    values = {"v": VERSION, "rules": stored.lines, "users": stored.users or {}, "groups": stored.groups or {}}
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape")
    if len(text) > LARGEST:
        reason = f"with the names that %u and %g stand for they take more than {LARGEST} bytes"
        raise Refusal("QuotaExceeded", f"cannot keep the rules of {guest.name}: {reason}", "use %U and %G")
    directory = place(guest, attribute)
    try:
        if stored.lines:
            os.setxattr(directory, attribute, text)
        elif attribute in os.listxattr(directory):
            os.removexattr(directory, attribute)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
            remedy = "ask the level above for rules, or move processes yourself"
            raise Refusal("NotPossible", f"cannot keep the rules of {guest.name}: {reason}", remedy) from None
        raise


# What rules may name


def names_of(hierarchy: Hierarchy, view: client.View) -> set[str]:
    """The controllers that place processes in *hierarchy*. v2 has in every group what is a controller on v1 only."""
    found = {*hierarchy.controllers, *((hierarchy.options,) if "name=" in hierarchy.options else ())}
    if hierarchy.version == 2:
        others = {name for other in view.hierarchies if other.version == 1 for name in other.controllers}
        found |= {"freezer", "devices", "cpuacct"} - others
    return found


def hierarchies_for(view: client.View, controllers: tuple[str, ...]) -> tuple[Hierarchy, ...]:
    """Where *controllers* place processes; () stands for all."""
    if not controllers:
        return view.divided
    return tuple(h for h in view.divided if names_of(h, view) & set(controllers))


def check(tree: Tree, rules: list[Rule]) -> None:
    """Refuse controllers and destinations that the guest cannot have. Raises GuestError."""
    view, operation = tree.view, "place processes by rules"
    known = {name for hierarchy in view.hierarchies for name in names_of(hierarchy, view)}
    divided = {name for hierarchy in view.divided for name in names_of(hierarchy, view)}
    for part in (part for rule in rules for part in rule.parts):
        for name in part.controllers:
            if name not in known:
                have = ", ".join(sorted(divided)) or "none"
                raise GuestError(2, operation, f"this guest has no controller {name[:80]!r}", f"it has: {have}")
            if name not in divided:
                raise GuestError(5, operation, f"this guest may not divide {name}", "the policy above says so")
        some = rules_text.Subject(1, 0, 0, frozenset(), "x", "")
        client.parse_group(rules_text.expand(part.destination, some, {}, {}), operation, view.controllers)
