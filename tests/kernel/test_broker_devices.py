"""Devices of child groups, set by the broker's method, on the kernel's own groups; tried by processes in them.

    host                     this process: the method, with no daemon around it
    └ /nestrt/G              limit group, and guest root: null zero full random urandom …, any mknod
      └ guest
        ├ init               the guest's first process
        ├ web                rules of its own
        │  └ db              rules of its own, or web's
        └ other              none of its own

A process "of web" is a child of this one that has entered the group in the hierarchy of devices, and then the guest's
user and mount namespaces: it opens the guest's nodes.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from nestrt.broker import above, device_rules, idl, wire
from nestrt.broker import devices as broker_devices
from nestrt.broker.devices import devices, parse_whole, set_guest_rules, set_rules
from nestrt.broker.peer import Peer
from nestrt.broker.refusal import Refusal, from_error
from nestrt.broker.request import Request
from nestrt.broker.served import Served
from nestrt.controllers.device_program import build
from nestrt.errors import NestrtError
from nestrt.guest import client
from nestrt.guest.client import GuestError
from nestrt.kernel import bpf, cgroup, namespaces, pidfd
from nestrt.level.devices import allowed, parse_rules
from nestrt.plan.facts import Hierarchy
from nestrt.probe.facts import primary, read_hierarchies
from nestrt.record import replace
from support.guests import MODES
from support.hostside import guest_root, has_v1, hierarchy_of, limit_group, mark, v2_hierarchy
from support.need import SLOW, require
from support.runner import Nestrt

V1 = has_v1("devices")
NULL, ZERO, FULL, RANDOM = "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm"
FUSE = "c 10:229 rwm"
ROOT = Peer(0, 0, 0, -1, 0, True)
# The kernel asks the same of both kinds of guest; where time is short one will do.
each_mode = pytest.mark.parametrize("mode", ["userns", pytest.param("nouserns", marks=pytest.mark.slow_on_vm)])


def directory(path: str) -> Path:
    """The host's directory of the group *path* where device rules are."""
    hierarchy = hierarchy_of("devices") or v2_hierarchy()
    assert hierarchy is not None
    return hierarchy.group(path)


def child(action: Callable[[], object]) -> int:
    """The errno of *action* in a child process; 0 if it succeeded."""
    pid = os.fork()
    if pid == 0:
        status = 254
        try:
            action()
            status = 0
        except OSError as error:
            status = error.errno or 253
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Guest:
    """A guest that runs, and how the broker serves it."""

    def __init__(self, name: str) -> None:
        self.name = name
        found = read_hierarchies()
        self.served = Served(name, limit_group(name), found, primary(found))
        assert self.served.learn()
        self.notes: list[tuple[str, str, Any, Any]] = []

    def again(self) -> Guest:
        """The same, as a broker knows it that has just been started."""
        return Guest(self.name)

    def group(self, name: str) -> Path:
        return directory(guest_root(self.name)) / name.strip("/")

    def make(self, *names: str) -> None:
        """Groups as the broker makes them."""
        for name in names:
            self.served.now(lambda tree, name=name: client.change(tree.view, name, []))

    def ask(self, name: str, peer: Peer = ROOT, **words: Any) -> dict[str, Any]:
        """The method's reply. Raises Refusal, as a client gets it."""
        checked = idl.interface("io.nestrt.Guest").check("Devices", {"group": name, **words})

        async def send(reply: dict[str, Any]) -> None:
            raise AssertionError(reply)

        request = Request(None, self.served, peer, "Devices", checked, False, send)  # type: ignore[arg-type]
        try:
            found = trio.run(devices, request)
        except (GuestError, NestrtError, OSError) as error:
            raise from_error(error) from error
        finally:
            self.notes = request.notes
        return found

    def rules(self, name: str) -> list[str]:
        found: list[str] = self.ask(name)["rules"]
        return found

    def refused(self, name: str, peer: Peer = ROOT, **words: Any) -> Refusal:
        with pytest.raises(Refusal) as caught:
            self.ask(name, peer, **words)
        return caught.value

    def holding(self, name: str) -> Path:
        """The group, or one right below it without rules of its own where v2 lets it have no processes."""
        place = self.group(name)
        enabled = place / "cgroup.subtree_control"
        if enabled.exists() and enabled.read_text().strip():
            place = place / "leaf"
            place.mkdir(exist_ok=True)
        return place

    def enter(self, name: str, outside: bool = False) -> None:
        """Make this process one of the group, in the guest's own namespaces, or *outside* them: the host's /dev/fuse
        may be for the host's root only."""
        mark = self.served.known
        fd = pidfd.open(mark.pid, mark.start)
        (self.holding(name) / "cgroup.procs").write_text("0")
        if outside:
            return
        namespaces.setns(fd, namespaces.CLONE_NEWNS | (namespaces.CLONE_NEWUSER if mark.ids else 0))
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)

    def opens(self, name: str, *nodes: str, flags: int = os.O_RDWR) -> list[bool]:
        """Which of *nodes* ("null") a process of the group can open."""

        def attempt(node: str) -> None:
            self.enter(name, node == "fuse" and bool(self.served.known.ids))
            os.open(f"/dev/{node}", flags)

        found = [child(lambda node=node: attempt(node)) for node in nodes]
        assert set(found) <= {0, errno.EPERM}, found
        return [code == 0 for code in found]

    def makes(self, name: str, kind: int, device: int, place: Path) -> bool:
        """Whether a process of the group, the host's root in all else, can make a node."""

        def make() -> None:
            (self.holding(name) / "cgroup.procs").write_text("0")
            os.mknod(place, kind | 0o600, device)

        code = child(make)
        assert code in (0, errno.EPERM), code
        place.unlink(missing_ok=True)
        return code == 0

    def kernel(self, name: str) -> list[str]:
        """What v1's kernel lists."""
        return (self.group(name) / "devices.list").read_text().splitlines()


Start = Callable[..., Guest]


@pytest.fixture
def start(nestrt: Nestrt, busybox: Path, new_guest: Callable[[], str]) -> Iterator[Start]:
    made: list[Guest] = []

    def start(*options: str) -> Guest:
        name = new_guest()
        nestrt.launch("-d", "--rootfs", busybox, "--overlay", "--name", name, *options, "--", "sleep", "1000").ok()
        made.append(Guest(name))
        return made[-1]

    yield start
    for guest in made:
        if guest.served.tree is not None:
            guest.served.tree.close()


@each_mode
def test_rules_of_a_child_group(start: Start, mode: str, tmp_path: Path) -> None:
    """What is allowed works and nothing else, in the group and below; other groups keep what the guest has."""
    guest = start(*MODES[mode])
    guest.make("/web", "/web/db", "/other")
    usual = guest.rules("/")
    assert NULL in usual
    assert guest.ask("/web") == {"rules": usual, "own": False}
    assert guest.ask("/web", only=[NULL, "c 1:5 r"]) == {"rules": [NULL, "c 1:5 r"], "own": True}
    assert guest.notes[0] == ("/web", "devices", usual, [NULL, "c 1:5 r"])
    for name in ("/web", "/web/db"):
        assert guest.opens(name, "null", "zero", "full") == [True, False, False]
        assert guest.opens(name, "null", "zero", "full", flags=os.O_RDONLY) == [True, True, False]
        assert guest.makes(name, stat.S_IFCHR, os.makedev(1, 3), tmp_path / "node")
        assert not guest.makes(name, stat.S_IFCHR, os.makedev(1, 5), tmp_path / "node")
        assert not guest.makes(name, stat.S_IFBLK, os.makedev(7, 0), tmp_path / "node")
    assert guest.opens("/other", "null", "zero", "full") == [True, True, True]
    assert guest.ask("/web/db") == {"rules": [NULL, "c 1:5 r"], "own": False}

    assert guest.ask("/web", allow=[FULL, "c 1:5 w"], deny=["c 1:3 w"])["rules"] == ["c 1:3 rm", "c 1:5 rw", FULL]
    assert guest.opens("/web/db", "null", "zero", "full") == [False, True, True]
    assert guest.opens("/web", "null", flags=os.O_RDONLY) == [True]
    assert guest.ask("/web", only=[]) == {"rules": [], "own": True}
    assert guest.opens("/web", "null", "zero", flags=os.O_RDONLY) == [False, False]
    assert guest.ask("/web", inherit=True) == {"rules": usual, "own": False}
    assert guest.opens("/web", "null", "zero", "full") == guest.opens("/web/db", "null", "zero", "full") == [True] * 3
    assert guest.makes("/web/db", stat.S_IFBLK, os.makedev(7, 0), tmp_path / "node")


def test_more_than_the_group_above(start: Start) -> None:
    """A superset is refused with the rule and what there is, by the check; past the check the kernel refuses it."""
    guest = start("--userns", "none")
    guest.make("/web", "/web/db")
    kmsg = "c 1:11 r"
    refused = guest.refused("/web", allow=[NULL, kmsg, FULL])
    assert refused.name == "BadValue"
    assert f"cannot allow {kmsg} to group /web: it is more than group / has: c *:* m, " in refused.message
    assert refused.remedy
    guest.ask("/web", only=["c 1:3 rw", ZERO])
    for more in ("c 1:3 rwm", "c 1:* r", "a *:* m", FULL, "all", "default"):
        refused = guest.refused("/web/db", only=[more])
        assert refused.name == "BadValue", more
        assert "than group /web has: c 1:3 rw, c 1:5 rwm" in refused.message
    # Past the check, and by whoever may write to the kernel what nestrt may.
    place = str(guest.group("/web/db"))
    wide = parse_rules([NULL, ZERO, FULL])
    if V1:
        with pytest.raises(PermissionError):
            device_rules.Change(place).carry_out(wide)
        assert guest.kernel("/web/db") == ["c 1:3 rw", ZERO], "what was there before is there again"
    else:
        device_rules.put_program(place, wide)
    assert guest.opens("/web/db", "null", "zero", "full") == [True, True, False]
    assert FULL not in guest.rules("/web/db")


def test_who_may(start: Start) -> None:
    """Rules are for the owner of the group above to set; those of "/" for nobody here; to be read by all."""
    guest = start()
    guest.make("/web", "/web/db")
    uid = guest.served.ids[0][1] + 1000
    user = Peer(0, uid, uid, -1, 1000, False)
    for hierarchy in guest.served.open().view.hierarchies:
        os.chown(hierarchy.dir("/web"), uid, uid)
    assert guest.refused("/web", user, only=[NULL]).name == "NotPermitted"
    assert guest.ask("/web", user)["own"] is False
    assert guest.ask("/web/db", user, only=[NULL])["rules"] == [NULL]
    for peer in (ROOT, user):
        refused = guest.refused("/", peer, deny=[NULL])
        assert refused.name == "NotPossible"
        assert "make a child group" in refused.remedy
        assert NULL in guest.ask("/", peer)["rules"]
    assert guest.refused("/none", only=[NULL]).name == "NotFound"
    assert guest.refused("/web", only=["c 1:3"]).name == "BadValue"
    assert guest.refused("/web", inherit=True, allow=[NULL]).name == "BadValue"
    assert guest.refused("/web", deny=["c 136:1 rw"]).name == "BadValue"
    most = guest.refused("/web", only=[f"c 136:{n} rw" for n in range(1025)])
    assert (most.name, "at most 1024" in most.remedy) == ("BadValue", True)
    guest.ask("/web", only=[f"c 136:{n} rw" for n in range(1024)])
    assert guest.refused("/web", allow=[NULL]).name == "QuotaExceeded"
    many = [f"c 1:{number} r" for number in range(65)]
    assert guest.refused("/web", deny=many).name == "QuotaExceeded"
    assert len(guest.again().rules("/web")) == 1024
    assert guest.opens("/web", "null") == [False]


def test_a_policy_without_it(start: Start, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[partition]\ndevices = false\n")
    guest = start("--policy", str(policy))
    guest.make("/web")
    assert guest.refused("/web", only=[NULL]).name in ("NotPossible", "NotFound")
    assert NULL in guest.rules("/")
    with pytest.raises(GuestError):
        guest.served.now(lambda tree: set_rules(guest.served, tree, "/web", [NULL]))


@each_mode
def test_groups_above_lose_and_regain(start: Start, mode: str) -> None:
    """Whatever a group was given, it has what is left of it above; and has it again when that comes back.

    /web null zero full,  db null zero,  db/deep none of its own,  /web/same none of its own
    """
    guest = start(*MODES[mode])
    guest.make("/web", "/web/db", "/web/db/deep", "/web/same")
    guest.ask("/web", only=[NULL, ZERO, FULL])
    guest.ask("/web/db", only=[NULL, ZERO])
    guest.ask("/web", deny=["c 1:5 rwm"])
    shown = {name: guest.rules(name) for name in ("/web", "/web/db", "/web/db/deep", "/web/same")}
    assert shown == {
        "/web": [NULL, FULL],
        "/web/db": [NULL],
        "/web/db/deep": [NULL],
        "/web/same": [NULL, FULL],
    }
    for name in shown:
        assert guest.opens(name, "zero") == [False], name
    assert guest.ask("/web/db")["own"] is True
    assert guest.refused("/web/db", allow=["c 1:5 r"]).name == "BadValue"
    guest.ask("/web", allow=[ZERO, RANDOM])
    assert sorted(guest.rules("/web/same")) == sorted([NULL, ZERO, FULL, RANDOM])
    for name, had in {"/web/db": True, "/web/db/deep": True, "/web/same": True}.items():
        assert guest.opens(name, "zero") == [had], name
    assert guest.opens("/web/db", "full", "random") == guest.opens("/web/db/deep", "full", "random") == [False, False]
    assert guest.opens("/web/same", "random") == [True]
    # Given up, it has what is above, and keeps up with it.
    assert guest.ask("/web/db", inherit=True)["own"] is False
    assert guest.opens("/web/db/deep", "full", "random") == [True, True]
    guest.ask("/web", only=[NULL])
    assert guest.opens("/web/db/deep", "null", "full") == [True, False]


@pytest.mark.v1
def test_what_the_kernel_drops_needlessly_is_put_back(start: Start) -> None:
    """An entry that no single one above covers any more, since mknod comes from another, goes at any denial."""
    guest = start("--userns", "none")
    guest.make("/web", "/web/db")
    guest.ask("/web", only=["c 1:3 rw", "c *:* m", ZERO])
    guest.ask("/web/db", only=[NULL])
    guest.ask("/web", deny=[ZERO])
    assert guest.kernel("/web/db") == [NULL]
    assert guest.opens("/web/db", "null", "zero") == [True, False]


def test_rules_outlive_the_broker(start: Start) -> None:
    """Another broker finds them; an attribute that is not true any more is told from one that is."""
    guest = start()
    guest.make("/web", "/web/db")
    guest.ask("/web", only=[NULL, ZERO])
    guest.ask("/web/db", only=[NULL])
    later = guest.again()
    assert later.ask("/web") == {"rules": [NULL, ZERO], "own": True}
    assert later.ask("/web/db") == {"rules": [NULL], "own": True}
    assert later.ask("/web", allow=[FULL])["rules"] == [NULL, ZERO, FULL]
    assert guest.ask("/web")["rules"] == [NULL, ZERO, FULL]
    # The same rules as above, by nobody's word but its own: they stay when the group above gets more.
    guest.ask("/web/db", only=[NULL, ZERO, FULL])
    assert later.ask("/web/db")["own"] is True
    guest.ask("/web", allow=[RANDOM])
    assert guest.opens("/web/db", "random") == [False]


@pytest.mark.v2
def test_a_program_that_somebody_took_off(start: Start) -> None:
    guest = start()
    guest.make("/web")
    guest.ask("/web", only=[NULL])
    place = str(guest.group("/web"))
    (number,) = bpf.query(place)
    bpf.detach(place, bpf.program_by_id(number))
    found = guest.again()
    assert found.ask("/web") == {"rules": guest.rules("/"), "own": False}
    assert found.notes == [("/web", "devices", [NULL], "their program is not attached any more")]
    assert guest.opens("/web", "zero") == [True], "which is the truth"
    assert found.ask("/web", allow=[FULL]) == {"rules": [NULL, FULL], "own": True}
    assert guest.opens("/web", "null", "zero", "full") == [True, False, True]
    assert len(bpf.query(place)) == 1
    found.ask("/web", inherit=True)
    assert bpf.query(place) == ()
    assert device_rules.ATTRIBUTE not in os.listxattr(place)


@pytest.mark.v2
def test_a_guest_whose_rules_nobody_knows(start: Start) -> None:
    """An engine's container: what it has is not listed, a group gets its whole list, and the kernel decides."""
    guest = start()
    guest.served.name = "of-an-engine"
    guest.make("/web", "/web/db")
    for refused in (guest.refused("/"), guest.refused("/web"), guest.refused("/web", allow=[NULL])):
        assert refused.name == "NotPossible"
    assert guest.ask("/web", only=[NULL, "c 1:11 r"]) == {"rules": [NULL, "c 1:11 r"], "own": True}
    assert guest.opens("/web", "null", "zero") == [True, False]

    def kmsg() -> None:
        (guest.holding("/web") / "cgroup.procs").write_text("0")
        os.open("/dev/kmsg", os.O_RDONLY)

    assert child(kmsg) == errno.EPERM
    assert guest.refused("/web/db", only=[ZERO]).name == "BadValue"
    assert guest.refused("/web", inherit=True).name == "NotPossible"


def test_wildcards_that_cross(start: Start, tmp_path: Path) -> None:
    """Two lists that have 90,000 rules in common: nobody waits for those to be listed.

    /web  c *:0 m … c *:299 m        db  c 0:* m … c 299:* m, from before
    """
    guest = start()
    guest.make("/web", "/web/db", "/web/same")
    rows = [f"c {number}:* m" for number in range(300)]
    guest.ask("/web", only=rows)
    guest.ask("/web/db", only=rows)
    began = time.monotonic()
    guest.ask("/web", only=[f"c *:{number} m" for number in range(300)])
    assert len(guest.rules("/web/same")) == 300
    if V1:
        assert guest.rules("/web/db") == []
    else:
        refused = guest.refused("/web/db")
        assert refused.name == "NotPossible"
        assert "too many" in refused.message
    assert not guest.makes("/web/db", stat.S_IFCHR, os.makedev(1, 300), tmp_path / "node")
    assert guest.makes("/web/same", stat.S_IFCHR, os.makedev(1, 299), tmp_path / "node")
    assert guest.ask("/web/db", only=["c *:1 m"]) == {"rules": ["c *:1 m"], "own": True}
    assert guest.refused("/web/db", only=rows).name == "BadValue"
    assert len(guest.ask("/web/db", inherit=True)["rules"]) == 300
    assert time.monotonic() - began < 10 * SLOW


@pytest.mark.v1
def test_a_guest_with_all_devices(start: Start) -> None:
    """v1 has no way from all devices to some but by none, and none at all where there are groups below."""
    guest = start("--userns", "none", "--device", "a")
    guest.make("/web", "/web/db", "/other")
    assert guest.ask("/web/db") == {"rules": ["a *:* rwm"], "own": False}
    refused = guest.refused("/web", only=[NULL])
    assert refused.name == "NotPossible"
    assert "groups below" in refused.message
    assert guest.ask("/web/db", only=[NULL])["rules"] == [NULL]
    assert guest.ask("/web/db", allow=["a"])["rules"] == ["a *:* rwm"]
    assert guest.ask("/other", only=[NULL, ZERO])["rules"] == [NULL, ZERO]
    assert guest.opens("/other", "null", "full") == [True, False]
    assert guest.ask("/other", inherit=True) == {"rules": ["a *:* rwm"], "own": False}
    assert guest.kernel("/other") == ["a *:* rwm"]


# A process of web tries as fast as it can while its rules change to and fro.


def poll(guest: Guest, name: str, nodes: list[str], results: int) -> None:
    """Try *nodes* for ever; write each row of answers that there has not been, a letter for each node."""
    guest.enter(name)
    seen: set[str] = set()
    while True:
        row = ""
        for node in nodes:
            try:
                os.close(os.open(f"/dev/{node}", os.O_RDWR))
                row += "y"
            except PermissionError:
                row += "n"
        if row not in seen:
            seen.add(row)
            os.write(results, f"{row}\n".encode())


def test_no_moment_has_more_or_less(start: Start) -> None:
    """null is in all lists, now by a wide rule, and always there; tty is in none, and never; zero and random come and
    go. The same in a group that has no rules of its own."""
    guest = start("--device", "c 1:* rwm")
    guest.make("/web", "/web/db")
    lists = ([NULL, ZERO], ["c 1:* rw"], [NULL, RANDOM], ["c 1:3 rw", "c 1:* r"], ["c 1:3 rw", ZERO])
    guest.ask("/web", only=lists[0])
    readers = {}
    for name in ("/web", "/web/db"):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                poll(guest, name, ["null", "tty", "zero", "random"], write)
            finally:
                os._exit(1)
        os.close(write)
        readers[pid] = read
    # Both are there before the first change.
    for read in readers.values():
        assert select.select([read], [], [], 20 * SLOW)[0]
    end = time.monotonic() + 2 * SLOW**0.5
    changes = 0
    while time.monotonic() < end or changes < 5 * len(lists):
        changes += 1
        guest.ask("/web", only=lists[changes % len(lists)])
    for pid, read in readers.items():
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        rows = set(os.read(read, 4096).decode().split())
        os.close(read)
        assert {row[:2] for row in rows} == {"yn"}, rows
        assert len(rows) > 1, "it has seen a change at all"


# Killed anywhere


def die_at(number: int, broken: list[tuple[Any, str]]) -> None:
    """Have SIGKILL come before the *number*-th call of these functions, each (module, name)."""
    count = [0]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        return wrapped

    for module, name in broken:
        setattr(module, name, wrap(getattr(module, name)))


STEPS = {
    True: [(cgroup, "write"), (device_rules, "write_given")],
    False: [(device_rules, "write_given"), (device_rules, "exchange"), (bpf, "attach"), (bpf, "detach")],
}
NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8)}


@pytest.mark.parametrize(("old", "new"), [([NULL, ZERO], ["c 1:3 rw", FULL]), (None, [FULL]), ([ZERO], None)])
def test_killed_between_steps(start: Start, old: list[str] | None, new: list[str] | None) -> None:
    """Whatever was reached: no more than the old list or the new one allows, and what is listed is what is so."""
    guest = start()
    guest.make("/web", "/web/db")
    usual = guest.rules("/")
    lists = [parse_rules(usual if rules is None else rules) for rules in (old, new)]
    change = {"inherit": True} if new is None else {"only": new}
    ended = 0
    for number in range(1, 40):
        guest.ask("/web", **({"inherit": True} if old is None else {"only": old}))
        pid = os.fork()
        if pid == 0:
            try:
                die_at(number, STEPS[V1])
                guest.again().ask("/web", **change)
            finally:
                os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = guest.again()
        listed = parse_rules(found.rules("/web"))
        for name in ("/web", "/web/db"):
            for (node, device), opened in zip(NODES.items(), guest.opens(name, *NODES), strict=True):
                assert not opened or any(allowed(rules, "c", *device, "rw") for rules in lists), (number, name, node)
                if name == "/web":
                    assert opened == allowed(listed, "c", *device, "rw"), (number, node)
        if ended == 0:
            break
    assert ended == 0, "there was an end to it"
    assert number > 2
    assert set(found.rules("/web")) == set(usual if new is None else new)
    assert found.ask("/web")["own"] is (new is not None)


def test_what_fails_leaves_what_was(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses somewhere on the way: an attribute too many, a line of its own."""
    guest = start()
    guest.make("/web", "/web/db")
    guest.ask("/web", only=[NULL, ZERO])
    place = str(guest.group("/web"))
    monkeypatch.setattr(device_rules, "ATTRIBUTE", "trusted.nestrt.devices.\udcff" + "x" * 300)
    with pytest.raises(Refusal):
        guest.ask("/web", only=[FULL])
    monkeypatch.undo()
    assert guest.opens("/web", "null", "zero", "full")[2] is V1, "v1 remembers last"
    if V1:
        had = guest.kernel("/web")
        guest.ask("/web", only=[NULL, ZERO])
        had = guest.kernel("/web")
        with pytest.raises(PermissionError):
            device_rules.Change(place).carry_out(parse_rules(["c 1:7 rw", "c 1:11 r"]))
        assert sorted(guest.kernel("/web")) == sorted(had)
        assert sorted(guest.kernel("/web/db")) == sorted(had)
    else:
        assert guest.ask("/web") == {"rules": [NULL, ZERO], "own": True}


# The guest's own rules


@each_mode
def test_other_rules_for_the_guest(start: Start, mode: str) -> None:
    """At once: in all groups that have none of their own, in mark and stamp, and a node that is new is in /dev."""
    require("fuse", "" if os.path.exists("/dev/fuse") else "this machine has no /dev/fuse")
    guest = start(*MODES[mode])
    guest.make("/web", "/other")
    guest.ask("/web", only=[NULL, ZERO])
    usual = guest.rules("/")
    node = Path(f"/proc/{guest.served.known.pid}/root/dev/fuse")
    assert not node.exists()
    notes: list[tuple[str, str, Any, Any]] = []
    set_guest_rules(guest.served, parse_whole(["default", FUSE]), lambda *row: notes.append(row))
    assert notes == [("/", "devices", usual, [*usual, FUSE])]
    assert stat.S_ISCHR(node.stat().st_mode)
    assert node.stat().st_rdev == os.makedev(10, 229)
    assert guest.rules("/") == guest.again().rules("/") == [*usual, FUSE]
    assert FUSE in mark(limit_group(guest.name))["limits"]["devices"]
    assert guest.opens("/init", "fuse") == guest.opens("/other", "fuse") == [True]
    assert guest.opens("/web", "fuse", "null") == [False, True]
    assert guest.ask("/web", allow=[FUSE])["rules"] == [NULL, ZERO, FUSE]
    assert guest.opens("/web", "fuse") == [True]

    set_guest_rules(guest.served, parse_whole([NULL, FUSE]))
    assert guest.opens("/init", "null", "zero", "fuse") == [True, False, True]
    assert guest.rules("/web") == [NULL, FUSE]
    set_guest_rules(guest.served, parse_whole(["default"]))
    for name in ("/", "/init", "/web"):
        assert FUSE not in guest.rules(name)
    assert guest.opens("/init", "fuse", "zero") == guest.opens("/web", "fuse", "zero") == [False, True]
    with pytest.raises(Refusal):
        parse_whole([f"c 136:{n} rw" for n in range(256)])


def test_a_node_for_what_is_allowed(start: Start) -> None:
    """A device that the guest may use, and has no node of: allowing it to a group puts the node into /dev."""
    require("fuse", "" if os.path.exists("/dev/fuse") else "this machine has no /dev/fuse")
    guest = start("--device", "c 10:* rwm")
    guest.make("/web")
    node = Path(f"/proc/{guest.served.known.pid}/root/dev/fuse")
    guest.ask("/web", only=[NULL])
    assert not node.exists()
    guest.ask("/web", allow=[FUSE, "c 5:2 rw"])
    assert node.stat().st_rdev == os.makedev(10, 229)
    assert guest.opens("/web", "fuse") == [True]
    assert guest.notes == [("/web", "devices", [NULL], [NULL, FUSE, "c 5:2 rw"])]
    guest.served.known.start += 1
    assert guest.ask("/web", allow=["c 10:229 r"])["rules"] == [NULL, FUSE, "c 5:2 rw"]
    assert [row[1] for row in guest.notes] == ["devices", "node /dev/fuse"]
    assert "not placed" in guest.notes[1][3]


# The broker of a level that is in a user namespace


@pytest.fixture
def upper(start: Start, make_busybox: Callable[[], Path]) -> Iterator[tuple[Guest, str]]:
    """A guest, and a socket on which its broker answers: the method, behind real frames."""
    guest = start()
    path = str(make_busybox() / "above.sock")  # where every user gets
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    os.chmod(path, 0o666)

    def answer(call: wire.Call) -> bytes:
        assert call.method == "io.nestrt.Guest.Devices"
        try:
            return wire.encode(guest.ask(**{"name": call.parameters.pop("group"), **call.parameters}))
        except Refusal as refusal:
            return wire.encode(refusal.parameters, error=refusal.whole("io.nestrt.Guest"))

    def serve() -> None:
        while True:
            try:
                one, _ = listener.accept()
            except OSError:
                return
            with one:
                decoder = wire.Decoder()
                while (found := decoder.next()) is None:
                    decoder.feed(one.recv(65536))
                one.sendall(answer(found))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield guest, path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def nested(guest: Guest, body: Callable[[Guest], Any], path: str) -> Any:
    """What *body* returns, run by root of the guest's user namespace with the guest's view, for its own guest db."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        found: Any = "nothing"
        try:
            hierarchies = tuple(_seen(guest, h) for h in guest.served.hierarchies)
            first = pidfd.open(guest.served.known.pid)
            namespaces.setns(first, namespaces.CLONE_NEWUSER)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            above.GUEST_SOCKET = path
            inner = Guest.__new__(Guest)
            inner.name, inner.notes = "db", []
            inner.served = Served("db", "/nestrt/db", hierarchies, primary(hierarchies))
            assert inner.served.learn()
            found = body(inner)
        except BaseException as error:
            found = repr(error)
        finally:
            os.write(write, json.dumps(found).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def _seen(guest: Guest, hierarchy: Hierarchy) -> Hierarchy:
    """The hierarchy as the guest has it: from its root."""
    return replace(hierarchy, mountpoint=hierarchy.path(guest_root(guest.name)))


def test_a_nested_level_asks_the_one_above(upper: tuple[Guest, str]) -> None:
    """db is a guest of the guest, made by hand; its broker runs in the guest's user namespace and can write no rules.

    /nestrt/G/guest/nestrt/db/guest/web     "/web" of db, "/nestrt/db/guest/web" of G
    """
    guest, path = upper
    guest.make("/nestrt", "/nestrt/db", "/nestrt/db/guest", "/nestrt/db/guest/web")
    usual = guest.rules("/")
    values = {"v": 1, "name": "db", "level": 2, "state": "running", "max_level": 3, "ids": []}
    place = primary(guest.served.hierarchies).path(guest_root(guest.name) + "/nestrt/db")
    os.setxattr(place, "user.nestrt", json.dumps(values).encode())

    def body(inner: Guest) -> Any:
        assert above.needed()
        found = [inner.ask("/"), inner.ask("/web", only=[NULL, ZERO]), inner.ask("/web"), inner.notes]
        for words in ({"allow": ["c 1:11 r"]}, {"only": ["all"]}):
            try:
                inner.ask("/web", **words)
            except Refusal as refusal:
                found.append([refusal.name, refusal.message])
        try:
            inner.ask("/", deny=[NULL])
        except Refusal as refusal:
            found.append([refusal.name, refusal.message])
        inner.served.now(lambda tree: set_rules(inner.served, tree, "/web", [NULL]))
        set_guest_rules(inner.served, parse_whole([NULL, FULL]))
        return [*found, inner.ask("/"), inner.ask("/web")]

    has = "it is more than group / has: c *:* m"
    found = nested(guest, body, path)
    assert isinstance(found, list), found
    assert found[:4] == [
        {"rules": usual, "own": False},
        {"rules": [NULL, ZERO], "own": True},
        {"rules": [NULL, ZERO], "own": True},
        [],
    ]
    assert found[4][0] == "BadValue"
    assert f"cannot allow c 1:11 r to group /web: {has}" in found[4][1]
    assert "nestrt/db" not in found[4][1] + found[5][1]
    assert found[6][0] == "NotPossible"
    assert [set(reply["rules"]) for reply in found[7:]] == [{NULL, FULL}, {NULL}]
    assert guest.opens("/nestrt/db/guest/web", "null", "zero", "full") == [True, False, False]
    assert guest.opens("/nestrt/db/guest", "null", "zero", "full") == [True, False, True]
    assert guest.opens("/init", "zero") == [True]
    left = nested(guest, lambda inner: inner.refused("/web", only=[NULL]).name, path + ".none")
    assert left == "NotPossible"


def test_this_level_can_itself() -> None:
    assert not above.needed()
    assert broker_devices.METHODS["Devices"] is devices
    assert build(parse_rules([NULL])) != build(())
