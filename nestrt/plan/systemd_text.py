"""Unit properties as values, and those that a bundle's annotations name in GVariant text. Pure.

    org.systemd.property.TimeoutStopSec   "uint64 5"   →  TimeoutStopUSec, t, 5000000
    org.systemd.property.CollectMode      "'inactive'" →  CollectMode, s, "inactive"

Source: runc, docs/systemd.md, "Auxiliary properties"; glib's documentation, "GVariant Text Format".
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.record import record

PREFIX = "org.systemd.property."
REMEDY = "write it as GVariant text: 'word', true, 12, uint64 12, ['a', 'b'] (runc's docs/systemd.md)"

# Words of the text format, and D-Bus's letters with their ranges.
TYPES = {
    "boolean": "b",
    "byte": "y",
    "int16": "n",
    "uint16": "q",
    "int32": "i",
    "uint32": "u",
    "int64": "x",
    "uint64": "t",
    "double": "d",
    "string": "s",
    "objectpath": "o",
    "signature": "g",
}
RANGES = {
    "y": (0, 2**8),
    "n": (-(2**15), 2**15),
    "q": (0, 2**16),
    "i": (-(2**31), 2**31),
    "u": (0, 2**32),
    "x": (-(2**63), 2**63),
    "t": (0, 2**64),
}
TEXTS = "sog"
ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}

Value = str | bool | int | float | bytes | tuple["Value", ...]


@record
class Property:
    """A property of a unit: *signature* is D-Bus's, "b" bool, "t" uint64, "s" text, "as", "au", "ay", "a(ss)"."""

    name: str
    signature: str
    value: Value


def annotated(annotations: tuple[tuple[str, str], ...]) -> list[Property]:
    """The properties that annotations ``org.systemd.property.NAME`` ask for. Raises InputError."""
    found = []
    for key, text in annotations:
        if not key.startswith(PREFIX):
            continue
        name = key[len(PREFIX) :]
        if len(name) < 3 or not (name.isascii() and name.isalpha()):
            reason = "too short" if len(name) < 3 else "contains non-alphabetic character"
            raise InputError("use", f"annotation {key}", f"name incorrect: {reason}", "systemd.exec(5) has the names")
        signature, value = parse_value(text, key)
        stem = name.removesuffix("Sec")
        if stem != name and stem and stem[-1].islower():
            # Documented in seconds, and in µs on the bus.
            if signature not in RANGES and signature != "d":
                raise _refused(key, text, "not a number")
            assert isinstance(value, (int, float))
            if not 0 <= value * 1_000_000 < 2**64:
                raise _refused(key, text, "out of range")
            name, signature, value = f"{stem}USec", "t", int(value * 1_000_000)
        found.append(Property(name, signature, value))
    return found


def parse_value(text: str, where: str) -> tuple[str, Value]:
    """The D-Bus signature and the value of *text*; a whole number without a type is an int32. Raises InputError."""
    words = _words(text, where)
    signature, value, rest = _value(words, "", text, where)
    if rest:
        raise _refused(where, text, f"{rest[0]!r} follows the value")
    return signature, value


def _refused(where: str, text: str, reason: str) -> InputError:
    return InputError("use", f"annotation {where}={text}", f"value parse error: {reason}", REMEDY)


def _words(text: str, where: str) -> list[str]:
    """*text* cut up: brackets and commas alone, a string with its opening quote in front and unescaped."""
    words: list[str] = []
    at = 0
    while at < len(text):
        letter = text[at]
        if letter.isspace():
            at += 1
        elif letter in "[],":
            words.append(letter)
            at += 1
        elif letter in "'\"":
            word, at = _string(text, at, where)
            words.append(letter + word)
        else:
            end = at
            while end < len(text) and not text[end].isspace() and text[end] not in "[],'\"":
                end += 1
            words.append(text[at:end])
            at = end
    return words


def _string(text: str, at: int, where: str) -> tuple[str, int]:
    quote, letters = text[at], []
    at += 1
    while at < len(text) and text[at] != quote:
        if text[at] == "\\" and at + 1 < len(text):
            at += 1
            width = {"u": 4, "U": 8}.get(text[at])
            if width is None:
                letters.append(ESCAPES.get(text[at], text[at]))
            else:
                digits = text[at + 1 : at + 1 + width]
                if len(digits) != width or any(d not in "0123456789abcdefABCDEF" for d in digits):
                    raise _refused(where, text, f"\\{text[at]} wants {width} digits")
                if int(digits, 16) > 0x10FFFF:
                    raise _refused(where, text, f"no letter has the number {digits}")
                letters.append(chr(int(digits, 16)))
                at += width
        else:
            letters.append(text[at])
        at += 1
    if at == len(text):
        raise _refused(where, text, "the string does not end")
    if "\0" in letters:
        raise _refused(where, text, "a NUL in a string")
    return "".join(letters), at + 1


def _value(words: list[str], wanted: str, text: str, where: str) -> tuple[str, Value, list[str]]:
    """The signature and value that *words* begin with, and the words after; *wanted* a signature said before."""
    if not words:
        raise _refused(where, text, "a value is missing")
    word, rest = words[0], words[1:]
    if word in TYPES or word.startswith("@"):
        if wanted:
            raise _refused(where, text, "two types")
        signature = TYPES.get(word) or word[1:]
        if not signature or signature.lstrip("a")[1:] or signature[-1] not in (*RANGES, *TEXTS, "b", "d"):
            raise _refused(where, text, f"{word} is no type")
        return _value(rest, signature, text, where)
    if word == "[":
        return _array(rest, wanted, text, where)
    signature, value = _basic(word, wanted, text, where)
    return signature, value, rest


def _array(words: list[str], wanted: str, text: str, where: str) -> tuple[str, Value, list[str]]:
    if wanted and wanted[0] != "a":
        raise _refused(where, text, f"an array where {wanted} is said")
    of, items = wanted[1:], []
    while words and words[0] != "]":
        signature, value, words = _value(words, of, text, where)
        # The first item's type is the array's, said or not.
        of = of or signature
        if signature != of:
            raise _refused(where, text, "items of different types")
        items.append(value)
        if words and words[0] == ",":
            words = words[1:]
            if not words or words[0] == "]":
                raise _refused(where, text, "a value is missing")
        elif words and words[0] != "]":
            raise _refused(where, text, "a comma is missing")
    if not words:
        raise _refused(where, text, "the array does not end")
    if not of:
        raise _refused(where, text, "an empty array wants a type, such as @as []")
    return f"a{of}", tuple(items), words[1:]


def _basic(word: str, wanted: str, text: str, where: str) -> tuple[str, Value]:
    if word[0] in "'\"":
        if wanted and wanted not in TEXTS:
            raise _refused(where, text, f"a string where {wanted} is said")
        return wanted or "s", word[1:]
    if word in ("true", "false"):
        if wanted not in ("", "b"):
            raise _refused(where, text, f"a boolean where {wanted} is said")
        return "b", word == "true"
    try:
        if wanted == "d" or (not wanted and not word.lower().lstrip("+-").startswith("0x") and {*word} & {*".eE"}):
            return "d", float(word)
        sign, digits = (word[0], word[1:]) if word[0] in "+-" else ("", word)
        # GVariant takes 017 for an octal number, Python only 0o17.
        base = 8 if digits.isdigit() and digits.startswith("0") and len(digits) > 1 else 0
        number = int(sign + digits, base)
    except ValueError:
        raise _refused(where, text, f"{word!r} is neither number, 'string' nor true or false") from None
    signature = wanted or "i"
    low, high = RANGES.get(signature, (1, 0))
    if not low <= number < high:
        reason = f"{word} is out of the range of {signature}" if low < high else f"a number where {signature} is said"
        raise _refused(where, text, reason)
    return signature, number
