"""What reactions and events are as text and numbers: nestrt/broker/reaction_text.py, host/event_sources.py,
broker/events.py, and the form of inotify(7)'s events. No kernel, no group."""

from __future__ import annotations

import re
import struct
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nestrt.broker import interfaces
from nestrt.broker.events import LONGEST, Subscription
from nestrt.broker.reaction_text import (
    LARGEST,
    MIB,
    PAGE,
    Reaction,
    decode,
    encode,
    high_below,
    is_near,
    parse,
    raised,
)
from nestrt.broker.refusal import Refusal
from nestrt.guest.client import MAX
from nestrt.host.event_sources import KINDS, SOURCES, changes, fitting, parse_counts
from nestrt.host.pressure import parse_threshold
from nestrt.kernel import inotify

ALL = dict.fromkeys(("threshold", "step", "most", "seconds", "fallback"))


def asked(**values: Any) -> dict[str, Any]:
    """A reaction as a call has it."""
    return {**ALL, "group": "/web", "on": "oom", "action": "kill", **values}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"action": "freeze"},
        {"action": "raise", "step": "16M", "most": "1G"},
        {"action": "raise", "step": "16M", "most": "16M", "fallback": "freeze"},
        {"action": "tell", "seconds": 60, "fallback": "kill"},
        {"action": "tell", "seconds": 0.1, "step": "1M", "most": "2M"},
        {"on": "pressure", "threshold": "some 150000 1000000"},
        {"on": "pressure", "threshold": "io full 10000000 10000000", "action": "freeze"},
        {"on": "pressure", "threshold": "cpu some 1 500000", "action": "tell", "seconds": 1},
        {"on": "pressure", "threshold": "critical", "action": "raise", "step": "1M", "most": "2M"},
    ],
)
def test_a_reaction_is_taken_kept_and_read_back(values: dict[str, Any]) -> None:
    reaction = parse(asked(**values), "/web")
    assert reaction.shown() == asked(**values)
    was = {"memory.high": "max"}
    assert decode(encode([(reaction, was)]), "/web") == [(reaction, was)]
    above = Reaction(**{**reaction.__dict__, "above": True})
    assert decode(encode([(above, {})]), "/web") == [(above, {})]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"on": "fire"}, "fire"),
        ({"action": "reboot"}, "reboot"),
        ({"action": "nothing"}, "nothing"),
        ({"threshold": "some 1 500000"}, "oom takes no threshold"),
        ({"on": "pressure"}, "no threshold"),
        ({"on": "pressure", "threshold": "some 2 1"}, "no threshold"),
        ({"on": "pressure", "threshold": "some 600000 500000"}, "no threshold"),
        ({"on": "pressure", "threshold": "some 1 10000001"}, "no threshold"),
        ({"on": "pressure", "threshold": "some 0 500000"}, "no threshold"),
        ({"on": "pressure", "threshold": "some 1 500000\nfull 1 500000"}, "no threshold"),
        ({"on": "pressure", "threshold": "disk some 1 500000"}, "no threshold"),
        ({"on": "pressure", "threshold": "cpu some 1 500000", "action": "raise", "step": "1M", "most": "1M"}, "cpu"),
        ({"action": "raise"}, "step or most"),
        ({"action": "raise", "step": "1M"}, "step or most"),
        ({"action": "tell", "seconds": 1, "most": "1M"}, "step or most"),
        ({"action": "raise", "step": "2M", "most": "1M"}, "more than most"),
        ({"action": "raise", "step": "1M", "most": "max"}, "max"),
        ({"action": "raise", "step": "-1", "most": "1M"}, "-1"),
        ({"action": "raise", "step": "0", "most": "1M"}, "'0'"),
        ({"action": "raise", "step": "much", "most": "1M"}, "much"),
        ({"action": "kill", "step": "1M", "most": "1M"}, "no step"),
        ({"action": "tell"}, "seconds"),
        ({"action": "tell", "seconds": 0}, "seconds"),
        ({"action": "tell", "seconds": 60.5}, "seconds"),
        ({"action": "tell", "seconds": float("nan")}, "seconds"),
        ({"action": "kill", "seconds": 1}, "does not wait"),
        ({"action": "kill", "fallback": "freeze"}, "no fallback"),
        ({"action": "tell", "seconds": 1, "fallback": "raise"}, "raise"),
        ({"action": "tell", "seconds": "1"}, "another type"),
        ({"action": None}, "no action"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse(asked(**values), "/web")
    assert caught.value.name == "BadValue"
    assert reason in caught.value.message
    assert caught.value.remedy


def test_the_guest_itself_is_not_reacted_for() -> None:
    with pytest.raises(Refusal, match="the guest's own"):
        parse(asked(), "/")


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\xff", b"[]", b"{}", b'{"v":2,"reactions":[{"on":"oom","action":"kill"}]}', b'{"v":1,"reactions":{}}',
        b'{"v":1,"reactions":[[], 1, null]}', b'{"v":1,"reactions":[{"on":"oom"}]}',
        b'{"v":1,"reactions":[{"on":"oom","action":"raise","step":"1M","most":"max"}]}',
        b"[" * 100_000, b" " * (LARGEST + 1), b'{"v":1,"reactions":[{"on":["oom"],"action":"kill"}]}',
    ],
)  # fmt: skip
def test_a_forged_attribute_is_nothing(raw: bytes) -> None:
    assert decode(raw, "/web") == []


def test_a_forged_attribute_cannot_say_what_is_put_back_but_what_the_files_take() -> None:
    was = '{"memory.high":"max","memory.max":"max","memory.oom_control":"1\\n0","memory.oom.group":"2","x":[]}'
    raw = f'{{"v":1,"reactions":[{{"on":"oom","action":"kill","was":{was}}}]}}'
    assert decode(raw.encode(), "/web")[0][1] == {"memory.high": "max"}


def test_one_reaction_for_each_event_is_kept() -> None:
    rows = b'{"on":"oom","action":"kill"},{"on":"oom","action":"freeze"},{"on":"oom","action":"kill"}'
    found = decode(b'{"v":1,"reactions":[' + rows + b"]}", "/web")
    assert [reaction.action for reaction, _ in found] == ["kill"]


@given(st.binary(max_size=400))
def test_no_attribute_makes_it_raise(raw: bytes) -> None:
    decode(raw, "/web")


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.none()))


@given(st.dictionaries(st.sampled_from(("on", "action", *ALL)), values))
def test_whatever_is_asked_is_taken_or_refused(given_values: dict[str, Any]) -> None:
    try:
        reaction = parse(asked(**given_values), "/web")
    except Refusal:
        return
    assert decode(encode([(reaction, {})]), "/web") == [(reaction, {})]


def test_a_broker_without_privilege_asks_for_the_same_share() -> None:
    for text, scaled in (
        ("some 150000 1000000", "some 300000 2000000"),
        ("full 2000000 2000000", "full 2000000 2000000"),
        ("some 1500000 3000000", "some 2000000 4000000"),
        ("io some 1 9999999", "some 1 10000000"),
    ):
        trigger = parse_threshold(text)
        assert trigger is not None
        less = trigger.unprivileged()
        assert (less.file, less.text) == (trigger.file, scaled)


@given(
    st.integers(1, 1 << 40), st.integers(PAGE, 1 << 40), st.integers(PAGE, 1 << 40),
    st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)), max_size=4),
)  # fmt: skip
def test_a_raise_gives_no_more_than_anybody_has(
    now: int, step: int, most: int, above: list[tuple[float, float]]
) -> None:
    new = raised(now, step, most, above)
    assert new >= now
    if new > now:
        assert new <= min(now + step, most, *(limit for limit, _ in above))
        assert all(new - now <= max(limit - use, 0) for limit, use in above)
        assert new % PAGE == 0


def test_a_raise_by_example() -> None:
    assert raised(16 * MIB, 8 * MIB, 64 * MIB, []) == 24 * MIB
    assert raised(60 * MIB, 8 * MIB, 64 * MIB, []) == 64 * MIB
    assert raised(64 * MIB, 8 * MIB, 64 * MIB, []) == 64 * MIB
    assert raised(16 * MIB, 8 * MIB, 64 * MIB, [(32 * MIB, 30 * MIB)]) == 18 * MIB
    assert raised(16 * MIB, 8 * MIB, 64 * MIB, [(20 * MIB, 0)]) == 20 * MIB
    assert raised(16 * MIB, 8 * MIB, 64 * MIB, [(32 * MIB, 40 * MIB)]) == 16 * MIB
    assert raised(MAX, 8 * MIB, 64 * MIB, []) == MAX


def test_the_margin_grows_with_the_time_to_hold() -> None:
    assert high_below(MAX, None) is None
    assert high_below(512 * MIB, None) == 480 * MIB
    assert high_below(512 * MIB, 1.0) == 480 * MIB
    assert high_below(64 * MIB, 60.0) == 64 * MIB - 60 * (192 << 10)
    assert high_below(4 * MIB, 60.0) == 2 * MIB
    for size in (PAGE, 3 * PAGE, MIB, 10 * MIB + 1):
        high = high_below(size, None)
        assert high is not None
        assert 0 <= high < size
        assert high % PAGE == 0


def test_a_group_is_near_its_limit_only_where_nothing_can_be_taken_from_it() -> None:
    high = 60 * MIB
    assert is_near(60 * MIB, high, 0, 0)
    assert not is_near(50 * MIB, high, 0, 0)
    assert not is_near(60 * MIB, high, 30 * MIB, 0)
    assert not is_near(60 * MIB, high, 0, 30 * MIB)


def test_the_kinds_are_those_of_the_interface() -> None:
    text = re.search(r"# kind: ([a-z_, #\n]+)\.\n", interfaces.GUEST)
    assert text
    assert re.findall("[a-z_]+", text[1]) == ["listening", *KINDS]


def test_every_kind_that_the_kernel_tells_has_a_source_in_each_version() -> None:
    for kind in ("oom", "oom_kill", "limit", "populated", "empty", "frozen", "thawed"):
        assert list(fitting(2, ("memory", "pids"), frozenset((kind,)), True)), kind
        assert list(fitting(1, ("memory", "pids", "freezer"), frozenset((kind,)), True)), kind
    assert not list(fitting(1, (), frozenset(KINDS), False))


def test_counts_are_told_once() -> None:
    source = next(one for one in SOURCES if one.file == "memory.events.local")
    old = parse_counts(source.file, "low 0\nhigh 3\nmax 0\noom 0\noom_kill 0\n")
    new = parse_counts(source.file, "low 9\nhigh 3\nmax 4\noom 1\noom_kill 1\nnews 1\n")
    assert list(changes(source, old, new)) == [("limit", 4, "4 since the last report"), ("oom", 1, None),
                                               ("oom_kill", 1, None)]  # fmt: skip
    assert list(changes(source, new, new)) == []
    # A group that was made again counts from 0.
    assert list(changes(source, new, old)) == []


def test_states_are_told_when_they_change() -> None:
    source = next(one for one in SOURCES if one.file == "cgroup.events")
    one, other = (parse_counts(source.file, f"populated {n}\nfrozen {n}\n") for n in (0, 1))
    assert [kind for kind, _, _ in changes(source, one, other)] == ["populated", "frozen"]
    assert [kind for kind, _, _ in changes(source, other, one)] == ["empty", "thawed"]


@pytest.mark.parametrize(
    ("file", "text", "counts"),
    [
        ("memory.failcnt", "12\n", {"": 12}),
        ("memory.max", "max\n", {"": -1}),
        ("freezer.state", "FREEZING\n", {"frozen": 0}),
        ("freezer.state", "FROZEN\n", {"frozen": 1}),
        ("cgroup.procs", "", {"populated": 0}),
        ("cgroup.procs", "0\n12\n", {"populated": 1}),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
         {"oom_kill_disable": 0, "under_oom": 1, "oom_kill": 2}),
        ("pids.events", "max 1\nmax x\n-1\n", {"max": 1}),
    ],
)  # fmt: skip
def test_files_are_read(file: str, text: str, counts: dict[str, int]) -> None:
    assert parse_counts(file, text) == counts


def test_inotify_events_are_cut_by_their_length() -> None:
    head = struct.Struct("iIII")
    name = b"a b\xff"
    content = head.pack(1, inotify.IN_MODIFY, 0, 0)
    content += head.pack(2, inotify.IN_CREATE | inotify.IN_ISDIR, 0, 16) + name.ljust(16, b"\0")
    content += head.pack(-1, inotify.IN_Q_OVERFLOW, 0, 0)
    assert inotify.parse(content) == [
        (1, inotify.IN_MODIFY, b""),
        (2, inotify.IN_CREATE | inotify.IN_ISDIR, name),
        (-1, inotify.IN_Q_OVERFLOW, b""),
    ]


def test_a_reader_that_is_too_slow_loses_events_and_knows_how_many() -> None:
    async def main() -> None:
        queue = Subscription()
        for number in range(1000):
            queue.put({"number": number})
        assert len(queue.queue) < LONGEST
        kept = [await queue.next() for _ in range(100)]
        assert [event["number"] for event in kept] == list(range(100))
        queue.put({"number": 1000})
        rest = [await queue.next() for _ in range(LONGEST - 100 + 1)]
        numbers = [event.get("number") for event in rest]
        assert numbers == [*range(100, LONGEST - 1), None, 1000]
        lost = rest[-2]
        assert (lost["kind"], lost["count"]) == ("lost", 1000 - (LONGEST - 1))
        with trio.move_on_after(0):
            await queue.next()
            raise AssertionError("there was nothing more")
        # The last thing to be told is the loss itself.
        for number in range(LONGEST):
            queue.put({"number": number})
        rest = [await queue.next() for _ in range(LONGEST)]
        assert (rest[-1]["kind"], rest[-1]["count"]) == ("lost", 1)

    trio.run(main)
