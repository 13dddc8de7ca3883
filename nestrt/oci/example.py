"""The document that ``spec`` writes: a shell in a container of its own, with the values of ``runc spec``."""

from __future__ import annotations

from nestrt import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# All that is in it: older runtimes take it too.
WRITTEN = "1.0.2"
CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm")
NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
# destination, type, source, options
MOUNTS = (
    ("/proc", "proc", "proc", ""),
    ("/dev", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
    ("/dev/shm", "tmpfs", "shm", "nosuid noexec nodev mode=1777 size=65536k"),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
    ("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
    ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid noexec nodev relatime ro"),
)
# sysfs can only be mounted by the owner of the network namespace, and that is the host's here.
ROOTLESS_SYS = ("/sys", "none", "/sys", "rbind nosuid noexec nodev ro")
MASKED = (
    "/proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats "
    "/proc/sched_debug /sys/firmware /proc/scsi"
).split()
READONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger".split()


def config(rootless: bool, uid: int, gid: int, unified: bool = False) -> dict[str, Any]:
    """The document; *rootless* maps *uid* and *gid*, those of the caller, to 0 in a user namespace.

    *unified* is whether the host has cgroup v2 alone: only then runc adds a cgroup namespace.
    """
    namespaces = list(NAMESPACES) + (["cgroup"] if unified else [])
    if rootless:
        namespaces.remove("network")
        namespaces.append("user")
    linux: dict[str, Any] = {}
    if rootless:
        linux["uidMappings"] = [{"containerID": 0, "hostID": uid, "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": gid, "size": 1}]
    else:
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    linux["namespaces"] = [{"type": name} for name in namespaces]
    linux["maskedPaths"] = list(MASKED)
    linux["readonlyPaths"] = list(READONLY)
    return {
        "ociVersion": WRITTEN,
        "process": _process(),
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "nestrt",
        "mounts": _mounts(rootless),
        "linux": linux,
    }


def _process() -> dict[str, Any]:
    return {
        "terminal": True,
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": list(ENVIRONMENT),
        "cwd": "/",
        "capabilities": {name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }


def _mounts(rootless: bool) -> list[dict[str, Any]]:
    mounts = []
    for mount in MOUNTS:
        destination, type, source, words = ROOTLESS_SYS if rootless and mount[0] == "/sys" else mount
        # A group that is not mapped has no number there.
        options = [word for word in words.split() if not (rootless and word.startswith(("uid=", "gid=")))]
        entry: dict[str, Any] = {"destination": destination, "type": type, "source": source}
        if options:
            entry["options"] = options
        mounts.append(entry)
    return mounts


def text(document: dict[str, Any]) -> str:
    """*document* as config.json: indented by tabs, its keys in their order."""
    return jsontext.pretty(document) + "\n"
