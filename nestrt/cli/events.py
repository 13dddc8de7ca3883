"""``nestrt events``: statistics and out-of-memory events of a container, a JSON object in each line.

The form is runc's (types/events.go): ``{"type":"stats","id":ID,"data":{…}}`` and ``{"type":"oom","id":ID}``.
"""

from __future__ import annotations

import errno
import select
import sys
import time

from nestrt import jsontext
from nestrt.act.containers import load
from nestrt.cli.engine import one_id, warn, words
from nestrt.cli.options import Option
from nestrt.errors import HostError, InputError, StateError
from nestrt.host.stats import read_stats
from nestrt.kernel import oom, pidfd
from nestrt.probe.facts import read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.act.containers import Container
    from nestrt.cli.engine import Globals
    from nestrt.plan.facts import Hierarchy

OPTIONS = (
    Option("interval", "TIME", "time between statistics: 5s, 100ms, 1m30s (default: 5s)"),
    Option("stats", "", "statistics once, then end"),
)
USAGE = """usage: nestrt events [--interval TIME] [--stats] ID

Write a container's statistics every so often, and when it runs out of memory, until it ends."""
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# The kernel tells one OOM to group after group: what comes this soon after the first is the same one. Seconds.
SETTLE = 0.01


def duration(text: str) -> float:
    """Seconds in a duration as Go writes it: 5s, 100ms, 1m30s, 1.5h. Raises InputError, also for 0 and less."""
    total, rest = 0.0, text.removeprefix("+")
    wrong = InputError("read", f"--interval {text[:60]!a}", "not a duration", "write it like 5s, 100ms or 1m30s")
    if not rest:
        raise wrong
    while rest:
        unit = rest.lstrip("0123456789.")
        number = rest[: len(rest) - len(unit)]
        # "m" begins "ms" too: all up to the next digit is the unit.
        name = unit[: next((i for i, c in enumerate(unit) if c in "0123456789."), len(unit))]
        if name not in UNITS or number.count(".") > 1 or not number.strip("."):
            raise wrong
        total += float(number) * UNITS[name]
        rest = unit[len(name) :]
    if total <= 0:
        raise InputError("use", f"--interval {text[:60]!a}", "duration interval must be greater than 0", "write 5s")
    return total


def main(flags: Globals, argv: list[str]) -> int:
    """Carry out ``nestrt events``. Raises InputError, NotFound, StateError, HostError (no groups)."""
    given = words("events", OPTIONS, argv, USAGE)
    if given is None:
        return 0
    single, _, operands = given
    container = load(flags.root, one_id("events", operands))
    interval = duration(single.get("interval", "5s"))
    if container.status() in ("stopped", "creating"):
        raise StateError(
            "watch", f"container {container.id}", f"container with id {container.id} is not running", "start it"
        )
    if not container.cgroup:
        raise HostError("watch", f"container {container.id}", "it was made without groups", "nothing counts for it")
    hierarchies = read_hierarchies()
    if "stats" in single:
        _emit(container, "stats", hierarchies)
        return 0
    _stream(flags, container, hierarchies, interval)
    return 0


def _emit(container: Container, kind: str, hierarchies: tuple[Hierarchy, ...] = ()) -> None:
    event: dict[str, object] = {"type": kind, "id": container.id}
    if hierarchies:
        event["data"] = read_stats(hierarchies, container.cgroup)
    sys.stdout.write(jsontext.dumps(event) + "\n")
    sys.stdout.flush()


def _watch(flags: Globals, container: Container, hierarchies: tuple[Hierarchy, ...]) -> oom.Watch | None:
    """Listens for OOM; None, with a warning, where the memory controller is not there to listen to."""
    for hierarchy in hierarchies:
        if "memory" in hierarchy.controllers:
            try:
                return oom.watch(hierarchy.path(container.cgroup), hierarchy.version)
            except OSError as error:
                warn(flags, f"no out-of-memory events of container {container.id}: {error.strerror}")
                return None
    warn(flags, f"no out-of-memory events of container {container.id}: this host has no memory controller")
    return None


def _stream(flags: Globals, container: Container, hierarchies: tuple[Hierarchy, ...], interval: float) -> None:
    watch = _watch(flags, container, hierarchies)
    try:
        end = pidfd.open(container.pid, container.start_time)
    except ProcessLookupError:
        return  # it has ended this moment
    following = time.monotonic() + interval
    while True:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        for descriptor, mask in (watch.descriptors() if watch else {}).items():
            poll.register(descriptor, mask)
        ready = poll.poll(max(0.0, following - time.monotonic()) * 1000)
        ended = any(descriptor == end for descriptor, _ in ready)
        if watch and ready:
            time.sleep(SETTLE)
        # At the end too: what ended it may have been the OOM.
        if watch and watch.take():
            _emit(container, "oom")
        if ended:
            return
        if time.monotonic() >= following:
            following += interval
            try:
                _emit(container, "stats", hierarchies)
            except OSError as error:
                if isinstance(error, BrokenPipeError) or error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
                return  # its groups have gone
