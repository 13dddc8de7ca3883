"""``nestrt thaw NAME…``: let the processes of a frozen guest go on."""

from __future__ import annotations

from nestrt.act.freeze import places
from nestrt.cli._host_audit import Change
from nestrt.cli._target import each, look, require_root, words
from nestrt.errors import HostError, KernelError, StateError
from nestrt.kernel import freezer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.walk import Guest, View

HEAD = """usage: nestrt thaw NAME …

Let the processes of a guest that nestrt freeze, or its engine, has stopped go on.
What the guest has frozen of itself stays frozen."""


def _thaw(name: str) -> None:
    view, guest = look(name)
    require_root("thaw", guest)
    with Change("Thaw", view, guest) as change:
        _thaw_now(view, guest, change)


def _thaw_now(view: View, guest: Guest, change: Change) -> None:
    what = f"guest {guest.name}"
    found = places(guest.path)
    if not found:
        raise HostError("thaw", what, "it has no group that could be frozen", "")
    change.note("frozen", False, False)
    try:
        for directory, version in found:  # a hybrid host has two ways, and either may have been taken
            if freezer.asked(directory, version):
                change.note("frozen", True, False)
                freezer.thaw(directory, version)
    except OSError as error:
        raise KernelError("thaw", what, error.errno or 0, "see whether it is still there: nestrt ls") from error
    if above := _frozen_above(view, guest.path):
        raise StateError("thaw", what, f"{above} is frozen, and it with that", "thaw that one")


def _frozen_above(view: View, path: str) -> str:
    """What stands above the group *path* and is frozen, for people; "" where nothing is."""
    names = {guest.path: f"guest {guest.name}" for guest in view.everyone()}
    above = path.rpartition("/")[0]
    while above:
        for directory, version in places(above):
            try:
                if freezer.asked(directory, version):
                    return names.get(above, f"group {above}")
            except OSError:
                continue
        above = above.rpartition("/")[0]
    return ""


def main(argv: list[str]) -> int:
    """Run the command; the exit status of the last guest that could not be thawed, else 0. Raises NestrtError."""
    found = words("thaw", (), argv, HEAD)
    return 0 if found is None else each(found[2], "thaw", _thaw)
