"""The steps of a container's system call filter, and when each is carried out.

::

    launcher                            first process
    BuildFilter
    clone ----------------------------> HoldLoadingRight, unless there is no_new_privs
                                        take the identity; the right to load stays
    ConnectListener
    go -------------------------------> LoadFilter(early), and the right goes, where
                                        startContainer hooks must run under the filter
    SendListener: fetch the listener,   else the trampoline: load, the right goes
    send it, let the process go on      execve(2)

The filter is loaded only when the container is started, so that nothing but the
hooks and execve(2) is subject to it. ConnectListener and SendListener are there
only where a rule notifies; the process waits between, without a system call.
"""

from __future__ import annotations

from nestrt.oci.model import Seccomp
from nestrt.plan.request import STATE_DIR
from nestrt.plan.steps import Step
from nestrt.record import record

# What was built before, until the next boot; an ordinary user's runtime builds each time.
CACHE = f"{STATE_DIR}/seccomp"


def notifies(seccomp: Seccomp | None) -> bool:
    """Whether any rule hands system calls to an agent, and so a listener must be sent."""
    return seccomp is not None and any(entry.action == "SCMP_ACT_NOTIFY" and entry.names for entry in seccomp.syscalls)


def filter_host(seccomp: Seccomp | None, cache: str = CACHE) -> list[Step]:
    """The launcher's, before the clone."""
    return [] if seccomp is None else [BuildFilter(seccomp, cache)]


def filter_first(seccomp: Seccomp | None, no_new_privileges: bool) -> list[Step]:
    """The first process's, with all its rights, before it gives them up."""
    return [] if seccomp is None or no_new_privileges else [HoldLoadingRight()]


def filter_started(seccomp: Seccomp | None, hooks: bool) -> list[Step]:
    """The first process's, once the container is started; *hooks*: whether startContainer hooks follow."""
    return [] if seccomp is None else [LoadFilter(hooks)]


def filter_agent(seccomp: Seccomp | None) -> tuple[list[Step], list[Step]]:
    """The launcher's, just before it lets the first process start, and just after."""
    if seccomp is None or not notifies(seccomp):
        return [], []
    return [ConnectListener(seccomp.listener_path)], [SendListener(seccomp.listener_metadata)]


@record
class BuildFilter(Step):
    """Turn the section into a program; *cache* is a directory, of root's own, for what was built before."""

    seccomp: Seccomp
    cache: str = ""

    def describe(self) -> str:
        calls = sum(len(entry.names) for entry in self.seccomp.syscalls)
        return f"build the seccomp filter: {self.seccomp.default_action}, {calls} system calls said"


@record
class HoldLoadingRight(Step):
    """Make CAP_SYS_ADMIN inheritable, so that it outlives the bounding set, up to the load."""

    def describe(self) -> str:
        return "keep the right to load the seccomp filter"


@record
class LoadFilter(Step):
    """Load the filter: now if *early*, else it is left to the trampoline, just before the program."""

    early: bool

    def describe(self) -> str:
        return "load the seccomp filter" + ("" if self.early else " just before the program")


@record
class ConnectListener(Step):
    """Connect to the agent's Unix socket, before the first process waits for it."""

    path: str

    def describe(self) -> str:
        return f"connect to the seccomp agent at {self.path}"


@record
class SendListener(Step):
    """Send the filter's listener to the agent, with the container's state; runc has "creating" there."""

    metadata: str
    status: str = "creating"

    def describe(self) -> str:
        return "send the seccomp listener to the agent"
