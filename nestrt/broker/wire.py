r"""Varlink's frames: JSON objects that end in a NUL byte, over a stream. varlink.org, "Method Call", "Reply".

::

    {"method": "io.nestrt.Guest.Get", "parameters": {"group": "/web"}}\0
    {"parameters": {"values": {"memory.max": "64M"}}}\0
    {"error": "io.nestrt.Guest.NotFound", "parameters": {"message": …, "remedy": …}}\0

What comes in is a stranger's: bounded in length before it is looked at, and of one shape after. Pure.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from nestrt.record import record

LONGEST_CALL = 65536  # bytes, with the NUL; the longest that makes sense lists some thousand pids
LONGEST_REPLY = 1 << 24
FLAGS = ("more", "oneway", "upgrade")


class Malformed(Exception):
    """These bytes are no call, and what follows cannot be told from them: the connection ends."""


@record
class Call:
    """*method* is the full name. *more*: several replies are wanted; *oneway*: none."""

    method: str
    parameters: dict[str, Any]
    more: bool = False
    oneway: bool = False


def _constant(text: str) -> NoReturn:
    raise ValueError(text)  # NaN and Infinity are no JSON


# loads() and dumps() with options make one of these for each call.
_decode = json.JSONDecoder(parse_constant=_constant).decode
# ASCII: whatever is in a name, the reader's decoder takes it.
_encode = json.JSONEncoder(separators=(",", ":")).encode


def parse(frame: bytes) -> Call:
    """The call in *frame*, without its NUL. Raises Malformed."""
    try:
        found = _decode(frame.decode())
    except (ValueError, RecursionError):
        raise Malformed("not JSON") from None
    if not isinstance(found, dict):
        raise Malformed("not a JSON object")
    method, parameters = found.get("method"), found.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(method, str) or not isinstance(parameters, dict):
        raise Malformed("no method, or parameters that are no object")
    flags = [found.get(flag) for flag in FLAGS]
    if any(flag is not None and type(flag) is not bool for flag in flags):
        raise Malformed("a flag that is neither true nor false")
    if flags[2]:
        raise Malformed("upgrade is not spoken here")
    return Call(method, parameters, flags[0] is True, flags[1] is True)


class Decoder:
    """Cuts what arrives into calls."""

    def __init__(self, longest: int = LONGEST_CALL) -> None:
        self.longest = longest
        self.buffer = bytearray()

    @property
    def whole(self) -> int:
        """Bytes of the next call, 0 while not all of it is there."""
        return self.buffer.find(b"\0") + 1

    @property
    def midway(self) -> bool:
        """Whether a call has begun and not ended."""
        return bool(self.buffer)

    def feed(self, data: bytes) -> None:
        """Take what has arrived. Raises Malformed where a call is longer than may be."""
        self.buffer += data
        if len(self.buffer) >= self.longest and self.buffer.find(b"\0", 0, self.longest) < 0:
            raise Malformed(f"a call of more than {self.longest} bytes")

    def next(self) -> Call | None:
        """The next whole call, None where there is none yet. Raises Malformed."""
        end = self.whole - 1
        if end < 0:
            return None
        if end >= self.longest:
            raise Malformed(f"a call of more than {self.longest} bytes")
        frame = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        return parse(frame)


def encode(parameters: dict[str, Any], *, error: str = "", continues: bool = False) -> bytes:
    """A reply: *parameters* of the method, or of the *error*. *continues*: more will follow."""
    reply: dict[str, Any] = {"error": error} if error else {}
    if continues:
        reply["continues"] = True
    reply["parameters"] = parameters
    return _encode(reply).encode() + b"\0"
