"""Steps: a launch as ordered values, printed by ``--dry-run``, carried out by ``act``.

Each says in which process it happens: ``host`` is the launcher, ``guest`` the
guest's first process before its program runs. Both lists run in order; where
one has to wait for the other, a Tell on one side meets a Wait on the other.
"""

from __future__ import annotations

from nestrt.plan.facts import Hierarchy
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.devices import DeviceRule

Ranges = tuple[tuple[int, int, int], ...]


@record
class Step:
    """One thing to do. ``describe`` is one line, without a leading verb's subject."""

    def describe(self) -> str:
        raise NotImplementedError(type(self).__name__)


# --- the launcher's ---


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
    """Write *value* to a file of a group; with *optional*, a file that is not there is passed over."""

    hierarchy: Hierarchy
    group: str
    file: str
    value: str
    optional: bool = False

    def describe(self) -> str:
        return f"write {self.value!r} to {self.hierarchy.path(self.group, self.file)}"


@record
class EnableControllers(Step):
    """v2: enable for the children of *group* the controllers that are not yet."""

    hierarchy: Hierarchy
    group: str
    controllers: tuple[str, ...]

    def describe(self) -> str:
        return f"enable {' '.join(self.controllers)} below {self.hierarchy.path(self.group)}"


@record
class FillCpuset(Step):
    """v1: give an empty cpuset its parent's CPUs and memory nodes, and let its children inherit."""

    hierarchy: Hierarchy
    group: str

    def describe(self) -> str:
        return f"fill the cpuset {self.hierarchy.path(self.group)} from its parent; children inherit"


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
    """v2: attach a device program that allows *rules* and nothing else."""

    hierarchy: Hierarchy
    group: str
    rules: tuple[DeviceRule, ...]

    def describe(self) -> str:
        return f"attach a device program of {len(self.rules)} rules to {self.hierarchy.path(self.group)}"


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
class OpenRoot(Step):
    """Take a detached copy of the mount of the root filesystem at *path*."""

    path: str
    recursive: bool

    def describe(self) -> str:
        return f"open the root filesystem {self.path}{' with its mounts' if self.recursive else ''}"


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
class Tell(Step):
    """Let the other process go on past its Wait of the same *word*."""

    word: str

    def describe(self) -> str:
        return f"tell the other process: {self.word}"


@record
class Wait(Step):
    """Wait for the other process's Tell."""

    word: str

    def describe(self) -> str:
        return f"wait for: {self.word}"


@record
class MarkRunning(Step):
    """Add the first process's pid and start time to the mark *value*, and that it runs."""

    hierarchy: Hierarchy
    group: str
    attribute: str
    value: str

    def describe(self) -> str:
        return f"mark {self.hierarchy.path(self.group)} as running"


# --- the guest's first process's ---


@record
class BecomeRoot(Step):
    """Take id 0 of the user namespace, without supplementary groups."""

    def describe(self) -> str:
        return "become root of the user namespace"


@record
class EnterRoot(Step):
    """Attach the root filesystem and pivot to it; the old root stays behind until LeaveHost."""

    overlay: bool
    overlay_options: str = ""

    def describe(self) -> str:
        return "pivot to the root filesystem" + (" under a throw-away overlay" if self.overlay else "")


@record
class MountNew(Step):
    """Mount a new filesystem at *target* in the guest (made if missing)."""

    fstype: str
    target: str
    attributes: int = 0
    options: str = ""

    def describe(self) -> str:
        return f"mount {self.fstype} at {self.target}" + (f" ({self.options})" if self.options else "")


@record
class Bind(Step):
    """Bind-mount *source* of the launching level at *target* in the guest."""

    source: str
    target: str
    attributes: int = 0
    recursive: bool = False
    optional: bool = False

    def describe(self) -> str:
        return f"bind {self.source} at {self.target}" + (" read-only" if self.attributes & 1 else "")


@record
class Link(Step):
    """Make a symlink *target* → *content* in the guest, if nothing is there."""

    target: str
    content: str

    def describe(self) -> str:
        return f"link {self.target} to {self.content}"


@record
class Cover(Step):
    """Hide *paths* of the guest where they exist: *read_only* by themselves, else by an empty file or directory."""

    paths: tuple[str, ...]
    read_only: bool

    def describe(self) -> str:
        return ("make read-only: " if self.read_only else "mask: ") + " ".join(self.paths)


@record
class LockFiles(Step):
    """Cover the limit files (*patterns*) of a view's root with read-only bind mounts of themselves."""

    directory: str
    patterns: tuple[str, ...]

    def describe(self) -> str:
        return f"lock in {self.directory}: {' '.join(self.patterns)}"


@record
class TakeCgroupNamespace(Step):
    """Make a cgroup namespace: its root is the guest root, where the process is now."""

    def describe(self) -> str:
        return "take the cgroup namespace"


@record
class SetHostname(Step):
    hostname: str

    def describe(self) -> str:
        return f"set the hostname {self.hostname}"


@record
class LoopbackUp(Step):
    def describe(self) -> str:
        return "bring the loopback interface up"


@record
class SetSysctl(Step):
    """Write *value* to /proc/sys/*path* of the guest, if it is there."""

    path: str
    value: str

    def describe(self) -> str:
        return f"set /proc/sys/{self.path} to {self.value}"


@record
class OpenTerminal(Step):
    """Open a terminal in the guest's own devpts, /dev/console too, and send its master to the launcher."""

    def describe(self) -> str:
        return "open a terminal and hand its master to the launcher"


@record
class RedirectOutput(Step):
    """Read from /dev/null and write to the log that the launcher opened: nobody relays for a detached guest."""

    def describe(self) -> str:
        return "read from /dev/null, write to the log"


@record
class LeaveHost(Step):
    """Detach the old root, so that nothing of the launching level's mounts is left; then lock the root if asked."""

    read_only: bool

    def describe(self) -> str:
        return "detach the old root" + ("; make the root filesystem read-only" if self.read_only else "")


@record
class TakeIdentity(Step):
    """Become *user* ("uid[:gid]" or names of the guest's /etc/passwd) with *capabilities*, in *workdir*.

    *exactly*: a capability that the launching level lacks is an error, not left out.
    """

    user: str
    workdir: str
    capabilities: tuple[str, ...]
    exactly: bool
    no_new_privs: bool

    def describe(self) -> str:
        caps = f"{len(self.capabilities)} capabilities" + (", no_new_privs" if self.no_new_privs else "")
        return f"become {self.user} with {caps}, in {self.workdir}"


@record
class Execute(Step):
    """Become the program, found by the guest's own PATH."""

    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        return "execute " + " ".join(self.command)


@record
class Plan:
    """What a launch will do: the launcher's steps and the first process's."""

    name: str
    host: tuple[Step, ...]
    guest: tuple[Step, ...]

    def lines(self) -> list[str]:
        """The plan for ``--dry-run``, one line a step."""
        return [f"host   {step.describe()}" for step in self.host] + [f"guest  {step.describe()}" for step in self.guest]


def _ranges(ranges: Ranges) -> str:
    return ",".join(f"{inside}:{outside}:{count}" for inside, outside, count in ranges)
