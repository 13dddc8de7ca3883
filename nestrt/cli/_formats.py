"""What ``--format`` can ask of every command that looks: table, JSON, YAML, CSV, or a template.

A command has rows, or one document, of JSON-ready values with stable names and raw numbers. Here they become
text. What guests wrote is escaped for people; a machine's form has it in that form's own way. Rows are written as
they come, except where columns have to be aligned.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import unicodedata

from nestrt.cli._view import encoded, glyphs, width
from nestrt.errors import HostError, InputError
from nestrt.host.marks import escape
from nestrt.host.render import GLYPHS
from nestrt.host.template import Template, is_template
from nestrt.level.values import suggestion
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

TABLE_NAMES = ("table", "json", "yaml", "csv")
CHUNK = 1 << 16
WIDEST, NARROWEST = 256, 20  # columns of a cell: at most, and what each has on any terminal
# A cell that a spreadsheet would take for a formula, and carry out.
FORMULA = ("=", "+", "-", "@")
encode = json.JSONEncoder().encode  # the C encoder, all of it ASCII


@record
class Column:
    """A column of a table and of CSV.

    *field* is the dotted path into a row: "memory.usage". *show* makes the text of a cell of (value, raw), raw where
    ``--raw`` was given: plain bytes, µs, seconds since 1970. It need not escape: all cells are escaped here. Without
    it: "-" for null, yes or no, numbers and texts as they are, lists with blanks between. *right*: aligned there.
    """

    title: str
    field: str
    show: Callable[[Any, bool], str] | None = None
    right: bool = False


class Format:
    """The type of ``--format``: one of *names*, or a template. Completion asks it for the names."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, text: str) -> str:
        """*text* if it is a format. Raises InputError."""
        if is_template(text):
            Template(text)
        elif text not in self.names:
            remedy = suggestion(text, self.names)
            raise InputError("use", f"--format {escape(text)}", "there is no such format", remedy)
        return text


def add_options(parser: argparse.ArgumentParser, names: tuple[str, ...] = TABLE_NAMES, default: str = "table") -> None:
    """Give *parser* ``--format`` (one of *names*, or a template), ``--raw`` and ``--no-headings``."""
    parser.add_argument(
        "--format",
        type=Format(names),
        default=default,
        metavar="FORMAT",
        help=f"{', '.join(names)}, or a template: '{{{{.Name}}}}', 'table {{{{.Name}}}}\\t{{{{.State}}}}'; "
        "see nestrt-formats(5)",
    )
    parser.add_argument("--raw", action="store_true", help="plain bytes, µs and seconds since 1970 in tables")
    parser.add_argument("--no-headings", action="store_true", help="no line of headings above tables and CSV")


class Writer:
    """Standard output, in pieces of 64 KiB, or *live*: at once. After a reader has gone (``| head``), *gone*."""

    def __init__(self, live: bool = False) -> None:
        self.live = live
        self.gone = False
        self.parts: list[str] = []
        self.size = 0

    def write(self, text: str) -> None:
        self.parts.append(text)
        self.size += len(text)
        if self.live or self.size > CHUNK:
            self.flush()

    def flush(self) -> None:
        """Raises HostError, as on a full disk."""
        text, self.parts, self.size = "".join(self.parts), [], 0
        if self.gone:
            return
        try:
            sys.stdout.buffer.write(encoded(text))
            sys.stdout.flush()
        except BrokenPipeError:
            # The interpreter flushes once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.gone = True
        except OSError as error:
            raise HostError("write to", "standard output", error.strerror or "it failed") from error


def value_of(row: dict[str, Any], field: str) -> Any:
    """The value at the dotted path *field*; None where there is none."""
    value: Any = row
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def plain(value: Any, raw: bool = False) -> str:
    """The text of a cell without a show of its own."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(plain(item) for item in value) or "-"
    return encode(value) if isinstance(value, dict) else str(value)


def _columns_wide(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in ("W", "F")) for c in text)


def aligned(rows: list[list[str]], right: tuple[bool, ...] = (), cut: int | None = None) -> Iterator[str]:
    """Lines of *rows* of cells, which may differ in length; the last cell of a row is not padded on its right.

    *right* are the columns aligned there; *cut* is how many columns a line may have. A cell that is very long, or
    leaves others no room, loses its middle, so that nobody's names hide what is said of others.
    """
    most = max((len(row) for row in rows), default=0)
    widths = [max((_columns_wide(row[i]) for row in rows if i < len(row)), default=0) for i in range(most)]
    bound = _bound(widths, cut)
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            if i < most - 1 and widths[i] > bound:
                cell = _without_middle(cell, bound)
            wide = widths[i] if i == most - 1 else min(widths[i], bound)
            fill = " " * (wide - _columns_wide(cell))
            cells.append(fill + cell if right[i : i + 1] == (True,) else cell + fill)
        line = "  ".join(cells).rstrip()
        yield line if cut is None else _shortened(line, cut)


def _bound(widths: list[int], cut: int | None) -> int:
    """How wide any column but the last may be: so that all fit into *cut*, but no less than a part of it."""
    bound = WIDEST
    if cut is not None:
        least = max(NARROWEST, cut // 4)
        room = cut - min(widths[-1], least) if widths else cut
        while bound > least and sum(min(wide, bound) + 2 for wide in widths[:-1]) > room:
            bound -= 1
    return bound


def _without_middle(text: str, most: int) -> str:
    """*text* in *most* columns; names that begin alike differ at their ends."""
    if _columns_wide(text) <= most:
        return text
    dots = "…" if glyphs() is GLYPHS else "..."
    tail = (most - len(dots)) // 2
    return _shortened(text, most - len(dots) - tail) + dots + _shortened(text[::-1], tail)[::-1]


def _shortened(line: str, cut: int) -> str:
    if len(line) <= cut and _columns_wide(line) <= cut:
        return line
    used = 0
    for end, char in enumerate(line):
        used += _columns_wide(char)
        if used > cut:
            return line[:end]
    return line


def _cells(
    options: argparse.Namespace, rows: Iterable[dict[str, Any]], columns: tuple[Column, ...]
) -> Iterator[list[str]]:
    if not options.no_headings:
        yield [column.title for column in columns]
    for row in rows:
        values = [(column, value_of(row, column.field)) for column in columns]
        yield [escape((column.show or plain)(value, options.raw)) for column, value in values]


def _table(cells: Iterable[list[str]], right: tuple[bool, ...], live: bool) -> Iterator[str]:
    cut = width()
    if not live:
        yield from (line + "\n" for line in aligned(list(cells), right, cut))
        return
    # Aligned to what has been seen so far.
    widest: list[str] = []
    for row in cells:
        widest = [max(pair, key=_columns_wide) for pair in zip(row, widest or row, strict=False)]
        yield list(aligned([widest, row], right, cut))[1] + "\n"


def _json(rows: Iterable[dict[str, Any]], live: bool) -> Iterator[str]:
    if live:
        yield from (encode(row) + "\n" for row in rows)
        return
    before = "[\n"
    for row in rows:
        yield before + encode(row)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def yaml_text(value: Any, stream: bool = False) -> str:
    """*value* as YAML, all of it ASCII; with *stream* as one document of several. Raises HostError without PyYAML."""
    from nestrt.packages import find_package

    find_package("yaml", "python3-yaml")
    import yaml

    options: dict[str, Any] = {"sort_keys": False, "width": 4096, "explicit_start": stream}
    # What is there twice is written twice: readers expect no &anchors.
    never = {"ignore_aliases": lambda self, data: True}
    try:
        fast = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        return str(yaml.dump(value, Dumper=type("Dumper", (fast,), never), **options))
    except UnicodeEncodeError:  # a name of a guest that is not UTF-8: libyaml takes none
        return str(yaml.dump(value, Dumper=type("Dumper", (yaml.SafeDumper,), never), **options))


def _yaml_rows(rows: Iterable[dict[str, Any]], live: bool) -> Iterator[str]:
    empty = True
    for row in rows:
        yield yaml_text(row, True) if live else yaml_text([row])
        empty = False
    if empty and not live:
        yield "[]\n"


def _cell(value: Any) -> str:
    """A value in CSV: raw numbers, nothing for null, JSON for lists and objects; what a guest wrote escaped."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + escape(value) if value.startswith(FORMULA) else escape(value)
    return encode(value)


class _Line:
    """A file for csv.writer."""

    text = ""

    def write(self, text: str) -> None:
        self.text = text


def _csv(options: argparse.Namespace, rows: Iterable[dict[str, Any]], columns: tuple[Column, ...]) -> Iterator[str]:
    import csv

    line = _Line()
    writer = csv.writer(line, lineterminator="\n")
    fields = list(dict.fromkeys(column.field for column in columns))
    if not options.no_headings:
        writer.writerow(fields)
        yield line.text
    for row in rows:
        writer.writerow([_cell(value_of(row, field)) for field in fields])
        yield line.text


def _templated(
    options: argparse.Namespace, rows: Iterable[dict[str, Any]], aliases: dict[str, str], live: bool
) -> Iterator[str]:
    template = Template(options.format, aliases)
    if template.whole and live:
        raise InputError("use", "a template that begins with {{range .}}", "the rows have no end", "leave it out")
    texts = [template.execute(list(rows))] if template.whole else (template.execute(row) for row in rows)
    if template.table:
        yield from _table(_split(options, template, texts), (), live)
    else:
        yield from texts


def _split(options: argparse.Namespace, template: Template, texts: Iterable[str]) -> Iterator[list[str]]:
    for text in texts if options.no_headings else itertools.chain([template.headings()], texts):
        yield from (line.split("\t") for line in text.removesuffix("\n").split("\n"))


def write_rows(
    options: argparse.Namespace,
    rows: Iterable[dict[str, Any]],
    columns: tuple[Column, ...],
    aliases: dict[str, str] | None = None,
    live: bool = False,
) -> int:
    """Write *rows* in the form of ``options.format``; 0.

    A row is a JSON object of stable snake_case names, raw numbers, null for "no limit" and "not known". *aliases*
    are other names that templates know fields by. *live*: the rows have no end or come slowly; each is written at
    once, JSON as one object on each line, YAML as one document each, a table aligned to what has been seen so far.
    """
    return write_text(row_texts(options, rows, columns, aliases, live), live)


def row_texts(
    options: argparse.Namespace,
    rows: Iterable[dict[str, Any]],
    columns: tuple[Column, ...],
    aliases: dict[str, str] | None = None,
    live: bool = False,
) -> Iterator[str]:
    """What write_rows() writes, a text at a time: a row is not asked for before what is before it has been taken."""
    form = options.format
    if is_template(form):
        return _templated(options, rows, aliases or {}, live)
    if form == "json":
        return _json(rows, live)
    if form == "yaml":
        return _yaml_rows(rows, live)
    if form == "csv":
        return _csv(options, rows, columns)
    return _table(_cells(options, rows, columns), tuple(column.right for column in columns), live)


def write_text(texts: Iterable[str], live: bool = False) -> int:
    """Write *texts*, which are whole already, in pieces; 0. A reader who has gone away is no error. HostError."""
    out = Writer(live)
    for text in texts:
        out.write(text)
        if out.gone:
            break
    out.flush()
    return 0


def _document_json(document: dict[str, Any]) -> Iterator[str]:
    """A line for each field, and for each item of a list of objects: what the C encoder can make, and people read."""
    before = "{\n"
    for key, value in document.items():
        yield f"{before}{encode(key)}: "
        before = ",\n"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value):
                yield ("[\n  " if not number else ",\n  ") + encode(item)
            yield "\n]"
        else:
            yield encode(value)
    yield "{}\n" if before == "{\n" else "\n}\n"


def write_document(
    options: argparse.Namespace,
    document: dict[str, Any] | Iterable[str],
    lines: Callable[[], Iterable[str]],
    aliases: dict[str, str] | None = None,
) -> int:
    """Write one nested *document*, or its JSON text in pieces, in the form of ``options.format``; 0.

    Other forms than JSON, YAML and a template are the command's own *lines*, which are escaped already.
    """
    form = options.format
    if form == "json":
        return write_text(_document_json(document) if isinstance(document, dict) else document)
    if form != "yaml" and not is_template(form):
        return write_text(line + "\n" for line in lines())
    value = document if isinstance(document, dict) else json.loads("".join(document))
    if form == "yaml":
        return write_text([yaml_text(value)])
    return write_text(_templated(options, [value], aliases or {}, False))
