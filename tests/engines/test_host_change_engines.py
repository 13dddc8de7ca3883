"""Guests of docker, containerd and podman changed from the host, and their engines go on with them.

::

    docker, ctr, podman ── stats, exec, wait ──▶ ID         limit group: what nestrt update writes, and lock marks
                                                  └ guest   guest root, shown to the guest: written, too
                                                     └ init where nestrt exec puts another
"""

from __future__ import annotations

import pytest

from support.engine_guests import GIVEN_MEMORY, MIB, EngineGuest, Start, command, every, sleepers
from support.hostside import groups, is_v2_only, mark, processes, read, v2_hierarchy
from support.plugin import memberships
from support.plugin_engines import MEMORY, WEB
from support.runner import Result, wait_for

PIDS = "pids", "pids.max", "pids.max"
MAKE, RAISE = f"mkdir {WEB}", f"echo 33554432 > {WEB}/{MEMORY[1] if not is_v2_only() else MEMORY[2]}"


def engine_exec(guest: EngineGuest, *words: str) -> Result:
    """Run *words* in the container by its engine."""
    if guest.kind == "containerd":
        return guest.engine("task", "exec", "--exec-id", "x", guest.id, *words)
    return guest.engine("exec", guest.id, *words)


def frozen(group: str) -> bool:
    tree = v2_hierarchy()
    if is_v2_only():
        assert tree is not None
        return "frozen 1" in (tree.group(group) / "cgroup.events").read_text()
    return read("freezer", group, "freezer.state", "") == "FROZEN"


@every()
def test_update(start: Start) -> None:
    """The kernel's files, what the guest is shown, what the engine's statistics count against."""
    guest = start()
    guest.nestrt("update", guest.name, "-m", "96M", "--pids", "40").ok()
    for end in ("", "/guest"):
        assert read(MEMORY[0], guest.group + end, *MEMORY[1:]) == str(96 * MIB)
        assert read("pids", guest.group + end, *PIDS[1:]) == "40"
    assert mark(guest.group)["limits"]["memory"] == 96 * MIB
    found = guest.row()
    assert (found["memory"]["effective"], found["pids"]["effective"]) == (96 * MIB, 40)
    # podman stats shows what podman was asked for, whatever stands in the group; docker's, on v2, the first group's.
    if guest.kind != "docker" or not is_v2_only():
        limit, expected = guest.figures().limit, (GIVEN_MEMORY if guest.kind == "podman" else 96 * MIB)
        assert limit is None or limit == pytest.approx(expected, rel=1e-3)
    assert engine_exec(guest, "cat", f"{WEB.parent}/{RAISE.rpartition('/')[2]}").ok().out.strip() == str(96 * MIB)
    refused = guest.nestrt("update", guest.name, "-m", "900T")
    assert refused.rc == 2, refused
    assert read(MEMORY[0], guest.group, *MEMORY[1:]) == str(96 * MIB)


@every("docker", "containerd")
def test_exec_freeze_thaw_kill(start: Start) -> None:
    """podman's are in test_host_change_podman."""
    guest = start()
    sleepers(guest)
    first = guest.first

    guest.nestrt("exec", "-d", guest.name, "sleep", "4321").ok()
    (other,) = wait_for(lambda: [one for one in processes(guest.group) if command(one) == "sleep 4321"], "it")
    assert memberships(other) == memberships(first)
    assert set(memberships(first).values()) == {f"{guest.group}/guest/init"}
    assert str(other) in guest.listed().split()
    shown = guest.nestrt("exec", guest.name, "sh", "-c", "cut -d: -f3 /proc/self/cgroup | sort -u; exit 9")
    assert (shown.rc, shown.out.split()) == (9, ["/init"])

    guest.nestrt("freeze", guest.name).ok()
    assert frozen(guest.group)
    assert guest.row()["state"] == "paused"
    assert guest.nestrt("exec", guest.name, "true").rc == 125
    guest.nestrt("thaw", guest.name).ok()
    assert not frozen(guest.group)
    assert engine_exec(guest, "true").rc == 0

    # Each engine learns how it ended.
    guest.nestrt("kill", "--signal", "KILL", guest.name).ok()
    wait_for(lambda: not processes(guest.group), "all of it to end")
    assert wait_for(guest.ended, "the engine to see it") == 137
    wait_for(lambda: not groups(guest.group), "its groups to go")


def made(guest: EngineGuest) -> bool:
    """Whether the guest can make a group and set a limit of it; it is away again then."""
    result = guest.nestrt("exec", guest.name, "sh", "-c", f"{MAKE} && {RAISE} && rmdir {WEB}")
    assert result.rc == 0 or "Read-only" in result.err or "ermission" in result.err, result
    return result.rc == 0


USERNS = ("--uidmap", "0:100000:5000", "--gidmap", "0:200000:5000")


@every("podman")
def test_lock_with_a_user_namespace(start: Start) -> None:
    """It holds: nothing to add, and what was is back afterwards."""
    guest = start(*USERNS)
    assert made(guest)
    guest.nestrt("lock", guest.name).ok()
    assert guest.json("show", guest.name)["locked"] is True
    assert not made(guest)
    assert engine_exec(guest, "mkdir", str(WEB)).rc != 0
    # the host's own changes are free
    guest.nestrt("update", guest.name, "-m", "96M").ok()
    assert guest.row()["memory"]["effective"] == 96 * MIB
    assert not made(guest)
    guest.nestrt("unlock", guest.name).ok()
    assert guest.json("show", guest.name)["locked"] is False
    assert made(guest)


@every("podman", "docker")
def test_lock_without_one(start: Start) -> None:
    """Refused as it is, in one line that says why; --weak does what can be done, for what the engine starts too."""
    guest = start()
    sleepers(guest)
    assert made(guest)
    refused = guest.nestrt("lock", guest.name)
    assert refused.rc == 5
    assert "it would not hold" in refused.err
    assert "lock --weak" in refused.err
    assert made(guest)
    weak = guest.nestrt("lock", "--weak", guest.name).ok()
    assert "may make a user namespace" in weak.err
    assert not made(guest)
    assert engine_exec(guest, "mkdir", str(WEB)).rc != 0
    guest.nestrt("unlock", guest.name).ok()
    assert made(guest)
