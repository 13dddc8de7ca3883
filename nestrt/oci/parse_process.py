"""``process`` of a bundle's config.json, which is also the whole of exec's process.json.

Source: runtime-spec, config.md, "Process", "POSIX process", "Linux Process".
"""

from __future__ import annotations

from nestrt.oci.getter import (
    ID,
    INT32,
    UINT16,
    UINT64,
    Wrong,
    absolute,
    boolean,
    integer,
    list_of,
    one_of,
    read,
    record_of,
    short,
    text,
    texts,
)
from nestrt.oci.model import Affinity, Capabilities, IoPriority, Process, Rlimit, Scheduler, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# capabilities(7), in the order of their numbers.
CAPABILITIES = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP "
    "CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER "
    "CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE "
    "CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL "
    "CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ "
    "CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE"
).split()
# getrlimit(2)
RLIMITS = tuple(
    "RLIMIT_" + name
    for name in (
        "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK"
    ).split()
)
POLICIES = tuple("SCHED_" + name for name in "OTHER FIFO RR BATCH ISO IDLE DEADLINE".split())
SCHED_FLAGS = tuple(
    "SCHED_FLAG_" + name
    for name in "RESET_ON_FORK RECLAIM DL_OVERRUN KEEP_POLICY KEEP_PARAMS UTIL_CLAMP_MIN UTIL_CLAMP_MAX".split()
)
IO_CLASSES = ("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE")
SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")

uint64 = integer(0, UINT64)
int32 = integer(-INT32 - 1, INT32)


def cpu_list(value: Any) -> str:
    """CPUs as in cpuset(7), "List format": "0-1,3"."""
    found = text(value)
    for part in found.split(",") if found.strip() else ():
        low, dash, high = part.strip().partition("-")
        digits = low + high
        if not (digits.isascii() and digits.isdigit() and low and (high or not dash)) or len(digits) > 16:
            raise Wrong(f"{short(found)} is no list of CPUs", 'write it like "0-1,3"')
        if dash and int(low) > int(high):
            raise Wrong(f"the range {short(part)} is turned round", f'write "{high}-{low}"')
    return found.strip()


def _rlimits(value: Any) -> tuple[Rlimit, ...]:
    found = list_of(record_of(Rlimit, RLIMIT, ("type", "soft", "hard")))(value)
    types = []
    for index, limit in enumerate(found):
        if limit.type in types:
            raise Wrong(f"{limit.type} is there twice", "leave one of them", f"[{index}].type")
        if limit.soft > limit.hard:
            reason = f"{limit.soft} is above the hard limit, {limit.hard}"
            raise Wrong(reason, "lower it, or raise the hard limit", f"[{index}].soft")
        types.append(limit.type)
    return found


def _env(value: Any) -> tuple[str, ...]:
    found = texts(value)
    for index, entry in enumerate(found):
        if entry.find("=") < 1:
            reason = f"{short(entry)} has no name" if "=" in entry else f'{short(entry)} has no "="'
            raise Wrong(reason, "write it as NAME=value", f"[{index}]")
    return found


def _scheduler(value: Any) -> Scheduler:
    found: Scheduler = record_of(Scheduler, SCHEDULER, ("policy",))(value)
    policy = found.policy
    if policy in ("SCHED_OTHER", "SCHED_BATCH") and not -20 <= found.nice <= 19:
        raise Wrong(f"{found.nice} is out of range", f"write -20 to 19 for {policy}", "nice")
    if found.priority and policy not in ("SCHED_FIFO", "SCHED_RR"):
        raise Wrong(f"{policy} has no priority", "leave it out, or use SCHED_FIFO or SCHED_RR", "priority")
    for key in ("runtime", "deadline", "period"):
        if getattr(found, key) and policy != "SCHED_DEADLINE":
            raise Wrong(f"{policy} has no {key}", "leave it out, or use SCHED_DEADLINE", key)
    return found


def _capabilities(value: Any) -> Capabilities:
    return Capabilities(**read(CAPABILITY_SETS, value))


def _known_only(found: dict[str, Any]) -> None:
    """Drop the capabilities that no kernel has, with a warning, as runc does."""
    sets = found.get("capabilities")
    names = {name for key in SETS for name in getattr(sets, key)} if sets else set()
    if unknown := sorted(names.difference(CAPABILITIES)):
        kept = {key: tuple(name for name in getattr(sets, key) if name not in unknown) for key in SETS}
        found["capabilities"] = Capabilities(**kept)
        listed = ", ".join(name[:60] for name in unknown[:20])
        found["warnings"] = (f"process.capabilities: no such capability, ignored: {listed}",)


def parse_process(value: Any) -> Process:
    """``process``; *args* may be missing: see document.require_process(). Raises Wrong."""
    found = read(PROCESS, value, ("cwd",))
    _known_only(found)
    return Process(**found)


def _console_size(value: Any) -> tuple[int, int]:
    found = read(CONSOLE_SIZE, value)
    return found.get("height", 0), found.get("width", 0)


IDENTITY = integer(0, ID)
USER = {
    "uid": ("uid", IDENTITY),
    "gid": ("gid", IDENTITY),
    "umask": ("umask", integer(0, 0o7777)),
    "additionalGids": ("additional_gids", list_of(IDENTITY)),
}
# struct winsize holds unsigned shorts: ioctl_tty(2)
CONSOLE_SIZE = {"height": ("height", integer(0, UINT16)), "width": ("width", integer(0, UINT16))}
CAPABILITY_SETS = {key: (key, texts) for key in SETS}
RLIMIT = {"type": ("type", one_of(RLIMITS, "resource limit")), "soft": ("soft", uint64), "hard": ("hard", uint64)}
IO_PRIORITY = {
    "class": ("io_class", one_of(IO_CLASSES, "I/O scheduling class")),
    "priority": ("priority", integer(0, 7)),
}
SCHEDULER = {
    "policy": ("policy", one_of(POLICIES, "scheduling policy")),
    "nice": ("nice", int32),
    "priority": ("priority", int32),
    "flags": ("flags", list_of(one_of(SCHED_FLAGS, "scheduling flag"))),
    "runtime": ("runtime", uint64),
    "deadline": ("deadline", uint64),
    "period": ("period", uint64),
}
AFFINITY = {"initial": ("initial", cpu_list), "final": ("final", cpu_list)}
PROCESS = {
    "terminal": ("terminal", boolean),
    "consoleSize": ("console_size", _console_size),
    "user": ("user", record_of(User, USER)),
    "args": ("args", texts),
    "env": ("env", _env),
    "cwd": ("cwd", absolute),
    "capabilities": ("capabilities", _capabilities),
    "rlimits": ("rlimits", _rlimits),
    "noNewPrivileges": ("no_new_privileges", boolean),
    "apparmorProfile": ("apparmor_profile", text),
    "oomScoreAdj": ("oom_score_adj", integer(-1000, 1000)),
    "scheduler": ("scheduler", _scheduler),
    "selinuxLabel": ("selinux_label", text),
    "ioPriority": ("io_priority", record_of(IoPriority, IO_PRIORITY, ("class",))),
    "execCPUAffinity": ("affinity", record_of(Affinity, AFFINITY)),
}
