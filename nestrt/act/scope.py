"""Transient units of systemd: made, given limits, ended. Values of plan/systemd.py in, calls out.

systemd puts a unit's processes only into the groups of controllers that it manages: on v1 those of
name=systemd, cpu, cpuacct, blkio, memory, devices and pids. The groups of the same path in the other
hierarchies are the runtime's to make and to join, and to remove.

The functions open a connection each (a millisecond), to the machine's systemd or to the user's own
(*user*; None: sdbus.is_users() says). A Manager is a connection for several calls; ``with`` closes it.

Source: org.freedesktop.systemd1(5).
"""

from __future__ import annotations

from nestrt.errors import HostError, NestrtError, NotFound, StateError
from nestrt.kernel.sdbus import JOB_TIMEOUT, Bus, BusError, is_users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nestrt.plan.systemd_text import Property, Value

DENIED = (
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
    "System.Error.EACCES",
    "System.Error.EPERM",
)
EXISTS = "org.freedesktop.systemd1.UnitExists"
NO_UNIT = "org.freedesktop.systemd1.NoSuchUnit"
DENIED_REMEDY = "root may use the machine's systemd, other users their own: leave --systemd-cgroup out"


def _failed(operation: str, unit: str, error: BusError) -> NestrtError:
    """What a reader is told. systemd's own words are the reason."""
    what = unit if " " in unit else f"unit {unit}"
    if error.name in DENIED:
        return HostError(operation, what, error.text, DENIED_REMEDY)
    if error.name == NO_UNIT:
        return NotFound(operation, what, error.text, "systemctl list-units shows what there is")
    return NestrtError(operation, what, error.text, "see: systemctl status")


def start(unit: str, properties: Iterable[Property], pid: int | None, user: bool | None = None) -> None:
    """Manager.start on a connection of its own."""
    with Manager(user) as manager:
        manager.start(unit, properties, pid)


def set_properties(unit: str, properties: Iterable[Property], user: bool | None = None) -> None:
    """Manager.set_properties on a connection of its own."""
    with Manager(user) as manager:
        manager.set_properties(unit, properties)


def stop(unit: str, user: bool | None = None) -> None:
    """Manager.stop on a connection of its own."""
    with Manager(user) as manager:
        manager.stop(unit)


class Manager:
    """systemd's manager: the machine's, or with *user* the caller's. Raises HostError where there is none."""

    def __init__(self, user: bool | None = None) -> None:
        self.bus = Bus(is_users() if user is None else user)

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.bus.close()

    def version(self) -> int:
        """systemd's version, such as 252. Raises HostError, NestrtError."""
        try:
            return self.bus.version()
        except BusError as error:
            raise _failed("ask", "systemd's manager", error) from error

    def group(self) -> str:
        """Where the manager's own slices begin: "" for the root that it sees, a user's manager has a service."""
        try:
            return self.bus.manager_text("ControlGroup").rstrip("/")
        except BusError as error:
            raise _failed("ask", "systemd's manager", error) from error

    def start(self, unit: str, properties: Iterable[Property], pid: int | None) -> None:
        """Make *unit* with *properties* around the process *pid* (None: a slice), and wait until it stands.

        A failed unit of the name that was left over is forgotten, and another try made. *pid* is a
        number of systemd's pid namespace, and must be in a group that systemd may move it from.

        Raises StateError (the unit is there), HostError (not allowed), NestrtError (systemd's own reason).
        """
        values: list[tuple[str, tuple[str, Value]]] = [(p.name, (p.signature, p.value)) for p in properties]
        if pid is not None:
            values.append(("PIDs", ("au", (pid,))))
        try:
            result = self._start(unit, values)
        except BusError as error:
            raise _failed("start", unit, error) from error
        except TimeoutError:
            self.reset(unit)
            raise NestrtError(
                "start", f"unit {unit}", f"systemd has not done it in {JOB_TIMEOUT:.0f} s", "see: systemctl list-jobs"
            ) from None
        if result != "done":
            self.reset(unit)
            raise NestrtError("start", f"unit {unit}", f"got {result}", f"see: systemctl status {unit}")

    def _start(self, unit: str, values: list[tuple[str, tuple[str, Value]]]) -> str:
        for attempt in range(2):
            try:
                return self.bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "replace", values, ())
            except BusError as error:
                if error.name != EXISTS:
                    raise
                if attempt:
                    remedy = f"choose another, or: systemctl stop {unit}"
                    raise StateError("start", f"unit {unit}", error.text, remedy) from error
                self.reset(unit)
        raise AssertionError

    def set_properties(self, unit: str, properties: Iterable[Property]) -> None:
        """Change *properties* of the unit until the machine's next boot. Raises NotFound, HostError, NestrtError.

        On v1 systemd denies all devices for a moment when it writes what the unit may use:
        freeze a container that runs, and thaw it after.
        """
        values = [(p.name, (p.signature, p.value)) for p in properties]
        if not values:
            return
        try:
            self.bus.call("SetUnitProperties", "sba(sv)", unit, True, values)
        except BusError as error:
            raise _failed("set properties of", unit, error) from error

    def stop(self, unit: str) -> None:
        """Stop *unit*, its processes with it, and have it forgotten. One that is not there is no error.

        Raises HostError (not allowed), NestrtError (not stopped in JOB_TIMEOUT, or systemd's own reason).
        """
        try:
            self.bus.job("StopUnit", "ss", unit, "replace")
        except BusError as error:
            if error.name != NO_UNIT:
                raise _failed("stop", unit, error) from error
        except TimeoutError:
            raise NestrtError(
                "stop", f"unit {unit}", f"systemd has not done it in {JOB_TIMEOUT:.0f} s", "see: systemctl list-jobs"
            ) from None
        self.reset(unit)

    def reset(self, unit: str) -> None:
        """Have systemd forget a failed unit of that name, if there is one."""
        try:
            self.bus.call("ResetFailedUnit", "s", unit)
        except BusError:
            pass

    def attach(self, unit: str, group: str, pid: int) -> None:
        """Move *pid* into *unit*, or into *group* ("/guest/init") below its own: systemd has the right, a user not.

        *group* must be there: on a hybrid host in name=systemd and in the v2 tree, and the process is
        then moved in the controllers' hierarchies to where the unit itself is.

        Raises NotFound, HostError, NestrtError.
        """
        try:
            self.bus.call("AttachProcessesToUnit", "ssau", unit, group or "/", (pid,))
        except BusError as error:
            raise _failed("move a process to", unit, error) from error
