"""Being told of pressure: PSI's triggers, and the levels of v1.

Documentation/accounting/psi.rst ("Cgroup2 interface"), cgroup-v1/memory.rst, section 11. A trigger says POLLPRI, and
says it once: to whoever asks first (kernel/sched/psi.c, psi_trigger_poll()).
"""

from __future__ import annotations

import errno
import os
import re
import select

from nestrt.kernel import oom
from nestrt.record import record

# kernel/sched/psi.c, psi_trigger_create(): the window's bounds, and its step without CAP_SYS_RESOURCE (Linux 6.5).
SHORTEST_WINDOW, LONGEST_WINDOW, WINDOW_STEP = 500_000, 10_000_000, 2_000_000  # µs
LEVELS = ("low", "medium", "critical")  # cgroup-v1/memory.rst, section 11
_TRIGGER = re.compile(r"(?:(cpu|io|memory) )?(some|full) ([0-9]{1,8}) ([0-9]{1,8})")


@record
class Trigger:
    """*file* of the group that takes *text*. PSI: *stall* µs in a *window* of µs; else a level of v1's."""

    file: str
    text: str
    stall: int = 0
    window: int = 0

    def unprivileged(self) -> Trigger:
        """The same share of stalled time, in the next window that is taken without CAP_SYS_RESOURCE."""
        window = min(-(-self.window // WINDOW_STEP) * WINDOW_STEP, LONGEST_WINDOW)
        stall = max(self.stall * window // self.window, 1)
        return Trigger(self.file, f"{self.text.split()[0]} {stall} {window}", stall, window)


def parse_threshold(text: str) -> Trigger | None:
    """ "some 150000 1000000", "cpu some …", or v1's "medium"; None where it is neither."""
    if text in LEVELS:
        return Trigger("memory.pressure_level", text)
    found = _TRIGGER.fullmatch(text)
    if not found:
        return None
    stall, window = int(found[3]), int(found[4])
    if not SHORTEST_WINDOW <= window <= LONGEST_WINDOW or not 0 < stall <= window:
        return None
    return Trigger(f"{found[1] or 'memory'}.pressure", f"{found[2]} {stall} {window}", stall, window)


def open_trigger(place: str, trigger: Trigger) -> tuple[int, int]:
    """A descriptor that tells of the pressure that *trigger* means in the group directory *place*, and the epoll(7)
    events to wait for.

    Without CAP_SYS_RESOURCE the kernel takes only windows of whole 2 s: then it is the same share of time in one of
    those. OSError: ENOENT, EOPNOTSUPP (no PSI in this kernel or group), EINVAL, EMFILE.
    """
    if not trigger.window:
        # By default the kernel tells no group above one in which somebody listens: a guest would hide its pressure.
        return oom.listen(place, trigger.file, f"{trigger.text},hierarchy"), select.EPOLLIN
    descriptor = os.open(f"{place}/{trigger.file}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            os.write(descriptor, trigger.text.encode())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            os.write(descriptor, trigger.unprivileged().text.encode())
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, select.EPOLLPRI
