"""All methods of io.nestrt.Guest, by name."""

from __future__ import annotations

from nestrt.broker import devices, events, groups, moves, reactions, rules, running
from nestrt.broker.request import Method

METHODS: dict[str, Method] = {
    **groups.METHODS,
    **moves.METHODS,
    **running.METHODS,
    **devices.METHODS,
    **events.METHODS,
    **reactions.METHODS,
    **rules.METHODS,
}
