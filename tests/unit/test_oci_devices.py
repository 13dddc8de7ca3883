"""Ordered device rules: the last that matches decides, and v1's files and v2's program say the same.

The reference goes through the rules for every right; v1's files are carried out as
security/device_cgroup.c does, and the program is run by the emulator.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.bpf_emulator import reachable, run

from nestrt.controllers.base import Setting
from nestrt.controllers.device_program import build, build_ordered
from nestrt.controllers.oci_devices import TUN, as_allow_list, effective, program, text, v1_settings, with_defaults
from nestrt.errors import HostError, InputError
from nestrt.level.devices import DEFAULT_RULES, EVERYTHING, allowed, parse_rule, subset
from nestrt.oci.model import Device
from nestrt.oci.resources import DeviceRule

NUMBERS = (0, 1, 2)
ASKED = ("r", "w", "rw", "m")
TYPES = {"b": 1, "c": 2}
BITS = {"m": 1, "r": 2, "w": 4}
UNIVERSE = [
    (kind, major, minor, asked)
    for kind in "bc"
    for major in (*NUMBERS, 99)
    for minor in (*NUMBERS, 99)
    for asked in ASKED
]

rule = st.builds(
    DeviceRule,
    st.booleans(),
    st.sampled_from("aabc"),
    st.sampled_from((*NUMBERS, None, None)),
    st.sampled_from((*NUMBERS, None, None)),
    st.sampled_from(("r", "w", "m", "rw", "rm", "wm", "rwm")),
)
rules_of_any_kind = st.lists(rule, max_size=7).map(tuple)


def by_order(rules: tuple[DeviceRule, ...], kind: str, major: int, minor: int, asked: str) -> bool:
    """The specification: for each right the last rule that names it and the node, and no as a beginning."""
    for letter in asked:
        answer = False
        for item in rules:
            names = item.type in ("a", kind) and item.major in (None, major) and item.minor in (None, minor)
            if names and letter in item.access:
                answer = item.allow
        if not answer:
            return False
    return True


class V1Group:
    """devcgroup_update_access() and devcgroup_legacy_check_permission() of security/device_cgroup.c."""

    def __init__(self) -> None:
        self.allows = True
        self.exceptions: dict[tuple[str, int | None, int | None], set[str]] = {}

    def write(self, setting: Setting) -> None:
        allow = setting.file == "devices.allow"
        assert allow or setting.file == "devices.deny"
        if setting.value.startswith("a"):
            self.allows, self.exceptions = allow, {}
            return
        item = parse_rule(setting.value)
        node = (item.type, item.major, item.minor)
        if allow == self.allows:
            # dev_exception_rm() takes from exactly this exception; nothing here needs it.
            raise AssertionError(f"{setting} removes an exception")
        self.exceptions.setdefault(node, set()).update(item.access)

    def answers(self, kind: str, major: int, minor: int, asked: str) -> bool:
        matching = [
            rights
            for (type_, here, there), rights in self.exceptions.items()
            if type_ == kind and here in (None, major) and there in (None, minor)
        ]
        if self.allows:
            return not any(rights & set(asked) for rights in matching)
        return any(set(asked) <= rights for rights in matching)


def by_v1(rules: tuple[DeviceRule, ...]) -> V1Group:
    group = V1Group()
    for setting in v1_settings(rules):
        group.write(setting)
    return group


def verdict(code: bytes, kind: str, major: int, minor: int, asked: str) -> bool:
    return run(code, sum(BITS[letter] for letter in asked) << 16 | TYPES[kind], major, minor)[0] == 1


@settings(max_examples=400, deadline=None)
@given(rules_of_any_kind)
def test_program_and_v1_files_answer_as_the_order_does(rules: tuple[DeviceRule, ...]) -> None:
    code = build_ordered(rules)
    assert reachable(code)
    wanted = {question: by_order(rules, *question) for question in UNIVERSE}
    assert {question: verdict(code, *question) for question in UNIVERSE} == wanted
    if expressible(wanted):
        group = by_v1(rules)
        assert {question: group.answers(*question) for question in UNIVERSE} == wanted
    else:
        with pytest.raises(HostError, match="wildcard"):
            v1_settings(rules)


def expressible(wanted: dict[tuple[str, int, int, str], bool]) -> bool:
    """Whether a wildcard never has more, or never has less, than what lies within it; 99 stands for all others."""
    for answer in (True, False):
        if all(
            wanted[kind, here, there, letter] == answer
            for (kind, major, minor, letter), has in wanted.items()
            if has == answer and len(letter) == 1 and 99 in (major, minor)
            for here in ((*NUMBERS, 99) if major == 99 else (major,))
            for there in ((*NUMBERS, 99) if minor == 99 else (minor,))
        ):
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(rules_of_any_kind)
def test_the_allow_list_says_the_same(rules: tuple[DeviceRule, ...]) -> None:
    listed = as_allow_list(rules)
    if listed is not None:
        assert all(allowed(listed, *question) == by_order(rules, *question) for question in UNIVERSE)
        same = build(listed)
        assert all(verdict(same, *question) == by_order(rules, *question) for question in UNIVERSE)


@given(rules_of_any_kind, rule)
def test_a_last_rule_overrides_all_before(rules: tuple[DeviceRule, ...], last: DeviceRule) -> None:
    code = build_ordered((*rules, last))
    for kind, major, minor, asked in UNIVERSE:
        names = last.type in ("a", kind) and last.major in (None, major) and last.minor in (None, minor)
        if names and set(asked) <= set(last.access):
            assert verdict(code, kind, major, minor, asked) == last.allow


def test_what_engines_send() -> None:
    # podman and runc's own "spec": deny all, then what runc appends.
    rules = with_defaults((DeviceRule(False),))
    listed = as_allow_list(rules)
    assert listed is not None
    assert subset(listed, (*DEFAULT_RULES, TUN)) is None
    usual = tuple(rule for rule in DEFAULT_RULES if (rule.major, rule.minor) != (5, 1))
    assert subset(usual, listed) is None
    assert not allowed(listed, "c", 5, 1, "r"), "the host's console"
    lines = [(setting.file, setting.value) for setting in v1_settings(rules)]
    assert lines[0] == ("devices.deny", "a")
    assert ("devices.allow", "c 1:3 rw") in lines
    assert {setting.field for setting in v1_settings(rules)} == {"linux.resources.devices"}
    # docker --device-cgroup-rule, and a device of the host's.
    more = with_defaults((DeviceRule(False), DeviceRule(True, "b", 8, 0, "rwm")))
    assert ("devices.allow", "b 8:0 rw") in [(setting.file, setting.value) for setting in v1_settings(more)]
    # docker's own list denies /dev/fuse before runc's rule for all mknods: no hole.
    docker = [DeviceRule(True, "c", 1, minor) for minor in (5, 3, 9, 8)] + [DeviceRule(True, "c", 5, 0)]
    fuse = with_defaults((DeviceRule(False), *docker, DeviceRule(True, "c", 5, 1), DeviceRule(False, "c", 10, 229)))
    listed = as_allow_list(fuse)
    assert listed is not None
    assert [allowed(listed, "c", 10, 229, asked) for asked in ("r", "m")] == [False, True]
    assert allowed(listed, "c", 5, 1, "rw")
    # --privileged.
    assert as_allow_list(with_defaults((DeviceRule(True),))) == EVERYTHING
    assert [(s.file, s.value) for s in v1_settings(with_defaults((DeviceRule(True),)))] == [("devices.allow", "a")]
    # Nothing said at all.
    assert as_allow_list(()) == ()
    assert [(s.file, s.value) for s in v1_settings(())] == [("devices.deny", "a")]


def test_all_but_some_is_a_list_of_the_denied_in_v1() -> None:
    rules = (DeviceRule(True), DeviceRule(False, "b", 8, None, "w"), DeviceRule(False, "c", 1, 1, "rwm"))
    assert [(s.file, s.value) for s in v1_settings(rules)] == [
        ("devices.allow", "a"),
        ("devices.deny", "b 8:* w"),
        ("devices.deny", "c 1:1 rwm"),
    ]
    assert as_allow_list(rules) is None


def test_v1_takes_no_hole_in_a_wildcard_and_says_where() -> None:
    rules = (DeviceRule(True, "c", 136, None, "rwm"), DeviceRule(False, "c", 136, 7, "w"))
    with pytest.raises(HostError, match=r"linux\.resources\.devices.*c 136:7") as caught:
        v1_settings(rules)
    assert caught.value.remedy
    code = program(rules)
    assert verdict(code, "c", 136, 7, "r")
    assert not verdict(code, "c", 136, 7, "w")
    assert verdict(code, "c", 136, 8, "rw")


def test_a_document_that_makes_a_usual_path_says_itself_what_it_may_do_with_it() -> None:
    plain, own = with_defaults(()), with_defaults((), (Device("/dev/null", "c", 1, 3), Device("/dev/sda", "b", 8, 0)))
    assert len(plain) == len(DEFAULT_RULES)
    assert [text(item) for item in plain if item not in own] == ["allow c 1:3 rwm"]
    assert as_allow_list((DeviceRule(False), *plain)) is not None


def test_minus_one_is_any_number() -> None:
    assert effective((DeviceRule(True, "c", 1, -1, "r"),)) == effective((DeviceRule(True, "c", 1, None, "r"),))
    assert text(DeviceRule(False, "a", -1, None, "rwm")) == "deny a *:* rwm"


@pytest.mark.parametrize(
    "wrong",
    [
        DeviceRule(True, "u", 1, 3, "rwm"),
        DeviceRule(True, "", 1, 3, "rwm"),
        DeviceRule(True, "c", 4096, 3, "rwm"),
        DeviceRule(True, "c", 1, 1 << 20, "rwm"),
        DeviceRule(True, "c", -2, 3, "rwm"),
        DeviceRule(False, "c", 1, 3, ""),
        DeviceRule(False, "c", 1, 3, "rx"),
    ],
)
def test_impossible_rules_are_refused(wrong: DeviceRule) -> None:
    for use in (effective, v1_settings, as_allow_list, program):
        with pytest.raises(InputError, match=r"linux\.resources\.devices"):
            use((wrong,))


def test_a_document_of_many_devices_is_quick_and_fits() -> None:
    rules = (DeviceRule(False), *(DeviceRule(True, "bc"[n % 2], n % 40, n, "rw") for n in range(500)))
    code = program(with_defaults(rules))
    assert len(code) // 8 < 4096
    assert verdict(code, "b", 2, 2, "rw")
    assert not verdict(code, "b", 2, 3, "rw")
