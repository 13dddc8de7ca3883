"""A launch: request, policy and facts in, ordered Steps out. Pure; ``--dry-run`` prints what it returns.

The launcher and the guest's first process go on side by side and meet at words
(Tell and Wait)::

    launcher                            first process
    groups, limits, marks, owners
    clone ----------------------------> wait: mapped
    map ids, shift the root
    tell: mapped ---------------------> become root, pivot, mount /proc /sys /dev
    move it to the guest root           wait: grouped
    tell: grouped --------------------> take the cgroup namespace
    wait: rooted <--------------------- tell: rooted
    move it to the first group,         mount the view, lock it, leave the host
    enable controllers below the root
    connect the network                 tell: ready
    wait: ready <----------------------
    tell: go -------------------------> wait: go
    await: end of file <--------------- become the program
    mark it as running

Where v1 lets the launcher move only processes of its own uid (moved_first()), the
first process stands still until the launcher tells "placed", and becomes root after.
"""

from __future__ import annotations

from nestrt import jsontext
from nestrt.errors import HostError, InputError
from nestrt.level.units import format_cpus
from nestrt.plan.facts import Facts
from nestrt.plan.groups import flat_io, group_steps, late_steps, mark
from nestrt.plan.guest import capability_names, guest_steps
from nestrt.plan.guest_steps import Bind
from nestrt.plan.host_steps import (
    AskBroker,
    Attach,
    AwaitProgram,
    Clone,
    Connect,
    MapIds,
    MarkRunning,
    OpenBind,
    OpenLog,
    OpenRoot,
    Reserve,
    ReserveIds,
    ShiftBind,
    ShiftRoot,
)
from nestrt.plan.ids import Identity, choose, moved_first
from nestrt.plan.request import PARENT, STATE_DIR, Request, state_file
from nestrt.plan.steps import Plan, Step, Tell, Wait
from nestrt.record import replace

CLONE_NEWNS = 0x20000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000


def _clone(request: Request, identity: Identity) -> Clone:
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
    names = ["mount", "uts", "ipc", "pid"]
    if request.net != "host":
        flags |= CLONE_NEWNET
        names.append("net")
    if identity.root_uid is not None:
        flags |= CLONE_NEWUSER
        names.append("user")
    return Clone(flags, " ".join(names))


def own_numbers(request: Request, facts: Facts) -> Request:
    """*request* with its CPUs as the kernel numbers them, where this level counts its own from 0.

    Raises InputError for a number that the level does not have.
    """
    limits = request.policy.limits
    if not facts.level.renumbered or limits.cpus is None or facts.has.cpus is None:
        return request
    own = sorted(facts.has.cpus)
    outside = [cpu for cpu in limits.cpus if cpu >= len(own)]
    if outside:
        raise InputError(
            "give the guest",
            f"CPUs {format_cpus(frozenset(outside))}",
            f"level {facts.level.number} ({facts.level.name}) counts its {len(own)} CPUs from 0",
            f"choose from {format_cpus(frozenset(range(len(own))))}",
        )
    cpus = frozenset(own[cpu] for cpu in limits.cpus)
    return replace(request, policy=replace(request.policy, limits=replace(limits, cpus=cpus)))


def _possible(request: Request, facts: Facts, identity: Identity) -> None:
    """Refuse what the facts rule out, before anything is made."""
    if not identity.private and any(flat_io(request, h) for h in facts.hierarchies):
        raise HostError(
            "limit I/O of",
            f"guest {request.name}",
            "v1 throttles no child groups, and only private ids keep the guest from making some",
            "use --userns auto, or a host whose io controller is in the v2 tree",
        )
    admin = "CAP_SYS_ADMIN" in capability_names(request, identity, leaf=False)
    if not request.policy.virtualize and identity.root_uid is None and admin:
        raise HostError(
            "launch",
            f"guest {request.name} with virtualize = false and CAP_SYS_ADMIN",
            "without a user namespace it could mount this level's whole cgroup tree, its own limits with it",
            "leave one of the three out",
        )
    covered = [h for h in facts.hierarchies if h.read_only]
    if covered:
        raise HostError(
            "make the guest's group in",
            covered[0].mountpoint,
            "the hierarchy is mounted read-only at this level",
            "mount it read-write, or ask the launching level for a view that is rw",
        )


def plan_launch(request: Request, facts: Facts, generation: str, created: int) -> Plan:
    """The plan of one launch. *generation* is 16 hex digits that tell this guest from
    an earlier one of its name; *created* is the time, in seconds since the epoch.

    Raises HostError and InputError where the facts rule the request out.
    """
    identity = choose(request, facts)
    _possible(request, facts, identity)
    state = {"v": 1, "name": request.name, "id": generation, "parent": PARENT, "rm": request.remove}
    host: list[Step] = [Reserve(state_file(request.name), jsontext.dumps(state))]
    if identity.private and request.policy.user_namespace == "auto":
        _, start, count = identity.uids[0]
        host.append(ReserveIds(f"{STATE_DIR}/ids/{start}-{count}", request.name))
    if request.served:
        needed = request.policy.broker == "required"
        host.append(AskBroker(request.name, request.limit_group, needed, request.embedded_broker))
    host.append(OpenRoot(request.rootfs, recursive=request.rootfs != "/" and not request.overlay))
    guest = guest_steps(request, facts, identity)
    host += [
        OpenBind(step.source, step.target, step.recursive, step.optional) for step in guest if isinstance(step, Bind)
    ]
    if request.detach:
        host.append(OpenLog(request.log))
    host += group_steps(request, facts, generation, identity, created)
    host.append(_clone(request, identity))
    if identity.root_uid is not None:
        host.append(MapIds(identity.uids, identity.gids))
    if identity.shift:
        host.append(ShiftRoot(request.rootfs))
    if identity.private:
        host += [ShiftBind(mount.source, mount.target) for mount in request.mounts if mount.idmap]
    host.append(Tell("mapped"))
    host.append(Attach(facts.hierarchies, request.guest_root))
    host.append(Tell("grouped"))
    host.append(Wait("rooted"))
    if request.first_group != request.guest_root:
        host.append(Attach(facts.hierarchies, request.first_group))
    if moved_first(facts, identity):
        host.append(Tell("placed"))
    host += late_steps(request, facts, identity)
    if request.net == "veth":
        host.append(Connect(request.name))
    whole = jsontext.dumps(mark(request, facts, generation, identity, created))
    # Marked last: a guest whose launch was killed before its program ran is one that gc removes.
    host += [Wait("ready"), Tell("go"), AwaitProgram(request.command[0])]
    host.append(MarkRunning(facts.primary, request.limit_group, facts.mark, whole))
    return Plan(request.name, tuple(host), tuple(guest))
