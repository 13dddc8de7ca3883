"""What is to be tried in a guest, and what the outcomes say of the laws. The trials are made by act/trials.py."""

from __future__ import annotations

import errno
import os

from nestrt.controllers.table import settings_for
from nestrt.host.effective import Reader
from nestrt.host.laws_clamp import HANDLE_REMEDY
from nestrt.host.laws_lock import PRIVATE_REMEDY
from nestrt.host.laws_subject import Finding, Process, Subject, key_of, read
from nestrt.host.laws_view import called, counted
from nestrt.kernel import handles
from nestrt.level.limits import Limits
from nestrt.level.units import MAX
from nestrt.plan.groups import delegated, divisible
from nestrt.plan.trials import FRESH, NESTED, NOT_THERE, UNCOVERED, VIEW, Outcome, Place, Trials, Tried

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.laws_subject import Files
    from nestrt.plan.facts import Hierarchy

# How the kernel refuses, and how it says that what was there has gone.
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
GONE = (errno.ENOENT, errno.ENODEV)
# To write what these say would change something, or is refused for what it says.
NOT_AGAIN = ("cpu.weight.nice", "cpuset.cpus.partition")
NO_VALUE = "?"
# A child group costs its parent this much memory, and as much again for each CPU (mem_cgroup_alloc(), percpu counters).
GROUP_BYTES, CPU_BYTES = 1 << 20, 1 << 17
LESS_MEMORY, LESS_PIDS, LESS_QUOTA, LEAST_QUOTA = 1 << 26, 32, 50_000, 1000
WAYS = {
    VIEW: "in its own mount",
    UNCOVERED: "once it has taken the cover off",
    FRESH: "in a mount of its own making",
    NESTED: "from a cgroup namespace nested in its own",
}


def prepare(subject: Subject, process: Process, files: Files) -> tuple[Trials, tuple[str, ...], dict[str, str]]:
    """The trials, the guest root's directories where groups are made, and why none is in others, by hierarchy."""
    places, groups, omitted = [], [], {}
    reader = Reader()
    for h, names in files:
        if names is None:
            continue
        try:
            place = _place(subject, h, names)
        except OSError:
            continue  # it goes away just now
        if delegated(subject.request, h):
            full = _full(h, subject, reader)
            if full:
                omitted[h.name] = full
            else:
                place.make, place.lower = True, _less(h, subject, reader)
                place.controllers = divisible(subject.request, h) if h.version == 2 else ()
                groups.append(h.path(subject.root))
        places.append(place)
    own = process.own_cgroup and not process.initial
    child = f"nestrt-check-{os.urandom(6).hex()}"
    return Trials(tuple(places), child, process.bounding, own), tuple(groups), omitted


def _place(subject: Subject, h: Hierarchy, names: tuple[str, ...]) -> Place:
    root, limit = (os.stat(h.path(group)) for group in (subject.root, subject.limit_group))
    try:
        handle = handles.name(h.path(subject.limit_group))
    except OSError:
        handle = b""
    return Place(
        name=called(key_of(h)),
        version=h.version,
        fstype="cgroup2" if h.version == 2 else "cgroup",
        options=h.options,
        root=(root.st_dev, root.st_ino),
        limit=(limit.st_dev, limit.st_ino),
        handle=handle,
        files=tuple((name, _value(h.path(subject.root, name), name)) for name in names),
    )


def _value(path: str, name: str) -> str:
    """What to write to a limit file so that nothing changes: what it says, one line of it.

    Where that is nothing, or would not do: what no limit file takes (EINVAL). To open one is not
    enough: nsdelegate refuses the write alone.
    """
    if name in NOT_AGAIN:
        return NO_VALUE
    try:
        return read(path).partition("\n")[0].strip() or NO_VALUE
    except OSError:
        return NO_VALUE  # v1's devices.allow cannot be read


def _full(h: Hierarchy, subject: Subject, reader: Reader) -> str:
    """Why no group is made in *h*: it would cost the guest memory that it has not; "" if it would not."""
    if "memory" not in h.controllers:
        return ""
    key = next((key for key in reader.keys(h, subject.root) if key.name == "memory.max"), None)
    limit = reader.limit(h, key, subject.root) if key else None
    if limit is None or not isinstance(limit.effective, int) or limit.effective == MAX:
        return ""
    try:
        rows = dict(line.split(" ", 1) for line in read(h.path(subject.root, "memory.stat")).split("\n") if line)
        prefix = "total_" if h.version == 1 else ""
        cache = sum(int(rows.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))
    except (OSError, ValueError):
        cache = 0
    needed = GROUP_BYTES + CPU_BYTES * (os.cpu_count() or 1)
    return "" if limit.effective - (limit.usage or 0) + cache >= needed else "it has no memory left for a group"


def _less(h: Hierarchy, subject: Subject, reader: Reader) -> tuple[tuple[str, str], ...]:
    """Limits for a child group, lower than the guest's own: (file, value) in the order to write them."""
    values: dict[str, object] = {}
    for key in reader.keys(h, subject.root):
        limit = reader.limit(h, key, subject.root)
        effective = limit.effective if limit else None
        if key.name == "cpuset.cpus" and isinstance(effective, frozenset) and effective:
            values["cpus"] = frozenset([min(effective)])
        for name, field, least, usual in (
            ("memory.max", "memory", 0, LESS_MEMORY),
            ("pids.max", "pids", 1, LESS_PIDS),
            ("cpu.max", "cpu_quota", LEAST_QUOTA, LESS_QUOTA),
        ):
            if key.name == name and isinstance(effective, int):
                values[field] = usual if effective == MAX else max(least, effective // 2)
    names = divisible(subject.request, h)
    settings = settings_for(Limits(**values), names, h.version)  # type: ignore[arg-type]
    return tuple((setting.file, setting.value) for setting in settings if setting.file.partition(".")[0] in names)


def judge(
    subject: Subject, process: Process, trials: Trials, tried: Tried, omitted: dict[str, str]
) -> tuple[Finding, ...]:
    """What the outcomes say of the helper, which is under no system call filter of the guest's."""
    entered = [o for o in tried.outcomes if o.kind == "enter"]
    problem = tried.problem
    if entered:
        problem = f"its namespaces cannot be entered: {os.strerror(entered[0].error)} {entered[0].name}".rstrip()
    found = [
        _judge_view(process, trials, tried),
        _judge_clamp(subject, process, trials, tried),
        _judge_lock(trials, tried),
        *_judge_freedom(subject, trials, tried, omitted),
    ]
    if problem:
        found = [finding for finding in found if finding.holds is not True]
        found += [Finding(law, None, f"not all was tried: {problem}", "try again") for law in ("view", "clamp", "lock")]
    return tuple(found)


def _where(trials: Trials, outcome: Outcome) -> str:
    return trials.places[outcome.place].name if outcome.place >= 0 else ""


def _judge_view(process: Process, trials: Trials, tried: Tried) -> Finding:
    wrong, mounted = [], 0
    for outcome in tried.outcomes:
        place = _where(trials, outcome)
        if outcome.kind == "mount":
            mounted += outcome.error == 0
            if outcome.error and process.admin:
                wrong.append(f"it may not mount {place} itself: {os.strerror(outcome.error)}")
        elif outcome.kind == "root" and outcome.error:
            begins = "at the limit group" if outcome.name == "limit" else "elsewhere"
            wrong.append(f"{place}, mounted by itself, begins {begins}, not at its guest root")
        elif outcome.kind == "above" and outcome.error:
            wrong.append(f"'..' of {place}, mounted by itself, leads out of it")
    if wrong:
        return Finding("view", False, counted(wrong), "end it, and start it with a policy that nestrt carries out")
    return Finding("view", True, f"so do {mounted} new mounts" if mounted else "it may make no mount")


def _judge_clamp(subject: Subject, process: Process, trials: Trials, tried: Tried) -> Finding:
    opened = [o for o in tried.outcomes if o.kind in ("handle", "initial") and o.error == 0]
    if not opened:
        return Finding("clamp", True, "no file handle opens it")
    what = f"a file handle opens {subject.limit_group} of {_where(trials, opened[0])}"
    if opened[0].kind == "initial":
        what = "a file handle opens the host's cgroup namespace"
    if subject.filtered and process.seccomp:
        return Finding("clamp", True, "its system call filter forbids file handles")
    if subject.filtered:
        return Finding("clamp", None, f"{what}, until its system call filter is loaded", "check it once it is started")
    if subject.filtered is None and process.seccomp:
        return Finding("clamp", None, f"{what}, unless its system call filter forbids that", HANDLE_REMEDY)
    return Finding("clamp", False, what, HANDLE_REMEDY)


def _judge_lock(trials: Trials, tried: Tried) -> Finding:
    writes = [o for o in tried.outcomes if o.kind == "write" and o.error not in (NOT_THERE, *GONE)]
    passed = [o for o in writes if o.error not in REFUSED]
    for way, text in WAYS.items():
        these = [o for o in passed if o.how == way]
        if these:
            more = len({(o.place, o.name.rpartition("/")[2]) for o in passed}) - 1
            name = these[0].name.rpartition("/")[2]
            what = f"{name} of its root in {_where(trials, these[0])} can be written {text}"
            what += f" (and {more} more files)" if more else ""
            remedy = "end it, and start it again: covers are made at its start" if way == VIEW else PRIVATE_REMEDY
            return Finding("lock", False, f"{what}: what it is shown can be changed, not what it gets", remedy)
    missed = [o for o in tried.outcomes if o.kind == "view"]
    if missed and not writes:
        what = f"its mount {missed[0].name} is not tried: {os.strerror(missed[0].error)}"
        return Finding("lock", None, what, "look at its mounts")
    nested = any(o.kind == "nest" and o.error == 0 for o in tried.outcomes)
    ways = ", also from a nested cgroup namespace" if nested else ""
    return Finding("lock", True, f"{len(writes)} writes refused{ways}" if writes else "it reaches none of them")


def _judge_freedom(subject: Subject, trials: Trials, tried: Tried, omitted: dict[str, str]) -> list[Finding]:
    wanted = [number for number, place in enumerate(trials.places) if place.make]
    # It enables v2's controllers by itself then (laws_lock._not_enabled).
    later = {place.version for place in trials.places} == {1, 2} or subject.policy.start_in == "."
    wrong, made, lowered = [], [], 0
    unknown = [f"no group is made in {name or 'v2'}: {why}" for name, why in omitted.items()]
    for outcome in tried.outcomes:
        place, reason = _where(trials, outcome), os.strerror(max(outcome.error, 0))
        if outcome.kind == "make":
            made.append(outcome.place)
            if outcome.error == errno.EAGAIN:
                unknown.append(f"no group is made in {place}: it has as many, or as deep, as it may have")
            elif outcome.error:
                wrong.append(f"it cannot make a group in {place}: {reason}")
        elif outcome.kind == "lower":
            lowered += outcome.error == 0
            if outcome.error and outcome.error not in GONE:
                wrong.append(f"it cannot set {outcome.name} of a group in {place}: {reason}")
            elif outcome.error and not later:
                wrong.append(f"its groups in {place} have no {outcome.name}")
        elif outcome.kind == "enable" and outcome.error and not (later and outcome.error in GONE):
            wrong.append(f"it cannot enable {outcome.name} below a group in {place}: {reason}")
        elif outcome.kind == "remove" and outcome.error:
            wrong.append(f"it cannot remove a group in {place}: {reason}")
    names = [trials.places[number].name for number in wanted if number not in made]
    unknown += [f"no group is made in {name}: nothing of it is mounted" for name in names]
    found = []
    if wrong:
        found.append(Finding("freedom", False, counted(wrong), "end it, and start it again"))
    if unknown and not tried.problem:
        found.append(Finding("freedom", None, counted(unknown), "try again when it has room"))
    if not found and wanted:
        found.append(Finding("freedom", True, f"{len(made)} groups made and removed, {lowered} limits set"))
    return found
