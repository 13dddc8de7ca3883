"""The root filesystem, mounts, devices and masks of a bundle, as steps. Spec in, Steps out; pure.

The launcher opens what needs its rights before the clone, as detached mounts; the
first process attaches them in its own mount namespace, chrooted to the root
filesystem, so that the kernel resolves every path and symlink of the image in there::

    launcher            first process
    before
    clone
    mapped              after the id map is written, before "mapped" is told
                        enter     as the first thing after "mapped", before it becomes root of a user
                                  namespace: id 0 of the launcher may search what leads to the bundle
                        mounts    in the cgroup namespace, if there is one; then the hooks
                                  createRuntime, createContainer (guest.old_root is the runtime's root)
                        leave     no path of the image is touched between pivot and detach
                        (terminal and /dev/console, working directory)
                        finish

Sources: runtime-spec, config.md "Mounts", config-linux.md; the order and the rules
where it is silent are runc's (libcontainer/rootfs_linux.go).
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.units import clean
from nestrt.plan import mount_steps as do
from nestrt.plan.bundle_cgroups import cgroup_steps
from nestrt.plan.bundle_devices import device_steps
from nestrt.plan.guest_steps import Bind
from nestrt.plan.host_steps import OpenBind
from nestrt.plan.mount_options import (
    ATTR_RDONLY,
    BIND_RESETS,
    MS_I_VERSION,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    PROPAGATION,
    Options,
    parse_options,
)
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestrt.oci.model import Mount, Spec
    from nestrt.plan.facts import Hierarchy
    from nestrt.plan.steps import Step

CGROUP_ROOT = "/sys/fs/cgroup"
# Filesystems of the kernel: read-only is the mount's, never the (shared) superblock's.
KERNEL_TYPES = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs", "securityfs", "bpf")
KERNEL_PLACES = {"/proc": "proc", "/sys": "sysfs"}
UNLABELLED = ("proc", "sysfs", "mqueue", "cgroup", "cgroup2")
# What lxcfs and its like put over single files of procfs; the list is runc's.
PROC_FILES = (
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
)


@record
class Context:
    """What the steps are made from besides the document.

    *root_path* and *bundle* are absolute paths of the launching level; *group* is the container's group in
    every hierarchy ("/machine/x"). *userns*: it has a user namespace; *in_userns*: the launching level is in
    one. *view* are the steps of a CONTAINER_LEVEL view, that take the place of every cgroup mount of the
    document, and of binds of the launching level's; None without a policy. *elsewhere* are hierarchies
    in which the container has no group: an ordinary user may make none there.
    """

    root_path: str
    bundle: str
    group: str
    hierarchies: tuple[Hierarchy, ...]
    userns: bool = False
    in_userns: bool = False
    no_pivot: bool = False
    view: tuple[Step, ...] | None = None
    elsewhere: tuple[Hierarchy, ...] = ()


@record
class BundleMounts:
    """Steps by their time, as drawn above."""

    before: tuple[Step, ...]
    mapped: tuple[Step, ...]
    enter: tuple[Step, ...]
    mounts: tuple[Step, ...]
    leave: tuple[Step, ...]
    finish: tuple[Step, ...]


def _below(path: str, top: str) -> bool:
    return path == top or path.startswith(top + "/")


def _root_propagation(spec: Spec) -> int:
    word = spec.rootfs_propagation
    if word and word not in PROPAGATION:
        raise InputError(
            "use", "linux.rootfsPropagation", f"{word!r} is no propagation type", f"use one of {', '.join(PROPAGATION)}"
        )
    return PROPAGATION.get(word, MS_SLAVE | MS_REC)


class _Maker:
    """Collects the steps of one bundle."""

    def __init__(self, spec: Spec, context: Context) -> None:
        self.spec = spec
        self.context = context
        self.before: list[Step] = []
        self.mapped: list[Step] = []
        self.mounts: list[Step] = []
        self.propagation = _root_propagation(spec)
        self.cgroupns = spec.namespace("cgroup") is not None
        self.viewed = False

    def source_propagation(self, options: Options) -> tuple[int, ...]:
        """A detached copy is still its source's peer: what of that stays is the root's choice, then the mount's."""
        if self.propagation & MS_SHARED:
            first: tuple[int, ...] = ()
        elif self.propagation & MS_SLAVE:
            first = (MS_SLAVE | MS_REC,)
        else:
            first = (MS_PRIVATE | MS_REC,)
        return first + options.propagation

    def mount(self, index: int, mount: Mount) -> None:
        name = f"mounts[{index}]"
        options = parse_options(mount.options)
        target = clean(mount.destination)
        # The text decides only what never can be; the first process looks at where the path leads.
        kind = "bind" if options.bind else mount.type
        if target == "/":
            raise InputError("mount", name, "its destination is the root filesystem itself", "use another destination")
        if _below(target, "/proc") and target != "/proc" and target not in PROC_FILES:
            raise InputError(
                "mount", name, f'"{target}" cannot be mounted because it is inside /proc', "use another destination"
            )
        if target == "/proc" and kind not in ("proc", "bind"):
            raise InputError(
                "mount", name, f'"{target}" cannot be mounted because it is not of type proc', "use type proc"
            )
        if (mount.uid_mappings or mount.gid_mappings or options.idmap) and not options.bind:
            raise InputError("id-map", name, "only bind mounts can be id-mapped", "leave the mappings out")
        if options.remount:
            self.change(name, target, options)
        elif options.bind:
            self.bind(name, mount, options, target)
        elif not kind:
            raise InputError("mount", name, "it has no type and is no bind", "give it a type")
        elif kind in ("cgroup", "cgroup2"):
            self.cgroup(name, mount, options, target)
        else:
            self.filesystem(name, mount, options, target)

    def change(self, name: str, target: str, options: Options) -> None:
        self.mounts.append(
            do.ChangeMount(
                name,
                target,
                options.attributes,
                options.clears,
                options.rec_set,
                options.rec_clear,
                options.propagation,
                () if options.bind else options.data,
                0 if options.bind else options.flags,
            )
        )

    def source(self, name: str, path: str, target: str, options: Options, recursive: bool) -> do.Key:
        """Have the launcher open *path* for a bind at *target*; returns its key."""
        key = (name, target)
        late = options.read_only and target == "/dev"
        kept = self.context.userns or not options.changes
        attr_set = options.attributes & ~(ATTR_RDONLY if late else 0)
        self.before.append(
            do.OpenSource(
                name,
                key,
                path,
                recursive,
                attr_set,
                options.clears,
                0 if kept else BIND_RESETS,
                self.context.userns,
                options.rec_set,
                options.rec_clear,
                self.source_propagation(options),
            )
        )
        return key

    def bind(self, name: str, mount: Mount, options: Options, target: str) -> None:
        path = mount.source if mount.source.startswith("/") else f"{self.context.bundle}/{mount.source}"
        recursive = options.recursive
        if self.context.view is not None:
            if _below(clean(path), CGROUP_ROOT):
                return self.view()
            # The whole tree of the launching level's cgroups lies below; the view comes on top.
            recursive = recursive and clean(path) not in ("/sys", "/sys/fs")
        key = self.source(name, path, target, options, recursive)
        if options.idmap or mount.uid_mappings or mount.gid_mappings:
            self.idmap(name, key, path, mount, options)
        late = options.read_only and target == "/dev"
        self.mounts.append(do.AttachSource(name, key, path, target, late))
        return None

    def idmap(self, name: str, key: do.Key, path: str, mount: Mount, options: Options) -> None:
        if bool(mount.uid_mappings) != bool(mount.gid_mappings):
            raise InputError("id-map", name, "it has only one of uidMappings and gidMappings", "give both or none")
        if not mount.uid_mappings and not self.context.userns:
            raise InputError(
                "id-map",
                name,
                "it has no mappings of its own, and the container has no user namespace",
                "give it uidMappings and gidMappings",
            )
        self.mapped.append(
            do.MapSource(name, key, path, options.idmap == "ridmap", mount.uid_mappings, mount.gid_mappings)
        )

    def label(self, kind: str) -> tuple[str, ...]:
        return (f"context={self.spec.mount_label}",) if self.spec.mount_label and kind not in UNLABELLED else ()

    def filesystem(self, name: str, mount: Mount, options: Options, target: str) -> None:
        late = options.read_only and (mount.type == "tmpfs" or target == "/dev")
        words = options.data + options.superblock + self.label(mount.type)
        if options.read_only and mount.type not in KERNEL_TYPES:
            words += ("ro",)
        self.mounts.append(
            do.MountType(
                name,
                mount.type,
                mount.source or mount.type,
                target,
                (options.attributes | options.rec_set) & ~(ATTR_RDONLY if late else 0),
                words,
                options.propagation,
                copy_up=options.copy_up and mount.type == "tmpfs",
                late_read_only=late,
                plain=mount.type in ("proc", "sysfs"),
                keep_mode=mount.type == "tmpfs",
                legacy=options.flags & MS_I_VERSION,
            )
        )

    def view(self) -> None:
        if not self.viewed and self.context.view:
            for step in self.context.view:
                if isinstance(step, Bind):
                    self.before.append(OpenBind(step.source, step.target, step.recursive, step.optional))
            self.mounts += self.context.view
        self.viewed = True

    def cgroup(self, name: str, mount: Mount, options: Options, target: str) -> None:
        if self.context.view is not None:
            self.view()
        else:
            context = self.context
            groups = dict.fromkeys(context.hierarchies, context.group or "/") | dict.fromkeys(context.elsewhere, "/")
            self.mounts += cgroup_steps(name, mount, options, target, groups, self.cgroupns)


def _sets_up_dev(mounts: Sequence[Mount]) -> bool:
    """Whether /dev is the container's own: one that is bound has all that it should have."""
    return not any(clean(mount.destination) == "/dev" and parse_options(mount.options).bind for mount in mounts)


def _kernel_places(spec: Spec) -> tuple[str, ...]:
    """Where the document has procfs and sysfs: there a mask must lie on the kernel's own file."""
    found: dict[str, bool] = {}
    for mount in spec.mounts:
        target = clean(mount.destination)
        if target in KERNEL_PLACES:
            bound = parse_options(mount.options).bind
            found[target] = clean(mount.source) == target if bound else mount.type == KERNEL_PLACES[target]
    return tuple(place for place, own in found.items() if own)


def _hide(spec: Spec) -> list[Step]:
    if not spec.masked and not spec.readonly:
        return []
    masked = tuple(dict.fromkeys(clean(path) for path in spec.masked))
    read_only = tuple(dict.fromkeys(clean(path) for path in spec.readonly))
    return [do.HidePaths(read_only, masked, _kernel_places(spec))]


def bundle_mounts(spec: Spec, context: Context) -> BundleMounts:
    """The steps for *spec*. Raises InputError naming the place in the document, HostError."""
    own = spec.namespace("mount") is not None
    if not own and (spec.mounts or spec.masked or spec.readonly or spec.rootfs_propagation or spec.root_readonly):
        raise InputError(
            "mount into",
            "the runtime's own mount namespace",
            "mounts, maskedPaths, readonlyPaths, rootfsPropagation and root.readonly need one of the container's",
            "add a mount namespace to linux.namespaces",
        )
    maker = _Maker(spec, context)
    for index, mount in enumerate(spec.mounts):
        maker.mount(index, mount)
    if context.view is not None and any(clean(mount.destination) == "/sys" for mount in spec.mounts):
        maker.view()  # a policy's view, where the document (containerd's by default) has no cgroup mount
    setup = _sets_up_dev(spec.mounts)
    # mknod(2) is for the initial user namespace.
    bound = context.userns or context.in_userns
    if setup and (own or not bound):
        nodes, made = device_steps(spec.devices, bound)
        maker.before += nodes
        maker.mounts += made
    propagation = maker.propagation
    hidden = _hide(spec)
    before = maker.before
    if own:
        kept = MS_SLAVE if propagation & MS_SLAVE else MS_PRIVATE
        before.insert(0, do.OpenBundleRoot(context.root_path, kept | MS_REC))
    if spec.mount_label:
        before.append(do.CheckLabel(spec.mount_label))
    if spec.masked:
        before.append(do.OpenNode("linux.maskedPaths", do.NULL, "/dev/null", "c", 1, 3))
    how = "chroot" if not own else "move" if context.no_pivot else "pivot"
    leave: list[Step] = [do.LeaveBundle(context.root_path, how)]
    if own and propagation & (MS_SHARED | MS_UNBINDABLE):
        leave.append(do.SetRootPropagation(propagation))
    finish: list[Step] = [do.ReopenNull()] if setup else []
    late = any(isinstance(s, (do.MountType, do.AttachSource)) and s.late_read_only for s in maker.mounts)
    if own and (late or spec.root_readonly):
        finish.append(do.LockMounts(spec.root_readonly))
    inside = MS_PRIVATE if propagation & (MS_PRIVATE | MS_UNBINDABLE) else MS_SLAVE
    enter = do.EnterBundle(context.root_path, own, inside | MS_REC)
    return BundleMounts(
        tuple(before), tuple(maker.mapped), (enter,), tuple(maker.mounts), tuple(leave), (*finish, *hidden)
    )
