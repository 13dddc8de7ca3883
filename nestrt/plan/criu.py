"""What CRIU is asked for and answers: its RPC, as values. Pure.

``criu swrk FD`` takes one request on a SOCK_SEQPACKET socket and answers with
notifications, each of which waits for a reply, and one response. Messages are protocol buffers
(protobuf.dev/programming-guides/encoding): a field is its number and wire type in one
varint, then a varint (type 0) or a length and as many bytes (type 2).

Source: criu.org, "RPC"; images/rpc.proto of CRIU, whose names and numbers stand below.
"""

from __future__ import annotations

from nestrt.errors import HostError
from nestrt.level.units import clean as clean
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nestrt.oci.model import Spec
    from nestrt.plan.facts import Hierarchy

    Value = bool | int | str | bytes

# enum criu_req_type
DUMP, RESTORE, PRE_DUMP, NOTIFY, VERSION = 1, 2, 4, 6, 10
# enum criu_cg_mode, by the words of --manage-cgroups-mode
CGROUP_MODES = {"ignore": 0, "soft": 3, "full": 4, "strict": 5}
# message criu_opts
OPTIONS = {
    "images_dir_fd": 1,
    "pid": 2,
    "leave_running": 3,
    "ext_unix_sk": 4,
    "tcp_established": 5,
    "evasive_devices": 6,
    "shell_job": 7,
    "file_locks": 8,
    "log_level": 9,
    "log_file": 10,
    "ps": 11,
    "notify_scripts": 12,
    "root": 13,
    "parent_img": 14,
    "track_mem": 15,
    "auto_dedup": 16,
    "work_dir_fd": 17,
    "link_remap": 18,
    "manage_cgroups": 24,
    "cg_root": 25,
    "rst_sibling": 26,
    "inherit_fd": 27,
    "manage_cgroups_mode": 34,
    "external": 37,
    "empty_ns": 38,
    "join_ns": 39,
    "freeze_cgroup": 44,
    "tcp_skip_in_flight": 46,
    "lazy_pages": 48,
    "orphan_pts_master": 50,
    "config_file": 51,
    "lsm_profile": 53,
    "lsm_mount_context": 63,
}


def _varint(value: int) -> bytes:
    # A negative int32 is written as 64 bits.
    value &= 2**64 - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def field(number: int, value: Value) -> bytes:
    """One field: a number or boolean as a varint, text and messages by their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(int(value))
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def message(*values: Value | None) -> bytes:
    """A message of the fields 1, 2, …; None leaves one out."""
    return b"".join(field(number, value) for number, value in enumerate(values, 1) if value is not None)


def request(kind: int, options: Iterable[tuple[str, Value]] = ()) -> bytes:
    """A criu_req; *options* are (name, value), a repeated one as often as it has values."""
    inner = b"".join(field(OPTIONS[name], value) for name, value in options)
    return field(1, kind) + (field(2, inner) if inner else b"")


def reply(success: bool) -> bytes:
    """The criu_req that answers a notification."""
    return field(1, NOTIFY) + field(3, success)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (number, value) of a message. Raises ValueError where it is none."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError("a message of CRIU ends too early")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
            continue
        length = varint() if kind == 2 else {1: 8, 5: 4}.get(kind, -1)
        if length < 0 or at + length > len(data):
            raise ValueError("a message of CRIU is malformed")
        yield number, data[at : at + length]
        at += length


@record
class Answer:
    """A criu_resp. *script* is what a notification is about, *pid* the first process's; *version* 3.17.1 is 31701."""

    kind: int
    success: bool
    script: str = ""
    pid: int = 0
    errno: int = 0
    text: str = ""
    version: int = 0


def _inner(data: int | bytes | None) -> dict[int, int | bytes]:
    return dict(fields(data)) if isinstance(data, bytes) else {}


def _int(value: int | bytes | None) -> int:
    return value if isinstance(value, int) else 0


def _text(value: int | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def answer(data: bytes) -> Answer:
    """Read a criu_resp. Raises ValueError."""
    found = dict(fields(data))
    restored, notify, version = _inner(found.get(4)), _inner(found.get(5)), _inner(found.get(10))
    major, minor, sub = (_int(version.get(number)) for number in (1, 2, 4))
    return Answer(
        _int(found.get(1)),
        bool(_int(found.get(2))),
        _text(notify.get(1)),
        _int(notify.get(2)) or _int(restored.get(1)),
        _int(found.get(7)),
        _text(found.get(9)),
        major * 10000 + minor * 100 + sub,
    )


# What CRIU mounts again by itself, also where the host has the same one.
OWN_FILESYSTEMS = ("proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "binfmt_misc")


@record
class Placed:
    """One line of mountinfo: *device* is "0:52"."""

    device: str
    root: str
    target: str
    fstype: str


def placed(text: str) -> tuple[Placed, ...]:
    """The mounts of a mountinfo, proc_pid_mountinfo(5), as the kernel spells their paths."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        words = left.split(" ")
        if len(words) > 4 and right:
            found.append(Placed(words[2], words[3], words[4], right.partition(" ")[0]))
    return tuple(found)


def bind_targets(spec: Spec) -> dict[str, str]:
    """The binds of a document: target → source."""
    found = {}
    for entry in spec.mounts:
        if entry.type == "bind" or "bind" in entry.options or "rbind" in entry.options:
            found[clean(entry.destination)] = entry.source
    return found


def own_cgroups(spec: Spec, policy: bool) -> bool:
    """Whether the container has a cgroup namespace that is made for it; a *policy* gives it one."""
    entry = spec.namespace("cgroup")
    return policy or (entry is not None and not entry.path)


def cgroup_targets(spec: Spec, hierarchies: tuple[Hierarchy, ...], group: str) -> dict[str, str]:
    """The binds that stand for a document's cgroup mounts where it has no cgroup namespace: target → source.

    As plan/bundle_cgroups.py makes them; *group* is the container's.
    """
    found = {}
    for entry in spec.mounts:
        if entry.type not in ("cgroup", "cgroup2"):
            continue
        target = clean(entry.destination)
        v1 = [h for h in hierarchies if h.version == 1 and h.name] if entry.type == "cgroup" else []
        for h in v1:
            found[f"{target}/{h.name.rpartition('/')[2]}"] = h.path(group or "/")
        if not v1:
            found.update((target, h.mountpoint) for h in hierarchies if h.version == 2)
    return found


def external(
    own: tuple[Placed, ...], host: tuple[Placed, ...], spec: Spec, groups: Iterable[str] = ()
) -> tuple[str, ...]:
    """Which of the container's mounts come from outside, by their targets: CRIU is to leave them to the runtime.

    Those are the document's binds, with what is mounted below them, those of *groups*, and whatever else is of a
    filesystem that the *host* has mounted too; but not what a container has of its own root filesystem.
    """
    binds = {*bind_targets(spec), *groups}
    outside = {mount.device for mount in host}
    root = next((mount for mount in own if mount.target == "/"), None)
    found = []
    for mount in own:
        if mount.target == "/":
            continue
        if any(mount.target == target or mount.target.startswith(target + "/") for target in binds):
            if mount.device in outside:
                found.append(mount.target)
            continue
        inside = root is not None and mount.device == root.device and under(mount.root, root.root)
        if mount.device in outside and mount.fstype not in OWN_FILESYSTEMS and not inside:
            found.append(mount.target)
    return tuple(found)


def under(path: str, directory: str) -> bool:
    """Whether *path* is *directory* or below it, by components."""
    return directory == "/" or path == directory or path.startswith(directory + "/")


def sources(targets: Iterable[str], spec: Spec, groups: Mapping[str, str] | None = None) -> dict[str, str]:
    """Where the mounts at *targets* come from by the document that is restored to, and by *groups* (cgroup_targets()).

    Raises HostError for one of which it says nothing: an image never says what of the host is mounted.
    """
    binds = {**bind_targets(spec), **(groups or {})}
    masked = {clean(path) for path in spec.masked}
    nodes = {clean(device.path) for device in spec.devices}
    found = {}
    for target in targets:
        above = max((place for place in binds if under(target, place)), key=len, default=None)
        if above is not None:
            found[target] = binds[above] + target[len(above) :]
        elif target in masked:
            found[target] = "/dev/null"
        elif target in nodes or target in DEFAULT_NODES:
            found[target] = target
        else:
            raise HostError(
                "restore",
                f"the mount at {target[:200]}",
                "it came from outside the container, and config.json has no bind, device or masked path there",
                "restore from the bundle that was checkpointed",
            )
    return found


# The devices that every container has: config-linux.md, "Default Devices".
DEFAULT_NODES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))
CLONE_NEW = {"mount": 0x20000, "ipc": 0x8000000, "uts": 0x4000000, "network": 0x40000000, "user": 0x10000000}
EXTERNAL_KEYS = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}


def inherited(descriptors: Mapping[int, str]) -> Iterator[tuple[int, str]]:
    """Which of the descriptors 0, 1 and 2, by what they were called when saved, are the caller's on restore."""
    for number, text in descriptors.items():
        if text.startswith(("pipe:[", "file[", "socket:[")):
            yield number, text


def known_failure(log: str) -> str:
    """Why CRIU failed, by its log, in words for the user, with the remedy after "; "; "" if it is none of these."""
    for text, reason in FAILURES:
        if text in log:
            return reason
    return ""


FAILURES = (
    (
        "vdso: Unexpected rt vDSO area bounds",
        "this CRIU does not know the vDSO of this kernel (Linux 6.13 and later); install CRIU 4.1 or later, "
        "and name it by --criu PATH if it is not on PATH",
    ),
    ("Connected TCP socket", "it has established TCP connections; use --tcp-established"),
    ("External socket is used", "it has a Unix socket whose other end is outside; use --ext-unix-sk"),
    ("Some file locks are hold by dumping tasks", "it holds file locks; use --file-locks"),
    ("Can't find a TTY", "its terminal is the caller's; use --shell-job"),
)


# Said in every log of an unprivileged or small machine, whatever comes of it; and what only says that it failed.
NOISE = ("RLIMIT_NOFILE", "tun: Unable to create tun", "FAILED")


def errors(log: str, count: int = 2) -> str:
    """The first errors of a log, which are the cause of the others, in one line: what CRIU itself says."""
    found = []
    for line in log.splitlines():
        _, sign, text = line.partition("Error ")
        if sign and not any(noise in text for noise in NOISE):
            found.append(text.partition("): ")[2] or text)
    return ": ".join(found[:count])[:400]
