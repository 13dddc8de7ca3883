"""The broker's sockets on its own level: made, found again, handed to and taken from systemd.

    /run/nestrt/host.sock                     io.nestrt.Host: root's only
    /run/nestrt/broker/                       0700, locked (flock) by the one broker that serves this level
    /run/nestrt/broker/web/guest.sock         mounted at /run/nestrt/guest.sock of guest web; its directory is locked
                                              by whoever listens on it for that guest alone (--embedded)

Sources: unix(7), sd_listen_fds(3), sd_notify(3), sd_pid_notify_with_fds(3).
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket

from nestrt.errors import KernelError, StateError
from nestrt.plan.broker import HOST_SOCKET, SOCKET_NAME, SOCKETS

BACKLOG = 128
FIRST_FD = 3  # SD_LISTEN_FDS_START
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def hold(directory: str, what: str) -> int:
    """Make *directory* (0700) and lock it; returns the descriptor that holds the lock.

    Raises StateError where another broker has it, KernelError.
    """
    try:
        os.makedirs(os.path.dirname(directory), 0o755, exist_ok=True)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        fd = os.open(directory, DIRECTORY)
    except OSError as error:
        raise KernelError("make", directory, error.errno or 0, "run it as root of its level") from error
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        os.close(fd)
        raise StateError("use", directory, "somebody else may write to it", "remove it")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise StateError("serve", what, "another broker does", "end that one first") from error
    return fd


def is_held(directory: str) -> bool:
    """Whether somebody listens there for one guest alone."""
    try:
        fd = os.open(directory, DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def listen(directory: str, mode: int, name: str = SOCKET_NAME) -> socket.socket:
    """A listening socket *name* in *directory*, in the place of whatever was there. Raises OSError."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    at = os.open(directory, DIRECTORY)
    try:
        # By the descriptor: a socket's address has room for 107 bytes.
        place = f"/proc/self/fd/{at}/{name}"
        try:
            os.unlink(place)
        except FileNotFoundError:
            pass
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            found.bind(place)
            os.chmod(place, mode)
            found.listen(BACKLOG)
        except BaseException:
            found.close()
            raise
    finally:
        os.close(at)
    return found


def forget(directory: str) -> None:
    """Remove a guest's socket and its directory."""
    for remove, path in ((os.unlink, f"{directory}/{SOCKET_NAME}"), (os.rmdir, directory)):
        try:
            remove(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise


def host_socket() -> socket.socket:
    """The level's own socket, for its root alone. Raises KernelError."""
    try:
        return listen(os.path.dirname(HOST_SOCKET), 0o600, os.path.basename(HOST_SOCKET))
    except OSError as error:
        raise KernelError("listen on", HOST_SOCKET, error.errno or 0, "run it as root of its level") from error


def directories() -> list[str]:
    """The directories of all guests' sockets."""
    try:
        with os.scandir(SOCKETS) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


# systemd


def inherited() -> dict[str, list[socket.socket]]:
    """The listening sockets that systemd has opened or kept for this process, by name (FileDescriptorName=)."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return {}
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for number in range(int(count) if count.isdigit() else 0):
        fd = FIRST_FD + number
        os.set_inheritable(fd, False)
        try:
            one = socket.socket(fileno=fd)
        except OSError:
            continue
        one.setblocking(False)
        found.setdefault(names[number] if number < len(names) else "", []).append(one)
    return found


def notify(text: str, fds: tuple[int, ...] = ()) -> None:
    """Tell the service manager *text* ("READY=1"), with descriptors for it to keep ("FDSTORE=1\\nFDNAME=…").

    Nothing where there is none; a failure is its, not ours.
    """
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place.startswith(("/", "@")):
        return
    address = "\0" + place[1:] if place[0] == "@" else place
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
            one.sendmsg([text.encode()], rights, 0, address)
    except OSError:
        return
