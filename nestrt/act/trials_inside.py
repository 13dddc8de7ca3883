"""The helper of act/trials.py: a guest's namespaces entered, each trial made, and a line for it written.

No path of the guest is walked but through filesystems that answer by themselves, as the helper's
own mount namespace has them, which nobody else changes; every file is known to lie on cgroupfs before
it is opened; and nothing of the guest's is run.

Sources: setns(2), openat2(2), cgroup_namespaces(7), open_by_handle_at(2), mount_setattr(2).
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from nestrt import jsontext
from nestrt.act.creator import keep_only
from nestrt.kernel import caps, handles, mount, namespaces, prctl, seccomp
from nestrt.plan.trials import FRESH, NESTED, NOT_THERE, UNCOVERED, VIEW, Place, Trials

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import Any, NoReturn
else:
    import _signal  # signal.py imports enum

# Filesystems whose answers come from this kernel alone: a FUSE server that is silent holds even what was killed.
LOCAL = frozenset(
    "bcachefs btrfs cgroup cgroup2 devpts devtmpfs erofs exfat ext2 ext3 ext4 f2fs iso9660 jfs mqueue overlay proc"
    " ramfs rootfs squashfs sysfs tmpfs ubifs vfat virtiofs xfs zfs".split()
)
CGROUPFS = (mount.CGROUP_SUPER_MAGIC, mount.CGROUP2_SUPER_MAGIC)
PLAIN = mount.RESOLVE_NO_SYMLINKS
# Of what the guest may have many.
MOST_MOUNTS = 1024
MOST_VIEWS = 4  # of one hierarchy
LARGEST_MOUNTINFO = 1 << 24
LONGEST_NAME = 300
FD_NSFS_ROOT = -10003  # include/uapi/linux/fcntl.h, Linux 6.18
# struct file_handle with struct nsfs_file_handle { u64 ns_id; u32 ns_type; u32 ns_inum; }, FILEID_NSFS:
# CLONE_NEWCGROUP, PROC_CGROUP_INIT_INO.
INITIAL_CGROUP = b"".join(
    number.to_bytes(size, sys.byteorder)
    for number, size in ((16, 4), (0xF1, 4), (0, 8), (namespaces.CLONE_NEWCGROUP, 4), (0xEFFFFFFB, 4))
)


class Helper:
    """The helper: the process whose namespaces it enters (*target*, a pidfd), the checker's procfs, and its pipe."""

    def __init__(self, target: int, flags: int, procfs: int, writer: int, checker: int) -> None:
        self.target = target
        self.flags = flags
        self.procfs = procfs
        self.writer = writer
        self.checker = checker

    def tell(self, kind: str, place: int, how: str, name: str, error: int) -> None:
        os.write(self.writer, (jsontext.dumps([kind, place, how, name[:LONGEST_NAME], error]) + "\n").encode())

    def attempt(self, kind: str, place: int, how: str, name: str, action: Callable[..., object], *args: Any) -> bool:
        """Call *action* with *args*, and tell what came of it; returns whether the kernel let it pass."""
        error = 0
        try:
            action(*args)
        except _NotThere:
            error = NOT_THERE
        except OSError as refused:
            error = refused.errno or errno.EIO
        self.tell(kind, place, how, name, error)
        return error == 0


class _NotThere(Exception):
    """Something else is mounted there."""


def main(helper: Helper, trials: Trials) -> NoReturn:
    # From here on an import could only come from the guest's files: it must fail instead.
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()
    status = 1
    try:
        _enter(helper, trials.rights)
        _try_all(helper, trials)
        helper.tell("done", -1, "", "", 0)
        status = 0
    except OSError as error:
        helper.tell("enter", -1, "", str(error.filename or ""), error.errno or errno.EIO)
    except BaseException as error:
        # A traceback would read source files, and by now those are the guest's.
        helper.tell("enter", -1, "", f"{type(error).__name__}: {error}", errno.EIO)
    os._exit(status)


def _tie(helper: Helper) -> None:
    """Die with the checker. A change of user clears this."""
    prctl.set_parent_death_signal(_signal.SIGKILL)
    if os.getppid() != helper.checker:
        os._exit(1)


def _enter(helper: Helper, rights: int) -> None:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    keep_only((helper.target, helper.procfs, helper.writer))
    _tie(helper)
    prctl.set_dumpable(False)
    prctl.set_no_new_privs()
    os.umask(0o077)
    own = sum(1 << number for number in caps.current().permitted)
    if helper.flags:
        namespaces.setns(helper.target, helper.flags)
    namespaces.unshare(namespaces.CLONE_NEWNS)
    # Else what is taken off here would be taken off there, where the guest's mounts are shared.
    mount.propagation("/", mount.MS_REC | mount.MS_PRIVATE)
    if helper.flags & namespaces.CLONE_NEWUSER:
        own = rights  # the first to enter has all that there are
        try:
            os.setgroups([])
        except PermissionError:
            pass  # the namespace denies it (user_namespaces(7)): nobody in it can either
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    else:
        os.setgroups([])
    seccomp.set_capabilities(rights & own, rights & own, 0)
    _tie(helper)
    prctl.set_dumpable(False)


def _try_all(helper: Helper, trials: Trials) -> None:
    views = _views(helper, trials)
    fresh: dict[int, int] = {}
    for number, place in enumerate(trials.places):
        if trials.mount:
            _mount(helper, number, place, fresh)
        for name, view in views.get(number, []):
            _write_all(helper, number, place, VIEW, view, name)
    for number, place in enumerate(trials.places):
        at = next((fd for _, fd in views.get(number, [])), fresh.get(number, -1))
        if at >= 0 and place.handle:
            helper.attempt("handle", number, "", "", _by_handle, at, place)
        if place.make and at >= 0:
            _divide(helper, number, place, at, trials.child)
    for number, place in enumerate(trials.places):
        for name, view in views.get(number, []):
            _uncover(helper, number, place, view, name)
    helper.attempt("initial", -1, "", "", _initial_by_handle)
    # The kernel protects the root of a writer's cgroup namespace, with nsdelegate, and of no other one above
    # (cgroup_file_write(), kernel/cgroup/cgroup.c): any further namespace lifts that, this one's root being the
    # checker's group.
    if fresh and helper.attempt("nest", -1, "", "", namespaces.unshare, namespaces.CLONE_NEWCGROUP):
        for number, fd in fresh.items():
            _write_all(helper, number, trials.places[number], NESTED, fd, "")


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _mount(helper: Helper, number: int, place: Place, fresh: dict[int, int]) -> None:
    """Mount the hierarchy afresh, attached nowhere; look where it begins, and write."""
    try:
        fd = mount.new_mount(place.fstype, place.options)
    except OSError as error:
        helper.tell("mount", number, "", "", error.errno or errno.EIO)
        return
    helper.tell("mount", number, "", "", 0)
    begins = _identity(fd)
    helper.tell("root", number, "", "limit" if begins == place.limit else "", errno.EXDEV * (begins != place.root))
    above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    helper.tell("above", number, "", "", errno.EXDEV * (_identity(above) != begins))
    os.close(above)
    if begins == place.root:
        fresh[number] = fd
        _write_all(helper, number, place, FRESH, fd, "")


def _write_all(helper: Helper, number: int, place: Place, how: str, directory: int, where: str) -> None:
    for file, value in place.files:
        name = f"{where}/{file}" if where else file
        helper.attempt("write", number, how, name, _write, helper, directory, file, value)


def _open_file(directory: int, name: str) -> int:
    """A file of a group, as O_PATH: what may have been mounted over it is not opened. Raises _NotThere, OSError."""
    fd = mount.open_in_root(directory, name, os.O_PATH, resolve=mount.RESOLVE_BENEATH | PLAIN)
    if not stat.S_ISREG(os.fstat(fd).st_mode) or mount.filesystem_magic(fd) not in CGROUPFS:
        os.close(fd)
        raise _NotThere(name)
    return fd


def _write(helper: Helper, directory: int, name: str, value: str) -> None:
    fd = _open_file(directory, name)
    try:
        _write_to(helper, fd, value)
    finally:
        os.close(fd)


def _write_to(helper: Helper, fd: int, value: str) -> None:
    # The very file that was looked at, by the checker's procfs: "self" there is this process.
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    writable = os.open(f"self/fd/{fd}", flags, dir_fd=helper.procfs)
    try:
        os.write(writable, value.encode())
    finally:
        os.close(writable)


def _by_handle(at: int, place: Place) -> None:
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)  # an O_PATH one it does not take
    try:
        fd = handles.open_by(directory, place.handle, os.O_RDONLY | os.O_DIRECTORY)
        same = _identity(fd) == place.limit
        os.close(fd)
        if not same:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    finally:
        os.close(directory)


def _initial_by_handle() -> None:
    os.close(handles.open_by(FD_NSFS_ROOT, INITIAL_CGROUP, os.O_RDONLY))


def _divide(helper: Helper, number: int, place: Place, at: int, child: str) -> None:
    """Make a child group, give it less than the guest has, and remove it."""
    if not helper.attempt("make", number, "", child, _make, child, at):
        return
    try:
        inner = os.open(child, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        for file, value in place.lower:
            helper.attempt("lower", number, "", file, _write, helper, inner, file, value)
        for name in place.controllers:
            helper.attempt("enable", number, "", name, _write, helper, inner, "cgroup.subtree_control", f"+{name}")
        os.close(inner)
    finally:
        helper.attempt("remove", number, "", child, _unmake, child, at)


def _make(child: str, at: int) -> None:
    os.mkdir(child, 0o755, dir_fd=at)


def _unmake(child: str, at: int) -> None:
    os.rmdir(child, dir_fd=at)


def _uncover(helper: Helper, number: int, place: Place, view: int, where: str) -> None:
    """Make the guest's mount and each cover in it writable, here only, and write."""
    attributes = mount.attributes_of(view)
    if attributes & mount.MOUNT_ATTR_RDONLY:
        try:
            mount.set_attributes(view, 0, mount.MOUNT_ATTR_RDONLY)
        except OSError as error:
            helper.tell("write", number, UNCOVERED, where, error.errno or errno.EIO)
            return
    for file, value in place.files:
        helper.attempt("write", number, UNCOVERED, f"{where}/{file}", _take_off, helper, view, file, value)


def _take_off(helper: Helper, view: int, file: str, value: str) -> None:
    fd = _open_file(view, file)
    try:
        if mount.attributes_of(fd) & mount.MOUNT_ATTR_RDONLY:
            mount.set_attributes(fd, 0, mount.MOUNT_ATTR_RDONLY)
        _write_to(helper, fd, value)
    finally:
        os.close(fd)


def _views(helper: Helper, trials: Trials) -> dict[int, list[tuple[str, int]]]:
    """The guest's own mounts of its hierarchies: (mount point, descriptor) by place.

    The mount namespace is this process's own by now, so that what mountinfo says stays true.
    """
    fd = os.open("self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=helper.procfs)
    data = b""
    while len(data) < LARGEST_MOUNTINFO and (chunk := os.read(fd, 1 << 16)):
        data += chunk
    os.close(fd)
    rows = [row.partition(" - ") for row in data.decode("utf-8", "surrogateescape").split("\n")]
    mounts = [(unescape(left.split(" ")[4]), right.split(" ")[0]) for left, dash, right in rows if dash]
    foreign = {target.rstrip("/") for target, fstype in mounts if fstype not in LOCAL}
    groups = dict.fromkeys(target for target, fstype in mounts if fstype in ("cgroup", "cgroup2"))
    found: dict[int, list[tuple[str, int]]] = {}
    numbers = {place.root: number for number, place in enumerate(trials.places)}
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for target in list(groups)[:MOST_MOUNTS]:
        if _leads_through(target, foreign):
            helper.tell("view", -1, "", target, errno.EXDEV)
            continue
        try:
            fd = mount.open_in_root(root, target, os.O_PATH, resolve=mount.RESOLVE_IN_ROOT | PLAIN)
        except OSError as error:
            helper.tell("view", -1, "", target, error.errno or errno.EIO)
            continue
        # Covers, of single files, are mounts too.
        number = numbers.get(_identity(fd), -1)
        if number < 0 or len(found.get(number, ())) >= MOST_VIEWS:
            os.close(fd)
        else:
            found.setdefault(number, []).append((target, fd))
    os.close(root)
    return found


def _leads_through(target: str, foreign: set[str]) -> bool:
    """Whether a walk to *target* asks a filesystem that is not LOCAL, by all mounts that may be on the way."""
    while target not in foreign:
        if not target:
            return False
        target = target.rpartition("/")[0]
    return True


def unescape(text: str) -> str:
    """Undo mountinfo's octal escapes."""
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)
