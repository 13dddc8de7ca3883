"""The rates, orders and pictures of top, without groups: values in, rows and lines out."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.cli._top_cells import CELLS, bar, count, fitting, one_column, percent, shortened, size
from nestrt.cli._top_draw import ASCII, SMALLEST, UNICODE, draw
from nestrt.cli._top_model import KEYS, ORDER_KEYS, Model
from nestrt.host.counters_files import V1, V2, Counters
from nestrt.host.effective import Limit
from nestrt.host.marks import TRUSTED, Mark
from nestrt.host.sample import Sampler, Usage, by_level
from nestrt.host.sample_rows import ORDERS, Choice, arrange, as_json, in_order
from nestrt.host.walk import Guest, View

MIB = 1 << 20


def limit(key: str, effective: int) -> Limit:
    return Limit(key, key.partition(".")[0], "h", "bytes", effective, effective, "/web", None)


def guest(name: str, path: str, level: int = 1, claim: bool = False) -> Guest:
    return Guest(name, path, level, Mark(TRUSTED, name.rpartition("/")[2]), claim, 0, ("h",), [], [], [])


def row(name: str, path: str = "", level: int = 1, parent: str = "", **counters: Any) -> Usage:
    usage = Usage("guest", path or f"/{name}", ("h",))
    usage.name, usage.level, usage.parent = name, level, parent
    usage.guest = guest(name, usage.path, level)
    usage.counters = Counters(**counters)
    return usage


def group(of: Usage, path: str, parent: str) -> Usage:
    usage = Usage("group", path, ("h",))
    usage.guest, usage.name, usage.level, usage.parent = of.guest, f"{of.name}:{path}", of.level, parent
    return usage


# Rates.


def test_a_rate_needs_two_readings_and_is_over_the_time_between_them() -> None:
    usage = row("web")
    usage.limits = {"cpu.max": limit("cpu.max", 50_000)}
    usage.update(Counters(cpu_usec=1_000_000, io_read_bytes=0, io_write_bytes=10, periods=10, throttled_periods=0), 5.0)
    assert (usage.cpu_percent, usage.read_rate, usage.throttled_percent) == (None, None, None)
    new = Counters(cpu_usec=1_500_000, io_read_bytes=4 * MIB, io_write_bytes=10, periods=30, throttled_periods=15)
    usage.update(new, 7.0)
    assert usage.cpu_percent == pytest.approx(25.0)
    assert usage.quota_percent == pytest.approx(50.0)  # of half a CPU
    assert (usage.read_rate, usage.write_rate) == (2 * MIB, 0)
    assert usage.throttled_percent == pytest.approx(75.0)


def test_another_group_of_the_same_name_has_no_rates_yet() -> None:
    usage = row("web")
    usage.update(Counters(cpu_usec=9_000_000, io_read_bytes=500), 1.0)
    usage.update(Counters(cpu_usec=10, io_read_bytes=900), 2.0)
    assert (usage.cpu_percent, usage.read_rate) == (None, None)
    usage.update(Counters(cpu_usec=500_010, io_read_bytes=900), 3.0)
    assert usage.cpu_percent == pytest.approx(50.0)


def test_what_is_not_counted_is_not_known_and_a_quota_without_periods_did_not_throttle() -> None:
    usage = row("web")
    for now in (1.0, 2.0):
        usage.update(Counters(cpu_usec=5, periods=4, throttled_periods=1), now)
    assert (usage.read_rate, usage.write_rate) == (None, None)
    assert usage.throttled_percent == 0.0
    assert usage.quota_percent is None
    assert usage.state == ""


def test_a_kill_is_noticed_when_it_happens() -> None:
    usage = row("web")
    usage.update(Counters(oom_kills=3), 1.0)
    assert usage.killed < 0  # it was before we looked
    usage.update(Counters(oom_kills=4), 2.0)
    assert usage.killed == 2.0


@pytest.mark.parametrize(
    ("counters", "state", "quiet"),
    [
        (Counters(cpu_usec=7, pids=0, frozen=False), "stopped", True),
        (Counters(cpu_usec=7, pids=2, frozen=True), "paused", False),
        (Counters(cpu_usec=7, pids=2, frozen=False), "running", False),
        (Counters(cpu_usec=7, pids=1, frozen=False, populated=False), "stopped", False),
        (Counters(cpu_usec=7, pids=1, frozen=True, populated=True), "paused", False),
        (Counters(cpu_usec=7, populated=True), "running", False),
        (Counters(cpu_usec=7, pids=0, pressure={"io": {"some_avg10": 0.1}}), "stopped", False),
    ],
)
def test_states_and_quiet(counters: Counters, state: str, quiet: bool) -> None:
    usage = row("web")
    usage.update(counters, 1.0)
    usage.update(counters, 2.0)
    assert (usage.state, usage.quiet) == (state, quiet)


# The kernel's texts.


@pytest.mark.parametrize(
    ("table", "name", "text", "fields"),
    [
        (V1, "cpuacct.usage", b"123456789\n", {"cpu_usec": 123456}),
        (V1, "cpuacct.stat", b"user 12\nsystem 3\nTotal 15\n", {"user_usec": 120_000, "system_usec": 30_000}),
        (
            V1,
            "cpu.stat",
            b"nr_periods 7\nnr_throttled 2\nthrottled_time 5000\nnr_bursts 0\n",
            {"periods": 7, "throttled_periods": 2, "throttled_usec": 5},
        ),
        (V1, "memory.stat", b"cache 1\nrss 2\ntotal_cache 77\ntotal_rss 3\n", {"cache": 77}),
        (V1, "memory.oom_control", b"oom_kill_disable 0\nunder_oom 0\noom_kill 4\n", {"oom_kills": 4}),
        (
            V1,
            "blkio.throttle.io_service_bytes_recursive",
            b"8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n8:16 Read 1\n8:16 Write 2\n8:16 Total 3\nTotal 33\n",
            {"io_read_bytes": 11, "io_write_bytes": 22},
        ),
        (V1, "freezer.state", b"FREEZING\n", {"frozen": False}),
        (
            V2,
            "cpu.stat",
            b"usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 1\nthrottled_usec 8\n",
            {"cpu_usec": 9, "user_usec": 5, "system_usec": 4, "periods": 3, "throttled_periods": 1,
             "throttled_usec": 8},
        ),
        (V2, "memory.stat", b"anon 1\nfile 2\nfile_mapped 3\n", {"cache": 2}),
        (V2, "memory.events", b"low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\n", {"memory_limit_hits": 2, "oom_kills": 4}),
        (
            V2,
            "io.stat",
            b"254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:0 \n8:0 rbytes=10 wbytes=0 rios=1 wios=0\n",
            {"io_read_bytes": 11, "io_write_bytes": 2, "io_reads": 4, "io_writes": 4},
        ),
        (V2, "io.stat", b"", {"io_read_bytes": 0, "io_write_bytes": 0, "io_reads": 0, "io_writes": 0}),
        (V2, "cgroup.events", b"populated 1\nfrozen 1\n", {"frozen": True, "populated": True}),
        (V2, "cgroup.events", b"populated 0\n", {"populated": False}),
        (
            V2,
            "memory.pressure",
            b"some avg10=1.50 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=66\n",
            {"pressure": {"memory": {"some_avg10": 1.5, "some_total_usec": 77, "full_avg10": 0.25,
                                     "full_total_usec": 66}}},
        ),
        (
            V2,  # before Linux 5.13
            "cpu.pressure",
            b"some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n",
            {"pressure": {"cpu": {"some_avg10": 1.5, "some_total_usec": 77, "full_avg10": 0.0, "full_total_usec": 0}}},
        ),
    ],
)  # fmt: skip
def test_what_the_files_say(table: Any, name: str, text: bytes, fields: dict[str, Any]) -> None:
    counters = Counters()
    file = next(file for file in table if name in file.names)
    file.parse(text, counters)
    assert {field: value for field, value in counters.__dict__.items() if value is not None} == fields


def test_v1_counts_memory_and_swap_together() -> None:
    usage, swap = (next(f for f in V1 if name in f.names) for name in ("memory.usage_in_bytes",
                                                                       "memory.memsw.usage_in_bytes"))  # fmt: skip
    counters = Counters()
    usage.parse(b"1000\n", counters)
    swap.parse(b"1500\n", counters)
    assert (counters.memory, counters.swap) == (1000, 500)
    swap.parse(b"900\n", counters)  # between the two readings some was given back
    assert counters.swap == 0


# Orders and trees.


def nest() -> list[Usage]:
    """web (30 %) > web/db (20 %) ; api (50 %) ; idle (not known yet); web has the groups /, /init."""
    web, db, api, idle = row("web"), row("web/db", "/web/guest/x/db", 2, "/web/guest"), row("api"), row("idle")
    web.cpu_percent, db.cpu_percent, api.cpu_percent = 30.0, 20.0, 50.0
    return [api, idle, web, group(web, "/web/guest", "/web"), group(web, "/web/guest/init", "/web/guest"), db]


def names(rows: list[tuple[Usage, int]]) -> list[str]:
    return ["  " * indent + usage.name for usage, indent in rows]


@pytest.mark.parametrize(
    ("choice", "shown"),
    [
        (Choice(), ["api", "web", "web/db", "idle"]),
        (Choice(reverse=True), ["idle", "web/db", "web", "api"]),
        (Choice(order="name"), ["api", "idle", "web", "web/db"]),
        (Choice(order="name", reverse=True), ["web/db", "web", "idle", "api"]),
        (Choice(tree=True), ["api", "web", "  web/db", "idle"]),
        (Choice(tree=True, text="DB"), ["web", "  web/db"]),
        (Choice(text="DB"), ["web/db"]),
        (Choice(depth=1), ["api", "web", "idle"]),
        (Choice(names=("/web",)), ["web", "web/db"]),
        (
            Choice(by="group", order="path", tree=True),
            ["api", "idle", "web", "  web:/web/guest", "    web:/web/guest/init", "    web/db"],
        ),
        (Choice(by="group", order="path", depth=0, names=("/web",)), ["web", "web:/web/guest", "web/db"]),
        # One whose parent is not shown stands below the next one around it.
        (Choice(order="path", tree=True, names=("/web",)), ["web", "  web/db"]),
    ],
)
def test_which_rows_and_in_what_order(choice: Choice, shown: list[str]) -> None:
    assert names(arrange(nest(), choice)) == shown


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6))), st.sampled_from(ORDERS), st.booleans())
def test_an_order_loses_nothing_and_the_unknown_is_least(numbers: list[float | None], order: str, turn: bool) -> None:
    rows = [row(f"g{place:03}") for place, _ in enumerate(numbers)]
    for usage, number in zip(rows, numbers, strict=True):
        usage.cpu_percent = number
    found = in_order(rows, order, turn)
    assert sorted(usage.name for usage in found) == [usage.name for usage in rows]
    if order == "cpu":
        values = [-1.0 if usage.cpu_percent is None else usage.cpu_percent for usage in found]
        assert values == sorted(values, reverse=not turn)


def test_levels_are_sums_of_their_guests() -> None:
    rows = nest()
    rows[0].counters = Counters(memory=5, pids=1, pressure={"io": {"some_avg10": 1.0}})
    rows[2].counters = Counters(memory=7, pids=2, pressure={"io": {"some_avg10": 3.0}})
    first, second = by_level(rows)
    assert (first.name, second.name) == ("level 1: 3 guests", "level 2: 1 guest")
    assert (first.cpu_percent, first.counters.memory, first.counters.pids) == (80.0, 12, 3)
    assert first.pressure == (None, None, 3.0)
    assert second.counters.memory is None


def test_a_row_as_json_says_null_for_what_is_not_known() -> None:
    usage = row("web", memory=5 * MIB, pids=3)
    usage.limits = {"memory.max": limit("memory.max", 10 * MIB), "pids.max": limit("pids.max", -1)}
    shown = as_json(usage, 12.3456)
    assert shown["time"] == 12.346
    assert shown["memory"]["usage"] == 5 * MIB
    assert shown["memory"]["effective"] == 10 * MIB
    assert shown["memory_percent"] == 50.0
    assert shown["pids"]["effective"] is None
    assert shown["cpu_percent"] is None
    assert as_json(row("web", memory=1), 0.0)["memory"]["usage"] == 1


# Texts.


@given(st.text())
def test_what_a_guest_wrote_takes_one_column_for_each_character(text: str) -> None:
    shown = one_column(text)
    assert shown.isprintable()
    for char in shown:
        assert unicodedata.east_asian_width(char) not in "WF"
        assert not unicodedata.combining(char)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[2J", r"\x1b[2J"), ("漢", r"\u6f22"), ("e\u0301", r"e\u0301"), ("é", "é"), ("a\u200bb", r"a\u200bb")],
)
def test_escapes(text: str, shown: str) -> None:
    assert one_column(text) == shown


def test_texts_of_cells() -> None:
    assert [percent(value) for value in (None, 0.0, 99.96, 1234.5)] == ["-", "0.0", "100.0", "1234"]
    assert [count(value) for value in (None, 5, 99_999, 123_456, 123_456_789)] == ["-", "5", "99999", "123K", "123M"]
    assert [size(value) for value in (None, 0, 1536.7)] == ["-", "0", "1.5K"]
    assert [bar(value, 4, "#", ".") for value in (None, 0.0, 50.0, 200.0)] == ["    ", "....", "##..", "####"]
    assert shortened("a-long-name-of-a-guest", 12) == "a-long…guest"
    assert len(shortened("a-long-name-of-a-guest", 12)) == 12


# The screen.


class Groups(Sampler):
    """A sampler of rows that are given."""

    def __init__(self, rows: list[Usage]) -> None:
        self.usages = rows
        self.own = Usage("level", "/", ())
        self.own.counters = Counters(memory=3 * MIB)

        class Finder:
            complete = True
            view = View(0, "host", (), [])

        self.finder = Finder()  # type: ignore[assignment]


def model(rows: list[Usage] | None = None) -> Model:
    made = Model(Groups(nest() if rows is None else rows), Choice(), 1.0)
    made.refresh()
    return made


def lines(made: Model, width: int, height: int) -> list[str]:
    return ["".join(text for _, text in line) for line in draw(made, width, height, UNICODE, 0.0, 2, 8 << 30)]


@given(st.integers(1, 200), st.integers(1, 60), st.lists(st.sampled_from(sorted({*KEYS, *ORDER_KEYS, "x", "up"}))))
def test_every_picture_fits(width: int, height: int, keys: list[str]) -> None:
    made = model([*nest(), row("漢字\x1b[2J" * 40, "/" + "x" * 300), row("big", memory=1 << 62, pids=1 << 40)])
    for key in keys:
        made.press(key)
    for glyphs in (UNICODE, ASCII):
        picture = draw(made, width, height, glyphs, 0.0, 2, 8 << 30)
        assert len(picture) == height
        for line in picture:
            text = "".join(text for _, text in line)
            assert len(text) <= width
            assert text.isprintable()
            assert glyphs is UNICODE or text.isascii()


def test_columns_that_do_not_fit_go_in_their_order() -> None:
    before: set[str] = set()
    for width in range(SMALLEST[0], 240):
        room, cells = fitting(width)
        shown = {cell.title for cell in cells}
        assert before <= shown
        assert room >= 12
        before = shown
    assert before == {cell.title for cell in CELLS}
    assert "CPU%" in {cell.title for cell in fitting(SMALLEST[0])[1]}


def test_the_chosen_guest_stays_chosen_wherever_it_goes() -> None:
    rows = nest()
    made = model(rows)
    made.press("down")
    assert made.chosen is rows[2]
    rows[2].cpu_percent = 99.0
    made.refresh()
    assert made.place == 0
    assert made.chosen is rows[2]
    made.sampler.usages = [usage for usage in rows if usage is not rows[2]]
    made.refresh()
    assert made.chosen is not None
    made.sampler.usages = []
    made.refresh()
    assert made.chosen is None
    assert "no guest in sight" in "\n".join(lines(made, 80, 20))


def test_a_window_of_many_rows_follows_the_chosen_one() -> None:
    made = model([row(f"g{number:04}") for number in range(1000)])
    made.press("end")
    assert any(line.startswith("g0999") for line in lines(made, 100, 20))
    made.press("page up")
    made.press("home")
    picture = lines(made, 100, 20)
    assert any(line.startswith("g0000") for line in picture)
    assert not any(line.startswith("g0999") for line in picture)


def test_keys() -> None:
    made = model()
    for key, order in ORDER_KEYS.items():
        made.press(key)
        assert made.choice.order == order
    made.press("p")
    assert made.choice.tree
    made.press("c")
    assert not made.choice.tree
    for by in ("level", "group", "guest"):
        made.press("g")
        assert (made.choice.by, made.new_groups) == (by, by == "group")
    made.press("-")
    assert made.choice.depth == 1
    made.press("+")
    assert made.choice.depth is None
    for key in "/web":
        made.press(key)
    assert [usage.name for usage, _ in made.rows] == ["web", "web/db"]
    made.press("q")  # a letter, while a text is typed
    assert not made.quit
    made.press("esc")
    assert (made.choice.text, made.editing) == ("", False)
    made.press("?")
    assert any("turn the order round" in line for line in lines(made, 120, 30))
    made.press("x")
    assert not made.help
    made.press("q")
    assert made.quit
