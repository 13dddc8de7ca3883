"""``nestrt why GROUP|PID [KEY …]``: what really limits a group, which group around it does, and who said so."""

from __future__ import annotations

import argparse
import os

from nestrt.cli._formats import Column, add_options, aligned, write_document, write_rows
from nestrt.cli._view import glyphs, note_unseen
from nestrt.errors import InputError, NotFound
from nestrt.host import report
from nestrt.host.effective import Limit, Reader
from nestrt.host.marks import escape
from nestrt.host.render import GLYPHS, SHORT, amount
from nestrt.host.walk import empty_view
from nestrt.host.why import Answer, Subject, answers, guest_path, subject
from nestrt.level.units import MAX
from nestrt.level.values import suggestion
from nestrt.probe.facts import read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nestrt.host.keys import Value

EPILOG = """
GROUP is a guest's name (web, web/db: what its guest root has) or short id, a group of one (web:/job), a
group's path (/nestrt/web/guest/job), or its directory. KEY is memory, memory.max, cpu, pids, … or a
file of cgroup v1. Without KEY: every limit that is set somewhere on the way.

Each limit has the groups from the root down: what was given there, what is used there, who set it.
"binds" stands at the group that sets what really works. "left" is what the group can still get, and
"in the way" who uses most of what it shares, where another group than its own has the least left.
"""


# Of CSV: a row for each group on the way, of each limit.
FIELDS = ("key", "unit", "effective", "group", "guest_group", "limit", "usage", "left", "set_by", "binds")
COLUMNS = tuple(Column(field.upper(), field) for field in FIELDS)


def main(argv: list[str]) -> int:
    """Carry out ``nestrt why ARGV``. Returns 0; raises NotFound, InputError, HostError."""
    parser = argparse.ArgumentParser(
        prog="nestrt why",
        description="Show what really limits a group or process: the chain of groups up to the root.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("group", metavar="GROUP|PID", help="a guest, a group, or a process of this level")
    parser.add_argument("keys", metavar="KEY", nargs="*", help="which limits (default: those set anywhere)")
    parser.add_argument("-a", "--all", action="store_true", help="limits that nobody has set too")
    add_options(parser, ("text", "json", "yaml", "csv"), "text")
    options = parser.parse_args(argv)
    hierarchies = read_hierarchies()
    note_unseen(empty_view(hierarchies))
    found = subject(hierarchies, options.group)
    every = answers(found, Reader(), hierarchies)
    if not every and not options.keys and found.process is None:
        reason = "none of its hierarchies limits anything"
        raise NotFound("explain", f"group {escape(options.group)}", reason, "nestrt show tells what there is")
    shown = chosen(every, options.keys) if options.keys else [one for one in every if options.all or is_set(one)]
    if options.format == "csv":
        rows = ({**limit, **step} for limit in as_json(found, shown)["limits"] for step in limit["chain"])
        return write_rows(options, rows, COLUMNS)
    return write_document(options, as_json(found, shown), lambda: lines(found, shown, options.raw))


def is_set(answer: Answer) -> bool:
    """Whether any group on the way has this limit; a v1 cpuset as large as all others has none."""
    return bool(answer.binds)


def chosen(every: list[Answer], words: list[str]) -> list[Answer]:
    """The answers that *words* name. Raises InputError for a word that names none."""
    found: list[Answer] = []
    for word in words:
        names = [one for one in every if word in (one.key.name, SHORT.get(one.key.name), *one.key.files)]
        names = names or [one for one in every if word == one.key.controller]
        if not names:
            known = sorted({one.key.name for one in every})
            remedy = suggestion(word, known) if known else "its hierarchies have no limits"
            raise InputError("explain", f"key {escape(word)}", "the group has no such limit", remedy)
        found += [one for one in names if one not in found]
    return found


def as_json(found: Subject, shown: list[Answer]) -> dict[str, Any]:
    """``--format json``: the field names are those of nestrt/schema, and of nestrt/host/report.py."""
    path = next(iter(found.groups.values()))
    guest = found.guest(path)
    return {
        "group": path,
        "groups": dict(found.groups),
        "guest": guest.name if guest else None,
        "guest_group": guest_path(found, path),
        "level": guest.level if guest else found.view.level,
        "claim": guest.claim if guest else False,
        "process": report.process(found.process) if found.process else None,
        "limits": [
            {
                "key": one.key.name,
                "controller": one.key.controller,
                "hierarchy": one.hierarchy.name,
                "unit": one.key.unit,
                "effective": report.value(one.effective),
                "binds": one.binds or None,
                "machine": one.machine if one.machine >= 0 else None,
                "left": one.left if one.left >= 0 else None,
                "tightest": one.tightest or None,
                "in_the_way": [{"group": group, "usage": used} for group, used in one.others],
                "chain": [
                    {
                        "group": step.group,
                        "guest_group": guest_path(found, step.group),
                        "has": step.value is not None,
                        "limit": None if step.value is None else report.value(step.value),
                        "usage": step.usage,
                        "left": step.left if step.left >= 0 else None,
                        "set_by": step.set_by or None,
                        "binds": _binds(one, step.group),
                    }
                    for step in one.steps
                ],
            }
            for one in shown
        ],
    }


def _binds(answer: Answer, group: str) -> bool:
    return group in answer.binds.values() if isinstance(answer.binds, dict) else group == answer.binds


def lines(found: Subject, shown: list[Answer], raw: bool = False) -> Iterator[str]:
    """The answer for people."""
    yield from _heading(found)
    if not shown:
        yield "nothing limits it: no group on the way has a limit"
    for answer in shown:
        yield ""
        yield from _limit(found, answer, raw)


def _heading(found: Subject) -> Iterator[str]:
    path = next(iter(found.groups.values()))
    guest = found.guest(path)
    inner = guest_path(found, path)
    if found.process is not None:
        one = found.process
        inside = f", pid {one.guest_pid} in its guest" if one.guest_pid > 0 and guest else ""
        user = f", uid {one.uid}" + (f" ({one.guest_uid} inside)" if one.guest_uid >= 0 and guest else "")
        yield f"pid {one.pid}  {escape(one.command)}{inside}{user}"
    where = f"group {escape(path)}"
    if guest is None:
        yield f"{where}, of no guest"
    else:
        claim = ", by its own claim" if guest.claim else ""
        own = f", {escape(inner)} for the guest" if inner else ""
        yield f"{where}{own}; guest {escape(guest.name)}, level {guest.level}{claim}"
    others: dict[str, list[str]] = {}
    for name, other in found.groups.items():
        if other != path:
            others.setdefault(other, []).append(name or "v2")
    for other, names in others.items():
        yield f"  in {' '.join(names)}: {escape(other)}"


def _limit(found: Subject, answer: Answer, raw: bool) -> Iterator[str]:
    def text(value: Value | None) -> str:
        if raw and not isinstance(value, (frozenset, dict)):
            return "-" if value is None else "max" if value == MAX else str(value)
        return amount(limit, value)

    limit = Limit(
        answer.key.name, answer.key.controller, answer.hierarchy.name, answer.key.unit, MAX, answer.effective,
        answer.binds, None,
    )  # fmt: skip
    effective = text(answer.effective) if answer.effective not in (frozenset(), {}) else "max"
    left = f", {text(answer.left)} left" if answer.left >= 0 else ""
    if answer.left >= 0 and answer.tightest != answer.steps[-1].group:
        left += f" in {escape(answer.tightest)}"
    machine = f", the machine has {text(answer.machine)}" if answer.machine >= 0 and effective == "max" else ""
    yield f"{answer.key.name}  {effective}{machine}{left}"
    rows = []
    binds = ("← " if glyphs() is GLYPHS else "<- ") + "binds"
    for step in answer.steps:
        used = "" if step.usage is None else f"{text(step.usage)} used"
        marks = binds if _binds(answer, step.group) else ""
        value = "-" if step.value is None else text(step.value)
        rows.append(["  " + escape(step.group), value, used, marks, escape(_by(found, step.group, step.set_by))])
    yield from aligned(rows, (False, True, True))
    if answer.others:
        used_by = ", ".join(f"{escape(group)} {text(used)}" for group, used in answer.others)
        yield f"  in the way: {used_by}"


def _by(found: Subject, group: str, setter: str) -> str:
    """Who set it; of a guest's limits also the policy that it has: the default one limits nothing."""
    if not setter:
        return ""
    guest = next((one for one in found.view.everyone() if group in (one.path, one.root)), None)
    policy = guest.mark.policy if guest else ""
    if policy not in ("", "default") and guest and not guest.claim:
        return f"{setter} (policy {os.path.basename(policy)[:60]})"
    return setter
