"""Terminals that a runtime sends by --console-socket."""

from __future__ import annotations

import array
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.need import SLOW


@contextmanager
def console_socket(place: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """A Unix socket for --console-socket, and what takes the terminal's master from it."""
    path = str(place / "console.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(4)
        listener.settimeout(20 * SLOW)

        def take() -> int:
            with listener.accept()[0] as peer:
                data, ancillary, _, _ = peer.recvmsg(4096, socket.CMSG_SPACE(4))
                assert data, "no name came with the terminal"
                return int(array.array("i", ancillary[0][2])[0])

        yield path, take


def read_until(master: int, text: str) -> str:
    """What comes from the terminal *master* up to *text*."""
    got = ""
    end = time.monotonic() + 20 * SLOW
    while text not in got:
        assert select.select([master], [], [], max(0, end - time.monotonic()))[0], got
        try:
            got += os.read(master, 4096).decode(errors="replace")
        except OSError:  # EIO: the other end is closed
            break
    return got
