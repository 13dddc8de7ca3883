"""Network interfaces, as far as netdevice(7)'s ioctls go: the loopback of a new network namespace."""

from __future__ import annotations

import _socket
import fcntl
from struct import pack, unpack_from

SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1


def loopback_up() -> None:
    """Bring ``lo`` up in this network namespace. Raises OSError: EPERM without CAP_NET_ADMIN over it."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        # struct ifreq { char ifr_name[16]; short ifr_flags; ... }, 40 bytes
        reply = fcntl.ioctl(sock.fileno(), SIOCGIFFLAGS, pack("16sH22x", b"lo", 0))
        flags = unpack_from("H", reply, 16)[0]
        fcntl.ioctl(sock.fileno(), SIOCSIFFLAGS, pack("16sH22x", b"lo", flags | IFF_UP))
    finally:
        sock.close()
