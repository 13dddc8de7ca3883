"""Device rules: reading, and arithmetic against counting out every question about every node.

The universe of nodes has the numbers that rules name and one of each that none names, so that a
wildcard is told from a list of all that was named.
"""

from __future__ import annotations

import contextlib
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestrt.errors import InputError
from nestrt.level.devices import (
    DEFAULT_RULES,
    EVERYTHING,
    DeviceRule,
    allowed,
    format_rule,
    intersect,
    merge,
    parse_rule,
    parse_rules,
    subset,
)

NUMBERS = (0, 1)
ACCESSES = ("r", "w", "m", "rw", "rm", "wm", "rwm")
ASKED = ("r", "w", "rw", "m")
UNIVERSE = tuple(product("bc", (*NUMBERS, 99), (*NUMBERS, 99), ASKED))

rule = st.builds(
    DeviceRule,
    st.sampled_from("abc"),
    st.sampled_from((*NUMBERS, None)),
    st.sampled_from((*NUMBERS, None)),
    st.sampled_from(ACCESSES),
)
rules = st.lists(rule, max_size=4).map(tuple)


def by_kernel(known: tuple[DeviceRule, ...], kind: str, major: int, minor: int, asked: str) -> bool:
    """match_exception() of security/device_cgroup.c, line by line."""
    for item in known:
        if item.type != "a" and item.type != kind:
            continue
        if item.major is not None and item.major != major:
            continue
        if item.minor is not None and item.minor != minor:
            continue
        if set(asked) - set(item.access):
            continue
        return True
    return False


def answers(known: tuple[DeviceRule, ...]) -> set[tuple[str, int, int, str]]:
    return {question for question in UNIVERSE if by_kernel(known, *question)}


@given(rules)
def test_allowed_is_what_the_kernel_answers(known: tuple[DeviceRule, ...]) -> None:
    assert {question for question in UNIVERSE if allowed(known, *question)} == answers(known)


@settings(max_examples=400)
@given(rules, rules)
def test_subset_is_counted_out(child: tuple[DeviceRule, ...], parent: tuple[DeviceRule, ...]) -> None:
    offending = subset(child, parent)
    if offending is None:
        assert answers(child) <= answers(parent)
    else:
        assert offending in child
        assert not answers((offending,)) <= answers(parent) or _only_by_sum(offending, parent)


def _only_by_sum(child: DeviceRule, parent: tuple[DeviceRule, ...]) -> bool:
    """Whether several rules of the parent cover together what none does alone; never with a number left over."""
    return answers((child,)) <= answers(parent) and None not in (child.major, child.minor) and child.type != "a"


def test_a_sum_of_single_rules_is_not_needed_to_cover_a_wildcard() -> None:
    every = tuple(DeviceRule("c", 1, minor, "r") for minor in range(256))
    assert subset((DeviceRule("c", 1, None, "r"),), every) == DeviceRule("c", 1, None, "r")


@settings(max_examples=400)
@given(rules, rules)
def test_intersection_is_counted_out(one: tuple[DeviceRule, ...], other: tuple[DeviceRule, ...]) -> None:
    both = intersect(one, other)
    assert answers(both) == answers(one) & answers(other)
    assert subset(both, one) is None
    assert subset(both, other) is None
    assert len(set(both)) == len(both)


@given(rules)
def test_merging_allows_no_less_and_opens_nothing_new(known: tuple[DeviceRule, ...]) -> None:
    merged = merge(known)
    assert subset(known, merged) is None
    nodes = [(item.type, item.major, item.minor) for item in merged]
    assert len(set(nodes)) == len(nodes)
    for kind, major, minor, asked in UNIVERSE:
        if allowed(merged, kind, major, minor, asked):
            assert all(allowed(known, kind, major, minor, letter) for letter in asked)


@given(rule)
def test_rule_round_trip(item: DeviceRule) -> None:
    assert parse_rule(format_rule(item)) == item


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("c 1:3 rwm", DeviceRule("c", 1, 3, "rwm")),
        ("c 1:3 mwr", DeviceRule("c", 1, 3, "rwm")),
        ("b 8:* r", DeviceRule("b", 8, None, "r")),
        ("a *:* rwm", DeviceRule("a", None, None, "rwm")),
        ("a", DeviceRule("a", None, None, "rwm")),
        ("  c   *:0  m\n", DeviceRule("c", None, 0, "m")),
        ("c 4095:1048575 r", DeviceRule("c", 4095, 1_048_575, "r")),
    ],
)
def test_rule_is_read(text: str, wanted: DeviceRule) -> None:
    assert parse_rule(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "c", "c 1:3", "c 1:3 x", "c 1:3 rr", "c 1:3 rwm x", "d 1:3 r", "c 1 r", "c 1:3:4 r", "c -1:3 r", "c 4096:0 r",
     "c 1:1048576 r", "c :3 r", "c 1: r", "char 1:3 r", "C 1:3 r", "/dev/null", "c 1:3 RWM"],
)  # fmt: skip
def test_rule_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_rule(text)
    assert "'c 1:3 rwm'" in caught.value.remedy


@given(st.text())
def test_rules_raise_nothing_else(text: str) -> None:
    with contextlib.suppress(InputError):
        parse_rule(text)


def test_default_rules_give_the_usual_devices_and_no_disk_tun_or_memory() -> None:
    for minor in (3, 5, 7, 8, 9):
        assert allowed(DEFAULT_RULES, "c", 1, minor, "rwm")
    assert allowed(DEFAULT_RULES, "c", 136, 42, "rw")
    assert allowed(DEFAULT_RULES, "c", 10, 200, "m")
    for kind, major, minor in (("c", 10, 200), ("c", 1, 1), ("c", 1, 11), ("b", 8, 0), ("c", 4, 0)):
        assert not allowed(DEFAULT_RULES, kind, major, minor, "r")
        assert not allowed(DEFAULT_RULES, kind, major, minor, "w")
    assert subset(DEFAULT_RULES, EVERYTHING) is None
    assert subset(EVERYTHING, DEFAULT_RULES) == EVERYTHING[0]


def test_words_for_lists() -> None:
    assert parse_rules(["default"]) == DEFAULT_RULES
    assert parse_rules(["all"]) == EVERYTHING
    assert parse_rules(["c 1:3 r", "c 1:3 w"]) == (DeviceRule("c", 1, 3, "rw"),)
    assert parse_rules([]) == ()
    with pytest.raises(InputError, match="too many"):
        parse_rules([f"c 1:{minor} r" for minor in range(1025)])


def test_no_rules_are_a_subset_of_none() -> None:
    assert subset((), ()) is None
    assert subset((DeviceRule("c", 1, 3, "m"),), ()) == DeviceRule("c", 1, 3, "m")
    assert intersect(DEFAULT_RULES, ()) == ()
