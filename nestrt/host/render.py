"""Pictures for people: the tree, tables, sizes. Everything that a guest may have written is escaped.

Nothing here prints. Colours and bars are for terminals only (style.py); without UTF-8 the tree is drawn in ASCII.
"""

from __future__ import annotations

import time

from nestrt.host.effective import Limit
from nestrt.host.marks import escape
from nestrt.host.processes import Process
from nestrt.host.sight import Sight
from nestrt.host.style import Style
from nestrt.host.walk import Guest
from nestrt.level.units import MAX, format_cpus, format_quota
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.keys import Value

# Of a tree: between siblings, the last one, and what stands below each.
GLYPHS = ("├─ ", "└─ ", "│  ", "   ")
ASCII = ("|- ", "`- ", "|  ", "   ")


@record
class Node:
    """A line of a tree and the nodes below it."""

    text: str
    below: list[Node]


def human(size: int) -> str:
    """*size* bytes in IEC units with at most one decimal: 1.5K, 512M, ``max`` for -1."""
    if size == MAX:
        return "max"
    number = float(size)
    for unit in ("", "K", "M", "G", "T", "P"):
        if number < 1024 or unit == "P":
            break
        number /= 1024
    text = f"{number:.1f}".removesuffix(".0") + unit
    return text if text != "1024K" else "1M"


def ago(seconds: float) -> str:
    """A span of time in its largest unit: 5s, 3m, 7h, 12d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def moment(unix: int) -> str:
    """Seconds since 1970 as UTC, or "-" if not known or beyond what a calendar has."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix)) if unix >= 0 else "-"
    except (OverflowError, ValueError, OSError):
        return "-"


def amount(found: Limit, value: Value | None) -> str:
    """A value of a limit in the unit of its key, "-" for nothing."""
    if value is None:
        return "-"
    if isinstance(value, frozenset):
        return format_cpus(value) or "-"
    if isinstance(value, dict):
        rates = [(key, human(number) if key.endswith("bps") else str(number)) for key, number in value.items()]
        return ", ".join(f"{key}={text}" for key, text in rates) or "max"
    if found.key == "cpu.max":
        return format_quota(value)
    return human(value) if found.unit == "bytes" else "max" if value == MAX else str(value)


def used(found: Limit | None) -> str:
    """USE/LIMIT by the effective limit, "-" where nothing counts."""
    if found is None:
        return "-"
    return f"{amount(found, found.usage)}/{amount(found, found.effective)}"


def table(rows: list[tuple[str, ...]], width: int | None = None) -> list[str]:
    """Rows with their columns aligned, the last one not padded; cut to *width* where there is one."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    widths[-1] = 0
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines if width is None else [line[:width] for line in lines]


def word(sight: Sight, found: Guest) -> str:
    """Whose word the mark is: that of the level that looks ("host", in a guest "own"), or somebody's "claim"."""
    return "claim" if found.claim else "own" if sight.view.level else "host"


SHORT = {"memory.max": "memory", "pids.max": "pids", "cpu.max": "cpu", "cpuset.cpus": "cpus", "io.max": "io"}


def _limits(found: list[Limit], path: str, names: dict[str, str], style: Style) -> str:
    """Usage and own limits of a group; where less works than was asked for, also how much, and who binds."""
    parts = []
    for limit in found:
        own = limit.limit not in (MAX, {})
        if isinstance(limit.limit, frozenset) and isinstance(limit.effective, frozenset):
            # v1 has a set in every group: one as large as its parent's is no limit.
            own = limit.binds == path or not limit.limit <= limit.effective
        usage = limit.usage if limit.key in ("memory.max", "pids.max") else None
        if not own and usage is None:
            continue
        text = "/".join([amount(limit, usage)] * (usage is not None) + [amount(limit, limit.limit)] * own)
        if own and limit.effective != limit.limit and isinstance(limit.binds, str) and limit.binds:
            by = names.get(limit.binds, limit.binds)
            text += style(f" ({amount(limit, limit.effective)}: {escape(by)} binds)", "yellow")
        parts.append(f"{SHORT.get(limit.key, limit.key)} {text}{_bar(limit, style) if own else ''}")
    return ", ".join(parts)


def _bar(limit: Limit, style: Style) -> str:
    """A bar of what is used of what works, on a terminal, for memory and pids."""
    if limit.key not in ("memory.max", "pids.max") or not isinstance(limit.effective, int):
        return ""
    bar = style.bar(limit.usage, limit.effective)
    return f" {bar}" if bar else ""


def process_line(found: Process) -> str:
    """PID (pid in the guest) COMMAND; "?" for one outside our pid namespace."""
    if not found.pid:
        return "? (outside this pid namespace)"
    guest_pid = f" ({found.guest_pid})" if found.guest_pid > 0 else ""
    return f"{found.pid}{guest_pid} {escape(found.command)}"


STATES = {"running": "green", "paused": "yellow", "creating": "cyan", "stopped": "dim"}


def guest_line(sight: Sight, found: Guest, style: Style, controllers: frozenset[str] | None = None) -> str:
    """The line of a guest in the tree; of its limits those of *controllers*."""
    state = sight.state(found)
    parts = [f"level {found.level}", style(state, STATES[state])]
    if (pid := sight.pid(found)) > 0:
        parts.append(f"pid {pid}")
    for key in SHORT:
        limit = sight.limit(found, key)
        if limit is None or (limit.usage is None and limit.effective in (MAX, {})):
            continue
        if controllers is None or limit.controller in controllers:
            text = amount(limit, limit.effective) if limit.usage is None else used(limit)
            parts.append(f"{SHORT[key]} {text}{_bar(limit, style)}")
    if found.mark.made_by not in ("", "launch"):
        parts.append(f"by {escape(found.mark.made_by)}")
    if found.mark.locked:
        parts.append("locked")
    if found.claim:
        parts.append(style("claim", "magenta"))
    if found.mark.problems:
        parts.append(style(f"mark unreadable: {escape(found.mark.problems[0])}", "red"))
    if found.unread:
        parts.append(style(f"not read below {len(found.unread)} groups", "red"))
    return style(escape(found.name), "bold") + "  " + ", ".join(parts)


class Tree:
    """Builds the picture of ``nestrt tree``."""

    def __init__(
        self,
        sight: Sight,
        processes: bool,
        depth: int | None,
        style: Style,
        controllers: frozenset[str] | None = None,
    ) -> None:
        self.sight = sight
        self.processes = processes
        self.depth = depth
        self.style = style
        self.controllers = controllers

    def guest(self, found: Guest) -> Node:
        """The node of a guest: groups and guests where they are; groups too deep are left out, guests never."""
        top = Node(guest_line(self.sight, found, self.style, self.controllers), [])
        nodes = {found.path: top, found.root: top}
        inner = {guest.path: guest for guest in found.guests}
        hierarchies = {group.path: group.hierarchies for group in found.groups}
        whole = set(found.hierarchies)
        self._add_processes(found, found.path, top)
        for path in sorted({*inner, *hierarchies}, key=lambda path: path.split("/")):
            parent = nodes[found.path]
            above = path
            while above != found.path:
                above = above.rpartition("/")[0]
                if above in nodes:
                    parent = nodes[above]
                    break
            if path in inner:
                parent.below.append(self.guest(inner[path]))
                continue
            if path == found.root:
                self._add_processes(found, path, top)
                continue
            if self.depth is not None and path.count("/") - found.root.count("/") > self.depth:
                continue
            parent.below.append(self._group(found, path, hierarchies[path], whole))
            nodes[path] = parent.below[-1]
            self._add_processes(found, path, nodes[path])
        return top

    def _group(self, found: Guest, path: str, hierarchies: tuple[str, ...], whole: set[str]) -> Node:
        inside = path.startswith(found.root + "/")
        text = escape(path.rpartition("/")[2]) if inside else "../" + escape(path[len(found.path) + 1 :])
        limits = self.sight.limits(path, hierarchies)
        if self.controllers is not None:
            limits = [limit for limit in limits if limit.controller in self.controllers]
        if told := _limits(limits, path, self.sight.names, self.style):
            text += "  " + told
        # v1: a group may have been made in some hierarchies only.
        if whole - set(hierarchies):
            text += "  [" + " ".join(name or "v2" for name in hierarchies) + "]"
        return Node(text, [])

    def _add_processes(self, found: Guest, path: str, node: Node) -> None:
        if self.processes:
            members = (process for process in self.sight.processes(found) if process.group == path)
            node.below += [Node(self.style(process_line(process), "dim"), []) for process in members]


def draw(node: Node, glyphs: tuple[str, str, str, str] = GLYPHS) -> list[str]:
    """The lines of a tree, as systemd-cgls draws it."""
    lines = [node.text]
    queue = [(child, "", number == len(node.below) - 1) for number, child in enumerate(node.below)][::-1]
    while queue:
        child, indent, last = queue.pop()
        lines.append(indent + glyphs[1 if last else 0] + child.text)
        deeper = indent + glyphs[3 if last else 2]
        queue += [(below, deeper, i == len(child.below) - 1) for i, below in enumerate(child.below)][::-1]
    return lines
