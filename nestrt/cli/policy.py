"""``nestrt policy check FILE``: whether a file of policy or bindings is right; ``explain``: what holds for a bundle."""

from __future__ import annotations

import argparse
import os
import stat
import sys

from nestrt.errors import InputError, KernelError, NestrtError, NotFound
from nestrt.level.annotations import FIELDS
from nestrt.level.binding import Bindings, Bundle, decide, engine_of
from nestrt.level.bound import said
from nestrt.level.limits import Limits
from nestrt.level.policy import Policy
from nestrt.level.rules import origins, problems
from nestrt.level.toml import FILE_LIMIT, find_mistakes, load_policy
from nestrt.level.units import ID_LIMIT, digits, format_quota, format_size
from nestrt.probe.policies import ETC, load, rules_of, seen_outside


def read_policy(path: str) -> str:
    """The text of the policy file *path*.

    Raises NotFound, InputError (a directory or device, over 1 MiB, not UTF-8) or KernelError.
    """
    what = f"policy {path}"
    try:
        # A FIFO would wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("read", what, "there is no such file", "name a TOML file") from None
    except ValueError:
        raise InputError("read", what, "no file name holds a NUL character", "name a TOML file") from None
    except OSError as error:
        raise KernelError("read", what, error.errno or 0) from None
    try:
        # Asked first: Python refuses to wrap a directory, and a device may never end.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError("read", what, "it is not a regular file", "name a TOML file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(FILE_LIMIT + 1)
    finally:
        os.close(descriptor)
    if len(content) > FILE_LIMIT:
        raise InputError("read", what, "it is larger than 1 MiB", "a policy is a page: name a TOML file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError("read", what, f"byte {error.start} is not UTF-8", "save it as UTF-8 text") from None


# Of a policy, what only ``launch`` uses: a bundle's own document says it.
USER_FIELDS = ("user_namespace", "uid_map", "gid_map", "capabilities", "no_new_privs", "masked")
VALUE_WIDTH = 24  # a longer one pushes the rest of its line
USER_NOTE = "[user] is for launch: a bundle's document says its ids, capabilities and masked paths itself"


def plain(text: str) -> str:
    """*text* as one line that holds nothing a terminal obeys."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _is_bindings(path: str, text: str) -> bool:
    return os.path.basename(path) == "bindings.toml" or any(line.startswith("[[rule]]") for line in text.splitlines())


def _beside(path: str) -> tuple[dict[str, Policy], dict[str, str]]:
    """Policies and mistakes of the directory ``policies`` beside the bindings file *path*."""
    directory = os.path.join(os.path.dirname(path), "policies")
    policies: dict[str, Policy] = {}
    mistakes: dict[str, str] = {}
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        if name.endswith(".toml"):
            try:
                policies[name[:-5]] = load_policy(read_policy(os.path.join(directory, name)), name)
            except NestrtError as error:
                mistakes[name[:-5]] = str(error)
    return policies, mistakes


def _check_bindings(path: str, text: str) -> list[NestrtError]:
    """Every mistake in the bindings file *path*; "FILE: ok" if there is none."""
    rules, mistakes = rules_of(text, path)
    if mistakes:
        return list(mistakes)
    bindings = Bindings(rules, *_beside(path), source=path)
    found = problems(bindings)
    if not found:
        print(plain(f"{path}: ok ({len(rules)} rule{'s' if len(rules) != 1 else ''})"))
        for number, rule in enumerate(rules, 1):
            if rule.policy and _user_part(bindings.find(rule.policy)):
                print(f"  rule {number}, policy {rule.policy}: {USER_NOTE}")
    return list(found)


def _user_part(policy: Policy) -> bool:
    return any(getattr(policy, field) != getattr(Policy(), field) for field in USER_FIELDS)


def _check(files: list[str]) -> int:
    found: list[NestrtError] = []
    for path in files:
        try:
            text = read_policy(path)
        except NestrtError as error:
            found.append(error)
            continue
        if _is_bindings(path, text):
            found += _check_bindings(path, text)
            continue
        mistakes = find_mistakes(text, path)
        found += mistakes
        if not mistakes:
            policy = load_policy(text, path)
            text = f"levels to {policy.max_level}, view {policy.mount}, namespace {policy.user_namespace}"
            print(plain(f"{path}: ok ({text})"))
    for mistake in found[:-1]:
        print(f"nestrt: {mistake}", file=sys.stderr)
    if found:
        raise found[-1]
    return 0


def _pairs(texts: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = [text.partition("=") for text in texts]
    for key, equals, _ in pairs:
        if not equals or not key:
            raise InputError("read", f"annotation {key[:60]}", "it has no value", "write --annotation KEY=VALUE")
        if [other for other, _, _ in pairs].count(key) > 1:
            raise InputError("read", f"annotation {key[:60]}", "it is there twice", "give it once")
    return tuple((key, value) for key, _, value in pairs)


def _uid(text: str) -> int:
    value = digits(text)
    if value is None or value >= ID_LIMIT:
        raise InputError("read", f"user {text[:60]}", "it is no uid", "write the number: id -u NAME")
    return value


def _limit_text(limits: Limits, name: str) -> str:
    value = limits.to_mark()[name]
    if name in ("memory", "swap") and isinstance(value, int):
        return format_size(value)
    if name == "cpu_quota" and isinstance(value, int):
        return format_quota(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _explain(options: argparse.Namespace) -> int:
    annotations = _pairs(options.annotation)
    users = tuple(_uid(text) for text in options.user) or seen_outside((os.getuid(),))
    bundle = Bundle(options.cgroup, options.bundle, users)
    bindings = load(options.directory)
    decision = decide(annotations, bindings, bundle)
    rows = [
        ("engine", engine_of(dict(annotations), options.bundle) or "not known", ""),
        ("rule", str(decision.rule) if decision.rule else "none", bindings.source if decision.rule else ""),
        ("bound", decision.bound.source, ""),
    ]
    if decision.policy is None:
        rows.append(("policy", "none", "exactly as under runc"))
    else:
        came = origins(annotations, decision)
        rows.append(("policy", decision.policy.source, ""))
        rows += [(key, said(decision.policy, field), came[key]) for key, field in FIELDS.items()]
        limits = decision.policy.limits
        rows += [(key, _limit_text(limits, key[7:]), text) for key, text in came.items() if key.startswith("limits.")]
        if decision.base is not None and _user_part(decision.base):
            rows.append(("user", "not used", USER_NOTE))
    width = max(len(row[0]) for row in rows)
    for row in rows:
        name, value, text = map(plain, row)
        print(f"{name:{width}}  {value:{VALUE_WIDTH}}  {text}".rstrip())
    return 0


def main(argv: list[str]) -> int:
    """*argv* are the arguments after ``policy``. Returns the exit status.

    ``check`` prints "FILE: ok", or every mistake but the last on standard error and raises
    the last: InputError. ``explain`` prints the policy of a bundle, a line for each part
    with where it came from, and raises what a container would be refused with.
    """
    parser = argparse.ArgumentParser(prog="nestrt policy", description="CONTAINER_LEVEL policies and their bindings")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="say whether policy and bindings files are right, and name every mistake")
    check.add_argument("files", nargs="+", metavar="FILE", help="a TOML file; examples/policies has some")
    explain = commands.add_parser("explain", help="say which policy a bundle gets, and where each part comes from")
    explain.add_argument("--annotation", "-a", action="append", default=[], metavar="K=V", help="of the bundle; repeat")
    explain.add_argument("--cgroup", default="", metavar="PATH", help="its cgroupsPath")
    explain.add_argument("--bundle", default="", metavar="DIR", help="where the bundle is; nothing is read there")
    explain.add_argument(
        "--user", action="append", default=[], metavar="UID", help="the caller, or the container's root; repeat"
    )
    explain.add_argument("--directory", default=ETC, metavar="DIR", help=f"of policies and bindings (default: {ETC})")
    options = parser.parse_args(argv)
    return _check(options.files) if options.command == "check" else _explain(options)
