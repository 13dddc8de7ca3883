"""From a name to a guest whose laws can be looked at: its policy, first process, and what its document says."""

from __future__ import annotations

import os

from nestrt import jsontext
from nestrt.act import containers, remove
from nestrt.act.records import DIRECTORY as RECORDS
from nestrt.act.records import RECORD_LIMIT, parse
from nestrt.cli.engine import STATE_ROOT
from nestrt.cli.hook import read_file
from nestrt.errors import NestrtError, NotFound, StateError
from nestrt.host.laws_subject import Process, Subject, groups_of, read
from nestrt.host.marks import TRUSTED, USER, read_stamp
from nestrt.host.sight import Sight, find
from nestrt.host.walk import Guest
from nestrt.level.limits import from_mark
from nestrt.level.policy import MOUNTS, STARTS, Policy
from nestrt.plan.handles import HANDLES, REFUSING
from nestrt.plan.request import state_file
from nestrt.probe.facts import primary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nestrt.plan.facts import Hierarchy


def named(sight: Sight, word: str) -> tuple[Guest, int]:
    """The guest that *word* means, and the process if it is one's number, else 0.

    A name, or a short id, comes before a pid; no pid is a short id. Raises NotFound, InputError (of several).
    """
    try:
        return find(sight.view, word), 0
    except NotFound:
        if word.isascii() and word.isdigit() and len(word) < 10:
            return _of_process(sight, int(word)), int(word)
        raise


def _of_process(sight: Sight, pid: int) -> Guest:
    """The innermost guest in whose groups *pid* is. Raises NotFound."""
    try:
        paths = set(groups_of(read(f"/proc/{pid}/cgroup")).values())
    except OSError as error:
        raise NotFound(
            "check", f"process {pid}", "there is none of that number", "nestrt ls shows all guests"
        ) from error
    found = None
    for guest in sight.view.everyone():  # outer ones first
        if any(path == guest.path or path.startswith(guest.path + "/") for path in paths):
            found = guest
    if found is None:
        raise NotFound("check", f"process {pid}", "it is in no guest's groups", "nestrt ls shows all guests")
    return found


def subject_of(sight: Sight, guest: Guest, pid: int) -> Subject:
    """*guest*, to be looked at by process *pid*, 0 for its first. Raises StateError where nothing of it runs."""
    first = sight.pid(guest)
    state = sight.state(guest)
    if state == "creating":
        raise StateError("check", f"guest {guest.name}", "it is being started", "try again")
    if not pid:
        pid = first if first > 0 else _oldest(sight, guest)
    if pid <= 0:
        raise StateError("check", f"guest {guest.name}", "it has ended", f"remove it: nestrt delete {guest.name}")
    outer = next((other for other in sight.view.everyone() if any(one is guest for one in other.guests)), None)
    first_hierarchy = primary(sight.view.hierarchies)
    theirs = guest.claim and guest.owner != 0
    owner = guest.owner if theirs else 0
    if outer is not None:
        try:
            owner = os.stat(first_hierarchy.path(outer.root)).st_uid
        except OSError:
            owner = guest.owner
    host = TRUSTED if sight.view.level == 0 and os.geteuid() == 0 else guest.mark.attribute
    record = _record(guest, first_hierarchy)
    document = _document(guest, record)
    return Subject(
        pid=pid,
        limit_group=guest.path,
        hierarchies=sight.view.hierarchies,
        policy=policy_of(guest, read_stamp(first_hierarchy.path(guest.root))),
        mark=USER if outer is not None or theirs else host,
        above=outer.root if outer is not None else "",
        owner=owner,
        every_device=record.get("every_device") is True or allows_every_device(document),
        exact=True,
        first=pid == first,
        inner=guest.mark.root,
        locked=guest.mark.locked or any(one.mark.locked for one in _around(sight, guest)),
        filtered=is_filtered(guest, document, not record),
    )


def _around(sight: Sight, guest: Guest) -> list[Guest]:
    return [one for one in sight.view.everyone() if guest.path.startswith(one.path + "/")]


def _oldest(sight: Sight, guest: Guest) -> int:
    running = [process for process in sight.processes(guest) if process.pid > 0 and process.start >= 0]
    return min(running, key=lambda process: (process.start, process.pid)).pid if running else -1


def is_waiting(subject: Subject, process: Process) -> bool:
    """Whether the first process is created and not started: on v1 it then waits above its view
    (plan.container.waits_above), which is there already."""
    v1 = {key for key, path in process.groups.items() if key and path == subject.limit_group}
    begun = {mount.key for mount in process.mounts if mount.root == subject.root}
    return bool(v1) and v1 <= begun


def policy_of(guest: Guest, stamp: dict[str, Any]) -> Policy:
    """The policy of a guest, as far as its mark and its root's *stamp* tell: the host's word where the mark is."""
    mark = guest.mark
    view = mark.view or {}
    given = view.get("controllers")
    partition = stamp.get("partition")
    divides = {key: value is not False for key, value in partition.items()} if isinstance(partition, dict) else {}
    mount, start = view.get("mount"), view.get("start_in")
    return Policy(
        virtualize=mark.virtualize,
        mount=mount if mount in MOUNTS else "rw",
        controllers=tuple(name for name in given if isinstance(name, str)) if isinstance(given, list) else None,
        start_in=start if start in STARTS else "init",
        divide_cpu=divides.get("cpu", True),
        divide_memory=divides.get("memory", True),
        divide_pids=divides.get("pids", True),
        divide_io=divides.get("io", True),
        divide_devices=divides.get("devices", True),
        max_groups=max(mark.max_groups, 0),
        max_depth=max(mark.max_depth, 0),
        limits=from_mark(mark.limits or {}, errors=[]),
        source=mark.policy or "default",
    )


def _record(guest: Guest, hierarchy: Hierarchy) -> dict[str, Any]:
    """What the hooks for other runtimes have noted of the guest (act/records.py); {} for one of nestrt's own.

    It is not locked, and may be half-written.
    """
    name = remove.read_mark(hierarchy, guest.path).get("record")
    if guest.claim or not isinstance(name, str) or "/" in name:
        return {}
    try:
        with open(f"{RECORDS}/{name}", "rb") as file:
            value = parse(file.read(RECORD_LIMIT))
    except OSError:
        return {}
    return value if value.get("group") == guest.path else {}


def _document(guest: Guest, record: dict[str, Any]) -> dict[str, Any]:
    """The bundle's document, of nestrt's own containers and of those with a *record*; {} where there is none."""
    try:
        if record:
            text = read_file(f"{record['bundle']}/config.json").decode("utf-8", "replace")
        else:
            container = containers.load(STATE_ROOT, guest.mark.name)
            if guest.claim or container.cgroup != guest.path:
                return {}
            text = container.config()
        value = jsontext.loads(text)
    except (NestrtError, OSError, ValueError, LookupError, TypeError):
        return {}
    return value if isinstance(value, dict) else {}


def _part(document: dict[str, Any], *keys: str) -> Any:
    value: Any = document
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def allows_every_device(document: dict[str, Any]) -> bool:
    """Whether linux.resources.devices, of which the last that matches decides, ends with all allowed."""
    allowed = False
    for rule in _part(document, "linux", "resources", "devices") or ():
        if isinstance(rule, dict) and rule.get("type") in (None, "", "a") and rule.get("access") == "rwm":
            allowed = rule.get("allow") is True
    return allowed


def is_filtered(guest: Guest, document: dict[str, Any], own: bool) -> bool | None:
    """Whether a system call filter is to forbid the guest open_by_handle_at(2); None where that is not known.

    *own*: *document* is of one of nestrt's own containers. What a filter says cannot be read without stopping the
    process that has it: so who has it loaded is asked.
    """
    if os.path.lexists(state_file(guest.mark.name)) and not guest.claim:
        return True  # launch loads one wherever capabilities would open a handle
    if not document:
        return None
    if own:
        return True  # so does create
    profile = _part(document, "linux", "seccomp")
    if not isinstance(profile, dict):
        return False
    refused = profile.get("defaultAction") in REFUSING
    for entry in profile.get("syscalls") or ():
        if isinstance(entry, dict) and HANDLES in (entry.get("names") or ()):
            refused = entry.get("action") in REFUSING
    return refused
