"""Standard descriptors, before anything else is opened."""

from __future__ import annotations

import os


def open_standard() -> None:
    """Open what is closed of 0, 1 and 2 on /dev/null: a channel must not come to stand there."""
    fd = 0
    while fd < 3:
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if fd < 3:
            os.set_inheritable(fd, True)
    os.close(fd)
