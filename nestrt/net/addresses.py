"""Which guest has which address: one symbolic link per address, made before anything uses it.

``STATE_DIR/10.213.0.5 -> web``. symlink(2) fails if the name is there, so that
two launchers never get the same address; the link is readable with ``ls -l``,
and its target is all that is needed to clean up after a launcher that was killed.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from nestrt.errors import HostError, KernelError
from nestrt.net.library import OTHER_MODES

STATE_DIR = "/run/nestrt/net"


@contextmanager
def locked(state_dir: str) -> Iterator[None]:
    """Hold STATE_DIR/lock by flock(2): one connect or disconnect at a time. The kernel releases it on a kill."""
    path = os.path.join(state_dir, "lock")
    try:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise KernelError("lock", path, error.errno or 0, "check that the directory can be written") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def reserved(state_dir: str = STATE_DIR) -> dict[str, str]:
    """The guests' names by their addresses; empty if nothing was ever reserved."""
    found: dict[str, str] = {}
    try:
        entries = os.listdir(state_dir)
    except FileNotFoundError:
        return found
    for entry in sorted(entries):
        try:
            ipaddress.IPv4Address(entry)
            found[entry] = os.readlink(os.path.join(state_dir, entry))
        except (ValueError, OSError):
            continue  # the lock, or just removed
    return found


def reserve(state_dir: str, name: str, gateway: ipaddress.IPv4Interface, used: Iterable[str]) -> str:
    """Take the first free address of the gateway's subnet for *name*, and none of *used*.

    Raises HostError when the subnet is full.
    """
    taken = {str(gateway.ip), *used}
    for address in map(str, gateway.network.hosts()):
        if address in taken:
            continue
        try:
            os.symlink(name, os.path.join(state_dir, address))
        except FileExistsError:
            continue
        except OSError as error:
            path = os.path.join(state_dir, address)
            raise KernelError("reserve", path, error.errno or 0, "check that the directory can be written") from error
        return address
    reason = f"every address of {gateway.network} is in use"
    raise HostError("reserve an address for", f"guest {name}", reason, f"run nestrt gc, or {OTHER_MODES}")


def release(state_dir: str, address: str) -> None:
    """Give *address* back; nothing happens if it is free."""
    try:
        os.unlink(os.path.join(state_dir, address))
    except FileNotFoundError:
        pass
