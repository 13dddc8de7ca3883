"""What hooks and ``wrap`` share: from a document to a guest whose limit group is there before its runtime is called."""

from __future__ import annotations

import os
import time

from nestrt import jsontext
from nestrt.act import records
from nestrt.act.groups import Worker, hold_parents
from nestrt.cli._command import command_path
from nestrt.cli.hook import CONFIG_LIMIT
from nestrt.controllers.oci_devices import as_allow_list
from nestrt.errors import HostError, InputError, NestrtError, StateError
from nestrt.kernel import pidfd
from nestrt.level.binding import Bundle as Bound
from nestrt.level.binding import made_by
from nestrt.level.check import check
from nestrt.level.devices import EVERYTHING
from nestrt.level.limits import Limits
from nestrt.level.units import parse_name
from nestrt.oci.partial import load_known
from nestrt.plan import plugin as plan
from nestrt.plan.bundle import Bundle, identity
from nestrt.plan.groups import mark
from nestrt.plan.policy_limits import for_bundle
from nestrt.plan.request import Request
from nestrt.plan.rewrite import Terms, noted_group, refusing, rewrite, text_of
from nestrt.plan.script import script
from nestrt.probe.bundle import cgroup_path, gather_bundle, held_devices, missing_parents
from nestrt.probe.policies import policy_of, to_fields
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nestrt.act.unit import Scope
    from nestrt.level.devices import DeviceRule
    from nestrt.level.policy import Policy
    from nestrt.oci.model import Spec
    from nestrt.plan.facts import Facts

# What engines put around a container's id to name its group.
PREFIXES = ("libpod-", "crio-", "cri-containerd-", "docker-", "nerdctl-", "buildah-")


@record
class Guest:
    """A container that a policy makes a guest: *document* and *spec* as they came, *host* the policy as the host
    has bound it, *usual* the policy of the host's command line; *bundle* with the document's limits brought down
    to the policy; *name* as ``nestrt ls`` shows it; *scope* the systemd unit whose group is the limit group; *held*
    the devices of this level, if it has not all; *socket* the broker's for it, once asked for."""

    name: str
    document: dict[str, Any]
    spec: Spec
    host: Policy
    usual: str
    bundle: Bundle
    facts: Facts
    scope: Scope | None = None
    held: tuple[DeviceRule, ...] | None = None
    socket: str = ""


def guest_name(group: str) -> str:
    """A guest's name from its limit group's: the container's id, without what the engine puts around it."""
    base = group.rpartition("/")[2].removesuffix(".scope")
    for prefix in PREFIXES:
        if base.startswith(prefix) and len(base) > len(prefix):
            base = base[len(prefix) :]
            break
    try:
        return parse_name(base)
    except InputError:
        pass
    kept = "".join(c for c in base if c.isascii() and (c.isalnum() or c in "_.-")).strip("_.-")[:24]
    return f"{kept or 'guest'}-{records.key(group)[:12]}"


def program(policy_name: str) -> tuple[str, ...]:
    """The path, and the arguments up to a stage, by which a runtime calls nestrt's hooks."""
    return (command_path(), "nestrt", "hook", *(("--policy", policy_name) if policy_name else ()))


def read(content: bytes, where: str) -> tuple[dict[str, Any], Spec]:
    """The document in *content*. Raises InputError."""
    if len(content) > CONFIG_LIMIT:
        raise InputError("read", where, f"it is longer than {CONFIG_LIMIT >> 20} MiB", "shorten it")
    # As Go reads it.
    return load_known(content.decode("utf-8", "replace"), where)


def find(
    document: dict[str, Any],
    spec: Spec,
    path: str,
    policy_name: str = "",
    id: str = "",
    systemd: bool = False,
    made_later: bool = False,
) -> Guest | None:
    """The guest that a policy makes of *document*; None where none does.

    *path* is the bundle's directory, "" where that is not known; *policy_name* what the host's own command line
    gives to bundles that no rule matches; *id* the container's. *systemd*: its limit group is to be a scope; with
    *made_later* the runtime makes that where linux.cgroupsPath names one. Raises NestrtError.
    """
    unit = ":" in spec.cgroups_path and "/" not in spec.cgroups_path  # "slice:prefix:name"
    group = "" if unit else noted_group(spec)
    if not (group or unit or systemd) and (spec.cgroups_path or id):
        group = cgroup_path(spec.cgroups_path, id)
    root = next((outside for inside, outside, _ in spec.uid_mappings if inside == 0), 0)
    bound = Bound(group or spec.cgroups_path, path, (os.getuid(), root))
    host = policy_of(spec.annotations, bound, usual=policy_name)
    if host is None:
        return None
    policy, narrowed, rules = for_bundle(host, spec)
    scope = None
    if systemd or (made_later and unit):
        from nestrt.cli import _scope  # D-Bus, by libsystemd

        noted = group
        scope = _scope.find(narrowed, id, rules, noted, made_later)
        group, narrowed = scope.cgroup, scope.spec
    if not group:
        raise _no_place(spec, id)
    args = spec.process.args if spec.process else ()
    name = guest_name(group)
    origin = made_by("plugin", spec.annotations, path)
    request = Request(name, "/", args, policy, cgroup=group, net="bundle", origin=origin)
    facts = gather_bundle(group, request)
    held = held_devices(facts)
    if held is not None:
        policy, narrowed, rules = for_bundle(host, spec, held)
        request = replace(request, policy=policy)
        if scope is not None:
            scope = _scope.find(narrowed, id, rules, noted, made_later)
            narrowed = scope.spec
    # The host's own amounts bound nothing, as under runc: a limit beyond them is none.
    check(policy, policy.limits if facts.level.number else Limits(), facts.has)
    request = replace(request, rootfs=os.path.join(path or "/", spec.root_path or "rootfs"))
    bundle = Bundle(name, path, request.rootfs, narrowed, group, rules=rules, request=request)
    plan.require_place(bundle)
    plan.require_throttles(bundle, facts)
    return Guest(name, document, spec, host, policy_name, bundle, facts, scope, held)


def _no_place(spec: Spec, id: str) -> NestrtError:
    if spec.cgroups_path:
        from nestrt.plan.scope import REGISTER  # rarely

        return HostError(
            "give a policy to",
            f"container {id or spec.cgroups_path}",
            f"{spec.cgroups_path} is a systemd scope, which its runtime does not divide",
            f"{REGISTER}, or its cgroup manager be cgroupfs",
        )
    return InputError(
        "give a policy to",
        f"container {id}".rstrip(),
        "a policy is about its groups, and it is to have none",
        "leave out --cgroups=disabled",
    )


def make(guest: Guest, key: str, values: dict[str, object], parked: bool = False) -> tuple[str, records.Record]:
    """Make the limit group. Returns the document for the runtime, and the record, locked.

    *key* says whose record it is, *values* what else it is to say, *parked* as in plan.plugin.settle().
    Whatever fails, nothing stays behind. Raises NestrtError, OSError.
    """
    found = records.open_record(records.key(key), make=True)
    assert found is not None
    facts, bundle = guest.facts, guest.bundle
    worker = Worker(guest.name)
    try:
        _vacate(found, guest)
    except BaseException:
        # What is there is another's, or lives: nothing of it is to be taken back.
        if found.values:
            found.close()
        else:
            found.forget()
        raise
    try:
        own = facts.hierarchies
        if guest.scope is not None:
            from nestrt.cli import _scope

            own = _scope.vacate(found, guest)
        guest = with_broker(guest)
        generation = os.urandom(8).hex()
        now = int(time.time())
        made = all(not os.path.isdir(h.path(bundle.cgroup)) for h in facts.hierarchies)
        found.values = {
            "group": bundle.cgroup,
            "id": generation,
            "made": made,
            "parents": missing_parents(own, bundle.cgroup) if own else [],
            "bundle": bundle.path,
            "created": now,
            **values,
        }
        found.save()
        if guest.scope is not None:
            _scope.start(guest, found)
        bundle = with_origin(bundle, found)
        steps = plan.prepare(bundle, facts, generation, now, guest.held)
        hold_parents(worker)
        worker.run(steps)
        found.values.update(later(bundle, facts, generation, now, parked))
        found.save()
        return _rewritten(guest, found.name), found
    except BaseException:
        worker.release()  # undo() waits for whoever makes groups
        undo(found, guest)
        raise
    finally:
        worker.release()


def make_and_write(guest: Guest, write: Callable[[bytes], object]) -> int:
    """For precreate: make the limit group and *write* the document. 0; raises NestrtError, OSError."""
    key, values = guest.bundle.cgroup, maker(os.getppid())
    if guest.scope is None:
        text, record = make(guest, key, values)
    else:
        from nestrt.cli import _scope

        text, record = _scope.promise(guest, key, values)
    try:
        write(text.encode())
        sweep(guest, record)
    except BaseException:
        undo(record, guest)
        raise
    record.close()
    return 0


def refusal(content: bytes, error: NestrtError) -> bytes:
    """The document in *content* so that it cannot start, and says *error*. Raises *error* where it is no document."""
    try:
        document = jsontext.loads(content.decode("utf-8", "replace"), exact=True)
    except ValueError:
        raise error from None
    if len(content) > CONFIG_LIMIT or not isinstance(document, dict):
        raise error
    return text_of(refusing(document, program(""), str(error)[:4096])).encode()


def sweep(guest: Guest, record: records.Record) -> None:
    """By the way, remove what killed hooks, engines and runtimes have left; *record* is the guest's own."""
    if records.names() != [record.name]:
        from nestrt.act import plugin

        plugin.sweep(guest.facts.hierarchies, record.name)


def with_broker(guest: Guest) -> Guest:
    """*guest* with the broker's socket, where its policy says so. Raises NestrtError."""
    request = guest.bundle.request
    if request is None or not request.served:
        return guest
    from nestrt.cli._broker import socket_for

    return replace(guest, socket=socket_for(request))


def undo(record: records.Record, guest: Guest) -> None:
    """Take back what make() has made; a failure here does not hide why."""
    from nestrt.act import plugin

    try:
        plugin.take_back(record, guest.facts.hierarchies)
    except (NestrtError, OSError):
        record.close()  # for gc


def _vacate(found: records.Record, guest: Guest) -> None:
    """Remove what an earlier start of the same container has left. Raises StateError where something lives in it."""
    hierarchies = guest.facts.hierarchies
    places = dict.fromkeys((guest.bundle.cgroup, found.text("group") or guest.bundle.cgroup))
    for group in places:
        if all(not os.path.isdir(h.path(group)) for h in hierarchies):
            continue
        from nestrt.act import plugin, remove

        if pids := remove.living(hierarchies, group):
            raise StateError(
                "make guest",
                f"{guest.name} in {group}",
                f"container's cgroup is not empty: {len(pids)} process(es) found",
                "end them, or name another group in linux.cgroupsPath",
            )
        if plugin.marked_id(hierarchies, group):
            other = plugin.record_of(hierarchies, group)
            if other not in ("", found.name) and other in records.names():
                raise StateError(
                    "make guest",
                    f"{guest.name} in {group}",
                    "the group has been prepared for another container",
                    "name another group in linux.cgroupsPath",
                )
            remove.remove_tree(group, hierarchies)


def with_origin(bundle: Bundle, found: records.Record) -> Bundle:
    """*bundle* with the record's name for its mark."""
    assert bundle.request is not None
    return replace(bundle, request=replace(bundle.request, origin=(*bundle.request.origin, ("record", found.name))))


def later(bundle: Bundle, facts: Facts, generation: str, created: int, parked: bool) -> dict[str, object]:
    """What the hooks need, so that they need not plan it again."""
    request = bundle.request
    assert request is not None
    whole = jsontext.dumps(mark(request, facts, generation, identity(bundle), created))
    return {
        "name": request.name,
        "script": script(plan.settle(bundle, facts, whole, parked)),
        "parked": parked,
        "first": request.first_group,
        "hierarchies": records.rows(facts.hierarchies),
        "policy": to_fields(request.policy),
        "mark": facts.mark,
        "every_device": as_allow_list(bundle.rules) == EVERYTHING,
    }


def terms(guest: Guest, files: dict[str, tuple[str, ...]], record: str) -> Terms:
    """What the document of *guest* is rewritten by; *files* are the names of control files that its root will have."""
    group, hierarchies = guest.bundle.cgroup, guest.facts.hierarchies
    request = guest.bundle.request
    assert request is not None
    return Terms(
        request.policy,
        group,
        hierarchies,
        files,
        program(guest.usual),
        record,
        os.uname().machine,
        socket=guest.socket,
        limits=guest.host.limits,
        sources=_sources(guest),
    )


def _sources(guest: Guest) -> dict[str, str]:
    """Where the sources of binds lead that have symbolic links in them: /proc/self/root is one, too."""
    binds = [mount.source for mount in guest.spec.mounts if "bind" in mount.options or "rbind" in mount.options]
    base = guest.bundle.path or "/"
    return {source: real for source in binds if (real := os.path.realpath(os.path.join(base, source))) != source}


def _rewritten(guest: Guest, record: str) -> str:
    files = {h.name: tuple(os.listdir(h.path(guest.bundle.cgroup))) for h in guest.facts.hierarchies}
    return text_of(rewrite(guest.document, guest.spec, terms(guest, files, record)))


def maker(pid: int) -> dict[str, object]:
    """What a record says of the process that goes on to start the runtime."""
    return {"maker": pid, "began": pidfd.start_time(pid) or 0}
