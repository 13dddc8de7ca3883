"""What ``nestrt top`` shows on the full screen, and what its keys do: without a terminal.

Nothing here changes anything but what is looked at.
"""

from __future__ import annotations

import time

from nestrt.host.sample import Sampler, Usage
from nestrt.host.sample_rows import Choice, arrange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

BY = ("guest", "level", "group")
ORDER_KEYS = {
    "p": "path",
    "n": "name",
    "t": "tasks",
    "c": "cpu",
    "m": "memory",
    "i": "io",
    "P": "pressure",
    "T": "throttled",
    "o": "kills",
}
DELAYS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
LONGEST_FILTER = 64

HELP = """\
 p path   t tasks   c CPU   m memory   i I/O            what the largest of comes first
 P pressure   T throttled   o OOM kills   n name        the same
 r        turn the order round
 v        tree: those inside another stand below it
 g        a row for each guest, level, or group
 + -      deeper, less deep
 /        show names and paths with a text in them; ^U empties it, Escape ends it
 space    stop, go on
 < >      refresh more often, less often
 Up Down PageUp PageDown Home End (or k j)   choose a row
 Return   more of the chosen one
 ^L       draw anew
 q        quit

 CPU% is of one CPU, QUOTA% of the effective quota, THR% of the quota's periods in which it was
 used up. After a slash stands the effective limit. P-CPU, P-MEM, P-IO: percent of the last ten seconds in
 which something waited for it. A guest's guests are in what it uses. S: R running, P paused, - stopped.
"""


class Model:
    """The state of the screen. *rows* are (usage, indentation), *selected* the path or name of the chosen one."""

    def __init__(self, sampler: Sampler, choice: Choice, delay: float) -> None:
        self.sampler = sampler
        self.choice = choice
        self.delay = delay
        self.actual = delay
        self.taken = time.time()
        self.paused = False
        self.help = False
        self.details = False
        self.editing = False
        self.quit = False
        self.redraw = False
        self.new_groups: bool | None = None
        self.rows: list[tuple[Usage, int]] = []
        self.place = 0
        self.offset = 0
        self.page = 10
        self._levels: list[Usage] = []
        self._chosen = ""

    @property
    def level(self) -> int:
        """The level that looks."""
        return self.sampler.own.level

    @property
    def chosen(self) -> Usage | None:
        """The selected row's usage."""
        return self.rows[self.place][0] if self.rows else None

    def refresh(self) -> None:
        """Arrange what the sampler has: after a sample, and after a key that changes the choice."""
        self.rows = arrange(self.sampler.usages, self.choice, self.level)
        # The chosen guest stays chosen wherever it goes; if it has gone, the row in its place is.
        names = [_key(usage) for usage, _ in self.rows]
        if self._chosen in names:
            self.place = names.index(self._chosen)
        self.move(0)

    def move(self, by: int) -> None:
        """Choose another row."""
        self.place = max(0, min(self.place + by, len(self.rows) - 1))
        self._chosen = _key(self.rows[self.place][0]) if self.rows else ""

    def visible(self, height: int) -> list[tuple[Usage, int, bool]]:
        """The rows in a window of *height* lines that has the chosen one in it, each with whether it is that one."""
        self.page = max(1, height - 1)
        self.offset = max(0, min(self.offset, len(self.rows) - height))
        if self.place < self.offset:
            self.offset = self.place
        elif self.place >= self.offset + height:
            self.offset = self.place - height + 1
        window = self.rows[self.offset : self.offset + height]
        return [(usage, indent, self.offset + n == self.place) for n, (usage, indent) in enumerate(window)]

    def press(self, key: str) -> None:
        """Do what *key* says, in urwid's words for keys."""
        if self.editing:
            self._edit(key)
        elif self.help:
            self.help = False
            self.quit = key in ("q", "Q")
        elif key in ORDER_KEYS:
            self._order(ORDER_KEYS[key])
        elif key in MOVES:
            self.move(MOVES[key](self))
        elif key in KEYS:
            KEYS[key](self)

    def _edit(self, key: str) -> None:
        if key == "enter":
            self.editing = False
        elif key == "esc":
            self.editing, self.choice.text = False, ""
        elif key in ("backspace", "ctrl h"):
            self.choice.text = self.choice.text[:-1]
        elif key == "ctrl u":
            self.choice.text = ""
        elif key in MOVES and len(key) > 1:
            self.move(MOVES[key](self))
        elif len(key) == 1 and key.isprintable() and len(self.choice.text) < LONGEST_FILTER:
            self.choice.text += key
        self.refresh()

    def _order(self, order: str) -> None:
        self.choice.tree = order == "path" or (self.choice.tree and self.choice.order != "path")
        self.choice.order = order
        self.refresh()

    def begin_filter(self) -> None:
        self.editing = True

    def turn(self) -> None:
        self.choice.reverse = not self.choice.reverse
        self.refresh()

    def toggle_tree(self) -> None:
        self.choice.tree = not self.choice.tree
        self.refresh()

    def cycle(self) -> None:
        """The next kind of rows; groups have to be found first."""
        self.choice.by = BY[(BY.index(self.choice.by) + 1) % len(BY)]
        self.choice.depth = None
        self.new_groups = self.choice.by == "group"
        self.refresh()

    def _deepest(self) -> int:
        depths = [0]
        for usage in self.sampler.usages:
            if self.choice.by != "group":
                depths.append(usage.level - self.level)
            elif usage.guest and usage.kind == "group":
                depths.append(usage.path.count("/") - usage.guest.root.count("/"))
        return max(depths)

    def deeper(self) -> None:
        if self.choice.depth is not None:
            self.choice.depth = None if self.choice.depth + 1 >= self._deepest() else self.choice.depth + 1
            self.refresh()

    def less_deep(self) -> None:
        now = self._deepest() if self.choice.depth is None else self.choice.depth
        self.choice.depth = max(0 if self.choice.by == "group" else 1, now - 1)
        self.refresh()

    def pause(self) -> None:
        self.paused = not self.paused

    def faster(self) -> None:
        self.delay = max((delay for delay in DELAYS if delay < self.delay), default=self.delay)

    def slower(self) -> None:
        self.delay = min((delay for delay in DELAYS if delay > self.delay), default=self.delay)

    def toggle_details(self) -> None:
        self.details = not self.details

    def toggle_help(self) -> None:
        self.help = True

    def leave(self) -> None:
        self.quit = True

    def draw_anew(self) -> None:
        self.redraw = True

    def end_filter(self) -> None:
        self.choice.text, self.details = "", False
        self.refresh()


def _key(usage: Usage) -> str:
    return usage.path or usage.name


MOVES: dict[str, Callable[[Model], int]] = {
    "up": lambda model: -1,
    "k": lambda model: -1,
    "down": lambda model: 1,
    "j": lambda model: 1,
    "page up": lambda model: -model.page,
    "page down": lambda model: model.page,
    "home": lambda model: -len(model.rows),
    "end": lambda model: len(model.rows),
}
KEYS: dict[str, Callable[[Model], None]] = {
    "r": Model.turn,
    "v": Model.toggle_tree,
    "g": Model.cycle,
    "+": Model.deeper,
    "=": Model.deeper,
    "-": Model.less_deep,
    "/": Model.begin_filter,
    "esc": Model.end_filter,
    " ": Model.pause,
    "<": Model.faster,
    ">": Model.slower,
    "enter": Model.toggle_details,
    "h": Model.toggle_help,
    "?": Model.toggle_help,
    "f1": Model.toggle_help,
    "ctrl l": Model.draw_anew,
    "q": Model.leave,
    "Q": Model.leave,
}
