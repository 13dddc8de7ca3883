"""broker/lines.py SharedLines, cli/_host_audit.py: commands write to the audit at the same time, beside a broker.

    audit/
    ├ web.jsonl         the broker's alone
    ├ web%host.jsonl    commands', each in its turn  ┐ of each guest
    └ web%host.jsonl.1                               ┘ so many files
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nestrt.broker import lines as module
from nestrt.broker.audit import Audit
from nestrt.broker.audit_line import login_of, parts
from nestrt.broker.audit_read import Follower, Reader
from nestrt.broker.lines import COMMANDS, LONGEST_LINE, SharedLines, file_name
from nestrt.broker.peer import Peer
from nestrt.cli._ask_broker import Answered
from nestrt.cli._host_audit import Change
from nestrt.errors import HostError, KernelError, NotFound, StateError
from support.rootfs import CHECKOUT

ROOT = Peer(4711, 0, 0, -1, 0, True)
SMALL = LONGEST_LINE


class Level:
    """Of a View what a Change wants."""

    def __init__(self, level: int = 0) -> None:
        self.level = level


class Web:
    """Of a Guest."""

    name, path, claim = "web", "/nestrt/web", False


class Claimed(Web):
    """A group of a user's, who calls it so."""

    path, claim = "/user/x", True


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NESTRT_AUDIT", str(tmp_path / "audit"))
    monkeypatch.setattr("nestrt.cli._host_audit.is_root", lambda: True)
    return tmp_path / "audit"


def shared(directory: Path, files: int = 4, most: int = 4096) -> SharedLines:
    return SharedLines(str(directory), "the audit", "NESTRT_AUDIT=DIR", SMALL, files, most)


def body(new: Any) -> str:
    return "{},{}".format(*parts("web", "Exec", ("/", "process", None, new), ("done", "")))


def change(method: str = "Freeze", level: int = 0, guest: Any = Web) -> Change:
    return Change(method, Level(level), guest)  # type: ignore[arg-type]


def entries(directory: Path, guest: str | None = "web") -> list[dict[str, Any]]:
    return list(Reader(str(directory)).read(guest))


# One line.


def test_a_line_is_as_the_brokers(directory: Path) -> None:
    with change() as one:
        one.note("frozen", False, True)
        assert not directory.exists()  # what a command does comes first
    (entry,) = entries(directory)
    login = login_of("self")
    assert entry == {
        "time": entry["time"], "guest": "web", "method": "Freeze",
        "peer": {"pid": os.getpid(), "uid": os.geteuid(), "gid": os.getegid(), "user": 0, "guest_pid": None,
                 "guest_gid": None} | ({} if login is None else {"login": login}),
        "group": "/", "key": "frozen", "old": False, "new": True, "verdict": "done",
    }  # fmt: skip
    assert oct(directory.stat().st_mode & 0o7777) == "0o700"
    assert oct((directory / "web%host.jsonl").stat().st_mode & 0o7777) == "0o600"


@pytest.mark.parametrize(
    ("error", "verdict", "message"),
    [
        (StateError("freeze", "guest web", "nothing runs", "see"), "Busy", "cannot freeze guest web: nothing runs"),
        (KernelError("thaw", "guest web", errno.EBUSY), "Refused", "cannot thaw guest web: Device or resource busy"),
        (Answered("", "", "cannot set the devices: no", "ask"), "Refused", "cannot set the devices: no"),
        (KeyboardInterrupt(), "Refused", "KeyboardInterrupt"),
        (KeyError("x"), "Refused", "KeyError: 'x'"),
    ],
)
def test_what_failed(directory: Path, error: BaseException, verdict: str, message: str) -> None:
    one = change()
    one.note("memory.max", 1, 2)
    one.note("pids.max", None, 3)
    with pytest.raises(type(error)), one:
        raise error
    found = entries(directory)
    assert [entry["key"] for entry in found] == ["memory.max", "pids.max"]
    assert {entry["verdict"] for entry in found} == {verdict}
    assert {entry["message"] for entry in found} == {message}


def test_what_a_broker_has_written_or_is_not_roots(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with change() as one:
        one.note("memory.max", 1, 2)
        one.leave()
    monkeypatch.setattr("nestrt.cli._host_audit.is_root", lambda: False)
    with change():
        pass
    assert not directory.exists()


def test_what_a_broker_leaves_to_the_command(directory: Path) -> None:
    with change() as one:
        one.note("memory.max", 1, 2)
        one.note("devices", None, "a")
        one.leave("memory.max", "pids.max")
    assert [entry["key"] for entry in entries(directory)] == ["devices"]


def test_a_claim_is_not_taken_for_the_guest_of_that_name(directory: Path) -> None:
    with change(guest=Claimed):
        pass
    assert entries(directory, "/user/x")
    with pytest.raises(NotFound):
        entries(directory, "web")


def test_the_level_itself_has_no_name(directory: Path) -> None:
    with change("Split", guest=None) as one:
        one.note("shares", None, {"system_cpu": 0.1, "guests": ("/nestrt",)})
    (entry,) = entries(directory, None)
    assert (entry["guest"], entry["new"]) == ("", {"system_cpu": 0.1, "guests": ["/nestrt"]})


def test_the_login_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Path("/proc/self/loginuid")
    expected = int(raw.read_text()) if raw.exists() else 0xFFFFFFFF
    assert login_of(os.getpid()) == (None if expected == 0xFFFFFFFF else expected)
    assert login_of(-1) is None


# Where it cannot be written.


def test_a_directory_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """One line of warning, and what the command has to say stays. Inside a guest none."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NESTRT_AUDIT", str(tmp_path / "file" / "audit"))
    with change() as one:
        one.note("a", 1, 2)
        one.note("b", 1, 2)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(f"nestrt: warning: cannot keep the audit in {tmp_path}/file/audit: File exists; name")
    assert "NESTRT_AUDIT=DIR" in told
    with pytest.raises(StateError, match="no processes"), change():
        raise StateError("freeze", "guest web", "it has no processes")
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC])
def test_inside_a_guest_a_root_that_nobody_writes_to_is_no_news(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, code: int
) -> None:
    def no(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    for name in ("mkdir", "write"):
        monkeypatch.setattr(os, name, no)
        for level in (0, 1):
            with change(level=level) as one:
                one.note("a", 1, 2)
            loud = level == 0 or code == errno.ENOSPC
            assert capsys.readouterr().err.count(os.strerror(code)) == loud, (name, level)
        monkeypatch.undo()
        monkeypatch.setenv("NESTRT_AUDIT", str(directory))
        directory.mkdir(0o700, exist_ok=True)


def test_a_directory_with_other_files_stays_everybodys(tmp_path: Path) -> None:
    place = tmp_path / "etc"
    place.mkdir(0o755)
    (place / "web%host.jsonl.1").write_text("")
    shared(place).close()
    place.chmod(0o755)
    (place / "passwd").write_text("")
    for make in (lambda: shared(place), lambda: Audit(str(place))):
        with pytest.raises(HostError, match="other files are in it"):
            make()
    assert place.stat().st_mode & 0o777 == 0o755


def test_out_of_room(directory: Path) -> None:
    """No part of a line stays, and the next one that there is room for is whole."""
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            lines = shared(directory)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, -1))
            for number in range(3):
                with suppress(KernelError):
                    lines.write("web", body(number))
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
            lines.write("web", body(3))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    raw = (directory / file_name("web", COMMANDS)).read_bytes()
    assert [json.loads(line)["new"] for line in raw.splitlines()][-1] == 3
    assert b"\n\n" not in raw


# Several at once.

WRITER = """
import sys, time
sys.path.insert(0, {checkout!r})
from nestrt.broker.audit_line import parts
from nestrt.broker import lines
from nestrt.broker.lines import SharedLines
lines.PATIENCE = 120.0  # that none gives up where the machine stands still
number, count, size, files, most = map(int, sys.argv[2:])
for place in range(count):
    one = SharedLines(sys.argv[1], "the audit", "NESTRT_AUDIT=DIR", 65536, files, most)
    for guest in ("web", f"own{{number}}"):
        new = f"{{number}} {{place:{{size}}}}"
        head, tail = parts(guest, "Exec", ("/", "process", None, new), ("done", ""))
        one.write(guest, f"{{head}},{{tail}}")
    one.close()
"""


def start(directory: Path, number: int, count: int, size: int, files: int, most: int = 4096) -> subprocess.Popen[bytes]:
    words = map(str, (directory, number, count, size, files, most))
    return subprocess.Popen([sys.executable, "-c", WRITER.format(checkout=str(CHECKOUT)), *words])


@pytest.fixture
def writers() -> Iterator[Callable[..., list[subprocess.Popen[bytes]]]]:
    made: list[subprocess.Popen[bytes]] = []

    def begin(number: int, *args: Any) -> list[subprocess.Popen[bytes]]:
        made.extend(start(args[0], one, *args[1:]) for one in range(number))
        return made

    yield begin
    for process in made:
        process.kill()
        process.wait()


def test_no_line_is_lost_or_torn(directory: Path, writers: Callable[..., Any]) -> None:
    """Five commands and a broker, files that are full every few lines, and a reader who follows meanwhile."""
    directory.mkdir(0o700)
    follower = Follower(Reader(str(directory)), "web")
    audit = Audit(str(directory), SMALL, 1000)
    seen, number = [], 0
    running = writers(5, directory, 60, 5000, 1000)
    while any(process.poll() is None for process in running) or number < 100:
        audit.record("web", "/", "x", None, f"broker {number:5000}", "done", ROOT, "Set")
        number += 1
        if number % 10 == 0:
            seen += follower.poll()
    audit.close()
    seen += follower.poll()
    assert [process.returncode for process in running] == [0] * 5
    expected = {f"{one} {place:5000}" for one in range(5) for place in range(60)}
    expected |= {f"broker {place:5000}" for place in range(number)}
    found = entries(directory)
    assert len(found) == len(expected)
    assert {entry["new"] for entry in found} == expected
    assert len(seen) == len(expected)
    assert {entry["new"] for entry in seen} == expected
    assert found == sorted(found, key=lambda entry: entry["time"])
    for path in directory.iterdir():
        assert path.stat().st_size <= SMALL
        assert all(json.loads(line) for line in path.read_bytes().splitlines()), path


def test_bounds_hold(directory: Path, writers: Callable[..., Any]) -> None:
    """Of each guest three files, of all guests so many; the broker's files are not counted, and none of them goes."""
    audit = Audit(str(directory), SMALL, 1000)
    for guest in range(20):
        audit.record(f"guest{guest}", "/", "x", None, 1, "done", ROOT, "Set")
    audit.close()
    running = writers(6, directory, 40, 9000, 3, 8)
    assert [process.wait() for process in running] == [0] * 6
    names = sorted(path.name for path in directory.iterdir())
    ours = [name for name in names if "%host" in name]
    assert len(names) - len(ours) == 20
    assert "web%host.jsonl" in ours
    assert len(ours) <= 8
    assert {re.sub(r".*jsonl", "", name) for name in ours} <= {"", ".1", ".2"}
    assert all(path.stat().st_size <= SMALL for path in directory.iterdir())


def test_a_command_that_is_stopped_keeps_others_for_a_moment_only(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """And never a broker; killed, it is as if it had never been."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    code = f"import sys, time; sys.path.insert(0, {str(CHECKOUT)!r}); from nestrt.broker.lines import SharedLines\n"
    code += f"one = SharedLines({str(directory)!r}, 'x', 'y'); print(flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        audit, begun = Audit(str(directory)), time.monotonic()
        audit.record("web", "/", "x", None, 1, "done", ROOT, "Set")
        audit.close()
        with change() as one:
            one.note("frozen", False, True)
        assert time.monotonic() - begun < 10
        assert "another command that writes to it does not end" in capsys.readouterr().err
        holder.kill()
    assert [entry["method"] for entry in entries(directory)] == ["Set"]
    with change() as one:
        one.note("frozen", False, True)
    assert [entry["method"] for entry in entries(directory)] == ["Set", "Freeze"]


def test_after_an_unfinished_line_the_next_begins_anew(directory: Path) -> None:
    lines = shared(directory)
    lines.write("web", body(1))
    with (directory / "web%host.jsonl").open("a") as file:
        file.write('{"time":"2026-11-30T12:00:00.0000')
    lines.write("web", body(2))
    lines.close()
    assert [entry["new"] for entry in entries(directory)] == [1, 2]


def test_a_directory_that_goes_meanwhile(directory: Path) -> None:
    lines = shared(directory)
    directory.rmdir()
    lines.write("web", body(1))
    fd = os.open(directory, os.O_RDONLY)
    with pytest.raises(BlockingIOError):  # the new one is kept from others as well
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    lines.close()
    assert [entry["new"] for entry in entries(directory)] == [1]


def test_no_guest_is_called_as_a_commands_file() -> None:
    assert file_name("web", COMMANDS) == "web%host.jsonl"
    assert file_name("web%host") == "web%25host.jsonl"
    names = {file_name(guest, writer) for guest in ("a/" * 900, "a", "%host", "") for writer in ("", COMMANDS)}
    assert len(names) == 8
    assert all(len(name) < 250 for name in names)


# What an engine starts for each container brings nothing of it.


@pytest.mark.parametrize("verb", ["update", "kill", "exec", "pause", "resume"])
def test_verbs_of_the_runtime_load_none_of_it(verb: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); import nestrt.__main__, nestrt.cli.{verb}\n"
    code += "print([name for name in sys.modules if '_host_audit' in name or 'nestrt.broker' in name])"
    argv = ["/usr/bin/python3", "-IS", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
