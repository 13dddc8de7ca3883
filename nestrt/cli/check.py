"""``nestrt check NAME``: whether every law holds for a running guest, of whatever runtime."""

from __future__ import annotations

import argparse
import sys

from nestrt.act.trials import carry_out
from nestrt.cli._check import is_waiting, named, subject_of
from nestrt.cli._formats import Column, add_options, write_rows
from nestrt.cli._view import look, write
from nestrt.errors import InputError, NestrtError, StateError
from nestrt.host.laws import by_law, judge, process_of
from nestrt.host.laws_lock import limit_files_of
from nestrt.host.laws_subject import LAWS, Finding
from nestrt.host.laws_trials import judge as judge_trials
from nestrt.host.laws_trials import prepare
from nestrt.host.marks import escape
from nestrt.host.processes import start_time
from nestrt.host.sight import Sight
from nestrt.host.walk import Guest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

EPILOG = """
NAME is as nestrt ls shows it (web, or web/inner for a guest's guest), a limit group's path, the
beginning of an engine's long id, or the pid of a process in a guest. Guests of launch, of nestrt as
a runtime, and of other runtimes with nestrt's hooks are checked alike.

First what can be seen from outside: groups, limits, owners, mounts, marks, device rules. Then a helper
enters the guest's user, mount and cgroup namespaces with the ids and capabilities of the guest's root,
and tries: to write each limit file of the guest root what it says already (in the guest's mounts, with covers
taken off, in mounts of its own, from a nested cgroup namespace), to open the limit group by a file
handle, to make a group below the root and give it less. It stays outside of the guest's groups and runs
nothing of the guest's; the groups it makes are removed, and its mounts end with it.

A law is "ok", "FAILED" or "unknown", and unknown counts as failed: it could not be tried (as when not
root, or when the guest has as many groups as it may have), and so is not shown to hold. Without a user
namespace, "lock" fails for a guest with CAP_SYS_ADMIN: it can change what it is shown, not what it gets.
On cgroup v1 "clamp" includes no cap on groups: the kernel has none.

Exit status: 0 every law holds for every guest; 1 one does not, or is unknown; 3 no such guest;
4 the guest has ended, or is being started.
"""
# Of CSV: a row for each law.
COLUMNS = tuple(Column(field.upper(), field) for field in ("name", "level", "pid", "law", "holds", "what", "remedy"))
SECONDS = 30.0
WORDS = {True: "ok", False: "FAILED", None: "unknown"}


def main(argv: list[str]) -> int:
    """Carry out ``nestrt check ARGV``. Returns the exit status; raises InputError, HostError without cgroups."""
    parser = argparse.ArgumentParser(
        prog="nestrt check",
        description="Look and try whether every law holds for running guests.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="guests, by name, id or process")
    parser.add_argument("-a", "--all", action="store_true", help="every running guest, at every level")
    parser.add_argument("--passive", action="store_true", help="look only: enter nothing, try nothing")
    add_options(parser)
    options = parser.parse_args(argv)
    if options.all == bool(options.names):
        reason = "both names and --all are given" if options.all else "none is named"
        raise InputError("check", "guests", reason, "name some, or write --all")
    sight = look()
    results: list[dict[str, Any]] = []
    lines: list[str] = []
    status = 0
    for word in options.names or [guest.path for guest in sight.view.everyone()]:
        try:
            guest, pid = named(sight, word)
            found, left, pid = check(sight, guest, pid, options.passive)
        except NestrtError as error:
            # Of all guests those that run are meant.
            if not (options.all and isinstance(error, StateError)):
                sys.stderr.write(f"nestrt: {error}\n")
                status = error.status
            continue
        for path in left:
            sys.stderr.write(f"nestrt: warning: cannot remove {escape(path)}: the guest has put something into it\n")
        laws = by_law(found)
        holds = all(finding.holds for finding in laws)
        status = status or (0 if holds else 1)
        results.append(report(guest, pid, holds, laws, found, left))
        lines += table(guest, laws, heading=options.all or len(options.names) > 1)
    if options.format == "table":
        write(lines)
    elif options.format == "csv":
        write_rows(options, [{**each, **law} for each in results for law in each["laws"]], COLUMNS)
    else:
        write_rows(options, results, ())
    return status


def check(sight: Sight, guest: Guest, pid: int, passive: bool) -> tuple[tuple[Finding, ...], tuple[str, ...], int]:
    """What is found of *guest* by process *pid* (0: its first), the groups that could not be removed, and that process.

    Raises StateError where nothing of it runs, or not any more.
    """
    subject = subject_of(sight, guest, pid)
    gone = StateError("check", f"guest {guest.name}", f"process {subject.pid} has ended", "try again")
    start = start_time(subject.pid)
    try:
        process = process_of(subject)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise gone from error
    except PermissionError as error:
        why = f"process {subject.pid} may not be looked at: {error.strerror}"
        return tuple(Finding(law, None, why, "look as root of the host") for law in LAWS), (), subject.pid
    subject.waiting = is_waiting(subject, process)
    found = [*judge(subject, process), *_others(sight, guest, subject.pid if subject.waiting else 0)]
    left: tuple[str, ...] = ()
    if not passive and subject.policy.virtualize:
        files = limit_files_of(subject)
        trials, groups, omitted = prepare(subject, process, files)
        try:
            tried = carry_out(subject.pid, start, trials, groups, SECONDS)
        except ProcessLookupError as error:
            raise gone from error
        except OSError as error:
            found.append(Finding("lock", None, f"nothing was tried: {error.strerror}", "check as root of the host"))
            return tuple(found), (), subject.pid
        more = judge_trials(subject, process, trials, tried, omitted)
        # Whether covers can be taken off has been tried by now.
        tried_locks = process.complete and any(f.law == "lock" and f.holds is not None for f in more)
        found = [f for f in found if not (tried_locks and f.law == "lock" and f.holds is None)] + list(more)
        left = tried.left
    if start_time(subject.pid) != start:
        raise gone
    return tuple(found), left, subject.pid


def _others(sight: Sight, guest: Guest, waiting: int) -> list[Finding]:
    """What the walk of its groups shows besides its first process."""
    found = []
    for process in sight.processes(guest):
        places = [process.group, *(path for _, path in process.elsewhere)]
        if guest.path in places and process.pid != waiting:
            what = f"process {process.pid or '?'} stands in {guest.path}, above its guest root"
            found.append(Finding("view", False, what, "move it to the guest root, or end it"))
            break
    if guest.unread:
        what = f"the groups below {guest.unread[0]} are not read"
        found.append(Finding("sight", None, what, "look as root of the host"))
    return found


def report(
    guest: Guest,
    pid: int,
    holds: bool,
    laws: tuple[Finding, ...],
    found: tuple[Finding, ...],
    left: tuple[str, ...],
) -> dict[str, object]:
    """What other forms than the table have of a guest; *holds* is null where it is not known."""
    return {
        "name": guest.name,
        "path": guest.path,
        "level": guest.level,
        "pid": pid,
        "holds": holds,
        "laws": [_fields(finding) for finding in laws],
        "findings": [_fields(finding) for finding in found],
        "left": list(left),
    }


def _fields(finding: Finding) -> dict[str, object]:
    return {name: getattr(finding, name) for name in ("law", "holds", "what", "remedy")}


def table(guest: Guest, laws: tuple[Finding, ...], heading: bool) -> list[str]:
    """One line for each law, and one with the remedy for each that is not ok."""
    lines = [escape(guest.name)] if heading else []
    indent = "  " if heading else ""
    for finding in laws:
        lines.append(f"{indent}{finding.law:13} {WORDS[finding.holds]:8} {escape(finding.what)}")
        if not finding.holds and finding.remedy:
            lines.append(f"{indent}{'':22} remedy: {escape(finding.remedy)}")
    return lines
