"""nestrt/guest/remote.py against a peer on a Unix socket that checks each call by the broker's own interface.

    this test ── remote.main(argv) ──> client ── Unix socket ──> Peer: wire.Decoder, idl.check, an answer
                                                                 or bytes that no broker would send
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nestrt.broker import wire
from nestrt.broker.idl import interface
from nestrt.broker.refusal import Refusal
from nestrt.cli import guest as cli
from nestrt.guest import client, remote
from support.rootfs import CHECKOUT
from support.runner import wait_for

GUEST = "io.nestrt.Guest"
# An answer: the reply's parameters, a Refusal, bytes as they are, None to hang up, a list: several, one for each call.
Answer = Any


class Peer:
    """One that answers like a broker: *answers* by method. It notes the calls, each checked by the interface."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.wrong: list[Exception] = []
        self.answers: dict[str, Answer] = {}
        self.listener: socket.socket | None = None
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(8)
        self.thread = threading.Thread(target=self.serve, args=(self.listener,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """As SIGKILL leaves it: the socket's file stays, and nobody listens."""
        if self.listener is not None and self.thread is not None:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.thread.join(20)
            self.listener.close()
            self.listener = None

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    self.talk(connection)
                except OSError:
                    pass
                except Exception as error:
                    self.wrong.append(error)

    def talk(self, connection: socket.socket) -> None:
        decoder = wire.Decoder()
        while (call := decoder.next()) is None:
            data = connection.recv(65536)
            if not data:
                return
            decoder.feed(data)
        name, _, method = call.method.rpartition(".")
        given = interface(name).check(method, call.parameters)
        self.calls.append((method, {key: value for key, value in given.items() if value is not None}))
        assert call.more == (method == "Events")
        answer = self.answers.get(method, {})
        if isinstance(answer, list):
            answer = answer.pop(0)
        for one in answer if isinstance(answer, tuple) else (answer,):
            if isinstance(one, bytes):
                connection.sendall(one)
            elif isinstance(one, Refusal):
                connection.sendall(wire.encode(one.parameters, error=one.whole(GUEST)))
            elif one is not None:
                reply = interface(name).reply(method, one)
                connection.sendall(wire.encode(reply, continues=call.more))


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    found = Peer(tmp_path / "guest.sock")
    found.start()
    yield found
    found.stop()
    assert found.wrong == []


@pytest.fixture
def run(peer: Peer, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command by way of the peer: (status, standard output, standard error)."""

    def run(*argv: str, wait: str = "5") -> tuple[int, str, str]:
        status = remote.main(["--broker", "--socket", str(peer.path), "--wait", wait, *argv])
        out, err = capsys.readouterr()
        assert err.count("\n") == (status not in (0, 130)), err
        assert not status or err.startswith("nestrt: cannot "), err
        assert (out + err).replace("\n", "").replace("\t", "").isprintable()
        return status, out, err

    return run


# What is asked.


@pytest.mark.parametrize(
    ("argv", "method", "parameters"),
    [
        (["get", "web"], "Get", {"group": "/web"}),
        (["get", "web", "memory", "memory.stat"], "Get", {"group": "/web", "keys": ["memory.max", "memory.stat"]}),
        (["set", "/web/a", "memory=64M", "cpu.max=1.5"], "Set",
         {"group": "/web/a", "settings": {"memory.max": "64M", "cpu.max": "1.5"}}),
        (["create", "web"], "Create", {"group": "/web"}),
        (["create", "-p", "web/a", "pids=5", "--owner", "1000", "--device", "c 1:3 rwm"], "Create",
         {"group": "/web/a", "settings": {"pids.max": "5"}, "parents": True, "owner": 1000, "devices": ["c 1:3 rwm"]}),
        (["rm", "web"], "Remove", {"group": "/web"}),
        (["rm", "-r", "--kill", "web"], "Remove", {"group": "/web", "recursive": True, "kill": True}),
        (["move", "web", "12", "13"], "Attach", {"group": "/web", "pids": [12, 13]}),
        (["attach", "web", "12"], "Attach", {"group": "/web", "pids": [12]}),
        (["attach", "/"], "Attach", {"group": "/", "pids": [os.getppid()]}),
        (["freeze", "web"], "Freeze", {"group": "/web"}),
        (["thaw", "web"], "Thaw", {"group": "/web"}),
        (["react", "web", "oom", "kill"], "React", {"reaction": {"group": "/web", "on": "oom", "action": "kill"}}),
        (["react", "web", "pressure", "some 150000 1000000", "freeze"], "React",
         {"reaction": {"group": "/web", "on": "pressure", "threshold": "some 150000 1000000", "action": "freeze"}}),
        (["react", "web", "oom", "tell", "--seconds", "5", "--fallback", "kill"], "React",
         {"reaction": {"group": "/web", "on": "oom", "action": "tell", "seconds": 5.0, "fallback": "kill"}}),
        (["react", "web", "oom", "raise", "--step", "16M", "--most", "1G"], "React",
         {"reaction": {"group": "/web", "on": "oom", "action": "raise", "step": "16M", "most": "1G"}}),
        (["react", "web", "oom", "--forget"], "Forget", {"group": "/web", "on": "oom"}),
        (["react", "--answer", "7", "kill"], "Answer", {"id": 7, "action": "kill"}),
    ],
)  # fmt: skip
def test_what_is_asked(
    peer: Peer, run: Callable[..., Any], argv: list[str], method: str, parameters: dict[str, Any]
) -> None:
    peer.answers = {"Get": {"values": dict.fromkeys(["memory.max", "memory.stat"], "1")}}
    assert run(*argv)[0] == 0

    def without_none(value: Any) -> Any:
        return {k: without_none(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    assert [(name, without_none(given)) for name, given in peer.calls] == [(method, parameters)]


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        ([], {}),
        (["allow", "c 1:3 rwm", "b *:* m", "deny", "c 5:1 rwm"],
         {"allow": ["c 1:3 rwm", "b *:* m"], "deny": ["c 5:1 rwm"]}),
        (["only", "c 1:3 rwm"], {"only": ["c 1:3 rwm"]}),
        (["only"], {"only": []}),
        (["inherit"], {"inherit": True}),
        (["allow", "/dev/null:rw", "/dev/zero"], {"allow": ["c 1:3 rw", "c 1:5 rwm"]}),
    ],
)  # fmt: skip
def test_device_rules_are_asked_for(
    peer: Peer, run: Callable[..., Any], words: list[str], parameters: dict[str, Any]
) -> None:
    peer.answers["Devices"] = {"rules": ["c 1:3 rwm"], "own": False}
    status, out, _ = run("devices", "web", *words)
    assert (status, peer.calls) == (0, [("Devices", {"group": "/web", **parameters})])
    assert out == ("" if words else "c 1:3 rwm\n# of the group above\n")


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("sigusr1", 10), ("9", 9), ("", None)])
def test_signals(peer: Peer, run: Callable[..., Any], text: str, number: int | None) -> None:
    peer.answers["Kill"] = {"processes": 1}
    assert run("kill", "web", *(["-s", text] if text else [])) == (0, "1 process\n", "")
    assert peer.calls == [("Kill", {"group": "/web", **({"signal": number} if number else {})})]


def test_rules_come_from_a_file(peer: Peer, run: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "rules"
    file.write_text("# users\n\n  alice  memory  web \n*:cron * cron\n")
    peer.answers["Rules"] = {"rules": ["alice  memory  web", "*:cron * cron"]}
    assert run("rules", str(file)) == (0, "", "")
    assert peer.calls == [("Rules", {"rules": ["alice  memory  web", "*:cron * cron"]})]
    assert run("rules") == (0, "alice  memory  web\n*:cron * cron\n", "")
    assert peer.calls[1:] == [("Rules", {})]
    file.write_text("")
    assert run("rules", str(file))[0] == 0
    assert peer.calls[2:] == [("Rules", {"rules": []})]
    file.write_text("# long\n" * 20_000 + "a * b\n")
    assert run("rules", str(file))[0] == 0
    assert peer.calls[3:] == [("Rules", {"rules": ["a * b"]})]
    for content, reason in (("# long\n" * 200_000 + "a * b\n", "it has more than"), ("\udcff", "it is no text")):
        file.write_text(content, errors="surrogateescape")
        status, _, err = run("rules", str(file))
        assert (status, reason in err) == (2, True)


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (["devices", "web", "c 1:3 rwm"], 2, "belongs to no allow, deny or only"),
        (["devices", "web", "allow"], 2, "allow has no rule"),
        (["devices", "web", "only", "c 1:3 r", "deny", "c 1:3 r"], 2, "exclude each other"),
        (["devices", "web", "inherit", "c 1:3 r"], 2, "belongs to no"),
        (["devices", "web", "allow", "/nonexistent"], 3, "No such file"),
        (["devices", "web", "allow", "/etc/passwd"], 2, "is no device"),
        (["attach", "web", "0"], 3, "no such process"),
        (["attach", "web", "x"], 2, "invalid int"),
        (["kill", "web", "-s", "NONE"], 2, "'NONE' is no signal"),
        (["set", "web", "memory"], 2, "not KEY=VALUE"),
        (["set", "web", "memory=1M", "memory.max=2M"], 2, "given twice"),
        (["set", "web/../..", "memory=1M"], 2, "leads elsewhere"),
        (["react", "web"], 2, "more must follow"),
        (["react", "web", "oom", "kill", "freeze", "kill"], 2, "too much"),
        (["react", "web", "oom", "kill", "--forget"], 2, "too much"),
        (["react", "--answer", "7"], 2, "more must follow"),
        (["react", "--list", "web"], 2, "too much"),
        (["events", "--kinds", "oom,doom"], 2, "no kind 'doom'"),
        (["rules", "/nonexistent"], 3, "No such file"),
        (["freeze", "web", "--wait", "nan"], 2, "is no number of seconds"),
        (["react", "web", "oom", "tell", "--seconds", "inf"], 2, "is no number of seconds"),
        (["mount", "/mnt"], 2, "without --broker"),
        (["set", "web", "x=" + "1" * 70000], 2, "too long for one call"),
    ],
)
def test_what_is_not_asked(
    peer: Peer, run: Callable[..., Any], argv: list[str], status: int, text: str
) -> None:
    found = run(*argv)
    assert (found[0], peer.calls) == (status, []), found
    assert text in found[2]


# What is shown.


def test_the_looks_of_the_local_commands(peer: Peer, run: Callable[..., Any]) -> None:
    limits = {
        "memory.max": {"value": "512M", "use": "12582912"},
        "cpu.max": {"value": "1.5", "use": "7.25"},
        "cpuset.cpus": {"value": "0-1"},
        "pids.max": {"value": "max", "use": "2"},
        "io.max": {"value": "8:0 rbps=1M; 8:16 wiops=100"},
        "of.another.version": {"value": "1"},
    }
    group = {"name": "/web", "owner": 0, "processes": 2, "populated": True, "frozen": False, "limits": limits}
    peer.answers = {
        "List": {"groups": [group]},
        "Get": {"values": {"pids.max": "max", "memory.max": "512M", "memory.stat": "anon 1\nfile 2"}},
        "Info": {
            "name": "web", "level": 1, "max_level": 3, "user": 0, "root": True, "group": "/init", "view": "none",
            "cpus": 2, "cpu_numbers": "renumbered", "controllers": ["cpu", "memory"], "may_divide": ["memory"],
            "limits": limits,
            "quota": {"groups": 100, "groups_used": 2, "depth": 8, "requests_per_second": 50, "connections": 8,
                      "connections_used": 1, "message_bytes": 65536},
        },
    }  # fmt: skip
    assert run("ls")[1].splitlines() == [
        "group  procs  memory    swap  cpu  weight  cpus  pids",
        "/web   2      12M/512M  -     1.5  -       0-1   2/max",
    ]
    values = {
        "memory.max": {"limit": 512 << 20, "use": 12 << 20},
        "cpu.max": {"limit": 1.5, "use": 7.25},
        "cpuset.cpus": {"limit": "0-1", "use": None},
        "pids.max": {"limit": "max", "use": 2},
        "io.max": {"limit": {"8:0": {"rbps": 1 << 20}, "8:16": {"wiops": 100}}, "use": None},
    }
    assert json.loads(run("ls", "--format", "json")[1]) == [{"group": "/web", "processes": 2, "limits": values}]
    assert run("get", "web")[1] == "memory.max 512M\npids.max max\n"
    assert run("get", "web", "memory.stat")[1] == "memory.stat\nanon 1\nfile 2\n"
    assert json.loads(run("get", "web", "memory", "--format", "json")[1]) == {"memory.max": 512 << 20}
    status = json.loads(run("status", "--format", "json")[1])
    assert status["limits"] == values
    assert {k: status[k] for k in ("name", "view", "max_groups", "max_depth", "set_by", "own_group")} == {
        "name": "web", "view": "none", "max_groups": 100, "max_depth": 8, "set_by": "host", "own_group": "/init",
    }  # fmt: skip
    text = run("status")[1]
    assert "cpu numbers  renumbered\n" in text
    assert "pids.max     2/max\n" in text


def test_processes_and_reactions(peer: Peer, run: Callable[..., Any]) -> None:
    reaction = {"group": "/web", "on": "oom", "action": "tell", "seconds": 5.0, "fallback": "kill"}
    peer.answers = {
        "Processes": {"processes": [{"pid": 7, "user": -1, "group": "/web", "command": "sleep 5"}]},
        "Reactions": {"reactions": [reaction]},
    }
    assert run("ps", "-r")[1] == "pid  user  group  command\n7    -1    /web   sleep 5\n"
    assert peer.calls == [("Processes", {"group": "/", "recursive": True})]
    assert run("react", "--list")[1].splitlines()[1].split() == [
        "/web", "oom", "-", "tell", "seconds", "5,", "fallback", "kill",
    ]  # fmt: skip
    assert json.loads(run("ps", "web", "--format", "json")[1])[0]["command"] == "sleep 5"


def test_events_are_lines(peer: Peer, run: Callable[..., Any]) -> None:
    oom = {"time": 1.5, "kind": "oom", "group": "/web", "key": "memory.events", "count": 3}
    ask = {"time": 2.0, "kind": "reaction", "group": "/web", "detail": "out of memory", "id": 9, "seconds": 5.0}
    peer.answers["Events"] = ({"event": oom}, {"event": ask})
    status, out, _ = run("events", "web", "--kinds", "oom,reaction", "--count", "2")
    assert status == 0
    assert peer.calls == [("Events", {"group": "/web", "kinds": ["oom", "reaction"]})]
    assert out.splitlines() == [
        "1970-01-01T00:00:01.500Z  oom        /web  memory.events 3",
        "1970-01-01T00:00:02.000Z  reaction   /web  out of memory  "
        "answer within 5 s: nestrt guest react --answer 9 kill",
    ]
    lines = run("events", "--count", "2", "--format", "json")[1].splitlines()
    assert {k: v for k, v in json.loads(lines[0]).items() if v is not None} == oom


# What is refused.


@pytest.mark.parametrize(
    ("name", "status"),
    [("BadValue", 2), ("NotFound", 3), ("Busy", 4), ("NotPossible", 5), ("NotPermitted", 5), ("QuotaExceeded", 5),
     ("Refused", 1)],
)  # fmt: skip
def test_errors_have_the_statuses_of_the_local_commands(
    peer: Peer, run: Callable[..., Any], name: str, status: int
) -> None:
    peer.answers["Set"] = Refusal(name, "cannot set memory.max of group /web: it is so: really", "do that", 22)
    assert run("set", "web", "memory=1M") == (
        status, "", "nestrt: cannot set memory.max of group /web: it is so: really; do that\n"
    )  # fmt: skip


def test_errors_of_the_service(peer: Peer, run: Callable[..., Any]) -> None:
    peer.answers["Freeze"] = [
        Refusal("org.varlink.service.InvalidParameter", "", parameter="group"),
        Refusal("org.varlink.service.MethodNotFound", "", method=f"{GUEST}.Freeze"),
    ]
    assert run("freeze", "a") == (2, "", "nestrt: cannot freeze group /a: the broker takes no such group\n")
    status, _, err = run("freeze", "a")
    assert status == 5
    assert f"this broker does not know {GUEST}.Freeze; it is older" in err


def test_a_broker_that_refuses_before_it_is_asked(
    peer: Peer, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have hung up before the call is sent, or while."""
    full = Refusal("QuotaExceeded", "cannot connect: too many connections", "close others first")

    def talk(connection: socket.socket) -> None:
        connections.append(connection.sendall(wire.encode(full.parameters, error=full.whole(GUEST))))

    def connect(self: remote.Broker, operation: str, deadline: float) -> socket.socket:
        found = real(self, operation, deadline)
        time.sleep(pauses.pop())
        return found

    connections: list[None] = []
    peer.talk = talk  # type: ignore[method-assign]
    real = remote.Broker.connect
    monkeypatch.setattr(remote.Broker, "connect", connect)
    pauses = [0.0] * 50 + [0.05]
    while pauses:
        assert run("freeze", "web") == (5, "", "nestrt: cannot connect: too many connections; close others first\n")
    wait_for(lambda: len(connections) == 51, "the last one's return")


EVIL = "\x1b]0;x\x07\x1b[2J\r\u202e\u2028\x00"


def test_nothing_that_a_terminal_obeys_is_shown(peer: Peer, run: Callable[..., Any]) -> None:
    """run() looks at every character."""
    limits = {"memory.max": {"value": EVIL}}
    group = {"name": EVIL, "owner": 0, "processes": 1, "populated": True, "frozen": False, "limits": limits}
    event = {"time": 1e18, "kind": EVIL, "group": EVIL, "key": EVIL, "count": 1, "detail": EVIL}
    peer.answers = {
        "List": {"groups": [group]},
        "Get": {"values": {"memory.max": EVIL, "x": EVIL + "\n" + EVIL}},
        "Devices": {"rules": [EVIL], "own": True},
        "Processes": {"processes": [{"pid": 1, "user": 0, "group": EVIL, "command": EVIL}]},
        "Reactions": {"reactions": [{"group": EVIL, "on": EVIL, "action": EVIL, "step": EVIL}]},
        "Rules": {"rules": [EVIL]},
        "Events": ({"event": event},),
        "Thaw": Refusal("Busy", f"cannot {EVIL}: {EVIL}", EVIL),
        "Set": wire.encode({}, error=EVIL),
    }
    for argv in (
        ["ls"], ["get", "web", "memory", "x"], ["devices", "web"], ["ps"], ["react", "--list"], ["rules"],
        ["events", "--count", "1"],
    ):  # fmt: skip
        assert run(*argv)[0] == 0
        assert run(*argv, "--format", "json")[0] == 0
    assert run("thaw", "web")[0] == 4
    assert run("set", "web", "memory=1")[0] == 1


DEEP = b'{"parameters":{"rules":' + b"[" * 100_000 + b"]" * 100_000 + b"}}\0"


@pytest.mark.parametrize(
    "answer",
    [
        b"\0", b"{}\0", b"[]\0", b"null\0", b"nonsense\0", b"\xff\xfe\0", b'{"parameters":[]}\0', b'{"parameters":7}\0',
        b'{"parameters":{"rules":"c 1:3 rwm","own":true}}\0', b'{"parameters":{"rules":[7],"own":true}}\0',
        b'{"parameters":{"rules":[],"own":1}}\0', b'{"parameters":{"rules":[]}}\0', b'{"error":{"a":1}}\0',
        b'{"error":"x","parameters":{"message":[1],"remedy":{}}}\0', b'{"error":""}\0',
        b'{"parameters":{"rules":[],"own":NaN}}\0', b'{"parameters":{"rules":[],"own":1e999}}\0',
        b'{"parameters":{"rules":[],"own":' + b"9" * 100_000 + b"}}\0", DEEP,
    ],
    ids=lambda answer: answer[:40].decode(errors="replace"),
)  # fmt: skip
def test_an_answer_that_no_broker_gives(peer: Peer, run: Callable[..., Any], answer: bytes) -> None:
    peer.answers["Devices"] = answer
    assert run("devices", "web")[0] == 1


def test_numbers_are_varlinks() -> None:
    """Python 3.9 would take any number of digits, and long over it."""
    assert remote.digits("-" + "9" * 19) == -(10**19) + 1
    for convert, text in ((remote.digits, "9" * 21), (remote.number, "1e999"), (remote.number, "-1e999")):
        with pytest.raises(ValueError, match=" "):
            convert(text)


def test_an_answer_without_an_end(
    peer: Peer, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LONGEST_REPLY", 1 << 20)
    peer.answers["Devices"] = b"x" * (3 << 20)
    assert "more than" in run("devices", "web")[2]


def test_a_broker_that_does_not_answer(
    peer: Peer, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "ANSWER", 0.2)
    done = threading.Event()
    peer.talk = lambda connection: done.wait(20) and None  # type: ignore[method-assign, assignment]
    try:
        status, _, err = run("thaw", "web")
    finally:
        done.set()
    assert status == 1
    assert "does not answer within" in err


@given(st.dictionaries(st.sampled_from(["time", "kind", "group", "key", "count", "detail", "id", "seconds"]),
                       st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20)))  # fmt: skip
def test_any_event_is_one_printable_line(event: dict[str, Any]) -> None:
    assert remote.event_line(event).isprintable()


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["parameters", "error", "message", "remedy", "errno", "continues", "method"]), inner, max_size=4
    ),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_frame_is_a_reply_or_an_error_of_this_command(frame: bytes) -> None:
    found: Any
    try:
        found = remote.decode(frame, "look")[0]
    except client.GuestError as error:
        found = error
    assert isinstance(found, dict) or (found.text.isprintable() and 1 <= found.status <= 5)


# A broker that comes and goes.


def restarted(peer: Peer, after: float) -> threading.Thread:
    """Let the peer start again in *after* seconds."""

    def again() -> None:
        time.sleep(after)
        peer.path.unlink(missing_ok=True)
        peer.start()

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("file", ["stays", "gone"])
def test_a_broker_that_is_being_started_is_waited_for(peer: Peer, run: Callable[..., Any], file: str) -> None:
    peer.stop()
    if file == "gone":
        peer.path.unlink()
    thread = restarted(peer, 0.3)
    assert run("freeze", "web")[0] == 0
    thread.join()


def test_one_that_ends_before_it_answers_is_asked_again(peer: Peer, run: Callable[..., Any]) -> None:
    peer.answers["Set"] = [None, None, {}]
    assert run("set", "web", "memory=1M")[0] == 0
    assert len(peer.calls) == 3
    peer.answers["Remove"] = [None, Refusal("NotFound", "cannot remove group /web: no such group")]
    assert run("rm", "web")[0] == 0  # the first call has removed it
    peer.answers["Remove"] = Refusal("NotFound", "cannot remove group /web: no such group")
    assert run("rm", "web")[0] == 3
    peer.answers["Create"] = [None, Refusal("Busy", "cannot create group /web: it exists")]
    status, _, err = run("create", "web")
    assert status == 4
    assert "the broker ended while it made it, or it was there before" in err


def test_a_signal_or_an_answer_is_sent_once(peer: Peer, run: Callable[..., Any]) -> None:
    peer.answers = {"Kill": None, "Answer": None}
    assert "may be done or not" in run("kill", "web", "-s", "USR1")[2]
    assert run("react", "--answer", "1", "kill")[0] == 1
    assert len(peer.calls) == 2
    peer.answers["Kill"] = [None, {"processes": 2}]
    assert run("kill", "web")[1] == "2 processes\n"


def test_none_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, most in ((tmp_path / "nowhere" / "guest.sock", 4.5), (tmp_path / "guest.sock", 4.5)):
        begun = time.monotonic()
        assert remote.main(["--socket", str(path), "freeze", "web", "--wait", "0.3"]) == 5
        assert time.monotonic() - begun < most
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.startswith("nestrt: cannot freeze group /web: no broker answers at /")
        assert 'ask the level above for broker = "required" in the policy' in err


def test_one_that_always_ends_is_given_up(peer: Peer, run: Callable[..., Any]) -> None:
    peer.answers["Thaw"] = None
    status, _, err = run("thaw", "web", wait="0.5")
    assert status == 5
    assert "it ends before it answers" in err
    assert len(peer.calls) > 1


def test_the_stream_is_taken_up_again(peer: Peer, run: Callable[..., Any]) -> None:
    """And says that something may be missing, once for each time."""
    first, second = ({"event": {"time": float(n), "kind": "oom", "group": "/web"}} for n in (1, 2))
    peer.answers["Events"] = [(first,), None, None, (second,)]
    status, out, _ = run("events", "web", "--count", "2", "--format", "json")
    assert status == 0
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["oom", "lost", "oom"]
    peer.answers["Events"] = [(first,), *[None] * 50]
    status, out, _ = run("events", "web", "--count", "2", wait="0.5")
    assert status == 5
    assert out.splitlines()[1].split()[1:3] == ["lost", "/web"]
    peer.answers["Events"] = (first, Refusal("QuotaExceeded", "cannot watch: too many"))
    assert run("events")[0] == 5


# Local or by the broker.


def made(tmp_path: Path, divided: bool) -> client.View:
    view = client.View((client.Hierarchy(2, ("memory",), str(tmp_path), "/", "/", "", ""),), {}, None)
    view.divided = view.hierarchies if divided else ()
    return view


def test_the_broker_is_asked_where_the_view_cannot_be_written(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "web").mkdir()
    monkeypatch.setenv("NESTRT_SOCKET", str(peer.path))
    monkeypatch.setattr(client, "local_view", lambda: made(tmp_path, True))
    assert remote.main(["ls"]) == 0
    assert remote.main(["create", "db"]) == 0
    assert (tmp_path / "db").is_dir()
    assert peer.calls == []

    monkeypatch.setattr(client, "local_view", lambda: made(tmp_path, False))
    peer.answers["List"] = {"groups": []}
    assert remote.main(["create", "db"]) == 0
    assert remote.main(["ls"]) == 0
    assert [method for method, _ in peer.calls] == ["Create", "List"]

    def none() -> client.View:
        raise client.GuestError(5, "find this guest's view", "no cgroup is mounted")

    monkeypatch.setattr(client, "local_view", none)
    assert remote.main(["rm", "db"]) == 0
    assert [method for method, _ in peer.calls][2:] == ["Remove"]
    capsys.readouterr()

    # Nobody listens: what can be read is read, what is to be changed is not.
    peer.stop()
    assert remote.main(["rm", "db", "--wait", "0.1"]) == 5
    monkeypatch.setattr(client, "local_view", lambda: made(tmp_path, False))
    begun = time.monotonic()
    assert remote.main(["ls"]) == 0
    assert time.monotonic() - begun < 4.5
    assert remote.main(["create", "x", "--wait", "0.1"]) == 5
    peer.path.unlink()
    assert remote.main(["create", "x"]) == 5
    assert "cannot be written by this user" in capsys.readouterr().err


def test_from_the_host_the_broker_is_not_asked(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["devices", "web"], ["--broker", "ls"], ["create", "web", "--owner", "1000"]):
        assert cli.main(["--of", "nestrt-none", *argv]) == 5
        assert "run it in the guest" in capsys.readouterr().err
    assert cli.main(["--of", "nestrt-none", "rules", "file"]) == 5
    assert "nestrt broker rules nestrt-none has the host's own; run it in the guest" in capsys.readouterr().err


# This one, and the oldest that is promised where there is one.
PYTHONS = [sys.executable, *map(str, Path.home().glob(".pyenv/versions/3.9.*/bin/python3"))]


@pytest.mark.parametrize("python", PYTHONS)
def test_copies_beside_each_other_need_nothing_else(peer: Peer, tmp_path: Path, python: str) -> None:
    for name in ("client.py", "remote.py"):
        shutil.copy(CHECKOUT / "nestrt" / "guest" / name, tmp_path / name)

    def copy(*argv: str) -> tuple[int, str, str]:
        command = [python, "-I", "-S", "-B", str(tmp_path / "remote.py"), "--socket", str(peer.path), *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd="/", env={})
        return done.returncode, done.stdout, done.stderr

    assert copy("attach", "web", "123") == (0, "", "")
    assert peer.calls == [("Attach", {"group": "/web", "pids": [123]})]
    peer.answers["Events"] = ({"event": {"time": 1.0, "kind": "oom", "group": "/"}},)
    assert copy("events", "--count", "1") == (0, "1970-01-01T00:00:01.000Z  oom        /\n", "")
    status, _, err = copy("set", "a", "b")
    assert status in (2, 5)
    assert (err.count("\n"), err[:15]) == (1, "nestrt: cannot ")
