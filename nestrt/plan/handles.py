"""A guest must not open its limit group by file handle: its system call filter refuses open_by_handle_at(2). Pure.

The call asks for CAP_DAC_READ_SEARCH in the initial user namespace, and any descriptor of the filesystem: with both, a
handle of kernfs, which is a number that can be guessed, opens what no mount of the guest shows.
"""

from __future__ import annotations

from nestrt.oci.model import Seccomp, Spec, Syscalls
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Document = dict[str, Any]

HANDLES = "open_by_handle_at"
REFUSING = ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP")
EPERM = 1
# Every way in that a machine's kernel has: the call has a number of its own in each.
NATIVE = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}


def opens_handles(spec: Spec) -> bool:
    """Whether a process of the container could open groups above its view by file handle.

    Whatever capabilities its document gives: one that an engine adds later (exec --privileged) may have more.
    """
    return spec.namespace("user") is None


def without_handles(seccomp: Document | None, machine: str) -> Document:
    """The profile *seccomp*, None for none, under which open_by_handle_at(2) fails with EPERM."""
    deny = {"names": [HANDLES], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM}
    if not seccomp:
        architectures = {"architectures": list(NATIVE[machine])} if machine in NATIVE else {}
        return {"defaultAction": "SCMP_ACT_ALLOW", **architectures, "syscalls": [deny]}
    kept = []
    for entry in seccomp.get("syscalls") or []:
        names = entry.get("names") or []
        if HANDLES in names and entry != deny:
            names = [name for name in names if name != HANDLES]
            if not names:
                continue
            entry = {**entry, "names": names}
        if entry != deny:
            kept.append(entry)
    if seccomp.get("defaultAction") not in REFUSING:
        kept.append(deny)
    return {**seccomp, "syscalls": kept}


def forbid_handles(spec: Spec, machine: str) -> Spec:
    """*spec*, parsed, with a filter as without_handles() makes it, where its root could open groups by handle."""
    if not opens_handles(spec):
        return spec
    deny = Syscalls((HANDLES,), "SCMP_ACT_ERRNO", EPERM)
    given = spec.seccomp or Seccomp("SCMP_ACT_ALLOW", architectures=NATIVE.get(machine, ()))
    kept = []
    for entry in given.syscalls:
        names = tuple(name for name in entry.names if name != HANDLES)
        if names:
            kept.append(replace(entry, names=names))
    if given.default_action not in REFUSING:
        kept.append(deny)
    return replace(spec, seccomp=replace(given, syscalls=tuple(kept)))
