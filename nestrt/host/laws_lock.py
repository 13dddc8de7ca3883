"""Laws 3 and 4, looked at from outside: what the guest may write of its root, and below it."""

from __future__ import annotations

import os

from nestrt.controllers.names import expand
from nestrt.controllers.table import limit_files
from nestrt.host.laws_mounts import CgroupMount
from nestrt.host.laws_subject import Finding, Process, Subject, key_of, read
from nestrt.host.laws_view import UNKNOWN_REST, called, counted, its_mounts, shares
from nestrt.plan.groups import V1_DELEGATE, delegated, divisible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.laws_subject import Files
    from nestrt.plan.facts import Hierarchy

TAKE_OFF = "the guest has CAP_SYS_ADMIN, and can take covers off or mount the hierarchy afresh"
PRIVATE_REMEDY = "start it with a user namespace that has ids of its own, or without CAP_SYS_ADMIN"


def limit_files_of(subject: Subject) -> Files:
    """The limit files that the guest root really has."""
    found: Files = []
    for h in subject.hierarchies:
        if not shares(subject, key_of(h)):
            try:
                listing = sorted(os.listdir(h.path(subject.root)))
            except OSError:
                found.append((h, None))
                continue
            found.append((h, expand(limit_files(h.version, h.controllers), listing)))
    return found


def lock(subject: Subject, process: Process, files: Files) -> list[Finding]:
    """Law 3; nothing before the covers are made where covers lock."""
    if process.private(subject.owner):
        return [_by_owner(subject, process, files)]
    if not (subject.started or subject.covered):
        return []
    mounts = its_mounts(subject, process)
    wrong = [line for h, names in files for line in _uncovered(subject, mounts, h, names or ())]
    if wrong:
        return [Finding("lock", False, counted(wrong), "end it, and start it again: covers are made at its start")]
    if not process.complete:
        return [Finding("lock", None, UNKNOWN_REST, "end it")]
    covers = sum(1 for mount in mounts if mount.read_only and mount.root.startswith(subject.root + "/"))
    what = f"{covers} covers on the limit files" if covers else "nothing in it mounts them writable"
    if process.admin and subject.policy.virtualize:
        return [Finding("lock", None, f"{what}; {TAKE_OFF}", PRIVATE_REMEDY)]
    return [Finding("lock", True, what)]


def _by_owner(subject: Subject, process: Process, files: Files) -> Finding:
    wrong, count = [], 0
    for h, names in files:
        for name in names or ():
            path = h.path(subject.root, name)
            try:
                count += 1
                if process.owns(os.stat(path, follow_symlinks=False)):
                    wrong.append(f"{path} belongs to an id that it has")
            except OSError:
                continue
    if wrong:
        return Finding("lock", False, counted(wrong), "give the files back to root, or start it again")
    return Finding("lock", True, f"{count} limit files belong to ids that it has not")


def _uncovered(subject: Subject, mounts: list[CgroupMount], h: Hierarchy, names: tuple[str, ...]) -> list[str]:
    key, wrong = key_of(h), []
    mine = [mount for mount in mounts if mount.key == key and not mount.hidden]
    # crun makes binds read-only last, after its createRuntime hooks: until then it is enough that they are there.
    covers = {mount.target: mount.root for mount in mine if mount.read_only or not subject.started}
    for mount in mine:
        if mount.read_only:
            continue
        if mount.root == subject.root:
            for name in names:
                if covers.get(f"{mount.target}/{name}") != f"{subject.root}/{name}":
                    wrong.append(f"{mount.target}/{name} is writable")
        elif subject.started and mount.root.rpartition("/") in [(subject.root, "/", name) for name in names]:
            wrong.append(f"{mount.target} is writable, and is {mount.root} of {called(key)}")
    return wrong


def freedom(subject: Subject, process: Process, files: Files) -> Finding:
    """Law 4: files handed over, controllers enabled, v1 cpusets filled."""
    request = subject.request
    given = [h for h, _ in files if delegated(request, h)]
    if subject.locked:
        return Finding("freedom", True, "it is locked, until nestrt unlock gives its groups back")
    if not given:
        return Finding("freedom", True, "its policy gives it nothing to divide")
    wrong = []
    for h in given:
        wrong += [*_not_owned(subject, process, h), *_not_enabled(subject, h), *_not_filled(subject, h)]
    if wrong:
        return Finding("freedom", False, counted(wrong), "end it, and start it again")
    return Finding("freedom", True, f"it may divide in {len(given)} hierarchies")


def _not_owned(subject: Subject, process: Process, h: Hierarchy) -> list[str]:
    owner = process.root_uid if process.own_user else subject.owner
    wrong = []
    for name in ("", *(V1_DELEGATE if h.version == 1 else ("cgroup.procs", "cgroup.subtree_control"))):
        path = h.path(subject.root, name)
        try:
            if os.stat(path, follow_symlinks=False).st_uid != owner:
                wrong.append(f"{path} is not its root's")
        except OSError as error:
            wrong.append(f"{path}: {error.strerror}")
    return wrong


def _not_enabled(subject: Subject, h: Hierarchy) -> list[str]:
    """v2 controllers that the policy lets it divide, and that its root or the children of its root lack.

    A guest that starts in its root (systemd) enables them itself. So does a guest of another runtime on a hybrid
    host, whose root must take what the runtime adds (plan.plugin.settle): no child's controllers are asked for there.
    """
    if h.version == 1:
        return []
    wanted = set(divisible(subject.request, h))
    groups = [subject.limit_group]
    hybrid = any(other.version == 1 for other in subject.hierarchies)
    if subject.policy.start_in != "." and not hybrid:
        groups.append(subject.root)
    wrong = []
    for group in groups:
        try:
            missing = wanted.difference(read(h.path(group, "cgroup.subtree_control")).split())
        except OSError as error:
            wrong.append(f"{h.path(group)}: {error.strerror}")
            continue
        if missing:
            wrong.append(f"{group} has not enabled {' '.join(sorted(missing))} for its children")
    return wrong


def _not_filled(subject: Subject, h: Hierarchy) -> list[str]:
    if h.version == 2 or "cpuset" not in h.controllers:
        return []
    wrong = []
    for name in ("cpuset.cpus", "cpuset.mems"):
        try:
            if not read(h.path(subject.root, name)).strip():
                wrong.append(f"{h.path(subject.root, name)} is empty")
        except OSError as error:
            wrong.append(f"{h.path(subject.root, name)}: {error.strerror}")
    return wrong
