"""nestrt/guest/remote.py in guests of a real broker: the same commands and the same looks, whatever the view is.

    host               nestrt broker; what was done is read back through the host's own mounts
    └ /nestrt/G        256M, 60 processes
      └ guest          "/"
        ├ init         the agent, and the commands that it runs
        └ web …        what they make
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.broker import Broker, BrokerGuest, start_guest
from support.guests import MODES
from support.hostside import group_file, groups
from support.rootfs import CHECKOUT, COMMAND, OPT, PythonRoot
from support.runner import Nestrt, wait_for

LIMITS = ("-m", "256M", "--pids", "60")
REMOTE = f"/usr/bin/python3 -IB {OPT}/nestrt/guest/remote.py"
Start = Callable[..., BrokerGuest]
# Every command starts a Python, which takes seconds under emulation.
SLOWLY = pytest.mark.slow_on_vm


@pytest.fixture
def start(
    broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str], tmp_path: Path
) -> Start:
    """Start a guest with that view."""

    def start(view: str = "none", *options: str) -> BrokerGuest:
        policy = tmp_path / f"{view}.toml"
        policy.write_text(f'[level]\nbroker = "required"\n[view]\nmount = "{view}"\n')
        return start_guest(nestrt, python, new_guest(), *LIMITS, "--policy", str(policy), *options)

    return start


class Command:
    """``nestrt guest …`` in a guest."""

    def __init__(self, guest: BrokerGuest, user: int = 0) -> None:
        self.guest = guest
        self.user = user

    def run(self, *argv: str) -> tuple[int, str, str]:
        found = self.guest.order("shell", self.user, command=f"{REMOTE} {shlex.join(argv)}")
        assert found["err"].count("\n") == (found["rc"] != 0), found
        return found["rc"], found["out"], found["err"]

    def __call__(self, *argv: str) -> str:
        status, out, err = self.run(*argv)
        assert status == 0, (argv, err)
        return out

    def refused(self, *argv: str) -> tuple[int, str]:
        status, out, err = self.run(*argv)
        assert (status != 0, out) == (True, ""), (argv, out)
        assert err.startswith("nestrt: cannot ")
        return status, err

    def json(self, *argv: str) -> Any:
        return json.loads(self(*argv, "--format", "json"))


def own_file(name: str, group: str, controller: str, v1: str, v2: str) -> str:
    """What the host reads of a group of the guest."""
    return group_file(controller, f"/nestrt/{name}/guest{group}", v1, v2).read_text().strip()


def memory(name: str, group: str) -> str:
    return own_file(name, group, "memory", "memory.limit_in_bytes", "memory.max")


@pytest.mark.parametrize("view", [*(pytest.param(view, marks=SLOWLY) for view in ("rw", "ro")), "none"])
@pytest.mark.parametrize("mode", ["userns", pytest.param("nouserns", marks=SLOWLY)])
def test_the_commands_do_not_depend_on_the_view(start: Start, broker: Broker, view: str, mode: str) -> None:
    """What can be written is written by the guest itself, and the broker hears nothing of it; else the broker does it,
    and writes it down."""
    guest = start(view, *MODES[mode])
    run = Command(guest)
    assert run("create", "web", "memory=64M", "pids=10") == ""
    assert (memory(guest.name, "/web"), own_file(guest.name, "/web", "pids", "pids.max", "pids.max")) == (
        str(64 << 20), "10",
    )  # fmt: skip
    run("set", "web", "memory=48M", "cpu=0.5")
    assert memory(guest.name, "/web") == str(48 << 20)
    assert run("get", "web", "memory", "cpu.max", "pids") == "memory.max 48M\ncpu.max 0.5\npids.max 10\n"
    values = {"memory.max": 48 << 20, "cpu.max": 0.5, "pids.max": 10}
    assert run.json("get", "web", *values) == values
    pid = guest.spawn("exec sleep 1000")
    run("move", "web", str(pid))
    rows = {row.split()[0]: row.split() for row in run("ls").splitlines()}
    assert rows["group"] == ["group", "procs", "memory", "swap", "cpu", "weight", "cpus", "pids"]
    assert (rows["/web"][1], rows["/web"][2].partition("/")[2], rows["/web"][-1]) == ("1", "48M", "1/10")
    listed = {one["group"]: one for one in run.json("ls", "-r")}
    assert set(listed) == {"/", "/init", "/web"}
    assert listed["/web"]["processes"] == 1
    assert listed["/web"]["limits"]["memory.max"]["limit"] == 48 << 20
    assert listed["/web"]["limits"]["pids.max"] == {"limit": 10, "use": 1}
    status = run.json("status")
    assert (status["name"], status["level"], status["view"]) == (guest.name, 1, view)
    assert status["limits"]["memory.max"]["limit"] == 256 << 20
    assert {"memory", "pids", "cpu"} <= set(status["may_divide"])
    assert "memory.max" in run("status")
    for argv, code, text in (
        (["set", "web", "memory=1G"], 2, "1G is more than group / has (256M); give at most 256M"),
        (["set", "/", "memory=1G"], 5, f"it is the limit of guest {guest.name} (256M), set by host"),
        (["set", "web", "memory=lots"], 2, "'lots' is not a size"),
        (["get", "nowhere"], 3, "no such group"),
        (["create", "web"], 4, "it exists"),
        (["create", "a/b"], 3, "there is no group /a; make it too with -p"),
        (["rm", "web"], 4, f"processes are in it ({pid})"),
        (["move", "web", "99999"], 3, "no such process"),
    ):
        found, err = run.refused(*argv)
        assert (found, text in err) == (code, True), err
    run("rm", "--kill", "web")
    assert not any((path / "guest/web").exists() for path in groups(f"/nestrt/{guest.name}"))
    asked = {entry["method"] for entry in broker.entries(guest.name)}
    assert asked == (set() if view == "rw" else {"Create", "Set", "Attach", "Remove"})
    run("--broker", "create", "web")
    assert broker.entries(guest.name)[-1]["method"] == "Create"


@SLOWLY
def test_what_only_the_broker_does(start: Start) -> None:
    """
    guest
    ├ web      frozen, thawed, ended; without /dev/zero
    └ team     uid 1000's
    """
    guest = start("rw")
    run, user = Command(guest), Command(guest, 1000)
    run("create", "web", "pids=20")
    pid = guest.spawn("exec sleep 1000")
    run("attach", "web", str(pid))
    assert run.json("ps", "web") == [{"pid": pid, "user": 0, "group": "/web", "command": "sleep 1000"}]
    text = guest.shell(f"{REMOTE} attach web && {REMOTE} ps web")  # without a pid: the shell itself
    assert [row.split()[0] for row in text.splitlines()][1:][0] == str(pid)
    assert "attach web" in text
    run("freeze", "web")
    assert {one["name"]: one["frozen"] for one in guest.call("List")["groups"]}["/web"]
    run("thaw", "web")
    assert run("kill", "web", "-s", "TERM") == "1 process\n"
    wait_for(lambda: not run.json("ps", "web"), "its end", 10)
    assert run("kill", "web") == "0 processes\n"

    reads = "head -c1 /dev/zero | wc -c; head -c1 /dev/urandom | wc -c"
    inside = f"sh -c '{REMOTE} attach web; {{ {reads}; }} 2>/dev/null'"
    assert run("devices", "web").endswith("# of the group above\n")
    assert guest.shell(inside).split() == ["1", "1"]
    run("devices", "web", "deny", "/dev/zero")
    assert "c 1:5" not in run("devices", "web")
    assert guest.shell(inside).split() == ["0", "1"]
    run("devices", "web", "only", "c 1:3 rwm", "c 1:5 r")
    assert run.json("devices", "web") == {"rules": ["c 1:3 rwm", "c 1:5 r"], "own": True}
    assert guest.shell(inside).split() == ["1", "0"]
    assert run.refused("devices", "web", "allow", "b 8:0 rwm")[0] in (2, 5)
    run("devices", "web", "inherit")
    assert guest.shell(inside).split() == ["1", "1"]

    run("create", "team", "memory=32M", "--owner", "1000", "--device", "/dev/null")
    assert run("devices", "team") == "c 1:3 rwm\n"
    user("--broker", "create", "team/job", "memory=16M")
    assert memory(guest.name, "/team/job") == str(16 << 20)
    for argv in (["set", "team", "memory=64M"], ["freeze", "web"], ["create", "mine"], ["devices", "team", "inherit"]):
        status, err = user.refused("--broker", *argv)
        assert status == 5
        assert "user 1000 may not" in err


@SLOWLY
def test_rules(start: Start) -> None:
    guest = start("none")
    run = Command(guest)
    run("create", "jobs")
    lines = "# where sleepers go\n\n*:sleep * jobs\n"
    guest.shell(f"printf {shlex.quote(lines)} | {REMOTE} rules -")
    assert run("rules") == "*:sleep * jobs\n"
    pid = guest.spawn("exec sleep 1000")
    wait_for(lambda: [one["pid"] for one in run.json("ps", "jobs")] == [pid], "the rule", 10)
    status, err = Command(guest, 1000).refused("rules", "/etc/passwd")
    assert status in (2, 5), err
    guest.shell(f"{REMOTE} rules /dev/null")
    assert run("rules") == ""


HOG = "exec python3 -c 'import time; x = bytearray(100 << 20); time.sleep(1000)'"


@SLOWLY
def test_an_answer_to_what_a_group_tells(start: Start) -> None:
    """web has 32M and runs out of it. Who watches is told, answers, and the group is ended."""
    guest = start("none", "--swap", "0")
    run = Command(guest)
    run("create", "web", "memory=32M")
    run("react", "web", "pressure", "some 150000 1000000", "freeze")
    run("react", "web", "oom", "tell", "--seconds", "60", "--fallback", "nothing")
    assert {one["on"]: one["action"] for one in run.json("react", "--list")} == {"oom": "tell", "pressure": "freeze"}
    assert "seconds 60, fallback nothing" in run("react", "--list")
    run("react", "web", "pressure", "--forget")
    assert run.refused("react", "web", "pressure", "--forget")[0] == 3
    assert run.refused("react", "web", "oom", "explode")[0] == 2
    guest.spawn(f"exec {REMOTE} events web --format json > /tmp/events")
    wait_for(lambda: "populated" in guest.shell(f"{REMOTE} attach web; sleep 0.2; cat /tmp/events"), "an event", 20)
    pid = guest.spawn(f"{REMOTE} attach web; {HOG}")

    def told() -> dict[str, Any] | None:
        lines = guest.shell("cat /tmp/events").splitlines()
        return next((event for event in map(json.loads, lines) if event.get("id")), None)

    event = wait_for(told, "the question", 30)
    assert event["group"] == "/web"
    assert 0 < event["seconds"] <= 60
    assert pid in [one["pid"] for one in run.json("ps", "web")]
    run("react", "--answer", str(event["id"]), "kill")
    wait_for(lambda: not run.json("ps", "web"), "the end of the group", 20)
    assert run.refused("react", "--answer", str(event["id"]), "kill")[0] == 3


@SLOWLY
def test_events_go_on_when_the_broker_is_killed(start: Start, broker: Broker) -> None:
    """And so does whoever asks meanwhile: each command waits until the next broker answers."""
    guest = start("none")
    run = Command(guest)
    run("create", "web")
    guest.spawn(f"exec {REMOTE} events --kinds created,lost > /tmp/events")

    def lines() -> list[str]:
        return guest.shell("cat /tmp/events").splitlines()

    tries = itertools.count()

    def seen(number: int) -> bool:
        run("create", f"before{number}-{next(tries)}")
        return any(f"/before{number}" in line for line in lines())

    wait_for(lambda: seen(0), "the first event", 20)
    before = len(lines())
    broker.stop(signal.SIGKILL)
    again = threading.Timer(0.5, broker.start)
    again.start()
    try:
        assert run("--wait", "60", "set", "web", "memory=64M") == ""
    finally:
        again.join()
    assert memory(guest.name, "/web") == str(64 << 20)
    wait_for(lambda: seen(1), "an event of the second broker", 30)
    # What the last try before the kill made may be told after it.
    kinds = [line.split()[1] for line in lines()[before:] if "/before0-" not in line]
    assert kinds.count("lost") == 1
    assert kinds[0] == "lost"


def test_without_a_broker(broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> None:
    """What can be done without is done; the rest says whom to ask."""
    guest = start_guest(nestrt, python, new_guest(), *LIMITS, "--broker", "none")
    run = Command(guest)
    run("create", "web", "memory=64M")
    status, err = run.refused("devices", "web")
    assert status == 5
    assert "no broker answers at /run/nestrt/guest.sock" in err
    assert 'ask the level above for broker = "required" in the policy' in err
    status, err = Command(guest, 1000).refused("create", "mine")
    assert (status, "cannot be written by this user" in err) == (5, True)


@SLOWLY
def test_copies_and_the_command_itself(start: Start) -> None:
    guest = start("none")
    guest.shell(f"cp {OPT}/nestrt/guest/client.py {OPT}/nestrt/guest/remote.py /tmp/")
    guest.shell("cd / && python3 /tmp/remote.py create web memory=64M")
    assert guest.shell(f"{COMMAND} guest get web memory") == "memory.max 64M"
    found = guest.order("shell", command="python3 -I /tmp/client.py get web")
    assert found["rc"] == 5  # on its own it has nothing to look at


def readme_bytes() -> list[tuple[str, str]]:
    """(command, what it prints) of README.md's section on the bytes."""
    section = (CHECKOUT / "README.md").read_text().partition("### The bytes")[2].partition("\n##")[0]
    found = re.findall(r"^    # (.+(?:\\\n.+)*)\n    (\{.+)$", section, re.MULTILINE)
    return [(command.replace("\\\n", ""), printed) for command, printed in found]


def test_the_bytes_of_the_readme(start: Start) -> None:
    """Any client of a Unix socket will do. Those that are installed here are tried."""
    guest = start("none")
    Command(guest)("create", "web", "memory=64M")
    commands = readme_bytes()
    assert len(commands) >= 3
    tried = []
    for command, printed in commands:
        tool = re.findall(r"\b(socat|nc|python3|perl)\b", command)[0]
        if guest.order("shell", command=f"command -v {tool}")["rc"]:
            continue
        tried.append(tool)
        assert guest.shell(command).strip("\0\n") == printed
    assert "python3" in tried


@SLOWLY
def test_the_audit_tells_who_it_was(start: Start, broker: Broker, nestrt: Nestrt) -> None:
    guest = start("none")
    run = Command(guest)
    run("create", "web", "memory=64M")
    for _ in range(5):
        assert run.refused("set", "web", "memory=1G")[0] == 2
    Command(guest, 1000).refused("rm", "web")

    def audit(*argv: str) -> list[str]:
        return nestrt.run("audit", "--directory", broker.audit, guest.name, *argv).ok().out.splitlines()

    lines = audit()
    assert lines[0].split()[0] == "TIME"
    assert all(guest.name in line for line in lines[1:])
    assert [line.split()[4] for line in lines[1:]][-2:] == ["Set", "Remove"]
    refused = [json.loads(line) for line in audit("--refused", "--format", "json")]
    assert [(one["method"], one["peer"]["user"]) for one in refused] == [("Set", 0), ("Remove", 1000)]
    assert refused[0]["new"] == "1G"
    assert len(audit("--method", "Create")) >= 2
    assert len(audit("-n", "1")) == 2
