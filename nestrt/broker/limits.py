"""io.nestrt.Host.SetLimits: other limits for a guest that runs, on its limit group and on what its root shows.

The order of writes, and the way back where the kernel refuses one, are those of the runtime's ``update``
(act/update.py); here for guests of any runtime, by their marks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from nestrt.act import update
from nestrt.act.containers import Container
from nestrt.broker import devices
from nestrt.broker.own_state import follow
from nestrt.broker.refusal import Refusal
from nestrt.broker.served import Served
from nestrt.guest import client
from nestrt.level.limits import Limits, from_mark, over, parse_ios
from nestrt.level.units import parse_count, parse_cpus, parse_quota, parse_size, parse_weight
from nestrt.plan.change import completed, resources_of
from nestrt.record import replace

if TYPE_CHECKING:
    from nestrt.broker.device_rules import Rules
    from nestrt.broker.devices import Note
    from nestrt.broker.host_methods import HostRequest

PARSERS: dict[str, tuple[str, Any]] = {
    "memory.max": ("memory", lambda text: parse_size(text, "memory.max")),
    "memory.swap.max": ("swap", lambda text: parse_size(text, "memory.swap.max")),
    "cpu.max": ("cpu_quota", parse_quota),
    "cpu.weight": ("cpu_weight", parse_weight),
    "cpuset.cpus": ("cpus", parse_cpus),
    "cpuset.mems": ("mems", lambda text: parse_cpus(text, "list of memory nodes")),
    "pids.max": ("pids", parse_count),
    "io.max": ("io", lambda text: parse_ios(text.splitlines())),
}


def parse(settings: dict[str, str]) -> Limits:
    """*settings* as Limits. Raises Refusal for a key that is no limit, InputError for a value."""
    values: dict[str, Any] = {}
    for key, text in settings.items():
        name = client.SHORT.get(key, key)
        if name not in PARSERS:
            raise Refusal("BadValue", f"cannot set {key[:80]!r}: no such limit", "limits are " + ", ".join(PARSERS))
        field, convert = PARSERS[name]
        values[field] = convert(text)
    return Limits(**values)


def change(guest: Served, new: Limits, rules: Rules | None, note: Note) -> Limits:
    """Make *guest* have *new* besides what it has; returns what it had of them. Raises NestrtError, OSError."""
    guest.learn()  # an engine's update by the runtime itself has not come by here
    had = from_mark(guest.known.limits or {})
    plain = completed(new, had)
    values = {"cgroup": guest.limit, "virtualized": True, "root": guest.known.root}

    def then() -> None:
        if rules is not None:
            devices.set_guest_rules(guest, rules, note)

    limits = replace(plain, io=over(had, plain).io).to_mark()
    subject = Container("", guest.name, values)
    update.change(subject, guest.hierarchies, resources_of(replace(had, swap=None)), resources_of(plain), limits, then)
    guest.learn()
    follow(guest, resources_of(plain), rules)
    return had


async def set_limits(request: HostRequest) -> dict[str, Any]:
    """All of the settings, or none; the guest's CPU numbers follow, and an event says so."""
    guest = request.served()
    new = parse(request["settings"])
    rules = None if request["devices"] is None else devices.parse_whole(request["devices"])
    async with guest.changing.host:
        if request.gone():
            message = f"cannot set limits of {guest.name}: whoever asked has not waited for it"
            raise Refusal("Busy", message, "try again")
        # Not in one of the guest's threads, which may be as long at work as it likes.
        had = await trio.to_thread.run_sync(lambda: change(guest, new, rules, request.note))
        guest.refresh()
    for key, (field, _) in PARSERS.items():
        if getattr(new, field) not in (None, ()):
            request.note("/", key, had.to_mark().get(field), new.to_mark().get(field))
    return {}
