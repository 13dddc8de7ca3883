"""``nestrt host init|status|reset``: system tasks always get their share, guests divide the rest."""

from __future__ import annotations

import argparse
import os
import sys

from nestrt.act.host_split import Splitter
from nestrt.cli import _host_status
from nestrt.cli._formats import add_options, write_document
from nestrt.cli._host_audit import Change
from nestrt.cli._locks import own_mark
from nestrt.cli._view import write
from nestrt.errors import HostError, InputError, one_line
from nestrt.host.walk import empty_view
from nestrt.level.units import parse_size
from nestrt.plan.host_split import GUESTS, SYSTEM, Split, init_steps, reset_steps
from nestrt.probe.facts import read_hierarchies
from nestrt.probe.split import ATTRIBUTE, is_user_process, read_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.plan.host_split import State
    from nestrt.plan.steps import Step

EPILOG = """
CPU time goes by weight: whoever is alone gets all of it, and of the two that want more the system gets its share.
Inside a guest all of this is about that guest: its own tasks, and the guests in it. See nestrt-host(1).
"""


def _percent(text: str, what: str) -> float:
    number = text.removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 < value < 100:
        raise InputError("read", f"{what} {text!r}", "it is no share", "write it like 10%")
    return value / 100


def _memory(text: str | None, state: State) -> int | None:
    if text is None:
        return None
    if text.endswith("%"):
        return int(state.bytes * _percent(text, "--system-memory"))
    try:
        return parse_size(text, "--system-memory")
    except ValueError as error:
        raise InputError("read", f"--system-memory {text!r}", str(error), "write it like 2G or 10%") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nestrt host",
        description="Divide a host, or a guest, between system tasks and guests.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "give system tasks a share that they always get; guests divide the rest"
    init = commands.add_parser("init", help=text, description=text)
    init.add_argument("--system-cpu", metavar="N%", default="10%", help="the system's share of CPU time (10%%)")
    text = f"a group right below the root that guests are in ({GUESTS}); may be given again"
    init.add_argument("--guests", metavar="PATH", action="append", help=text)
    init.add_argument("--hard", action="store_true", help="guests get no more even where CPUs would be idle")
    text = "memory that guests cannot take: their parent's limit is what the machine has without it"
    init.add_argument("--system-memory", metavar="SIZE|N%", help=text)
    text = "move the root group's own processes to a group, so that they are weighed as one"
    init.add_argument("--move-tasks", action="store_true", help=text)
    init.add_argument("--system-group", metavar="PATH", default=SYSTEM, help=f"that group ({SYSTEM})")
    init.add_argument("--dry-run", action="store_true", help="print the steps, and do nothing")
    text = "show the shares as they are, and what each guest can get at worst"
    add_options(commands.add_parser("status", help=text, description=text), ("text", "json", "yaml"), "text")
    text = "give back what was there before init"
    reset = commands.add_parser("reset", help=text, description=text)
    reset.add_argument("--dry-run", action="store_true", help="print the steps, and do nothing")
    return parser


def _carry_out(steps: list[Step], attribute: str, old: object, new: object) -> int:
    """Carry out *steps*. For the audit, this level was divided as *old* says, and is to be as *new* does."""
    if os.geteuid() != 0:
        raise HostError("divide", "this level", "only its root can", "run it as root")
    splitter = Splitter(attribute, is_user_process)
    with Change("Split", empty_view(read_hierarchies())) as change:
        change.note("shares", old, new)
        splitter.run(steps)
    for line in splitter.warnings:
        print(one_line(f"nestrt: warning: {line}"), file=sys.stderr)
    return 0


def _dry(steps: list[Step]) -> int:
    return write(one_line(step.describe()) for step in steps)


def _divided(state: State) -> dict[str, object] | None:
    """The parents of guests that init has made heavy, and their weights; None without any."""
    weights = {group.path: group.weight for group in state.groups if group.kept and group.kept.role == "guests"}
    return {"guests": weights} if weights else None


def _notes(state: State, split: Split) -> None:
    """Say what of the split may not be what was meant: the root group's own threads are weighed one by one, and guests
    of engines that are below no group named are weighed as the system."""
    if text := _host_status.counted_as_system(_host_status.outermost(), split.guests):
        print(f"nestrt: note: {text}", file=sys.stderr)
    if state.processes and not split.move:
        how = "systemd keeps them there" if state.systemd else "--move-tasks weighs them as one"
        text = f"{state.processes} processes of the root group compete with guests one by one; {how}"
        print(f"nestrt: note: {text}", file=sys.stderr)


def main(argv: list[str]) -> int:
    """Carry out ``nestrt host ARGV``. Returns 0; raises InputError, StateError, HostError, KernelError."""
    options = _parser().parse_args(argv)
    mark = own_mark()
    state = read_state(read_hierarchies(), mark)
    if options.command == "status":
        document = _host_status.document(state)
        return write_document(options, document, lambda: _host_status.lines(document))
    if options.command == "reset":
        steps = reset_steps(state)
        return _dry(steps) if options.dry_run else _carry_out(steps, mark + ATTRIBUTE, _divided(state), None)
    split = Split(
        share=_percent(options.system_cpu, "--system-cpu"),
        guests=tuple(dict.fromkeys("/" + path.strip("/") for path in options.guests or [GUESTS])),
        hard=options.hard,
        memory=_memory(options.system_memory, state),
        system="/" + options.system_group.strip("/"),
        move=options.move_tasks,
    )
    steps = init_steps(state, split)
    _notes(state, split)
    if options.dry_run:
        return _dry(steps)
    asked = {"system_cpu": split.share, "guests": split.guests, "hard": split.hard, "system_memory": split.memory,
             "move_tasks": split.move}  # fmt: skip
    return _carry_out(steps, mark + ATTRIBUTE, _divided(state), asked)
