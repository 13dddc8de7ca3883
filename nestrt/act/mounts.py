"""The mounts of the guest's first process: root, filesystems, covers, view.

Until LeaveHost it is chrooted to the guest's root, so every path and symlink of
the image is resolved in there by the kernel itself; what it needs of the old root
it reaches through a descriptor::

    base    a tmpfs, the root of the mount namespace for the time being
    ├ old   the launching level's root and mounts
    └ root  the guest's root filesystem: the process's "/"

The old root must not lie on top of the new one, as pivot_root(".", ".") leaves it:
from there ``..`` leads into what is mounted on "/" (path_resolution(7)), and
an image with a symlink to ``../srv`` would have the launcher make files in the old root.
"""

from __future__ import annotations

import errno
import os
import stat

from nestrt.act.process import Guest
from nestrt.errors import HostError, InputError
from nestrt.kernel import mount
from nestrt.plan import guest_steps as do
from nestrt.plan.request import STATE_DIR

# Where nestrt itself mounts: a symlink of the image there is refused, elsewhere it is followed inside the guest.
SYSTEM = ("/proc", "/sys", "/dev", "/run")


def open_target(path: str, directory: bool) -> int:
    """Open a mount point of the guest (O_PATH), made if it is missing."""
    system = any(path == top or path.startswith(f"{top}/") for top in SYSTEM)
    try:
        return open_or_make(path, directory, plain=system)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(
                "mount at",
                path,
                "the root filesystem has a symbolic link there",
                "use a root filesystem with a plain directory",
            ) from error
        raise


def open_or_make(path: str, directory: bool, plain: bool = False) -> int:
    """Open *path* in the root of this process (O_PATH); what is missing is made: directories, and an empty file
    unless *directory*.

    Symlinks resolve inside the root, also those that lead nowhere yet; with *plain* there must be none (ELOOP).
    Magic links of procfs, that lead to where a descriptor does, are never followed.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = mount.RESOLVE_IN_ROOT | (mount.RESOLVE_NO_SYMLINKS if plain else 0)
        return mount.open_in_root(root, path, os.O_PATH, resolve=resolve)
    except FileNotFoundError:
        return _walk(root, path, directory, plain)
    finally:
        os.close(root)


def open_parent(path: str) -> tuple[int, str]:
    """The directory (made if missing) that *path* is in, as a descriptor, and the last name of *path*."""
    parent, _, name = path.rpartition("/")
    return open_or_make(parent or "/", directory=True), name


def _walk(root: int, path: str, directory: bool, plain: bool) -> int:
    """open_or_make() name by name: each is looked up in a directory that is open, so a race changes nothing else."""
    names = [name for name in reversed(path.split("/")) if name not in ("", ".")]
    above = [os.dup(root)]
    links = 0
    try:
        while names:
            name = names.pop()
            if name == "..":
                if len(above) > 1:
                    os.close(above.pop())
                continue
            found = _open_or_make_name(above[-1], name, directory or bool(names))
            mode = os.fstat(found).st_mode
            if stat.S_ISLNK(mode):
                text = os.readlink("", dir_fd=found)
                os.close(found)
                links += 1
                if plain or links > 40:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if text.startswith("/"):
                    for fd in above[1:]:
                        os.close(fd)
                    del above[1:]
                names += [part for part in reversed(text.split("/")) if part not in ("", ".")]
            else:
                above.append(found)
        return above.pop()
    finally:
        for fd in above:
            os.close(fd)


def _open_or_make_name(parent: int, name: str, directory: bool) -> int:
    """Open *name* of the directory *parent*, itself if it is a symlink, made if it is missing."""
    for _ in range(100):
        try:
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            pass
        try:
            if directory:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                made = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, made, 0o644, dir_fd=parent))
        except FileExistsError:
            continue  # made meanwhile
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), name)


def put(tree: int, target: int) -> None:
    """Attach the detached mount *tree* on the open *target*; closes both."""
    try:
        mount.move_mount(tree, "", target)
    finally:
        os.close(tree)
        os.close(target)


def enter_root(guest: Guest, step: do.EnterRoot) -> None:
    mount.propagation("/", mount.MS_REC | mount.MS_PRIVATE)
    # Where the root filesystem lies on a shared mount, the copy is its peer: the host would see what is mounted in it.
    mount.set_propagation(guest.tree, mount.MS_REC | mount.MS_PRIVATE)
    guest.old_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mount.move_mount(mount.new_mount("tmpfs", "mode=755"), STATE_DIR)
    os.chdir(STATE_DIR)
    for name in ("old", "root"):
        os.mkdir(name, 0o755)
    mount.pivot_root(".", "old")
    guest.base = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if step.overlay:
        for name in ("lower", "upper", "work"):
            os.mkdir(f"/{name}", 0o755)
        mount.move_mount(guest.tree, "/lower")
        os.chmod("/upper", stat.S_IMODE(os.stat("/lower").st_mode))
        options = "lowerdir=/lower,upperdir=/upper,workdir=/work"
        if step.overlay_options:
            options += f",{step.overlay_options}"
        mount.move_mount(mount.new_mount("overlay", options), "/root")
    else:
        mount.move_mount(guest.tree, "/root")
    os.close(guest.tree)
    os.chroot("/root")
    os.chdir("/")


def mount_new(guest: Guest, step: do.MountNew) -> None:
    target = open_target(step.target, directory=True)
    put(mount.new_mount(step.fstype, step.options, step.attributes), target)


def bind(guest: Guest, step: do.Bind) -> None:
    tree = guest.binds.pop((step.source, step.target), None)
    if tree is None:
        return  # optional, and not there
    mount.set_propagation(tree, mount.MS_REC | mount.MS_PRIVATE)
    if step.attributes:
        mount.set_attributes(tree, step.attributes, recursive=step.recursive)
    put(tree, open_target(step.target, stat.S_ISDIR(os.fstat(tree).st_mode)))


def link(guest: Guest, step: do.Link) -> None:
    try:
        os.symlink(step.content, step.target)
    except FileExistsError:
        pass


def cover(guest: Guest, step: do.Cover) -> None:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for path in step.paths:
        try:
            target = mount.open_in_root(
                root, path, os.O_PATH, resolve=mount.RESOLVE_IN_ROOT | mount.RESOLVE_NO_SYMLINKS
            )
        except FileNotFoundError:
            continue
        # A mask must lie on the kernel's own file, not on what an image put in its way (CVE-2025-31133).
        if mount.filesystem_magic(target) not in (mount.PROC_SUPER_MAGIC, mount.SYSFS_MAGIC):
            raise HostError("mask", path, "it is not on procfs or sysfs")
        if step.read_only:
            tree = mount.open_tree("", False, target)
            mount.set_attributes(tree, mount.MOUNT_ATTR_RDONLY)
        elif stat.S_ISDIR(os.fstat(target).st_mode):
            tree = mount.new_mount("tmpfs", "mode=755,size=4k", mount.MOUNT_ATTR_RDONLY)
        else:
            tree = mount.open_tree("/dev/null")
        put(tree, target)
    os.close(root)


def lock_files(guest: Guest, step: do.LockFiles) -> None:
    for name in step.chosen(os.listdir(step.directory)):
        path = f"{step.directory}/{name}"
        tree = mount.open_tree(path)
        mount.set_attributes(tree, mount.MOUNT_ATTR_RDONLY)
        put(tree, os.open(path, os.O_PATH | os.O_CLOEXEC))


def leave_host(guest: Guest, step: do.LeaveHost) -> None:
    os.fchdir(guest.old_root)
    mount.umount(".", mount.MNT_DETACH)
    os.close(guest.old_root)
    # Out of the chroot and into the same directory as the root of the mount namespace (pivot_root(2), NOTES).
    os.fchdir(guest.base)
    os.chroot(".")
    os.chdir("root")
    mount.pivot_root(".", ".")
    mount.umount(".", mount.MNT_DETACH)
    os.close(guest.base)
    os.chdir("/")
    if step.read_only:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mount.set_attributes(root, mount.MOUNT_ATTR_RDONLY)
        os.close(root)
