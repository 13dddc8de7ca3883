"""``nestrt ls``: all guests at all levels, one in a row."""

from __future__ import annotations

import argparse
import time

from nestrt.cli._view import look, on_terminal, width, write, write_json
from nestrt.host import report
from nestrt.host.marks import escape
from nestrt.host.render import LS_HEADER, ls_row, table

EPILOG = """
Guests made by guests have the names of those around them in front: web/db.
STATE is computed: running, if any of the guest's groups has a process. MEMORY and
PIDS are usage/effective limit. MARK is "host" (in a guest: "own") where this level said who the guest is,
and "claim" where somebody inside a guest, or another user, did. CREATED is an age on a terminal, else UTC.
"""


def main(argv: list[str]) -> int:
    """Carry out ``nestrt ls ARGV``. Returns 0; raises HostError where there are no cgroups."""
    parser = argparse.ArgumentParser(
        prog="nestrt ls",
        description="List the guests of this level, and their guests, at every level.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json: see nestrt/host/report.py")
    options = parser.parse_args(argv)
    sight = look()
    guests = list(sight.view.everyone())
    if options.format == "json":
        return write_json([guest.name if options.quiet else report.guest(sight, guest) for guest in guests])
    if options.quiet:
        return write(escape(guest.name) for guest in guests)
    now = time.time() if on_terminal() else None
    return write(table([LS_HEADER, *(ls_row(sight, guest, now) for guest in guests)], width()))
