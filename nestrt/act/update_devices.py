"""Give a live container other device rules: lines of v1's files, or another program in the old one's place."""

from __future__ import annotations

import errno

from nestrt.errors import HostError, KernelError
from nestrt.kernel import cgroup
from nestrt.plan import update_devices as plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.act.update import Update
    from nestrt.oci.resources import DeviceRule
    from nestrt.plan.facts import Hierarchy

FIELD = "linux.resources.devices"
LIST, ALLOW, DENY = "devices.list", "devices.allow", "devices.deny"
PROGRAM = "deviceProgram"  # in the state file: the kernel's id of the program on the limit group


def update_devices(update: Update, rules: tuple[DeviceRule, ...], before: tuple[DeviceRule, ...]) -> None:
    """Make *rules*, those of every container included, the container's, which had those *before*.

    Raises HostError, KernelError; what was done until then is in update.undo.
    """
    v1 = next((h for h in update.hierarchies if h.version == 1 and "devices" in h.controllers), None)
    try:
        if v1 is not None:
            _lines(update, v1, rules, before)
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


def _lines(update: Update, h: Hierarchy, rules: tuple[DeviceRule, ...], before: tuple[DeviceRule, ...]) -> None:
    group = update.container.cgroup
    top = h.path(group)
    below = cgroup.below(top)
    text = cgroup.read(f"{top}/{LIST}")
    if not below and plan.v1_begins_anew(text, rules):
        _anew(update, top, plan.v1_whole(rules), plan.v1_former(text, before))
        return
    allow, deny = plan.v1_changes(text, rules)
    had = {top: text, **{path: cgroup.read(f"{path}/{LIST}") for path in reversed(below)}}
    update.undo.append(lambda: _back(had))
    places = [group, *(group + name for name in update.own_groups if h.path(group + name) in below)]
    for line in allow:
        for place in places:
            cgroup.write(h.path(place, ALLOW), line)
    for line in deny:  # from the groups below the kernel takes it itself
        cgroup.write(h.path(group, DENY), line)


def _back(had: dict[str, str]) -> None:
    """Give groups, a parent before its children, the lines again that they *had*, and no others."""
    top = next(iter(had))
    for line in plan.v1_more(cgroup.read(f"{top}/{LIST}"), had[top]):
        _try(f"{top}/{DENY}", line)
    for path, text in had.items():
        try:
            now = cgroup.read(f"{path}/{LIST}")
        except OSError:
            continue  # the guest has removed it
        for line in plan.v1_more(text, now):
            _try(f"{path}/{ALLOW}", line)


def _try(path: str, line: str) -> None:
    try:
        cgroup.write(path, line)
    except OSError:
        pass  # the others are to be put back all the same


def _anew(update: Update, top: str, lines: list[tuple[str, str]], former: list[tuple[str, str]]) -> None:
    """Write *lines* of which the first is about all devices: nobody is to run before the last, nor on the way back."""

    def back() -> None:
        for file, line in former:
            _try(f"{top}/{file}", line)

    def write() -> None:
        try:
            for file, line in lines:
                cgroup.write(f"{top}/{file}", line)
        except BaseException:
            back()
            raise

    update.still(write)
    update.undo.append(lambda: update.still(back))


def own_program(group: str, attached: tuple[int, ...], known: int | None) -> int | None:
    """Which of the programs *attached* to *group* holds the rules of its container: the *known* one, or the only one;
    None where there is none. Raises HostError where it cannot be told."""
    if known in attached:
        return known
    if len(attached) <= 1:
        return attached[0] if attached else None
    raise HostError(
        "set", FIELD, f"group {group} has {len(attached)} device programs, and none is known to be the container's",
        "give device rules at create",
    )  # fmt: skip


def _program(update: Update, group: str, rules: tuple[DeviceRule, ...]) -> None:
    from nestrt.kernel import bpf

    document = update.container.document
    attached = bpf.query(group)
    known = document.get(PROGRAM)
    old = own_program(group, attached, known)
    new = bpf.load_device_program(plan.program(rules))
    update.held.append(new)
    if old is None:
        bpf.attach(group, new)
        update.undo.append(lambda: bpf.detach(group, new))
    else:
        held = bpf.program_by_id(old)
        update.held.append(held)
        exchange(group, new, held)
        update.undo.append(lambda: exchange(group, held, new))
    update.undo.append(lambda: document.update({PROGRAM: known or 0}))
    document[PROGRAM] = next((i for i in bpf.query(group) if i not in attached), 0)


def exchange(group: str | int, new: int, old: int) -> None:
    """Put program *new* in the place of *old*. Raises OSError; then *old* alone is there."""
    from nestrt.kernel import bpf

    try:
        bpf.replace(group, new, old)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A kernel before 5.6, or a program that was attached to be alone: both hold for a moment.
        bpf.attach(group, new)
        try:
            bpf.detach(group, old)
        except OSError:
            bpf.detach(group, new)
            raise
