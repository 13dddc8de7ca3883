"""Events as text: the kernel's log, kills in it, the events' JSON and lines; no kernel, no group."""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nestrt.cli import _host_events as command
from nestrt.cli._events_out import Texts, line
from nestrt.errors import InputError, NotFound
from nestrt.host.event import FIELDS, KINDS, USUAL, Event, Guests, Known, by_place, from_row, group_of
from nestrt.host.history import merge
from nestrt.host.kill_log import parse_kill
from nestrt.host.marks import TRUSTED, USER, Mark
from nestrt.kernel import kmsg

REAL = (
    b"6,80351,24370110541,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=guest,mems_allowed=0,"
    b"oom_memcg=/nestrt/web,task_memcg=/nestrt/web/guest/hog,task=dd,pid=4433,uid=100000\n"
)
# A name of a group: anything but a slash and a newline.
NAME = st.text(st.characters(blacklist_characters="/\n\0", blacklist_categories=("Cs",)), min_size=1, max_size=60)
# What a guest would choose to be taken for another.
WORDS = (
    "x,task_memcg=", "x,oom_memcg=", ",task=sh,pid=1,uid=0", "oom-kill:constraint=CONSTRAINT_NONE", "x,global_oom",
    "x,global_oom,task_memcg=", "nestrt", "victim", "guest", "web", "\\x0a", "a,task=b", "=",
)  # fmt: skip
BELOW = st.lists(NAME | st.sampled_from(WORDS), max_size=8).map(lambda names: "".join("/" + name for name in names))
COMM = st.binary(max_size=15).filter(lambda raw: b"\0" not in raw)


def escaped(text: bytes) -> bytes:
    """As the kernel writes a record's text (kernel/printk/printk.c, msg_add_ext_text())."""
    return b"".join(bytes((c,)) if 32 <= c < 127 and c != 92 else b"\\x%02x" % c for c in text)


def record(text: bytes, prefix: int = 6) -> bytes:
    return b"%d,1,2,-;" % prefix + escaped(text) + b"\n SUBSYSTEM=memory\n"


def kill(limit: str | None, group: str, comm: bytes, cpuset: str = "/") -> bytes:
    """mm/oom_kill.c, dump_oom_victim(): what the kernel says."""
    where = ",global_oom" if limit is None else f",oom_memcg={limit}"
    head = f"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset={cpuset},mems_allowed=0{where}"
    return f"{head},task_memcg={group},task=".encode() + comm + b",pid=4711,uid=100000"


def test_a_record_of_the_kernel() -> None:
    message = kmsg.parse(REAL)
    assert message is not None
    assert (message.facility, message.sequence, message.microseconds) == (0, 80351, 24370110541)
    found = parse_kill(message.text)
    assert found is not None
    assert (found.group, found.limit, found.task, found.pid, found.uid) == (
        "/nestrt/web/guest/hog", "/nestrt/web", "dd", 4433, 100000,
    )  # fmt: skip


@pytest.mark.parametrize("raw", [b"", b";", b"6,1;x", b"a,1,2,-;x", b"6,1," + b"9" * 30 + b",-;x", b"6,1,2,-"])
def test_what_is_no_record(raw: bytes) -> None:
    assert kmsg.parse(raw) is None


@given(st.binary(max_size=200), st.integers(0, 2047))
def test_a_records_text_is_what_was_written(text: bytes, prefix: int) -> None:
    message = kmsg.parse(record(text, prefix))
    assert message is not None
    assert (message.text, message.facility) == (text, prefix >> 3)


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail(raw: bytes) -> None:
    message = kmsg.parse(raw)
    parse_kill(raw if message is None else message.text)


# Whatever a guest calls its groups and processes, the kill is one of this guest's, and nobody else's.
@given(BELOW, BELOW, COMM, NAME)
@example("/x,task_memcg=/nestrt/victim/guest", "", b"sh", "x")
@example("/x,task_memcg=", "/nestrt/victim/guest,task=sh,pid=1,uid=0", b"sh", "x")
@example("", "/x,oom_memcg=/nestrt/victim,task_memcg=/nestrt/victim", b",task=,pid=1,ui", "x,oom_memcg=")
@example("/a,global_oom,task_memcg=", "/nestrt/victim", b"x", "x,global_oom,task_memcg=")
@example("/,task=", "", b"", "x")
def test_a_guest_is_taken_for_no_other(limit: str, group: str, comm: bytes, cpuset: str) -> None:
    home = "/nestrt/web/guest"
    found = parse_kill(kill(home + limit, home + limit + group, comm, cpuset))
    assert found is not None
    assert found.group.startswith(home)
    assert found.limit is not None
    assert found.limit.startswith(home)
    assert (found.pid, found.uid) == (4711, 100000)


# The same where the limit is one of the host's, or the machine's memory.
@given(BELOW, COMM, NAME, st.sampled_from([None, "/", "/nestrt", "/nestrt/web"]))
@example(",global_oom,task_memcg=/nestrt/victim", b"sh", "x,global_oom", None)
def test_a_guest_below_a_hosts_limit(group: str, comm: bytes, cpuset: str, limit: str | None) -> None:
    home = "/nestrt/web/guest"
    found = parse_kill(kill(limit, home + group, comm, cpuset))
    assert found is not None
    assert (found.limit, found.group[: len(home)]) == (limit, home)


@given(BELOW.filter(lambda path: "," not in path), st.binary(max_size=15).filter(lambda raw: b"," not in raw))
def test_plain_names_are_exact(group: str, comm: bytes) -> None:
    found = parse_kill(kill("/nestrt/web", "/nestrt/web" + group, comm))
    assert found is not None
    assert (found.group, found.limit) == ("/nestrt/web" + group, "/nestrt/web")
    assert found.task.encode("utf-8", "surrogateescape") == comm


@pytest.mark.parametrize(
    "text",
    [
        b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a",
        b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,task=a,pid=1,uid=1",
        kill("/nestrt/web", "/nestrt/db", b"sh"),
        b" " + kill("/a", "/a", b"sh"),
        kill("/a", "/a", b"sh") + b"\n" + kill("/b", "/b", b"sh")[:40],
    ],
)
def test_what_is_no_kill(text: bytes) -> None:
    assert parse_kill(text) is None


GUESTS = Guests(0, True)
WEB = Known("web", "/nestrt/web", "/nestrt/web", 1, False, Mark(TRUSTED))
WEB = GUESTS.add("/nestrt/web", Mark(TRUSTED, "web"), 0)
DB = GUESTS.add("/nestrt/web/guest/nestrt/db", Mark(USER, "db"), 0)


@pytest.mark.parametrize(
    ("path", "name", "level", "claim", "group"),
    [
        ("/nestrt/web", "web", 1, False, None),
        ("/nestrt/web/guest", "web", 1, False, "/"),
        ("/nestrt/web/guest/x", "web", 1, False, "/x"),
        ("/nestrt/web/other", "web", 1, False, None),
        ("/nestrt/web/guest/nestrt/db", "web/db", 2, True, None),
        ("/nestrt/web/guest/nestrt/db/guest/x/y", "web/db", 2, True, "/x/y"),
        ("/nestrt/webx", "", -1, False, None),
    ],
)
def test_whose_a_group_is(path: str, name: str, level: int, claim: bool, group: str | None) -> None:
    event = GUESTS.event("created", path, GUESTS.of(path), 1.0)
    assert (event.name, event.level, event.claim, event.group) == (name, level, claim, group)


def test_whose_it_was() -> None:
    gone = by_place("/machine.slice/libpod-1.scope/guest/nestrt/db/guest/x", 0)
    assert gone is not None
    assert (gone.name, gone.level, gone.claim) == ("/machine.slice/libpod-1.scope/db", 2, True)
    assert group_of(gone, "/machine.slice/libpod-1.scope/guest/nestrt/db/guest/x") == "/x"
    assert by_place("/system.slice/cron.service", 0) is None
    named = by_place("/nestrt/web/guest/x", 0)
    assert named is not None
    assert (named.name, named.path, named.level, named.claim) == ("web", "/nestrt/web", 1, False)
    # A user's own groups are not taken for a guest of the host.
    for forged in ("/user.slice/nestrt/web/guest", "/x/nestrt/web/guest", "/nestrt/a/b/guest", "/web/guest"):
        found = by_place(forged, 0)
        assert found is not None
        assert found.claim
        assert found.name == forged.removesuffix("/guest")
    guests = Guests(0, True)
    guests.add("/a/b", Mark(TRUSTED, "named"), 0)
    guests.remove("/a/b")
    found = guests.gone("/a/b/guest")
    assert found is not None
    assert found.name == "named"


TEXT = st.none() | st.text(max_size=30)
EVENTS = st.builds(
    Event, time=st.floats(0, 4e9), kind=st.sampled_from(sorted(KINDS)), name=st.text(max_size=9),
    level=st.integers(-1, 9), claim=st.booleans(), path=st.text(max_size=9), group=TEXT, key=TEXT, detail=TEXT,
    task=TEXT, binds=TEXT, count=st.none() | st.integers(0, 1 << 64), pid=st.none() | st.integers(0, 1 << 22),
)  # fmt: skip


@given(EVENTS)
def test_a_row_is_the_event(event: Event) -> None:
    row = event.row()
    assert tuple(row) == FIELDS
    again = from_row(json.loads(json.dumps(row)))
    assert again is not None
    assert again.row() == row


@pytest.mark.parametrize("bad", [{}, {"time": "1", "kind": "oom"}, {"time": 1.0, "kind": "x"}, {"time": 1, "kind": 1}])
def test_what_is_no_event(bad: dict[str, Any]) -> None:
    assert from_row(bad) is None
    assert from_row({"time": 1, "kind": "oom", "pid": "7"}) is None


@given(EVENTS)
def test_a_line_is_one_line_of_what_can_be_shown(event: Event) -> None:
    assert line(event).isprintable()


def options(form: str, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"format": form, "raw": False, "no_headings": False, **more})


@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_every_form_takes_each_event_at_once(events: list[Event]) -> None:
    for form in ("text", "json", "yaml", "csv", "{{.Kind}} {{.Name}}", "table {{.Kind}}\t{{.PID}}"):
        texts = Texts(options(form))
        pieces = [texts.of(event) for event in events]
        assert all(pieces)
    parsed = [json.loads(Texts(options("json")).of(event)) for event in events]
    assert parsed == [json.loads(json.dumps(event.row())) for event in events]


def test_what_was_recorded_is_not_told_twice() -> None:
    first = Event(100.2, "oom_kill", "web", path="/a", pid=7, total=3)
    second = Event(50.0, "oom_kill", "web", path="/a", pid=7)
    third = Event(100.0, "started", "web", path="/a")
    assert merge([first], [Event(100.1, "oom_kill", "web", path="/a", pid=7), second, third]) == [second, third, first]


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("10%/2s", {"memory.pressure": "some 200000 2000000", "io.pressure": "some 200000 2000000"}),
        ("cpu:12.5%/500ms", {"cpu.pressure": "some 62500 500000"}),
        ("memory:1%/1s,io:2%/10s", {"memory.pressure": "some 10000 1000000", "io.pressure": "some 200000 10000000"}),
    ],
)
def test_pressure(text: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.os.path, "exists", lambda path: True)
    assert {trigger.file: trigger.text for trigger in command._triggers(text)} == files


@pytest.mark.parametrize("text", ["", "10%", "0%/1s", "101%/1s", "10%/400ms", "10%/11s", "x:1%/1s", "10%/1s,"])
def test_no_pressure(text: str) -> None:
    with pytest.raises(InputError):
        command._triggers(text)


@pytest.mark.parametrize(
    ("names", "name", "path", "named"),
    [
        ([], "web", "/nestrt/web", True),
        (["web"], "web", "/x", True),
        (["web"], "web/db", "/x", True),
        (["web"], "webx", "/x", False),
        (["web/db"], "web", "/x", False),
        (["/nestrt/web"], "web", "/nestrt/web/guest/a", True),
        (["/nestrt/web"], "web", "/nestrt/webx", False),
    ],
)
def test_names(names: list[str], name: str, path: str, named: bool) -> None:
    assert command._is_named(names, name, path) is named


def test_kinds() -> None:
    assert command._kinds(None) == USUAL
    assert command._kinds("oom,oom_kill") == {"oom", "oom_kill"}
    for bad in ("", "omo"):
        with pytest.raises(InputError):
            command._kinds(bad)


@pytest.mark.parametrize("words", [["-f"], ["--since", "1m"], ["--until", "1m"], ["--kinds", "oom"]])
def test_totals_are_of_no_time_and_no_kind(words: list[str]) -> None:
    with pytest.raises(InputError, match="--totals with --"):
        command.main(["--totals", *words])


def test_what_was_before_is_not_shown_beyond_until(monkeypatch: pytest.MonkeyPatch) -> None:
    class Follower:
        epoll, guests = None, GUESTS

        def __init__(self, *given: object) -> None:
            pass

        def step(self, seconds: float | None) -> list[Event]:
            raise command._Ended

        def close(self) -> None:
            pass

    asked: list[float] = []
    monkeypatch.setattr("nestrt.host.follow.Follower", Follower)
    monkeypatch.setattr(command, "Out", lambda texts: argparse.Namespace(attach=id, flush=lambda: None))
    monkeypatch.setattr(command, "_until_signal", lambda: None)
    monkeypatch.setattr(command, "_history", lambda options, hierarchies, kinds, since, end: asked.append(end) or [])
    given, before = argparse.Namespace(names=[], record=None), time.time()
    for until in (None, before + 1000, before - 1000):
        assert command._follow(given, Texts(options("text")), (), USUAL, (), before - 2000, until) == 0
    assert [before <= end <= time.time() for end in asked[:2]] == [True, True]
    assert asked[2:] == [before - 1000]


def test_totals_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "read_hierarchies", lambda: (None,))
    monkeypatch.setattr(command, "walk", lambda hierarchies: argparse.Namespace(everyone=lambda: [WEB]))
    monkeypatch.setattr("nestrt.cli._events_totals.totals", lambda *given: 0)
    assert command.main(["--totals", "web"]) == 0
    for words in (["nestrt-nosuch"], ["web", "nestrt-nosuch"]):
        with pytest.raises(NotFound, match="nestrt-nosuch"):
            command.main(["--totals", *words])


def test_the_manual_has_all_kinds_and_fields() -> None:
    text = (Path(command.__file__).parents[1] / "man/nestrt-events.1").read_text().replace("\\-", "-")
    for word in (*KINDS, *FIELDS):
        assert re.search(rf"\b{word}\b", text), word
