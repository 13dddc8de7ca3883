"""Typed getters for OCI documents: what comes out has the type that Go's encoding/json would ask for.

As under runc: a name is found whatever its case, names that nobody asks for are
ignored, null is the same as absent, and a number for a Go integer is written
without fraction or exponent and within that type. Unlike there, text never
holds a NUL, for it goes to the kernel.

A parser takes a JSON value and gives a value of the model, or raises Wrong. An
object is a table of parsers: {name in JSON: (name in the record, parser)}.
"""

from __future__ import annotations

from nestrt import jsontext
from nestrt.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeVar

    T = TypeVar("T")
    Table = Mapping[str, tuple[str, Callable[[Any], Any]]]

UINT16 = 2**16 - 1
UINT32 = 2**32 - 1
UINT64 = 2**64 - 1
INT32 = 2**31 - 1
INT64 = 2**63 - 1
# 2**32-1 is "leave it as it is" for setresuid(2), and never an id.
ID = UINT32 - 1

_KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number with a fraction or an exponent",
    str: "text",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


class Wrong(Exception):
    """A mistake in a document; *path* grows from the inside out as parsers return. load_text() makes it an error."""

    def __init__(self, reason: str, remedy: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.path = path

    def at(self, key: str | int) -> None:
        """Put *key*, a name or an index, in front of the path."""
        if isinstance(key, int):
            step = f"[{key}]"
        elif key and key.isascii() and key.replace("_", "").isalnum():
            step = key[:60]
        else:
            step = f"[{short(key)}]"
        joint = "." if self.path and not self.path.startswith("[") else ""
        self.path = step + joint + self.path


def short(value: object) -> str:
    """*value* as an error shows it: text in quotes, at most some 60 characters of it."""
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 64 else text[:60] + '..."'


def wrong_type(value: object, wanted: str) -> Wrong:
    return Wrong(f"it is {_KINDS.get(type(value), 'something else')}, not {wanted}", f"write {wanted}")


def load_text(text: str, where: str, parse: Callable[[Any], T]) -> T:
    """*parse* of the JSON document *text*. Raises InputError, naming *where* (its file) and the place in it."""
    try:
        return parse(jsontext.parse(text))
    except Wrong as error:
        place = f"{where}, {error.path}" if error.path else where
        raise InputError("read", place, error.reason, error.remedy) from None
    except ValueError as error:
        raise InputError("read", where, str(error), "give it one whole JSON document") from None


def text(value: Any) -> str:
    """Text without NUL; half of a surrogate pair becomes U+FFFD, as in Go."""
    if type(value) is not str:
        raise wrong_type(value, "text")
    if "\0" in value:
        raise Wrong(f"{short(value)} holds a NUL character", "remove it")
    return value if value.isascii() else _whole(value)


def _whole(value: str) -> str:
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)


def required_text(value: Any) -> str:
    if not (found := text(value)):
        raise Wrong("it is empty", "fill it in, or leave out what it belongs to")
    return found


def absolute(value: Any) -> str:
    """A path that begins with "/"."""
    found = text(value)
    if not found.startswith("/"):
        raise Wrong(f"{short(found)} is not an absolute path", "begin it with /")
    return found


def texts(value: Any) -> tuple[str, ...]:
    """An array of texts."""
    try:
        # join() is the quickest check of several hundred system call names.
        joined = "".join(value) if type(value) is list else None
    except TypeError:
        joined = None
    if joined is not None and joined.isascii() and "\0" not in joined:
        return tuple(value)
    return list_of(text)(value)


def boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise wrong_type(value, "true or false")
    return value


def integer(low: int, high: int) -> Callable[[Any], int]:
    """A parser of whole numbers from *low* to *high*."""

    def parse(value: Any) -> int:
        if type(value) is not int:
            raise wrong_type(value, f"a whole number from {low} to {high}")
        if not low <= value <= high:
            # hex: a number of thousands of digits has no decimal form in Python
            shown = str(value) if -(2**70) < value < 2**70 else hex(value)[:20] + "..."
            raise Wrong(f"{shown} is out of range", f"write a whole number from {low} to {high}")
        return value

    return parse


def one_of(known: Iterable[str], what: str) -> Callable[[Any], str]:
    """A parser of words; *what* names them in an error: "namespace type"."""

    def parse(value: Any) -> str:
        if text(value) not in known:
            raise Wrong(f"{short(value)} is no {what}", f"known: {', '.join(known)}")
        return str(value)

    return parse


def list_of(parse: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """A parser of arrays whose items *parse* reads."""

    def parse_list(value: Any) -> tuple[T, ...]:
        if type(value) is not list:
            raise wrong_type(value, "an array")
        found = []
        for index, item in enumerate(value):
            try:
                found.append(parse(item))
            except Wrong as error:
                error.at(index)
                raise
        return tuple(found)

    return parse_list


def pairs_of(parse: Callable[[Any], T]) -> Callable[[Any], tuple[tuple[str, T], ...]]:
    """A parser of objects with any names; gives (name, value) in the document's order."""

    def parse_pairs(value: Any) -> tuple[tuple[str, T], ...]:
        if type(value) is not dict:
            raise wrong_type(value, "an object")
        found = {}
        for key, item in value.items():
            try:
                found[required_text(key)] = parse(item)
            except Wrong as error:
                error.at(key)
                raise
        return tuple(found.items())

    return parse_pairs


def read(table: Table, value: Any, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of an object by their names in the record; only those that the document has.

    *required* are names in JSON. Raises Wrong.
    """
    if type(value) is not dict:
        raise wrong_type(value, "an object")
    found = {}
    for key, item in value.items():
        field = table.get(key) or _folded(table, key)
        if field is None or item is None:
            continue
        try:
            found[field[0]] = field[1](item)
        except Wrong as error:
            error.at(key)
            raise
    for key in required:
        if table[key][0] not in found:
            raise Wrong("it is missing", "the specification requires it", key)
    return found


def _folded(table: Table, key: str) -> tuple[str, Callable[[Any], Any]] | None:
    """The field of that name in another case, for Go's encoding/json takes it too."""
    folded = key.casefold()
    for name, field in table.items():
        if name.casefold() == folded:
            return field
    return None


def record_of(cls: Callable[..., T], table: Table, required: tuple[str, ...] = ()) -> Callable[[Any], T]:
    """A parser of objects that are the record *cls*."""

    def parse(value: Any) -> T:
        return cls(**read(table, value, required))

    return parse
