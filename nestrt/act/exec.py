"""One more process in a container, carried out. The protocol is drawn in plan/exec.py.

::

    launcher ─ fork ─▶ helper: enter all namespaces of the first process
        │                └─ clone (CLONE_PARENT) ─▶ the process, in the pid namespace too
        └◀─────── pid ───┘
"""

from __future__ import annotations

import _socket
import errno
import os
from struct import pack

from nestrt.act import attributes, first, launch, program, seccomp
from nestrt.act.creator import Creator, keep_only, send_terminal, tell_pid
from nestrt.act.join import KINDS, by_helper
from nestrt.act.process import Guest
from nestrt.act.protocol import pair
from nestrt.errors import KernelError, NotFound, StateError
from nestrt.kernel import caps, cgroup, namespaces, pidfd, prctl
from nestrt.kernel import seccomp as kernel_seccomp
from nestrt.kernel.board import new_board
from nestrt.plan import container_steps as do
from nestrt.plan import guest_steps as guest_do
from nestrt.plan import process_steps as process_do
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.plan.steps import Step


def others(pid: int) -> int:
    """The CLONE_NEW* of the namespaces that *pid* does not share with the caller: no one enters his own."""
    flags = 0
    for link, flag in KINDS.values():
        name = link.removesuffix("_for_children")
        try:
            if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
                flags |= flag
        except FileNotFoundError:
            continue  # a kernel without time namespaces
    return flags


def _clone_beside(launcher: Creator, step: do.CloneBeside) -> None:
    try:
        target = pidfd.open(step.pid, step.start)
    except ProcessLookupError as error:
        raise StateError(
            "exec in",
            f"container {launcher.container.id}",
            "cannot exec in a stopped container: container not running",
            "create it again",
        ) from error
    flags = others(step.pid)
    root = os.open(f"/proc/{step.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    launcher.channel, theirs = pair()
    patience: int = launcher.bundle.patience  # type: ignore[attr-defined]  # it is a Joining
    if patience:
        # SO_RCVTIMEO leaves the socket blocking: a descriptor that comes by it has to be waited for, too.
        seconds = pack("ll", patience, 0)
        launcher.channel.sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, seconds)

    def enter(keep: int) -> None:
        prctl.set_dumpable(False)
        handed = range(3, 3 + launcher.bundle.preserve_fds)
        keep_only((theirs.fd, target, root, keep, launcher.board, launcher.trace, launcher.log, *handed))
        if flags:
            namespaces.setns(target, flags)
        if not os.path.samestat(os.fstat(root), os.stat("/")):
            os.fchdir(root)
            os.chroot(".")
        os.chdir("/")
        if not flags & namespaces.CLONE_NEWUSER:
            _give_up(launcher)

    launcher.pid, launcher.pidfd = by_helper(0, enter)
    if launcher.pid == 0:
        for fd in (target, root):
            os.close(fd)
        held = Guest(theirs, -1, {}, launcher.log, launcher.signals)
        held.creator = launcher
        held.filter = launcher.filter
        held.board = launcher.board
        first.main(launcher.plan, held, launcher.first, launcher.observe)
    for fd in (theirs.sock.detach(), root, target):
        os.close(fd)


def _give_up(launcher: Creator) -> None:
    """Keep only the rights that the rest takes, before anything of the container can see the process.

    A container with CAP_SYS_PTRACE and without a user namespace may write into the memory of whatever enters its
    pid namespace. What has the host's rights must not be there: only to load a filter without no_new_privs
    CAP_SYS_ADMIN has to stay.
    """
    process = launcher.bundle.process
    names = {"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP"}
    if process.capabilities is not None:
        names.update(process.capabilities.permitted, process.capabilities.inheritable)
    if launcher.filter is not None and not process.no_new_privileges:
        names.add("CAP_SYS_ADMIN")
    if process.scheduler is not None or process.io_priority is not None:
        names.add("CAP_SYS_NICE")
    keep = frozenset(number for number, name in enumerate(caps.NAMES) if name in names)
    have = caps.current()
    caps.apply(have.effective & keep, have.permitted & keep, have.inheritable & keep, have.bounding, frozenset())


def _attach_each(launcher: Creator, step: do.AttachEach) -> None:
    for hierarchy, group in step.places:
        try:
            cgroup.write(hierarchy.path(group, "cgroup.procs"), str(launcher.pid))
        except FileNotFoundError as error:
            file = hierarchy.path(group, "cgroup.procs")
            reason = f"adding pid {launcher.pid} to {file}: no such file or directory"
            raise NotFound("exec in", f"cgroup {group}", reason, "make the group first") from error
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EOPNOTSUPP) or not step.leaf or hierarchy.version == 1:
                raise KernelError("exec in", f"cgroup {hierarchy.path(group)}", error.errno or 0) from error
            # It has controllers enabled for its children, and so takes no processes.
            os.makedirs(hierarchy.path(step.leaf), exist_ok=True)
            cgroup.write(hierarchy.path(step.leaf, "cgroup.procs"), str(launcher.pid))


def _use_filters(launcher: Creator, step: do.UseFilters) -> None:
    from nestrt.kernel.libseccomp import Filter  # of filters nobody has built here

    launcher.filter = Filter(step.filters[-1], 0, False)
    launcher.board = new_board()


def _load_filters(guest: Guest, step: do.LoadFilters) -> None:
    for code in step.filters:
        kernel_seccomp.load(code, 0)


def _become_named(guest: Guest, step: do.BecomeNamed) -> None:
    uid, gid, groups = program.find_user(step.user)
    if step.home:
        program.learn_home(guest, process_do.LearnHome(uid))
    become = step.root if uid == 0 else step.plain
    program.become_user(guest, replace(become, uid=uid, gid=gid, groups=tuple(groups)))


def _redirect_output(guest: Guest, step: guest_do.RedirectOutput) -> None:
    for fd in range(3):
        os.dup2(guest.log, fd)


def _write_pid(launcher: Creator, step: do.WritePid) -> None:
    tell_pid(launcher)


HOST: dict[type[Step], Callable[..., None]] = {
    **launch.COMMON,
    **attributes.HOST,
    **seccomp.HOST,
    do.SendTerminal: send_terminal,
    do.CloneBeside: _clone_beside,
    do.AttachEach: _attach_each,
    do.WritePid: _write_pid,
    do.UseFilters: _use_filters,
}
FIRST: dict[type[Step], Callable[..., None]] = {
    **first.COMMON,
    **attributes.FIRST,
    **seccomp.FIRST,
    do.LoadFilters: _load_filters,
    do.BecomeNamed: _become_named,
    guest_do.RedirectOutput: _redirect_output,
}
