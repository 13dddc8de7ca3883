"""Guests under systemd's cgroup driver: their limit group is a scope.

``nestrt wrap --systemd-cgroup`` asks systemd for it (start), and the runtime never hears of systemd. A runtime that
podman's hooks are about has its own flags: there the scope is crun's, and its limits come in createRuntime (settle).
"""

from __future__ import annotations

import os
import time

from nestrt.act import holder, records
from nestrt.act.groups import Worker, hold_parents
from nestrt.act.scope import Manager
from nestrt.act.unit import Scope, scope_of
from nestrt.cli import _plugin
from nestrt.errors import HostError, InputError, NestrtError, StateError
from nestrt.kernel.sdbus import is_users
from nestrt.plan import plugin as plan
from nestrt.plan.request import GUEST_ROOT
from nestrt.plan.rewrite import text_of
from nestrt.plan.scope import REGISTER, below_scope, cgroups_path_of, lockable, require_plain, require_v2
from nestrt.plan.systemd import parse_path, properties, settled
from nestrt.plan.systemd_text import Property
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.cli._plugin import Guest
    from nestrt.cli._settle import State
    from nestrt.oci.model import Spec
    from nestrt.oci.resources import DeviceRule
    from nestrt.plan.facts import Hierarchy

HUGE_PAGES = "/sys/kernel/mm/hugepages"
PREFIX, KIB = "hugepages-", "kB"


def find(spec: Spec, id: str, rules: tuple[DeviceRule, ...], group: str, made_later: bool) -> Scope:
    """The scope that *spec* names, or *group* where an earlier rewrite has noted that.

    *made_later*: by the runtime, so that systemd is not asked. Raises InputError, HostError.
    """
    require_plain(spec.annotations)
    if is_users():
        raise HostError(
            "give a policy to",
            f"container {id or spec.cgroups_path}",
            "its scope is made by a user's own systemd",
            "let root's engine start it, or let its cgroup manager be cgroupfs",
        )
    if group:
        spec = replace(spec, cgroups_path=cgroups_path_of(group))
    unit = parse_path(spec.cgroups_path, id)
    if unit.is_slice:
        raise InputError(
            "give a policy to",
            f"container {id or spec.cgroups_path}",
            f"{unit.name} is a slice, which systemd divides itself",
            'name a scope in linux.cgroupsPath: "slice:prefix:name"',
        )
    if made_later:
        return Scope(unit.name, unit.group(), (), replace(spec, resources=settled(spec.resources)))
    return scope_of(spec, id, rules)


def vacate(record: records.Record, guest: Guest) -> tuple[Hierarchy, ...]:
    """Have an earlier start's scope forgotten, nothing living in it; the hierarchies in which groups are not systemd's.

    Raises HostError, NestrtError (systemd's own reason).
    """
    if record.text("unit") and record.text("group") == guest.bundle.cgroup:
        holder.stop(record.text("unit"), guest.bundle.cgroup, record.text("id"))
    return holder.elsewhere(guest.facts.hierarchies)


def start(guest: Guest, record: records.Record) -> None:
    """Make the scope around a process that holds it; *record* says of both.

    Raises StateError (it is there), HostError, NestrtError (systemd's own reason), KernelError.
    """
    scope, hierarchies = guest.scope, guest.facts.hierarchies
    assert scope is not None
    pid, began = holder.hold()
    record.values.update(unit=scope.name, holder=pid, holder_start=began)
    record.save()
    about = Property("Description", "s", f"nestrt guest {guest.name} {record.text('id')}")  # holder.stop() looks for it
    with Manager(False) as manager:
        manager.start(scope.name, (*scope.properties, about), pid)
    if not any(path == scope.cgroup for path in groups_of(pid).values()):
        raise NestrtError(
            "start",
            f"unit {scope.name}",
            f"systemd has not made {scope.cgroup} for it",
            f"see: systemctl show -p ControlGroup {scope.name}",
        )
    holder.stand_aside(hierarchies, scope.cgroup, pid)


def groups_of(pid: int) -> dict[str, str]:
    """The groups that *pid* is in by the names of /proc/PID/cgroup; {} where it has ended."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return {}
    return {names: path for _, names, path in rows}


# --- podman's hooks: the runtime makes the scope --------------------------------------------------------


def promise(guest: Guest, key: str, values: dict[str, object]) -> tuple[str, records.Record]:
    """For precreate: the document, and a record, locked, by which createRuntime knows that the limits are to come.

    Nothing else is made. Raises HostError, InputError.
    """
    require_v2(guest.facts.hierarchies, guest.name)
    guest = _plugin.with_broker(guest)
    found = records.open_record(records.key(key), make=True)
    assert found is not None
    try:
        files = {h.name: lockable(h, page_sizes()) for h in guest.facts.hierarchies}
        text = text_of(below_scope(guest.document, guest.spec, _plugin.terms(guest, files, found.name)))
        found.values = {
            "group": guest.bundle.cgroup,
            "name": guest.name,
            "id": os.urandom(8).hex(),
            "made": False,
            "bundle": "",
            "created": int(time.time()),
            "later": True,
            **values,
        }
        found.save()
    except BaseException:
        found.forget()
        raise
    return text, found


def page_sizes() -> tuple[str, ...]:
    """The sizes of huge pages as control files have them: mem_fmt() of mm/hugetlb_cgroup.c."""
    found = []
    try:
        names = os.listdir(HUGE_PAGES)
    except OSError:
        return ()
    for name in names:
        number = name.removeprefix(PREFIX).removesuffix(KIB)
        if not number.isdigit():
            continue
        size, units = int(number), ["KB", "MB", "GB"]
        while size >= 1024 and len(units) > 1:
            size, units = size // 1024, units[1:]
        found.append(f"{size}{units[0]}")
    return tuple(found)


def settle(record: records.Record, state: State, policy_name: str) -> None:
    """For createRuntime: put onto the scope what the limit group of others has had before their runtime was called.

    systemd is told, too: on a daemon-reload it writes its own properties to the scope's files.

    The first process waits for this hook. Raises HostError where the runtime has not put it below the scope: then
    nothing is the guest's, and the record goes.
    """
    group, name = record.text("group"), record.text("name")
    where = groups_of(state.pid).get("", "") if state.pid else ""
    if where != f"{group}/{GUEST_ROOT}":
        record.forget()
        raise HostError(
            "settle",
            f"guest {name}",
            f"its runtime has put it into {where or 'no group'}, not below its scope, as only crun does",
            f'{REGISTER}, or cgroup_manager = "cgroupfs"',
        )
    from nestrt.cli.hook import read_file

    path = f"{state.bundle}/config.json"
    document, spec = _plugin.read(read_file(path), path)
    guest = _plugin.find(document, spec, "", policy_name, made_later=True)
    if guest is None or guest.bundle.cgroup != group:
        reason = "its config.json is not the one that was rewritten for it"
        raise StateError("settle", f"guest {name}", reason, "start the container again")
    created, scope = record.number("created"), guest.scope
    bundle = _plugin.with_origin(guest.bundle, record)
    assert scope is not None
    with Manager(False) as manager:
        # What it was not told (by crun 1.8: memory and pids) it takes away again.
        manager.set_properties(scope.name, properties(scope.spec.resources, True, manager.version(), bundle.rules))
    worker = Worker(name)
    try:
        hold_parents(worker)
        worker.run(plan.prepare(bundle, guest.facts, record.text("id"), created))
    finally:
        worker.release()
    record.values.update(_plugin.later(bundle, guest.facts, record.text("id"), created, parked=False))
    record.values.update(bundle=state.bundle, unit=scope.name)
    record.save()
