"""Steps for what config.json says of the process: those of the launcher first, then the first process's."""

from __future__ import annotations

from nestrt.plan.steps import Step
from nestrt.record import record


@record
class SetLimits(Step):
    """Give the first process resource limits: (index in config.json's ``rlimits``, RLIMIT_ name, soft, hard).

    While the process is still the launcher's own user, or in a user namespace that
    the launcher made: prlimit(2) refuses others without CAP_SYS_RESOURCE.
    """

    limits: tuple[tuple[int, str, int, int], ...]

    def describe(self) -> str:
        return "limit " + ", ".join(f"{name} {soft}:{hard}" for _, name, soft, hard in self.limits)


@record
class SetOomScore(Step):
    """Write /proc/PID/oom_score_adj of the first process, which its descendants inherit: -1000 to 1000."""

    value: int

    def describe(self) -> str:
        return f"set oom_score_adj to {self.value}"


@record
class SetAffinity(Step):
    """Let the first process run on *cpus* only, as *field* of config.json says; None: on all, as far as allowed."""

    cpus: tuple[int, ...] | None
    field: str = ""

    def describe(self) -> str:
        where = "any CPU" if self.cpus is None else "CPUs " + ",".join(map(str, self.cpus))
        return f"let the first process run on {where}"


@record
class JoinResctrl(Step):
    """Put the first process into the resctrl group *group* ("/" is the root's own).

    *own*: it is named after the container, and removed with it. *schemata* are the lines
    for a group that is made here; one that is there must have them already, and must be
    there if there are none and it is not the container's own. *monitor* is the name of a
    monitoring group, "" for none.
    """

    group: str
    own: bool
    schemata: tuple[str, ...]
    monitor: str = ""

    def describe(self) -> str:
        return f"join resctrl group {self.group}" + (f" ({'; '.join(self.schemata)})" if self.schemata else "")


@record
class RequireModule(Step):
    """Refuse what *field* of config.json asks for where the kernel does not run the security module *name*."""

    name: str
    field: str

    def describe(self) -> str:
        return f"check that {self.name} is enabled"


@record
class EnterTimeNamespace(Step):
    """Make a time namespace with these offsets, (clock, seconds, nanoseconds), and enter it.

    By the first process, as long as it has not become root of its user namespace
    (/proc/self is then no longer its own to write). clone3(2) must not make the
    namespace: it would have a member, and its offsets be fixed.
    """

    offsets: tuple[tuple[str, int, int], ...]

    def describe(self) -> str:
        return "enter a time namespace" + "".join(f", {clock} {secs:+d} s" for clock, secs, _ in self.offsets)


@record
class NewSession(Step):
    """Become leader of a session of its own, unless it is one already (with a terminal)."""

    def describe(self) -> str:
        return "begin a session"


@record
class JoinKeyring(Step):
    """Leave the session keyring of whoever started the runtime for a new one, with the SELinux *label* if any."""

    label: str = ""

    def describe(self) -> str:
        return "take a session keyring"


@record
class SetDomainname(Step):
    """The NIS domain name of the UTS namespace, setdomainname(2)."""

    domainname: str

    def describe(self) -> str:
        return f"set the domain name {self.domainname}"


@record
class WriteSysctls(Step):
    """Write below /proc/sys: (key as config.json has it, path below /proc/sys, value)."""

    values: tuple[tuple[str, str, str], ...]

    def describe(self) -> str:
        return "set " + " ".join(f"{key}={value}" for key, _, value in self.values)


@record
class MakeDirectory(Step):
    """Make the working directory, with its parents, where it is missing: before the root is made read-only."""

    path: str

    def describe(self) -> str:
        return f"make directory {self.path} if missing"


@record
class SetPersonality(Step):
    """personality(2)."""

    domain: str
    persona: int

    def describe(self) -> str:
        return f"set the personality {self.domain}"


@record
class SetScheduler(Step):
    """sched_setattr(2), in its numbers, times in ns; *name* is the policy's."""

    name: str
    policy: int
    flags: int = 0
    nice: int = 0
    priority: int = 0
    runtime: int = 0
    deadline: int = 0
    period: int = 0

    def describe(self) -> str:
        return f"schedule by {self.name}"


@record
class SetIoPriority(Step):
    """ioprio_set(2): *io_class* 1 to 3, *level* 0 to 7."""

    name: str
    io_class: int
    level: int

    def describe(self) -> str:
        return f"set the I/O priority {self.name}:{self.level}"


@record
class UseAppArmor(Step):
    """Have the program confined by *profile* from its execve(2) on."""

    profile: str

    def describe(self) -> str:
        return f"use the AppArmor profile {self.profile}"


@record
class UseSelinux(Step):
    """Have the program labelled so from its execve(2) on."""

    label: str

    def describe(self) -> str:
        return f"use the SELinux label {self.label}"


@record
class ForbidPrivileges(Step):
    """Set no_new_privs."""

    def describe(self) -> str:
        return "set no_new_privs"


@record
class BecomeUser(Step):
    """Become the process's user, in *cwd*, with exactly these capability sets (names that capabilities(7) has).

    *umask* None leaves it as it is. What a set names and the first process does not
    have is left out: config.md asks for a warning, which the launcher gives.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    umask: int | None
    cwd: str
    effective: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    bounding: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()

    def describe(self) -> str:
        held = f"{len(self.permitted)} of {len(self.bounding)} capabilities"
        return f"become {self.uid}:{self.gid} with {held}, in {self.cwd}"


@record
class FindProgram(Step):
    """Look for the program as its user, so that ``create`` fails where it is not there.

    *env* is ``KEY=value``, as config.json has it.
    """

    args: tuple[str, ...]
    env: tuple[str, ...]

    def describe(self) -> str:
        return f"find {self.args[0]}"


@record
class LearnHome(Step):
    """Look up the home directory of *uid* in the container's /etc/passwd, for a program without HOME.

    With the rights of the first process: the user may not be able to read the file.
    """

    uid: int

    def describe(self) -> str:
        return f"look up the home directory of {self.uid}"


@record
class ExecuteArgs(Step):
    """Become the program. Descriptors 3 to 2 + *preserve_fds* are handed on, all others are closed."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    preserve_fds: int = 0

    def describe(self) -> str:
        return "execute " + " ".join(self.args)
