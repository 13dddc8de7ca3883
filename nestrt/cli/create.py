"""``nestrt create``: make a container and leave its first process waiting to be started."""

from __future__ import annotations

from nestrt.act import relay
from nestrt.act.pipes import open_standard
from nestrt.cli._bundle import OPTIONS, Making
from nestrt.cli.engine import Globals, one_id, words
from nestrt.errors import InputError

TEXT = "usage: nestrt create [OPTION …] ID\n\nCreate a container from a bundle; nestrt start runs its program."


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb. Raises NestrtError."""
    found = words("create", OPTIONS, argv, TEXT)
    if found is None:
        return 0
    single, _, operands = found
    making = Making(flags, "create", single, one_id("create", operands))
    process = making.spec.process
    if process is not None and process.terminal and "console-socket" not in single:
        raise InputError(
            "create",
            f"container {making.id}",
            "cannot allocate tty if runc will detach without setting console socket",
            "give --console-socket, or set process.terminal to false",
        )
    open_standard()
    making.make(relay.blocked())
    return 0
