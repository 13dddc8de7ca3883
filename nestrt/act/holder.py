"""The process that holds a scope until its guest has one of its own.

systemd makes a scope around processes, and ends one that has none left. From there to the first process
that the runtime puts below it, a child of the wrapper stands in it::

    nestrt wrap, which becomes the runtime     holder                    the scope, which is the limit group
      fork ─────────────────────────────────▶ closes all, waits
      StartTransientUnit ───────────────────────────────────────────────▶ made, with the holder in it
      v2 ───────────────────────────────────▶ SCOPE/nestrt-hold           can enable controllers
      limits, mark, exec
      SCOPE/guest: the first process
      createRuntime: is it still ours? end ─▶ gone                        lives by the first process

Whatever becomes of the wrapper or the runtime, the holder ends with it; systemd then ends the scope
and removes its groups. So a runtime that comes late could make a group of that name with no limits:
createRuntime looks for the mark, which went with the group.
"""

from __future__ import annotations

import os
import select
import time

from nestrt.act import remove
from nestrt.errors import KernelError, NestrtError, StateError
from nestrt.kernel import cgroup, pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal

    from nestrt.act.records import Record
    from nestrt.plan.facts import Hierarchy
else:
    import _signal  # signal.py imports enum

HOLD = "nestrt-hold"
PATIENCE = 10.0  # seconds
NAMED = "name=systemd"
# In whose hierarchies systemd makes a unit's group on v1: src/basic/cgroup-util.h, CGROUP_MASK_V1.
V1_CONTROLLERS = frozenset(("cpu", "cpuacct", "blkio", "memory", "devices", "pids"))


def hold() -> tuple[int, int]:
    """Fork the holder; its pid and start time. It is told to end by end(), or by the end of this process.

    When this returns it has let go of all that it inherited: descriptors (an engine waits for the end of its
    pipes), terminal, working directory and signal mask. Raises OSError.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    caller = os.pidfd_open(os.getpid())
    try:
        pid = os.fork()
        if pid == 0:
            try:
                _wait_for(caller)
            finally:
                os._exit(0)
        os.close(writer)
        writer = -1
        os.read(reader, 1)  # nothing is ever written: its end of the pipe is closed
    finally:
        for fd in (reader, caller, *((writer,) if writer >= 0 else ())):
            os.close(fd)
    return pid, pidfd.start_time(pid) or 0


def _wait_for(caller: int) -> None:
    for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM):
        _signal.signal(number, _signal.SIG_DFL)  # systemd ends a scope by SIGTERM
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    os.setsid()
    os.chdir("/")
    os.environ.clear()
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(HOLD)
    except OSError:
        pass  # only a name for ps(1)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd != caller:
            try:
                os.close(fd)
            except OSError:
                continue  # the directory's own
    poll = select.poll()
    poll.register(caller, select.POLLIN)
    poll.poll()


def stand_aside(hierarchies: tuple[Hierarchy, ...], group: str, pid: int) -> None:
    """Move the holder *pid* below *group* in the v2 tree, where a group with processes enables no controllers.

    Raises KernelError.
    """
    for h in hierarchies:
        if h.version != 2 or not os.path.isdir(h.path(group)):
            continue
        where = h.path(f"{group}/{HOLD}")
        try:
            os.makedirs(where, 0o755, exist_ok=True)
            cgroup.write(f"{where}/cgroup.procs", str(pid))
        except OSError as error:
            raise KernelError("hold the scope by", where, error.errno or 0, "start the container again") from error


def end(pid: int, start: int) -> None:
    """End the holder; one that has ended is no error. Raises StateError where it does not end."""
    try:
        descriptor = pidfd.open(pid, start)
    except ProcessLookupError:
        return
    try:
        pidfd.send_signal(descriptor, _signal.SIGKILL)
        if not pidfd.wait(descriptor, PATIENCE):
            raise StateError("end", f"process {pid}", "it does not end", f"see what it waits for: /proc/{pid}/stack")
    finally:
        os.close(descriptor)


def release(record: Record, hierarchies: tuple[Hierarchy, ...]) -> None:
    """The guest's first process is below the scope: end the holder, and remove the group that it had.

    Raises StateError where the limit group is not the one that was made for the guest: systemd has removed that.
    """
    group = record.text("group")
    for h in hierarchies:
        if remove.read_mark(h, group).get("id") != record.text("id"):
            raise StateError(
                "settle",
                f"guest {record.text('name')}",
                f"{h.path(group)} is not the limit group that was made for it: {record.text('unit')} was stopped since",
                "start the container again",
            )
    end(record.number("holder"), record.number("holder_start"))
    deadline = time.monotonic() + PATIENCE / 10
    for h in hierarchies:
        where = h.path(f"{group}/{HOLD}")
        while h.version == 2 and os.path.isdir(where):
            try:
                os.rmdir(where)
            except OSError:
                if time.monotonic() > deadline:
                    break  # it goes with the limit group
                time.sleep(0.002)
    del record.values["holder"]


def stop(unit: str, group: str, id: str) -> None:
    """Have systemd end and forget a guest's scope; one that has gone is no error, and one of another stays.

    It is the guest's if it has *group*, or says the guest's *id*: a holder that ended before systemd had moved it
    leaves a scope without a group, which nobody would end.

    Raises HostError (no systemd to ask, not allowed), NestrtError (systemd's own reason).
    """
    from nestrt.act.scope import NO_UNIT, Manager  # D-Bus, by libsystemd
    from nestrt.kernel.sdbus import BusError

    with Manager(False) as manager:
        bus = manager.bus
        try:
            path = bus.call("GetUnit", "s", unit).text("o")
            where = bus.get(path, "org.freedesktop.systemd1.Scope", "ControlGroup", "s").text()
            about = bus.get(path, "org.freedesktop.systemd1.Unit", "Description", "s").text()
        except BusError as error:
            if error.name == NO_UNIT:
                return
            raise NestrtError("ask about", f"unit {unit}", error.text, "see: systemctl status") from error
        if where == group or about.endswith(f" {id}"):
            manager.stop(unit)


def elsewhere(hierarchies: tuple[Hierarchy, ...]) -> tuple[Hierarchy, ...]:
    """Those of *hierarchies* in which systemd makes no groups: slices there are whoever's that makes them."""
    return tuple(
        h
        for h in hierarchies
        if h.version == 1 and NAMED not in h.options.split(",") and not V1_CONTROLLERS.intersection(h.controllers)
    )
