"""Limits in marks: what is written is read back, and what a guest forged is bounded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.errors import InputError
from nestrt.level.devices import DEFAULT_RULES, DeviceRule
from nestrt.level.limits import IoLimit, Limits, format_io, from_mark, over, parse_io, parse_ios
from nestrt.level.units import MAX

amount = st.none() | st.just(MAX) | st.integers(min_value=0, max_value=2**63 - 1)
rate = st.none() | st.just(MAX) | st.integers(min_value=1, max_value=2**63 - 1)
numbers = st.none() | st.frozensets(st.integers(min_value=0, max_value=100), min_size=1)
word = st.text(st.sampled_from("abcxyz019_-"), min_size=1, max_size=12)
io_limit = st.builds(IoLimit, st.sampled_from(["8:0", "259:3"]), rate, rate, rate, rate).filter(
    lambda item: any(getattr(item, key) is not None for key in ("rbps", "wbps", "riops", "wiops"))
)


def pairs(keys: st.SearchStrategy[str], values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.dictionaries(keys, values, max_size=3).map(lambda found: tuple(found.items()))


limits = st.builds(
    Limits,
    memory=amount,
    swap=amount,
    cpus=numbers,
    mems=numbers,
    cpu_quota=st.none() | st.just(MAX) | st.integers(min_value=1000, max_value=10**9),
    cpu_weight=st.none() | st.integers(min_value=1, max_value=10_000),
    pids=st.none() | st.just(MAX) | st.integers(min_value=1, max_value=4_194_304),
    io=st.lists(io_limit, max_size=2, unique_by=lambda item: item.device).map(tuple),
    devices=st.sampled_from([None, (), DEFAULT_RULES, (DeviceRule("c", 10, 229, "rw"),)]),
    hugetlb=pairs(st.sampled_from(["2MB", "1GB", "64KB"]), st.integers(min_value=-1, max_value=2**50)),
    rdma=pairs(word, st.sampled_from(["hca_handle=2", "hca_handle=2 hca_object=max"])),
    misc=pairs(word, st.sampled_from(["max", "0", "12"])),
    net_cls=st.none() | st.integers(min_value=0, max_value=2**32 - 1),
    net_prio=pairs(word, st.integers(min_value=0, max_value=2**32 - 1)),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(limits)
def test_mark_round_trip(value: Limits) -> None:
    assert from_mark(json.loads(json.dumps(value.to_mark()))) == value


def test_nothing_asked_is_an_empty_mark() -> None:
    assert Limits().to_mark() == {}
    assert from_mark({}) == Limits()
    assert from_mark({"devices": []}).devices == ()


@given(st.dictionaries(st.sampled_from(Limits.FIELDS) | st.text(max_size=8), json_values, max_size=6))  # type: ignore[attr-defined]
def test_a_forged_mark_raises_input_errors_only(value: dict[str, object]) -> None:
    errors: list[InputError] = []
    collected = from_mark(value, "mark of web", errors)
    assert isinstance(collected, Limits)
    assert all(str(error).isprintable() and "mark of web" in str(error) for error in errors)
    if errors:
        with pytest.raises(InputError):
            from_mark(value, "mark of web")
    else:
        assert from_mark(value) == collected


@pytest.mark.parametrize(
    "forged",
    [
        {"memory": True},
        {"memory": "512M"},
        {"memory": 2**63},
        {"memory": -2},
        {"cpus": "0-99999999"},
        {"cpus": ["0"]},
        {"cpu_quota": 0},
        {"cpu_weight": 0},
        {"io": ["8:0 rbps=1M"] * 1025},
        {"io": "8:0 rbps=1M"},
        {"devices": ["c 1:3 rwm"] * 2000},
        {"hugetlb": {"2MB/../x": 1}},
        {"hugetlb": {"": 1}},
        {"misc": {"a b": "1"}},
        {"misc": {"sev": "1 2"}},
        {"net_prio": {"eth0": -1}},
        {"net_prio": {"eth0\n": 1}},
        {"rdma": {"mlx": "hca_handle=x"}},
        {"rdma": {f"d{n}": "hca_handle=1" for n in range(1025)}},
    ],
)
def test_a_forged_mark_is_refused(forged: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        from_mark(forged, "mark of web")
    assert next(iter(forged)) in caught.value.obj
    assert len(str(caught.value)) < 500


@given(io_limit)
def test_io_round_trip(item: IoLimit) -> None:
    assert parse_io(format_io(item)) == item


def test_io_is_read_as_io_max_spells_it() -> None:
    assert parse_io("8:0 rbps=1M wbps=2M riops=100 wiops=max") == IoLimit("8:0", 2**20, 2**21, 100, MAX)
    assert parse_io(" 08:00  wiops=1 ") == IoLimit("8:0", wiops=1)


@pytest.mark.parametrize(
    "text", ["", "8:0", "sda rbps=1", "8 rbps=1", "8:0:0 rbps=1", "8:0 rbps", "8:0 rbps=", "8:0 bps=1", "8:0 rbps=0",
             "8:0 rbps=1 rbps=2", "8:0 rbps=1,wbps=1", "8:x rbps=1"]
)  # fmt: skip
def test_io_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_io(text)
    assert caught.value.remedy


def test_a_device_has_one_line() -> None:
    with pytest.raises(InputError, match="8:0"):
        parse_ios(["8:0 rbps=1", "8:0 wbps=1"])


def test_flags_replace_what_the_file_says_field_by_field() -> None:
    file = Limits(memory=100, pids=5, io=(IoLimit("8:0", rbps=1), IoLimit("8:16", rbps=1)), devices=DEFAULT_RULES)
    flags = Limits(memory=MAX, io=(IoLimit("8:0", wbps=2),), devices=())
    assert over(file, flags) == Limits(
        memory=MAX, pids=5, io=(IoLimit("8:16", rbps=1), IoLimit("8:0", wbps=2)), devices=()
    )
    assert over(file, Limits()) == file
    assert over(Limits(), file) == file
