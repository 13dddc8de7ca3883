"""D-Bus calls to systemd's manager, by libsystemd: sd-bus(3). There is a libsystemd wherever there is a systemd.

Who talks to whom::

    system bus      nestrt → dbus-daemon → PID 1
    private socket  nestrt → PID 1                 root only; where no dbus-daemon runs
    user bus        nestrt → dbus-daemon → the user's manager, or the manager's own socket

Only functions of a fixed number of arguments are called: ctypes passes arguments to variadic ones
rightly on x86-64 alone. Loaded where the systemd driver is asked for, nowhere else.
"""

from __future__ import annotations

import ctypes
import errno
import os
from time import monotonic, sleep

from nestrt.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SERVICE = b"org.freedesktop.systemd1"
OBJECT = b"/org/freedesktop/systemd1"
MANAGER = b"org.freedesktop.systemd1.Manager"
BUS = b"org.freedesktop.DBus"
PRIVATE = "systemd/private"  # below the runtime directory
MATCH = (
    "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',"
    "interface='org.freedesktop.systemd1.Manager',member='JobRemoved'"
)
# Seconds that systemd has for one job, as runc gives it, and for one call.
JOB_TIMEOUT = 30.0
CALL_TIMEOUT = 25_000_000
REMEDY = "systemd is not running here: leave --systemd-cgroup out"
USER_REMEDY = "set XDG_RUNTIME_DIR or DBUS_SESSION_BUS_ADDRESS to a user session's bus, or leave --systemd-cgroup out"
NO_BUS = "neither XDG_RUNTIME_DIR nor DBUS_SESSION_BUS_ADDRESS is set"

_NUMBERS: dict[str, Any] = {
    "y": ctypes.c_uint8,
    "b": ctypes.c_int,
    "n": ctypes.c_int16,
    "q": ctypes.c_uint16,
    "i": ctypes.c_int32,
    "u": ctypes.c_uint32,
    "x": ctypes.c_int64,
    "t": ctypes.c_uint64,
    "d": ctypes.c_double,
}
_TEXTS = "sog"


class BusError(Exception):
    """systemd or the bus answered with an error: its D-Bus *name*, and *text* for a reader."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.name = name
        self.text = text


class _Error(ctypes.Structure):
    """sd_bus_error(3): struct { const char *name; const char *message; int _need_free; }."""

    _fields_ = [("name", ctypes.c_char_p), ("message", ctypes.c_char_p), ("need_free", ctypes.c_int)]


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libsystemd.so.0")
    except OSError:
        raise HostError("use", "the systemd driver", "libsystemd.so.0 is not there", REMEDY) from None
    handle, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64
    letter, out = ctypes.c_char, ctypes.POINTER(ctypes.c_void_p)
    for name, arguments in {
        "sd_bus_open_system": [out],
        "sd_bus_open_user": [out],
        "sd_bus_new": [out],
        "sd_bus_set_address": [handle, text],
        "sd_bus_start": [handle],
        "sd_bus_message_new_method_call": [handle, out, text, text, text, text],
        "sd_bus_message_append_basic": [handle, letter, handle],
        "sd_bus_message_append_array": [handle, letter, handle, ctypes.c_size_t],
        "sd_bus_message_open_container": [handle, letter, text],
        "sd_bus_message_close_container": [handle],
        "sd_bus_message_enter_container": [handle, letter, text],
        "sd_bus_message_read_basic": [handle, letter, handle],
        "sd_bus_message_is_signal": [handle, text, text],
        "sd_bus_call": [handle, handle, number, ctypes.POINTER(_Error), out],
        "sd_bus_process": [handle, out],
        "sd_bus_wait": [handle, number],
    }.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    for name in ("sd_bus_flush_close_unref", "sd_bus_message_unref", "sd_bus_error_free"):
        function = getattr(library, name)
        function.argtypes, function.restype = [handle], handle
    return library


def _wrong(result: int) -> BusError:
    return BusError(f"System.Error.{errno.errorcode.get(-result, -result)}", os.strerror(-result))


def _check(result: int) -> int:
    if result < 0:
        raise _wrong(result)
    return result


def _patiently(connect: Callable[[], int]) -> int:
    """The result of *connect*, tried again while the other side's queue is full, which connect(2) calls EAGAIN."""
    for attempt in range(7):
        result = connect()
        if result != -errno.EAGAIN:
            break
        sleep(0.1 * 2**attempt)
    return result


class Message:
    """A message that is ours to release: being written, or an answer being read in the order of its parts."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self.library = library
        self.handle = handle

    def __del__(self) -> None:
        self.library.sd_bus_message_unref(self.handle)

    def append(self, signature: str, *values: Any) -> None:
        """Write *values* of the complete types in *signature*: sd_bus_message_append(3). A variant is (type, value)."""
        for kind, value in zip(split(signature), values, strict=True):
            self._append(kind, value)

    def _append(self, kind: str, value: Any) -> None:
        library, handle, first = self.library, self.handle, kind[:1].encode()
        if kind in _NUMBERS:
            _check(library.sd_bus_message_append_basic(handle, first, ctypes.byref(_NUMBERS[kind](value))))
        elif kind in _TEXTS:
            _check(library.sd_bus_message_append_basic(handle, first, value.encode("utf-8", "surrogateescape")))
        elif kind == "ay":
            _check(library.sd_bus_message_append_array(handle, b"y", bytes(value), len(value)))
        else:
            inner = value[0] if kind == "v" else kind[1:] if kind[0] == "a" else kind[1:-1]
            first = {b"a": b"a", b"v": b"v", b"(": b"r"}[first]
            _check(library.sd_bus_message_open_container(handle, first, inner.encode()))
            if kind == "v":
                self._append(inner, value[1])
            elif kind[0] == "a":
                for item in value:
                    self._append(inner, item)
            else:
                self.append(inner, *value)
            _check(library.sd_bus_message_close_container(handle))

    def number(self, kind: str) -> int:
        """Read a number of type *kind*, a D-Bus letter."""
        found = _NUMBERS[kind]()
        _check(self.library.sd_bus_message_read_basic(self.handle, kind.encode(), ctypes.byref(found)))
        return int(found.value)

    def text(self, kind: str = "s") -> str:
        """Read a text of type *kind*: s, o or g."""
        found = ctypes.c_char_p()
        _check(self.library.sd_bus_message_read_basic(self.handle, kind.encode(), ctypes.byref(found)))
        return (found.value or b"").decode("utf-8", "surrogateescape")

    def enter(self, container: str, content: str) -> bool:
        """Step into the array ("a"), variant ("v") or structure ("r") that comes next; False where there is none."""
        entered = self.library.sd_bus_message_enter_container(self.handle, container.encode(), content.encode())
        return _check(entered) > 0


def split(signature: str) -> list[str]:
    """The complete types in *signature*: "sa(sv)u" is s, a(sv), u."""
    found: list[str] = []
    start = depth = 0
    for at, letter in enumerate(signature):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and letter != "a":
            found.append(signature[start : at + 1])
            start = at + 1
    return found


def is_users() -> bool:
    """Whether the caller's systemd is the user's own manager and not the machine's.

    Root of a user namespace is an ordinary user outside (podman without root), or root of a guest that
    has a systemd: the runtime directory, /run/user/UID with the number outside, tells them apart.
    """
    if os.geteuid() != 0:
        return True
    from nestrt.kernel.id_maps import read_id_map

    if read_id_map("uid_map") == [(0, 0, 2**32 - 1)]:
        return False
    directory = os.environ.get("XDG_RUNTIME_DIR", "").rstrip("/")
    return bool(directory) and not directory.endswith("/0") and os.path.exists(f"{directory}/bus")


class Bus:
    """A connection to systemd's manager: the machine's, or with *user* the caller's own.

    Raises HostError where there is none to be had.
    """

    def __init__(self, user: bool = False) -> None:
        self.library = _load()
        self.handle = ctypes.c_void_p()
        self.user = user
        # Whether the end of a job will be told: the bus passes on what was asked for, PID 1 itself tells all.
        self._matching = False
        self._greet()

    def close(self) -> None:
        if self.handle:
            self.library.sd_bus_flush_close_unref(self.handle)
            self.handle = ctypes.c_void_p()

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _greet(self) -> None:
        """Connect by the first of the ways that answers; the error of the first is the one that is told."""
        first = ""
        for way in (self._open_bus, self._open_private):
            result = _patiently(way)
            if result >= 0:
                self._matching = way == self._open_private
                return
            first = first or (NO_BUS if result == -errno.ENOMEDIUM else os.strerror(-result))
            self.close()
        whose = "the user's systemd" if self.user else "systemd"
        raise HostError("reach", f"{whose} over D-Bus", first, USER_REMEDY if self.user else REMEDY)

    def _open_bus(self) -> int:
        if not self.user and not os.path.isdir("/run/systemd/system"):
            return -errno.ENOENT  # sd_booted(3): a bus alone is no systemd
        opener = self.library.sd_bus_open_user if self.user else self.library.sd_bus_open_system
        return int(opener(ctypes.byref(self.handle)))

    def _open_private(self) -> int:
        directory = os.environ.get("XDG_RUNTIME_DIR", "") if self.user else "/run"
        if not directory:
            return -errno.ENOMEDIUM
        # What is no letter of an address is %XX: D-Bus specification, "Server Addresses".
        path = b"".join(
            bytes((byte,)) if (byte < 128 and chr(byte).isalnum()) or byte in b"-_/.*" else b"%%%02x" % byte
            for byte in os.fsencode(f"{directory}/{PRIVATE}")
        )
        result = int(self.library.sd_bus_new(ctypes.byref(self.handle)))
        if result >= 0:
            result = int(self.library.sd_bus_set_address(self.handle, b"unix:path=" + path))
        return int(self.library.sd_bus_start(self.handle)) if result >= 0 else result

    def call(
        self,
        member: str,
        signature: str = "",
        *values: Any,
        path: str = "",
        interface: bytes = MANAGER,
        service: bytes = SERVICE,
    ) -> Message:
        """Call a method, the manager's where nothing else is said, and return the answer. Raises BusError."""
        library, made = self.library, ctypes.c_void_p()
        where = path.encode() or OBJECT
        _check(
            library.sd_bus_message_new_method_call(
                self.handle, ctypes.byref(made), service, where, interface, member.encode()
            )
        )
        message = Message(library, made)
        message.append(signature, *values)
        error, answer = _Error(), ctypes.c_void_p()
        result = library.sd_bus_call(
            self.handle, message.handle, CALL_TIMEOUT, ctypes.byref(error), ctypes.byref(answer)
        )
        if result < 0:
            name = (error.name or b"").decode(errors="replace")
            text = (error.message or b"").decode(errors="replace")
            library.sd_bus_error_free(ctypes.byref(error))
            raise BusError(name, text or os.strerror(-result)) if name else _wrong(result)
        return Message(library, answer)

    def get(self, path: str, interface: str, name: str, signature: str) -> Message:
        """The property *name*, of type *signature*, ready to be read. Raises BusError."""
        answer = self.call(
            "Get", "ss", interface, name, path=path, interface=b"org.freedesktop.DBus.Properties", service=SERVICE
        )
        answer.enter("v", signature)
        return answer

    def version(self) -> int:
        """systemd's version: 252 of "252.39-1~deb12u2" or "v252". Raises BusError, HostError."""
        text = self.manager_text("Version")
        digits = ""
        for letter in text.lstrip("v"):
            if not letter.isdigit():
                break
            digits += letter
        if not digits:
            raise HostError("use", "the systemd driver", f"its version {text!r} has no number", "")
        return int(digits)

    def manager_text(self, name: str) -> str:
        """A text property of the manager: Version; ControlGroup, "" for the root that it sees. Raises BusError."""
        return self.get(OBJECT.decode(), MANAGER.decode(), name, "s").text()

    def job(self, member: str, signature: str, *values: Any) -> str:
        """Call a method that starts a job, and wait for it: its result, "done" if all is well.

        Raises BusError; TimeoutError after JOB_TIMEOUT.
        """
        if not self._matching:
            # Before the call: a job can be over before its answer is here.
            self.call("AddMatch", "s", MATCH, path="/org/freedesktop/DBus", interface=BUS, service=BUS)
            self._matching = True
        wanted = self.call(member, signature, *values).text("o")
        end = monotonic() + JOB_TIMEOUT
        while True:
            left = end - monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "not done in time")
            handle = ctypes.c_void_p()
            if not _check(self.library.sd_bus_process(self.handle, ctypes.byref(handle))):
                _check(self.library.sd_bus_wait(self.handle, int(left * 1_000_000)))
            if not handle:
                continue
            signal = Message(self.library, handle)
            if self.library.sd_bus_message_is_signal(handle, MANAGER, b"JobRemoved") > 0:
                signal.number("u")
                if signal.text("o") == wanted:
                    signal.text("s")
                    return signal.text("s")
