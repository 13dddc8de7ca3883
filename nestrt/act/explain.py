"""Why the kernel refused a step, and what to do about it: one line for the user."""

from __future__ import annotations

import errno

from nestrt.errors import HostError, KernelError, NestrtError
from nestrt.plan import host_steps as do

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.plan.steps import Step


def explain(step: Step, error: OSError) -> NestrtError:
    """The kernel's refusal of a step as an error for the user."""
    number = error.errno or 0
    if number == errno.ENOSYS:
        return HostError("start", "a guest", f"this kernel cannot {step.describe()}", "use Linux 5.12 or newer")
    if isinstance(step, do.MakeGroup) and number == errno.EAGAIN:
        return KernelError(
            "make group",
            step.hierarchy.path(step.group),
            number,
            "this level's max_groups or max_depth is reached: remove groups or nest less",
        )
    if isinstance(step, do.MakeGroup) and number == errno.EROFS:
        return HostError(
            "make group", step.hierarchy.path(step.group), "the hierarchy is mounted read-only", "mount it read-write"
        )
    if isinstance(step, do.SetFile) and step.field and number != errno.EAGAIN:
        return KernelError(
            f"set {step.field} to {step.value!r}:",
            step.hierarchy.path(step.group, step.file),
            number,
            "the kernel has no such file, or processes stand in a group above, which can give no controllers then"
            if number == errno.ENOENT and step.hierarchy.version == 2
            else "ask for a value that the kernel and the parent group allow",
        )
    if isinstance(step, do.SetFile) and number in (errno.EINVAL, errno.ERANGE, errno.ENODEV):
        return KernelError(
            f"set {step.file} to {step.value!r} for",
            step.hierarchy.path(step.group),
            number,
            "ask for a value that the kernel and the parent group allow",
        )
    if isinstance(step, do.EnableControllers) and number == errno.EBUSY:
        return KernelError(
            "enable controllers below",
            step.hierarchy.path(step.group),
            number,
            "processes stand in this group itself: move them to a child group first",
        )
    if isinstance(step, do.OpenBind):
        return KernelError("bind", step.path, number, "name a file or directory that can be opened here")
    if isinstance(step, do.OpenLog):
        return KernelError("open log", step.path, number, "name a file that can be written")
    if isinstance(step, do.Clone) and number == errno.ENOSPC:
        return KernelError(
            "make", "namespaces", number, "a limit of /proc/sys/user is reached, or namespaces nest too deep"
        )
    if isinstance(step, do.Clone) and number == errno.EPERM:
        return KernelError(
            "make",
            "namespaces",
            number,
            "this level lacks CAP_SYS_ADMIN; a policy gives it by [user] capabilities, or by a user namespace",
        )
    if isinstance(step, do.OpenRoot) and number == errno.EPERM:
        return KernelError(
            "copy the mount of",
            step.path,
            number,
            "this level lacks CAP_SYS_ADMIN: launch it with --capabilities all, or in a user namespace",
        )
    if isinstance(step, do.MapIds):
        return KernelError("map", "the guest's ids", number, "use ids that this level has: " + step.describe())
    if number in (errno.EPERM, errno.EACCES):
        return KernelError(
            step.describe(), str(error.filename or ""), number, "be root of this level, and let its view be rw"
        )
    return KernelError(step.describe(), str(error.filename or ""), number)
