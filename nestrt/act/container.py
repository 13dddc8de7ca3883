"""Create a bundle's container: what its plan has more than a launch's, carried out. The protocol is drawn in
plan/container.py."""

from __future__ import annotations

import _socket
import os

from nestrt.act import attributes, bundle_mounts, first, guest, hooks, host, launch, seccomp
from nestrt.act.creator import Creator, keep_only, of_stage, send_terminal, tell_pid
from nestrt.act.join import clone_into, open_all
from nestrt.act.process import Guest
from nestrt.act.protocol import Channel, pair
from nestrt.act.started import START, STARTED
from nestrt.kernel import namespaces, pidfd, prctl
from nestrt.plan import container_steps as do
from nestrt.plan.steps import Step, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
else:
    import _signal  # signal.py imports enum

# The first process of a pid namespace gets only signals that it has a handler for (pid_namespaces(7)):
# without one nothing but SIGKILL would end a container that waits to be started. execve(2) takes them back.
ENDING = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)
# Seconds that one caller may take to say its word, while others wait.
CALLER_PATIENCE = 1.0


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
        first.main(launcher.plan, held, launcher.first, launcher.observe)
    os.close(theirs.sock.detach())
    launcher.release_parents()
    for fd in launcher.joined.values():
        os.close(fd)  # a foreground run would keep a network namespace alive that its engine has done with
    launcher.joined = {}
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


def _end(number: int, frame: object) -> None:
    os._exit(128 + number)


def _park(held: Guest, step: do.Park) -> None:
    prctl.set_parent_death_signal(0)
    creator: Creator = held.creator  # type: ignore[assignment]
    if creator.trace >= 0:
        os.close(creator.trace)
        creator.trace = -1
    for number in ENDING:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _end)
    held.channel.tell("parked")
    os.close(held.channel.sock.detach())
    listener = _socket.socket(fileno=held.listener)
    while True:
        fd, _ = listener._accept()  # type: ignore[attr-defined]
        caller = _socket.socket(fileno=fd)
        caller.settimeout(CALLER_PATIENCE)
        try:
            word = caller.recv(len(START), _socket.MSG_WAITALL)
        except OSError:
            word = b""
        if word == START:
            break
        caller.close()
    listener.close()
    caller.settimeout(None)
    held.channel = Channel(caller)
    held.channel.tell(STARTED)


def _start_scope(launcher: Creator, step: do.StartScope) -> None:
    from nestrt.act import scope

    scope.start(step.unit, step.properties, launcher.pid)


def _wait(launcher: Creator, step: Wait) -> None:
    launch.wait(launcher, step)
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
    do.SendTerminal: send_terminal,
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
