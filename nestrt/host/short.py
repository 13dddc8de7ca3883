"""Short ids: the beginning of the id that an engine has given a container, in place of a guest's whole name.

podman, docker and containerd call a container by 64 hexadecimal digits, print the first twelve, and take any beginning
that only one has. Guests choose the names of their guests, and users of this level what their marks say. So each name
on the way ("1a2b3c4d5e6f/inner") is looked for among the guests of its own level alone, and a mark that is not
this level's word counts only where nothing of this level is meant: neither by its whole name nor by its beginning.
"""

from __future__ import annotations

from nestrt.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nestrt.host.walk import Guest

DIGITS = frozenset("0123456789abcdef")
LENGTH = 64
SHORTEST = 4
# include/linux/threads.h, PID_MAX_LIMIT: 1 << 22. What could be a process's number is never taken for an id.
LONGEST_PID = 7
SHOWN = 8


def is_short(word: str) -> bool:
    """Whether *word* could be the beginning of an engine's id; a shorter decimal number is a pid, or a mistaken one."""
    number = word.isdigit() and len(word) <= LONGEST_PID
    return SHORTEST <= len(word) < LENGTH and DIGITS.issuperset(word) and not number


def may_be_short(name: str) -> bool:
    """Whether a part of *name* ("web/1a2b3c4d5e6f", "1a2b3c4d5e6f:/job") could be."""
    return name[:1] != "/" and any(is_short(word) for word in name.partition(":")[0].split("/"))


def pick(word: str, *ranks: Iterable[str]) -> str | None:
    """The name that is *word* or, where it is an engine's id, begins with it: in the first of *ranks* that has one.

    None where none has. Raises InputError where several in that one begin so.
    """
    for names in map(set, ranks):
        if word in names:
            return word
        found = {each for each in names if _is_id(each) and each.startswith(word)} if is_short(word) else set()
        if len(found) > 1:
            more = f" or {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            remedy = f"say {' or '.join(sorted(found)[:SHOWN])}{more}"
            raise InputError("tell which guest is meant by", word, f"{len(found)} ids begin so", remedy)
        if found:
            return found.pop()
    return None


def _is_id(name: str) -> bool:
    return len(name) == LENGTH and DIGITS.issuperset(name)


def split(name: str) -> tuple[str, str]:
    """The outermost guest's name, and the rest: ("web", "/db:/job"), ("web", ":/job"), ("web", "")."""
    ends = [end for end in (name.find("/"), name.find(":")) if end >= 0]
    end = min(ends, default=len(name))
    return name[:end], name[end:]


def whole_name(name: str, guests: list[Guest]) -> str:
    """*name* with whole ids in place of their beginnings, where *guests*, and those in them, have such; else as it is.

    A path stays one. Raises InputError where a beginning is of several ids.
    """
    if not may_be_short(name):
        return name
    word, rest = split(name)
    own = [guest for guest in guests if not guest.claim]
    claims = [guest for guest in guests if guest.claim]
    if rest and any(_last(guest) == name for guest in guests):
        return name  # the name of a group, which may have a colon in it
    found = pick(word, map(_last, own), map(_last, claims))
    if found is None:
        return name
    if rest[:1] == "/":
        named = [guest for guest in own if _last(guest) == found] or [g for g in claims if _last(g) == found]
        rest = "/" + whole_name(rest[1:], [inner for guest in named for inner in guest.guests])
    return found + rest


def _last(guest: Guest) -> str:
    """The guest's name without those of the guests around it."""
    return guest.name.rpartition("/")[2]
