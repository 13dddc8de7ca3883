"""``nestrt policy check FILE``: whether a policy file is right, and every mistake in it."""

from __future__ import annotations

import argparse
import os
import stat
import sys

from nestrt.errors import InputError, KernelError, NestrtError, NotFound
from nestrt.level.toml import FILE_LIMIT, find_mistakes, load_policy


def read_policy(path: str) -> str:
    """The text of the policy file *path*.

    Raises NotFound, InputError (a directory or device, over 1 MiB, not UTF-8) or KernelError.
    """
    what = f"policy {path}"
    try:
        # A FIFO would wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("read", what, "there is no such file", "name a TOML file") from None
    except ValueError:
        raise InputError("read", what, "no file name holds a NUL character", "name a TOML file") from None
    except OSError as error:
        raise KernelError("read", what, error.errno or 0) from None
    try:
        # Asked first: Python refuses to wrap a directory, and a device may never end.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError("read", what, "it is not a regular file", "name a TOML file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(FILE_LIMIT + 1)
    finally:
        os.close(descriptor)
    if len(content) > FILE_LIMIT:
        raise InputError("read", what, "it is larger than 1 MiB", "a policy is a page: name a TOML file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError("read", what, f"byte {error.start} is not UTF-8", "save it as UTF-8 text") from None


def main(argv: list[str]) -> int:
    """*argv* are the arguments after ``policy``. Returns the exit status.

    Prints "FILE: ok", or every mistake but the last on standard error and raises the last: InputError.
    """
    parser = argparse.ArgumentParser(prog="nestrt policy", description="CONTAINER_LEVEL policy files")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="say whether policy files are right, and name every mistake")
    check.add_argument("files", nargs="+", metavar="FILE", help="a TOML file; examples/policies has some")
    options = parser.parse_args(argv)
    found: list[NestrtError] = []
    for path in options.files:
        try:
            text = read_policy(path)
        except NestrtError as error:
            found.append(error)
            continue
        mistakes = find_mistakes(text, path)
        found += mistakes
        if not mistakes:
            policy = load_policy(text, path)
            print(f"{path}: ok (levels to {policy.max_level}, view {policy.mount}, namespace {policy.user_namespace})")
    for mistake in found[:-1]:
        print(f"nestrt: {mistake}", file=sys.stderr)
    if found:
        raise found[-1]
    return 0
