"""What must be undone when the broker is gone, however it went: a process of its own that holds the files open.

While a v1 group is to wait for the broker's decision, the kernel's own killer is switched off for it
(memory.oom_control); while a v2 group is held at its memory.high, that stands below what it was. A broker that is
killed then would leave tasks that wait for nobody. So a small process, which ignores the signals that end services,
holds those files open and sleeps on a pidfd of the broker; when that has ended, in whatever way, it writes back what
was there before, and ends too. It also does so in order, when the broker closes its end of their socket.

Messages are datagrams on a socket pair (unix(7), SOCK_SEQPACKET)::

    "+ KEY TEXT" with a descriptor     write TEXT to it at the end
    "- KEY"                            no longer

If both are killed at one stroke, tasks of a v1 group without memory wait until the next broker starts, which takes
the marks up again; or until somebody in the guest writes 0 to the group's memory.oom_control.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)
LONGEST = 256
CODE = "import sys; sys.path.insert(0, sys.argv[1]); from nestrt.broker import guard; guard.main(*sys.argv[2:])"
PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATIENCE = 5.0  # seconds until it has taken a message


class Guard:
    """The broker's end. The process runs while there is something to put back. Threads may call."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.held: dict[str, tuple[int, str]] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: socket.socket | None = None
        self.done: list[subprocess.Popen[bytes]] = []

    def hold(self, key: str, path: str, text: str) -> None:
        """Have *text* written to the file *path*, as it is now, when the broker has gone. Blocks while the process
        starts. Raises OSError: then nothing would put it back."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        with self._lock:
            self._forget(key)
            self.held[key] = (descriptor, text)
            try:
                self.ensure(key)
            except OSError:
                self._forget(key)
                raise

    def ensure(self, key: str = "") -> None:
        """Have a process that knows *key*, or all where it is new. Blocks while it starts. Raises OSError."""
        with self._lock:
            if self.process is not None and self.process.poll() is not None:
                self._leave()
            if self.process is None:
                self._start()
                key = ""
            assert self.socket is not None
            for one in [key] if key else list(self.held):
                descriptor, text = self.held[one]
                socket.send_fds(self.socket, [f"+ {one} {text}".encode()], [descriptor])

    @property
    def missing(self) -> bool:
        """Whether there is something to put back, and no process that would."""
        return bool(self.held) and (self.process is None or self.process.poll() is not None)

    def drop(self, key: str, put_back: bool = False) -> None:
        """No longer; *put_back*: what was before, now. The process ends with the last of them."""
        with self._lock:
            if key not in self.held:
                return
            if put_back:
                _write(*self.held[key])
            self._forget(key)
            if self.socket is not None:
                self.socket.settimeout(0)
                try:
                    self.socket.send(f"- {key}".encode())
                except OSError:  # it has ended, and is started again by the next ensure(); or is stopped
                    pass
                self.socket.settimeout(PATIENCE)
            if not self.held:
                self._leave()

    def close(self) -> None:
        """Put everything back, now."""
        with self._lock:
            for key in list(self.held):
                self.drop(key, put_back=True)
            deadline = time.monotonic() + 1
            while self.done and time.monotonic() < deadline:
                self.done = [process for process in self.done if process.poll() is None]
                time.sleep(0.005)
            for process in self.done:  # stopped, or a slow machine: it has nothing left to do
                process.kill()
                process.wait()
            self.done = []

    def _forget(self, key: str) -> bool:
        if key not in self.held:
            return False
        os.close(self.held.pop(key)[0])
        return True

    def _start(self) -> None:
        import subprocess  # the process itself has no use for it

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        me = os.pidfd_open(os.getpid())
        try:
            fds = (theirs.fileno(), me)
            argv = [sys.executable, "-I", "-S", "-c", CODE, PACKAGE, *map(str, fds)]
            self.process = subprocess.Popen(
                argv, pass_fds=fds, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True, env={}
            )
            self.socket = ours
            self.socket.settimeout(PATIENCE)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(me)

    def _leave(self) -> None:
        """Close the socket, upon which the process writes back what it holds, and ends."""
        if self.socket is not None:
            self.socket.close()
        if self.process is not None:
            self.done.append(self.process)
        self.done = [process for process in self.done if process.poll() is None]
        self.socket = self.process = None


def main(connection: str, broker: str) -> None:
    """The process: descriptors' numbers of its end of the socket, and of the broker's pidfd."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    mine = socket.socket(fileno=int(connection))
    held: dict[str, tuple[int, str]] = {}
    poll = select.poll()
    poll.register(mine, select.POLLIN)
    poll.register(int(broker), select.POLLIN)
    # Also what it has sent before it died comes first.
    while mine.fileno() in dict(poll.poll()):
        if not _receive(mine, held):
            break
    for descriptor, text in held.values():
        _write(descriptor, text)


def _write(descriptor: int, text: str) -> None:
    try:
        os.write(descriptor, text.encode())
    except OSError:  # the group has gone
        pass


def _receive(mine: socket.socket, held: dict[str, tuple[int, str]]) -> bool:
    """Take one message; False where there will be none any more."""
    data, descriptors, _, _ = socket.recv_fds(mine, LONGEST, 1)
    sign, _, rest = data.decode().partition(" ")
    key, _, text = rest.partition(" ")
    if key in held:
        os.close(held.pop(key)[0])
    if sign == "+":
        held[key] = (descriptors[0], text)
    return bool(data)
