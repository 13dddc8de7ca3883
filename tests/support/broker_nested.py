"""A guest of level 1 with a broker of its own, and guests of level 2 that it serves, each with an agent.

    host      test ── stdin/stdout ──▶ agent of level 1 ── /run/nestrt/guest.sock ──▶ the host's broker
    └ G       its agent ── stdin/stdout ──▶ agent of level 2 ── its /run/nestrt/guest.sock ──▶ G's broker
      ├ one
      └ two
"""

from __future__ import annotations

import json
from typing import Any

from support.broker import AGENT, HOST_SOCKET, BrokerGuest, opened
from support.broker_attack import run
from support.rootfs import COMMAND, PythonRoot
from support.runner import wait_for

# What level 1 needs to have state, an audit and root filesystems of its own.
MOUNTS = ("--mount", "type=tmpfs,target=/var,size=16M", "--mount", "type=tmpfs,target=/mnt,size=64M")
READY = "nestrt broker: ready"


class Inner(BrokerGuest):
    """A guest of level 2: what it is told goes through the agent of level 1."""

    def __init__(self, level: Level, name: str) -> None:
        self.level = level
        self.name = name

    def order(self, kind: str, user: int = 0, **values: Any) -> Any:
        """What its agent answers. AssertionError where it failed."""
        line = json.dumps({"order": kind, "user": user, **values}) + "\n"
        text = self.level.guest.python(f"""
agent = held[{self.name!r}]
agent.stdin.write({line!r})
agent.stdin.flush()
result = agent.stdout.readline()
""")  # fmt: skip
        assert text, f"the agent of {self.name} has ended: {self.level.guest.shell(f'cat /var/log/{self.name}')}"
        found = json.loads(text)
        assert "failed" not in found, found
        return found["done"]


class Level:
    """The guest of level 1, and its broker."""

    def __init__(self, guest: BrokerGuest, python: PythonRoot) -> None:
        self.guest = guest
        self.python = python
        self.pid = 0
        guest.shell("mkdir -p /var/log")
        guest.python(f"open('/mnt/agent', 'w').write({AGENT!r})")
        self.start()

    def start(self) -> None:
        """Start its broker and wait until it listens."""
        before = self.said().count(READY)
        self.pid = self.guest.spawn(f"exec {COMMAND} broker --audit /var/log/audit >>/var/log/broker 2>&1")
        wait_for(lambda: self.said().count(READY) > before, "the broker of level 1", 20)

    def stop(self, number: str = "KILL") -> None:
        """End its broker."""
        self.guest.shell(f"kill -{number} {self.pid}")
        self.guest.python(f"held.pop('child {self.pid}').wait()")

    def said(self) -> str:
        """What its broker has written to standard error."""
        return str(self.guest.python("""
try:
    result = open("/var/log/broker").read()
except FileNotFoundError:
    result = ""
"""))

    def ask(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """Call *method* of io.nestrt.Host at its broker, as its root. Raises Refused."""
        whole = method if "." in method else f"io.nestrt.Host.{method}"
        (reply,) = run(self.guest, f"""
one = open_one({HOST_SOCKET!r}, 60)
one.sendall(frame({whole!r}, {parameters!r}))
one.shutdown(socket.SHUT_WR)
result = [json.loads(text) for text in all_of(one)[0].split(b"\\0")[:-1]]
""")  # fmt: skip
        return opened(reply)

    def launch(self, name: str, *options: str) -> Inner:
        """A guest of level 2 with an agent, served by its broker."""
        root = f"/mnt/{name}"
        words = ["launch", "--name", name, "--broker", "required", *self.python.inner_options(root), *options,
                 "--", "/usr/bin/python3", "-Ic", AGENT]  # fmt: skip
        self.guest.shell(f"[ -d {root} ] || /mkroot {root}")
        self.guest.python(f"""
import subprocess
held[{name!r}] = subprocess.Popen([{COMMAND!r}, *{words!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=open("/var/log/{name}", "w"), text=True, start_new_session=True)
""")  # fmt: skip
        inner = Inner(self, name)
        assert inner.python("result = 1") == 1
        return inner

    def end(self, name: str) -> None:
        """Kill the first process of its guest *name*, and delete that."""
        (pid,) = [row["pid"] for row in self.ask("Guests")["guests"] if row["name"] == name]
        self.guest.shell(f"kill -KILL {pid}")
        self.guest.python(f"held.pop({name!r}).communicate()")
        self.guest.shell(f"{COMMAND} delete --force {name}")
