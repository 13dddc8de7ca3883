"""A line of the audit, as its writers make it: the broker (audit.py), and commands that change guests without one."""

from __future__ import annotations

import os

from nestrt import jsontext
from nestrt.plan.broker import AUDIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Who(Protocol):
        """What the audit wants of a broker.peer.Peer. *user*, *guest_pid* and *guest_gid* are as the guest counts."""

        @property
        def pid(self) -> int: ...
        @property
        def uid(self) -> int: ...
        @property
        def gid(self) -> int: ...
        @property
        def user(self) -> int: ...
        @property
        def guest_pid(self) -> int | None: ...
        @property
        def guest_gid(self) -> int | None: ...
        @property
        def login(self) -> int | None: ...


DIRECTORY = "/var/log/nestrt/audit"
# Bytes of one value in a line, escapes counted: all together are less than LONGEST_LINE.
ROOM = {"guest": 4096, "method": 256, "group": 8192, "key": 1024, "old": 16384, "new": 16384, "message": 4096}
ROOM_REFUSED = {**ROOM, "group": 1024, "key": 256, "old": 1024, "new": 1024, "message": 1024}
UNSET = 0xFFFFFFFF


def audit_directory() -> str:
    """Where the audit is that no option names: where the environment says, or DIRECTORY."""
    return os.path.abspath(os.environ.get(AUDIT) or DIRECTORY)


def login_of(process: int | str) -> int | None:
    """The uid that *process* has logged in with, whatever it has become by su or sudo; None where it has not, or this
    user namespace has no number for it. Documentation/ABI/stable/procfs-audit_loginuid."""
    try:
        with open(f"/proc/{process}/loginuid", encoding="ascii") as file:
            uid = int(file.read(16))
    except (OSError, ValueError):  # it has ended; or a kernel without CONFIG_AUDIT
        return None
    return uid if 0 <= uid < UNSET else None


def cut(value: Any, room: int, encode: Callable[[Any], str] = jsontext.dumps) -> str:
    """*value* as JSON of at most *room* bytes; what is longer becomes a text that says so."""
    try:
        text = encode(value)
    except (TypeError, ValueError, RecursionError):
        value = text = encode(f"a {type(value).__name__} that is no JSON")
    if len(text) <= room:
        return text
    whole = value if isinstance(value, str) else text
    # A character takes up to twelve bytes, or two at most where none but quotes and backslashes are escaped.
    kept = (room - 64) // (2 if whole.isascii() and whole.isprintable() else 12)
    return encode(f"{whole[:kept]}… ({len(whole)} characters)")


def who(peer: Who | None) -> str:
    """A line's "peer"."""
    if peer is None:
        return "null"
    pid, gid = ("null" if number is None else number for number in (peer.guest_pid, peer.guest_gid))
    text = f'"pid":{peer.pid},"uid":{peer.uid},"gid":{peer.gid},"user":{peer.user},"guest_pid":{pid},"guest_gid":{gid}'
    return f"{{{text}}}" if peer.login is None else f'{{{text},"login":{peer.login}}}'


def parts(
    guest: str,
    method: str,
    what: tuple[str, str, Any, Any],
    verdict: tuple[str, str],
    encode: Callable[[Any], str] = jsontext.dumps,
) -> tuple[str, str]:
    """The members of a line before its "peer" and behind it. *what*: group, key, old and new; *verdict*: "done" or an
    error's name, and its reason."""
    group, key, old, new = what
    name, message = verdict
    room = ROOM if name == "done" else ROOM_REFUSED
    head = f'"guest":{cut(guest, room["guest"], encode)},"method":{cut(method, room["method"], encode)}'
    tail = f'"group":{cut(group, room["group"], encode)},"key":{cut(key, room["key"], encode)}'
    tail += f',"old":{cut(old, room["old"], encode)},"new":{cut(new, room["new"], encode)}'
    tail += f',"verdict":{cut(name, 256, encode)}'
    if name != "done":
        tail += f',"message":{cut(message, room["message"], encode)}'
    return head, tail
