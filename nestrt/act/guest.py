"""The guest's first process: carries out its steps of the plan, then becomes the program.

It runs the launcher's interpreter, in the guest's namespaces, before any code of
the image does. It pivots early, so every path is resolved in the guest's root
by the kernel itself; what it needs of the old root it reaches through a descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

from nestrt.act.protocol import Channel, Gone
from nestrt.controllers.table import expand
from nestrt.errors import HostError, InputError, KernelError, NestrtError, ProgramError
from nestrt.kernel import caps, mount, namespaces, netif, prctl, signalfd, terminal, trampoline
from nestrt.kernel.libc import syscall
from nestrt.level import capabilities
from nestrt.level.units import digits
from nestrt.plan import steps as do
from nestrt.plan.request import STATE_DIR
from nestrt.plan.steps import Plan, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn
else:
    import _signal  # signal.py imports enum

SYS_close_range = 436
CLOSE_RANGE_CLOEXEC = 4
SYSFS_MAGIC = 0x62656572
# Where nestrt itself mounts: a symlink of the image there is refused, elsewhere it is followed inside the guest.
SYSTEM = ("/proc", "/sys", "/dev", "/run")
PASSWD_LIMIT = 1 << 20


class Guest:
    """What the first process holds while it sets itself up."""

    def __init__(self, channel: Channel, tree: int, log: int, signals: set[int]) -> None:
        self.channel = channel
        self.tree = tree
        self.log = log
        self.signals = signals
        self.old_root = -1
        self.pty = ""


def main(plan: Plan, guest: Guest, observe: Callable[[str, Step], None] | None) -> NoReturn:
    """Carry out the guest's steps; tells the launcher what failed, and never returns."""
    try:
        prctl.set_parent_death_signal(_signal.SIGKILL)
        for step in plan.guest:
            try:
                _GUEST[type(step)](guest, step)
            except OSError as error:
                raise explain(step, error) from error
            if observe:
                observe("guest", step)
    except NestrtError as error:
        guest.channel.tell_error(error)
    except Gone:
        pass
    except BaseException as error:  # a traceback would reach the user from two processes at once
        guest.channel.tell_error(NestrtError("start", plan.name, f"{type(error).__name__}: {error}", "this is a bug of nestrt"))
    os._exit(125)


def _open_target(path: str, directory: bool) -> int:
    """Open a mount point of the guest (O_PATH), made if it is missing."""
    system = path.startswith(SYSTEM)
    resolve = mount.RESOLVE_IN_ROOT | (mount.RESOLVE_NO_SYMLINKS if system else 0)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            return mount.open_in_root(root, path, os.O_PATH, resolve=resolve)
        except FileNotFoundError:
            parent = os.path.dirname(path) if not directory else path
            os.makedirs(parent, mode=0o755, exist_ok=True)
            if not directory:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
            return mount.open_in_root(root, path, os.O_PATH, resolve=resolve)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputError(
                    "mount at", path, "the root filesystem has a symbolic link there", "use a root filesystem with a plain directory"
                ) from error
            raise
    finally:
        os.close(root)


def _put(tree: int, target: int) -> None:
    """Attach the detached mount *tree* on the open *target*; closes both."""
    try:
        mount.move_mount(tree, "", target)
    finally:
        os.close(tree)
        os.close(target)


def _wait(guest: Guest, step: do.Wait) -> None:
    guest.channel.wait(step.word)


def _tell(guest: Guest, step: do.Tell) -> None:
    guest.channel.tell(step.word)


def _become_root(guest: Guest, step: do.BecomeRoot) -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    prctl.set_parent_death_signal(_signal.SIGKILL)  # a change of user clears it


def _enter_root(guest: Guest, step: do.EnterRoot) -> None:
    mount.propagation("/", mount.MS_REC | mount.MS_PRIVATE)
    guest.old_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    new_root = STATE_DIR
    if step.overlay:
        mount.move_mount(mount.new_mount("tmpfs", "mode=755"), STATE_DIR)
        for name in ("lower", "upper", "work", "root"):
            os.mkdir(f"{STATE_DIR}/{name}", 0o755)
        mount.move_mount(guest.tree, f"{STATE_DIR}/lower")
        lower = os.stat(f"{STATE_DIR}/lower")
        os.chmod(f"{STATE_DIR}/upper", stat.S_IMODE(lower.st_mode))
        layers = ",".join(f"{key}dir={STATE_DIR}/{key}" for key in ("lower", "upper", "work"))
        options = f"{layers},{step.overlay_options}" if step.overlay_options else layers
        new_root = f"{STATE_DIR}/root"
        mount.move_mount(mount.new_mount("overlay", options), new_root)
    else:
        mount.move_mount(guest.tree, new_root)
    os.close(guest.tree)
    os.chdir(new_root)
    # The old root comes to lie on top of the new one; LeaveHost takes it off (pivot_root(2), NOTES).
    mount.pivot_root(".", ".")
    os.chdir("/")


def _mount_new(guest: Guest, step: do.MountNew) -> None:
    target = _open_target(step.target, directory=True)
    _put(mount.new_mount(step.fstype, step.options, step.attributes), target)


def _bind(guest: Guest, step: do.Bind) -> None:
    try:
        source = mount.open_in_root(guest.old_root, step.source, os.O_PATH)
    except FileNotFoundError:
        if step.optional:
            return
        raise
    try:
        directory = stat.S_ISDIR(os.fstat(source).st_mode)
        tree = mount.open_tree("", step.recursive, source)
    finally:
        os.close(source)
    if step.attributes:
        mount.set_attributes(tree, step.attributes, recursive=step.recursive)
    _put(tree, _open_target(step.target, directory))


def _link(guest: Guest, step: do.Link) -> None:
    try:
        os.symlink(step.content, step.target)
    except FileExistsError:
        pass


def _cover(guest: Guest, step: do.Cover) -> None:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for path in step.paths:
        try:
            target = mount.open_in_root(root, path, os.O_PATH, resolve=mount.RESOLVE_IN_ROOT | mount.RESOLVE_NO_SYMLINKS)
        except FileNotFoundError:
            continue
        # A mask must lie on the kernel's own file, not on what an image put in its way (CVE-2025-31133).
        if mount.filesystem_magic(target) not in (mount.PROC_SUPER_MAGIC, SYSFS_MAGIC):
            raise HostError("mask", path, "it is not on procfs or sysfs")
        if step.read_only:
            tree = mount.open_tree("", False, target)
            mount.set_attributes(tree, mount.MOUNT_ATTR_RDONLY)
        elif stat.S_ISDIR(os.fstat(target).st_mode):
            tree = mount.new_mount("tmpfs", "mode=755,size=4k", mount.MOUNT_ATTR_RDONLY)
        else:
            tree = mount.open_tree("/dev/null")
        _put(tree, target)
    os.close(root)


def _lock_files(guest: Guest, step: do.LockFiles) -> None:
    for name in expand(step.patterns, os.listdir(step.directory)):
        path = f"{step.directory}/{name}"
        tree = mount.open_tree(path)
        mount.set_attributes(tree, mount.MOUNT_ATTR_RDONLY)
        _put(tree, os.open(path, os.O_PATH | os.O_CLOEXEC))


def _take_cgroup_namespace(guest: Guest, step: do.TakeCgroupNamespace) -> None:
    namespaces.unshare(namespaces.CLONE_NEWCGROUP)


def _set_hostname(guest: Guest, step: do.SetHostname) -> None:
    import _socket

    _socket.sethostname(step.hostname)


def _loopback_up(guest: Guest, step: do.LoopbackUp) -> None:
    netif.loopback_up()


def _set_sysctl(guest: Guest, step: do.SetSysctl) -> None:
    try:
        fd = os.open(f"/proc/sys/{step.path}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    os.write(fd, step.value.encode())
    os.close(fd)


def _open_terminal(guest: Guest, step: do.OpenTerminal) -> None:
    master, guest.pty = terminal.open_guest_pty("/dev/ptmx")
    guest.channel.tell_terminal(master)
    slave = terminal.open_slave(master)
    os.close(master)
    # /dev/console is what a first process, systemd above all, expects its terminal to be.
    _put(mount.open_tree(guest.pty), _open_target("/dev/console", directory=False))
    terminal.make_controlling(slave)


def _redirect_output(guest: Guest, step: do.RedirectOutput) -> None:
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(guest.log, 1)
    os.dup2(guest.log, 2)


def _leave_host(guest: Guest, step: do.LeaveHost) -> None:
    os.fchdir(guest.old_root)
    mount.umount(".", mount.MNT_DETACH)
    os.close(guest.old_root)
    os.chdir("/")
    if step.read_only:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mount.set_attributes(root, mount.MOUNT_ATTR_RDONLY)
        os.close(root)


def _take_identity(guest: Guest, step: do.TakeIdentity) -> None:
    uid, gid, groups = _find_user(step.user)
    wanted = frozenset(capabilities.NAMES.index(name) for name in step.capabilities)
    have = caps.current()
    if step.exactly and wanted - have.permitted:
        missing = capabilities.NAMES[min(wanted - have.permitted)]
        raise HostError("give the guest", missing, "this level does not have it", "take it out of [user] capabilities")
    wanted &= have.permitted
    if os.getpid() == 1 and not guest.pty:
        os.setsid()
    prctl.new_session_keyring()
    os.umask(0o022)
    # The bounding set first, while CAP_SETPCAP is there; then the user; and for root the rest of the sets.
    caps.apply(have.effective, have.permitted, frozenset(), wanted, frozenset())
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    caps.apply(wanted if uid == 0 else frozenset(), wanted if uid == 0 else frozenset(), frozenset(), wanted, frozenset())
    if step.no_new_privs:
        prctl.set_no_new_privs()
    prctl.set_parent_death_signal(_signal.SIGKILL)
    try:
        os.chdir(step.workdir)
    except OSError as error:
        raise InputError("enter", f"workdir {step.workdir}", error.strerror or "", "name a directory of the guest with --workdir") from error
    # A working directory outside the root would be a way out (CVE-2024-21626).
    if not os.getcwd().startswith("/"):
        raise HostError("enter", f"workdir {step.workdir}", "it lies outside the root filesystem")


def _lookup(file: str, key: str, column: int) -> list[str] | None:
    """The row of the guest's /etc/passwd or /etc/group whose *column* is *key*; at most 1 MiB of it is read."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    text = os.read(fd, PASSWD_LIMIT).decode("utf-8", "replace") if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    os.close(fd)
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) > max(column, 3 if file.endswith("passwd") else 2) and fields[column] == key:
            return fields
    return None


def _find_user(user: str) -> tuple[int, int, list[int]]:
    """*user* as (uid, gid, supplementary groups): numbers as they are, names by the guest's own files."""
    name, colon, group = user.partition(":")
    uid = digits(name)
    row = _lookup("/etc/passwd", name, 0 if uid is None else 2)
    gid = digits(row[3]) if row else 0
    if uid is None:
        uid = digits(row[2]) if row else None
    if uid is None:
        raise InputError("become", f"user {name}", "the guest's /etc/passwd does not have it", "use a number with --user")
    if colon:
        gid = digits(group)
        if gid is None:
            found = _lookup("/etc/group", group, 0)
            gid = digits(found[2]) if found else None
        if gid is None:
            raise InputError("become", f"group {group}", "the guest's /etc/group does not have it", "use a number with --user")
    return uid, gid or 0, []


def _find_program(name: str, path: str) -> str:
    """Where execvp(3) would find *name*; raises ProgramError 127 or 126."""
    candidates = [name] if "/" in name else [f"{directory or '.'}/{name}" for directory in path.split(":")]
    there = ""
    for candidate in candidates:
        if os.path.isfile(candidate):
            there = candidate
            if os.access(candidate, os.X_OK):
                return candidate
    if there or ("/" in name and os.path.exists(name)):
        raise ProgramError("execute", name, "it is not an executable file", "make it executable (chmod +x), or name another program", 126)
    where = "" if "/" in name else f" in PATH ({path})"
    raise ProgramError("execute", name, f"no such program in the guest{where}", "name a program of the root filesystem", 127)


def _execute(guest: Guest, step: do.Execute) -> None:
    environment = dict(step.environment)
    program = _find_program(step.command[0], environment.get("PATH", ""))
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)  # Python ignores them, and an ignored signal stays so over execve(2)
    signalfd.set_blocked(guest.signals)
    syscall(SYS_close_range, 3, (1 << 32) - 1, CLOSE_RANGE_CLOEXEC)
    prctl.set_parent_death_signal(0)
    trampoline.become(program, step.command, environment, guest.channel.fd)


_GUEST: dict[type[Step], Callable[[Guest, Step], None]] = {
    do.Wait: _wait,
    do.Tell: _tell,
    do.BecomeRoot: _become_root,
    do.EnterRoot: _enter_root,
    do.MountNew: _mount_new,
    do.Bind: _bind,
    do.Link: _link,
    do.Cover: _cover,
    do.LockFiles: _lock_files,
    do.TakeCgroupNamespace: _take_cgroup_namespace,
    do.SetHostname: _set_hostname,
    do.LoopbackUp: _loopback_up,
    do.SetSysctl: _set_sysctl,
    do.OpenTerminal: _open_terminal,
    do.RedirectOutput: _redirect_output,
    do.LeaveHost: _leave_host,
    do.TakeIdentity: _take_identity,
    do.Execute: _execute,
}  # type: ignore[dict-item]


def explain(step: Step, error: OSError) -> NestrtError:
    """The kernel's refusal of a guest's step as an error for the user."""
    number = error.errno or 0
    if isinstance(step, do.MountNew) and step.fstype in ("proc", "sysfs") and number == errno.EPERM:
        return KernelError(
            "mount",
            f"{step.fstype} at {step.target}",
            number,
            "this level's own is partly covered: launch its guest with a policy that is not masked, or use --userns none here",
        )
    if isinstance(step, do.EnterRoot) and step.overlay:
        return KernelError(
            "mount", "the overlay", number, "overlays nest two deep: use --read-only or a root filesystem that is no overlay"
        )
    if isinstance(step, do.Bind) and number == errno.ENOENT:
        return KernelError("bind", step.source, number, "name a file or directory that is there")
    if isinstance(step, (do.MountNew, do.Bind)) and number in (errno.EROFS, errno.EACCES):
        return KernelError("make mount point", step.target, number, "make the directory in the root filesystem")
    if isinstance(step, do.TakeIdentity):
        return KernelError("become", step.user, number, "use ids that the guest's user namespace maps, and capabilities that this level has")
    return KernelError(step.describe(), str(error.filename or ""), number)
