"""The columns of ``nestrt top``: what stands in each, how wide it is, which go first where there is little room."""

from __future__ import annotations

import unicodedata

from nestrt.cli._formats import Column, plain
from nestrt.host.marks import escape
from nestrt.host.render import human
from nestrt.host.sample import Usage
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

KILLED_FOR = 10.0  # s that a row is marked after a kill
STATES = {"running": "R", "paused": "P", "stopped": "-", "": "?"}
# From how much of a limit, and from which pressure, a cell is noticeable, and from how much it is alarming.
HIGH, FULL = 80.0, 95.0
PRESSED, CHOKED = 10.0, 40.0
SHORTEST_NAME = 18
GAP = 1


def one_column(text: str) -> str:
    """*text* escaped, and with only characters that take one column: cells stay where they are, whatever a guest
    calls its groups."""
    text = escape(text)
    if text.isascii():
        return text
    return "".join(c if _is_narrow(c) else ascii(c)[1:-1] for c in text)


def _is_narrow(char: str) -> bool:
    return unicodedata.east_asian_width(char) not in "WF" and unicodedata.category(char) not in ("Mn", "Me", "Mc", "Cf")


def shortened(text: str, width: int, dots: str = "…") -> str:
    """*text* in *width* columns; what is too long loses its middle: names that begin alike differ at their ends."""
    if len(text) <= width:
        return text
    if width < 8:
        return text[:width]
    tail = (width - len(dots)) // 2
    return text[: width - len(dots) - tail] + dots + text[len(text) - tail :]


def percent(value: float | None) -> str:
    """A percentage with one decimal, none from 1000 on; "-" where it is not known."""
    return "-" if value is None else f"{value:.1f}" if value < 999.95 else f"{value:.0f}"


def size(value: float | None) -> str:
    """Bytes in IEC units, "-" where it is not known."""
    return "-" if value is None else human(int(value))


def count(value: int | None) -> str:
    """A number that leaves room for others: 12345, 123K."""
    if value is None:
        return "-"
    return str(value) if value < 100_000 else f"{value // 1000}K" if value < 100_000_000 else f"{value // 1_000_000}M"


def _of(used: str, limit: str | None) -> str:
    return used if limit is None else f"{used}/{limit}"


def memory(usage: Usage) -> str:
    """Used, and the effective limit after a slash."""
    limit = usage.effective("memory.max")
    return _of(size(usage.counters.memory), None if limit is None else size(limit))


def pids(usage: Usage) -> str:
    """Tasks, and how many are allowed after a slash."""
    limit = usage.effective("pids.max")
    return _of(count(usage.counters.pids), None if limit is None else count(limit))


def bar(value: float | None, width: int, fill: str, rest: str) -> str:
    """A percentage as a bar of *width* columns."""
    if value is None:
        return " " * width
    full = min(width, round(value * width / 100))
    return fill * full + rest * (width - full)


def _load(value: float | None, high: float, full: float) -> str:
    return "" if value is None or value < high else "alarm" if value >= full else "warn"


@record
class Cell:
    """A column of the full screen: its title, how wide, which *rank* it has (the highest goes first where there is no
    room), its text and its style ("", warn, alarm, low, good) of a row."""

    title: str
    width: int
    rank: int
    text: Callable[[Usage], str]
    style: Callable[[Usage, float], str] = lambda usage, now: ""
    order: str = ""
    left: bool = False


def _memory_percent(usage: Usage) -> float | None:
    return usage.percent("memory.max", usage.counters.memory)


def _state_style(usage: Usage, now: float) -> str:
    return {"running": "good", "paused": "warn"}.get(usage.state, "low")


def _pressure_cell(place: int, title: str) -> Cell:
    return Cell(
        title,
        5,
        5 + place,
        lambda usage: percent(usage.pressure[place]),
        lambda usage, now: _load(usage.pressure[place], PRESSED, CHOKED),
        "pressure",
    )


BAR = Cell("", 8, 11, lambda usage: "", lambda usage, now: _load(_memory_percent(usage), HIGH, FULL) or "good")

CELLS: tuple[Cell, ...] = (
    Cell("S", 1, 2, lambda usage: "" if usage.kind == "level" else STATES[usage.state], _state_style),
    Cell("CPU%", 6, 0, lambda usage: percent(usage.cpu_percent), order="cpu"),
    Cell(
        "QUOTA%",
        6,
        8,
        lambda usage: percent(usage.quota_percent),
        lambda usage, now: _load(usage.quota_percent, HIGH, FULL),
    ),
    Cell(
        "MEMORY",
        15,
        1,
        memory,
        lambda usage, now: _load(_memory_percent(usage), HIGH, FULL),
        "memory",
    ),
    BAR,
    Cell("SWAP", 7, 10, lambda usage: size(usage.counters.swap)),
    Cell("READ/s", 7, 4, lambda usage: size(usage.read_rate), order="io"),
    Cell("WRITE/s", 7, 4, lambda usage: size(usage.write_rate), order="io"),
    Cell(
        "PIDS",
        11,
        3,
        pids,
        lambda usage, now: _load(usage.percent("pids.max", usage.counters.pids), HIGH, FULL),
        "tasks",
    ),
    _pressure_cell(0, "P-CPU"),
    _pressure_cell(1, "P-MEM"),
    _pressure_cell(2, "P-IO"),
    Cell(
        "THR%",
        5,
        9,
        lambda usage: percent(usage.throttled_percent),
        lambda usage, now: _load(usage.throttled_percent, PRESSED, CHOKED),
        "throttled",
    ),
    Cell(
        "OOM",
        4,
        9,
        lambda usage: count(usage.counters.oom_kills),
        lambda usage, now: "alarm" if usage.killed >= 0 and now - usage.killed < KILLED_FOR else "",
        "kills",
    ),
)


def fitting(width: int) -> tuple[int, tuple[Cell, ...]]:
    """How wide the name may be, and which cells are shown, on *width* columns."""
    cells = list(CELLS)
    while cells and SHORTEST_NAME + sum(cell.width + GAP for cell in cells) > width:
        cells.remove(max(cells, key=lambda cell: cell.rank))
    return width - sum(cell.width + GAP for cell in cells), tuple(cells)


# Plain passes.


def _plain_percent(value: Any, raw: bool) -> str:
    return plain(value) if raw else percent(value)


def _plain_size(value: Any, raw: bool) -> str:
    return plain(value) if raw else size(value)


def _plain_used(show: Callable[[Any], str]) -> Callable[[Any, bool], str]:
    def text(value: Any, raw: bool) -> str:
        if value is None:
            return "-"
        shown = plain if raw else show
        limit = value["effective"]
        return _of(shown(value["usage"]), None if limit is None else shown(limit))

    return text


def _plain_pressure(value: Any, raw: bool) -> str:
    if not value:
        return "-"
    return "/".join(percent(value[name]["some_avg10"]) if name in value else "-" for name in ("cpu", "memory", "io"))


TABLE: tuple[Column, ...] = (
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("CPU%", "cpu_percent", _plain_percent, True),
    Column("QUOTA%", "cpu_quota_percent", _plain_percent, True),
    Column("MEMORY", "memory", _plain_used(size), True),
    Column("SWAP", "swap", _plain_size, True),
    Column("READ/s", "io_read_rate", _plain_size, True),
    Column("WRITE/s", "io_write_rate", _plain_size, True),
    Column("PIDS", "pids", _plain_used(count), True),
    Column("PRESSURE", "pressure", _plain_pressure, True),
    Column("THROTTLED%", "throttled_percent", _plain_percent, True),
    Column("OOM", "oom_kills", None, True),
)
_FLAT = (
    "time name kind level path id state claim made_by cpu_percent cpu_quota cpu_quota_percent cpu_usec "
    "throttled_percent memory.usage memory.effective memory_percent swap io_read_bytes io_write_bytes "
    "io_read_rate io_write_rate pids.usage pids.effective pressure.cpu.some_avg10 pressure.memory.some_avg10 "
    "pressure.io.some_avg10 oom_kills"
).split()
CSV: tuple[Column, ...] = tuple(Column(field.upper(), field) for field in _FLAT)
