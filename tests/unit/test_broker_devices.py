"""The broker's device rules without a kernel: lists from what is asked, v1's lines in their order, the level above."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nestrt.broker import above
from nestrt.broker.refusal import Refusal
from nestrt.errors import InputError
from nestrt.level.devices import DEFAULT_RULES, DeviceRule, allowed, format_rule, parse_rule, parse_rules, subset
from nestrt.plan.child_devices import Lines, changed, equal, fit, listed, missing, plain, shown, v1_lines

Rules = tuple[DeviceRule, ...]


def rules(*texts: str) -> Rules:
    return plain(parse_rules(texts))


def texts(found: Rules) -> list[str]:
    return [format_rule(rule) for rule in found]


# What is asked


@pytest.mark.parametrize(
    ("had", "allow", "deny", "left"),
    [
        (["c 1:3 rwm"], ["c 1:5 r"], [], ["c 1:3 rwm", "c 1:5 r"]),
        (["c 1:3 r"], ["c 1:3 w"], [], ["c 1:3 rw"]),
        (["c 1:3 rwm", "c 1:5 rwm"], [], ["c 1:3 rwm"], ["c 1:5 rwm"]),
        (["c 1:3 rwm"], [], ["c 1:3 w"], ["c 1:3 rm"]),
        (["c 1:3 rwm", "c 1:5 rwm", "b 8:0 r"], [], ["c 1:* rwm"], ["b 8:0 r"]),
        (["c 1:3 rwm", "b 8:0 r"], [], ["a"], []),
        (["c 1:3 rwm"], ["c 1:5 rwm"], ["c 1:5 rwm"], ["c 1:3 rwm"]),
        (["c 1:3 rwm"], [], ["c 10:229 rwm"], ["c 1:3 rwm"]),
        # Whoever may make every node still cannot open it.
        (["c *:* m", "c 1:3 rwm"], [], ["c 1:3 rwm"], ["c *:* m"]),
        (["c *:* m", "c 1:3 rwm"], [], ["c *:* m", "c 1:3 m"], ["c 1:3 rw"]),
    ],
)
def test_allow_and_deny(had: list[str], allow: list[str], deny: list[str], left: list[str]) -> None:
    assert texts(changed(rules(*had), rules(*allow), rules(*deny))) == left


@pytest.mark.parametrize(
    ("had", "deny", "wider"),
    [
        (["c 1:* rwm"], "c 1:3 rw", "c 1:* rwm"),
        (["c *:* m", "c 1:3 rwm"], "c 1:3 m", "c *:* m"),
        (["c *:3 w"], "c 1:* rw", "c *:3 w"),
        (["a"], "c 1:3 rwm", "c *:* rwm"),
    ],
)
def test_what_a_wider_rule_allows_cannot_be_denied(had: list[str], deny: str, wider: str) -> None:
    with pytest.raises(InputError) as caught:
        changed(rules(*had), (), rules(deny))
    assert f"rule {wider} allows it" in str(caught.value)
    assert "deny that one" in caught.value.remedy


def test_rules_have_types_b_and_c() -> None:
    assert texts(plain([parse_rule("a 1:3 r"), parse_rule("c 1:3 w")])) == ["b 1:3 r", "c 1:3 rw"]
    assert texts(listed("a *:* rwm\n")) == ["b *:* rwm", "c *:* rwm"]
    assert listed("") == ()


def test_many_rules_are_shown_in_part() -> None:
    found = shown(rules(*(f"c 1:{n} r" for n in range(20))))
    assert found.startswith("c 1:0 r, ")
    assert found.endswith("c 1:11 r, …")
    assert shown(()) == "none"


# v1's lines: entries by node, added to and taken from as security/device_cgroup.c does


def after(had: Rules, file: str, line: str) -> Rules:
    """The list *had* after *line* was written to devices.allow or devices.deny."""
    entries = {(r.type, r.major, r.minor): set(r.access) for r in had}
    rule = parse_rule(line)
    node = (rule.type, rule.major, rule.minor)
    if file == "allow":
        entries.setdefault(node, set()).update(rule.access)
    elif node in entries:
        entries[node] -= set(rule.access)
    return tuple(DeviceRule(*n, "".join(c for c in "rwm" if c in s)) for n, s in entries.items() if s)


def runs(old: Rules, lines: Lines) -> Iterator[Rules]:
    """What the group has after each line."""
    now = old
    for file, some in (("allow", lines.early), ("deny", lines.deny), ("allow", lines.late), ("deny", lines.tidy)):
        for line in some:
            now = after(now, file, line)
            yield now


def test_lines_in_order() -> None:
    lines = v1_lines(rules("c 1:* rwm", "c 5:0 rw"), rules("c 1:3 rwm", "c 10:229 rwm"))
    assert lines.early == ("c 1:3 rw", "c 1:3 m")
    assert lines.deny == ("c 1:* rw", "c 1:* m", "c 5:0 rw")
    assert lines.late == ("c 10:229 rw", "c 10:229 m")
    assert lines.tidy == ()
    assert v1_lines(rules("c 1:3 rwm"), rules("c 1:* rwm")) == Lines(
        (), (), ("c 1:* rw", "c 1:* m"), ("c 1:3 rw", "c 1:3 m")
    )
    # One entry for w is there early, but with the old r in it the group would have both at once.
    assert v1_lines(rules("c 1:3 r", "c 1:* w"), rules("c 1:3 w")).early == ()


numbers = st.sampled_from([None, 1, 2])
some_rules = st.lists(
    st.builds(DeviceRule, st.sampled_from("bc"), numbers, numbers, st.sampled_from("r w m rw rm wm rwm".split())),
    max_size=4,
).map(plain)
QUESTIONS = list(product("c", (1, 2, 3), (1, 2, 3), ("r", "w", "rw", "m")))


def kept(rules: Rules, others: Rules, question: tuple[str, int, int, str]) -> bool:
    """Whether a rule that answers *question* is wholly within one of the *others*, or is in both lists."""
    letters = "m" if question[3] == "m" else "rw"
    for rule in rules:
        part = DeviceRule(rule.type, rule.major, rule.minor, "".join(c for c in rule.access if c in letters))
        if part.access and allowed((part,), *question):
            same = [r for r in others if (r.type, r.major, r.minor) == (rule.type, rule.major, rule.minor)]
            if allowed(same, *question) if same else subset((part,), others) is None:
                return True
    return False


@given(old=some_rules, new=some_rules)
@example(old=rules("c 1:1 r"), new=rules("c 1:1 w"))  # an entry with both would allow what needs both
@example(old=rules("c 1:* rw"), new=rules("c 1:1 rw"))
def test_no_moment_allows_what_neither_list_does(old: Rules, new: Rules) -> None:
    steps = list(runs(old, v1_lines(old, new)))
    assert equal(steps[-1] if steps else old, new)
    for question in QUESTIONS:
        before, then = allowed(old, *question), allowed(new, *question)
        answers = [allowed(now, *question) for now in steps]
        assert before or then or not any(answers), question
        if kept(old, new, question) or kept(new, old, question):
            assert all(answers), question
        # Once the new list allows it, or denies it, it stays so.
        if before != then:
            assert answers == sorted(answers, reverse=before), question


@given(had=some_rules, above=some_rules)
def test_what_fits_is_within_the_group_above(had: Rules, above: Rules) -> None:
    found = fit(had, above)
    assert subset(found, above) is None
    assert subset(found, had) is None
    assert len({(r.type, r.major, r.minor) for r in found}) == len(found)
    for line in missing((), found, above):
        assert subset((parse_rule(line),), above) is None


@given(now=some_rules, wanted=some_rules, above=some_rules)
def test_what_is_missing_makes_no_entry_wider_than_the_group_above(now: Rules, wanted: Rules, above: Rules) -> None:
    now, wanted = fit(now, above), fit(wanted, above)
    then = now
    for line in missing(now, wanted, above):
        then = after(then, "allow", line)
    assert subset(then, above) is None


def test_nothing_is_missing_of_what_a_wider_rule_says() -> None:
    usual = plain(DEFAULT_RULES)
    assert missing(usual, rules("c 1:3 rw"), usual) == []
    assert missing(rules("c *:* m"), rules("c 1:3 rwm"), usual) == ["c 1:3 rw", "c 1:3 m"]


# The level above


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], tuple[str, list[bytes]]]]:
    """Listens and gives one answer: the socket's path, and what will have been asked."""
    made: list[threading.Thread] = []

    def answer(reply: bytes) -> tuple[str, list[bytes]]:
        path, asked = str(tmp_path / f"sock{len(made)}"), []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as one:
                found = b""
                while not found.endswith(b"\0"):
                    found += one.recv(65536)
                asked.append(found)
                for start in range(0, len(reply), 7):
                    one.sendall(reply[start : start + 7])

        made.append(threading.Thread(target=serve, daemon=True))
        made[-1].start()
        return path, asked

    yield answer
    for thread in made:
        thread.join(5)


def test_asks_the_level_above(answering: Callable[[bytes], tuple[str, list[bytes]]]) -> None:
    path, asked = answering(b'{"parameters":{"rules":["c 1:3 rwm"],"own":true}}\0')
    found = above.ask("io.nestrt.Guest.Devices", {"group": "/nestrt/db/guest/web"}, socket=path)
    assert found == {"rules": ["c 1:3 rwm"], "own": True}
    assert json.loads(asked[0][:-1]) == {
        "method": "io.nestrt.Guest.Devices",
        "parameters": {"group": "/nestrt/db/guest/web"},
    }


@pytest.mark.parametrize(
    ("reply", "name", "message"),
    [
        (b'{"error":"io.nestrt.Guest.BadValue","parameters":{"message":"no","remedy":"so"}}\0', "BadValue", "no"),
        (b'{"error":"org.varlink.service.MethodNotFound","parameters":{}}\0', "NotPossible", "MethodNotFound"),
        (b"[]\0", "NotPossible", "its answer is none"),
        (b'{"parameters":[1]}\0', "NotPossible", "its answer is none"),
        (b'{"param', "NotPossible", "its answer is none"),
    ],
)
def test_what_the_level_above_refuses(
    answering: Callable[[bytes], tuple[str, list[bytes]]], reply: bytes, name: str, message: str
) -> None:
    path, _ = answering(reply)
    with pytest.raises(Refusal) as caught:
        above.ask("io.nestrt.Guest.Devices", {}, socket=path)
    assert caught.value.name == name
    assert message in caught.value.message


def test_errno_of_the_level_above(answering: Callable[[bytes], tuple[str, list[bytes]]]) -> None:
    path, _ = answering(
        b'{"error":"io.nestrt.Guest.Refused","parameters":{"message":"no","remedy":"","errno":%d}}\0' % 1
    )
    with pytest.raises(Refusal) as caught:
        above.ask("io.nestrt.Guest.Devices", {}, socket=path)
    assert (caught.value.name, caught.value.errno) == ("Refused", 1)


def test_no_broker_above(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        above.ask("io.nestrt.Guest.Devices", {}, socket=str(tmp_path / "nobody"))
    assert caught.value.name == "NotPossible"
    assert "broker" in caught.value.remedy
    assert not os.path.exists(tmp_path / "nobody")
