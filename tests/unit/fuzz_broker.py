"""What a stranger sends to the broker, for libFuzzer: python fuzz_broker.py -atheris_runs=20000 [-seed=N]

Any bytes are calls or Malformed, and any call's parameters are what the method wants or a Refusal. Whatever else
happens is found.
"""

from __future__ import annotations

import json
import os
import sys

import atheris

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

with atheris.instrument_imports(include=["nestrt.broker.wire", "nestrt.broker.idl"]):
    from nestrt.broker import idl, wire
from nestrt.broker.refusal import Refusal

INTERFACES = tuple(idl.interface(name) for name in ("io.nestrt.Guest", "io.nestrt.Host", "org.varlink.service"))
METHODS = tuple((one, method) for one in INTERFACES for method in one.methods)
LONGEST = 512


def decode(data: bytes, cuts: list[int]) -> list[wire.Call]:
    """The calls in *data*, which comes in pieces."""
    decoder, found = wire.Decoder(LONGEST), []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        decoder.feed(data[start:end])
        while (call := decoder.next()) is not None:
            found.append(call)
        assert len(decoder.buffer) < LONGEST
    return found


def one(data: bytes) -> None:
    """libFuzzer's entry: frames, and the same bytes as parameters of a method."""
    provider = atheris.FuzzedDataProvider(data)
    which, cut = provider.ConsumeIntInRange(0, len(METHODS) - 1), provider.ConsumeIntInRange(0, 64)
    rest = provider.ConsumeBytes(len(data))
    pieces = list(range(cut, len(rest), cut)) if cut else []
    try:
        for call in decode(rest, pieces):
            assert isinstance(call.method, str)
            assert isinstance(call.parameters, dict)
            assert json.loads(wire.encode(call.parameters)[:-1])["parameters"] == call.parameters
    except wire.Malformed:
        pass
    interface, method = METHODS[which]
    try:
        parameters = wire.parse(b'{"method":"x","parameters":' + rest + b"}").parameters
        found = interface.check(method, parameters)
        assert [*found] == [name for name, _ in interface.methods[method].fields]
        assert interface.check(method, found) == found
    except wire.Malformed:
        pass
    except Refusal as refusal:
        if refusal.name != "org.varlink.service.InvalidParameter":
            raise
        wire.encode(refusal.parameters, error=refusal.name)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
