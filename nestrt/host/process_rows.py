"""The rows and the tree of ``nestrt ps``: the processes of guests, each with its innermost guest.

Users outside have the names that this level's user database gives them; a guest's own files are never read, so users
inside are numbers. Sources: proc_pid_stat(5), sysconf(3) (_SC_CLK_TCK), clock_gettime(2) (CLOCK_BOOTTIME).
"""

from __future__ import annotations

import os
import pwd
import time

from nestrt.host import report
from nestrt.host.marks import escape
from nestrt.host.processes import Process
from nestrt.host.render import Node
from nestrt.host.sample import inside
from nestrt.host.sight import Sight
from nestrt.host.walk import Guest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Row = dict[str, Any]

HZ = os.sysconf("SC_CLK_TCK")
DEEPEST = 64  # of a tree: what is deeper stands there


class Rows:
    """Makes rows, all of one moment."""

    def __init__(self) -> None:
        self.now = time.time()
        self.uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._names: dict[int, str | None] = {}

    def user(self, uid: int) -> str | None:
        """The name of *uid* on this level, its number where it has none; None where it is not known."""
        if uid not in self._names:
            try:
                self._names[uid] = pwd.getpwuid(uid).pw_name if uid >= 0 else None
            except (KeyError, OverflowError):
                self._names[uid] = str(uid)
        return self._names[uid]

    def row(self, guest: Guest, process: Process) -> Row:
        """A process as ``--format json`` has it.

        The fields of a process (report.process()), and "guest", "level"; "guest_group", its group as the guest calls
        it; "user", the name of uid; "name", the kernel's for it; "parent", null where that is outside our pid
        namespace; "state", a letter of proc_pid_stat(5); "started" in seconds since 1970, "elapsed" in s, "cpu_usec",
        "rss" in bytes, "threads".
        """
        known = process.pid > 0
        elapsed = max(0.0, self.uptime - process.start / HZ) if known else None
        return {
            **report.process(process),
            "guest": guest.name,
            "level": guest.level,
            "guest_group": inside(guest, process.group),
            "user": self.user(process.uid) if known else None,
            "name": process.name if known else None,
            "parent": process.parent or None if known else None,
            "state": process.state or None,
            "started": None if elapsed is None else int(self.now - elapsed),
            "elapsed": None if elapsed is None else int(elapsed),
            "cpu_usec": process.ticks * 1_000_000 // HZ if known else None,
            "rss": process.rss if known else None,
            "threads": process.threads if known else None,
        }

    def rows(self, sight: Sight, guests: Iterable[Guest]) -> Iterator[Row]:
        """The processes of *guests*, without those of guests inside them."""
        for guest in guests:
            for process in sight.processes(guest):
                yield self.row(guest, process)


def ordered(rows: Iterable[Row], fields: list[tuple[str, bool]]) -> list[Row]:
    """*rows* by *fields*: (name, whether the largest comes first). What is not known comes last."""
    found = list(rows)
    for name, backwards in reversed(fields):
        known = [row for row in found if row[name] is not None]
        known.sort(key=lambda row: row[name], reverse=backwards)
        found = known + [row for row in found if row[name] is None]
    return found


def tree(sight: Sight, guests: list[Guest], wanted: set[str], rows: Rows, show: Callable[[Row], str]) -> list[Node]:
    """*guests* with their processes by parent, then their guests. Of those not in *wanted* (paths) no processes."""
    nodes = []
    for guest in guests:
        found = [rows.row(guest, process) for process in sight.processes(guest)] if guest.path in wanted else []
        below = tree(sight, guest.guests, wanted, rows, show)
        if guest.path in wanted or below:
            count = f"{len(found)} process{'' if len(found) == 1 else 'es'}"
            nodes.append(Node(f"{escape(guest.name)}  level {guest.level}, {count}", family(found, show) + below))
    return nodes


def family(found: list[Row], show: Callable[[Row], str]) -> list[Node]:
    """Processes below their parents; those whose parent is not among them at the top, by pid."""
    nodes = {row["pid"]: Node(show(row), []) for row in found if row["pid"]}
    parents = {row["pid"]: row["parent"] for row in found if row["pid"]}
    tops: list[Node] = []
    children: dict[int, list[int]] = {}
    for pid in sorted(nodes):
        children.setdefault(parents[pid] if parents[pid] in nodes else 0, []).append(pid)
    # A number can have become another process's between two readings, and parents go in a circle then.
    left = set(nodes)
    for start in (*children.get(0, []), *sorted(nodes)):
        queue: list[tuple[int, list[Node], int]] = [(start, tops, 0)]
        while queue:
            pid, around, depth = queue.pop()
            if pid not in left:
                continue
            left.discard(pid)
            around.append(nodes[pid])
            inner = nodes[pid].below if depth < DEEPEST else around
            queue += [(child, inner, depth + 1) for child in reversed(children.get(pid, []))]
    return tops + [Node(show(row), []) for row in found if not row["pid"]]
