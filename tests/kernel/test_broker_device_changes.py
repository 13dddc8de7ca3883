"""v1: other device rules for groups below which groups come and go at the same moment, as guests like.

::

    /nestrt-devices-PID     null zero random
      ├ web                 none of its own
      │  └ db               likewise
      └ job                 likewise
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nestrt.broker import device_rules
from nestrt.broker.device_rules import Change
from nestrt.kernel import cgroup
from nestrt.level.devices import parse_rules, subset
from nestrt.plan.child_devices import equal, listed, plain
from support.byhand import remove_groups
from support.hostside import hierarchy_of

pytestmark = pytest.mark.v1
NULL, ZERO, FULL, RANDOM = "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm"
OLD, NEW = plain(parse_rules([NULL, ZERO, RANDOM])), plain(parse_rules([NULL, FULL]))


@pytest.fixture
def top() -> Iterator[str]:
    hierarchy = hierarchy_of("devices")
    assert hierarchy is not None
    name = f"/nestrt-devices-{os.getpid()}"
    place = hierarchy.group(name)
    place.mkdir()
    try:
        Change(str(place)).carry_out(OLD)
        for group in ("web", "web/db", "job"):
            (place / group).mkdir()
        yield str(place)
    finally:
        remove_groups(name)


def rules(group: str) -> device_rules.Rules:
    return listed(Path(group, "devices.list").read_text())


def removing(gone: str, code: int) -> Callable[[str], str]:
    """What reads a group's rules, and finds *gone* removed: before its file is opened, or before it is read."""
    read = device_rules._text

    def removed(group: str) -> str:
        if group == gone:
            with suppress(FileNotFoundError):
                os.rmdir(group)
            raise OSError(code, os.strerror(code), group)
        return read(group)

    return removed


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV])
def test_a_group_that_is_removed_meanwhile_stops_nothing(top: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_rules, "_text", removing(f"{top}/web/db", code))
    Change(top).carry_out(NEW)
    for group in (top, f"{top}/web", f"{top}/job"):
        assert equal(rules(group), NEW), group


def test_a_group_above_that_is_made_again_meanwhile_is_a_new_one(top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, made = device_rules._text, list[str]()

    def again(group: str) -> str:
        if group == f"{top}/web" and not made:
            os.rmdir(f"{top}/web/db")
            os.rmdir(group)
            os.makedirs(f"{top}/web/db")
            made.append(group)
            raise FileNotFoundError(errno.ENOENT, "", group)
        return read(group)

    monkeypatch.setattr(device_rules, "_text", again)
    Change(top).carry_out(NEW)
    for group in (top, f"{top}/web", f"{top}/web/db", f"{top}/job"):
        assert equal(rules(group), NEW), group


def test_the_group_itself_has_to_be_there(top: str) -> None:
    with pytest.raises(FileNotFoundError):
        Change(f"{top}/none")


# Before every write there is a new one, with one below: with each line, and while others get what they lack.
def test_new_groups_never_have_more_and_have_all_in_the_end(top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write, made = cgroup.write, list[str]()

    def watched(path: str, value: str) -> None:
        above = os.path.dirname(path)
        for group in (f"{above}/new{len(made)}", f"{above}/new{len(made)}/one"):
            if len(made) < 40:
                os.mkdir(group)
                made.append(group)
        write(path, value)
        for group in made:
            assert subset(rules(group), rules(os.path.dirname(group))) is None, group
            assert subset(rules(group), rules(top)) is None, group

    change = Change(top)
    monkeypatch.setattr(cgroup, "write", watched)
    change.carry_out(NEW)
    assert made
    for group in (top, f"{top}/web", f"{top}/web/db", *made):
        assert equal(rules(group), NEW), group


def test_groups_deeper_than_a_path_can_say_stop_nothing(top: str) -> None:
    fds = [os.open(top, os.O_RDONLY | os.O_DIRECTORY)]
    name = "d" * 250
    try:
        for _ in range(17):
            os.mkdir(name, dir_fd=fds[-1])
            fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
        Change(top).carry_out(NEW)
        assert equal(rules(top), NEW)
        assert equal(rules(f"{top}/web/db"), NEW)
        with open(os.open("devices.list", os.O_RDONLY, dir_fd=fds[-1])) as file:
            assert subset(listed(file.read()), NEW) is None
    finally:
        for fd in fds[::-1]:
            with suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=fd)
            os.close(fd)
