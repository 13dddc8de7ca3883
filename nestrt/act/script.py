"""Carry out what plan.script has written down: the operations on groups, each on paths, by one function."""

from __future__ import annotations

import errno
import os

from nestrt import jsontext
from nestrt.errors import InputError, KernelError
from nestrt.kernel import cgroup, pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def carry_out(operation: list[Any], pid: int) -> None:
    """One operation; *pid* is the guest's first process, where there is one. Raises OSError."""
    OPERATIONS[operation[0]](pid, *operation[1:])


def run(operations: list[Any], pid: int) -> None:
    """All of *operations*, in order. Raises KernelError for what the kernel refuses, InputError for what is none."""
    for operation in operations:
        try:
            carry_out(operation, pid)
        except OSError as error:
            word, path = operation[0], error.filename or str(operation[1])
            raise KernelError(
                _PHRASES.get(word, word), path, error.errno or 0, "see what else uses the group"
            ) from error
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError("carry out", str(operation)[:80], "it is no operation", "remove the guest") from error


def _mkdir(pid: int, path: str, exist_ok: bool) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        if not exist_ok:
            raise


def _write(pid: int, file: str, value: str, optional: bool, unless: str) -> None:
    if unless and os.path.exists(unless):
        return
    try:
        cgroup.write(file, value)
    except FileNotFoundError:
        if not optional:
            raise


def _enable(pid: int, file: str, controllers: list[str], lenient: bool) -> None:
    have = cgroup.read(file).split()
    missing = [f"+{name}" for name in controllers if name not in have]
    if not missing:
        return
    try:
        cgroup.write(file, " ".join(missing))
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EACCES, errno.EROFS) and not lenient:
            raise
        if error.errno == errno.EBUSY:
            # Processes stand there. One by one the kernel would take cpu and pids, by which the group becomes
            # "domain threaded" and no child of it takes a process (cgroup-v2.rst, "Threads").
            return
        # One that cannot be had (cpu beside realtime processes, say) takes the others with it.
        for name in missing:
            try:
                cgroup.write(file, name)
            except OSError:
                continue


def _disable(pid: int, file: str, controllers: list[str]) -> None:
    have = cgroup.read(file).split()
    if extra := [f"-{name}" for name in controllers if name in have]:
        cgroup.write(file, " ".join(extra))


def _fill(pid: int, path: str, parent: str, inherit: bool) -> None:
    for file in ("cpuset.mems", "cpuset.cpus"):
        if not cgroup.read(f"{path}/{file}"):
            cgroup.write(f"{path}/{file}", cgroup.read(f"{parent}/{file}"))
    if inherit:
        cgroup.write(f"{path}/cgroup.clone_children", "1")


def _xattr(pid: int, path: str, name: str, value: str) -> None:
    os.setxattr(path, name, value.encode())


def _running(pid: int, path: str, name: str, mark: str) -> None:
    value = jsontext.loads(mark)
    value.update(state="running", pid=pid, start=pidfd.start_time(pid) or 0)
    os.setxattr(path, name, jsontext.dumps(value).encode())


def _chown(pid: int, path: str, files: list[str], uid: int, gid: int) -> None:
    for name in os.listdir(path) if files == ["*"] else files:
        try:
            os.chown(f"{path}/{name}", uid, gid)
        except FileNotFoundError:
            continue
    os.chown(path, uid, gid)


def _attach(pid: int, files: list[str]) -> None:
    for file in files:
        cgroup.write(file, str(pid))


OPERATIONS: dict[str, Callable[..., None]] = {
    "mkdir": _mkdir,
    "write": _write,
    "enable": _enable,
    "disable": _disable,
    "fill": _fill,
    "xattr": _xattr,
    "running": _running,
    "chown": _chown,
    "attach": _attach,
}
_PHRASES = {
    "mkdir": "make group",
    "enable": "enable controllers by",
    "disable": "disable controllers by",
    "fill": "fill the cpuset",
    "xattr": "mark",
    "running": "mark",
    "chown": "delegate",
    "attach": "move the first process by",
}
