"""``nestrt state``: what a container is and does, as JSON (runtime.md, "State")."""

from __future__ import annotations

import sys

from nestrt.act import containers
from nestrt.cli.engine import Globals, one_id, words
from nestrt.jsontext import pretty
from nestrt.oci.state import shown, state

TEXT = "usage: nestrt state ID\n\nPrint the state of a container as JSON."


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb. Raises NotFound ("container does not exist")."""
    found = words("state", (), argv, TEXT)
    if found is None:
        return 0
    container = containers.load(flags.root, one_id("state", found[2]))
    sys.stdout.write(pretty(document(container), "  ") + "\n")
    return 0


def document(container: containers.Container, owner: str = "") -> dict[str, object]:
    """What ``state`` and ``list`` print of one container."""
    found = state(
        container.id,
        container.status(),
        container.pid,
        container.bundle,
        container.text("ociVersion"),
        container.annotations,
    )
    return shown(found, container.text("rootfs"), container.created, owner)
