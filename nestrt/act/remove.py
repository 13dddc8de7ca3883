"""End a guest and remove all that belongs to it: the one way back, for a failed launch, ``delete`` and ``gc``.

Everything is derived from the guest's name and parent group, so it works after
a kill at any point, as often as wanted, and whatever part is there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from nestrt import jsontext
from nestrt.act import members
from nestrt.act.members import living as living  # others have it from here
from nestrt.errors import KernelError, StateError
from nestrt.kernel import cgroup, flock
from nestrt.plan.facts import Hierarchy
from nestrt.plan.request import FIRST_GROUP, GUEST_ROOT, PARENT, PARENT_LOCK, STATE_DIR, state_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
else:
    import _signal  # signal.py imports enum

PATIENCE = 10.0  # seconds that a killed guest may take to let go of its groups
STOPS = 20  # tries to freeze what forks
STATE_LIMIT = 65536
# What nestrt host init has set on a parent of guests stays when the last of them goes.
KEPT = {"trusted.nestrt.split", "user.nestrt.split"}


def claim(name: str) -> int | None:
    """Take a guest's name as a launch does: its state file, made if it is not there, locked. None if it is another's.

    The caller closes the descriptor when it has done with what it found under the name.
    """
    os.makedirs(f"{STATE_DIR}/guests", mode=0o755, exist_ok=True)
    path = state_file(name)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def names() -> list[str]:
    """The names of all guests that have a state file here."""
    try:
        return sorted(os.listdir(f"{STATE_DIR}/guests"))
    except FileNotFoundError:
        return []


def read_mark(hierarchy: Hierarchy, group: str) -> dict[str, object]:
    """The mark of a limit group, {} if it has none that can be read."""
    for attribute in ("trusted.nestrt", "user.nestrt"):
        try:
            value = jsontext.loads(os.getxattr(hierarchy.path(group), attribute).decode())
        except (OSError, ValueError):
            continue
        if isinstance(value, dict):
            return value
    return {}


def _thaw(path: str) -> None:
    """v1: thaw a freezer group and everything below it, from the top: a frozen process cannot die (runc#2105)."""
    try:
        directories = (path, *reversed(cgroup.below(path)))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        from nestrt.kernel import deep  # rare

        deep.write(path, "freezer.state", "THAWED")
        return
    for directory in directories:
        try:
            cgroup.write(directory + "/freezer.state", "THAWED")
        except OSError:
            continue


def thaw(hierarchies: tuple[Hierarchy, ...], group: str) -> None:
    """Thaw *group* and everything below it where a frozen process cannot die: on v1."""
    for hierarchy in hierarchies:
        if group and hierarchy.version == 1 and "freezer" in hierarchy.controllers:
            _thaw(hierarchy.path(group))


def _kill_tree(hierarchies: tuple[Hierarchy, ...], group: str) -> bool:
    """Kill what is in the v2 groups, what forks meanwhile and the frozen too; whether this kernel can (Linux 5.14)."""
    done = False
    for hierarchy in hierarchies:
        if hierarchy.version == 2:
            try:
                cgroup.write(hierarchy.path(group, "cgroup.kill"), "1")
                done = True
            except OSError:
                continue
    return done


def _stop(hierarchies: tuple[Hierarchy, ...], group: str) -> None:
    """v1: have nothing of *group* fork just now, where the freezer is there and works."""
    for hierarchy in hierarchies:
        if hierarchy.version == 1 and "freezer" in hierarchy.controllers:
            state = hierarchy.path(group, "freezer.state")
            try:
                for _ in range(STOPS):
                    cgroup.write(state, "FROZEN")
                    if cgroup.read(state) == "FROZEN":
                        break
                    time.sleep(0.001)
            except OSError:
                continue


def kill(hierarchies: tuple[Hierarchy, ...], group: str) -> None:
    """Kill every process in *group* and below and wait until it is gone. Raises StateError after PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while pids := living(hierarchies, group):
        if not _kill_tree(hierarchies, group):
            _stop(hierarchies, group)
            pids = living(hierarchies, group)
        for pid in pids:
            try:
                members.send(hierarchies, group, pid, _signal.SIGKILL)
            except OSError:
                continue
        thaw(hierarchies, group)
        if time.monotonic() > deadline:
            raise StateError(
                "end",
                f"group {group}",
                f"{len(pids)} processes do not end ({pids[:3]}…)",
                "see what they wait for: cat /proc/PID/stack",
            )
        time.sleep(0.002)


def _below(path: str) -> list[str]:
    """The groups below *path*; without those that nest deeper than a path can say, which are removed here."""
    try:
        return cgroup.below(path)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    from nestrt.kernel import deep  # rare

    try:
        deep.remove(path)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT):
            raise
    return []


def _remove_groups(hierarchy: Hierarchy, group: str, deadline: float) -> None:
    """Remove *group* with all below it; a group stays busy for a moment after its last process has gone."""
    path = hierarchy.path(group)
    while os.path.isdir(path):
        for directory in (*_below(path), path):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > deadline:
                    raise KernelError("remove group", directory, error.errno or 0, "end the processes in it") from error
                time.sleep(0.002)
                break


def _unreserve(name: str) -> None:
    """Give back the guest's ids."""
    directory = f"{STATE_DIR}/ids"
    try:
        links = os.listdir(directory)
    except FileNotFoundError:
        return
    for link in links:
        try:
            if os.readlink(f"{directory}/{link}") == name:
                os.unlink(f"{directory}/{link}")
        except OSError:
            continue


def remove_parent(
    hierarchies: tuple[Hierarchy, ...], groups: tuple[str, ...] = (PARENT,), patience: float = 0.0
) -> None:
    """Remove *groups* that guests share, deepest first, if no guest is in them and none is being made.

    *patience* is how long to wait for those that are being made, in seconds.
    """
    try:
        fd = os.open(PARENT_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        # Where a launch has the lock that one removes it, or a later one.
        for hierarchy in hierarchies if flock.take(fd, patience) else ():
            for group in groups:
                try:
                    if not KEPT.intersection(os.listxattr(hierarchy.path(group))):
                        os.rmdir(hierarchy.path(group))
                except OSError:
                    continue  # other guests are there
    finally:
        os.close(fd)


def _remove_idle(hierarchy: Hierarchy, group: str) -> None:
    """Remove the groups of a guest that has ended and has left none of its own, without looking first."""
    for directory in (f"{group}/{GUEST_ROOT}/{FIRST_GROUP}", f"{group}/{GUEST_ROOT}", group):
        try:
            os.rmdir(hierarchy.path(directory))
        except FileNotFoundError:
            continue
        except OSError:
            return


def remove_tree(group: str, hierarchies: tuple[Hierarchy, ...]) -> None:
    """Kill what lives in *group* and below, and remove it in all *hierarchies*.

    Raises StateError and KernelError; what is left then is left whole enough for another try.
    """
    if not group.strip("/"):
        return
    for hierarchy in hierarchies:
        _remove_idle(hierarchy, group)
    kill(hierarchies, group)
    deadline = time.monotonic() + PATIENCE
    for hierarchy in hierarchies:
        _remove_groups(hierarchy, group, deadline)


def remove(name: str, hierarchies: tuple[Hierarchy, ...], disconnect: Callable[[str], object] | None = None) -> None:
    """Kill what lives of guest *name*, remove its groups at all levels, its ids, its network and its state file.

    Whoever calls owns the guest's lock, or has found it free. Raises StateError and
    KernelError; what is left then is left whole enough for another try.
    """
    group = f"{PARENT}/{name}"
    remove_tree(group, hierarchies)
    remove_parent(hierarchies)
    if disconnect:
        disconnect(name)
    _unreserve(name)
    try:
        os.unlink(state_file(name))
    except FileNotFoundError:
        pass
