"""Give a live container other device rules: lines of v1's files, or another program in the old one's place."""

from __future__ import annotations

import errno
import os

from nestrt.errors import HostError, KernelError
from nestrt.kernel import cgroup
from nestrt.plan import update_devices as plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.act.update import Update
    from nestrt.oci.resources import DeviceRule
    from nestrt.plan.facts import Hierarchy

FIELD = "linux.resources.devices"
PROGRAM = "deviceProgram"  # in the state file: the kernel's id of the program on the limit group


def update_devices(update: Update, rules: tuple[DeviceRule, ...]) -> None:
    """Make *rules*, those of every container included, the container's. Raises HostError, KernelError."""
    v1 = next((h for h in update.hierarchies if h.version == 1 and "devices" in h.controllers), None)
    try:
        if v1 is not None:
            _lines(update, v1, rules)
            return
        for hierarchy in update.hierarchies:
            if hierarchy.version == 2:
                _program(update, hierarchy.path(update.container.cgroup), rules)
    except OSError as error:
        raise KernelError(
            "set",
            f"{FIELD} of container {update.container.id}",
            error.errno or 0,
            "the groups above have to allow these devices, and the caller has to be root of the machine",
        ) from error


def _lines(update: Update, h: Hierarchy, rules: tuple[DeviceRule, ...]) -> None:
    group = update.container.cgroup
    below = cgroup.below(h.path(group))
    if not below:
        for file, line in plan.v1_whole(rules):
            cgroup.write(h.path(group, file), line)
        return
    allow, deny = plan.v1_changes(cgroup.read(h.path(group, "devices.list")), rules)
    places = [group, *(group + name for name in update.own_groups if h.path(group + name) in below)]
    for line in allow:
        for place in places:
            cgroup.write(h.path(place, "devices.allow"), line)
            path = h.path(place, "devices.deny")
            update.undo.append(lambda path=path, line=line: cgroup.write(path, line))  # type: ignore[misc]
    for line in deny:  # from the groups below the kernel takes it itself
        cgroup.write(h.path(group, "devices.deny"), line)


def _program(update: Update, group: str, rules: tuple[DeviceRule, ...]) -> None:
    from nestrt.kernel import bpf

    attached = bpf.query(group)
    known = update.container.document.get(PROGRAM)
    if known in attached:
        old = known
    elif len(attached) <= 1:
        old = attached[0] if attached else None
    else:
        raise HostError(
            "set", FIELD, f"group {group} has {len(attached)} device programs, and none is known to be the container's",
            "give device rules at create",
        )  # fmt: skip
    new = bpf.load_device_program(plan.program(rules))
    try:
        if old is None:
            bpf.attach(group, new)
        else:
            held = bpf.program_by_id(old)
            try:
                bpf.replace(group, new, held)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # A kernel before 5.6, or a program that was attached to be alone: both hold for a moment.
                bpf.attach(group, new)
                bpf.detach(group, held)
            finally:
                os.close(held)
        update.container.document[PROGRAM] = next((i for i in bpf.query(group) if i not in attached), 0)
    finally:
        os.close(new)
