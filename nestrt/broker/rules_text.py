r"""Rules that place processes, in the form of cgrules.conf(5) (libcgroup). Pure.

::

    # user[:process]          controllers   destination
    alice:/usr/bin/postgres   memory,cpu    db
    "alice:Web Content"       *             browser/%u
    @wheel                    cpu           admins
    %                         memory        admins/big       more of the same rule, for other controllers
    *                         *             users/%U

*user* is a name, a number, ``@`` and a group's name or number, or ``*``. *process* is the full path of the program, or
the name that the kernel knows the process by (comm, 15 bytes), with a ``*`` at its end for all that begin so.
Destinations are groups of the guest, from its root; in them %u %U %g %G %p %P stand for the user's name and number, the
group's, the process's name and number, ``\%`` for a percent sign. The first rule that fits is the one that holds.

Users and groups are the effective ones, as the kernel has them: a process is in an ``@`` group that is its effective
one or one of its supplementary ones.
"""

from __future__ import annotations

import os
import re

from nestrt.guest.client import GuestError, parse_group
from nestrt.record import record

MOST_RULES = 256  # lines, comments and all
MOST_BYTES = 16384
LARGEST_ID = (1 << 32) - 2
COMM = 15  # bytes: TASK_COMM_LEN in include/linux/sched.h, without its NUL
_WORD = re.compile(r'(?:"[^"]*"|[^\s"])+')
_TEMPLATE = re.compile(r"\\%|%(.?)")


class BadRule(ValueError):
    """Line *number*, counted from 1, is no rule; *remedy* tells what one looks like."""

    def __init__(self, number: int, reason: str, remedy: str) -> None:
        super().__init__(f"line {number}: {reason}")
        self.reason = f"line {number}: {reason}"
        self.remedy = remedy


@record
class Part:
    """*controllers* by their v2 names, () for all, and where the rule's processes belong for those."""

    controllers: tuple[str, ...]
    destination: str


@record
class Rule:
    """*user*: None is everybody, an int once names are numbers. *is_group*: a group's. *process*: "" is every one."""

    user: str | int | None
    is_group: bool
    process: str
    parts: tuple[Part, ...]


@record
class Subject:
    """A process as rules see it: effective ids of the guest, all its groups, comm, its program's path, its number in
    the guest (its own pid namespace's)."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]
    name: str
    program: str


def parse(lines: list[str]) -> list[Rule]:
    """The rules in *lines*. Raises BadRule."""
    if len(lines) > MOST_RULES or sum(len(line.encode("utf-8", "replace")) + 1 for line in lines) > MOST_BYTES:
        raise BadRule(len(lines), f"more than {MOST_RULES} lines or {MOST_BYTES} bytes", "give fewer")
    rules: list[Rule] = []
    for number, line in enumerate(lines, 1):
        words = _words(line, number)
        if not words:
            continue
        if len(words) != 3:
            form = "write it like: alice:/usr/bin/postgres memory,cpu db"
            raise BadRule(number, f"{len(words)} words instead of user, controllers, destination", form)
        who, controllers, destination = words
        part = Part(_controllers(controllers), _destination(destination, number))
        if who == "%":
            if not rules:
                raise BadRule(number, "% continues a rule, and there is none before", "name the user")
            rules[-1].parts += (part,)
        else:
            rules.append(Rule(*_who(who, number), (part,)))
    return rules


def _words(line: str, number: int) -> list[str]:
    """The line's words, without quotes and comments."""
    if not line.replace("\t", " ").isprintable():
        raise BadRule(number, "a character that cannot be printed", "write one rule in each line")
    if line.count('"') % 2:
        raise BadRule(number, "a quote that does not end", 'write "alice:Web Content"')
    words = []
    for word in _WORD.findall(line):
        if word.startswith("#"):
            break
        words.append(word.replace('"', ""))
    return words


def _who(text: str, number: int) -> tuple[str | int | None, bool, str]:
    """(user or group, whether it is a group, process)."""
    user, colon, process = text.partition(":")
    if colon and not process:
        raise BadRule(number, "no process after the colon", "leave the colon out for every process")
    is_group = user.startswith("@")
    user = user.removeprefix("@")
    if not user or user.startswith("%") or "/" in user:
        raise BadRule(number, f"{text[:80]!r} names no user", "name a user, @ and a group, or * for everybody")
    if user == "*":
        return None, False, "" if process == "*" else process
    if user.isascii() and user.isdigit():
        if len(user) > 10 or int(user) > LARGEST_ID:
            raise BadRule(number, f"{user[:80]} is no user's number", f"numbers end at {LARGEST_ID}")
        return int(user), is_group, "" if process == "*" else process
    return user, is_group, "" if process == "*" else process


def _controllers(text: str) -> tuple[str, ...]:
    names = [name.replace("blkio", "io") for name in text.split(",")]
    return () if "*" in names else tuple(dict.fromkeys(names))


def _destination(text: str, number: int) -> str:
    """The destination, as a group of the guest with templates left in it."""
    for found in _TEMPLATE.finditer(text):
        if found[1] is not None and found[1] not in "uUgGpP" or found[1] == "":
            raise BadRule(number, f"{found[0]} stands for nothing", r"there are %u %U %g %G %p %P, and \% for %")
    try:
        # A template is one part of a name, so any that is none of these letters serves.
        parse_group(_TEMPLATE.sub("x", text), "place processes in")
    except GuestError as error:
        raise BadRule(number, f"destination {text[:80]!r}: {error.reason}", error.remedy) from None
    return "/" + text.strip("/")


def names(rules: list[Rule]) -> tuple[set[str], set[str]]:
    """The names of users and of groups that *rules* have."""
    users = {rule.user for rule in rules if isinstance(rule.user, str) and not rule.is_group}
    groups = {rule.user for rule in rules if isinstance(rule.user, str) and rule.is_group}
    return users, groups


def templates(rules: list[Rule]) -> set[str]:
    """The letters of the templates that *rules* have."""
    texts = [part.destination for rule in rules for part in rule.parts]
    return {found[1] for text in texts for found in _TEMPLATE.finditer(text) if found[1]}


def numbered(rules: list[Rule], users: dict[str, int], groups: dict[str, int]) -> list[Rule]:
    """*rules* with numbers for names. A rule whose name has no number fits nobody, and is left out."""
    found = []
    for rule in rules:
        user = rule.user
        if isinstance(user, str):
            user = (groups if rule.is_group else users).get(user)
            if user is None:
                continue
        found.append(Rule(user, rule.is_group, rule.process, rule.parts))
    return found


def fits(rule: Rule, subject: Subject) -> bool:
    """Whether *rule*, with numbers, is for *subject*."""
    if rule.user is not None:
        mine = {subject.gid, *subject.groups} if rule.is_group else {subject.uid}
        if rule.user not in mine:
            return False
    if not rule.process:
        return True
    by_path = rule.process.startswith("/")
    own = os.fsencode(subject.program if by_path else subject.name)
    wanted = os.fsencode(rule.process)
    if wanted.endswith(b"*"):
        return own.startswith(wanted[:-1])
    return own == (wanted if by_path else wanted[:COMM])


def first(rules: list[Rule], subject: Subject) -> Rule | None:
    """The rule that holds for *subject*."""
    return next((rule for rule in rules if fits(rule, subject)), None)


def safe(text: str, controllers: list[str] | tuple[str, ...] = ()) -> str:
    """*text*, which somebody in the guest has chosen, as a part of a group's name: it leads nowhere else, does not look
    like a file of one of *controllers*, and cannot be empty."""
    text = "".join(c if c.isprintable() and c != "/" else "_" for c in text)
    prefix, dot, rest = text.partition(".")
    if dot and prefix in ("", "cgroup", "blkio", *controllers):
        text = f"{prefix}_{rest}"
    return text or "_"


def expand(
    destination: str, subject: Subject, users: dict[int, str], groups: dict[int, str],
    controllers: list[str] | tuple[str, ...] = (),
) -> str:  # fmt: skip
    """The group that *destination* means for *subject*; *users* and *groups* are names by number."""
    values = {
        "u": users.get(subject.uid, str(subject.uid)),
        "U": str(subject.uid),
        "g": groups.get(subject.gid, str(subject.gid)),
        "G": str(subject.gid),
        "p": subject.name,
        "P": str(subject.pid),
    }
    return _TEMPLATE.sub(lambda found: safe(values[found[1]], controllers) if found[1] else "%", destination)


@record
class Pattern:
    """The groups that a destination can mean: of each part of their names, the *texts* with a template between each and
    the next."""

    texts: tuple[tuple[str, ...], ...]

    def fits(self, group: str) -> bool:
        """Whether *group* is one of them."""
        parts = group.split("/")
        return len(parts) == len(self.texts) and all(map(_fits_part, self.texts, parts))


def _fits_part(texts: tuple[str, ...], part: str) -> bool:
    """Whether *part* is *texts* with at least one character between each and the next.

    The guest chooses both, and a regular expression would try all the ways in which templates can share a name: 2^n.
    """
    if len(texts) == 1:
        return part == texts[0]
    if not part.startswith(texts[0]):
        return False
    end = len(texts[0])
    for text in texts[1:-1]:
        # Of all places the first leaves the most to those that follow.
        at = part.find(text, end + 1)
        if at < 0:
            return False
        end = at + len(text)
    return end < len(part) - len(texts[-1]) and part.endswith(texts[-1])


def pattern(destination: str) -> Pattern:
    """Fits the groups that *destination* can mean."""
    # No part has a slash, so it can stand for templates.
    parts = (_TEMPLATE.sub(lambda found: "/" if found[1] else "%", part) for part in destination.split("/"))
    return Pattern(tuple(tuple(part.split("/")) for part in parts))
