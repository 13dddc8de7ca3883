"""``nestrt host status``: how a level is divided just now, as a document and as lines."""

from __future__ import annotations

from nestrt.errors import HostError
from nestrt.host.marks import escape
from nestrt.host.walk import walk
from nestrt.kernel import cgroup
from nestrt.level.units import format_size
from nestrt.plan.host_split import DEFAULT, FILES, GUESTS, shares, system_alone
from nestrt.probe.facts import read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from nestrt.plan.facts import Hierarchy
    from nestrt.plan.host_split import Group, State

# Groups that systemd has for the system's own tasks: weighed as guests' they would take its share from it.
SYSTEMS = ("/system.slice", "/user.slice", "/init.scope")


def _read(path: str) -> str | None:
    try:
        return cgroup.read(path)
    except OSError:
        return None


def _quota(h: Hierarchy, path: str) -> float | None:
    """CPUs that the group's quota is worth; None where it has none."""
    if h.version == 2:
        words = (_read(h.path(path, "cpu.max")) or "max").split()
    else:
        words = [_read(h.path(path, f"cpu.cfs_{name}_us")) or "-1" for name in ("quota", "period")]
    return int(words[0]) / int(words[1]) if words[0].isdigit() and len(words) == 2 else None


def _bytes(h: Hierarchy | None, path: str, what: str, most: int) -> int | None:
    text = _read(h.path(path, FILES[what][h.version])) if h is not None else None
    number = int(text) if text and text.isdigit() else None
    return number if number is not None and number < most else None


def elsewhere(paths: Iterable[str], parents: Iterable[str]) -> list[str]:
    """The groups right below "/" that the guests with these limit groups are in, or are, without those of *parents*."""
    return sorted({"/" + path.split("/")[1] for path in paths} - set(parents))


def outermost() -> list[str]:
    """The limit groups of the guests of this level, without those in each other."""
    return [guest.path for guest in walk(read_hierarchies(), inside=False).guests]


def counted_as_system(paths: Iterable[str], parents: Iterable[str]) -> str:
    """One line on the guests that are below no parent of guests, and what to do; "" where there are none."""
    paths, parents = list(paths), list(parents)
    found = elsewhere(paths, parents)
    # One that is right below "/" has a weight of its own, and no parent that could get another.
    mixed = [group for group in found if group in SYSTEMS or group in paths]
    whole = [group for group in found if group not in mixed]
    parts = []
    if whole:
        options = " ".join(f"--guests {escape(group)}" for group in (*parents, *whole))
        where = escape(", ".join(whole))
        parts.append(f"guests in {where} count as the system: nestrt host init {options}, with its other options as "
                     "they were, divides so")  # fmt: skip
    if mixed:
        where = escape(", ".join(mixed))
        parts.append(f"guests in {where} count as the system: start them below a group of their own, then name it to "
                     "nestrt host init --guests")  # fmt: skip
    return "; ".join(parts)


def _guests(state: State, whole: dict[str, float]) -> list[dict[str, Any]]:
    """What each guest right below a parent of guests gets where everybody wants all."""
    found = []
    h = state.cpu
    assert h is not None
    for guest in walk(read_hierarchies(), inside=False).guests:
        parent, _, name = guest.path.rpartition("/")
        if parent not in whole or not name:
            continue
        weights = {
            one: _read(h.path(f"{parent}/{one}", FILES["weight"][h.version])) for one in cgroup.children(h.path(parent))
        }
        numbers = {one: int(text) if text and text.isdigit() else DEFAULT[h.version] for one, text in weights.items()}
        share = whole[parent] * numbers[name] / sum(numbers.values()) if name in numbers else 0.0
        found.append({"name": guest.name, "path": guest.path, "cpu_share": share})
    return found


def document(state: State) -> dict[str, Any]:
    """Shares are 0 to 1 of the level's CPU time, sizes bytes. Raises HostError without a cpu controller."""
    h = state.cpu
    if h is None:
        raise HostError("look at", "the CPU time", "no hierarchy of this level has the cpu controller", "mount it")
    of_memory = {group.path: group for group in state.memory_groups}
    kept = {group.path: group.kept for group in (*state.groups, *state.memory_groups) if group.kept}
    parents = {path for path, one in kept.items() if one.role == "guests"}
    whole, alone = shares(state), system_alone(state, parents or {GUESTS})
    paths = outermost()

    def row(group: Group) -> dict[str, Any]:
        known = kept.get(group.path)
        memory = state.memory if group.path in of_memory else None
        return {
            "path": group.path,
            "role": known.role if known else "",
            "cpu_weight": group.weight,
            "cpu_share": whole.get(group.path, 0.0),
            "cpu_share_alone": alone.get(group.path),
            "cpu_quota": _quota(h, group.path),
            "memory_limit": _bytes(memory, group.path, "memory", state.bytes),
            "memory_usage": _bytes(memory, group.path, "usage", 1 << 62),
        }

    return {
        "split": bool(parents),
        "version": h.version,
        "cpus": state.cpus,
        "memory": state.bytes,
        "groups": [row(group) for group in state.groups],
        "root": {
            "processes": state.processes,
            "threads": state.threads,
            "cpu_share": whole.get("/", 0.0),
            "cpu_share_alone": alone.get("/"),
        },
        "guests": _guests(state, whole),
        "guests_elsewhere": elsewhere(paths, parents or {GUESTS}),
        "note": counted_as_system(paths, sorted(parents) or [GUESTS]) or None,
    }


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The document for a person."""
    state = "divided by nestrt host init" if found["split"] else "not divided: nestrt host init does"
    yield f"{found['cpus']:g} CPUs, {format_size(found['memory'])} of memory; {state}"
    rows: list[tuple[str, ...]] = [("GROUP", "ROLE", "WEIGHT", "ALL BUSY", "ALONE", "QUOTA", "MEMORY")]
    for row in found["groups"]:
        quota, limit = row["cpu_quota"], row["memory_limit"]
        cells = (_share(row["cpu_share"]), _share(row["cpu_share_alone"]), "-" if quota is None else f"{quota:g}")
        memory = "-" if limit is None else format_size(limit)
        rows.append((escape(row["path"]), row["role"] or "-", str(row["cpu_weight"]), *cells, memory))
    root = found["root"]
    if root["threads"]:
        name = f"/ ({root['threads']} threads)"
        rows.append((name, "-", "each", _share(root["cpu_share"]), _share(root["cpu_share_alone"]), "-", "-"))
    yield ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for line in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    yield ""
    yield "ALL BUSY: everybody wants all. ALONE: a group of the system, or one thread of /, against all guests."
    for guest in found["guests"]:
        yield f"guest {escape(guest['name'])}: {_share(guest['cpu_share'])} of the CPU time at worst"
    if found["note"]:
        yield f"note: {found['note']}"
