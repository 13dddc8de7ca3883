"""Steps for what config.json says of the process, in their order. Values in, Steps out.

``create`` and ``exec`` put them between their own; each group has to stand where it does here::

    launcher                              first process
    --------                              -------------
    required_steps
    (clone)                               time_steps (not for exec)
    before_groups                         (become root of the user namespace)
    (move into the groups)                keyring_steps
    after_groups                          (mounts) system_steps (not for exec)
                                          (leave the runtime's root; the terminal)
                                          attribute_steps
    limit_steps                           wait until that is done
                                          user_steps
                                          (wait for start) program_steps

oci.document has checked that the document makes sense in itself. Where the runtime-spec
(config.md, config-linux.md) is silent, this does as runc does.
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.capabilities import NAMES
from nestrt.level.units import parse_cpus, shown
from nestrt.oci.model import Capabilities
from nestrt.oci.parse_linux import sysctl_path
from nestrt.plan import process_steps as do
from nestrt.plan.guest_steps import SetHostname
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import IntelRdt, Process, Spec
    from nestrt.plan.steps import Step

# include/uapi/linux/sched.h
POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
# include/uapi/linux/ioprio.h, include/uapi/linux/personality.h
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
PERSONALITIES = {"LINUX": 0, "LINUX32": 8}
DEFAULT_UMASK = 0o022


def exec_process(own: Process, container: Process) -> Process:
    """*own*, a process to be run in a container, with what it does not say taken from the container's first.

    As runc's ``exec``: capabilities, labels, limits, priorities, umask, oom_score_adj, no_new_privs.
    """
    return replace(
        own,
        user=replace(own.user, umask=container.user.umask) if own.user.umask is None else own.user,
        capabilities=own.capabilities or container.capabilities,
        rlimits=own.rlimits or container.rlimits,
        oom_score_adj=container.oom_score_adj if own.oom_score_adj is None else own.oom_score_adj,
        no_new_privileges=own.no_new_privileges or container.no_new_privileges,
        apparmor_profile=own.apparmor_profile or container.apparmor_profile,
        selinux_label=own.selinux_label or container.selinux_label,
        io_priority=own.io_priority or container.io_priority,
        scheduler=own.scheduler or container.scheduler,
        affinity=own.affinity or container.affinity,
    )


def required_steps(process: Process) -> list[Step]:
    """The launcher's, before it makes anything: what this host must have."""
    steps: list[Step] = []
    if process.apparmor_profile:
        steps.append(do.RequireModule("apparmor", "process.apparmorProfile"))
    if process.selinux_label:
        steps.append(do.RequireModule("selinux", "process.selinuxLabel"))
    return steps


def before_groups(process: Process, joins: bool) -> list[Step]:
    """The launcher's, after the clone and before the process is in its groups; *joins*: for ``exec``."""
    steps: list[Step] = []
    if process.oom_score_adj is not None:
        steps.append(do.SetOomScore(process.oom_score_adj))
    if joins and process.affinity is not None and process.affinity.initial:
        steps.append(_affinity("initial", process.affinity.initial))
    return steps


def after_groups(process: Process, joins: bool, name: str, rdt: IntelRdt | None = None) -> list[Step]:
    """The launcher's, once the process is in its groups; *name* is the container's, for its resctrl group.

    execCPUAffinity is for ``exec`` only (*joins*). Without one the process gets all
    CPUs of its cpuset, not those that the runtime happened to be bound to.
    """
    steps: list[Step] = []
    affinity = process.affinity if joins else None
    if affinity is not None and affinity.final:
        steps.append(_affinity("final", affinity.final))
    elif affinity is None or not affinity.initial:
        steps.append(do.SetAffinity(None))
    if rdt is not None:
        steps.append(resctrl_step(rdt, name))
    return steps


def limit_steps(process: Process) -> list[Step]:
    """The launcher's, when the first process has set up everything but has not yet given up its user.

    Not before: it would set the container up under the program's limits. Not by
    itself: raising a hard limit takes a right that no user namespace gives.
    """
    limits = tuple((index, limit.type, limit.soft, limit.hard) for index, limit in enumerate(process.rlimits))
    return [do.SetLimits(limits)] if limits else []


def resctrl_step(rdt: IntelRdt, name: str) -> do.JoinResctrl:
    """Which resctrl group, and with which schemata: config-linux.md, IntelRdt."""
    schemata = tuple(line for line in (rdt.l3_cache_schema, rdt.mem_bw_schema) if line)
    monitor = name if rdt.enable_cmt or rdt.enable_mbm else ""
    return do.JoinResctrl(rdt.clos_id or name, not rdt.clos_id, schemata, monitor)


def time_steps(spec: Spec) -> list[Step]:
    """The first process's, before it becomes root of its user namespace; a namespace with a path is joined."""
    entry = spec.namespace("time")
    return [do.EnterTimeNamespace(spec.time_offsets)] if entry is not None and not entry.path else []


def keyring_steps(process: Process, keyring: bool) -> list[Step]:
    """The first process's, as root of its user namespace, which then owns it. Not for ``--no-new-keyring``."""
    return [do.JoinKeyring(process.selinux_label)] if keyring else []


def system_steps(spec: Spec, host_network: bool = False) -> list[Step]:
    """The first process's of ``create``, once everything is mounted and while the root can still be written.

    *host_network*: the network namespace that is joined is the runtime's own, whose sysctls are not the
    container's to set. Raises InputError.
    """
    steps: list[Step] = []
    if host_network and (theirs := [name for name, _ in spec.sysctl if name.startswith("net.")]):
        reason = "not allowed in host network namespace"
        raise InputError("set", f"linux.sysctl {shown(theirs[0])}", reason, "give the container a network of its own")
    if spec.hostname:
        steps.append(SetHostname(spec.hostname))
    if spec.domainname:
        steps.append(do.SetDomainname(spec.domainname))
    if spec.sysctl:
        steps.append(do.WriteSysctls(tuple((name, sysctl_path(name), value) for name, value in spec.sysctl)))
    if spec.process is not None:
        steps.append(do.MakeDirectory(spec.process.cwd))
    return steps


def attribute_steps(process: Process, spec: Spec) -> list[Step]:
    """The first process's, with all its rights, after its terminal is opened: for ``create`` and ``exec``."""
    steps: list[Step] = [do.NewSession()]
    if process.apparmor_profile:
        steps.append(do.UseAppArmor(process.apparmor_profile))
    if process.selinux_label:
        steps.append(do.UseSelinux(process.selinux_label))
    if process.no_new_privileges:
        steps.append(do.ForbidPrivileges())
    asked = process.scheduler
    if asked is not None:
        flags = sum(SCHED_FLAGS[flag] for flag in set(asked.flags))
        numbers = (asked.nice, asked.priority, asked.runtime, asked.deadline, asked.period)
        steps.append(do.SetScheduler(asked.policy, POLICIES[asked.policy], flags, *numbers))
    wanted = process.io_priority
    if wanted is not None:
        steps.append(do.SetIoPriority(wanted.io_class, IO_CLASSES[wanted.io_class], wanted.priority))
    if spec.personality is not None:
        steps.append(do.SetPersonality(spec.personality.domain, PERSONALITIES[spec.personality.domain]))
    return steps


def user_steps(process: Process, joins: bool) -> list[Step]:
    """The first process's, after its limits are set: give up what it has, and look for the program with what is left.

    Without ``capabilities`` it has none, as under crun: the spec is silent, and runc leaves those of the runtime.
    """
    steps: list[Step] = []
    env = environment(process.env)
    if not any(variable.startswith("HOME=") for variable in env):
        steps.append(do.LearnHome(process.user.uid))
    sets = process.capabilities or Capabilities()
    umask = process.user.umask
    become = do.BecomeUser(
        process.user.uid,
        process.user.gid,
        process.user.additional_gids,
        # The runtime's own is no business of a container; a process that exec adds keeps its caller's, as under runc.
        DEFAULT_UMASK if umask is None and not joins else umask,
        process.cwd,
        *(_named(names) for names in (sets.effective, sets.permitted, sets.inheritable, sets.bounding, sets.ambient)),
    )
    return [*steps, become, do.FindProgram(process.args, env)]


def program_steps(process: Process, preserve_fds: int = 0) -> list[Step]:
    """The last of all."""
    return [do.ExecuteArgs(process.args, environment(process.env), preserve_fds)]


def ungranted(process: Process, held: frozenset[str]) -> tuple[str, ...]:
    """What ``capabilities`` names and the process will not get, sorted: the launcher warns of it (config.md).

    *held* are the names that the first process has: all that the kernel knows in a user namespace of its own.
    """
    sets = process.capabilities or Capabilities()
    asked = {name for names in (sets.bounding, sets.effective, sets.inheritable, sets.permitted) for name in names}
    return tuple(sorted((asked | set(sets.ambient)) - (held & frozenset(NAMES))))


def environment(env: tuple[str, ...]) -> tuple[str, ...]:
    """*env* as the program gets it: of a name that is there twice the last one, and no empty HOME."""
    values: dict[str, str] = {}
    for variable in env:
        name, _, value = variable.partition("=")
        values.pop(name, None)
        values[name] = value
    if values.get("HOME") == "":
        del values["HOME"]
    return tuple(f"{name}={value}" for name, value in values.items())


def _named(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that the kernel could know: capabilities that it never had, or has not yet, cannot be asked of it."""
    return tuple(name for name in NAMES if name in names)


def _affinity(key: str, text: str) -> do.SetAffinity:
    field = f"process.execCPUAffinity.{key}"
    return do.SetAffinity(tuple(sorted(parse_cpus(text, field))), field)
