"""``nestrt start``: run the program of a created container."""

from __future__ import annotations

from nestrt.act import containers
from nestrt.act.started import start
from nestrt.cli.engine import Globals, one_id, warn, words
from nestrt.errors import StateError

TEXT = "usage: nestrt start ID\n\nRun the program of a container that was created."


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb. Raises NestrtError."""
    found = words("start", (), argv, TEXT)
    if found is None:
        return 0
    container = containers.load(flags.root, one_id("start", found[2]))
    status = container.status()
    if status in ("running", "paused"):
        reason = "cannot start an already running container"
        raise StateError("start", f"container {container.id}", reason, "see: nestrt exec")
    if status != "created":
        reason = "cannot start a container that has stopped" if status == "stopped" else f"it is {status}"
        raise StateError("start", f"container {container.id}", reason, "create it again")
    start(container, lambda text: warn(flags, text))
    return 0
