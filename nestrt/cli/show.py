"""``nestrt show NAME``: all there is to say of one guest."""

from __future__ import annotations

import argparse

from nestrt.cli._formats import add_options, write_document
from nestrt.cli._view import look
from nestrt.cli.check import check
from nestrt.cli.ls import ALIASES
from nestrt.errors import NestrtError
from nestrt.host import report
from nestrt.host.details import details
from nestrt.host.laws import by_law
from nestrt.host.sight import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.laws_subject import Finding
    from nestrt.host.sight import Sight
    from nestrt.host.walk import Guest

EPILOG = """
Of limits there is what was given (LIMIT), what works (EFFECTIVE) with the group that sets it (BINDS:
nestrt why tells more), and what the guest is shown IN THE GUEST, CPUs in its own numbers.
A section "claims" has what somebody inside a guest, or another user, said.
"""


def main(argv: list[str]) -> int:
    """Carry out ``nestrt show ARGV``. Returns 0; raises NotFound, InputError (an ambiguous NAME), HostError."""
    parser = argparse.ArgumentParser(
        prog="nestrt show",
        description="Show one guest: who it is, its limits and what binds them, usage, pressure, groups, processes, "
        "devices, laws.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="web, web/db for a guest's guest, a short id, or its limit group")
    add_options(parser, ("text", "json", "yaml"), "text")
    options = parser.parse_args(argv)
    sight = look([options.name])
    guest = find(sight.view, options.name)
    shown, laws = report.live(sight, guest), _laws(sight, guest)
    document = {
        **report.everything(sight, guest),
        **shown,
        "laws": [{"law": each.law, "holds": each.holds, "what": each.what} for each in laws],
    }
    return write_document(options, document, lambda: details(sight, guest, shown, laws, options.raw), ALIASES)


def _laws(sight: Sight, guest: Guest) -> tuple[Finding, ...]:
    """What can be seen of the laws; () for a guest that has ended, or may not be looked at."""
    try:
        found, _, _ = check(sight, guest, 0, True)
    except (NestrtError, OSError):
        return ()
    return by_law(found)
