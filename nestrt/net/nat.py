"""The nftables tables of nestrt's bridge: NAT towards the outside, and what guests may not send.

The same as the following, replaced as one transaction at every connect, so that
a table that was left half made, or changed, is whole afterwards::

    table ip nestrt {
        chain prerouting  { type filter hook prerouting priority -300;
                            iifname "nestrt0" ip saddr != SUBNET drop }
        chain forward     { type filter hook forward priority 0;
                            oifname "nestrt0" ct state established,related accept
                            oifname "nestrt0" ct status dnat accept
                            oifname "nestrt0" drop }
        chain postrouting { type nat hook postrouting priority 100;
                            ip saddr SUBNET oifname != "nestrt0" masquerade }
    }
    table ip6 nestrt {
        chain prerouting  { type filter hook prerouting priority -300; iifname "nestrt0" drop }
    }

*prerouting* stops a guest from sending with an address of another network: such
packets would leave untranslated. *forward* stops new connections to guests from
outside and between guests (the bridge's isolated ports stop the frames, and
this the detour through the gateway); a DNAT rule of the administrator's own
publishes a port. IPv6 is not offered, and a router advertisement by a guest
would change the host's own routes (CVE-2020-10749), so it ends at the bridge.

pyroute2's nftables calls send each command as a transaction of its own, so the
messages are pyroute2's and the batch is sent here. See nft(8) and
<linux/netfilter/nf_tables.h>.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from typing import Any

from nestrt.errors import HostError, KernelError
from nestrt.net.library import OTHER_MODES, doing

TABLE = "nestrt"
IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"

NETLINK_NETFILTER = 12  # <linux/netlink.h>
NFNL_SUBSYS_NFTABLES = 10  # <linux/netfilter/nfnetlink.h>
NFNL_MSG_BATCH_BEGIN = 0x10
NFNL_MSG_BATCH_END = 0x11
NFT_MSG_NEWTABLE = 0  # <linux/netfilter/nf_tables.h>
NFT_MSG_DELTABLE = 2
NFT_MSG_NEWCHAIN = 3
NFT_MSG_NEWRULE = 6
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE, NLM_F_APPEND = 0x1, 0x4, 0x400, 0x800
NLMSG_ERROR = 2
NF_DROP, NF_ACCEPT = 0, 1
HOOKS = {"prerouting": 0, "forward": 2, "postrouting": 4}
META_IIFNAME, META_OIFNAME = 6, 7
CT_STATE, CT_STATUS = 0, 2
CT_ESTABLISHED_RELATED = 2 | 4  # bits of NF_CT_STATE_BIT()
CT_DST_NAT = 1 << 5  # IPS_DST_NAT
CMP_EQ, CMP_NEQ = 0, 1

# One message: netlink type, address family, values by attribute.
Message = tuple[int, int, dict[str, Any]]


def install(bridge: str, subnet: ipaddress.IPv4Network) -> None:
    """Put the tables in place for *bridge*, whose guests have addresses of *subnet*.

    Raises HostError where the kernel has no nf_tables, or no NAT in it, or the
    level may not use it; KernelError for anything else.
    """
    inside, outside = _interface(META_IIFNAME, bridge), _interface(META_OIFNAME, bridge)
    family = int(socket.AF_INET)
    messages = [
        *_fresh_table(family),
        _chain(family, "prerouting", "filter", -300),
        _chain(family, "forward", "filter", 0),
        _chain(family, "postrouting", "nat", 100),
        _rule(family, "prerouting", inside, _source(subnet, CMP_NEQ), _verdict(NF_DROP)),
        _rule(family, "forward", outside, _conntrack(CT_STATE, CT_ESTABLISHED_RELATED), _verdict(NF_ACCEPT)),
        _rule(family, "forward", outside, _conntrack(CT_STATUS, CT_DST_NAT), _verdict(NF_ACCEPT)),
        _rule(family, "forward", outside, _verdict(NF_DROP)),
        _rule(
            family,
            "postrouting",
            _source(subnet, CMP_EQ),
            _interface(META_OIFNAME, bridge, CMP_NEQ),
            [_expression("masq", {})],
        ),
    ]
    if _has_ipv6():
        family = int(socket.AF_INET6)
        messages += _fresh_table(family)
        messages.append(_chain(family, "prerouting", "filter", -300))
        messages.append(_rule(family, "prerouting", inside, _verdict(NF_DROP)))
    try:
        with doing("add", f"nftables table {TABLE}"):
            _transaction(messages)
    except KernelError as error:
        # The transaction names only things it makes itself: what is not found or not valid is a missing part.
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise
        reason = f"{error.reason}: this kernel lacks nf_tables, its nat chains, or its masq or ct expression"
        raise HostError("add", f"nftables table {TABLE}", reason, OTHER_MODES) from error


def remove() -> None:
    """Remove the tables; nothing happens if they are not there, nor where the kernel has no nftables."""
    families = [int(socket.AF_INET)] + ([int(socket.AF_INET6)] if _has_ipv6() else [])
    try:
        with doing("remove", f"nftables table {TABLE}"):
            _transaction([message for family in families for message in _fresh_table(family)[:2]])
    except HostError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
            return
        raise
    except KernelError as error:
        if error.errno != errno.EINVAL:  # nfnetlink without nf_tables, before Linux 4.0
            raise


def forward_packets() -> None:
    """Turn net.ipv4.ip_forward on in this network namespace, if it is off.

    It stays on: nobody can tell who relies on it by then. Turning it on sets
    other values of net.ipv4.conf to a router's defaults
    (Documentation/networking/ip-sysctl.rst). Raises HostError where /proc/sys
    cannot be written.
    """
    remedy = f"set net.ipv4.ip_forward=1 where that can be done, or {OTHER_MODES}"
    try:
        with open(IP_FORWARD, encoding="ascii") as file:
            if file.read().strip() != "0":
                return
        with open(IP_FORWARD, "w", encoding="ascii") as file:
            file.write("1\n")
    except OSError as error:
        raise HostError("turn on", IP_FORWARD, error.strerror or "it cannot be written", remedy) from error


def _has_ipv6() -> bool:
    return os.path.exists("/proc/self/net/if_inet6")


def _fresh_table(family: int) -> list[Message]:
    """Add, delete, add: the deletion always finds one, and the result is always empty."""
    table = {"NFTA_TABLE_NAME": TABLE}
    return [(NFT_MSG_NEWTABLE, family, table), (NFT_MSG_DELTABLE, family, table), (NFT_MSG_NEWTABLE, family, table)]


def _chain(family: int, hook: str, kind: str, priority: int) -> Message:
    place = {"attrs": [("NFTA_HOOK_HOOKNUM", HOOKS[hook]), ("NFTA_HOOK_PRIORITY", priority)]}
    values = {
        "NFTA_CHAIN_TABLE": TABLE,
        "NFTA_CHAIN_NAME": hook,
        "NFTA_CHAIN_HOOK": place,
        "NFTA_CHAIN_POLICY": NF_ACCEPT,
        "NFTA_CHAIN_TYPE": kind,
    }
    return NFT_MSG_NEWCHAIN, family, values


def _rule(family: int, chain: str, *parts: list[dict[str, Any]]) -> Message:
    expressions = [expression for part in parts for expression in part]
    values = {"NFTA_RULE_TABLE": TABLE, "NFTA_RULE_CHAIN": chain, "NFTA_RULE_EXPRESSIONS": expressions}
    return NFT_MSG_NEWRULE, family, values


def _expression(name: str, values: dict[str, Any]) -> dict[str, Any]:
    attributes = [(f"NFTA_{name.upper()}_{key}", value) for key, value in values.items()]
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": attributes})]}


def _value(value: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _compare(operator: int, value: bytes) -> dict[str, Any]:
    return _expression("cmp", {"SREG": 1, "OP": operator, "DATA": _value(value)})


def _mask(mask: bytes) -> dict[str, Any]:
    values = {"SREG": 1, "DREG": 1, "LEN": len(mask), "MASK": _value(mask), "XOR": _value(bytes(len(mask)))}
    return _expression("bitwise", values)


def _interface(key: int, name: str, operator: int = CMP_EQ) -> list[dict[str, Any]]:
    return [
        _expression("meta", {"DREG": 1, "KEY": key}),
        _compare(operator, name.encode().ljust(16, b"\0")),  # IFNAMSIZ
    ]


def _source(subnet: ipaddress.IPv4Network, operator: int) -> list[dict[str, Any]]:
    # Base 1 is the network header; the source address of IPv4 is at 12.
    return [
        _expression("payload", {"DREG": 1, "BASE": 1, "OFFSET": 12, "LEN": 4}),
        _mask(subnet.netmask.packed),
        _compare(operator, subnet.network_address.packed),
    ]


def _conntrack(key: int, bits: int) -> list[dict[str, Any]]:
    # In host byte order, as the kernel keeps them.
    return [
        _expression("ct", {"DREG": 1, "KEY": key}),
        _mask(struct.pack("=I", bits)),
        _compare(CMP_NEQ, bytes(4)),
    ]


def _verdict(code: int) -> list[dict[str, Any]]:
    verdict = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", code)]})]}
    return [_expression("immediate", {"DREG": 0, "DATA": verdict})]


def _transaction(messages: list[Message]) -> None:
    """Send *messages* as one batch: the kernel does all of them or none. Raises OSError with its errno."""
    data = _encode(None, 0, NFNL_MSG_BATCH_BEGIN, 0, NLM_F_REQUEST)
    for number, (kind, family, values) in enumerate(messages, 1):
        flags = NLM_F_REQUEST | NLM_F_ACK
        if kind != NFT_MSG_DELTABLE:
            flags |= NLM_F_CREATE | (NLM_F_APPEND if kind == NFT_MSG_NEWRULE else 0)
        data += _encode(values, number, kind, family, flags)
    data += _encode(None, len(messages) + 1, NFNL_MSG_BATCH_END, 0, NLM_F_REQUEST)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as link:
        link.settimeout(10)
        link.bind((0, 0))
        link.send(data)
        done = False
        while not done:
            done = _acknowledged(link.recv(65536), len(messages))


def _acknowledged(answers: bytes, last: int) -> bool:
    """Whether *answers* have the acknowledgement of message *last*; OSError for one that failed.

    struct nlmsghdr { __u32 len; __u16 type, flags; __u32 seq, pid; }
    struct nlmsgerr { int error; struct nlmsghdr msg; … }
    """
    offset = 0
    while offset + 16 <= len(answers):
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", answers, offset)
        if kind == NLMSG_ERROR:
            (error,) = struct.unpack_from("=i", answers, offset + 16)
            if error:
                raise OSError(-error, os.strerror(-error))
            if sequence == last:
                return True
        offset += max(16, (length + 3) & ~3)
    return False


def _encode(values: dict[str, Any] | None, number: int, kind: int, family: int, flags: int) -> bytes:
    from pyroute2.netlink.nfnetlink import nfgen_msg, nftsocket

    classes = {
        NFT_MSG_NEWTABLE: nftsocket.nft_table_msg,
        NFT_MSG_DELTABLE: nftsocket.nft_table_msg,
        NFT_MSG_NEWCHAIN: nftsocket.nft_chain_msg,
        NFT_MSG_NEWRULE: nftsocket.nft_rule_msg,
    }
    if values is None:
        message = nfgen_msg()
        message["res_id"] = NFNL_SUBSYS_NFTABLES
        message["header"]["type"] = kind
    else:
        message = classes[kind]()
        message["attrs"] = list(values.items())
        message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | kind
    message["nfgen_family"] = family
    message["header"]["flags"] = flags
    message["header"]["sequence_number"] = number
    message.encode()
    return bytes(message.data)
