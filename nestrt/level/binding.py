"""The host's bindings: which policy holds for which bundle, and what the bundle's annotations may change of it.

/etc/nestrt/bindings.toml is a list of rules; the first that matches decides::

    [[rule]]
    match       = { engine = "podman", cgroup = "/machine.slice/*", user = "1000-1999" }
    policy      = "nested"      # what such bundles get; left out: none, unless an annotation asks
    bound       = "nested"      # the most that annotations may ask; left out: policy, else the built-in bound
    annotations = true          # false: nestrt.* annotations are refused

An annotation is the word of whoever made the bundle. So are the annotations by which an
engine is known: a bound that has to hold is bound to a cgroup path, a user, a bundle's
path or to all.
"""

from __future__ import annotations

from nestrt.errors import HostError, InputError
from nestrt.level.annotations import FIELDS, POLICY, PROFILES, from_annotations, own, profile
from nestrt.level.bound import BOUNDED, DEFAULT_BOUND, FREE, clamp, excesses, quotas, smaller
from nestrt.level.limits import Limits
from nestrt.level.policy import Policy
from nestrt.level.units import clean, shown
from nestrt.level.values import TEXT_LIMIT, suggestion
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MISTAKE = "correct it; nestrt policy check /etc/nestrt/bindings.toml names every mistake"


@record
class Bundle:
    """What rules are matched with. *cgroup* is the limit group's path as the launching level counts it, or
    systemd's ``slice:prefix:name``; *users* the caller's uid, and the launching level's uid of the container's root."""

    cgroup: str = ""
    bundle: str = ""
    users: tuple[int, ...] = ()


@record
class Match:
    """All that is said must hold; of several values of one key, one. Globs: ``*`` is any text, ``?`` one character."""

    engine: tuple[str, ...] = ()
    cgroup: tuple[str, ...] = ()
    bundle: tuple[str, ...] = ()
    annotation: tuple[str, ...] = ()
    user: tuple[tuple[int, int], ...] = ()


@record
class Rule:
    """*policy* and *bound* are names, "" where not said; *where* is what an error calls it, "" by its number."""

    match: Match = Match()
    policy: str = ""
    bound: str = ""
    annotations: bool = True
    where: str = ""


@record
class Bindings:
    """The rules of *source*, the policies that they and annotations can name, and of those
    files that are no policies, what is wrong with them, by the same names."""

    rules: tuple[Rule, ...] = ()
    policies: Mapping[str, Policy] = {}
    mistakes: Mapping[str, str] = {}
    source: str = "/etc/nestrt/bindings.toml"

    def find(self, name: str) -> Policy:
        """The policy *name*: the host's file, else the built-in one.

        Raises InputError where there is none, HostError where the file is wrong.
        """
        if name in self.mistakes:
            raise HostError("use", f"policy {name}", self.mistakes[name], MISTAKE)
        found = self.policies.get(name) or profile(name)
        if found is None:
            remedy = suggestion(name, sorted({*PROFILES, *self.policies}))
            raise InputError("find", f"policy {shown(name)}", "this host has none of that name", remedy)
        return found


@record
class Decision:
    """*policy* None: exactly as runc. *rule* counts from 1, 0 where none matched; *base* is the host's own policy."""

    policy: Policy | None
    rule: int
    base: Policy | None
    bound: Policy


def with_usual(bindings: Bindings, name: str) -> Bindings:
    """*bindings* that give the policy *name* to whatever no rule matches."""
    return replace(bindings, rules=(*bindings.rules, Rule(policy=name, where=f"--policy {name}")))


def engine_of(annotations: Mapping[str, str], bundle: str) -> str:
    """The engine that made a bundle, "" where nothing tells.

    docker's and containerd's tasks stand below ``io.containerd.runtime.v2.task/NAMESPACE``, docker's in
    the namespace ``moby``; podman and CRI-O, and the hooks of LXC and systemd-nspawn, say so in
    ``io.container.manager``, which is asked before CRI-O's own annotations, for podman writes some of those
    too; buildah's bundle is a ``buildah…`` in TMPDIR.
    """
    if "/io.containerd.runtime.v2.task/" in bundle or "/io.containerd.runtime.v1.linux/" in bundle:
        return "docker" if "/io.containerd.runtime.v2.task/moby/" in bundle else "containerd"
    manager = annotations.get("io.container.manager", "")
    if manager in ("libpod", "cri-o", "lxc", "systemd-nspawn"):
        return "podman" if manager == "libpod" else manager
    for prefix, engine in (
        ("io.podman.annotations.", "podman"),
        ("io.kubernetes.cri-o.", "cri-o"),
        ("io.kubernetes.cri.", "containerd"),
        ("nerdctl/", "containerd"),
    ):
        if any(key.startswith(prefix) for key in annotations):
            return engine
    name = bundle.rstrip("/").rpartition("/")[2]
    return "buildah" if name.startswith("buildah") and name[7:].isdigit() else ""


def made_by(runtime: str, annotations: tuple[tuple[str, str], ...], bundle: str) -> tuple[tuple[str, object], ...]:
    """What a guest's mark says of who made it: the *runtime*, and the engine that called it, where that is known."""
    engine = engine_of(dict(annotations), bundle)
    return (("runtime", runtime), *((("engine", engine),) if engine else ()))


def glob(pattern: str, text: str) -> bool:
    """Whether *text*, of at most 4096 characters, is as *pattern* says: ``*`` any text, ``?`` one character."""
    if len(text) > TEXT_LIMIT:
        return False
    at = mark = begin = 0
    star = -1
    while at < len(text):
        if pattern[mark : mark + 1] == "*":
            star, begin = mark, at
            mark += 1
        elif mark < len(pattern) and pattern[mark] in ("?", text[at]):
            at, mark = at + 1, mark + 1
        elif star >= 0:
            # The last star takes one character more; those before it need not be asked again.
            begin += 1
            at, mark = begin, star + 1
        else:
            return False
    return not pattern[mark:].strip("*")


def cgroup_path(text: str) -> str:
    """A ``cgroupsPath`` as a path from the root; ``slice:prefix:name`` as systemd places that scope.

    A slice stands below those that its name begins with: a-b.slice in /a.slice (systemd.slice(5)).
    """
    parts = text.split(":")
    if len(parts) != 3 or "/" in text:
        return clean(text)
    slices, name = [], ""
    for word in parts[0].removesuffix(".slice").split("-"):
        if word:
            name = f"{name}-{word}" if name else word
            slices.append(f"{name}.slice")
    scope = parts[2] if parts[2].endswith(".slice") else f"{parts[1]}-{parts[2]}.scope".lstrip("-")
    return "/" + "/".join([*slices, scope])


def matches(match: Match, annotations: Mapping[str, str], bundle: Bundle) -> bool:
    """Whether a rule is for a bundle."""
    if match.engine and engine_of(annotations, bundle.bundle) not in match.engine:
        return False
    if match.cgroup:
        path = cgroup_path(bundle.cgroup) if bundle.cgroup and len(bundle.cgroup) <= TEXT_LIMIT else ""
        if not any(glob(pattern, path) for pattern in match.cgroup):
            return False
    if match.bundle and not any(glob(pattern, clean(bundle.bundle)) for pattern in match.bundle):
        return False
    if match.user and not any(low <= user <= high for low, high in match.user for user in bundle.users):
        return False
    for text in match.annotation:
        key, equals, pattern = text.partition("=")
        if key in annotations and (not equals or glob(pattern, annotations[key])):
            return True
    return not match.annotation


def resolve(annotations: Iterable[tuple[str, str]], bindings: Bindings, bundle: Bundle) -> Policy | None:
    """The policy of a bundle, within what the host allows; None for exactly as runc.

    [user] of a policy is for ``launch``: a bundle's own document says its user namespace,
    capabilities, noNewPrivileges and masked paths, so those fields have their defaults.
    Policy.limits hold beside the document's own resources, the smaller of two.

    Raises InputError naming the annotation, what it asks and what is allowed; HostError
    where the rule itself is wrong.
    """
    return decide(annotations, bindings, bundle).policy


def decide(annotations: Iterable[tuple[str, str]], bindings: Bindings, bundle: Bundle) -> Decision:
    """resolve(), with how it came about."""
    given = dict(annotations)
    mine = own(given.items())
    number, rule = 0, Rule()
    for number_, rule_ in enumerate(bindings.rules, 1):
        if matches(rule_.match, given, bundle):
            number, rule = number_, rule_
            break
    where = rule.where or (f"rule {number} of {bindings.source}" if number else "the host")
    base, bound = rule_policies(rule, bindings, where)
    if mine and not rule.annotations:
        raise InputError("honour", f"annotation {_key(mine)}", f"{where} takes no annotations", "leave it out")
    policy = base if base is not None and base.virtualize else None
    if mine:
        usual = clamp(Policy(), bound)
        policy = from_annotations(mine.items(), base, bindings.find, usual)
        if policy is None and base is not None and base.virtualize and bound.virtualize:
            key = "nestrt.level.virtualize" if "nestrt.level.virtualize" in mine else POLICY
            raise InputError(
                "honour",
                f"annotation {key}",
                f"it asks for no policy, and {where} has bound policy {rule.policy}",
                "leave it out",
            )
    if policy is None:
        return Decision(None, number, base, bound)
    for excess in excesses(policy, bound):
        key = _annotation_of(excess.field)
        setting = f"{excess.field} = {excess.asked}" if key not in mine else excess.asked
        raise InputError(
            "honour",
            f"annotation {key if key in mine else POLICY}",
            f"it asks for {setting}, and {where} allows {excess.allowed} (bound: {bound.source})",
            f"ask for {excess.allowed}" + (" or less" if excess.field not in ("mount", "controllers") else ""),
        )
    limits = smaller(policy.limits, bound.limits)
    if base is not None and base.virtualize:
        limits = smaller(limits, base.limits)
    values = {field: getattr(policy, field) for field in (*BOUNDED, *FREE)}  # and nothing of [user]
    values.update(quotas(policy, base, bound))
    return Decision(Policy(**values, limits=limits, source=policy.source), number, base, bound)


def rule_policies(rule: Rule, bindings: Bindings, where: str) -> tuple[Policy | None, Policy]:
    """(the policy that *rule* binds, its bound). Raises HostError where they are not there or do not fit."""
    try:
        base = bindings.find(rule.policy) if rule.policy else None
        bound = bindings.find(rule.bound) if rule.bound else DEFAULT_BOUND if base is None else base
    except InputError as error:
        raise HostError("use", where, f"policy {error.obj.removeprefix('policy ')}: {error.reason}", MISTAKE) from None
    if base is not None and not base.virtualize and base.limits != Limits():
        raise HostError(
            "use",
            where,
            f"policy {rule.policy} has [limits] and virtualize = false, with which a bundle has no policy at all",
            "set virtualize = true, or take [limits] out",
        )
    if base is not None and base.virtualize:
        for excess in excesses(base, bound):
            raise HostError(
                "use",
                where,
                f"policy {rule.policy} has {excess.field} = {excess.asked}, its bound {rule.bound} {excess.allowed}",
                "lower the one or raise the other",
            )
    return base, bound


def _key(mine: Mapping[str, str]) -> str:
    key = min(mine)
    return key if len(key) <= 60 else key[:57] + "..."


def _annotation_of(field: str) -> str:
    return next(key for key, name in FIELDS.items() if name == field)
