r"""Reading the kernel's log, record by record: /dev/kmsg.

One read(2) is one record, Documentation/ABI/testing/dev-kmsg::

    PREFIX,SEQUENCE,MICROSECONDS,FLAGS[,…];TEXT\n[ KEY=VALUE\n…]

PREFIX is facility * 8 + level. What a process writes to /dev/kmsg becomes a record too, of any level, and never of
facility 0, which is the kernel's own (kernel/printk/printk.c, devkmsg_write()). In TEXT the kernel writes every byte
that is not printable ASCII, and the backslash, as ``\x0a`` (msg_add_ext_text()): so a record is one line, whatever a
process or a group is called.
"""

from __future__ import annotations

import os
import time

from nestrt.record import record

FILE = "/dev/kmsg"
KERNEL = 0
_LARGEST = 16384  # more than a record can have: PRINTKRB_RECORD_MAX and its dictionary
_DIGITS = frozenset(b"0123456789abcdef")


@record
class Message:
    """A record: *facility* (0: the kernel wrote it), *sequence*, *microseconds* since boot, *text* as it was."""

    facility: int
    sequence: int
    microseconds: int
    text: bytes


def open(at_end: bool = False) -> int:
    """A descriptor, non-blocking, at the oldest record, or behind the newest.

    OSError: EACCES, EPERM (kernel.dmesg_restrict without CAP_SYSLOG), ENOENT.
    """
    descriptor = os.open(FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if at_end:
        os.lseek(descriptor, 0, os.SEEK_END)
    return descriptor


def close(descriptor: int) -> None:
    """Close it."""
    os.close(descriptor)


def read(descriptor: int, most: int) -> tuple[list[Message], bool]:
    """The next records, *most* of them at the most, and whether some were overwritten before they could be read.
    Never blocks."""
    found = []
    lost = False
    for _ in range(most):
        try:
            message = parse(os.read(descriptor, _LARGEST))
        except BlockingIOError:
            break
        except BrokenPipeError:  # the next read(2) goes on with what is there
            lost = True
            continue
        except OSError:  # EINVAL: a record that is larger than any
            break
        if message:
            found.append(message)
    return found, lost


def parse(raw: bytes) -> Message | None:
    """A record; None for what has not that form."""
    head, semicolon, rest = raw.partition(b";")
    numbers = head.split(b",")
    if not semicolon or len(numbers) < 4 or not all(word.isdigit() and len(word) < 20 for word in numbers[:3]):
        return None
    prefix, sequence, microseconds = (int(word) for word in numbers[:3])
    return Message(prefix >> 3, sequence, microseconds, _plain(rest.partition(b"\n")[0]))


def _plain(text: bytes) -> bytes:
    r"""*text* with each ``\xHH`` as the byte that it stands for."""
    first, *parts = text.split(b"\\x")
    for part in parts:
        first += bytes((int(part[:2], 16),)) + part[2:] if len(part) > 1 and _DIGITS.issuperset(part[:2]) else b"?"
    return first


def boot() -> float:
    """Seconds since 1970 at which the log's clock stood at 0. It counts as CLOCK_MONOTONIC does, without the time
    that the machine slept, and within what the clock has been corrected since."""
    return time.time() - time.monotonic()
