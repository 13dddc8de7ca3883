"""The plan of a bundle's container: the document, a policy or none, and facts in, ordered Steps out. Pure.

As in plan/launch.py the launcher and the first process meet at words; hooks come between::

    launcher                            first process
    open root, bind sources, filter
    groups and limits (cgroupfs)
    clone ----------------------------> wait: mapped
    scope and groups (systemd)
    map ids, limits of the process
    tell: mapped ---------------------> become root
    move it to its group
    tell: grouped --------------------> take the cgroup namespace
    [policy: to the first group] <----- tell: rooted
    wait: mounted <-------------------- root, mounts, devices; tell: mounted
    prestart, createRuntime
    tell: hooked ---------------------> createContainer; leave the runtime's root;
    wait: ready <---------------------- names, covers, rights; tell: ready
    create: save the state
            tell: park ---------------> outlive the launcher
            wait: parked <------------- tell: parked; wait for ``start`` on the socket
    run:    save the state
            tell: go -----------------> wait: go
            await: end of file <------- startContainer; become the program
            poststart
"""

from __future__ import annotations

from nestrt import jsontext
from nestrt.errors import InputError
from nestrt.plan import container_steps as do
from nestrt.plan.bundle import Bundle, identity
from nestrt.plan.bundle_mounts import BundleMounts, Context, bundle_mounts
from nestrt.plan.container_groups import container_groups
from nestrt.plan.facts import Facts, Hierarchy
from nestrt.plan.groups import late_steps, mark
from nestrt.plan.guest import view_steps
from nestrt.plan.guest_steps import BecomeRoot, LoopbackUp, OpenTerminal, TakeCgroupNamespace
from nestrt.plan.host_steps import Attach, AwaitProgram, MakeGroup, MapIds, MarkRunning
from nestrt.plan.ids import Identity, moved_first
from nestrt.plan.process import (
    after_groups,
    attribute_steps,
    before_groups,
    keyring_steps,
    limit_steps,
    program_steps,
    required_steps,
    system_steps,
    time_steps,
    user_steps,
)
from nestrt.plan.seccomp_steps import filter_agent, filter_first, filter_host, filter_started
from nestrt.plan.steps import Plan, Step, Tell, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

FLAGS = {
    "mount": 0x20000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}


def _clone(bundle: Bundle) -> do.CloneInto:
    flags, names, joins = 0, [], []
    for entry in bundle.spec.namespaces:
        if entry.path:
            joins.append((entry.type, entry.path))
        elif entry.type in FLAGS:
            flags |= FLAGS[entry.type]
            names.append(entry.type)
    return do.CloneInto(flags, " ".join(names), tuple(joins))


def _possible(bundle: Bundle) -> None:
    spec = bundle.spec
    entry = spec.namespace("cgroup")
    if bundle.request is not None and entry is not None and entry.path:
        raise InputError(
            "give a policy to",
            f"container {bundle.id}",
            f"its document joins the cgroup namespace {entry.path}, and a policy gives it one of its own",
            "take the path out of linux.namespaces, or nestrt.* out of the annotations",
        )
    if bundle.console and not bundle.process.terminal:
        raise InputError(
            "use",
            "--console-socket",
            "cannot use console socket if runc will not detach or allocate tty",
            "leave it out, or set process.terminal",
        )


def _grouped(bundle: Bundle) -> list[Step]:
    """The first process's side of being put into its groups."""
    entry = bundle.spec.namespace("cgroup")
    steps: list[Step] = [Wait("grouped")]
    if bundle.request is not None or (entry is not None and not entry.path):
        steps.append(TakeCgroupNamespace())
    elif entry is not None:
        steps.append(do.JoinNamespace("cgroup"))
    return [*steps, Tell("rooted")]


def _placed(bundle: Bundle, facts: Facts, who: Identity, first: bool) -> list[Step]:
    """The launcher's side of the same."""
    request = bundle.request
    steps: list[Step] = []
    if bundle.cgroup:
        steps.append(Attach(facts.hierarchies, request.guest_root if request else bundle.cgroup))
    steps += [Tell("grouped"), Wait("rooted")]
    if request is not None and request.first_group != request.guest_root:
        steps.append(Attach(facts.hierarchies, request.first_group))
    if first:
        steps.append(Tell("placed"))
    if request is not None:
        steps += late_steps(request, facts, who)
    return steps


def _below_scope(bundle: Bundle, facts: Facts) -> list[Step]:
    """systemd puts the process into the scope itself, and a v2 group with processes enables no controllers."""
    trees = tuple(h for h in facts.hierarchies if h.version == 2)
    if bundle.request is None or not trees:
        return []
    root = bundle.request.guest_root
    return [*(MakeGroup(h, root) for h in trees), Attach(trees, root)]


def _mounts(bundle: Bundle, facts: Facts, who: Identity) -> BundleMounts:
    request = bundle.request
    context = Context(
        bundle.rootfs,
        bundle.path,
        bundle.cgroup,
        facts.hierarchies,
        bundle.spec.namespace("user") is not None,
        facts.in_userns,
        not bundle.pivot,
        None if request is None else tuple(view_steps(request, facts, who)),
        bundle.elsewhere,
    )
    return bundle_mounts(bundle.spec, context)


def _guest(bundle: Bundle, facts: Facts, who: Identity, mounts: BundleMounts) -> list[Step]:
    spec, process = bundle.spec, bundle.process
    network = spec.namespace("network")
    entry = spec.namespace("mount")
    grouped = _grouped(bundle)
    steps: list[Step] = [Wait("mapped")]
    if entry is not None and entry.path:
        steps.append(do.JoinNamespace("mount"))
    steps += mounts.enter
    if moved_first(facts, who):
        steps += [*grouped, Wait("placed")]
        grouped = []
    steps += time_steps(spec)
    if spec.namespace("user") is not None:
        steps.append(BecomeRoot())
    steps += keyring_steps(process, bundle.keyring)
    if network is not None and not network.path:
        steps.append(LoopbackUp())
    steps += [*grouped, *mounts.mounts, *system_steps(spec, bundle.host_network), Tell("mounted"), Wait("hooked")]
    if spec.hooks.create_container:
        steps.append(do.RunOwnHooks("createContainer", "creating"))
    steps += mounts.leave
    if process.terminal:
        steps.append(OpenTerminal())
    steps += [*attribute_steps(process, spec), *mounts.finish, Tell("prepared"), Wait("limited")]
    steps += [*filter_first(spec.seccomp, process.no_new_privileges), *user_steps(process, joins=False), Tell("ready")]
    steps += [Wait("park"), do.Park()] if bundle.socket else [Wait("go")]
    steps += filter_started(spec.seccomp, bool(spec.hooks.start_container))
    if spec.hooks.start_container:
        steps.append(do.RunOwnHooks("startContainer", "created"))
    return steps + program_steps(process, bundle.preserve_fds)


def waits_above(facts: Facts) -> tuple[Hierarchy, ...]:
    """The hierarchies where a created guest waits in its limit group; ``start`` moves it to its first group.

    An engine's shim takes the group of the process that create has left for the container's, once and for all
    (containerd's task metrics, docker stats). The v2 tree takes no process where controllers are enabled.
    """
    if facts.in_userns:
        return ()  # v1 lets only the host's root move processes of other users
    return tuple(h for h in facts.hierarchies if h.version == 1 and not h.mountpoint.startswith("/proc/"))


def _ready(bundle: Bundle, facts: Facts, whole: str) -> list[Step]:
    """The launcher's from the hooks to the end."""
    spec, process, request = bundle.spec, bundle.process, bundle.request
    steps: list[Step] = [Wait("mounted")]
    if spec.hooks.prestart or spec.hooks.create_runtime:
        steps.append(do.RunHooks(("prestart", "createRuntime"), "creating"))
    steps += [Tell("hooked"), Wait("prepared"), *limit_steps(process), Tell("limited"), Wait("ready")]
    if process.terminal:
        steps.append(do.SendTerminal(bundle.console, process.console_size))
    if request is not None:
        steps.append(MarkRunning(facts.primary, request.limit_group, facts.mark, whole))
    if bundle.socket and request is not None and (v1 := waits_above(facts)):
        steps.append(Attach(v1, bundle.cgroup))
    steps.append(do.SaveState())
    if bundle.socket:
        return [*steps, Tell("park"), Wait("parked")]
    connect, send = filter_agent(spec.seccomp)
    steps += [*connect, Tell("go"), *send, AwaitProgram(process.args[0])]
    if spec.hooks.poststart:
        steps.append(do.RunHooks(("poststart",), "running"))
    return steps


def plan_container(bundle: Bundle, facts: Facts, generation: str, created: int) -> Plan:
    """The plan of ``create`` (where *bundle* has a socket) and ``run``; *generation*, *created* as for a launch.

    Raises InputError and HostError where the document, the policy and the facts do not fit together.
    """
    _possible(bundle)
    spec, request, process = bundle.spec, bundle.request, bundle.process
    who = identity(bundle)
    mounts = _mounts(bundle, facts, who)
    groups = container_groups(bundle, facts, generation, who, created)
    host: list[Step] = [*required_steps(process), *filter_host(spec.seccomp), *mounts.before]
    if bundle.driver != "systemd":
        host += groups
    if bundle.socket:
        host.append(do.ListenForStart(bundle.socket))
    host.append(_clone(bundle))
    if bundle.driver == "systemd":
        host += [do.StartScope(bundle.unit, bundle.properties), *_below_scope(bundle, facts), *groups]
    if (entry := spec.namespace("user")) is not None and not entry.path:
        host.append(MapIds(spec.uid_mappings, spec.gid_mappings))
    host += [*mounts.mapped, *before_groups(process, joins=False), Tell("mapped")]
    host += _placed(bundle, facts, who, moved_first(facts, who))
    host += after_groups(process, False, bundle.id, spec.intel_rdt)
    whole = "" if request is None else jsontext.dumps(mark(request, facts, generation, who, created))
    host += _ready(bundle, facts, whole)
    return Plan(bundle.id, tuple(host), tuple(_guest(bundle, facts, who, mounts)))
