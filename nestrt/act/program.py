"""The last of the guest's first process: whose rights the program has, where it is, and becoming it."""

from __future__ import annotations

import errno
import os
import stat

from nestrt.act import seccomp
from nestrt.act.process import Guest
from nestrt.errors import HostError, InputError, ProgramError
from nestrt.kernel import caps, prctl, signalfd, trampoline
from nestrt.kernel.libc import syscall
from nestrt.plan import guest_steps as do
from nestrt.plan import process_steps as process_do

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # signal.py imports enum

SYS_close_range = 436
CLOSE_RANGE_CLOEXEC = 4
NULL_DEVICE = os.makedev(1, 3)
# What execvp(3) takes where PATH is not set: confstr(_CS_PATH) of the GNU C library.
NO_PATH = "/bin:/usr/bin"
PASSWD_LIMIT = 1 << 20
NO_ID = 0xFFFFFFFF

# There is one first process in a process's life: what it finds while it may, and uses when it may not.
_found = {"home": "/", "program": ""}
# The effective, permitted and inheritable capabilities that the program is to have.
_sets: list[frozenset[int]] = []


def take_identity(guest: Guest, step: do.TakeIdentity) -> None:
    uid, gid, groups = find_user(step.user)
    wanted = frozenset(caps.by_name(name) for name in step.capabilities)
    have = caps.current()
    if step.exactly and wanted - have.permitted:
        raise HostError(
            "give the guest",
            caps.to_name(min(wanted - have.permitted)),
            "this level does not have it",
            "take it out of [user] capabilities",
        )
    wanted &= have.permitted
    if not guest.pty:
        os.setsid()
    prctl.new_session_keyring()
    os.umask(0o022)
    # The bounding set first, while CAP_SETPCAP is there; then the user; and for root the rest of the sets.
    caps.apply(have.effective, have.permitted, frozenset(), wanted, frozenset())
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    caps.apply(
        wanted if uid == 0 else frozenset(), wanted if uid == 0 else frozenset(), frozenset(), wanted, frozenset()
    )
    if step.no_new_privs:
        prctl.set_no_new_privs()
    prctl.set_parent_death_signal(_signal.SIGKILL)
    try:
        os.chdir(step.workdir)
    except OSError as error:
        raise InputError(
            "enter", f"workdir {step.workdir}", error.strerror or "", "name a directory of the guest with --workdir"
        ) from error
    verify_workdir(step.workdir)


def verify_workdir(path: str) -> None:
    """Refuse a working directory outside the root, which would be a way out (CVE-2024-21626)."""
    try:
        outside = not os.getcwd().startswith("/")
    except FileNotFoundError:  # what getcwd(3) makes of the kernel's "(unreachable)"
        outside = True
    except OSError:
        return  # it cannot be read by its user, but the kernel has looked at where it is first
    if outside:
        raise HostError("enter", f"workdir {path}", "it lies outside the root filesystem", "name another directory")


def find_row(file: str, key: str, column: int) -> list[str] | None:
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


def _digits(text: str) -> int | None:
    """*text* as an id, None if it is none: 4294967295 is -1, which setresuid(2) takes for "as it is"."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else NO_ID
    return number if number < NO_ID else None


def find_user(user: str) -> tuple[int, int, list[int]]:
    """*user* as (uid, gid, supplementary groups): numbers as they are, names by the guest's own files."""
    name, colon, group = user.partition(":")
    uid = _digits(name)
    row = find_row("/etc/passwd", name, 0 if uid is None else 2)
    gid = _digits(row[3]) if row else 0
    if uid is None:
        uid = _digits(row[2]) if row else None
    if uid is None:
        raise InputError(
            "become", f"user {name}", "the guest's /etc/passwd does not have it", "use a number with --user"
        )
    if colon:
        gid = _digits(group)
        if gid is None:
            found = find_row("/etc/group", group, 0)
            gid = _digits(found[2]) if found else None
        if gid is None:
            raise InputError(
                "become", f"group {group}", "the guest's /etc/group does not have it", "use a number with --user"
            )
    return uid, gid or 0, []


def find_program(name: str, path: str) -> str:
    """Where execvp(3) would find *name*, with the rights that the caller has now.

    Raises ProgramError, 127 or 126, in the words that engines look for (those of Go's os/exec).
    """
    if "/" not in name:
        for directory in path.split(":"):
            candidate = f"{directory or '.'}/{name}"
            if name and os.path.isfile(candidate) and _may_execute(candidate):
                return candidate
        raise _not_run(name, "executable file not found in $PATH", f"name a program of the guest (PATH is {path})", 127)
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        reason, status = lowered(error.errno or 0), 126 if error.errno == errno.EACCES else 127
        raise _not_run(name, f"stat {name}: {reason}", "name a program of the guest", status) from error
    if stat.S_ISDIR(mode):
        raise _not_run(name, "permission denied", "it is a directory: name a program in it", 126)
    if not _may_execute(name):
        raise _not_run(name, "permission denied", "make it executable (chmod +x), or name another program", 126)
    return name


def _may_execute(path: str) -> bool:
    """As execve(2) asks: with the effective capabilities, CAP_DAC_OVERRIDE for one; access(2) leaves them out."""
    return os.access(path, os.X_OK, effective_ids=True)


def lowered(number: int) -> str:
    """The text for an errno as engines look for it: as Go writes it."""
    text = os.strerror(number)
    return text[:1].lower() + text[1:]


def _not_run(name: str, reason: str, remedy: str, status: int) -> ProgramError:
    return ProgramError("execute", name, f'exec: "{name}": {reason}', remedy, status)


def ready_to_execute(guest: Guest, first: int) -> None:
    """Give back what this process has changed of itself; descriptors from *first* on do not outlive execve(2)."""
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)  # Python ignores them, and an ignored signal stays so over execve(2)
    signalfd.set_blocked(guest.signals)
    close_on_exec(first)
    prctl.set_parent_death_signal(0)


def close_on_exec(first: int) -> None:
    """Mark all descriptors from *first* on: close_range(2) with CLOSE_RANGE_CLOEXEC (Linux 5.11)."""
    syscall(SYS_close_range, first, (1 << 32) - 1, CLOSE_RANGE_CLOEXEC)


def execute(guest: Guest, step: do.Execute) -> None:
    environment = dict(step.environment)
    name, path = step.command[0], environment.get("PATH", "")
    if "/" not in name:
        # A shell says 126 of one that is there and cannot be executed; Go, whose words engines know, has no such case.
        found = [place for directory in path.split(":") if os.path.isfile(place := f"{directory or '.'}/{name}")]
        if found and not any(map(_may_execute, found)):
            raise _not_run(name, "permission denied", f"make {found[0]} executable (chmod +x)", 126)
    program = find_program(name, path)
    ready_to_execute(guest, 3)
    trampoline.become(program, step.command, environment, guest.channel.fd)


def learn_home(guest: Guest, step: process_do.LearnHome) -> None:
    row = find_row("/etc/passwd", str(step.uid), 2)
    _found["home"] = row[5] if row and len(row) > 5 and row[5] else "/"


def _enter_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        reason = f'chdir to cwd ("{path}") set in config.json failed: {lowered(error.errno or 0)}'
        raise InputError("enter", f"process.cwd {path}", reason, "name a directory that the user may enter") from error


def _own_standard_streams(uid: int, own_terminal: bool) -> None:
    """Give descriptors 0, 1 and 2 to *uid*: else a program could not open its own /dev/stdout again.

    Not the caller's terminal, nor a file of the caller's: those stay when the container has gone.
    """
    for fd in range(3):
        found = os.fstat(fd)
        if found.st_uid == uid or (stat.S_ISCHR(found.st_mode) and found.st_rdev == NULL_DEVICE):
            continue
        if stat.S_ISREG(found.st_mode) or (os.isatty(fd) and not own_terminal):
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError as error:
            # Owned by an id that the user namespace does not have, or on a read-only filesystem.
            if error.errno not in (errno.EPERM, errno.EROFS, errno.EINVAL):
                raise


def setgroups_allowed() -> bool:
    """Whether this user namespace has setgroups(2); where /proc is not there to ask, the call itself will tell."""
    try:
        with open("/proc/self/setgroups", "rb", buffering=0) as file:
            return file.read().strip() != b"deny"
    except OSError:
        return True


def _become_ids(step: process_do.BecomeUser) -> None:
    # Where it is denied, nobody could have given groups: runc leaves them out there too.
    if setgroups_allowed():
        os.setgroups(step.groups)
    for call, name, value in ((os.setresgid, "gid", step.gid), (os.setresuid, "uid", step.uid)):
        try:
            call(value, value, value)
        except OSError as error:
            reason = lowered(error.errno or 0)
            if error.errno == errno.EINVAL:
                reason = f"cannot set{name} to unmapped {name} {value} in user namespace"
            raise InputError(
                "become", f"process.user.{name} {value}", reason, "use an id that linux.uidMappings and gidMappings map"
            ) from error


def _numbers(names: tuple[str, ...], among: frozenset[int]) -> frozenset[int]:
    return frozenset(caps.NAMES.index(name) for name in names) & among


def become_user(guest: Guest, step: process_do.BecomeUser) -> None:
    # As root first: its user may not be able to walk there. If root may not, on a network filesystem, the user may.
    try:
        os.chdir(step.cwd)
        entered = True
    except PermissionError:
        entered = False
    except OSError:
        _enter_directory(step.cwd)
        entered = True
    have = caps.current()
    permitted = _numbers(step.permitted, have.permitted)
    inheritable = _numbers(step.inheritable, have.permitted | have.inheritable)
    bounding = _numbers(step.bounding, have.bounding)
    # The bounding set first, while CAP_SETPCAP is there; the others have to outlive the change of user.
    caps.apply(have.effective, have.permitted, have.inheritable, bounding, frozenset())
    prctl.set_keep_capabilities(True)
    _own_standard_streams(step.uid, bool(guest.pty))
    _become_ids(step)
    if not entered:
        _enter_directory(step.cwd)
    verify_workdir(step.cwd)
    prctl.set_keep_capabilities(False)
    # An ambient capability has to be permitted and inheritable: what cannot be raised is left out, as runc does.
    ambient = _numbers(step.ambient, permitted & inheritable)
    effective = _numbers(step.effective, have.permitted)
    sets = (effective, permitted, inheritable, ambient)
    # The trampoline's execve(2) leaves other users than root nothing but the ambient ones to ask for again.
    _sets[:] = sets[:3] if step.uid == 0 else (ambient, ambient, inheritable)
    if guest.filter is not None and not prctl.no_new_privs():
        sets = seccomp.with_loading_right(*sets)
    try:
        caps.apply(sets[0], sets[1], sets[2], bounding, sets[3])
    except OSError as error:
        raise InputError(
            "apply",
            "process.capabilities",
            f"unable to apply caps: {lowered(error.errno or 0)}",
            "let permitted hold all of effective, and bounding all of inheritable (capabilities(7))",
        ) from error
    if step.umask is not None:
        os.umask(step.umask)
    prctl.set_parent_death_signal(_signal.SIGKILL)  # a change of user clears it


def _variables(env: tuple[str, ...]) -> dict[str, str]:
    values = dict(variable.split("=", 1) for variable in env)
    if "HOME" not in values:
        values["HOME"] = _found["home"]
    return values


def find_args(guest: Guest, step: process_do.FindProgram) -> None:
    _found["program"] = find_program(step.args[0], _variables(step.env).get("PATH", NO_PATH))


def execute_args(guest: Guest, step: process_do.ExecuteArgs) -> None:
    ready_to_execute(guest, 3 + step.preserve_fds)
    environment = _variables(step.env)
    code, flags, sets = b"", 0, None
    if guest.filter is not None:
        code, flags = guest.filter.code, guest.filter.flags
        sets = None if prctl.no_new_privs() else seccomp.sets_for_load(_sets[0], _sets[1], _sets[2])
    trampoline.become(_found["program"], step.args, environment, guest.channel.fd, code, flags, guest.board, sets)
