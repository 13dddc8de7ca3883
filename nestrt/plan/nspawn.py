"""A container of systemd-nspawn's service as a guest on a v2 host: what is to be done about its groups. Pure.

::

    machine.slice/systemd-nspawn@web.service      limit group: systemd makes it, with the unit's MemoryMax=…
      ├ payload                                   guest root: nspawn makes it, and takes the cgroup namespace there
      ├ supervisor                                nspawn itself
      └ .control                                  where systemd runs the hooks after the start

Who makes the groups decides their names, and what the unit limits is systemd's to write: it writes all of it again
whenever a property changes (systemd.resource-control(5)). So a policy's limits are asked of the unit, not set.

Sources: systemd 252, src/nspawn/nspawn-cgroup.c; systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

from nestrt import jsontext
from nestrt.errors import HostError
from nestrt.level.limits import Limits
from nestrt.level.units import MAX, format_cpus, format_quota, format_size
from nestrt.plan.groups import guest_root, limit_group, mark, marks
from nestrt.plan.host_steps import MarkRunning
from nestrt.plan.lxc import device_steps
from nestrt.plan.request import Request
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from nestrt.level.devices import DeviceRule
    from nestrt.plan.facts import Facts
    from nestrt.plan.ids import Identity
    from nestrt.plan.lxc import Container
    from nestrt.plan.steps import Step

PAYLOAD = "payload"
CONTROL = "/.control"


class Payload(Request):
    """A Request whose guest root has nspawn's name, and in which the first process stays."""

    @property
    def guest_root(self) -> str:
        return f"{self.limit_group}/{PAYLOAD}"

    @property
    def first_group(self) -> str:
        return self.guest_root


def unit_of(path: str) -> str:
    """The service's group, of the *path* of a process that systemd runs for it. Raises HostError where it is none."""
    unit = path.removesuffix(CONTROL)
    if unit.endswith(".service") and unit.count("/") > 1:
        return unit
    raise HostError(
        "make a guest of",
        f"group {path}",
        "it is no service's in a slice",
        "let systemd run it: hooks/nspawn/nestrt.conf",
    )


def require(policy: Limits, unit: Limits, name: str) -> None:
    """Raises HostError for a limit of the policy that the unit does not keep."""
    for setting, value in _wanted(policy, unit):
        raise HostError(
            "give a policy to",
            f"container {name}",
            f"its service allows more than the policy: it has to have {setting}={value}",
            f"systemctl edit systemd-nspawn@{name}, [Service]",
        )


def _wanted(policy: Limits, unit: Limits) -> Iterator[tuple[str, str]]:
    """(property of systemd.resource-control(5), value) for each that the unit lacks."""
    for setting, limit, has, form in (
        ("MemoryMax", policy.memory, unit.memory, format_size),
        ("MemorySwapMax", policy.swap, unit.swap, format_size),
        ("TasksMax", policy.pids, unit.pids, str),
        ("CPUQuota", policy.cpu_quota, unit.cpu_quota, _percent),
    ):
        if limit not in (None, MAX) and (has is None or has > limit):
            yield setting, form(limit)
    for setting, allowed, given in (
        ("AllowedCPUs", policy.cpus, unit.cpus),
        ("AllowedMemoryNodes", policy.mems, unit.mems),
    ):
        if allowed is not None and (given is None or given - allowed):
            yield setting, format_cpus(allowed)


def _percent(quota: int) -> str:
    return f"{float(format_quota(quota)) * 100:g}%"


def prepare(
    container: Container, facts: Facts, asked: tuple[DeviceRule, ...] | None, generation: str, created: int
) -> list[Step]:
    """Mark, caps and the policy's device rules on the service's group, before nspawn is started."""
    request = container.request
    bare = replace(request, policy=replace(request.policy, limits=Limits()))
    steps: list[Step] = []
    for h, text in marks(request, facts, generation, _nobody(), created):
        devices = device_steps(container, facts, h, asked)
        steps += limit_group(bare, facts, h, text, lambda _, found=devices: found)  # type: ignore[misc]
    return steps


def settle(request: Request, facts: Facts, who: Identity, generation: str, created: int) -> list[Step]:
    """What is shown, stamped and handed over, the container being there; and that it runs."""
    steps: list[Step] = []
    for h in facts.hierarchies:
        steps += guest_root(request, facts, h, who)
    whole = jsontext.dumps(mark(request, facts, generation, who, created))
    return [*steps, MarkRunning(facts.primary, request.limit_group, facts.mark, whole)]


def _nobody() -> Identity:
    from nestrt.plan.ids import Identity

    return Identity()
