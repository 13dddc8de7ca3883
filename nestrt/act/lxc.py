"""What a container of LXC needs carried out that other guests do themselves: its view, mounted from outside.

Its first process has pivoted by then and waits. A helper enters its mount and cgroup namespaces and there mounts
the view, as the first process of a launch would: in the container's root, where every path and symlink of the image
resolves, and from its cgroup namespace, so that everything begins at the guest root::

    hook ─ fork ─▶ helper: enter mnt, cgroup; unmount LXC's own view; mount ours; lock
      │                │
      └◀── what failed ┘

The helper stays in the host's user namespace, whose rights LXC's own mounts need, too, to be taken away. It is in
no pid namespace of the container's, cannot be traced, imports nothing and runs nothing.

Sources: setns(2), mount_namespaces(7), cgroup_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import select
import sys

from nestrt.act import mounts, remove
from nestrt.errors import HostError, KernelError, NestrtError, NotFound
from nestrt.kernel import mount, namespaces, pidfd, prctl
from nestrt.kernel.mountinfo import read_mounts
from nestrt.plan import guest_steps as do
from nestrt.plan.guest import CGROUP_ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterable

    from nestrt.act.records import Record
    from nestrt.plan.facts import Hierarchy
    from nestrt.plan.steps import Step
else:
    import _signal  # signal.py imports enum

PATIENCE = 20.0  # seconds: a view is a dozen mounts
HANDLE_CAPABILITIES = (2, 21)  # CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN: include/uapi/linux/capability.h
OPEN_LIMIT = 4096  # descriptors that a hook may have been left by whoever called it
STEPS: dict[type[Step], Callable[..., None]] = {
    do.MountNew: mounts.mount_new,
    do.Link: mounts.link,
    do.LockFiles: mounts.lock_files,
}


def _require_own(pid: int) -> None:
    """Raises HostError where *pid* has no mount namespace of its own: what is mounted there would be others', too."""
    if os.path.samestat(os.stat(f"/proc/{pid}/ns/mnt"), os.stat("/proc/self/ns/mnt")):
        raise HostError(
            "mount the view of",
            f"process {pid}",
            "its mount namespace is the host's",
            "leave mnt out of lxc.namespace.keep",
        )


def _old_views(pid: int, root: str) -> list[str]:
    """The targets of cgroup mounts that are there already, and of what they are mounted on, the last made first.

    Raises HostError for one that begins elsewhere than at the guest root *root*: LXC has not made it for *pid*.
    """
    found = []
    for entry in read_mounts(str(pid)):
        if entry.target != CGROUP_ROOT and not entry.target.startswith(CGROUP_ROOT + "/"):
            continue
        if entry.fstype in ("cgroup", "cgroup2") and entry.root != root:
            raise HostError(
                "mount the view at",
                entry.target,
                f"groups are mounted there that begin at {entry.root}",
                "leave lxc.namespace.share.mnt, cgroup-full and mounts of the host's groups out of the configuration",
            )
        if entry.fstype in ("tmpfs", "cgroup", "cgroup2"):
            found.append(entry.target)
    return found[::-1]


def _mount(namespaces_: Iterable[int], root: os.stat_result, old: list[str], steps: Iterable[Step]) -> None:
    for fd in namespaces_:
        namespaces.setns(fd)
    if not os.path.samestat(os.stat("/"), root):
        raise OSError(errno.EXDEV, "its root is not its mount namespace's", "/")
    os.chdir("/")
    for target in old:
        place = mounts.open_or_make(target, directory=True, plain=True)
        os.fchdir(place)
        os.close(place)
        mount.umount(".", mount.MNT_DETACH)
        os.chdir("/")
    for step in steps:
        try:
            STEPS[type(step)](None, step)
        except OSError as error:
            raise OSError(error.errno, f"{step.describe()}: {error.strerror}", error.filename or "") from error


def mount_view(pid: int, root_group: str, steps: Iterable[Step]) -> None:
    """Carry *steps*, of plan.guest.view_steps(), out in the mount and cgroup namespaces of *pid*.

    *root_group* is the guest root, where its cgroup namespace begins. Raises KernelError, HostError (an image's
    symlink where a mount goes, a mount namespace that is not its own), OSError where *pid* has ended.
    """
    _require_own(pid)
    flags = os.O_RDONLY | os.O_CLOEXEC
    opened = [os.open(f"/proc/{pid}/ns/{kind}", flags) for kind in ("mnt", "cgroup")]
    root = os.stat(f"/proc/{pid}/root/")
    old = _old_views(pid, root_group)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    helper = os.fork()
    if helper == 0:
        # From here on an import could only come from the image: it must fail instead.
        sys.meta_path.clear()
        sys.path_hooks.clear()
        sys.path.clear()
        try:
            prctl.set_dumpable(False)
            keep = {writer, *opened}
            for fd in range(OPEN_LIMIT):
                if fd not in keep:
                    _close(fd)
            _mount(opened, root, old, steps)
            os.write(writer, b"done")
        except NestrtError as error:
            os.write(writer, f"-1\n{error.obj}\n{error.reason}".encode()[: select.PIPE_BUF])
        except OSError as error:
            text = f"{error.errno or 0}\n{error.filename or ''}\n{error.strerror or ''}"
            os.write(writer, text.encode(errors="replace")[: select.PIPE_BUF])
        except BaseException:  # nothing may run on in there
            os.write(writer, f"{errno.EIO}\n\n{os.strerror(errno.EIO)}".encode())
        os._exit(0)
    os.close(writer)
    for fd in opened:
        os.close(fd)
    _answer(helper, reader)


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass


def _answer(helper: int, reader: int) -> None:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    try:
        answer = os.read(reader, select.PIPE_BUF) if poll.poll(int(PATIENCE * 1000)) else b"late"
    finally:
        os.close(reader)
        os.kill(helper, _signal.SIGKILL)
        os.waitpid(helper, 0)
    if answer == b"done":
        return
    number, _, rest = answer.decode(errors="replace").partition("\n")
    obj, _, reason = rest.partition("\n")
    if number == "-1":
        raise HostError("mount the view at", obj, reason, "use a root filesystem with plain directories there")
    if not number.isdigit():
        reason = "it takes too long" if number == "late" else "its helper was killed"
        raise HostError("mount the view in", CGROUP_ROOT, reason, "look at what is mounted in the container")
    raise KernelError(f"mount the view: {reason}" if reason else "mount the view", obj, int(number))


def require_filter(pid: int, name: str) -> None:
    """Without ids of its own, capabilities open the limit group by file handle: a seccomp filter has to keep them off.

    Whether the filter that is there does so cannot be told from outside; LXC's own, which common.conf gives, does.
    Raises HostError where there is none, NotFound.
    """
    fields = dict(line.split(":\t", 1) for line in _status(pid).splitlines() if ":\t" in line)
    held = int(fields.get("CapBnd", "0"), 16)
    if any(held >> number & 1 for number in HANDLE_CAPABILITIES) and fields.get("Seccomp", "0") != "2":
        raise HostError(
            "make a guest of",
            f"container {name}",
            "root of the host in it could open the limit group by file handle",
            "write lxc.seccomp.profile = /usr/share/lxc/config/common.seccomp, or give it lxc.idmap",
        )


def _status(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return file.read(65536)
    except FileNotFoundError as error:
        raise NotFound("make a guest of", f"process {pid}", "it has ended", "see what LXC says") from error


def end_orphans(record: Record, hierarchies: tuple[Hierarchy, ...]) -> None:
    """End the first process that waits for a monitor which was killed while it started the container.

    Cloned, and not yet told to die with its monitor, it waits for ever (lxc 5.0, do_start()), and holds the container's
    command socket, by which lxc-start and lxc-stop wait too. It has not left the host's root filesystem: what
    has is a container that runs, maybe another one's, and is left alone.
    """
    if record.values.get("started") is True or pidfd.alive(record.number("maker"), record.number("began")):
        return
    root = os.stat("/")
    groups = (record.text("group"), *record.parents)
    for pid in {pid for group in groups if group.strip("/") for pid in remove.living(hierarchies, group)}:
        try:
            descriptor = pidfd.open(pid)
        except OSError:
            continue
        try:
            if os.path.samestat(os.stat(f"/proc/{pid}/root/"), root):
                pidfd.send_signal(descriptor, _signal.SIGKILL)
        except OSError:
            continue
        finally:
            os.close(descriptor)
