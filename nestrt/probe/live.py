"""A process that runs, as a document would describe it: for another one beside it with the same rights.

What it says itself (its environment) goes to the new process only. All else is the kernel's word.

Sources: proc_pid_status(5), proc_pid_environ(5), proc_pid_attr(5), proc_pid_limits(5), user_namespaces(7).
"""

from __future__ import annotations

import os

from nestrt.errors import HostError
from nestrt.kernel import caps, schedule
from nestrt.kernel.helped import helped
from nestrt.oci.model import Capabilities, Process, Rlimit, User
from nestrt.record import record

LONGEST_ENVIRONMENT = 1 << 17
PATIENCE = 2.0  # seconds
SETS = {
    "bounding": "CapBnd",
    "effective": "CapEff",
    "inheritable": "CapInh",
    "permitted": "CapPrm",
    "ambient": "CapAmb",
}


@record
class Live:
    """*process* is what it is; *own_users*: in a user namespace that is not the reader's; *filtered*: its system
    calls are."""

    process: Process
    own_users: bool
    filtered: bool


def _read(pid: int, file: str, limit: int = 65536) -> bytes:
    fd = os.open(f"/proc/{pid}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < limit and (chunk := os.read(fd, limit - len(data))):
            data += chunk
        return data
    finally:
        os.close(fd)


def _inside(pid: int, kind: str, number: int) -> int:
    """User or group id *number* as the process's own user namespace has it. Raises HostError where it has none."""
    for line in _read(pid, f"{kind}_map").decode("ascii").splitlines():
        inside, outside, count = map(int, line.split())
        if outside <= number < outside + count:
            return inside + number - outside
    raise HostError("run a process beside", f"process {pid}", f"its user namespace has no {kind} {number}", "")


def _capabilities(rows: dict[str, str]) -> Capabilities:
    known = caps.NAMES
    sets = {
        field: tuple(name for number, name in enumerate(known) if int(rows[word], 16) >> number & 1)
        for field, word in SETS.items()
    }
    return Capabilities(**sets)


def _label(pid: int) -> tuple[str, str]:
    """(AppArmor profile, SELinux label), "" for what the kernel does not run, or does not confine it by."""
    try:
        with open("/sys/module/apparmor/parameters/enabled", "rb") as file:
            apparmor = file.read(1) == b"Y"
    except OSError:
        apparmor = False
    selinux = os.path.exists("/sys/fs/selinux/enforce")
    if not apparmor and not selinux:
        return "", ""
    text = _read(pid, "attr/current").decode("utf-8", "replace").strip("\0\n ")
    if apparmor:
        profile = text.rpartition(" (")[0] or text
        return ("" if profile == "unconfined" else profile), ""
    return "", text


def _environment(pid: int) -> tuple[str, ...]:
    """Its variables; () where it does not let them be read: who reads waits for its memory map's lock."""
    try:
        read = helped(lambda: _read(pid, "environ", LONGEST_ENVIRONMENT), PATIENCE, f"process {pid}")
    except OSError:
        return ()
    text = read.decode("utf-8", "surrogateescape")
    return tuple(entry for entry in text.split("\0") if "=" in entry[1:])


def _limits(pid: int) -> tuple[Rlimit, ...]:
    """Its resource limits; where raising one takes a right that this process lacks, no more than its own."""
    # Not prlimit(2): of a process with other ids that takes CAP_SYS_RESOURCE, this file nothing.
    rows = _read(pid, "limits").decode("ascii").splitlines()[1:]
    may_raise = caps.by_name("CAP_SYS_RESOURCE") in caps.current().effective
    found = []
    for number, (name, row) in enumerate(zip(schedule.RLIMITS, rows, strict=True)):
        words = row[25:].split()  # after the name: soft, hard, unit
        soft, hard = (schedule.RLIM_INFINITY if word == "unlimited" else int(word) for word in words[:2])
        most = hard if may_raise else min(hard, schedule.limits(0, number)[1])
        found.append(Rlimit(name, min(soft, most), most))
    return tuple(found)


def read_live(pid: int) -> Live:
    """What *pid* has just now. Raises OSError (it has ended), HostError."""
    lines = _read(pid, "status").decode("utf-8", "replace").splitlines()
    rows = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    uid, gid = (_inside(pid, kind, int(rows[key].split()[1])) for kind, key in (("uid", "Uid"), ("gid", "Gid")))
    groups = []
    for number in rows["Groups"].split():
        try:
            groups.append(_inside(pid, "gid", int(number)))
        except HostError:
            continue  # of the level above: it cannot be asked for again
    profile, label = _label(pid)
    found = Process(
        cwd="/",
        env=_environment(pid),
        user=User(uid, gid, int(rows["Umask"], 8), tuple(groups)),
        capabilities=_capabilities(rows),
        rlimits=_limits(pid),
        oom_score_adj=int(_read(pid, "oom_score_adj")),
        no_new_privileges=rows["NoNewPrivs"] == "1",
        apparmor_profile=profile,
        selinux_label=label,
    )
    own = not os.path.samestat(os.stat(f"/proc/{pid}/ns/user"), os.stat("/proc/self/ns/user"))
    return Live(found, own, rows.get("Seccomp", "0") != "0")
