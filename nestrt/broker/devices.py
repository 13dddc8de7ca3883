"""Devices: which device nodes the processes of a child group may use. What a user namespace may not say to the kernel,
the broker says for it, and never more than the group above has.

::

    limit group        the guest's own rules: the level above's to set (set_guest_rules)
      └ guest          "/": the same, to be read
         ├ init        rules of its own or not, like every child group:
         └ web         set_rules(), checked against "/"; on both versions the kernel enforces it as well
            └ db       checked against web

A level that may not say it either asks the broker above it, for the same group as that one calls it
(/nestrt/NAME/guest/web). Where nobody knows the rules of the guest itself (v2, an engine's container whose rules are no
plain list), nothing is checked for the groups right below "/", and the kernel alone decides: it asks the programs
of all groups above. Then a list has to be given whole (only).
"""

from __future__ import annotations

import os
from typing import Any, Callable

from nestrt.act.containers import Container
from nestrt.act.inject import put_node
from nestrt.act.update import remark
from nestrt.broker import above
from nestrt.broker.device_rules import (
    Lists,
    Programs,
    Rules,
    State,
    Store,
)
from nestrt.broker.own_rules import Owner, chosen, known_rules, put_rules
from nestrt.broker.refusal import Refusal
from nestrt.broker.request import Method, Request
from nestrt.broker.served import Served, Tree
from nestrt.errors import KernelError, NestrtError
from nestrt.guest import client
from nestrt.guest.client import GuestError
from nestrt.host.marks import MOST_ITEMS
from nestrt.level.devices import RULES_LIMIT, format_rule, parse_rules, subset
from nestrt.plan import child_devices as plan
from nestrt.plan.request import PARENT
from nestrt.probe.nodes import device_node

Note = Callable[[str, str, Any, Any], None]
MOST_DENIED = 64  # in one call

METHOD = "io.nestrt.Guest.Devices"
# tty, console and ptmx: every guest has its own, which have these names and other numbers.
TERMINALS = 5


def owner(guest: Served) -> Owner:
    """*guest*, for what is about its own rules."""
    launched = guest.limit == f"{PARENT}/{guest.name}"
    return Owner(guest.limit, guest.root, guest.known.limits, launched)


def _store(guest: Served, tree: Tree) -> Store:
    hierarchy = chosen(tree.view.hierarchies)
    if hierarchy.version == 1:
        return Lists(hierarchy)
    return Programs(hierarchy, known_rules(owner(guest), chosen(guest.hierarchies)))


def _found(tree: Tree, group: str, operation: str) -> None:
    """Refuse a group that only other hierarchies have. Raises GuestError."""
    hierarchy = chosen(tree.view.hierarchies)
    if not os.path.isdir(hierarchy.dir(group)):
        reason = f"it is in other hierarchies, but not in {hierarchy.name or 'the v2 tree'}"
        raise GuestError(3, f"{operation} group {group}", reason, f"{tree.view.command} create makes it in all")


def _as_text(rules: Rules) -> list[str]:
    every = {"b *:* rwm", "c *:* rwm"}
    texts = [format_rule(rule) for rule in rules]
    return [plan.ALL] if every <= set(texts) else texts


# Reading


def _reply(state: State, group: str) -> dict[str, Any]:
    if state.rules is None:
        raise Refusal(
            "NotPossible",
            f"cannot list the devices of group {group}: nobody knows those of the guest, or they are too many",
            "give the group rules of its own: the whole list, with only",
        )
    return {"rules": _as_text(state.rules), "own": state.own}


def _look(request: Request, tree: Tree) -> dict[str, Any]:
    guest = request.guest
    group = guest.group(tree, request["group"], "read the devices of")
    _found(tree, group, "read the devices of")
    if above.needed():
        return above.ask_for(guest, METHOD, guest.root + group.rstrip("/"), {})
    state = _store(guest, tree).state(group)
    if state.lost:
        request.note(group, "devices", _as_text(state.given or ()), "their program is not attached any more")
    return _reply(state, group)


# Changing


def _may(guest: Served, tree: Tree, group: str, operation: str) -> None:
    if not guest.may_divide("devices"):
        reason, remedy = "this guest may not divide devices", "the policy of the level above says so"
        raise GuestError(5, f"{operation} group {group}", reason, remedy)
    _found(tree, group, operation)


def _locked(guest: Served) -> GuestError:
    reason = f"they are those of guest {guest.name}, set by the level above"
    remedy = "make a child group, and give it the rules: nestrt guest create NAME; nestrt guest devices NAME …"
    return GuestError(5, "set the devices of group /", reason, remedy)


def _wanted(state: State, only: Rules | None, allow: Rules, deny: Rules, group: str) -> Rules:
    base = state.given if only is None else only
    if base is None:
        _reply(State(None, False, None), group)
    rules = plan.changed(base or (), allow, deny)
    if len(rules) > RULES_LIMIT:
        reason = f"{len(rules)} rules, and a group may have {RULES_LIMIT}"
        raise Refusal("QuotaExceeded", f"cannot set the devices of group {group}: {reason}", "use wider rules")
    return rules


def _within(store: Store, group: str, asked: Rules, rules: Rules) -> Rules | None:
    """What *group* has of *rules*. Raises Refusal where that is not all that was *asked* for."""
    over = client.ancestors(group)[0]
    have = store.state(over).rules
    more = None if have is None else subset(asked, have)
    held = store.held(rules, have) if more is None else ()
    if more is None and held is not None and have is not None:
        more = subset(asked, held)
    if more is not None:
        text = format_rule(more)
        reason = f"it is more than group {over} has: {plan.shown(have or ())}"
        remedy = f"give it what group {over} has, or have that one given more first"
        raise Refusal("BadValue", f"cannot allow {text} to group {group}: {reason}", remedy)
    return held


def _set(store: Store, group: str, only: Rules | None, allow: Rules, deny: Rules, note: Note | None = None) -> None:
    state = store.state(group)
    rules = _wanted(state, only, allow, deny, group)
    asked = plan.changed((*(only or ()), *allow), (), deny)
    held = _within(store, group, asked, rules)
    if note is not None:
        note(group, "devices", _as_text(state.rules or ()), _as_text(rules if held is None else held))
    try:
        store.put(group, rules, held)
    except OSError as error:
        raise _refused(group, error) from error


def _refused(group: str, error: OSError) -> KernelError:
    remedy = "the groups above have to allow these devices"
    return KernelError("set the devices of", f"group {group}", error.errno or 0, remedy)


def set_rules(guest: Served, tree: Tree, group: str, texts: list[str]) -> None:
    """Give the child *group* the rules in *texts* and no others. Waits: for a thread; the caller holds guest.changing.

    Raises Refusal, GuestError, NestrtError; then the group has what it had.
    """
    operation = "set the devices of"
    if group == "/":
        raise _locked(guest)
    _may(guest, tree, group, operation)
    if above.needed():
        above.ask_for(guest, METHOD, guest.root + group, {"only": texts})
    else:
        _set(_store(guest, tree), group, plan.plain(parse_rules(texts)), (), ())


def _change(request: Request, tree: Tree) -> dict[str, Any]:
    guest, operation = request.guest, "set the devices of"
    group = guest.group(tree, request["group"], operation)
    guest.require_above(tree, request.peer, group, operation)
    if group == "/":
        raise _locked(guest)
    _may(guest, tree, group, operation)
    given = {key: request[key] for key in ("allow", "deny", "only", "inherit") if request[key] is not None}
    inherit = bool(given.get("inherit"))
    if inherit and len(given) > 1:
        raise GuestError(2, f"{operation} group {group}", "inherit means no rules of its own", "leave the others out")
    named, denied = sum(len(given.get(key, ())) for key in ("allow", "deny", "only")), len(given.get("deny", ()))
    if (len(given) > 1 and named > RULES_LIMIT) or denied > MOST_DENIED:
        # Each that is denied is compared with all others.
        reason = f"{named} rules are named at once, {denied} of them to deny"
        remedy = f"name at most {RULES_LIMIT}, and {MOST_DENIED} to deny; or only those that are left"
        raise Refusal("QuotaExceeded", f"cannot {operation} group {group}: {reason}", remedy)
    allow, deny = (plan.plain(parse_rules(given.get(key, ()))) for key in ("allow", "deny"))
    if above.needed():
        request.note(group, "devices", None, given)
        found = above.ask_for(guest, METHOD, guest.root + group, given)
    else:
        store = _store(guest, tree)
        if inherit:
            _inherit(store, group, request.note)
        else:
            only = plan.plain(parse_rules(given["only"])) if "only" in given else None
            _set(store, group, only, allow, deny, request.note)
        state = store.state(group)
        found = {"rules": _as_text(state.given or () if state.rules is None else state.rules), "own": state.own}
    put_nodes(guest, allow, request.note)
    return found


def _inherit(store: Store, group: str, note: Note) -> None:
    _reply(store.state(client.ancestors(group)[0]), client.ancestors(group)[0])
    note(group, "devices", _as_text(store.state(group).rules or ()), "inherited")
    try:
        store.inherit(group)
    except OSError as error:
        raise _refused(group, error) from error


async def devices(request: Request) -> dict[str, Any]:
    """The rules of a group; changed first, where something is to be."""
    changes = request["only"] is not None or request["allow"] or request["deny"] or request["inherit"]
    if not changes:
        return await request.later(lambda tree: _look(request, tree))
    async with request.guest.changing:
        return await request.change(lambda tree: _change(request, tree))


# The guest's own rules


def parse_whole(texts: list[str]) -> Rules:
    """The whole list of a guest's own rules. Raises InputError, and Refusal for more than a mark has room for."""
    rules = plan.plain(parse_rules(texts))
    if len(rules) >= MOST_ITEMS:
        reason = f"a guest may have {MOST_ITEMS - 1}"
        raise Refusal("QuotaExceeded", f"cannot use {len(rules)} device rules: {reason}", "use wider rules")
    return rules


def set_guest_rules(guest: Served, rules: Rules, note: Note = lambda *_: None) -> None:
    """Give the guest as a whole the *rules*, of parse_whole(), and no others, at once: its limit group, on v1 also
    guest root and all groups that have no rules of their own; then mark, stamp, and the nodes of new devices.

    Waits: for a thread; the caller holds guest.changing. Raises Refusal, NestrtError; then nothing has changed.
    """
    before: Rules | None = None
    try:
        if above.needed():
            above.ask_for(guest, METHOD, guest.limit, {"only": [format_rule(rule) for rule in rules]})
        else:
            before = put_rules(owner(guest), chosen(guest.hierarchies), rules)
    except OSError as error:
        remedy = "the groups above have to allow these devices"
        raise KernelError("set the devices of", f"guest {guest.name}", error.errno or 0, remedy) from error
    note("/", "devices", _as_text(before or ()), _as_text(rules))
    limits: dict[str, object] = {"devices": [format_rule(rule) for rule in rules]}
    remark(Container("", guest.name, {"cgroup": guest.limit, "root": guest.known.root}), guest.hierarchies, limits)
    guest.learn()
    put_nodes(guest, tuple(rule for rule in rules if before is None or subset((rule,), before) is not None), note)


def put_nodes(guest: Served, rules: Rules, note: Note) -> None:
    """Put the nodes of *rules* that name one device into the guest's /dev. Where that fails it is noted: the rules hold
    all the same."""
    for rule in rules:
        node = device_node(rule) if {"r", "w"} & set(rule.access) else ""
        if not node or (rule.type, rule.major) == ("c", TERMINALS):
            continue
        mark = guest.known
        if mark.pid <= 0 and guest.learn():
            mark = guest.known
        try:
            put_node(mark.pid, mark.start, node, node)
        except (OSError, NestrtError) as error:
            note("/", f"node {node}", None, f"not placed: {error}")


METHODS: dict[str, Method] = {"Devices": devices}
