"""``nestrt unlock``: give a locked guest its control groups back, as they were."""

from __future__ import annotations

import argparse

from nestrt.cli._host_audit import Change
from nestrt.cli._locks import locked_around, locks_of
from nestrt.cli._target import each
from nestrt.errors import StateError


def main(argv: list[str]) -> int:
    """Carry out ``nestrt unlock ARGV``. Returns 0, or the exit status of the last guest where it failed.

    Raises, of a single one, NotFound, InputError, StateError, KernelError."""
    parser = argparse.ArgumentParser(
        prog="nestrt unlock",
        description="Unlock guests: every group gets back the owners and modes that it had before nestrt lock.",
    )
    parser.add_argument("names", metavar="NAME", nargs="+", help="web, web/db, a short id, or a limit group's path")
    return each(parser.parse_args(argv).names, "unlock", _unlock)


def _unlock(name: str) -> None:
    for lock, guest, view in locks_of([name], "unlock"):
        outer = locked_around(view, guest)
        with Change("Unlock", view, guest) as change, lock:
            change.note("locked", lock.doc is not None, False)
            if outer and lock.doc is None:
                reason = f"it is locked with guest {outer.name}, which it is in"
                raise StateError("unlock", f"guest {lock.name}", reason, f"nestrt unlock {outer.name}")
            lock.unlock(outer)
