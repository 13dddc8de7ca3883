"""Guests that this process serves itself: the broker's methods, called with peers that are real processes of the guest.

    test process   Served, METHODS           guest   agent (support.broker.AGENT), first process
         └ listener  ◀────── connect(2) ──────────── a process of any user, which lives on
           at /run/nestrt/guest.sock in the guest
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from nestrt.broker import idl
from nestrt.broker.peer import Peer, peer_of
from nestrt.broker.refusal import Refusal, from_error
from nestrt.broker.request import Method, Request
from nestrt.broker.served import Served
from nestrt.errors import NestrtError
from nestrt.guest.client import GuestError
from nestrt.probe.facts import primary, read_hierarchies
from support.broker import BrokerGuest, start_guest
from support.hostside import directories, groups, hierarchies
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, leftovers

GUEST = "io.nestrt.Guest"
Methods = dict[str, Method]

# Forks a process of USER, in a pid namespace of its own where NEST, that connects and lives on.
CONNECT = """
import ctypes, os, time
def live():
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(*UIDS)
    one = connect()
    time.sleep(100000)
pid = os.fork()
if pid == 0:
    try:
        if NEST:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.unshare(0x20000000) == 0, ctypes.get_errno()
            if os.fork():
                time.sleep(100000)
        live()
    finally:
        os._exit(1)
result = pid
"""
# Forks a process with UIDS (real, effective, saved) that does BODY.
FORK = """
import os, time
pid = os.fork()
if pid == 0:
    try:
        os.setgroups(GROUPS)
        os.setresgid(*(GIDS or UIDS))
        os.setresuid(*UIDS)
        BODY
        time.sleep(100000)
    finally:
        os._exit(1)
held[f"child {pid}"] = pid
result = pid
"""


def nspid(pid: int) -> list[int]:
    """The numbers of *pid* in its pid namespaces, the host's first."""
    for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    raise AssertionError(f"no process {pid}")


def _uids(pid: int) -> list[str]:
    rows = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return next((row.split()[1:4] for row in rows if row.startswith("Uid:")), [])


def groups_of(pid: int) -> dict[str, str]:
    """The groups of *pid* by hierarchy, as the host's kernel names them."""
    rows = Path(f"/proc/{pid}/cgroup").read_bytes().decode(errors="surrogateescape").split("\n")
    return {row.split(":", 2)[1]: row.split(":", 2)[2] for row in rows if row}


class Direct:
    """The guest of *agent* whose limit group is *limit*, served here; *directory* has the socket that it sees."""

    def __init__(self, agent: BrokerGuest, limit: str, directory: Path) -> None:
        self.agent = agent
        self.limit = limit
        found = read_hierarchies(make=True)
        self.served = Served(agent.name, limit, found, primary(found))
        assert self.served.learn()
        self.listener = listener(directory)
        self.peers: list[Peer] = []
        self.root = self.peer()

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.listener.close()
        if self.served.tree is not None:
            self.served.tree.close()

    @property
    def top(self) -> str:
        """The guest root, as the host names it."""
        return f"{self.limit}/guest"

    # processes

    def peer(self, user: int = 0, nest: bool = False, uids: tuple[int, int, int] | None = None) -> Peer:
        """A process of the guest, run by *user* there, that has connected."""
        code = f"USER, UIDS, NEST = {user}, {uids or (user,) * 3}, {nest}\n" + CONNECT
        self.agent.python(code)
        self.listener.settimeout(20 * SLOW)
        connection, _ = self.listener.accept()
        found = peer_of(connection, self.served.ids)
        connection.close()
        self.peers.append(found)
        assert found.pid > 0
        assert found.pidfd >= 0
        return found

    def fork(
        self, user: int = 0, body: str = "pass", uids: tuple[int, int, int] | None = None,
        gids: tuple[int, int, int] | None = None, more: tuple[int, ...] = (),
    ) -> tuple[int, int]:  # fmt: skip
        """A process of *user* in the guest, with groups *more*, that does *body*: (its number there, and here)."""
        code = f"UIDS, GIDS, GROUPS = {uids or (user,) * 3}, {gids}, {more}\n"
        number = int(self.agent.python(code + FORK.replace("BODY", body.replace("\n", "\n        "))))
        pid = self.outside(number)
        root = _uids(self.agent_pid)
        while set(uids or (user,)) != {0} and _uids(pid) == root:
            time.sleep(0.001)
        return number, pid

    def outside(self, number: int) -> int:
        """The host's pid of the process that the agent calls *number*."""
        depth = len(nspid(self.agent_pid)) - 1
        namespace = os.stat(f"/proc/{self.agent_pid}/ns/pid").st_ino
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                if os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace and nspid(pid)[depth:] == [number]:
                    return pid
            except OSError:
                continue
        raise AssertionError(f"no process {number} in the guest")

    @property
    def agent_pid(self) -> int:
        """The host's pid of the agent: the guest's first process."""
        return self.served.known.pid

    def kill(self, number: int) -> None:
        """End and reap a process made by fork()."""
        self.agent.python(f"import os\nos.kill({number}, 9)\nos.waitpid({number}, 0)\nresult = None")

    # groups

    def mkdir(self, *names: str, owner: int = 0) -> None:
        """Make groups in every hierarchy, as the guest's root may; *owner* as the guest counts."""
        uid = next((start + owner - first for first, start, _ in self.served.ids or ((0, 0, 0),)), owner)
        for name in names:
            for hierarchy in hierarchies():
                directory = hierarchy.group(self.top + name)
                directory.mkdir(exist_ok=True)
                if hierarchy.version == 1 and "cpuset" in hierarchy.controllers:
                    for file in ("cpuset.cpus", "cpuset.mems"):
                        (directory / file).write_text((directory.parent / file).read_text())
                for path in (directory, directory / "cgroup.procs"):
                    os.chown(path, uid, uid)

    def group_of(self, pid: int) -> str:
        """The one group, from the guest root, that the process with the host's number *pid* is in; else all of them."""
        places = {path.removeprefix(self.top) or "/" for path in groups_of(pid).values()}
        return places.pop() if len(places) == 1 else str(sorted(places))

    def enter(self, pid: int, name: str, controller: str = "") -> None:
        """Move *pid* to a group from the host, in every hierarchy or in that of *controller*."""
        for hierarchy in hierarchies():
            if not controller or controller in hierarchy.controllers:
                (hierarchy.group(self.top + name) / "cgroup.procs").write_text(str(pid))

    def remove(self, *names: str) -> None:
        """Remove groups from the host, with what runs in them."""
        for name in names:
            for directory in reversed(directories(self.top + name)):
                _empty(directory)

    def reset(self) -> None:
        """End all but the agent and what root's peer is; remove all groups but the first."""
        keep = {self.agent_pid, *nspid(self.root.pid)[:1]}
        for pid in keep:
            self.enter(pid, "/init")
        for peer in self.peers[1:]:
            peer.close()
        del self.peers[1:]
        names = {path.name for directory in groups(self.top) for path in directory.iterdir() if path.is_dir()}
        inner = {f"init/{path.name}" for top in groups(f"{self.top}/init") for path in top.iterdir() if path.is_dir()}
        for name in {*names, *inner} - {"init"}:
            self.remove(f"/{name}")
        for pid in {pid for directory in groups(f"{self.top}/init") for pid in _pids(directory)} - keep:
            _kill(pid)
        self.agent.python(
            "import os\nfor key in [k for k in held if k.startswith('child')]: del held[key]\n"
            "try:\n    while os.waitpid(-1, os.WNOHANG)[0]: pass\nexcept ChildProcessError: pass"
        )

    # calls

    def request(self, method: str, peer: Peer | None = None, broker: Any = None, **parameters: Any) -> Request:
        """A call as the daemon hands it to a method."""

        async def send(reply: dict[str, Any]) -> None:
            raise AssertionError(reply)

        checked = idl.interface(GUEST).check(method, parameters)
        return Request(broker, self.served, peer or self.root, method, checked, False, send)

    async def ask(self, methods: Methods, request: Request) -> dict[str, Any]:
        """Carry out *request*. Raises Refusal, as the daemon would answer it."""
        try:
            reply = await methods[request.method](request)
        except (Refusal, GuestError, NestrtError, OSError, ValueError) as error:
            raise from_error(error) from error
        return idl.interface(GUEST).reply(request.method, reply)

    def call(self, methods: Methods, method: str, peer: Peer | None = None, **parameters: Any) -> dict[str, Any]:
        """The same in one step, in a trio of its own."""
        found: dict[str, Any] = trio.run(self.ask, methods, self.request(method, peer, **parameters))
        return found

    def refused(self, methods: Methods, method: str, peer: Peer | None = None, **parameters: Any) -> Refusal:
        """The refusal that a call is answered with. AssertionError where it is done."""
        try:
            found = self.call(methods, method, peer, **parameters)
        except Refusal as refusal:
            return refusal
        raise AssertionError(f"{method} {parameters} was done: {found}")


def _pids(directory: Path) -> list[int]:
    try:
        # 0 is one that ends at this moment.
        return [int(word) for word in (directory / "cgroup.procs").read_text().split() if word != "0"]
    except OSError:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _empty(group: Path) -> None:
    """Remove one group."""
    end = time.monotonic() + 10 * SLOW
    while group.is_dir():
        for file, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (group / file).exists():
                (group / file).write_text(text)
        for pid in _pids(group):
            _kill(pid)
        try:
            group.rmdir()
        except OSError:
            assert time.monotonic() < end, f"{group} cannot be removed"
            time.sleep(0.01)


@contextmanager
def serving(nestrt: Nestrt, python: PythonRoot, name: str, directory: Path, *options: str) -> Iterator[Direct]:
    """A guest *name* served by this process. AssertionError at the end where anything of it stays."""
    directory.mkdir()
    directory.chmod(0o755)
    shared = f"type=bind,source={directory},target=/run/nestrt"
    direct = None
    try:
        agent = start_guest(nestrt, python, name, "--broker", "none", "--mount", shared, *options)
        direct = Direct(agent, f"/nestrt/{name}", directory)
        yield direct
    finally:
        if direct is not None:
            direct.close()
        nestrt.stop()
        nestrt.run("delete", "--force", name)
        assert not leftovers(name)


def listener(directory: Path) -> socket.socket:
    """A listening socket guest.sock in *directory*, for every user."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    one = socket.socket(socket.AF_UNIX)
    one.bind(str(directory / "guest.sock"))
    os.chmod(directory / "guest.sock", 0o666)
    one.listen()
    return one
