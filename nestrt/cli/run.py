"""``nestrt run``: create and start a container, and stay with it."""

from __future__ import annotations

import os

from nestrt.act import relay
from nestrt.act.pipes import open_standard
from nestrt.cli._bundle import OPTIONS, Making
from nestrt.cli.engine import Globals, one_id, words
from nestrt.cli.options import Option
from nestrt.errors import InputError

TEXT = """usage: nestrt run [OPTION …] ID

Create a container from a bundle, run its program, and remove it when that ends."""
OWN = (
    Option("detach", "", "leave when the program runs", "d"),
    Option("keep", "", "do not remove the container when its program has ended"),
    Option("no-subreaper", "", "accepted and without effect: nestrt is no subreaper"),
)


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb; returns the program's own exit status, 128+n for signal n. Raises NestrtError."""
    found = words("run", OPTIONS + OWN, argv, TEXT)
    if found is None:
        return 0
    single, _, operands = found
    making = Making(flags, "run", single, one_id("run", operands))
    terminal = making.spec.process is not None and making.spec.process.terminal
    if terminal and "detach" in single and "console-socket" not in single:
        raise InputError(
            "run",
            f"container {making.id}",
            "cannot allocate tty if runc will detach without setting console socket",
            "give --console-socket, or leave --detach out",
        )
    open_standard()
    if "detach" in single:
        making.make(relay.blocked())
        return 0
    creator = making.make(relay.hold())
    os.close(making.lock)  # it runs, and may be deleted by whoever wants to
    status = relay.foreground(creator.pid, creator.pidfd, creator.master)
    if "keep" not in single:
        making.finish()
    return status
