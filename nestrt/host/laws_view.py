"""Laws 1 and 7, looked at from outside: where the guest's view begins, and whether it was asked for at all."""

from __future__ import annotations

import os

from nestrt.host.laws_mounts import CgroupMount, below
from nestrt.host.laws_subject import Finding, Key, Process, Subject, key_of

UNKNOWN_REST = "it has more mounts than are read"


def shares(subject: Subject, key: Key) -> bool:
    """Whether a guest's guest has no group of its own in the hierarchy *key*: what its level may not divide they share
    (probe.level.gather)."""
    if not subject.above:
        return False
    own = next((h for h in subject.hierarchies if key_of(h) == key), None)
    return own is None or not os.path.isdir(own.path(subject.limit_group))


def called(key: Key) -> str:
    """A hierarchy's name for people."""
    return ",".join(key) if key else "the v2 tree"


def its_mounts(subject: Subject, process: Process) -> list[CgroupMount]:
    """The guest's own cgroup mounts: before it has pivoted the launching level's are still beside them."""
    return [mount for mount in process.mounts if subject.started or not mount.copied]


def view(subject: Subject, process: Process, roots: dict[Key, str]) -> Finding:
    """Law 1. *roots* are those of its cgroup namespace, as far as they are known (laws_subject.namespace_roots)."""
    remedy = "end it, and start it with a policy that nestrt carries out"
    mounts = its_mounts(subject, process)
    if not subject.policy.virtualize:
        above = [mount for mount in mounts if not subject.inside(mount.root)]
        if above:
            what = f"no policy virtualizes it, and {above[0].target} shows {above[0].root}"
            return Finding("view", False, what, "take the mount of control groups out of it")
        return Finding("view", True, "no policy virtualizes it, and it has no mount of groups above its own")
    wrong = [*_standing(subject, process), *_namespace(subject, process, roots), *_shown(subject, process, mounts)]
    if wrong:
        return Finding("view", False, counted(wrong), remedy)
    unknown = _not_told(subject, process, roots, mounts)
    if unknown:
        return Finding("view", None, unknown, "look as root of the host")
    seen = sum(1 for mount in mounts if mount.root == subject.root)
    return Finding("view", True, f"{len(process.groups)} hierarchies and {seen} mounts begin at {subject.root}")


def counted(wrong: list[str]) -> str:
    """The first of *wrong*, and how many more there are."""
    return wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")


def _standing(subject: Subject, process: Process) -> list[str]:
    wrong = []
    for key, path in process.groups.items():
        waits = subject.waiting and bool(key) and path == subject.limit_group
        shared = shares(subject, key) and below(path, subject.above)
        if not (subject.inside(path) or waits or shared):
            wrong.append(f"process {process.pid} stands in {path} of {called(key)}, not at or below {subject.root}")
    return wrong


def _namespace(subject: Subject, process: Process, roots: dict[Key, str]) -> list[str]:
    if not process.own_cgroup:
        return ["it has no cgroup namespace of its own"]
    wrong = []
    for key, root in roots.items():
        if root != subject.root and not (shares(subject, key) and below(root, subject.above)):
            wrong.append(f"its cgroup namespace begins at {root} of {called(key)}, not at {subject.root}")
    return wrong


def _shown(subject: Subject, process: Process, mounts: list[CgroupMount]) -> list[str]:
    wrong = []
    for mount in mounts:
        shared = shares(subject, mount.key) and below(mount.root, subject.above)
        if not (subject.inside(mount.root) or shared):
            wrong.append(f"its mount {mount.target} shows {mount.root} of {called(mount.key)}")
    # What a guest with CAP_SYS_ADMIN has mounted or unmounted since is its own affair.
    if wrong or (subject.started and process.admin):
        return wrong
    kind, seen = subject.policy.mount, [mount for mount in mounts if not mount.hidden]
    if kind == "none" and seen:
        wrong.append(f"its policy gives it no view, and {seen[0].target} is one")
    if kind == "ro" and any(not mount.read_only for mount in seen):
        place = next(mount.target for mount in seen if not mount.read_only)
        wrong.append(f"its policy makes its view read-only, and {place} is writable")
    if kind != "none" and not seen:
        wrong.append("none of its hierarchies is mounted in it")
    return wrong


def _not_told(subject: Subject, process: Process, roots: dict[Key, str], mounts: list[CgroupMount]) -> str:
    """What keeps the answer from being yes; "" if nothing does."""
    if not process.complete:
        return UNKNOWN_REST
    begun = {mount.key for mount in mounts if mount.root == subject.root}
    for key in process.groups:
        if key not in roots and key not in begun and not shares(subject, key):
            return f"where its cgroup namespace begins in {called(key)} cannot be told"
    return ""


def opt_in(subject: Subject, process: Process) -> Finding:
    """Law 7: a view of its own only where a policy says so."""
    policy = subject.policy
    if policy.virtualize:
        return Finding("opt-in", True, f"policy {policy.source} virtualizes it")
    if process.own_cgroup:
        what = "no policy virtualizes it, and it has a cgroup namespace of its own"
        return Finding("opt-in", False, what, "start it with a policy, or without that namespace")
    return Finding("opt-in", True, "no policy virtualizes it, and it has no view of its own")
