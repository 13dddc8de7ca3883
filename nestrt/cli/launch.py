"""``nestrt launch``: a guest from a root filesystem, without writing a bundle."""

from __future__ import annotations

import os
import sys
import time

from nestrt.act import guest, relay
from nestrt.act.host import STEPS, IdsTaken, ShiftRefused
from nestrt.act.launch import Launcher
from nestrt.act.pipes import open_standard
from nestrt.act.remove import remove
from nestrt.cli.options import parse, usage
from nestrt.cli.request import HEAD, OPTIONS, TAIL, build
from nestrt.errors import InputError, NestrtError, one_line
from nestrt.level.check import check
from nestrt.plan.facts import Facts
from nestrt.plan.launch import own_numbers, plan_launch
from nestrt.plan.request import Request
from nestrt.probe.level import gather
from nestrt.record import replace

FAILED = 125


def main(argv: list[str]) -> int:
    """Run the command; returns the guest's exit status, or 0 when it is detached.

    Every NestrtError leaves with status 125, but the program's own 126 and 127.
    """
    try:
        single, repeated, words = parse(OPTIONS, argv, "launch")
        if "help" in single:
            sys.stdout.write(usage(HEAD, OPTIONS, TAIL))
            return 0
        request = build(single, repeated, words)
        return _dry_run(request) if "dry-run" in single else _launch(request)
    except NestrtError as error:
        if error.status not in (126, 127):
            error.status = FAILED
        raise


def _prepare(request: Request) -> tuple[Request, Facts]:
    facts = gather(request)
    request = own_numbers(request, facts)
    check(request.policy, request.policy.limits, facts.has)
    return request, facts


def _dry_run(request: Request) -> int:
    request, facts = _prepare(request)
    plan = plan_launch(request, facts, "0" * 16, int(time.time()))
    sys.stdout.write("".join(f"{line}\n" for line in plan.lines()))
    return 0


def _network(request: Request) -> tuple[object, object]:
    """(connect, disconnect) where the guest has a network of nestrt's, else Nones: pyroute2 costs 300 ms to import."""
    if request.net != "veth":
        return None, None
    from nestrt.net import veth
    from nestrt.net.library import find_pyroute2

    find_pyroute2()
    return veth.connect, veth.disconnect


def _start(request: Request, signals: set[int]) -> tuple[Launcher, Facts]:
    """Launch; where the kernel of a nested level refuses to id-map the root, once more with this level's ids."""
    can_shift = True
    connect, disconnect = _network(request)
    for attempt in range(4):
        asked, facts = _prepare(request)
        facts = replace(facts, can_shift=can_shift)
        plan = plan_launch(asked, facts, os.urandom(8).hex(), int(time.time()))
        launcher = Launcher(plan, signals, STEPS, guest.STEPS, connect)  # type: ignore[arg-type]
        try:
            launcher.run()
            return launcher, facts
        except BaseException as error:
            launcher.abandon()
            if launcher.owns_name():
                remove(request.name, facts.hierarchies, disconnect)  # type: ignore[arg-type]
                os.close(launcher.lock)
            if isinstance(error, ShiftRefused) and facts.in_userns and can_shift:
                can_shift = False
                continue
            if isinstance(error, IdsTaken) and attempt < 3:
                continue  # another launch took these ids first
            raise
    raise AssertionError("the loop returns or raises")


def _launch(request: Request) -> int:
    if request.terminal and request.detach:
        raise InputError("use", "-t with -d", "no process stays to relay the terminal", "leave one of them out")
    if request.embedded_broker and request.detach:
        raise InputError("use", "--broker=embedded with -d", "no process stays to be it", "start nestrt broker")
    open_standard()
    os.umask(0o022)  # groups and mount points are the guest's to read, whatever the caller's is
    signals = relay.hold()
    launcher, facts = _start(request, signals)
    for warning in launcher.warnings:
        sys.stderr.write(one_line(f"nestrt: {warning}") + "\n")
    if request.detach:
        print(request.name)
        return 0
    status = relay.foreground(launcher.pid, launcher.pidfd, launcher.master)
    launcher.end_broker()
    if request.remove and launcher.owns_name():
        remove(request.name, facts.hierarchies, _network(request)[1])  # type: ignore[arg-type]
    return status
