"""Carry out the steps of a bundle's root filesystem: HOST in the launcher, FIRST in the first process.

The first process is chrooted to the root filesystem, attached at the bundle's own
path in its mount namespace, so the kernel resolves every path of the image in there,
and no magic link of procfs is ever followed (open_or_make()). A mount is attached to
a descriptor: what the image's owner moves about meanwhile changes where it ends up
inside the root filesystem, and nothing else.
"""

from __future__ import annotations

import errno
import os
import stat

from nestrt.act import bundle_root, bundle_sources
from nestrt.act.copy_up import copy_up
from nestrt.act.mounts import open_or_make, open_parent
from nestrt.act.places import KINDS, check_place, existing, is_node
from nestrt.act.process import Guest
from nestrt.errors import InputError, NestrtError
from nestrt.kernel import mount
from nestrt.plan import mount_steps as do
from nestrt.plan.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# For mount(2), what fsconfig(2) takes as words.
_FLAGS = {"ro": 0x1, "sync": 0x10, "mand": 0x40, "dirsync": 0x80, "lazytime": 0x2000000}


def _attach(guest: Guest, name: str, path: str, tree: int, late: bool = False) -> None:
    """Attach the detached mount *tree* at *path*; with *late* it is kept to be made read-only."""
    directory = stat.S_ISDIR(os.fstat(tree).st_mode)
    target = open_or_make(path, directory)
    try:
        check_place(name, path, target, mount.filesystem_magic(tree))
        if directory != stat.S_ISDIR(os.fstat(target).st_mode):
            # A file does not cover a directory, nor a directory a file; move_mount(2) has EINVAL, mount(2) this.
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        mount.move_mount(tree, "", target)
    finally:
        os.close(target)
    if late:
        guest.binds["late", path] = tree
    else:
        os.close(tree)


# --- mounts ---


def _attach_source(guest: Guest, step: do.AttachSource) -> None:
    tree = guest.binds.pop(step.key, None)
    if tree is not None:
        _attach(guest, step.name, step.target, tree, step.late_read_only)


def _attach_old(guest: Guest, step: do.AttachOld) -> None:
    source = mount.open_in_root(guest.old_root, step.source, os.O_PATH)
    # In a user namespace the covers over a mount are locked to it: all of it is copied or nothing.
    tree = mount.open_tree("", True, source)
    os.close(source)
    if step.attr_set:
        mount.set_attributes(tree, step.attr_set)
    for kind in step.propagation:
        mount.set_propagation(tree, kind)
    _attach(guest, step.name, step.target, tree)


def _mount_type(guest: Guest, step: do.MountType) -> None:
    words = step.words
    target = -1 if step.plain else existing(step.target)
    if step.keep_mode and target >= 0:
        words = (f"mode={stat.S_IMODE(os.fstat(target).st_mode):04o}", *words)
    target = target if target >= 0 else open_or_make(step.target, True, plain=step.plain)
    try:
        if step.plain and not stat.S_ISDIR(os.fstat(target).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), step.target)
        try:
            if step.legacy:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            tree = mount.new_mount(step.fstype, words, step.attributes, step.source)
        except OSError as error:
            if step.fallback and error.errno in (errno.EPERM, errno.EBUSY):
                return _attach_old(
                    guest, do.AttachOld(step.name, step.fallback, step.target, step.attributes, step.propagation)
                )
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return _mount_by_name(guest, step, words, target, error)
        for kind in step.propagation:
            mount.set_propagation(tree, kind)
        if step.copy_up:
            said = any(word.startswith(("uid=", "gid=", "mode=")) for word in step.words)
            copy_up(target, tree, owner=not said)
        check_place(step.name, step.target, target, mount.filesystem_magic(tree))
        mount.move_mount(tree, "", target)
        if step.late_read_only:
            guest.binds["late", step.target] = tree
        else:
            os.close(tree)
    finally:
        os.close(target)
    return None


def _mount_by_name(guest: Guest, step: do.MountType, words: tuple[str, ...], target: int, refused: OSError) -> None:
    """mount(2), for what fsopen(2) does not know: on the directory that is the working directory."""
    flags = step.legacy
    for attribute, flag in ((0x1, 0x1), (0x2, 0x2), (0x4, 0x4), (0x8, 0x8), (0x10, 0x400), (0x80, 0x800)):
        flags |= flag if step.attributes & attribute else 0
    for word in words:
        flags |= _FLAGS.get(word, 0)
    data = ",".join(word for word in words if word not in _FLAGS)
    check_place(step.name, step.target, target, 0)
    os.fchdir(target)
    try:
        mount.mount(step.source, ".", step.fstype, flags, data)
    except OSError as error:
        raise (refused if not step.legacy else error) from error
    finally:
        os.chdir("/")
    top = existing(step.target)
    for kind in step.propagation:
        mount.set_propagation(top, kind)
    if step.late_read_only:
        guest.binds["late", step.target] = top
    else:
        os.close(top)


def _change_mount(guest: Guest, step: do.ChangeMount) -> None:
    target = existing(step.target)
    if target < 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), step.target)
    try:
        if step.words:
            os.fchdir(target)
            mount.mount("none", ".", "", mount.MS_REMOUNT | step.flags & ~mount.MS_REC, ",".join(step.words))
        if step.attr_set or step.attr_clear:
            mount.set_attributes(target, step.attr_set, mount.cleared(step.attr_clear, step.attr_set))
        if step.rec_set or step.rec_clear:
            mount.set_attributes(target, step.rec_set, step.rec_clear, recursive=True)
        for kind in step.propagation:
            mount.set_propagation(target, kind)
    finally:
        os.chdir("/")
        os.close(target)


# --- devices and links ---


def _make_node(guest: Guest, step: do.MakeNode) -> None:
    if step.key is not None:
        tree = guest.binds.pop(step.key, None)
        if tree is not None:
            _bind_node(step, tree)
        return
    parent, name = open_parent(step.path)
    before = os.umask(0)
    try:
        os.mknod(name, step.mode | KINDS[step.type], os.makedev(step.major, step.minor), dir_fd=parent)
        if step.uid or step.gid:
            os.chown(name, step.uid, step.gid, dir_fd=parent, follow_symlinks=False)
    except FileExistsError as error:
        if step.standard and not is_node(os.stat(name, dir_fd=parent, follow_symlinks=False), step):
            raise InputError(
                "make",
                f"device {step.path}",
                "the root filesystem has something else there",
                "mount a tmpfs at /dev, or take it out of the root filesystem",
            ) from error
    except PermissionError:
        source = mount.open_in_root(guest.old_root, step.path, os.O_PATH)
        if not is_node(os.fstat(source), step):
            os.close(source)
            raise
        tree = mount.open_tree("", False, source)
        os.close(source)
        _bind_node(step, tree)
    finally:
        os.umask(before)
        os.close(parent)


def _bind_node(step: do.MakeNode, tree: int) -> None:
    parent, name = open_parent(step.path)
    try:
        try:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))
        except FileExistsError:
            pass
        target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if stat.S_ISLNK(os.fstat(target).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), step.path)
            check_place(step.name, step.path, target, 0)
            mount.move_mount(tree, "", target)
        finally:
            os.close(target)
    finally:
        os.close(parent)
        os.close(tree)


def _make_link(guest: Guest, step: do.MakeLink) -> None:
    if step.only_if:
        there = existing(step.only_if)
        if there < 0:
            return
        os.close(there)
    parent, name = open_parent(step.path)
    try:
        if step.replace:
            try:
                os.unlink(name, dir_fd=parent)
            except FileNotFoundError:
                pass
        os.symlink(step.content, name, dir_fd=parent)
    except FileExistsError:
        pass
    finally:
        os.close(parent)


def refusal(step: Step, error: OSError) -> NestrtError:
    """The kernel's refusal of *step* as an error: the place in the document, and the errno's words in lower case."""
    name = str(getattr(step, "name", ""))
    verb, _, rest = step.describe().partition(" ")
    obj = rest + (f" ({name})" if name else "")
    reason = os.strerror(error.errno or 0).lower()
    if error.filename and str(error.filename) not in obj:
        reason = f"{error.filename}: {reason}"
    remedy = ""
    if isinstance(step, do.MountType) and error.errno == errno.EPERM and step.fstype in ("proc", "sysfs"):
        remedy = "in a user namespace it takes one whose own is not covered, and for sysfs a network namespace: bind it"
    elif error.errno == errno.ELOOP and isinstance(step, do.MountType) and step.plain:
        reason = f'filesystem "{step.fstype}" must be mounted on ordinary directory: {reason}'
        remedy = "the root filesystem has a symbolic link there"
    elif error.errno == errno.ELOOP:
        remedy = "the root filesystem has a symbolic link there"
    elif isinstance(step, do.EnterBundle) and error.errno == errno.EACCES:
        remedy = "let the container's root search the directories that lead to the bundle"
    return NestrtError(verb, obj, reason, remedy)


def explained(function: Callable[..., None]) -> Callable[..., None]:
    """*function* of a process and a step, with its OSError as refusal()."""

    def run(process: object, step: Step) -> None:
        try:
            function(process, step)
        except OSError as error:
            raise refusal(step, error) from error

    return run


FIRST: dict[type[Step], Callable[..., None]] = {
    kind: explained(function)
    for kind, function in (
        (do.EnterBundle, bundle_root.enter_bundle),
        (do.MountType, _mount_type),
        (do.AttachSource, _attach_source),
        (do.AttachOld, _attach_old),
        (do.ChangeMount, _change_mount),
        (do.MakeNode, _make_node),
        (do.MakeLink, _make_link),
        (do.LeaveBundle, bundle_root.leave_bundle),
        (do.SetRootPropagation, bundle_root.set_root_propagation),
        (do.ReopenNull, bundle_root.reopen_null),
        (do.LockMounts, bundle_root.lock_mounts),
        (do.HidePaths, bundle_root.hide_paths),
    )
}
HOST: dict[type[Step], Callable[..., None]] = {
    kind: explained(function)
    for kind, function in (
        (do.OpenBundleRoot, bundle_sources.open_bundle_root),
        (do.OpenSource, bundle_sources.open_source),
        (do.OpenNode, bundle_sources.open_node),
        (do.MapSource, bundle_sources.map_source),
        (do.CheckLabel, bundle_sources.check_label),
    )
}
