"""Whether the laws hold for a running guest of any runtime, by what the launching level can see.

Nothing is entered or written here: /proc of the first process, its mounts, and the groups are
read. What only trying tells is in host/laws_trials.py and act/trials.py. For the hooks that are run
at every start this is 2 ms on Linux 6.18 with ten hierarchies.
"""

from __future__ import annotations

import os

from nestrt.host.laws_clamp import clamp, subset
from nestrt.host.laws_lock import freedom, limit_files_of, lock
from nestrt.host.laws_mounts import cgroup_mounts
from nestrt.host.laws_subject import HOSTS_MARK, LAWS, Finding, Key, Process, Subject, look_at, namespace_roots
from nestrt.host.laws_view import counted, opt_in, view
from nestrt.host.marks import Mark, parse
from nestrt.kernel import pidfd
from nestrt.level.policy import Policy
from nestrt.plan.facts import Hierarchy
from nestrt.probe.facts import primary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.laws_subject import Files

AGAIN = "end it, and start it again"


def read_back(
    pid: int,
    limit_group: str,
    hierarchies: tuple[Hierarchy, ...],
    policy: Policy,
    started: bool = True,
    *,
    waiting: bool | None = None,
    mark: str = HOSTS_MARK,
    every_device: bool = False,
    exact: bool = False,
    covered: bool = False,
) -> tuple[Finding, ...]:
    """What can be seen of every law for the guest whose first process is *pid* and whose limits stand on *limit_group*.

    *policy* is what it was to get, *mark* the attribute of the launching level's marks (Facts.mark). Before its
    first process has pivoted (*started* False: createRuntime) its mounts lie below its root filesystem's path, beside
    the host's own, which the caller must see too; locks by covers are then left out, being still to come, unless
    *covered*.
    *waiting* (by default: not *started*): on v1 it may still stand in the limit group. *every_device*: the
    bundle's document allows all devices. *exact* asks the cgroup namespace itself where it begins: 0.1 ms, but on
    Python before 3.12 that loads ctypes; else new mounts of it say so.
    Raises OSError where *pid* is gone or may not be looked at.
    """
    return look(
        Subject(
            pid=pid,
            limit_group=limit_group,
            hierarchies=hierarchies,
            policy=policy,
            started=started,
            waiting=not started if waiting is None else waiting,
            mark=mark,
            every_device=every_device,
            exact=exact,
            covered=covered,
        )
    )


def look(subject: Subject) -> tuple[Finding, ...]:
    """read_back() of a Subject."""
    return judge(subject, process_of(subject))


def process_of(subject: Subject) -> Process:
    """The first process with its mounts. Raises OSError."""
    process = look_at(subject.pid)
    process.mounts, process.complete = cgroup_mounts(subject.pid, tuple(process.groups), copies=not subject.started)
    return process


def judge(subject: Subject, process: Process) -> tuple[Finding, ...]:
    """What *process*, looked at, says of the laws for *subject*."""
    subject.waiting = subject.waiting and subject.limit_group in process.groups.values()
    roots, files = known_roots(subject, process), limit_files_of(subject)
    found = [
        view(subject, process, roots),
        *clamp(subject, process, roots, files),
        *lock(subject, process, files),
        freedom(subject, process, files),
        subset(subject),
        *marked(subject, files),
        opt_in(subject, process),
    ]
    return tuple(sorted(found, key=lambda finding: LAWS.index(finding.law)))


def known_roots(subject: Subject, process: Process) -> dict[Key, str]:
    """Where its cgroup namespace begins: asked for if that is to be *exact* or no mount tells; else {}."""
    begun = {mount.key for mount in process.mounts if mount.root == subject.root}
    if process.own_cgroup and (subject.exact or not begun.issuperset(process.groups)):
        return namespace_roots(subject.pid)
    return {}


def marked(subject: Subject, files: Files) -> list[Finding]:
    """Law 6, as far as it is the mark: whose word it is, and that it tells of the guest. Law 8: it is on every
    group that would have to be found."""
    found: dict[str, Mark] = {}
    missing = []
    for h, _ in files:
        try:
            found[h.mountpoint] = parse(os.getxattr(h.path(subject.limit_group), subject.mark), subject.mark)
        except OSError:
            missing.append(h.path(subject.limit_group))
    first = primary(subject.hierarchies)
    whole = found.get(first.mountpoint) or next((mark for mark in found.values() if mark.whole), None)
    wrong = []
    if whole is None:
        wrong.append(f"{subject.limit_group} has no {subject.mark}: it is not the launching level's word")
    else:
        wrong += [f"its mark: {problem}" for problem in whole.problems]
        # What a guest says of its guests' processes is counted in its own pid namespace.
        named = subject.first and whole.pid > 0 and not subject.above
        if named and (whole.pid, whole.start) != (subject.pid, pidfd.start_time(subject.pid)):
            wrong.append(f"its mark names process {whole.pid} as the first, and that is another one by now")
    sight = Finding("sight", True, f"{subject.mark} on {subject.limit_group}")
    if wrong:
        sight = Finding("sight", False, counted(wrong), AGAIN)
    lost = [f"{path} has no mark" for path in missing]
    lost += [f"the mark below {place} is another guest's" for place, m in found.items() if whole and m.id != whole.id]
    kept = Finding("nothing lost", True, f"its mark is on {len(found)} groups, where delete and gc look")
    if lost:
        kept = Finding("nothing lost", False, counted(lost), "remove its groups by hand when it has ended")
    return [sight, kept]


def by_law(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """One finding for each law: what does not hold before what is not known, and that before what holds."""
    found = []
    for law in LAWS:
        mine = [finding for finding in findings if finding.law == law]
        for holds in (False, None, True):
            same = [finding for finding in mine if finding.holds is holds]
            if same:
                what = "; ".join(dict.fromkeys(finding.what for finding in same))
                found.append(Finding(law, holds, what, next((f.remedy for f in same if f.remedy), "")))
                break
    return tuple(found)
