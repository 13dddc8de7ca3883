"""io.nestrt.Host: what the level's own root asks, on a socket that only root can open."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Awaitable, Callable

import trio

from nestrt.broker import rules
from nestrt.broker.audit_line import login_of
from nestrt.broker.audit_read import Follower, Reader
from nestrt.broker.connection import Connection, groups_of
from nestrt.broker.limits import set_limits
from nestrt.broker.peer import Peer, credentials, peer_pidfd
from nestrt.broker.refusal import Refusal
from nestrt.broker.served import Served
from nestrt.guest import client
from nestrt.host import report
from nestrt.host.marks import read_mark, valid_name
from nestrt.host.sight import Sight, find
from nestrt.host.walk import walk
from nestrt.plan.broker import SOCKET_NAME
from nestrt.plan.facts import Hierarchy

if TYPE_CHECKING:
    from nestrt.broker import wire
    from nestrt.broker.server import Broker

LINES = 100
FOLLOW = 0.5  # seconds between looks
Gone = Callable[[], bool]  # whether the other end has closed
Send = Callable[[dict[str, Any]], Awaitable[None]]


class HostRequest:
    """As Request, of the host's root: *guest* is the one that the parameters name, where it is served."""

    def __init__(
        self, broker: Broker, peer: Peer, method: str, parameters: dict[str, Any], more: bool, send: Send, gone: Gone
    ) -> None:
        self.broker = broker
        self.peer = peer
        self.method = method
        self.parameters = parameters
        self.more = more
        self.send = send
        self.gone = gone
        self.notes: list[tuple[str, str, Any, Any]] = []
        name = parameters.get("guest")
        found = broker.find(name) if isinstance(name, str) else None
        self.guest = found if found is not None else Nobody()

    def __getitem__(self, key: str) -> Any:
        return self.parameters[key]

    def note(self, group: str, key: str, old: Any, new: Any) -> None:
        """As Request.note()."""
        self.notes.append((group, key, old, new))

    def served(self) -> Served:
        """The guest. Raises Refusal where it is not served, or several of that name are."""
        name = str(self.parameters.get("guest"))
        if isinstance(self.guest, Served):
            alike = [limit for limit, one in self.broker.guests.items() if one.name == name]
            if len(alike) > 1:
                what = f"cannot find guest {name[:80]}: {len(alike)} are called so"
                raise Refusal("BadValue", what, f"say {' or '.join(alike)}")
            return self.guest
        remedy = "nestrt broker status shows those that are"
        raise Refusal("NotFound", f"cannot find guest {name[:80]}: it is not served", remedy)


class Nobody:
    """Where the audit wants a guest's name and there is none."""

    name = ""


async def guests(request: HostRequest) -> dict[str, Any]:
    """All that are served."""
    served = list(request.broker.guests.values())
    # A guest may make its marks as long as they can be, and that takes time to read.
    kinds = (False, True)
    counts = await trio.to_thread.run_sync(lambda: [[rules.count(one, host) for host in kinds] for one in served])
    return {
        "guests": [
            {
                "name": guest.name,
                "level": guest.mark.level if guest.mark else -1,
                "cgroup": guest.limit,
                "socket": f"{guest.directory}/{SOCKET_NAME}",
                "pid": guest.mark.pid if guest.mark else -1,
                "connections": guest.connections,
                "requests": guest.requests,
                "refused": guest.refused,
                "quota": guest.quota.told,
                "rules": own,
                "host_rules": hosts,
                "reactions": len(request.broker.watcher.reactor.of(guest)),
            }
            for guest, (own, hosts) in zip(served, counts, strict=True)
        ]
    }


async def describe(request: HostRequest) -> dict[str, Any]:
    """What ``nestrt show`` has, of a guest at any level."""

    def look() -> dict[str, Any]:
        view = walk(request.broker.hierarchies)
        return report.everything(Sight(view), find(view, request["guest"]))

    return {"description": await trio.to_thread.run_sync(look)}


async def serve(request: HostRequest) -> dict[str, Any]:
    """Listen for a guest that is about to be made. The path of its socket, for whoever mounts it there."""
    name, limit, broker = request["guest"], request["cgroup"], request.broker
    parts = limit.split("/")
    if not valid_name(name):
        raise Refusal("BadValue", f"cannot serve {name[:80]!r}: no guest is called so", "use letters, digits, _ . -")
    if parts[0] or len(parts) < 2 or any(part in ("", ".", "..") for part in parts[1:]):
        raise Refusal("BadValue", f"cannot serve {name}: {limit[:80]!r} is no limit group", "write it from /")
    if broker.only and limit != broker.only:
        raise Refusal("NotPossible", f"cannot serve {name}: this broker is {broker.only}'s alone", "start another")
    if broker.draining:
        raise Refusal("NotPossible", f"cannot serve {name}: the broker is ending", "start it again")
    return {"socket": f"{broker.announce(name, limit).directory}/{SOCKET_NAME}"}


async def release(request: HostRequest) -> dict[str, Any]:
    """Stop serving a guest."""
    request.broker.end(request.served())
    return {}


async def limits(request: HostRequest) -> dict[str, Any]:
    """Other limits for a guest, at once: its limit group, what its root shows, and its mark."""
    return await set_limits(request)


async def audit(request: HostRequest) -> dict[str, Any]:
    """The last lines of the audit; with more also those that come."""
    log, guest = request.broker.audit, request["guest"]
    lines = LINES if request["lines"] is None else max(0, min(request["lines"], 10_000))
    reader = Reader(log.directory)
    log.flush()
    if not request.more:
        found = await trio.to_thread.run_sync(lambda: list(reader.read(guest, lines=lines)))
        return {"entries": found}
    follower = Follower(reader, guest)
    found = await trio.to_thread.run_sync(lambda: list(reader.read(guest, lines=lines, before=follower.begun)))
    # The first one even if it is empty: it says that from now on nothing is missed.
    await request.send({"entries": found[:LINES]})
    found = found[LINES:]
    while True:
        for at in range(0, len(found), LINES):  # no reply is longer than a reader must take at once
            await request.send({"entries": found[at : at + LINES]})
        await trio.sleep(FOLLOW)
        found = await trio.to_thread.run_sync(follower.poll)


async def drain(request: HostRequest) -> dict[str, Any]:
    """End in order: no new connections, what is under way is finished."""
    request.broker.drain()
    return {}


async def host_rules(request: HostRequest) -> dict[str, Any]:
    """The host's rules for the processes of a guest."""
    found: dict[str, Any] = await rules.host_rules(request.broker, request.served(), request["rules"], request)
    return found


METHODS: dict[str, Callable[[HostRequest], Awaitable[dict[str, Any]]]] = {
    "Guests": guests,
    "Describe": describe,
    "SetLimits": limits,
    "Audit": audit,
    "Drain": drain,
    "Serve": serve,
    "Release": release,
    "Rules": host_rules,
}


def is_of_level(primary: Hierarchy, own: dict[str, str]) -> bool:
    """Whether a process with the groups *own* is in no guest of this level: none of the groups above it is marked."""
    options = "" if primary.version == 2 else primary.options.removeprefix("none,")
    group = own.get(options)
    if group is None:
        return False
    for one in (group, *client.ancestors(group)):
        path = primary.path(one)
        try:
            # Not the root: what it is marked with is a word of the level above.
            if one != "/" and read_mark(path, os.listxattr(path)) is not None:
                return False
        except OSError:  # removed, with the process in it that has ended; or outside of what this level sees
            continue
    return True


class HostConnection(Connection):
    """A connection on the level's own socket."""

    interface = "io.nestrt.Host"

    def admit(self) -> None:
        """Root of the level, by its credentials: the socket's mode says the same. Not root of a guest, who has the same
        number where there is no user namespace, and whoever started it has let it see the socket."""
        pid, uid, gid = credentials(self.socket)
        self.peer = Peer(pid, uid, gid, peer_pidfd(self.socket, pid), 0, True, login=login_of(pid))
        if uid != os.geteuid() or not is_of_level(self.broker.primary, groups_of(self.peer)):
            raise Refusal("org.varlink.service.PermissionDenied", "only root may, outside of guests")

    async def pace(self, size: int) -> None:
        """The host's root has no quota."""
        await trio.lowlevel.checkpoint()

    def request(self, method: str, parameters: dict[str, Any], call: wire.Call) -> Any:
        """The call as its method gets it."""
        assert self.peer is not None
        gone = (lambda: False) if call.oneway else self.gone  # who wants no answer need not wait for it
        return HostRequest(self.broker, self.peer, method, parameters, call.more, self.stream, gone)

    def methods(self) -> dict[str, Any]:
        """The interface's methods."""
        return METHODS
