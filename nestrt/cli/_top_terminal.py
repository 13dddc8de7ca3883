"""``nestrt top`` on a terminal: the loop, the signals, and the terminal as it was before.

A signal's handler only notes it and wakes the loop through a pipe; what it asks for is done in the loop.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
import time

from nestrt.cli._top_draw import ASCII, UNICODE
from nestrt.cli._top_model import Model
from nestrt.cli._view import glyphs
from nestrt.host.render import GLYPHS
from nestrt.host.sample import Sampler
from nestrt.host.sample_rows import Choice
from nestrt.packages import find_package

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

FIRST = 0.5  # s to the second sample, which makes the first rates
START = 0.02  # s: the screen is drawn before there is anything on it
SLICE = 0.1  # s that a key may have to wait
FINDING, LIMITS = 0.03, 0.02  # of the time, for looking for guests and for reading limits again
BUSIEST = 0.25  # of one CPU: with too many rows, samples are rarer
ENDS = (signal.SIGTERM, signal.SIGHUP)


def run(sampler: Sampler, choice: Choice, delay: float, iterations: int) -> int:
    """Show *sampler* until q is pressed, or for so many *iterations* (0: for ever). Returns 0. Raises HostError."""
    find_package("urwid", "python3-urwid", "nestrt top -b")
    terminal = _Terminal(sampler, choice, delay, iterations)
    try:
        return terminal.run()
    finally:
        sampler.close()


class _Terminal:
    def __init__(self, sampler: Sampler, choice: Choice, delay: float, iterations: int) -> None:
        from nestrt.cli import _top_screen as screen

        self.sampler = sampler
        self.model = Model(sampler, choice, delay)
        self.iterations = iterations
        self.passes = 0
        self.started = self.used = 0.0
        self.signals: list[int] = []
        self.alarm: Any = None
        unicode = glyphs() is GLYPHS
        screen.set_encoding("utf-8" if unicode else "ascii")
        self.picture = screen.Picture(
            self.model, UNICODE if unicode else ASCII, _memory(), "utf-8" if unicode else "ascii"
        )
        self.picture.after_key = self.after_key
        self.screen = screen.make_screen(self.note)
        self.loop = screen.make_loop(self.picture, self.screen)
        self.Exit = screen.ExitMainLoop
        self.pipe = self.loop.watch_pipe(self.signalled)

    def run(self) -> int:
        """The loop. Whatever ends it, the terminal is as it was."""
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        handlers = {number: signal.signal(number, self.note) for number in ENDS}
        self.alarm = self.loop.set_alarm_in(START, self.sample)
        gone = False
        try:
            self.loop.run()
        except KeyboardInterrupt:
            pass
        except Exception:
            # A terminal that has gone shows itself in more than one way.
            if _is_there(fd):
                raise
            gone = True
        finally:
            try:
                termios.tcsetattr(fd, termios.TCSADRAIN, before)
            except termios.error:
                pass
            for number, handler in handlers.items():
                signal.signal(number, handler)
        ends = [number for number in self.signals if number in ENDS]
        if ends:
            os.kill(os.getpid(), ends[0])  # as by anyone else, now that the terminal is restored
        return 128 + signal.SIGHUP if gone else 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler."""
        self.signals.append(number)
        os.write(self.pipe, b"s")

    def signalled(self, data: bytes) -> bool:
        """Do what signals ask for."""
        if any(number in ENDS for number in self.signals):
            raise self.Exit
        signals, self.signals = self.signals, []
        if signal.SIGTSTP in signals:
            self.screen.stop()
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)
            # Continued here; the handlers are there again when the screen is.
            self.screen.start()
            self.screen.clear()
        elif signal.SIGCONT in signals:  # after SIGSTOP the shell has had the terminal, with its own settings
            self.screen.stop()
            self.screen.start()
            self.screen.clear()
        self.picture.changed()
        return True

    def after_key(self) -> None:
        """What a key asked for that the model cannot do."""
        model = self.model
        if model.quit:
            raise self.Exit
        if model.redraw:
            model.redraw = False
            self.screen.clear()
        if model.new_groups is not None:
            self.sampler.show_groups(model.new_groups)
            model.new_groups = None
            self._again(0)
        elif self.alarm is None and not model.paused:
            self._again(0)

    def sample(self, loop: Any, data: Any) -> None:
        """Begin a pass."""
        self.alarm = None
        self.started, self.used = time.monotonic(), time.process_time()
        if self.model.paused:
            return
        delay = self.model.delay
        self.sampler.find(FINDING * delay if self.sampler.finder.complete else max(SLICE, FINDING * delay))
        self.sampler.read_limits(max(SLICE / 2, LIMITS * delay))
        self.go_on(loop, data)

    def go_on(self, loop: Any, data: Any) -> None:
        """Read for a moment, so that keys need not wait for a pass to end; after it, say when the next one is due."""
        self.alarm = None
        if not self.sampler.sample_some(SLICE):
            self.alarm = self.loop.set_alarm_in(0.0, self.go_on)
            return
        model = self.model
        model.taken = time.time()
        model.refresh()
        self.picture.changed()
        self.passes += 1
        if self.iterations and self.passes > self.iterations:
            raise self.Exit
        delay = min(model.delay, FIRST) if self.passes == 1 else model.delay
        rest = (time.process_time() - self.used) / BUSIEST
        model.actual = max(delay, rest)
        self._again(model.actual - (time.monotonic() - self.started))

    def _again(self, seconds: float) -> None:
        if self.alarm is not None:
            self.loop.remove_alarm(self.alarm)
        self.alarm = self.loop.set_alarm_in(max(0.0, seconds), self.sample)


def _is_there(fd: int) -> bool:
    try:
        termios.tcgetattr(fd)
    except termios.error:
        return False
    return True


def _memory() -> int | None:
    """Bytes of the machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
