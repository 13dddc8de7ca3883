"""Carry out the steps of a container's system call filter (plan/seccomp_steps.py draws their order)."""

from __future__ import annotations

import _socket
import os
from struct import pack
from time import monotonic, sleep

from nestrt import jsontext
from nestrt.errors import HostError, KernelError, NestrtError
from nestrt.kernel import board as board_page
from nestrt.kernel import caps, pidfd, seccomp
from nestrt.kernel.trampoline import failure
from nestrt.plan import seccomp_steps as do
from nestrt.plan.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from nestrt.kernel.libseccomp import Filter

    Sets = tuple[frozenset[int], frozenset[int], frozenset[int], frozenset[int]]

    class HostSide(Protocol):
        """What the launcher holds: *filter* and *board* from BuildFilter on, *agent* from ConnectListener on.

        *state* returns the runtime-spec's State of the container with that status, as a dict.
        """

        filter: Filter | None
        board: int
        agent: _socket.socket | None
        pid: int
        pidfd: int

        def state(self, status: str) -> dict[str, object]: ...

    class FirstSide(Protocol):
        """What the first process holds: the launcher's *filter* and *board*; *filter* is None once it is loaded."""

        filter: Filter | None
        board: int


SYS_ADMIN = 21
LOAD_SECONDS = 10.0
_PAUSE = 0.0001
# The first process's own: the sets, as masks, that it is to have once the filter is loaded.
_wanted: list[int] = []


def _build_filter(launcher: HostSide, step: do.BuildFilter) -> None:
    if step.cache:
        from nestrt.kernel.seccomp_cache import cached  # only bundles with a profile pay for it

        launcher.filter = cached(step.seccomp, step.cache)
    else:
        from nestrt.kernel.libseccomp import build

        launcher.filter = build(step.seccomp)
    launcher.board = -1 if launcher.filter is None else board_page.new_board()


def connect(path: str) -> _socket.socket:
    """A connection to the agent at *path* of the runtime's root; raises NestrtError with the words that runc has."""
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    # "@name" is the abstract socket of that name, as in every program written in Go.
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        agent.connect(address)
    except OSError as error:
        agent.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise NestrtError(
            "start",
            "the container",
            f"failed to connect with seccomp agent specified in the seccomp profile: {path}: {reason.lower()}",
            "start the agent, or correct linux.seccomp.listenerPath",
        ) from error
    return agent


def _connect_listener(launcher: HostSide, step: do.ConnectListener) -> None:
    launcher.agent = connect(step.path)


def _send_listener(launcher: HostSide, step: do.SendListener) -> None:
    agent = launcher.agent
    assert agent is not None
    try:
        state = launcher.state(step.status)
        hand_over(agent, launcher.board, launcher.pid, launcher.pidfd, step.metadata, state)
    finally:
        agent.close()
        launcher.agent = None


def hand_over(
    agent: _socket.socket, board: int, pid: int, pidfd_: int, metadata: str, state: dict[str, object]
) -> bool:
    """Fetch the listener out of the first process, send it to the *agent* with *state*, let the process go on.

    runtime-spec, config-linux.md, "The Container Process State". False, and nothing
    is sent, if the process ended or failed first: the channel or the board tells why.
    """
    number = _await_listener(board, pid, pidfd_)
    if number is None:
        return False
    listener = seccomp.get_fd(pidfd_, number)
    try:
        document: dict[str, object] = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid}
        if metadata:
            document["metadata"] = metadata
        _send(agent, jsontext.dumps({**document, "state": state}).encode(), listener)
    finally:
        os.close(listener)
    board_page.release(board)
    return True


def _await_listener(board: int, pid: int, pidfd_: int) -> int | None:
    """Wait until the filter is loaded; return the listener's number, None if the process failed or ended before."""
    last = monotonic() + LOAD_SECONDS
    while True:
        number, failed_at = board_page.read_board(board)
        if number is not None:
            return number
        if failed_at or pidfd.wait(pidfd_, 0):
            return None
        if monotonic() > last:
            raise NestrtError("start", f"process {pid}", f"it loads no seccomp filter in {LOAD_SECONDS:.0f} s")
        sleep(_PAUSE)


def _send(agent: _socket.socket, document: bytes, listener: int) -> None:
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack("i", listener))]
    try:
        sent = agent.sendmsg([document], rights, _socket.MSG_NOSIGNAL)
        if sent < len(document):  # the descriptor went with the first part
            agent.sendall(document[sent:], _socket.MSG_NOSIGNAL)
    except OSError as error:
        raise KernelError(
            "send", "the seccomp listener", error.errno or 0, "look at the agent of linux.seccomp.listenerPath"
        ) from error


def failed(board: int) -> tuple[str, int] | None:
    """What the trampoline failed at, and its errno, once the channel has ended; None if the program runs.

    "execute the program" is execve(2)'s own errno.
    """
    return failure(board_page.read_board(board)[1])


def _hold_loading_right(guest: FirstSide, step: do.HoldLoadingRight) -> None:
    if guest.filter is None:
        return
    have = caps.current()
    if SYS_ADMIN not in have.permitted:
        raise HostError(
            "load",
            "linux.seccomp",
            "this level lacks CAP_SYS_ADMIN, and there is no no_new_privs",
            "set process.noNewPrivileges, or use a user namespace",
        )
    caps.apply(have.effective, have.permitted, have.inheritable | {SYS_ADMIN}, have.bounding, have.ambient)


def with_loading_right(
    effective: frozenset[int], permitted: frozenset[int], inheritable: frozenset[int], ambient: frozenset[int]
) -> Sets:
    """What a process that is to have these sets takes for now, after HoldLoadingRight: CAP_SYS_ADMIN in each.

    As an ambient capability it outlives a change of user and the trampoline's execve(2).
    """
    _wanted[:] = _mask(effective), _mask(permitted), _mask(inheritable)
    right = frozenset({SYS_ADMIN})
    return effective | right, permitted | right, inheritable | right, ambient | right


def sets_for_load(
    effective: frozenset[int], permitted: frozenset[int], inheritable: frozenset[int]
) -> tuple[int, int, int]:
    """The *sets* of ``trampoline.become`` for a program that is to have these.

    CAP_SYS_ADMIN is permitted, for the load, but not inheritable unless it is to be: execve(2) takes it away.
    """
    return _mask(effective | {SYS_ADMIN}), _mask(permitted | {SYS_ADMIN}), _mask(inheritable)


def _mask(numbers: frozenset[int]) -> int:
    return sum(1 << number for number in numbers)


def _load_filter(guest: FirstSide, step: do.LoadFilter) -> None:
    if not step.early or guest.filter is None:
        return
    seccomp.load_with_board(guest.filter.code, guest.filter.flags, guest.board)
    guest.filter = None
    if _wanted:
        seccomp.set_capabilities(*_wanted)


HOST: dict[type[Step], Callable[[Any, Any], None]] = {
    do.BuildFilter: _build_filter,
    do.ConnectListener: _connect_listener,
    do.SendListener: _send_listener,
}

FIRST: dict[type[Step], Callable[[Any, Any], None]] = {
    do.HoldLoadingRight: _hold_loading_right,
    do.LoadFilter: _load_filter,
}
