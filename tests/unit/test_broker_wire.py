"""The broker's frames and parameters: whatever a stranger sends is a call of the interface, or one plain refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestrt.broker import idl, interfaces, quota, wire
from nestrt.broker.idl import Interface, Type
from nestrt.broker.peer import inside, outside
from nestrt.broker.refusal import Refusal
from support.broker_calls import any_call, json_values, right, texts, wrong_values
from support.need import require

LONGEST = 2048
INTERFACES = [idl.interface(name) for name in interfaces.TEXTS]
METHODS = [(one, method) for one in INTERFACES for method in one.methods]
FIELDS = [
    (interface, method, name, kind)
    for interface, method in METHODS
    for name, kind in interface.methods[method].fields
]  # fmt: skip
json_objects = st.dictionaries(texts, json_values, max_size=4)


def finite(value: Any) -> bool:
    """Whether *value* is JSON: has no NaN and nothing infinite."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def frame(method: str, parameters: dict[str, Any], **flags: Any) -> bytes:
    return json.dumps({"method": method, "parameters": parameters, **flags}).encode() + b"\0"


def decoded(pieces: list[bytes], longest: int = LONGEST) -> list[wire.Call]:
    """The calls in *pieces*, as a connection takes them: all that are whole before more is read."""
    decoder, found = wire.Decoder(longest), []
    for piece in pieces:
        decoder.feed(piece)
        while decoder.whole:
            call = decoder.next()
            assert call is not None
            found.append(call)
        assert decoder.next() is None
        assert len(decoder.buffer) < longest
        assert decoder.midway == bool(decoder.buffer)
    return found


# Frames.


@given(st.lists(st.tuples(texts, json_objects.filter(finite)), max_size=5), st.data())
def test_calls_come_out_as_they_went_in_however_they_are_cut(
    calls: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    whole = b"".join(frame(method, parameters) for method, parameters in calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = decoded(pieces, 1 << 16)
    assert [(call.method, call.parameters) for call in found] == calls


def test_split_at_every_byte() -> None:
    whole = frame("io.nestrt.Guest.Get", {"group": "/wéb"}) + frame("b", {}, more=True) + frame("c", {}, oneway=True)
    calls = [
        wire.Call("io.nestrt.Guest.Get", {"group": "/wéb"}),
        wire.Call("b", {}, more=True),
        wire.Call("c", {}, oneway=True),
    ]
    assert decoded([whole]) == calls
    assert decoded([bytes([byte]) for byte in whole]) == calls
    for cut in range(len(whole)):
        assert decoded([whole[:cut], whole[cut:]]) == calls


pieces = st.binary(max_size=300) | st.sampled_from([b"\0", b"{}\0", b'{"method":"x"}\0', b"[" * 700])


@given(st.lists(pieces, max_size=8))
def test_any_bytes_are_calls_or_malformed(pieces: list[bytes]) -> None:
    try:
        for call in decoded(pieces, 512):
            assert (type(call.method), type(call.parameters)) == (str, dict)
    except wire.Malformed:
        pass


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"{", b"null", b"true", b"1", b'""', b"[]", b"{}", b'{"method":null}', b'{"method":1}',
        b'{"method":[]}', b'{"method":{}}', b'{"method":"x","parameters":[]}', b'{"method":"x","parameters":""}',
        b'{"method":"x","parameters":0}', b'{"method":"x","parameters":false}', b"{'method':'x'}", b'{"method":"x",}',
        b'{"method":"x"}{"method":"y"}', b'{"method":"x"}x', b'{"method":"x"', b'{"method":"x\n"}',
        b'{"method":"\xff"}', b'{"method":"\xed\xa0\x80"}', b'\xef\xbb\xbf{"method":"x"}',
        '{"method":"x"}'.encode("utf-16"), b'{"method":"x","parameters":{"a":NaN}}',
        b'{"method":"x","parameters":{"a":-Infinity}}', b'{"method":"x","parameters":{"a":' + b"9" * 5000 + b"}}",
        b'{"method":"x","parameters":{"a":' + b"[" * 20000 + b"]" * 20000 + b"}}",
        b'{"method":"x","parameters":' + b'{"a":' * 10000 + b"1" + b"}" * 10001,
    ],
)  # fmt: skip
def test_what_is_no_call_is_malformed(text: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.parse(text)


@pytest.mark.parametrize("flag", wire.FLAGS)
def test_flags_are_true_false_or_not_there(flag: str) -> None:
    for value in (1, 0, 1.0, 0.0, "true", "", [], {}, [True]):
        with pytest.raises(wire.Malformed):
            wire.parse(json.dumps({"method": "x", flag: value}).encode())
    for value in (None, False):
        assert wire.parse(json.dumps({"method": "x", flag: value}).encode()) == wire.Call("x", {})
    if flag == "upgrade":
        with pytest.raises(wire.Malformed):
            wire.parse(b'{"method":"x","upgrade":true}')
    else:
        assert getattr(wire.parse(json.dumps({"method": "x", flag: True}).encode()), flag) is True


def test_a_key_that_is_there_twice_is_the_last() -> None:
    assert wire.parse(b'{"method":"a","parameters":{"x":1,"x":2},"method":"b"}') == wire.Call("b", {"x": 2})


@pytest.mark.parametrize("longest", [64, wire.LONGEST_CALL])
def test_a_call_has_a_length_that_it_may_have(longest: int) -> None:
    """One byte more is too much, in one piece or in many, before or after the NUL is there; and nothing is kept."""
    room = longest - len(frame("", {}))
    assert decoded([frame("x" * room, {})], longest) == [wire.Call("x" * room, {})]
    for pieces in ([frame("x" * (room + 1), {})], [frame("x" * (room + 1), {})[:-1]], [b"x" * 16] * longest):
        decoder = wire.Decoder(longest)
        with pytest.raises(wire.Malformed, match=f"more than {longest} bytes"):
            all(decoder.feed(piece) or decoder.next() is None for piece in pieces)  # type: ignore[func-returns-value]
        assert len(decoder.buffer) <= longest + len(pieces[0])


@given(json_objects, st.sampled_from(["", "io.nestrt.Guest.NotFound"]), st.booleans())
def test_a_reply_is_one_frame_of_plain_ascii(parameters: dict[str, Any], error: str, continues: bool) -> None:
    """Names of groups and processes in it are anybody's: no byte of them ends a frame or moves a cursor."""
    data = wire.encode(parameters, error=error, continues=continues)
    assert (data.count(b"\0"), data[-1]) == (1, 0)
    assert data[:-1].decode("ascii").isprintable()
    found = json.loads(data[:-1])
    assert (found.get("error", ""), found.get("continues", False)) == (error, continues)
    assert not finite(parameters) or found["parameters"] == parameters


# Parameters.


@given(st.sampled_from(METHODS).flatmap(lambda pair: st.tuples(st.just(pair), right(pair[1], pair[0]))))
@settings(max_examples=150)
def test_what_the_text_allows_is_taken(found: tuple[tuple[Interface, str], dict[str, Any]]) -> None:
    (interface, method), parameters = found
    checked = interface.check(method, parameters)
    assert {name: value for name, value in checked.items() if value is not None} == {
        name: value for name, value in parameters.items() if value is not None
    }
    assert [*checked] == [name for name, _ in interface.methods[method].fields]
    assert interface.check(method, checked) == checked


@given(any_call(), st.sampled_from(INTERFACES))
@settings(max_examples=200)
def test_all_else_is_refused_by_the_parameters_name(call: tuple[str, dict[str, Any]], other: Interface) -> None:
    method, parameters = call
    for interface in (INTERFACES[1], other):
        if method not in interface.methods:
            continue
        found = checked_or_refused(interface, method, parameters)
        if isinstance(found, Refusal):
            assert found.name == "org.varlink.service.InvalidParameter"
            assert found.parameters == {"parameter": found.message.removeprefix("parameter ")}
            assert len(found.message) < 300
        else:
            assert set(parameters) <= set(found)


def checked_or_refused(interface: Interface, method: str, parameters: dict[str, Any]) -> dict[str, Any] | Refusal:
    try:
        return interface.check(method, parameters)
    except Refusal as refusal:
        return refusal


@pytest.mark.parametrize(("interface", "method", "name", "kind"), FIELDS)
def test_no_parameter_takes_a_value_of_another_type(interface: Interface, method: str, name: str, kind: Type) -> None:
    for value in wrong_values(kind, interface):
        parameters = {name: value}
        if value is None:
            parameters = {}
        with pytest.raises(Refusal) as caught:
            interface.check(method, {**least(interface, method), **parameters} if value is not None else {})
        found = caught.value.parameters["parameter"]
        assert value is None or found.partition(".")[0] == name, (value, found)


def least(interface: Interface, method: str) -> dict[str, Any]:
    """The fewest and smallest parameters that *method* takes."""
    return {name: smallest(kind, interface) for name, kind in interface.methods[method].fields if not kind.optional}


def smallest(kind: Type, interface: Interface) -> Any:
    if kind.kind in interface.types:
        kind = interface.types[kind.kind]
    if kind.kind == "struct":
        return {name: smallest(one, interface) for name, one in kind.fields if not one.optional}
    plain: dict[str, Any] = {
        "array": [], "map": {}, "object": {}, "string": "", "int": 0, "float": 0, "bool": False,
    }  # fmt: skip
    return plain[kind.kind]


@pytest.mark.parametrize(("interface", "method"), METHODS)
def test_missing_and_unknown_parameters(interface: Interface, method: str) -> None:
    needed = least(interface, method)
    assert set(interface.check(method, needed)) == {name for name, _ in interface.methods[method].fields}
    for name in needed:
        with pytest.raises(Refusal, match=f"parameter {name}"):
            interface.check(method, {key: value for key, value in needed.items() if key != name})
    for surplus in ("surplus", "", "\0", "\ud800", "x" * 5000, "Group", "group "):
        with pytest.raises(Refusal) as caught:
            interface.check(method, {**needed, surplus: None})
        assert len(caught.value.message) < 100


def test_long_and_many() -> None:
    guest = idl.interface("io.nestrt.Guest")
    for method, parameters in (
        ("List", {"group": "x" * (idl.LONGEST_TEXT + 1)}),
        ("Attach", {"group": "a", "pids": [0] * (idl.MOST_ITEMS + 1)}),
        ("Set", {"group": "a", "settings": {str(n): "" for n in range(idl.MOST_ITEMS + 1)}}),
        ("Set", {"group": "a", "settings": {"x" * (idl.LONGEST_TEXT + 1): ""}}),
        ("Set", {"group": "a", "settings": {"x": "y" * (idl.LONGEST_TEXT + 1)}}),
    ):
        with pytest.raises(Refusal):
            guest.check(method, parameters)


# The definitions.


@given(st.text() | st.text(alphabet="interface methodtypr()->[]?:,#\n abc."))
def test_any_definition_is_parsed_or_a_value_error(text: str) -> None:
    for whole in (text, "interface a.b\n" + text):
        try:
            found = idl.parse(whole)
        except ValueError:
            continue
        assert set(found.methods) == set(found.replies)


def test_no_interface_but_the_brokers_own() -> None:
    for name in ("", "io.nestrt", "io.nestrt.Guest.Get", "\0", "x" * 10_000):
        with pytest.raises(Refusal) as caught:
            idl.interface(name)
        assert caught.value.name == "org.varlink.service.InterfaceNotFound"
        assert len(caught.value.parameters["interface"]) <= 256


# Numbers of users, and of requests.


@given(st.integers(-2, 1 << 33), st.sampled_from([(), ((0, 100_000, 65536),), ((0, 1000, 1), (1, 100_000, 65536))]))
def test_a_user_has_one_number_on_each_side(number: int, ids: tuple[tuple[int, int, int], ...]) -> None:
    there = outside(ids, number)
    assert there == -1 or inside(ids, there) == number
    here = inside(ids, number)
    assert here == -1 or outside(ids, here) == number
    # To chown(2) it means "as it is": nobody has it, in any guest.
    assert outside(ids, (1 << 32) - 1) == -1
    assert inside(ids, (1 << 32) - 1) == -1


@given(st.lists(st.tuples(st.floats(0, 0.05), st.integers(1, 17)), min_size=1, max_size=60))
def test_no_more_requests_than_the_rate_and_a_burst(calls: list[tuple[float, int]]) -> None:
    """Each is carried out when it may be, by its own clock: up to that time no more than rate × time + burst."""
    now = [100.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quota.time, "monotonic", lambda: now[0])
        bucket, taken = quota.Bucket(1000, 250), 0
        for pause, number in calls:
            now[0] += pause
            at = now[0] + bucket.take(number)
            taken += number
            assert taken <= 250 + (at - 100.0) * 1000 + 1e-6


# libFuzzer's turn.


def attempt_atheris() -> str:
    """What keeps atheris from being used; empty where nothing does."""
    done = subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True, text=True)
    return done.stderr.strip().rpartition("\n")[2]


def test_libfuzzer_finds_nothing(tmp_path: Path) -> None:
    require("atheris", attempt_atheris())
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, (interface, method) in enumerate(METHODS):
        parameters = json.dumps(least(interface, method)).encode()
        (corpus / f"frame-{number}").write_bytes(frame(f"{interface.name}.{method}", least(interface, method)))
        # libFuzzer takes numbers from the end: which method, and how it is cut.
        (corpus / f"parameters-{number}").write_bytes(parameters + b"\0" + bytes([number]))
    fuzzer = Path(__file__).with_name("fuzz_broker.py")
    argv = [sys.executable, str(fuzzer), "-atheris_runs=20000", "-max_len=600", "-seed=1", "-timeout=10", str(corpus)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 20000 in" in done.stderr
