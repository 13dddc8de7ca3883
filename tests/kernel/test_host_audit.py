"""What root changes by commands is in the audit, beside what guests ask of a broker.

::

    host      nestrt update, freeze, thaw, kill, exec, lock, unlock G     → $NESTRT_AUDIT/G%host.jsonl
    └ G       nestrt freeze inner, nestrt host init                       → G's own /var/log/nestrt/audit
      └ inner
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.broker import BrokerGuest, running, start_guest
from support.bundles import Bundle
from support.guests import MODES, nested
from support.hostside import has_v1
from support.need import SLOW
from support.rootfs import COMMAND, PythonRoot
from support.runner import Nestrt, Result, wait_for

MIB = 1 << 20
WORK = "touch /tmp/ready; while :; do sleep 0.05; done"


class Log:
    """Commands with an audit of their own, and what is in it."""

    def __init__(self, nestrt: Nestrt, directory: Path) -> None:
        self.nestrt = nestrt
        self.directory = directory

    def run(self, *words: str) -> Result:
        return self.nestrt.run(*words, env={**os.environ, "NESTRT_AUDIT": str(self.directory)})

    def entries(self, *words: str) -> list[dict[str, Any]]:
        """As ``nestrt audit`` has them."""
        return [json.loads(line) for line in self.run("audit", *words, "--format", "json").ok().out.splitlines()]

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        keys = ("method", "group", "key", "old", "new", "verdict")
        return [tuple(entry[key] for key in keys) for entry in self.entries(name)]


@pytest.fixture
def log(nestrt: Nestrt, tmp_path: Path) -> Log:
    return Log(nestrt, tmp_path / "audit")


@pytest.fixture
def guest(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> str:
    """A guest that runs, with limits."""
    name = new_guest()
    nestrt.launch("--rootfs", busybox, "--name", name, "-d", *MODES["userns"], "-m", "64M", "--", "sh", "-c", WORK).ok()
    wait_for(lambda: nestrt.run("exec", name, "test", "-e", "/tmp/ready").rc == 0, "the guest")
    return name


def test_every_command_that_changes_a_guest(log: Log, guest: str) -> None:
    """Who, what, from what, to what; and no argument of a program."""
    log.run("update", guest, "-m", "96M", "--pids", "40").ok()
    for command in ("freeze", "thaw", "thaw", "lock", "unlock"):
        log.run(command, guest).ok()
    log.run("exec", guest, "true", "--password", "geheim").ok()
    log.run("exec", "-d", guest, "true").ok()
    log.run("kill", guest, "--signal", "WINCH").ok()
    log.run("kill", guest).ok()
    assert log.rows(guest) == [
        ("SetLimits", "/", "memory.max", 64 * MIB, 96 * MIB, "done"),
        ("SetLimits", "/", "pids.max", None, 40, "done"),
        ("Freeze", "/", "frozen", False, True, "done"),
        ("Thaw", "/", "frozen", True, False, "done"),
        ("Thaw", "/", "frozen", False, False, "done"),
        ("Lock", "/", "locked", False, True, "done"),
        ("Unlock", "/", "locked", True, False, "done"),
        ("Exec", "/", "process", None, {"command": "true", "arguments": 2}, "done"),
        ("Exec", "/", "process", None, {"command": "true", "arguments": 0}, "done"),
        ("Kill", "/", "signal", None, 28, "done"),
        ("Kill", "/", "signal", None, 9, "done"),
    ]
    for entry in log.entries(guest):
        assert entry["guest"] == guest
        peer = entry["peer"]
        assert (peer["uid"], peer["gid"], peer["user"], peer["guest_pid"]) == (0, 0, 0, None)
        assert peer["pid"] > 1
    assert "geheim" not in "".join(path.read_text() for path in log.directory.iterdir())
    shown = log.run("audit", guest, "--method", "exec").ok().out
    assert re.search(r'Exec +/ +process +- +{"command": "true", "arguments": 2} +done', shown)
    assert len(log.entries()) == 11
    events = log.run("events", guest, "--since", "1h", "--kinds", "change", "--format", "json").ok().out
    assert [json.loads(line)["key"] for line in events.splitlines()][:3] == ["memory.max", "pids.max", "frozen"]


def test_what_is_refused(log: Log, guest: str) -> None:
    """With the reason; but not what never came to a guest."""
    for words, status in (
        (("update", guest, "-m", "900T"), 2), (("update", guest, "--deny-device", "c 136:7 rw"), 2),
        (("unlock", guest), 4), (("exec", guest, "/no/such", "x"), 127),
    ):  # fmt: skip
        assert log.run(*words).rc == status
    log.run("kill", guest).ok()
    assert log.run("freeze", guest).rc == 4
    assert log.run("kill", guest).rc == 4
    for words in (("update", guest), ("update", guest, "-m", "lots"), ("freeze",), ("kill", "nestrt-no", "-s", "TERM"),
                  ("exec", guest), ("kill", guest, "--signal", "NO"), ("lock", "nestrt-no")):  # fmt: skip
        assert log.run(*words).rc != 0
    found = [(entry["method"], entry["key"], entry["verdict"]) for entry in log.entries(guest, "--refused")]
    assert found == [
        ("SetLimits", "memory.max", "BadValue"), ("SetLimits", "devices", "BadValue"), ("Unlock", "locked", "Busy"),
        ("Exec", "process", "Refused"), ("Freeze", "frozen", "Busy"), ("Kill", "signal", "Busy"),
    ]  # fmt: skip
    assert len(log.entries(guest)) == len(found) + 1
    assert log.entries(guest, "--method", "Unlock")[0]["message"] == f"cannot unlock guest {guest}: it is not locked"
    assert {path.name for path in log.directory.iterdir()} == {f"{guest}%host.jsonl"}


@pytest.mark.v1
def test_what_the_kernel_refuses(log: Log, nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """30 MiB of a tmpfs cannot be reclaimed without swap."""
    fill = f"dd if=/dev/zero of=/dev/shm/x bs=1M count=30 2>/dev/null; {WORK}"
    options = ("-d", *MODES["userns"], "-m", "64M", "--swap", "0", "--", "sh", "-c", fill)
    nestrt.launch("--rootfs", busybox, "--name", guest_name, *options).ok()
    wait_for(lambda: nestrt.run("exec", guest_name, "test", "-e", "/tmp/ready").rc == 0, "the guest")
    assert log.run("update", guest_name, "-m", "8M", "--pids", "20").rc == 4
    found = log.entries(guest_name)
    assert [(entry["key"], entry["old"], entry["new"], entry["verdict"]) for entry in found] == [
        ("memory.max", 64 * MIB, 8 * MIB, "Busy"), ("pids.max", None, 20, "Busy")]  # fmt: skip
    assert "unable to set memory limit" in found[0]["message"]


def test_a_directory_that_cannot_be_written_stops_nothing(nestrt: Nestrt, guest: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = Log(nestrt, tmp_path / "file" / "audit")
    for words in (("update", guest, "--pids", "30"), ("freeze", guest), ("thaw", guest), ("exec", guest, "true")):
        done = log.run(*words).ok()
        assert done.err.count("\n") == 1, done
        assert done.err.startswith("nestrt: warning: cannot keep the audit in "), done
        assert done.out == ""
    refused = log.run("unlock", guest)
    assert refused.rc == 4
    assert [line[:17] for line in refused.err.splitlines()] == ["nestrt: warning: ", "nestrt: cannot un"]


@pytest.mark.slow_on_vm
def test_what_a_broker_does_is_written_once(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    """Broker and commands in one directory: limits are the broker's line, all else the commands'; one reader."""
    with running() as broker:
        log = Log(nestrt, broker.audit)
        start_guest(nestrt, python, guest_name, "-m", "256M")
        log.run("update", guest_name, "-m", "200M").ok()
        log.run("freeze", guest_name).ok()
        log.run("thaw", guest_name).ok()
        assert log.run("update", guest_name, "--cpus", "8000").rc == 2
        found = log.entries(guest_name)
        assert [(entry["method"], entry["key"], entry["verdict"]) for entry in found] == [
            ("SetLimits", "memory.max", "done"), ("Freeze", "frozen", "done"), ("Thaw", "frozen", "done"),
            ("SetLimits", "cpuset.cpus", "BadValue"),
        ]  # fmt: skip
        nestrt.stop()
        nestrt.run("delete", "--force", guest_name).ok()


def test_who_logged_in(log: Log, guest: str, tmp_path: Path) -> None:
    """Where the kernel keeps that, root by sudo is known by it."""
    script = 'echo 1234 >/proc/self/loginuid; cat /proc/self/loginuid >"$2"; exec "$0" freeze "$1"'
    env = {**os.environ, "NESTRT_AUDIT": str(log.directory)}
    argv = ["sh", "-c", script, log.nestrt.command, guest, str(tmp_path / "login")]
    subprocess.run(argv, env=env, check=True, timeout=60 * SLOW, stderr=subprocess.DEVNULL)
    text = (tmp_path / "login").read_text()
    login = int(text) if text and int(text) != 0xFFFFFFFF else None  # a kernel without, or one that lets nobody set it
    (entry,) = log.entries(guest)
    assert entry["peer"].get("login") == login
    row = log.run("audit", guest, "--no-headings").ok().out.split()
    assert row[2:4] == ["0", str(entry["peer"]["pid"])] if login is None else ["0", f"({login})"]
    found = log.run("audit", guest, "--format", "{{.peer.login}} {{.peer.uid}}").ok().out
    assert found == f"{'<no value>' if login is None else login} 0\n"


def test_verbs_of_the_runtime_are_the_engines(log: Log, bundle: Bundle, audit_of_commands: Path) -> None:
    """Which have logs of their own. The wider form of the same is the host's root."""
    bundle.virtual().resources(memory={"limit": 64 * MIB}).up()
    bundle.verb("update", "--pids-limit", "33", bundle.id).ok()
    bundle.verb("exec", bundle.id, "true").ok()
    bundle.verb("pause", bundle.id).ok()
    bundle.verb("resume", bundle.id).ok()
    assert not list(audit_of_commands.glob(f"{bundle.id}*"))
    log.run("update", bundle.id, "-m", "96M", "--device", "c 10:229 rwm").ok()
    log.run("exec", "-it", bundle.id, "true").ok()
    log.run("kill", bundle.id, "--signal", "KILL").ok()
    assert [(row[0], row[2], row[5]) for row in log.rows(bundle.id)] == [
        ("SetLimits", "memory.max", "done"), ("SetLimits", "devices", "done"), ("Exec", "process", "done"),
        ("Kill", "signal", "done"),
    ]  # fmt: skip


def inner(guest: BrokerGuest, python: PythonRoot) -> None:
    """A guest in *guest*."""
    guest.spawn(nested(python, "--name inner", "/bin/sh -c 'exec sleep 1000'"))
    wait_for(lambda: "inner" in guest.shell(f"{COMMAND} ls"), "the inner guest", 30)
    wait_for(lambda: guest.order("shell", command=f"{COMMAND} exec inner true")["rc"] == 0, "its process", 30)


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("option", ["--overlay", "--read-only"])
def test_a_guest_has_an_audit_of_its_own(
    nestrt: Nestrt, new_guest: Callable[[], str], python: PythonRoot, option: str
) -> None:
    """With a root that cannot be written there is none, and nothing is said of that."""
    mount = ("--mount", "type=tmpfs,target=/tmp")
    guest = start_guest(nestrt, python, new_guest(), "--broker=none", *mount, "-m", "512M", option)
    inner(guest, python)
    kept = "find /var/log/nestrt/audit -type f 2>/dev/null | xargs cat /dev/null"
    before = guest.shell(kept)
    for words in ("freeze inner", "thaw inner", "exec inner true", "kill inner"):
        done = guest.order("shell", command=f"{COMMAND} {words}")
        assert (done["rc"], done["out"] + done["err"]) == (0, ""), (words, done)
    found = guest.shell(kept)
    if option == "--read-only":
        assert found == before
    else:
        assert [json.loads(line)["method"] for line in found.splitlines()][-4:] == ["Freeze", "Thaw", "Exec", "Kill"]
        assert guest.shell(f"{COMMAND} audit inner -n 1 --no-headings").split()[1:3] == ["inner", "0"]
        assert guest.shell("stat -c %a /var/log/nestrt/audit") == "700"


def test_the_split_of_a_level(log: Log, nestrt: Nestrt, new_guest: Callable[[], str], python: PythonRoot) -> None:
    """Of a dry run nothing, of what has been done before a shape to go back to."""
    mount = ("--mount", "type=tmpfs,target=/tmp")
    guest = start_guest(nestrt, python, new_guest(), "--broker=none", *mount, "-m", "512M")
    inner(guest, python)
    for words in ("init --dry-run", "init --system-cpu 20% --system-memory 64M", "reset --dry-run", "reset"):
        guest.shell(f"NESTRT_AUDIT=/tmp/audit {COMMAND} host {words}")
    assert guest.order("shell", command=f"NESTRT_AUDIT=/tmp/audit {COMMAND} host init --guests /no/such")["rc"] != 0
    text = guest.shell(f"NESTRT_AUDIT=/tmp/audit {COMMAND} audit --format json")
    init, reset = (json.loads(line) for line in text.splitlines())
    assert (init["old"], reset["new"]) == (None, None)
    assert init["new"] == {
        "system_cpu": 0.2, "guests": ["/nestrt"], "hard": False, "system_memory": 64 * MIB, "move_tasks": False,
    }  # fmt: skip
    assert reset["old"] == {"guests": {"/nestrt": 4096 if has_v1("cpu") else 400}}
