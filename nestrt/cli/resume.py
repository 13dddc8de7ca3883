"""``nestrt resume``: let a paused container go on."""

from __future__ import annotations

from nestrt.act.containers import load
from nestrt.act.freeze import thaw
from nestrt.cli.engine import one_id, words
from nestrt.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.cli.engine import Globals


def main(flags: Globals, argv: list[str]) -> int:
    """Carry out ``nestrt resume ID``. Raises StateError ("container not paused") and HostError without a group."""
    given = words("resume", (), argv, "usage: nestrt resume ID\n\nLet the processes of a paused container go on.")
    if given is None:
        return 0
    container = load(flags.root, one_id("resume", given[2]))
    status = container.status()
    # One that was paused before its start counts as created.
    if status != "paused" and not (status == "created" and container.frozen()):
        raise StateError("resume", f"container {container.id}", "container not paused", f"it is {status}")
    thaw(container)
    return 0
