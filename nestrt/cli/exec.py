"""``nestrt exec``: one more process in a running container."""

from __future__ import annotations

import os

from nestrt.act import containers, relay
from nestrt.act.containers import Container
from nestrt.act.creator import Creator
from nestrt.act.exec import FIRST, HOST
from nestrt.act.pipes import open_standard
from nestrt.cli._descriptors import preserved
from nestrt.cli.engine import Globals, trace, words
from nestrt.cli.options import Option
from nestrt.errors import InputError, StateError
from nestrt.kernel import selfexe
from nestrt.kernel.mountinfo import read_cgroups
from nestrt.oci.document import load, load_process
from nestrt.oci.model import Capabilities, Process, User
from nestrt.plan.exec import Joining, place, plan_exec
from nestrt.plan.process import exec_process
from nestrt.plan.request import FIRST_GROUP, GUEST_ROOT
from nestrt.probe.facts import read_hierarchies
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import Spec
    from nestrt.plan.facts import Hierarchy

    Places = tuple[tuple[Hierarchy, str], ...]

TEXT = """usage: nestrt exec [OPTION …] ID COMMAND [ARGUMENT …]
       nestrt exec [OPTION …] --process FILE ID

Run a process in a running container, beside its first one."""
OPTIONS = (
    Option("process", "FILE", "take the process from this process.json", "p"),
    Option("cwd", "DIR", "working directory"),
    Option("env", "K=V", "environment variable", "e", repeat=True),
    Option("tty", "", "give it a terminal", "t"),
    Option("user", "UID[:GID]", "whose rights it has", "u"),
    Option("additional-gids", "GID", "supplementary group", "g", repeat=True),
    Option("detach", "", "leave when it runs", "d"),
    Option("console-socket", "PATH", "send the terminal's master to this Unix socket"),
    Option("pid-file", "FILE", "write its pid there"),
    Option("process-label", "LABEL", "SELinux label"),
    Option("apparmor", "PROFILE", "AppArmor profile"),
    Option("no-new-privs", "", "let it gain no privileges by execve(2)"),
    Option("cap", "CAP", "one more capability", "c", repeat=True),
    Option("preserve-fds", "N", "hand descriptors 3 to N+2 on"),
    Option("cgroup", "PATH", "the child group of the container to run in, or CONTROLLER[,…]:PATH", repeat=True),
    Option("ignore-paused", "", "also in a paused container: it goes on when that is resumed"),
    Option("pidfd-socket", "PATH", "send a pidfd of the process to this Unix socket"),
)


def _user(text: str, user: User) -> User:
    uid, colon, gid = text.partition(":")
    numbers = (uid, gid) if colon else (uid, "0")
    if not all(part.isascii() and part.isdigit() and int(part) < 2**32 - 1 for part in numbers):
        raise InputError("use", f"--user {text!a}", "not a uid and gid", "write numbers: 1000 or 1000:1000")
    return replace(user, uid=int(uid), gid=int(gid) if colon else user.gid)


def build(single: dict[str, str], repeated: dict[str, list[str]], operands: list[str], own: Process) -> Process:
    """The process of the flags, on top of the container's own. Raises InputError."""
    if "process" in single:
        try:
            with open(single["process"], encoding="utf-8", errors="replace") as file:
                text = file.read(16 << 20)
        except OSError as error:
            raise InputError(
                "read", single["process"], (error.strerror or "").lower(), "name a process.json"
            ) from error
        return exec_process(load_process(text, single["process"]), own)
    if not operands:
        raise InputError(
            "exec", "a process", "process args cannot be empty", "name a program, or a file with --process"
        )
    gids = repeated.get("additional-gids", [])
    if not all(gid.isascii() and gid.isdigit() and int(gid) < 2**32 - 1 for gid in gids):
        raise InputError("use", f"--additional-gids {gids}", "not numbers", "write the groups' numbers")
    user = replace(own.user, additional_gids=own.user.additional_gids + tuple(map(int, gids)))
    if "user" in single:
        user = _user(single["user"], user)
    caps = own.capabilities
    if more := tuple(name if name.startswith("CAP_") else f"CAP_{name}" for name in repeated.get("cap", [])):
        have = caps or Capabilities()
        # As runc: where nothing is inheritable nothing can be ambient (capabilities(7)).
        ambient = have.ambient + more if have.inheritable else have.ambient
        caps = Capabilities(
            have.bounding + more, have.effective + more, have.inheritable, have.permitted + more, ambient
        )
    return replace(
        own,
        args=tuple(operands),
        cwd=single.get("cwd", own.cwd),
        env=own.env + tuple(repeated.get("env", [])),
        user=user,
        terminal="tty" in single,
        console_size=None,
        capabilities=caps,
        no_new_privileges=own.no_new_privileges or "no-new-privs" in single,
        apparmor_profile=single.get("apparmor", own.apparmor_profile),
        selinux_label=single.get("process-label", own.selinux_label),
    )


def places(container: Container, asked: list[str]) -> tuple[Places, str]:
    """Where the process goes: beside the first process, or in the child group that ``--cgroup`` names; and the leaf
    for what has to be one. Raises InputError."""
    if not container.cgroup:
        if asked:
            raise InputError("exec in", f"--cgroup {asked[0]}", "the container has no groups", "leave it out")
        return (), ""
    base = f"{container.cgroup}/{GUEST_ROOT}" if container.virtualized else container.cgroup
    groups = read_cgroups(str(container.pid))
    wanted: dict[str, str] = {}
    for text in asked:
        names, colon, path = text.rpartition(":")
        wanted.update({name: place(path, base, container.id) for name in (names.split(",") if colon else [""])})
    found = []
    hierarchies = read_hierarchies(make=container.virtualized)
    for name in wanted:
        if name and all(name not in hierarchy.controllers for hierarchy in hierarchies):
            raise InputError("exec in", f"container {container.id}", f"unknown controller {name!a}", "name one of its")
    for hierarchy in hierarchies:
        key = tuple(hierarchy.options.split(",")) if hierarchy.version == 1 else ()
        own = groups.get(tuple(name for name in key if name != "none"), "")
        if container.virtualized and own == container.cgroup:
            own = f"{base}/{FIRST_GROUP}"  # it waits above until it is started
        given = next((wanted[name] for name in hierarchy.controllers if name in wanted), wanted.get("", ""))
        # Where the container has no group, nothing of it is to be found.
        if given or own == container.cgroup or own.startswith(container.cgroup + "/"):
            found.append((hierarchy, given or own))
    return tuple(found), f"{base}/{FIRST_GROUP}"


def exposed(spec: Spec) -> bool:
    """Whether processes of the container could follow /proc/PID/exe of one that enters it (kernel/selfexe.py)."""
    if os.geteuid() != 0 or spec.namespace("user") is not None:
        return False
    pid = spec.namespace("pid")
    caps = spec.process.capabilities if spec.process else None
    # Where it shares its processes with other containers, nobody here knows what those may do.
    return pid is None or bool(pid.path) or (caps is not None and "CAP_SYS_PTRACE" in caps.bounding)


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb; returns the process's exit status, 128+n for signal n. Raises NestrtError."""
    given = words("exec", OPTIONS, argv, TEXT, permute=False)
    if given is None:
        return 0
    single, repeated, operands = given
    if not operands:
        raise InputError("exec", "a process", "no container is named", "write nestrt exec ID COMMAND")
    container = containers.load(flags.root, operands[0])
    status = container.status()
    if status == "paused" and "ignore-paused" not in single:
        reason = "cannot exec in a paused container (use --ignore-paused to override)"
        raise StateError("exec in", f"container {container.id}", reason, f"nestrt resume {container.id}")
    if status not in ("created", "running", "paused"):
        reason = f"cannot exec in a {status} container: container not running"
        raise StateError("exec in", f"container {container.id}", reason, "create it again")
    spec = load(container.config(), f"{container.directory}/{containers.CONFIG}")
    assert spec.process is not None
    if exposed(spec) or container.exposed:
        selfexe.protect()
    process = build(single, repeated, operands[1:], spec.process)
    if process.capabilities is not None and "CAP_SYS_PTRACE" in process.capabilities.bounding:
        container.expose()  # it may look into the next
    detach = "detach" in single
    if process.terminal and detach and "console-socket" not in single:
        reason = "cannot allocate tty if runc will detach without setting console socket"
        raise InputError("exec in", f"container {container.id}", reason, "give --console-socket")
    fds = preserved(single)
    spec = replace(spec, process=process)
    if container.virtualized:
        from nestrt.plan.handles import forbid_handles  # as create does

        spec = forbid_handles(spec, os.uname().machine)
    console = os.path.abspath(single["console-socket"]) if "console-socket" in single else ""
    where, leaf = places(container, repeated.get("cgroup", []))
    joining = Joining(container.id, spec, container.pid, container.start_time, where, leaf, console, preserve_fds=fds)
    open_standard()
    pid_file = single.get("pid-file", "")
    creator = Creator(
        plan_exec(joining),
        joining,
        container,
        relay.blocked() if detach else relay.hold(),
        (HOST, FIRST),
        os.path.abspath(pid_file) if pid_file else "",
    )
    if "pidfd-socket" in single:
        creator.pidfd_socket = os.path.abspath(single["pidfd-socket"])
    trace(flags, creator)
    try:
        creator.run()
    except BaseException:
        creator.abandon()
        raise
    if detach:
        return 0
    return relay.foreground(creator.pid, creator.pidfd, creator.master)
