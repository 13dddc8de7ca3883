"""Signals for a container's processes."""

from __future__ import annotations

import os

from nestrt.act.containers import Container
from nestrt.errors import InputError, StateError
from nestrt.kernel import pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal

    from nestrt.plan.facts import Hierarchy
else:
    import _signal  # signal.py imports enum


def signal_number(text: str) -> int:
    """The signal of ``15``, ``TERM`` or ``SIGTERM``, ``RTMIN+3`` too (signal(7)). Raises InputError."""
    if text.isascii() and text.isdigit() and len(text) < 4:
        number = int(text)
    else:
        name, plus, offset = text.upper().removeprefix("SIG").partition("+")
        found = getattr(_signal, f"SIG{name}", None)
        number = int(found) if isinstance(found, int) and name.isalnum() else -1
        if plus:
            number = number + int(offset) if name == "RTMIN" and offset.isdigit() and len(offset) < 3 else -1
    if not 0 <= number <= 64:
        raise InputError("send", f"signal {text[:40]!a}", "unknown signal", "write a name or a number of signal(7)")
    return number


def _not_running(container: Container) -> StateError:
    return StateError("kill", f"container {container.id}", "container not running", f"nestrt delete {container.id}")


def signal_first(container: Container, number: int) -> None:
    """Send *number* to the first process; SIGKILL reaches a frozen one too. Raises StateError, OSError."""
    try:
        descriptor = pidfd.open(container.pid, container.start_time)
    except ProcessLookupError as error:
        raise _not_running(container) from error
    try:
        if not pidfd.send_signal(descriptor, number):
            raise _not_running(container)
    finally:
        os.close(descriptor)
    if number == _signal.SIGKILL and container.frozen():
        from nestrt.act import freeze

        freeze.thaw(container)  # on v1 the frozen cannot die


def signal_all(container: Container, hierarchies: tuple[Hierarchy, ...], number: int) -> bool:
    """Send *number* to every process in the container's groups, its child groups included.

    Without groups, to the first one. Returns whether any process was there: none is no error, as under runc.
    """
    if not container.cgroup:
        if container.alive():
            signal_first(container, number)
            return True
        return False
    from nestrt.act import members, remove  # few callers want all

    # 0 is one that this pid namespace has no number for, and for kill(2) the caller's own group.
    pids = [pid for pid in remove.living(hierarchies, container.cgroup) if pid]
    for pid in pids:
        members.send(hierarchies, container.cgroup, pid, number)
    if pids and number == _signal.SIGKILL:
        remove.kill(hierarchies, container.cgroup)
    return bool(pids)
