"""Names of capabilities, in the order of their numbers (include/uapi/linux/capability.h)."""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.units import shown
from nestrt.level.values import suggestion, text_list

NAMES = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
        "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
        "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
        "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
        "PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)

# What docker and podman give a container that asks for nothing (docker run, "Runtime privilege
# and Linux capabilities").
DEFAULT = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT "
        "MKNOD AUDIT_WRITE SETFCAP"
    ).split()
)
ALL = ("all",)


def parse_capabilities(value: object) -> tuple[str, ...]:
    """ALL for "all", DEFAULT for "default", else the names of a list, each once, in the kernel's order.

    Raises InputError.
    """
    if value == "all":
        return ALL
    if value == "default":
        return DEFAULT
    if isinstance(value, str):
        raise InputError("read", shown(value), "unknown", 'write "all", "default" or a list of names')
    names = text_list(value, 2 * len(NAMES))
    for name in names:
        if name not in NAMES:
            remedy = suggestion(name, NAMES) if len(name) > 4 else ""
            raise InputError(
                "read",
                shown(name),
                "no such capability",
                remedy if remedy.startswith("did") else "write it like CAP_NET_ADMIN",
            )
    return tuple(name for name in NAMES if name in names)
