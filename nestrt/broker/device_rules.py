"""The device rules of groups as the kernel has them, and as they were given: read, set, given up.

An extended attribute on a group, ``trusted.nestrt.devices``, remembers what the group was given (Given): the host's
word, since no guest can set ``trusted.*`` from a user namespace. What a group *has* the kernel decides:

=====  ==========================================================  ===================================================
       what holds                                                   what the attribute is for
=====  ==========================================================  ===================================================
v1     devices.list: never more than the group above, which takes   whether the rules are the group's own, and what it
       what it loses from all below (security/device_cgroup.c)      is to have again when the group above regains it
v2     the group's program and those of all groups above it, all    the rules, which no program can be asked for, and
       of which must allow                                          the id of the program that says them
=====  ==========================================================  ===================================================

A group without rules of its own has those of the group above, also when they change: v2's kernel sees to that, on v1
it is done here. With rules of its own a group keeps them, within what the group above has at any time.
"""

from __future__ import annotations

import errno
import os
from typing import Iterable, Protocol

from nestrt import jsontext
from nestrt.act.update_devices import ALLOW, DENY, LIST, exchange, own_program
from nestrt.controllers.device_program import build
from nestrt.errors import HostError, InputError
from nestrt.guest.client import Hierarchy, ancestors
from nestrt.kernel import bpf, cgroup
from nestrt.level.devices import RULES_LIMIT, AllowList, DeviceRule, format_rule, parse_rule
from nestrt.plan import child_devices as plan
from nestrt.record import record

Rules = tuple[DeviceRule, ...]

ATTRIBUTE = "trusted.nestrt.devices"
GONE = (errno.ENOENT, errno.ENODEV)
ROUNDS = 3  # in which new groups are looked for: whoever makes them without end is not waited for
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


@record
class Given:
    """Rules that a group was given; *program* is the id of the v2 program that says them, 0 on v1."""

    rules: Rules
    program: int = 0


@record
class State:
    """*rules* hold, None where nobody can say; *own*: not only those of the group above. *given* are those that a
    change starts from: of the group's own also what the group above lacks. *lost*: they were given, and their program
    is not attached any more."""

    rules: Rules | None
    own: bool
    given: Rules | None
    lost: bool = False


def read_given(group: str | int) -> list[Given]:
    """What the attribute of *group* (a path, or a descriptor) says; [] for none, and for one that is damaged.

    While a v2 program takes another's place there are two, and the kernel knows which of them holds.
    """
    try:
        found = jsontext.loads(os.getxattr(group, ATTRIBUTE).decode())
        return [
            Given(tuple(parse_rule(text) for text in item["rules"].split(",") if text), int(item["program"]))
            for item in found["given"]
            if item["rules"].count(",") < RULES_LIMIT
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return []


def has_given(group: str) -> bool:
    """Whether *group* was given rules of its own."""
    try:
        return bool(os.getxattr(group, ATTRIBUTE))
    except OSError:
        return False


def write_given(group: str | int, given: list[Given]) -> None:
    """Set the attribute, or remove it for []. 1024 rules take 20 KiB, and a value may have 64 (xattr(7)). OSError."""
    if given:
        rows = [{"rules": ",".join(map(format_rule, one.rules)), "program": one.program} for one in given]
        os.setxattr(group, ATTRIBUTE, jsontext.dumps({"v": 1, "given": rows}).encode())
        return
    try:
        os.removexattr(group, ATTRIBUTE)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


class Store(Protocol):
    """Where the rules of a guest's groups are. *group* is named from the guest root, and is there."""

    def state(self, group: str) -> State:
        """Raises OSError."""

    def held(self, rules: Rules, above: Rules | None) -> Rules | None:
        """What a group that is given *rules* has of them, below one that has *above*; None where nobody can say."""

    def put(self, group: str, rules: Rules, held: Rules | None) -> None:
        """Give *group* the *rules*, of which it then has *held*. Raises NestrtError, OSError; then all is as it was."""

    def inherit(self, group: str) -> None:
        """Let *group* have what the group above has. Raises as put()."""


# v1


def _text(group: str) -> str:
    return cgroup.read(f"{group}/{LIST}")


def _text_if_there(group: str) -> str | None:
    """None where whoever divides the group above has removed it meanwhile. Raises OSError."""
    try:
        return _text(group)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return None


def _below(top: str) -> list[str]:
    """All groups below *top*, each before its own, as deep as a path can say: deeper ones lose what the kernel takes
    from all below, and are given nothing."""
    found = [top]
    for group in found:
        if len(os.fsencode(group)) <= cgroup.LONGEST:
            found += [f"{group}/{name}" for name in cgroup.children(group)]
    return found[1:]


def _attempt(path: str, lines: Iterable[str]) -> None:
    for line in lines:
        try:
            cgroup.write(path, line)
        except OSError:
            pass  # gone, or the group above has less by now; the other lines matter all the same


class Change:
    """Other rules for the v1 group *top*, a directory, and for all below that have no rules of their own.

    *follow* are directories below *top* that are to get what it gets, whatever they have.
    """

    def __init__(self, top: str, follow: Iterable[str] = ()) -> None:
        self.top = top
        self.had = {top: _text(top)}
        for path in _below(top):
            if path.rpartition("/")[0] in self.had and (text := _text_if_there(path)) is not None:
                self.had[path] = text
        # Those that have what the group above has and nothing of their own; and those of them that go up to *top*.
        self.inheriting: set[str] = set(follow)
        self.following = [top]
        known = {top}
        for path, text in self.had.items():
            above = path.rpartition("/")[0]
            if path != top and not has_given(path) and _alike(text, self.had[above]):
                self.inheriting.add(path)
            if path in self.inheriting and above in known:
                known.add(path)
                self.following.append(path)

    def carry_out(self, rules: Rules) -> None:
        """Raises HostError, OSError, having put back what was.

        Of a group with all devices the kernel takes none away but all: then they are all gone for a moment.
        """
        before = plan.listed(self.had[self.top])
        every = self.had[self.top] == plan.ALL
        if every and plan.equal(before, rules):
            return
        if every and len(self.had) > 1:
            raise HostError(
                "set",
                "device rules",
                "the group has all devices and groups below it, and cgroup v1 can then take none away",
                "give it rules before it has groups below",
            )
        try:
            if every:
                cgroup.write(f"{self.top}/{DENY}", "a")
            lines = plan.v1_lines(() if every else before, rules)
            self._allow(lines.early)
            self._deny(lines.deny)
            self._allow(lines.late)
            self._deny(lines.tidy)
        except BaseException:
            self._back()
            raise
        self._settle()

    def _allow(self, lines: tuple[str, ...]) -> None:
        for line in lines:
            cgroup.write(f"{self.top}/{ALLOW}", line)
            for path in self.following[1:]:
                _attempt(f"{path}/{ALLOW}", (line,))

    def _deny(self, lines: tuple[str, ...]) -> None:
        for line in lines:  # from the groups below the kernel takes it itself
            cgroup.write(f"{self.top}/{DENY}", line)

    def _back(self) -> None:
        if self.had[self.top] == plan.ALL:
            _attempt(f"{self.top}/{ALLOW}", ("a",))
            return
        lines = plan.v1_lines(plan.listed(_text(self.top)), plan.listed(self.had[self.top]))
        for file, some in ((ALLOW, lines.early), (DENY, lines.deny), (ALLOW, lines.late), (DENY, lines.tidy)):
            _attempt(f"{self.top}/{file}", some)
        self._settle()

    def _settle(self) -> None:
        """Give groups below what the kernel has taken and need not have, and what is theirs again.

        The kernel drops an entry that no single one above covers any more, though part of it, or two together, may.
        A new group begins with what the group above has at that moment (devcgroup_online()), and loses with it: never
        more. Less, where that one still lacks something, so those that came meanwhile have their turn as well.
        """
        now = {self.top: _text(self.top)}
        for _ in range(ROUNDS):
            new = [path for path in _below(self.top) if path not in now]
            for path in new:
                self._settle_one(path, now)
            if not new:
                break

    def _settle_one(self, path: str, now: dict[str, str]) -> None:
        above = path.rpartition("/")[0]
        try:
            now[path] = _text(path)
            if due := self._due(path, now):
                lines = plan.missing(plan.listed(now[path]), due, plan.listed(now[above]))
                _attempt(f"{path}/{ALLOW}", lines)
                now[path] = _text(path)
        except (OSError, KeyError, InputError):
            pass  # the guest has removed it, or made wildcards cross by hand, more than can be listed

    def _due(self, path: str, now: dict[str, str]) -> Rules:
        """What *path* is to have, now that the group above has what it has."""
        above = path.rpartition("/")[0]
        if path in self.inheriting or (path not in self.had and not has_given(path)):
            return plan.listed(now[above])
        had = self.had.get(path, now[path])
        if now[path] == had and now[above] == self.had.get(above):
            return ()
        rules, before = plan.listed(now[above]), AllowList(plan.listed(self.had.get(above, now[above])))
        gained = tuple(rule for rule in rules if not before.covers(rule))
        given = tuple(rule for one in read_given(path) for rule in one.rules)
        return plan.fit((*plan.listed(had), *(plan.common(given, gained) or ())), rules)


def _alike(text: str, above: str) -> bool:
    return set(text.splitlines()) == set(above.splitlines()) or plan.equal(plan.listed(text), plan.listed(above))


class Lists:
    """v1: devices.allow and devices.deny, which the kernel keeps within the group above."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.place = hierarchy.dir

    def state(self, group: str) -> State:
        """See Store."""
        text = _text(self.place(group))
        now = plan.listed(text)
        if group == "/":
            return State(now, False, now)
        above = _text(self.place(ancestors(group)[0]))
        given = tuple(rule for one in read_given(self.place(group)) for rule in one.rules)
        has = AllowList((*(plan.listed(above) if given else ()), *now))
        asleep = tuple(rule for rule in given if not has.covers(rule))
        return State(now, has_given(self.place(group)) or not _alike(text, above), (*now, *asleep))

    def held(self, rules: Rules, above: Rules | None) -> Rules:
        """See Store. Raises InputError for more than can be listed."""
        return plan.fit(rules, above or ())

    def put(self, group: str, rules: Rules, held: Rules | None) -> None:
        """See Store."""
        Change(self.place(group)).carry_out(held or ())
        write_given(self.place(group), [Given(rules)])

    def inherit(self, group: str) -> None:
        """See Store."""
        place = self.place(group)
        before = read_given(place)
        write_given(place, [])
        try:
            above = _text(self.place(ancestors(group)[0]))
            if above == plan.ALL and not cgroup.children(place):
                cgroup.write(f"{place}/{ALLOW}", "a")
            else:
                Change(place).carry_out(plan.listed(above))
        except BaseException:
            write_given(place, before)
            raise


# v2


def put_program(group: str, rules: Rules, of_old: int | None = None) -> None:
    """Give the v2 *group*, a directory, a device program for *rules*, at once in the place of the one it had.

    That is the one that its attribute names, else *of_old*, an id. The attribute names both before the kernel
    exchanges them: killed on either side of that, what it says is still true. Raises InputError, OSError; then
    nothing has changed.
    """
    held: list[int] = []
    try:
        place = os.open(group, DIRECTORY)
        held.append(place)
        new = bpf.load_device_program(build(rules))
        held.append(new)
        before, attached = read_given(place), bpf.query(place)
        live = [one for one in before if one.program in attached]
        old = [one.program for one in live] or ([of_old] if of_old else [])
        write_given(place, [*live, Given(rules, bpf.program_id(new))])
        try:
            if old:
                held.append(bpf.program_by_id(old[0]))
                exchange(place, new, held[-1])
            else:
                bpf.attach(place, new)
        except BaseException:
            write_given(place, before)
            raise
        for number in old[1:]:
            held.append(bpf.program_by_id(number))
            bpf.detach(place, held[-1])
        write_given(place, [Given(rules, bpf.program_id(new))])
    finally:
        for fd in held:
            os.close(fd)


class Programs:
    """v2: a program for each group that has rules of its own. *top* are the guest's own, None where nobody knows."""

    def __init__(self, hierarchy: Hierarchy, top: Rules | None) -> None:
        self.place = hierarchy.dir
        self.top = top

    def state(self, group: str) -> State:
        """See Store."""
        found = State(self.top, False, self.top)
        for one in [*reversed(ancestors(group)), group][1:] if group != "/" else ():
            before = read_given(self.place(one))
            attached = bpf.query(self.place(one)) if before else ()
            live = [given for given in before if given.program in attached]
            rules = found.rules
            for given in live:
                rules = self.held(given.rules, rules)
            base = live[-1].rules if live else before[0].rules if before else rules
            found = State(rules, bool(live), base, bool(before) and not live)
        return found

    def held(self, rules: Rules, above: Rules | None) -> Rules | None:
        """See Store."""
        return rules if above is None else plan.common(rules, above)

    def put(self, group: str, rules: Rules, held: Rules | None) -> None:
        """See Store. The program says all *rules*: the kernel asks those above as well."""
        put_program(self.place(group), rules)

    def inherit(self, group: str) -> None:
        """See Store."""
        place = os.open(self.place(group), DIRECTORY)
        try:
            attached = bpf.query(place)
            for one in read_given(place):
                if one.program in attached:
                    program = bpf.program_by_id(one.program)
                    try:
                        bpf.detach(place, program)
                    finally:
                        os.close(program)
            write_given(place, [])
        finally:
            os.close(place)


def known_program(group: str) -> int | None:
    """The program on the limit group *group* that holds its guest's rules. Raises HostError where it cannot be told."""
    attached = bpf.query(group)
    live = [one.program for one in read_given(group) if one.program in attached]
    return own_program(group, attached, live[-1] if live else None)
