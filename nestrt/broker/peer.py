"""Who is at the other end of a connection: the kernel's word, unix(7) SO_PEERCRED and SO_PEERPIDFD.

The socket says which guest. The credentials are those of connect(2), translated by the kernel into the
broker's own pid and user namespaces; a process that passes its connection on has passed its own rights on.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

from nestrt.kernel import pidfd
from nestrt.record import record

SO_PEERPIDFD = 77  # include/uapi/asm-generic/socket.h, Linux 6.5
OVERFLOW = 65534  # what an id that has no number here is shown as (user_namespaces(7))

IdMap = tuple[tuple[int, int, int], ...]
ALL: IdMap = ((0, 0, (1 << 32) - 1),)  # (uid_t)-1 is nobody's: chown(2) takes it for "as it is"


def inside(ids: IdMap, outside: int) -> int:
    """A user id of the broker's level as the guest with the map *ids* knows it; -1 where it has no number for it."""
    for first, start, count in ids or ALL:
        if start <= outside < start + count:
            return first + outside - start
    return -1


def outside(ids: IdMap, number: int) -> int:
    """The inverse of inside(); -1 for an id that the guest does not have."""
    for first, start, count in ids or ALL:
        if first <= number < first + count:
            return start + number - first
    return -1


@record
class Peer:
    """*pid*, *uid* and *gid* as the broker's level counts them, *pidfd* a descriptor of the process or -1 where it
    has gone, *user* its uid as the guest counts it (-1: none), *root* whether that is the guest's root. *guest_pid* and
    *guest_gid* are pid and gid as the guest counts them, None where it has no number for them. *login*, of the host's
    root alone: the uid that it has logged in with, None where it has not."""

    pid: int
    uid: int
    gid: int
    pidfd: int
    user: int
    root: bool
    guest_pid: int | None = None
    guest_gid: int | None = None
    login: int | None = None

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def who(self) -> str:
        """For errors: the user as the guest calls it."""
        return f"user {self.user}" if self.user >= 0 else "a user that this guest does not have"


def credentials(connection: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of whoever connected. pid 0: it is in no pid namespace that the broker sees."""
    pid, uid, gid = struct.unpack("3I", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def peer_pidfd(connection: socket.socket, pid: int) -> int:
    """A descriptor of the process that connected; before Linux 6.5 of the one that has its number now. -1: gone."""
    try:
        return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4), sys.byteorder)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # a kernel that knows who it was, and that it has gone
            return -1
    try:
        return pidfd.open(pid) if pid > 0 else -1
    except OSError:
        return -1


def peer_of(connection: socket.socket, ids: IdMap) -> Peer:
    """The peer of *connection* in a guest with the user id map *ids*."""
    pid, uid, gid = credentials(connection)
    user = inside(ids, uid)
    return Peer(pid, uid, gid, peer_pidfd(connection, pid), user, user == 0)
