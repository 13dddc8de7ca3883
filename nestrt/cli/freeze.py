"""``nestrt freeze NAME…``: stop all processes of a guest of any runtime, and of its guests."""

from __future__ import annotations

from nestrt.act.containers import Container
from nestrt.act.freeze import freeze, frozen
from nestrt.act.members import living
from nestrt.cli._host_audit import Change
from nestrt.cli._target import each, look, of_guest, refuse_own, require_root, words
from nestrt.errors import KernelError, StateError

HEAD = """usage: nestrt freeze NAME …

Stop all processes of a guest of any runtime, and of its guests, until nestrt thaw NAME."""


def _freeze(name: str) -> None:
    view, guest = look(name)
    require_root("freeze", guest)
    what, subject = f"guest {guest.name}", Container("", guest.name, {"cgroup": guest.path})
    with Change("Freeze", view, guest) as change:
        change.note("frozen", frozen(subject), True)
        refuse_own("freeze", view, guest)
        if not living(of_guest(view, guest), guest.path):
            raise StateError("freeze", what, "it has no processes", "nestrt ls shows which guests run")
        try:
            freeze(subject, "freeze", what)
        except OSError as error:
            raise KernelError("freeze", what, error.errno or 0, "see whether it is still there: nestrt ls") from error


def main(argv: list[str]) -> int:
    """Run the command; the exit status of the last guest that could not be frozen, else 0. Raises NestrtError."""
    found = words("freeze", (), argv, HEAD)
    return 0 if found is None else each(found[2], "freeze", _freeze)
