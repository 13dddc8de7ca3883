"""``nestrt hooks install · uninstall · status``: bind the plugin to engines that run other runtimes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from nestrt.cli import _hooks_engines as engines
from nestrt.cli import _hooks_files as files
from nestrt.cli._command import PACKAGE, command_path, find
from nestrt.cli._hooks_engines import ENGINES, Place, Target
from nestrt.cli._hooks_files import Change
from nestrt.cli._hooks_texts import DEFAULT_WHEN, Settings, go_regex
from nestrt.cli._hooks_toml import ByHand
from nestrt.errors import HostError, InputError, NestrtError, NotFound, one_line
from nestrt.probe.policies import ETC, load
from nestrt.record import record


def _package(command: str) -> str:
    """The modules that *command* runs: those beside a checkout's hooks/nestrt, else those that run now."""
    beside = f"{os.path.dirname(os.path.dirname(os.path.realpath(command)))}/nestrt"
    return beside if os.path.isfile(f"{beside}/start.py") else PACKAGE


def _fault(command: str) -> str:
    """Why *command* must not be called as root for each container, "" where it may."""
    return files.unusable(command) or files.untrusted_tree(_package(command))


def _chosen(names: list[str], everything: bool = False) -> list[str]:
    """The engines named, else those found on the machine, or all. Raises NotFound."""
    if names:
        return [name for name in ENGINES if name in names]
    found = [name for name, engine in ENGINES.items() if everything or find(engine.program)]
    if not found:
        raise NotFound(
            "find", "an engine", f"none of {', '.join(ENGINES)} is on this machine", "name one: --engine NAME"
        )
    return found


# --- install ------------------------------------------------------------------------------------


def _when(options: argparse.Namespace) -> dict[str, Any]:
    """podman's condition, of the options. Raises InputError."""
    if options.always:
        return {"always": True}
    if options.command is not None:
        return {"commands": [go_regex(options.command, "--command")]}
    if options.annotation is None:
        return DEFAULT_WHEN
    key, equals, value = options.annotation.partition("=")
    if not equals or not key:
        remedy = "write --annotation KEYREGEX=VALUEREGEX"
        raise InputError("read", f"--annotation {options.annotation[:60]}", "it has no value", remedy)
    return {"annotations": {go_regex(key, "--annotation"): go_regex(value, "--annotation")}}


def _changes(names: list[str], options: argparse.Namespace) -> list[Change]:
    """What install would write, nothing of it done. Raises what reading and editing do."""
    place = Place(options.prefix)
    when = _when(options)
    if when is not DEFAULT_WHEN and "podman" not in names:
        flag = "--always" if options.always else "--command" if options.command is not None else "--annotation"
        raise InputError(
            "bind",
            f"{names[0]} by {flag}",
            "only podman has conditions",
            "its containers choose the runtime themselves",
        )
    if options.policy:
        load(place.shown(ETC)).find(options.policy)
    command = command_path()
    runtime = ""
    if options.runtime or names != ["podman"]:
        runtime = engines.runtime_path(options.runtime, command, place.shown("") if options.prefix else "")
    found = []
    for name in names:
        settings = Settings(command, options.policy, runtime, when)
        for target in engines.targets(name, settings, place):
            path = place.path(target.path)
            old = files.read(path)
            found.append(Change(path, old, target.install(old), target.mode))
    return found


def _install(options: argparse.Namespace) -> int:
    names = _chosen(options.engine)
    try:
        changes = _changes(names, options)
    except ByHand as error:
        sys.stdout.write(error.block)
        raise
    if options.print:
        for change in changes:
            sys.stdout.write(f"# {change.path}\n{change.new}")
            if not (change.new or "").endswith("\n"):
                sys.stdout.write("\n")
        return 0
    _check_trust(options.prefix, [change.path for change in changes])
    files.apply(changes)
    for change in changes:
        print(one_line(f"{'unchanged' if change.new == change.old else 'wrote'} {change.path}"))
    place = Place(options.prefix)
    for name in names:
        unread, driver = engines.unread(name, place), engines.driver_note(name, place)
        if unread:
            print(one_line(f"nestrt: warning: {name} does not use it: {unread}"), file=sys.stderr)
        elif not options.prefix:
            print(f"{name}: {ENGINES[name].then}")
        if driver:
            print(one_line(f"nestrt: warning: {name}: {driver}"), file=sys.stderr)
    return 0


def _check_trust(prefix: str, paths: list[str]) -> None:
    """Raise HostError where others than root can change what engines are to call as root, or where that is said."""
    fault = _fault(command_path())
    place = os.path.abspath(prefix) if prefix else ""
    for path in paths:
        fault = fault or files.untrusted(path, place)
    if fault:
        raise HostError("install", "the hooks", f"engines run them as root, and {fault}", files.REMEDY)


# --- uninstall ----------------------------------------------------------------------------------

# What uninstall reads needs no settings.
NOTHING = Settings("", runtime="")


def _uninstall_one(name: str, place: Place) -> None:
    changes = []
    for target in reversed(engines.targets(name, NOTHING, place)):
        path = place.path(target.path)
        old = files.read(path)
        changes.append(Change(path, old, target.uninstall(old), target.mode))
    files.apply(changes)
    for change in changes:
        if change.new != change.old:
            print(one_line(f"{'removed' if change.new is None else 'changed'} {change.path}"))


def _uninstall(options: argparse.Namespace) -> int:
    place = Place(options.prefix)
    errors: list[NestrtError] = []
    for name in _chosen(options.engine, everything=True):
        try:
            _uninstall_one(name, place)
        except NestrtError as error:
            errors.append(error)
    files.remove_empty(place.shown(path) for path in engines.OWN_DIRECTORIES)
    for earlier in errors[:-1]:
        print(f"nestrt: {earlier}", file=sys.stderr)
    if errors:
        raise errors[-1]
    return 0


# --- status -------------------------------------------------------------------------------------


@record
class Report:
    """What there is of an engine: *program* "" where it is not on the machine, *files* (path, state, why) of each
    file that install writes, *problems* what else is wrong, *note* what is to be known. *settings* None: nothing
    that can be read."""

    engine: str
    program: str
    installed: bool
    files: tuple[tuple[str, str, str], ...]
    problems: tuple[str, ...]
    settings: Settings | None
    note: str = ""

    @property
    def right(self) -> bool:
        return not self.installed or not (self.problems or any(state != "ok" for _, state, _ in self.files))


def _state_of(target: Target, place: Place) -> tuple[str, str, bool]:
    """(state, why, whether ours is in it) of a file: ok, missing, changed, unsafe or unreadable."""
    try:
        old = place.read(target.path)
        present = target.present(old)
        if not present:
            return "missing", "" if old is None else "nestrt is not in it", False
        if target.install(old) != old:
            return "changed", "install would write it otherwise", True
        path = place.path(target.path)
        fault = place.untrusted(target.path)
        if not fault and target.mode & 0o111 and not os.access(path, os.X_OK):
            fault = "it is not executable"
        return ("unsafe", fault, True) if fault else ("ok", "", True)
    except NestrtError as error:
        return "unreadable", error.reason, False


def _report(name: str, place: Place) -> Report:
    problems: list[str] = []
    settings = None
    try:
        settings = engines.settings_of(name, place)
    except NestrtError as error:
        problems.append(str(error))
    targets = engines.targets(name, settings or NOTHING, place)
    states = [_state_of(target, place) for target in targets]
    found = tuple(
        (place.shown(target.path), state, why) for target, (state, why, _) in zip(targets, states, strict=True)
    )
    installed = any(present for _, _, present in states)
    program = find(ENGINES[name].program)
    note = ""
    if installed:
        problems += _problems(name, settings, place)
        try:
            note = engines.driver_note(name, place)
        except NestrtError:
            pass  # the file is among the unreadable ones
        if not program and not place.prefix:
            problems.append(f"{ENGINES[name].program} is not on this machine")
    return Report(name, program, installed, found, tuple(problems), settings, note)


def _problems(name: str, settings: Settings | None, place: Place) -> list[str]:
    """What is wrong with what is installed, other than in the files' texts."""
    try:
        found = [engines.unread(name, place)]
        if settings is not None:
            found.append(_fault(settings.command))
            if settings.policy:
                load(place.shown(ETC)).find(settings.policy)
            if settings.runtime:
                real = place.shown(settings.runtime)
                found.append(files.unusable(real if place.prefix and os.path.isfile(real) else settings.runtime))
    except NestrtError as error:
        found = [str(error)]
    return [problem for problem in found if problem]


def _as_json(report: Report) -> dict[str, Any]:
    settings = report.settings
    said: dict[str, Any] | None = None
    if settings is not None:
        said = {"command": settings.command, "policy": settings.policy or None}
        said |= {"runtime": settings.runtime} if settings.runtime else {"when": settings.when}
    return {
        "found": report.program or None,
        "installed": report.installed,
        "right": report.right,
        "settings": said,
        "files": [{"path": path, "state": state, "why": why} for path, state, why in report.files],
        "problems": list(report.problems),
        "note": report.note,
    }


def _status(options: argparse.Namespace) -> int:
    place = Place(options.prefix)
    reports = [_report(name, place) for name in _chosen(options.engine, everything=True)]
    if options.format == "json":
        print(json.dumps({report.engine: _as_json(report) for report in reports}, indent=2))
    else:
        for report in reports:
            _print(report)
    return 0 if all(report.right for report in reports) else 1


def _print(report: Report) -> None:
    word = "not installed" if not report.installed else "ok" if report.right else "WRONG"
    print(f"{report.engine:11} {word:14} {report.program or 'not on this machine'}")
    if not report.installed:
        rows = [row for row in report.files if row[1] == "unreadable"]
    else:
        rows = list(report.files)
    for path, state, why in rows:
        print(one_line(f"  {state:9} {path}{f': {why}' if why else ''}"))
    for problem in report.problems:
        print(one_line(f"  problem   {problem}"))
    if report.note:
        print(one_line(f"  note      {report.note}"))


# --- command line -------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nestrt hooks",
        description="Let containers of runc or crun be guests: bind nestrt's plugin to their engines.",
    )
    commands = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--engine",
        action="append",
        default=[],
        choices=list(ENGINES),
        help="podman, docker, containerd or crio; repeat",
    )
    common.add_argument("--prefix", default="", metavar="DIR", help="put it before every path that is written or read")
    install = commands.add_parser(
        "install",
        parents=[common],
        help="write what each engine found on the machine reads",
        description="For podman hooks are written, for the others a runtime nestrt-runc, which calls runc or crun.",
    )
    which = install.add_mutually_exclusive_group()
    which.add_argument("--always", action="store_true", help="podman: for every container; the host's bindings decide")
    which.add_argument(
        "--annotation", metavar="K=V", help=r"podman: for containers with one that matches (^nestrt\.=.*)"
    )
    which.add_argument("--command", metavar="REGEX", help="podman: for containers whose program's path matches")
    install.add_argument("--policy", default="", metavar="NAME", help="of those that no rule of the host matches")
    install.add_argument(
        "--runtime", default="", metavar="PATH", help="others: what nestrt-runc calls (runc, else crun)"
    )
    install.add_argument(
        "--print", action="store_true", help="write nothing, print each file after a line with its path"
    )
    commands.add_parser("uninstall", parents=[common], help="leave everything as it was before")
    status = commands.add_parser("status", parents=[common], help="what is installed, and whether it is right")
    status.add_argument("--format", choices=("table", "json"), default="table", help="table or json")
    return parser


def main(argv: list[str]) -> int:
    """*argv* are the words after ``hooks``. Returns the exit status.

    ``install`` writes all files or none, and raises what is in its way: HostError where others than root could
    change what engines run as root, InputError and StateError for a file that it cannot edit. ``status`` returns 1
    where what is installed is not right.
    """
    options = _parser().parse_args(argv)
    if options.prefix and not os.path.isdir(options.prefix):
        raise NotFound("use", f"--prefix {options.prefix}", "there is no such directory", "make it first")
    return {"install": _install, "uninstall": _uninstall, "status": _status}[options.action](options)
