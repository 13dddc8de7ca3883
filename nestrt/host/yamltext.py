"""YAML for what is JSON-ready, in block style, all of it ASCII: 20 times as fast as PyYAML, and nothing to install.

A text is plain where no reader can take it for anything else, and else in double quotes with JSON's escapes,
which are YAML's too, but for characters beyond U+FFFF.

Source: https://yaml.org/spec/1.2.2/, and 1.1 for what old readers take for a number, a date or a truth value.
"""

from __future__ import annotations

import re
from functools import lru_cache
from json.encoder import encode_basestring_ascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/_.@-]*")
WORDS = frozenset("null true false yes no on off y n".split())
# DEL, which JSON leaves as it is, and pairs of surrogates, which stand for one character in JSON only.
ESCAPED = re.compile("\x7f|[\U00010000-\U0010ffff]")
LONGEST_KEY = 1000  # of a key before a colon (7.4.2, "implicit keys" have at most 1024)


@lru_cache(4096)
def _text(text: str) -> str:
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        return text
    quote: Callable[[str], str] = encode_basestring_ascii
    if not ESCAPED.search(text):
        return quote(text)
    parts, at = [], 0
    for found in ESCAPED.finditer(text):
        parts += [quote(text[at : found.start()])[1:-1], f"\\U{ord(found[0]):08X}"]
        at = found.end()
    return f'"{"".join(parts)}{quote(text[at:])[1:-1]}"'


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value) if len(value) < 256 else _text.__wrapped__(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        text = repr(value)
        if text[-3:] in ("inf", "nan"):
            return text.replace("inf", ".inf").replace("nan", ".nan")
        # 1e+16 is a text for readers of YAML 1.1.
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return "{}" if isinstance(value, dict) else "[]"


def _mapping(value: dict[str, Any], indent: str, lead: str, out: list[str]) -> None:
    """The lines of an object that is not empty, the first behind *lead*."""
    for key, item in value.items():
        name = _scalar(key)
        if len(name) > LONGEST_KEY:
            name = f"? {name}\n{indent}"
        if item and isinstance(item, dict):
            out.append(f"{lead}{name}:\n")
            _mapping(item, indent + "  ", indent + "  ", out)
        elif item and isinstance(item, (list, tuple)):
            out.append(f"{lead}{name}:\n")
            _sequence(item, indent, indent, out)
        else:
            out.append(f"{lead}{name}: {_scalar(item)}\n")
        lead = indent


def _sequence(value: list[Any] | tuple[Any, ...], indent: str, lead: str, out: list[str]) -> None:
    for item in value:
        if item and isinstance(item, dict):
            _mapping(item, indent + "  ", lead + "- ", out)
        elif item and isinstance(item, (list, tuple)):
            _sequence(item, indent + "  ", lead + "- ", out)
        else:
            out.append(f"{lead}- {_scalar(item)}\n")
        lead = indent


def dump(value: Any) -> str:
    """*value* as a YAML document, or, a list of one item, as one more item of a list."""
    out: list[str] = []
    if value and isinstance(value, dict):
        _mapping(value, "", "", out)
    elif value and isinstance(value, (list, tuple)):
        _sequence(value, "", "", out)
    else:
        out.append(_scalar(value) + "\n")
    return "".join(out)
