"""The options of ``nestrt launch``, and the Request that they make."""

from __future__ import annotations

import os
import stat

from nestrt.cli.options import Option
from nestrt.errors import InputError, NotFound
from nestrt.level.capabilities import parse_capabilities
from nestrt.level.devices import DEFAULT_RULES, DeviceRule, parse_rule
from nestrt.level.limits import Limits, over, parse_ios
from nestrt.level.policy import BROKERS, Policy
from nestrt.level.units import (
    parse_count,
    parse_cpus,
    parse_id_range,
    parse_name,
    parse_quota,
    parse_size,
    parse_weight,
)
from nestrt.plan.request import MountRequest, Request
from nestrt.probe.nodes import device_node
from nestrt.record import replace

HEAD = (
    "usage: nestrt launch --rootfs DIR [OPTION …] [--] COMMAND [ARGUMENT …]\n\nStart a guest with its own cgroup tree."
)
TAIL = """
Exit status: the guest's own; 128+n if signal n ended it; 127 if the program is not in
the guest, 126 if it cannot be executed; 125 if the guest could not be started.
"""
LIMITS = (
    Option("memory", "SIZE", "limit of memory: 512M, 2G, max", "m"),
    Option("swap", "SIZE", "limit of swap, in addition to memory"),
    Option("cpus", "LIST", "CPUs to run on: 0-1,3"),
    Option("cpu-quota", "CPUS", "CPU time, in CPUs: 1.5"),
    Option("cpu-weight", "N", "share of CPU time against its siblings: 1-10000"),
    Option("pids", "N", "limit of processes and threads"),
    Option("io", "LIMIT", "per device: '8:0 rbps=1M wbps=1M riops=100 wiops=100' or /dev/sda…", repeat=True),
    Option("device", "RULE", "allow a device: 'c 10:229 rwm', or /dev/fuse[:rwm]", repeat=True),
)
OPTIONS = (
    Option("rootfs", "DIR", "the root filesystem"),
    Option("name", "ID", "the guest's name (default: one is made up)"),
    Option("policy", "FILE", "a CONTAINER_LEVEL policy (TOML); flags beat it"),
    *LIMITS,
    Option("hostname", "NAME", "hostname (default: the guest's name)"),
    Option("env", "K=V", "environment variable; K alone takes it over", "e", repeat=True),
    Option("workdir", "DIR", "working directory in the guest", "w"),
    Option("user", "USER", "uid[:gid], or names that the guest knows", "u"),
    Option(
        "mount", "SPEC", "type=bind,source=DIR,target=DIR[,ro][,idmap] or type=tmpfs,target=DIR[,size=64M]", repeat=True
    ),
    Option("read-only", "", "make the root filesystem read-only"),
    Option("overlay", "", "throw away what is written to the root filesystem"),
    Option(
        "net",
        "MODE",
        "none (loopback only, default), host, or veth (bridge with NAT)",
        choices=("none", "host", "veth"),
    ),
    Option(
        "broker",
        "MODE",
        "none, wanted, required, or embedded: one for this guest alone (default: the policy's)",
        choices=("none", "wanted", "required", "embedded"),
    ),
    Option("userns", "MODE", "auto (private ids, default), none, or INSIDE:OUTSIDE:COUNT[,…]"),
    Option("capabilities", "LIST", "all, default, or CAP_…,CAP_…"),
    Option("terminal", "", "give the guest a terminal", "t"),
    Option("detach", "", "print the name and leave; no process stays", "d"),
    Option("log", "FILE", "where a detached guest's output goes (default: nowhere)"),
    Option("rm", "", "remove the guest's groups when it ends (detached: at the next gc)"),
    Option("dry-run", "", "print what would be done, and do nothing"),
    Option("help", "", "this text", "h"),
)


def _policy(path: str) -> Policy:
    # tomllib and its regular expressions: only where a file is given
    from nestrt.cli.policy import read_policy
    from nestrt.level.toml import load_policy

    return load_policy(read_policy(path), path)


def _node(path: str, what: str, kinds: str) -> tuple[str, int, int]:
    """(type, major, minor) of the device node *path*."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise NotFound("use", f"{what} {path}", error.strerror or "", "name a device node") from error
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c" if stat.S_ISCHR(found.st_mode) else ""
    if not kind or kind not in kinds:
        raise InputError("use", f"{what} {path}", "it is not such a device node", "name a device node")
    return kind, os.major(found.st_rdev), os.minor(found.st_rdev)


def devices_of(texts: list[str]) -> tuple[tuple[DeviceRule, ...], tuple[tuple[str, str], ...]]:
    """Rules and nodes of ``--device``."""
    rules: list[DeviceRule] = []
    nodes: list[tuple[str, str]] = []
    for text in texts:
        if text.startswith("/"):
            path, _, access = text.partition(":")
            kind, major, minor = _node(path, "device", "bc")
            rules.append(parse_rule(f"{kind} {major}:{minor} {access or 'rwm'}"))
            nodes.append((path, path if path.startswith("/dev/") else f"/dev/{os.path.basename(path)}"))
        else:
            rules.append(parse_rule(text))
            if name := device_node(rules[-1]):
                nodes.append((name, name))
    return tuple(rules), tuple(nodes)


def _io(text: str) -> str:
    """``/dev/sda,rbps=1M`` or ``8:0 rbps=1M`` with the device as numbers."""
    device, *rest = text.replace(",", " ").split() or [""]
    if device.startswith("/"):
        _, major, minor = _node(device, "I/O limit of", "b")
        device = f"{major}:{minor}"
    return " ".join([device, *rest])


def _mount(text: str) -> MountRequest:
    values: dict[str, str] = {}
    for word in text.split(","):
        key, _, value = word.partition("=")
        key = {"src": "source", "dst": "target", "destination": "target", "readonly": "ro"}.get(key, key)
        if key not in ("type", "source", "target", "ro", "rw", "idmap", "size", "mode") or key in values:
            raise InputError(
                "read",
                f"mount {text}",
                f"{word!r} is unknown or there twice",
                "write type=bind,source=DIR,target=DIR[,ro]",
            )
        values[key] = value
    kind = values.get("type", "bind")
    target = os.path.normpath(values.get("target", ""))
    if kind not in ("bind", "tmpfs"):
        raise InputError("read", f"mount {text}", f"type {kind} is unknown", "use type=bind or type=tmpfs")
    if not target.startswith("/") or target == "/" or ".." in values.get("target", "").split("/"):
        raise InputError("read", f"mount {text}", "its target is not a path below /", "write target=/DIR without ..")
    source = values.get("source", "")
    if kind == "bind":
        if not source:
            raise InputError("read", f"mount {text}", "its source is missing", "write source=DIR")
        source = os.path.abspath(source)
        if not os.path.exists(source):
            raise NotFound("bind", source, "no such file or directory", "name a file or directory that is there")
    options = []
    if "size" in values:
        options.append(f"size={parse_size(values['size'])}")
    if "mode" in values:
        options.append(f"mode={values['mode']}")
    if kind == "bind" and options:
        raise InputError("read", f"mount {text}", "size and mode are for tmpfs", "leave them out")
    return MountRequest(kind, source, target, "ro" in values, ",".join(options), kind == "bind" and "idmap" in values)


def environment_of(texts: list[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of ``--env``: K=V, or K alone, which the caller's own environment has. Raises InputError."""
    found = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or "\0" in text:
            raise InputError("set", f"environment {text!r}", "it has no name", "write NAME=VALUE")
        if equals:
            found.append((key, value))
        elif key in os.environ:
            found.append((key, os.environ[key]))
    return tuple(found)


def limits_of(single: dict[str, str], repeated: dict[str, list[str]]) -> Limits:
    """The limits of a command line, without device rules. Raises InputError, NotFound (a device that is not there)."""
    return Limits(
        memory=parse_size(single["memory"], "memory") if "memory" in single else None,
        swap=parse_size(single["swap"], "swap") if "swap" in single else None,
        cpus=parse_cpus(single["cpus"]) if "cpus" in single else None,
        mems=parse_cpus(single["mems"], "list of memory nodes") if "mems" in single else None,
        cpu_quota=parse_quota(single["cpu-quota"]) if "cpu-quota" in single else None,
        cpu_weight=parse_weight(single["cpu-weight"]) if "cpu-weight" in single else None,
        pids=parse_count(single["pids"]) if "pids" in single else None,
        io=parse_ios([_io(text) for text in repeated.get("io", [])]),
    )


def _user_namespace(policy: Policy, mode: str) -> Policy:
    if mode in ("auto", "none"):
        return replace(policy, user_namespace=mode)
    ranges = tuple(parse_id_range(text) for text in mode.split(","))
    return replace(policy, user_namespace="map", uid_map=ranges, gid_map=ranges)


def _hostname(text: str) -> str:
    # HOST_NAME_MAX of uname(2)
    if not 0 < len(text) <= 64 or not all(c.isascii() and (c.isalnum() or c in "-.") for c in text):
        raise InputError("set", f"hostname {text!r}", "it is not a hostname", "use 1 to 64 letters, digits, - and .")
    return text


def build(single: dict[str, str], repeated: dict[str, list[str]], words: list[str]) -> Request:
    """The Request of a command line. Raises InputError and NotFound."""
    if "rootfs" not in single:
        raise InputError(
            "launch", "a guest", "no root filesystem is named", "add --rootfs DIR (with --overlay, / is safe)"
        )
    if not words:
        raise InputError("launch", "a guest", "no command is given", "add it at the end: -- sh")
    policy = _policy(single["policy"]) if "policy" in single else Policy()
    rules, nodes = devices_of(repeated.get("device", []))
    limits = over(policy.limits, limits_of(single, repeated))
    if rules:
        base = DEFAULT_RULES if policy.limits.devices is None else policy.limits.devices
        limits = replace(limits, devices=base + rules)
    if "userns" in single:
        policy = _user_namespace(policy, single["userns"])
    if "capabilities" in single:
        text = single["capabilities"]
        policy = replace(
            policy, capabilities=parse_capabilities(text if text in ("all", "default") else text.split(","))
        )
    embedded = single.get("broker") == "embedded"
    if "broker" in single and not embedded:
        if single["broker"] not in BROKERS:
            raise InputError("use", f"--broker {single['broker']}", "unknown", f"use {', '.join(BROKERS)} or embedded")
        policy = replace(policy, broker=single["broker"])
    net = single.get("net", "none")
    if net not in ("none", "host", "veth"):
        raise InputError("use", f"--net {net}", "unknown", "use none, host or veth")
    name = parse_name(single["name"]) if "name" in single else f"g{os.urandom(4).hex()}"
    return Request(
        name=name,
        rootfs=os.path.abspath(single["rootfs"]),
        command=tuple(words),
        origin=(("runtime", "launch"),),
        policy=replace(policy, limits=limits),
        environment=environment_of([*(["TERM"] if "terminal" in single else []), *repeated.get("env", [])]),
        workdir=single.get("workdir", "/"),
        user=single.get("user", "0"),
        hostname=_hostname(single["hostname"]) if "hostname" in single else "",
        mounts=tuple(_mount(text) for text in repeated.get("mount", [])),
        nodes=nodes,
        read_only="read-only" in single,
        overlay="overlay" in single,
        net=net,
        terminal="terminal" in single,
        detach="detach" in single,
        remove="rm" in single,
        log=os.path.abspath(single.get("log", "/dev/null")),
        embedded_broker=embedded,
    )
