"""The steps that only a bundle's container needs: namespaces of others, hooks, and waiting to be started."""

from __future__ import annotations

from nestrt.plan.facts import Hierarchy
from nestrt.plan.process_steps import BecomeUser
from nestrt.plan.steps import Step
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.plan.systemd_text import Property


@record
class CloneInto(Step):
    """As Clone, but into existing namespaces where *joins*, (type, path), says so.

    *flags* are CLONE_NEW* of those that are made. What a new user namespace would not let its
    root join is joined by the launcher before the clone, and left again after it.
    """

    flags: int
    names: str
    joins: tuple[tuple[str, str], ...] = ()

    def describe(self) -> str:
        joined = "".join(f", joining {kind} {path}" for kind, path in self.joins)
        return f"clone the first process into new namespaces: {self.names or 'none'}{joined}"


@record
class JoinNamespace(Step):
    """Enter the namespace of *type* that CloneInto has opened and could not enter before the clone."""

    type: str

    def describe(self) -> str:
        return f"join the {self.type} namespace"


@record
class RunHooks(Step):
    """Run the bundle's hooks of the runtime's side: *stages* in order, the container being *status*."""

    stages: tuple[str, ...]
    status: str

    def describe(self) -> str:
        return f"run the hooks {', '.join(self.stages)}"


@record
class RunOwnHooks(Step):
    """Run hooks in the container's namespaces: *stage* createContainer (the runtime's root) or startContainer."""

    stage: str
    status: str

    def describe(self) -> str:
        return f"run the hooks {self.stage}"


@record
class SaveState(Step):
    """Write the state file, with the first process in it."""

    def describe(self) -> str:
        return "save the container's state"


@record
class ListenForStart(Step):
    """Make the socket on which the first process will wait to be started."""

    path: str

    def describe(self) -> str:
        return f"listen on {self.path}"


@record
class Park(Step):
    """Outlive the launcher, and wait until somebody starts the container."""

    def describe(self) -> str:
        return "wait to be started"


@record
class SendTerminal(Step):
    """Send the terminal's master to whoever listens on the Unix socket *path*, as ``--console-socket`` asks.

    *size* is (rows, columns), None: as it is.
    """

    path: str
    size: tuple[int, int] | None

    def describe(self) -> str:
        return f"send the terminal to {self.path}" if self.path else "size the terminal"


@record
class StartScope(Step):
    """Have systemd start *unit* with the first process in it; *properties* are those of plan/systemd.py."""

    unit: str
    properties: tuple[Property, ...]

    def describe(self) -> str:
        return f"start the unit {self.unit}"


@record
class CloneBeside(Step):
    """Clone a process into all namespaces of the process *pid*, which began at *start*."""

    pid: int
    start: int

    def describe(self) -> str:
        return f"clone a process into the namespaces of {self.pid}"


@record
class AttachEach(Step):
    """Move the process into a group of its own in each hierarchy: *places* are (hierarchy, group).

    *leaf* is where it goes in the v2 tree if that group has come to be one for groups only.
    """

    places: tuple[tuple[Hierarchy, str], ...]
    leaf: str

    def describe(self) -> str:
        return "move the process to " + ", ".join(sorted({group for _, group in self.places}))


@record
class WritePid(Step):
    """Write the pid file, if there is to be one."""

    def describe(self) -> str:
        return "write the pid file"


@record
class UseFilters(Step):
    """Have the last of *filters* (struct sock_filter[], of another process) loaded as the container's own would be."""

    filters: tuple[bytes, ...]

    def describe(self) -> str:
        return f"use the first process's system call filters ({len(self.filters)})"


@record
class LoadFilters(Step):
    """Load all *filters* but the last one, in their order."""

    filters: tuple[bytes, ...]

    def describe(self) -> str:
        return f"load the first process's earlier system call filters ({len(self.filters)})"


@record
class BecomeNamed(Step):
    """Become *user*, ``uid[:gid]`` or names that the container's own files have, and as its BecomeUser says:
    *root*'s for uid 0, *plain*'s for others. *home*: HOME is his home directory."""

    user: str
    root: BecomeUser
    plain: BecomeUser
    home: bool

    def describe(self) -> str:
        return f"become user {self.user}, in {self.root.cwd}"
