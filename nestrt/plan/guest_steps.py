"""The steps of the guest's first process, from the clone to its program."""

from __future__ import annotations

from nestrt.controllers.names import expand
from nestrt.plan.steps import Step
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


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
    """Attach *source* of the launching level, which the launcher opened, at *target* in the guest."""

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

    def chosen(self, listing: Iterable[str]) -> tuple[str, ...]:
        """Which files of the directory's *listing* are meant."""
        return expand(self.patterns, listing)

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
    """Open a terminal in the guest's own devpts, as /dev/console too, and send its master to the launcher."""

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
class ForbidHandles(Step):
    """Make open_by_handle_at(2) fail. With CAP_DAC_READ_SEARCH or, for namespaces (Linux 6.18), CAP_SYS_ADMIN
    of the initial user namespace a handle opens any group, the limit group above the view too."""

    def describe(self) -> str:
        return "forbid to open files by handle"


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
