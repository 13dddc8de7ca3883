"""``linux``, ``mounts`` and ``hooks`` of a bundle's config.json: everything but the process, resources and seccomp.

Source: runtime-spec, config.md, config-linux.md.
"""

from __future__ import annotations

from nestrt.oci.getter import (
    ID,
    INT32,
    INT64,
    UINT32,
    Wrong,
    absolute,
    boolean,
    integer,
    list_of,
    one_of,
    pairs_of,
    read,
    record_of,
    required_text,
    short,
    text,
    texts,
)
from nestrt.oci.model import Device, Hook, Hooks, IntelRdt, Mount, Namespace, Personality
from nestrt.oci.parse_resources import parse_resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nestrt.oci.model import Ranges, Seccomp

NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")
PROPAGATIONS = ("private", "rprivate", "rshared", "rslave", "runbindable", "shared", "slave", "unbindable")


def _path_or_none(value: Any) -> str:
    """An absolute path; "" is the same as none."""
    return "" if value == "" else absolute(value)


def _range(value: Any) -> tuple[int, int, int]:
    found = read(RANGE, value, ("containerID", "hostID", "size"))
    inside, outside, count = found["inside"], found["outside"], found["count"]
    if max(inside, outside) + count - 1 > ID:
        raise Wrong("its last id is above 4294967294", "make the range smaller", "size")
    return inside, outside, count


def parse_ranges(value: Any) -> Ranges:
    """Id mappings: user_namespaces(7). Ranges must not overlap, inside or outside."""
    found: Ranges = list_of(_range)(value)
    for index, (inside, outside, count) in enumerate(found):
        for other in range(index):
            first, second, length = found[other]
            if inside < first + length and first < inside + count:
                raise Wrong(f"it overlaps [{other}]", "map each id once", f"[{index}].containerID")
            if outside < second + length and second < outside + count:
                raise Wrong(f"it overlaps [{other}]", "map each id once", f"[{index}].hostID")
    return found


def _mount(value: Any) -> Mount:
    found: Mount = record_of(Mount, MOUNT, ("destination",))(value)
    if bool(found.uid_mappings) != bool(found.gid_mappings):
        key = "gidMappings" if found.uid_mappings else "uidMappings"
        raise Wrong("it is missing", "an id-mapped mount needs both mappings", key)
    return found


def parse_mounts(value: Any) -> tuple[Mount, ...]:
    """``mounts``; a relative destination is left as it is, for document to warn of. Raises Wrong."""
    return list_of(_mount)(value)


def _namespaces(value: Any) -> tuple[Namespace, ...]:
    found = list_of(record_of(Namespace, NAMESPACE, ("type",)))(value)
    seen = []
    for index, entry in enumerate(found):
        if entry.type in seen:
            raise Wrong(f"the {entry.type} namespace is there twice", "leave one of them", f"[{index}].type")
        seen.append(entry.type)
    return found


def _device(value: Any) -> Device:
    found = read(DEVICE, value, ("path", "type"))
    for key in ("major", "minor"):
        if key not in found and found["type"] != "p":
            raise Wrong("it is missing", "a device has a number; only a FIFO has none", key)
    if "file_mode" in found:
        # Engines hand over st_mode, with the bits of the file's type.
        found["file_mode"] &= 0o7777
    return Device(**found)


def _time_offsets(value: Any) -> tuple[tuple[str, int, int], ...]:
    found = pairs_of(lambda entry: read(TIME_OFFSET, entry))(value)
    for clock, _ in found:
        if clock not in ("monotonic", "boottime"):
            raise Wrong(f"{short(clock)} is no clock of a time namespace", "known: monotonic, boottime", clock[:60])
    return tuple((clock, entry.get("seconds", 0), entry.get("nanoseconds", 0)) for clock, entry in found)


def _clos_id(value: Any) -> str:
    found = text(value)
    if found in (".", "..") or "/" in found or "\n" in found:
        raise Wrong(f"{short(found)} is no name of a directory", "write one name, without /")
    return found


def sysctl_name(key: str) -> str:
    """A key of sysctl(8) in the spelling with dots: "net/ipv4/conf/eth0.1/mtu" is "net.ipv4.conf.eth0/1.mtu".

    The separator that comes first is the separator; sysctl.d(5).
    """
    first = next((c for c in key if c in "./"), ".")
    return key if first == "." else "".join({".": "/", "/": "."}.get(c, c) for c in key)


def sysctl_path(name: str) -> str:
    """The file of a key in the spelling with dots, below /proc/sys: "net/ipv4/ip_forward"."""
    return "".join({".": "/", "/": "."}.get(c, c) for c in name)


def _sysctl(value: Any) -> tuple[tuple[str, str], ...]:
    found = {}
    for key, content in pairs_of(text)(value):
        name = sysctl_name(key)
        # "net/../kernel/core_pattern" begins with a namespaced name, too.
        if any(part in ("", ".", "..") for part in sysctl_path(name).split("/")):
            mistake = Wrong(f"{short(key)} is no name of a kernel parameter", 'write it like "net.ipv4.ip_forward"')
            mistake.at(key)
            raise mistake
        found[name] = content
    return tuple(sorted(found.items()))


def _later(version: str) -> Callable[[Any], None]:
    """A field of a later specification, which would be missed if nobody said so; an empty one asks for nothing."""

    def refuse(value: Any) -> None:
        if not value:
            return
        raise Wrong(f"nestrt does not have it: it came with version {version}", "leave it out")

    return refuse


def parse_linux(value: Any) -> dict[str, Any]:
    """``linux``, as fields of the Spec. Raises Wrong."""
    found = read(LINUX, value)
    for name in LATER:
        found.pop(name, None)
    return found


def parse_hooks(value: Any) -> Hooks:
    """``hooks``. Raises Wrong."""
    return Hooks(**read(HOOKS, value))


ids = integer(0, ID)
RANGE = {
    "containerID": ("inside", ids),
    "hostID": ("outside", ids),
    "size": ("count", integer(1, UINT32)),
}
MOUNT = {
    "destination": ("destination", required_text),
    "type": ("type", text),
    "source": ("source", text),
    "options": ("options", texts),
    "uidMappings": ("uid_mappings", parse_ranges),
    "gidMappings": ("gid_mappings", parse_ranges),
}
NAMESPACE = {"type": ("type", one_of(NAMESPACES, "namespace type")), "path": ("path", _path_or_none)}
# dev_t has 12 bits for the major number and 20 for the minor: include/linux/kdev_t.h
DEVICE = {
    "path": ("path", absolute),
    "type": ("type", one_of(("c", "b", "u", "p"), "type of a device")),
    "major": ("major", integer(0, 2**12 - 1)),
    "minor": ("minor", integer(0, 2**20 - 1)),
    "fileMode": ("file_mode", integer(0, UINT32)),
    "uid": ("uid", ids),
    "gid": ("gid", ids),
}
HOOK = {
    "path": ("path", absolute),
    "args": ("args", texts),
    "env": ("env", texts),
    "timeout": ("timeout", integer(1, INT32)),
}
hooks = list_of(record_of(Hook, HOOK, ("path",)))
HOOKS = {
    "prestart": ("prestart", hooks),
    "createRuntime": ("create_runtime", hooks),
    "createContainer": ("create_container", hooks),
    "startContainer": ("start_container", hooks),
    "poststart": ("poststart", hooks),
    "poststop": ("poststop", hooks),
}
TIME_OFFSET = {
    "secs": ("seconds", integer(-INT64 - 1, INT64)),
    "nanosecs": ("nanoseconds", integer(0, 10**9 - 1)),
}
INTEL_RDT = {
    "closID": ("clos_id", _clos_id),
    "l3CacheSchema": ("l3_cache_schema", text),
    "memBwSchema": ("mem_bw_schema", text),
    "enableCMT": ("enable_cmt", boolean),
    "enableMBM": ("enable_mbm", boolean),
    "schemata": ("schemata", _later("1.3")),
    "enableMonitoring": ("enable_monitoring", _later("1.3")),
}
PERSONALITY = {"domain": ("domain", one_of(("LINUX", "LINUX32"), "personality")), "flags": ("flags", texts)}
LATER = ("net_devices", "memory_policy")


def _seccomp(value: Any) -> Seccomp | None:
    from nestrt.oci.parse_seccomp import parse_seccomp  # not for those who leave it to another runtime

    return parse_seccomp(value)


def _intel_rdt(value: Any) -> IntelRdt:
    found = read(INTEL_RDT, value)
    found.pop("schemata", None)
    found.pop("enable_monitoring", None)
    return IntelRdt(**found)


LINUX = {
    "namespaces": ("namespaces", _namespaces),
    "uidMappings": ("uid_mappings", parse_ranges),
    "gidMappings": ("gid_mappings", parse_ranges),
    "timeOffsets": ("time_offsets", _time_offsets),
    "devices": ("devices", list_of(_device)),
    "cgroupsPath": ("cgroups_path", text),
    "resources": ("resources", parse_resources),
    "sysctl": ("sysctl", _sysctl),
    "seccomp": ("seccomp", _seccomp),
    "rootfsPropagation": ("rootfs_propagation", lambda v: one_of(PROPAGATIONS, "propagation")(v) if v != "" else ""),
    "maskedPaths": ("masked", list_of(absolute)),
    "readonlyPaths": ("readonly", list_of(absolute)),
    "mountLabel": ("mount_label", text),
    "intelRdt": ("intel_rdt", _intel_rdt),
    "personality": ("personality", record_of(Personality, PERSONALITY, ("domain",))),
    "netDevices": ("net_devices", _later("1.3")),
    "memoryPolicy": ("memory_policy", _later("1.3")),
}
