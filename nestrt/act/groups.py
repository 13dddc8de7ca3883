"""The steps that make groups, carried out, whoever starts the guest: a launch, a create or another runtime."""

from __future__ import annotations

import errno
import fcntl
import os

from nestrt import jsontext
from nestrt.errors import StateError
from nestrt.kernel import cgroup, pidfd
from nestrt.plan import host_steps as do
from nestrt.plan.request import PARENT_LOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from nestrt.plan.steps import Plan, Step

    class Maker(Protocol):
        """Who carries the steps out: *pid* is the first process, 0 where there is none yet."""

        plan: Plan
        pid: int
        parent_lock: int


def hold_parents(launcher: Maker) -> None:
    """Keep what guests share from being removed while this one's groups are made."""
    os.makedirs(os.path.dirname(PARENT_LOCK), mode=0o755, exist_ok=True)
    launcher.parent_lock = os.open(PARENT_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(launcher.parent_lock, fcntl.LOCK_SH)


def _make_group(launcher: Maker, step: do.MakeGroup) -> None:
    try:
        os.mkdir(step.hierarchy.path(step.group), 0o755)
    except FileExistsError as error:
        if not step.exist_ok:
            raise StateError(
                "launch",
                f"guest {launcher.plan.name}",
                f"group {step.hierarchy.path(step.group)} is there already",
                "choose another --name, or remove what is left: nestrt gc",
            ) from error


def _set_file(launcher: Maker, step: do.SetFile) -> None:
    if step.unless and os.path.exists(step.hierarchy.path(step.group, step.unless)):
        return
    try:
        cgroup.write(step.hierarchy.path(step.group, step.file), step.value)
    except FileNotFoundError:
        if not step.optional:
            raise


def _enable(launcher: Maker, step: do.EnableControllers) -> None:
    have = cgroup.read(step.hierarchy.path(step.group, "cgroup.subtree_control")).split()
    file = step.hierarchy.path(step.group, "cgroup.subtree_control")
    missing = [f"+{name}" for name in step.controllers if name not in have]
    if not missing:
        return
    try:
        cgroup.write(file, " ".join(missing))
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EACCES, errno.EROFS) and not step.lenient:
            raise
        if error.errno == errno.EBUSY:
            # Processes stand there. One by one the kernel would take cpu and pids, by which the group becomes
            # "domain threaded" and no child of it takes a process (cgroup-v2.rst, "Threads").
            return
        # One that cannot be had (cpu beside realtime processes, say) takes the others with it.
        for name in missing:
            try:
                cgroup.write(file, name)
            except OSError:
                continue


def _fill_cpuset(launcher: Maker, step: do.FillCpuset) -> None:
    parent = step.group.rpartition("/")[0] or "/"
    for file in ("cpuset.mems", "cpuset.cpus"):
        if not cgroup.read(step.hierarchy.path(step.group, file)):
            cgroup.write(step.hierarchy.path(step.group, file), cgroup.read(step.hierarchy.path(parent, file)))
    if step.inherit:
        cgroup.write(step.hierarchy.path(step.group, "cgroup.clone_children"), "1")


def _set_mark(launcher: Maker, step: do.SetMark) -> None:
    os.setxattr(step.hierarchy.path(step.group), step.attribute, step.value.encode())


def _mark_running(launcher: Maker, step: do.MarkRunning) -> None:
    value = jsontext.loads(step.value)
    value.update(state="running", pid=launcher.pid, start=pidfd.start_time(launcher.pid) or 0)
    os.setxattr(step.hierarchy.path(step.group), step.attribute, jsontext.dumps(value).encode())


def _attach_program(launcher: Maker, step: do.AttachDeviceProgram) -> None:
    from nestrt.kernel import bpf  # only where device rules are a program

    program = bpf.load_device_program(step.code)
    try:
        bpf.attach(step.hierarchy.path(step.group), program)
    finally:
        os.close(program)


def _delegate(launcher: Maker, step: do.Delegate) -> None:
    directory = step.hierarchy.path(step.group)
    files = os.listdir(directory) if step.files == ("*",) else step.files
    for name in files:
        try:
            os.chown(f"{directory}/{name}", step.uid, step.gid)
        except FileNotFoundError:
            continue
    os.chown(directory, step.uid, step.gid)


def _disable(launcher: Maker, step: do.DisableControllers) -> None:
    file = step.hierarchy.path(step.group, "cgroup.subtree_control")
    have = cgroup.read(file).split()
    if extra := [f"-{name}" for name in step.controllers if name in have]:
        cgroup.write(file, " ".join(extra))


def _attach(launcher: Maker, step: do.Attach) -> None:
    for hierarchy in step.hierarchies:
        cgroup.write(hierarchy.path(step.group, "cgroup.procs"), str(launcher.pid))


STEPS: dict[type[Step], Callable[..., None]] = {
    do.MakeGroup: _make_group,
    do.SetFile: _set_file,
    do.EnableControllers: _enable,
    do.DisableControllers: _disable,
    do.FillCpuset: _fill_cpuset,
    do.SetMark: _set_mark,
    do.MarkRunning: _mark_running,
    do.AttachDeviceProgram: _attach_program,
    do.Delegate: _delegate,
    do.Attach: _attach,
}
