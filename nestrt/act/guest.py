"""The steps of the first process of a guest of ``launch``, carried out.

It pivots early, so every path is resolved in the guest's root by the kernel
itself; what it needs of the old root it reaches through a descriptor.
"""

from __future__ import annotations

import errno
import os

from nestrt.act import first, mounts, program
from nestrt.act.process import Guest
from nestrt.errors import KernelError, NestrtError
from nestrt.kernel import mount, namespaces, netif, seccomp
from nestrt.plan import guest_steps as do
from nestrt.plan.steps import Step


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


def _open_console(guest: Guest, step: do.OpenTerminal) -> None:
    first.open_terminal(guest, step)
    # /dev/console is what a first process, systemd above all, expects its terminal to be. By descriptor: an
    # image's /dev/pts may be a link to elsewhere.
    mounts.put(mount.open_tree("", False, 0), mounts.open_target("/dev/console", directory=False))


def _forbid_handles(guest: Guest, step: do.ForbidHandles) -> None:
    seccomp.forbid_handles()


def _redirect_output(guest: Guest, step: do.RedirectOutput) -> None:
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(guest.log, 1)
    os.dup2(guest.log, 2)


STEPS: first.Steps = {
    **first.COMMON,
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
    do.OpenTerminal: _open_console,
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
    return first.refused(step, error)
