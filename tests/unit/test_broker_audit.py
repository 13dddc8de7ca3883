"""broker/audit.py and audit_read.py, ``nestrt audit``: on real files, with writers that are killed.

    audit/           0700
    ├ web.jsonl      0600, the newest     ┐ of each guest
    ├ web.jsonl.1                         │ so many files
    └ web.jsonl.3    the oldest           ┘ and no more
"""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nestrt.__main__ import main
from nestrt.broker import audit as module
from nestrt.broker.audit import MOST_KINDS, Audit
from nestrt.broker.audit_line import cut
from nestrt.broker.audit_read import Follower, Reader, parse
from nestrt.broker.lines import COMMANDS, LONGEST_LINE, Lines, file_name, stamp
from nestrt.broker.peer import Peer
from nestrt.broker.refusal import Refusal
from nestrt.cli import audit as cli
from nestrt.errors import HostError, InputError, KernelError, NotFound
from support.rootfs import CHECKOUT

PEER = Peer(4711, 100_000, 100_005, -1, 0, True, 17, 5)
SMALL = LONGEST_LINE  # the smallest file that is taken


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nestrt-audit-") as place:
        yield Path(place) / "log" / "audit"


@pytest.fixture
def audit(directory: Path) -> Iterator[Audit]:
    found = Audit(str(directory), SMALL, 4)
    yield found
    found.close()


def note(audit: Audit, guest: str, new: Any, verdict: Any = "done", **named: Any) -> None:
    audit.record(guest, "/db", "memory.max", "64M", new, verdict, PEER, "Set", **named)


def news(entries: Any) -> list[Any]:
    return [entry["new"] for entry in entries]


# One line.


def test_a_line(audit: Audit, directory: Path) -> None:
    before = stamp(time.time_ns())
    note(audit, "web", "128M")
    no = Refusal("NotPermitted", "cannot do it: no", "ask")
    audit.record("web", "/", "devices", None, ["a"], no, PEER, "Devices")
    audit.record("web", "/", "x", 1, 2, "Busy: cannot: it is: so")
    done, refused, other = (json.loads(line) for line in (directory / "web.jsonl").read_text().splitlines())
    assert before <= done["time"] <= refused["time"] <= other["time"] <= stamp(time.time_ns())
    assert done == {
        "time": done["time"], "guest": "web", "method": "Set",
        "peer": {"pid": 4711, "uid": 100_000, "gid": 100_005, "user": 0, "guest_pid": 17, "guest_gid": 5},
        "group": "/db", "key": "memory.max", "old": "64M", "new": "128M", "verdict": "done",
    }  # fmt: skip
    assert (refused["old"], refused["new"]) == (None, ["a"])
    assert (refused["verdict"], refused["message"]) == ("NotPermitted", "cannot do it: no")
    assert (other["verdict"], other["message"], other["peer"]) == ("Busy", "cannot: it is: so", None)


def test_a_peer_that_the_guest_has_no_numbers_for(audit: Audit, directory: Path) -> None:
    audit.record("web", "/", "x", 1, 2, "done", Peer(4711, 5, 6, -1, -1, False))
    (line,) = (json.loads(line) for line in (directory / "web.jsonl").read_text().splitlines())
    assert line["peer"] == {"pid": 4711, "uid": 5, "gid": 6, "user": -1, "guest_pid": None, "guest_gid": None}


def test_the_time_is_rfc_3339() -> None:
    assert stamp(0) == "1970-01-01T00:00:00.000000Z"
    assert stamp(1_800_000_000_123_456_789) == "2027-01-15T08:00:00.123456Z"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text() | st.integers(), inner, max_size=5),
)


@given(st.text(), anything, st.text(alphabet=st.characters()), st.booleans())
def test_any_value_is_one_line_of_ascii(group: str, value: Any, message: str, done: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="nestrt-audit-") as place:
        audit = Audit(place + "/a")
        audit.record("web", group, message, value, [value] * 3, "done" if done else f"Busy: {message}", PEER, message)
        audit.close()
        raw = Path(place, "a", "web.jsonl").read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == 1
    assert raw[:-1].decode().isprintable()
    assert parse(raw) is not None


def test_what_is_long_is_cut_and_says_so(audit: Audit, directory: Path) -> None:
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 100_000, "\x00" * 100_000, "\U0001f600" * 100_000, '"' * 100_000, ["c 1:3 rwm"] * 20_000, deep):
        group = value if isinstance(value, str) else "/"
        audit.record("web" * 3000, group, "k" * 9999, value, value, "done", PEER, "M" * 999)
        audit.record("web", "/" * 9999, "k" * 9999, value, value, "N" * 999 + ": " + "m" * 99999, PEER, "M" * 999)
    audit.close()
    lines = [line for file in directory.iterdir() for line in file.read_bytes().splitlines()]
    assert len(lines) == 12
    assert max(map(len, lines)) < LONGEST_LINE
    entries = [parse(line) for line in lines]
    assert all(entry and ("characters)" in str(entry["new"]) or "no JSON" in entry["new"]) for entry in entries)
    assert cut("x" * 50, 100) == '"' + "x" * 50 + '"'


def test_a_forged_line_stays_in_its_own(audit: Audit, directory: Path) -> None:
    forged = '"}\n{"time":"2026-01-01T00:00:00Z","guest":"db","verdict":"done"}\n\u2028\x85\r{"'
    audit.record(forged, forged, forged, forged, forged, f"{forged}: {forged}", PEER, forged)
    assert len(list(Reader(str(directory)).read())) == 1
    assert next(Reader(str(directory)).read(forged))["guest"] == forged


# Files.


def test_file_names() -> None:
    assert file_name("web") == "web.jsonl"
    assert file_name("web/inner") == "web%2Finner.jsonl"
    assert file_name("..") == "%2E..jsonl"
    assert file_name(".") == "%2E.jsonl"
    assert file_name("") == "%.jsonl"
    assert len(file_name("a/" * 5000)) < 255


@given(st.lists(st.text(max_size=300), unique=True, max_size=4))
@example(["", ".", "%", "%2E"])
def test_file_names_stay_apart_and_in_the_directory(guests: list[str]) -> None:
    names = [file_name(guest) for guest in guests]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set("/ \n")
        assert name[0] != "."
        assert len(name) < 250


def test_only_root_reads_it(audit: Audit, directory: Path) -> None:
    directory.chmod(0o755)
    note(audit, "web", 1)
    again = Audit(str(directory))
    again.close()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "web.jsonl").stat().st_mode) == 0o600


def test_what_others_have_put_there(audit: Audit, directory: Path, tmp_path: Path) -> None:
    """A link is not followed, a pipe not waited for; both count as lines that are lost."""
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    (directory / "web.jsonl").symlink_to(victim)
    os.mkfifo(directory / "db.jsonl")
    (directory / "x.jsonl").mkdir()
    for guest in ("web", "db", "x"):
        note(audit, guest, 1)
    assert victim.read_text() == "as it was"
    assert audit.lost == {"web": 1, "db": 1, "x": 1}
    assert list(Reader(str(directory)).read()) == []
    (directory / "web.jsonl").unlink()
    note(audit, "web", 2)
    assert next(Reader(str(directory)).read("web"))["lost"] == 1


def test_no_directory_and_one_that_goes(audit: Audit, directory: Path, tmp_path: Path) -> None:
    note(audit, "web", 1)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    note(audit, "web", 2)
    assert news(audit.read()) == [2]
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match="--audit DIR"):
        Audit(str(tmp_path / "file" / "audit"))
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(KernelError, match="--audit DIR"):
        Audit(str(tmp_path / "link"))
    if os.geteuid() == 0:
        os.chown(directory, 12345, -1)
        with pytest.raises(HostError, match="belongs to user 12345"):
            Audit(str(directory))
    audit.close()
    note(audit, "web", 3)
    assert audit.lost == {"web": 1}


def test_no_descriptor_stays(audit: Audit) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        note(audit, f"guest{number}", number)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_flood_of_one_guest_pushes_out_no_line_of_another(audit: Audit, directory: Path) -> None:
    note(audit, "quiet", "here")
    for number in range(3000):
        note(audit, "loud", f"{number:200}")
    assert news(audit.read("quiet")) == ["here"]
    kept = [int(new) for new in news(audit.read("loud"))]
    assert kept == list(range(kept[0], 3000))
    assert len(kept) > 3 * SMALL / 500
    sizes = {file.name: file.stat().st_size for file in directory.iterdir() if file.name.startswith("loud")}
    assert sorted(sizes) == ["loud.jsonl", "loud.jsonl.1", "loud.jsonl.2", "loud.jsonl.3"]
    assert max(sizes.values()) <= SMALL


@pytest.mark.parametrize("files", [1, 2])
def test_few_files(directory: Path, files: int) -> None:
    """And those of a broker that kept more go, from the next one on."""
    audit = Audit(str(directory), SMALL, files)
    for number in range(1000):
        note(audit, "web", f"{number:200}")
    assert len(list(directory.iterdir())) == files
    assert int(news(audit.read())[-1]) == 999
    audit.close()


# Killed, and out of room.

WRITER = """
import os, signal, sys
sys.path.insert(0, {checkout!r})
from nestrt.broker.audit import Audit
real, left = os.rename, [int(sys.argv[3])]
def rename(*args, **named):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*args, **named)
os.rename = rename
audit = Audit(sys.argv[1], 65536, 4)
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 100000):
    audit.record("web", "/db", "x", None, f"{{number:8900}}", "done")
    os.write(1, b"%d\\n" % number)
"""


def killed_writer(directory: Path, first: int, renames: int, after: float | None = None) -> int:
    """Let a process write lines from *first* on, killed before its *renames*-th rename, or *after* seconds; the last
    number that it has said to be written."""
    argv = [sys.executable, "-c", WRITER.format(checkout=str(CHECKOUT)), str(directory), str(first), str(renames)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
        if after is not None:
            assert writer.stdout is not None
            said = writer.stdout.readline()
            time.sleep(after)
            writer.kill()
            said += writer.stdout.read()
        else:
            said = writer.communicate(timeout=50)[0]
    assert writer.returncode == -signal.SIGKILL
    return int(said.rpartition(b"\n")[0].rpartition(b"\n")[2] or first - 1)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_rotation_that_is_killed_at_any_step_loses_no_line(directory: Path, step: int) -> None:
    """Renames: .2 → .3, .1 → .2, the newest → .1. The next line that is written finishes what is half-done, and no file
    is renamed over one that is not the oldest."""
    begun = 0
    # The tenth is the first of the fifth rotation: all files are there, and the newest is full.
    for renames in (10, step, 4, step, 5):
        last = killed_writer(directory, begun, renames)
        kept = [int(new) for new in news(Reader(str(directory)).read("web"))]
        assert kept == list(range(kept[0], last + 1))
        assert len(kept) >= 3 * 7  # lines that a file holds
        begun = last + 1


def test_killed_at_any_moment(directory: Path) -> None:
    last, whole = -1, 0
    for _ in range(6):
        last = killed_writer(directory, last + 1, 0, random.uniform(0, 0.02))
        kept = [int(new) for new in news(Reader(str(directory)).read("web"))]
        # One line may have been written and not said.
        assert kept[-1] in (last, last + 1)
        assert kept == sorted(kept)
        last = kept[-1]
        whole += 1
    assert whole == 6


def test_after_an_unfinished_line_the_next_begins_anew(audit: Audit, directory: Path) -> None:
    note(audit, "web", 1)
    audit.close()
    with (directory / "web.jsonl").open("a") as file:
        file.write('{"time":"2026-11-30T12:00:00.0000')
    again = Audit(str(directory))
    note(again, "web", 2)
    note(again, "web", 3)
    assert news(again.read()) == [1, 2, 3]
    assert (directory / "web.jsonl").read_text().count("\n") == 4
    again.close()


def test_out_of_room(directory: Path) -> None:
    """RLIMIT_FSIZE stops the file as a full disk does: a part of a line, then nothing. What is lost is told."""
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            audit = Audit(str(directory))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
            for number in range(10):
                note(audit, "web", number)
            note(audit, "db", 0)
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
            note(audit, "web", 10)
            note(audit, "web", 11)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    raw = (directory / "web.jsonl").read_bytes()
    entries = [json.loads(line) for line in raw.splitlines()]
    kept = [entry["new"] for entry in entries]
    assert kept == [*range(len(kept) - 2), 10, 11]
    assert [entry.get("lost") for entry in entries] == [None] * (len(kept) - 2) + [12 - len(kept), None]
    assert news(Reader(str(directory)).read("db")) == [0]


# Refusals.


def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def go(seconds: float) -> None:
        now[0] += seconds

    return go


def test_like_refusals_are_counted(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    go = clock(monkeypatch)
    for pid in range(1000):
        peer = Peer(pid, 100_000, 100_000, -1, 0, True)
        audit.record("web", "/", "memory.max", None, "9G", "NotPossible: cannot", peer, "Set")
        go(0.001)
    note(audit, "web", "64M")
    note(audit, "web", "64M")
    assert [(e["verdict"], e.get("repeated")) for e in audit.read()] == [("NotPossible", None), ("done", None)] + [
        ("done", None)
    ]
    go(module.WINDOW)
    audit.flush()
    last = list(audit.read())[-1]
    assert (last["verdict"], last["repeated"], last["peer"]["pid"]) == ("NotPossible", 999, 999)
    audit.record("web", "/", "memory.max", None, "9G", "NotPossible: cannot", PEER, "Set")
    audit.record("web", "/", "memory.max", None, "9G", "NotPossible: cannot", PEER, "Set")
    assert len(list(audit.read())) == 5
    audit.close()
    assert [entry.get("repeated") for entry in Reader(audit.directory).read()][-2:] == [None, 1]


def test_what_differs_is_not_alike(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch)
    other = Peer(4711, 100_001, 0, -1, 1, False)
    for method, key, new, verdict, peer in [
        ("Set", "memory.max", "1G", "Busy: x", PEER), ("Get", "memory.max", "1G", "Busy: x", PEER),
        ("Set", "pids.max", "1G", "Busy: x", PEER), ("Set", "memory.max", "2G", "Busy: x", PEER),
        ("Set", "memory.max", "1G", "NotFound: x", PEER), ("Set", "memory.max", "1G", "Busy: y", PEER),
        ("Set", "memory.max", "1G", "Busy: x", other),
    ]:  # fmt: skip
        for guest in ("web", "db"):
            audit.record(guest, "/", key, None, new, verdict, peer, method)
    assert len(list(audit.read())) == 14


def test_a_flood_of_different_refusals_is_bounded(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it does not push out what the guest itself has done before."""
    go = clock(monkeypatch)
    note(audit, "web", "first")
    for number in range(50_000):
        audit.record("web", f"/{number}", "x", None, None, ("Busy: x", "NotFound: y")[number % 2], PEER, "Set")
        go(0.0001)
    audit.close()
    entries = list(Reader(audit.directory).read())
    assert len(entries) < 3 * MOST_KINDS
    assert sum(entry.get("repeated", 1) for entry in entries) == 50_001
    assert entries[0]["new"] == "first"


# Reading.


def test_lines_are_merged_by_time(audit: Audit) -> None:
    order = random.Random(1)
    for number in range(2000):
        note(audit, order.choice(["web", "db", "web/inner"]), number)
    assert news(audit.read()) == list(range(2000))
    assert news(audit.read(lines=5)) == [1995, 1996, 1997, 1998, 1999]
    assert news(audit.read(lines=0)) == []
    middle = list(audit.read())[1000]["time"]
    seconds = cli.moment(middle, 0)
    assert len(list(audit.read(since=seconds))) == pytest.approx(1000, abs=1)
    assert len(list(audit.read(until=seconds))) == pytest.approx(1000, abs=1)
    assert news(audit.read(keep=lambda entry: entry["new"] % 500 == 0, lines=3)) == [500, 1000, 1500]
    assert {entry["guest"] for entry in audit.read("web/inner")} == {"web/inner"}
    with pytest.raises(NotFound, match="guest nobody"):
        audit.read("nobody")


def test_garbage_is_left_out(audit: Audit, directory: Path) -> None:
    note(audit, "web", 1)
    audit.close()
    rubbish = [b"", b"nonsense", b"[1]", b"{}", b'{"time":7}', b"\xff\xfe", b"\0" * 100, b"x" * 300_000, b"[" * 60_000]
    with (directory / "web.jsonl").open("ab") as file:
        file.write(b"\n".join(rubbish) + b"\n")
    again = Audit(str(directory))
    note(again, "web", 2)
    (directory / "README").write_text("hello")
    (directory / "dir.jsonl").mkdir()
    assert news(again.read()) == [1, 2]
    assert news(again.read(lines=10)) == [1, 2]
    again.close()


def test_a_reader_beside_the_writer_misses_nothing(directory: Path) -> None:
    """While files are renamed under it."""
    audit = Audit(str(directory), SMALL, 64)
    for number in range(200):
        note(audit, "web", f"{number:2000}")
    stop = threading.Event()
    written = [200]

    def write() -> None:
        while not stop.is_set() and written[0] < 1500:
            note(audit, "web", f"{written[0]:2000}")
            written[0] += 1

    follower = Follower(Reader(str(directory)), "web")
    thread = threading.Thread(target=write)
    thread.start()
    followed: list[int] = []
    try:
        while thread.is_alive():
            before = written[0]
            found = [int(new) for new in news(audit.read())]
            assert found[: before - 1] == list(range(before - 1))
            assert found == list(range(len(found)))
            followed += [int(new) for new in news(follower.poll())]
    finally:
        stop.set()
        thread.join()
    followed += [int(new) for new in news(follower.poll())]
    assert followed == list(range(200, written[0]))
    audit.close()


def test_files_are_in_order_though_many_are_renamed_at_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that stands still between two of them."""
    audit = Audit(str(directory), SMALL, 64)
    numbers = iter(range(1000))

    def flood() -> None:
        for number, _ in zip(numbers, range(120), strict=False):
            note(audit, "web", f"{number:2000}")

    flood()
    reader, name = Reader(str(directory)), file_name("web")
    real, stood = reader._paths, []

    def slow(name: str) -> Iterator[str]:
        for path in real(name):
            yield path
            if not stood:
                stood.append(path)
                flood()

    monkeypatch.setattr(reader, "_paths", slow)
    found = [status.st_ino for status in reader._files(name)]
    assert len(found) > 6
    firsts = [parse((reader._bytes(name, inode, 0, SMALL) or b"").split(b"\n")[0]) for inode in found]
    begins = [int(entry["new"]) for entry in firsts if entry]
    assert len(begins) == len(found)
    assert begins == sorted(begins)
    audit.close()


def test_following_begins_where_reading_ends(audit: Audit, directory: Path) -> None:
    for number in range(500):
        note(audit, "web", f"{number:300}")
    follower = Follower(Reader(str(directory)))
    for number in range(500, 600):
        note(audit, "web", f"{number:300}")
    note(audit, "new", f"{600:300}")
    before = Reader(str(directory)).read(lines=3, before=follower.begun)
    assert [int(new) for new in news(before)] == [497, 498, 499]
    assert [int(new) for new in news(follower.poll())] == list(range(500, 601))
    assert follower.poll() == []
    whole = '{"time":"2026","new":1}\n'
    with (directory / "web.jsonl").open("a", buffering=1) as file:
        for part, found in ((whole[:7], []), (whole[7:] + whole[:9], [1]), (whole[9:], [1]), (whole[:-1], [])):
            file.write(part)
            file.flush()
            assert news(follower.poll()) == found
    note(audit, "web", "601")
    assert news(follower.poll()) == [1, "601"]


# The command.


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["nestrt", "audit", *argv]) == 0
    return capsys.readouterr().out


def test_the_command(audit: Audit, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--directory", str(directory))
    note(audit, "web", "128M")
    audit.record("db", "/a\x1b[31m", "devices", None, ["c 1:3 rwm"] * 9, "NotPermitted: cannot: no", PEER, "Devices")
    for _ in range(3):
        audit.record("db", "/a/b", "x", 1, 2, "Busy: it is", PEER, "Freeze")
    audit.close()
    lines = shown(capsys, *where).splitlines()
    assert lines[0].split() == ["TIME", "GUEST", "USER", "PID", "METHOD", "GROUP", "KEY", "OLD", "NEW", "VERDICT"]
    assert lines[1].split()[1:] == ["web", "0", "4711", "Set", "/db", "memory.max", "64M", "128M", "done"]
    assert "/a\\x1b[31m" in lines[2]
    assert lines[2].index("NotPermitted: cannot: no") == lines[0].index("VERDICT") == lines[1].index("done")
    assert lines[4].endswith("Busy: it is (2 times more)")
    assert len(lines) == 5
    assert [json.loads(line)["guest"] for line in shown(capsys, *where, "--format", "json").splitlines()] == [
        "web", "db", "db", "db",
    ]  # fmt: skip
    rows = list(csv.reader(shown(capsys, *where, "--format", "csv").splitlines()))
    assert rows[0][:5] == ["time", "guest", "peer.user", "peer.pid", "method"]
    assert rows[1][1:11] == ["web", "0", "4711", "Set", "/db", "memory.max", "64M", "128M", "done", ""]
    assert (rows[2][5], json.loads(rows[2][8]), len(rows)) == ("/a\\x1b[31m", ["c 1:3 rwm"] * 9, 5)
    assert len(shown(capsys, *where, "--format", "csv", "--no-headings").splitlines()) == 4
    assert shown(capsys, *where, "web", "--format", "{{.Key}} {{.Peer.Pid}}") == "memory.max 4711\n"
    assert shown(capsys, *where, "web", "--format", "{{.Verdict}} {{.Message}}").startswith("done ")
    assert main(["nestrt", "audit", *where, "nobody", "--format", "csv"]) == 3
    assert capsys.readouterr().out == ""
    assert "\n  key: memory.max\n" in shown(capsys, *where, "web", "--format", "yaml")
    assert len(shown(capsys, *where, "web", "--no-headings").splitlines()) == 1
    for argv, count in [
        (["web"], 1), (["db"], 3), (["--refused"], 3), (["--method", "freeze"], 2), (["--group", "/a"], 2),
        (["--group", "a/b"], 2), (["--group", "/"], 4), (["-n", "2"], 2), (["--since", "10m"], 4),
        (["--until", "10m"], 0), (["--since", "2000-01-01T00:00:00Z", "--until", "2001-01-01"], 0),
        (["-n", "1", "--refused", "db"], 1),
    ]:  # fmt: skip
        assert len(shown(capsys, *where, *argv, "--format", "json").splitlines()) == count, argv
    for argv, status in [
        (["nobody"], 3), (["--since", "yesterday"], 2), (["-n", "-1"], 2), (["-f", "--until", "1m"], 2),
        (["--directory", "/nonexistent"], 3), (["--directory", "/etc/passwd"], 1),
    ]:  # fmt: skip
        assert main(["nestrt", "audit", *where, *argv]) == status, argv
        assert capsys.readouterr().err.count("\n") == 1


def test_moments() -> None:
    now = 1_800_000_000.0
    assert cli.moment("90s", now) == now - 90
    assert cli.moment("2d", now) == now - 172_800
    assert cli.moment("2027-01-15T08:00:00Z", 0) == now
    assert cli.moment("2027-01-15T09:00:00+01:00", 0) == now
    assert cli.moment(time.strftime("%Y-%m-%d %H:%M", time.localtime(now)), 0) == now
    assert cli.moment(time.strftime("%H:%M", time.localtime(now)), now) == now
    for text in ("", "10", "10x", "99:99", "2026-13-01", "9" * 9 + "m"):
        with pytest.raises(InputError):
            cli.moment(text, now)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_the_command_follows(form: str, audit: Audit, directory: Path) -> None:
    for number in range(20):
        note(audit, "web", number)
    words = ["-f", "-n", "2", "--no-headings", "--format", form]
    argv = [str(CHECKOUT / "hooks/nestrt"), "audit", "--directory", str(directory), *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None

        def new(line: bytes) -> int:
            return int(json.loads(line)["new"] if form == "json" else line.decode().split(",")[8])

        try:
            assert [new(process.stdout.readline()) for _ in range(2)] == [18, 19]
            note(audit, "web", 20)
            note(audit, "other", 21)
            assert [new(process.stdout.readline()) for _ in range(2)] == [20, 21]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130


# Bounds of all guests together, and a disk that is full.


def test_files_of_all_guests_are_bounded(directory: Path) -> None:
    """Those not written for longest go; what commands have written is not the broker's to remove."""
    lines = Lines(str(directory), "the audit", "--audit DIR", SMALL, 4, 8)
    (directory / file_name("web0", COMMANDS)).write_text("")
    for number in range(20):
        lines.write(f"web{number}", '"new":1')
        path = directory / file_name(f"web{number}")
        os.utime(path, (number, number))
    lines.close()
    kept = {file_name(f"web{number}") for number in range(12, 20)}
    assert {path.name for path in directory.iterdir()} == kept | {file_name("web0", COMMANDS)}


def test_a_full_file_without_room_for_the_next_closes_nothing_else(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(str(directory), "the audit", "--audit DIR", SMALL, 4)
    lines.write("web", f'"new":"{"x" * (SMALL - 100)}"')
    real, opened, others = lines._open, [], []

    def no_room(name: str) -> int:
        if opened:
            others.append(os.open("/dev/null", os.O_RDONLY))
            raise OSError(errno.ENOSPC, "no room", name)
        opened.append(real(name))
        return opened[0]

    monkeypatch.setattr(lines, "_open", no_room)
    lines.write("web", f'"new":"{"y" * 100}"')
    assert lines.lost == {"web": 1}
    os.fstat(others[0])
    os.close(others[0])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
    lines.close()
