"""``nestrt audit``: what guests have asked the broker to change, and root by commands, done and refused."""

from __future__ import annotations

import argparse
import json
import re
import time
from datetime import datetime
from itertools import chain, islice
from typing import Any, Iterator

from nestrt.broker.audit_line import DIRECTORY, audit_directory
from nestrt.broker.audit_read import Entry, Follower, Reader
from nestrt.broker.lines import COMMANDS, SUFFIX
from nestrt.cli._formats import Column, add_options, write_rows
from nestrt.cli._view import write
from nestrt.errors import InputError
from nestrt.host.marks import escape
from nestrt.host.short import is_short, pick, split
from nestrt.host.template import is_template
from nestrt.plan.broker import AUDIT

FIELDS = (
    "time", "guest", "peer.user", "peer.pid", "method", "group", "key", "old", "new", "verdict", "message", "repeated",
    "lost", "peer.login",
)  # fmt: skip
# What most lines do not have, and a template may ask for.
ABSENT = {"message": None, "repeated": None, "lost": None}
COLUMNS = tuple(Column(field.rpartition(".")[2].upper(), field) for field in FIELDS)
HEADER = ("TIME", "GUEST", "USER", "PID", "METHOD", "GROUP", "KEY", "OLD", "NEW", "VERDICT")
WIDEST = 40  # characters of a cell; JSON has the whole
BLOCK = 500  # rows that are aligned at once
PAUSE = 0.25  # seconds between two looks
LAST = 10  # lines that --follow begins with
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
EPILOG = """
TIME is 10m, 2h or 3d ago, or like 2026-11-30T12:00, 2026-11-30T12:00:00Z or 12:00; without a zone it is this
machine's. USER and GROUP are as the guest counts, PID as this level does; in parentheses is the user who logged in,
where root has it from su or sudo. A value that is longer than its column ends in "…"; the other forms have it as it
was written down, json as the line itself.
"""


def main(argv: list[str]) -> int:
    """Carry out ``nestrt audit ARGV``. Returns 0; raises InputError, NotFound, KernelError."""
    parser = argparse.ArgumentParser(
        prog="nestrt audit",
        description="Show what guests have asked the broker to change, and what root has changed by update, freeze, "
        "thaw, kill, exec, lock, unlock and host: a line for each change, done or refused.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one guest; left out: all")
    parser.add_argument("--since", metavar="TIME", help="only what came then or later")
    parser.add_argument("--until", metavar="TIME", help="only what came before")
    parser.add_argument("-n", "--lines", type=int, metavar="N", help=f"the last N (with --follow: {LAST})")
    parser.add_argument("-f", "--follow", action="store_true", help="and what is to come, until it is stopped")
    parser.add_argument("--refused", action="store_true", help="only what was refused")
    parser.add_argument("--group", metavar="GROUP", help="only this group of the guest and those below it")
    parser.add_argument("--method", metavar="METHOD", help="only this method: Set, SetLimits, Exec, Freeze …")
    text = f"where it is (default: ${AUDIT}, else {DIRECTORY})"
    parser.add_argument("--directory", metavar="DIR", default=audit_directory(), help=text)
    add_options(parser, ("text", "json", "yaml", "csv"), "text")
    options = parser.parse_args(argv)
    if options.lines is not None and options.lines < 0:
        raise InputError("read", f"--lines {options.lines}", "no such number", "write 0 or more")
    if options.follow and options.until:
        raise InputError("read", "--until with --follow", "what is to come has no end", "leave one of them out")
    now = time.time()
    since, until = (moment(text, now) if text else None for text in (options.since, options.until))
    reader = Reader(options.directory)
    name = None if options.name is None else _named(options.name, reader)

    def keep(entry: Entry) -> bool:
        return (
            (not options.refused or entry.get("verdict") != "done")
            and (not options.method or str(entry.get("method")).lower() == options.method.lower())
            and (not options.group or within(str(entry.get("group")), options.group))
        )

    def parts() -> Iterator[Iterator[Entry]]:
        if not options.follow:
            yield reader.read(name, since, until, options.lines, keep)
            return
        follower = Follower(reader, name, keep)
        lines = LAST if options.lines is None and since is None else options.lines
        yield reader.read(name, since, None, lines, keep, before=follower.begun)
        while True:
            yield iter(follower.poll())
            time.sleep(PAUSE)

    if options.format not in ("text", "json"):
        blocks = parts()
        first = next(blocks)
        # Where there is no audit of that guest this says so, before there are headings.
        begin = list(islice(first, 1))
        rows: Iterator[Entry] = chain(begin, first, chain.from_iterable(blocks))
        if is_template(options.format):
            rows = map(_complete, rows)
        return write_rows(options, rows, COLUMNS, live=options.follow)
    show = Table(not options.no_headings) if options.format == "text" else Plain()
    for part in parts():
        show.write(part)
    return 0


def _named(name: str, reader: Reader) -> str:
    """*name* with an engine's whole id in place of its beginning, where guests of such ids have an audit: also those
    that have ended. Raises InputError, NotFound, KernelError."""
    word, rest = split(name)
    if not is_short(word):
        return name
    # Files are called by what file_name() makes of names: "%2F" of a slash, of an id nothing else.
    bases = (base.removesuffix(SUFFIX).removesuffix(COMMANDS) for base in reader.names())
    found = pick(word, (base.partition("%2F")[0] for base in bases))
    return (found or word) + rest


def _complete(entry: Entry) -> Entry:
    peer = entry.get("peer")
    return {**ABSENT, **entry, "peer": {"login": None, **peer} if isinstance(peer, dict) else None}


def moment(text: str, now: float) -> float:
    """Seconds since the epoch, from "10m" (ago) or a time of ISO 8601. Raises InputError."""
    ago = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if ago:
        return now - int(ago[1]) * SECONDS[ago[2]]
    try:
        if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?", text):
            text = f"{datetime.fromtimestamp(now):%Y-%m-%d}T{text.zfill(5) if len(text) < 6 else text.zfill(8)}"
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        remedy = "write 10m, 2h, 3d, 12:00 or 2026-11-30T12:00"
        raise InputError("read", f"time {text[:80]}", "it is none", remedy) from None


def within(group: str, top: str) -> bool:
    """Whether *group* is *top* or below it, by components."""
    top = "/" + top.strip("/")
    return top in ("/", group) or group.startswith(top + "/")


class Plain:
    """JSON, a line for each entry; ASCII, so that nothing in it reaches a terminal as more than text."""

    def write(self, entries: Iterator[Entry]) -> None:
        while block := list(islice(entries, BLOCK)):
            write(json.dumps(entry, separators=(",", ":")) for entry in block)


class Table:
    """Columns under each other, in blocks: they get wider where a later block needs it."""

    def __init__(self, headings: bool = True) -> None:
        self.widths = [0] * len(HEADER)
        self.begun = not headings

    def write(self, entries: Iterator[Entry]) -> None:
        while block := list(islice(entries, BLOCK)):
            rows = [row(entry) for entry in block]
            if not self.begun:
                rows.insert(0, HEADER)
                self.begun = True
            for column in range(len(HEADER) - 1):
                self.widths[column] = max(self.widths[column], *(len(cells[column]) for cells in rows))
            write("  ".join(map(str.ljust, cells, self.widths)).rstrip() for cells in rows)


def row(entry: Entry) -> tuple[str, ...]:
    """One entry under HEADER."""
    peer = entry.get("peer")
    peer = peer if isinstance(peer, dict) else {}
    user = peer.get("user")
    if peer.get("login") is not None:
        user = f"{user} ({cell(peer['login'])})"
    texts = (user, peer.get("pid"), *(entry.get(key) for key in ("method", "group", "key", "old", "new")))
    verdict = str(entry.get("verdict"))
    if verdict != "done":
        verdict += f": {entry.get('message') or ''}"
    if entry.get("repeated"):
        verdict += f" ({entry['repeated']} times more)"
    if entry.get("lost"):
        verdict += f" ({entry['lost']} lines before it are lost)"
    time_, guest = (cell(entry.get(key), 64) for key in ("time", "guest"))
    return time_, guest, *map(cell, texts), escape(verdict)


def cell(value: Any, most: int = WIDEST) -> str:
    """A value as it may be shown, "-" for none."""
    if value is None or value == "":
        return "-"
    text = escape(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= most else text[: most - 1] + "…"
