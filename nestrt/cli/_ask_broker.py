"""A broker of this level, where one runs, is asked to change a guest that it serves: what it knows then follows."""

from __future__ import annotations

import os

from nestrt.errors import HostError, InputError, NestrtError, NotFound, StateError, one_line
from nestrt.level.devices import format_rule
from nestrt.level.limits import format_io
from nestrt.level.units import MAX, format_cpus, format_quota, format_size
from nestrt.plan.broker import GUEST_SOCKET, HOST_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nestrt.level.devices import DeviceRule
    from nestrt.level.limits import Limits


def _count(value: int) -> str:
    return "max" if value == MAX else str(value)


# The broker's key of each field, and how it is written there.
SETTINGS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "memory": ("memory.max", format_size),
    "swap": ("memory.swap.max", format_size),
    "cpu_quota": ("cpu.max", format_quota),
    "cpu_weight": ("cpu.weight", str),
    "cpus": ("cpuset.cpus", format_cpus),
    "mems": ("cpuset.mems", format_cpus),
    "pids": ("pids.max", _count),
    "io": ("io.max", lambda limits: "\n".join(format_io(limit) for limit in limits)),
}
METHOD = "io.nestrt.Guest.Devices"
ERRORS: dict[str, type[NestrtError]] = {
    "BadValue": InputError, "NotFound": NotFound, "Busy": StateError, "Locked": StateError, "NotPossible": HostError,
    "NotPermitted": HostError, "QuotaExceeded": HostError,
}  # fmt: skip


class Answered(NestrtError):
    """What the broker says, as it says it; or, where it has not *replied*, what is to say of that."""

    replied = False

    def __str__(self) -> str:
        return one_line("; ".join(part for part in (self.reason, self.remedy) if part))


def set_limits(limit_group: str, new: Limits, rules: tuple[DeviceRule, ...] | None) -> bool:
    """Have the broker do it; False where there is none, or it does not serve the guest of that limit group.

    Raises NestrtError where it does not do it; then nothing has changed. It may still be at it where it has not
    answered in time: what it has not begun by then it gives up.
    """
    if not os.path.exists(HOST_SOCKET):
        return False
    from nestrt.broker import above
    from nestrt.broker.refusal import Refusal

    try:
        served = above.ask("io.nestrt.Host.Guests", {}, HOST_SOCKET).get("guests") or []
    except Refusal:
        return False  # a killed one's socket
    if not any(guest.get("cgroup") == limit_group for guest in served):
        return False
    settings = {
        key: write(value)
        for field, (key, write) in SETTINGS.items()
        if (value := getattr(new, field)) not in (None, ())
    }
    devices = None if rules is None else [format_rule(rule) for rule in rules]
    # By its group: guests of different runtimes may have one name.
    try:
        ask("io.nestrt.Host.SetLimits", {"guest": limit_group, "settings": settings, "devices": devices})
    except Answered as error:
        if not error.replied and error.status == StateError.status:  # no answer in time
            error.remedy = "it may be at it by now: see with nestrt show before you try again"
        raise
    return True


def set_devices_above(limit_group: str, rules: tuple[DeviceRule, ...]) -> bool:
    """For a level that may set no device rules itself: have the broker of the level above do it; False for any other.

    Raises NestrtError where there is none, or it does not do it; then nothing has changed.
    """
    from nestrt.broker import above

    if not above.needed():
        return False
    ask(METHOD, {"group": limit_group, "only": [format_rule(rule) for rule in rules]}, GUEST_SOCKET)
    return True


def ask(method: str, parameters: dict[str, Any], socket: str = HOST_SOCKET) -> dict[str, Any]:
    """The reply of the broker at *socket*, this level's own, to *method* ("io.nestrt.Host.Guests").

    Raises NestrtError with the status of what it refuses: HostError's where there is no broker.
    """
    from nestrt.broker import above
    from nestrt.broker.refusal import Refusal

    try:
        return above.ask(method, parameters, socket)
    except Refusal as refusal:
        error = Answered("", "", refusal.message, refusal.remedy)
        error.status = ERRORS.get(refusal.name, NestrtError).status
        error.replied = isinstance(refusal, above.Reply)
        raise error from refusal
