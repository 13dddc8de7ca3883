"""``nestrt lock``: a guest goes on running and changes nothing about its control groups any more."""

from __future__ import annotations

import argparse
import sys

from nestrt.cli._host_audit import Change
from nestrt.cli._locks import locks_of
from nestrt.cli._target import each
from nestrt.errors import StateError, one_line

EPILOG = """
A locked guest, and every guest in it, can make and remove no group, set no limit and move no process between its
groups, by its own hand or through the broker, until nestrt unlock. What runs goes on; new processes stay where their
parents are. It is frozen for the moment of locking. See nestrt-lock(1) for what holds against whom.
"""


def main(argv: list[str]) -> int:
    """Carry out ``nestrt lock ARGV``. Returns 0, or the exit status of the last guest where it failed.

    Raises, of a single one, NotFound, InputError, StateError, HostError, KernelError."""
    parser = argparse.ArgumentParser(
        prog="nestrt lock",
        description="Lock the control groups of guests: until they are unlocked they change nothing about them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="+", help="web, web/db, a short id, or a limit group's path")
    text = "lock also what would not hold against everything, and say what that is"
    parser.add_argument("--weak", action="store_true", help=text)
    options = parser.parse_args(argv)
    return each(options.names, "lock", lambda name: _lock(name, options.weak))


def _lock(name: str, weak: bool) -> None:
    for lock, guest, view in locks_of([name]):
        with Change("Lock", view, guest) as change:
            change.note("locked", None, True)
            if guest.mark.state == "creating":
                # Who starts it hands groups over last of all.
                raise StateError("lock", f"guest {lock.name}", "it is being started", "try again")
            with lock:
                change.note("locked", lock.doc is not None, True)
                doc = lock.lock(weak)
        for line in doc.weak:
            print(one_line(f"nestrt: warning: guest {lock.name}: {line}"), file=sys.stderr)
