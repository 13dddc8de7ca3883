"""``nestrt top``: what guests use, live; in plain passes where output is no terminal, or when asked to."""

from __future__ import annotations

import argparse
import os
import sys
import time

from nestrt.cli import _formats
from nestrt.cli._arguments import between, count
from nestrt.cli._top_cells import CSV, TABLE, size
from nestrt.cli._view import note_unseen, on_terminal, width
from nestrt.errors import NotFound
from nestrt.host.finder import Finder
from nestrt.host.marks import escape
from nestrt.host.sample import Sampler, Usage
from nestrt.host.sample_rows import ORDERS, Choice, arrange, as_json
from nestrt.host.sight import find
from nestrt.host.template import is_template
from nestrt.probe.facts import read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nestrt.plan.facts import Hierarchy

FIRST = 0.5  # s between the two samples that the first pass is made of
PATIENCE = 2.0  # s of looking for guests in places where there is hardly ever one
SHORTEST, LONGEST = 0.1, 3600.0
# Of the time between two passes, at most so much is for looking for guests and for reading limits again.
FINDING, LIMITS = 0.03, 0.02

EPILOG = """
On a terminal the screen is kept up to date: h or ? tells the keys, q quits. Elsewhere, or with -b, plain passes are
written; one, unless -n says otherwise. A pass needs two samples: the first one's are half a second apart.

CPU% is of one CPU, QUOTA% of the effective quota, THROTTLED% of the quota's periods. MEMORY and PIDS
are usage/effective limit. PRESSURE is the part of the last ten seconds in which something waited for CPU, memory
and I/O. A guest's guests are in what it uses. Templates know podman's names too: {{.ID}} {{.Name}}
{{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.PIDs}} {{.BlockIO}}.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nestrt top",
        description="Show what guests use: CPU, memory, I/O, processes, pressure.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="these guests, or those below the group /NAME")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--order", choices=ORDERS, default="cpu", help="what the largest of comes first (cpu)")
    for letter, name in (("p", "path"), ("t", "tasks"), ("c", "cpu"), ("m", "memory"), ("i", "io")):
        order.add_argument(f"-{letter}", dest="order", action="store_const", const=name, help=f"--order={name}")
    parser.add_argument("--reverse", action="store_true", help="the smallest first")
    parser.add_argument(
        "-g", "--by", choices=("guest", "level", "group"), default="guest", help="a row for each of these (guest)"
    )
    parser.add_argument(
        "--depth", type=count, metavar="N", help="guests at most N levels below this one; groups N below a guest root"
    )
    parser.add_argument("--filter", default="", metavar="TEXT", help="names and paths with TEXT in them only")
    parser.add_argument("-b", "--batch", action="store_true", help="plain passes, also on a terminal")
    parser.add_argument("-n", "--iterations", type=count, metavar="N", help="end after N passes; 0: never")
    parser.add_argument("-1", dest="iterations", action="store_const", const=1, help="--iterations=1")
    parser.add_argument("--no-stream", dest="once", action="store_true", help="one plain pass: -b -n 1")
    delay = between(SHORTEST, LONGEST, float)
    parser.add_argument("-d", "--delay", type=delay, default=1.0, metavar="SECONDS", help="between passes (1)")
    parser.add_argument("-r", dest="raw", action="store_true", help="--raw")
    _formats.add_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Carry out ``nestrt top ARGV``. Returns 0; raises NotFound, InputError (an ambiguous NAME), HostError."""
    options = _parser().parse_args(argv)
    if options.once:
        options.batch, options.iterations = True, 1
    hierarchies = read_hierarchies()
    choice = Choice(
        by=options.by,
        order=options.order,
        reverse=options.reverse,
        tree=options.order == "path",
        text=options.filter,
        depth=options.depth,
        names=_paths(options.names, hierarchies),
    )
    full = on_terminal() and sys.stdin is not None and sys.stdin.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    sampler = Sampler(hierarchies, choice.by == "group", choice.names)
    note_unseen(sampler.finder.view)
    if full and not options.batch and options.format == "table":
        from nestrt.cli._top_terminal import run

        return run(sampler, choice, options.delay, options.iterations or 0)
    if options.iterations is None:
        options.iterations = 0 if on_terminal() else 1
    try:
        return _batch(options, sampler, choice)
    finally:
        sampler.close()


def _paths(names: list[str], hierarchies: tuple[Hierarchy, ...]) -> tuple[str, ...]:
    """The limit groups of the guests called *names*; a path of any group is taken as it is. NotFound, InputError."""
    return tuple(dict.fromkeys(_path(name, hierarchies) for name in names))


def _path(name: str, hierarchies: tuple[Hierarchy, ...]) -> str:
    path = "/" + name.strip("/")
    plain = name[:1] == "/" and path != "/" and ".." not in path.split("/")
    if plain and any(os.path.isdir(hierarchy.path(path)) for hierarchy in hierarchies):
        return path
    finder = Finder(hierarchies)
    while not finder.settled:
        finder.look(1.0)
    while not finder.complete:
        try:
            return find(finder.view, name).path
        except NotFound:
            finder.look(1.0)
    return find(finder.view, name).path


def _passes(options: argparse.Namespace, sampler: Sampler, choice: Choice) -> Iterator[list[Usage]]:
    """The rows of each pass, in order, as long as *options* say."""
    sampler.find_all(PATIENCE if choice.by != "group" else float("inf"))
    sampler.read_limits(float("inf"))
    sampler.sample()
    delay = min(options.delay, FIRST)
    done = 0
    while True:
        time.sleep(delay)
        spare = FINDING * options.delay
        sampler.find(spare)
        sampler.read_limits(LIMITS * options.delay)
        sampler.sample()
        yield [usage for usage, _ in arrange(sampler.usages, choice, sampler.own.level)]
        done += 1
        if done == options.iterations:
            return
        delay = options.delay


def _batch(options: argparse.Namespace, sampler: Sampler, choice: Choice) -> int:
    passes = _passes(options, sampler, choice)
    if options.format == "table":
        return _tables(options, passes)
    rows = (_row(options, usage, time.time()) for usages in passes for usage in usages)
    return _formats.write_rows(options, rows, CSV, ALIASES, live=options.iterations != 1)


def _tables(options: argparse.Namespace, passes: Iterator[list[Usage]]) -> int:
    """A table for each pass, with an empty line between two."""
    out = _formats.Writer(live=True)
    before = ""
    for usages in passes:
        cells = [] if options.no_headings else [[column.title for column in TABLE]]
        for usage in usages:
            row = as_json(usage, 0.0)
            values = [(column, _formats.value_of(row, column.field)) for column in TABLE]
            cells.append([escape((column.show or _formats.plain)(value, options.raw)) for column, value in values])
        lines = _formats.aligned(cells, tuple(column.right for column in TABLE), width())
        out.write(before + "".join(line + "\n" for line in lines))
        before = "\n"
        if out.gone:
            break
    return 0


# What podman stats calls it.
ALIASES = {"ContainerID": "id", "CPU": "cpu_percent", "Container": "name"}


def _row(options: argparse.Namespace, usage: Usage, now: float) -> dict[str, Any]:
    """A row as JSON; for a template also with podman's texts."""
    row = as_json(usage, now)
    if is_template(options.format):
        counters = usage.counters
        row["cpu_perc"] = _percent(usage.cpu_percent)
        row["mem_perc"] = _percent(row["memory_percent"])
        row["mem_usage"] = f"{size(counters.memory)} / {size(usage.effective('memory.max'))}"
        row["block_io"] = f"{size(counters.io_read_bytes)} / {size(counters.io_write_bytes)}"
        if ".PIDs" in options.format:  # as podman spells it; .Pids is the limit with its usage
            row["pids"] = counters.pids
    return row


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{value:.2f}%"
