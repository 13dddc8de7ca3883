"""Marks that anybody may have written: nothing raises, nothing grows, nothing reaches a terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.host.marks import LARGEST, LONGEST_TEXT, Mark, escape, parse, valid_name

WHOLE = {
    "v": 1,
    "name": "web",
    "id": "9f3c0123456789ab",
    "level": 1,
    "state": "running",
    "pid": 1234,
    "start": 567890,
    "created": 1763770000,
    "rootfs": "/srv/x",
    "command": ["sh", "-c", "true"],
    "policy": "default",
    "max_level": 3,
    "ids": [[0, 524288, 1048576]],
    "view": {"mount": "rw", "controllers": ["cpu"]},
    "limits": {"memory": 536870912, "cpus": "0-1"},
    "max_groups": 1000,
    "max_depth": 8,
    "net": {"mode": "none"},
    "rm": True,
}


def mark_of(value: object) -> Mark:
    return parse(json.dumps(value).encode(), "user.nestrt")


def test_whole_mark() -> None:
    mark = mark_of(WHOLE)
    assert mark.problems == ()
    assert mark.whole
    assert (mark.name, mark.pid, mark.start, mark.created) == ("web", 1234, 567890, 1763770000)
    assert mark.command == ("sh", "-c", "true")
    assert mark.ids == ((0, 524288, 1048576),)
    assert mark.limits == {"memory": 536870912, "cpus": "0-1"}
    assert mark.rm
    assert mark.virtualize


def test_short_mark_of_other_hierarchies() -> None:
    mark = mark_of({"v": 1, "name": "web", "id": "9f"})
    assert (mark.name, mark.id, mark.whole, mark.problems) == ("web", "9f", False, ())


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[" * 16000, "not JSON"),
        (b'{"v":' + b"9" * 6000 + b"}", "not JSON"),
        (b'{"v":NaN}', "not JSON"),
        (b'{"v":1} {"v":1}', "not JSON"),
        (b" " * (LARGEST + 1), f"{LARGEST + 1} bytes, more than {LARGEST}"),
    ],
    ids=["empty", "not UTF-8", "list", "null", "brackets", "digits", "NaN", "two", "large"],
)
def test_no_mark_at_all(raw: bytes, problem: str) -> None:
    assert parse(raw, "user.nestrt") == Mark("user.nestrt", problems=(problem,))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("v", 2),
        ("name", "../../etc"),
        ("name", "a" * 65),
        ("name", "\x1b[31mred"),
        ("name", 7),
        ("state", "fine"),
        ("pid", "1"),
        ("pid", True),
        ("pid", -2),
        ("pid", 1 << 64),
        ("start", 1.5),
        ("created", []),
        ("command", "sh"),
        ("command", ["sh", 1]),
        ("rootfs", "x" * (LONGEST_TEXT + 1)),
        ("ids", [[0, 1]]),
        ("ids", [[0, 1, -1]]),
        ("ids", [[0, 1, 1]] * 341),
        ("view", []),
        ("limits", "none"),
    ],
)
def test_a_value_that_does_not_fit_is_left_out_and_named(key: str, value: object) -> None:
    mark = mark_of({**WHOLE, key: value})
    assert len(mark.problems) == 1
    assert mark.problems[0].startswith(key + " is ")
    if key != "v":
        default = getattr(mark, key)
        assert default in ("", -1, (), None)


def test_objects_are_cut_to_size() -> None:
    deep: object = 1
    for _ in range(50):
        deep = {"x": deep}
    many = {str(n): n for n in range(999)}
    mark = mark_of({**WHOLE, "view": {"deep": deep, "float": 1.5, "huge": 1 << 200}, "limits": many})
    assert mark.view == {"deep": {"x": {"x": {"x": None}}}, "float": None, "huge": None}
    assert mark.limits is not None
    assert len(mark.limits) == 256


@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    parse(raw, "user.nestrt")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(WHOLE)), json_values))
def test_any_values(values: dict[str, object]) -> None:
    mark = mark_of(values)
    assert mark.name == "" or valid_name(mark.name)
    assert mark.pid >= -1
    assert all(isinstance(word, str) for word in mark.command)
    json.dumps(mark.view)


@given(st.text())
def test_escaped_text_is_one_printable_line(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    shown.encode()


def test_escape() -> None:
    assert escape("plain é 名") == "plain é 名"
    assert escape("\x1b]0;owned\x07\n") == "\\x1b]0;owned\\x07\\n"
    assert escape("\u202eback\ud800") == "\\u202eback\\ud800"
    assert escape("\\x1b") == "\\\\x1b"
