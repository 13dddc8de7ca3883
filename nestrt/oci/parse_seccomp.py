"""``linux.seccomp`` of a bundle's config.json: the largest part of what engines write.

Source: runtime-spec, config-linux.md, "Seccomp".
"""

from __future__ import annotations

from nestrt.oci.getter import UINT16, UINT64, Wrong, integer, list_of, one_of, read, record_of, text, texts
from nestrt.oci.model import Seccomp, SyscallArg, Syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ACTIONS = tuple(
    "SCMP_ACT_" + name for name in "ALLOW ERRNO KILL KILL_PROCESS KILL_THREAD LOG NOTIFY TRACE TRAP".split()
)
OPERATORS = tuple("SCMP_CMP_" + name for name in "EQ GE GT LE LT MASKED_EQ NE".split())
ARCHITECTURES = tuple(
    "SCMP_ARCH_" + name
    for name in (
        "AARCH64 ARM LOONGARCH64 M68K MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PARISC PARISC64 PPC PPC64 "
        "PPC64LE RISCV64 S390 S390X SH SHEB X32 X86 X86_64"
    ).split()
)
# TSYNC is not the specification's, but runc takes it, and profiles have it.
FLAGS = tuple("SECCOMP_FILTER_FLAG_" + name for name in "LOG SPEC_ALLOW TSYNC WAIT_KILLABLE_RECV".split())


def parse_seccomp(value: Any) -> Seccomp | None:
    """``linux.seccomp``; None for one without a default action and without rules, as in runc. Raises Wrong."""
    found = read(SECCOMP, value)
    if not found.get("default_action"):
        if found.get("syscalls"):
            raise Wrong("it is missing", f"known: {', '.join(ACTIONS)}", "defaultAction")
        return None
    seccomp = Seccomp(**found)
    if seccomp.default_action == "SCMP_ACT_NOTIFY":
        # The notification itself has to be sent by a system call.
        raise Wrong("SCMP_ACT_NOTIFY cannot be the default", "name the system calls to notify of", "defaultAction")
    if not seccomp.listener_path and any(rule.action == "SCMP_ACT_NOTIFY" for rule in seccomp.syscalls):
        raise Wrong("it is missing", "SCMP_ACT_NOTIFY needs the socket of a listener", "listenerPath")
    return seccomp


def _default_action(value: Any) -> str:
    return "" if value == "" else action(value)


action = one_of(ACTIONS, "seccomp action")
errno_ret = integer(0, UINT16)  # SECCOMP_RET_DATA: seccomp(2)
uint64 = integer(0, UINT64)
ARG = {
    "index": ("index", integer(0, 5)),
    "value": ("value", uint64),
    "valueTwo": ("value_two", uint64),
    "op": ("op", one_of(OPERATORS, "comparison")),
}


def _arg(value: Any) -> SyscallArg:
    return SyscallArg(**{"value_two": 0, **read(ARG, value, ("index", "value", "op"))})


SYSCALLS = {
    "names": ("names", texts),
    "action": ("action", action),
    "errnoRet": ("errno_ret", errno_ret),
    "args": ("args", list_of(_arg)),
}
SECCOMP = {
    "defaultAction": ("default_action", _default_action),
    "defaultErrnoRet": ("default_errno_ret", errno_ret),
    "architectures": ("architectures", list_of(one_of(ARCHITECTURES, "architecture of seccomp"))),
    "flags": ("flags", list_of(one_of(FLAGS, "seccomp flag"))),
    "listenerPath": ("listener_path", text),
    "listenerMetadata": ("listener_metadata", text),
    "syscalls": ("syscalls", list_of(record_of(Syscalls, SYSCALLS, ("names", "action")))),
}
