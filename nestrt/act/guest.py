"""The guest's first process: carries out its steps of the plan, then becomes the program.

It runs the launcher's interpreter, in the guest's namespaces, before any code of
the image does. It pivots early, so every path is resolved in the guest's root
by the kernel itself; what it needs of the old root it reaches through a descriptor.
"""

from __future__ import annotations

import errno
import os
import sys

from nestrt.act import mounts, program
from nestrt.act.process import Guest
from nestrt.act.protocol import Gone
from nestrt.errors import KernelError, NestrtError
from nestrt.kernel import mount, namespaces, netif, prctl, seccomp, terminal
from nestrt.plan import guest_steps as do
from nestrt.plan.steps import Plan, Step, Tell, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn

    Steps = dict[type[Step], Callable[..., None]]
else:
    import _signal  # signal.py imports enum


def main(plan: Plan, guest: Guest, steps: Steps, observe: Callable[[str, Step], None] | None) -> NoReturn:
    """Carry out the guest's steps by the functions in *steps*; tells the launcher what failed, and never returns."""
    # From here on an import could only come from the image: it must fail instead.
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()
    try:
        prctl.set_parent_death_signal(_signal.SIGKILL)
        for step in plan.guest:
            try:
                steps[type(step)](guest, step)
            except OSError as error:
                raise explain(step, error) from error
            if observe:
                observe("guest", step)
    except NestrtError as error:
        guest.channel.tell_error(error)
    except Gone:
        pass
    except BaseException as error:  # a traceback would reach the user from two processes at once
        guest.channel.tell_error(
            NestrtError("start", plan.name, f"{type(error).__name__}: {error}", "this is a bug of nestrt")
        )
    os._exit(125)


def _wait(guest: Guest, step: Wait) -> None:
    guest.channel.wait(step.word)


def _tell(guest: Guest, step: Tell) -> None:
    guest.channel.tell(step.word)


def _become_root(guest: Guest, step: do.BecomeRoot) -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    prctl.set_parent_death_signal(_signal.SIGKILL)  # a change of user clears it


def _take_cgroup_namespace(guest: Guest, step: do.TakeCgroupNamespace) -> None:
    namespaces.unshare(namespaces.CLONE_NEWCGROUP)


def _set_hostname(guest: Guest, step: do.SetHostname) -> None:
    import _socket

    _socket.sethostname(step.hostname)


def _loopback_up(guest: Guest, step: do.LoopbackUp) -> None:
    netif.loopback_up()


def _set_sysctl(guest: Guest, step: do.SetSysctl) -> None:
    try:
        fd = os.open(f"/proc/sys/{step.path}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    os.write(fd, step.value.encode())
    os.close(fd)


def _open_terminal(guest: Guest, step: do.OpenTerminal) -> None:
    master, guest.pty = terminal.open_guest_pty("/dev/ptmx")
    guest.channel.tell_terminal(master)
    slave = terminal.open_slave(master)
    os.close(master)
    if step.console:
        # /dev/console is what a first process, systemd above all, expects its terminal to be.
        mounts.put(mount.open_tree("", False, slave), mounts.open_target("/dev/console", directory=False))
    terminal.make_controlling(slave)


def _forbid_handles(guest: Guest, step: do.ForbidHandles) -> None:
    seccomp.forbid_handles()


def _redirect_output(guest: Guest, step: do.RedirectOutput) -> None:
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(guest.log, 1)
    os.dup2(guest.log, 2)


STEPS: Steps = {
    Wait: _wait,
    Tell: _tell,
    do.BecomeRoot: _become_root,
    do.EnterRoot: mounts.enter_root,
    do.MountNew: mounts.mount_new,
    do.Bind: mounts.bind,
    do.Link: mounts.link,
    do.Cover: mounts.cover,
    do.LockFiles: mounts.lock_files,
    do.TakeCgroupNamespace: _take_cgroup_namespace,
    do.SetHostname: _set_hostname,
    do.LoopbackUp: _loopback_up,
    do.SetSysctl: _set_sysctl,
    do.OpenTerminal: _open_terminal,
    do.RedirectOutput: _redirect_output,
    do.LeaveHost: mounts.leave_host,
    do.ForbidHandles: _forbid_handles,
    do.TakeIdentity: program.take_identity,
    do.Execute: program.execute,
}


def explain(step: Step, error: OSError) -> NestrtError:
    """The kernel's refusal of a guest's step as an error for the user."""
    number = error.errno or 0
    if isinstance(step, do.MountNew) and step.fstype in ("proc", "sysfs") and number == errno.EPERM:
        return KernelError(
            "mount",
            f"{step.fstype} at {step.target}",
            number,
            "this level's own is partly covered: launch this level unmasked, or use --userns none for its guest",
        )
    if isinstance(step, do.EnterRoot) and step.overlay:
        return KernelError(
            "mount",
            "the overlay",
            number,
            "overlays nest two deep: use --read-only or a root filesystem that is no overlay",
        )
    if isinstance(step, do.Bind) and number == errno.ENOENT:
        return KernelError("bind", step.source, number, "name a file or directory that is there")
    if isinstance(step, (do.MountNew, do.Bind)) and number in (errno.EROFS, errno.EACCES):
        return KernelError("make mount point", step.target, number, "make the directory in the root filesystem")
    if isinstance(step, do.TakeIdentity):
        return KernelError(
            "become",
            step.user,
            number,
            "use ids that the guest's user namespace maps, and capabilities that this level has",
        )
    return KernelError(step.describe(), str(error.filename or ""), number)
