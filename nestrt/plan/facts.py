"""What a kernel and a level have: the values that the plan is made from.

``probe`` fills these; nothing here touches the kernel.
"""

from __future__ import annotations

from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.check import Has


@record
class Hierarchy:
    """One cgroup hierarchy as the launching level sees it.

    *name* is its directory below /sys/fs/cgroup: ``memory``, ``cpu,cpuacct``,
    ``unified``, and "" where the v2 tree is mounted at /sys/fs/cgroup itself.
    *controllers* are kernel names (v1 ``blkio``, v2 ``io``), a named v1
    hierarchy has none. *options* is the mount(2) data that mounts it again.
    *mountpoint* is where the launching level reaches its own root group, and
    *links* are the names that point to it (``cpu`` → ``cpu,cpuacct``).
    """

    name: str
    version: int
    controllers: tuple[str, ...]
    options: str
    mountpoint: str
    links: tuple[str, ...] = ()
    read_only: bool = False

    def path(self, group: str, file: str = "") -> str:
        """The absolute path of *group* ("/nestrt/web"), or of *file* in it."""
        return self.mountpoint + ("" if group == "/" else group) + ("/" + file if file else "")


@record
class Level:
    """What the launching level is: 0 and unlimited on a host, else as stamped on the guest root."""

    number: int = 0
    name: str = "host"
    max_level: int = 32
    renumbered: bool = False
    claimed: bool = False


@record
class IdRange:
    """A run of user and group ids: *inside* in the guest, *outside* at the launching level."""

    inside: int
    outside: int
    count: int


@record
class Facts:
    """All that the plan of a launch is made from, besides what was asked for.

    *mark* and *stamp* are the extended attributes that this level may write.
    *in_userns*: the launching level is itself in a user namespace. *own_uids* and
    *own_gids* are the ids that it has, as identity ranges; *free_ids* is a run
    of ids for one guest that nobody has, or None. *delegate* are the v2 files
    that may be handed over. *rootfs_uid* owns the root filesystem's directory.
    *can_shift* is False once the kernel has refused to id-map it.
    """

    hierarchies: tuple[Hierarchy, ...]
    primary: Hierarchy
    level: Level
    mark: str
    stamp: str
    in_userns: bool
    own_uids: tuple[IdRange, ...]
    own_gids: tuple[IdRange, ...]
    free_ids: IdRange | None
    delegate: tuple[str, ...]
    rootfs_uid: int
    has: Has
    can_shift: bool = True
