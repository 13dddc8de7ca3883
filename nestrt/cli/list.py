"""``nestrt list``: all containers below ``--root``."""

from __future__ import annotations

import sys

from nestrt.act import containers
from nestrt.cli.engine import Globals, warn, words
from nestrt.cli.options import Option
from nestrt.cli.state import document
from nestrt.errors import InputError, NestrtError
from nestrt.jsontext import dumps

TEXT = "usage: nestrt list [--format table|json] [--quiet]\n\nList the containers below --root."
OPTIONS = (
    Option("format", "FORMAT", "table (default) or json", "f", choices=("table", "json")),
    Option("quiet", "", "print the ids alone", "q"),
)
HEAD = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")


def _owner(uid: object) -> str:
    """The name of the user who made it, else the number, as runc has it."""
    import pwd

    try:
        return pwd.getpwuid(int(str(uid))).pw_name
    except (KeyError, ValueError):
        return f"#{uid}"


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb; a container whose state cannot be read is warned of, and left out."""
    found = words("list", OPTIONS, argv, TEXT)
    if found is None:
        return 0
    single, _, operands = found
    form = single.get("format", "table")
    if form not in ("table", "json"):
        raise InputError("list", "containers", f"invalid format option {form!a}", "write table or json")
    if operands:
        raise InputError("read", f"operand {operands[0]!a}", "list takes none", "nestrt state ID shows one")
    rows = []
    for container in containers.all_containers(flags.root):
        if isinstance(container, NestrtError):
            warn(flags, str(container))
        elif "quiet" in single:
            print(container.id)
        else:
            rows.append(document(container, _owner(container.document.get("owner", 0))))
    if "quiet" in single:
        return 0
    if form == "json":
        print(dumps(rows) if rows else "null")
        return 0
    keys = ("id", "pid", "status", "bundle", "created", "owner")
    table = [HEAD, *(tuple(str(row[key]) for key in keys) for row in rows)]
    widths = [max(len(line[column]) for line in table) + 3 for column in range(len(HEAD))]
    for line in table:
        # As Go's tabwriter: padded to the widest, three spaces at least, the last column as it is.
        sys.stdout.write("".join(f"{text:<{width}}" for text, width in zip(line[:-1], widths, strict=False)) + line[-1])
        sys.stdout.write("\n")
    return 0
