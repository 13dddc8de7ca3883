"""Have a created container's first process go on: the other side of act/container.py's parking."""

from __future__ import annotations

import _socket
import os

from nestrt import jsontext
from nestrt.act.containers import Container
from nestrt.act.protocol import Channel
from nestrt.errors import NestrtError

START = b"start\n"


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


def start(container: Container, warn: object = None) -> None:
    """Start it, and wait until the first process is the program; then run its poststart hooks.

    Raises NestrtError with what the first process told, or where it has ended.
    """
    document = jsontext.loads(container.config())
    program = document["process"]["args"][0]
    try:
        sock = connect(container.socket)
        sock.send(START, _socket.MSG_NOSIGNAL)
    except (ConnectionRefusedError, BrokenPipeError, FileNotFoundError) as error:
        raise NestrtError(
            "start", f"container {container.id}", "its first process has ended", f"nestrt delete {container.id}"
        ) from error
    Channel(sock).expect_program(program)
    os.unlink(container.socket)
    if (document.get("hooks") or {}).get("poststart"):
        from nestrt.act import hooks
        from nestrt.oci.document import load
        from nestrt.oci.state import state

        spec = load(container.config(), container.directory)
        found = state(container.id, "running", container.pid, container.bundle, spec.version, container.annotations)
        hooks.run(spec.hooks.poststart, found, "poststart")
