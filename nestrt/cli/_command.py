"""The command by which engines and runtimes call nestrt."""

from __future__ import annotations

import os
import sys

from nestrt.errors import NotFound

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PLACES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")


def find(program: str, places: tuple[str, ...] = PLACES) -> str:
    """The path of *program* in one of *places*, "" where it is in none."""
    found = (f"{place}/{program}" for place in places)
    return next((path for path in found if os.path.isfile(path) and os.access(path, os.X_OK)), "")


def command_path() -> str:
    """The program that engines are told to call: hooks/nestrt of the checkout that runs, or the installed nestrt.

    Raises NotFound.
    """
    beside = f"{os.path.dirname(PACKAGE)}/hooks/nestrt"
    if os.path.isfile(beside):
        return beside
    for path in (os.path.abspath(sys.argv[0]), f"{os.path.dirname(sys.executable)}/nestrt", find("nestrt")):
        if os.path.basename(path) == "nestrt" and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise NotFound(
        "find", "the command nestrt", "it is in no directory of commands", "install nestrt, or use a checkout"
    )
