"""Mounts of cgroupfs in a guest's mount namespaces, made read-only and writable again from outside.

    this ── fork ──▶ helper ── setns(guest's mount namespace) ──▶ open each mount point, mount_setattr(2)
      ◀── one JSON text on a pipe ──┘        a guest's own /proc is never asked: a descriptor of this level's is

A mount point's path is the guest's to choose. It is opened without following a symbolic link, and what was opened has
to be that very mount, by its id. A file system of the guest's own on the way could keep the helper waiting: then it is
killed, and where it cannot be killed before that answers (FUSE), nobody waits for it.
"""

from __future__ import annotations

import os
import select

from nestrt import jsontext
from nestrt.kernel import mount, namespaces, pidfd, prctl
from nestrt.kernel.mountinfo import Mount, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, NoReturn
else:
    import _signal  # signal.py imports enum

PATIENCE, KILL_PATIENCE = 10.0, 1.0  # seconds
ANSWER = 1 << 22
NO_LINKS = mount.RESOLVE_NO_SYMLINKS | mount.RESOLVE_IN_ROOT

Row = tuple[int, int, str]  # mount namespace, mount id, mount point


def _mounts(proc: int) -> list[tuple[int, Mount]]:
    """The mounts of cgroupfs of this process's namespace, with their ids: *proc* is a descriptor of /proc."""
    text = _read(proc, "self/mountinfo")
    rows = [(int(line.split(" ", 1)[0]), parse(line)) for line in text.split("\n") if line]
    return [(number, found[0]) for number, found in rows if found and found[0].fstype in ("cgroup", "cgroup2")]


def _read(proc: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), "rb") as file:
        return file.read().decode("utf-8", "surrogateescape")


def _id(proc: int, fd: int) -> int:
    rows = (line.split() for line in _read(proc, f"self/fdinfo/{fd}").split("\n"))
    return next(int(row[1]) for row in rows if row[:1] == ["mnt_id:"])


def _set(proc: int, number: int, target: str, read_only: bool) -> str:
    """Change one mount; "" or why it could not be."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    fd = -1
    try:
        fd = mount.open_in_root(root, target.lstrip("/") or ".", os.O_PATH | os.O_NOFOLLOW, resolve=NO_LINKS)
        if _id(proc, fd) != number:
            return "another mount lies over it"
        flag = mount.MOUNT_ATTR_RDONLY
        mount.set_attributes(fd, flag if read_only else 0, 0 if read_only else flag)
        return ""
    except OSError as error:
        return error.strerror or "it failed"
    finally:
        os.close(root)
        if fd >= 0:
            os.close(fd)


def _change(namespace: int, proc: int, read_only: bool, only: tuple[Row, ...] | None) -> dict[str, Any]:
    """In the helper: enter, and change what is to be changed."""
    inode = os.fstat(namespace).st_ino
    namespaces.setns(namespace, namespaces.CLONE_NEWNS)
    done, failed = [], []
    for number, found in _mounts(proc):
        row = [inode, number, found.target]
        known = only is None or tuple(row) in only
        if not known or ("ro" in found.options) == read_only:
            continue
        if why := _set(proc, number, found.target, read_only):
            failed.append(f"{found.target}: {why}")
        else:
            done.append(row)
    return {"done": done, "failed": failed}


def _help(pipe: int, namespace: int, proc: int, read_only: bool, only: tuple[Row, ...] | None) -> NoReturn:
    try:
        prctl.set_parent_death_signal(_signal.SIGKILL)
        # Whoever reads what we write does not wait for a helper that cannot be killed.
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        try:
            answer = _change(namespace, proc, read_only, only)
        except OSError as error:
            answer = {"done": [], "failed": [error.strerror or "it failed"]}
        data = jsontext.dumps(answer).encode()
        while data:
            data = data[os.write(pipe, data) :]
    finally:
        os._exit(0)


def change(pid: int, read_only: bool, only: tuple[Row, ...] | None = None) -> tuple[list[Row], list[str]]:
    """Make the mounts of cgroupfs that *pid* has in its mount namespace read-only, or writable: what was changed, and a
    line for each that could not be.

    *only*: these and no others. The caller has one thread. Raises OSError where *pid* is gone.
    """
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    read, write = os.pipe2(os.O_CLOEXEC)
    helper = os.fork()
    if helper == 0:
        _help(write, namespace, proc, read_only, only)
    for fd in (proc, namespace, write):
        os.close(fd)
    data = b""
    try:
        while len(data) < ANSWER and select.select([read], [], [], PATIENCE)[0]:
            if not (chunk := os.read(read, 65536)):
                break
            data += chunk
    finally:
        os.close(read)
        _end(helper)
    try:
        answer = jsontext.loads(data.decode())
    except ValueError:
        return [], ["a mount point did not answer"]
    return [(row[0], row[1], row[2]) for row in answer["done"]], list(answer["failed"])


def _end(helper: int) -> None:
    """Kill it if it hangs; else it has ended, and is not reaped yet. What waits for FUSE (fs/fuse/dev.c,
    request_wait_answer()) is left to itself: it ends as soon as it can."""
    os.kill(helper, _signal.SIGKILL)
    watch = os.pidfd_open(helper)
    try:
        if pidfd.wait(watch, KILL_PATIENCE):
            os.waitpid(helper, 0)
    finally:
        os.close(watch)
