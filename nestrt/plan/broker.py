"""Where the broker's sockets are: on the launching level, and in a guest. Pure."""

from __future__ import annotations

from nestrt.plan.request import PARENT, STATE_DIR

HOST_SOCKET = f"{STATE_DIR}/host.sock"
GUEST_SOCKET = f"{STATE_DIR}/guest.sock"
# Each guest's socket is in a directory of its own below this one, which only the level's root may enter.
SOCKETS = f"{STATE_DIR}/broker"
SOCKET_NAME = "guest.sock"
AUDIT = "NESTRT_AUDIT"  # in the environment: the directory of the audit


def socket_directory(name: str, limit_group: str) -> str:
    """The directory of the socket for guest *name*, whose limit group is *limit_group*.

    Guests of ``launch`` have names of their own; a container's may be the same as another engine's.
    """
    if limit_group == f"{PARENT}/{name}":
        return f"{SOCKETS}/{name}"
    from _blake2 import blake2b  # for an engine's container only

    return f"{SOCKETS}/{name[:40]}@{blake2b(limit_group.encode(errors='replace'), digest_size=8).hexdigest()}"


def socket_path(name: str, limit_group: str) -> str:
    """The socket itself, on the launching level."""
    return f"{socket_directory(name, limit_group)}/{SOCKET_NAME}"
