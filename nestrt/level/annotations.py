"""The ``nestrt.*`` annotations of a bundle: texts in, Policy out.

An annotation's value is text (runtime-spec, config.md, "Annotations"), whatever it
means: ``"true"``, ``"3"``, ``"cpu,memory"``. What does not begin with ``nestrt.`` is
somebody else's and never looked at; what does and is not known is a mistake.
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level import policy as names
from nestrt.level.devices import DEFAULT_RULES
from nestrt.level.limits import Limits
from nestrt.level.policy import Policy
from nestrt.level.units import digits, shown
from nestrt.level.values import TEXT_LIMIT, Getter, size_within, suggestion
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PREFIX = "nestrt."
POLICY = "nestrt.policy"
# The field of Policy that each annotation sets, in the order of the policy file.
FIELDS = {
    "nestrt.level.virtualize": "virtualize",
    "nestrt.level.max_level": "max_level",
    "nestrt.level.override": "override",
    "nestrt.level.strict": "strict",
    "nestrt.level.broker": "broker",
    "nestrt.broker.requests": "broker_requests",
    "nestrt.broker.connections": "broker_connections",
    "nestrt.broker.message": "broker_message",
    "nestrt.view.mount": "mount",
    "nestrt.view.controllers": "controllers",
    "nestrt.view.start_in": "start_in",
    "nestrt.view.cpus": "cpus",
    "nestrt.partition.cpu": "divide_cpu",
    "nestrt.partition.memory": "divide_memory",
    "nestrt.partition.pids": "divide_pids",
    "nestrt.partition.io": "divide_io",
    "nestrt.partition.devices": "divide_devices",
    "nestrt.partition.max_groups": "max_groups",
    "nestrt.partition.max_depth": "max_depth",
}
KNOWN = (POLICY, *FIELDS)
INTEGERS = {
    "max_level": (1, names.LEVEL_LIMIT),
    "broker_requests": names.QUOTAS["broker_requests"],
    "broker_connections": names.QUOTAS["broker_connections"],
    "max_groups": (2, 1_000_000),
    "max_depth": (2, 1000),
}
PARSED = ("controllers", "broker_message")
CHOICES = {"broker": names.BROKERS, "mount": names.MOUNTS, "start_in": names.STARTS, "cpus": names.CPU_NUMBERS}
BOOLEANS = {"true": True, "false": False}
PROFILES = ("default", "nested", "strict", "systemd-guest")
NAME_LIMIT = 64
CONTROLLERS_LIMIT = 64
_NAME_REMEDY = "use 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter or digit"


class _Annotations(Getter):
    """A Getter whose errors call a key what engines call it."""

    def place(self, key: str) -> str:
        return f"annotation {key if len(key) <= 60 else key[:57] + '...'}"


def profile(name: str) -> Policy | None:
    """The built-in policy *name*, the same as the file of that name in examples/policies; None if there is none."""
    if name == "default":
        return Policy()
    if name == "nested":
        return Policy(max_groups=4000, max_depth=20, capabilities=("all",), source=name)
    if name == "strict":
        return Policy(
            max_level=1,
            strict=True,
            mount="ro",
            divide_cpu=False,
            divide_memory=False,
            divide_pids=False,
            divide_io=False,
            divide_devices=False,
            max_groups=4,
            max_depth=2,
            capabilities=("CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_NET_BIND_SERVICE"),
            masked=True,
            limits=Limits(pids=256, devices=DEFAULT_RULES),
            source=name,
        )
    if name == "systemd-guest":
        limits = Limits(pids=8192, devices=DEFAULT_RULES)
        return Policy(
            max_level=2,
            start_in=".",
            max_groups=4000,
            max_depth=16,
            no_new_privs=False,
            limits=limits,
            source=name,
        )
    return None


def builtin(name: str) -> Policy:
    """profile(), with an InputError where there is none."""
    found = profile(name)
    if found is None:
        raise InputError("find", f"policy {shown(name)}", "there is none of that name", suggestion(name, PROFILES))
    return found


def policy_name(text: str) -> str:
    """*text* if it can name a policy: it becomes ``policies/NAME.toml``, and never a path. Raises InputError."""
    if not 0 < len(text) <= NAME_LIMIT or not text.isascii() or not text[0].isalnum():
        raise InputError("use", f"policy name {shown(text)}", "it cannot be one", _NAME_REMEDY)
    if not all(c.isalnum() or c in "_.-" for c in text):
        raise InputError("use", f"policy name {shown(text)}", "it cannot be one", _NAME_REMEDY)
    return text


def controller_names(words: Iterable[str]) -> tuple[str, ...]:
    """Canonical (v2) names, each once. Any word is taken: the kernel knows which there are. Raises InputError."""
    found: list[str] = []
    for word in words:
        if not 0 < len(word) <= 64 or not all(c.isascii() and (c.isalnum() or c == "_") for c in word):
            raise InputError("read", shown(word), "no controller's name", 'write it like cpu,memory, or "all"')
        canonical = "io" if word == "blkio" else word
        if canonical not in found:
            found.append(canonical)
    return tuple(found)


def own(annotations: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Those of *annotations* that are nestrt's, by key, known or not."""
    return {key: value for key, value in annotations if key.startswith(PREFIX)}


def read_annotations(mine: Mapping[str, str], errors: list[InputError] | None = None) -> dict[str, object]:
    """The fields of Policy that *mine*, from own(), sets, with their values; ``nestrt.policy`` as "policy".

    Raises InputError naming the annotation, or with *errors* collects them.
    """
    values: dict[str, object] = {}
    for key, value in mine.items():
        if key in KNOWN:
            values[key] = _plain(FIELDS.get(key, ""), value)
    get = _Annotations(values, "", errors=errors)
    fields: dict[str, object] = {}
    for key in KNOWN:
        if key not in values:
            continue
        field = FIELDS.get(key, "policy")
        wrong = values[key]
        if isinstance(wrong, InputError):
            get.refuse(key, f"{wrong.obj}: {wrong.reason}", wrong.remedy)
        elif key == POLICY:
            fields[field] = get.parsed(key, "", lambda value: policy_name(str(value)))
        elif field in INTEGERS:
            fields[field] = get.integer(key, 0, *INTEGERS[field])
        elif field == "broker_message":
            fields[field] = get.parsed(key, 0, lambda value: size_within(value, *names.QUOTAS["broker_message"]))
        elif field == "controllers":
            fields[field] = get.parsed(key, None, _controllers)
        elif field in CHOICES:
            fields[field] = get.text(key, "", CHOICES[field])
        else:
            fields[field] = get.boolean(key, False)
    for key in mine:
        if key not in KNOWN:
            get.refuse(key, "unknown annotation", suggestion(key, KNOWN))
    return fields


def _plain(field: str, text: str) -> object:
    """*text* as the type that Getter is to check, or the InputError that says why it has none."""
    if len(text) > TEXT_LIMIT:
        return InputError("read", shown(text), f"{len(text)} characters are too many", f"at most {TEXT_LIMIT}")
    if field in INTEGERS:
        number = digits(text)
        low, high = INTEGERS[field]
        if number is None:
            return InputError("read", shown(text), "not a number", f"write a number from {low} to {high}")
        return number
    if field and field not in CHOICES and field not in PARSED:
        if text not in BOOLEANS:
            return InputError("read", shown(text), "neither true nor false", 'write "true" or "false"')
        return BOOLEANS[text]
    return text


def _controllers(value: object) -> tuple[str, ...] | None:
    """None for "all"; else the names between the commas."""
    if value == "all":
        return None
    words = [word.strip() for word in str(value).split(",")]
    if len(words) > CONTROLLERS_LIMIT:
        raise InputError("read", f"a list of {len(words)}", "too many", f"give at most {CONTROLLERS_LIMIT}")
    return controller_names(words)


def from_annotations(
    annotations: Iterable[tuple[str, str]],
    base: Policy | None = None,
    find: Callable[[str], Policy] = builtin,
    usual: Policy | None = None,
) -> Policy | None:
    """The policy that *annotations* ask for, over *base*, what the host has bound to the bundle; None for none.

    ``nestrt.policy`` takes the place of *base*; *find* knows the names. Where there is
    neither, what no annotation says is as in *usual* (by default the profile ``default``).
    Nothing here knows a bound: see binding.resolve(). Raises InputError.
    """
    mine = own(annotations)
    if not mine:
        return base if base is not None and base.virtualize else None
    fields = read_annotations(mine)
    policy = usual or Policy()
    if base is not None:
        policy = base
    if "policy" in fields:
        policy = find(str(fields.pop("policy")))
    if fields:
        policy = replace(policy, **fields, source=f"{policy.source} with annotations")
    return policy if policy.virtualize else None
