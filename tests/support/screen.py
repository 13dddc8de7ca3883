"""A program on a terminal of its own, with a screen that a test reads as a person does: pyte obeys what is written.

The terminal is a pseudo-terminal whose session the program leads, so signals and job control are real.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import pyte

from support.need import SLOW

KEYS = {
    "up": "\x1b[A",
    "down": "\x1b[B",
    "page up": "\x1b[5~",
    "page down": "\x1b[6~",
    "home": "\x1b[1~",
    "end": "\x1b[4~",
    "enter": "\r",
    "esc": "\x1b",
    "backspace": "\x7f",
    "ctrl l": "\x0c",
    "ctrl u": "\x15",
    "ctrl z": "\x1a",
    "ctrl c": "\x03",
}


class Terminal:
    """*argv* with a terminal of *columns* and *lines*, until the end of the ``with`` block, which kills it."""

    def __init__(
        self, argv: Sequence[str], columns: int = 120, lines: int = 30, env: Mapping[str, str] | None = None
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.master, self.slave = os.openpty()
        self._size(columns, lines)
        self.before = termios.tcgetattr(self.slave)
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **(env or {})}
        self.process = subprocess.Popen(
            argv,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  one call, and no threads
            env=environment,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """Another size, of which the kernel tells the program (SIGWINCH)."""
        self.screen.resize(lines, columns)
        self._size(columns, lines)

    def press(self, *keys: str) -> None:
        """Type *keys*: names of KEYS, or characters as they are."""
        for key in keys:
            os.write(self.master, KEYS.get(key, key).encode())

    def read(self, seconds: float) -> None:
        """Take what the program writes within *seconds*."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and select.select([self.master], [], [], left)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the other end
                return
            self.raw += data
            self.stream.feed(data)

    def lines(self) -> list[str]:
        """The screen, without blanks at the ends."""
        return [line.rstrip() for line in self.screen.display]

    def text(self) -> str:
        """The screen in one piece."""
        return "\n".join(self.lines())

    def wait(self, *texts: str, absent: Sequence[str] = (), timeout: float = 15.0) -> str:
        """The screen once all of *texts* are on it, and none of *absent*. AssertionError after *timeout* s."""
        end = time.monotonic() + timeout * SLOW
        drawn = False
        while True:
            found = self.text()
            right = all(text in found for text in texts) and not any(text in found for text in absent)
            if right and drawn:
                return found
            drawn = right  # the rest of a picture may still be on its way
            assert time.monotonic() < end, f"waited for {texts} without {absent}:\n{found}\n{self.raw[-2000:]!r}"
            self.read(0.05)

    def ended(self, timeout: float = 15.0) -> int:
        """The program's status, when it has ended; negative: its signal. AssertionError after *timeout* s."""
        end = time.monotonic() + timeout * SLOW
        while self.process.poll() is None:
            assert time.monotonic() < end, f"still there:\n{self.text()}"
            self.read(0.05)
        self.read(0.05)
        return int(self.process.returncode)

    def stopped(self, timeout: float = 15.0) -> None:
        """Wait until the program has been stopped by job control."""
        end = time.monotonic() + timeout * SLOW
        while True:
            pid, status = os.waitpid(self.process.pid, os.WUNTRACED | os.WNOHANG)
            if pid and os.WIFSTOPPED(status):
                self.read(0.1)
                return
            assert not pid, status
            assert time.monotonic() < end, "it did not stop"
            self.read(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def hang_up(self) -> None:
        """Close the terminal: its other end is gone, and the kernel sends SIGHUP."""
        os.close(self.slave)
        os.close(self.master)
        self.master = self.slave = -1

    def settings(self) -> list[Any]:
        """What stty -g tells."""
        return termios.tcgetattr(self.slave)
