"""Laws 2 and 5, looked at from outside: the limits stand above the view, and are no looser than what it shows."""

from __future__ import annotations

import os

from nestrt.host.effective import Reader
from nestrt.host.laws_mounts import below
from nestrt.host.laws_subject import CAP_DAC_READ_SEARCH, HOSTS_MARK, Finding, Key, Process, Subject, key_of, read
from nestrt.host.laws_view import UNKNOWN_REST, called, counted, its_mounts, shares
from nestrt.level.units import MAX, format_cpus, format_quota, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.keys import Key as LimitKey
    from nestrt.host.keys import Value
    from nestrt.host.laws_subject import Files
    from nestrt.plan.facts import Hierarchy

CAPS = (("cgroup.max.descendants", "max_groups"), ("cgroup.max.depth", "max_depth"))
# What a policy limits, by the key that host.keys gives it.
ASKED = {
    "memory.max": "memory",
    "pids.max": "pids",
    "cpuset.cpus": "cpus",
    "cpuset.mems": "mems",
    "cpu.max": "cpu_quota",
}
# v1's word for all devices.
EVERYTHING = "a *:* rwm"
AGAIN = "end it, and start it with a policy that nestrt carries out"
HANDLE_REMEDY = "end it; give it a user namespace, or a filter that refuses open_by_handle_at(2)"
KERNELS = "the kernel keeps all else within"


def clamp(subject: Subject, process: Process, roots: dict[Key, str], files: Files) -> list[Finding]:
    """Law 2. *files* are the limit files of the guest root (laws_lock.limit_files_of)."""
    group, found = subject.limit_group, []
    reached = [*_reached(subject, process, roots), *_owned(subject, process, files)]
    reader, loose, compared = Reader(), [], 0
    for h, names in files:
        if names is None:
            reached.append(f"{called(key_of(h))} has no group {subject.root}, above which limits would stand")
            continue
        wrong, count = _looser(subject, reader, h)
        loose += [*wrong, *_caps(subject, h)]
        compared += count
    if reached:
        found.append(Finding("clamp", False, counted(reached), AGAIN))
    if loose:
        found.append(Finding("clamp", False, counted(loose), f"set the limits of {group} again"))
    # The filter of one that waits is still to come.
    if subject.started and not subject.waiting and not process.seccomp and opens_handles(process):
        # One that is created, and not started, may have to load it still.
        what = f"CAP_DAC_READ_SEARCH opens {group} by file handle, and no filter forbids that"
        found.append(Finding("clamp", None if subject.filtered else False, what, HANDLE_REMEDY))
    if not found and not process.complete:
        found.append(Finding("clamp", None, UNKNOWN_REST, "end it"))
    if not found:
        told = f", {compared} of them no looser than shown and asked for" if compared else ""
        found.append(Finding("clamp", True, f"limits stand on {group}, in no mount of it{told}"))
    return found


def opens_handles(process: Process) -> bool:
    """Whether nothing but a system call filter keeps its root from opening groups by file handle."""
    return bool(not process.own_user and process.bounding >> CAP_DAC_READ_SEARCH & 1)


def _reached(subject: Subject, process: Process, roots: dict[Key, str]) -> list[str]:
    """By which ways the guest reaches the group that bounds it."""
    group, mounts = subject.limit_group, its_mounts(subject, process)
    wrong = [f"its mount {mount.target} reaches {group}" for mount in mounts if below(group, mount.root)]
    if process.own_cgroup:
        wrong += [
            f"it can mount {called(key)} from {root} on, {group} with it"
            for key, root in roots.items()
            if below(group, root) and process.admin
        ]
    elif process.admin and not process.own_user:
        wrong.append("it shares the cgroup namespace of the level that looks, and may mount what that sees")
    return wrong


def _owned(subject: Subject, process: Process, files: Files) -> list[str]:
    """What of the limit group and the groups above belongs to an id that the guest has."""
    if not process.private(subject.owner):
        return []  # ids are no boundary there; that no mount reaches it is
    wrong = []
    for h, names in files:
        group, paths = subject.limit_group, [h.path(subject.limit_group, name) for name in names or ()]
        while group and group != subject.above:
            paths += [h.path(group), h.path(group, "cgroup.procs")]
            group = group.rpartition("/")[0]
        for path in paths:
            try:
                if process.owns(os.stat(path, follow_symlinks=False)):
                    wrong.append(f"{path} belongs to an id that it has")
            except OSError:
                continue
    return wrong


def is_looser(limit: Value | None, than: Value) -> bool:
    """Whether *limit* allows more than the limit *than*, which may be none (MAX, {}, an empty set)."""
    if isinstance(than, frozenset):
        return bool(than) and not (isinstance(limit, frozenset) and limit and limit <= than)
    if isinstance(than, dict):
        given = limit if isinstance(limit, dict) else {}
        return any(is_looser(given.get(key, MAX), value) for key, value in than.items())
    return than != MAX and not (isinstance(limit, int) and limit != MAX and limit <= than)


def text_of(key: LimitKey, value: Value | None) -> str:
    """A limit for people."""
    if isinstance(value, frozenset):
        return format_cpus(value) or "all"
    if isinstance(value, dict):
        return " ".join(f"{name}={number}" for name, number in value.items()) or "max"
    if value is None or value == MAX:
        return "max"
    return {"bytes": format_size, "us": format_quota}.get(key.unit, str)(value)


def _looser(subject: Subject, reader: Reader, h: Hierarchy) -> tuple[list[str], int]:
    """Where the limit group allows more than the guest root shows or the policy says, and how many were compared."""
    wrong, count = [], 0
    for key in reader.keys(h, subject.root):
        wanted = getattr(subject.policy.limits, ASKED.get(key.name, ""), None)
        for what, than in (("it is shown", reader.value(h, key, subject.root)), ("its policy says", wanted)):
            if than is None or than == MAX or not than and not isinstance(than, int):
                continue
            count += 1
            if not is_looser(reader.value(h, key, subject.limit_group), than):
                continue
            # The group itself has more, or none: one above it may bind all the same.
            found = reader.limit(h, key, subject.limit_group)
            allowed = found.effective if found else None
            if is_looser(allowed, than):
                bound = f"{subject.limit_group} allows {key.name} {text_of(key, allowed)}"
                wrong.append(f"{bound}, and {what} {text_of(key, than)}")
    return wrong, count


def _caps(subject: Subject, h: Hierarchy) -> list[str]:
    """The caps on groups; v1 has none (README, "What holds where")."""
    wrong = []
    for file, field in CAPS if h.version == 2 else ():
        most = getattr(subject.policy, field)
        try:
            text = read(h.path(subject.limit_group, file)).strip()
        except OSError:
            continue
        if most > 0 and (not text.isdigit() or int(text) > most):
            wrong.append(f"{file} of {subject.limit_group} is {text}, and its policy says {most}")
    return wrong


def subset(subject: Subject) -> Finding:
    """Law 5, as far as the kernel does not keep it by itself: device rules bind the limit group."""
    remedy = "end it, and start it with device rules"
    v1 = next((h for h in subject.hierarchies if h.version == 1 and "devices" in h.controllers), None)
    if v1 is not None:
        if shares(subject, key_of(v1)):
            return Finding("subset", True, "it has the devices of its level")
        try:
            listed = read(v1.path(subject.limit_group, "devices.list")).split("\n")
        except OSError as error:
            return Finding("subset", False, f"{subject.limit_group} has no device rules: {error.strerror}", remedy)
        if EVERYTHING in listed and not (subject.every_device or _every(subject)):
            return Finding("subset", False, f"{subject.limit_group} allows every device ({EVERYTHING})", remedy)
        count = sum(1 for line in listed if line)
        return Finding("subset", True, f"{count} device rules on {subject.limit_group}; {KERNELS}")
    return _programs(subject, remedy)


def _every(subject: Subject) -> bool:
    rules = subject.policy.limits.devices or ()
    return any(rule.type == "a" and rule.major is None and rule.access == "rwm" for rule in rules)


def _programs(subject: Subject, remedy: str) -> Finding:
    tree = next((h for h in subject.hierarchies if h.version == 2), None)
    if tree is None:
        return Finding("subset", None, "no hierarchy has device rules", "mount the devices controller or the v2 tree")
    from nestrt.kernel import bpf  # only where device rules are programs

    path = tree.path(subject.limit_group)
    try:
        own = bpf.query(path)
        inherited = () if own else bpf.query(path, effective=True)
    except OSError as error:
        if subject.mark != HOSTS_MARK:
            # From inside a user namespace nobody sees, adds or takes off any.
            return Finding("subset", True, f"it has the devices of its level; {KERNELS}")
        return Finding("subset", None, f"device programs of {path} are not told: {error.strerror}", "look as root")
    if own or inherited:
        where = subject.limit_group if own else f"groups above {subject.limit_group}"
        return Finding("subset", True, f"a device program on {where}; {KERNELS}")
    if subject.every_device or _every(subject):
        return Finding("subset", True, f"its policy allows every device; {KERNELS}")
    return Finding("subset", False, f"no device program on {subject.limit_group}: it may open every device", remedy)
