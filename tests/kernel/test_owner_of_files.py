"""v2: whose the files are that a group gets when controllers are enabled for another one, on a real kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nestrt.guest import client
from support.hostside import v2_hierarchy
from support.watching import guest_by_hand

ROOT, ALICE = 100000, 101000


def owner(path: Path) -> int:
    return path.stat().st_uid


@pytest.mark.v2
def test_a_group_stays_its_owners_when_another_is_given_controllers() -> None:
    hierarchy = v2_hierarchy()
    assert hierarchy is not None
    with guest_by_hand("owners", uids=ROOT) as guest:
        top = hierarchy.group(f"{guest.limit}/guest")
        control = top / "cgroup.subtree_control"
        for name in control.read_text().split():
            control.write_text(f"-{name}")
        os.chown(top, ROOT, ROOT)
        alice = top / "alice"
        alice.mkdir()
        before = {path.name for path in alice.iterdir()}
        for path in (alice, alice / "cgroup.procs", alice / "cgroup.subtree_control"):
            os.chown(path, ALICE, ALICE)
        guest.now(lambda tree: client.change(tree.view, "/other", []))
        assert owner(alice) == owner(alice / "cgroup.procs") == owner(alice / "cgroup.subtree_control") == ALICE
        new = {path.name: owner(path) for path in alice.iterdir() if path.name not in before}
        assert new, "nothing was enabled"
        assert new == {name: ALICE if name in client.DELEGATED else ROOT for name in new}
        assert owner(top / "other") == owner(top / "other" / "cgroup.procs") == ROOT
