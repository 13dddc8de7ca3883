"""Removing the guests of ``launch``, for ``delete`` and ``gc``."""

from __future__ import annotations

import os
import sys
import time

from nestrt.act import remove
from nestrt.errors import NestrtError, NotFound, StateError
from nestrt.plan.facts import Hierarchy
from nestrt.plan.request import PARENT, STATE_DIR, state_file
from nestrt.probe.facts import primary, read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def disconnector(name: str, mark: dict[str, object]) -> object:
    """veth.disconnect if the guest was on nestrt's bridge, else None: it imports pyroute2."""
    net = mark.get("net")
    wired = isinstance(net, dict) and net.get("mode") == "veth"
    try:
        reserved = [os.readlink(entry.path) for entry in os.scandir(f"{STATE_DIR}/net") if entry.is_symlink()]
    except OSError:
        reserved = []
    if not wired and name not in reserved:
        return None
    from nestrt.net import veth
    from nestrt.net.library import find_pyroute2

    find_pyroute2()
    return veth.disconnect


def exists(name: str, hierarchies: tuple[Hierarchy, ...]) -> bool:
    """Whether anything of a guest of that name is there: its state file, or a marked group."""
    group = f"{PARENT}/{name}"
    return os.path.lexists(state_file(name)) or any(remove.read_mark(h, group) for h in hierarchies)


def delete(name: str, force: bool) -> None:
    """Remove one guest. Raises NotFound, StateError (it runs, and not *force*), KernelError."""
    hierarchies = read_hierarchies(make=True)
    if not exists(name, hierarchies):
        raise NotFound("delete", f"guest {name}", "there is none of that name at this level", "nestrt ls names them")
    group = f"{PARENT}/{name}"
    pids = remove.living(hierarchies, group)
    if pids and not force:
        raise StateError(
            "delete",
            f"guest {name}",
            f"{len(pids)} of its processes run",
            f"end them, or: nestrt delete --force {name}",
        )
    mark = remove.read_mark(primary(hierarchies), group)
    remove.kill(hierarchies, group)
    lock = _own(name, force)
    try:
        remove.remove(name, hierarchies, disconnector(name, mark))  # type: ignore[arg-type]
    finally:
        os.close(lock)


def _own(name: str, force: bool) -> int:
    """The guest's name, locked: what is removed below must not be the next guest of that name.

    With *force* the launcher, whose guest has just been killed, gets the time to
    notice. Raises StateError where it lives on.
    """
    deadline = time.monotonic() + (remove.PATIENCE if force else 0)
    while (lock := remove.claim(name)) is None:
        if time.monotonic() > deadline:
            raise StateError(
                "delete",
                f"guest {name}",
                "its launcher lives",
                "wait for it, end it, or: nestrt delete --force " + name,
            )
        time.sleep(0.01)
    return lock


def each(names: list[str], action: Callable[[str], object]) -> int:
    """Do *action* for every name; prints what fails and goes on. Returns the last failure's status, or 0."""
    status = 0
    for name in names:
        try:
            action(name)
        except NestrtError as error:
            sys.stderr.write(f"nestrt: {error}\n")
            status = error.status
    return status
