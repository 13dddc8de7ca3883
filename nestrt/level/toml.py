"""Policy files: TOML text in, Policy out. The only module that imports tomllib (20 ms): for ``--policy`` alone."""

from __future__ import annotations

import tomllib

from nestrt.errors import InputError
from nestrt.level import policy as names
from nestrt.level.capabilities import parse_capabilities
from nestrt.level.devices import parse_rules
from nestrt.level.limits import (
    LIST_LIMIT,
    Limits,
    hugetlb_size,
    misc_count,
    parse_ios,
    plain_word,
    rdma_words,
)
from nestrt.level.policy import Policy
from nestrt.level.units import (
    ID_RANGES_LIMIT,
    parse_count,
    parse_cpus,
    parse_id_range,
    parse_quota,
    parse_weight,
    shown,
)
from nestrt.level.values import Getter, integer_value, number_text, size_value, size_within, text_list, text_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

FILE_LIMIT = 1 << 20  # bytes: a policy is a page
GROUPS_LIMIT = 1_000_000
DEPTH_LIMIT = 1000
REMEDY = "correct the line; examples/policies has whole files"


def load_policy(text: str, name: str) -> Policy:
    """The policy in *text*; *name* is the file, for errors and for Policy.source.

    Raises InputError naming file, key, reason and remedy: the first mistake.
    find_mistakes() has them all.
    """
    policy, errors = _read(text, name)
    if errors:
        raise errors[0]
    return policy


def find_mistakes(text: str, name: str) -> tuple[InputError, ...]:
    """Every mistake in the policy *text* of the file *name*, in the order of the sections; () if it is good."""
    return tuple(_read(text, name)[1])


def from_mapping(mapping: dict[str, object], name: str, errors: list[InputError]) -> Policy:
    """The policy in *mapping*, the tables of a policy file; mistakes go to *errors*."""
    get = Getter(mapping, f"policy {name}", "", errors)
    level, view, partition = get.table("level"), get.table("view"), get.table("partition")
    broker, message = get.table("broker"), names.QUOTAS["broker_message"]
    user, limits = get.table("user"), get.table("limits")
    get.finish()
    usual = Policy()
    policy = Policy(
        virtualize=level.boolean("virtualize", usual.virtualize),
        max_level=level.integer("max_level", usual.max_level, 1, names.LEVEL_LIMIT),
        override=level.boolean("override", usual.override),
        strict=level.boolean("strict", usual.strict),
        broker=level.text("broker", usual.broker, names.BROKERS),
        broker_requests=broker.integer("requests", None, *names.QUOTAS["broker_requests"]),
        broker_connections=broker.integer("connections", None, *names.QUOTAS["broker_connections"]),
        broker_message=broker.parsed("message", None, lambda value: size_within(value, *message)),
        mount=view.text("mount", usual.mount, names.MOUNTS),
        controllers=view.parsed("controllers", usual.controllers, _controllers),
        start_in=view.text("start_in", usual.start_in, names.STARTS),
        cpus=view.text("cpus", usual.cpus, names.CPU_NUMBERS),
        divide_cpu=partition.boolean("cpu", usual.divide_cpu),
        divide_memory=partition.boolean("memory", usual.divide_memory),
        divide_pids=partition.boolean("pids", usual.divide_pids),
        divide_io=partition.boolean("io", usual.divide_io),
        divide_devices=partition.boolean("devices", usual.divide_devices),
        # Guest root and first group are below the limit group, so 2 is the least that can start.
        max_groups=partition.integer("max_groups", usual.max_groups, 2, GROUPS_LIMIT),
        max_depth=partition.integer("max_depth", usual.max_depth, 2, DEPTH_LIMIT),
        user_namespace=user.text("namespace", usual.user_namespace, names.NAMESPACES),
        uid_map=user.parsed("uid_map", (), _id_map),
        gid_map=user.parsed("gid_map", (), _id_map),
        capabilities=user.parsed("capabilities", usual.capabilities, parse_capabilities),
        no_new_privs=user.boolean("no_new_privs", usual.no_new_privs),
        masked=user.boolean("masked", usual.masked),
        limits=_limits(limits),
        source=name,
    )
    for section in (level, broker, view, partition, user, limits):
        section.finish()
    for key, ids in (("uid_map", policy.uid_map), ("gid_map", policy.gid_map)):
        if policy.user_namespace == "map" and not ids and key not in user.mapping:
            user.refuse(key, 'it is missing, and namespace = "map" needs it', 'write it like ["0:100000:65536"]')
        if policy.user_namespace != "map" and key in user.mapping and "namespace" not in _wrong(errors):
            user.refuse(key, f'namespace = "{policy.user_namespace}" takes no map', 'set namespace = "map"')
    return policy


def _wrong(errors: list[InputError]) -> list[str]:
    """The keys of [user] that are already known to be wrong."""
    return [error.obj.rpartition("[user] ")[2] for error in errors if "[user] " in error.obj]


def _read(text: str, name: str) -> tuple[Policy, list[InputError]]:
    where = f"policy {name}"
    if len(text) > FILE_LIMIT:
        return Policy(), [InputError("read", where, f"{len(text)} characters are too many", "a policy is under 1 MiB")]
    try:
        mapping = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return Policy(), [InputError("read", where, f"not TOML: {error}", REMEDY)]
    except RecursionError:
        return Policy(), [InputError("read", where, "tables and lists are nested too deeply", REMEDY)]
    except ValueError as error:
        # A number of more than 4300 digits, a date that no calendar has.
        return Policy(), [InputError("read", where, f"not TOML: {error}", REMEDY)]
    errors: list[InputError] = []
    return from_mapping(mapping, name, errors), errors


def _controllers(value: object) -> tuple[str, ...] | None:
    """Canonical names, each once; None for "all". Any word is taken: the kernel knows which there are."""
    if value == "all":
        return None
    found: list[str] = []
    for name in text_list(value, 64):
        if not name or len(name) > 64 or not all(c.isascii() and (c.isalnum() or c == "_") for c in name):
            raise InputError("read", shown(name), "no controller's name", 'write it like "cpu", or "all" for the list')
        canonical = "io" if name == "blkio" else name
        if canonical not in found:
            found.append(canonical)
    return tuple(found)


def _id_map(value: object) -> tuple[tuple[int, int, int], ...]:
    """Ranges that do not overlap, inside or outside, as the kernel wants them (user_namespaces(7))."""
    found = tuple(parse_id_range(item) for item in text_list(value, ID_RANGES_LIMIT))
    if not found:
        raise InputError("read", "the list", "it is empty", 'write it like ["0:100000:65536"]')
    for side in (0, 1):
        ranges = sorted((item[side], item[side] + item[2]) for item in found)
        for before, after in zip(ranges, ranges[1:], strict=False):
            if after[0] < before[1]:
                raise InputError("read", f"id {after[0]}", "two ranges have it", "make the ranges disjoint")
    if not any(inside == 0 for inside, _, _ in found):
        raise InputError("read", "the list", "it does not map 0, and the guest's root is 0", "begin a range at 0")
    return found


def _limits(get: Getter) -> Limits:
    def pairs(key: str, name: Callable[[str], str], convert: Callable[[object], T]) -> tuple[tuple[str, T], ...]:
        items = get.mapping_of(key, LIST_LIMIT).items()
        return get.guarded(key, (), lambda: tuple((name(item), convert(found)) for item, found in items))

    return Limits(
        memory=get.parsed("memory", None, size_value),
        swap=get.parsed("swap", None, size_value),
        cpus=get.parsed("cpus", None, lambda value: parse_cpus(number_text(value))),
        mems=get.parsed("mems", None, lambda value: parse_cpus(number_text(value), "list of memory nodes")),
        cpu_quota=get.parsed("cpu_quota", None, lambda value: parse_quota(number_text(value))),
        cpu_weight=get.parsed("cpu_weight", None, lambda value: parse_weight(number_text(value))),
        pids=get.parsed("pids", None, lambda value: parse_count(number_text(value))),
        io=get.parsed("io", (), lambda value: parse_ios(text_list(value, LIST_LIMIT))),
        devices=get.parsed("devices", None, lambda value: parse_rules(text_list(value, LIST_LIMIT))),
        hugetlb=pairs("hugetlb", hugetlb_size, size_value),
        rdma=pairs("rdma", lambda word: plain_word(word, "rdma device"), lambda value: rdma_words(text_value(value))),
        misc=pairs("misc", lambda w: plain_word(w, "misc resource"), lambda value: misc_count(number_text(value))),
        net_cls=get.parsed("net_cls", None, integer_value),
        net_prio=pairs("net_prio", lambda word: plain_word(word, "interface"), integer_value),
    )
