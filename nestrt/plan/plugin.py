"""The groups of a guest that another runtime starts: before that runtime is called, and once a process is there.

::

    precreate, wrap            the runtime                  createRuntime                        poststop
    the limit group: parents,  makes …/guest below it,      stamp, shown limits, owner;          all of it goes
    mark, limits, devices,     puts the first process       first process to …/guest/init,
    caps on groups             there, cgroup namespace      controllers for its children

So no process is ever in a group whose limits are still to come, and whoever fails on the way leaves
nothing but what the mark names. Values in, Steps out: pure.
"""

from __future__ import annotations

from nestrt.controllers import oci_devices
from nestrt.errors import HostError
from nestrt.level.devices import DeviceRule, format_rule, subset
from nestrt.plan.bundle import identity
from nestrt.plan.container_groups import require_controllers, resource_steps
from nestrt.plan.groups import divisible, flat_io, guest_root, late_steps, limit_group, marks, parents
from nestrt.plan.host_steps import Attach, DisableControllers, EnableControllers, MarkRunning, SetFile
from nestrt.plan.ids import moved_first
from nestrt.plan.rewrite import uncovers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.resources import DeviceRule as OrderedRule
    from nestrt.plan.bundle import Bundle
    from nestrt.plan.facts import Facts, Hierarchy
    from nestrt.plan.steps import Step

DEEPEST = 64  # names in a limit group's path
# What runc and crun allow every container, whatever its document says (libcontainer/specconv, AllowedDevices;
# crun, src/libcrun/cgroup-resources.c). v1 refuses them where the limit group has not the same.
BUILT_IN: tuple[DeviceRule, ...] = (
    DeviceRule("c", None, None, "m"),
    DeviceRule("b", None, None, "m"),
    *(DeviceRule("c", 1, minor, "rwm") for minor in (3, 5, 7, 8, 9)),
    *(DeviceRule("c", 5, minor, "rwm") for minor in (0, 1, 2)),
    DeviceRule("c", 10, 200, "rwm"),
    DeviceRule("c", 136, None, "rwm"),
)


def _v1_devices(facts: Facts) -> Hierarchy | None:
    """The v1 hierarchy of device rules, where this level may set them."""
    if facts.in_userns:
        return None
    return next((h for h in facts.hierarchies if h.version == 1 and "devices" in h.controllers), None)


def _for_now(
    rules: tuple[OrderedRule, ...], facts: Facts, held: tuple[DeviceRule, ...] | None
) -> tuple[OrderedRule, ...]:
    """*rules* with what the runtime is going to write below them on v1; taken away again by _narrowed()."""
    if _v1_devices(facts) is None:
        return rules
    from nestrt.oci.resources import DeviceRule as OrderedRule

    more = BUILT_IN if held is None else tuple(rule for rule in BUILT_IN if subset((rule,), held) is None)
    return (*rules, *(OrderedRule(True, rule.type, rule.major, rule.minor, rule.access) for rule in more))


def _narrowed(bundle: Bundle, facts: Facts) -> list[Step]:
    """v1: what the runtime has by itself and the bundle's rules have not, taken from the limit group and all below.

    A group with children takes no "a" (devcgroup_update_access(), security/device_cgroup.c); single lines it does.
    """
    h = _v1_devices(facts)
    listed = oci_devices.as_allow_list(bundle.rules) if h is not None else None
    if h is None or listed is None:
        return []
    steps: list[Step] = []
    for rule in BUILT_IN:
        if subset((rule,), listed) is None:
            continue
        same = next((r for r in listed if (r.type, r.major, r.minor) == (rule.type, rule.major, rule.minor)), None)
        extra = "".join(letter for letter in rule.access if same is None or letter not in same.access)
        line = format_rule(DeviceRule(rule.type, rule.major, rule.minor, extra))
        steps.append(SetFile(h, bundle.cgroup, "devices.deny", line))
    return steps


def prepare(
    bundle: Bundle, facts: Facts, generation: str, created: int, held: tuple[DeviceRule, ...] | None = None
) -> list[Step]:
    """Everything down to the limit group, which then bounds whatever is put below it.

    *held* are the devices that this level has, None for all; *generation* is the guest's own random id, *created*
    seconds since 1970. Raises HostError for a resource whose controller this level has not.
    """
    assert bundle.request is not None
    who = identity(bundle)
    require_controllers(bundle, facts)
    rules = _for_now(bundle.rules, facts, held)
    steps: list[Step] = []
    for h, text in marks(bundle.request, facts, generation, who, created):
        steps += parents(h, bundle.cgroup, shared=True)
        steps += limit_group(bundle.request, facts, h, text, lambda h: resource_steps(bundle, facts, h, rules))
        if h.version == 2 and h.controllers:
            # The runtime would do the same, and its guest root then has the files that are to be locked.
            steps.append(EnableControllers(h, bundle.cgroup, h.controllers, lenient=True))
    return steps


def settle(bundle: Bundle, facts: Facts, whole: str, parked: bool = False) -> list[Step]:
    """What makes the runtime's group the guest root, its first process being there; *whole* is the mark.

    *parked*: on v1 the process stands in the limit group until it is started, for engines
    that take its group then for the container's (containerd's metrics, docker stats).
    """
    request = bundle.request
    assert request is not None
    who = identity(bundle)
    steps: list[Step] = []
    for h in facts.hierarchies:
        if h.version == 2 and (hidden := tuple(c for c in h.controllers if c not in divisible(request, h))):
            steps.append(DisableControllers(h, bundle.cgroup, hidden))
        steps += guest_root(request, facts, h, who)
    # Root of a user namespace moves only processes of its own uid on v1: there it stays in the guest root.
    trees = tuple(h for h in facts.hierarchies if h.version == 2)
    steps.append(Attach(trees if moved_first(facts, who) else facts.hierarchies, request.first_group))
    if parked:
        steps.append(Attach(tuple(h for h in facts.hierarchies if h.version == 1), bundle.cgroup))
    hybrid = any(h.version == 1 for h in facts.hierarchies)
    for step in late_steps(request, facts, who):
        # On a hybrid host runc puts what enters the guest into its root, which takes none where its children
        # have controllers.
        if not (hybrid and isinstance(step, EnableControllers)):
            steps.append(step)
    steps += _narrowed(bundle, facts)
    steps.append(MarkRunning(facts.primary, bundle.cgroup, facts.mark, whole))
    return steps


def require_throttles(bundle: Bundle, facts: Facts) -> None:
    """Raises HostError where the guest's root could put its processes beyond v1's throttles, which hold for one
    group alone: it is kept out of their hierarchy by ownership, or by a cover that it cannot take off."""
    request = bundle.request
    assert request is not None
    if identity(bundle).private or not any(flat_io(request, h) for h in facts.hierarchies):
        return
    if bundle.spec.namespace("user") is None and not uncovers(bundle.spec):
        return
    raise HostError(
        "limit",
        f"the I/O of container {bundle.id}",
        "cgroup v1 throttles single groups, and its root could make others",
        "give it a user namespace with ids of its own, or no CAP_SYS_ADMIN, or take a host with cgroup v2",
    )


def require_place(bundle: Bundle) -> None:
    """Raises HostError where a limit group cannot be one above the guest root."""
    if bundle.cgroup.count("/") > DEEPEST:
        raise HostError(
            "give a policy to",
            f"container {bundle.id}",
            f"its linux.cgroupsPath has more than {DEEPEST} names",
            "name a group that is less deep",
        )
    if not bundle.cgroup.strip("/"):
        raise HostError(
            "give a policy to",
            f"container {bundle.id}",
            "its linux.cgroupsPath is the root group, above which no limit can stand",
            "name a group of its own in linux.cgroupsPath",
        )
