"""The steps of the guest's first process: from the clone to its program. Values in, Steps out.

It pivots first and mounts after: then every path, and every symlink that the
image may hold, resolves inside the guest's own root.
"""

from __future__ import annotations

from nestrt.controllers.table import canonical, limit_files
from nestrt.level import capabilities
from nestrt.plan.broker import GUEST_SOCKET, socket_path
from nestrt.plan.facts import Facts, Hierarchy
from nestrt.plan.groups import delegated, divisible
from nestrt.plan.guest_steps import (
    BecomeRoot,
    Bind,
    Cover,
    EnterRoot,
    Execute,
    ForbidHandles,
    LeaveHost,
    Link,
    LockFiles,
    LoopbackUp,
    MountNew,
    OpenTerminal,
    RedirectOutput,
    SetHostname,
    SetSysctl,
    TakeCgroupNamespace,
    TakeIdentity,
)
from nestrt.plan.ids import Identity, moved_first
from nestrt.plan.request import DEFAULT_PATH, Request
from nestrt.plan.steps import Step, Tell, Wait

# MOUNT_ATTR_* of mount_setattr(2)
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
ALL_NO = NOSUID | NODEV | NOEXEC

# What is asked for by these words is whatever the launching level has of it; a list of names is meant.
OPEN_SETS = (None, capabilities.ALL, capabilities.DEFAULT)

# Held in the initial user namespace, each opens files by handle: groups above the view, or namespaces.
HANDLE_CAPABILITIES = frozenset(("CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN"))

CGROUP_ROOT = "/sys/fs/cgroup"
NODES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
)
# The paths that runc, crun and podman make read-only or mask by default (oci-runtime spec, config-linux.md).
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)


def _filesystems(request: Request, identity: Identity) -> list[Step]:
    steps: list[Step] = [MountNew("proc", "/proc", ALL_NO)]
    if request.net == "host":
        # A new sysfs shows the network namespace of its mounter's user namespace only.
        steps.append(Bind("/sys", "/sys", RDONLY | ALL_NO))
    else:
        steps.append(MountNew("sysfs", "/sys", RDONLY | ALL_NO))
    steps += [
        MountNew("tmpfs", "/dev", NOSUID | NOEXEC, "mode=755,size=64k"),
        MountNew("devpts", "/dev/pts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        MountNew("tmpfs", "/dev/shm", NOSUID | NODEV | NOEXEC, "mode=1777"),
        MountNew("mqueue", "/dev/mqueue", ALL_NO),
        # A guest shares no runtime state, sockets above all, with the level that launches it.
        MountNew("tmpfs", "/run", NOSUID | NODEV, "mode=755"),
    ]
    steps += [Bind(f"/dev/{node}", f"/dev/{node}", NOSUID | NOEXEC, optional=True) for node in NODES]
    steps += [Bind(source, target, NOSUID | NOEXEC) for source, target in request.nodes]
    steps += [Link(target, content) for target, content in LINKS]
    for mount in request.mounts:
        read_only = RDONLY if mount.read_only else 0
        if mount.kind == "tmpfs":
            steps.append(MountNew("tmpfs", mount.target, NOSUID | NODEV | read_only, mount.options))
        else:
            steps.append(Bind(mount.source, mount.target, read_only, recursive=True))
    if request.served:
        source = socket_path(request.name, request.limit_group)
        optional = request.policy.broker != "required" and not request.embedded_broker
        steps.append(Bind(source, GUEST_SOCKET, NOSUID | NOEXEC, optional=optional))
    if request.net != "none":
        steps.append(Bind("/etc/resolv.conf", "/etc/resolv.conf", RDONLY, optional=True))
    return steps


def _in_view(request: Request, hierarchy: Hierarchy) -> bool:
    """Whether the guest's view shows *hierarchy*: as the host lays its own out, less what the policy leaves out."""
    if hierarchy.mountpoint != CGROUP_ROOT and not hierarchy.mountpoint.startswith(CGROUP_ROOT + "/"):
        return False
    if hierarchy.version == 2 or not hierarchy.controllers or request.policy.controllers is None:
        return True
    wanted = request.policy.controllers
    return any(canonical(name) in wanted for name in hierarchy.controllers)


def _locks(request: Request, hierarchy: Hierarchy, directory: str) -> LockFiles:
    names = divisible(request, hierarchy) if hierarchy.version == 2 else hierarchy.controllers
    return LockFiles(directory, limit_files(hierarchy.version, names))


def view_steps(request: Request, facts: Facts, identity: Identity) -> list[Step]:
    """The guest's mounts of its own hierarchies, and the covers over what it may not write there."""
    if request.policy.mount == "none":
        return [MountNew("tmpfs", CGROUP_ROOT, ALL_NO | RDONLY, "mode=755,size=64k")]
    shown = [h for h in facts.hierarchies if _in_view(request, h)]
    steps: list[Step] = []
    if any(h.mountpoint != CGROUP_ROOT for h in shown):
        steps.append(MountNew("tmpfs", CGROUP_ROOT, ALL_NO, "mode=755,size=1m"))
    for h in shown:
        # Where a policy delegates nothing of a v1 hierarchy, root of no user namespace could write all the same.
        fixed = 0 if request.policy.mount == "rw" and delegated(request, h) else RDONLY
        if h.version == 2:
            steps.append(MountNew("cgroup2", h.mountpoint, ALL_NO | fixed))
        else:
            steps.append(MountNew("cgroup", h.mountpoint, ALL_NO | fixed, h.options))
        steps += [Link(f"{CGROUP_ROOT}/{link}", h.name) for link in h.links]
        if not fixed and not identity.private:
            steps.append(_locks(request, h, h.mountpoint))
    return steps


def _leaf(request: Request, facts: Facts) -> bool:
    """Whether this guest may have no guests: then it gets no further cgroup namespace."""
    return min(request.policy.max_level, facts.level.max_level) <= facts.level.number + 1


def capability_names(request: Request, identity: Identity, leaf: bool) -> tuple[str, ...]:
    """The capabilities that the guest's program gets, by name."""
    asked = request.policy.capabilities
    if asked is None:
        asked = capabilities.DEFAULT if identity.root_uid is None else capabilities.ALL
    names = capabilities.NAMES if asked == capabilities.ALL else asked
    if leaf and identity.root_uid is not None:
        # It could raise the limit of cgroup namespaces in its own user namespace again.
        names = tuple(name for name in names if name != "CAP_SYS_RESOURCE")
    return names


def _environment(request: Request) -> tuple[tuple[str, str], ...]:
    values = {
        "PATH": DEFAULT_PATH,
        "HOME": "/root" if request.user in ("0", "root", "0:0") else "/",
        "container": "nestrt",
    }
    if request.terminal:
        values["TERM"] = "xterm"
    values.update(request.environment)
    return tuple(values.items())


def guest_steps(request: Request, facts: Facts, identity: Identity) -> list[Step]:
    """What the first process does between the clone and its program, in order."""
    policy = request.policy
    steps: list[Step] = [Wait("mapped")]
    grouped: list[Step] = [Wait("grouped"), *([TakeCgroupNamespace()] if policy.virtualize else []), Tell("rooted")]
    if moved_first(facts, identity):
        steps += [*grouped, Wait("placed")]
        grouped = []
    if identity.root_uid is not None:
        steps.append(BecomeRoot())
    # An overlay in a user namespace keeps its own attributes in user.*, which it may write.
    options = "userxattr" if identity.root_uid is not None or facts.in_userns else ""
    steps.append(EnterRoot(request.overlay, options))
    steps += _filesystems(request, identity)
    steps.append(SetHostname(request.hostname or request.name))
    if request.net != "host":
        steps.append(LoopbackUp())
    steps += grouped
    if policy.virtualize:
        steps += view_steps(request, facts, identity)
    else:
        steps.append(MountNew("tmpfs", CGROUP_ROOT, ALL_NO | RDONLY, "mode=755,size=64k"))
    leaf = _leaf(request, facts)
    if leaf and identity.root_uid is not None:
        steps.append(SetSysctl("user/max_cgroup_namespaces", "0"))
    # CAP_SYS_ADMIN takes covers off again, and where /proc is covered no guest's user namespace can mount its own.
    if policy.masked or (
        identity.root_uid is None and "CAP_SYS_ADMIN" not in capability_names(request, identity, leaf)
    ):
        steps += [Cover(READ_ONLY, read_only=True), Cover(MASKED, read_only=False)]
    if request.terminal:
        steps.append(OpenTerminal())
    steps.append(LeaveHost(request.read_only))
    asked = policy.capabilities
    names = capability_names(request, identity, leaf)
    if request.detach:
        steps.append(RedirectOutput())
    if identity.root_uid is None and not facts.in_userns and HANDLE_CAPABILITIES & set(names):
        steps.append(ForbidHandles())
    steps += [
        TakeIdentity(request.user, request.workdir, names, asked not in OPEN_SETS, policy.no_new_privs),
        Tell("ready"),
        Wait("go"),
        Execute(request.command, _environment(request)),
    ]
    return steps
