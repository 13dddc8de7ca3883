"""The lines of ``nestrt top``'s full screen: pieces of text, each with a style; every character takes one column."""

from __future__ import annotations

import time

from nestrt.cli._top_cells import BAR, GAP, Cell, bar, fitting, one_column, percent, shortened, size
from nestrt.cli._top_model import HELP, Model
from nestrt.host.render import amount
from nestrt.host.sample import Usage
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    Line = list[tuple[str, str]]  # (style, text)

SMALLEST = (30, 8)  # columns, lines
KEY_LINE = "h help  / filter  p t c m i order  g by  v tree  space pause  q quit"


@record
class Glyphs:
    """What lines, bars and gaps are drawn with."""

    dots: str
    full: str
    rest: str
    rule: str


UNICODE = Glyphs("…", "█", "░", "─")
ASCII = Glyphs("..", "#", ".", "-")


def draw(model: Model, width: int, height: int, glyphs: Glyphs, now: float, cpus: int, total: int | None) -> list[Line]:
    """*height* lines of *width* columns. *now* is monotonic, in s; *total* is the machine's memory."""
    if width < SMALLEST[0] or height < SMALLEST[1]:
        texts = ("too small:", f"{width}x{height},", f"{SMALLEST[0]}x{SMALLEST[1]} needed")
        return ([[("alarm", text[:width])] for text in texts] + [[]] * height)[:height]
    head = _head(model, width, cpus, total)
    if model.help:
        lines = head[:1] + [[]] + [[("", text[:width])] for text in HELP.splitlines()]
        lines = lines[: height - 1]
        return lines + [[]] * (height - 1 - len(lines)) + [[("low", "any key goes back"[:width])]]
    name, cells = fitting(width)
    lines = [*head, _titles(model, name, cells, width)]
    foot = _foot(model, width, glyphs, max(1, height - len(lines) - 4))
    room = height - len(lines) - len(foot)
    for usage, indent, chosen in model.visible(room):
        lines.append(_row(usage, indent, chosen, name, cells, glyphs, now))
    if not model.rows:
        lines.append([("low", shortened(_nothing(model), width, glyphs.dots))])
    lines += [[]] * (height - len(foot) - len(lines))
    return lines + foot


def _nothing(model: Model) -> str:
    if not model.sampler.finder.complete:
        return "looking for guests"
    return "no guest matches" if model.choice.text or model.choice.names else "no guest in sight"


def _head(model: Model, width: int, cpus: int, total: int | None) -> list[Line]:
    own, guests = model.sampler.own, [usage for usage in model.sampler.usages if usage.kind == "guest"]
    states = [usage.state for usage in guests]
    kinds = ", ".join(f"{states.count(state)} {state}" for state in ("running", "paused", "stopped") if state in states)
    who = one_column(model.sampler.finder.view.name)
    left = f"{time.strftime('%H:%M:%S', time.localtime(model.taken))}  {who}, level {model.level}: "
    left += f"{len(guests)} guest{'' if len(guests) == 1 else 's'}" + (f" ({kinds})" if kinds else "")
    right = "paused" if model.paused else f"every {model.delay:g} s"
    if model.actual > 1.5 * model.delay and not model.paused:
        right = f"every {model.actual:.1f} s, {model.delay:g} would cost too much"
    first = left[: width - len(right) - 1].ljust(width - len(right)) + right
    allowed = own.effective("memory.max") or total
    used = size(own.counters.memory) + (f"/{size(allowed)}" if allowed else "")
    pressure = "/".join(percent(value) for value in own.pressure)
    tasks = own.counters.pids
    parts = [f"CPU {percent(own.cpu_percent)}% of {cpus * 100}%", f"memory {used}"]
    parts += [f"pressure {pressure}"] if any(value is not None for value in own.pressure) else []
    parts += [f"tasks {tasks}"] if tasks is not None else []
    if own.read_rate is not None:
        parts.append(f"I/O {size(own.read_rate)}/s read, {size(own.write_rate)}/s written")
    second = "  ".join(parts)[:width]
    choice = model.choice
    words = [f"by {choice.by}", f"order {choice.order}" + (" (turned)" if choice.reverse else "")]
    words += ["tree"] if choice.tree and choice.by != "level" else []
    words += [f"depth {choice.depth}"] if choice.depth is not None else []
    words += [f"filter {one_column(choice.text)!r}"] if choice.text and not model.editing else []
    words += [f"{len(model.rows)} rows"]
    style = "warn" if model.paused else "head"
    return [[(style, first)], [("", second)], [("low", ", ".join(words)[:width])]]


def _titles(model: Model, name: int, cells: tuple[Cell, ...], width: int) -> Line:
    line: Line = [("title", "NAME".ljust(name))]
    for cell in cells:
        style = "sorted" if cell.order and cell.order == model.choice.order else "title"
        title = "MEM".ljust(cell.width) if cell is BAR else cell.title.rjust(cell.width)
        line += [("title", " " * GAP), (style, title)]
    return line


def _row(
    usage: Usage, indent: int, chosen: bool, name: int, cells: tuple[Cell, ...], glyphs: Glyphs, now: float
) -> Line:
    text = "  " * min(indent, name // 4)
    label = usage.name
    if indent and usage.guest:
        # In a tree, what stands above is in front already.
        last = usage.path if usage.kind == "group" else usage.name
        label = last.rpartition("/")[2]
    text += one_column(label)
    line: Line = [("claim" if usage.claim else "name", shortened(text, name, glyphs.dots).ljust(name))]
    for cell in cells:
        if cell is BAR:
            text = bar(usage.percent("memory.max", usage.counters.memory), cell.width, glyphs.full, glyphs.rest)
        else:
            text = cell.text(usage)[: cell.width].rjust(cell.width)
        line += [("", " " * GAP), (cell.style(usage, now), text)]
    return [("chosen", "".join(text for _, text in line))] if chosen else line


def _foot(model: Model, width: int, glyphs: Glyphs, most: int) -> list[Line]:
    lines: list[Line] = []
    usage = model.chosen
    if usage is not None:
        texts = details(usage) if model.details else [_summary(usage)]
        lines.append([("low", glyphs.rule * width)])
        lines += [[("", shortened(text, width, glyphs.dots))] for text in texts[:most]]
    if model.editing:
        lines.append([("head", f"/{one_column(model.choice.text)}_"[-width:])])
    else:
        lines.append([("low", KEY_LINE[:width])])
    return lines


def _summary(usage: Usage) -> str:
    """One line: the whole name, and what there is to know of the guest."""
    if usage.guest is None:
        return one_column(usage.name)
    parts = [one_column(usage.name), f"level {usage.level}", one_column(usage.path)]
    if usage.kind == "guest":
        mark = usage.guest.mark
        parts += ["claim"] if usage.claim else []
        parts += [f"by {one_column(mark.made_by)}"] if mark.made_by else []
        parts += [f"pid {mark.pid}"] if mark.pid > 0 and not usage.claim else []
        parts += [one_column(" ".join(mark.command))] if mark.command else []
    return "  ".join(parts)


def details(usage: Usage) -> list[str]:
    """All that is known of a row."""
    counters, lines = usage.counters, [_summary(usage)]
    for key in ("cpu.max", "memory.max", "pids.max"):
        limit = usage.limits.get(key)
        if limit is None:
            continue
        text = f"{key}: own {amount(limit, limit.limit)}, effective {amount(limit, limit.effective)}"
        if limit.binds and isinstance(limit.binds, str):
            text += f", {one_column(limit.binds)} binds"
        lines.append(text)
    if counters.cpu_usec is not None:
        text = f"CPU time: {counters.cpu_usec / 1e6:.3f} s"
        if counters.periods is not None:
            text += f", throttled in {counters.throttled_periods} of {counters.periods} periods"
            text += f", {(counters.throttled_usec or 0) / 1e6:.3f} s"
        lines.append(text)
    if counters.memory is not None:
        kills = "" if counters.oom_kills is None else f", OOM kills {counters.oom_kills}"
        lines.append(f"memory: {counters.memory} bytes, swap {size(counters.swap)}{kills}")
    if counters.io_read_bytes is not None:
        lines.append(f"I/O: {size(counters.io_read_bytes)} read, {size(counters.io_write_bytes)} written")
    for name, by in (counters.pressure or {}).items():
        full = f", full {percent(by['full_avg10'])}%" if by["full_total_usec"] else ""
        waited = f"{by['some_total_usec'] / 1e6:.3f} s in all"
        lines.append(f"pressure on {name}: some {percent(by['some_avg10'])}%{full}; {waited}")
    return lines
