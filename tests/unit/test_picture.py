"""Pictures of the nest: the layout as sums, the files as a parser reads them."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestrt.cli import graph
from nestrt.host.marks import escape
from nestrt.host.picture import Box, Part, amount, percent, span
from nestrt.host.picture_html import data, html, policy
from nestrt.host.picture_layout import BUNDLE, LEAST_LEFT, bundles, is_overcommitted, shares
from nestrt.host.picture_place import Placed, place, shortened, texts
from nestrt.host.picture_script import SCRIPT
from nestrt.host.picture_style import DARK, LIGHT, contrast
from nestrt.host.picture_svg import draw, svg, xml
from nestrt.host.walk import DEEPEST

MIB = 1 << 20
SVG = "{http://www.w3.org/2000/svg}"
limits = st.lists(st.none() | st.integers(0, 1 << 62), max_size=60)
capacities = st.integers(1, 1 << 62)


def box(name: str, given_to: int, own: int = -1, used: int | None = None, below: list[Box] | None = None) -> Box:
    part = Part(own, given_to, "/x", used)
    return Box("guest", name, 1, part, "running", "level 1", False, (("level", "1"),), below or [])


def limited(name: str, limit: int, used: int = 0, below: list[Box] | None = None) -> Box:
    return box(name, limit, limit, used, below)


# 512M:  | a 64M | b 128M | nobody's 320M |


def test_widths_are_shares_and_what_is_left_is_nobodys() -> None:
    found = shares(512, [64, 128])
    assert found.widths == (0.125, 0.25)
    assert (found.left, found.total, found.scaled) == (0.625, 0.375, False)
    placed = place(limited("all", 512 * MIB, 0, [limited("a", 64 * MIB), limited("b", 128 * MIB)]), "memory")
    assert [(each.name, each.x, each.width) for each in placed.below] == [
        ("a", 0.0, 0.125), ("b", 0.125, 0.25), ("not given", 0.375, 0.625),
    ]  # fmt: skip
    assert placed.below[2].given == "320M"
    assert place(limited("alone", MIB), "memory").below == []


# 512M:  | a 256M | b, c without a limit: 128M each |


def test_siblings_without_a_limit_share_what_is_left() -> None:
    assert shares(512, [256, None, None]).widths == (0.5, 0.25, 0.25)
    assert shares(512, [None, None]).widths == (0.5, 0.5)
    assert shares(512, [0, None]).widths == (0.0, 1.0)
    placed = place(limited("all", 512, 0, [limited("a", 256), box("b", 512)]), "memory")
    assert [each.classes for each in placed.below] == ["guest", "guest open"]


# 512M:  | a 512M | b 512M |   2.0 times as much, to half the scale


def test_too_much_is_scaled_and_said() -> None:
    found = shares(512, [512, 512])
    assert (found.widths, found.total, found.scaled, found.left) == ((0.5, 0.5), 2.0, True, 0.0)
    assert is_overcommitted(found)
    placed = place(limited("all", 512, 0, [limited("a", 512), limited("b", 512)]), "memory")
    assert "over" in placed.classes.split()
    assert placed.note.startswith("▲ 2.0× given")
    assert {"overcommitted", "not to scale"} <= dict(placed.figures).keys()
    # One that was given more than there is cannot have it: the widths are what each can get.
    assert shares(512, [4096, 512]).widths == (0.5, 0.5)
    # Just enough is not too much, also where a third of it is no round number.
    assert not is_overcommitted(shares(3, [1, 1, 1]))
    assert not shares(3, [1, 1, 1]).scaled


def test_where_nothing_is_left_those_without_a_limit_can_still_be_seen() -> None:
    found = shares(100, [100, None, None])
    assert found.widths == pytest.approx((1 - LEAST_LEFT, LEAST_LEFT / 2, LEAST_LEFT / 2))
    assert found.scaled
    assert not is_overcommitted(found)


@given(capacities, limits)
def test_siblings_fill_the_width_and_no_more(capacity: int, given_to: list[int | None]) -> None:
    found = shares(capacity, given_to)
    assert len(found.widths) == len(given_to)
    assert all(0.0 <= width <= 1.0 + 1e-9 for width in found.widths)
    assert sum(found.widths) + found.left == pytest.approx(1.0)
    assert found.left == 0.0 or None not in given_to


@given(capacities, limits)
def test_siblings_are_to_one_scale(capacity: int, given_to: list[int | None]) -> None:
    found = shares(capacity, given_to)
    can = [None if amount is None else min(amount, capacity) / capacity for amount in given_to]
    pairs = [(part, width) for part, width in zip(can, found.widths, strict=True) if part]
    scales = [width / part for part, width in pairs]
    assert scales == pytest.approx([scales[0]] * len(scales)) if scales else True
    if scales and not found.scaled:
        assert scales[0] == pytest.approx(1.0)
    open_ones = {width for part, width in zip(can, found.widths, strict=True) if part is None}
    assert len(open_ones) <= 1
    assert is_overcommitted(found) == (sum(part or 0.0 for part in can) > 1.0 + 1e-9)


@given(st.lists(st.floats(0.0, 0.2), max_size=300), st.floats(0.001, 0.1))
def test_every_sibling_is_in_one_box_and_wide_ones_alone(widths: list[float], least: float) -> None:
    found = bundles(widths, least)
    assert [number for first, end in found for number in range(first, end)] == list(range(len(widths)))
    for first, end in found:
        assert end - first == 1 or all(width < least for width in widths[first:end])
    together = [(first, end) for first, end in found if widths[first] < least]
    wide = [sum(widths[first:end]) >= BUNDLE * least for first, end in together]
    # Only the last of a row of thin ones may be narrower.
    for (_, end), enough in zip(together, wide, strict=True):
        assert enough or end == len(widths) or widths[end] >= least


def test_a_thousand_guests_are_a_few_boxes() -> None:
    guests = [limited(f"g{n:04}", MIB, n * 1000, [box("c", MIB)] * 10) for n in range(1000)]
    placed = place(limited("all", 1000 * MIB, 0, guests), "memory")
    drawn = "".join(svg(placed, "all", "now", "auto", 0.01))
    root = ElementTree.fromstring(drawn)
    boxes = root.findall(f".//{SVG}svg[@role='img']")
    assert len(boxes) == 18
    titles = [each.findtext(f"{SVG}title") or "" for each in boxes]
    assert titles[1].splitlines() == ["60 more", "first: g0000", "last: g0059", "fullest: g0059, 6%"]
    assert len(drawn) < 100_000
    # Nobody is left out: bundles of 60, each member with its bar but the one that uses nothing.
    bars = [path.get("d", "") for path in root.iter(f"{SVG}path") if path.get("class", "").startswith("bar ")]
    in_legend = 6
    assert sum(path.count("M") for path in bars) == 999 + in_legend


def drawn_boxes(placed: Placed) -> list[ElementTree.Element]:
    text, _ = draw(placed, 0.01)
    return ElementTree.fromstring(f'<svg xmlns="http://www.w3.org/2000/svg">{text}</svg>').findall(f"{SVG}svg")


def first_line(element: ElementTree.Element) -> str:
    return (element.findtext(f"{SVG}title") or "").partition("\n")[0]


def test_the_deepest_nest_that_a_walk_goes_into() -> None:
    inmost = limited("x", MIB)
    for _ in range(DEEPEST):
        inmost = limited("x", MIB, 0, [inmost])
    placed = place(inmost, "memory")
    assert len(drawn_boxes(placed)) == DEEPEST + 1
    assert json.loads(data(placed, 0.01))["boxes"][-1][0] == DEEPEST


def test_where_boxes_are() -> None:
    inner = limited("b", 256, 0, [limited("c", 64)])
    found = drawn_boxes(place(limited("all", 512, 0, [limited("a", 256), inner]), "memory"))
    where = [(first_line(each), *(each.get(key) for key in ("x", "y", "width"))) for each in found]
    assert where == [
        ("all", "0%", "0", "100%"), ("a", "0%", "62", "50%"), ("b", "50%", "62", "50%"),
        ("c", "50%", "124", "12.5%"), ("not given", "62.5%", "124", "37.5%"),
    ]  # fmt: skip


def test_a_fill_is_as_high_as_what_is_used() -> None:
    for used, high, heat in ((0, None, ""), (128, "25%", "ok"), (400, "78.125%", "warm"), (900, "100%", "hot")):
        (drawn,) = drawn_boxes(place(limited("all", 512, used), "memory"))
        fills = [each for each in drawn.iter(f"{SVG}rect") if each.get("class", "").startswith("fill")]
        assert [(each.get("height"), each.get("class")) for each in fills] == ([(high, f"fill {heat}")] if high else [])
        if high:
            assert sum(float((fills[0].get(key) or "").removesuffix("%")) for key in ("y", "height")) == 100


def test_texts_are_as_long_as_there_is_room() -> None:
    placed = place(limited("web/database", 512 * MIB, 128 * MIB), "memory")
    assert texts(placed, 400) == ("web/database", "128M of 512M · 25%", "level 1")
    assert texts(placed, 100) == ("database", "128M · 25%", "level 1")
    assert texts(placed, 64) == ("dat…se", "25%", "level 1")
    assert texts(placed, 20) == ("", "", "")
    assert shortened("g0164", 4) == "g0…4"
    # A letter of East Asia takes two places.
    assert texts(place(limited("数据库", MIB), "memory"), 62)[0] == "数据库"
    assert texts(place(limited("数据库", MIB), "memory"), 60)[0] == ""
    assert texts(place(limited("数据库的名字很长", MIB), "memory"), 80)[0] == "数据…长"


def test_amounts() -> None:
    assert [amount("cpu", value) for value in (150000, 100000, -1, 1234)] == [
        "1.5 CPUs",
        "1 CPU",
        "max CPUs",
        "0.01 CPUs",
    ]
    assert [amount("memory", 1536), amount("pids", 20), amount("pids", -1)] == ["1.5K", "20", "max"]
    assert [percent(part) for part in (0.0, 0.0001, 0.004, 0.5, 1.03)] == ["0%", "<0.1%", "0.4%", "50%", "103%"]
    assert [span(usec) for usec in (0, 1_500_000, 600_000_000, 10 * 3_600_000_000)] == [
        "0.0 s", "1.5 s", "10.0 min", "10.0 h",
    ]  # fmt: skip


def test_texts_can_be_read_on_every_colour() -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    for palette in (LIGHT, DARK):
        for below in (palette.back, palette.box, palette.level, palette.hatch, palette.ok, palette.warm, palette.hot):
            assert contrast(palette.text, below) >= 4.5, (palette.text, below)
        for below in (palette.back, palette.box):
            assert contrast(palette.dim, below) >= 4.5, (palette.dim, below)
        assert contrast(palette.focus, palette.back) >= 3
        assert contrast(palette.over, palette.box) >= 4.5


HOSTILE = (
    "<script>alert(1)</script>", '"><svg onload=alert(1)>', "]]>", "--><b>", "&lt;&#0;", "'\"`", "</title></svg>",
    "\x00\x01\x1b[31m", "\u2028\u2029", "\u202egnp.\u2066", "\ud800\udfff", "\ufffe\uffff", "<!--", "{{x}}",
    "\\u003c/s>", bytes(range(128, 256)).decode("utf-8", "surrogateescape"), "🂡" * 60, "e" + "\u0301" * 100, "שלום",
)  # fmt: skip
texts_of_guests = st.sampled_from(HOSTILE) | st.text(st.characters(), max_size=40)


class Page(HTMLParser):
    """The elements of a page, and what is in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, text: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += text


def scene(name: str) -> Placed:
    told = escape(name)
    inner = Box("group", told, 1, Part(-1, 512, "", 5), "", told, True, ((told, told), ("path", told)), [])
    thin = [limited(told, 1) for _ in range(3)]
    return place(limited(told, 512, 500, [inner, *thin]), "memory")


def attributes(root: ElementTree.Element) -> set[str]:
    return {key for each in root.iter() for key in each.attrib}


@settings(max_examples=60, deadline=None)
@given(texts_of_guests)
def test_names_are_text_and_nothing_else(name: str) -> None:
    placed, plain = scene(name), scene("plain")
    root = ElementTree.fromstring("".join(svg(placed, escape(name), "now", "auto", 0.01)).encode())
    other = ElementTree.fromstring("".join(svg(plain, "plain", "now", "auto", 0.01)).encode())
    assert {each.tag for each in root.iter()} == {each.tag for each in other.iter()}
    assert attributes(root) == attributes(other)
    titles = [(each.text or "").split("\n")[0] for each in root.iter(f"{SVG}title")]
    assert titles[1] == escape(name)
    page = Page("".join(html(placed, escape(name), "now", "auto", 0.01)))
    like = Page("".join(html(plain, "plain", "now", "auto", 0.01)))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in like.elements}
    assert page.scripts[1:] == [SCRIPT]
    found = json.loads(page.scripts[0])
    assert found["boxes"][0][2] == escape(name)
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)


def test_the_page_allows_its_own_script_and_no_network() -> None:
    text = "".join(html(scene("x"), "x", "now", "auto", 0.01))
    assert text.count("<script>") == 1
    assert f"<script>{SCRIPT}</script>" in text
    style = text.partition("<style>")[2].partition("</style>")[0]
    rule = policy(style, SCRIPT)
    assert f'content="{rule}"' in text
    assert rule.startswith("default-src 'none'; ")
    assert "unsafe" not in rule
    assert "</" not in SCRIPT
    for address in ("http:", "https:", "//", "url(", "@import", "src="):
        allowed = {
            "http:": ["http://www.w3.org/2000/svg"],
            "//": ["http://www.w3.org/2000/svg"],
            "url(": ["url(#hatch)"],
        }
        rest = text
        for each in allowed.get(address, []):
            rest = rest.replace(each, "")
        assert address not in rest, address


def test_themes() -> None:
    def css(theme: str) -> str:
        return "".join(svg(scene("x"), "x", "now", theme, 0.01)).partition("<style>")[2].partition("</style>")[0]

    assert LIGHT.back in css("light")
    assert DARK.back not in css("light")
    assert LIGHT.back not in css("dark")
    assert "prefers-color-scheme: dark" in css("auto")
    # Every colour has its place, none is left as a word.
    for name in LIGHT.FIELDS:  # type: ignore[attr-defined]
        assert f" {name.upper()};" not in css("auto")


def test_data_are_ascii_without_markup() -> None:
    text = data(scene("</script><!--&\u2028é"), 0.01)
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert xml("<&>\"'") == "&lt;&amp;&gt;&quot;&#39;"


def test_a_file_that_is_replaced_stays_as_private_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "nest.svg"
    graph._replace(str(path), b"new", graph._check(str(path)))
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    before = path.stat()
    graph._replace(str(path), b"newer", graph._check(str(path)))
    after = path.stat()
    assert path.read_bytes() == b"newer"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert os.listdir(tmp_path) == ["nest.svg"]
