"""The launcher of a bundle's container, and of one more process in it: what both hold and do."""

from __future__ import annotations

import _socket
import os

from nestrt.act.containers import Container, write_file
from nestrt.act.launch import Launcher
from nestrt.act.protocol import Gone
from nestrt.act.started import connect
from nestrt.errors import NotFound
from nestrt.kernel import terminal
from nestrt.kernel.libc import syscall
from nestrt.oci.state import state
from nestrt.plan import container_steps as do
from nestrt.plan.steps import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nestrt.act.first import Steps
    from nestrt.kernel.libseccomp import Filter
    from nestrt.oci.model import Hook
    from nestrt.plan.bundle import Bundle
    from nestrt.plan.exec import Joining

SYS_close_range = 436


class Creator(Launcher):
    """The launcher of a bundle's container. *pid_file* is written when the first process is ready, and its
    pidfd sent to *pidfd_socket*, "" for none."""

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle | Joining,
        container: Container,
        signals: set[int],
        steps: tuple[Steps, Steps],
        pid_file: str = "",
    ) -> None:
        """*steps* carry out the launcher's and the first process's."""
        super().__init__(plan, signals, *steps)
        self.bundle: Bundle = bundle  # type: ignore[assignment]  # of a Joining only what both have is used
        self.container = container
        self.pid_file = pid_file
        self.pidfd_socket = ""
        self.warn: Callable[[str], object] | None = None
        self.joined: dict[str, int] = {}
        self.listener = -1
        self.filter: Filter | None = None
        self.trace = -1
        self.agent: _socket.socket | None = None

    def state(self, status: str) -> dict[str, object]:
        """The state document that hooks get (runtime.md, "State")."""
        return state(
            self.container.id,
            status,
            self.pid if status != "stopped" else 0,
            self.container.bundle,
            self.bundle.spec.version,
            dict(self.bundle.spec.annotations),
        )

    def owns_name(self) -> bool:
        return True


def of_stage(bundle: Bundle | Joining, stage: str) -> tuple[Hook, ...]:
    """The document's hooks of a stage by its name there."""
    all_hooks = bundle.spec.hooks
    return {
        "prestart": all_hooks.prestart,
        "createRuntime": all_hooks.create_runtime,
        "createContainer": all_hooks.create_container,
        "startContainer": all_hooks.start_container,
        "poststart": all_hooks.poststart,
        "poststop": all_hooks.poststop,
    }[stage]


def keep_only(descriptors: Iterable[int]) -> None:
    """Close everything above 2 but *descriptors*: close_range(2).

    An engine waits for the end of its own pipes, which must not be held by a process that waits to be started.
    """
    begin = 3
    for fd in sorted(fd for fd in set(descriptors) if fd > 2):
        if fd > begin:
            syscall(SYS_close_range, begin, fd - 1, 0)
        begin = fd + 1
    syscall(SYS_close_range, begin, (1 << 32) - 1, 0)


def tell_pid(launcher: Creator) -> None:
    """Write the pid file, and send a pidfd, where they were asked for."""
    if launcher.pid_file:
        write_file(launcher.pid_file, str(launcher.pid), 0o644)
    if launcher.pidfd_socket:
        sock = reach(launcher.pidfd_socket, "--pidfd-socket")
        terminal.send_fd(sock.fileno(), launcher.pidfd, b"pidfd")
        sock.close()


def send_terminal(launcher: Creator, step: do.SendTerminal) -> None:
    master = launcher.master
    if master is None:
        raise Gone("terminal")
    if step.size is not None:
        terminal.set_window_size(master, *step.size)
    if not step.path and not os.isatty(1):
        terminal.keep_newlines(master)  # who reads a pipe or a file wants the program's own bytes
    if step.path:
        sock = reach(step.path, "--console-socket")
        terminal.send_fd(sock.fileno(), master, b"/dev/ptmx")
        sock.close()
        os.close(master)
        launcher.channel.master = None


def reach(path: str, option: str) -> _socket.socket:
    """A stream to the Unix socket that *option* names. Raises NotFound, OSError."""
    try:
        return connect(path)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotFound("connect to", f"{option} {path}", str(error.strerror).lower(), "listen there") from error
