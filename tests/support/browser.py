"""Debian's chromium without a window, by the DevTools protocol over two pipes: no port, no library.

The protocol's messages are JSON with a NUL after each (chromium, content/browser/devtools/devtools_pipe_handler.cc);
https://chromedevtools.github.io/devtools-protocol/ has the methods. All that the browser
writes is below a directory of its own, and its processes end with it.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.need import SLOW

PROGRAM = "chromium"
OPTIONS = (
    "--headless", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--disable-crash-reporter", "--disable-breakpad", "--no-default-browser-check", "--password-store=basic",
    "--disable-features=Translate,OptimizationHints,MediaRouter,DialMediaRouteProvider", "--force-color-profile=srgb",
)  # fmt: skip
# Its pipes are descriptors 3 and 4, whatever numbers we have; on the way they are above both.
START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 10) for fd in sys.argv[1:3]]
for number, fd in enumerate(ends, 3):
    os.dup2(fd, number)
os.execvp(sys.argv[3], sys.argv[3:])
"""
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowDown": (40, ""), "ArrowRight": (39, "")}


def attempt() -> str:
    """What starting it comes back with, "" if it works."""
    try:
        done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, timeout=30 * SLOW)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr or f"status {done.returncode}"


class Browser:
    """One browser with one page. *troubles* are console messages, exceptions and dialogs, *requests* the addresses
    that the page asked for, all since open()."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._session = ""
        self._data = b""
        theirs, self._to = os.pipe()
        self._from, mine = os.pipe()
        argv = [PROGRAM, *OPTIONS, f"--user-data-dir={directory}/profile", "about:blank"]
        homes = ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")
        self._log = open(f"{directory}/log", "wb")
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", START, str(theirs), str(mine), *argv],
            pass_fds=(theirs, mine),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            env={**os.environ, **dict.fromkeys(homes, directory)},
        )
        os.close(theirs)
        os.close(mine)

    def begin(self) -> None:
        """Open a page, and listen to what goes on in it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method; AssertionError if it fails."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(30 * SLOW)
            assert answer is not None, f"no answer to {method}"
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, parameters, answer)
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """The next message, events noted; None after that time."""
        end = time.monotonic() + seconds
        while b"\0" not in self._data:
            if not select.select([self._from], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            chunk = os.read(self._from, 1 << 20)
            assert chunk, f"{PROGRAM} has ended: {Path(self.directory, 'log').read_text()[-2000:]}"
            self._data += chunk
        text, _, self._data = self._data.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, found: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.troubles.append(f"dialog: {found['message']}")
            self._number += 1
            answer = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": False}}
            os.write(self._to, json.dumps({**answer, "sessionId": self._session}).encode() + b"\0")
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.troubles.append(f"{method}: {json.dumps(found)[:2000]}")

    def open(self, url: str) -> float:
        """Load *url*, from a clean slate; how long it took until it was loaded and drawn, in s."""
        self.troubles, self.requests = [], []
        begin = time.monotonic()
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        self.picture(0, 0, 1, 1)
        return time.monotonic() - begin

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; AssertionError if it throws."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until *expression* is true."""
        end = time.monotonic() + 30 * SLOW
        while not self.ask(expression):
            assert time.monotonic() < end, f"waited for {expression}: {self.ask('document.body.innerText')}"
            time.sleep(0.02)

    def settings(self, width: int = 1280, height: int = 900, dark: bool = False, script: bool = True) -> None:
        """The window, what its user prefers, and whether pages may run scripts."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)

    def click(self, x: float, y: float) -> None:
        """Move there and click."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def move(self, x: float, y: float) -> None:
        """The pointer goes to *x*, *y* (px of the window)."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press and release a key of KEYS."""
        code, text = KEYS[key]
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def picture(self, x: float = 0, y: float = 0, width: float = 0, height: float = 0) -> bytes:
        """A PNG of that part of the window, of all of it without a width."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        found = self.call("Page.captureScreenshot", format="png", **({"clip": clip} if width else {}))
        return base64.b64decode(found["data"])

    def close(self) -> None:
        """End it, and all that it has started."""
        for fd in (self._to, self._from):
            os.close(fd)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._log.close()


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser; with it goes all that it has written."""
    directory = tempfile.mkdtemp(prefix="nestrt-browser-")
    try:
        made = Browser(directory)
        try:
            made.begin()
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def pixels(png: bytes) -> list[list[tuple[int, int, int]]]:
    """Rows of (red, green, blue) of a PNG with 8 bits and without interlacing; https://www.w3.org/TR/png/."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", png[16:29])
    assert (depth, interlaced) == (8, 0)
    size = {2: 3, 6: 4}[kind]
    packed, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        packed += png[at + 8 : at + 8 + length] if png[at + 4 : at + 8] == b"IDAT" else b""
        at += length + 12
    data, above, rows = zlib.decompress(packed), bytearray(width * size), []
    for number in range(height):
        start = number * (width * size + 1)
        row = bytearray(data[start + 1 : start + 1 + width * size])
        _unfilter(data[start], row, above, size)
        above = row
        rows.append([(row[x], row[x + 1], row[x + 2]) for x in range(0, len(row), size)])
    return rows


def _unfilter(kind: int, row: bytearray, above: bytearray, size: int) -> None:
    for x in range(len(row)):
        left, up = row[x - size] if x >= size else 0, above[x]
        corner = above[x - size] if x >= size else 0
        if kind == 4:
            near = left + up - corner
            best = min((abs(near - left), 0, left), (abs(near - up), 1, up), (abs(near - corner), 2, corner))
            row[x] = (row[x] + best[2]) & 255
        else:
            row[x] = (row[x] + (0, left, up, (left + up) // 2)[kind]) & 255
