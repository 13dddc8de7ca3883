"""Ask the broker of the level above: for a level that may not do a thing itself, but may have it done. The level's own
is asked in the same way.

One call, one reply (wire.py), over the socket that this level was given when it was started. Waits: for a thread.
"""

from __future__ import annotations

import json
import os
import socket as sockets
import time
from typing import TYPE_CHECKING, Any

from nestrt.broker.refusal import Refusal
from nestrt.broker.wire import LONGEST_REPLY
from nestrt.kernel import caps
from nestrt.plan.broker import GUEST_SOCKET, HOST_SOCKET

if TYPE_CHECKING:
    from nestrt.broker.served import Served

PATIENCE = 30.0  # seconds, for the whole reply
INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO in include/linux/proc_ns.h
REMEDY = 'have this level started with a broker: broker = "wanted" in its policy'
OWN_REMEDY = "start one: nestrt broker"


class Reply(Refusal):
    """What the broker itself has said."""


def needed() -> bool:
    """Whether this process may write no device rules, programs and ``trusted.*`` attributes itself: all of it takes
    CAP_SYS_ADMIN of the initial user namespace."""
    if os.stat("/proc/self/ns/user").st_ino != INITIAL_USER_NAMESPACE:
        return True
    return caps.by_name("CAP_SYS_ADMIN") not in caps.current().effective


def ask(method: str, parameters: dict[str, Any], socket: str | None = None) -> dict[str, Any]:
    """The reply of the broker at *socket* (GUEST_SOCKET) to *method* ("io.nestrt.Guest.Devices").

    Raises Refusal: a Reply, NotPossible where there is none, Busy where it does not answer in PATIENCE.
    """
    socket = GUEST_SOCKET if socket is None else socket
    whose, remedy = ("this level", OWN_REMEDY) if socket == HOST_SOCKET else ("the level above", REMEDY)
    operation = f"ask the broker of {whose} for {method.rpartition('.')[2]}"
    frame = json.dumps({"method": method, "parameters": parameters}).encode() + b"\0"
    try:
        reply = json.loads(_exchange(socket, frame))
        values, error = reply.get("parameters") or {}, reply.get("error")
        if not isinstance(values, dict) or not isinstance(error, str | None):
            raise ValueError
    except (FileNotFoundError, ConnectionRefusedError):
        raise Refusal("NotPossible", f"cannot {operation}: none listens on {socket}", remedy) from None
    except TimeoutError:
        raise Refusal("Busy", f"cannot {operation}: no answer in {PATIENCE:g} s", "try again") from None
    except OSError as wrong:
        reason = os.strerror(wrong.errno or 0)
        raise Refusal("Refused", f"cannot {operation}: {reason}", f"look at {socket}", wrong.errno or 0) from None
    except (ValueError, AttributeError):
        raise Refusal("NotPossible", f"cannot {operation}: its answer is none", "look at its journal") from None
    if error is None:
        return values
    own = error.startswith("io.nestrt.")
    message, code = str(values.get("message") or values.get("parameter") or error), values.get("errno")
    raise Reply(
        error.rpartition(".")[2] if own else "NotPossible",
        message if own else f"cannot {operation}: {message}",
        str(values.get("remedy") or ""),
        code if isinstance(code, int) else 0,
    )


def ask_for(guest: Served, method: str, group: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Have the broker of the level above do it for *group*, this level's name of a group of *guest*; its words become
    that guest's. Raises as ask()."""
    try:
        return ask(method, {"group": group, **parameters})
    except Refusal as refusal:
        message, remedy = (_own_names(guest, text) for text in (refusal.message, refusal.remedy))
        raise Refusal(refusal.name, message, remedy, refusal.errno) from None


def _own_names(guest: Served, text: str) -> str:
    for theirs, ours in ((f"{guest.root}/", "/"), (guest.root, "/"), (guest.limit, "of the guest itself")):
        text = text.replace(theirs, ours)
    return text


def _exchange(socket: str, frame: bytes) -> bytes:
    """Send *frame*, return the frame that comes back. Raises OSError; ValueError where none does."""
    end = time.monotonic() + PATIENCE
    found = bytearray()
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC) as one:
        one.settimeout(PATIENCE)
        one.connect(socket)
        try:
            one.sendall(frame)
        except ConnectionError:
            pass  # whoever may not ask is told so, and hung up on, before the question
        while not found.endswith(b"\0"):
            one.settimeout(max(end - time.monotonic(), 0.001))
            chunk = one.recv(65536)
            if not chunk or len(found) > LONGEST_REPLY:
                raise ValueError
            found += chunk
    return bytes(found[:-1])
