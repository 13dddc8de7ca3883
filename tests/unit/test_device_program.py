"""Device programs give the verdicts that the rules give, and the kernel would take them."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.bpf_emulator import Rejected, reachable, run

from nestrt.controllers.device_program import MAX_INSTRUCTIONS, build
from nestrt.errors import InputError
from nestrt.level.devices import DEFAULT_RULES, DeviceRule, allowed

TYPES = {"b": 1, "c": 2}
BITS = {"m": 1, "r": 2, "w": 4}
ASKED = ["r", "w", "rw", "m"]  # what kernels ask for
NEVER_ASKED = ["rm", "wm", "rwm"]
ACCESSES = ["", *ASKED, *NEVER_ASKED]
HIGHEST_MAJOR, HIGHEST_MINOR = 4095, (1 << 20) - 1


def verdict(code: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    requested = sum(BITS[letter] for letter in access)
    answer, _steps = run(code, requested << 16 | TYPES[kind], major, minor)
    return answer == 1


def around(values: list[int | None], highest: int) -> list[int]:
    """Every number at which an answer can change, and its neighbours."""
    near = {0, highest}
    for value in values:
        if value is not None:
            near |= {value - 1, value, value + 1}
    return sorted(n for n in near if 0 <= n <= highest)


def majors(highest: int) -> st.SearchStrategy[int | None]:
    """Few numbers, so that rules meet, and the ends of the range."""
    return st.none() | st.integers(0, 4) | st.sampled_from([highest - 1, highest]) | st.integers(0, highest)


rules_of_any_kind = st.lists(
    st.builds(
        DeviceRule,
        st.sampled_from("abc"),
        majors(HIGHEST_MAJOR),
        majors(HIGHEST_MINOR),
        st.sampled_from([a for a in ACCESSES if a]),
    ),
    max_size=8,
).map(tuple)


@settings(max_examples=50, deadline=None)
@given(rules_of_any_kind)
def test_every_verdict_is_the_rules(rules: tuple[DeviceRule, ...]) -> None:
    """Brute force over the corners: the function is constant between them."""
    code = build(rules)
    assert reachable(code)
    for kind in TYPES:
        for major in around([r.major for r in rules], HIGHEST_MAJOR):
            for minor in around([r.minor for r in rules], HIGHEST_MINOR):
                for access in ASKED:
                    expected = allowed(rules, kind, major, minor, access)
                    assert verdict(code, kind, major, minor, access) == expected, (kind, major, minor, access)
                for access in NEVER_ASKED:
                    more = verdict(code, kind, major, minor, access)
                    assert not more or allowed(rules, kind, major, minor, access), (kind, major, minor, access)


@settings(deadline=None)
@given(rules_of_any_kind, st.data())
def test_order_and_duplicates_do_not_matter(rules: tuple[DeviceRule, ...], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rules + rules))
    assert build(tuple(shuffled)) == build(rules)


def test_no_rules_allow_nothing() -> None:
    code = build(())
    assert not any(verdict(code, kind, 1, 3, access) for kind in TYPES for access in ACCESSES)


def test_all_devices() -> None:
    code = build((DeviceRule("a", None, None, "rwm"),))
    assert all(verdict(code, kind, 8, 1, access) for kind in TYPES for access in ACCESSES)
    # Neither an unknown type nor an unknown right is anybody's.
    for access_type in (0, 3, 4, 0xFFFF, 8 << 16 | 2, 64 << 16 | 2, 0xFFFF << 16 | 1):
        assert run(code, access_type, 8, 1)[0] == 0


def test_default_rules() -> None:
    code = build(DEFAULT_RULES)
    assert verdict(code, "c", 1, 3, "rw")
    assert verdict(code, "c", 136, 17, "rw")
    assert verdict(code, "b", 8, 0, "m"), "making a node is no harm: opening it is refused"
    assert not verdict(code, "b", 8, 0, "r")
    assert not verdict(code, "c", 1, 1, "r"), "/dev/mem"
    assert not verdict(code, "c", 10, 200, "rw"), "/dev/net/tun"
    assert len(code) // 8 < 100


def test_rules_within_others_and_neighbours_cost_nothing() -> None:
    whole = (DeviceRule("c", 4, None, "rwm"),)
    assert build(whole + tuple(DeviceRule("c", 4, minor, "r") for minor in range(500))) == build(whole)
    run_of_minors = build(tuple(DeviceRule("c", 4, minor, "rw") for minor in range(64, 128)))
    assert len(run_of_minors) == len(build((DeviceRule("c", 4, 64, "rw"),)))


def test_hundreds_of_rules_take_few_steps() -> None:
    rules = tuple(DeviceRule("bc"[n % 2], 2 + n // 40, 3 * n, "rw" if n % 3 else "r") for n in range(800))
    start = time.process_time()
    code = build(rules)
    assert time.process_time() - start < 2
    assert len(code) // 8 < 3 * len(rules)
    for rule in rules:
        for minor in (rule.minor - 1, rule.minor, rule.minor + 1):
            if minor < 0:
                continue
            answer, steps = run(code, 2 << 16 | TYPES[rule.type], rule.major, minor)
            assert answer == allowed(rules, rule.type, rule.major, minor, "r")
            assert steps < 40


def test_too_many_rules_are_refused() -> None:
    rules = tuple(DeviceRule("c", 5, 2 * n, "rw") for n in range(5000))
    with pytest.raises(InputError, match=rf"5000 device rules.*the kernel takes {MAX_INSTRUCTIONS}"):
        build(rules)


@pytest.mark.parametrize("rule", [("c", 4096, None, "r"), ("b", 1, 1 << 20, "r"), ("b", 1, -1, "r")])
def test_impossible_numbers_are_refused(rule: tuple[str, int, int | None, str]) -> None:
    with pytest.raises(InputError, match="numbers are 0 to"):
        build((DeviceRule(*rule),))


def instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, value)


YES = instruction(0xB7, 0, value=1)
EXIT = instruction(0x95)


@pytest.mark.parametrize(
    "code",
    [
        b"",
        YES,  # runs off the end
        YES + b"\0",
        EXIT,  # no answer
        instruction(0xB7, 0, value=2) + EXIT,
        instruction(0x05, offset=1) + EXIT,
        YES + instruction(0x05, offset=-2) + EXIT,
        instruction(0xBF, 0, 7) + EXIT,  # a register nobody wrote
        instruction(0xBF, 0, 1) + EXIT,  # a pointer as the answer
        instruction(0x61, 0, 1, offset=2) + EXIT,
        instruction(0x61, 0, 1, offset=12) + EXIT,
        instruction(0x35, 3, value=1) + YES + EXIT,
        instruction(0x85, value=1) + YES + EXIT,  # a helper call
        YES + instruction(0x77, 0, value=64) + EXIT,
    ],
)
def test_the_emulator_is_strict(code: bytes) -> None:
    with pytest.raises(Rejected):
        run(code, 0, 0, 0)
