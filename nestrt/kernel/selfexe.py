"""The interpreter out of a guest's reach: run from a mount that cannot be written.

A process that enters a pid namespace where the guest's own processes live can be
looked at there: with CAP_SYS_PTRACE its /proc/PID/exe leads to the host's
interpreter, which could be opened, kept and, once nobody runs it, overwritten
(CVE-2019-5736). Not being dumpable keeps out all but that capability; a user
namespace keeps it out too, for the interpreter's memory belongs to the host's
(__ptrace_may_access() in kernel/ptrace.c). For the rest the interpreter starts
once more, from a detached, read-only copy of the mount that it lies on: the
link then leads there, where the kernel refuses to write (EROFS).

Sources: open_tree(2), mount_setattr(2), execveat(2), proc_pid_exe(5).
"""

from __future__ import annotations

import os
import sys

from nestrt.kernel import mount

ST_RDONLY = 1


def protected() -> bool:
    """Whether this interpreter runs from a read-only mount."""
    return bool(os.statvfs("/proc/self/exe").f_flag & ST_RDONLY)


def protect() -> None:
    """Start the interpreter again from a read-only mount, unless it is on one. Returns only in that case.

    To be called before anything was made. Raises OSError: EPERM without CAP_SYS_ADMIN.
    """
    if protected():
        return
    tree = mount.open_tree("/proc/self/exe")
    mount.set_attributes(tree, mount.MOUNT_ATTR_RDONLY)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(tree, sys.orig_argv, dict(os.environ))
