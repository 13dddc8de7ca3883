"""Ask the broker of this level to serve a guest, or start one for a guest alone.

The start-up path speaks its Varlink by hand: one call, one reply (broker/wire.py).
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SOCK_STREAM
from _socket import socket as _socket

from nestrt import jsontext
from nestrt.errors import HostError, NestrtError
from nestrt.kernel import pidfd
from nestrt.plan.broker import AUDIT, HOST_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATIENCE = 10.0  # seconds
LONGEST_REPLY = 1 << 20
REMEDY = 'start one: nestrt broker; or say broker = "none" in the policy'
PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from nestrt.__main__ import main; sys.exit(main(sys.argv[1:]))"


class NoBroker(HostError):
    """Nobody listens on the level's socket."""


def call(method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The reply of the level's broker to io.nestrt.Host's *method*.

    Raises NoBroker where there is none, NestrtError with the broker's own words where it refuses.
    """
    found = _exchange(jsontext.dumps({"method": f"io.nestrt.Host.{method}", "parameters": parameters}).encode() + b"\0")
    try:
        reply = jsontext.loads(found.decode())
        values = reply.get("parameters") or {}
        error = reply.get("error")
        if not isinstance(values, dict):
            raise ValueError("parameters")
    except (ValueError, AttributeError) as wrong:
        raise NestrtError("ask", "the broker", "its answer is none", "look at its journal") from wrong
    if error:
        text = str(values.get("message") or error)
        raise NestrtError("have", f"the broker do {method}", text, str(values.get("remedy") or ""))
    return values


def _exchange(data: bytes) -> bytes:
    one = _socket(AF_UNIX, SOCK_STREAM)
    try:
        one.settimeout(PATIENCE)
        try:
            one.connect(HOST_SOCKET)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoBroker("ask", "the broker", f"none listens on {HOST_SOCKET}", REMEDY) from error
        one.sendall(data)
        found = b""
        while not found.endswith(b"\0"):
            chunk = one.recv(65536)
            if not chunk or len(found) > LONGEST_REPLY:
                raise NestrtError("ask", "the broker", "it has closed the connection", "look at its journal")
            found += chunk
        return found[:-1]
    except TimeoutError as error:
        raise NestrtError("ask", "the broker", f"no answer in {PATIENCE:g} s", "look at its journal") from error
    except OSError as error:
        raise NestrtError("ask", "the broker", error.strerror or "", f"look at {HOST_SOCKET}") from error
    finally:
        one.close()


def serve(name: str, group: str, needed: bool) -> str:
    """The socket on which the broker listens for guest *name* with the limit group *group*; "" where there is no
    broker and none is *needed*. Raises NestrtError."""
    try:
        return str(call("Serve", {"guest": name, "cgroup": group}).get("socket") or "")
    except NoBroker as error:
        if not needed:
            return ""
        obj = f"guest {name}"
        raise HostError("start", obj, f"its policy requires a broker, and {error.reason}", REMEDY) from error


def missing(name: str) -> str:
    """What to say where a guest wanted a broker."""
    return f"guest {name} gets no broker: none listens on {HOST_SOCKET}; start one: nestrt broker"


class Embedded:
    """A broker that this process has started for one guest."""

    def __init__(self, pid: int, held: int) -> None:
        """*held* is the end of a pipe: the broker lives until nobody has it."""
        self.pid = pid
        self.held = held

    def end(self) -> None:
        """Let it end, and wait until it has removed its socket."""
        os.close(self.held)
        try:
            watch = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if not pidfd.wait(watch, PATIENCE):
                pidfd.send_signal(watch, 9)
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass
        finally:
            os.close(watch)


def embed(name: str, group: str, signals: set[int]) -> Embedded:
    """Start a broker for guest *name* alone, and return when it listens. Raises NestrtError; its own words are on
    standard error."""
    ours, held = os.pipe()
    ready, theirs = os.pipe()
    argv = [sys.executable, "-I", "-S", "-c", PROGRAM, PACKAGE, "broker", "--embedded", name, "--cgroup", group]
    places = [(os.POSIX_SPAWN_DUP2, ours, 0), (os.POSIX_SPAWN_DUP2, theirs, 1)]
    environment = {"PATH": os.defpath, **{name: value for name, value in os.environ.items() if name == AUDIT}}
    pid = os.posix_spawn(sys.executable, argv, environment, file_actions=places, setsigmask=signals, setpgroup=0)
    os.close(ours)
    os.close(theirs)
    found = Embedded(pid, held)
    try:
        if os.read(ready, 16) != b"ready\n":
            found.end()
            raise NestrtError("start", f"a broker for guest {name}", "it has ended at once", "see what it said")
    finally:
        os.close(ready)
    return found
