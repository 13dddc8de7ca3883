"""YAML that every reader reads back: PyYAML's two, which go by version 1.1, are asked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nestrt.host.yamltext import dump

TRAPS = (
    "", " ", "a b", "null", "Null", "~", "true", "TRUE", "yes", "No", "on", "y", "N", "1", "-1", "0x10", "0o7", "1_0",
    "1e3", ".5", ".inf", "nan", "12:30", "2026-11-30", "2026-11-30T12:00:00Z", "=", "<<", "-", "- a", "?", "? a", ":",
    "a:", "a: b", "#", "a #b", "a#b", "&a", "*a", "!a", "|", ">", "%a", "@a", "`a", "'", '"', "a'b", "[a]", "{a}", ",",
    "a,b", "\\", "\\x41", "\n", "a\n", "\ta", "a\t", "\r", "\0", "\x1b[31m", "\x7f", "\x85", "\xa0", "\u2028",
    "\ufeff", "é", "日本", "😀", "a😀b\x7f", "---", "...", "--- a", "/nestrt/web/guest", "cgroup.max", "0-3,5",
    "web/db", "a@b.c", "x" * 300, "k: " * 400,
)  # fmt: skip


def read(text: str) -> Any:
    assert text.isascii()
    assert all(line.isprintable() for line in text.split("\n"))
    loaders = [yaml.SafeLoader, *([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])]
    found = [yaml.load(text, loader) for loader in loaders]
    assert found[0] == found[-1]
    return found[0]


@pytest.mark.parametrize("text", TRAPS)
def test_a_text_is_that_text(text: str) -> None:
    for value in (text, [text], {"a": text}, {text: 1}, [[text], {text: [text]}], {text: {text: text}}):
        assert read(dump(value)) == value


def test_what_it_looks_like() -> None:
    value = {
        "name": "web",
        "ids": [[0, 1], []],
        "memory": {"limit": None, "by": {}},
        "guests": [{"a": 1, "b": [True]}, "x"],
    }
    assert dump(value) == (
        "name: web\nids:\n- - 0\n  - 1\n- []\nmemory:\n  limit: null\n  by: {}\n"
        "guests:\n- a: 1\n  b:\n  - true\n- x\n"
    )  # fmt: skip
    assert dump([]) == "[]\n"
    assert dump({}) == "{}\n"
    assert dump("0-3") == '"0-3"\n'


def test_numbers() -> None:
    for number in (0, -1, 2**70, 1.5, -0.0, 1e16, 1e-7, 1.5e300, math.inf, -math.inf):
        assert read(dump([number])) == [number]
        assert type(read(dump(number))) is type(number)
    assert dump(math.nan) == ".nan\n"


def test_lone_surrogates_are_escaped_as_json_has_them() -> None:
    """Of names that are not UTF-8. libyaml takes none; PyYAML's own reader does."""
    assert yaml.load(dump(["a\udc80b"]), yaml.SafeLoader) == ["a\udc80b"]


TEXTS = st.one_of(
    st.sampled_from(TRAPS), st.text(max_size=8), st.text("-:?# ,[]{}&*!|>'\"%@`\\~=<.0129aeExyn_+\n", max_size=6)
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_whatever_it_is(value: Any) -> None:
    assert read(dump(value)) == value
    assert read(dump([value]) + dump([value])) == [value, value]
