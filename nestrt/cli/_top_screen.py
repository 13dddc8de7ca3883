"""``nestrt top`` drawn by urwid, of version 2.1 (Debian 12) and later."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import urwid

from nestrt.cli._top_draw import Glyphs, draw
from nestrt.cli._top_model import Model

# (name, foreground, background, without colours). The terminal's own background, and no colour that is
# hard to read on a light or on a dark one.
PALETTE = [
    ("head", "bold", "default", "bold"),
    ("title", "standout", "default", "standout"),
    ("sorted", "bold,standout", "default", "bold,standout"),
    ("chosen", "standout", "default", "standout"),
    ("name", "default", "default", "default"),
    ("claim", "dark magenta", "default", "default"),
    ("low", "dark cyan", "default", "default"),
    ("good", "dark green", "default", "default"),
    ("warn", "brown,bold", "default", "bold"),
    ("alarm", "dark red,bold", "default", "bold,underline"),
]


class Picture(urwid.Widget):  # type: ignore[misc]
    """One widget for the whole screen."""

    _sizing = frozenset(["box"])
    _selectable = True
    no_cache = ("render",)

    def __init__(self, model: Model, glyphs: Glyphs, total: int | None, encoding: str) -> None:
        super().__init__()
        self.model = model
        self.glyphs = glyphs
        self.total = total
        self.encoding = encoding
        self.after_key: Callable[[], None] = lambda: None

    def render(self, size: tuple[int, int], focus: bool = False) -> Any:
        """The lines as a canvas; attributes are run-length encoded, in bytes."""
        width, height = size
        lines = draw(self.model, width, height, self.glyphs, time.monotonic(), self.model.sampler.cpus, self.total)
        texts, runs = [], []
        for line in lines:
            pieces = [(style or None, text.encode(self.encoding, "replace")) for style, text in line]
            texts.append(b"".join(piece for _, piece in pieces))
            runs.append([(style, len(piece)) for style, piece in pieces])
        return urwid.TextCanvas(texts, runs, maxcol=width)

    def keypress(self, size: tuple[int, int], key: str) -> None:
        """Every key is the model's."""
        self.model.press(key)
        self.changed()
        self.after_key()

    def changed(self) -> None:
        """Have it drawn again."""
        self._invalidate()


class Screen(urwid.raw_display.Screen):  # type: ignore[misc]
    """The terminal, whose signals to stop and to go on are *job_control*'s alone: versions of urwid differ."""

    job_control: Callable[[int, Any], None] | None = None

    def signal_init(self) -> None:
        super().signal_init()
        if self.job_control is not None:
            signal.signal(signal.SIGTSTP, self.job_control)
            signal.signal(signal.SIGCONT, self.job_control)

    def signal_restore(self) -> None:
        super().signal_restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)


def make_screen(job_control: Callable[[int, Any], None]) -> Screen:
    """The terminal, with colours unless NO_COLOR (https://no-color.org) says otherwise."""
    screen = Screen()
    screen.job_control = job_control
    if os.environ.get("NO_COLOR"):
        screen.set_terminal_properties(colors=1)
    return screen


def make_loop(picture: Picture, screen: Screen) -> Any:
    """urwid's loop for the one widget."""
    return urwid.MainLoop(picture, PALETTE, screen=screen, handle_mouse=False)


def set_encoding(encoding: str) -> None:
    """What the terminal takes."""
    urwid.set_encoding(encoding)


ExitMainLoop = urwid.ExitMainLoop
