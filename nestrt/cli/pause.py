"""``nestrt pause``: stop every process of a container, those in the guest's own child groups too."""

from __future__ import annotations

from nestrt.act.containers import load
from nestrt.act.freeze import freeze
from nestrt.cli.engine import one_id, words
from nestrt.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.cli.engine import Globals


def main(flags: Globals, argv: list[str]) -> int:
    """Carry out ``nestrt pause ID``. Raises StateError ("container not running"), HostError without a group."""
    given = words("pause", (), argv, "usage: nestrt pause ID\n\nStop every process of a container, until resume.")
    if given is None:
        return 0
    container = load(flags.root, one_id("pause", given[2]))
    status = container.status()
    if status not in ("running", "created") or container.frozen():
        raise StateError("pause", f"container {container.id}", "container not running", f"it is {status}")
    freeze(container)
    return 0
