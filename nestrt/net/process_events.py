"""What processes do, from the kernel's proc connector: programs executed, users, groups, sessions and names changed.

::

    nlmsghdr (16 bytes) │ cn_msg: idx 1, val 1, seq, ack, len, flags │ proc_event: what, cpu, time │ pid, tgid, …

Only the kernel is believed. Whoever has CAP_NET_ADMIN in this network namespace can send to this socket's multicast
group, and libcgroup's daemon took such a message for the kernel's (CVE-2011-1022); the kernel's own port is 0, and
nobody else can have that.

Events are lost where they come faster than they are read; recv(2) says so once (ENOBUFS). Pids are those of the initial
pid namespace: from within another one, or from another user or network namespace, the kernel does not listen.

Sources: Documentation/driver-api/connector.rst, include/uapi/linux/cn_proc.h, netlink(7), drivers/connector/cn_proc.c.
The layouts are pyroute2's (pyroute2.netlink.connector.cn_proc). Its socket takes messages from anybody, and its
decoder stops at a name that is not UTF-8; so the socket is our own, and pids are cut out by the layouts alone.
"""

from __future__ import annotations

import errno
import importlib
import os
import select
import socket
import struct
import time
from typing import Any

from nestrt.errors import HostError, KernelError
from nestrt.net.library import find_pyroute2

NETLINK_CONNECTOR = 11  # include/uapi/linux/netlink.h
NLMSG_DONE = 3
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
BUFFER = 1 << 20  # bytes of the kernel's queue: some thousand events
PATIENCE = 2.0  # seconds for the kernel's acknowledgement
KERNEL = 0
WANTED = ("EXEC", "UID", "GID", "SID", "COMM")

_NLMSGHDR = "IHHII"
_REFUSED = (errno.EPERM, errno.ECONNREFUSED, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
_REMEDY = "only the initial namespaces hear them: ask the level above for rules, or move processes yourself"


def _layout(fields: Any) -> struct.Struct:
    """The whole message of one of pyroute2's classes."""
    return struct.Struct("=" + _NLMSGHDR + "".join(kind for _, kind in fields))


class ProcessEvents:
    """A socket that hears them. Waits up to two seconds for the kernel, and imports pyroute2.

    Raises HostError where this level cannot hear them, KernelError.
    """

    def __init__(self, buffer: int = BUFFER) -> None:
        find_pyroute2("leave rules out")
        try:
            # Not before somebody has rules: it costs 300 ms and 22 MB.
            layouts = importlib.import_module("pyroute2.netlink.connector.cn_proc")
        except ImportError as error:
            reason = "it has no pyroute2.netlink.connector.cn_proc"
            raise HostError("load", "pyroute2", reason, "install a newer one (pip install pyroute2)") from error
        self.ids = (int(layouts.CN_IDX_PROC), int(layouts.CN_VAL_PROC))
        self.actions = (int(layouts.PROC_CN_MCAST_LISTEN), int(layouts.PROC_CN_MCAST_IGNORE))
        self.head = _layout(layouts.proc_event_base.fields)
        self.event = _layout(layouts.proc_event_exec.fields)  # all wanted ones begin like this
        self.request = _layout(layouts.proc_event_control.fields)
        self.kinds = {int(getattr(layouts, f"PROC_EVENT_{name}")): name for name in WANTED}
        self.acknowledged = int(layouts.PROC_EVENT_NONE)
        self.forged = 0
        try:
            self.socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_CONNECTOR
            )
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._subscribe(buffer)
        except OSError as error:
            self.socket.close()
            raise self._failed(error) from error
        except BaseException:
            self.socket.close()
            raise

    def _failed(self, error: OSError) -> HostError | KernelError:
        if error.errno in _REFUSED:
            reason = error.strerror or "not here"
            return HostError("listen to", "the kernel's process events", reason, _REMEDY)
        return KernelError("listen to", "the kernel's process events", error.errno or 0, _REMEDY)

    def _subscribe(self, buffer: int) -> None:
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.bind((0, self.ids[0]))
        # Unicast messages of others then do not even get into the queue.
        self.socket.connect((KERNEL, 0))
        token = int.from_bytes(os.urandom(3), "little")
        self._send(self.actions[0], token)
        self._await(token)
        # Linux 6.6 can filter; it does not acknowledge what is filtered out, and an older kernel ignores this.
        self._send(self.actions[0], token, sum(self.kinds))

    def _send(self, action: int, token: int, kinds: int | None = None) -> None:
        body = b"" if kinds is None else struct.pack("=I", kinds)
        length = self.request.size + len(body)
        size = 4 + len(body)
        self.socket.send(
            self.request.pack(length, NLMSG_DONE, 0, 0, 0, *self.ids, 0, token, size, 0, action) + body
        )

    def _await(self, token: int) -> None:
        """Until the kernel has acknowledged, with *token* + 1. To another user or pid namespace it says nothing."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        end = time.monotonic() + PATIENCE
        while (left := end - time.monotonic()) > 0:
            poll.poll(left * 1000)
            for data in self._messages(64):
                *_, answered, _, _, what, _, _ = self.head.unpack_from(data)
                if what == self.acknowledged and answered == token + 1 and len(data) >= self.head.size + 4:
                    code = struct.unpack_from("=I", data, self.head.size)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
        raise OSError(errno.EPERM, "the kernel does not answer this level")

    def _messages(self, most: int) -> list[bytes]:
        """What has come from the kernel. Raises OSError: ENOBUFS where some has been lost."""
        found = []
        for _ in range(most):
            try:
                data, _, flags, sender = self.socket.recvmsg(4096)
            except BlockingIOError:
                break
            if not isinstance(sender, tuple) or sender[0] != KERNEL:
                self.forged += 1
                continue
            if flags & socket.MSG_TRUNC or len(data) < self.head.size:
                continue
            if self.head.unpack_from(data)[5:7] == self.ids:
                found.append(data)
        return found

    def fileno(self) -> int:
        """For whoever waits until there is something to read."""
        return self.socket.fileno()

    def read(self, most: int = 64) -> tuple[list[int], bool]:
        """(the pids of processes to look at, each once; whether events were lost). Does not wait."""
        try:
            messages = self._messages(most)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return [], True
        pids: dict[int, None] = {}
        for data in messages:
            if len(data) >= self.event.size:
                *_, what, _, _, thread, process = self.event.unpack_from(data)
                # A thread's name is not the process's.
                if what in self.kinds and (self.kinds[what] != "COMM" or thread == process):
                    pids[process] = None
        return list(pids), False

    def close(self) -> None:
        """Before Linux 6.6 the kernel counts listeners by what they say, and not by their sockets."""
        try:
            self._send(self.actions[1], 0)
        except OSError:
            pass
        self.socket.close()
