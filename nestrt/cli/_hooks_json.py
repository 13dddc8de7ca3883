"""One runtime in docker's daemon.json: put in and taken out of the text, so that all else stays byte for byte.

dockerd reads ``runtimes`` again when it is told to (dockerd(8), "Daemon configuration file"). A runtime with
arguments would become a script of its own making, which quotes nothing and stays as a process of its own, so
ours has none: it is the wrapper.
"""

from __future__ import annotations

import json
from typing import Any

from nestrt.errors import InputError, StateError
from nestrt.record import record

REMEDY = "correct the file; dockerd does not take it either"
NAME = "nestrt-runc"
WHITE = " \t\r\n"


@record
class Member:
    """A member of an object in a text: its key, and where key and value begin and the value ends."""

    key: str
    begin: int
    value: int
    end: int


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        # Go's decoder takes the last, other tools the first: whichever is changed here may be the wrong one.
        raise StateError("edit", f"key {twice[:60]!a}", "it is there twice", "leave one of them")
    return found


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def parse(text: str, where: str) -> dict[str, Any]:
    """The object that *text* is. Raises InputError: not JSON, no object; StateError: a key that is there twice."""
    try:
        found = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg[:1].lower() + error.msg[1:]}"
        raise InputError("edit", where, f"it is not JSON: {reason}", REMEDY) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError("edit", where, f"it is not JSON: {reason}", REMEDY) from None
    except StateError as error:
        raise StateError("edit", where, f"{error.obj} is there twice", error.remedy) from None
    if not isinstance(found, dict):
        raise InputError("edit", where, "it is no object", REMEDY)
    return found


def _skip(text: str, at: int) -> int:
    while text[at] in WHITE:
        at += 1
    return at


def _members(text: str, at: int) -> list[Member]:
    """The members of the object whose brace is at *at* of a text that is JSON."""
    found: list[Member] = []
    at = _skip(text, at + 1)
    while text[at] != "}":
        begin = at
        key, at = _DECODER.raw_decode(text, begin)
        value = _skip(text, _skip(text, at) + 1)  # past the colon
        _, end = _DECODER.raw_decode(text, value)
        found.append(Member(key, begin, value, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _gap(text: str, begin: int, members: list[Member]) -> str:
    """What stands before each member: "\\n" and its indentation, or a blank where the object is on one line."""
    space = text[begin + 1 : members[0].begin] if members else ""
    if "\n" not in space:
        return " "
    return ("\r\n" if "\r\n" in space else "\n") + space.rpartition("\n")[2]


def _entry(path: str, gap: str, unit: str) -> str:
    """``"nestrt-runc": {"path": PATH}``, with *gap* before each member of the object around it."""
    if "\n" not in gap:
        return f'{json.dumps(NAME)}: {{"path": {json.dumps(path)}}}'
    return f'{json.dumps(NAME)}: {{{gap}{unit}"path": {json.dumps(path)}{gap}}}'


def add(text: str | None, path: str, where: str) -> str:
    """*text* with the runtime, whose program is *path*; None is a file that is not there.

    Raises InputError where it is not what dockerd reads, StateError where somebody else has a runtime of that name.
    """
    if text is None:
        return f'{{\n  "runtimes": {{\n    {_entry(path, chr(10) + "    ", "  ")}\n  }}\n}}\n'
    document = parse(text, where)
    runtimes = document.get("runtimes", {})
    if not isinstance(runtimes, dict):
        raise InputError("edit", where, "its runtimes are no object", REMEDY)
    if NAME in runtimes:
        if not is_ours(document, path):
            raise StateError("edit", where, f"it has another runtime {NAME}", "rename or remove that one")
        return text
    begin = _skip(text, 0)
    top = _members(text, begin)
    gap = _gap(text, begin, top)
    unit = gap.lstrip("\r\n") or "  "
    mine = next((member for member in top if member.key == "runtimes"), None)
    if mine is None:
        deeper = gap + unit if "\n" in gap else gap
        space = deeper if "\n" in gap else ""
        new = f'"runtimes": {{{space}{_entry(path, deeper, unit)}{gap if space else ""}}}'
        return _inserted(text, begin, top, gap, new)
    inner = _members(text, mine.value)
    if not inner:
        # The blank tells it from runtimes that were not there at all: see remove().
        return f"{text[: mine.value + 1]} {_entry(path, '', '')}{text[mine.value + 1 :]}"
    deeper = _gap(text, mine.value, inner)
    return _inserted(text, mine.value, inner, deeper, _entry(path, deeper, unit))


def _inserted(text: str, begin: int, members: list[Member], gap: str, new: str) -> str:
    """*text* with *new* as the last member of the object at *begin*."""
    if not members:
        return f"{text[: begin + 1]}{new}{text[begin + 1 :]}"
    end = members[-1].end
    return f"{text[:end]},{gap}{new}{text[end:]}"


def is_ours(document: dict[str, Any], path: str) -> bool:
    """Whether the runtime is there as add() writes it."""
    runtimes = document.get("runtimes")
    return isinstance(runtimes, dict) and runtimes.get(NAME) == {"path": path}


def remove(text: str | None, path: str, where: str) -> str | None:
    """*text* without the runtime: as it was before add() where nothing else has changed. None: nothing is left.

    Raises as add() does. The runtime of somebody else stays.
    """
    if text is None:
        return None
    document = parse(text, where)
    if not is_ours(document, path):
        return text
    if text == add(None, path, where):
        return None
    begin = _skip(text, 0)
    top = _members(text, begin)
    mine = next(member for member in top if member.key == "runtimes")
    inner = _members(text, mine.value)
    without = _without(text, mine.value, inner, NAME)
    if len(inner) == 1:
        whole = _without(text, begin, top, "runtimes")
        if add(whole, path, where) == text:
            return whole
    return without


def _without(text: str, begin: int, members: list[Member], key: str) -> str:
    """*text* without the member *key* of the object at *begin*."""
    index = [member.key for member in members].index(key)
    mine = members[index]
    if index:
        return text[: members[index - 1].end] + text[mine.end :]
    if len(members) > 1:
        return text[: mine.begin] + text[members[1].begin :]
    return text[: begin + 1] + text[mine.end :]
