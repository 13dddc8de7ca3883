"""Varlink interface definitions: parsed, and parameters checked by them. varlink.org/Interface-Definition. Pure.

    interface = parse(interfaces.GUEST)
    interface.check("Get", {"group": "/web"})       the parameters as a method gets them: all keys, None where left out
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from nestrt.broker import interfaces
from nestrt.broker.refusal import Refusal, invalid
from nestrt.record import record

_TOKEN = re.compile(r"(?:\s|#[^\n]*)*(->|\[\]|\[string\]|[A-Za-z][A-Za-z0-9_.]*|[?():,])")
LONGEST_TEXT = 4096  # characters of one string
MOST_ITEMS = 4096
SMALLEST, LARGEST = -(1 << 63), (1 << 63) - 1  # varlink's int is 64 bits wide
SIMPLE = ("bool", "int", "float", "string", "object")


@record
class Type:
    """*kind*: one of SIMPLE, "array", "map", "struct", or a name; *of* is what an array or map holds."""

    kind: str
    optional: bool = False
    of: Type | None = None
    fields: tuple[tuple[str, Type], ...] = ()


@record
class Interface:
    """*methods* are their parameters by name; *errors* and *types* likewise."""

    name: str
    text: str
    methods: dict[str, Type]
    replies: dict[str, Type]
    errors: dict[str, Type]
    types: dict[str, Type]

    def check(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """*parameters* of *method*, checked and complete. Raises Refusal naming the first that is wrong."""
        found = self._value(self.methods[method], parameters, "")
        assert isinstance(found, dict)
        return found

    def reply(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """*parameters* of a reply of *method*, checked alike: for tests and clients."""
        found = self._value(self.replies[method], parameters, "")
        assert isinstance(found, dict)
        return found

    def _value(self, kind: Type, value: Any, where: str) -> Any:
        if value is None and kind.optional:
            return None
        if kind.kind in self.types:
            kind = self.types[kind.kind]
        if kind.kind == "struct":
            return self._struct(kind, value, where)
        if kind.kind in ("array", "map"):
            return self._items(kind, value, where)
        good = (
            isinstance(value, str) and len(value) <= LONGEST_TEXT if kind.kind == "string"
            else type(value) is int and SMALLEST <= value <= LARGEST if kind.kind == "int"
            else type(value) in (int, float) and SMALLEST <= value <= LARGEST if kind.kind == "float"
            else type(value) is bool if kind.kind == "bool"
            else isinstance(value, dict)
        )  # fmt: skip
        if not good:
            raise invalid(where)
        return value

    def _struct(self, kind: Type, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise invalid(where)
        prefix = f"{where}." if where else ""
        known = dict(kind.fields)
        for key in value:
            if key not in known:
                raise invalid(f"{prefix}{key[:64]}")
        return {name: self._value(of, value.get(name), prefix + name) for name, of in kind.fields}

    def _items(self, kind: Type, value: Any, where: str) -> Any:
        assert kind.of is not None
        if kind.kind == "array":
            if not isinstance(value, list) or len(value) > MOST_ITEMS:
                raise invalid(where)
            return [self._value(kind.of, item, where) for item in value]
        if not isinstance(value, dict) or len(value) > MOST_ITEMS:
            raise invalid(where)
        if any(len(key) > LONGEST_TEXT for key in value):
            raise invalid(where)
        return {key: self._value(kind.of, item, where) for key, item in value.items()}


class _Parser:
    """Recursive descent over the tokens of one definition."""

    def __init__(self, text: str) -> None:
        self.words: list[str] = []
        at = 0
        while found := _TOKEN.match(text, at):
            self.words.append(found[1])
            at = found.end()
        if re.sub(r"#[^\n]*", "", text[at:]).strip():
            raise ValueError(f"not Varlink: {text[at : at + 40]!r}")
        self.words.reverse()

    def take(self, *wanted: str) -> str:
        word = self.words.pop() if self.words else ""
        if wanted and word not in wanted:
            raise ValueError(f"{word!r} is not one of {wanted}")
        return word

    def peek(self) -> str:
        return self.words[-1] if self.words else ""

    def type(self) -> Type:
        if self.peek() == "?":
            self.take()
            found = self.type()
            return Type(found.kind, True, found.of, found.fields)
        if self.peek() in ("[]", "[string]"):
            kind = "array" if self.take() == "[]" else "map"
            return Type(kind, of=self.type())
        if self.peek() == "(":
            return self.struct()
        return Type(self.take())

    def struct(self) -> Type:
        fields = []
        self.take("(")
        while self.peek() != ")":
            name = self.take()
            self.take(":")
            fields.append((name, self.type()))
            if self.peek() != ")":
                self.take(",")
        self.take(")")
        return Type("struct", fields=tuple(fields))


def parse(text: str) -> Interface:
    """The interface that *text* defines. Raises ValueError."""
    parser = _Parser(text)
    parser.take("interface")
    found = Interface(parser.take(), text, {}, {}, {}, {})
    while parser.peek():
        word, name = parser.take("method", "type", "error"), parser.take()
        if word == "method":
            found.methods[name] = parser.struct()
            parser.take("->")
            found.replies[name] = parser.struct()
        else:
            (found.types if word == "type" else found.errors)[name] = parser.struct()
    return found


@cache
def interface(name: str) -> Interface:
    """One of the broker's own interfaces. Raises Refusal where it has none of that name."""
    text = interfaces.TEXTS.get(name)
    if text is None:
        raise Refusal("org.varlink.service.InterfaceNotFound", f"no interface {name[:80]}", interface=name[:256])
    return parse(text)
