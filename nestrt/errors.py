"""What failed, on which object, and the remedy: every error that reaches a user.

Only ``cli`` prints and exits. Exit statuses, the same for all commands but
``launch``, which has the guest's own status to return and so uses 125 for all
of these:

====== =======================================================
1      the operation failed (the kernel refused it)
2      bad command line, policy or other input
3      no such guest, group or file
4      in use, or not in the state that the operation needs
5      this host or this level cannot do it
125    launch: the guest could not be started
126    launch: the program is there and cannot be executed
127    launch: the program is not there
128+n  launch: the guest's first process was ended by signal n
====== =======================================================
"""

from __future__ import annotations

import os

# Engines look for these words, and know by them that there is nothing left to do.
NO_CONTAINER = "container does not exist"


def one_line(text: str) -> str:
    """*text* as it may be shown: names and paths in it come from users and guests, and a terminal obeys some."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class NestrtError(Exception):
    """One line for the user: operation, object, reason, remedy.

    *operation* is a verb phrase ("set memory.max"), *obj* the thing it was for
    ("guest web"), *reason* what is wrong with it, *remedy* what to do instead.
    """

    status = 1

    def __init__(self, operation: str, obj: str, reason: str, remedy: str = "") -> None:
        super().__init__(operation, obj, reason, remedy)
        self.operation = operation
        self.obj = obj
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"cannot {self.operation} {self.obj}: {self.reason}"
        if self.remedy:
            text += f"; {self.remedy}"
        return one_line(text)


class InputError(NestrtError):
    """Bad command line, policy or other input (status 2)."""

    status = 2


class NotFound(NestrtError):
    """No such guest, group or file (status 3)."""

    status = 3


class StateError(NestrtError):
    """In use, or not in the state that the operation needs (status 4)."""

    status = 4


class HostError(NestrtError):
    """This host, or this level, cannot do it (status 5)."""

    status = 5


class KernelError(NestrtError):
    """The kernel refused an operation; *errno* says how (status 1)."""

    def __init__(self, operation: str, obj: str, errno: int, remedy: str = "") -> None:
        super().__init__(operation, obj, os.strerror(errno), remedy)
        self.errno = errno


class ProgramError(NestrtError):
    """The guest's program could not be executed: status 127 (not there) or 126."""

    def __init__(self, operation: str, obj: str, reason: str, remedy: str, status: int) -> None:
        super().__init__(operation, obj, reason, remedy)
        self.status = status
