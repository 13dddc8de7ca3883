"""What the commands that change guests of any runtime have in common: their words, and the guest that is meant."""

from __future__ import annotations

import os
import sys

from nestrt.act import members
from nestrt.cli.options import Option, parse, parse_go, usage
from nestrt.errors import HostError, InputError, NestrtError, NotFound, StateError
from nestrt.host.short import is_short, whole_name
from nestrt.host.sight import find
from nestrt.host.walk import walk, walk_to
from nestrt.probe.facts import read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.host.walk import Guest, View
    from nestrt.plan.facts import Hierarchy

HELP = Option("help", "", "this text", "h")
# Options of nestrt launch that take the values of runc's.
LIKE = {"pids-limit": "pids", "cpuset-cpus": "cpus", "cpuset-mems": "mems"}


def words(
    command: str, options: tuple[Option, ...], argv: list[str], head: str, tail: str = "", permute: bool = True
) -> tuple[dict[str, str], dict[str, list[str]], list[str]] | None:
    """Options and operands in any order, up to ``--``; None if only help was wanted, which has been printed.

    Without *permute* options end at the first operand. Raises InputError.
    """
    single: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    operands: list[str] = []
    rest = argv
    while rest:
        found, more, left = parse((*options, HELP), rest, command)
        for name, value in found.items():
            if name in single:
                raise InputError("read", f"option --{name}", "it is there twice", "give it once")
            single[name] = value
        for name, values in more.items():
            repeated.setdefault(name, []).extend(values)
        ended = not permute or rest[: len(rest) - len(left)][-1:] == ["--"]
        operands += left if ended else left[:1]
        rest = [] if ended else left[1:]
    if "help" in single:
        sys.stdout.write(usage(head, (*options, HELP), tail))
        return None
    return single, repeated, operands


def look(name: str, hierarchies: tuple[Hierarchy, ...] | None = None) -> tuple[View, Guest]:
    """The guest called *name*, or whose limit group's path that is, at any level.

    The groups of guests are looked at only where the name is that of a guest's guest: there may be very many.
    Raises NotFound, InputError (claims of one name), HostError without cgroups.
    """
    hierarchies = read_hierarchies() if hierarchies is None else hierarchies
    if "/" not in name:
        view = walk(hierarchies, inside=False)
        try:
            return view, find(view, name)
        except NotFound:
            view = walk(hierarchies)  # what is close to the name is to be seen too
    else:
        view = walk_to(hierarchies, [name])
    return view, find(view, name)


def whole_id(root: str, word: str) -> str:
    """The id of the container of *root* that is a guest and that *word*, the beginning of its id, means; "" if none."""
    if not is_short(word):
        return ""
    try:
        found = whole_name(word, walk(read_hierarchies(), inside=False).guests)
    except NestrtError:  # of several: whoever looks for the guest says so
        return ""
    return found if os.path.isdir(f"{root}/{found}") else ""


def for_containers(verb: str, words: list[str]) -> InputError | None:
    """Where *words* name a guest, and have an option that only containers of this runtime take: what to write instead.

    None where there is no such guest."""
    runtime, host = (__import__(f"nestrt.cli.{name}", fromlist=["OPTIONS"]) for name in (verb, f"_host_{verb}"))
    single, repeated, operands = parse_go(runtime.OPTIONS, words, verb, verb != "exec")
    taken = {option.name for option in host.OPTIONS}
    names = [option.name for option in runtime.OPTIONS if option.name in (single.keys() | repeated.keys()) - taken]
    try:
        guest = look(operands[0])[1]
    except NestrtError:
        return None
    like, value = LIKE.get(names[0]), single.get(names[0], "")
    remedy = f"write --{like} {'max' if value == '-1' else value}" if like else f"see nestrt {verb} --help"
    return InputError(verb, f"guest {guest.name}", f"--{names[0]} is for containers of nestrt's own", remedy)


def of_guest(view: View, guest: Guest) -> tuple[Hierarchy, ...]:
    """The hierarchies that have the guest's limit group."""
    return tuple(h for h in view.hierarchies if h.name in guest.hierarchies)


def require_root(operation: str, guest: Guest) -> None:
    """Raises HostError for whoever may not: who cannot write to the limit group learns it before anything is done."""
    if os.geteuid() != 0:
        raise HostError(operation, f"guest {guest.name}", "only root of this level may", "run it as root")


def refuse_own(operation: str, view: View, guest: Guest) -> None:
    """Raises StateError where this process is in the guest: it would stop, or end, itself."""
    if members.is_member(of_guest(view, guest), guest.path, "self"):
        reason = "this command runs in it"
        raise StateError(operation, f"guest {guest.name}", reason, "run it from outside, or in another guest")


def each(names: list[str], command: str, action: Callable[[str], object]) -> int:
    """*action* for each of *names*; one that fails is told, and the others are done. The last failure's exit status."""
    if not names:
        raise InputError(command, "a guest", "none is named", f"write nestrt {command} NAME …")
    status = 0
    for name in dict.fromkeys(names):
        try:
            action(name)
        except NestrtError as error:
            if len(names) == 1:
                raise
            sys.stderr.write(f"nestrt: {error}\n")
            status = error.status
    return status
