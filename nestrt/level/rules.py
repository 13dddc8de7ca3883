"""bindings.toml as values, and in words: what its rules say, what is wrong with them, what came of which."""

from __future__ import annotations

from nestrt.errors import HostError, InputError
from nestrt.level.annotations import FIELDS, POLICY, own, policy_name
from nestrt.level.binding import Bindings, Decision, Match, Rule, rule_policies
from nestrt.level.limits import Limits
from nestrt.level.policy import Policy
from nestrt.level.units import ID_LIMIT, digits, shown
from nestrt.level.values import Getter, integer_value, kind, suggestion, text_list, text_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ENGINES = ("podman", "buildah", "cri-o", "containerd", "docker", "lxc", "systemd-nspawn")
RULES_LIMIT = 256
CHOICES_LIMIT = 64


def origins(annotations: Iterable[tuple[str, str]], decision: Decision) -> dict[str, str]:
    """Where each field of the decision's policy came from, in words, by annotation; limits by "limits.FIELD"."""
    policy, base = decision.policy, decision.base
    if policy is None:
        return {}
    mine = own(annotations)
    found = {}
    for key, field in FIELDS.items():
        value = getattr(policy, field)
        if key in mine:
            found[key] = f"annotation {key}"
        elif field in policy.broker_most and value == getattr(decision.bound, field):
            found[key] = f"bound: {decision.bound.source}"
        elif POLICY in mine:
            found[key] = f"annotation {POLICY} = {mine[POLICY]}"
        elif base is not None:
            found[key] = f"rule {decision.rule}, policy {base.source}"
        elif value != getattr(Policy(), field):
            found[key] = f"bound: {decision.bound.source}"
        else:
            found[key] = "default"
    for name in Limits().__dict__:
        value = getattr(policy.limits, name)
        if value is None or (value == () and name != "devices"):
            continue
        sources = [] if base is None else [(f"rule {decision.rule}, policy {base.source}", base)]
        sources.append((f"bound: {decision.bound.source}", decision.bound))
        named = [text for text, one in sources if getattr(one.limits, name) == value]
        found[f"limits.{name}"] = named[0] if named else f"annotation {POLICY}, and what bounds it"
    return found


def parse_bindings(mapping: Mapping[str, object], name: str, errors: list[InputError]) -> tuple[Rule, ...]:
    """The rules in *mapping*, the tables of the file *name*; mistakes go to *errors*."""
    top = Getter(mapping, f"bindings {name}", "", errors)
    none: list[dict[str, object]] = []
    tables = top.parsed("rule", none, _tables)
    top.finish()
    return tuple(_rule(Getter(table, top.where, f"rule {n}", errors)) for n, table in enumerate(tables, 1))


def problems(bindings: Bindings) -> tuple[InputError | HostError, ...]:
    """What is wrong with rules that are well written: policies that are not there, or more than their bound."""
    found: list[InputError | HostError] = []
    for number, rule in enumerate(bindings.rules, 1):
        try:
            rule_policies(rule, bindings, f"rule {number} of {bindings.source}")
        except (InputError, HostError) as error:
            found.append(error)
    return tuple(found)


def _tables(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError("read", shown(value), f"it is {kind(value)}, not tables", "begin each rule with [[rule]]")
    if len(value) > RULES_LIMIT:
        raise InputError("read", f"a list of {len(value)}", "too many", f"give at most {RULES_LIMIT}")
    return value


def _rule(get: Getter) -> Rule:
    match = get.table("match")
    match.where, match.section = get.where, f"{get.section}.match"
    rule = Rule(
        match=Match(
            engine=match.parsed("engine", (), _engines),
            cgroup=match.parsed("cgroup", (), _paths),
            bundle=match.parsed("bundle", (), _paths),
            annotation=match.parsed("annotation", (), _texts),
            user=match.parsed("user", (), _users),
        ),
        policy=get.parsed("policy", "", lambda value: policy_name(text_value(value))),
        bound=get.parsed("bound", "", lambda value: policy_name(text_value(value))),
        annotations=get.boolean("annotations", True),
    )
    match.finish()
    get.finish()
    return rule


def _texts(value: object) -> tuple[str, ...]:
    texts = text_list([value] if isinstance(value, str) else value, CHOICES_LIMIT)
    if not texts or not all(texts):
        raise InputError("read", shown(value), "it is empty, and would match nothing", "leave the key out")
    return tuple(texts)


def _engines(value: object) -> tuple[str, ...]:
    for text in (found := _texts(value)):
        if text not in ENGINES:
            raise InputError("read", shown(text), "no engine that nestrt knows", suggestion(text, ENGINES))
    return found


def _paths(value: object) -> tuple[str, ...]:
    for text in (found := _texts(value)):
        if text[0] not in "/*":
            raise InputError("read", shown(text), "no path from /", "begin it with / or *")
    return found


def _users(value: object) -> tuple[tuple[int, int], ...]:
    """Uids and ranges of them: 1000, "1000", "100000-165535"; no names, which only /etc/passwd could turn into uids."""
    found = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            first, dash, last = item.partition("-")
            low, high = digits(first), digits(last if dash else first)
            if low is None or high is None or not low <= high < ID_LIMIT:
                raise InputError("read", shown(item), "no uid and no range of uids", 'write 1000 or "1000-1999"')
        else:
            low = high = integer_value(item, 0, ID_LIMIT - 1)
        found.append((low, high))
    if not 0 < len(found) <= CHOICES_LIMIT:
        raise InputError("read", f"a list of {len(found)}", "too few or too many", f"give 1 to {CHOICES_LIMIT}")
    return tuple(found)
