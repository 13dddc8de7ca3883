"""A small HTTP/1.1 server for one page: a thread for each connection, of which there are few, and none for long.

A client has so long to say what it wants, and so long to take it. Where all places are taken, whoever has said nothing
yet for the longest time has to go, or else has taken nothing of its answer: many slow clients keep out nobody. A page
on the web that makes a browser of this machine ask (DNS rebinding) names its own host, and is refused. Sources: RFC
9110, RFC 9112.
"""

from __future__ import annotations

import ipaddress
import selectors
import signal
import socket
import sys
import threading
import time

from nestrt.broker.sockets import notify
from nestrt.errors import NestrtError, one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.cli._metrics_listen import Listener

    Answer = Callable[[bool], tuple[str, bytes]]

MOST_CONNECTIONS = 16
LONGEST_HEAD = 8192  # bytes of a request
IDLE = 75.0  # s for a request to begin, READ to come, WRITE for the answer to go, LINGER for the rest
STUCK = 1.0  # s; who takes nothing for so long makes room for others
READ = 5.0
WRITE = 20.0
LINGER = 1.0
MOST_REQUESTS = 1000  # of one connection
PIECE = 1 << 16
REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    421: "Misdirected Request", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip
ONCE = ("host", "content-length", "transfer-encoding")
PLAIN = "text/plain; charset=utf-8"
INDEX = b'<!DOCTYPE html><title>nestrt</title><a href="/metrics">metrics</a>\n'


class Closed(Exception):
    """The client has gone, or took too long."""


class Refused(Exception):
    """A request that is answered with a status and the connection's end."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header prefers OpenMetrics, version 1.0.0 or none, to text. As prometheus_client: if named."""
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        given = dict(word.partition("=")[::2] for word in parameters)
        fits = kind == "application/openmetrics-text" and given.get("version", "1.0.0") in ("1.0.0", "0.0.1")
        if fits and given.get("q", "1").strip("0."):
            return True
    return False


def is_this_machine(host: str) -> bool:
    """Whether a Host header is one that only somebody on this machine's loopback would write."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


class Request:
    """A request's head. Raises Refused where it is not HTTP/1."""

    def __init__(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        # A proxy in front may end lines there, and see another request.
        if any(c in line for line in (first, *lines) for c in "\0\r\n"):
            raise Refused(400)
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            raise Refused(400)
        if words[2] not in ("HTTP/1.0", "HTTP/1.1"):
            raise Refused(505)
        self.method, self.target, version = words
        self.headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise Refused(400)
            name, value = name.lower(), value.strip()
            if name in self.headers and name in ONCE:
                raise Refused(400)
            self.headers[name] = f"{self.headers[name]},{value}" if name in self.headers else value
        if version == "HTTP/1.1" and "host" not in self.headers:
            raise Refused(400)
        said = self.headers.get("connection", "").lower()
        body = self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers
        self.keep = not body and "close" not in said and (version == "HTTP/1.1" or "keep-alive" in said)


class Connection:
    """One client, and the thread that serves it."""

    def __init__(self, one: socket.socket, local: bool, answer: Answer) -> None:
        self.socket = one
        self.local = local
        self.answer = answer
        self.asked = False  # its request is there
        self.waits = True  # for the client, since then
        self.since = time.monotonic()
        self.left = b""

    def serve(self) -> None:
        """Until its end."""
        try:
            for _ in range(MOST_REQUESTS):
                if not self._one():
                    self._drain()
                    break
        except (Closed, OSError):
            pass
        finally:
            self.socket.close()

    def _drain(self) -> None:
        """Read what nobody asked for: with bytes left unread, close(2) is a reset, and the answer may be lost."""
        self.socket.shutdown(socket.SHUT_WR)
        end, most = time.monotonic() + LINGER, 64
        while most and (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            if not self.socket.recv(PIECE):
                break
            most -= 1

    def end(self) -> None:
        """Make serve() return, from another thread."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _head(self) -> bytes:
        """The next request's head. Raises Closed, Refused."""
        self.asked = False
        self._wait()
        data, self.left = self.left.lstrip(b"\r\n"), b""
        end = self.since + (READ if data else IDLE)
        while b"\r\n\r\n" not in data:
            if len(data) > LONGEST_HEAD:
                raise Refused(431)
            self.socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                more = self.socket.recv(LONGEST_HEAD)
            except TimeoutError:
                if data:
                    raise Refused(408) from None
                raise Closed from None
            if not more:
                raise Closed
            if not data:
                end = time.monotonic() + READ
            data = (data + more).lstrip(b"\r\n") if not data else data + more
            if time.monotonic() > end:
                raise Refused(408)
        head, _, self.left = data.partition(b"\r\n\r\n")
        if len(head) > LONGEST_HEAD:
            raise Refused(431)
        self.asked, self.waits = True, False
        return head

    def _wait(self) -> None:
        self.since, self.waits = time.monotonic(), True

    def in_the_way(self) -> bool:
        """Whether it may go for somebody else: for another thread."""
        return not self.asked or (self.waits and time.monotonic() - self.since > STUCK)

    def _one(self) -> bool:
        """One request; whether another may follow."""
        try:
            request = Request(self._head())
        except Refused as refused:
            self._send(refused.status, PLAIN, REASONS[refused.status].encode() + b"\n", False, True)
            return False
        status, kind, body = self._page(request)
        self._send(status, kind, body, request.keep, request.method != "HEAD")
        return request.keep

    def _page(self, request: Request) -> tuple[int, str, bytes]:
        def plain(status: int) -> tuple[int, str, bytes]:
            return status, PLAIN, REASONS[status].encode() + b"\n"

        if self.local and "host" in request.headers and not is_this_machine(request.headers["host"]):
            return plain(421)
        path = request.target.partition("?")[0]
        if path not in ("/", "/metrics"):
            return plain(404)
        if request.method not in ("GET", "HEAD"):
            return plain(405)
        if path == "/":
            return 200, "text/html; charset=utf-8", INDEX
        try:
            return 200, *self.answer(wants_openmetrics(request.headers.get("accept", "")))
        except (NestrtError, OSError) as error:
            text = one_line(str(error))
        except Exception as error:
            text = one_line(f"{type(error).__name__}: {error}; this is a bug of nestrt")
        sys.stderr.write(f"nestrt: {text}\n")
        return 500, PLAIN, text.encode(errors="backslashreplace") + b"\n"

    def _send(self, status: int, kind: str, body: bytes, keep: bool, whole: bool) -> None:
        lines = [f"HTTP/1.1 {status} {REASONS[status]}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        lines += ["Cache-Control: no-store", "X-Content-Type-Options: nosniff", "Vary: Accept"]
        lines += ["Allow: GET, HEAD"] if status == 405 else []
        lines += ["Connection: " + ("keep-alive" if keep else "close"), "", ""]
        data = memoryview("\r\n".join(lines).encode() + (body if whole else b""))
        end = time.monotonic() + WRITE
        while data:
            self._wait()
            self.socket.settimeout(max(0.001, end - self.since))
            data = data[self.socket.send(data[:PIECE]) :]
            if data and time.monotonic() > end:
                raise Closed


class Server:
    """Serves *answer* on *listeners* until SIGTERM or SIGINT."""

    def __init__(self, listeners: list[Listener], answer: Answer) -> None:
        self.listeners = listeners
        self.answer = answer
        self.lock = threading.Lock()
        self.connections: dict[Connection, threading.Thread] = {}

    def run(self) -> int:
        """Say where, then serve. Returns 0."""
        receive, send = socket.socketpair()
        for one in (receive, send):
            one.setblocking(False)
        signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(receive, selectors.EVENT_READ)
                for listener in self.listeners:
                    selector.register(listener.socket, selectors.EVENT_READ, listener)
                    sys.stderr.write(f"nestrt: metrics at {one_line(_url(listener.address))}\n")
                sys.stderr.flush()
                notify("READY=1")
                while self._turn(selector):
                    pass
        finally:
            for listener in self.listeners:
                listener.close()
            notify("STOPPING=1")
            self._end()
        return 0

    def _turn(self, selector: selectors.BaseSelector) -> bool:
        """Take who comes; whether to go on."""
        for key, _ in selector.select():
            if key.data is None:
                return False
            try:
                one, _ = key.data.socket.accept()
            except OSError:  # it has gone again, or there are no descriptors: give those who have some time to end
                time.sleep(0.01)
                continue
            self._take(Connection(one, key.data.local, self.answer))
        return True

    def _take(self, connection: Connection) -> None:
        with self.lock:
            if len(self.connections) >= MOST_CONNECTIONS:
                silent = [each for each in self.connections if each.in_the_way()]
                if silent:
                    gone = min(silent, key=lambda each: (each.asked, each.since))
                    gone.end()
                    del self.connections[gone]
                else:
                    connection.socket.settimeout(0)
                    try:
                        connection.socket.send(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n")
                    except OSError:
                        pass
                    connection.socket.close()
                    return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self.connections[connection] = thread
        thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve()
        finally:
            with self.lock:
                self.connections.pop(connection, None)

    def _end(self) -> None:
        """Those who are being answered have a moment; the others go."""
        with self.lock:
            left = dict(self.connections)
        for connection in left:
            if not connection.asked:
                connection.end()
        end = time.monotonic() + 1.0
        for connection, thread in left.items():
            thread.join(max(0.0, end - time.monotonic()))
            connection.end()


def _url(address: str) -> str:
    return address if address.startswith("unix:") else f"http://{address}/metrics"
