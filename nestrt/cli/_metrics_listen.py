"""Where ``nestrt metrics`` listens: loopback addresses, Unix sockets, what systemd has opened."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat

from nestrt.broker.sockets import inherited
from nestrt.errors import InputError, KernelError, StateError
from nestrt.record import record

BACKLOG = 64
LONGEST_SOCKET_PATH = 107  # bytes: struct sockaddr_un


@record
class Listener:
    """A listening *socket*: its *address* as people write it, whether only this machine reaches it (*local*) over TCP,
    and, of a Unix socket that we made, its (device, inode): *made*."""

    socket: socket.socket
    address: str
    local: bool
    made: tuple[int, int] | None = None
    path: str = ""

    def close(self) -> None:
        """Close it, and remove a Unix socket that is still ours."""
        self.socket.close()
        if self.made:
            try:
                found = os.lstat(self.path)
                if (found.st_dev, found.st_ino) == self.made:
                    os.unlink(self.path)
            except OSError:
                return


def listeners(addresses: list[str], mode: int, remote: bool) -> list[Listener]:
    """What to serve. Raises InputError, StateError where somebody listens there already, KernelError."""
    made: list[Listener] = []
    try:
        for address in addresses:
            made.append(_unix(address, mode) if address.startswith("unix:") else _tcp(address, remote))
        for sockets in inherited().values():
            for one in sockets:
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    made.append(_inherited(one))
    except BaseException:
        for each in made:
            each.close()
        raise
    return made


def _inherited(one: socket.socket) -> Listener:
    """Whoever has set systemd up has chosen the address."""
    if one.family == socket.AF_UNIX:
        return Listener(one, f"unix:{one.getsockname()}", False)
    host, port = one.getsockname()[:2]
    return Listener(one, _text(host, port), _is_loopback(host))


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tcp(address: str, remote: bool) -> Listener:
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        known = ipaddress.ip_address(host)
        number = int(port) if port.isascii() and port.isdigit() else -1
        if not 0 <= number < 65536:
            raise ValueError
    except ValueError:
        remedy = "write 127.0.0.1:PORT, [::1]:PORT or unix:/PATH"
        raise InputError("listen on", address, "it is no address", remedy) from None
    if not known.is_loopback and not remote:
        remedy = "listen on 127.0.0.1 behind a proxy that asks who it is; or say --allow-remote"
        raise InputError("listen on", address, "everybody who reaches it could read all guests", remedy)
    one = socket.socket(socket.AF_INET if known.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((host, number))
        one.listen(BACKLOG)
        one.setblocking(False)
    except OSError as error:
        one.close()
        if error.errno == errno.EADDRINUSE:
            raise StateError("listen on", address, "somebody does already", "take another port") from error
        raise KernelError("listen on", address, error.errno or 0, "ip address shows this machine's own") from error
    return Listener(one, _text(host, one.getsockname()[1]), known.is_loopback)


def _unix(address: str, mode: int) -> Listener:
    path = address.removeprefix("unix:")
    if not path.startswith("/") or len(os.fsencode(path)) > LONGEST_SOCKET_PATH or "\0" in path:
        reason = f"it is no absolute path of at most {LONGEST_SOCKET_PATH} bytes"
        raise InputError("listen on", address, reason, "write unix:/run/nestrt-metrics.sock")
    _make_room(address, path)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        # It is made so: by its path, what somebody else puts there meanwhile would be changed.
        os.fchmod(one.fileno(), mode)
        one.bind(path)
        found = os.lstat(path)
        one.listen(BACKLOG)
        one.setblocking(False)
    except OSError as error:
        one.close()
        remedy = f"is there a directory {os.path.dirname(path)} that you may write to?"
        raise KernelError("listen on", address, error.errno or 0, remedy) from error
    finally:
        os.umask(before)
    return Listener(one, address, False, (found.st_dev, found.st_ino), path)


def _make_room(address: str, path: str) -> None:
    """Remove a socket on which nobody listens any more. Raises InputError, StateError."""
    try:
        found = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise InputError("listen on", address, "there is a file that is no socket", "remove it, or take another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.setblocking(False)
        try:
            one.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass
    raise StateError("listen on", address, "somebody does already", "end that one first, or take another path")
