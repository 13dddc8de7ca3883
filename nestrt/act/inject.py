"""Put a socket or a device node of this level into a guest that runs, by a bind mount in the guest's mount namespace.

    this process                              a helper, alone in the guest's mount (and user) namespace
    open_tree: a detached copy of the node -> say so: from here on it is the guest that it may wait for
                                              join the namespaces of the guest's first process
                                              take the guest's root for its own ids
                                              make what is missing of the mount point, and mount there

The helper sees nothing but the guest's own files, and goes nowhere by a symbolic link. It is in no pid namespace of
the guest's, so that the guest cannot see or trace it, and it is killed where the guest's files do not answer, and
with this process. On a busy machine it takes its time to start: that is no fault of the guest's.

Sources: setns(2) (a pidfd: Linux 5.8), open_tree(2), move_mount(2), openat2(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys

from nestrt.errors import KernelError, StateError
from nestrt.kernel import mount, namespaces, pidfd, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # signal.py imports enum

PATIENCE, KILL_PATIENCE = 10.0, 1.0  # seconds
START_PATIENCE = 120.0  # until it has begun
# Descriptors of the helper; it has begun when BEGUN is closed.
PIDFD, TREE, ROOT, BEGUN = 10, 11, 12, 13
PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from nestrt.act.inject import main; main(sys.argv[2:])"
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
PLAIN = mount.RESOLVE_IN_ROOT | mount.RESOLVE_NO_SYMLINKS

_unreaped: list[int] = []


def put_socket(pid: int, start: int, source: str, target: str) -> None:
    """Mount the socket *source* at *target* in the guest whose first process is *pid*, which began at *start*.

    In place of what an earlier one has mounted there. Raises StateError where the guest has ended, or its files
    do not answer; KernelError.
    """
    _put(pid, start, source, target, "socket")


def put_node(pid: int, start: int, source: str, target: str) -> None:
    """Mount the device node *source* at *target*, unless the guest has the same device there. Raises as put_socket."""
    _put(pid, start, source, target, "node")


def _put(pid: int, start: int, source: str, target: str, kind: str) -> None:
    held: list[int] = []
    try:
        process = pidfd.open(pid, start)
        held.append(process)
        tree = mount.open_tree(source)
        held.append(tree)
        mount.set_propagation(tree, mount.MS_PRIVATE)
        mount.set_attributes(tree, mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC)
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        held.append(root)
        if os.path.samestat(os.stat("/proc/self/ns/mnt"), os.stat(f"/proc/{pid}/ns/mnt")):
            reason = "its first process has no mount namespace of its own"
            raise StateError("put", f"{source} into a guest", reason, "start it with one")
        if pidfd.start_time(pid) != start:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), str(pid))
        own = os.path.samestat(os.stat("/proc/self/ns/user"), os.stat(f"/proc/{pid}/ns/user"))
        words = ["plain" if own else "userns", str(os.getpid()), kind, target]
        status = _helper(process, tree, root, words)
    except ProcessLookupError as error:
        raise StateError("put", f"{source} into a guest", "its first process has ended", "start it again") from error
    except OSError as error:
        raise KernelError("put", f"{source} into a guest", error.errno or 0, "see dmesg") from error
    finally:
        for fd in held:
            os.close(fd)
    if status < 0:
        raise StateError("put", f"{source} at {target}", f"the guest's files do not answer in {PATIENCE:g} s", "")
    if status:
        raise KernelError("put", f"{source} at {target} of a guest", status, "look at that place in the guest")


def _helper(process: int, tree: int, root: int, words: list[str]) -> int:
    """The errno with which the helper failed, 0 where it did not, -1 where it had to be killed."""
    # No copy of this process, which may have threads and much memory, goes into a guest: a new program.
    begun, begins = os.pipe()
    # Above the helper's own: none is overwritten before it has been copied.
    high: list[int] = []
    # Whoever reads what we write does not wait for a helper that cannot be killed.
    places: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)
    ]
    argv = [sys.executable, "-I", "-S", "-c", PROGRAM, PACKAGE, *words]
    try:
        for fd, to in ((process, PIDFD), (tree, TREE), (root, ROOT), (begins, BEGUN)):
            high.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, BEGUN + 1))
            places.append((os.POSIX_SPAWN_DUP2, high[-1], to))
        child = os.posix_spawn(sys.executable, argv, {}, file_actions=places, setsigmask=[])
    except BaseException:
        os.close(begun)
        raise
    finally:
        for fd in (begins, *high):
            os.close(fd)
    watch = os.pidfd_open(child)
    try:
        _reap()
        pidfd.wait(begun, START_PATIENCE)
        if not pidfd.wait(watch, PATIENCE):
            os.kill(child, _signal.SIGKILL)
            # Who waits for a file of FUSE's that never answers cannot even be killed (fs/fuse/dev.c,
            # request_wait_answer()): it is reaped when that has ended.
            if not pidfd.wait(watch, KILL_PATIENCE):
                _unreaped.append(child)
                return -1
            os.waitpid(child, 0)
            return -1
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status if status >= 0 else errno.EINTR
    finally:
        os.close(watch)
        os.close(begun)


def _reap() -> None:
    """Take note of helpers that could not be killed then, and have ended by now."""
    for child in list(_unreaped):
        try:
            if not os.waitpid(child, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            pass
        if child in _unreaped:
            _unreaped.remove(child)


def main(words: list[str]) -> None:
    """The helper: exits with an errno, or 0."""
    status = errno.EPROTO
    try:
        mode, parent, kind, target = words
        os.umask(0o022)
        os.close(BEGUN)
        namespaces.setns(PIDFD, namespaces.CLONE_NEWNS | (namespaces.CLONE_NEWUSER if mode == "userns" else 0))
        if mode == "userns":
            try:
                os.setgroups([])
            except PermissionError:
                pass  # the guest's namespace forbids it (user_namespaces(7)); nothing is decided by groups here
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        # Whoever has it mounted has to be there: the socket of one that has been killed is nobody's.
        prctl.set_parent_death_signal(_signal.SIGKILL)
        if os.getppid() == int(parent):
            _mount(kind, target)
        status = 0
    except OSError as error:
        status = error.errno or errno.EPROTO
    finally:
        os._exit(min(status, 255))


def _parent(target: str) -> int:
    """The directory of *target* below the guest's root, made as far as it is missing."""
    at = mount.open_in_root(ROOT, ".", DIRECTORY, resolve=PLAIN)
    for name in target.strip("/").split("/")[:-1]:
        try:
            os.mkdir(name, 0o755, dir_fd=at)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.EROFS, errno.EACCES):
                raise
        below = mount.open_in_root(at, name, DIRECTORY, resolve=mount.RESOLVE_BENEATH | mount.RESOLVE_NO_SYMLINKS)
        os.close(at)
        at = below
    return at


def _mount(kind: str, target: str) -> None:
    name = target.rpartition("/")[2]
    parent = _parent(target)
    new = os.fstat(TREE)
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        there: os.stat_result | None = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        there = None
    if there is not None and kind == "node" and (there.st_mode, there.st_rdev) == (new.st_mode, new.st_rdev):
        return
    if there is not None and kind == "socket" and there.st_dev == new.st_dev:
        # What an earlier broker put there. Its inode may have the new one's number: it has been removed.
        os.fchdir(parent)
        try:
            mount.umount(name, MNT_DETACH | UMOUNT_NOFOLLOW)
        except OSError:
            pass  # the new one is mounted over it
    if there is None:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=parent))
    place = os.open(name, flags, dir_fd=parent)
    mount.move_mount(TREE, "", place)
