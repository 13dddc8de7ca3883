"""--format: the same rows as a table, JSON, YAML, CSV and by a template; what guests wrote harms none of them."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nestrt.cli import _formats, ls
from nestrt.cli._formats import Column, add_options, write_document, write_rows
from nestrt.errors import InputError
from nestrt.host.render import ASCII


def mib(value: Any, raw: bool) -> str:
    return "-" if value is None else str(value) if raw else f"{value >> 20}M"


COLUMNS = (
    Column("NAME", "name"),
    Column("LEVEL", "level", right=True),
    Column("MEMORY", "memory.usage", mib),
    Column("CLAIM", "claim"),
    Column("COMMAND", "command"),
)
ROWS: list[dict[str, Any]] = [
    {"name": "web", "level": 1, "claim": False, "command": ["sh", "\x1b[2J\t"], "memory": {"usage": 1 << 20}},
    {"name": "web/db", "level": 12, "claim": True, "command": [], "memory": None},
    {"name": "=cmd|' /C calc'!A0", "level": 1, "claim": True, "command": "a\nb\udc80", "memory": {"usage": None}},
]


class Out(io.TextIOWrapper):
    """Standard output that is looked at; *writes* are how often something got out."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="")
        self.writes = 0

    def flush(self) -> None:
        super().flush()
        self.writes += 1

    def text(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()


def parsed(*argv: str, names: tuple[str, ...] = _formats.TABLE_NAMES) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser, names, names[0])
    return parser.parse_args(argv)


def made(*argv: str, rows: Any = ROWS, live: bool = False) -> str:
    out = Out()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        assert write_rows(parsed(*argv), rows, COLUMNS, {"ID": "name", "MemUsage": "memory.usage"}, live) == 0
    return out.text()


def document(form: str, value: Any) -> str:
    out = Out()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        write_document(parsed("--format", form, names=("text", "json", "yaml")), value, lambda: ["own", "lines"])
    return out.text()


def test_a_table_is_aligned_and_escaped() -> None:
    assert made().splitlines() == [
        "NAME                LEVEL  MEMORY  CLAIM  COMMAND",
        "web                     1  1M      no     sh \\x1b[2J\\t",
        "web/db                 12  -       yes    -",
        "=cmd|' /C calc'!A0      1  -       yes    a\\nb\\udc80",
    ]
    assert made("--raw", "--no-headings").splitlines()[0] == ("web                  1  1048576  no   sh \\x1b[2J\\t")
    assert made(rows=[]) == "NAME  LEVEL  MEMORY  CLAIM  COMMAND\n"
    assert made("--no-headings", rows=[]) == ""


def test_a_table_knows_what_is_wide_and_is_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["日本", "x"], ["ab", "yyy"]]
    assert list(_formats.aligned(rows)) == ["日本  x", "ab    yyy"]
    assert list(_formats.aligned(rows, (), 3)) == ["日", "ab "]
    monkeypatch.setattr(_formats, "width", lambda: 10)
    assert [len(line) for line in made().splitlines()] == [10] * 4


@pytest.mark.parametrize("long", ["/" + "x" * 65000 + "/end", "/" + "日" * 300 + "/end"])
def test_one_long_cell_hides_no_other(long: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["NAME", "S", "COMMAND"], ["/init", "R", "sleep 1000 " * 50], [long, "S", "x"]]
    monkeypatch.setattr(_formats, "glyphs", lambda: ASCII)
    for cut, most in ((None, 256), (80, 60)):
        lines = list(_formats.aligned(rows, (), cut))
        assert [line.split()[1] for line in lines] == ["S", "R", "S"]
        assert lines[1].endswith("sleep 1000") or cut
        cell = lines[2].split()[0]
        assert cell.startswith(long[:5])
        assert cell.endswith("/end")
        assert "..." in cell
        assert len(cell) <= most
    # Where all that there is fits, all is shown.
    name = "n" * 60
    assert list(_formats.aligned([[name, "x"]], (), 80)) == [f"{name}  x"]
    (line,) = _formats.aligned([[name, "x" * 99]], (), 60)
    assert re.fullmatch(r"n+\.\.\.n+  x{20}", line)


def test_json_is_one_row_a_line() -> None:
    text = made("--format", "json")
    assert json.loads(text) == ROWS
    assert text.isascii()
    lines = text.splitlines()
    assert [lines[0], lines[-1], len(lines)] == ["[", "]", 5]
    assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == ROWS
    assert made("--format", "json", rows=[]) == "[]\n"


def test_yaml_is_the_same() -> None:
    text = made("--format", "yaml")
    assert yaml.safe_load(text) == ROWS
    assert text.isascii()
    assert yaml.safe_load(made("--format", "yaml", rows=[])) == []
    shared = [ROWS[0], ROWS[0]]
    assert "&" not in document("yaml", {"a": shared, "b": shared})


def test_csv_has_fields_raw_numbers_and_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(made("--format", "csv"))))
    assert rows == [
        ["name", "level", "memory.usage", "claim", "command"],
        ["web", "1", "1048576", "false", '["sh", "\\u001b[2J\\t"]'],
        ["web/db", "12", "", "true", "[]"],
        ["'=cmd|' /C calc'!A0", "1", "", "true", "a\\nb\\udc80"],
    ]
    assert made("--format", "csv", "--no-headings").count("\n") == 3


def test_templates() -> None:
    assert made("--format", "{{.ID}} {{.MemUsage}}").splitlines()[0] == "web 1048576"
    assert made("--format", r"table {{.ID}}\t{{.Level}}").splitlines() == [
        "ID                  LEVEL",
        "web                 1",
        "web/db              12",
        "=cmd|' /C calc'!A0  1",
    ]
    assert made("--format", "{{range .}}{{.Level}},{{end}}") == "1,12,1,\n"
    assert made("--format", "{{range .}}{{else}}none{{end}}", rows=[]) == "none\n"
    assert [json.loads(line) for line in made("--format", "{{json .}}").splitlines()] == ROWS


@pytest.mark.parametrize("text", ["tabel", "", "{{.Name", "{{foo}}", "table {{", "xml", "\x1b"])
def test_a_wrong_format_is_an_error_before_anything_is_looked_at(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parsed("--format", text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["csv", "yaml", "openmetrics", "{{.Name}}"])
def test_names_only_have_no_other_form(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ls, "look")
    with pytest.raises(InputError, match="--quiet with --format"):
        ls.main(["-q", "--format", text])


def test_documents() -> None:
    value = {"level": 0, "guests": ROWS, "none": [], "numbers": [1, 2]}
    text = document("json", value)
    assert json.loads(text) == value
    assert [line for line in text.splitlines() if line.startswith("  {")] == [
        "  " + json.dumps(row) + ("," if row is not ROWS[-1] else "") for row in ROWS
    ]
    assert json.loads(document("json", {})) == {}
    assert yaml.safe_load(document("yaml", value)) == value
    assert document("text", value) == "own\nlines\n"
    assert document("{{.Level}}{{range .Guests}} {{.Level}}{{end}}", value) == "0 1 12 1\n"
    # A large document may come as JSON text in pieces.
    pieces = ['{"level": ', "0}\n"]
    assert document("json", iter(pieces)) == "".join(pieces)
    assert document("{{.Level}}", iter(pieces)) == "0\n"


def test_rows_are_written_as_they_come() -> None:
    """Live rows are out before the next one is asked for; others in pieces of 64 KiB."""
    for form, live, expected in (("json", True, 3), ("csv", True, 4), ("table", True, 4), ("{{.Name}}", True, 3),
                                 ("json", False, 1)):  # fmt: skip
        out, seen = Out(), []

        def rows(out: Out = out, seen: list[int] = seen) -> Any:
            for row in ROWS:
                yield row
                seen.append(out.writes)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", out)
            write_rows(parsed("--format", form), rows(), COLUMNS, {}, live)
        assert out.writes == expected + live, form
        assert seen == ([expected - 2, expected - 1, expected] if live else [0, 0, 0]), form
    assert [json.loads(line) for line in made("--format", "json", live=True).splitlines()] == ROWS
    assert list(yaml.safe_load_all(made("--format", "yaml", live=True))) == ROWS
    with pytest.raises(InputError):
        made("--format", "{{range .}}{{end}}", live=True)


def test_many_rows_are_no_matter_of_seconds() -> None:
    rows = [{**ROWS[0], "name": f"g{number}"} for number in range(5000)]
    begin = time.monotonic()
    for form in ("table", "json", "csv", "{{.Name}} {{.MemUsage}}"):
        assert made("--format", form, rows=rows).count("\n") >= 5000
    document("json", {"guests": rows})
    assert time.monotonic() - begin < 10  # about 0.5 s


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64), st.text(max_size=6), st.sampled_from(["on", "1"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"name": VALUES, "level": VALUES, "claim": VALUES, "command": VALUES}), max_size=3)
)
def test_whatever_is_in_the_rows(rows: list[dict[str, Any]]) -> None:
    assert json.loads(made("--format", "json", rows=rows)) == rows
    assert yaml.safe_load(made("--format", "yaml", rows=rows)) == rows
    for form in ("table", "csv", "table {{.Name}}\t{{.Level}}", "{{.Name}}"):
        lines = made("--format", form, rows=rows).split("\n")
        assert all(line.isprintable() for line in lines)
        if form != "csv":
            assert len(lines) == len(rows) + 1 + form.startswith("table")
