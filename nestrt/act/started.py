"""Have a created container's first process go on: the other side of act/container.py's parking."""

from __future__ import annotations

import _socket
import os

from nestrt import jsontext
from nestrt.act.containers import Container
from nestrt.act.protocol import Channel, Gone
from nestrt.act.statefile import damaged
from nestrt.errors import NestrtError, StateError
from nestrt.kernel import cgroup, pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.oci.model import Spec

START = b"start\n"
STARTED = "started"


def connect(path: str) -> _socket.socket:
    """A stream connected to the Unix socket *path*, of whatever length: its name has room for 107 bytes only.

    Raises OSError: ENOENT, ECONNREFUSED.
    """
    directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    except OSError:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock


def start(container: Container, warn: Callable[[str], object]) -> None:
    """Start it, and wait until the first process is the program; then run its poststart hooks, of which *warn* is
    told if one fails (runtime.md, "Lifecycle", up to version 1.2).

    Raises NestrtError with what the first process told, or where it has ended.
    """
    try:
        document = jsontext.loads(container.config())
        program = document["process"]["args"][0]
        hooks = (document.get("hooks") or {}).get("poststart")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged(container.root, container.id, "config.json is not what it was created from") from error
    spec = None
    if hooks or "board" in container.document:
        from nestrt.oci.document import load

        spec = load(container.config(), container.directory)
    board = _board(container)
    agent = _agent(spec)
    for file in container.document.get("entry", ()):
        cgroup.write(file, str(container.pid))
    channel = _knock(container)
    if agent is not None and spec is not None and spec.seccomp is not None:
        from nestrt.act import seccomp

        descriptor = pidfd.open(container.pid, container.start_time)
        try:
            seccomp.hand_over(
                agent, board, container.pid, descriptor, spec.seccomp.listener_metadata, _state(container, "created")
            )
        except BaseException:
            pidfd.send_signal(descriptor, 9)
            raise
    channel.expect_program(program, board)
    _remove_socket(container)
    if hooks and spec is not None:
        from nestrt.act.hooks import run

        run(spec.hooks.poststart, _state(container, "running"), "poststart", warn=warn)


def _knock(container: Container) -> Channel:
    """A channel to the first process, which has heard that it is to go on. Raises StateError, NestrtError."""
    try:
        channel = Channel(connect(container.socket))
        channel.sock.send(START, _socket.MSG_NOSIGNAL)
        channel.wait(STARTED)
        return channel
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError, FileNotFoundError, Gone) as error:
        if container.alive():
            _remove_socket(container)  # nobody listens there any more: another start was first
            raise StateError(
                "start", f"container {container.id}", "cannot start an already running container", "see: nestrt exec"
            ) from error
        raise NestrtError(
            "start", f"container {container.id}", "its first process has ended", f"nestrt delete {container.id}"
        ) from error


def _remove_socket(container: Container) -> None:
    try:
        os.unlink(container.socket)
    except FileNotFoundError:
        pass


def _state(container: Container, status: str) -> dict[str, object]:
    from nestrt.oci.state import state

    version = container.text("ociVersion")
    return state(container.id, status, container.pid, container.bundle, version, container.annotations)


def _board(container: Container) -> int:
    """The page where a filtered process leaves what failed, fetched out of the first process; -1 if there is none."""
    number = container.document.get("board", -1)
    if number < 0:
        return -1
    from nestrt.kernel.seccomp import get_fd

    descriptor = pidfd.open(container.pid, container.start_time)
    try:
        return get_fd(descriptor, number)
    finally:
        os.close(descriptor)


def _agent(spec: Spec | None) -> _socket.socket | None:
    """The seccomp agent, connected, if the document has one. Raises NestrtError."""
    if spec is None or spec.seccomp is None:
        return None
    from nestrt.act import seccomp
    from nestrt.plan.seccomp_steps import notifies

    return seccomp.connect(spec.seccomp.listener_path) if notifies(spec.seccomp) else None
