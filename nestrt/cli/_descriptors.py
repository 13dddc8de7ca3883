"""Descriptors that are handed on to a container's program."""

from __future__ import annotations

import os

from nestrt.errors import InputError


def listening() -> int:
    """How many sockets of socket activation are handed to this process: sd_listen_fds(3)."""
    count = os.environ.get("LISTEN_FDS", "")
    # Meant for us only with our pid: else it is what a service left in the environment of those that it starts.
    mine = os.environ.get("LISTEN_PID") == str(os.getpid())
    return int(count) if mine and count.isascii() and count.isdigit() and len(count) < 4 else 0


def preserved(single: dict[str, str]) -> int:
    """How many descriptors from 3 on are handed on: --preserve-fds, and those of socket activation.

    Raises InputError for one that is not open.
    """
    text = single.get("preserve-fds", "0")
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise InputError("use", f"--preserve-fds {text!a}", "not a number", "write how many")
    count = int(text) + listening()
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError as error:
            raise InputError(
                "hand on",
                f"descriptor {fd}",
                f"please check that preserved-fd {fd} is present",
                "open it, or ask for fewer",
            ) from error
    return count
