"""Rules as text: what is a rule, whom it fits, and that no name of anybody's leads out of the guest's groups."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.broker import guest_names
from nestrt.broker.rules_text import (
    BadRule,
    Part,
    Rule,
    Subject,
    expand,
    first,
    fits,
    names,
    numbered,
    parse,
    pattern,
    safe,
    templates,
)
from nestrt.guest.client import GuestError, parse_group

ALICE = Subject(pid=7, uid=1000, gid=100, groups=frozenset({100, 10}), name="postgres", program="/usr/bin/postgres")


def one(text: str) -> Rule:
    return parse([text])[0]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("1000 cpu web", Rule(1000, False, "", (Part(("cpu",), "/web"),))),
        ("alice:sshd *  /a/b/", Rule("alice", False, "sshd", (Part((), "/a/b"),))),
        ("@wheel\tcpu,memory\tweb", Rule("wheel", True, "", (Part(("cpu", "memory"), "/web"),))),
        ("@10 blkio web", Rule(10, True, "", (Part(("io",), "/web"),))),
        ("* * users/%U", Rule(None, False, "", (Part((), "/users/%U"),))),
        ("*:* * x", Rule(None, False, "", (Part((), "/x"),))),
        ('alice:"Web Content" * x', Rule("alice", False, "Web Content", (Part((), "/x"),))),
        ('"alice:Web Content" * x', Rule("alice", False, "Web Content", (Part((), "/x"),))),
        ("alice:/opt/a:b * x", Rule("alice", False, "/opt/a:b", (Part((), "/x"),))),
        ("jürgen cpu,cpu,* web # a remark", Rule("jürgen", False, "", (Part((), "/web"),))),
        (r"* * a\%b", Rule(None, False, "", (Part((), r"/a\%b"),))),
    ],
)
def test_forms(text: str, rule: Rule) -> None:
    assert one(text) == rule


def test_continued_lines_and_comments() -> None:
    found = parse(["", "# nothing", "alice cpu web", "  % memory,pids  big", "%  *  rest", "   ", "* * other"])
    assert found == [
        Rule("alice", False, "", (Part(("cpu",), "/web"), Part(("memory", "pids"), "/big"), Part((), "/rest"))),
        Rule(None, False, "", (Part((), "/other"),)),
    ]
    assert names(found) == ({"alice"}, set())
    assert names(parse(["@wheel * x", "@10 * x", "bob * x", "7 * x"])) == ({"bob"}, {"wheel"})


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["alice web"], "2 words"),
        (["alice cpu web ignore"], "4 words"),
        (["% cpu web"], "none before"),
        (["alice: cpu web"], "no process"),
        (["@ cpu web"], "names no user"),
        (["%u cpu web"], "names no user"),
        (["a/b cpu web"], "names no user"),
        (["4294967295 cpu web"], "no user's number"),
        (["99999999999999999999 cpu web"], "no user's number"),
        (["* * ../x"], "leads elsewhere"),
        (["* * a/../../x"], "leads elsewhere"),
        (["* * a/./b"], "leads elsewhere"),
        (["* * a//b"], "an empty name"),
        (["* * cgroup.procs"], "looks like a file"),
        (["* * users/%x"], "stands for nothing"),
        (["* * users/%%"], "stands for nothing"),
        (["* * users/%"], "stands for nothing"),
        (["* * " + "x" * 256], "255 bytes"),
        (['alice:"x * y'], "quote"),
        (["* * x\n* * y"], "printed"),
        (["* * x\r"], "printed"),
        (["* * \ud800"], "printed"),
        (["* * x\0"], "printed"),
        (["* * \u202etxt"], "printed"),
        (["* * x"] * 257, "more than 256 lines"),
        (["* * " + "é" * 100] * 100, "16384 bytes"),
    ],
)
def test_what_is_no_rule(lines: list[str], reason: str) -> None:
    with pytest.raises(BadRule) as error:
        parse(lines)
    assert reason in error.value.reason
    assert error.value.remedy
    assert "\n" not in error.value.reason


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("1000 * x", True), ("1001 * x", False), ("0 * x", False), ("* * x", True),
        ("@100 * x", True), ("@10 * x", True), ("@1000 * x", False),
        ("1000:postgres * x", True), ("1000:postgre * x", False), ("1000:postgres1 * x", False), ("*:post* * x", True),
        ("*:/usr/bin/postgres * x", True), ("*:/usr/bin/* * x", True), ("*:/usr/bin * x", False),
        ("*:usr/bin/postgres * x", False), ("1001:postgres * x", False),
    ],
)  # fmt: skip
def test_whom_a_rule_fits(text: str, fit: bool) -> None:
    assert fits(one(text), ALICE) is fit


def test_a_long_name_is_cut_as_the_kernel_cuts_it() -> None:
    subject = Subject(1, 0, 0, frozenset(), "systemd-journal", "")
    assert fits(one("*:systemd-journald * x"), subject)
    assert not fits(one("*:systemd-journa * x"), subject)
    assert fits(one("*:ééééééé* * x"), Subject(1, 0, 0, frozenset(), "ééééééé\udcc3", ""))


def test_the_first_that_fits_holds() -> None:
    rules = parse(["1001 * a", "1000:sshd * b", "@10 * c", "1000 * d", "* * e"])
    found = first(rules, ALICE)
    assert found is not None
    assert found.parts[0].destination == "/c"
    assert first(rules[:2], ALICE) is None


def test_names_become_numbers() -> None:
    rules = parse(["alice * a", "@wheel * b", "nobody * c", "7 * d"])
    found = numbered(rules, {"alice": 1000, "wheel": 5}, {"wheel": 10})
    assert [(rule.user, rule.is_group) for rule in found] == [(1000, False), (10, True), (7, False)]


def test_templates() -> None:
    text = r"/%u/%U/%g/%G/%p/%P/a%pb/\%"
    assert expand(text, ALICE, {1000: "alice"}, {100: "staff"}) == "/alice/1000/staff/100/postgres/7/apostgresb/%"
    assert expand(text, ALICE, {}, {}) == "/1000/1000/100/100/postgres/7/apostgresb/%"
    assert templates(parse([rf"* * {text}", "* * x"])) == set("uUgGpP")
    assert templates(parse([r"* * a\%u"])) == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a/b", "a_b"), ("..", "_."), (".", "_"), ("", "_"), ("/", "_"), ("../../x", "_._.._x"), ("a\nb\0", "a_b_"),
        ("\udcff", "_"), ("cpu.max", "cpu_max"), ("cgroup.procs", "cgroup_procs"), ("john.doe", "john.doe"), ("ä", "ä"),
    ],
)  # fmt: skip
def test_what_is_made_of_a_name(text: str, found: str) -> None:
    assert safe(text, ["cpu"]) == found


ODD = ["..", ".", "/", "../..", "cpu.max", "x/../..", "\udc2f"]
TEMPLATES = ["%u", "%g", "%p", "%P", "%U", "%G", r"\%"]
anything = st.text(st.characters(), max_size=20) | st.sampled_from(ODD)
pieces = st.text(st.sampled_from("ab./"), max_size=4) | st.sampled_from(TEMPLATES)
destinations = st.lists(pieces, max_size=6).map("".join)


@given(destinations, anything, anything, anything)
def test_no_destination_leads_out(destination: str, user: str, group: str, process: str) -> None:
    """Whatever users, groups and processes are called, what a rule leads to is a group below the root, or refused."""
    try:
        rule = parse([f"* * {destination}"])[0]
    except BadRule:
        return
    subject = Subject(1, 5, 6, frozenset(), process, "")
    text = expand(rule.parts[0].destination, subject, {5: user}, {6: group}, ["cpu", "memory"])
    try:
        parse_group(text, "place", ["cpu", "memory"])
    except GuestError:
        return
    parts = text.split("/")[1:]
    assert text.startswith("/")
    assert not {".", ".."} & set(parts)
    assert len(parts) == len(rule.parts[0].destination.split("/")[1:])
    assert pattern(rule.parts[0].destination).fits(text) or "" in parts


@given(st.lists(st.text(st.characters(), max_size=60), max_size=5))
def test_any_text_is_rules_or_refused(lines: list[str]) -> None:
    try:
        rules = parse(lines)
    except BadRule:
        return
    for rule in rules:
        fits(rule, ALICE)
        for part in rule.parts:
            assert parse_group(expand(part.destination, ALICE, {}, {}), "place")


def test_patterns() -> None:
    assert pattern("/users/%U").fits("/users/1000")
    assert not pattern("/users/%U").fits("/users/1000/deeper")
    assert not pattern("/users/%U").fits("/users/")
    assert pattern(r"/a.b\%").fits("/a.b%")
    assert not pattern("/a.b").fits("/axb")
    assert pattern("/%p").fits("/a\nb")


shapes = st.lists(st.sampled_from(["a", "b", "ab", "/", "\\%", "%U", "%u", "%p"]), max_size=9).map("".join)


@given(shapes, st.text("ab%/", max_size=9))
def test_a_pattern_is_a_regular_expression(shape: str, text: str) -> None:
    spelled = re.sub(r"%[Uup]|\\%", lambda found: "[^/]+" if found[0] != r"\%" else "%", shape)
    assert pattern("/" + shape).fits("/" + text) is bool(re.fullmatch("/" + spelled, "/" + text))


@pytest.mark.parametrize(
    ("shape", "length"), [("%U" * 12, 31), ("%Ua" * 10, 38), ("%U" * 125, 250), ("%Ua" * 84, 250), ("%Ua/" * 9, 250)]
)
def test_no_rule_takes_long_to_compare(shape: str, length: int) -> None:
    one = pattern(parse([f"* * {shape}!"])[0].parts[0].destination)
    began = time.thread_time()
    assert not one.fits("/" + "a" * length)
    assert not one.fits("/" + "aa/" * 9 + "a" * length)
    assert time.thread_time() - began < 0.5


# /etc/passwd and /etc/group, whatever is in them


def test_passwd() -> None:
    content = b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000\nalice:x:1\n:x:5:\nbad\nx:y:-1:\nz:y:99999999999:"
    content += b"\n\xff:x:7:"
    assert guest_names.parse(content) == {"root": 0, "alice": 1000, "\udcff": 7}


@given(st.binary(max_size=300))
def test_any_content_of_passwd(content: bytes) -> None:
    assert all(type(number) is int and number >= 0 for number in guest_names.parse(content).values())
