"""JSON for the start-up path: the interpreter's own C scanner, without the 12-20 ms of ``import json``."""

from __future__ import annotations

from _json import encode_basestring_ascii, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


class _Context:
    """The attributes that the C scanner reads (CPython, Modules/_json.c)."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse)


class _Spelled(float):
    """A float that is written again as it was read: 1e999 is infinite here, and not in JSON."""

    text: str

    def __new__(cls, text: str) -> _Spelled:
        found = super().__new__(cls, text)
        found.text = text
        return found

    def __repr__(self) -> str:
        return self.text


class _Exact(_Context):
    parse_float = _Spelled  # type: ignore[assignment]


# typeshed says a make_scanner; the C code wants an object with these attributes
_scan = make_scanner(_Context())  # type: ignore[arg-type]
_scan_exact = make_scanner(_Exact())  # type: ignore[arg-type]


def loads(text: str, exact: bool = False) -> Any:
    """Parse one JSON document; raises ValueError for anything else, also for NaN and 10,000 brackets.

    With *exact* dumps() writes floats as they were spelled here.
    """
    text = text.strip(" \t\r\n")
    try:
        value, end = (_scan_exact if exact else _scan)(text, 0)
    except (StopIteration, RecursionError, SystemError) as error:
        # SystemError: the scanner looks for json.decoder's exception, which nobody has imported.
        raise ValueError("not a JSON document") from error
    if end != len(text):
        raise ValueError(f"text after the JSON document, at character {end}")
    return value


def parse(text: str, exact: bool = False) -> Any:
    """Like loads(), for what people write: the ValueError is "line 3, column 7: what is wrong"."""
    try:
        return loads(text, exact)
    except ValueError as error:
        found = _explain(text) or str(error)
    # Not "from" the other: its text has no place.
    raise ValueError(found)


def _explain(text: str) -> str:
    """Where and how *text* is not JSON, "" where that is not known; slow: it imports json."""
    import json

    try:
        json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        reason = error.msg[:1].lower() + error.msg[1:]
        return f"line {error.lineno}, column {error.colno}: {reason}"
    except RecursionError:
        return "its objects and arrays are nested too deeply"
    except ValueError:
        pass
    return ""


def dumps(value: Any) -> str:
    """Write None, bool, int, float, str, lists, tuples and dicts as compact JSON."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{encode_basestring_ascii(k)}:{dumps(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(dumps, value)) + "]"
    raise TypeError(f"{type(value).__name__} has no JSON form")


def pretty(value: Any, indent: str = "\t") -> str:
    """Like dumps(), a line for each item, as Go's MarshalIndent; ``{}`` and ``[]`` unbroken, no newline at the end."""
    return _lines(value, indent, "\n")


def _lines(value: Any, indent: str, newline: str) -> str:
    if not value or not isinstance(value, (dict, list, tuple)):
        return dumps(value)
    deeper = newline + indent
    if isinstance(value, dict):
        items = [f"{encode_basestring_ascii(key)}: {_lines(item, indent, deeper)}" for key, item in value.items()]
    else:
        items = [_lines(item, indent, deeper) for item in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}{deeper}{f',{deeper}'.join(items)}{newline}{end}"
