"""Carry out the launcher's steps of a plan; the protocol is drawn in plan/launch.py.

Whatever fails or is interrupted on the way, the guest's first process ends with
the launcher (parent death signal, end of file on the channel), and remove()
takes back all that was made: there is one way to undo a launch, and it is the
one that ``delete`` and ``gc`` use.
"""

from __future__ import annotations

import errno
import fcntl
import os

from nestrt import jsontext
from nestrt.act import guest
from nestrt.act.process import Guest
from nestrt.act.protocol import ERROR, Channel, Gone, pair, received
from nestrt.errors import HostError, KernelError, NestrtError, ProgramError, StateError
from nestrt.kernel import bpf, cgroup, mount, namespaces, pidfd
from nestrt.plan import host_steps as do
from nestrt.plan.guest_steps import Execute
from nestrt.plan.steps import Plan, Step, Tell, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Observer = Callable[[str, Step], None]


class ShiftRefused(HostError):
    """The kernel would not id-map the root filesystem."""


class IdsTaken(StateError):
    """Another launch took the same range of ids a moment ago."""


class Launcher:
    """The state of one launch: descriptors, and the first process once it is there."""

    def __init__(
        self,
        plan: Plan,
        signals: set[int],
        connect: Callable[[str, int], object] | None = None,
        observe: Observer | None = None,
    ) -> None:
        """*signals* are those to block in the guest's program, *connect* joins (name, pid) to the
        network, *observe* is told of each step, with "host" or "guest", after it was carried out."""
        self.plan = plan
        self.signals = signals
        self.connect = connect
        self.observe = observe
        self.pid = 0
        self.pidfd = -1
        self.lock = -1
        self.tree = -1
        self.log = -1
        self.channel: Channel

    @property
    def master(self) -> int | None:
        """The master of the guest's terminal, if it has one."""
        return self.channel.master

    def run(self) -> None:
        """Carry out all steps; returns when the guest's program runs. Raises NestrtError."""
        for step in self.plan.host:
            try:
                _HOST[type(step)](self, step)
            except (OSError, Gone) as error:
                raise self._cause(step, error) from error
            if self.observe:
                self.observe("host", step)
        words = self.channel.last_words()
        if words:
            self.wait()
            if words.startswith(ERROR.encode()):
                raise received(jsontext.loads(words[len(ERROR) :].decode()))
            raise program_error(self.plan.guest[-1], int.from_bytes(words[:4], "little"))
        os.close(self.channel.sock.detach())

    def abandon(self) -> None:
        """End the first process, if it is there: its guest is not to be."""
        if self.pid:
            pidfd.send_signal(self.pidfd, 9)
            try:
                self.wait()
            except ChildProcessError:
                pass  # reaped already, on the way here

    def wait(self) -> int:
        """Reap the first process; returns its wait status."""
        return os.waitpid(self.pid, 0)[1] if self.pid else 0

    def _cause(self, step: Step, error: OSError | Gone) -> NestrtError:
        """Why *step* failed: what the first process told last if it has ended, and else the kernel's word."""
        if isinstance(error, OSError) and not (self.pid and pidfd.wait(self.pidfd, 0)):
            return explain(step, error)
        return self.channel.last_error() or self._lost(step)

    def _lost(self, step: Step) -> NestrtError:
        status = self.wait()
        reason = (
            f"its first process ended early (signal {status & 127})"
            if status & 127
            else "its first process ended early"
        )
        return NestrtError(
            "start",
            f"guest {self.plan.name}",
            f"{reason}, before: {step.describe()}",
            "look at dmesg: a memory limit may be too low to start in",
        )


# --- steps ---


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


def _reserve_ids(launcher: Launcher, step: do.ReserveIds) -> None:
    os.makedirs(os.path.dirname(step.path), mode=0o755, exist_ok=True)
    try:
        os.symlink(step.name, step.path)
    except FileExistsError as error:
        raise IdsTaken(
            "reserve", f"ids {os.path.basename(step.path)}", "another guest took them", "try again"
        ) from error


def _make_group(launcher: Launcher, step: do.MakeGroup) -> None:
    try:
        os.mkdir(step.hierarchy.path(step.group), 0o755)
    except FileExistsError as error:
        if not step.exist_ok:
            raise StateError(
                "launch",
                f"guest {launcher.plan.name}",
                f"group {step.hierarchy.path(step.group)} is there already",
                "choose another --name, or remove what is left: nestrt gc",
            ) from error


def _set_file(launcher: Launcher, step: do.SetFile) -> None:
    try:
        cgroup.write(step.hierarchy.path(step.group, step.file), step.value)
    except FileNotFoundError:
        if not step.optional:
            raise


def _enable(launcher: Launcher, step: do.EnableControllers) -> None:
    have = cgroup.read(step.hierarchy.path(step.group, "cgroup.subtree_control")).split()
    file = step.hierarchy.path(step.group, "cgroup.subtree_control")
    missing = [f"+{name}" for name in step.controllers if name not in have]
    if not missing:
        return
    try:
        cgroup.write(file, " ".join(missing))
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EACCES, errno.EROFS):
            raise
        # One that cannot be had (cpu beside realtime processes, say) takes the others with it.
        for name in missing:
            try:
                cgroup.write(file, name)
            except OSError:
                continue


def _fill_cpuset(launcher: Launcher, step: do.FillCpuset) -> None:
    parent = step.group.rpartition("/")[0] or "/"
    for file in ("cpuset.mems", "cpuset.cpus"):
        if not cgroup.read(step.hierarchy.path(step.group, file)):
            cgroup.write(step.hierarchy.path(step.group, file), cgroup.read(step.hierarchy.path(parent, file)))
    cgroup.write(step.hierarchy.path(step.group, "cgroup.clone_children"), "1")


def _set_mark(launcher: Launcher, step: do.SetMark) -> None:
    os.setxattr(step.hierarchy.path(step.group), step.attribute, step.value.encode())


def _mark_running(launcher: Launcher, step: do.MarkRunning) -> None:
    value = jsontext.loads(step.value)
    value.update(state="running", pid=launcher.pid, start=pidfd.start_time(launcher.pid) or 0)
    os.setxattr(step.hierarchy.path(step.group), step.attribute, jsontext.dumps(value).encode())


def _attach_program(launcher: Launcher, step: do.AttachDeviceProgram) -> None:
    program = bpf.load_device_program(step.code)
    try:
        bpf.attach(step.hierarchy.path(step.group), program)
    finally:
        os.close(program)


def _delegate(launcher: Launcher, step: do.Delegate) -> None:
    directory = step.hierarchy.path(step.group)
    files = os.listdir(directory) if step.files == ("*",) else step.files
    for name in files:
        try:
            os.chown(f"{directory}/{name}", step.uid, step.gid)
        except FileNotFoundError:
            continue
    os.chown(directory, step.uid, step.gid)


def _open_root(launcher: Launcher, step: do.OpenRoot) -> None:
    launcher.tree = mount.open_tree(step.path, step.recursive)


def _open_log(launcher: Launcher, step: do.OpenLog) -> None:
    launcher.log = os.open(step.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _clone(launcher: Launcher, step: do.Clone) -> None:
    launcher.channel, theirs = pair()
    launcher.pid, launcher.pidfd = namespaces.clone(step.flags)
    if launcher.pid == 0:
        os.close(launcher.channel.sock.detach())
        os.close(launcher.lock)
        guest.main(launcher.plan, Guest(theirs, launcher.tree, launcher.log, launcher.signals), launcher.observe)
    os.close(theirs.sock.detach())


def _map_ids(launcher: Launcher, step: do.MapIds) -> None:
    namespaces.write_id_map(launcher.pid, "uid_map", step.uids)
    namespaces.write_id_map(launcher.pid, "gid_map", step.gids)


def _shift_root(launcher: Launcher, step: do.ShiftRoot) -> None:
    userns = os.open(f"/proc/{launcher.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        mount.set_attributes(launcher.tree, mount.MOUNT_ATTR_IDMAP, recursive=True, userns=userns)
    except OSError as error:
        raise ShiftRefused(
            "id-map",
            f"root filesystem {step.path}",
            f"its filesystem, or one mounted below it, cannot be id-mapped ({error.strerror})",
            "use one on ext4, xfs, btrfs or tmpfs, or --userns none, or chown it for --userns 0:OUTSIDE:COUNT",
        ) from error
    finally:
        os.close(userns)


def _attach(launcher: Launcher, step: do.Attach) -> None:
    for hierarchy in step.hierarchies:
        cgroup.write(hierarchy.path(step.group, "cgroup.procs"), str(launcher.pid))


def _connect(launcher: Launcher, step: do.Connect) -> None:
    if launcher.connect:
        launcher.connect(step.name, launcher.pid)


def _tell(launcher: Launcher, step: Tell) -> None:
    launcher.channel.tell(step.word)


def _wait(launcher: Launcher, step: Wait) -> None:
    launcher.channel.wait(step.word)


_HOST: dict[type[Step], Callable[..., None]] = {
    do.Reserve: _reserve,
    do.ReserveIds: _reserve_ids,
    do.MakeGroup: _make_group,
    do.SetFile: _set_file,
    do.EnableControllers: _enable,
    do.FillCpuset: _fill_cpuset,
    do.SetMark: _set_mark,
    do.MarkRunning: _mark_running,
    do.AttachDeviceProgram: _attach_program,
    do.Delegate: _delegate,
    do.OpenRoot: _open_root,
    do.OpenLog: _open_log,
    do.Clone: _clone,
    do.MapIds: _map_ids,
    do.ShiftRoot: _shift_root,
    do.Attach: _attach,
    do.Connect: _connect,
    Tell: _tell,
    Wait: _wait,
}


# --- errors ---


def explain(step: Step, error: OSError) -> NestrtError:
    """The kernel's refusal of a step as an error for the user."""
    number = error.errno or 0
    if number == errno.ENOSYS:
        return HostError("start", "a guest", f"this kernel cannot {step.describe()}", "use Linux 5.12 or newer")
    if isinstance(step, do.MakeGroup) and number == errno.EAGAIN:
        return KernelError(
            "make group",
            step.hierarchy.path(step.group),
            number,
            "this level's max_groups or max_depth is reached: remove groups or nest less",
        )
    if isinstance(step, do.MakeGroup) and number == errno.EROFS:
        return HostError(
            "make group", step.hierarchy.path(step.group), "the hierarchy is mounted read-only", "mount it read-write"
        )
    if isinstance(step, do.SetFile) and number in (errno.EINVAL, errno.ERANGE, errno.ENODEV):
        return KernelError(
            f"set {step.file} to {step.value!r} for",
            step.hierarchy.path(step.group),
            number,
            "ask for a value that the kernel and the parent group allow",
        )
    if isinstance(step, do.EnableControllers) and number == errno.EBUSY:
        return KernelError(
            "enable controllers below",
            step.hierarchy.path(step.group),
            number,
            "processes stand in this group itself: move them to a child group first",
        )
    if isinstance(step, do.OpenLog):
        return KernelError("open log", step.path, number, "name a file that can be written")
    if isinstance(step, do.Clone) and number == errno.ENOSPC:
        return KernelError(
            "make", "namespaces", number, "a limit of /proc/sys/user is reached, or namespaces nest too deep"
        )
    if isinstance(step, do.Clone) and number == errno.EPERM:
        return KernelError(
            "make",
            "namespaces",
            number,
            "this level lacks CAP_SYS_ADMIN; a policy gives it by [user] capabilities, or by a user namespace",
        )
    if isinstance(step, do.OpenRoot) and number == errno.EPERM:
        return KernelError(
            "copy the mount of",
            step.path,
            number,
            "this level lacks CAP_SYS_ADMIN: launch it with --capabilities all, or in a user namespace",
        )
    if isinstance(step, do.MapIds):
        return KernelError("map", "the guest's ids", number, "use ids that this level has: " + step.describe())
    if number in (errno.EPERM, errno.EACCES):
        return KernelError(
            step.describe(), str(error.filename or ""), number, "be root of this level, and let its view be rw"
        )
    return KernelError(step.describe(), str(error.filename or ""), number)


def program_error(step: Step, number: int) -> ProgramError:
    """execve(2)'s refusal, with the exit status of a shell: 127 not there, else 126."""
    program = step.command[0] if isinstance(step, Execute) else ""
    if number == errno.ENOENT:
        return ProgramError(
            "execute", program, "the file, or its interpreter, is not there", "name a program of the guest", 127
        )
    remedy = (
        "give it a #! line, or a program for this machine"
        if number == errno.ENOEXEC
        else "make it an executable file (chmod +x)"
    )
    return ProgramError("execute", program, os.strerror(number), remedy, 126)
