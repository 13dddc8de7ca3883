"""``nestrt broker status|rules|release|drain``: what the level's root asks its broker, by io.nestrt.Host."""

from __future__ import annotations

import argparse
import os

from nestrt.broker import rules_text
from nestrt.cli._ask_broker import ask
from nestrt.cli._formats import Column, add_options, plain, write_rows
from nestrt.cli._view import write, write_json
from nestrt.cli.broker import ACTIONS
from nestrt.errors import HostError, InputError, NestrtError
from nestrt.guest import remote
from nestrt.guest.client import GuestError, printable
from nestrt.host import short
from nestrt.host.render import human

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

EPILOG = """
GUEST is a name, the beginning of an engine's id, or the path of a limit group where several guests of different engines
have one name. Only guests of this level are served, and not their guests. See nestrt-broker(1).
"""
RULES = """
FILE has lines of cgrules.conf(5): user[:process] controllers destination. They come before the guest's own, and stay
with the guest while it runs, whoever is the broker. Names are the guest's, destinations count from its root.
"""


def _size(value: Any, raw: bool) -> str:
    return plain(value) if raw or value is None else human(value)


COLUMNS = (
    Column("NAME", "name"),
    Column("LEVEL", "level"),
    Column("GROUP", "group"),
    Column("PID", "pid"),
    Column("CONNECTIONS", "connections", right=True),
    Column("REQUESTS", "requests", right=True),
    Column("REFUSED", "refused", right=True),
    Column("HOST RULES", "host_rules", right=True),
    Column("RULES", "rules", right=True),
    Column("REACTIONS", "reactions", right=True),
    Column("MAX CONNECTIONS", "quota.connections", right=True),
    Column("MAX REQUESTS/S", "quota.requests_per_second", right=True),
    Column("MAX MESSAGE", "quota.message_bytes", _size, right=True),
)
CSV = (*COLUMNS, Column("SOCKET", "socket"))
# As the broker calls them.
NUMBERS = ("level", "pid", "connections", "requests", "refused", "host_rules", "rules", "reactions")
QUOTA = ("requests_per_second", "connections", "message_bytes")


class Parser(argparse.ArgumentParser):
    """Its errors are as all others: one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError("read", f"the command line of {self.prog}", message, f"see {self.prog} --help")


def parser() -> Parser:
    """The command line, whose first word is one of ACTIONS."""
    found = Parser(prog="nestrt broker", description="Ask the broker of this level.")
    commands = found.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = {}
    for name, text in ACTIONS.items():
        raw = argparse.RawDescriptionHelpFormatter
        more = EPILOG if name in ("rules", "release") else None
        made[name] = commands.add_parser(name, help=text, description=text, epilog=more, formatter_class=raw)
    add_options(made["status"])
    for name in ("rules", "release"):
        made[name].add_argument("guest", metavar="GUEST", help="its name or limit group")
    rules = made["rules"]
    rules.epilog = RULES + EPILOG
    rules.add_argument("file", metavar="FILE", nargs="?", help="set these and no others; -: standard input")
    rules.add_argument("--clear", action="store_true", help="set none")
    rules.add_argument("--format", choices=("text", "json"), default="text")
    return found


def main(argv: list[str]) -> int:
    """Carry out ``nestrt broker ARGV``. Returns 0; raises NestrtError: HostError's status where there is no broker."""
    options = parser().parse_args(argv)
    if os.geteuid() != 0:
        raise HostError("ask", "the broker", "only root of its level may", "run it as root")
    if options.action == "status":
        served = _served()
        served.sort(key=lambda row: (row["name"], row["group"]))
        return write_rows(options, served, CSV if options.format == "csv" else COLUMNS)
    if options.action in ("rules", "release"):
        options.guest = _named(options.guest)
    if options.action == "rules":
        return _rules(options)
    if options.action == "release":
        ask("io.nestrt.Host.Release", {"guest": options.guest})
    else:
        ask("io.nestrt.Host.Drain", {})
    return 0


def _served() -> list[dict[str, Any]]:
    found = ask("io.nestrt.Host.Guests", {}).get("guests")
    return [_row(one) for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _named(name: str) -> str:
    """The whole name where *name* is the beginning of an engine's id. Raises InputError where it is of several."""
    found = short.pick(name, (row["name"] for row in _served())) if short.is_short(name) else None
    return found or name


def _row(guest: dict[str, Any]) -> dict[str, Any]:
    """A guest as ``--format json`` has it."""

    def number(key: str, of: dict[str, Any] = guest) -> int | None:
        value = of.get(key)
        return value if type(value) is int and value >= 0 else None  # -1: not made yet

    quota = guest.get("quota")
    most = {key: number(key, quota) for key in QUOTA} if isinstance(quota, dict) else None
    texts = {key: str(guest.get(of, "")) for key, of in (("name", "name"), ("group", "cgroup"), ("socket", "socket"))}
    first = {"name": texts["name"], "level": number("level"), "group": texts["group"]}
    return {**first, **{key: number(key) for key in NUMBERS[1:]}, "quota": most, "socket": texts["socket"]}


def _rules(options: argparse.Namespace) -> int:
    lines: list[str] | None = None
    what = f"the rules of {options.guest}"
    if options.clear and options.file is not None:
        raise InputError("set", what, "a file and --clear exclude each other", "leave one of them out")
    if options.clear:
        lines = []
    elif options.file is not None:
        lines = _read(options.file, what)
    shown = ask("io.nestrt.Host.Rules", {"guest": options.guest, "rules": lines}).get("rules")
    rules = [str(line) for line in shown] if isinstance(shown, list) else []
    if options.format == "json":
        return write_json(rules)
    return write(map(printable, rules)) if lines is None else 0


def _read(path: str, what: str) -> list[str]:
    """The rules in a file, of the right form. Raises NestrtError."""
    try:
        lines = remote.read_rules(path, f"set {what}")
        rules_text.parse(lines)  # the broker does as well, but takes no call of any length
    except GuestError as refused:
        verb, _, obj = refused.operation.partition(" ")
        error = NestrtError(verb, obj, refused.reason, refused.remedy)
        error.status = refused.status
        raise error from None
    except rules_text.BadRule as bad:
        raise InputError("set", what, bad.reason, bad.remedy) from None
    if not lines:  # whoever has none to give may have failed to make them
        raise InputError("set", what, f"there are none in {path}", "--clear removes those that there are")
    return lines
