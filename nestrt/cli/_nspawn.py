"""``nestrt hook nspawn HOOK``: the plugin for systemd-nspawn@.service, called by systemd as root of the host.

    start-pre    in the service's group, before nspawn: mark, caps, device rules; has it the policy's limits?
    start-post   the container runs: what it has is shown to it, its groups are handed over; the laws are read back

systemd removes the service's group with all that is on it and below it when the service has stopped.
"""

from __future__ import annotations

import os
import sys
import time

from nestrt.cli import _lxc
from nestrt.cli.options import Option, parse, usage
from nestrt.errors import HostError, InputError, StateError
from nestrt.host.laws import look
from nestrt.host.laws_subject import Subject
from nestrt.kernel import cgroup, pidfd
from nestrt.kernel.mountinfo import read_cgroups
from nestrt.plan import lxc, nspawn
from nestrt.plan.standing import is_everything
from nestrt.probe.facts import primary, read_hierarchies
from nestrt.probe.standing import device_programs, identity_of, limits_on
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.policy import Policy
    from nestrt.plan.facts import Facts, Hierarchy
    from nestrt.plan.ids import Identity

HEAD = """usage: nestrt hook nspawn [OPTION …] start-pre | start-post MACHINE

What systemd calls for each container of systemd-nspawn@.service that has the drop-in hooks/nspawn/nestrt.conf."""
OPTIONS = (
    Option("policy", "NAME", "for containers that no rule of the host matches (default: nested)"),
    Option("help", "", "this text", "h"),
)
ENGINE = (("io.container.manager", "systemd-nspawn"),)
PATIENCE = 5.0  # seconds between nspawn's word that the container runs and its first process


@record
class Guest:
    """*host* is the policy as the host has bound it."""

    host: Policy
    container: lxc.Container
    facts: Facts


def find(machine: str, usual: str, who: Identity) -> Guest | None:
    """The guest that a policy makes of the service that calls; None where the host gives it none."""
    from nestrt.level.binding import Bundle
    from nestrt.level.check import check
    from nestrt.level.limits import Limits
    from nestrt.probe.bundle import gather_bundle
    from nestrt.probe.policies import policy_of

    _lxc.require_root("let systemd run it: hooks/nspawn/nestrt.conf")
    hierarchies = read_hierarchies()
    _require_v2(machine, hierarchies)
    group = nspawn.unit_of(read_cgroups().get((), "/"))
    host = policy_of(ENGINE, Bundle(group, f"/var/lib/machines/{machine}", (0,)), usual=usual)
    if host is None or not host.virtualize:
        return None
    stands = limits_on(hierarchies, group)
    nspawn.require(host.limits, stands, machine)
    policy = replace(lxc.within(host, stands, who), start_in=".")
    origin = (("runtime", "plugin"), ("engine", "systemd-nspawn"), ("root", nspawn.PAYLOAD))
    request = nspawn.Payload(
        _lxc.guest_name(machine, group), "/", (), policy, cgroup=group, net="bundle", origin=origin
    )
    facts = _delegated(gather_bundle(group, request), group)
    check(policy, policy.limits if facts.level.number else Limits(), facts.has)
    return Guest(host, lxc.Container(request, stands, device_programs(hierarchies, group)), facts)


def _delegated(facts: Facts, group: str) -> Facts:
    """*facts* with the controllers that systemd has given the service (Delegate=): which, is systemd's to say."""
    found = []
    for h in facts.hierarchies:
        if h.version == 2:
            h = replace(h, controllers=tuple(cgroup.read(h.path(group, "cgroup.controllers")).split()))
        found.append(h)
    return replace(facts, hierarchies=tuple(found), primary=primary(tuple(found)))


def _require_v2(machine: str, hierarchies: tuple[Hierarchy, ...]) -> None:
    """nspawn gives a container a group of its own in the v2 tree alone.

    In a v1 hierarchy it leaves it in the service's group, whose limit files it then sees and root may write, or in the
    root group, which shows the host's; its cgroup namespace begins there.
    """
    v1 = [h.name for h in hierarchies if h.version == 1 and h.controllers]
    if v1:
        raise HostError(
            "make a guest of",
            f"container {machine}",
            f"this host has controllers of v1 ({', '.join(v1)}), in which systemd-nspawn makes no groups of its own",
            "boot with systemd.unified_cgroup_hierarchy=1, or run it by LXC or nestrt launch",
        )


def start_pre(machine: str, policy: str) -> int:
    from nestrt.act.groups import Worker
    from nestrt.plan.ids import Identity

    guest = find(machine, policy, Identity())
    if guest is None:
        return 0
    request = guest.container.request
    steps = nspawn.prepare(
        guest.container, guest.facts, guest.host.limits.devices, os.urandom(8).hex(), int(time.time())
    )
    Worker(request.name).run(steps)
    return 0


def start_post(machine: str, policy: str) -> int:
    from nestrt.act import remove
    from nestrt.act.groups import Worker

    hierarchies = read_hierarchies()
    group = nspawn.unit_of(read_cgroups().get((), "/"))
    pid = _first_process(hierarchies, f"{group}/{nspawn.PAYLOAD}", machine)
    who = identity_of(pid)
    guest = find(machine, policy, who)
    if guest is None:
        return 0
    request, facts = guest.container.request, guest.facts
    had = remove.read_mark(facts.primary, group)
    id, created = had.get("id"), had.get("created")
    if not isinstance(id, str) or not isinstance(created, int):
        raise StateError(
            "settle",
            f"guest {request.name}",
            "its group has no mark",
            "let the unit run nestrt hook nspawn start-pre too",
        )
    assert isinstance(request, nspawn.Payload)
    Worker(request.name, pid).run(nspawn.settle(request, facts, who, id, created))
    if request.served:
        from nestrt.cli._broker import put_socket

        put_socket(request, pid)
    _verdict(pid, guest)
    return 0


def _first_process(hierarchies: tuple[Hierarchy, ...], payload: str, machine: str) -> int:
    """The first process of the container: the one there whose parent is not there."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        pids = cgroup.processes_below(primary(hierarchies).path(payload)) - {0}
        for pid in sorted(pids):
            if pidfd.parent(pid) not in pids:
                return pid
        time.sleep(0.02)
    raise StateError("settle", f"container {machine}", f"nothing runs in {payload}", "see what systemd-nspawn says")


def _verdict(pid: int, guest: Guest) -> None:
    """Read the laws back. In a strict policy one that does not hold ends the service; else it is reported."""
    from nestrt.cli._verdict import NotLawful, log

    request, facts = guest.container.request, guest.facts
    every = is_everything(request.policy.limits.devices)
    subject = Subject(
        pid,
        request.limit_group,
        facts.hierarchies,
        request.policy,
        mark=facts.mark,
        every_device=every,
        inner=nspawn.PAYLOAD,
    )
    for finding in look(subject):
        if finding.holds is False:
            text = f"law {finding.law} does not hold: {finding.what}"
            if guest.host.strict:
                raise NotLawful("start", f"guest {request.name}", text, finding.remedy)
            sys.stderr.write(f"nestrt: warning: guest {request.name}: {text}\n")
            log(f"guest {request.name}: {text}")


RUN = {"start-pre": start_pre, "start-post": start_post}


def main(argv: list[str]) -> int:
    """*argv* are the words after ``hook nspawn``. Returns the exit status."""
    single, _, rest = parse(OPTIONS, argv, "hook nspawn")
    more, _, operands = parse(OPTIONS, rest[1:], "hook nspawn")
    single = {**single, **more}
    if "help" in single:
        sys.stdout.write(usage(HEAD, OPTIONS))
        return 0
    hook = rest[0] if rest else ""
    if hook not in RUN or len(operands) != 1:
        raise InputError(
            "run", f"hook nspawn {hook!a}", "no such hook", f"known: {', '.join(RUN)}, each with a machine"
        )
    return RUN[hook](lxc.check_name(operands[0]), single.get("policy", _lxc.USUAL))
