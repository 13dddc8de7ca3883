"""Calls of the broker's interfaces for hypothesis, made from their text: right ones, and wrong ones.

right("Create")      parameters whose types are those of the interface: what they mean is another matter
any_call()           (method, parameters), some of them of wrong types, missing or unknown
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nestrt.broker import idl
from nestrt.broker.idl import Interface, Type

GUEST = idl.interface("io.nestrt.Guest")

# What a text could mean to the broker, to a kernel file, to a path and to a terminal.
WORDS = (
    "", "/", ".", "..", "web", "/web", "team/job", "init", "../web", "a/../../b", "a//b", "web/", "x" * 256, "a/" * 300,
    "\x1b[2J\x1b]0;owned\x07", "a\nnestrt broker: forged", "\r", "\0", "\ud800", "\udcff", "ä", "-rf", "cgroup.procs",
    "memory.max", "memory", "pids.max", "cpu.max", "cpuset.cpus", "io.max", "devices.allow", "release_agent", "max",
    "-1", "0", "1", "16M", "0-1", "0-99999", "50000 100000", "9" * 400, "c 1:3 rwm", "a", "b *:* rwm", "oom",
    "pressure", "kill", "raise", "tell", "some 150000 1000000", "low", "*:sh memory web", "root * web/%U", "nothing",
    "user.nestrt",
)  # fmt: skip
NUMBERS = (
    0,
    1,
    -1,
    2,
    9,
    15,
    64,
    1000,
    65534,
    1 << 22,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 32,
    idl.SMALLEST,
    idl.LARGEST,
)

texts = st.sampled_from(WORDS) | st.text(max_size=12)
whole = st.sampled_from(NUMBERS) | st.integers(idl.SMALLEST, idl.LARGEST)
real = whole | st.floats(-1e9, 1e9)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def of_type(kind: Type, interface: Interface = GUEST) -> st.SearchStrategy[Any]:
    """Values of *kind*."""
    if kind.optional:
        plain = Type(kind.kind, False, kind.of, kind.fields)
        return st.none() | of_type(plain, interface)
    if kind.kind in interface.types:
        return of_type(interface.types[kind.kind], interface)
    if kind.kind == "struct":
        return st.fixed_dictionaries({name: of_type(one, interface) for name, one in kind.fields})
    if kind.of is not None:
        inner = of_type(kind.of, interface)
        return st.lists(inner, max_size=3) if kind.kind == "array" else st.dictionaries(texts, inner, max_size=3)
    simple: dict[str, st.SearchStrategy[Any]] = {
        "string": texts, "int": whole, "float": real, "bool": st.booleans(),
        "object": st.dictionaries(texts, json_values, max_size=3),
    }  # fmt: skip
    return simple[kind.kind]


def right(method: str, interface: Interface = GUEST) -> st.SearchStrategy[dict[str, Any]]:
    """Parameters of *method*, of the types that it wants."""
    return of_type(interface.methods[method], interface)


@st.composite
def changed(draw: st.DrawFn, method: str, interface: Interface = GUEST) -> dict[str, Any]:
    """Parameters of *method*, one of them missing, of any type, or one that there is not."""
    found = draw(right(method, interface))
    names = [*found, "surplus"]
    name = draw(st.sampled_from(names))
    if name in found and draw(st.booleans()):
        del found[name]
    else:
        found[name] = draw(json_values)
    return found


def any_call(methods: tuple[str, ...] = tuple(GUEST.methods)) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """A method of io.nestrt.Guest with parameters, two out of three times of the right types."""
    return st.sampled_from(methods).flatmap(
        lambda method: st.tuples(st.just(method), right(method) | right(method) | changed(method))
    )


def wrong_values(kind: Type, interface: Interface = GUEST) -> list[Any]:
    """JSON values, none of which is a *kind*."""
    if kind.kind in interface.types:
        kind = interface.types[kind.kind]
    every: dict[str, Any] = {
        "bool": True, "int": 7, "float": 0.5, "string": "text", "array": [], "map": {}, "huge": 1 << 63,
        "tiny": -(1 << 70), "infinite": float("inf"),
    }  # fmt: skip
    same = {
        "bool": {"bool"}, "int": {"int"}, "float": {"int", "float", "huge"}, "string": {"string"}, "array": {"array"},
        "map": {"map"}, "struct": set(), "object": {"map"},
    }[kind.kind]  # fmt: skip
    found = [value for name, value in every.items() if name not in same]
    if kind.kind == "struct":
        found.remove({})  # each of its fields may be optional
        found.append({"surplus": 1})
    if kind.of is not None:
        inner = wrong_values(kind.of, interface)
        found += [[value] if kind.kind == "array" else {"key": value} for value in inner]
        found.append([None] if kind.kind == "array" else {"key": None})
    return found if kind.optional else [*found, None]
