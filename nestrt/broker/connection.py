"""One connection: calls in, replies out, one at a time and in order. varlink.org, "Protocol".

Whoever is at the other end may send bytes one by one, read nothing, or both for ever: then this task waits, and
no other. A call that has begun has to end, and a reply has to be taken, in PATIENCE seconds.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import trio

from nestrt.broker import idl, interfaces, wire
from nestrt.broker.methods import METHODS
from nestrt.broker.peer import credentials, peer_of
from nestrt.broker.refusal import Refusal, from_error
from nestrt.broker.request import Request
from nestrt.broker.served import Served
from nestrt.errors import NestrtError, one_line
from nestrt.guest import client
from nestrt.guest.client import GuestError
from nestrt.kernel import pidfd

if TYPE_CHECKING:
    from nestrt.broker.peer import Peer
    from nestrt.broker.server import Broker

PATIENCE = 30.0  # seconds
HEARING = 2.0
STRANGERS = 8  # of those that a guest's socket is not for, heard out at a time
REQUEST_BYTES = 4096  # a call that is longer counts as several requests: to read it takes the broker's time
MOST_UNREAD = 1 << 24  # bytes of replies that a guest's root has not taken yet, and as many its other users
CHUNK = 65536
SERVICE = "org.varlink.service"
# Each of these, done or refused, is a line of the audit; Devices and Rules where they change something. Those that a
# locked guest may not ask for are done in Request.unlocked(): all but Kill and Answer, which are about processes, and
# what was asked before.
CHANGES = frozenset(
    ("Create", "Remove", "Set", "Attach", "Freeze", "Thaw", "Kill", "React", "Forget", "Answer", "SetLimits", "Drain")
)
CHANGING = {"Devices": ("allow", "deny", "only", "inherit"), "Rules": ("rules",)}
STREAMS = frozenset(("Events", "Audit"))


class Gone(Exception):
    """The other end has closed, or has not kept time."""


def service(call: wire.Call, own: str, version: str) -> dict[str, Any]:
    """What org.varlink.service answers for a socket with the interface *own*. Raises Refusal."""
    method = call.method.removeprefix(SERVICE + ".")
    if method == "GetInfo":
        idl.interface(SERVICE).check(method, call.parameters)
        return {
            "vendor": interfaces.VENDOR,
            "product": interfaces.PRODUCT,
            "version": version,
            "url": interfaces.URL,
            "interfaces": [SERVICE, own],
        }
    if method == "GetInterfaceDescription":
        name = idl.interface(SERVICE).check(method, call.parameters)["interface"]
        if name not in (SERVICE, own):
            raise Refusal(f"{SERVICE}.InterfaceNotFound", f"no interface {name[:80]}", interface=name[:256])
        return {"description": interfaces.TEXTS[name]}
    raise no_method(call.method)


def groups_of(peer: Peer) -> dict[str, str]:
    """The groups of the process that connected, as client.membership() has them; {} where nobody can tell any more: it
    has been reaped, and its number may be another's."""
    found = client.membership(str(peer.pid)) if peer.pid > 0 and peer.pidfd >= 0 else {}
    try:
        return found if found and pidfd.send_signal(peer.pidfd, 0) else {}
    except PermissionError:
        return found


def no_method(name: str) -> Refusal:
    """The interface has no such method."""
    return Refusal(f"{SERVICE}.MethodNotFound", f"no method {name[:80]}", method=name[:256])


class Connection:
    """A connection of a process of *guest*. The subclass of the host's socket has another interface."""

    interface = "io.nestrt.Guest"

    def __init__(self, broker: Broker, guest: Served | None, connection: socket.socket) -> None:
        self.broker = broker
        self.guest = guest
        self.socket = connection
        self.decoder = wire.Decoder(broker.options.message_bytes)
        self.began = 0.0
        self.peer: Peer | None = None

    async def run(self) -> None:
        """Serve until the other end closes. Nothing that goes wrong here is anybody else's."""
        try:
            self.admit()
            while (call := await self.receive()) is not None:
                await self.answer(call)
                await trio.lowlevel.checkpoint()  # others have their turn, and the next call the time to come in
        except (Gone, OSError):
            pass
        except wire.Malformed as error:
            refusal = Refusal(f"{SERVICE}.InvalidParameter", str(error), parameter=str(error))
            await self.last_words(refusal)
        except Refusal as refusal:
            if refusal.name == "NotPermitted":
                await self.hear_out()
            await self.last_words(refusal)
        except Exception as error:
            print(one_line(f"nestrt broker: {type(error).__name__}: {error}; this is a bug of nestrt"), file=sys.stderr)
        finally:
            self.leave()
            self.socket.close()

    async def hear_out(self) -> None:
        """Wait for the question of somebody whom the socket is not for: to be read, a refusal has to come after it.

        Only of a few at a time: nothing counts them, and each holds descriptors of the broker's.
        """
        guest = self.guest
        if guest is None or guest.strangers >= STRANGERS:
            return
        guest.strangers += 1
        try:
            with trio.move_on_after(HEARING):
                await trio.lowlevel.wait_readable(self.socket)
        finally:
            guest.strangers -= 1

    # -- who --------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Learn who it is. Raises Refusal where it may not talk to this socket at all."""
        guest = self.guest
        assert guest is not None
        if guest.process < 0:
            self.broker.begin(guest)
        uid = credentials(self.socket)[1]
        self.peer = peer_of(self.socket, guest.ids)
        options = guest.quota.options  # known with the mark, as guest.ids are
        self.decoder.longest = options.message_bytes
        mine = guest.by_user.get(uid, 0)
        others = guest.connections - guest.by_user.get(guest.root_uid, 0)
        full = guest.connections >= options.connections
        if full or (not self.peer.root and (mine >= options.per_user or others >= options.users)):
            raise Refusal("QuotaExceeded", "cannot connect: too many connections", "close others first")
        own = groups_of(self.peer)
        if not any(client.below(own[key], guest.limit) for key in guest.primary_keys if key in own):
            raise Refusal("NotPermitted", "cannot connect: the process is in no group of this guest", "")
        guest.number(self.peer)
        guest.connections += 1
        guest.by_user[uid] = mine + 1
        self.counted = uid

    counted = -1

    def leave(self) -> None:
        """Give back what admit() took."""
        if self.peer is not None:
            self.peer.close()
        guest = self.guest
        if guest is not None and self.counted >= 0:
            guest.connections -= 1
            guest.by_user[self.counted] -= 1
            if not guest.by_user[self.counted]:
                del guest.by_user[self.counted]
                guest.turns.pop(self.counted, None)

    # -- bytes ------------------------------------------------------------------------------------

    async def receive(self) -> wire.Call | None:
        """The next call, when its turn has come; None where the other end has closed. Raises wire.Malformed, Gone."""
        while not self.decoder.whole:
            try:
                data = self.socket.recv(CHUNK)
            except BlockingIOError:
                if not self.decoder.midway:
                    await trio.lowlevel.wait_readable(self.socket)
                    continue
                with trio.move_on_at(self.began + PATIENCE) as scope:
                    await trio.lowlevel.wait_readable(self.socket)
                if scope.cancelled_caught:
                    raise Gone from None
                continue
            if not data:
                return None
            if not self.decoder.midway:
                self.began = trio.current_time()
            self.decoder.feed(data)
        await self.pace(self.decoder.whole)
        return self.decoder.next()

    async def send(self, data: bytes) -> None:
        """Raises Gone where the other end does not read, OSError where it has gone."""
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return
        left = memoryview(data)[sent:]
        unread = self.guest.unread if self.guest is not None else {}
        root, size = self.peer is not None and self.peer.root, len(left)
        if unread.get(root, 0) + size > MOST_UNREAD:
            raise Gone
        unread[root] = unread.get(root, 0) + size
        try:
            with trio.move_on_after(PATIENCE) as scope:
                while left:
                    await trio.lowlevel.wait_writable(self.socket)
                    try:
                        left = left[self.socket.send(left) :]
                    except BlockingIOError:
                        continue
        finally:
            unread[root] -= size
        if scope.cancelled_caught:
            raise Gone

    async def last_words(self, refusal: Refusal) -> None:
        """Say why, before the connection ends; at once, or not at all."""
        try:
            self.socket.send(wire.encode(refusal.parameters, error=refusal.whole(self.interface)))
        except OSError:
            pass

    def gone(self) -> bool:
        """Whether the other end has closed: not only for writing, after its last call."""
        poll = select.poll()
        poll.register(self.socket, 0)
        return bool(poll.poll(0))

    # -- calls ------------------------------------------------------------------------------------

    async def answer(self, call: wire.Call) -> None:
        """Carry out one call and reply."""
        stream = call.more and call.method.rpartition(".")[2] in STREAMS
        self.broker.busy += not stream
        try:
            if call.method.startswith(SERVICE + "."):
                reply = wire.encode(service(call, self.interface, self.broker.options.version))
            else:
                reply = self.encode(await self.dispatch(call))
        except Refusal as refusal:
            reply = wire.encode(refusal.parameters, error=refusal.whole(self.interface))
        finally:
            self.broker.busy -= not stream
        if not call.oneway:
            await self.send(reply)

    async def pace(self, size: int) -> None:
        """Make this guest wait where it asks too much; *size* is a call's, in bytes."""
        guest = self.guest
        assert guest is not None
        assert self.peer is not None
        guest.requests += 1
        if delay := guest.quota.take(self.peer.root, 1 + size // REQUEST_BYTES):
            await trio.sleep(delay)

    def encode(self, reply: dict[str, Any]) -> bytes:
        """*reply* as bytes; a guest pays for the time that a long one takes."""
        began = time.thread_time()
        data = wire.encode(reply)
        if self.guest is not None and self.peer is not None:
            self.guest.quota.spend(self.peer.root, time.thread_time() - began)
        return data

    def request(self, method: str, parameters: dict[str, Any], call: wire.Call) -> Request:
        """The call as its method gets it."""
        assert self.guest is not None
        assert self.peer is not None
        return Request(self.broker, self.guest, self.peer, method, parameters, call.more, self.stream)

    def methods(self) -> dict[str, Any]:
        """The interface's methods."""
        return METHODS

    async def stream(self, parameters: dict[str, Any]) -> None:
        """One of several replies."""
        await self.send(wire.encode(parameters, continues=True))

    async def dispatch(self, call: wire.Call) -> dict[str, Any]:
        """The reply's parameters. Raises Refusal."""
        interface, _, method = call.method.rpartition(".")
        if interface != self.interface:
            name = interface[:256]
            raise Refusal(f"{SERVICE}.InterfaceNotFound", f"no interface {name[:80]} here", interface=name)
        definition = idl.interface(interface)
        if method not in definition.methods:
            raise no_method(call.method)
        parameters = definition.check(method, call.parameters)
        request = self.request(method, parameters, call)
        change = method in CHANGES or any(parameters[key] is not None for key in CHANGING.get(method, ()))
        try:
            found = await self.carry_out(self.methods()[method], request, method)
        except Gone:
            raise
        except (Refusal, GuestError, NestrtError, OSError, ValueError) as error:
            refusal = from_error(error)
            if self.guest is not None:
                self.guest.refused += 1
            if change:
                self.audit(request, f"{refusal.name}: {refusal.message}")
            raise refusal from None
        except Exception as error:
            # A mistake in the broker must cost this call, and not all guests.
            bug = f"{type(error).__name__}: {error}"
            print(one_line(f"nestrt broker: {method} failed: {bug}; this is a bug of nestrt"), file=sys.stderr)
            if change:
                self.audit(request, f"Refused: {bug}")
            raise Refusal("Refused", f"cannot carry out {method}: {bug}", "this is a bug of nestrt", 0) from None
        if change:
            self.audit(request, "done")
        return found

    async def carry_out(self, action: Any, request: Any, method: str) -> dict[str, Any]:
        """Run a method: a stream for as long as the other end is there, all else to its end."""
        found: dict[str, Any]
        if method in STREAMS:
            found = await (self.watched(action(request)) if request.more else action(request))
        elif self.guest is None or self.peer is None or self.peer.root:
            found = await action(request)
        else:
            # One call at a time of each user who is not root: many that take long must not keep root waiting.
            async with self.guest.turns.setdefault(self.peer.uid, trio.Lock()):
                found = await action(request)
        return found

    async def watched(self, stream: Any) -> dict[str, Any]:
        """Run a method that streams for as long as the other end is there."""
        found: dict[str, Any] = {}

        async def work() -> None:
            nonlocal found
            try:
                found = await stream
            except (Refusal, GuestError, NestrtError, OSError, Gone, ValueError) as error:
                failed.append(error)
            done.set()
            scope.cancel()

        failed: list[Exception] = []
        done = trio.Event()
        closed = False
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            nursery.start_soon(work)
            while not closed:
                await trio.lowlevel.wait_readable(self.socket)
                try:
                    data = self.socket.recv(CHUNK)
                    self.decoder.feed(data)
                except BlockingIOError:
                    continue
                except (OSError, wire.Malformed):
                    data = b""
                # What is asked meanwhile has to wait for the stream's end, and may be one call, not any number.
                closed = not data or len(self.decoder.buffer) > self.decoder.longest
            scope.cancel()
        if closed and not done.is_set():
            raise Gone
        if failed:
            raise failed[0]
        return found

    def audit(self, request: Any, verdict: str) -> None:
        """A line for each change, or one for the whole."""
        group = request.parameters.get("group") or (request.parameters.get("reaction") or {}).get("group") or ""
        given = {k: v for k, v in request.parameters.items() if v is not None and k != "group"}
        for where, key, old, new in request.notes or [(group, "", None, given)]:
            self.broker.audit.record(
                request.guest.name, where, key, old, new, verdict, self.peer, request.method
            )  # fmt: skip


