"""Changes that root makes by commands, in the audit: as those that a broker writes down (broker/audit.py), and beside
them. What a command has a broker do, the broker writes down."""

from __future__ import annotations

import errno
import os
import sys

from nestrt.errors import KernelError, NestrtError, one_line
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from nestrt.host.walk import Guest, View

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@record
class Caller:
    """This process, as the audit has those that ask a broker."""

    pid: int
    uid: int
    gid: int
    login: int | None
    user: int = 0
    guest_pid: int | None = None
    guest_gid: int | None = None


def is_root() -> bool:
    return os.geteuid() == 0


class Change:
    """What *method* does to *guest*, None: to the level itself. As a context: how it ends is what is written down, a
    line for each of the *notes*. Only root's: all others are refused by all of them, and may not write there."""

    def __init__(self, method: str, view: View, guest: Guest | None = None) -> None:
        self.method = method
        self.level = view.level
        # What a user of this level calls a group of his is not taken for a guest of that name.
        claim = guest is not None and guest.claim and "/" not in guest.name
        self.guest = "" if guest is None else guest.path if claim else guest.name
        self.notes: dict[str, tuple[Any, Any]] = {"": (None, None)}
        self.happened = False

    def note(self, key: str, old: Any, new: Any) -> None:
        """*key* was *old*, and is now *new* or is to be."""
        self.notes.pop("", None)
        self.notes[key] = (old, new)

    def leave(self, *keys: str) -> None:
        """Leave *keys*, or all, to a broker, which writes them down."""
        for key in keys or (*self.notes,):
            self.notes.pop(key, None)

    def __enter__(self) -> Change:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if is_root() and self.notes:
            self._write(("done", "") if error is None or self.happened else _verdict(error))

    def _write(self, verdict: tuple[str, str]) -> None:
        # After the deed: what this costs, a start of a process has not to wait for.
        from nestrt.broker.audit_line import audit_directory, login_of, parts, who
        from nestrt.broker.lines import SharedLines
        from nestrt.plan.broker import AUDIT

        peer = who(Caller(os.getpid(), os.geteuid(), os.getegid(), login_of("self")))
        try:
            lines = SharedLines(audit_directory(), "the audit", f"{AUDIT}=DIR")
            try:
                for key, (old, new) in self.notes.items():
                    head, tail = parts(self.guest, self.method, ("/", key, old, new), verdict)
                    lines.write(self.guest, f'{head},"peer":{peer},{tail}')
            finally:
                lines.close()
        except NestrtError as error:
            # A guest may have a root that nobody writes to, or whose owner has no number there.
            if not self.level or (isinstance(error, KernelError) and error.errno not in READ_ONLY):
                sys.stderr.write(one_line(f"nestrt: warning: {error}") + "\n")


def _verdict(error: BaseException) -> tuple[str, str]:
    from nestrt.broker.refusal import from_error

    try:
        refusal = from_error(error) if isinstance(error, Exception) else None
    except Exception:  # a mistake of nestrt's
        refusal = None
    if refusal is None:
        return "Refused", f"{type(error).__name__}: {error}".removesuffix(": ")
    return refusal.name, refusal.message
