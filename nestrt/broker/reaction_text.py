"""Reactions as text: what a guest asks for, what is kept of it on the group, and what to decide. Pure.

Kept is JSON, in an extended attribute of the group's directory, so it goes with the group::

    {"v": 1, "reactions": [{"on": "oom", "action": "raise", "step": "16M", "most": "256M",
                            "was": {"memory.high": "max"}}]}

It is read as strictly as a call is: an attribute that somebody below could set is no more than what he could ask for.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from nestrt.broker.refusal import Refusal
from nestrt.guest import client
from nestrt.host.pressure import parse_threshold
from nestrt.record import record

LARGEST = 8192  # bytes of the attribute; two reactions take 600
LONGEST_WAIT = 60.0  # seconds
PAGE = 4096
MIB = 1 << 20

ONS = ("oom", "pressure")
ACTIONS = ("kill", "freeze", "raise", "tell")
FALLBACKS = ("kill", "freeze", "nothing")
ANSWERS = ("kill", "freeze", "raise", "nothing")
FIELDS = ("group", "on", "action", "threshold", "step", "most", "seconds", "fallback")

# memory.high stands this much below memory.max: a 16th, and what can be charged while an answer is awaited. A task
# that is far above memory.high sleeps 2 s for each batch of 64 pages (mm/memcontrol.c, MEMCG_MAX_HIGH_DELAY_JIFFIES,
# MEMCG_CHARGE_BATCH): 128 KiB a second, and half as much again for a second task.
SHARE = 16
PER_SECOND = 192 << 10
LEAST_MARGIN = 256 << 10

# What the files that a reaction sets may have held before, to be put back.
_BEFORE = {
    "memory.high": re.compile(r"max|[0-9]{1,19}"),
    "memory.oom.group": re.compile("[01]"),
    "memory.oom_control": re.compile("[01]"),
}


@record
class Reaction:
    """What the interface's type Reaction has, checked, and *above*: it was set by who owns the group above, so
    only he, and the guest's root, may change it or answer it."""

    group: str
    on: str
    action: str
    threshold: str | None = None
    step: str | None = None
    most: str | None = None
    seconds: float | None = None
    fallback: str | None = None
    above: bool = False

    def shown(self) -> dict[str, Any]:
        """As the interface has it."""
        return {name: getattr(self, name) for name in FIELDS}

    @property
    def waits(self) -> bool:
        """Whether the kernel should hold the group while something is decided: all but kill, which it can do itself."""
        return self.on == "oom" and self.action != "kill"


def _bad(group: str, reason: str, remedy: str) -> NoReturn:
    raise Refusal("BadValue", f"cannot react for group {group}: {reason}", remedy)


def _size(group: str, name: str, text: Any) -> float:
    try:
        size = client.parse_size(text)
    except ValueError:
        size = client.MAX
    if not PAGE <= size < client.MAX:
        _bad(group, f"{name} {text[:40]!r} is no size to raise by or to", "write it like 16M")
    return size


def _check_raise(found: Reaction) -> None:
    group = found.group
    if (found.step is None) != (found.most is None) or (found.action == "raise" and found.step is None):
        _bad(group, "step or most is missing", "raise takes both: by how much at a time, and up to what")
    if found.step is None or found.most is None:
        return
    if found.action not in ("raise", "tell"):
        _bad(group, f"{found.action} takes no step and no most", "leave them out")
    step, most = _size(group, "step", found.step), _size(group, "most", found.most)
    if step > most:
        _bad(group, f"step {found.step} is more than most {found.most}", "give a smaller step")


def _check_wait(found: Reaction) -> None:
    group, seconds = found.group, found.seconds
    if found.action == "tell":
        if seconds is None or not 0 < seconds <= LONGEST_WAIT:
            _bad(group, "tell takes the seconds to wait for an answer", f"more than 0 and at most {LONGEST_WAIT:g}")
    elif seconds is not None:
        _bad(group, f"{found.action} does not wait", "leave out seconds")
    if found.fallback is not None and found.action not in ("tell", "raise"):
        _bad(group, f"{found.action} takes no fallback", "leave it out")
    if found.fallback not in (None, *FALLBACKS):
        _bad(group, f"no fallback is called {found.fallback[:40]!r}", f"name one of {', '.join(FALLBACKS)}")


def _check_threshold(found: Reaction) -> None:
    group, threshold = found.group, found.threshold
    if found.on == "oom":
        if threshold is not None:
            _bad(group, "oom takes no threshold", "leave it out, or react on pressure")
        return
    trigger = parse_threshold(threshold or "")
    if trigger is None:
        remedy = "write µs of stall in a window of 500000 to 10000000 µs: some 150000 1000000; or low, medium, critical"
        _bad(group, f"{(threshold or '')[:60]!r} is no threshold", remedy)
    if found.step is not None and not trigger.file.startswith("memory."):
        _bad(group, f"more memory does not help against {trigger.file}", "react on memory pressure")


def parse(values: dict[str, Any], group: str) -> Reaction:
    """The reaction that *values* ask for, of the checked *group*. Raises Refusal (BadValue)."""
    kept: dict[str, Any] = {name: values.get(name) for name in FIELDS if name != "group"}
    for name, value in kept.items():
        if value is not None and not isinstance(value, (int, float) if name == "seconds" else str):
            _bad(group, f"{name} is of another type", "see the interface")
    found = Reaction(group=group, above=values.get("above") is True, **kept)
    if group == "/":
        _bad(group, "it is the guest's own, which the level above looks after", "name a child group")
    if found.on not in ONS:
        _bad(group, f"nothing is called {str(found.on)[:40]!r}", f"name one of {', '.join(ONS)}")
    if found.action not in ACTIONS:
        _bad(group, f"no action is called {str(found.action)[:40]!r}", f"name one of {', '.join(ACTIONS)}")
    _check_threshold(found)
    _check_raise(found)
    _check_wait(found)
    return found


# What is kept.


def encode(kept: list[tuple[Reaction, dict[str, str]]]) -> bytes:
    """Reactions, each with what its files held before, as the attribute has them."""
    rows = []
    for reaction, was in kept:
        row: dict[str, Any] = {name: value for name, value in reaction.shown().items() if name != "group"}
        row |= {"above": reaction.above, "was": was}
        rows.append({name: value for name, value in row.items() if value not in (None, False, {})})
    return json.dumps({"v": 1, "reactions": rows}, separators=(",", ":")).encode()


def decode(raw: bytes, group: str) -> list[tuple[Reaction, dict[str, str]]]:
    """The inverse; what does not fit is left out, and of several for one event all but the first. Never raises."""
    try:
        values = json.loads(raw.decode()) if len(raw) <= LARGEST else None
    except (ValueError, RecursionError):
        return []
    rows = values.get("reactions") if isinstance(values, dict) and values.get("v") == 1 else None
    found: dict[str, tuple[Reaction, dict[str, str]]] = {}
    for row in rows[: len(ONS)] if isinstance(rows, list) else ():
        if not isinstance(row, dict):
            continue
        try:
            reaction = parse(row, group)
        except Refusal:
            continue
        was = row.get("was")
        was = was if isinstance(was, dict) else {}
        known = {k: v for k, v in was.items() if k in _BEFORE and isinstance(v, str) and _BEFORE[k].fullmatch(v)}
        found.setdefault(reaction.on, (reaction, known))
    return list(found.values())


# What to decide.


def raised(now: float, step: float, most: float, above: list[tuple[float, float]]) -> float:
    """memory.max after one step, in bytes; not more than *now* where there is nothing to give.

    *above*: limit and use of each group above. What these have in use they cannot give.
    """
    if now == client.MAX:
        return now
    free = min((limit - use for limit, use in above), default=client.MAX)
    limits = [limit for limit, _ in above]
    new = min(now + min(step, max(free, 0.0)), most, *limits)
    return max(new // PAGE * PAGE, now)


def high_below(maximum: float, seconds: float | None) -> int | None:
    """Where memory.high stands for a memory.max in bytes, None where that is no limit. *seconds*: how long it is to
    hold a group."""
    if maximum == client.MAX:
        return None
    margin = max(maximum // SHARE, LEAST_MARGIN, PER_SECOND * (seconds or 0))
    return int((maximum - min(margin, maximum // 2)) // PAGE * PAGE)


def is_near(current: int, high: int, cache: int, swap: float) -> bool:
    """Whether a group above its memory.high has nothing left that the kernel could take from it instead: *cache* are
    bytes of files in memory, *swap* those that it may still swap out."""
    slack = max(high // (2 * SHARE), LEAST_MARGIN // 2)
    return current >= high - slack and cache <= slack and swap <= slack
