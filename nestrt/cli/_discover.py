"""What a command takes, found out from the command itself: its options, their values, its operands.

There is no list of them beside the commands. A command is called with one word that no command knows. Those that use
argparse get no further than ``parse_args``, of which the parser is taken; those with a table of Options look
the word up in it, and are stopped there. All commands read their command line before they do anything.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re

from nestrt.cli import options as tables
from nestrt.cli._arguments import Named
from nestrt.cli._formats import Format
from nestrt.cli.engine import Globals
from nestrt.errors import NestrtError
from nestrt.host.event import KINDS as EVENTS
from nestrt.host.render import SHORT
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

UNKNOWN = "--nestrt-which-options"
# By the word for a value in the command's own help.
KINDS = {
    "FILE": "files", "PATH": "files", "DIR": "directories", "COMMAND": "files", "ROOTFS": "directories",
    "NAME": "guests", "GUEST": "guests", "GROUP": "guests", "ID": "containers", "SIGNAL": "signals",
}  # fmt: skip
FIXED = {"BOOL": ("true", "false"), "KINDS": tuple(EVENTS), "KEY": (*SHORT.values(), *SHORT)}
FIRST_LINE = re.compile(r"usage: nestrt (?:\[GLOBAL OPTION …\] )?(.*)")
OPTION_LINE = re.compile(r"\s+(?:-(\w), )?--([a-z-]+)(?: ([A-Z=:]+))?\s\s+(.*)")


@record
class Taken:
    """A value that a command takes: *choices*, or what *kind* says: files, directories, guests, containers, signals,
    policies, or "". *flags* are the option's names, () of an operand; an option of no *takes* is a switch.
    *repeats*: any number of them."""

    flags: tuple[str, ...]
    takes: bool
    kind: str
    choices: tuple[str, ...]
    text: str
    repeats: bool = False


@record
class Command:
    """What a command takes, and its own *commands* by name."""

    text: str
    options: tuple[Taken, ...] = ()
    operands: tuple[Taken, ...] = ()
    commands: dict[str, Command] | None = None


class Parser(Exception):
    """The argparse parser of a command that has been stopped."""

    def __init__(self, found: argparse.ArgumentParser) -> None:
        super().__init__()
        self.found = found


class Table(Exception):
    """The Options of a command that has been stopped."""

    def __init__(self, found: tuple[tables.Option, ...]) -> None:
        super().__init__()
        self.found = found


def _stop_parser(parser: argparse.ArgumentParser, *given: Any, **named: Any) -> argparse.Namespace:
    raise Parser(parser)


def _stop_table(found: tuple[tables.Option, ...], flag: str, command: str) -> tables.Option:
    raise Table(found)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Commands that are called are stopped where they read their command line."""
    whole, known, find = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args, tables._find
    try:
        argparse.ArgumentParser.parse_args = _stop_parser  # type: ignore[method-assign, assignment]
        argparse.ArgumentParser.parse_known_args = _stop_parser  # type: ignore[method-assign, assignment]
        tables._find = _stop_table  # type: ignore[assignment]
        yield
    finally:
        argparse.ArgumentParser.parse_args = whole  # type: ignore[method-assign]
        argparse.ArgumentParser.parse_known_args = known  # type: ignore[method-assign]
        tables._find = find


def discover(name: str, verb: bool, text: str) -> Command:
    """What the module nestrt.cli.*name* takes; nothing where there is none. *verb*: of the OCI command line."""
    try:
        main = __import__(f"nestrt.cli.{name}", fromlist=["main"]).main
    except (ImportError, AttributeError):
        return Command(text)
    call: Callable[[list[str]], int] = (lambda words: main(Globals(), words)) if verb else main
    try:
        with _stopping():
            call([UNKNOWN])
    except Parser as stopped:
        return _of_parser(stopped.found, text)
    except Table as stopped:
        usage = _help(call)
        options = tuple(_of_option(option) for option in stopped.found)
        return Command(text, options, _of_usage(usage), _of_actions(name, call))
    except (NestrtError, SystemExit):
        # One that reads its words itself.
        usage = _help(call)
        rows = [match.groups(default="") for line in usage.splitlines() if (match := OPTION_LINE.match(line))]
        found = [tables.Option(long, metavar, text, short) for short, long, metavar, text in rows]
        return Command(text, tuple(_of_option(option) for option in found), _of_usage(usage))
    return Command(text)


def _of_actions(name: str, call: Callable[[list[str]], int]) -> dict[str, Command] | None:
    """The commands of one whose first word may be another's: the module's ACTIONS, which one parser reads."""
    word = next(iter(getattr(__import__(f"nestrt.cli.{name}", fromlist=["ACTIONS"]), "ACTIONS", ())), "")
    if word:
        try:
            with _stopping():
                call([word, UNKNOWN])
        except Parser as stopped:
            return _of_parser(stopped.found, "").commands
    return None


def _help(call: Callable[[list[str]], int]) -> str:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            call(["--help"])
    except (NestrtError, SystemExit):
        pass
    return out.getvalue()


def _kind(metavar: str, flag: str) -> str:
    """What a value is, by the word for it; *flag* "" is an operand."""
    kind = KINDS.get(metavar) or KINDS.get(metavar.partition("|")[0], "")
    if flag == "policy" and metavar == "NAME":
        return "policies"
    # An option's NAME is of anything: a host, a slice. So is the ID of one that is to be made.
    return "" if kind in ("guests", "containers") and flag and metavar != "GUEST" and flag not in ("of",) else kind


def _of_option(option: tables.Option) -> Taken:
    flags = (f"--{option.name}", *((f"-{option.short}",) if option.short else ()))
    choices = option.choices or FIXED.get(option.metavar, ())
    kind = _kind(option.metavar, option.name)
    return Taken(flags, bool(option.metavar), kind, choices, option.text, option.repeat)


def _of_parser(parser: argparse.ArgumentParser, text: str) -> Command:
    options: list[Taken] = []
    operands: list[Taken] = []
    commands: dict[str, Command] = {}
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                commands[name] = _of_parser(inner, told.get(name, ""))
            continue
        taken = _of_action(action)
        (options if action.option_strings else operands).append(taken)
    return Command(text, tuple(options), tuple(operands), commands or None)


def _of_action(action: argparse.Action) -> Taken:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    choices = action.type.names if isinstance(action.type, Format | Named) else tuple(map(str, action.choices or ()))
    flags = tuple(sorted(action.option_strings, key=len, reverse=True))
    kind = _kind(metavar, flags[0].lstrip("-") if flags else "")
    repeats = action.nargs in ("*", "+", argparse.REMAINDER) or isinstance(action, argparse._AppendAction)
    text = (action.help or "").replace("%%", "%")
    return Taken(flags, action.nargs != 0, kind, choices or FIXED.get(metavar, ()), text, repeats)


def _of_usage(text: str) -> tuple[Taken, ...]:
    """The operands in ``usage: nestrt kill [--signal SIGNAL] NAME [SIGNAL]``."""
    match = FIRST_LINE.match(text)
    # Options in brackets are none; neither are those that have to be there (--rootfs DIR).
    plain = re.sub(r"\[-[^\]]*\]|--\w[\w-]* \S+", "", match[1]) if match else ""
    found: list[Taken] = []
    for word in plain.split()[1:]:
        name = word.strip("[]").removesuffix("…")
        if word.strip("[]") == "…" and found:
            found[-1].repeats = True
        elif name.isupper() and name != "OPTION":
            found.append(Taken((), True, _kind(name, ""), (), "", word.strip("[]").endswith("…")))
    return tuple(found)
