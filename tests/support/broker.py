"""A broker of the host, and guests whose processes ask it: an agent inside takes orders by lines of JSON.

    test ── stdin/stdout ──▶ agent, first process of the guest ── /run/nestrt/guest.sock ──▶ nestrt broker
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.need import SLOW
from support.rootfs import CHECKOUT, OPT, PythonRoot
from support.runner import Nestrt, wait_for

HOST_SOCKET = "/run/nestrt/host.sock"
GUEST = "io.nestrt.Guest"
HOST = "io.nestrt.Host"
PYTHON = str(CHECKOUT / ".venv/bin/python")

AGENT = r'''
import json, os, socket, subprocess, sys, time
PATH = "/run/nestrt/guest.sock"
held = {}

def connect():
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(120)
    one.connect(PATH)
    return one

def receive(one, rest=b""):
    while b"\0" not in rest:
        chunk = one.recv(65536)
        if not chunk:
            return None, b""
        rest += chunk
    frame, _, rest = rest.partition(b"\0")
    return json.loads(frame), rest

def call(order):
    one = connect()
    try:
        message = {"method": order["method"], "parameters": order["parameters"]}
        one.sendall(json.dumps(message).encode() + b"\0")
        return receive(one)[0]
    finally:
        one.close()

def obey(order):
    kind = order["order"]
    if kind == "call":
        return call(order)
    if kind == "raw":  # bytes in, all that comes back until the end or a pause
        one = connect()
        one.settimeout(order.get("pause", 1.0))
        found = b""
        try:
            one.sendall(bytes.fromhex(order["bytes"]))
            if order.get("shut"):
                one.shutdown(socket.SHUT_WR)
            while chunk := one.recv(65536):
                found += chunk
        except (TimeoutError, OSError):
            pass
        one.close()
        return found.hex()
    if kind == "stream":  # begin a stream, kept by its key
        one = connect()
        message = {"method": order["method"], "parameters": order["parameters"], "more": True}
        one.sendall(json.dumps(message).encode() + b"\0")
        held[order["key"]] = [one, b""]
        return None
    if kind == "next":
        pair = held[order["key"]]
        pair[0].settimeout(order["seconds"])
        try:
            reply, pair[1] = receive(pair[0], pair[1])
        except TimeoutError:
            return {"timeout": True}
        return reply
    if kind == "shell":
        done = subprocess.run(order["command"], shell=True, capture_output=True, text=True, errors="replace")
        return {"rc": done.returncode, "out": done.stdout, "err": done.stderr}
    if kind == "spawn":
        child = subprocess.Popen(order["command"], shell=True, start_new_session=True,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        held[f"child {child.pid}"] = child
        return child.pid
    if kind == "python":
        space = {"connect": connect, "receive": receive, "call": call, "held": held}
        exec(order["code"], space)
        return space.get("result")

def as_user(order):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            os.setgroups([])
            os.setresgid(order["user"], order["user"], order["user"])
            os.setresuid(order["user"], order["user"], order["user"])
            found = {"done": obey(order)}
        except BaseException as error:
            found = {"failed": f"{type(error).__name__}: {error}"}
        with os.fdopen(write, "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)

for line in sys.stdin:
    order = json.loads(line)
    try:
        found = as_user(order) if order.get("user") else {"done": obey(order)}
    except BaseException as error:
        found = {"failed": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
'''


class Refused(Exception):
    """An error reply: *error* is its short name, *parameters* what it carries."""

    def __init__(self, reply: dict[str, Any]) -> None:
        self.error = reply["error"].rpartition(".")[2]
        self.parameters = reply.get("parameters") or {}
        super().__init__(f"{self.error}: {self.parameters}")

    @property
    def message(self) -> str:
        return str(self.parameters.get("message", ""))


def opened(reply: Any) -> dict[str, Any]:
    """The parameters of *reply*. Raises Refused."""
    assert isinstance(reply, dict), reply
    if "error" in reply:
        raise Refused(reply)
    found: dict[str, Any] = reply["parameters"]
    return found


class BrokerGuest:
    """A guest with an agent as its first process."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process

    def order(self, kind: str, user: int = 0, **values: Any) -> Any:
        """What the agent answers. AssertionError where it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = json.dumps({"order": kind, "user": user, **values}) + "\n"
        self.process.stdin.write(line.encode())
        self.process.stdin.flush()
        text = self.process.stdout.readline()
        assert text, f"the agent of {self.name} has ended: {self.process.poll()}, {self._said()}"
        found = json.loads(text)
        assert "failed" not in found, found
        return found["done"]

    def _said(self) -> str:
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        return (self.process.stderr.read() or b"").decode(errors="replace")

    def call(self, method: str, user: int = 0, **parameters: Any) -> dict[str, Any]:
        """Call *method* ("Create") as *user* of the guest, on a connection of its own. Raises Refused."""
        whole = method if "." in method else f"{GUEST}.{method}"
        return opened(self.order("call", user, method=whole, parameters=parameters))

    def refused(self, method: str, user: int = 0, **parameters: Any) -> Refused:
        """The refusal with which *method* is answered. AssertionError where it is not."""
        try:
            found = self.call(method, user, **parameters)
        except Refused as refused:
            return refused
        raise AssertionError(f"{method} {parameters} was done: {found}")

    def shell(self, command: str, user: int = 0) -> str:
        """The output of a shell command in the guest. AssertionError with all of it where it failed."""
        found = self.order("shell", user, command=command)
        assert found["rc"] == 0, found
        return str(found["out"]).strip()

    def spawn(self, command: str, user: int = 0) -> int:
        """Start a shell command in the guest; its pid there."""
        return int(self.order("spawn", user, command=command))

    def python(self, code: str, user: int = 0) -> Any:
        """Run Python in the agent, which has connect(), receive() and call(); returns what it sets as ``result``."""
        return self.order("python", user, code=code)


class Broker:
    """``nestrt broker`` of the host, with an audit of its own in *audit*; of a Nest, where its *before* leads there and
    *host_socket* is the socket as the host reaches it."""

    def __init__(self, *options: str, before: tuple[str, ...] = (), host_socket: str = HOST_SOCKET) -> None:
        self.before = before
        self.host_socket = host_socket
        self.audit = Path(tempfile.mkdtemp(prefix="nestrt-audit-", dir="/tmp"))
        self.options = options
        self.log = tempfile.TemporaryFile()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether it runs: a test that failed may have left one that has ended."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [*self.before, PYTHON, "-m", "nestrt", "broker", "--audit", str(self.audit), *self.options]
        self.since = self.log.seek(0, os.SEEK_END)
        self.process = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stderr=self.log)
        wait_for(self._answers, "the broker", 20)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        return b"ready" in self._written(self.since)

    def said(self) -> str:
        """What it has written to standard error."""
        return self._written(0).decode(errors="replace")

    def _written(self, since: int) -> bytes:
        # Its own descriptor has the same offset, which read() would move.
        return os.pread(self.log.fileno(), 1 << 24, since)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; returns its status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(20 * SLOW)
        self.process = None
        return status

    def close(self) -> None:
        if self.process is not None:
            self.stop()
        self.log.close()
        shutil.rmtree(self.audit)

    def restart(self, number: int = signal.SIGKILL) -> None:
        """End it by *number* and start it anew."""
        self.stop(number)
        self.start()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call *method* of io.nestrt.Host. Raises Refused."""
        whole = method if "." in method else f"{HOST}.{method}"
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(30 * SLOW)
            one.connect(self.host_socket)
            one.sendall(json.dumps({"method": whole, "parameters": parameters}).encode() + b"\0")
            found = b""
            while not found.endswith(b"\0"):
                chunk = one.recv(65536)
                assert chunk, self.said()
                found += chunk
        return opened(json.loads(found[:-1]))

    def entries(self, guest: str = "") -> list[dict[str, Any]]:
        """The audit's lines, of *guest* or of all."""
        found = []
        for path in sorted(self.audit.iterdir()):
            found += [json.loads(line) for line in path.read_text().splitlines()]
        return [entry for entry in found if not guest or entry["guest"] == guest]


@contextmanager
def running(*options: str, **named: Any) -> Iterator[Broker]:
    """A broker for a while; *named* as for Broker."""
    broker = Broker(*options, **named)
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


def start_guest(nestrt: Nestrt, python: PythonRoot, name: str, *options: str) -> BrokerGuest:
    """A guest with the agent, and with a broker unless *options* say otherwise."""
    broker = () if any(word.startswith("--broker") for word in options) else ("--broker", "required")
    process = nestrt.start(
        "launch", "--name", name, *python.options, *broker, *options, "--", "/usr/bin/python3", "-Ic", AGENT,
        stdin=subprocess.PIPE,
    )  # fmt: skip
    guest = BrokerGuest(name, process)
    assert guest.python("result = 1") == 1
    return guest


def limit_path(name: str) -> Path:
    """The limit group of guest *name* in the tree that has the whole mark."""
    for base in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        path = Path(base, "nestrt", name)
        if path.is_dir() and (path / "cgroup.events").exists():
            return path
    return Path("/sys/fs/cgroup/systemd/nestrt", name)


def settled(seconds: float = 0.2) -> None:
    """A moment for what is done without an answer."""
    time.sleep(seconds * SLOW**0.5)


__all__ = ["OPT", "Broker", "BrokerGuest", "Refused", "limit_path", "running", "settled", "start_guest"]
