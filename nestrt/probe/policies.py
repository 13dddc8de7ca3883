"""The host's policies and bindings: /etc/nestrt, read once and kept parsed.

/etc/nestrt/bindings.toml says which policy holds for which bundle; a file
/etc/nestrt/policies/NAME.toml is the policy NAME. Who can write one of them says what
every container may do, so they belong to root and are writable by nobody else.

TOML takes 36 ms to read, most of it to import what reads it, so what was read is kept
as JSON in /run/nestrt, with the files' inode numbers, sizes and times: a container costs
one stat(2) where there is no /etc/nestrt, and one per file where there is.
"""

from __future__ import annotations

import os
from stat import S_IMODE, S_ISDIR, S_ISREG

from nestrt import jsontext
from nestrt.errors import HostError, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from nestrt.level.binding import Bindings, Bundle, Rule
    from nestrt.level.policy import Policy

    Key = list[list[object]]

ETC = "/etc/nestrt"
CACHE = "/run/nestrt/policies.json"
FILE_LIMIT = 1 << 20  # bytes: a policy is a page
POLICIES_LIMIT = 256
CACHE_LIMIT = 64 << 20
FORMAT = 1  # of the cache: one more whenever the same text comes to mean another policy
# A file that was written just now can be written once more in the same tick of the kernel's clock.
SETTLED = 2_000_000_000  # ns
REMEDY = "let root own it, and nobody else write it"


def policy_of(
    annotations: Iterable[tuple[str, str]],
    bundle: Bundle | tuple[str, str, tuple[int, ...]] | None,
    directory: str = ETC,
    cache: str = CACHE,
    usual: str = "",
) -> Policy | None:
    """The policy of a bundle (binding.resolve()) on this host; None for exactly as runc.

    *usual* names the policy of bundles that no rule of the host's matches: the host's word as well, on the
    command line of a hook.

    *bundle* may be the bare fields of a Bundle, (cgroup, path, users), so that nobody imports it for
    nothing: this costs one stat(2) where there is neither *directory* nor a ``nestrt.*`` annotation.
    Raises InputError for an annotation, HostError for a file of the host.
    """
    given = tuple(annotations)
    try:
        os.stat(directory)
    except FileNotFoundError:
        if not usual and not any(key.startswith("nestrt.") for key, _ in given):
            return None
    except OSError as error:
        raise _unreadable(directory, error) from None
    from nestrt.level.binding import Bundle, resolve, with_usual  # only for those that may have a policy

    bindings = load(directory, cache)
    if usual:
        bindings = with_usual(bindings, usual)
    known = Bundle(*bundle) if isinstance(bundle, tuple) else bundle or Bundle()
    if any(rule.match.user for rule in bindings.rules):
        known = Bundle(known.cgroup, known.bundle, seen_outside(known.users))
    return resolve(given, bindings, known)


def seen_outside(users: tuple[int, ...]) -> tuple[int, ...]:
    """*users* as this user namespace counts them, and as the one around it does: user_namespaces(7), uid_map.

    An ordinary user's podman runs its runtime as root of a namespace of that user's own.
    """
    from nestrt.kernel.id_maps import read_id_map

    ranges = read_id_map("uid_map")
    outside = tuple(begin + user - low for user in users for low, begin, n in ranges if low <= user < low + n)
    return users + tuple(user for user in outside if user not in users)


def load(directory: str = ETC, cache: str = "") -> Bindings:
    """What *directory* says; nothing where it is not there. *cache* is a file to keep it in, "" for none.

    A policy file with a mistake is one only for those that use it. Raises HostError: a
    file that others than root can write, that cannot be read, bindings with a mistake.
    """
    from nestrt.level.binding import Bindings

    source = f"{directory}/bindings.toml"
    names = _names(directory)
    if names is None:
        return Bindings(source=source)
    key = [_stamp(source, directory, "bindings.toml"), *(_stamp(path, directory, name) for name, path in names)]
    if all(stamp == [] for stamp in key):
        return Bindings(source=source)
    if cache:
        known = _from_cache(cache, directory, key)
        if known is not None:
            return known
    policies: dict[str, Policy] = {}
    mistakes: dict[str, str] = {}
    for name, path in names:
        _read_policy(name, path, policies, mistakes)
    found = Bindings(_read_rules(source) if key[0] else (), policies, mistakes, source)
    if cache:
        _to_cache(cache, directory, key, found)
    return found


def _names(directory: str) -> list[tuple[str, str]] | None:
    """(name, path) of each policy file; None where there is no *directory*. Raises HostError."""
    try:
        _check(directory, os.stat(directory), directory=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(directory, error) from None
    below = f"{directory}/policies"
    try:
        _check(below, os.stat(below), directory=True)
        files = sorted(name for name in os.listdir(below) if name.endswith(".toml") and not name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(below, error) from None
    if len(files) > POLICIES_LIMIT:
        raise HostError("read", below, f"{len(files)} policies are too many", f"keep at most {POLICIES_LIMIT}")
    return [(name[:-5], f"{below}/{name}") for name in files]


def _unreadable(path: str, error: OSError) -> HostError:
    return HostError("read", path, error.strerror or "", "the host's policies must be readable for whoever starts one")


def _owners() -> tuple[int, int]:
    # In a user namespace that does not map the host's root, its files are the overflow uid's, as / is.
    return 0, os.stat("/").st_uid


def _check(path: str, found: os.stat_result, directory: bool = False) -> None:
    """Refuse what is no regular file (no directory), or not root's alone."""
    if not (S_ISDIR if directory else S_ISREG)(found.st_mode):
        raise HostError(
            "use", path, "it is no directory" if directory else "it is not a regular file", "see nestrt policy --help"
        )
    if found.st_uid not in _owners():
        raise HostError("trust", path, f"it belongs to uid {found.st_uid}", REMEDY)
    if found.st_mode & 0o022:
        raise HostError(
            "trust", path, f"others than its owner may write it (mode {S_IMODE(found.st_mode):04o})", REMEDY
        )
    if not directory and found.st_size > FILE_LIMIT:
        raise HostError("read", path, "it is larger than 1 MiB", "a policy is a page")


def _stamp(path: str, directory: str, name: str) -> list[object]:
    """What changes whenever the file does; [] where it is not there. Raises HostError for one that is not trusted."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if not os.path.islink(path):
            return []
        raise HostError("read", path, "it is a link to nothing", "remove it, or make what it names") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    _check(path, found)
    return [directory, name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _text(path: str) -> str:
    """The text of the file *path*, looked at once more when it is open. Raises HostError."""
    try:
        # A FIFO would wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        _check(path, os.fstat(descriptor))
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(FILE_LIMIT + 1)
    finally:
        os.close(descriptor)
    if len(content) > FILE_LIMIT:
        raise HostError("read", path, "it is larger than 1 MiB", "a policy is a page")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise HostError("read", path, f"byte {error.start} is not UTF-8", "save it as UTF-8 text") from None


def _read_policy(name: str, path: str, policies: dict[str, Policy], mistakes: dict[str, str]) -> None:
    from nestrt.level.toml import load_policy  # tomllib: only where a file has to be read

    try:
        policies[name] = load_policy(_text(path), path)
    except InputError as error:
        mistakes[name] = str(error)


def _read_rules(path: str) -> tuple[Rule, ...]:
    text = _text(path)
    rules, errors = rules_of(text, path)
    if errors:
        raise HostError("use", path, str(errors[0]), f"nestrt policy check {path} names every mistake")
    return rules


def rules_of(text: str, path: str) -> tuple[tuple[Rule, ...], list[InputError]]:
    """The rules in the text of the bindings file *path*, and every mistake in it."""
    import tomllib

    from nestrt.level.rules import parse_bindings

    errors: list[InputError] = []
    try:
        return parse_bindings(tomllib.loads(text), path, errors), errors
    except (ValueError, RecursionError) as error:
        reason = "tables and lists are nested too deeply" if isinstance(error, RecursionError) else f"not TOML: {error}"
        remedy = "correct the line; examples/policies/bindings.toml is a whole file"
        return (), [InputError("read", f"bindings {path}", reason, remedy)]


def _fields() -> list[object]:
    from nestrt.level.limits import Limits
    from nestrt.level.policy import Policy

    return [FORMAT, *Policy().__dict__, *Limits().__dict__]


def _to_cache(cache: str, directory: str, key: Key, bindings: Bindings) -> None:
    """Keep *bindings*; where that cannot be, the files are read again next time."""
    import time

    newest = max(time_ for stamp in key for time_ in stamp[-2:] if isinstance(time_, int))
    if os.geteuid() != 0 or time.time_ns() - newest < SETTLED:
        return
    rules = [
        [*(list(value) for value in rule.match.__dict__.values()), rule.policy, rule.bound, rule.annotations]
        for rule in bindings.rules
    ]
    policies = {name: to_fields(policy) for name, policy in bindings.policies.items()}
    content = jsontext.dumps(
        {"fields": _fields(), "key": key, "rules": rules, "policies": policies, "mistakes": dict(bindings.mistakes)}
    )
    temporary = f"{cache}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(cache), 0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(content)
            os.rename(temporary, cache)
        except OSError:
            os.unlink(temporary)
    except OSError:
        return


def _from_cache(cache: str, directory: str, key: Key) -> Bindings | None:
    """What _to_cache() kept, if it is root's and of these files; else None."""
    try:
        descriptor = os.open(cache, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022 or found.st_size > CACHE_LIMIT:
            return None
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read()
    except OSError:
        return None
    finally:
        os.close(descriptor)
    from nestrt.level.binding import Bindings, Match, Rule

    try:
        value = jsontext.loads(content.decode("ascii"))
        if value["key"] != key or value["fields"] != _fields():
            return None
        rules = []
        for engine, cgroup, path, annotation, user, *rest in value["rules"]:
            ranges = tuple((low, high) for low, high in user)
            rules.append(Rule(Match(tuple(engine), tuple(cgroup), tuple(path), tuple(annotation), ranges), *rest))
        policies = {name: from_fields(fields) for name, fields in value["policies"].items()}
        return Bindings(tuple(rules), policies, dict(value["mistakes"]), f"{directory}/bindings.toml")
    except (ValueError, KeyError, TypeError, InputError):
        return None  # cut off, or of another version


def to_fields(policy: Policy) -> dict[str, object]:
    """*policy* as JSON has it."""
    return {**policy.__dict__, "limits": policy.limits.to_mark()}


def from_fields(fields: dict[str, Any]) -> Policy:
    """The policy that to_fields() wrote. Raises KeyError, TypeError, ValueError, InputError for what it did not."""
    from nestrt.level.limits import from_mark
    from nestrt.level.policy import Policy

    values = dict(fields)
    for name in ("controllers", "capabilities"):
        values[name] = None if values[name] is None else tuple(values[name])
    for name in ("uid_map", "gid_map"):
        values[name] = tuple((inside, outside, count) for inside, outside, count in values[name])
    values["broker_most"] = tuple(values.get("broker_most", ()))  # an older nestrt's record has none
    values["limits"] = from_mark(values["limits"])
    return Policy(**values)
