"""``nestrt events --totals``: how often what has happened to guests so far, as the kernel counts."""

from __future__ import annotations

import argparse

from nestrt.cli._formats import Column, write_rows
from nestrt.host.counters import CounterReader
from nestrt.host.walk import walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from nestrt.plan.facts import Hierarchy

COUNTED = ("oom_kills", "memory_limit_hits", "pids_limit_hits", "throttled_periods", "throttled_usec")
COLUMNS = (
    Column("NAME", "name"),
    Column("LEVEL", "level"),
    Column("OOM KILLS", "oom_kills", right=True),
    Column("MEMORY LIMIT", "memory_limit_hits", right=True),
    Column("PIDS LIMIT", "pids_limit_hits", right=True),
    Column("THROTTLED", "throttled_periods", right=True),
    Column("FROZEN", "frozen"),
)
CSV = tuple(Column(field, field) for field in ("name", "level", "claim", "path", *COUNTED, "frozen"))


def totals(options: argparse.Namespace, hierarchies: tuple[Hierarchy, ...], wanted: Callable[[str, str], bool]) -> int:
    """A row for each guest. Returns 0."""
    reader = CounterReader(hierarchies, frozenset((*COUNTED, "frozen")))

    def rows() -> Iterator[dict[str, Any]]:
        for guest in walk(hierarchies, inside=True).everyone():
            if wanted(guest.name, guest.path):
                counters = reader.read(guest.path, guest.hierarchies)
                row = {"name": guest.name, "level": guest.level, "claim": guest.claim, "path": guest.path}
                yield row | {field: getattr(counters, field) for field in (*COUNTED, "frozen")}

    try:
        return write_rows(options, rows(), CSV if options.format == "csv" else COLUMNS)
    finally:
        reader.close()
