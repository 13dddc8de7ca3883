"""``nestrt ps``, the host's form: the processes of all guests, at every level."""

from __future__ import annotations

import argparse

from nestrt.cli._arguments import Named
from nestrt.cli._formats import Column, add_options, plain, write_rows
from nestrt.cli._view import glyphs, look, width, write
from nestrt.errors import InputError
from nestrt.host.marks import escape
from nestrt.host.process_rows import Rows, ordered, tree
from nestrt.host.render import Node, draw, human, moment
from nestrt.host.sight import find
from nestrt.host.style import cut
from nestrt.level.values import suggestion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nestrt.host.process_rows import Row
    from nestrt.host.sight import Sight
    from nestrt.host.walk import Guest

EPILOG = """
A process is listed once, with its innermost guest. PID, USER and GROUP are the host's and the guest's: USER is the real
user outside, by name, GUEST USER its number inside. S is the state, as ps(1) has it. FIELDs to sort by are those of
--format json; several with commas between, with a "-" in front the largest first. For a container of the OCI command
line: nestrt ps ID, see nestrt-ps(1).
"""
# What podman top, and ps(1), call the fields.
ALIASES = {
    "HPid": "pid", "HUser": "user", "Args": "command", "Cmd": "command", "Comm": "name", "ETime": "elapsed",
    "Time": "cpu_usec", "PPid": "parent", "Nlwp": "threads", "Stat": "state",
}  # fmt: skip
FIELDS = (
    "pid", "guest_pid", "guest", "level", "uid", "user", "guest_uid", "group", "guest_group", "name", "parent", "state",
    "start", "started", "elapsed", "cpu_usec", "rss", "threads", "command",
)  # fmt: skip
SHORT = {"cpu": "cpu_usec", "time": "cpu_usec", "mem": "rss", "etime": "elapsed", "ppid": "parent"}
SORTABLE = tuple(sign + word for sign in ("", "-") for word in (*FIELDS, *SHORT))


def clock(seconds: int) -> str:
    """A span of time as ps(1) has it: [[D-]HH:]MM:SS."""
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    text = f"{rest // 60:02}:{rest % 60:02}"
    if days or hours:
        text = f"{hours:02}:{text}"
    return f"{days}-{text}" if days else text


def _elapsed(value: Any, raw: bool) -> str:
    return plain(value) if raw or value is None else clock(value)


def _cpu(value: Any, raw: bool) -> str:
    if raw or value is None:
        return plain(value)
    minutes, rest = divmod(value // 10_000, 6000)
    return f"{minutes}:{rest // 100:02}.{rest % 100:02}"


def _size(value: Any, raw: bool) -> str:
    return plain(value) if raw or value is None else human(value)


COLUMNS = (
    Column("PID", "pid", right=True),
    Column("GUEST PID", "guest_pid", right=True),
    Column("GUEST", "guest"),
    Column("LEVEL", "level", right=True),
    Column("USER", "user"),
    Column("GUEST USER", "guest_uid", right=True),
    Column("GROUP", "guest_group"),
    Column("S", "state"),
    Column("ELAPSED", "elapsed", _elapsed, right=True),
    Column("CPU", "cpu_usec", _cpu, right=True),
    Column("RSS", "rss", _size, right=True),
    Column("COMMAND", "command"),
)
CSV = tuple(Column(field, field) for field in FIELDS)


def _sort(text: str) -> list[tuple[str, bool]]:
    """(field, backwards) for each of ``--sort``. Raises InputError."""
    found = []
    for word in text.split(","):
        name = word.removeprefix("-").removeprefix("+").strip().lower()
        field = SHORT.get(name, name)
        if field not in FIELDS:
            remedy = suggestion(name, FIELDS) or "see --format json"
            raise InputError("sort by", escape(name) or "nothing", "processes have no such field", remedy)
        found.append((field, word.startswith("-")))
    return found


def _joined(argv: list[str]) -> list[str]:
    """*argv* with ``--sort -rss``, as ps(1) has it, in one word: argparse takes it for two options."""
    words: list[str] = []
    for word in argv:
        if words[-1:] == ["--sort"]:
            words[-1] += "=" + word
        else:
            words.append(word)
    return words


def main(argv: list[str]) -> int:
    """Carry out ``nestrt ps ARGV``. Returns 0; raises NotFound, InputError, HostError where there are no cgroups."""
    parser = argparse.ArgumentParser(
        prog="nestrt ps",
        description="List the processes of guests, and of their guests, at every level.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="these guests only, with their guests")
    parser.add_argument("-t", "--tree", action="store_true", help="guests, their processes by parent, their guests")
    parser.add_argument(
        "--guest", metavar="NAME", action="append", default=[], help="this guest alone, without its guests"
    )
    by = Named(SORTABLE, _sort)
    parser.add_argument("--sort", metavar="FIELD", type=by, default=[], help="rss, -cpu, guest,-elapsed")
    add_options(parser)
    options = parser.parse_args(_joined(argv))
    if options.tree and (options.format != "table" or options.sort):
        raise InputError("draw", "a tree", "it has a form and an order of its own", "leave out --format and --sort")
    sight = look(options.names + options.guest)
    tops = [find(sight.view, name) for name in options.names]
    alone = [find(sight.view, name) for name in options.guest]
    if not tops and not alone:
        tops = sight.view.guests
    guests = {guest.path: guest for top in tops for guest in top.everyone()}
    guests.update((guest.path, guest) for guest in alone)
    if options.tree:
        return _tree(sight, set(guests), options.raw)
    found = Rows().rows(sight, _in_order(sight, guests))
    columns = CSV if options.format == "csv" else COLUMNS
    return write_rows(options, ordered(found, options.sort) if options.sort else found, columns, ALIASES)


def _in_order(sight: Sight, guests: dict[str, Guest]) -> list[Guest]:
    return [guest for guest in sight.view.everyone() if guest.path in guests]


def _tree(sight: Sight, wanted: set[str], raw: bool) -> int:
    def show(row: Row) -> str:
        if not row["pid"]:
            return f"?  {escape(row['guest_group'])}  outside our pid namespace"
        started = str(row["started"]) if raw else moment(row["started"])
        numbers = f"{row['pid']} ({plain(row['guest_pid'])})"
        users = f"{row['user']} ({plain(row['guest_uid'])})"
        used = f"{_cpu(row['cpu_usec'], raw)}  {_size(row['rss'], raw)}"
        return f"{numbers}  {escape(users)}  {row['state']}  {started}  {used}  {escape(row['command'])}"

    nodes = tree(sight, sight.view.guests, wanted, Rows(), show)
    head = Node(f"{escape(sight.view.name)}  level {sight.view.level}", nodes)
    columns = width()
    return write(cut(line, columns) for line in draw(head, glyphs()))
