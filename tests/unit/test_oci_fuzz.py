"""Whatever an engine, a user or an attacker writes: a value of the model, or one InputError of one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit import oci_configs

from nestrt.errors import InputError
from nestrt.oci import document
from nestrt.oci.example import config

BASES = [oci_configs.podman(), oci_configs.docker(), config(False, 0, 0), config(True, 1000, 1000)]
# What the grammar of the fields makes special, beside what hypothesis thinks of.
WORDS = st.sampled_from([
    "", "/", "..", "\0", "\ud800", "\n", "a", "1", "-1", "0-1", "=", "A=b", "1.0.0", "user", "pid", "SCMP_ACT_NOTIFY",
    "net/../kernel/x", "2MB", "memory.high", "CAP_CHOWN", "RLIMIT_CPU", "SCHED_DEADLINE", "b", "rwm", "LINUX",
])  # fmt: skip
NUMBERS = st.integers() | st.sampled_from([-1, 0, 1, 2**16, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 10**300])
scalars = st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=20) | WORDS
names = st.text(max_size=8) | WORDS
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)


def texts_and_numbers(value: Any) -> Iterator[str | int]:
    if isinstance(value, tuple):
        for item in value:
            yield from texts_and_numbers(item)
    elif isinstance(value, (str, int)):
        yield value
    elif value is not None:
        yield from texts_and_numbers(tuple(value.__dict__.values()))


def check(parse: Callable[[str, str], Any], text: str) -> None:
    try:
        found = parse(text, "/b/config.json")
    except InputError as error:
        check_error(error)
    else:
        check_value(found)


def check_error(error: InputError) -> None:
    assert error.status == 2
    assert error.reason
    assert error.remedy
    assert "/b/config.json" in error.obj
    line = str(error)
    assert line.isprintable()
    assert len(line) < 4000


def check_value(found: Any) -> None:
    hash(found)
    for value in texts_and_numbers(found):
        if isinstance(value, str):
            assert "\0" not in value
            value.encode()
        else:
            assert -(2**63) <= value < 2**64


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Each place in a document: what holds it, and the name or index there."""
    found: list[tuple[Any, Any]] = []
    queue = [value]
    while queue:
        holder = queue.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                queue.append(holder[key])
    return found


@given(values, st.sampled_from([document.load, document.load_process, document.load_resources]))
def test_any_json(value: object, parse: Callable[[str, str], Any]) -> None:
    check(parse, json.dumps(value))


@given(st.text() | st.text(alphabet='{}[]":,\\ud8e0123.-'))
@example("\ufeff{}")
@example('{"ociVersion": ' * 3000)
def test_any_text(text: str) -> None:
    check(document.load, text)


@settings(max_examples=400)
@given(st.data())
def test_a_real_document_with_places_changed(data: st.DataObject) -> None:
    base = copy.deepcopy(data.draw(st.sampled_from(BASES)))
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(nodes(base)))
        action = data.draw(st.sampled_from(["replace", "remove", "add", "twice"]))
        if action == "remove":
            del holder[key]
        elif action == "twice" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif action == "add" and isinstance(holder, dict):
            holder[data.draw(names)] = data.draw(values)
        else:
            holder[key] = data.draw(values)
    check(document.load, json.dumps(base))


@given(st.sampled_from(BASES), st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(base: dict[str, Any], random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = [(key, shuffled(item)) for key, item in value.items()]
            random.shuffle(items)
            return dict(items)
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    plain = copy.deepcopy(base)
    # Their order in the document is kept.
    plain["linux"].pop("timeOffsets", None)
    assert document.load(json.dumps(shuffled(plain)), "F") == document.load(json.dumps(plain), "F")
