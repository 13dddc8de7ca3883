"""Whose the files are that a v2 group gets when controllers are enabled for another one: nestrt/guest/client.py, with
directories that look like groups, and owners that are only noted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nestrt.guest import client
from nestrt.guest.client import GuestError, Hierarchy, View

ROOT, ALICE, BOB = (100000, 100000), (101000, 101000), (102000, 102000)
NAMES = {"io": ("io.max",), "memory": ("memory.max", "memory.oom.group")}


class Groups:
    """A guest root and groups below it; a write to cgroup.subtree_control makes files of this process's user."""

    def __init__(self, top: Path, patch: pytest.MonkeyPatch) -> None:
        self.top = top
        self.owners: dict[str, tuple[int, int]] = {}
        self.stat = os.stat
        patch.setattr(os, "stat", lambda path, **words: self.seen(path, self.stat(path, **words)))
        patch.setattr(os, "geteuid", lambda: 0)
        patch.setattr(os, "chown", self.chown)
        patch.setattr(client, "write", self.write)
        for group, owner in {"/": ROOT, "/init": ROOT, "/alice": ALICE, "/alice/bob": BOB}.items():
            self.make(group, owner)
        hierarchy = Hierarchy(2, ("io", "memory"), str(top), "/", "/", "", "")
        self.view = View((hierarchy,), {}, ROOT)
        self.view.divided = self.view.hierarchies

    def seen(self, path: Any, real: os.stat_result) -> os.stat_result:
        if isinstance(path, int) or not os.fspath(path).startswith(str(self.top)):
            return real
        return os.stat_result((*real[:4], *self.owners.get(os.fspath(path), (0, 0)), *real[6:]))

    def chown(self, path: Any, uid: int, gid: int, **_: Any) -> None:
        self.owners[os.fspath(path)] = uid, gid

    def make(self, group: str, owner: tuple[int, int]) -> None:
        place = Path(f"{self.top}{group}".rstrip("/"))
        place.mkdir(exist_ok=True)
        for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.controllers"):
            (place / name).touch()
            self.chown(place / name, *owner)
        (place / "cgroup.controllers").write_text("io memory")
        self.chown(place, *owner)

    def write(self, path: str, text: str) -> None:
        file = Path(path)
        file.write_text(f"{file.read_text()} {text[1:]}")
        for place in file.parent.iterdir():
            for name in NAMES[text[1:]] if place.is_dir() else ():
                (place / name).touch()

    def owner(self, path: str) -> tuple[int, int]:
        return self.owners.get(f"{self.top}{path}", (0, 0))


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    return Groups(tmp_path, monkeypatch)


def test_a_group_stays_its_owners_when_another_is_given_controllers(groups: Groups) -> None:
    before = dict(groups.owners)
    client.enable(groups.view, "/other", {"memory"}, [])
    assert {path: groups.owners[path] for path in before} == before
    # Its limits are for the one who gives.
    assert groups.owner("/alice/io.max") == groups.owner("/alice/memory.max") == ROOT
    assert groups.owner("/alice/memory.oom.group") == ALICE
    assert groups.owner("/init/memory.max") == ROOT


def test_the_owner_of_a_group_gives_to_those_below(groups: Groups) -> None:
    before = dict(groups.owners)
    client.enable(groups.view, "/alice/other", {"memory"}, [])
    assert {path: groups.owners[path] for path in before} == before
    assert groups.owner("/alice/memory.max") == ROOT
    assert groups.owner("/alice/bob/memory.max") == ALICE
    assert groups.owner("/alice/bob/memory.oom.group") == BOB


# A group made meanwhile by somebody inside is his, but for what enabling has added.
def test_a_group_that_came_meanwhile(groups: Groups) -> None:
    def write(path: str, text: str) -> None:
        if not (groups.top / "new").exists():
            groups.make("/new", BOB)
        groups.write(path, text)

    client.write, before = write, client.write  # type: ignore[assignment]
    try:
        client.enable(groups.view, "/other", {"memory"}, [])
    finally:
        client.write = before
    assert groups.owner("/new") == groups.owner("/new/cgroup.procs") == BOB
    assert groups.owner("/new/memory.max") == ROOT


def test_where_nothing_is_enabled_nothing_changes(groups: Groups) -> None:
    (groups.top / "cgroup.procs").write_text("1")
    (groups.top / "alice" / "mine").touch()
    before = dict(groups.owners)
    client.enable(groups.view, "/other", set(), [])
    with pytest.raises(GuestError):
        client.enable(groups.view, "/other", {"memory"}, [])
    assert groups.owners == before
