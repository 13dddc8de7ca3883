"""``nestrt exec NAME COMMAND…``: a process in a guest of any runtime, beside its first one and with no more rights.

There may be no document of the guest, or one of another runtime: what the first process *is* says what the new one is
to be. The guest is its root's, who may be hostile: see nestrt-change(1), "exec".
"""

from __future__ import annotations

import os

from nestrt.act import members, relay
from nestrt.act.containers import Container
from nestrt.act.creator import Creator
from nestrt.act.exec import FIRST, HOST
from nestrt.act.pipes import open_standard
from nestrt.cli._host_audit import Change
from nestrt.cli._target import look, require_root, words
from nestrt.cli.options import Option
from nestrt.cli.request import environment_of
from nestrt.errors import HostError, InputError, KernelError, NestrtError, NotFound, StateError
from nestrt.host.processes import first_process, processes
from nestrt.kernel import cgroup, pidfd, selfexe
from nestrt.kernel.mountinfo import read_cgroups
from nestrt.oci.model import Capabilities, Namespace, Spec
from nestrt.plan.exec import Joining, plan_exec
from nestrt.plan.handles import forbid_handles
from nestrt.plan.request import DEFAULT_PATH, FIRST_GROUP
from nestrt.probe.facts import read_hierarchies
from nestrt.probe.live import Live, read_live
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.act.protocol import Gone
    from nestrt.host.walk import Guest, View
    from nestrt.oci.model import Process
    from nestrt.plan.facts import Hierarchy
    from nestrt.plan.steps import Step

    Places = tuple[tuple[Hierarchy, str], ...]

HEAD = """usage: nestrt exec [OPTION …] NAME COMMAND [ARGUMENT …]

Run a process in a guest of any runtime, beside its first one: in its namespaces and groups, with its user and
rights. For a container of this runtime, with only options that runc has, as runc does."""
TAIL = """
Exit status: the process's own; 128+n if signal n ended it; 127 if the program is not in the
guest, 126 if it cannot be executed; 125 if it could not be started; 255 without such a guest.
"""
OPTIONS = (
    Option("tty", "", "give it a terminal", "t"),
    Option("interactive", "", "nothing: it reads standard input always", "i"),
    Option("detach", "", "leave when it runs; its output goes nowhere", "d"),
    Option("env", "K=V", "environment variable; K alone takes it over", "e", repeat=True),
    Option("workdir", "DIR", "working directory in the guest (default: /)", "w"),
    Option("cwd", "DIR", "the same"),
    Option("user", "USER", "uid[:gid], or names that the guest knows (default: the first process's)", "u"),
    Option("unfiltered", "", "without the first process's system call filters, where they cannot be had"),
)
FAILED = 125
KILL = 9
PATIENCE = 15  # seconds that the guest may keep the new process from running before it is the program
KILL_PATIENCE = 1.0


class Enterer(Creator):
    """A Creator whose process may be stopped at any moment by a guest that freezes its own groups."""

    def _cause(self, step: Step, error: OSError | Gone) -> NestrtError:
        if isinstance(error, BlockingIOError):
            reason = f"something in it keeps the new process from running for {PATIENCE} s"
            return StateError("exec in", f"guest {self.container.id}", reason, "see what it has frozen: nestrt tree")
        return super()._cause(step, error)

    def abandon(self) -> None:
        """End the process; on v1 one that the guest has frozen is taken out of its group, so that it can die.

        What waits for FUSE (fs/fuse/dev.c, request_wait_answer()) is left to itself: it ends as soon as it can.
        """
        if self.pid:
            pidfd.send_signal(self.pidfd, KILL)
            for hierarchy in read_hierarchies():
                if hierarchy.version == 1 and "freezer" in hierarchy.controllers and not pidfd.wait(self.pidfd, 0.5):
                    try:
                        cgroup.write(hierarchy.path("/", "cgroup.procs"), str(self.pid))
                    except OSError:
                        continue
            if not pidfd.wait(self.pidfd, KILL_PATIENCE):
                return
        super().abandon()


def _places(hierarchies: tuple[Hierarchy, ...], guest: Guest, pid: int) -> tuple[Places, str]:
    """Beside the first process in each hierarchy where the guest has groups, and the leaf for what has to be one.

    Raises StateError where nothing can run in one of them.
    """
    groups = read_cgroups(pid)
    found = []
    root = guest.root if guest.mark.virtualize else guest.path
    leaf = f"{root}/{FIRST_GROUP}"
    for hierarchy in hierarchies:
        if not os.path.isdir(hierarchy.path(guest.path)):
            continue
        own = groups.get(members.key(hierarchy), "")
        choice = [own] if members.within(root, own) else []
        choice += [group for group in (leaf, root) if os.path.isdir(hierarchy.path(group))]
        running = [group for group in choice if not _stopped(hierarchy, group)]
        if not running:
            reason = f"its groups are frozen in {hierarchy.name or 'the v2 tree'}" if choice else "it has no groups"
            raise StateError("exec in", f"guest {guest.name}", reason, f"nestrt thaw {guest.name}")
        found.append((hierarchy, running[0]))
    if not found:
        raise StateError("exec in", f"guest {guest.name}", "it has no groups any more", "start it again")
    return tuple(found), leaf


def _stopped(hierarchy: Hierarchy, group: str) -> bool:
    """Whether what is moved to *group* does not run, there or in the groups above."""
    try:
        if hierarchy.version == 2:
            return "frozen 1" in cgroup.read(hierarchy.path(group, "cgroup.events"))
        return "freezer" in hierarchy.controllers and cgroup.read(hierarchy.path(group, "freezer.state")) != "THAWED"
    except OSError:
        return False


def _first(view: View, guest: Guest, hierarchies: tuple[Hierarchy, ...]) -> tuple[int, int]:
    """Pid and start time of the guest's first process. Raises StateError where it is not there, or no guest's."""
    what = f"guest {guest.name}"
    pid = first_process(guest, processes(guest, view, commands=False) if guest.claim else [])
    if pid <= 0 or not pidfd.alive(pid, guest.mark.start):
        reason = "its first process has ended, or is not known"
        raise StateError("exec in", what, reason, f"nestrt ps {guest.name} shows what runs in it")
    if not members.is_member(hierarchies, guest.path, pid):
        raise StateError("exec in", what, "its first process is in none of its groups", "see nestrt ps")
    if os.path.samestat(os.stat(f"/proc/{pid}/ns/mnt"), os.stat("/proc/self/ns/mnt")):
        reason = "its first process has no mount namespace of its own"
        raise StateError("exec in", what, reason, "what would run there would be a process of this level")
    return pid, guest.mark.start


def _filters(pid: int, live: Live, what: str, unfiltered: bool) -> tuple[bytes, ...]:
    """The first process's filters. A process without them, which others could trace, would be a way around them.

    Raises HostError where they cannot be had.
    """
    if not live.filtered:
        return ()
    from nestrt.kernel.seccomp_copy import filters_of  # ctypes' ptrace(2), and a helper

    try:
        return filters_of(pid)
    except OSError as error:
        if unfiltered:
            return ()
        reason = f"the system call filters of its first process cannot be had: {error.strerror}"
        remedy = "with --unfiltered what runs has none, and all who may trace it in the guest are rid of theirs"
        raise HostError("exec in", what, reason, remedy) from error


def _process(live: Live, single: dict[str, str], repeated: dict[str, list[str]], command: list[str]) -> Process:
    """What the first process is, with what is asked for instead."""
    own, user = live.process, single.get("user", "")
    asked = environment_of([*(["TERM"] if "tty" in single else []), *repeated.get("env", [])])
    kept = [entry for entry in own.env if not (user and entry.startswith("HOME="))]
    if not any(entry.startswith("PATH=") for entry in kept):
        kept.append(f"PATH={DEFAULT_PATH}")
    sets = own.capabilities or Capabilities()
    if user and not own.no_new_privileges:
        # What root gets of it is what a set-user-ID program would get there.
        sets = replace(sets, effective=sets.bounding, permitted=sets.bounding, ambient=())
    return replace(
        own,
        args=tuple(command),
        cwd=single.get("workdir", single.get("cwd", own.cwd)),
        env=(*kept, *(f"{key}={value}" for key, value in asked)),
        terminal="tty" in single,
        capabilities=sets,
    )


def _joining(
    view: View, guest: Guest, single: dict[str, str], repeated: dict[str, list[str]], command: list[str]
) -> Joining:
    hierarchies = tuple(h for h in view.hierarchies if os.path.isdir(h.path(guest.path)))
    what = f"guest {guest.name}"
    try:
        pid, start = _first(view, guest, hierarchies)
        live = read_live(pid)
        if not live.own_users:
            selfexe.protect()
        places, leaf = _places(hierarchies, guest, pid)
        filters = _filters(pid, live, what, "unfiltered" in single)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise StateError("exec in", what, "its first process has ended", "start it again") from error
    except OSError as error:
        raise KernelError("exec in", what, error.errno or 0, "run it as root") from error
    process = _process(live, single, repeated, command)
    spec = Spec("1.2.0", process=process, namespaces=(Namespace("user", "its"),) if live.own_users else ())
    if guest.mark.virtualize and not filters:
        spec = forbid_handles(spec, os.uname().machine)
    return Joining(
        guest.name, spec, pid, start, places, leaf, user=single.get("user", ""), filters=filters,
        silent="detach" in single, patience=PATIENCE,
    )  # fmt: skip


def _started(joining: Joining) -> Enterer:
    open_standard()
    container = Container("", joining.id, {"pid": joining.first, "start": joining.start})
    signals = relay.blocked() if joining.silent else relay.hold()
    enterer = Enterer(plan_exec(joining), joining, container, signals, (HOST, FIRST))
    enterer.log = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) if joining.silent else -1
    try:
        enterer.run()
    except BaseException:
        enterer.abandon()
        raise
    return enterer


def main(argv: list[str]) -> int:
    """Run the command; returns the process's exit status. Raises NotFound where there is no such guest, and else
    NestrtError with status 125, but the program's own 126 and 127."""
    found = words("exec", OPTIONS, argv, HEAD, TAIL, permute=False)
    if found is None:
        return 0
    single, repeated, operands = found
    command = operands[1:]
    if command[:1] == ["--"]:
        del command[0]
    if not command:
        raise InputError("exec", "a process", "no program is named", "write nestrt exec NAME COMMAND")
    if "tty" in single and "detach" in single:
        raise InputError("use", "-t with -d", "no process stays to relay the terminal", "leave one of them out")
    view, guest = look(operands[0], read_hierarchies(make=True))
    try:
        require_root("exec in", guest)
        with Change("Exec", view, guest) as change:
            # Not its arguments: there may be secrets among them.
            change.note("process", None, {"command": command[0], "arguments": len(command) - 1})
            enterer = _started(_joining(view, guest, single, repeated, command))
        return 0 if "detach" in single else relay.foreground(enterer.pid, enterer.pidfd, enterer.master)
    except NestrtError as error:
        told = error
        if error.obj.startswith(("process.cwd ", "process.user.")):  # a document's words, which engines look for
            obj = f"{error.obj.removeprefix('process.').removeprefix('user.')} in guest {guest.name}"
            remedy = error.remedy if error.operation == "enter" else "use an id that the guest has"
            told = NestrtError(error.operation, obj, error.reason.rpartition(": ")[2], remedy)
        if isinstance(error, NotFound):  # which would say that there is no such guest
            told = NestrtError(error.operation, error.obj, error.reason, error.remedy)
        if told.status not in (126, 127):
            told.status = FAILED
        raise told from error
