"""Rows of usages: which, in what order, and as JSON."""

from __future__ import annotations

from nestrt.host import report
from nestrt.host.sample import Usage, by_level
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Json = dict[str, Any]


@record
class Choice:
    """What is shown: *by* guest, group or level; *order* is one of ORDERS, *reverse* turns it round; *tree*: those
    inside another stand below it; *text* is part of the name; *depth*: levels of guests below this one, and groups
    below a guest root; *names*: these guests only, with what is inside them."""

    by: str = "guest"
    order: str = "cpu"
    reverse: bool = False
    tree: bool = False
    text: str = ""
    depth: int | None = None
    names: tuple[str, ...] = ()


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None and other is None else (one or 0.0) + (other or 0.0)


def _worst(usage: Usage) -> float | None:
    return max((each for each in usage.pressure if each is not None), default=None)


# What the largest comes first of; None is last.
LARGEST: dict[str, Callable[[Usage], float | None]] = {
    "cpu": lambda usage: usage.cpu_percent,
    "memory": lambda usage: usage.counters.memory,
    "io": lambda usage: _sum(usage.read_rate, usage.write_rate),
    "tasks": lambda usage: usage.counters.pids,
    "pressure": _worst,
    "throttled": lambda usage: usage.throttled_percent,
    "kills": lambda usage: usage.counters.oom_kills,
}
ORDERS = ("path", "name", *LARGEST)


def in_order(usages: list[Usage], order: str, reverse: bool = False) -> list[Usage]:
    """*usages* in order: the largest first, of equal ones by name; names and paths from A to Z."""
    if order == "path":
        return sorted(usages, key=lambda usage: usage.path.split("/"), reverse=reverse)
    if order == "name":
        return sorted(usages, key=lambda usage: (usage.name, usage.path), reverse=reverse)
    value = LARGEST[order]
    named = sorted(usages, key=lambda usage: (usage.name, usage.path))

    def key(usage: Usage) -> float:
        number = value(usage)
        return float("-inf") if number is None else number

    return sorted(named, key=key, reverse=not reverse)


def arrange(usages: list[Usage], choice: Choice, level: int = 0) -> list[tuple[Usage, int]]:
    """The rows to show of *usages*, seen from *level*, each with how far it is indented: 0 where there is no tree."""
    chosen = [usage for usage in usages if _is_chosen(usage, choice, level)]
    if not choice.tree or choice.by == "level":
        if choice.text:
            chosen = [usage for usage in chosen if matches(usage, choice.text)]
        if choice.by == "level":
            chosen = by_level(chosen)
        return [(usage, 0) for usage in in_order(chosen, choice.order, choice.reverse)]
    by_path = {usage.path: usage for usage in chosen}
    around = _around(usages, by_path)
    if choice.text:
        by_path = _with_those_around(by_path, around, choice.text)
    inner: dict[str, list[Usage]] = {}
    for path, usage in by_path.items():
        inner.setdefault(around[path], []).append(usage)
    rows: list[tuple[Usage, int]] = []
    stack = [(usage, 0) for usage in reversed(in_order(inner.get("", []), choice.order, choice.reverse))]
    while stack:
        usage, depth = stack.pop()
        rows.append((usage, depth))
        below = inner.get(usage.path, []) if usage.path else []
        stack += [(each, depth + 1) for each in reversed(in_order(below, choice.order, choice.reverse))]
    return rows


def matches(usage: Usage, text: str) -> bool:
    """Whether *text* is a part of the name or path, whatever the case."""
    text = text.lower()
    return text in usage.name.lower() or text in usage.path.lower()


def _around(usages: list[Usage], shown: dict[str, Usage]) -> dict[str, str]:
    """For each path in *shown* that of the next row around it that is in it too, "" where none is."""
    above = {usage.path: usage.parent for usage in usages}
    found = {}
    for path in shown:
        parent = above[path]
        while parent and parent not in shown:
            parent = above.get(parent, "")
        found[path] = parent
    return found


def _with_those_around(by_path: dict[str, Usage], around: dict[str, str], text: str) -> dict[str, Usage]:
    found: dict[str, Usage] = {}
    for path, usage in by_path.items():
        if matches(usage, text):
            while path and path not in found:
                found[path] = by_path[path]
                path = around[path]
    return found


def _is_chosen(usage: Usage, choice: Choice, level: int) -> bool:
    if choice.by != "group" and usage.kind != "guest":
        return False
    if choice.names and usage.guest and not _is_named(usage, choice.names):
        return False
    if choice.depth is None or usage.guest is None:
        return True
    if usage.kind == "group":
        return usage.path.count("/") - usage.guest.root.count("/") <= choice.depth
    return choice.by == "group" or usage.level - level <= choice.depth


def _is_named(usage: Usage, names: tuple[str, ...]) -> bool:
    assert usage.guest is not None
    for name in names:
        if usage.guest.name == name or usage.guest.name.startswith(name + "/"):
            return True
        if usage.path == name or usage.path.startswith(name + "/"):
            return True
    return False


def as_json(usage: Usage, now: float) -> Json:
    """A row of ``top --format json``.

    *time* is *now*, in seconds since 1970. CPU is in percent of one CPU, cpu_quota µs per 100000 µs. "memory" and
    "pids" are limits as everywhere (report.py), the usage is that of this sample; "pressure" is by resource.
    Rates are null where there are no two samples to make them of.
    """
    counters, guest = usage.counters, usage.guest
    return {
        "time": round(now, 3),
        "name": usage.name,
        "kind": usage.kind,
        "level": usage.level,
        "path": usage.path or None,
        "id": guest.mark.id if guest else "",
        "state": usage.state or None,
        "claim": usage.claim,
        "made_by": (guest.mark.made_by or None) if guest else None,
        "cpu_percent": _rounded(usage.cpu_percent),
        "cpu_quota": usage.effective("cpu.max"),
        "cpu_quota_percent": _rounded(usage.quota_percent),
        "cpu_usec": counters.cpu_usec,
        "throttled_percent": _rounded(usage.throttled_percent),
        "memory": _used(usage, "memory.max", counters.memory),
        "memory_percent": _rounded(usage.percent("memory.max", counters.memory)),
        "swap": counters.swap,
        "io_read_bytes": counters.io_read_bytes,
        "io_write_bytes": counters.io_write_bytes,
        "io_read_rate": _rounded(usage.read_rate),
        "io_write_rate": _rounded(usage.write_rate),
        "pids": _used(usage, "pids.max", counters.pids),
        "pressure": counters.pressure,
        "oom_kills": counters.oom_kills,
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 2)


NO_LIMIT = dict.fromkeys(("key", "controller", "hierarchy", "unit", "limit", "effective", "binds", "usage"))


def _used(usage: Usage, key: str, used: int | None) -> Json | None:
    limit = usage.limits.get(key)
    if limit is None:
        return None if used is None else {**NO_LIMIT, "usage": used}
    return report.limit(replace(limit, usage=used))
