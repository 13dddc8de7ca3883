"""The documents that engines hand over, read and checked: config.json, process.json, resources.

What is checked is what the document itself says, by the rules of the
specification and of runc (libcontainer/configs/validate); what this host can do
is asked later. Each mistake is an InputError that names the file, the place
("process.rlimits[1].type"), what is there and what should be.

Source: runtime-spec, config.md, config-linux.md; versions 1.0.0 to 1.2.
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.oci.getter import Wrong, boolean, load_text, pairs_of, read, required_text, short, text
from nestrt.oci.model import Spec
from nestrt.oci.parse_process import parse_process
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nestrt.oci.model import Process, Ranges
    from nestrt.oci.resources import Resources

VERSION_MIN = "1.0.0"
VERSION_MAX = "1.2.1"
UNDERSTOOD = f"nestrt understands {VERSION_MIN} to {VERSION_MAX}"
# ipc_namespaces(7)
IPC_SYSCTLS = tuple(
    "kernel." + name for name in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()
)


def load(text: str, where: str) -> Spec:
    """The whole of a bundle's config.json; *where* is its path, for errors.

    Decode the file with ``errors="replace"``, as Go does. Warnings are in
    ``Spec.warnings``, one line each. Raises InputError.
    """
    return load_text(text, where, _spec)


def load_process(text: str, where: str) -> Process:
    """exec's process.json, which must have arguments. Raises InputError."""

    def parse(value: Any) -> Process:
        process = parse_process(value)
        if not process.args:
            raise Wrong("args must not be empty", "name the program to execute", "args")
        return process

    return load_text(text, where, parse)


def load_resources(text: str, where: str) -> Resources:
    """What ``update --resources`` reads. Raises InputError."""
    from nestrt.oci.parse_resources import parse_resources

    return load_text(text, where, parse_resources)


def require_process(spec: Spec, where: str) -> Process:
    """The process that ``create`` needs, with arguments. Raises InputError."""
    process = spec.process
    if process is None:
        raise InputError("read", f"{where}, process", "process property must not be empty", "say what is to be run")
    if not process.args:
        raise InputError("read", f"{where}, process.args", "args must not be empty", "name the program to execute")
    return process


def _spec(value: Any) -> Spec:
    # Imported here, for exec has no use for it.
    from nestrt.oci import parse_linux

    table = {
        "ociVersion": ("version", _version),
        "process": ("process", parse_process),
        "root": ("root", lambda root: read(ROOT, root, ("path",))),
        "hostname": ("hostname", text),
        "domainname": ("domainname", text),
        "mounts": ("mounts", parse_linux.parse_mounts),
        "hooks": ("hooks", parse_linux.parse_hooks),
        "annotations": ("annotations", pairs_of(text)),
        "linux": ("linux", parse_linux.parse_linux),
    }
    found = read(table, value, ("ociVersion", "root"))
    found.update(found.pop("root"))
    found.update(found.pop("linux", {}))
    found["annotations"] = tuple(sorted(found.get("annotations", ())))
    spec = Spec(**found)
    _check_namespaces(spec)
    if spec.sysctl:
        _check_sysctl(spec)
    return _with_warnings(spec)


ROOT = {"path": ("root_path", required_text), "readonly": ("root_readonly", boolean)}


def _version(value: Any) -> str:
    """A version as semver.org says, with major number 1: the specification's minor versions only add."""
    found = text(value)
    release, plus, build = found.partition("+")
    core, dash, pre = release.partition("-")
    numbers = core.split(".")
    good = len(numbers) == 3 and all(_is_number(number) for number in numbers)
    for mark, suffix in ((dash, pre), (plus, build)):
        parts = suffix.split(".") if mark else ()
        good = good and all(part.isascii() and part.replace("-", "0").isalnum() for part in parts)
    if not good:
        raise Wrong(f"{short(found)} is no version", f'write it like "1.0.2"; {UNDERSTOOD}')
    if numbers[0] != "1":
        raise Wrong(f"version {short(found)} is unknown", UNDERSTOOD)
    return found


def _is_number(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and (digits == "0" or digits[0] != "0")


def _check_namespaces(spec: Spec) -> None:
    """What only works in a namespace of the container's own, or in one that it joins."""
    types = [entry.type for entry in spec.namespaces]
    for key, said, needed in (
        ("hostname", spec.hostname, "uts"),
        ("domainname", spec.domainname, "uts"),
        ("linux.maskedPaths", spec.masked, "mount"),
        ("linux.readonlyPaths", spec.readonly, "mount"),
        ("linux.timeOffsets", spec.time_offsets, "time"),
        ("linux.uidMappings", spec.uid_mappings, "user"),
        ("linux.gidMappings", spec.gid_mappings, "user"),
    ):
        if said and needed not in types:
            raise Wrong(f"it needs a {needed} namespace", "add one to linux.namespaces, or leave it out", key)
    time = spec.namespace("time")
    if time is not None and time.path and spec.time_offsets:
        raise Wrong("the time namespace is joined, and so has its offsets", "leave it out", "linux.timeOffsets")
    user = spec.namespace("user")
    if user is not None and not user.path:
        _check_root("linux.uidMappings", spec.uid_mappings)
        _check_root("linux.gidMappings", spec.gid_mappings)


def _check_root(key: str, ranges: Ranges) -> None:
    if not ranges:
        raise Wrong("it is missing", "a user namespace needs mappings, or the path of one to join", key)
    if all(inside > 0 for inside, _, _ in ranges):
        raise Wrong("id 0 of the container is not mapped", "map it: its first process begins with it", key)


def _check_sysctl(spec: Spec) -> None:
    """Only what a namespace of the container holds can be set; all else would be the host's."""
    types = [entry.type for entry in spec.namespaces]
    for name, _ in spec.sysctl:
        if name in IPC_SYSCTLS or name.startswith("fs.mqueue."):
            needed = "ipc"
        elif name.startswith("net."):
            needed = "network"
        elif name.startswith("user."):
            needed = "user"
        elif name == "kernel.domainname":
            needed = "uts"
        elif name == "kernel.hostname" and "uts" in types:
            raise _sysctl_mistake(name, "there is a field for it", 'use "hostname"')
        else:
            raise _sysctl_mistake(name, f"sysctl {short(name)} is not in a separate kernel namespace", "leave it out")
        if needed not in types:
            reason = f"sysctl {short(name)} would be set in the host's {needed} namespace"
            raise _sysctl_mistake(name, reason, f"leave it out, or add the namespace {needed}")


def _sysctl_mistake(name: str, reason: str, remedy: str) -> Wrong:
    mistake = Wrong(reason, remedy)
    mistake.at(name)
    mistake.at("sysctl")
    mistake.at("linux")
    return mistake


def _with_warnings(spec: Spec) -> Spec:
    """What runc lets through with a warning: relative destinations, flags of a personality, unknown capabilities."""
    warnings = list(spec.process.warnings) if spec.process is not None else []
    mounts = []
    for index, mount in enumerate(spec.mounts):
        if not mount.destination.startswith("/"):
            warnings.append(f"mounts[{index}].destination: {short(mount.destination)} is taken as relative to /")
            mount = replace(mount, destination="/" + mount.destination)
        mounts.append(mount)
    if spec.personality is not None and spec.personality.flags:
        warnings.append("linux.personality.flags: none is known, ignored")
    return replace(spec, mounts=tuple(mounts), warnings=tuple(warnings)) if warnings else spec
