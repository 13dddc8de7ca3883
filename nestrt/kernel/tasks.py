"""What the threads of processes are and hold: rights, namespaces, and open files of cgroupfs. Read from /proc alone.

A descriptor keeps what it was opened for: cgroupfs asks for permission when a file is opened, not when it is written
to (fs/kernfs/file.c, kernfs_fop_open; v2's cgroup.procs is the exception, cgroup-v2.rst, "Delegation Containment").
So who wants to know what a process can still write has to look through its descriptors. Where those may be:

- the table of each thread: unshare(CLONE_FILES) gives one a table of its own;
- registered with an io_uring: its fdinfo names them (io_uring/fdinfo.c, UserFiles);
- under way in the queue of a Unix socket: its fdinfo has their number, not what they are (net/unix/af_unix.c, scm_fds).

A process may end at any moment: then it is left out. Sources: proc_pid_fdinfo(5), proc_pid_status(5).
"""

from __future__ import annotations

import os
import stat

from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Ranges = tuple[tuple[int, int], ...]
CAPABILITY_SETS = ("CapInh", "CapPrm", "CapBnd", "CapAmb")
SMALL = 1 << 16


@record
class Task:
    """One thread. *caps*: what it has or could get by execve(2), as bits. *user*, *mounts*, *pids*: inode numbers of
    its namespaces. *uids* and *gids*: what its user namespace maps, (first, count) as the reader's namespace
    counts. *confined*: it has a system call filter."""

    pid: int
    tid: int
    caps: int
    user: int
    mounts: int
    pids: int
    uids: Ranges
    gids: Ranges
    confined: bool


@record
class Held:
    """A thing of cgroupfs that a thread holds: *path* as proc_pid_fd(5) names it, *number* its descriptor, -1: its
    working or root directory."""

    pid: int
    number: int
    path: str


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while chunk := os.read(fd, SMALL):
            data += chunk
            if len(data) > 1 << 22:
                break
    finally:
        os.close(fd)
    return data.decode("utf-8", "surrogateescape")


def _rows(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.split("\n"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _ranges(path: str) -> Ranges:
    rows = [line.split() for line in _read(path).splitlines()]
    return tuple((int(row[1]), int(row[2])) for row in rows)


def threads(pids: Iterable[int]) -> Iterator[tuple[int, int, str]]:
    """(pid, tid, its directory in /proc) of every thread of *pids*."""
    for pid in pids:
        try:
            names = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for name in names:
            yield pid, int(name), f"/proc/{pid}/task/{name}"


def read_tasks(pids: Iterable[int]) -> list[Task]:
    """Every thread of *pids* that has not ended. Raises PermissionError where the reader may not look."""
    maps: dict[int, tuple[Ranges, Ranges]] = {}
    found = []
    for pid, tid, place in threads(pids):
        try:
            status = _rows(_read(place + "/status"))
            if status.get("State", "").startswith(("Z", "X")):
                continue
            user, mounts, children = (os.stat(f"{place}/ns/{name}").st_ino for name in ("user", "mnt", "pid"))
            if user not in maps:
                maps[user] = _ranges(f"/proc/{pid}/uid_map"), _ranges(f"/proc/{pid}/gid_map")
        except PermissionError:
            raise
        except (OSError, ValueError, IndexError):
            continue
        caps = 0
        for name in CAPABILITY_SETS:
            caps |= int(status.get(name, "0"), 16)
        confined = status.get("Seccomp", "0") != "0"
        found.append(Task(pid, tid, caps, user, mounts, children, *maps[user], confined))
    return found


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "?"


def _is_file_of(path: str, devices: frozenset[int]) -> bool:
    status = os.stat(path)  # a magic link: no path is followed (proc_pid_fd(5))
    return status.st_dev in devices and stat.S_ISREG(status.st_mode)


def _open_files(pid: int, place: str, devices: frozenset[int]) -> Iterator[Held]:
    for name in os.listdir(place + "/fd"):
        link = f"{place}/fd/{name}"
        try:
            target = os.readlink(link)
            if target.startswith("socket:"):
                count = _rows(_read(f"{place}/fdinfo/{name}")).get("scm_fds", "0")
                if count != "0":
                    yield Held(pid, int(name), f"{count} descriptors on their way in {target}")
            elif target == "anon_inode:[io_uring]":
                yield from (Held(pid, int(name), file) for file in _registered(f"{place}/fdinfo/{name}"))
            elif _is_file_of(link, devices):
                flags = int(_rows(_read(f"{place}/fdinfo/{name}"))["flags"], 8)
                if flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH:
                    yield Held(pid, int(name), target)
        except (FileNotFoundError, ProcessLookupError, KeyError, ValueError):
            continue


def _registered(path: str) -> list[str]:
    """The files that an io_uring keeps. Whether they are of cgroupfs, or may be written, is not told: all count."""
    found, inside = [], False
    for line in _read(path).split("\n"):
        if line.startswith("UserFiles:"):
            inside = True
        elif inside and line.startswith(" ") and ":" in line:
            if name := line.partition(":")[2].strip().removeprefix("<none>"):
                found.append(f"{name} registered with an io_uring")
        elif inside:
            break
    return found


def writers(pids: Iterable[int], devices: frozenset[int]) -> list[Held]:
    """What the processes hold by which files of the filesystems *devices* (st_dev) can be written, or may be.

    Raises PermissionError where the reader may not look.
    """
    found: dict[tuple[int, int, str], Held] = {}
    for pid, _, place in threads(pids):
        try:
            for held in _open_files(pid, place, devices):
                found.setdefault((held.pid, held.number, held.path), held)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return list(found.values())


def writable_places(pids: Iterable[int], devices: frozenset[int]) -> list[Held]:
    """Descriptors, working and root directories in mounts of *devices* that are not read-only: mounts that no
    mount namespace lists any more are found by these alone."""
    found = []
    for pid, _, place in threads(pids):
        try:
            names = [f"fd/{name}" for name in os.listdir(place + "/fd")]
        except OSError:
            continue
        for name in (*names, "cwd", "root"):
            try:
                link = f"{place}/{name}"
                if os.stat(link).st_dev in devices and not os.statvfs(link).f_flag & os.ST_RDONLY:
                    number = name.rpartition("/")[2]
                    found.append(Held(pid, int(number) if number.isdigit() else -1, _link(link)))
            except OSError:
                continue
    return found
