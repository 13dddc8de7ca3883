"""The groups of a guest: limit group, guest root, first group, in every hierarchy. Values in, Steps out."""

from __future__ import annotations

from nestrt import jsontext
from nestrt.controllers.table import by_name, settings_for
from nestrt.errors import HostError
from nestrt.level.check import max_level
from nestrt.level.devices import DEFAULT_RULES, DeviceRule, format_rule, intersect, subset
from nestrt.level.limits import Limits, over
from nestrt.level.policy import QUOTAS
from nestrt.level.units import MAX
from nestrt.plan.facts import Facts, Hierarchy
from nestrt.plan.host_steps import (
    AttachDeviceProgram,
    Delegate,
    EnableControllers,
    FillCpuset,
    MakeGroup,
    SetFile,
    SetMark,
)
from nestrt.plan.ids import Identity
from nestrt.plan.request import Request
from nestrt.plan.steps import Step
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.level.policy import Policy

V1_DELEGATE = ("tasks", "cgroup.procs")
MARK_VERSION = 1


def divisible(request: Request, hierarchy: Hierarchy) -> tuple[str, ...]:
    """The controllers of *hierarchy* that the policy lets the guest see and divide (kernel names)."""
    policy = request.policy
    allowed = []
    for name in hierarchy.controllers:
        controller = by_name(name)
        seen = policy.controllers is None or controller.name in policy.controllers
        if seen and (not controller.divided_by or getattr(policy, controller.divided_by)):
            allowed.append(name)
    return tuple(allowed)


def flat_io(request: Request, hierarchy: Hierarchy) -> bool:
    """Whether the guest has I/O limits that only its own groups carry, not those below.

    v1's throttling is flat (blk-throttle.c, throtl_pd_init: only the v2 tree is
    hierarchical): a child group made by the guest would not be throttled at all.
    So the guest gets no child groups there, and its first group carries the limits.
    """
    return hierarchy.version == 1 and "blkio" in hierarchy.controllers and bool(request.policy.limits.io)


def delegated(request: Request, hierarchy: Hierarchy) -> bool:
    """Whether guest root gets the directories of *hierarchy*: v2 always, v1 if it may divide a controller there."""
    if not request.policy.virtualize or request.policy.mount != "rw" or flat_io(request, hierarchy):
        return False
    if hierarchy.version == 2 or not hierarchy.controllers:
        return True
    return bool(divisible(request, hierarchy))


def shown_limits(request: Request, facts: Facts) -> Limits:
    """What the guest root's limit files show: the guest's own limits, and where it has none, this level's."""
    limits = request.policy.limits
    if facts.level.number == 0:
        return limits
    has = facts.has
    # v1 counts swap together with memory, so it can show none where memory has no limit.
    swap = has.swap if limits.memory is not None or has.memory != MAX else None
    return over(Limits(memory=has.memory, swap=swap, cpu_quota=has.cpu_quota, pids=has.pids), limits)


def partition(policy: Policy) -> dict[str, bool]:
    """What the guest may divide among its child groups."""
    return {
        "cpu": policy.divide_cpu,
        "memory": policy.divide_memory,
        "pids": policy.divide_pids,
        "io": policy.divide_io,
        "devices": policy.divide_devices,
    }


def quota(policy: Policy) -> dict[str, dict[str, int]]:
    """What a mark has of the guest's quotas: what the policy says, and nothing where it says nothing.

    ``quota`` takes the place of what the broker's options say, ``quota_most`` can only lower it.
    """
    found: dict[str, dict[str, int]] = {}
    for field in QUOTAS:
        value = getattr(policy, field)
        if value is not None:
            part = found.setdefault("quota_most" if field in policy.broker_most else "quota", {})
            part[field.removeprefix("broker_")] = value
    return found


def mark(request: Request, facts: Facts, generation: str, identity: Identity, created: int) -> dict[str, object]:
    """The whole mark of a guest being made; the launcher adds its pid when it runs."""
    policy = request.policy
    return {
        "v": MARK_VERSION,
        "name": request.name,
        "id": generation,
        "level": facts.level.number + 1,
        "state": "creating",
        "created": created,
        "rootfs": request.rootfs,
        "command": [word[:200] for word in request.command[:20]],
        "policy": policy.source,
        "virtualize": policy.virtualize,
        "max_level": policy.max_level,
        "ids": [list(r) for r in identity.uids],
        "view": {
            "mount": policy.mount,
            "controllers": "all" if policy.controllers is None else list(policy.controllers),
            "start_in": policy.start_in,
            "cpus": policy.cpus,
        },
        "limits": policy.limits.to_mark(),
        "partition": partition(policy),
        "broker": policy.broker,
        **quota(policy),
        "max_groups": policy.max_groups,
        "max_depth": policy.max_depth,
        "net": {"mode": request.net},
        "rm": request.remove,
        **dict(request.origin),
    }


def stamp(request: Request, facts: Facts) -> dict[str, object]:
    """What the guest is told about itself, on its guest root."""
    policy = request.policy
    level = facts.level
    limits = shown_limits(request, facts)
    return {
        "v": MARK_VERSION,
        "name": request.name,
        "level": level.number + 1,
        "max_level": max_level(policy, facts.has),
        "set_by": "host" if level.number == 0 else f"level {level.number} ({level.name})",
        "cpus": policy.cpus,
        "view": policy.mount,
        "controllers": "all" if policy.controllers is None else list(policy.controllers),
        "partition": {**partition(policy), "max_groups": policy.max_groups, "max_depth": policy.max_depth},
        "limits": replace(limits, devices=applied_rules(facts, limits.devices)).to_mark(),
    }


def _settings(hierarchy: Hierarchy, group: str, limits: Limits) -> list[Step]:
    """The writes that put *limits* on a group of *hierarchy*."""
    return [
        SetFile(hierarchy, group, setting.file, setting.value, setting.optional)
        for setting in settings_for(replace(limits, devices=None), hierarchy.controllers, hierarchy.version)
    ]


def applied_rules(facts: Facts, rules: tuple[DeviceRule, ...] | None) -> tuple[DeviceRule, ...]:
    """The rules that hold for a guest that asked for *rules*: the usual ones, within this level's, if for none."""
    known = facts.has.devices
    if rules is not None:
        return rules
    if facts.in_userns and known is not None:
        return known
    return DEFAULT_RULES if known is None else intersect(DEFAULT_RULES, known)


def device_steps(facts: Facts, hierarchy: Hierarchy, group: str, rules: tuple[DeviceRule, ...] | None) -> list[Step]:
    """Device rules on the limit group: v1 files, else a program; not from inside a user namespace."""
    on_v1 = any("devices" in h.controllers and h.version == 1 for h in facts.hierarchies)
    if on_v1 != (hierarchy.version == 1) or (on_v1 and "devices" not in hierarchy.controllers):
        return []
    if facts.in_userns:
        # The kernel takes no rules from inside a user namespace. It lets nobody make device nodes
        # there either, so the guest reaches only those that are bound into its /dev: within this
        # level's rules that is what was asked for.
        if rules is None or (facts.has.devices is not None and subset(rules, facts.has.devices) is None):
            return []
        raise HostError(
            "set the device rules of",
            group,
            "the kernel takes none from inside a user namespace, and this level's own are not known",
            "leave --device out: the guest then has the devices of this level, and no more",
        )
    rules = applied_rules(facts, rules)
    if not on_v1:
        from nestrt.controllers.device_program import build  # only where device rules are a program

        return [AttachDeviceProgram(hierarchy, group, tuple(map(format_rule, rules)), build(rules))]
    return [
        SetFile(hierarchy, group, setting.file, setting.value)
        for setting in by_name("devices").settings(Limits(devices=rules), 1)
    ]


def limit_group(
    request: Request, facts: Facts, h: Hierarchy, text: str, more: Callable[[Hierarchy], list[Step]] | None
) -> list[Step]:
    """The limit group in one hierarchy, with the mark *text*: everything that bounds the guest."""
    policy, group = request.policy, request.limit_group
    steps: list[Step] = [MakeGroup(h, group, exist_ok=bool(request.cgroup)), SetMark(h, group, facts.mark, text)]
    if h.version == 1 and "cpuset" in h.controllers:
        steps.append(FillCpuset(h, group))
    if more:
        steps += more(h)
    else:
        steps += device_steps(facts, h, group, policy.limits.devices)
    steps += _settings(h, group, policy.limits)
    if h.version == 2:
        steps.append(SetFile(h, group, "cgroup.max.descendants", str(policy.max_groups)))
        steps.append(SetFile(h, group, "cgroup.max.depth", str(policy.max_depth)))
    return steps


def guest_root(request: Request, facts: Facts, h: Hierarchy, identity: Identity) -> list[Step]:
    """The guest root and the first group in one hierarchy: what is shown, stamped and handed over."""
    limit, root, first = request.limit_group, request.guest_root, request.first_group
    enabled = divisible(request, h)
    steps: list[Step] = []
    if h.version == 2 and enabled:
        steps.append(EnableControllers(h, limit, enabled))
    for group in [root] if first == root else [root, first]:
        # A scope's first process waits in the guest root already.
        steps.append(MakeGroup(h, group, exist_ok=bool(request.cgroup) and group == root))
        if h.version == 1 and "cpuset" in h.controllers:
            steps.append(FillCpuset(h, group))
    visible = h if h.version == 1 else replace(h, controllers=enabled)
    steps += _settings(visible, root, shown_limits(request, facts))
    if flat_io(request, h) and first != root:
        steps += _settings(replace(h, controllers=("blkio",)), first, request.policy.limits)
    if h == facts.primary and request.policy.virtualize:
        steps.append(SetMark(h, root, facts.stamp, jsontext.dumps(stamp(request, facts))))
    if identity.root_uid is not None and delegated(request, h):
        files = facts.delegate if h.version == 2 else V1_DELEGATE
        steps.append(Delegate(h, root, files, identity.root_uid, identity.root_gid or 0))
    return steps


def late_steps(request: Request, facts: Facts, identity: Identity) -> list[Step]:
    """What has to wait until the first process has left the guest root for the first group.

    A v2 group with controllers enabled for its children takes no process
    (cgroup-v2.rst, "No Internal Process Constraint"), so they are enabled last; and
    the first group, files and all, is the guest's own. A guest that starts in its
    root (systemd) enables controllers itself.
    """
    root, first = request.guest_root, request.first_group
    steps: list[Step] = []
    for h in facts.hierarchies:
        if not request.policy.virtualize or first == root or not delegated(request, h):
            continue
        if h.version == 2 and divisible(request, h):
            steps.append(EnableControllers(h, root, divisible(request, h)))
        if identity.root_uid is not None:
            steps.append(Delegate(h, first, ("*",), identity.root_uid, identity.root_gid or 0))
    return steps


def parents(h: Hierarchy, limit_group: str, shared: bool) -> list[Step]:
    """Whatever is missing of the groups above *limit_group*, ready for one more child.

    *shared*: other programs have groups there too, so that only what is empty is filled in.
    """
    steps: list[Step] = []
    names = limit_group.strip("/").split("/")[:-1]
    if h.version == 2 and h.controllers:
        steps.append(EnableControllers(h, "/", h.controllers, lenient=shared))
    for count in range(len(names)):
        group = "/" + "/".join(names[: count + 1])
        steps.append(MakeGroup(h, group, exist_ok=True))
        if h.version == 1 and "cpuset" in h.controllers:
            steps.append(FillCpuset(h, group, inherit=not shared))
        if h.version == 2 and h.controllers:
            steps.append(EnableControllers(h, group, h.controllers, lenient=shared))
    return steps


def group_steps(
    request: Request,
    facts: Facts,
    generation: str,
    identity: Identity,
    created: int,
    more: Callable[[Hierarchy], list[Step]] | None = None,
) -> list[Step]:
    """All groups with their limits, marks and owners, the primary hierarchy first: its mark tells of the rest.

    *more* gives what else, besides the policy's limits, a limit group is to have.
    """
    texts = marks(request, facts, generation, identity, created)
    steps: list[Step] = []
    for h, text in texts:
        steps += parents(h, request.limit_group, shared=bool(request.cgroup))
        steps += limit_group(request, facts, h, text, more)
        steps += guest_root(request, facts, h, identity)
    return steps


def marks(
    request: Request, facts: Facts, generation: str, identity: Identity, created: int
) -> list[tuple[Hierarchy, str]]:
    """Every hierarchy with the mark of its limit group: the primary one first, which has the whole."""
    whole = jsontext.dumps(mark(request, facts, generation, identity, created))
    short = jsontext.dumps({"v": MARK_VERSION, "name": request.name, "id": generation})
    return [(facts.primary, whole), *((h, short) for h in facts.hierarchies if h != facts.primary)]
