"""Sizes, CPU lists, quotas, counts, names and id ranges: what is read, what is written, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.errors import InputError
from nestrt.level import units
from nestrt.level.units import MAX


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 65_536),
        ("512M", 536_870_912),
        ("512m", 536_870_912),
        ("512MiB", 536_870_912),
        ("512Mi", 536_870_912),
        ("2G", 2**31),
        ("1T", 2**40),
        (" 1G\n", 2**30),
        ("max", MAX),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_size_is_read(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "M", "-1", "+1", "1.5G", "12Q", "1 G", "1KB", "1iB", "1i", "0x10", "1_000", "٣", "MAX", "1MM", "8388608T",
     "9223372036854775808", "9" * 5000, "1M\n1"],
)  # fmt: skip
def test_size_is_refused_with_its_text_and_a_remedy(text: str) -> None:
    with pytest.raises(InputError) as caught:
        units.parse_size(text)
    assert f'"{text[:20]}'.splitlines()[0] in caught.value.obj
    assert caught.value.remedy
    assert caught.value.status == 2


@given(st.integers(min_value=-1, max_value=2**63 - 1))
def test_size_round_trip(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@given(
    st.integers(min_value=1, max_value=2**12), st.sampled_from([(0, ""), (10, "K"), (20, "M"), (30, "G"), (40, "T")])
)
def test_size_is_written_short(number: int, unit: tuple[int, str]) -> None:
    text = units.format_size(number << unit[0])
    assert len(text) <= len(f"{number}{unit[1]}")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0", {0}),
        ("0-1,3", {0, 1, 3}),
        ("3,0-1", {0, 1, 3}),
        ("1,1,0-2", {0, 1, 2}),
        (" 0 , 2 \n", {0, 2}),
        ("8191", {8191}),
    ],
)
def test_cpu_list_is_read(text: str, numbers: set[int]) -> None:
    assert units.parse_cpus(text) == numbers


@pytest.mark.parametrize(
    "text",
    ["", ",", "0,", "a", "0-", "-1", "1-0", "0-8192", "0-99999999999999999999", "0--1", "0-1-2", "0x1", "1.0", "0 1"],
)
def test_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        units.parse_cpus(text)
    assert caught.value.remedy


def test_backward_cpu_range_says_how_to_write_it() -> None:
    with pytest.raises(InputError, match="write 1-3"):
        units.parse_cpus("3-1")


@given(st.frozensets(st.integers(min_value=0, max_value=8191), min_size=1))
def test_cpu_list_round_trip(numbers: frozenset[int]) -> None:
    assert units.parse_cpus(units.format_cpus(numbers)) == numbers


def test_cpu_list_is_written_in_runs() -> None:
    assert units.format_cpus(frozenset({7, 0, 1, 2, 4, 5})) == "0-2,4-5,7"
    assert units.format_cpus(frozenset()) == ""


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("1.5", 150_000),
        ("0.25", 25_000),
        ("2", 200_000),
        ("0.01", 1000),
        ("max", MAX),
        ("1.000009", 100_000),
        ("8192", 819_200_000),
    ],
)
def test_quota_is_read(text: str, quota: int) -> None:
    assert units.parse_quota(text) == quota


@pytest.mark.parametrize(
    "text", ["", "0", "0.001", "-1", "1.", ".5", "1,5", "nan", "inf", "1e3", "8193", "1.5.5", "200%"]
)
def test_quota_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        units.parse_quota(text)
    assert caught.value.remedy


@given(st.integers(min_value=1000, max_value=819_200_000) | st.just(MAX))
def test_quota_round_trip(quota: int) -> None:
    assert units.parse_quota(units.format_quota(quota)) == quota


def test_weights_and_counts() -> None:
    assert [units.parse_weight(text) for text in ("1", "100", "10000")] == [1, 100, 10_000]
    assert [units.parse_count(text) for text in ("1", "4194304", "max")] == [1, 4_194_304, MAX]
    for text in ("0", "10001", "max", "", "x"):
        with pytest.raises(InputError):
            units.parse_weight(text)
    for text in ("0", "4194305", "-1", "", "1.5", "1K"):
        with pytest.raises(InputError):
            units.parse_count(text)


@pytest.mark.parametrize("name", ["a", "0", "web", "Web-1.2_x", "a" * 64, "a..b"])
def test_name_is_taken(name: str) -> None:
    assert units.parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../x", "/", "-x", "_x", "a\n", "a b", "a\x00", "ä", "a" * 65, "a" * 300, "a\x1b[2J", "a:b"],
)
def test_name_is_refused_in_one_line_that_shows_nothing_a_terminal_obeys(name: str) -> None:
    with pytest.raises(InputError) as caught:
        units.parse_name(name)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 300
    assert "letters" in caught.value.remedy


@given(st.text(max_size=100))
def test_names_are_safe_path_components(name: str) -> None:
    try:
        units.parse_name(name)
    except InputError:
        return
    assert name.isascii()
    assert "/" not in name
    assert name not in (".", "..")
    assert 1 <= len(name) <= 64
    assert not set(name) - units._LETTERS - set("_.-")


@pytest.mark.parametrize("text", ["", "0:1", "0:1:0", "a:b:c", "0:0:4294967296", "4294967295:0:1", "0:1:2:3", "-1:0:1"])
def test_id_range_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        units.parse_id_range(text)
    assert caught.value.remedy


def test_id_range_is_read() -> None:
    assert units.parse_id_range("0:100000:65536") == (0, 100_000, 65_536)
    assert units.parse_id_range("0:0:4294967295") == (0, 0, 4_294_967_295)


PARSERS = (
    units.parse_size,
    units.parse_cpus,
    units.parse_quota,
    units.parse_weight,
    units.parse_count,
    units.parse_name,
    units.parse_id_range,
)


@given(st.text(), st.sampled_from(PARSERS))
def test_parsers_raise_nothing_else_and_in_one_line(text: str, parser: Callable[[str], object]) -> None:
    message = ""
    try:
        parser(text)
    except InputError as error:
        message = str(error)
    assert not message or message.isprintable()


def test_a_clean_path_is_absolute_and_has_no_way_up() -> None:
    paths = ("/a//b/./c/", "a/../../b", "/", "", "/..")
    assert [units.clean(path) for path in paths] == ["/a/b/c", "/b", "/", "/", "/"]
