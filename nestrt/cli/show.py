"""``nestrt show NAME``: all there is to say of one guest."""

from __future__ import annotations

import argparse

from nestrt.cli._view import look, write, write_json
from nestrt.host import report
from nestrt.host.details import details
from nestrt.host.sight import find


def main(argv: list[str]) -> int:
    """Carry out ``nestrt show ARGV``. Returns 0; raises NotFound, InputError (an ambiguous NAME), HostError."""
    parser = argparse.ArgumentParser(
        prog="nestrt show",
        description="Show one guest: who it is, its limits and what binds them, usage, groups, processes, devices.",
    )
    parser.add_argument("name", metavar="NAME", help="web, web/db for a guest's guest, or its limit group's path")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: see nestrt/host/report.py")
    options = parser.parse_args(argv)
    sight = look()
    guest = find(sight.view, options.name)
    if options.format == "json":
        return write_json(report.everything(sight, guest))
    return write(details(sight, guest))
