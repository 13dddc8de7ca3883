"""mount(2), the descriptor-based mount calls, pivot_root(2) and openat2(2).

Sources: mount(2), open_tree(2), move_mount(2), mount_setattr(2), openat2(2),
include/uapi/linux/mount.h, include/uapi/linux/openat2.h.
"""

from __future__ import annotations

import ctypes
import os

from nestrt.kernel.libc import (
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fsopen,
    SYS_mount_setattr,
    SYS_move_mount,
    SYS_open_tree,
    SYS_openat2,
    SYS_pivot_root,
    check,
    libc,
    syscall,
)

MS_NOSUID = 0x2
MS_REMOUNT = 0x20
MS_REC = 0x4000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MNT_DETACH = 0x2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MOUNT_ATTR_IDMAP = 0x100000

RESOLVE_NO_MAGICLINKS = 0x2
RESOLVE_NO_SYMLINKS = 0x4
RESOLVE_BENEATH = 0x8
RESOLVE_IN_ROOT = 0x10

RENAME_RACES = 200

PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
CGROUP_SUPER_MAGIC = 0x27E0EB
CGROUP2_SUPER_MAGIC = 0x63677270


class _MountAttr(ctypes.Structure):
    """struct mount_attr { u64 attr_set; u64 attr_clr; u64 propagation; u64 userns_fd; }"""

    _fields_ = [(n, ctypes.c_uint64) for n in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _OpenHow(ctypes.Structure):
    """struct open_how { u64 flags; u64 mode; u64 resolve; }"""

    _fields_ = [(n, ctypes.c_uint64) for n in ("flags", "mode", "resolve")]


def new_mount(fstype: str, options: str | tuple[str, ...] = "", attributes: int = 0, source: str = "") -> int:
    """A detached new mount, as a descriptor: fsopen, fsconfig, fsmount (Linux 5.2).

    *options* is comma-separated, as mount(8) takes them, or the words themselves, which may have
    commas in them; *attributes* are MOUNT_ATTR_*; *source* is the type where it is not said.
    Raises OSError naming the filesystem: EPERM (also where a user namespace does
    not see the whole of an earlier proc or sysfs), EBUSY, EINVAL, ENODEV.
    """
    words = tuple(filter(None, options.split(","))) if isinstance(options, str) else options
    context = syscall(SYS_fsopen, fstype.encode(), FSOPEN_CLOEXEC, obj=fstype)
    try:
        # What mountinfo shows as the source.
        name = os.fsencode(source or fstype)
        syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, b"source", name, 0, obj=source or fstype)
        for word in words:
            key, equals, value = word.partition("=")
            command = FSCONFIG_SET_STRING if equals else FSCONFIG_SET_FLAG
            content = os.fsencode(value) if equals else None
            syscall(SYS_fsconfig, context, command, os.fsencode(key), content, 0, obj=f"{fstype} {word}")
        syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, None, None, 0, obj=fstype)
        return syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes, obj=fstype)
    finally:
        os.close(context)


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2), for what the calls above cannot: filesystems and flags (MS_*) that they do not know, remounts."""
    encoded = os.fsencode(data) if data else None
    check(libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), flags, encoded), target)


def propagation(target: str, flags: int) -> None:
    """Change the propagation type of *target* (MS_PRIVATE, MS_SLAVE, with MS_REC)."""
    check(libc.mount(None, os.fsencode(target), None, flags, None), target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    check(libc.umount2(os.fsencode(target), flags), target)


def open_tree(path: str, recursive: bool = False, dirfd: int = AT_FDCWD) -> int:
    """A detached copy of the mount at *path*, as a descriptor (open_tree(2), Linux 5.2).

    An empty *path* means *dirfd* itself. Raises OSError; EINVAL where the mount
    has covers that a user namespace locked.
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    return syscall(SYS_open_tree, dirfd, os.fsencode(path), flags, obj=path)


def move_mount(tree: int, target: str, dirfd: int = AT_FDCWD) -> None:
    """Attach the detached mount *tree* at *target*, or on *dirfd* itself if that is empty."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    syscall(SYS_move_mount, tree, b"", dirfd, os.fsencode(target), flags, obj=target)


def set_attributes(tree: int, attr_set: int, attr_clr: int = 0, recursive: bool = False, userns: int = 0) -> None:
    """mount_setattr(2) on a descriptor (Linux 5.12).

    With MOUNT_ATTR_IDMAP, *userns* is a descriptor of the user namespace whose
    mapping the mount gets. Raises OSError: EINVAL where the filesystem cannot be
    id-mapped, EPERM where its superblock belongs to another user namespace.
    """
    attr = _MountAttr(attr_set, attr_clr, 0, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    syscall(SYS_mount_setattr, tree, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))


def set_propagation(tree: int, kind: int) -> None:
    """Change the propagation type of the mount *tree*, a descriptor: one of MS_PRIVATE, MS_SLAVE, MS_SHARED,
    MS_UNBINDABLE, with MS_REC of all mounts below too (mount_setattr(2)).

    A detached copy is a peer of its source until this says otherwise: where that is shared, what is
    mounted in the copy appears in the source as well (mount_namespaces(7)).
    """
    attr = _MountAttr(0, 0, kind & ~MS_REC, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if kind & MS_REC else 0)
    syscall(SYS_mount_setattr, tree, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))


def attributes_of(tree: int) -> int:
    """The MOUNT_ATTR_* that the mount of a descriptor has, access times apart: fstatvfs(3), f_flag.

    A read-only filesystem counts as a read-only mount.
    """
    flags = os.fstatvfs(tree).f_flag
    return flags & 0xF | (MOUNT_ATTR_NOSYMFOLLOW if flags & 0x2000 else 0)


def cleared(clear: int, attr_set: int) -> int:
    """*clear* without what is set; access times are one value, and cleared as a whole (mount_setattr(2))."""
    return clear & ~(attr_set & ~MOUNT_ATTR__ATIME)


def open_in_root(root: int, path: str, flags: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """openat2(2) that cannot leave the directory *root*: symlinks resolve inside it.

    Raises OSError: ENOENT, ELOOP, EXDEV (RESOLVE_BENEATH); EAGAIN where ``..`` races with renames again and again.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve | RESOLVE_NO_MAGICLINKS)
    for _ in range(RENAME_RACES):
        try:
            return syscall(SYS_openat2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how), obj=path)
        except BlockingIOError:
            # Any rename or mount on the machine, at the moment of a "..": a busy host has many.
            continue
    return syscall(SYS_openat2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how), obj=path)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    syscall(SYS_pivot_root, os.fsencode(new_root), os.fsencode(put_old), obj=new_root)


def filesystem_magic(fd: int) -> int:
    """f_type of fstatfs(2): which filesystem a descriptor is really on."""
    buffer = (ctypes.c_long * 32)()
    check(libc.fstatfs(fd, ctypes.byref(buffer)))
    return int(buffer[0])
