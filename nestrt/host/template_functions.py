"""The functions of templates: Go's own, those that podman adds, and a few for units.

What a guest may have written is escaped where it becomes text. A Literal, what the template's writer wrote, is
not, nor is what a function made of values that it has escaped. Every function is bounded by the Budget.

Source: https://pkg.go.dev/text/template#hdr-Functions; podman-ps(1), podman-inspect(1).
"""

from __future__ import annotations

import json

from nestrt.errors import InputError
from nestrt.host.marks import escape
from nestrt.host.render import ago, human, moment
from nestrt.host.template_parse import Literal, wrong
from nestrt.level.units import MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_STEPS = 10_000_000
MOST_TEXT = 1 << 26  # characters
FOR_EACH = 10_000, 1 << 20  # steps and characters that every further execution adds, up to these
WIDEST = 4096  # of a printf field
DEEPEST_TEXT = 100


class Budget:
    """What executing a template may cost; *place* is where in the template it is."""

    def __init__(self) -> None:
        self.steps = MOST_STEPS
        self.text = MOST_TEXT
        self.place = 0
        self.what = ""

    def refill(self) -> None:
        """One more row: what all of them cost is bounded by their number."""
        self.steps = min(MOST_STEPS, self.steps + FOR_EACH[0])
        self.text = min(MOST_TEXT, self.text + FOR_EACH[1])

    def wrong(self, reason: str, remedy: str = "") -> InputError:
        return wrong(self.place, self.what, reason, remedy)

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise self.wrong(f"more than {MOST_STEPS} steps")

    def made(self, text: str) -> Literal:
        """*text*, counted."""
        self.text -= len(text)
        if self.text < 0:
            raise self.wrong(f"more than {MOST_TEXT} characters")
        self.steps -= len(text) >> 4
        return Literal(text)


def shown(value: Any, budget: Budget, depth: int = 0) -> str:
    """*value* as Go's fmt prints it: true, [a b], map[a:1], <nil>."""
    if isinstance(value, str):
        return value if isinstance(value, Literal) else escape(value)
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if not isinstance(value, (list, tuple, dict)):
        return str(value)
    budget.step(len(value))
    if depth > DEEPEST_TEXT:
        raise budget.wrong(f"more than {DEEPEST_TEXT} lists and objects in each other", "write {{json .}}")
    if isinstance(value, dict):
        rows = sorted(value.items())
        return "map[" + " ".join(f"{escape(key)}:{shown(item, budget, depth + 1)}" for key, item in rows) + "]"
    return "[" + " ".join(shown(item, budget, depth + 1) for item in value) + "]"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", tuple: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "a text")


def _text(budget: Budget, value: Any) -> str:
    """A text; null is an empty one."""
    if value is None:
        return Literal("")
    if not isinstance(value, str):
        raise budget.wrong(f"its argument is {_kind(value)}, not a text")
    return value


def _number(budget: Budget, value: Any) -> Any:
    if type(value) not in (int, float):
        raise budget.wrong(f"its argument is {_kind(value)}, not a number")
    return value


def _like(text: str, made: str) -> str:
    """*made* of *text*: as fit to be shown as that was."""
    return Literal(made) if isinstance(text, Literal) else made


def _json(budget: Budget, value: Any) -> Literal:
    budget.step(16)
    return budget.made(json.dumps(value, separators=(",", ":")))


def _len(budget: Budget, value: Any) -> int:
    if not isinstance(value, (str, list, tuple, dict)):
        raise budget.wrong(f"{_kind(value)} has no length")
    return len(value)


def _index(budget: Budget, value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None:
            return None
        if isinstance(value, dict):
            value = value.get(key) if isinstance(key, str) else None
        elif isinstance(value, (list, tuple)):
            if type(key) is not int:
                raise budget.wrong(f"{_kind(key)} is no index of a list")
            if not 0 <= key < len(value):
                raise budget.wrong(f"there is no item {key}; the list has {len(value)}", "items are counted from 0")
            value = value[key]
        else:
            raise budget.wrong(f"{_kind(value)} has no items")
    return value


def _slice(budget: Budget, value: Any, begin: Any = 0, end: Any = None) -> Any:
    if not isinstance(value, (str, list, tuple)):
        raise budget.wrong(f"{_kind(value)} has no parts")
    end = len(value) if end is None else end
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end <= len(value):
        raise budget.wrong(f"there is no such part; there are {len(value)}")
    return _like(value, value[begin:end]) if isinstance(value, str) else value[begin:end]


def _split(budget: Budget, text: Any, separator: Any) -> list[str]:
    text, separator = _text(budget, text), _text(budget, separator)
    budget.step(len(text) + 1)
    return [_like(text, part) for part in (text.split(separator) if separator else list(text))]


def _join(budget: Budget, items: Any, separator: Any) -> Literal:
    if items is not None and not isinstance(items, (list, tuple)):
        raise budget.wrong(f"its argument is {_kind(items)}, not a list")
    separator = shown(_text(budget, separator), budget)
    parts = [shown(item, budget, 1) for item in items or ()]
    budget.text -= len(separator) * len(parts)
    budget.step(len(parts))
    return budget.made(separator.join(parts)) if budget.text >= 0 else budget.made("")


def _print(budget: Budget, *values: Any) -> Literal:
    parts: list[str] = []
    for number, value in enumerate(values):
        # As fmt.Sprint: blanks only between two of which neither is a text.
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            parts.append(" ")
        parts.append(shown(value, budget, 1))
    return budget.made("".join(parts))


def _println(budget: Budget, *values: Any) -> Literal:
    return budget.made(" ".join(shown(value, budget, 1) for value in values) + "\n")


def _directive(budget: Budget, flags: str, verb: str, value: Any) -> str:
    """One value of printf, padded."""
    width, _, digits = flags.lstrip("-+ #0").partition(".")
    if not (width.isdecimal() or not width) or not (digits.isdecimal() or not digits) or len(flags) > 12:
        raise budget.wrong(f"%{flags}{verb} is not known", "known: %s %v %d %q %t %x %f %g %e %%")
    if int(width or 0) > WIDEST or int(digits or 0) > WIDEST:
        raise budget.wrong(f"%{flags}{verb} is too wide", f"at most {WIDEST}")
    signs = flags[: len(flags) - len(flags.lstrip("-+ #0"))]
    if verb in "sv":
        text = shown(value, budget, 1)
        text = text[: int(digits)] if digits else text
    elif verb == "q":
        text = json.dumps(value) if isinstance(value, str) else shown(value, budget, 1)
    elif verb == "t":
        text = shown(value, budget, 1)
    elif verb in "xX" and isinstance(value, str):
        text = format(value.encode("utf-8", "surrogateescape").hex())
    else:
        number = _number(budget, value)
        if verb in "dxXob" and type(number) is not int:
            raise budget.wrong(f"%{verb} is for whole numbers")
        sign = "+" if "+" in signs else " " if " " in signs else ""
        places = f".{digits or 6}" if verb in "feEgG" else ""
        text = format(number, f"{sign}{places}{verb}")
        if "0" in signs and "-" not in signs:
            return text.zfill(int(width or 0))
    return text.ljust(int(width or 0)) if "-" in signs else text.rjust(int(width or 0))


def _printf(budget: Budget, form: Any, *values: Any) -> Literal:
    form = _text(budget, form)
    if not isinstance(form, Literal):
        form = escape(form)
    parts, rest, at = [], list(values), 0
    while (sign := form.find("%", at)) >= 0:
        parts.append(form[at:sign])
        end = sign + 1
        while form[end : end + 1] and form[end] in "-+ #0123456789.":
            end += 1
        verb = form[end : end + 1]
        at = end + 1
        if verb == "%":
            parts.append("%")
            continue
        if not verb or verb not in "svdqtxXobfgGeE":
            raise budget.wrong(f"%{form[sign + 1 : end + 1]} is not known", "known: %s %v %d %q %t %x %f %g %e %%")
        if not rest:
            raise budget.wrong(f"there is no value for {form[sign : end + 1]}")
        parts.append(_directive(budget, form[sign + 1 : end], verb, rest.pop(0)))
        budget.step()
        budget.text -= len(parts[-1])
        if budget.text < 0:
            break
    if rest and budget.text >= 0:
        raise budget.wrong(f"{len(rest)} more values than the text has places for")
    return budget.made("".join([*parts, form[at:]]))


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _eq(budget: Budget, value: Any, *others: Any) -> bool:
    budget.step(len(others))
    return any(_alike(value, other) for other in others)


def _compare(budget: Budget, one: Any, other: Any) -> int:
    both = (one, other)
    texts, numbers = all(isinstance(v, str) for v in both), all(type(v) in (int, float) for v in both)
    if not texts and not numbers:
        raise budget.wrong(f"{_kind(one)} and {_kind(other)} have no order")
    return int(one > other) - int(one < other)


def _title(budget: Budget, text: Any) -> str:
    text = _text(budget, text)
    made = "".join(c.upper() if i == 0 or text[i - 1].isspace() else c for i, c in enumerate(text))
    return _like(text, budget.made(made) + "")


def _truncate(budget: Budget, text: Any, length: Any) -> str:
    text = _text(budget, text)
    return _like(text, text[: max(0, int(_number(budget, length)))])


def _pad(budget: Budget, text: Any, before: Any, after: Any) -> Literal:
    widths = [int(_number(budget, width)) for width in (before, after)]
    if min(widths) < 0 or max(widths) > WIDEST:
        raise budget.wrong("too many blanks", f"0 to {WIDEST}")
    # As podman: nothing around nothing.
    text = shown(_text(budget, text), budget)
    return budget.made(" " * widths[0] + text + " " * widths[1] if text else "")


def _size(budget: Budget, value: Any) -> Literal:
    return Literal("-") if value is None else Literal(human(max(MAX, int(_finite(budget, value)))))


def _finite(budget: Budget, value: Any) -> Any:
    number = _number(budget, value)
    if not abs(number) < 1 << 64:
        raise budget.wrong("the number is too large")
    return number


def _date(budget: Budget, value: Any) -> Literal:
    return Literal("-") if value is None else Literal(moment(int(_finite(budget, value))))


def _age(budget: Budget, value: Any) -> Literal:
    import time

    return Literal("-") if value is None else Literal(ago(time.time() - _finite(budget, value)))


def _upper(budget: Budget, text: Any) -> str:
    text = _text(budget, text)
    return _like(text, budget.made(text.upper()) + "")


def _lower(budget: Budget, text: Any) -> str:
    text = _text(budget, text)
    return _like(text, budget.made(text.lower()) + "")


# name: (what does it, least and most arguments; most 0: any number)
FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "json": (_json, 1, 1),
    "len": (_len, 1, 1),
    "index": (_index, 1, 0),
    "slice": (_slice, 1, 3),
    "upper": (_upper, 1, 1),
    "lower": (_lower, 1, 1),
    "title": (_title, 1, 1),
    "join": (_join, 2, 2),
    "split": (_split, 2, 2),
    "truncate": (_truncate, 2, 2),
    "pad": (_pad, 3, 3),
    "print": (_print, 0, 0),
    "println": (_println, 0, 0),
    "printf": (_printf, 1, 0),
    "eq": (_eq, 2, 0),
    "ne": (lambda budget, one, other: not _alike(one, other), 2, 2),
    "lt": (lambda budget, one, other: _compare(budget, one, other) < 0, 2, 2),
    "le": (lambda budget, one, other: _compare(budget, one, other) <= 0, 2, 2),
    "gt": (lambda budget, one, other: _compare(budget, one, other) > 0, 2, 2),
    "ge": (lambda budget, one, other: _compare(budget, one, other) >= 0, 2, 2),
    "not": (lambda budget, value: not value, 1, 1),
    "size": (_size, 1, 1),
    "date": (_date, 1, 1),
    "age": (_age, 1, 1),
}
# Their later arguments are looked at only where that is still needed.
LAZY = ("and", "or")
