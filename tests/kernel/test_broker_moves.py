"""Attach, Processes, Freeze, Thaw and Kill, with real processes of real guests, well-meaning and not.

    host
    └ /nestrt/G        limit group
      └ guest          what the guest calls "/"
        ├ init         the agent, and all that it forks
        ├ team         uid 1000's
        │ └ a
        └ other        uid 1001's
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from nestrt.broker import moves, running
from nestrt.broker.refusal import Refusal
from nestrt.guest import client
from nestrt.kernel import pidns
from support.broker import AGENT, Broker, BrokerGuest, settled, start_guest
from support.broker import running as running_broker
from support.bundles import Bundle, python_bundle
from support.byhand import enter, make_group, remove_groups
from support.hostside import groups, has_v1, hierarchies, hierarchy_of, is_v2_only
from support.need import SLOW
from support.rootfs import CHECKOUT, PythonRoot
from support.runner import Nestrt, wait_for
from support.served import Direct, groups_of, nspid, serving
from support.silent_file import silent

METHODS = {**moves.METHODS, **running.METHODS}
MODES = {"userns": (), "nouserns": ("--userns", "none", "--capabilities", "all")}
FROZEN = ("freezer.state", "FROZEN") if has_v1("freezer") else ("cgroup.freeze", "1")


@pytest.fixture(scope="module")
def guests(python: PythonRoot, scratch: Path) -> Iterator[Callable[[str], Direct]]:
    """A function that gives the module's guest of a mode."""
    made: dict[str, Direct] = {}
    contexts = []

    def get(mode: str) -> Direct:
        if mode not in made:
            name = f"nestrt-m-{os.getpid():x}-{mode}"
            contexts.append(serving(Nestrt(), python, name, scratch / name, *MODES[mode]))
            made[mode] = contexts[-1].__enter__()
        return made[mode]

    yield get
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.fixture(params=["userns", pytest.param("nouserns", marks=pytest.mark.slow_on_vm)])
def guest(request: pytest.FixtureRequest, guests: Callable[[str], Direct]) -> Iterator[Direct]:
    """A guest of each mode, tidied up after the test."""
    found = guests(request.param)
    yield found
    found.reset()


@pytest.fixture
def one(guests: Callable[[str], Direct]) -> Iterator[Direct]:
    """A guest with a user namespace."""
    found = guests("userns")
    yield found
    found.reset()


@pytest.fixture(params=["kernel", "NSpid"])
def translation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to learn whose number that is: an old kernel's is forced on this one."""
    if request.param == "NSpid":
        monkeypatch.setattr(pidns, "translates", False)


@contextmanager
def outsider(group: str, *nsenter: str) -> Iterator[int]:
    """A process of the host in *group*, which is made for it, in the namespaces that *nsenter* names; its pid."""
    make_group(group)
    with subprocess.Popen(["nsenter", *nsenter, "sleep", "1000"] if nsenter else ["sleep", "1000"]) as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            pid = process.pid
            if nsenter:  # it forks into a pid namespace
                pid = int(wait_for(lambda: children.read_text().split(), "nsenter's child")[0])
            enter(group, pid)
            yield pid
        finally:
            remove_groups(group)
            process.kill()


def new_group(what: str = "x") -> str:
    return f"/nestrt-test-{what}-{os.getpid()}"


# Numbers are the caller's own.
#
#    host 7068 = guest 15        a peer in the guest's own namespace says 15
#    host 7070 = guest 17 = 1    a peer in a namespace that the guest has made says 1, and sees nothing above


def test_numbers_are_the_callers_own(guest: Direct, translation: None) -> None:
    guest.mkdir("/web")
    number, pid = guest.fork()
    assert number != pid
    guest.call(METHODS, "Attach", group="web", pids=[number])
    assert guest.group_of(pid) == "/web"
    assert guest.group_of(guest.agent_pid) == "/init"
    guest.call(METHODS, "Attach", group="web", pids=[1, 0])
    assert guest.group_of(guest.agent_pid) == guest.group_of(guest.root.pid) == "/web"
    guest.call(METHODS, "Attach", group="/init", pids=[1, 0, number])
    assert {guest.group_of(one) for one in (pid, guest.agent_pid, guest.root.pid)} == {"/init"}


def test_a_peer_in_a_namespace_of_its_own(guest: Direct, translation: None) -> None:
    guest.mkdir("/web")
    number, pid = guest.fork()
    peer = guest.peer(nest=True)
    every = nspid(peer.pid)
    assert every[-1] == 1
    assert len(every) == len(nspid(pid)) + 1
    guest.call(METHODS, "Attach", peer, group="web", pids=[1])
    assert guest.group_of(peer.pid) == "/web"
    assert guest.group_of(guest.agent_pid) == "/init", "the agent is the guest's 1, not this caller's"
    refused = guest.refused(METHODS, "Attach", peer, group="web", pids=[number])
    assert refused.name == "NotFound"
    assert guest.group_of(pid) == "/init"
    # Two such namespaces have the same numbers for different processes.
    other = guest.peer(nest=True)
    guest.call(METHODS, "Attach", other, group="init", pids=[1])
    assert guest.group_of(peer.pid) == "/web"
    found = guest.call(METHODS, "Processes", peer, group="/", recursive=True)["processes"]
    assert [(entry["pid"], entry["group"]) for entry in found] == [(1, "/web")]
    seen = guest.call(METHODS, "Processes", group="/web")["processes"]
    assert [entry["pid"] for entry in seen] == [every[-2]]


@pytest.mark.slow_on_vm
def test_numbers_that_are_nobodys(guest: Direct, translation: None) -> None:
    guest.mkdir("/web")
    for number in (-1, -(1 << 63), (1 << 63) - 1, 1 << 22, (1 << 22) + 1, 1 << 31, (1 << 32) + 1, 4_000_000):
        refused = guest.refused(METHODS, "Attach", group="web", pids=[number])
        assert refused.name in ("BadValue", "NotFound"), (number, refused.message)
    assert guest.group_of(guest.agent_pid) == "/init"
    number, _ = guest.fork()
    guest.kill(number)
    assert guest.refused(METHODS, "Attach", group="web", pids=[number]).name == "NotFound"
    assert guest.call(METHODS, "Attach", group="web", pids=[]) == {}
    assert guest.call(METHODS, "Processes", group="web")["processes"] == []


def test_what_was_moved_before_the_first_that_cannot_be(one: Direct) -> None:
    one.mkdir("/web")
    (first, pid), (second, later) = one.fork(), one.fork()
    refused = one.refused(METHODS, "Attach", group="web", pids=[first, 1 << 21, second])
    assert refused.message.endswith("1 of 3 were moved before")
    assert (one.group_of(pid), one.group_of(later)) == ("/web", "/init")


def test_many_at_once(one: Direct) -> None:
    one.mkdir("/web")
    pids = [one.fork() for _ in range(3)]
    one.call(METHODS, "Attach", group="web", pids=[number for number, _ in pids] * 33)
    assert {one.group_of(pid) for _, pid in pids} == {"/web"}
    refused = one.refused(METHODS, "Attach", group="init", pids=[pids[0][0]] * 70 + [1 << 21])
    assert refused.message.endswith("70 of 71 were moved before")


def test_a_caller_that_has_ended(one: Direct) -> None:
    peer = one.peer()
    os.kill(peer.pid, signal.SIGKILL)
    wait_for(lambda: "Z" in Path(f"/proc/{peer.pid}/stat").read_text().rpartition(")")[2][:3], "its end")
    for pids in ([0], [1]):
        refused = one.refused(METHODS, "Attach", peer, group="/init", pids=pids)
        assert refused.name == "NotFound"
        assert "connect anew" in refused.remedy


# Whose process it is.


def test_processes_that_are_not_of_this_guest(one: Direct, guests: Callable[[str], Direct]) -> None:
    """Seen by the guest, in its pid namespace, but in groups of the host, of another guest, or above its root."""
    one.mkdir("/web")
    limit, other = one.limit, guests("nouserns")
    for group in (new_group(), f"{limit}x", f"{limit}/guestx", f"{limit}/guest-web", f"{other.top}/web"):
        with outsider(group, "-t", str(one.agent_pid), "--pid") as pid:
            number, before = nspid(pid)[-1], groups_of(pid)
            refused = one.refused(METHODS, "Attach", group="web", pids=[number])
            assert refused.name == "NotPermitted", (group, refused.message)
            assert groups_of(pid) == before
            listed = one.call(METHODS, "Processes", group="/", recursive=True)["processes"]
            assert number not in [entry["pid"] for entry in listed]


@pytest.mark.v1
@pytest.mark.parametrize("controller", ["pids", "memory"])
def test_a_process_that_is_above_in_one_hierarchy(one: Direct, controller: str) -> None:
    """In the limit group there, as an engine's helper may be: that is not the guest's to move."""
    one.mkdir("/web")
    number, pid = one.fork()
    hierarchy = hierarchy_of(controller)
    assert hierarchy is not None
    (hierarchy.group(one.limit) / "cgroup.procs").write_text(str(pid))
    before = groups_of(pid)
    assert one.refused(METHODS, "Attach", group="web", pids=[number]).name == "NotPermitted"
    assert groups_of(pid) == before
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow_on_vm
def test_a_guest_that_shares_the_hosts_pid_namespace(
    new_bundle: Callable[..., Bundle], python: PythonRoot, scratch: Path
) -> None:
    """It sees every process of the host, and moves its own."""
    bundle = python_bundle(new_bundle(), python).virtual().writable_groups().namespace("pid", None)
    bundle.capabilities("CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_SYS_ADMIN")
    directory = scratch / f"{bundle.id}-run"
    directory.mkdir()
    bundle.mount(str(directory), "/run/nestrt", "rw").args("/usr/bin/python3", "-Ic", AGENT)
    process = bundle.nestrt.start(*bundle.words("run"), stdin=subprocess.PIPE)
    agent = BrokerGuest(bundle.id, process)
    assert agent.python("result = 1") == 1
    direct = Direct(agent, bundle.cgroup, directory)
    try:
        direct.mkdir("/web")
        number, pid = direct.fork(1000)
        assert number == pid
        for translates in (True, False):
            pidns.translates = translates
            direct.call(METHODS, "Attach", group="web", pids=[number])
            assert direct.group_of(pid) == "/web"
            direct.call(METHODS, "Attach", group="init", pids=[number])
            with outsider(new_group()) as stranger:
                for foreign in (1, 2, os.getpid(), os.getppid(), stranger):  # 2: the kernel's threads
                    before = groups_of(foreign)
                    refused = direct.refused(METHODS, "Attach", group="web", pids=[foreign])
                    assert refused.name == "NotPermitted", (foreign, refused.message)
                    assert groups_of(foreign) == before
            user = direct.peer(1000)
            assert direct.refused(METHODS, "Attach", user, group="web", pids=[number]).name == "NotPermitted"
            listed = direct.call(METHODS, "Processes", group="/", recursive=True)["processes"]
            assert {entry["pid"] for entry in listed} >= {direct.agent_pid, pid}
            assert os.getpid() not in [entry["pid"] for entry in listed]
    finally:
        pidns.translates = True
        direct.remove("/web")
        direct.close()


# Who may: the guest's root all, others only what is theirs, as by their own hand.


def test_every_combination_of_owners(guest: Direct) -> None:
    guest.mkdir("/team", "/team/a", "/team/b", "/mine", owner=1000)
    guest.mkdir("/other", owner=1001)
    guest.mkdir("/roots")
    user = guest.peer(1000)
    victims = [(1000, 1000, 1000), (0, 0, 0), (1001, 1001, 1001), (1000, 0, 0), (0, 1000, 0), (1000, 1000, 0),
               (0, 1000, 1000), (1000, 0, 1000), (1001, 1000, 1000)]  # fmt: skip
    places = ["/init", "/team", "/team/a", "/team/b", "/mine", "/other", "/roots"]
    if is_v2_only():
        places.remove("/team")  # an inner group there
    wrong = []
    for uids in victims:
        number, pid = guest.fork(uids=uids)
        for source, target in itertools.product(places, places):
            guest.enter(pid, source)
            may = uids == (1000, 1000, 1000) and source.startswith("/team") and target.startswith("/team")
            may = may or (uids == (1000, 1000, 1000) and source == target == "/mine")
            told = "done"
            try:
                guest.call(METHODS, "Attach", user, group=target, pids=[number])
            except Refusal as refusal:
                told = refusal.name
            expected = ("done", target) if may else ("NotPermitted", source)
            if (told, guest.group_of(pid)) != expected:
                wrong.append((uids, source, target, told, guest.group_of(pid)))
    assert not wrong
    # The guest's root moves them all.
    for target in places:
        guest.call(METHODS, "Attach", group=target, pids=[number])
        assert guest.group_of(pid) == target


def test_a_user_that_the_guest_does_not_have(one: Direct) -> None:
    """A process from outside, in the guest's groups: root of the host, to whom the guest gives no number."""
    one.mkdir("/web")
    with outsider(f"{one.top}/strange", "-t", str(one.agent_pid), "--pid") as pid:
        listed = {e["pid"]: e for e in one.call(METHODS, "Processes", group="/", recursive=True)["processes"]}
        assert listed[nspid(pid)[-1]]["user"] == -1
        one.mkdir("/team", owner=1000)
        one.enter(pid, "/team")
        user = one.peer(1000)
        assert one.refused(METHODS, "Attach", user, group="team", pids=[nspid(pid)[-1]]).name == "NotPermitted"
        one.call(METHODS, "Attach", group="web", pids=[nspid(pid)[-1]])
        assert one.group_of(pid) == "/web"


def test_others_may_not_freeze_kill_or_move_to_what_is_not_theirs(one: Direct) -> None:
    one.mkdir("/team", owner=1000)
    one.mkdir("/roots")
    user, stranger = one.peer(1000), one.peer(1001)
    calls = ("Freeze", {}), ("Thaw", {}), ("Kill", {}), ("Attach", {"pids": [0]}), ("Attach", {"pids": []})
    for method, more in calls:
        for peer, group in ((user, "roots"), (user, "init"), (stranger, "team"), (stranger, "roots")):
            assert one.refused(METHODS, method, peer, group=group, **more).name == "NotPermitted", (method, group)
    for method in ("Freeze", "Thaw", "Kill"):
        assert one.refused(METHODS, method, user, group="/").name in ("NotPossible", "NotPermitted")
        one.call(METHODS, method, user, group="team")


# Where to.


def test_names_that_lead_elsewhere(one: Direct) -> None:
    before = groups_of(one.root.pid)
    names = ["..", "../..", "/..", "init/..", "init/../..", "a//b", ".", "init/.", "x" * 256, "a\nb", "a\0b", "\ud800",
             "cgroup.procs", "init/cgroup.procs", "é" * 200, "a/" * 3000, "/proc/self", "nestrt", "guest"]  # fmt: skip
    for name in names:
        for method, more in (("Attach", {"pids": [0]}), ("Processes", {}), ("Freeze", {}), ("Thaw", {}), ("Kill", {})):
            refused = one.refused(METHODS, method, group=name, **more)  # type: ignore[arg-type]
            assert refused.name in ("BadValue", "NotFound", "org.varlink.service.InvalidParameter"), (name, refused)
    assert groups_of(one.root.pid) == before


NAMES = ("ä", "日本", "a b", "-rf", "*", "\x1b[31m", "web.service", "%2e%2e", "tail ", "a\rb", "a\x0bb", "a\x85b",
         "a\u2028b", "\udcff\udcfe")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow_on_vm
def test_names_in_every_encoding(one: Direct, name: str) -> None:
    one.mkdir(f"/{name}")
    number, pid = one.fork()
    one.call(METHODS, "Attach", group=name, pids=[number])
    assert one.group_of(pid) == f"/{name}"
    assert [entry["group"] for entry in one.call(METHODS, "Processes", group=name)["processes"]] == [f"/{name}"]
    assert one.call(METHODS, "Kill", group=name) == {"processes": 1}


@pytest.mark.parametrize("line_break", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_group_that_is_named_like_a_line_of_proc(
    one: Direct, guests: Callable[[str], Direct], line_break: str
) -> None:
    """
    /nestrt/A/guest/x⏎0::     A's process in here would be taken for one of B's wherever that break
      └ nestrt/B/guest/init   counted as one, and B's root could move it out of A's limits
    """
    other = guests("nouserns")
    number, pid = one.fork()
    below = f"/x{line_break}0::{other.top}/init"
    parts = below.split("/")
    for end in range(2, len(parts) + 1):
        one.mkdir("/".join(parts[:end]))
    one.enter(pid, below)
    assert set(groups_of(pid).values()) == {one.top + below}
    assert client.membership(str(pid)) == groups_of(pid)
    view = other.served.open().view
    assert set(client.places(pid, view.hierarchies).values()) == {None}
    assert set(client.places(pid, one.served.open().view.hierarchies).values()) == {below}
    listed = one.call(METHODS, "Processes", group="/", recursive=True)["processes"]
    assert {entry["pid"]: entry["group"] for entry in listed}[number] == below


def test_all_hierarchies_or_none(one: Direct) -> None:
    """The last hierarchy refuses, or has no such group: nothing is moved."""
    number, pid = one.fork()
    one.mkdir("/web", "/part")
    if is_v2_only():
        (hierarchies()[0].group(one.top + "/web") / "cgroup.subtree_control").write_text("+memory")
    else:
        cpuset, last = hierarchy_of("cpuset"), one.served.open().view.divided[-1]
        assert cpuset is not None
        (cpuset.group(one.top + "/web") / "cpuset.mems").write_text("\n")
        Path(f"/sys/fs/cgroup/{last.name}{one.top}/part").rmdir()
        missing = one.refused(METHODS, "Attach", group="part", pids=[number])
        assert missing.name == "NotFound"
        assert last.name in missing.message
        assert one.group_of(pid) == "/init"
    refused = one.refused(METHODS, "Attach", group="web", pids=[number])
    assert refused.name in ("Refused", "Busy"), refused.message
    assert ("move it to one" in refused.remedy) == is_v2_only()
    assert one.group_of(pid) == "/init"


@pytest.mark.slow_on_vm
def test_only_what_moves_at_all(one: Direct) -> None:
    """Threads, zombies, and a process whose first thread has ended are told apart from processes."""
    one.mkdir("/web")
    thread = "import threading\nthreading.Thread(target=time.sleep, args=(100000,), daemon=True).start()"
    number, pid = one.fork(body=thread)
    task = wait_for(lambda: [int(t) for t in os.listdir(f"/proc/{pid}/task") if int(t) != pid], "its thread")[0]
    inner = next(
        int(line.split()[-1]) for line in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines()
        if line.startswith("NSpid")
    )  # fmt: skip
    refused = one.refused(METHODS, "Attach", group="web", pids=[inner])
    assert refused.name in ("BadValue", "NotFound")
    assert str(number) in refused.remedy
    assert one.group_of(pid) == "/init"
    one.call(METHODS, "Attach", group="web", pids=[number])
    assert {one.group_of(int(t)) for t in os.listdir(f"/proc/{pid}/task")} == {"/web"}

    number, pid = one.fork(body="os._exit(0)")
    wait_for(lambda: "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3], "a zombie")
    assert one.refused(METHODS, "Attach", group="web", pids=[number]).name == "NotFound"
    number, pid = one.fork(body=thread + "\nimport ctypes\nctypes.CDLL(None).syscall(60, 0)")
    wait_for(lambda: "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3], "the end of its first thread")
    assert one.refused(METHODS, "Attach", group="web", pids=[number]).name == "NotFound"


def test_a_frozen_target(one: Direct) -> None:
    one.mkdir("/web", "/web/deep")
    number, pid = one.fork()
    one.call(METHODS, "Freeze", group="web")
    for group in ("web", "web/deep"):
        refused = one.refused(METHODS, "Attach", group=group, pids=[number])
        assert (refused.name, "frozen" in refused.message) == ("Busy", True)
        assert "thaw" in refused.remedy
    assert one.group_of(pid) == "/init"
    one.call(METHODS, "Thaw", group="web")
    one.call(METHODS, "Attach", group="web/deep", pids=[number])


# A number that changes hands between the last look and the write.
#
#    guest    V has the number n         host     T waits
#             V is killed, and reaped
#                                                 T forks B, which gets n
#    broker   writes n to the guest's group: that is B now

TAKER = """
import ctypes, os, sys, time
sys.path.insert(0, CHECKOUT)
from nestrt.kernel.namespaces import _CloneArgs
from nestrt.kernel.libc import syscall, SYS_clone3
number = (ctypes.c_int * 1)(int(sys.stdin.readline()))
class Args(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint64) for n in ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack",
                "stack_size", "tls", "set_tid", "set_tid_size", "cgroup")]
args = Args(exit_signal=17, set_tid=ctypes.addressof(number), set_tid_size=1)
pid = syscall(SYS_clone3, ctypes.byref(args), ctypes.sizeof(args))
if pid == 0:
    time.sleep(100000)
print(pid, flush=True)
time.sleep(100000)
"""


@contextmanager
def taker(group: str) -> Iterator[subprocess.Popen[str]]:
    """A process in *group* that forks one with the number that it reads."""
    make_group(group)
    code = TAKER.replace("CHECKOUT", repr(str(CHECKOUT)))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            enter(group, process.pid)
            yield process
        finally:
            remove_groups(group)
            process.kill()


# v2's one hierarchy has one write.
LATER = [pytest.param(when, marks=pytest.mark.v1) for when in ("before the last write", "before undoing")]


@pytest.mark.parametrize("when", ["before the first write", *LATER])
@pytest.mark.parametrize("whose", ["the host", "another guest", "the same guest"])
def test_a_number_that_changes_hands(
    one: Direct, guests: Callable[[str], Direct], monkeypatch: pytest.MonkeyPatch, when: str, whose: str
) -> None:
    one.mkdir("/web")
    number, pid = one.fork()
    writes = itertools.count(1)
    count = len(one.served.open().view.divided)
    at = 1 if when == "before the first write" else count
    places = {"the host": new_group(), "another guest": guests("nouserns").top + "/v", "the same guest": one.top + "/v"}
    group = places[whose]
    write = client.write
    with taker(group) as process:

        def slow_write(path: str, value: str) -> None:
            """client.write(), and what happens on the machine meanwhile."""
            turn = next(writes)
            if turn == at:
                one.kill(number)
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{pid}\n")
                process.stdin.flush()
                assert process.stdout.readline() == f"{pid}\n"
                if when == "before undoing":
                    value = "no number"  # the kernel refuses the last one, and what was written before is taken back
            write(path, value)

        monkeypatch.setattr(client, "write", slow_write)
        refused = one.refused(METHODS, "Attach", group="web", pids=[number])
        assert refused.name == "NotFound", refused.message
        assert next(writes) > at
        assert set(groups_of(pid).values()) == {group}, "the new process is where its parent is"
        assert pid not in [entry for directory in groups(one.top + "/web") for entry in _pids(directory)]


def _pids(directory: Path) -> list[int]:
    return [int(word) for word in (directory / "cgroup.procs").read_text().split()]


@pytest.mark.slow_on_vm
def test_a_number_that_changes_hands_before_it_is_held(one: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the translation and the pidfd: the number is asked for once more."""
    one.mkdir("/web")
    number, pid = one.fork()
    open_pidfd = moves.pidfd.open
    with taker(one.top + "/v") as process:

        def slow_open(of: int, start: int | None = None) -> int:
            if of == pid and os.path.exists(f"/proc/{pid}") and nspid(pid)[-1] == number:
                one.kill(number)
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{pid}\n")
                process.stdin.flush()
                process.stdout.readline()
            return open_pidfd(of, start)

        monkeypatch.setattr(moves.pidfd, "open", slow_open)
        refused = one.refused(METHODS, "Attach", group="web", pids=[number])
        assert refused.name == "NotFound", refused.message
        assert one.group_of(pid) == "/v"


@pytest.mark.slow_on_vm
def test_numbers_that_come_round_fast(one: Direct) -> None:
    """The guest's own pid namespace gives the same few numbers again and again while they are being moved: whatever
    happens, nothing but the guest's own is in the group."""
    one.mkdir("/web")
    storm = (
        "import os\n"
        "while True:\n"
        "    try:\n"
        "        open('/proc/sys/kernel/ns_last_pid', 'w').write('4000')\n"
        "    except OSError:\n"
        "        pass\n"
        "    if os.fork() == 0:\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    one.fork(body=storm)
    end = time.monotonic() + 3
    told = set()
    while time.monotonic() < end:
        try:
            one.call(METHODS, "Attach", group="web", pids=[4001])
        except Refusal as refusal:
            told.add(refusal.name)
    assert told <= {"NotFound"}, told
    inode = os.stat(f"/proc/{one.agent_pid}/ns/pid").st_ino
    for directory in groups(one.top + "/web"):
        for pid in _pids(directory):
            with suppress(FileNotFoundError, PermissionError):  # it ends at this moment
                assert os.stat(f"/proc/{pid}/ns/pid").st_ino == inode


# What runs in a group.


def test_processes(one: Direct) -> None:
    one.mkdir("/web", "/web/deep")
    (first, _), (second, deep) = one.fork(1000), one.fork()
    one.call(METHODS, "Attach", group="web", pids=[first])
    one.call(METHODS, "Attach", group="web/deep", pids=[second])
    flat = one.call(METHODS, "Processes", group="web")["processes"]
    assert [(entry["pid"], entry["user"], entry["group"]) for entry in flat] == [(first, 1000, "/web")]
    assert flat[0]["command"].startswith("/usr/bin/python3 -Ic")
    assert len(flat[0]["command"]) <= 4096
    every = one.call(METHODS, "Processes", group="web", recursive=True)["processes"]
    assert {entry["pid"] for entry in every} == {first, second}
    whole = one.call(METHODS, "Processes", recursive=True)["processes"]
    assert {entry["pid"]: entry["group"] for entry in whole}[1] == "/init"
    assert one.call(METHODS, "Processes")["processes"] == []
    by_user = one.call(METHODS, "Processes", one.peer(1000), group="web")["processes"]
    assert [entry["pid"] for entry in by_user] == [first]
    if not is_v2_only():
        one.enter(deep, "/init", "memory")
        found = {e["pid"]: e["group"] for e in one.call(METHODS, "Processes", group="web/deep")["processes"]}
        assert found == {second: ""}, "it is in groups of two names"


def test_processes_without_a_number_for_the_caller_are_left_out(one: Direct, translation: None) -> None:
    with outsider(f"{one.top}/strange") as pid:
        assert one.group_of(pid) == "/strange"
        assert one.call(METHODS, "Processes", group="strange")["processes"] == []
        assert one.call(METHODS, "Kill", group="strange") == {"processes": 1}, "but ended with their group"


@pytest.mark.slow_on_vm
def test_long_and_strange_commands(one: Direct) -> None:
    one.mkdir("/web")
    long = "os.execv('/usr/bin/sleep', ['x' * 100000 + '\\x1b[31m', '1000'])"
    odd = "os.execv('/usr/bin/sleep', [b'\\xff\\n\\x1b]0;', b'1000'])"
    none = "open('/proc/self/comm', 'wb').write(b'a\\\\n\\xff:\\t')\nos.execv('/usr/bin/sleep', [b'', b''])"
    pids = [one.fork(body=body)[0] for body in (long, odd, none)]
    # execve(2) gives it its name before it has its arguments.
    begun = [Path(f"/proc/{one.outside(pid)}/cmdline") for pid in pids[:2]]
    wait_for(lambda: [file.read_bytes()[:1] for file in begun] == [b"x", b"\xff"], "exec")
    one.call(METHODS, "Attach", group="web", pids=pids[:2])
    found = {entry["pid"]: entry["command"] for entry in one.call(METHODS, "Processes", group="web")["processes"]}
    assert found[pids[0]] == "x" * 4096
    assert found[pids[1]] == "�\n\x1b]0; 1000"


@pytest.mark.slow_on_vm  # and FUSE's writes keep nobody waiting before Linux 6.16
def test_a_command_that_is_never_told(one: Direct) -> None:
    """A process that holds its memory map locked: others are listed all the same, by name."""
    one.mkdir("/web")
    # What is mapped over a changed page waits until that is written.
    body = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]\n"
        "fd = os.open('/etc/group', os.O_RDWR)\n"
        "os.fstat(fd)\n"
        "page = libc.mmap(None, 4096, 3, 1, fd, 0)\n"
        "ctypes.memset(page, 1, 1)\n"
        "libc.prctl(15, b'silent')\n"
        "libc.mmap(page, 4096, 3, 0x32, -1, 0)"
    )

    async def commands(group: str) -> dict[int, str]:
        found = (await one.ask(METHODS, one.request("Processes", group=group)))["processes"]
        return {entry["pid"]: entry["command"] for entry in found}

    async def action() -> None:
        with silent(one.agent_pid, "/etc/group", "write"):
            hidden, pid = one.fork(body=body)
            shown, _ = one.fork(1000)
            stat = Path(f"/proc/{pid}/stat")
            wait_for(lambda: "(silent) D" in stat.read_text(), "its mapping")
            await one.ask(METHODS, one.request("Attach", group="web", pids=[hidden, shown]))
            for _ in range(2):
                began = time.monotonic()
                assert await commands("web") == {hidden: "[silent]", shown: "[python3]"}
                assert time.monotonic() - began < running.PATIENCE + 20 * SLOW
            await one.ask(METHODS, one.request("Attach", group="init", pids=[shown]))
        assert (await commands("init"))[shown].startswith("/usr/bin/python3")

    trio.run(action)


def test_freeze_and_thaw(guest: Direct) -> None:
    guest.mkdir("/web", "/web/deep")
    number, pid = guest.fork(body="n = 0\nwhile True:\n    n += 1")
    guest.call(METHODS, "Attach", group="web/deep", pids=[number])
    guest.call(METHODS, "Freeze", group="web")
    used = Path(f"/proc/{pid}/stat").read_text().split()[13]
    time.sleep(0.1 * SLOW**0.5)
    assert Path(f"/proc/{pid}/stat").read_text().split()[13] == used, "it does not run"
    again = guest.refused(METHODS, "Thaw", group="web/deep")
    assert (again.name, "/web" in again.message) == ("Busy", True)
    guest.call(METHODS, "Thaw", group="web")
    wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().split()[13] != used, "it to run")
    for method in ("Freeze", "Thaw", "Kill"):
        refused = guest.refused(METHODS, method, group="/")
        assert refused.name == "NotPossible"
        assert refused.remedy
    inside = guest.refused(METHODS, "Freeze", group="init")
    assert (inside.name, "the caller" in inside.message) == ("NotPossible", True)


@pytest.mark.slow_on_vm
def test_what_does_not_stop_keeps_nobody_else_waiting(one: Direct) -> None:
    """A user's process hangs in a read for ever, and he freezes it again and again: root is served all the same."""
    one.mkdir("/team", owner=1000)
    one.mkdir("/web")
    user = one.peer(1000)

    async def freeze(told: list[str]) -> None:
        with pytest.raises(Refusal) as error:
            await one.ask(METHODS, one.request("Freeze", user, group="team"))
        told.append(error.value.name)

    async def action() -> None:
        told: list[str] = []
        with silent(one.agent_pid, "/etc/group"):
            number, pid = one.fork(1000, "os.read(os.open('/etc/group', os.O_RDONLY), 1)")
            free, _ = one.fork(1000)
            await one.ask(METHODS, one.request("Attach", group="team", pids=[number, free]))
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(freeze, told)
                await trio.sleep(0.5)
                for group in ("web", "init") * 5:
                    with trio.fail_after(6):
                        await one.ask(METHODS, one.request("Attach", group=group, pids=[0]))
                with trio.fail_after(8):
                    await one.ask(METHODS, one.request("Freeze", group="web"))
                    await one.ask(METHODS, one.request("Kill", group="web"))
        assert told == ["Busy"] * 3
        assert "freez" not in Path(f"/proc/{pid}/wchan").read_text()

    trio.run(action)


def test_what_the_guest_froze_itself_is_thawed_too(one: Direct) -> None:
    one.mkdir("/web")
    for directory in groups(one.top + "/web"):
        for file, text in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            if (directory / file).exists():
                (directory / file).write_text(text)
    one.call(METHODS, "Thaw", group="web")
    states = {(d / f).read_text().strip() for d in groups(one.top + "/web") for f in ("freezer.state", "cgroup.freeze")
              if (d / f).exists()}  # fmt: skip
    assert states <= {"THAWED", "0"}


def test_kill(guest: Direct) -> None:
    guest.mkdir("/web", "/web/deep", "/stay")
    numbers = [guest.fork()[0] for _ in range(4)]
    guest.call(METHODS, "Attach", group="web", pids=numbers[:1])
    guest.call(METHODS, "Attach", group="web/deep", pids=numbers[1:3])
    guest.call(METHODS, "Attach", group="stay", pids=numbers[3:])
    guest.call(METHODS, "Freeze", group="web/deep")
    assert guest.call(METHODS, "Kill", group="web") == {"processes": 3}
    wait_for(lambda: not guest.call(METHODS, "Processes", group="web", recursive=True)["processes"], "their end")
    assert len(guest.call(METHODS, "Processes", group="stay")["processes"]) == 1
    assert guest.call(METHODS, "Kill", group="web") == {"processes": 0}


@pytest.mark.slow_on_vm
def test_signals(one: Direct) -> None:
    one.mkdir("/web")
    handler = "signal.signal(signal.SIGUSR1, lambda *_: os.setpgid(0, 0))"
    number, pid = one.fork(body=f"import signal\n{handler}\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)")
    wait_for(lambda: "SigIgn:\t0000000001005000" in Path(f"/proc/{pid}/status").read_text(), "its handlers")
    one.call(METHODS, "Attach", group="web", pids=[number])
    assert os.getpgid(pid) != pid
    assert one.call(METHODS, "Kill", group="web", signal=10) == {"processes": 1}
    wait_for(lambda: os.getpgid(pid) == pid, "the signal")
    assert one.call(METHODS, "Kill", group="web", signal=15) == {"processes": 1}
    for wrong in (0, -9, 65, 1 << 40):
        assert one.refused(METHODS, "Kill", group="web", signal=wrong).name == "BadValue"
    assert Path(f"/proc/{pid}").exists()
    assert one.call(METHODS, "Kill", group="web", signal=9) == {"processes": 1}


def test_whoever_kills_its_own_group_goes_with_it(one: Direct) -> None:
    one.mkdir("/web")
    peer = one.peer()
    one.call(METHODS, "Attach", peer, group="web", pids=[0])
    one.call(METHODS, "Kill", peer, group="web")
    wait_for(lambda: "Z" in Path(f"/proc/{peer.pid}/stat").read_text().rpartition(")")[2][:3], "its end")


@pytest.mark.slow_on_vm
def test_what_is_noted_for_the_audit(one: Direct) -> None:
    one.mkdir("/web")
    number, pid = one.fork()
    request = one.request("Attach", group="web", pids=[number, number])
    trio.run(one.ask, METHODS, request)
    assert request.notes == [("/web", f"process {pid}", "/init", "/web")]


def test_translation_agrees_with_proc(one: Direct) -> None:
    """The kernel's way and the other one say the same of every process of the machine."""
    nested = one.peer(nest=True)
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for of in (one.agent_pid, nested.pid, os.getpid()):
        with pidns.PidNamespace(of) as namespace:
            by_kernel = {pid: namespace.inside(pid) for pid in pids}
            pidns.translates = False
            try:
                by_proc = {pid: namespace.inside(pid) for pid in pids}
                back = {pid: namespace.outside(number, lambda: pids) for pid, number in by_proc.items() if number}
            finally:
                pidns.translates = True
            for pid in (pid for pid in pids if os.path.exists(f"/proc/{pid}")):
                assert (pid, by_kernel[pid]) == (pid, by_proc[pid])
                assert back.get(pid, pid) == pid
            assert [namespace.outside(number, list) for number in (0, -1, 1 << 23)] == [0, 0, 0]


# The whole way: guest, socket, daemon, audit.


@pytest.fixture
def broker() -> Iterator[Broker]:
    """The daemon, which outlives the test's guests."""
    with running_broker() as one:
        yield one


def test_through_the_daemon(
    broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]
) -> None:
    guest = start_guest(nestrt, python, new_guest())
    guest.call("Create", group="team", owner=1000)
    guest.call("Create", user=1000, group="team/a")
    number = guest.spawn("exec sleep 1000")
    mine = guest.spawn("exec sleep 1000", user=1000)
    guest.call("Attach", group="team/a", pids=[number, mine])
    assert guest.refused("Attach", user=1000, group="team", pids=[number]).error == "NotPermitted"
    guest.call("Attach", user=1000, group="team/a", pids=[mine])

    def found() -> set[tuple[int, int, str]]:
        every = guest.call("Processes", user=1000, group="team", recursive=True)["processes"]
        return {(one["pid"], one["user"], one["command"]) for one in every}

    wait_for(lambda: found() == {(number, 0, "sleep 1000"), (mine, 1000, "sleep 1000")}, "both, by their programs")
    guest.call("Freeze", user=1000, group="team")
    states = {one["name"]: one["frozen"] for one in guest.call("List", recursive=True)["groups"]}
    assert (states["/team"], states["/team/a"], states["/init"]) == (True, True, False)
    guest.call("Thaw", user=1000, group="team")
    assert guest.call("Kill", user=1000, group="team") == {"processes": 2}
    assert guest.refused("Kill", group="/").error == "NotPossible"
    settled()
    keys = ("method", "key", "old", "new", "verdict")
    told = [tuple(entry[key] for key in keys) for entry in broker.entries(guest.name)]
    attached = [line[2:] for line in told if line[0] == "Attach"]
    assert attached[:2] == [("/init", "/team/a", "done")] * 2
    assert [verdict for _, _, verdict in attached[2:]] == ["NotPermitted", "done"]
    assert ("Freeze", "frozen", False, True, "done") in told
    assert ("Kill", "signal", None, 9, "done") in told
