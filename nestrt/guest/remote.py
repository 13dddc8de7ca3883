"""``nestrt guest …``, the whole of it: what client.py does in a guest's own view, and what only the broker can do.

``devices``, ``attach``, ``freeze``, ``thaw``, ``kill``, ``events``, ``react``, ``rules`` and ``ps`` ask the broker of
the level above, by Varlink (varlink.org) over /run/nestrt/guest.sock. ``status``, ``get``, ``ls``, ``create``, ``set``,
``move`` and ``rm`` ask it where the guest's own view cannot be written, or with ``--broker``.

Standard library only, Python 3.9 and later: a guest may keep a copy of this file beside one of client.py, and run
``python3 remote.py attach web 123``. What the broker answers is checked before it is used or shown.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import signal
import stat
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, NoReturn

if TYPE_CHECKING or __package__:
    from nestrt.guest import client
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # not there with python3 -I
    import client

if TYPE_CHECKING:
    import socket

GuestError = client.GuestError
MAX, printable = client.MAX, client.printable

SOCKET = "/run/nestrt/guest.sock"
INTERFACE = "io.nestrt.Guest"
LONGEST_CALL = 65536  # bytes, with the NUL: the broker hangs up on a longer one
LONGEST_REPLY = 1 << 24
LONGEST_FILE = 1 << 20  # characters of rules, comments counted
LONGEST_TEXT = 4096  # characters of an error that are shown
WIDEST = 160  # characters of a command line in ps; JSON has the whole
PATIENCE = 5.0  # s for a broker that is being started again
STREAM_PATIENCE = 60.0  # the same for one whose events have been watched
ANSWER = 120.0  # s for one reply: a limit below what is in use takes the kernel its time
STATUS = {
    "BadValue": 2, "InvalidParameter": 2, "NotFound": 3, "Busy": 4, "Locked": 4, "NotPossible": 5, "NotPermitted": 5,
    "QuotaExceeded": 5, "PermissionDenied": 5, "InterfaceNotFound": 5, "MethodNotFound": 5, "MethodNotImplemented": 5,
}  # fmt: skip
ASK = 'ask the level above for broker = "required" in the policy'
READING = ("status", "get", "ls")
STREAMS = ("Events",)
BLANK = client.View((), {})  # for values that need no groups
KINDS = (
    "oom", "oom_kill", "limit", "high", "pressure", "empty", "populated", "frozen", "thawed", "created", "removed",
    "cpus", "reaction", "lost",
)  # fmt: skip
USE = re.compile(r"[0-9]{1,19}(\.[0-9]{1,19})?(e[+-]?[0-9]{1,2})?")


class NoBroker(GuestError):
    """There is none, or it did not come back in time."""


def no_broker(operation: str, path: str, reason: str, code: int) -> NoBroker:
    """The error for one that is not there."""
    remedy = {errno.EAGAIN: "it has much to do: try again", errno.EACCES: "as another user"}.get(code, ASK)
    return NoBroker(5, operation, f"no broker answers at {path}: {reason}", remedy, code)


class Gone(Exception):
    """The connection ended before the answer."""


# The wire: JSON objects that end in a NUL byte.


def strange(operation: str, what: str) -> GuestError:
    """An answer that the interface does not have: not a broker, or one of another time."""
    return GuestError(1, operation, f"the broker's answer is not understood ({what})", "see nestrt-broker(1)")


def digits(text: str) -> int:
    """An integer of JSON; Varlink's have 64 bits, and Python 3.9 would take a million digits. Raises ValueError."""
    if len(text) > 20:
        raise ValueError("an integer of more than 64 bits")
    return int(text)


def number(text: str) -> float:
    """Any other number of JSON. Raises ValueError."""
    if abs(float(text)) == MAX:
        raise ValueError("a number beyond all bounds")
    return float(text)


def constant(text: str) -> NoReturn:
    raise ValueError(text)  # NaN and Infinity are no JSON


def decode(frame: bytes, operation: str) -> tuple[dict[str, Any], bool]:
    """The parameters of a reply, and whether others follow. Raises GuestError where it is an error, or no reply."""
    try:
        reply = json.loads(frame.decode(), parse_int=digits, parse_float=number, parse_constant=constant)
    except (ValueError, RecursionError):
        raise strange(operation, "not JSON") from None
    parameters = reply.get("parameters") if isinstance(reply, dict) else None
    parameters = {} if parameters is None else parameters
    if not isinstance(reply, dict) or not isinstance(parameters, dict):
        raise strange(operation, "no reply")
    error = reply.get("error")
    if error is not None:
        raise refusal(str(error), parameters, operation)
    return parameters, reply.get("continues") is True


def refusal(error: str, parameters: dict[str, Any], operation: str) -> GuestError:
    """The broker's error as one of this command's: "cannot OPERATION: REASON; REMEDY"."""
    name = error.rpartition(".")[2]
    texts = [parameters.get(key) for key in ("message", "remedy", "parameter", "method")]
    message, remedy, parameter, method = (text[:LONGEST_TEXT] if isinstance(text, str) else "" for text in texts)
    if parameter:
        message = f"the broker takes no such {parameter}"
    if method or name == "InterfaceNotFound":
        message, remedy = f"this broker does not know {method or INTERFACE}", "it is older than this command"
    if message.startswith("cannot ") and ": " in message:
        operation, _, message = message[len("cannot ") :].partition(": ")
    code = parameters.get("errno")
    return GuestError(STATUS.get(name, 1), operation, message or error[:LONGEST_TEXT], remedy,
                      code if type(code) is int else 0)  # fmt: skip


def within(operation: str, action: Callable[[], Any]) -> Any:
    """What a call on a connection returns. Raises Gone, and GuestError where it takes too long."""
    try:
        return action()
    except ConnectionError:
        raise Gone from None
    except OSError as error:
        if error.errno:  # a time-out has none, and a class of its own before Python 3.10
            raise
        raise GuestError(1, operation, f"the broker does not answer within {ANSWER:.0f} s", "try again") from None


def frames(connection: socket.socket, operation: str) -> Iterator[bytes]:
    """What comes, cut at the NULs. Raises Gone at its end."""
    buffer, looked = bytearray(), 0
    while True:
        end = buffer.find(b"\0", looked)
        if end >= 0:
            yield bytes(buffer[:end])
            del buffer[: end + 1]
            looked = 0
            continue
        looked = len(buffer)
        if looked > LONGEST_REPLY:
            raise strange(operation, f"more than {LONGEST_REPLY} bytes")
        data = within(operation, lambda: connection.recv(65536))
        if not data:
            raise Gone
        buffer += data


class Broker:
    """The one at *path*; *wait* seconds for one that is not there, or goes away before it answers."""

    def __init__(self, path: str = SOCKET, wait: float | None = None) -> None:
        self.path = path
        self.lost = False  # it went away before it had answered, and was asked again
        self.wait = PATIENCE if wait is None else wait
        self.stream_wait = STREAM_PATIENCE if wait is None else wait

    def there(self) -> bool:
        """Whether there is a socket; not whether anybody listens."""
        try:
            return stat.S_ISSOCK(os.stat(self.path).st_mode)
        except OSError:
            return False

    def connect(self, operation: str, deadline: float) -> socket.socket:
        """A connection. Raises NoBroker after *deadline* (time.monotonic()), or at once where none can come."""
        import socket  # 6 ms that the commands of client.py do not need

        pause = 0.02
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(ANSWER)
            try:
                connection.connect(self.path)
                return connection
            except OSError as error:
                connection.close()
                code = error.errno or 0
                # EAGAIN: more are waiting than the broker has looked at. Without the directory it will never be there.
                waits = code in (errno.ECONNREFUSED, errno.ENOENT, errno.EAGAIN)
                if not waits or time.monotonic() >= deadline or not os.path.isdir(os.path.dirname(self.path) or "."):
                    raise no_broker(operation, self.path, os.strerror(code) if code else str(error), code) from None
            time.sleep(min(pause, max(deadline - time.monotonic(), 0)))
            pause = min(pause * 2, 0.5)

    def send(self, operation: str, deadline: float, method: str, **parameters: Any) -> socket.socket:
        """A connection on which the call has been sent."""
        call: dict[str, Any] = {"method": f"{INTERFACE}.{method}", **({"more": True} if method in STREAMS else {})}
        call["parameters"] = {key: value for key, value in parameters.items() if value is not None}
        data = json.dumps(call, separators=(",", ":")).encode() + b"\0"
        if len(data) > LONGEST_CALL:
            raise GuestError(2, operation, f"{len(data)} bytes are too long for one call", "ask in several")
        connection = self.connect(operation, deadline)
        try:
            within(operation, lambda: connection.sendall(data))
        except Gone:
            pass  # it may have said why
        except BaseException:
            connection.close()
            raise
        return connection

    def call(self, operation: str, method: str, *, again: bool = True, **parameters: Any) -> dict[str, Any]:
        """The parameters of the reply. *again*: asking twice does no harm. Raises GuestError."""
        deadline = time.monotonic() + self.wait
        while True:
            try:
                with self.send(operation, deadline, method, **parameters) as connection:
                    return decode(next(frames(connection, operation)), operation)[0]
            except Gone:
                if not again:
                    look = "it may be done or not: look before you ask again"
                    raise GuestError(1, operation, "the broker ended before it answered", look) from None
                if not self.lost:
                    self.lost, deadline = True, time.monotonic() + self.wait
                if time.monotonic() >= deadline:
                    raise no_broker(operation, self.path, "it ends before it answers", errno.ECONNRESET) from None
                time.sleep(0.1)

    def events(self, operation: str, group: str | None, kinds: list[str] | None) -> Iterator[dict[str, Any]]:
        """Each event, as the broker sends it, and one of the kind "lost" for each time that it goes away: nobody says
        what has happened until it is back. Raises GuestError; NoBroker where it stays away."""
        deadline = time.monotonic() + self.wait
        told = False
        while True:
            begun = time.monotonic()
            try:
                with self.send(operation, deadline, "Events", group=group, kinds=kinds) as connection:
                    begun = time.monotonic()
                    connection.settimeout(None)
                    for frame in frames(connection, operation):
                        reply, continues = decode(frame, operation)
                        yield field(reply, "event", dict, operation)
                        told = False
                        if not continues:
                            return
            except Gone:
                if not told or time.monotonic() - begun > 1:
                    deadline = time.monotonic() + self.stream_wait
                if not told:
                    told = True
                    detail = "the broker has gone; what happens until it is back is not told"
                    yield {"time": time.time(), "kind": "lost", "group": group or "/", "detail": detail}
                if time.monotonic() >= deadline:
                    raise no_broker(operation, self.path, "it ends again and again", errno.ECONNRESET) from None
                time.sleep(0.1)


def field(reply: dict[str, Any], key: str, kind: type, operation: str) -> Any:
    """The value of *key*, of the *kind* that it must have. Raises GuestError."""
    value = reply.get(key)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise strange(operation, key)
    return value


def fields(reply: dict[str, Any], key: str, kind: type, operation: str) -> list[Any]:
    """The same of an array."""
    found: list[Any] = field(reply, key, list, operation)
    return [field({key: one}, key, kind, operation) for one in found]


def limits_of(reply: dict[str, Any], operation: str) -> dict[str, tuple[str, float | None]]:
    """{key: (value, use)} of the keys that client.py knows."""
    found: dict[str, tuple[str, float | None]] = {}
    for key, limit in field(reply, "limits", dict, operation).items():
        if key in client.KEYS and isinstance(limit, dict):
            text = limit.get("use")
            use = number(text) if isinstance(text, str) and USE.fullmatch(text) else None
            found[key] = (field(limit, "value", str, operation), int(use) if use is not None and use % 1 == 0 else use)
    return found


def plain(key: str, text: str) -> Any:
    """A limit as JSON has it, from its text: bytes, CPUs, numbers."""
    try:
        if key == "io.max":
            return BLANK.plain(key, client.parse_io("" if text == "max" else text.replace("; ", "\n")))
        return BLANK.plain(key, client.KEYS[key].parse(text))
    except (KeyError, ValueError):
        return text


def lines_of(text: str) -> str:
    """A file's text, its line breaks and tabs kept."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def settings_of(pairs: list[str], group: str) -> dict[str, str]:
    """ "memory=512M" → {"memory.max": "512M"} """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = client.SHORT.get(key, key)
        if not equals or not key or not text.strip():
            raise GuestError(2, f"set {pair[:80]!r}", "it is not KEY=VALUE", "write it like memory.max=512M")
        if key in found:
            raise GuestError(2, f"set limits of group {group}", f"{key} is given twice", "give each key once")
        found[key] = text.strip()
    return found


def name_of(args: argparse.Namespace, operation: str) -> str:
    """The group that is meant, by its whole name."""
    return client.parse_group(args.group, operation)


# The commands of client.py, by way of the broker: the same words, the same looks.


def do_status(broker: Broker, args: argparse.Namespace) -> Any:
    operation = "ask the broker for this guest's status"
    info = broker.call(operation, "Info")
    quota = field(info, "quota", dict, operation)
    limits = limits_of(info, operation)
    level = field(info, "level", int, operation)
    texts = {key: field(info, key, str, operation) for key in ("name", "group", "view", "cpu_numbers")}
    found: dict[str, Any] = {
        "name": texts["name"], "level": level, "max_level": field(info, "max_level", int, operation),
        "set_by": "host" if level <= 1 else "the level above", "view": texts["view"], "root": None,
        "own_group": texts["group"], "cpus": field(info, "cpus", int, operation), "cpu_numbers": texts["cpu_numbers"],
        "controllers": fields(info, "controllers", str, operation),
        "may_divide": fields(info, "may_divide", str, operation),
        "max_groups": field(quota, "groups", int, operation), "max_depth": field(quota, "depth", int, operation),
        "limits": {k: {"limit": plain(k, text), "use": use} for k, (text, use) in limits.items()},
    }  # fmt: skip
    if args.format == "json":
        return found
    return client.status_lines(found, lambda key: printable(client.used(key, *limits[key])))


def do_get(broker: Broker, args: argparse.Namespace) -> Any:
    operation = "read"
    group = name_of(args, operation)
    operation = f"read group {group}"
    keys = [client.SHORT.get(key, key) for key in args.keys] or None
    values = field(broker.call(operation, "Get", group=group, keys=keys), "values", dict, operation)
    shown = {key: field(values, key, str, operation) for key in keys or [k for k in client.KEYS if k in values]}
    if args.format == "json":
        return {key: plain(key, text) if key in client.KEYS else text for key, text in shown.items()}
    return [f"{key}{chr(10) if chr(10) in text else ' '}{lines_of(text)}" for key, text in shown.items()]


def do_ls(broker: Broker, args: argparse.Namespace) -> Any:
    group = name_of(args, "list")
    operation = f"list group {group}"
    reply = broker.call(operation, "List", group=group, recursive=args.recursive)
    groups = fields(reply, "groups", dict, operation)
    rows = [
        (field(g, "name", str, operation), field(g, "processes", int, operation), limits_of(g, operation))
        for g in groups
    ]
    if args.format == "json":
        return [
            {"group": name, "processes": count,
             "limits": {k: {"limit": plain(k, text), "use": use} for k, (text, use) in limits.items()}}
            for name, count, limits in rows
        ]  # fmt: skip
    lines = [client.LS_HEADER]
    for name, count, limits in rows:
        cells = [printable(client.used(k, *limits[k])) if k in limits else "-" for k in client.LS_KEYS]
        lines.append((printable(name), str(count), *cells))
    return client.table(lines)


def do_create(broker: Broker, args: argparse.Namespace) -> None:
    group = name_of(args, "create")
    settings = settings_of(args.settings, group)
    devices = [rule_of(rule, f"create group {group}") for rule in args.device] if args.device else None
    try:
        broker.call(f"create group {group}", "Create", group=group, settings=settings or None,
                    parents=args.parents or None, owner=args.owner, devices=devices)  # fmt: skip
    except GuestError as error:
        if broker.lost and error.status == 4:
            remedy = "see whether it is as you want it; else remove it and create it again"
            raise GuestError(4, error.operation, "it exists: the broker ended while it made it, or it was there before",
                             remedy) from None  # fmt: skip
        if error.status == 3 and not args.parents:
            raise GuestError(3, error.operation, error.reason, "make it too with -p") from None
        raise


def do_set(broker: Broker, args: argparse.Namespace) -> None:
    group = name_of(args, "set limits of")
    broker.call(f"set limits of group {group}", "Set", group=group, settings=settings_of(args.settings, group))


def do_rm(broker: Broker, args: argparse.Namespace) -> None:
    group = name_of(args, "remove")
    try:
        broker.call(f"remove group {group}", "Remove", group=group, recursive=args.recursive or None,
                    kill=args.kill or None)  # fmt: skip
    except GuestError as error:
        if not broker.lost or error.status != 3:  # asked twice: the first time has removed it
            raise


def do_attach(broker: Broker, args: argparse.Namespace) -> None:
    """Move processes to a group, in every hierarchy; without PID the one that runs this command, such as a shell."""
    group = name_of(args, "move processes to")
    pids = args.pids or [os.getppid()]
    if min(pids) <= 0:
        raise GuestError(3, f"move process {min(pids)} to group {group}", "no such process", "name them by their ids")
    broker.call(f"move processes to group {group}", "Attach", group=group, pids=pids)


# What only the broker does.


def rule_of(text: str, operation: str) -> str:
    """A device rule; "/dev/fuse:rw" is what this guest's /dev/fuse is: "c 10:229 rw"."""
    if not text.startswith("/"):
        return text
    path, colon, access = text.rpartition(":")
    path, access = (path, access) if colon and re.fullmatch("[rwm]+", access) else (text, "rwm")
    try:
        found = os.stat(path)
    except OSError as error:
        raise client.refused(error, f"{operation}: look at {path}", "write the rule like 'c 1:3 rwm'") from None
    kind = "c" if stat.S_ISCHR(found.st_mode) else "b" if stat.S_ISBLK(found.st_mode) else ""
    if not kind:
        raise GuestError(2, operation, f"{path} is no device", "write the rule like 'c 1:3 rwm'")
    return f"{kind} {os.major(found.st_rdev)}:{os.minor(found.st_rdev)} {access}"


def do_devices(broker: Broker, args: argparse.Namespace) -> Any:
    """Show the device rules of a group; allow or deny more, set them all, or inherit those of the group above."""
    group = name_of(args, "set devices of")
    operation = f"{'set' if args.words else 'read'} devices of group {group}"
    rules: dict[str, Any] = {}
    verb = ""
    for word in args.words:
        if word in ("allow", "deny", "only", "inherit"):
            verb = word
            rules.setdefault(word, [])
        elif verb in ("", "inherit"):
            usage = f"write nestrt guest devices {args.group} allow 'c 1:3 rwm'"
            raise GuestError(2, operation, f"{word[:80]!r} belongs to no allow, deny or only", usage)
        else:
            rules[verb].append(rule_of(word, operation))
    empty = [verb for verb in ("allow", "deny") if rules.get(verb) == []]
    if empty:
        raise GuestError(2, operation, f"{empty[0]} has no rule", f"write {empty[0]} 'c 1:3 rwm'")
    if len(rules) > 1 and {"only", "inherit"} & set(rules):
        raise GuestError(2, operation, f"{' and '.join(rules)} exclude each other", "allow and deny go together")
    if "inherit" in rules:
        rules["inherit"] = True
    reply = broker.call(operation, "Devices", group=group, **rules)
    shown, own = fields(reply, "rules", str, operation), field(reply, "own", bool, operation)
    if args.format == "json":
        return {"rules": shown, "own": own}
    if rules:
        return None
    return list(map(printable, shown)) + ([] if own else ["# of the group above"])


def do_freeze(broker: Broker, args: argparse.Namespace) -> None:
    """Stop everything in a group and below."""
    group = name_of(args, "freeze")
    broker.call(f"freeze group {group}", "Freeze", group=group)


def do_thaw(broker: Broker, args: argparse.Namespace) -> None:
    """Let it go on."""
    group = name_of(args, "thaw")
    broker.call(f"thaw group {group}", "Thaw", group=group)


def do_kill(broker: Broker, args: argparse.Namespace) -> Any:
    """Send a signal (KILL) to everything in a group and below."""
    group = name_of(args, "end")
    operation = f"send a signal to group {group}"
    reply = broker.call(operation, "Kill", again=args.signal in (None, signal.SIGKILL), group=group, signal=args.signal)
    count = field(reply, "processes", int, operation)
    return {"processes": count} if args.format == "json" else [f"{count} process{'' if count == 1 else 'es'}"]


def do_ps(broker: Broker, args: argparse.Namespace) -> Any:
    """Processes of a group, with the guest's own process and user numbers."""
    group = name_of(args, "list")
    operation = f"list processes of group {group}"
    reply = broker.call(operation, "Processes", group=group, recursive=args.recursive or None)
    kinds = {"pid": int, "user": int, "group": str, "command": str}
    found = fields(reply, "processes", dict, operation)
    rows = [{key: field(one, key, kind, operation) for key, kind in kinds.items()} for one in found]
    if args.format == "json":
        return rows
    for row in rows:
        row["command"] = row["command"] if len(row["command"]) <= WIDEST else row["command"][: WIDEST - 1] + "…"
    return client.table([tuple(kinds), *(tuple(printable(str(cell)) for cell in row.values()) for row in rows)])


def event_line(event: dict[str, Any]) -> str:
    """One event for a person."""
    number = event.get("time")
    seconds = number if isinstance(number, (int, float)) and 0 <= number < 1 << 33 else 0
    day = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"
    texts = [event.get(key) if isinstance(event.get(key), str) else "" for key in ("kind", "group", "key", "detail")]
    kind, group, key, detail = (printable(text or "") for text in texts)
    parts = [day, f"{kind:9}", group]
    count, answer, within = event.get("count"), event.get("id"), event.get("seconds")
    if key:
        parts.append(f"{key} {count}" if type(count) is int else key)
    parts += [detail] if detail else []
    if type(answer) is int:
        limit = f" within {within:g} s" if isinstance(within, (int, float)) else ""
        parts.append(f"answer{limit}: nestrt guest react --answer {answer} kill")
    return "  ".join(parts)


def do_events(broker: Broker, args: argparse.Namespace) -> None:
    """What happens in a group and below, a line for each event, until it is stopped."""
    group = name_of(args, "watch") if args.group != "/" else None
    kinds = [kind for word in args.kinds or () for kind in word.split(",")] or None
    unknown = [kind for kind in kinds or () if kind not in KINDS]
    if unknown:
        raise GuestError(2, "watch events", f"no kind {unknown[0]!r}", "kinds are " + ", ".join(KINDS))
    left = args.count
    for event in broker.events(f"watch events of group {group or '/'}", group, kinds):
        if event.get("kind") == "listening":
            continue
        print(json.dumps(event) if args.format == "json" else event_line(event), flush=True)
        left -= event.get("kind") != "lost"
        if args.count and left <= 0:
            return


def do_react(broker: Broker, args: argparse.Namespace) -> Any:
    """What the broker does when a group runs out of memory (oom) or waits too long for it (pressure)."""
    words: list[str] = args.words
    if args.list:
        few(words, 0, 0, "list reactions")
        return reactions(broker, args)
    if args.answer is not None:
        few(words, 1, 1, f"answer {args.answer}")
        broker.call(f"answer {args.answer}", "Answer", again=False, id=args.answer, action=words[0])
        return None
    few(words, 2, 2 if args.forget else 4, "set a reaction")
    group, on, rest = client.parse_group(words[0], "set a reaction of"), words[1], words[2:]
    if args.forget:
        broker.call(f"forget the reaction of group {group}", "Forget", group=group, on=on)
        return None
    few(rest, 1, 2, f"set a reaction of group {group} to {on}")
    reaction = {
        "group": group, "on": on, "action": rest[-1], "threshold": rest[0] if len(rest) > 1 else None,
        "step": args.step, "most": args.most, "seconds": args.seconds, "fallback": args.fallback,
    }  # fmt: skip
    given = {key: value for key, value in reaction.items() if value is not None}
    broker.call(f"set a reaction of group {group} to {on}", "React", reaction=given)
    return None


def few(words: list[str], least: int, most: int, operation: str) -> None:
    """Refuse any other number of words."""
    if not least <= len(words) <= most:
        reason = "more must follow" if len(words) < least else f"{words[most][:80]!r} is too much"
        remedy = "write it like: react web oom kill, or react web pressure 'some 150000 1000000' freeze"
        raise GuestError(2, operation, reason, remedy)


def reactions(broker: Broker, args: argparse.Namespace) -> Any:
    """Those that are set."""
    operation = "list reactions"
    found = fields(broker.call(operation, "Reactions"), "reactions", dict, operation)
    if args.format == "json":
        return found
    rows = [("group", "on", "threshold", "action", "with")]
    for one in found:
        given = {key: one[key] for key in ("step", "most", "seconds", "fallback") if one.get(key) is not None}
        more = [f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in given.items()]
        texts = [str(one.get(key) or "-") for key in ("group", "on", "threshold", "action")]
        rows.append(tuple(map(printable, [*texts, ", ".join(more) or "-"])))  # type: ignore[arg-type]
    return client.table(rows)


def read_rules(path: str, operation: str) -> list[str]:
    """The rules in a file, "-" is standard input, without comments and empty lines. Raises GuestError."""
    try:
        with open(0 if path == "-" else path, encoding="utf-8", closefd=path != "-") as file:
            text = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise client.refused(error, f"{operation} from {path}") from None
    except ValueError:
        raise GuestError(2, f"{operation} from {path}", "it is no text", "see cgrules.conf(5)") from None
    if len(text) > LONGEST_FILE:
        raise GuestError(2, f"{operation} from {path}", f"it has more than {LONGEST_FILE} characters", "")
    return [line for line in map(str.strip, text.split("\n")) if line and not line.startswith("#")]


def do_rules(broker: Broker, args: argparse.Namespace) -> Any:
    """Which group new processes go to, in the lines of cgrules.conf(5); with FILE (-: standard input) set them all."""
    operation = "set the rules for new processes" if args.file else "read the rules for new processes"
    rules = read_rules(args.file, operation) if args.file else None
    shown = fields(broker.call(operation, "Rules", rules=rules), "rules", str, operation)
    if args.format == "json":
        return shown
    return None if args.file or not shown else list(map(printable, shown))


COMMANDS: dict[str, Callable[[Broker, argparse.Namespace], Any]] = {
    "devices": do_devices, "attach": do_attach, "freeze": do_freeze, "thaw": do_thaw, "kill": do_kill, "ps": do_ps,
    "events": do_events, "react": do_react, "rules": do_rules,
}  # fmt: skip
# client.py's own, which come here where its view does not serve.
ALIKE: dict[str, Callable[[Broker, argparse.Namespace], Any]] = {
    "status": do_status, "get": do_get, "ls": do_ls, "create": do_create, "set": do_set, "move": do_attach, "rm": do_rm,
}  # fmt: skip


def parse_signal(text: str) -> int:
    """ "TERM", "SIGTERM" or "15". Raises argparse.ArgumentTypeError."""
    names = {number.name: int(number) for number in signal.Signals}
    name = text.upper()
    found = names.get(name) or names.get("SIG" + name) or (int(text) if re.fullmatch("[0-9]{1,2}", text) else 0)
    if not found:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no signal")
    return found


def parse_seconds(text: str) -> float:
    """Raises argparse.ArgumentTypeError."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no number of seconds")
    return float(text)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line: client.py's with more commands, and with options that may stand before or after each."""
    parser, commands = client.make_parser()
    for name, action in COMMANDS.items():
        about = action.__doc__
        command = commands.add_parser(name, help=about, description=about)
        if name in ("devices", "kill", "ps", "events", "react", "rules"):
            command.add_argument("--format", choices=("text", "json"), default="text")
        if name not in ("react", "rules"):
            top: dict[str, Any] = {"nargs": "?", "default": "/"} if name in ("ps", "events") else {}
            command.add_argument("group", metavar="GROUP", help="from the guest root, like web/worker", **top)
    add = {name: command.add_argument for name, command in commands.choices.items()}
    add["devices"]("words", nargs="*", metavar="allow|deny|only RULE ... | inherit",
                   help="a RULE is like 'c 1:3 rwm', or /dev/fuse:rw")  # fmt: skip
    add["attach"]("pids", nargs="*", type=int, metavar="PID")
    add["kill"]("-s", "--signal", type=parse_signal, metavar="SIGNAL", help="TERM or 15 (default: KILL)")
    add["ps"]("-r", "--recursive", action="store_true", help="groups below too")
    add["events"]("--kinds", action="append", metavar="A,B", help="only these: " + ", ".join(KINDS))
    add["events"]("--count", type=int, default=0, metavar="N", help="end after so many")
    add["react"]("words", nargs="*", metavar="GROUP oom|pressure [THRESHOLD] ACTION",
                 help="ACTION: kill, freeze, raise, tell; THRESHOLD: 'some 150000 1000000' (µs in a window of µs)")
    add["react"]("--step", metavar="SIZE", help="raise: by so much")
    add["react"]("--most", metavar="SIZE", help="raise: up to so much")
    add["react"]("--seconds", type=parse_seconds, metavar="S", help="tell: wait so long for an answer")
    add["react"]("--fallback", metavar="ACTION",
                 help="tell: without an answer; raise: where it cannot be: kill, freeze or nothing")
    add["react"]("--list", action="store_true", help="show what is set")
    add["react"]("--forget", action="store_true", help="of GROUP and oom or pressure: no reaction any more")
    add["react"]("--answer", type=int, metavar="ID", help="answer an event that waits: kill, freeze, raise or nothing")
    add["rules"]("file", nargs="?", metavar="FILE", help="lines of cgrules.conf(5); -: standard input")
    add["create"]("--owner", type=int, metavar="USER", help="by the broker: the user that may divide it further")
    add["create"]("--device", action="append", metavar="RULE", help="by the broker: its device rules; repeat")
    everywhere: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("--broker", {"action": "store_true"}, "ask the broker, though this guest's view can be written"),
        ("--socket", {"metavar": "PATH"}, f"where the broker listens (default: {SOCKET})"),
        ("--wait", {"type": parse_seconds, "metavar": "S"}, f"seconds to wait for a broker (default: {PATIENCE:g})"),
    )
    for flag, more, text in everywhere:
        parser.add_argument(flag, help=text, **more)
        for name in add:  # no default of their own here: that would hide what was given before the command
            add[name](flag, help=argparse.SUPPRESS, **more, default=argparse.SUPPRESS)
    return parser.parse_args(argv)


def perform(args: argparse.Namespace, find: Callable[[], client.View] | None, of: str = "") -> Any:
    """One command, on the view that *find* gives, or in this guest, or by way of the broker: what is to be shown.
    *of*: the guest's name, where it is a guest of the level itself."""
    broker = Broker(args.socket or os.environ.get("NESTRT_SOCKET") or SOCKET, args.wait)
    more = getattr(args, "owner", None) is not None or getattr(args, "device", None)
    if args.command in COMMANDS or args.broker or more:
        action = {**ALIKE, **COMMANDS}.get(args.command)
        if find:
            reason = "the broker serves the guest's own processes"
            operation = f"ask the broker for {args.command!r} from the host"
            own = f"nestrt broker rules {of} has the host's own; " if of and args.command == "rules" else ""
            raise GuestError(5, operation, reason, own + "run it in the guest, without --of")
        if not action:
            raise GuestError(2, f"{args.command} by the broker", "it is for this guest's own view", "without --broker")
        return action(broker, args)
    if find or args.command not in ALIKE:
        return client.perform(args, find or client.local_view)
    return wherever(broker, args)


def wherever(broker: Broker, args: argparse.Namespace) -> Any:
    """A command of client.py in this guest's own view where that can be written, else by the broker if there is one."""
    try:
        view = client.local_view()
    except GuestError:
        if not broker.there():
            raise
        return ALIKE[args.command](broker, args)
    if not view.divided and broker.there():
        reads = args.command in READING
        if reads and args.wait is None:
            broker.wait = 0
        try:
            return ALIKE[args.command](broker, args)
        except NoBroker:
            if not reads:
                raise
    return client.perform(args, lambda: view)


def main(argv: list[str], find: Callable[[], client.View] | None = None, of: str = "") -> int:
    """Run one command, on the view that *find* gives or in this guest; returns the exit status, as in client.py."""

    def action(argv: list[str]) -> tuple[argparse.Namespace, Any]:
        args = parse_arguments(argv)
        return args, perform(args, find, of)

    return client.run(argv, action)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
