"""``nestrt tree``: every group of every guest at every level."""

from __future__ import annotations

import argparse

from nestrt.cli._view import glyphs, look, on_terminal, width, write, write_json
from nestrt.host import report
from nestrt.host.marks import escape
from nestrt.host.render import Node, Tree, cut, draw
from nestrt.host.sight import find

EPILOG = """
A group's line has its usage, and its own limits after a slash; where a group around it
allows less, also what it really gets and which group binds. A process is PID (pid in the guest) COMMAND.
"[memory]" behind a v1 group: it is in these hierarchies only.
"""


def _depth(text: str) -> int:
    depth = int(text)
    if depth < 0:
        raise ValueError
    return depth


def main(argv: list[str]) -> int:
    """Carry out ``nestrt tree ARGV``. Returns 0; raises NotFound, InputError (an ambiguous NAME), HostError."""
    parser = argparse.ArgumentParser(
        prog="nestrt tree",
        description="Show every group of every guest, guests made by guests too, with limits and usage.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="one guest: web, web/db, or its limit group's path")
    parser.add_argument("-p", "--processes", action="store_true", help="also the processes")
    parser.add_argument(
        "--depth", type=_depth, metavar="N", help="groups at most N below a guest root (0: none); guests always"
    )
    parser.add_argument("--format", choices=("tree", "json"), default="tree", help="json: see nestrt/host/report.py")
    options = parser.parse_args(argv)
    sight = look()
    view = sight.view
    guests = [find(view, options.name)] if options.name else view.guests
    if options.format == "json":
        shown = report.tree(sight, guests, options.processes, options.depth)
        return write_json({"level": view.level, "name": view.name, "guests": shown})
    picture = Tree(sight, options.processes, options.depth, on_terminal())
    nodes = [picture.guest(guest) for guest in guests]
    if not options.name:
        count = sum(1 for _ in view.everyone())
        text = f"{escape(view.name)}  level {view.level}, {count} guest{'' if count == 1 else 's'}"
        nodes = [Node(text, nodes)]
    columns = width()
    return write(cut(line, columns) for line in draw(nodes[0], glyphs()))
