"""The steps of the launcher: groups, limits, marks, ids, the clone, and what only it may do for the first process."""

from __future__ import annotations

from nestrt.plan.facts import Hierarchy
from nestrt.plan.steps import Step
from nestrt.record import record

Ranges = tuple[tuple[int, int, int], ...]


@record
class Reserve(Step):
    """Take the guest's name: state file *path* with *content*, locked while the launcher lives."""

    path: str
    content: str

    def describe(self) -> str:
        return f"reserve the name: {self.path}"


@record
class ReserveIds(Step):
    """Take a range of user and group ids for the guest: *path* is a symlink to *name*."""

    path: str
    name: str

    def describe(self) -> str:
        return f"reserve the ids {self.path.rpartition('/')[2]} for {self.name}"


@record
class MakeGroup(Step):
    """Make *group* in one hierarchy; *exist_ok* for the parent that guests share."""

    hierarchy: Hierarchy
    group: str
    exist_ok: bool = False

    def describe(self) -> str:
        return f"make group {self.hierarchy.path(self.group)}"


@record
class SetFile(Step):
    """Write *value* to a file of a group; with *optional*, a file that is not there is passed over.

    *field* is where a document asks for it ("linux.resources.memory.limit"), for errors; *unless*: where the
    group has that file, leave this.
    """

    hierarchy: Hierarchy
    group: str
    file: str
    value: str
    optional: bool = False
    field: str = ""
    unless: str = ""

    def describe(self) -> str:
        return f"write {self.value!r} to {self.hierarchy.path(self.group, self.file)}"


@record
class EnableControllers(Step):
    """v2: enable for the children of *group* the controllers that are not yet.

    *lenient*: where processes stand in the group, leave it; what needs a controller then fails by itself.
    """

    hierarchy: Hierarchy
    group: str
    controllers: tuple[str, ...]
    lenient: bool = False

    def describe(self) -> str:
        return f"enable {' '.join(self.controllers)} below {self.hierarchy.path(self.group)}"


@record
class DisableControllers(Step):
    """v2: take *controllers* away from the children of *group*, which have not given them on."""

    hierarchy: Hierarchy
    group: str
    controllers: tuple[str, ...]

    def describe(self) -> str:
        return f"disable {' '.join(self.controllers)} below {self.hierarchy.path(self.group)}"


@record
class FillCpuset(Step):
    """v1: give an empty cpuset its parent's CPUs and memory nodes, and let its children *inherit*."""

    hierarchy: Hierarchy
    group: str
    inherit: bool = True

    def describe(self) -> str:
        text = f"fill the cpuset {self.hierarchy.path(self.group)} from its parent"
        return f"{text}; children inherit" if self.inherit else text


@record
class SetMark(Step):
    """Write the mark or the stamp *value* (JSON) as an extended attribute of a group."""

    hierarchy: Hierarchy
    group: str
    attribute: str
    value: str

    def describe(self) -> str:
        return f"set {self.attribute} on {self.hierarchy.path(self.group)}: {self.value}"


@record
class AttachDeviceProgram(Step):
    """v2: attach a device program (eBPF instructions) that allows *rules* and nothing else."""

    hierarchy: Hierarchy
    group: str
    rules: tuple[str, ...]
    code: bytes

    def describe(self) -> str:
        return f"attach to {self.hierarchy.path(self.group)} a device program that allows: {', '.join(self.rules)}"


@record
class Delegate(Step):
    """Give a group's directory and delegatable *files* to *uid*:*gid* (ids of the launching level)."""

    hierarchy: Hierarchy
    group: str
    files: tuple[str, ...]
    uid: int
    gid: int

    def describe(self) -> str:
        return f"delegate {self.hierarchy.path(self.group)} to {self.uid}:{self.gid} ({' '.join(self.files)})"


@record
class AskBroker(Step):
    """Have the level's broker listen for the guest: *needed*, or else only if there is one. *embedded*: start one
    for this guest alone, which ends with the launcher."""

    name: str
    group: str
    needed: bool
    embedded: bool = False

    def describe(self) -> str:
        who = "start a broker of its own to" if self.embedded else "have the broker"
        return f"{who} listen for {self.name}{'' if self.needed or self.embedded else ', if there is one'}"


@record
class OpenRoot(Step):
    """Take a detached copy of the mount of the root filesystem at *path*."""

    path: str
    recursive: bool

    def describe(self) -> str:
        return f"open the root filesystem {self.path}{' with its mounts' if self.recursive else ''}"


@record
class OpenBind(Step):
    """Take a detached copy of the mount at *path*, for a Bind of the guest: by the launcher's rights,
    for the guest's root may not search the directories that lead there."""

    path: str
    target: str
    recursive: bool
    optional: bool

    def describe(self) -> str:
        return f"open {self.path} to bind it at {self.target}"


@record
class OpenLog(Step):
    """Open *path*, by the launcher's rights, for what a detached guest writes."""

    path: str

    def describe(self) -> str:
        return f"open {self.path} for the guest's output"


@record
class Clone(Step):
    """Make the guest's first process, in new namespaces (*flags*: CLONE_NEW*)."""

    flags: int
    names: str

    def describe(self) -> str:
        return f"clone the first process into new namespaces: {self.names}"


@record
class MapIds(Step):
    """Write the user namespace's uid_map and gid_map."""

    uids: Ranges
    gids: Ranges

    def describe(self) -> str:
        return "map ids: uids " + _ranges(self.uids) + ", gids " + _ranges(self.gids)


@record
class ShiftRoot(Step):
    """Id-map the detached root filesystem by the guest's user namespace."""

    path: str

    def describe(self) -> str:
        return f"id-map the mount of {self.path}"


@record
class ShiftBind(Step):
    """Id-map the detached mount that OpenBind took for *target* by the guest's user namespace."""

    path: str
    target: str

    def describe(self) -> str:
        return f"id-map the mount of {self.path} for {self.target}"


@record
class Attach(Step):
    """Move the first process into *group* in every hierarchy."""

    hierarchies: tuple[Hierarchy, ...]
    group: str

    def describe(self) -> str:
        return f"move the first process to {self.group} in {len(self.hierarchies)} hierarchies"


@record
class Connect(Step):
    """Give the guest's network namespace an address on nestrt's bridge."""

    name: str

    def describe(self) -> str:
        return f"connect {self.name} to the bridge"


@record
class AwaitProgram(Step):
    """Wait until the first process has become the *program*, or has told why it could not."""

    program: str

    def describe(self) -> str:
        return f"wait until {self.program} runs"


@record
class MarkRunning(Step):
    """Add the first process's pid and start time to the mark *value*, and that it runs."""

    hierarchy: Hierarchy
    group: str
    attribute: str
    value: str

    def describe(self) -> str:
        return f"mark {self.hierarchy.path(self.group)} as running"


def _ranges(ranges: Ranges) -> str:
    return ",".join(f"{inside}:{outside}:{count}" for inside, outside, count in ranges)
