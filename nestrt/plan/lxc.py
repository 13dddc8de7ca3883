"""A container of LXC as a guest: what its configuration says, what stands on its groups, what is to be done. Pure.

::

    LXC's configuration                        what LXC makes of it
    lxc.cgroup.dir.container       = X         the limit group, with LXC's own limits (lxc.cgroup.*, lxc.cgroup2.*)
    lxc.cgroup.dir.container.inner = guest     X/guest, where it takes the cgroup namespace: the guest root
    lxc.cgroup.dir.monitor         = M         the group of its monitor

LXC makes both groups itself and refuses any that is there, so the limit group cannot be made before, as for
other runtimes. Its own limits stand before the first process is there; mark, policy, caps and view follow while that
process waits for the start-host hook, before it becomes the container's program.

Sources: lxc.container.conf(5); lxc 5.0, src/lxc/cgroups/cgfsng.c and src/lxc/start.c.
"""

from __future__ import annotations

from nestrt import jsontext
from nestrt.controllers.device_program import build
from nestrt.controllers.table import by_name
from nestrt.errors import HostError, InputError
from nestrt.level.bound import smaller
from nestrt.level.devices import DEFAULT_RULES, DeviceRule, format_rule, subset
from nestrt.level.limits import Limits
from nestrt.level.units import clean
from nestrt.plan.groups import divisible, flat_io, guest_root, late_steps, limit_group, mark, marks, parents
from nestrt.plan.guest import view_steps
from nestrt.plan.guest_steps import MountNew
from nestrt.plan.host_steps import (
    Attach,
    AttachDeviceProgram,
    DisableControllers,
    EnableControllers,
    MarkRunning,
    SetFile,
)
from nestrt.plan.request import GUEST_ROOT
from nestrt.plan.standing import is_everything, tighter
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nestrt.level.policy import Policy
    from nestrt.plan.facts import Facts, Hierarchy
    from nestrt.plan.ids import Identity
    from nestrt.plan.request import Request
    from nestrt.plan.steps import Step

HOOKS = ("pre-start", "start-host", "post-stop")
NAME_LIMIT = 128  # characters; a group's name has 255 bytes at most, and "lxc.payload." stands before it


def limit_group_name(name: str) -> str:
    """The limit group of the container *name*: where LXC by itself would put the container."""
    return f"lxc.payload.{name}"


def include(program: str) -> str:
    """What every container's configuration gets, the hooks being *program*'s."""
    devices = "".join(
        f"\n{key}.deny = a\n" + "".join(f"{key}.allow = {format_rule(rule)}\n" for rule in DEFAULT_RULES)
        for key in ("lxc.cgroup.devices", "lxc.cgroup2.devices")
    )
    hooks = "".join(f"lxc.hook.{hook} = {program} hook lxc {hook}\n" for hook in HOOKS)
    return (
        "# The guest root, below the limit group: the container's cgroup namespace begins there.\n"
        f"lxc.cgroup.dir.container.inner = {GUEST_ROOT}\n\n{hooks}\n"
        "# Its devices, with a user namespace too; lines for more of them come after these.\n"
        f"{devices.lstrip()}"
    )


def configuration(name: str, program: str) -> str:
    """The lines that make the container *name* a guest. Raises InputError for a name that LXC cannot have meant."""
    check_name(name)
    return (
        "# The limit group: no file for all containers can say it, for it has the container's name.\n"
        f"lxc.cgroup.dir.container = {limit_group_name(name)}\n"
        f"lxc.cgroup.dir.monitor = lxc.monitor.{name}\n{include(program)}"
    )


def check_name(name: str) -> str:
    """*name*, a container's. Raises InputError where it is none."""
    plain = name.isascii() and name.isprintable() and not any(c in "/ #'\"" for c in name)
    if not plain or not 0 < len(name) <= NAME_LIMIT or name.startswith("."):
        raise InputError("use", f"container name {name[:NAME_LIMIT]!a}", "it is no name of a group", "see lxc-ls")
    return name


@record
class Places:
    """Where a configuration puts a container's groups, "" where it does not say: *monitor* is the monitor's group.

    *relative*: they are below the group of whoever starts it, not of the host's first process.
    """

    container: str = ""
    inner: str = ""
    monitor: str = ""
    relative: bool = False


def places(text: str) -> Places:
    """The groups that the configuration *text* names; what it includes is not looked at.

    The last line of a key holds; one without a value takes it away (lxc.container.conf(5)).
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith("#"):
            value = value.strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            found[key.strip()] = value
    directory = "lxc.cgroup.dir"
    return Places(
        found.get(f"{directory}.container", ""),
        found.get(f"{directory}.container.inner", ""),
        found.get(f"{directory}.monitor", ""),
        found.get("lxc.cgroup.relative", "") == "1",
    )


def below(base: str, group: str) -> str:
    """The path of *group* of a configuration; *base* is where LXC begins: the group that /proc/1/cgroup names."""
    if not group.strip("/") or ".." in group.split("/"):
        return ""
    return clean(f"{base.removesuffix('/init.scope')}/{group}")


def limit_group_of(groups: Mapping[str, str], name: str) -> str:
    """The limit group of a first process that stands in *groups* (hierarchy's name: path) in all hierarchies.

    Raises HostError where it is not the child ``guest`` of one and the same group everywhere.
    """
    remedy = f"put the lines into its configuration that this prints: nestrt hook lxc config {name}"
    for where, path in groups.items():
        if path.rpartition("/")[2] != GUEST_ROOT or not path.rpartition("/")[0]:
            reason = f"its first process stands in {path} of hierarchy {where or 'cgroup2'}, in no guest root"
            raise HostError("make a guest of", f"container {name}", reason, remedy)
    found = set(groups.values())
    if len(found) != 1:
        two = " and ".join(sorted(found)[:2])
        reason = f"its groups are not the same in all hierarchies: {two}"
        raise HostError("make a guest of", f"container {name}", reason, "give lxc.cgroup.relative, or start it in one")
    return found.pop().rpartition("/")[0]


# --- what is to be done --------------------------------------------------------------------------


@record
class Container:
    """A container of LXC that waits for its start-host hook: *stands* are the limits on its limit group, *programs*
    how many device programs are there (v2), *shown* what ALIKE files say by hierarchy's name."""

    request: Request
    stands: Limits
    programs: int = 0
    shown: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()


def _v1_device_steps(
    h: Hierarchy, group: str, rules: tuple[DeviceRule, ...], stands: tuple[DeviceRule, ...]
) -> list[Step]:
    """Take *stands* from *group* and the guest root below it, and give both *rules*, which are within them.

    A group with children takes no "a" (devcgroup_update_access(), security/device_cgroup.c); single lines it does.
    """
    steps: list[Step] = [
        SetFile(h, group, "devices.deny", format_rule(DeviceRule(kind, rule.major, rule.minor, rule.access)))
        for rule in stands
        for kind in ("bc" if rule.type == "a" else rule.type)
    ]
    allow = [s for s in by_name("devices").settings(Limits(devices=rules), 1) if s.file == "devices.allow"]
    for where in (group, f"{group}/{GUEST_ROOT}"):
        steps += [SetFile(h, where, setting.file, setting.value) for setting in allow]
    return steps


def device_steps(container: Container, facts: Facts, h: Hierarchy, asked: tuple[DeviceRule, ...] | None) -> list[Step]:
    """What makes the limit group's device rules no more than the policy *asked*. Raises HostError."""
    group = container.request.limit_group
    on_v1 = any(other.version == 1 and "devices" in other.controllers for other in facts.hierarchies)
    if facts.in_userns or on_v1 != (h.version == 1) or (on_v1 and "devices" not in h.controllers):
        return []
    if not on_v1:
        if asked is None and container.programs:
            return []  # LXC's own: lxc.cgroup2.devices.*
        rules = DEFAULT_RULES if asked is None else asked
        return [AttachDeviceProgram(h, group, tuple(map(format_rule, rules)), build(rules))]
    stands = container.stands.devices or ()
    if is_everything(stands) and not is_everything(asked):
        raise HostError(
            "make a guest of",
            f"container {container.request.name}",
            "its configuration allows it all devices of the host",
            f"put what this prints after the last lxc.include: nestrt hook lxc config {container.request.name}",
        )
    rules = container.request.policy.limits.devices or ()
    return [] if subset(stands, rules) is None else _v1_device_steps(h, group, rules, stands)


def require(container: Container, facts: Facts, who: Identity) -> None:
    """Refuse what cannot be made to hold, before anything is changed. Raises HostError."""
    request = container.request
    if not who.private and any(flat_io(request, h) for h in facts.hierarchies):
        raise HostError(
            "limit I/O of",
            f"guest {request.name}",
            "v1 throttles no child groups, and only private ids keep the guest from making some",
            "give it lxc.idmap, or leave lxc.cgroup.blkio.throttle.* and the policy's io out",
        )


def adopt(
    container: Container,
    facts: Facts,
    who: Identity,
    asked: tuple[DeviceRule, ...] | None,
    generation: str,
    created: int,
) -> list[Step]:
    """Make the limit group that LXC has made nestrt's, the group below it the guest root, and move the first process
    to the first group. *asked* are the policy's own device rules, None for none.

    The policy of *container* has the limits of both, the policy's and LXC's: the smaller of each.
    """
    request = container.request
    bound = replace(request, policy=replace(request.policy, limits=tighter(request.policy.limits, container.stands)))
    shown = {name: dict(texts) for name, texts in container.shown}
    steps: list[Step] = []
    for h, text in marks(request, facts, generation, who, created):
        devices = device_steps(container, facts, h, asked)
        steps += parents(h, request.limit_group, shared=True)
        steps += limit_group(bound, facts, h, text, _always(devices))
        if h.version == 2:
            enabled = divisible(request, h)
            if hidden := tuple(name for name in h.controllers if name not in enabled):
                steps.append(DisableControllers(h, request.limit_group, hidden))
            if enabled:
                steps.append(EnableControllers(h, request.limit_group, enabled, lenient=True))
        steps += guest_root(request, facts, h, who)
        steps += [
            SetFile(h, request.guest_root, file, value, optional=True) for file, value in shown.get(h.name, {}).items()
        ]
    steps.append(Attach(facts.hierarchies, request.first_group))
    steps += late_steps(request, facts, who)
    whole = jsontext.dumps(mark(request, facts, generation, who, created))
    steps.append(MarkRunning(facts.primary, request.limit_group, facts.mark, whole))
    return steps


def _always(steps: list[Step]) -> Callable[[Hierarchy], list[Step]]:
    return lambda _: steps


def within(host: Policy, stands: Limits, who: Identity) -> Policy:
    """The host's policy with the container's own ids, and of its limits and LXC's the smaller.

    Raises InputError where CPUs or memory nodes have nothing in common.
    """
    return replace(
        host,
        limits=smaller(host.limits, stands),
        user_namespace="map" if who.uids else "none",
        uid_map=who.uids,
        gid_map=who.gids,
    )


def view(request: Request, facts: Facts, who: Identity) -> list[Step]:
    """The container's mounts of its own hierarchies, as those of a launch; what root of the host mounts is given to
    the container's root."""
    steps = view_steps(request, facts, who)
    if who.root_uid is None:
        return steps
    owner = f",uid={who.root_uid},gid={who.root_gid or 0}"
    return [
        replace(step, options=step.options + owner) if isinstance(step, MountNew) and step.fstype == "tmpfs" else step
        for step in steps
    ]
