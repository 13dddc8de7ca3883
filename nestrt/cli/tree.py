"""``nestrt tree``: every group of every guest at every level."""

from __future__ import annotations

import argparse

from nestrt.cli._arguments import Named, count
from nestrt.cli._formats import Column, add_options, write_document, write_rows
from nestrt.cli._view import glyphs, look, style, width
from nestrt.controllers.table import CONTROLLERS
from nestrt.errors import InputError, NotFound
from nestrt.host import report
from nestrt.host.marks import escape
from nestrt.host.render import Node, Tree, draw
from nestrt.host.sight import Sight, find
from nestrt.host.style import cut
from nestrt.host.walk import Guest
from nestrt.host.why import subject
from nestrt.level.values import suggestion
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

EPILOG = """
A group's line has its usage, and its own limits after a slash; where a group around it
allows less, also what it really gets and which group binds: nestrt why tells more. A process is
PID (pid in the guest) COMMAND. "[memory]" behind a v1 group: it is in these hierarchies only.
On a terminal there are colours, unless NO_COLOR is set, and bars of what is used.
"""


# Of CSV: a row for each limit of each group.
FIELDS = ("guest", "level", "group", "key", "unit", "limit", "effective", "binds", "usage")
LIMITING = tuple(one.name for one in CONTROLLERS if any(file.combine != "none" for file in one.files(2)))
COLUMNS = tuple(Column(field.upper(), field) for field in FIELDS)


def main(argv: list[str]) -> int:
    """Carry out ``nestrt tree ARGV``. Returns 0; raises NotFound, InputError (an ambiguous NAME), HostError."""
    parser = argparse.ArgumentParser(
        prog="nestrt tree",
        description="Show every group of every guest, guests made by guests too, with limits and usage.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", metavar="NAME|GROUP", nargs="?", help="one guest: web, web/db, a short id, or its limit group's path; "
        "or a group of one: web:/job, /nestrt/web/guest/job"
    )  # fmt: skip
    parser.add_argument("-p", "--processes", action="store_true", help="also the processes")
    parser.add_argument(
        "--depth", type=count, metavar="N", help="groups at most N below a guest root (0: none); guests always"
    )
    parser.add_argument(
        "--controller", type=Named(LIMITING), metavar="NAME", action="append", default=[],
        help="only its limits: memory, cpu, cpuset, pids…",
    )  # fmt: skip
    add_options(parser, ("tree", "json", "yaml", "csv"), "tree")
    options = parser.parse_args(argv)
    sight = look([options.name] if options.name else ())
    view = sight.view
    controllers = _controllers(sight, options.controller) if options.controller else None
    guests = [_named(sight, options.name)] if options.name else view.guests

    if options.format == "csv":
        if options.processes:
            reason = "a row is a limit of a group"
            raise InputError("show", "processes as CSV", reason, "nestrt ps --format csv has them")
        return write_rows(options, report.tree_rows(sight, guests, options.depth, controllers), COLUMNS)

    def document() -> Iterator[str]:
        head = report.dumps({"level": view.level, "name": view.name})
        yield head[:-1] + ', "guests": '
        yield from report.tree_text(sight, guests, options.processes, options.depth, controllers)
        yield "}\n"

    def lines() -> Iterator[str]:
        picture = Tree(sight, options.processes, options.depth, style(), controllers)
        nodes = [picture.guest(guest) for guest in guests]
        if not options.name:
            count = sum(1 for _ in view.everyone())
            text = f"{escape(view.name)}  level {view.level}, {count} guest{'' if count == 1 else 's'}"
            nodes = [Node(text, nodes)]
        columns = width()
        yield from (cut(line, columns) for line in draw(nodes[0], glyphs()))

    return write_document(options, document(), lines)


def _controllers(sight: Sight, names: list[str]) -> frozenset[str]:
    """*names*, by v2's name where v1 has another. Raises InputError for one that no hierarchy has."""
    alike = {"blkio": "io"}
    known = {alike.get(name, name) for h in sight.view.hierarchies for name in h.controllers}
    wanted = frozenset(alike.get(name, name) for name in names)
    if unknown := sorted(wanted - known):
        remedy = suggestion(unknown[0], sorted(known))
        raise InputError("show", f"controller {escape(unknown[0])}", "no hierarchy here has it", remedy)
    return wanted


def _named(sight: Sight, name: str) -> Guest:
    """The guest *name*, or what there is of a guest at and below one of its groups. Raises NotFound, InputError."""
    try:
        return find(sight.view, name)
    except NotFound:
        if "/" not in name and ":" not in name:
            raise
    found = subject(sight.view.hierarchies, name)
    path = next(iter(found.groups.values()))
    around = found.guest(path)
    if around is None:
        raise NotFound("show", f"group {escape(path)}", "it is of no guest", "nestrt ls shows all guests")
    guest = find(sight.view, around.path)
    below = path + "/"
    return replace(
        guest,
        groups=[group for group in guest.groups if group.path == path or group.path.startswith(below)],
        guests=[inner for inner in guest.guests if inner.path.startswith(below)],
    )
