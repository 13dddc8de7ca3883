"""The steps that only a bundle's container needs: namespaces of others, hooks, and waiting to be started."""

from __future__ import annotations

from nestrt.plan.steps import Step
from nestrt.record import record


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
class MoveTo(Step):
    """Move the first process into *group* in every hierarchy where the driver has not."""

    group: str

    def describe(self) -> str:
        return f"move the first process to {self.group}"


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
