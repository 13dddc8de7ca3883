"""Where in the root filesystem something may be mounted, looked at when the mount point is open.

The first process is chrooted to the root filesystem: "/" is the image's, and the
kernel resolves every symlink in there.
"""

from __future__ import annotations

import os
import stat

from nestrt.errors import InputError
from nestrt.kernel import mount
from nestrt.plan import mount_steps as do
from nestrt.plan.bundle_mounts import PROC_FILES

ROOT_INODE = 1  # of procfs: PROC_ROOT_INO
PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
PLAIN = mount.RESOLVE_IN_ROOT | mount.RESOLVE_NO_SYMLINKS
KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def is_node(found: os.stat_result, step: do.OpenNode | do.MakeNode) -> bool:
    """Whether that is the device node of *step*."""
    same = step.type == "p" or found.st_rdev == os.makedev(step.major, step.minor)
    return stat.S_IFMT(found.st_mode) == KINDS[step.type] and same


def check_place(name: str, path: str, target: int, magic: int) -> None:
    """Refuse to mount on what must stay the kernel's own: procfs, wherever *path* has led, and on the root itself.

    *magic* is of the filesystem that is to be mounted. Allowed are procfs over procfs, and the single
    files that lxcfs covers.
    """
    root = os.open("/", PLACE)
    try:
        found = os.fstat(target)
        if os.path.samestat(found, os.fstat(root)):
            raise InputError("mount", name, f'"{path}" is the root filesystem itself', "use another destination")
        if mount.filesystem_magic(target) != mount.PROC_SUPER_MAGIC:
            own = look(root, "/proc", PLAIN)
            if own is not None and os.path.samestat(found, own) and magic != mount.PROC_SUPER_MAGIC:
                raise InputError(
                    "mount", name, f'"{path}" cannot be mounted because it is not of type proc', "use type proc"
                )
            return
        if found.st_ino == ROOT_INODE and magic == mount.PROC_SUPER_MAGIC:
            return
        for file in PROC_FILES:
            own = look(root, file, PLAIN)
            if own is not None and os.path.samestat(found, own):
                return
        raise InputError(
            "mount", name, f'"{path}" cannot be mounted because it is inside /proc', "use another destination"
        )
    finally:
        os.close(root)


def look(root: int, path: str, resolve: int) -> os.stat_result | None:
    try:
        fd = mount.open_in_root(root, path, os.O_PATH, resolve=resolve)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def existing(path: str) -> int:
    """Open *path* of the root filesystem (O_PATH), -1 if it is not there."""
    root = os.open("/", PLACE)
    try:
        return mount.open_in_root(root, path, os.O_PATH)
    except FileNotFoundError:
        return -1
    finally:
        os.close(root)
