"""The launcher's part of a bundle's mounts: detached copies of what is bound, with their attributes."""

from __future__ import annotations

import errno
import os

from nestrt.act.places import is_node
from nestrt.errors import HostError, InputError
from nestrt.kernel import id_maps, mount, mountinfo, namespaces
from nestrt.plan import mount_steps as do

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.act.launch import Launcher

SELINUX = "/sys/fs/selinux/enforce"
# What the kernel locks for a user namespace (MNT_LOCK_*), by the words of mountinfo.
_WORDS = {
    "ro": mount.MOUNT_ATTR_RDONLY,
    "nosuid": mount.MOUNT_ATTR_NOSUID,
    "nodev": mount.MOUNT_ATTR_NODEV,
    "noexec": mount.MOUNT_ATTR_NOEXEC,
}
LOCKABLE = sum(_WORDS.values())


def open_bundle_root(launcher: Launcher, step: do.OpenBundleRoot) -> None:
    launcher.tree = mount.open_tree(step.path, True)
    mount.set_propagation(launcher.tree, step.propagation)


def _locked(step: do.OpenSource, words: list[str], path: str) -> InputError:
    return InputError(
        "clear",
        f"{', '.join(words)} of {path} ({step.name})",
        "operation not permitted: they are locked, for the container has a user namespace",
        "leave the option out",
    )


def _clear_strictly(step: do.OpenSource, tree: int) -> int:
    """What may be cleared of *step*.attr_clear: nothing that the source has, as if the container mounted it itself."""
    have = mount.attributes_of(tree)
    clear = step.attr_clear & LOCKABLE & have
    if clear == mount.MOUNT_ATTR_RDONLY:
        # A read-only filesystem looks like a read-only mount, and stays so: asked of the copy, that is ours alone.
        mount.set_attributes(tree, 0, mount.MOUNT_ATTR_RDONLY)
        if mount.attributes_of(tree) & mount.MOUNT_ATTR_RDONLY:
            clear = 0
    if clear:
        raise _locked(step, [word for word, flag in _WORDS.items() if clear & flag], step.path)
    return step.attr_clear


def _check_below(step: do.OpenSource) -> None:
    """The same for what *step*.rec_clear takes from the mounts below the source."""
    if not step.rec_clear & LOCKABLE:
        return
    top = os.path.realpath(step.path)
    for found in mountinfo.read_mounts():
        # The mount that the source is in has been seen to where it is a flag of the bind itself.
        inside = found.target == top or found.target.startswith(f"{top}/")
        words = [word for word, flag in _WORDS.items() if step.rec_clear & flag and word in found.options]
        if inside and words:
            raise _locked(step, words, found.target)


def _set_attributes(step: do.OpenSource, tree: int) -> None:
    clear = step.attr_clear
    if step.strict:
        clear = _clear_strictly(step, tree)
        _check_below(step)
        if mount.attributes_of(tree) & step.rec_clear & LOCKABLE:
            raise _locked(step, ["flags"], step.path)
    wanted = mount.cleared(clear | step.resets, step.attr_set)
    if step.attr_set or wanted:
        try:
            mount.set_attributes(tree, step.attr_set, wanted)
        except OSError as error:
            if error.errno != errno.EPERM or not step.resets:
                raise
            # Locked where this level is itself in a user namespace: they stay, unless the document clears them.
            mount.set_attributes(tree, step.attr_set, mount.cleared(clear, step.attr_set))
    if step.rec_set or step.rec_clear:
        mount.set_attributes(tree, step.rec_set, step.rec_clear, recursive=True)


def open_source(launcher: Launcher, step: do.OpenSource) -> None:
    try:
        tree = mount.open_tree(step.path, step.recursive)
    except FileNotFoundError:
        if step.optional:
            return
        raise
    launcher.binds[step.key] = tree
    _set_attributes(step, tree)
    for kind in step.propagation:
        mount.set_propagation(tree, kind)


def open_node(launcher: Launcher, step: do.OpenNode) -> None:
    try:
        tree = mount.open_tree(step.path)
    except FileNotFoundError:
        if step.optional:
            return
        raise
    launcher.binds[step.key] = tree
    if not is_node(os.fstat(tree), step):
        raise HostError(
            "open",
            f"device {step.path} ({step.name})",
            f"it is not {step.type} {step.major}:{step.minor} here",
            "name a device node of this level by its own path: in a user namespace none can be made",
        )
    mount.set_propagation(tree, mount.MS_PRIVATE)


def _user_namespace(uids: do.Ranges, gids: do.Ranges) -> int:
    """A descriptor of a new user namespace with these maps; a process that does nothing makes it."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = namespaces.clone(namespaces.CLONE_NEWUSER)
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        id_maps.write_id_map(pid, "uid_map", uids)
        id_maps.write_id_map(pid, "gid_map", gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writer)
        os.waitpid(pid, 0)
        os.close(pidfd)


def map_source(launcher: Launcher, step: do.MapSource) -> None:
    if step.uids:
        userns = _user_namespace(step.uids, step.gids)
    else:
        userns = os.open(f"/proc/{launcher.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        mount.set_attributes(launcher.binds[step.key], mount.MOUNT_ATTR_IDMAP, recursive=step.recursive, userns=userns)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise HostError(
            "id-map",
            f"{step.path} ({step.name})",
            f"its filesystem cannot be id-mapped ({reason})",
            "take a directory on ext4, xfs, btrfs or tmpfs, or leave idmap and the mappings out",
        ) from error
    finally:
        os.close(userns)


def check_label(launcher: Launcher, step: do.CheckLabel) -> None:
    if not os.path.exists(SELINUX):
        raise HostError("use", "linux.mountLabel", "SELinux is not on here", "leave mountLabel out")
