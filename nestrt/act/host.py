"""The launcher's steps, carried out: one function for each kind in plan/host_steps.py."""

from __future__ import annotations

import fcntl
import os

from nestrt.act import first, groups, guest, launch
from nestrt.act.process import Guest
from nestrt.act.protocol import Channel, pair
from nestrt.errors import HostError, StateError
from nestrt.kernel import id_maps, mount, namespaces
from nestrt.plan import host_steps as do
from nestrt.plan.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from nestrt.act.launch import Launcher


class ShiftRefused(HostError):
    """The kernel would not id-map the root filesystem."""


class IdsTaken(StateError):
    """Another launch took the same range of ids a moment ago."""


def _reserve(launcher: Launcher, step: do.Reserve) -> None:
    directory = os.path.dirname(step.path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    # Locked before it has a name: a file that is there and not locked has lost its launcher.
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, step.content.encode())
    at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a directory descriptor Python calls linkat(2), which alone follows the link (open(2), O_TMPFILE).
        os.link(f"/proc/self/fd/{fd}", os.path.basename(step.path), dst_dir_fd=at, follow_symlinks=True)
    except FileExistsError as error:
        os.close(fd)
        raise StateError(
            "launch",
            f"guest {launcher.plan.name}",
            "the name is in use",
            f"choose another, or: nestrt delete {launcher.plan.name}",
        ) from error
    finally:
        os.close(at)
    launcher.lock = fd
    groups.hold_parents(launcher)


def _ids_taken(step: do.ReserveIds) -> IdsTaken:
    return IdsTaken("reserve", f"ids {os.path.basename(step.path)}", "another guest took them", "try again")


def _reserve_ids(launcher: Launcher, step: do.ReserveIds) -> None:
    os.makedirs(os.path.dirname(step.path), mode=0o755, exist_ok=True)
    try:
        os.symlink(step.name, step.path)
    except FileExistsError as error:
        raise _ids_taken(step) from error
    # Ranges of other lengths have other names: of two that overlap at least the later one sees the other.
    start, _, count = os.path.basename(step.path).partition("-")
    for link in os.listdir(os.path.dirname(step.path)):
        begin, _, length = link.partition("-")
        other = link != os.path.basename(step.path) and begin.isdigit() and length.isdigit()
        if other and int(begin) < int(start) + int(count) and int(start) < int(begin) + int(length):
            os.unlink(step.path)
            raise _ids_taken(step)


def _open_root(launcher: Launcher, step: do.OpenRoot) -> None:
    launcher.tree = mount.open_tree(step.path, step.recursive)


def _open_bind(launcher: Launcher, step: do.OpenBind) -> None:
    try:
        launcher.binds[step.path, step.target] = mount.open_tree(step.path, step.recursive)
    except FileNotFoundError:
        if not step.optional:
            raise


def _open_log(launcher: Launcher, step: do.OpenLog) -> None:
    launcher.log = os.open(step.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _clone(launcher: Launcher, step: do.Clone) -> None:
    launcher.channel, theirs = pair()
    launcher.pid, launcher.pidfd = namespaces.clone(step.flags)
    if launcher.pid == 0:
        become_first(launcher, theirs)
    os.close(theirs.sock.detach())
    launcher.release_parents()


def become_first(launcher: Launcher, channel: Channel) -> NoReturn:
    """In the clone: let go of what is the launcher's, and be the guest's first process."""
    os.close(launcher.channel.sock.detach())
    for fd in (launcher.lock, launcher.parent_lock):
        if fd >= 0:
            os.close(fd)
    held = Guest(channel, launcher.tree, launcher.binds, launcher.log, launcher.signals)
    first.main(launcher.plan, held, launcher.first, launcher.observe, guest.explain)


def _map_ids(launcher: Launcher, step: do.MapIds) -> None:
    id_maps.write_id_map(launcher.pid, "uid_map", step.uids)
    id_maps.write_id_map(launcher.pid, "gid_map", step.gids)


def _shift(launcher: Launcher, tree: int) -> None:
    """Id-map a detached mount by the first process's user namespace."""
    userns = os.open(f"/proc/{launcher.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        mount.set_attributes(tree, mount.MOUNT_ATTR_IDMAP, recursive=True, userns=userns)
    finally:
        os.close(userns)


def _shift_bind(launcher: Launcher, step: do.ShiftBind) -> None:
    try:
        _shift(launcher, launcher.binds[step.path, step.target])
    except OSError as error:
        raise HostError(
            "id-map",
            f"the mount of {step.path}",
            f"its filesystem cannot be id-mapped ({error.strerror})",
            "leave idmap out of --mount, or take a directory on ext4, xfs, btrfs or tmpfs",
        ) from error


def _shift_root(launcher: Launcher, step: do.ShiftRoot) -> None:
    try:
        _shift(launcher, launcher.tree)
    except OSError as error:
        raise ShiftRefused(
            "id-map",
            f"root filesystem {step.path}",
            f"its filesystem, or one mounted below it, cannot be id-mapped ({error.strerror})",
            "use one on ext4, xfs, btrfs or tmpfs, or --userns none, or chown it for --userns 0:OUTSIDE:COUNT",
        ) from error


def _connect(launcher: Launcher, step: do.Connect) -> None:
    if launcher.connect:
        launcher.connect(step.name, launcher.pid)


def _ask_broker(launcher: Launcher, step: do.AskBroker) -> None:
    from nestrt.act import broker  # only for guests that have one

    if step.embedded:
        launcher.broker = broker.embed(step.name, step.group, launcher.signals)
    elif not broker.serve(step.name, step.group, step.needed):
        launcher.warnings.append(broker.missing(step.name))


STEPS: dict[type[Step], Callable[..., None]] = {
    **launch.COMMON,
    **groups.STEPS,
    do.Reserve: _reserve,
    do.ReserveIds: _reserve_ids,
    do.AskBroker: _ask_broker,
    do.OpenRoot: _open_root,
    do.OpenBind: _open_bind,
    do.OpenLog: _open_log,
    do.Clone: _clone,
    do.MapIds: _map_ids,
    do.ShiftRoot: _shift_root,
    do.ShiftBind: _shift_bind,
    do.Connect: _connect,
}
