"""What the broker answers instead of doing it: an error of the interface, with the remedy."""

from __future__ import annotations

import os
from typing import Any

from nestrt.errors import NestrtError
from nestrt.guest.client import GuestError

# Exit statuses of nestrt.guest.client.GuestError and nestrt.errors, as errors of the interface.
BY_STATUS = {2: "BadValue", 3: "NotFound", 4: "Busy", 5: "NotPossible"}


class Refusal(Exception):
    """*name* is one of the interface's errors ("NotFound"), or with a dot a whole one ("org.varlink.service.…").

    *message* says what failed, on what, and why; *remedy* what to do instead. *errno* goes with "Refused".
    """

    def __init__(self, name: str, message: str, remedy: str = "", errno: int = 0, **parameters: Any) -> None:
        super().__init__(message)
        self.name = name
        self.message = message
        self.remedy = remedy
        self.errno = errno
        self.parameters: dict[str, Any] = parameters
        if "." not in name:
            self.parameters = {"message": message, "remedy": remedy}
            if name == "Refused":
                self.parameters["errno"] = errno

    def whole(self, interface: str) -> str:
        """The error's full name."""
        return self.name if "." in self.name else f"{interface}.{self.name}"


def invalid(parameter: str) -> Refusal:
    """A parameter that the interface's text does not allow."""
    return Refusal("org.varlink.service.InvalidParameter", f"parameter {parameter}", parameter=parameter)


def not_permitted(what: str, who: str) -> Refusal:
    """*who* may not do *what*."""
    return Refusal(
        "NotPermitted", f"cannot {what}: {who} may not", "let the guest's root, or the owner of the group, do it"
    )


def from_error(error: Exception) -> Refusal:
    """Any failure of nestrt's or the kernel's as a Refusal."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, GuestError):
        name = BY_STATUS.get(error.status, "Refused")
        return Refusal(name, f"cannot {error.operation}: {error.reason}", error.remedy, error.code)
    if isinstance(error, NestrtError):
        # What a broker above has refused is told in its words, which name the operation.
        message = f"cannot {error.operation} {error.obj}: {error.reason}" if error.operation else error.reason
        return Refusal(BY_STATUS.get(error.status, "Refused"), message, error.remedy, getattr(error, "errno", 0) or 0)
    if isinstance(error, OSError):
        return Refusal("Refused", os.strerror(error.errno or 0), "see the kernel's log", error.errno or 0)
    if isinstance(error, ValueError):  # UnicodeEncodeError: a name that no file can have
        return Refusal("BadValue", f"cannot use a value: {error}", "correct it")
    raise error
