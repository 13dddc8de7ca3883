"""Processes in order and below their parents, whatever their parents are said to be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.cli._host_ps import _cpu, _sort, clock
from nestrt.errors import InputError
from nestrt.host.process_rows import DEEPEST, family, ordered
from nestrt.host.render import Node


def rows(parents: dict[int, int | None]) -> list[dict[str, Any]]:
    return [{"pid": pid, "parent": parent} for pid, parent in parents.items()]


def count(nodes: list[Node]) -> list[str]:
    """The texts of all nodes."""
    queue, found = list(nodes), []
    while queue:
        node = queue.pop()
        found.append(node.text)
        queue += node.below
    return sorted(found)


@given(st.dictionaries(st.integers(1, 30), st.none() | st.integers(1, 30), max_size=30))
def test_each_process_is_there_once(parents: dict[int, int | None]) -> None:
    """Also where pids have been used again, and parents go in circles."""
    assert count(family(rows(parents), lambda row: str(row["pid"]))) == sorted(str(pid) for pid in parents)


def test_below_the_parent_and_not_too_deep() -> None:
    nodes = family(rows({5: 1, 7: 5, 6: 5, 9: None}), lambda row: str(row["pid"]))
    assert nodes == [Node("5", [Node("6", []), Node("7", [])]), Node("9", [])]
    chain = family(rows({pid: pid - 1 for pid in range(1, 5001)}), lambda row: str(row["pid"]))
    assert len(count(chain)) == 5000
    depth, node = 0, chain[0]
    while node.below:
        depth, node = depth + 1, node.below[0]
    assert depth <= DEEPEST + 1


def test_order() -> None:
    found: list[dict[str, Any]] = [
        {"rss": 1, "guest": "b"},
        {"rss": None, "guest": "a"},
        {"rss": 3, "guest": "a"},
        {"rss": 3, "guest": "b"},
    ]
    assert [(row["rss"], row["guest"]) for row in ordered(found, _sort("-rss,guest"))] == [
        (3, "a"), (3, "b"), (1, "b"), (None, "a"),
    ]  # fmt: skip
    for text in ("", "x", "rss,,", "command line"):
        with pytest.raises(InputError):
            _sort(text)


def test_times_as_ps_has_them() -> None:
    assert [clock(seconds) for seconds in (0, 61, 3600, 86399, 90061)] == [
        "00:00", "01:01", "01:00:00", "23:59:59", "1-01:01:01",
    ]  # fmt: skip
    assert [_cpu(usec, False) for usec in (0, 10_000, 59_999_999, 3_600_000_000)] == [
        "0:00.00", "0:00.01", "0:59.99", "60:00.00",
    ]  # fmt: skip
