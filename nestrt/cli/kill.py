"""``nestrt kill``: send a signal to a container's first process, or to all of its processes."""

from __future__ import annotations

from nestrt.act import containers
from nestrt.act.signals import signal_all, signal_first, signal_number
from nestrt.cli.engine import Globals, hierarchies_of, words
from nestrt.cli.options import Option
from nestrt.errors import InputError

KILL = 9
TEXT = "usage: nestrt kill [--all] ID [SIGNAL]\n\nSend SIGNAL (default: SIGTERM) to the container's first process."
OPTIONS = (Option("all", "", "to all of its processes", "a"),)


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb. Raises NotFound, StateError ("container not running")."""
    found = words("kill", OPTIONS, argv, TEXT)
    if found is None:
        return 0
    single, _, operands = found
    if not 1 <= len(operands) <= 2:
        raise InputError("kill", "a container", "one id and one signal at most", "write nestrt kill ID SIGTERM")
    number = signal_number(operands[1] if len(operands) == 2 else "SIGTERM")
    container = containers.load(flags.root, operands[0])
    if "all" in single:
        signal_all(container, hierarchies_of(container), number)
        return 0
    # Without a pid namespace of its own the others live on, and nothing would end them.
    shared = number == KILL and container.cgroup and container.document.get("own_pids") is False
    if shared and signal_all(container, hierarchies_of(container), number):
        return 0
    container.require("kill", "created", "running", "paused")
    signal_first(container, number)
    return 0
