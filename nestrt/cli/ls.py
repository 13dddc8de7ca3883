"""``nestrt ls``: all guests at all levels, one in a row."""

from __future__ import annotations

import argparse
import time

from nestrt.cli._arguments import Named
from nestrt.cli._formats import TABLE_NAMES, Column, add_options, write_rows
from nestrt.cli._view import look, on_terminal, write, write_json
from nestrt.errors import InputError
from nestrt.host import report
from nestrt.host.marks import escape
from nestrt.host.render import STATES, ago, human, moment
from nestrt.host.sight import find
from nestrt.level.values import suggestion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from nestrt.host.sight import Sight
    from nestrt.host.walk import Guest

EPILOG = """
Guests made by guests have the names of those around them in front: web/db.
STATE is computed: running, if any of the guest's groups has a process. MEMORY and
PIDS are usage/effective limit. MARK is "host" (in a guest: "own") where this level said who the guest is,
and "claim" where somebody inside a guest, or another user, did. CREATED is an age on a terminal, else UTC.
MADE BY is the engine and the runtime, as the mark says: launch, podman/nestrt, docker/plugin.
--filter compares a field of --format json: state=running, level=1, engine=podman, claim=true; of several all hold.
"""
# What podman's users call the fields.
ALIASES = {"ID": "id", "Names": "name", "Status": "state", "CreatedAt": "created", "Image": "rootfs"}


def _used(value: Any, raw: bool, size: Callable[[int], str]) -> str:
    """USE/LIMIT of a limit's object, by what works."""
    if value is None:
        return "-"
    texts = [str(part) if raw and part is not None else part for part in (value["usage"], value["effective"])]
    usage, limit = (part if isinstance(part, str) else None if part is None else size(part) for part in texts)
    return f"{usage or '-'}/{limit or 'max'}"


def columns(level: int) -> tuple[Column, ...]:
    """The table, for whoever looks from *level*."""
    now = time.time()

    def created(value: Any, raw: bool) -> str:
        if value is None or raw:
            return "-" if value is None else str(value)
        return ago(now - value) if on_terminal() and moment(value) != "-" else moment(value)

    own = "own" if level else "host"
    return (
        Column("NAME", "name"),
        Column("LEVEL", "level"),
        Column("STATE", "state"),
        Column("PID", "pid"),
        Column("CPUS", "cpus"),
        Column("MEMORY", "memory", lambda value, raw: _used(value, raw, human)),
        Column("PIDS", "pids", lambda value, raw: _used(value, raw, str)),
        Column("GROUPS", "group_count"),
        Column("CREATED", "created", created),
        Column("MARK", "claim", lambda value, _: "claim" if value else own),
        Column("MADE BY", "made_by"),
        Column("COMMAND", "command"),
    )


# One value in each, for spreadsheets and scripts.
CSV = tuple(
    Column(field, field)
    for field in (
        "name level state pid claim runtime engine locked id path created rootfs command cpus cpu_quota cpu_usec "
        "memory.usage memory.limit memory.effective memory.binds pids.usage pids.limit pids.effective pids.binds "
        "group_count"
    ).split()
)

VALUES = {"state": tuple(STATES), "claim": ("true", "false"), "locked": ("true", "false")}
FITTING = tuple(f"{field}={value}" for field in report.FILTERS for value in VALUES.get(field, ("",)))


def main(argv: list[str]) -> int:
    """Carry out ``nestrt ls ARGV``. Returns 0; raises NotFound, InputError, HostError where there are no cgroups."""
    parser = argparse.ArgumentParser(
        prog="nestrt ls",
        description="List the guests of this level, and their guests, at every level.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="these guests only, with their guests")
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")
    parser.add_argument(
        "--filter", type=Named(FITTING), metavar="FIELD=VALUE", action="append", default=[], help="guests that have it"
    )
    add_options(parser, (*TABLE_NAMES, "openmetrics"))
    options = parser.parse_args(argv)
    if options.quiet and options.format not in ("table", "json"):
        reason = "names only have no other form than lines and json"
        raise InputError("use", f"--quiet with --format {escape(options.format)}", reason, "leave one of them out")
    wanted = [_filter(text) for text in options.filter]
    sight = look()
    tops = [find(sight.view, name) for name in options.names] or sight.view.guests
    guests = list({guest.path: guest for top in tops for guest in top.everyone()}.values())
    if wanted:
        guests = [guest for guest in guests if _fits(report.guest(sight, guest), wanted)]
    if options.quiet and options.format == "json":
        return write_json([guest.name for guest in guests])
    if options.quiet:
        return write(escape(guest.name) for guest in guests)
    if options.format == "openmetrics":
        return _openmetrics(sight, guests)
    rows = (report.guest(sight, guest) for guest in guests)
    return write_rows(options, rows, CSV if options.format == "csv" else columns(sight.view.level), ALIASES)


def _openmetrics(sight: Sight, guests: Iterable[Guest]) -> int:
    from nestrt.cli._formats import write_text
    from nestrt.host.metrics import exposition

    return write_text(exposition(sight, list(guests), False))


def _filter(text: str) -> tuple[str, str]:
    """FIELD and VALUE. Raises InputError."""
    field, equals, value = text.partition("=")
    if not equals or field not in report.FILTERS:
        remedy = suggestion(field, report.FILTERS) if equals else "write FIELD=VALUE"
        raise InputError("use", f"--filter {escape(text)}", "there is no such field" if equals else "no value", remedy)
    return field, value


def _fits(row: dict[str, Any], wanted: list[tuple[str, str]]) -> bool:
    def text(value: Any) -> str:
        return ("true" if value else "false") if isinstance(value, bool) else "" if value is None else str(value)

    return all(text(row[field]) == value for field, value in wanted)
