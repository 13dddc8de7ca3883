"""Colours and bars for terminals: SGR sequences (ECMA-48); none in pipes, and where NO_COLOR is set (no-color.org)."""

from __future__ import annotations

CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36"}
RESET = "\x1b[0m"
# The eighths of a cell, from empty to full.
CELLS = " ▏▎▍▌▋▊▉█"
ASCII_CELLS = " ....####"
WIDTH = 8
# What is used of a limit, in percent: from here on it is worth a look, or bad.
HIGH, CRITICAL = 70, 90


class Style:
    """How a picture may look: in *colour* or not, with the block characters of *unicode* or without."""

    def __init__(self, colour: bool = False, unicode: bool = True) -> None:
        self.colour = colour
        self.cells = CELLS if unicode else ASCII_CELLS

    def __call__(self, text: str, *names: str) -> str:
        """*text* in the colours or weights *names* of CODES."""
        if not self.colour or not text:
            return text
        return f"\x1b[{';'.join(CODES[name] for name in names)}m{text}{RESET}"

    def bar(self, used: int | None, limit: int) -> str:
        """What is *used* of *limit* as a bar with brackets; "" on no terminal, and where there is no limit."""
        if not self.colour or used is None or limit <= 0:
            return ""
        eighths = min(WIDTH * 8, -(-used * WIDTH * 8 // limit))
        full, rest = divmod(eighths, 8)
        cells = self.cells[-1] * full + (self.cells[rest] if full < WIDTH else "")
        percent = used * 100 // limit
        colour = "red" if percent >= CRITICAL else "yellow" if percent >= HIGH else "green"
        return "▕" * (self.cells is CELLS) + self(cells.ljust(WIDTH), colour) + "▏" * (self.cells is CELLS)


def cut(line: str, width: int | None) -> str:
    """*line* in at most *width* columns; colours take none."""
    if width is None or (len(line) <= width and "\x1b" not in line):
        return line
    shown = at = 0
    cut_at = None
    while at < len(line):
        if line[at] == "\x1b":
            at = line.index("m", at) + 1
            continue
        shown += 1
        at += 1
        if shown == width - 1:
            cut_at = at
    if shown <= width or cut_at is None:
        return line
    return line[:cut_at] + "…" + (RESET if "\x1b" in line else "")
