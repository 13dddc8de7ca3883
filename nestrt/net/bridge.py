"""The bridge ``nestrt0``: made with the first guest, removed with the last.

It keeps its own settings: its subnet is the address on it. An administrator who
makes the bridge first, with an address, has chosen the subnet, and that bridge
stays; the MAC tells nestrt's own.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

from nestrt.errors import HostError
from nestrt.net import nat
from nestrt.net.library import OTHER_MODES, doing, error_number

BRIDGE = "nestrt0"
# Given when it is made, so that a kill never leaves one that is not known as nestrt's (an alias is set afterwards).
# Without a MAC of its own a bridge takes its lowest port's, which changes as guests come and go.
BRIDGE_MAC = "02:4e:00:00:00:01"
RT_DEFAULT_MTU = 1500
NUD_PERMANENT = 0x80  # <linux/neighbour.h>

# 1021 guests each: a bridge has room for 1023 ports (BR_MAX_PORTS). One for
# every level there may be, since a guest that has guests sees its host's subnet.
CANDIDATES = (
    *(f"10.{second}.0.0/22" for second in range(213, 245)),
    "172.29.212.0/22",
    "172.30.212.0/22",
    "192.168.212.0/22",
)


def ensure(routes: Any) -> tuple[int, ipaddress.IPv4Interface]:
    """Make the bridge, its address and its nftables tables whole; returns its index and address.

    Every part is made only where it is missing, so that one that was left half
    made by a killed launcher is completed. *routes* is a pyroute2 IPRoute.
    """
    with doing("add bridge", BRIDGE):
        try:
            routes.link("add", ifname=BRIDGE, kind="bridge", address=BRIDGE_MAC)
        except Exception as error:
            if error_number(error) != errno.EEXIST:
                raise
        index = index_of(routes, BRIDGE)
        if _kind_and_mac(routes, index)[0] != "bridge":
            raise HostError("use", f"interface {BRIDGE}", "it is no bridge", f"rename it, or {OTHER_MODES}")
        gateway = _address(routes, index)
        if gateway is None:
            gateway = _free_subnet(routes)
            routes.addr("add", index=index, address=str(gateway.ip), prefixlen=gateway.network.prefixlen)
    # Rules first, then packets.
    nat.install(BRIDGE, gateway.network)
    with doing("bring up bridge", BRIDGE):
        routes.link("set", index=index, state="up")
    nat.forward_packets()
    return index, gateway


def remove_if_unused(routes: Any) -> None:
    """Remove the tables and the bridge unless an interface is still on it.

    A bridge of the administrator's stays. Nothing happens if there is none.
    """
    with doing("remove bridge", BRIDGE):
        index = index_of(routes, BRIDGE)
        if not index or any(_attribute(link, "IFLA_MASTER") == index for link in routes.get_links()):
            return
        # The bridge goes last: while it is there, the tables may be too.
        nat.remove()
        if _kind_and_mac(routes, index) == ("bridge", BRIDGE_MAC):
            routes.link("del", index=index)


def index_of(routes: Any, name: str) -> int:
    """The index of interface *name*, 0 if there is none."""
    found = routes.link_lookup(ifname=name)
    return int(found[0]) if found else 0


def mac_of(address: str) -> str:
    """A locally administered MAC for an IPv4 address: no two guests of a bridge share one."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x4e" + ipaddress.IPv4Address(address).packed)


def used_addresses(routes: Any, index: int) -> set[str]:
    """The addresses that guests of any launcher in this network namespace have on the bridge.

    Every guest has a permanent neighbour entry. This is how a launcher sees the
    guests of one that shares its network namespace and not its state directory.
    """
    neighbours = routes.get_neighbours(family=int(socket.AF_INET), ifindex=index)
    return {str(_attribute(entry, "NDA_DST")) for entry in neighbours if entry["state"] & NUD_PERMANENT}


def uplink_mtu(routes: Any) -> int:
    """The MTU of the default route's interface in bytes, at most 1500; 1500 without one.

    Where the host's own network is a tunnel, a guest with a larger MTU would
    depend on ICMP errors coming through.
    """
    for route in routes.get_routes(family=int(socket.AF_INET)):
        uplink = _attribute(route, "RTA_OIF")
        if route["dst_len"] == 0 and uplink:
            for link in routes.get_links(int(uplink)):
                return min(RT_DEFAULT_MTU, int(_attribute(link, "IFLA_MTU") or RT_DEFAULT_MTU))
    return RT_DEFAULT_MTU


def _attribute(message: Any, name: str) -> Any:
    return dict(message["attrs"]).get(name)


def _kind_and_mac(routes: Any, index: int) -> tuple[str, str]:
    for link in routes.get_links(index):
        information = _attribute(link, "IFLA_LINKINFO")
        kind = str(_attribute(information, "IFLA_INFO_KIND")) if information else ""
        return kind, str(_attribute(link, "IFLA_ADDRESS"))
    return "", ""


def _address(routes: Any, index: int) -> ipaddress.IPv4Interface | None:
    for entry in routes.get_addr(family=int(socket.AF_INET), index=index):
        if entry["index"] == index:
            return ipaddress.IPv4Interface((_attribute(entry, "IFA_LOCAL"), entry["prefixlen"]))
    return None


def _free_subnet(routes: Any) -> ipaddress.IPv4Interface:
    """The first candidate that no route of any table overlaps, default routes apart."""
    taken = [
        ipaddress.IPv4Network((_attribute(route, "RTA_DST"), route["dst_len"]), strict=False)
        for route in routes.get_routes(family=int(socket.AF_INET))
        if route["dst_len"] and _attribute(route, "RTA_DST")
    ]
    for candidate in map(ipaddress.IPv4Network, CANDIDATES):
        if not any(candidate.overlaps(network) for network in taken):
            return ipaddress.IPv4Interface((next(candidate.hosts()), candidate.prefixlen))
    remedy = f"choose one: ip link add {BRIDGE} type bridge; ip address add SUBNET dev {BRIDGE}; or {OTHER_MODES}"
    raise HostError("choose a subnet for", f"bridge {BRIDGE}", "this host has routes into all candidates", remedy)
