"""What a launch was asked for, parsed and checked in form; and where things stand by rule."""

from __future__ import annotations

from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.policy import Policy

# Every level keeps its guests below one group of its own root.
PARENT = "/nestrt"
GUEST_ROOT = "guest"
FIRST_GROUP = "init"
STATE_DIR = "/run/nestrt"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@record
class MountRequest:
    """One ``--mount``: *kind* is bind or tmpfs; *options* is mount(2) data for tmpfs ("size=64M").

    *idmap*: what the launching level's ids own below a bind the guest's same ids own (mount_setattr(2)).
    """

    kind: str
    source: str
    target: str
    read_only: bool = False
    options: str = ""
    idmap: bool = False


@record
class Request:
    """A guest to launch. *policy* has the limits, flags and file merged; *nodes* pairs device nodes
    of the launching level with their places in the guest; *log* takes a detached guest's output.
    *cgroup* is the limit group where somebody else, an engine, says which one it is; *origin* are more
    (key, value) for its mark, of a guest that another runtime starts. *embedded_broker*: the launcher
    brings a broker."""

    name: str
    rootfs: str
    command: tuple[str, ...]
    policy: Policy
    environment: tuple[tuple[str, str], ...] = ()
    workdir: str = "/"
    user: str = "0"
    hostname: str = ""
    mounts: tuple[MountRequest, ...] = ()
    nodes: tuple[tuple[str, str], ...] = ()
    read_only: bool = False
    overlay: bool = False
    net: str = "none"
    terminal: bool = False
    detach: bool = False
    remove: bool = False
    log: str = "/dev/null"
    cgroup: str = ""
    origin: tuple[tuple[str, object], ...] = ()
    embedded_broker: bool = False

    @property
    def served(self) -> bool:
        """Whether a broker is to serve the guest."""
        return self.policy.virtualize and (self.embedded_broker or self.policy.broker != "none")

    @property
    def limit_group(self) -> str:
        """The limit group's path in every hierarchy."""
        return self.cgroup or f"{PARENT}/{self.name}"

    @property
    def guest_root(self) -> str:
        """The guest root's path in every hierarchy. A guest that is not virtualized stands there too:
        root without a user namespace could make its own namespaces, with their root where it stands,
        and write what stands there."""
        return f"{self.limit_group}/{GUEST_ROOT}"

    @property
    def first_group(self) -> str:
        """Where the first process starts."""
        if not self.policy.virtualize or self.policy.start_in == ".":
            return self.guest_root
        return f"{self.guest_root}/{self.policy.start_in}"


# Held shared while a launch makes its groups: the group that all guests share must not be removed meanwhile.
PARENT_LOCK = f"{STATE_DIR}/parent.lock"


def state_file(name: str) -> str:
    """The runtime's state file of a guest: its name, generation and parent group, locked by its launcher."""
    return f"{STATE_DIR}/guests/{name}"
