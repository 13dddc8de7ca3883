"""What config.json says of the process, carried out: one function for each kind in plan/process_steps.py.

HOST are the launcher's, FIRST those of the container's first process, or of one
that ``exec`` adds. Everything is imported at the top: after its clone the first
process can import nothing.
"""

from __future__ import annotations

import errno
import os

from nestrt.act import program
from nestrt.act.process import Guest
from nestrt.errors import HostError, InputError, KernelError
from nestrt.kernel import mount, prctl, schedule, timens
from nestrt.plan import process_steps as do

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nestrt.act.launch import Launcher
    from nestrt.plan.steps import Step

RESOLVE_NO_XDEV = 0x1

# The launcher's


def _set_limits(launcher: Launcher, step: do.SetLimits) -> None:
    for index, name, soft, hard in step.limits:
        number = schedule.RLIMITS.index(name)
        try:
            schedule.set_limits(launcher.pid, number, soft, hard)
        except OSError as error:
            raise _limit_refused(launcher.pid, (index, name, soft, hard), error) from error


def _limit_refused(pid: int, limit: tuple[int, str, int, int], error: OSError) -> Exception:
    index, name, soft, hard = limit
    what = f"process.rlimits[{index}] ({name} {soft}:{hard})"
    if error.errno == errno.EINVAL and soft > hard:
        return InputError("set", what, "the soft limit is above the hard one", "write a soft limit of at most hard")
    if error.errno != errno.EPERM:
        return KernelError("set", what, error.errno or 0, "ask for a value that setrlimit(2) takes")
    highest = schedule.limits(pid, schedule.RLIMITS.index(name))[1]
    return HostError(
        "set",
        what,
        "operation not permitted",
        f"only CAP_SYS_RESOURCE may raise the hard limit, and this level lacks it: ask for at most {highest}",
    )


def _set_oom_score(launcher: Launcher, step: do.SetOomScore) -> None:
    path = f"/proc/{launcher.pid}/oom_score_adj"
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(fd, str(step.value).encode())
    except PermissionError as error:
        now = int(os.pread(fd, 32, 0))
        if now != step.value:
            raise HostError(
                "set",
                f"process.oomScoreAdj to {step.value}",
                "permission denied",
                f"only CAP_SYS_RESOURCE may lower it, and this level lacks it: ask for at least {now}",
            ) from error
    finally:
        os.close(fd)


def _set_affinity(launcher: Launcher, step: do.SetAffinity) -> None:
    try:
        schedule.set_affinity(launcher.pid, step.cpus)
    except OSError as error:
        if step.cpus is None:
            return  # it keeps the runtime's, as it would without this
        raise KernelError(
            "set", step.field, error.errno or 0, "name CPUs that are online and in the container's cpuset"
        ) from error


def _join_resctrl(launcher: Any, step: do.JoinResctrl) -> None:
    """*launcher* is a Launcher with a *container*: what is to be removed with it goes into its state."""
    from nestrt.act import resctrl  # on few hosts

    root = resctrl.mountpoint()
    launcher.container.document["resctrl"] = resctrl.to_remove(root, step)
    launcher.container.save()  # before it is made: a kill must not leave it behind
    resctrl.join(root, step, launcher.pid)


def remove_resctrl(path: str) -> None:
    """Remove the group that was made for a container, *path* of its state; it is no error if it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass


def _require_module(launcher: Launcher, step: do.RequireModule) -> None:
    file = "/sys/module/apparmor/parameters/enabled" if step.name == "apparmor" else "/sys/fs/selinux/enforce"
    try:
        with open(file, "rb", buffering=0) as source:
            enabled = step.name != "apparmor" or source.read(1) == b"Y"
    except OSError:
        enabled = False
    if not enabled:
        shown = {"apparmor": "AppArmor", "selinux": "SELinux"}[step.name]
        raise HostError("use", step.field, f"{shown} is not enabled on this host", f"leave {step.field} out")


HOST: dict[type[Step], Callable[..., None]] = {
    do.SetLimits: _set_limits,
    do.SetOomScore: _set_oom_score,
    do.SetAffinity: _set_affinity,
    do.JoinResctrl: _join_resctrl,
    do.RequireModule: _require_module,
}


# The first process's


def _enter_time_namespace(guest: Guest, step: do.EnterTimeNamespace) -> None:
    try:
        # In the image's root already, /proc is not there yet, or is whatever the image has of that name.
        timens.enter(step.offsets, guest.old_root)
    except OSError as error:
        remedy = "choose offsets that leave both clocks between 0 and 146 years (time_namespaces(7))"
        raise KernelError(
            "set", "linux.timeOffsets", error.errno or 0, remedy if error.errno in (errno.ERANGE, errno.EINVAL) else ""
        ) from error


def _new_session(guest: Guest, step: do.NewSession) -> None:
    try:
        os.setsid()
    except PermissionError:
        pass  # it leads one already


def _join_keyring(guest: Guest, step: do.JoinKeyring) -> None:
    if step.label:
        _set_label("keycreate", step.label)
    prctl.new_session_keyring()


def _set_domainname(guest: Guest, step: do.SetDomainname) -> None:
    try:
        timens.set_domainname(step.domainname)
    except OSError as error:
        raise KernelError("set", f"domainname {step.domainname}", error.errno or 0, "use at most 64 bytes") from error


def _open_proc(path: str) -> int:
    """Open *path* of procfs for writing, and nothing that the image or a mount has put in its place."""
    try:
        root = mount.new_mount("proc")
    except OSError:  # where /proc is partly covered, no user namespace can mount another
        root = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if mount.filesystem_magic(root) != mount.PROC_SUPER_MAGIC:
            raise HostError("open", f"/proc/{path}", "/proc of the container is not procfs", "mount proc at /proc")
        beneath = mount.RESOLVE_BENEATH | mount.RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
        return mount.open_in_root(root, path, os.O_WRONLY, resolve=beneath)
    finally:
        os.close(root)


def _write_sysctls(guest: Guest, step: do.WriteSysctls) -> None:
    for key, path, value in step.values:
        try:
            fd = _open_proc(f"sys/{path}")
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError(
                "set", f"linux.sysctl {key} to {value!r}", error.errno or 0, "name one that this kernel has"
            ) from error


def _write_attribute(name: str, value: str) -> None:
    """Write /proc/self/attr/*name*, of the security module's own directory where it has one."""
    fd = _open_proc(f"{os.getpid()}/attr/{name}")
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _use_apparmor(guest: Guest, step: do.UseAppArmor) -> None:
    value = f"exec {step.profile}"
    try:
        try:
            _write_attribute("apparmor/exec", value)
        except FileNotFoundError:  # before Linux 5.8
            _write_attribute("exec", value)
    except OSError as error:
        raise KernelError(
            "use", f"process.apparmorProfile {step.profile}", error.errno or 0, "load the profile: apparmor_parser -r"
        ) from error


def _set_label(name: str, label: str) -> None:
    try:
        _write_attribute(name, label)
    except OSError as error:
        raise KernelError(
            "use", f"process.selinuxLabel {label}", error.errno or 0, "use a label that the policy has"
        ) from error


def _use_selinux(guest: Guest, step: do.UseSelinux) -> None:
    _set_label("exec", step.label)


def _make_directory(guest: Guest, step: do.MakeDirectory) -> None:
    try:
        os.makedirs(step.path, 0o755, exist_ok=True)
    except OSError as error:
        raise InputError(
            "make", f"process.cwd {step.path}", program.lowered(error.errno or 0), "name a directory of the container"
        ) from error


def _set_personality(guest: Guest, step: do.SetPersonality) -> None:
    schedule.set_personality(step.persona)


def _set_scheduler(guest: Guest, step: do.SetScheduler) -> None:
    wanted = schedule.Scheduling(
        step.policy, step.flags, step.nice, step.priority, step.runtime, step.deadline, step.period
    )
    try:
        schedule.set_scheduling(wanted)
    except OSError as error:
        raise KernelError(
            "set",
            f"process.scheduler {step.name}",
            error.errno or 0,
            "it takes CAP_SYS_NICE of the host, and SCHED_DEADLINE a process that may run on all CPUs (sched(7))",
        ) from error


def _set_io_priority(guest: Guest, step: do.SetIoPriority) -> None:
    try:
        schedule.set_io_priority(step.io_class, step.level)
    except OSError as error:
        raise KernelError(
            "set", f"process.ioPriority {step.name}", error.errno or 0, "IOPRIO_CLASS_RT takes CAP_SYS_NICE of the host"
        ) from error


def _forbid_privileges(guest: Guest, step: do.ForbidPrivileges) -> None:
    prctl.set_no_new_privs()


FIRST: dict[type[Step], Callable[..., None]] = {
    do.EnterTimeNamespace: _enter_time_namespace,
    do.NewSession: _new_session,
    do.JoinKeyring: _join_keyring,
    do.SetDomainname: _set_domainname,
    do.WriteSysctls: _write_sysctls,
    do.MakeDirectory: _make_directory,
    do.UseAppArmor: _use_apparmor,
    do.UseSelinux: _use_selinux,
    do.ForbidPrivileges: _forbid_privileges,
    do.SetPersonality: _set_personality,
    do.SetScheduler: _set_scheduler,
    do.SetIoPriority: _set_io_priority,
    do.LearnHome: program.learn_home,
    do.BecomeUser: program.become_user,
    do.FindProgram: program.find_args,
    do.ExecuteArgs: program.execute_args,
}
