"""One more process in a container, carried out. The protocol is drawn in plan/exec.py.

::

    launcher ─ fork ─▶ helper: enter all namespaces of the first process
        │                └─ clone (CLONE_PARENT) ─▶ the process, in the pid namespace too
        └◀─────── pid ───┘
"""

from __future__ import annotations

import errno
import os

from nestrt.act import attributes, first, launch, seccomp
from nestrt.act.creator import Creator, keep_only, send_terminal, tell_pid
from nestrt.act.process import Guest
from nestrt.act.protocol import Channel, pair
from nestrt.errors import KernelError, NotFound, StateError
from nestrt.kernel import cgroup, namespaces, pidfd, prctl
from nestrt.plan import container_steps as do

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.plan.steps import Step

# name in /proc/PID/ns: CLONE_NEW*
KINDS = {
    "user": namespaces.CLONE_NEWUSER,
    "mnt": namespaces.CLONE_NEWNS,
    "pid": namespaces.CLONE_NEWPID,
    "net": namespaces.CLONE_NEWNET,
    "ipc": namespaces.CLONE_NEWIPC,
    "uts": namespaces.CLONE_NEWUTS,
    "cgroup": namespaces.CLONE_NEWCGROUP,
    "time": namespaces.CLONE_NEWTIME,
}


def others(pid: int) -> int:
    """The CLONE_NEW* of the namespaces that *pid* does not share with the caller: no one enters his own."""
    flags = 0
    for name, flag in KINDS.items():
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
    reader, writer = os.pipe2(os.O_CLOEXEC)
    launcher.channel, theirs = pair()
    helper = os.fork()
    if helper == 0:
        _enter_and_clone(launcher, theirs, target, flags, root, writer)
    os.close(writer)
    os.close(theirs.sock.detach())
    os.close(root)
    os.close(target)
    try:
        answer = int(os.read(reader, 32) or b"0")
    finally:
        os.close(reader)
        os.waitpid(helper, 0)
    if answer <= 0:
        raise OSError(-answer, os.strerror(-answer), f"namespaces of {step.pid}")
    launcher.pid = answer
    launcher.pidfd = os.pidfd_open(answer)


def _enter_and_clone(launcher: Creator, theirs: Channel, target: int, flags: int, root: int, writer: int) -> None:
    """In the helper: enter, clone and tell the pid. In the clone: be the process."""
    try:
        prctl.set_dumpable(False)
        held = Guest(theirs, -1, {}, -1, launcher.signals)
        held.creator = launcher
        held.filter = launcher.filter
        held.board = launcher.board
        handed = range(3, 3 + launcher.bundle.preserve_fds)
        keep_only((theirs.fd, target, root, writer, launcher.board, launcher.trace, *handed))
        if flags:
            namespaces.setns(target, flags)
        if not os.path.samestat(os.fstat(root), os.stat("/")):
            os.fchdir(root)
            os.chroot(".")
        os.chdir("/")
        pid = namespaces.clone(namespaces.CLONE_PARENT)[0]
        if pid == 0:
            for fd in (target, root, writer):
                os.close(fd)
            first.main(launcher.plan, held, launcher.first, launcher.observe)
        os.write(writer, b"%d" % pid)
    except OSError as error:
        os.write(writer, b"-%d" % (error.errno or errno.EIO))
    finally:
        os._exit(0)


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
}
FIRST: dict[type[Step], Callable[..., None]] = {**first.COMMON, **attributes.FIRST, **seccomp.FIRST}
