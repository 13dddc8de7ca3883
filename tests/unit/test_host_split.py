"""The plan of the classic split: weights, limits, what is remembered, what goes back."""

from __future__ import annotations

import pytest

from nestrt.cli._host_status import counted_as_system, elsewhere
from nestrt.errors import HostError, InputError, StateError
from nestrt.plan.facts import Hierarchy
from nestrt.plan.host_split import (
    Group,
    Keep,
    Kept,
    MoveTasks,
    Split,
    State,
    format_kept,
    guests_weight,
    init_steps,
    parse_kept,
    reset_steps,
    shares,
    system_alone,
)
from nestrt.plan.host_steps import SetFile
from nestrt.record import replace

V2 = Hierarchy("", 2, ("cpu", "memory"), "", "/cg")
CPU = Hierarchy("cpu", 1, ("cpu",), "cpu", "/cg/cpu")
MEMORY = Hierarchy("memory", 1, ("memory",), "memory", "/cg/memory")
GIB = 1 << 30


def state_v2(*groups: Group, threads: int = 0) -> State:
    return State(V2, groups, V2, groups, threads, threads, 4.0, 8 * GIB, {})


def state_v1(*groups: Group, threads: int = 0) -> State:
    return State(CPU, groups, MEMORY, (), threads, threads, 4.0, 8 * GIB, {})


def values(state: State, split: Split) -> dict[str, str]:
    return {f"{s.group}/{s.file}": s.value for s in init_steps(state, split) if isinstance(s, SetFile)}


def test_the_guests_weigh_nine_times_as_much_as_the_heaviest_group_of_the_system() -> None:
    systemd = (Group("/system.slice", 100), Group("/user.slice", 100), Group("/init.scope", 100))
    assert values(state_v2(*systemd), Split(0.1)) == {"/nestrt/cpu.weight": "900"}
    assert values(state_v2(Group("/a", 300), Group("/b", 50)), Split(0.25)) == {"/nestrt/cpu.weight": "900"}
    assert values(state_v1(threads=7), Split(0.1)) == {"/nestrt/cpu.shares": "9216"}
    two = Split(0.1, ("/nestrt", "/machine.slice"))
    assert values(state_v2(Group("/machine.slice", 100), Group("/system.slice", 100)), two) == {
        "/nestrt/cpu.weight": "450",
        "/machine.slice/cpu.weight": "450",
    }


def test_limits() -> None:
    hard = Split(0.1, hard=True, memory=2 * GIB)
    assert values(state_v2(), hard) == {
        "/nestrt/cpu.weight": "900",
        "/nestrt/cpu.max": "360000 100000",
        "/nestrt/memory.max": str(6 * GIB),
    }
    assert values(state_v1(), hard) == {
        "/nestrt/cpu.shares": "9216",
        "/nestrt/cpu.cfs_period_us": "100000",
        "/nestrt/cpu.cfs_quota_us": "360000",
        "/nestrt/memory.limit_in_bytes": str(6 * GIB),
    }
    moved = values(state_v2(threads=3), replace(hard, move=True))
    assert (moved["/system/cpu.weight"], moved["/system/memory.low"]) == ("100", str(2 * GIB))


def test_what_was_there_is_remembered_before_and_once() -> None:
    steps = init_steps(state_v2(), Split(0.1, move=True))
    kinds = [type(step).__name__ for step in steps]
    assert kinds == [
        *("EnableControllers", "MakeGroup", "Keep", "SetFile", "MakeGroup", "Keep", "SetFile", "MoveTasks")
    ]
    kept = Kept("guests", {"cpu.weight": "77", "cpu.max": "max 100000"}, made=True)
    before = state_v2(Group("/nestrt", 900, kept))
    steps = init_steps(before, Split(0.2))
    keeps = [step.kept for step in steps if isinstance(step, Keep)]
    assert keeps[0].was == {"cpu.weight": "77", "cpu.max": "max 100000"}
    assert keeps[-1].was == {"cpu.weight": "77"}
    assert values(before, Split(0.2)) == {"/nestrt/cpu.weight": "400", "/nestrt/cpu.max": "max 100000"}
    # another parent: the first has back what it had
    other = values(before, Split(0.1, ("/docker",)))
    assert other == {"/docker/cpu.weight": "693", "/nestrt/cpu.weight": "77", "/nestrt/cpu.max": "max 100000"}
    assert [step.describe() for step in reset_steps(before)] == [
        "write '77' to /cg/nestrt/cpu.weight",
        "write 'max 100000' to /cg/nestrt/cpu.max",
        "remember nothing on /cg/nestrt",
        "remove /cg/nestrt if it is empty",
    ]
    system = Group("/system", 100, Kept("system", {}, made=True))
    assert MoveTasks(V2, "/system", "/") in reset_steps(state_v2(system))
    assert parse_kept(format_kept(kept)) == kept
    for bad in ("", "{}", "[]", '{"v":1}', '{"v":1,"role":"x","was":{"../x":"1"},"made":true,"system":""}'):
        assert parse_kept(bad) is None


def test_shares_as_they_are() -> None:
    state = state_v2(Group("/system", 100), Group("/nestrt", 900), threads=2)
    assert shares(state) == {"/system": 100 / 1200, "/nestrt": 900 / 1200, "/": 200 / 1200}
    assert system_alone(state, {"/nestrt"}) == {"/system": 0.1, "/": 0.1}


@pytest.mark.parametrize(
    ("split", "state", "kind", "words"),
    [
        (Split(0.001), state_v2(), InputError, "give at least"),
        (Split(0.1, ("/a/b",)), state_v2(), InputError, "right below the root"),
        (Split(0.1, ("/..",)), state_v2(), InputError, "right below the root"),
        (Split(0.1, ("/system",)), state_v2(), InputError, "the system's and the guests'"),
        (Split(0.1, ("/a", "/b"), hard=True), state_v2(), InputError, "name one parent"),
        (Split(0.1, memory=9 * GIB), state_v2(), InputError, "guests need some"),
        (Split(0.1, memory=GIB), replace(state_v2(), usage={"/nestrt": 8 * GIB}), StateError, "use 8589934592"),
        (Split(0.1, move=True), replace(state_v2(), systemd=True), InputError, "systemd manages"),
        (Split(0.1), replace(state_v2(), cpu=None), HostError, "cpu controller"),
    ],
)
def test_what_cannot_be(split: Split, state: State, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        init_steps(state, split)
    with pytest.raises(StateError):
        reset_steps(state)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 1 / 3, 0.5, 0.9, 0.98])
@pytest.mark.parametrize(("version", "system"), [(1, 1024), (2, 100)])
def test_the_share_comes_out(share: float, version: int, system: int) -> None:
    weight = guests_weight(share, system, version, 1)
    assert system / (system + weight) == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize(
    ("paths", "parents", "found", "told"),
    [
        ([], ["/nestrt"], [], None),
        (["/nestrt/a", "/nestrt/deep/b"], ["/nestrt"], [], None),
        (["/nestrt/a", "/docker/b"], ["/docker", "/nestrt"], [], None),
        (
            ["/docker/b", "/libpod_parent/libpod-c", "/docker/d", "/nestrt/a"],
            ["/nestrt"],
            ["/docker", "/libpod_parent"],
            "guests in /docker, /libpod_parent count as the system: nestrt host init "
            "--guests /nestrt --guests /docker --guests /libpod_parent, with its other options as they were, "
            "divides so",
        ),
        (
            ["/system.slice/docker-b.scope", "/alone"],
            ["/nestrt"],
            ["/alone", "/system.slice"],
            "guests in /alone, /system.slice count as the system: start them below a group of their own, then name it "
            "to nestrt host init --guests",
        ),
        (
            ["/alone", "/docker/b"],
            ["/x"],
            ["/alone", "/docker"],
            "--guests /x --guests /docker, with its other options as they were, divides so; guests in /alone",
        ),
        (["/a\x1b\nb/c"], ["/nestrt"], ["/a\x1b\nb"], r"guests in /a\x1b\nb count"),
    ],
)
def test_guests_that_are_weighed_as_the_system(
    paths: list[str], parents: list[str], found: list[str], told: str | None
) -> None:
    assert elsewhere(paths, parents) == found
    line = counted_as_system(paths, parents)
    assert told in line if told else line == ""
    assert "\n" not in line
