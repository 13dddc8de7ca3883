"""What a bundle's config.json says, as values: OCI runtime-spec 1.0 to 1.2, the Linux part.

Fields have the specification's names in lower case with underscores. None, "" or ()
is what the document does not say; nothing here fills in a default, and nothing
decides whether this host can do it. Numbers are those of the document: bytes,
microseconds, shares. The resources stand in resources.py.

Source: github.com/opencontainers/runtime-spec: config.md, config-linux.md.
"""

from __future__ import annotations

from nestrt.oci.resources import Resources
from nestrt.record import record

# (inside, outside, count): containerID, hostID, size
Ranges = tuple[tuple[int, int, int], ...]


@record
class User:
    """Numbers as they are in the container; *umask* None where it is not said."""

    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


@record
class Capabilities:
    """Names (``CAP_CHOWN``) of the five sets, capabilities(7)."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


@record
class Rlimit:
    """*type* is ``RLIMIT_NOFILE`` and the like; 2**64-1 is RLIM_INFINITY."""

    type: str
    soft: int
    hard: int


@record
class Scheduler:
    """*policy* ``SCHED_OTHER``…, *flags* ``SCHED_FLAG_…``; times in ns: sched_setattr(2)."""

    policy: str
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: int = 0
    deadline: int = 0
    period: int = 0


@record
class IoPriority:
    """*io_class* ``IOPRIO_CLASS_BE``…, *priority* 0 to 7: ioprio_set(2)."""

    io_class: str
    priority: int = 0


@record
class Affinity:
    """CPU lists ("0-1,3"), "" where not said: before the move into the container's groups, and after."""

    initial: str = ""
    final: str = ""


@record
class Process:
    """*env* is ``KEY=value``; *console_size* is (height, width); *capabilities* None: none are said.

    *args* may be empty in a document that is only created for its namespaces. *warnings*
    are one line each, of what was read and is ignored.
    """

    args: tuple[str, ...] = ()
    cwd: str = "/"
    env: tuple[str, ...] = ()
    user: User = User()
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int | None = None
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    io_priority: IoPriority | None = None
    scheduler: Scheduler | None = None
    affinity: Affinity | None = None
    warnings: tuple[str, ...] = ()


@record
class Mount:
    """*uid_mappings*, *gid_mappings*: of an id-mapped mount of its own (not ``idmap`` among the options)."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: Ranges = ()
    gid_mappings: Ranges = ()


@record
class Namespace:
    """*type* pid, network, mount, ipc, uts, user, cgroup or time; *path* joins an existing one, "" makes one."""

    type: str
    path: str = ""


@record
class Device:
    """A node to make: *type* c, b, u or p; *file_mode* None means 0666."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@record
class Hook:
    """*path* is absolute; *args* with argv[0]; *env* is all that it gets; *timeout* in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


@record
class Hooks:
    """The six stages, in the order in which they run."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


@record
class SyscallArg:
    """*op* is ``SCMP_CMP_EQ``…; *value_two* only for SCMP_CMP_MASKED_EQ."""

    index: int
    value: int
    value_two: int
    op: str


@record
class Syscalls:
    """One entry of ``syscalls``: *action* ``SCMP_ACT_ALLOW``…; *errno_ret* None where not said."""

    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SyscallArg, ...] = ()


@record
class Seccomp:
    """*flags* None where not said (runc then sets none but its own default)."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[Syscalls, ...] = ()


@record
class IntelRdt:
    """resctrl: *clos_id*, schemata lines."""

    clos_id: str = ""
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    enable_cmt: bool = False
    enable_mbm: bool = False


@record
class Personality:
    """*domain* ``LINUX`` or ``LINUX32``."""

    domain: str
    flags: tuple[str, ...] = ()


@record
class Spec:
    """The whole document. *process* is None for a container that is never started.

    *sysctl* and *annotations* are sorted pairs, for a record must not change. *time_offsets* are
    (clock, seconds, nanoseconds) with clock "monotonic" or "boottime". *masked* and *readonly*
    are the paths; *rootfs_propagation* a word of mount(8), "" where not said. *warnings* are
    one line each, the process's among them.
    """

    version: str
    root_path: str = ""
    root_readonly: bool = False
    process: Process | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    annotations: tuple[tuple[str, str], ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: Ranges = ()
    gid_mappings: Ranges = ()
    time_offsets: tuple[tuple[str, int, int], ...] = ()
    devices: tuple[Device, ...] = ()
    cgroups_path: str = ""
    resources: Resources = Resources()
    sysctl: tuple[tuple[str, str], ...] = ()
    seccomp: Seccomp | None = None
    rootfs_propagation: str = ""
    masked: tuple[str, ...] = ()
    readonly: tuple[str, ...] = ()
    mount_label: str = ""
    intel_rdt: IntelRdt | None = None
    personality: Personality | None = None
    warnings: tuple[str, ...] = ()

    def namespace(self, type: str) -> Namespace | None:
        """The entry for that type, None where the container shares its runtime's."""
        for entry in self.namespaces:
            if entry.type == type:
                return entry
        return None

    def annotation(self, key: str) -> str | None:
        return dict(self.annotations).get(key)
