"""``--net veth``: a guest's interface, on the bridge of the level that launches it.

::

    launching level's network namespace          guest's network namespace
      nestrt0      10.213.0.1/22  bridge
       └ nestrtXXXXXXXX  isolated port ────────── eth0  10.213.0.2/22, default by 10.213.0.1

Guests reach the gateway and, by NAT, whatever the launching level reaches; not
each other, and nobody outside reaches them unasked (``nat``).

What a launcher leaves behind when it is killed at any point is found by the
guest's name alone: the interface's name is a hash of it, and the reservation of
the address points to it. A guest may change its own eth0: what binds it is on
this side of the pair (no learning on the port, a static forwarding entry and a
permanent neighbour entry), so traffic for an address goes to its guest only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from typing import Any

from nestrt.errors import HostError, NestrtError, NotFound, StateError
from nestrt.net import addresses, bridge
from nestrt.net.addresses import STATE_DIR
from nestrt.net.library import OTHER_MODES, doing, error_number, find_pyroute2

GUEST_INTERFACE = "eth0"
NTF_MASTER = 0x04  # <linux/neighbour.h>: the bridge's own forwarding table
NUD_NOARP = 0x40  # "static" in bridge(8)


def interface_name(name: str) -> str:
    """The launching level's side of guest *name*: 14 of the 15 characters that Linux allows."""
    return "nestrt" + hashlib.sha256(name.encode()).hexdigest()[:8]


def reserved(state_dir: str = STATE_DIR) -> dict[str, str]:
    """The guests' names by their addresses."""
    return addresses.reserved(state_dir)


def connect(name: str, pid: int, state_dir: str = STATE_DIR) -> dict[str, str]:
    """Give the guest *name* an address on the bridge of the caller's network namespace.

    *pid* is a process in the guest's network namespace, which must be its own.
    The caller needs CAP_NET_ADMIN in its network namespace and CAP_SYS_ADMIN
    over the guest's. Returns the mark's ``net``: mode, bridge, address (with
    prefix length), gateway, interface, mac.

    Undoes what it did when it fails: NotFound (no such process), StateError
    (the name has an interface already), HostError (this kernel or level cannot
    do it), KernelError. The caller is in its own network namespace in any case.
    """
    find_pyroute2()
    from pyroute2 import IPRoute

    namespace = _guest_namespace(name, pid)
    try:
        with addresses.locked(state_dir), doing("connect", f"guest {name}"), IPRoute() as routes:
            interface = interface_name(name)
            if bridge.index_of(routes, interface):
                remedy = f"run nestrt gc, or nestrt delete --force {name}"
                raise StateError("connect", f"guest {name}", f"interface {interface} is there already", remedy)
            _release(routes, name, state_dir)
            try:
                return _connect(routes, name, namespace, state_dir)
            except BaseException:
                _undo(routes, name, state_dir)
                raise
    finally:
        os.close(namespace)


def disconnect(name: str, state_dir: str = STATE_DIR) -> None:
    """Remove all that connect made for *name*, and the bridge with the last guest. May be repeated.

    Needs only the name, and works after a kill at any point of connect. Does
    not import pyroute2 where there is nothing to remove.
    """
    if not os.path.isdir(state_dir) and not _exists(interface_name(name)) and not _exists(bridge.BRIDGE):
        return
    with addresses.locked(state_dir):
        names = set(addresses.reserved(state_dir).values())
        nothing_of_it = name not in names and not _exists(interface_name(name))
        if nothing_of_it and (names or not _exists(bridge.BRIDGE)):
            return
        find_pyroute2()
        from pyroute2 import IPRoute

        with doing("disconnect", f"guest {name}"), IPRoute() as routes:
            _release(routes, name, state_dir)
            if not addresses.reserved(state_dir):
                bridge.remove_if_unused(routes)


def _connect(routes: Any, name: str, namespace: int, state_dir: str) -> dict[str, str]:
    index, gateway = bridge.ensure(routes)
    address = addresses.reserve(state_dir, name, gateway, bridge.used_addresses(routes, index))
    interface, mac, mtu = interface_name(name), bridge.mac_of(address), bridge.uplink_mtu(routes)
    with doing("add interface", f"{interface} of guest {name}"):
        # The peer is born in the guest's namespace: it never has a name here.
        peer = {"ifname": GUEST_INTERFACE, "net_ns_fd": namespace, "address": mac, "mtu": mtu}
        routes.link("add", ifname=interface, kind="veth", master=index, mtu=mtu, peer=peer)
        port = bridge.index_of(routes, interface)
    with doing("isolate interface", f"{interface} of guest {name}"):
        routes.brport("set", index=port, isolated=1, learning=0, unicast_flood=0)
        routes.fdb("add", ifindex=port, lladdr=mac, flags=NTF_MASTER, state=NUD_NOARP)
        routes.neigh("replace", dst=address, lladdr=mac, ifindex=index, state="permanent")
    with doing("bring up interface", f"{interface} of guest {name}"):
        # Shown by ip-link(8): the name's hash says nothing to people.
        routes.link("set", index=port, ifalias=f"nestrt guest {name}", state="up")
    _configure_guest(name, namespace, address, gateway.network.prefixlen, str(gateway.ip))
    return {
        "mode": "veth",
        "bridge": bridge.BRIDGE,
        "address": f"{address}/{gateway.network.prefixlen}",
        "gateway": str(gateway.ip),
        "interface": interface,
        "mac": mac,
    }


def _configure_guest(name: str, namespace: int, address: str, prefixlen: int, gateway: str) -> None:
    """Bring up lo and eth0 in the guest, with the address and the default route."""
    with doing("configure", f"{GUEST_INTERFACE} of guest {name}"), _routes_in(namespace) as routes:
        routes.link("set", index=bridge.index_of(routes, "lo"), state="up")
        index = bridge.index_of(routes, GUEST_INTERFACE)
        routes.addr("add", index=index, address=address, prefixlen=prefixlen)
        routes.link("set", index=index, state="up")
        routes.route("add", dst="default", gateway=gateway, oif=index)


def _routes_in(namespace: int) -> Any:
    """An IPRoute for another network namespace, made without a child process or thread.

    A netlink socket belongs to the namespace that its maker was in (netlink(7)),
    so the calling thread is there only while the socket is made.
    """
    from pyroute2 import IPRoute
    from pyroute2.netns import setns

    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(own)  # changes nothing, and fails where the way back would fail
        try:
            setns(namespace)
            return IPRoute()
        finally:
            setns(own)
    finally:
        os.close(own)


def _guest_namespace(name: str, pid: int) -> int:
    """A descriptor of the network namespace of *pid*, which must not be the caller's own."""
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise NotFound("connect", f"guest {name}", f"there is no process {pid}", "launch it again") from error
        reason = f"/proc/{pid}/ns/net: {error.strerror}"
        raise HostError("connect", f"guest {name}", reason, OTHER_MODES) from error
    if os.path.samestat(os.fstat(namespace), os.stat("/proc/thread-self/ns/net")):
        os.close(namespace)
        reason = f"process {pid} has no network namespace of its own"
        raise StateError("connect", f"guest {name}", reason, "use --net host")
    return namespace


def _release(routes: Any, name: str, state_dir: str) -> None:
    """Remove the interface of *name*, its neighbour entries and reservations; the reservation, which finds them, last.

    What is not there is passed over: the kernel removes the interface by itself
    some time after the guest's last process.
    """
    held = [address for address, owner in addresses.reserved(state_dir).items() if owner == name]
    port = bridge.index_of(routes, interface_name(name))
    if port:
        _ignoring_absence(routes.link, "del", index=port)
    index = bridge.index_of(routes, bridge.BRIDGE)
    for address in held:
        if index:
            _ignoring_absence(routes.neigh, "del", dst=address, ifindex=index)
        addresses.release(state_dir, address)


def _ignoring_absence(call: Any, command: str, **values: Any) -> None:
    try:
        call(command, **values)
    except Exception as error:
        if error_number(error) not in (errno.ENOENT, errno.ENODEV, errno.ESRCH):
            raise


def _undo(routes: Any, name: str, state_dir: str) -> None:
    """Leave nothing of a connect that failed; the error that is on its way says more than one from here."""
    try:
        with doing("disconnect", f"guest {name}"):
            _release(routes, name, state_dir)
            if not addresses.reserved(state_dir):
                bridge.remove_if_unused(routes)
    except NestrtError:
        pass


def _exists(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True
