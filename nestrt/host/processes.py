"""The processes of guests: host pid, guest pid, user, command, and the group they are in.

Sources: proc_pid_status(5) (NSpid, Uid, VmRSS), proc_pid_cmdline(5), proc_pid_stat(5),
user_namespaces(7); Documentation/admin-guide/cgroup-v2.rst, cgroup.procs.
A process may end at any moment: then it is left out.
"""

from __future__ import annotations

import os

from nestrt.host.commands import Commands
from nestrt.host.walk import LONGEST_PATH, Guest, View, open_deep
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_FILE = 1 << 22  # of cgroup.procs: half a million pids
SILENT = " (its command line cannot be read: its memory map is locked)"


@record
class Process:
    """A process in a group of a guest.

    *pid* is its number for whoever looks, 0 if it is outside the looker's pid namespace; then nothing else
    is known. *pids* are its numbers in every pid namespace from the looker's inwards (NSpid), *guest_pid* the
    one in its guest's, -1 if unknown. *uid* and *guest_uid* are its real user outside and inside.
    *group* is the path of its group in the first hierarchy that shows it below the guest,
    *elsewhere* (hierarchy name, path) those where it is in another one.
    *start* is in clock ticks since boot. *command* is its *name* in brackets where it has no command line, or does
    not let it be read. *state* is one of RSDTtZXI, *parent* the pid of its parent, 0 if that is outside the looker's
    pid namespace, *ticks* the CPU time of all its threads in clock ticks, *threads* how many there are, *rss* bytes.
    """

    pid: int
    pids: tuple[int, ...]
    guest_pid: int
    uid: int
    guest_uid: int
    start: int
    command: str
    group: str
    elsewhere: tuple[tuple[str, str], ...] = ()
    name: str = ""
    state: str = ""
    parent: int = -1
    ticks: int = -1
    threads: int = -1
    rss: int = -1


def read_text(path: str, limit: int = 65536) -> str:
    """At most *limit* bytes of a file of any path length. OSError (ENOENT and ENODEV: the group is gone)."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    fd = os.open(path, flags) if len(path) <= LONGEST_PATH else open_deep(path, flags)
    try:
        data = b""
        while len(data) < limit and (chunk := os.read(fd, min(65536, limit - len(data)))):
            data += chunk
    finally:
        os.close(fd)
    return data.decode("utf-8", "surrogateescape")


def control_text(path: str) -> str:
    """A control file's text. OSError, as read_text().

    One read(2) has it whole (kernel/cgroup/cgroup.c, cgroup_seqfile_show: it is one record), but of files with many
    members: cgroup.procs, cgroup.threads, tasks. That is a quarter less to do, for very many files.
    """
    if len(path) > LONGEST_PATH:
        return read_text(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, 65536)
    finally:
        os.close(fd)
    return data.decode("utf-8", "surrogateescape")


def pids_in(directory: str) -> list[int]:
    """The pids in cgroup.procs; [] if the group is gone, not readable, or threaded (v2 says EOPNOTSUPP)."""
    try:
        return [int(pid) for pid in read_text(directory + "/cgroup.procs", LONGEST_FILE).split()]
    except (OSError, ValueError):
        return []


def start_time(pid: int) -> int:
    """When *pid* was started, in clock ticks since boot (field 22 of /proc/PID/stat), -1 if it is gone.

    With its pid this names a process for as long as the machine runs.
    """
    try:
        return _stat(pid)[2]
    except (OSError, ValueError, IndexError):
        return -1


def _stat(pid: int) -> tuple[str, int, int]:
    """The state of *pid*, its number of threads and its start. OSError, ValueError, IndexError.

    The comm field can contain spaces and parentheses, so fields are counted from the last ")".
    """
    fields = read_text(f"/proc/{pid}/stat", 4096).rpartition(")")[2].split()
    return fields[0], int(fields[17]), int(fields[19])


def has_ended(state: str, threads: int) -> bool:
    """Whether a process waits for its parent alone; one whose first thread has ended may go on in others."""
    return state in ("Z", "X") and threads <= 1


def is_running(guest: Guest, view: View, known: dict[str, bool] | None = None) -> bool:
    """Whether any process is in the guest's groups, or in those of its guests, in any hierarchy.

    *known* keeps by path what was found, so that of a nest each group is looked into once.
    """
    known = {} if known is None else known
    if guest.path not in known:
        known[guest.path] = (
            _is_populated(guest, view)
            or _has_processes(guest, view)
            or any(is_running(inner, view, known) for inner in guest.guests)
        )
    return known[guest.path]


def _is_populated(guest: Guest, view: View) -> bool:
    """What the v2 tree says of the limit group with all below it."""
    for hierarchy in view.hierarchies:
        if hierarchy.version == 2 and hierarchy.name in guest.hierarchies:
            try:
                if "populated 1" in control_text(hierarchy.path(guest.path, "cgroup.events")):
                    return True
            except OSError:
                continue
    return False


def _has_processes(guest: Guest, view: View) -> bool:
    """Whether the guest's own groups have any in a v1 hierarchy, which tells only of each group."""
    for hierarchy in view.hierarchies:
        if hierarchy.version == 1:
            paths = [guest.path] if hierarchy.name in guest.hierarchies else []
            paths += [group.path for group in guest.groups if hierarchy.name in group.hierarchies]
            if any(pids_in(hierarchy.path(path)) for path in paths):
                return True
    return False


def first_process(guest: Guest, found: list[Process]) -> int:
    """The pid, for whoever looks, of the guest's first process; -1 if it has ended or is not known.

    The host's mark has the host's pid. A claim has the pid of the level that
    launched, so it is looked for among the processes that really are in the guest's groups. The start time has
    to be the same in both, and is, unless that level is in a time namespace.
    """
    mark = guest.mark
    if mark.pid <= 0:
        return -1
    if not guest.claim:
        try:
            state, threads, start = _stat(mark.pid)
        except (OSError, ValueError, IndexError):
            return -1
        return mark.pid if start == mark.start and not has_ended(state, threads) else -1
    for process in found:
        ended = has_ended(process.state, process.threads)
        if process.start == mark.start and mark.pid in process.pids and not ended:
            return process.pid
    return -1


def _status(pid: int) -> dict[str, str]:
    rows = (line.partition(":") for line in read_text(f"/proc/{pid}/status").split("\n"))
    return {key: value.strip() for key, _, value in rows if key in ("Uid", "NSpid", "VmRSS")}


class _Users:
    """Translates uids into the process's own user namespace; reads each namespace's map once."""

    def __init__(self) -> None:
        self.maps: dict[str, list[tuple[int, int, int]]] = {}

    def inside(self, pid: int, uid: int) -> int:
        """*uid* as the process itself sees it, -1 if it cannot be known."""
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/user")
            if namespace not in self.maps:
                rows = [line.split() for line in read_text(f"/proc/{pid}/uid_map").splitlines()]
                self.maps[namespace] = [(int(a), int(b), int(c)) for a, b, c in rows]
        except (OSError, ValueError):
            return -1
        for inside, outside, count in self.maps[namespace]:
            if outside <= uid < outside + count:
                return inside + uid - outside
        return -1


def _describe(pid: int, users: _Users) -> Process | None:
    """*pid* without its groups and its command line; None if it has ended."""
    if pid <= 0:
        return Process(0, (), -1, -1, -1, -1, "", "")
    try:
        status = _status(pid)
        uid = int(status["Uid"].split()[0])
        pids = tuple(int(number) for number in status.get("NSpid", str(pid)).split())
        head, _, rest = read_text(f"/proc/{pid}/stat", 4096).rpartition(")")
        name, fields = head.partition("(")[2], rest.split()
        parent, user, system, threads, start = (int(fields[place]) for place in (1, 11, 12, 17, 19))
        # stat has it too, by counters that are not added up over all CPUs.
        rss = int(status.get("VmRSS", "0").split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None
    found = Process(pid, pids, -1, uid, users.inside(pid, uid), start, f"[{name}]", "")
    found.name, found.state, found.parent = name, fields[0], parent
    found.ticks, found.threads, found.rss = user + system, threads, rss
    return found


_commands = Commands()


def add_commands(found: Iterable[Process]) -> None:
    """Fill in the command lines. A process that is gone by now, or has none, keeps its name in brackets."""
    by_key = {(process.pid, process.start): process for process in found if process.pid}
    read = _commands.read(list(by_key)) if by_key else {}
    for key, process in by_key.items():
        if key not in read:
            process.command = f"[{process.name}]{SILENT}"
        elif words := (read[key] or b"").rstrip(b"\0"):
            process.command = words.replace(b"\0", b" ").decode("utf-8", "surrogateescape")


def processes(guest: Guest, view: View, commands: bool = True) -> list[Process]:
    """The processes in the guest's own groups, by group and pid, without those of its guests.

    Without *commands* the command lines are left for add_commands(): they cost a third, and may take half a second.
    Every hierarchy is looked at: on v1 a process can be in the guest's groups in some, and elsewhere in others.
    The pid in the guest is the entry of NSpid at the depth of the guest's first
    process, or, where that is not known, at the number of levels below the looker.
    """
    groups: dict[int, list[tuple[str, str]]] = {}
    outside: list[str] = []
    for hierarchy in view.hierarchies:
        paths = [guest.path] if hierarchy.name in guest.hierarchies else []
        paths += [group.path for group in guest.groups if hierarchy.name in group.hierarchies]
        for path in paths:
            for pid in pids_in(hierarchy.path(path)):
                if pid:
                    groups.setdefault(pid, []).append((hierarchy.name, path))
                elif path not in outside:
                    outside.append(path)
    users = _Users()
    found = []
    for pid, where in groups.items():
        process = _describe(pid, users)
        if process:
            process.group = where[0][1]
            process.elsewhere = tuple((name, path) for name, path in where if path != process.group)
            found.append(process)
    if commands:
        add_commands(found)
    first = first_process(guest, found)
    depth = next((len(p.pids) - 1 for p in found if p.pid == first), guest.level - view.level)
    for process in found:
        process.guest_pid = process.pids[min(depth, len(process.pids) - 1)]
    found += [Process(0, (), -1, -1, -1, -1, "", path) for path in outside]
    return sorted(found, key=lambda p: (p.group.split("/"), p.pid))
