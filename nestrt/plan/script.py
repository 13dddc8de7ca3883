"""Steps that make and change groups as plain lists: what can be written down and carried out later, by another process.

Each is a word and its values, all of them text, numbers and lists of text::

    ["mkdir", path, exist_ok]                       ["xattr", path, name, value]
    ["write", file, value, optional, unless]        ["running", path, name, mark]
    ["enable", file, controllers, lenient]          ["chown", path, files, uid, gid]
    ["disable", file, controllers]                  ["attach", files]
    ["fill", path, parent, inherit]

act.script carries them out. Pure.
"""

from __future__ import annotations

from nestrt.plan import host_steps as do

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from nestrt.plan.steps import Step

    Operation = list[Any]


def operation(step: Step) -> Operation:
    """*step* as a list. Raises KeyError for one that is not about groups."""
    return OPERATIONS[type(step)](step)


def script(steps: Iterable[Step]) -> list[Operation]:
    """All of *steps*, in order."""
    return [operation(step) for step in steps]


def _control(step: do.EnableControllers | do.DisableControllers) -> str:
    return step.hierarchy.path(step.group, "cgroup.subtree_control")


OPERATIONS: dict[type[Step], Callable[[Any], Operation]] = {
    do.MakeGroup: lambda step: ["mkdir", step.hierarchy.path(step.group), step.exist_ok],
    do.SetFile: lambda step: [
        "write",
        step.hierarchy.path(step.group, step.file),
        step.value,
        step.optional,
        step.unless and step.hierarchy.path(step.group, step.unless),
    ],
    do.EnableControllers: lambda step: ["enable", _control(step), list(step.controllers), step.lenient],
    do.DisableControllers: lambda step: ["disable", _control(step), list(step.controllers)],
    do.FillCpuset: lambda step: [
        "fill",
        step.hierarchy.path(step.group),
        step.hierarchy.path(step.group.rpartition("/")[0] or "/"),
        step.inherit,
    ],
    do.SetMark: lambda step: ["xattr", step.hierarchy.path(step.group), step.attribute, step.value],
    do.MarkRunning: lambda step: ["running", step.hierarchy.path(step.group), step.attribute, step.value],
    do.Delegate: lambda step: ["chown", step.hierarchy.path(step.group), list(step.files), step.uid, step.gid],
    do.Attach: lambda step: ["attach", [h.path(step.group, "cgroup.procs") for h in step.hierarchies]],
}
