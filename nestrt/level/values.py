"""Typed getters for what others wrote: policies, annotations, marks made by guests.

Nothing comes out of a Getter that was not asked for by type and bounds. A
mistake is an InputError that names the place; with a list to collect errors,
the getter notes it there and gives the default, so that all are found at once.
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.units import SIZE_LIMIT, parse_size, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeVar

    T = TypeVar("T")

TEXT_LIMIT = 4096  # characters: PATH_MAX, the longest thing that any value is
_TYPES = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a table"}


def kind(value: object) -> str:
    """What *value* is, for an error: "text", "a list"…"""
    return _TYPES.get(type(value), type(value).__name__)


def _distance(one: str, other: str) -> int:
    """How many letters to insert, drop or change to make *one* into *other* (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, mine in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, yours in enumerate(other, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (mine != yours))
    return row[-1]


def closest(word: str, known: Iterable[str]) -> str:
    """The one of *known* that *word* is probably a slip of the finger for, or ""."""
    if len(word) > 40:
        return ""
    found = sorted((_distance(word.lower(), name.lower()), name) for name in known)
    slips = 1 if len(word) < 4 else 2 if len(word) < 9 else 3  # two letters that changed places are two
    return found[0][1] if found and found[0][0] <= slips else ""


def suggestion(word: str, known: Iterable[str]) -> str:
    """A remedy for the unknown *word*: "did you mean X?", or all that there is."""
    names = list(known)
    near = closest(word, names)
    return f"did you mean {near}?" if near else f"known: {', '.join(names)}"


def text_value(value: object) -> str:
    """*value* if it is text of at most 4096 characters. Raises InputError."""
    if not isinstance(value, str):
        raise InputError("read", shown(value), f"it is {kind(value)}, not text", "put it in quotes")
    if len(value) > TEXT_LIMIT:
        raise InputError("read", shown(value), f"{len(value)} characters are too many", f"at most {TEXT_LIMIT}")
    return value


def integer_value(value: object, low: int = 0, high: int = 2**32 - 1) -> int:
    """*value* if it is a whole number from *low* to *high*. Raises InputError."""
    if type(value) is not int:
        raise InputError("read", shown(value), f"it is {kind(value)}, not a number", f"write {low} to {high}")
    if not low <= value <= high:
        raise InputError("read", f"{value:#x}"[:40], "out of range", f"write {low} to {high}")
    return value


def size_value(value: object) -> int:
    """Bytes from a whole number or from text like "512M" and "max"; -1 is max. Raises InputError."""
    return parse_size(value) if isinstance(value, str) else integer_value(value, -1, SIZE_LIMIT)


def size_within(value: object, low: int, high: int) -> int:
    """Bytes from *low* to *high*, from a whole number or from text like "64K". Raises InputError."""
    size = parse_size(number_text(value))
    if not low <= size <= high:
        raise InputError("read", f"size {shown(value)}", "out of range", f"write {low} to {high} bytes")
    return size


def number_text(value: object) -> str:
    """A number or text as text, for the parsers of units. Raises InputError."""
    return str(value) if type(value) is float or type(value) is int and abs(value) < 2**64 else text_value(value)


def text_list(value: object, most: int = 1024) -> list[str]:
    """*value* if it is a list of at most *most* texts. Raises InputError."""
    if not isinstance(value, list):
        raise InputError("read", shown(value), f"it is {kind(value)}, not a list", 'write it like ["one", "two"]')
    if len(value) > most:
        raise InputError("read", f"a list of {len(value)}", "too many", f"give at most {most}")
    return [text_value(item) for item in value]


class Getter:
    """What one table holds, by key, type and bounds; finish() refuses the keys that nobody asked for.

    *where* and *section* name it in errors: "policy web.toml" and "view" for
    "policy web.toml, [view] mount".
    """

    def __init__(
        self, mapping: Mapping[str, object], where: str, section: str = "", errors: list[InputError] | None = None
    ) -> None:
        self.mapping = mapping
        self.where = where
        self.section = section
        self.errors = errors
        self.asked: list[str] = []

    def place(self, key: str) -> str:
        """What an error calls *key*."""
        section = f"[{self.section}] " if self.section else ""
        return f"{self.where}, {section}{key if len(key) <= 60 else key[:57] + '...'}"

    def refuse(self, key: str, reason: str, remedy: str) -> None:
        """Note that *key* is wrong, or raise InputError where nobody collects errors."""
        error = InputError("read", self.place(key), reason, remedy)
        if self.errors is None:
            raise error
        self.errors.append(error)

    def guarded(self, key: str, default: T, make: Callable[[], T]) -> T:
        """What *make* gives; its InputError becomes one of *key*, and *default* serves."""
        try:
            return make()
        except InputError as error:
            self.refuse(key, f"{error.obj}: {error.reason}", error.remedy)
            return default

    def parsed(self, key: str, default: T, convert: Callable[[object], T]) -> T:
        """*convert* of the value of *key*, or *default* where there is none."""
        self.asked.append(key)
        if key not in self.mapping:
            return default
        return self.guarded(key, default, lambda: convert(self.mapping[key]))

    def _typed(self, key: str, default: T, wanted: type, remedy: str) -> T:
        self.asked.append(key)
        value = self.mapping.get(key, default)
        # A bool is an int to isinstance(), and true is no number.
        if key in self.mapping and type(value) is not wanted:
            self.refuse(key, f"it is {kind(value)}, not {_TYPES[wanted]}", remedy)
            return default
        return value  # type: ignore[return-value]

    def boolean(self, key: str, default: bool) -> bool:
        """true or false."""
        return self._typed(key, default, bool, "write true or false")

    def integer(self, key: str, default: T, low: int, high: int) -> int | T:
        """A whole number from *low* to *high*."""
        value: int | T = self._typed(key, default, int, f"write a number from {low} to {high}")
        if key in self.mapping and type(value) is int and not low <= value <= high:
            self.refuse(
                key,
                f"{value:#x} is out of range" if value > 2**64 else f"{value} is out of range",
                f"use {low} to {high}",
            )
            return default
        return value

    def text(self, key: str, default: str, choices: tuple[str, ...] = ()) -> str:
        """A text, one of *choices* where there are any."""
        value = self._typed(key, default, str, f"write one of {', '.join(choices)}" if choices else "put it in quotes")
        if choices and value not in choices:
            self.refuse(key, f"{shown(value)} is unknown", suggestion(value, choices))
            return default
        if len(value) > TEXT_LIMIT:
            self.refuse(key, f"{len(value)} characters are too many", f"at most {TEXT_LIMIT}")
            return default
        return value

    def list(self, key: str, default: tuple[str, ...] = (), most: int = 1024) -> tuple[str, ...]:
        """A list of at most *most* texts."""
        return self.parsed(key, default, lambda value: tuple(text_list(value, most)))

    def mapping_of(self, key: str, most: int = 1024) -> dict[str, object]:
        """A table of at most *most* keys; {} where there is none."""
        value: dict[str, object] = self._typed(key, {}, dict, "write it as a table: {name = value}")
        if len(value) > most or not all(isinstance(name, str) for name in value):
            self.refuse(key, f"{len(value)} keys are too many", f"at most {most}")
            return {}
        return value

    def table(self, key: str) -> Getter:
        """A getter for the table *key*, an empty one where there is none."""
        return Getter(self.mapping_of(key), self.where, key, self.errors)

    def finish(self) -> None:
        """Refuse every key that was not asked for."""
        for key in self.mapping:
            if key not in self.asked:
                name = key if isinstance(key, str) else kind(key)
                self.refuse(name, "unknown key", suggestion(name, self.asked))
