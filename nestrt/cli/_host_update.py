"""``nestrt update NAME``: other limits for a guest of any runtime while it runs; what the guest sees follows."""

from __future__ import annotations

import os
import sys

from nestrt.act import remove, update
from nestrt.act.containers import Container, load
from nestrt.broker import own_rules
from nestrt.cli import _ask_broker
from nestrt.cli._host_audit import Change
from nestrt.cli._host_record import Recorded
from nestrt.cli._target import look, of_guest, require_root, words
from nestrt.cli.options import Option
from nestrt.cli.request import LIMITS, devices_of, limits_of
from nestrt.controllers.table import missing
from nestrt.errors import HostError, InputError, KernelError, NestrtError, StateError
from nestrt.host.above import outer, what_is_above
from nestrt.host.processes import first_process, processes
from nestrt.kernel import flock
from nestrt.level.check import Has, problems
from nestrt.level.devices import DEFAULT_RULES, format_rule, parse_rule, subset
from nestrt.level.limits import Limits, from_mark, over
from nestrt.level.policy import Policy
from nestrt.plan import child_devices
from nestrt.plan.change import completed, resources_of
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.walk import Guest, View
    from nestrt.level.devices import DeviceRule

    Rules = tuple[DeviceRule, ...]

HEAD = """usage: nestrt update NAME OPTION …

Change the limits of a guest of any runtime while it runs. The options are those of nestrt launch; what is not
named stays. A container of this runtime, with only options that runc has too, is updated as runc does."""
OPTIONS = (
    *LIMITS[:3],
    Option("mems", "LIST", "memory nodes"),
    *LIMITS[3:],
    Option("deny-device", "RULE", "take a device away: 'c 10:229 rwm', or /dev/fuse[:rwm]", repeat=True),
)
PATIENCE = 10.0  # s


class Target:
    """The guest that is to be changed, and what its mark says of it."""

    def __init__(self, view: View, guest: Guest) -> None:
        self.view = view
        self.guest = guest
        self.what = f"guest {guest.name}"
        self.hierarchies = of_guest(view, guest)
        # A claim is what somebody inside has written: what does not fit in it is left out.
        self.had = from_mark(guest.mark.limits or {}, errors=[])
        launched = guest.mark.runtime == "launch" or guest.path.endswith(f"/nestrt/{guest.mark.name}")
        self.owner = own_rules.Owner(guest.path, guest.root, guest.mark.limits, launched)

    def subject(self) -> Container:
        """As what Update takes for a container."""
        values = {"cgroup": self.guest.path, "virtualized": self.guest.mark.virtualize, "root": self.guest.mark.root}
        return Container("", self.guest.name, values)

    def first(self) -> tuple[int, int]:
        """Pid and start time of the first process; (-1, -1) where it is not known."""
        pid = first_process(self.guest, processes(self.guest, self.view, commands=False) if self.guest.claim else [])
        return (pid, self.guest.mark.start) if pid > 0 else (-1, -1)

    def written(self, word: str) -> str:
        """A word of the mark that is not a Mark's; "" where it has none, or is a claim."""
        if self.guest.claim:
            return ""
        found = (remove.read_mark(h, self.guest.path).get(word) for h in self.hierarchies)
        return next((value for value in found if isinstance(value, str)), "")


def _now(target: Target) -> Rules | None:
    return own_rules.rules_now(target.owner, own_rules.chosen(target.hierarchies))


def _rules(target: Target, allow: list[str], deny: list[str]) -> Rules | None:
    """The whole list of device rules that the guest is to have, None to leave them. Raises NestrtError."""
    if not allow and not deny:
        return None
    more = child_devices.plain(devices_of(allow)[0])
    less = child_devices.plain(devices_of(deny)[0])
    hierarchy = own_rules.chosen(target.hierarchies)
    now = _now(target)
    if now is None:
        raise HostError(
            "change the devices of",
            target.what,
            "nobody knows which rules its device program was made of",
            "give device rules where it is started",
        )
    above = outer(target.view, target.guest)
    if above is not None:
        has = own_rules.rules_now(Target(target.view, above).owner, hierarchy)
        if has is not None and (rule := subset(more, has)) is not None:
            reason = f"guest {above.name} is not allowed it"
            raise InputError("give", f"{target.what} device '{format_rule(rule)}'", reason, "give it to that one first")
    return child_devices.changed(now, more, less)


def _check(target: Target, new: Limits, has: Has) -> None:
    for problem in problems(Policy(), new, has):
        problem.operation = f"give {target.what}"
        raise problem
    controllers = {name for h in target.hierarchies for name in h.controllers}
    v2 = next((h.controllers for h in target.hierarchies if h.version == 2), None)
    if absent := missing(resources_of(new), controllers, v2):
        reason = "no hierarchy that the guest is in has its controller"
        raise HostError("set", f"{absent[0].removeprefix('linux.resources.')} of {target.what}", reason, "leave it out")


def _locked(target: Target) -> int:
    """Hold off another update of the same guest. Raises StateError, OSError."""
    fd = os.open(target.hierarchies[0].path(target.guest.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if not flock.take(fd, PATIENCE):
        os.close(fd)
        raise StateError("update", target.what, "another update of it is under way", "try again")
    return fd


def _directly(target: Target, new: Limits, rules: Rules | None) -> None:
    """Without a broker: the limit group, what the guest root shows, marks and stamp."""
    limits = replace(new, io=over(target.had, new).io if new.io else (), devices=rules).to_mark()
    before: list[Rules | None] = []

    def then() -> None:
        if rules is not None:
            before.append(_now(target))
            if not _ask_broker.set_devices_above(target.guest.path, rules):
                own_rules.put_rules(target.owner, own_rules.chosen(target.hierarchies), rules)

    old, subject = resources_of(replace(target.had, swap=None)), target.subject()
    lock = _locked(target)
    recorded = None
    try:
        recorded = Recorded(target.written("record"), subject, target.hierarchies)
        wanted = recorded.tell_systemd(target.had, new, rules)
        try:
            update.change(subject, target.hierarchies, old, wanted, limits, then)
        except BaseException:
            recorded.take_back(target.had, new, _now(target) if rules is not None else None)
            raise
        recorded.keep(new)
    finally:
        if recorded is not None:
            recorded.close()
        os.close(lock)
    if rules is not None:
        _nodes(target, tuple(rule for rule in rules if not before[0] or subset((rule,), before[0]) is not None))


def _nodes(target: Target, rules: Rules) -> None:
    """Put the nodes of *rules* that name one device into the guest's /dev. Where that fails the rules hold as well."""
    from nestrt.act.inject import put_node
    from nestrt.probe.nodes import device_node

    pid, start = target.first()
    for rule in rules:
        node = device_node(rule) if {"r", "w"} & set(rule.access) else ""
        if not node or subset((rule,), child_devices.plain(DEFAULT_RULES)) is None:
            continue
        try:
            put_node(pid, start, node, node)
        except (OSError, NestrtError) as error:
            sys.stderr.write(f"nestrt: the guest may use {node}, and finds no node there: {error}\n")


def _own(target: Target, container: Container, new: Limits, allow: list[str], deny: list[str]) -> None:
    """A container of this runtime: as its own update does, so that its state file says the truth."""
    from nestrt.cli import update as verb
    from nestrt.oci.document import load_resources
    from nestrt.oci.resources import DeviceRule as Ordered

    lock = verb.locked(container)
    try:
        container = load(container.root, container.id)
        container.require("update", "running", "created", "paused")
        if bound := container.document.get("bound"):
            limit = from_mark(bound)
            has = Has(name="the host's policy", **{
                field: value for field in ("memory", "swap", "cpus", "mems", "cpu_quota", "pids", "devices")
                if (value := getattr(limit, field)) is not None
            })  # fmt: skip
            _check(target, replace(new, devices=child_devices.plain(devices_of(allow)[0]) or None), has)
        asked = resources_of(new)
        if allow or deny:
            from nestrt import jsontext

            had = load_resources(jsontext.dumps(update.known(container)[0]), target.what).devices
            more = [
                Ordered(yes, r.type, r.major, r.minor, r.access)
                for yes, texts in ((True, allow), (False, deny))
                for r in devices_of(texts)[0]
            ]
            asked = replace(asked, devices=(*had, *more))
        verb.apply(container, verb.fixed(asked))
    finally:
        os.close(lock)
    if allow:
        _nodes(target, child_devices.plain(parse_rule(format_rule(r)) for r in devices_of(allow)[0]))


def _container(target: Target) -> Container | None:
    """The container of this runtime that the guest is, by what the host's mark says."""
    root, _, id = target.written("directory").rpartition("/")
    if not root:
        return None
    try:
        found = load(root, id)
    except NestrtError:
        return None
    return found if found.cgroup == target.guest.path else None


def _asked(single: dict[str, str], repeated: dict[str, list[str]]) -> Limits:
    new = limits_of(single, repeated)
    if new == Limits() and not repeated:
        raise InputError("update", "a guest", "nothing is to be changed", "name a limit: nestrt update NAME -m 512M")
    return new


def main(argv: list[str]) -> int:
    """Run the command. Raises NestrtError; the guest then has what it had before."""
    found = words("update", OPTIONS, argv, HEAD)
    if found is None:
        return 0
    single, repeated, operands = found
    if len(operands) != 1:
        raise InputError("update", "a guest", "it takes one name", "write nestrt update NAME -m 512M")
    target = Target(*look(operands[0]))
    allow, deny = repeated.get("device", []), repeated.get("deny-device", [])
    new = _asked(single, repeated)
    require_root("update", target.guest)
    with Change("SetLimits", target.view, target.guest) as change:
        _note(change, target.had, new, allow, deny)
        try:
            _update(target, new, allow, deny, change)
        except OSError as error:
            raise KernelError("update", target.what, error.errno or 0, "see whether it is there: nestrt ls") from error
    return 0


def _note(change: Change, had: Limits, new: Limits, allow: list[str], deny: list[str]) -> None:
    """Note what is asked for, as the broker does."""
    before, after = had.to_mark(), new.to_mark()
    for field, (key, _) in _ask_broker.SETTINGS.items():
        if field in after:
            change.note(key, before.get(field), after[field])
    if allow or deny:
        change.note("devices", before.get("devices"), {"allow": allow, "deny": deny})


def _update(target: Target, new: Limits, allow: list[str], deny: list[str], change: Change) -> None:
    new = completed(new, target.had)
    _check(target, new, what_is_above(target.view, target.guest))
    container = _container(target)
    if container is not None:
        _own(target, container, new, allow, deny)
        change.happened = True
        if _ask_broker.set_limits(target.guest.path, new, None):  # what it knows of the guest is to follow
            change.leave(*(key for key, _ in _ask_broker.SETTINGS.values()))
        return
    rules = _rules(target, allow, deny)
    try:
        asked = _ask_broker.set_limits(target.guest.path, new, rules)
    except _ask_broker.Answered as error:
        if error.replied:
            change.leave()
        raise
    if asked:
        change.leave()
    else:
        _directly(target, new, rules)
