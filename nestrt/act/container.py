"""Create a bundle's container: what its plan has more than a launch's, carried out. The protocol is drawn in
plan/container.py."""

from __future__ import annotations

import _socket
import os

from nestrt.act import attributes, bundle_mounts, guest, hooks, host, seccomp
from nestrt.act.containers import Container, write_file
from nestrt.act.join import clone_into, open_all
from nestrt.act.launch import Launcher
from nestrt.act.process import Guest
from nestrt.act.protocol import Channel, Gone, pair, program_error
from nestrt.act.started import START, connect
from nestrt.errors import NotFound
from nestrt.kernel import namespaces, pidfd, prctl, terminal
from nestrt.kernel.libc import syscall
from nestrt.oci.state import state
from nestrt.plan import container_steps as do
from nestrt.plan.container import Bundle
from nestrt.plan.steps import Plan, Step, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nestrt.kernel.libseccomp import Filter
    from nestrt.oci.model import Hook

SYS_close_range = 436


class Creator(Launcher):
    """The launcher of a bundle's container. *pid_file* is written when the first process is ready, and its
    pidfd sent to *pidfd_socket*, "" for none."""

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle,
        container: Container,
        signals: set[int],
        pid_file: str = "",
        steps: guest.Steps | None = None,
    ) -> None:
        super().__init__(plan, signals, steps=steps or HOST, first=FIRST)
        self.bundle = bundle
        self.container = container
        self.pid_file = pid_file
        self.pidfd_socket = ""
        self.warn: Callable[[str], object] | None = None
        self.joined: dict[str, int] = {}
        self.listener = -1
        self.filter: Filter | None = None
        self.trace = -1
        self.agent: _socket.socket | None = None

    def state_document(self) -> dict[str, object]:
        """The state document that a seccomp agent gets."""
        return self.state("running" if self.container.pid else "creating")

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

    def await_program(self, program: str) -> None:
        """As every launcher; what stopped the program behind its seccomp filter stands on the board."""
        super().await_program(program)
        failed = seccomp.failed(self.board) if self.board >= 0 else None
        if failed is not None:
            self.wait()
            raise program_error(failed[0], failed[1])


def of_stage(bundle: Bundle, stage: str) -> tuple[Hook, ...]:
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


def _clone_into(launcher: Creator, step: do.CloneInto) -> None:
    launcher.joined = open_all(step.joins)
    launcher.channel, theirs = pair()
    launcher.pid, launcher.pidfd = clone_into(step.flags, launcher.joined)
    if launcher.pid == 0:
        prctl.set_dumpable(False)
        held = Guest(theirs, launcher.tree, launcher.binds, -1, launcher.signals)
        held.joined = launcher.joined
        held.listener = launcher.listener
        held.filter = launcher.filter
        held.board = launcher.board
        held.creator = launcher
        keep_only(
            (
                theirs.fd,
                launcher.tree,
                launcher.listener,
                launcher.board,
                launcher.trace,
                *launcher.binds.values(),
                *launcher.joined.values(),
                *range(3, 3 + launcher.bundle.preserve_fds),
            )
        )
        guest.main(launcher.plan, held, launcher.first, launcher.observe)
    os.close(theirs.sock.detach())
    launcher.release_parents()
    if launcher.listener >= 0:
        os.close(launcher.listener)


def _join(held: Guest, step: do.JoinNamespace) -> None:
    namespaces.setns(held.joined.pop(step.type))


def _run_hooks(launcher: Creator, step: do.RunHooks) -> None:
    for stage in step.stages:
        warn = launcher.warn if stage == "poststart" else None
        hooks.run(of_stage(launcher.bundle, stage), launcher.state(step.status), stage, warn=warn)


def _run_own_hooks(held: Guest, step: do.RunOwnHooks) -> None:
    creator: Creator = held.creator  # type: ignore[assignment]
    root = held.old_root if step.stage == "createContainer" else None
    document = {**creator.state(step.status), "pid": os.getpid()}
    hooks.run(of_stage(creator.bundle, step.stage), document, step.stage, root)


def _listen(launcher: Creator, step: do.ListenForStart) -> None:
    directory = os.open(os.path.dirname(step.path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        # A socket's path has at most 107 bytes: by way of the directory it always fits.
        sock.bind(f"/proc/self/fd/{directory}/{os.path.basename(step.path)}")
        sock.listen(8)
    finally:
        os.close(directory)
    launcher.listener = sock.detach()


def _save_state(launcher: Creator, step: do.SaveState) -> None:
    launcher.container.document.update(pid=launcher.pid, start=pidfd.start_time(launcher.pid) or 0)
    if launcher.board >= 0:
        launcher.container.document["board"] = launcher.board
    launcher.container.save()
    tell_pid(launcher)


def tell_pid(launcher: Creator) -> None:
    """Write the pid file, and send a pidfd, where they were asked for."""
    if launcher.pid_file:
        write_file(launcher.pid_file, str(launcher.pid), 0o644)
    if launcher.pidfd_socket:
        sock = reach(launcher.pidfd_socket, "--pidfd-socket")
        terminal.send_fd(sock.fileno(), launcher.pidfd, b"pidfd")
        sock.close()


def _park(held: Guest, step: do.Park) -> None:
    prctl.set_parent_death_signal(0)
    creator: Creator = held.creator  # type: ignore[assignment]
    if creator.trace >= 0:
        os.close(creator.trace)
        creator.trace = -1
    held.channel.tell("parked")
    os.close(held.channel.sock.detach())
    listener = _socket.socket(fileno=held.listener)
    while True:
        fd, _ = listener._accept()  # type: ignore[attr-defined]
        caller = _socket.socket(fileno=fd)
        try:
            word = caller.recv(len(START), _socket.MSG_WAITALL)
        except OSError:
            word = b""
        if word == START:
            break
        caller.close()
    listener.close()
    held.channel = Channel(caller)


def _send_terminal(launcher: Creator, step: do.SendTerminal) -> None:
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


def _start_scope(launcher: Creator, step: do.StartScope) -> None:
    from nestrt.act import scope

    scope.start(step.unit, step.properties, launcher.pid)


def _wait(launcher: Creator, step: Wait) -> None:
    host.STEPS[Wait](launcher, step)
    if step.word == "mounted":
        # Attached by now: held here they would keep what they come from busy as long as a foreground ``run`` lasts.
        for fd in (launcher.tree, *launcher.binds.values()):
            os.close(fd)
        launcher.tree, launcher.binds = -1, {}


HOST: dict[type[Step], Callable[..., None]] = {
    **host.STEPS,
    **bundle_mounts.HOST,
    **attributes.HOST,
    **seccomp.HOST,
    Wait: _wait,
    do.CloneInto: _clone_into,
    do.RunHooks: _run_hooks,
    do.ListenForStart: _listen,
    do.SaveState: _save_state,
    do.SendTerminal: _send_terminal,
    do.StartScope: _start_scope,
}
FIRST: dict[type[Step], Callable[..., None]] = {
    **guest.STEPS,
    **bundle_mounts.FIRST,
    **attributes.FIRST,
    **seccomp.FIRST,
    do.JoinNamespace: _join,
    do.RunOwnHooks: _run_own_hooks,
    do.Park: _park,
}
