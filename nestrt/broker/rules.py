"""The method Rules: which of a guest's processes belong where, by the guest's word and before it by the host's.

rules_text.py has the form, rules_store.py where they are kept, classify.py carries them out.

Rules are no wall between the users of a guest. A process has the name that it gives itself, and whoever may mount
has the program's path too; only user and group are sure.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Callable

import trio

from nestrt.broker import guest_names, rules_text
from nestrt.broker.classify import Classifier
from nestrt.broker.refusal import Refusal
from nestrt.broker.request import Method, Request
from nestrt.broker.rules_store import HOST, OWN, Stored, check, load, save
from nestrt.broker.rules_text import BadRule
from nestrt.broker.served import Served

if TYPE_CHECKING:
    from nestrt.broker.server import Broker

SETTLE = 5.0  # seconds that an answer waits for the processes that there are to be placed
# Which names a template needs.
NAMED = {"u": "users", "g": "groups"}


async def _resolve(guest: Served, lines: list[str]) -> Stored:
    """*lines*, checked, with the numbers of their names. Raises Refusal, GuestError."""
    try:
        rules = rules_text.parse(lines)
    except BadRule as error:
        raise Refusal("BadValue", f"cannot set the rules of {guest.name}: {error.reason}", error.remedy) from None
    guest.now(lambda tree: check(tree, rules))
    names = dict(zip(("users", "groups"), rules_text.names(rules), strict=True))
    whole = {NAMED[letter] for letter in rules_text.templates(rules) if letter in NAMED}
    found: dict[str, dict[str, int]] = {"users": {}, "groups": {}}
    if whole or any(names.values()):
        for kind, known in zip(("users", "groups"), await guest_names.read_names(guest), strict=True):
            missing = sorted(names[kind] - set(known))
            if missing:
                reason = f"the guest has no {kind.removesuffix('s')} {missing[0][:80]!r}"
                remedy = f"make it first, or {guest_names.USE_NUMBERS}"
                raise Refusal("BadValue", f"cannot set the rules of {guest.name}: {reason}", remedy)
            found[kind] = known if kind in whole else {name: known[name] for name in names[kind]}
    return Stored(tuple(lines), found["users"], found["groups"])


async def set_rules(
    broker: Broker,
    guest: Served,
    attribute: str,
    lines: list[str],
    unlocked: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[str]:
    """Set them while *unlocked*, and place the processes that there are; what they were.

    Raises Refusal, GuestError, NestrtError.
    """
    stored = await _resolve(guest, lines)
    if stored.lines:
        await broker.classifier.listen()
    try:
        async with guest.changing.host if attribute == HOST else guest.changing:
            with unlocked():
                before = load(guest, attribute)
                save(guest, attribute, stored)
        placing = await broker.classifier.place(guest, before)
    finally:
        broker.classifier.close_unused()  # where the rules could not be kept
    if placing is not None:
        with trio.move_on_after(SETTLE):
            await placing.settled.wait()
    return list(before.lines)


async def rules(request: Request) -> dict[str, Any]:
    """Set the guest's own rules, or tell them."""
    guest, lines = request.guest, request["rules"]
    if lines is not None:
        if not request.peer.root:
            message = f"cannot set the rules of {guest.name}: {request.peer.who()} may not"
            raise Refusal("NotPermitted", message, "let the guest's root do it")
        before = await set_rules(request.broker, guest, OWN, lines, request.unlocked)
        request.note("/", "rules", before, lines)
    return {"rules": list(load(guest, OWN).lines)}


async def host_rules(broker: Broker, guest: Served, lines: list[str] | None, request: Any) -> dict[str, Any]:
    """The same for the host's rules of a guest."""
    if lines is not None:
        before = await set_rules(broker, guest, HOST, lines)
        request.note("/", "host rules", before, lines)
    return {"rules": list(load(guest, HOST).lines)}


def count(guest: Served, host: bool) -> int:
    """How many lines of rules there are for *guest*: its own, or the *host*'s."""
    return len(load(guest, HOST if host else OWN).lines) if guest.mark is not None else 0


async def restore(broker: Broker, guest: Served) -> None:
    """Carry out the rules of a guest that is served again: its marks have them."""
    await broker.classifier.restore(guest)


def forget_guest(broker: Broker, guest: Served) -> None:
    """Place no process of *guest*'s any more."""
    broker.classifier.forget_guest(guest)


METHODS: dict[str, Method] = {"Rules": rules}

__all__ = ["METHODS", "Classifier", "count", "forget_guest", "host_rules", "restore"]
