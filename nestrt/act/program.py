"""The last of the guest's first process: whose rights the program has, where it is, and becoming it."""

from __future__ import annotations

import os
import stat

from nestrt.act.process import Guest
from nestrt.errors import HostError, InputError, ProgramError
from nestrt.kernel import caps, prctl, signalfd, trampoline
from nestrt.kernel.libc import syscall
from nestrt.plan import guest_steps as do

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # signal.py imports enum

SYS_close_range = 436
CLOSE_RANGE_CLOEXEC = 4
PASSWD_LIMIT = 1 << 20
NO_ID = 0xFFFFFFFF


def take_identity(guest: Guest, step: do.TakeIdentity) -> None:
    uid, gid, groups = _find_user(step.user)
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


def _digits(text: str) -> int | None:
    """*text* as an id, None if it is none: 4294967295 is -1, which setresuid(2) takes for "as it is"."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else NO_ID
    return number if number < NO_ID else None


def _find_user(user: str) -> tuple[int, int, list[int]]:
    """*user* as (uid, gid, supplementary groups): numbers as they are, names by the guest's own files."""
    name, colon, group = user.partition(":")
    uid = _digits(name)
    row = _lookup("/etc/passwd", name, 0 if uid is None else 2)
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
            found = _lookup("/etc/group", group, 0)
            gid = _digits(found[2]) if found else None
        if gid is None:
            raise InputError(
                "become", f"group {group}", "the guest's /etc/group does not have it", "use a number with --user"
            )
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
        raise ProgramError(
            "execute",
            name,
            "it is not an executable file",
            "make it executable (chmod +x), or name another program",
            126,
        )
    where = "" if "/" in name else f" in PATH ({path})"
    raise ProgramError(
        "execute", name, f"no such program in the guest{where}", "name a program of the root filesystem", 127
    )


def execute(guest: Guest, step: do.Execute) -> None:
    environment = dict(step.environment)
    program = _find_program(step.command[0], environment.get("PATH", ""))
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)  # Python ignores them, and an ignored signal stays so over execve(2)
    signalfd.set_blocked(guest.signals)
    syscall(SYS_close_range, 3, (1 << 32) - 1, CLOSE_RANGE_CLOEXEC)
    prctl.set_parent_death_signal(0)
    trampoline.become(program, step.command, environment, guest.channel.fd)
