"""``nestrt spec``: write a config.json to begin with."""

from __future__ import annotations

import os

from nestrt.cli.engine import Globals, words
from nestrt.cli.options import Option
from nestrt.errors import InputError, StateError
from nestrt.oci import example

TEXT = "usage: nestrt spec [--bundle DIR] [--rootless]\n\nWrite a config.json to begin with."
OPTIONS = (
    Option("bundle", "DIR", "where to (default: the current directory)", "b"),
    Option("rootless", "", "one that a user without root can run"),
)


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb. Raises StateError where there is one already."""
    found = words("spec", OPTIONS, argv, TEXT)
    if found is None:
        return 0
    single, _, operands = found
    if operands:
        raise InputError("read", f"operand {operands[0]!a}", "spec takes none", "name the directory with --bundle")
    path = os.path.join(single.get("bundle", ""), "config.json")
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    text = example.text(example.config("rootless" in single, os.geteuid(), os.getegid(), unified))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError as error:
        raise StateError(
            "write", path, "file config.json exists. Remove it first", "or name another directory with --bundle"
        ) from error
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    return 0
