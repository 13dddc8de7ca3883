"""The first process's root: attached and entered at first, left for good at last, and what of it is then hidden.

    old root ── … ── bundle/rootfs    the image, attached here: hooks find it where the host has it,
                                      and the first process is chrooted to it
    pivot:  the image is "/", the old root is detached

Between pivot and detach no path of the image is looked up: the old root lies on the
new one then, and ``..`` of the image would lead to it (path_resolution(7)).
"""

from __future__ import annotations

import errno
import os
import stat
import time

from nestrt.act.places import PLACE, PLAIN, look
from nestrt.act.process import Guest
from nestrt.errors import HostError
from nestrt.kernel import mount, mountinfo
from nestrt.plan import mount_steps as do

MAGICS = {"/proc": mount.PROC_SUPER_MAGIC, "/sys": mount.SYSFS_MAGIC}


def enter_bundle(guest: Guest, step: do.EnterBundle) -> None:
    guest.old_root = os.open("/", PLACE)
    if not step.own:
        os.chroot(step.path)
        os.chdir("/")
        return
    # Neither what is mounted in here nor what is detached may reach the runtime's own mounts.
    mount.propagation("/", step.propagation)
    mount.move_mount(guest.tree, step.path)
    os.fchdir(guest.tree)
    os.chroot(".")
    os.chdir("/")
    os.close(guest.tree)


def leave_bundle(guest: Guest, step: do.LeaveBundle) -> None:
    if step.how != "chroot":
        root = os.open("/", PLACE)
        os.fchdir(guest.old_root)
        os.chroot(".")
        if step.how == "pivot":
            _pivot(guest, root)
        else:
            _move(guest, root, step.path)
        if not os.path.samestat(os.stat("/"), os.fstat(root)):
            raise HostError("enter", "the root filesystem", "another directory is the root after the pivot")
        os.close(root)
    os.chdir("/")
    os.close(guest.old_root)
    guest.old_root = -1


def _pivot(guest: Guest, root: int) -> None:
    os.fchdir(root)
    try:
        mount.pivot_root(".", ".")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise HostError(
            "pivot to",
            "the root filesystem",
            "the runtime's own root is no mount (a ramdisk, or a chroot)",
            "use --no-pivot",
        ) from error
    os.fchdir(guest.old_root)
    # A hook may have made it shared again; then the host would lose its mounts with the next line.
    mount.propagation(".", mount.MS_REC | mount.MS_SLAVE)
    mount.umount(".", mount.MNT_DETACH)


def _move(guest: Guest, root: int, path: str) -> None:
    """Without pivot_root(2) the old mounts stay in the namespace. Where a whole procfs or sysfs is among them
    the kernel lets anybody there mount another that is not masked: they go, or are covered."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = mountinfo.parse(file.read())
    path = os.path.realpath(path)
    for found in reversed(mounts):
        inside = found.target == path or found.target.startswith(f"{path}/")
        if found.root != "/" or found.fstype not in ("proc", "sysfs") or inside:
            continue
        try:
            mount.propagation(found.target, mount.MS_REC | mount.MS_SLAVE)
            mount.umount(found.target, mount.MNT_DETACH)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            mount.mount("tmpfs", found.target, "tmpfs", 0)
    mount.move_mount(root, "/")
    os.fchdir(root)
    os.chroot(".")


def set_root_propagation(guest: Guest, step: do.SetRootPropagation) -> None:
    mount.propagation("/", step.propagation)


def reopen_null(guest: Guest, step: do.ReopenNull) -> None:
    null = os.makedev(1, 3)
    used = [fd for fd in range(3) if _device(fd) == null]
    if not used:
        return
    own = os.open("/dev/null", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    if _device(own) != null:
        raise HostError("reopen", "/dev/null", "the container's /dev/null is not the null device")
    os.set_blocking(own, True)
    for fd in used:
        os.dup2(own, fd)
    os.close(own)


def _device(fd: int) -> int:
    """The number of the character device that *fd* is, -1 if it is none or closed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return -1
    return found.st_rdev if stat.S_ISCHR(found.st_mode) else -1


def _lock(tree: int) -> None:
    """Make the mount read-only, once what writes to it (a hook's child) has closed it."""
    for _ in range(5):
        try:
            return mount.set_attributes(tree, mount.MOUNT_ATTR_RDONLY)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(0.1)
    return mount.set_attributes(tree, mount.MOUNT_ATTR_RDONLY)


def lock_mounts(guest: Guest, step: do.LockMounts) -> None:
    for key in [key for key in guest.binds if key[0] == "late"]:
        tree = guest.binds.pop(key)
        _lock(tree)
        os.close(tree)
    if step.root:
        root = os.open("/", PLACE)
        _lock(root)
        os.close(root)


def _hidden(root: int, path: str, kernel: tuple[str, ...]) -> int:
    """Open what is to be hidden, -1 if it is not there.

    Below /proc and /sys it is looked up from the kernel's own filesystem there, without leaving it: a mask on
    what the image put in its place would hide nothing (CVE-2025-31133, CVE-2025-52565).
    """
    place = next((top for top in kernel if path == top or path.startswith(f"{top}/")), "")
    try:
        if not place:
            return mount.open_in_root(root, path, os.O_PATH)
        top = mount.open_in_root(root, place, os.O_PATH, resolve=PLAIN)
        try:
            if mount.filesystem_magic(top) != MAGICS[place]:
                raise HostError("hide", path, f"{place} is not the kernel's own any more")
            if path == place:
                return os.dup(top)
            return mount.open_in_root(top, path[len(place) + 1 :], os.O_PATH, resolve=mount.RESOLVE_BENEATH)
        finally:
            os.close(top)
    except (FileNotFoundError, NotADirectoryError):
        if place and look(root, place, mount.RESOLVE_IN_ROOT) is None:
            raise
        return -1


def hide_paths(guest: Guest, step: do.HidePaths) -> None:
    root = os.open("/", PLACE)
    for path in step.read_only:
        target = _hidden(root, path, step.kernel)
        if target >= 0:
            tree = mount.open_tree("", True, target)
            mount.set_attributes(tree, mount.MOUNT_ATTR_RDONLY)
            mount.move_mount(tree, "", target)
            os.close(tree)
            os.close(target)
    covers: dict[bool, int] = {}
    for path in step.masked:
        target = _hidden(root, path, step.kernel)
        if target < 0:
            continue
        directory = stat.S_ISDIR(os.fstat(target).st_mode)
        # A detached mount cannot be copied before Linux 6.15; the first is attached, and the others are copies of it.
        if directory in covers:
            tree = mount.open_tree("", False, covers[directory])
        else:
            tree = covers[directory] = _empty() if directory else guest.binds.pop(do.NULL)
        mount.move_mount(tree, "", target)
        os.close(target)
        if tree != covers[directory]:
            os.close(tree)
    for tree in covers.values():
        os.close(tree)
    os.close(root)


def _empty() -> int:
    """A read-only directory without anything in it."""
    try:
        return mount.new_mount("tmpfs", ("ro", "mode=755", "nr_blocks=1", "nr_inodes=1"), mount.MOUNT_ATTR_RDONLY)
    except OSError:
        return mount.new_mount("tmpfs", ("ro", "mode=755", "nr_blocks=1", "nr_inodes=2"), mount.MOUNT_ATTR_RDONLY)
