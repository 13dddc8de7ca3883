"""Law 8 for the broker: killed by SIGKILL at any system call, it loses nothing, and no group has more than was asked.

test ── Create, Set, Remove … ──▶ broker ── mkdir, write, chown, setxattr … ──▶ the guest's groups
                                    ▲
strace, with a signal at the N-th of those: that one is not done, all before it are
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nestrt.act import inject
from support.broker import PYTHON, Broker, BrokerGuest, Refused, limit_path, running, start_guest
from support.broker_attack import starting
from support.guests import MODES
from support.hostside import below, directories, groups, guest_root, has_v1, limit_group, mark, read, v2_hierarchy
from support.need import SLOW, require
from support.rootfs import CHECKOUT, PythonRoot
from support.runner import Nestrt, wait_for

LIMITS = ("-m", "256M", "--pids", "60", "--cpus", "0-1" if len(os.sched_getaffinity(0)) > 1 else "0")
SOCKETS = Path("/run/nestrt/broker")
Start = Callable[..., BrokerGuest]
# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm


def attempt_strace() -> str:
    """What keeps strace from sending signals at system calls here; empty where nothing does."""
    if not shutil.which("strace"):
        return "strace is not installed"
    argv = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=close:signal=KILL", "true"]
    done = subprocess.run(argv, capture_output=True, text=True)
    return "" if done.returncode == -signal.SIGKILL else f"it ended with {done.returncode}: {done.stderr}"


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    require("strace", attempt_strace())
    with running() as one:
        yield one


@pytest.fixture
def start(broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> Iterator[Start]:
    """Start a guest with more options; named like the test's own."""
    with starting(broker, nestrt, python, new_guest, LIMITS) as function:
        yield function


def attach(broker: Broker, *options: str) -> subprocess.Popen[bytes]:
    """strace at all threads of the broker, from now on."""
    assert broker.process is not None
    pid = broker.process.pid
    argv = ["strace", "-f", "-qq", *options, "-p", str(pid)]
    tracer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def attached() -> bool:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        try:
            return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks)
        except (FileNotFoundError, ProcessLookupError):  # a thread has ended
            return False

    wait_for(attached, "strace to be there")
    return tracer


def trace(broker: Broker, call: str, number: int) -> subprocess.Popen[bytes]:
    """Have the broker killed at the *number*-th system call *call* of one of its threads, from now on."""
    inject = f"inject={call}:signal=KILL:when={number}"
    return attach(broker, "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)


def kill_in(broker: Broker, call: str, number: int, action: Callable[[], Any]) -> bool:
    """Do *action* while the broker is killed at its *number*-th *call*; False where it did not come to that."""
    tracer = trace(broker, call, number)
    try:
        action()
    except (AssertionError, Refused, OSError):  # the connection has ended
        pass
    assert broker.process is not None
    process = broker.process
    wait_for(lambda: process.poll() is not None or answers(broker), "it to end, or to go on")
    if process.poll() is None:
        tracer.terminate()
        tracer.wait()
        if answers(broker):  # else it has come to it after all
            return False
    tracer.wait()
    assert process.wait(20 * SLOW) == -signal.SIGKILL
    broker.process = None
    return True


def kill_at(broker: Broker, file: str, action: Callable[[], Any], undo: Callable[[], Any], scratch: Path) -> None:
    """Do *action* while the broker is killed just before it writes to the first *file* (the end of its path).

    strace counts by thread: which write that is one sees by doing it, and taking it back by *undo*.
    """
    for _ in range(3):  # another thread may have done a part of it
        tracer = attach(broker, "-y", "-e", "trace=write", "-o", str(scratch))
        try:
            action()
        finally:
            tracer.terminate()
            tracer.wait()
        undo()
        counts: dict[str, int] = {}
        for thread, path in re.findall(r"^(\d+) +write\(\d+<([^>]*)>", scratch.read_text(), re.MULTILINE):
            counts[thread] = counts.get(thread, 0) + 1
            if path.endswith(file):
                break
        else:
            raise AssertionError(f"nothing is written to {file}: {scratch.read_text()[-2000:]}")
        if kill_in(broker, "write", counts[thread], action):
            return
        undo()
    raise AssertionError(f"it was never killed at {file}")


def answers(broker: Broker) -> bool:
    try:
        broker.call("Guests")
    except (AssertionError, OSError):
        return False
    return True


def served(guest: BrokerGuest) -> bool:
    """Whether the guest's socket answers."""
    found = guest.python("""
try:
    result = "parameters" in call({"method": "io.nestrt.Guest.Info", "parameters": {}})
except (OSError, TypeError):
    result = False
""")  # fmt: skip
    return bool(found)


def snapshot(name: str) -> dict[str, str]:
    """Limits, owners and attributes of a guest's groups, by file."""
    found = {}
    files = ("memory.limit_in_bytes", "memory.max", "pids.max", "cpuset.cpus", "cpu.cfs_quota_us", "cpu.max",
             "devices.list", "cgroup.max.descendants", "cgroup.max.depth", "cgroup.freeze",
             "freezer.state")  # fmt: skip
    for path in directories(limit_group(name)):
        found[str(path)] = str(path.stat().st_uid)
        found |= {f"{path} {one}": os.getxattr(path, one).decode(errors="replace") for one in os.listxattr(path)}
        texts = {str(path / file): (path / file).read_text() for file in files if (path / file).exists()}
        found |= {file: "\n".join(sorted(text.splitlines())) for file, text in texts.items()}
    return found


def number(text: str) -> int:
    """A limit as a number; none is a very large one."""
    word = text.split()[0]
    return 1 << 62 if word in ("max", "-1") else min(int(word), 1 << 62)


def check_within(name: str) -> None:
    """No group of the guest has more than the one above it, for what the kernel does not see to by itself."""
    for top in groups(limit_group(name)):
        for path in below(top)[1:]:
            for file in ("memory.limit_in_bytes", "memory.max", "pids.max"):
                if (path / file).exists() and (path.parent / file).exists() and path.parent != top.parent:
                    own, above = number((path / file).read_text()), number((path.parent / file).read_text())
                    assert own <= above or own >= 1 << 61, (path, own, above)
            if (path / "devices.list").exists():
                own_rules, rules = ((one / "devices.list").read_text().splitlines() for one in (path, path.parent))
                assert all(any(covers(rule, own) for rule in rules) for own in own_rules), (path, own_rules, rules)


def covers(rule: str, other: str) -> bool:
    """Whether one line of devices.list ("c 1:* rw") allows all that *other* does."""
    (kind, place, access), (own_kind, own_place, own_access) = rule.split(), other.split()
    pairs = zip(place.split(":"), own_place.split(":"), strict=True)
    same = kind in ("a", own_kind) and all(mine in ("*", its) for mine, its in pairs)
    return same and set(access) >= set(own_access)


def restart(broker: Broker, *guests: BrokerGuest) -> None:
    """Start it again: all are served, and no socket is there for anybody else."""
    broker.start()
    for guest in guests:
        wait_for(lambda guest=guest: served(guest), f"the socket in {guest.name}", 20)  # type: ignore[misc]
    names = {one["name"] for one in broker.call("Guests")["guests"]}
    assert {path.name for path in SOCKETS.iterdir()} == names
    assert {guest.name for guest in guests} <= names
    assert "bug of nestrt" not in broker.said()


def points(every: dict[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    """(system call, its number); under emulation some of them."""
    found = [(call, number) for call, numbers in every.items() for number in numbers]
    return found if SLOW == 1 else found[1::4]


CREATE = {"mkdir": (1, 3, 10), "lchown": (1, 200), "write": (1, 4, 12), "chown": (1, 20), "setxattr": (1,)}


def test_create(start: Start, broker: Broker) -> None:
    """Half a group is a group: it has what its parent has or less, it is listed, completed by Set, removed by Remove,
    and can be made again. All the while the guest's own limits stand, and nothing of another guest has changed."""
    guest, other = start(), start(*MODES["nouserns"])
    other.call("Create", group="web", settings={"memory.max": "16M"}, owner=1000)
    limits, others, kills = snapshot(guest.name), snapshot(other.name), 0
    settings = {"memory.max": "64M", "pids.max": "10", "cpuset.cpus": "0"}
    values = {"group": "web/db", "settings": settings, "parents": True, "owner": 1000, "devices": ["c 1:3 rwm"]}
    for call, count in points(CREATE):
        killed = kill_in(broker, call, count, lambda: guest.call("Create", **values))
        kills += killed
        if killed:
            check_within(guest.name)
            restart(broker, guest, other)
        there = {str(path) for path in groups(limit_group(guest.name) + "/guest/web")}
        names = [one["name"] for one in guest.call("List", recursive=True)["groups"]]
        assert ("/web" in names) == bool(there), (call, count)
        if kills % 2 and "/web/db" in names:
            guest.call("Set", group="web/db", settings=settings)
            assert guest.call("Get", group="web/db", keys=["memory.max"])["values"] == {"memory.max": "64M"}
        if there:
            guest.call("Remove", group="web", recursive=True)
        assert snapshot(guest.name) == limits, (call, count)
        assert snapshot(other.name) == others, (call, count)
    assert kills >= (8 if SLOW == 1 else 1)
    guest.call("Create", **values)
    check_within(guest.name)


def test_set(start: Start, broker: Broker) -> None:
    """All settings, none, or the first ones: each file holds what it held or what was asked for, nothing between."""
    guest = start()
    old = {"memory.max": "64M", "pids.max": "10", "cpu.max": "0.5"}
    new = {"memory.max": "96M", "pids.max": "20", "cpu.max": "0.25"}
    guest.call("Create", group="web", settings=old)
    limits, kills = {key: value for key, value in snapshot(guest.name).items() if "/web" not in key}, 0
    for call, count in points({"write": (1, 2, 3, 4), "openat": (20, 60)}):
        killed = kill_in(broker, call, count, lambda: guest.call("Set", group="web", settings=new))
        kills += killed
        if killed:
            restart(broker, guest)
        found = guest.call("Get", group="web", keys=[*old])["values"]
        assert all(found[key] in (old[key], new[key]) for key in old), (call, count, found)
        assert {key: value for key, value in snapshot(guest.name).items() if "/web" not in key} == limits
        guest.call("Set", group="web", settings=old)
    assert kills >= (3 if SLOW == 1 else 1)


@pytest.mark.slow_on_vm(False)
def test_remove(start: Start, broker: Broker) -> None:
    """What is left is removed by asking again; whoever was to be killed is, sooner or later."""
    guest = start()
    before, kills = snapshot(guest.name), 0
    for call, count in points({"rmdir": (1, 9, 19), "write": (1, 2), "pidfd_send_signal": (1,)}):
        guest.call("Create", group="web/db", parents=True, settings={"pids.max": "9"})
        guest.call("Attach", group="web/db", pids=[guest.spawn("exec sleep 1000"), guest.spawn("exec sleep 1000")])
        remove = {"group": "web", "recursive": True, "kill": True}
        killed = kill_in(broker, call, count, lambda remove=remove: guest.call("Remove", **remove))  # type: ignore[misc]
        kills += killed
        if killed:
            restart(broker, guest)
            if groups(limit_group(guest.name) + "/guest/web"):
                guest.call("Remove", **remove)
        assert snapshot(guest.name) == before, (call, count)
    assert kills >= (4 if SLOW == 1 else 1)


def test_devices_attach_freeze_and_react(start: Start, broker: Broker) -> None:
    """Each is done, or not, or can be done again; a group that was frozen is thawed by asking."""
    guest = start()
    guest.call("Create", group="web", settings={"memory.max": "32M"})
    guest.call("Create", group="cell")
    pid = guest.spawn("exec sleep 1000")
    before, kills = snapshot(guest.name), 0
    todo: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
        "Devices": ({"group": "web", "only": ["c 1:3 rwm", "c 1:5 rw"]},
                    {"write": (1, 6), "setxattr": (1, 2), "bpf": (2, 4)}),
        "Attach": ({"group": "cell", "pids": [pid]}, {"write": (1, 9)}),
        "Freeze": ({"group": "cell"}, {"write": (1,)}),
        "React": ({"reaction": {"group": "web", "on": "oom", "action": "tell", "seconds": 5.0, "fallback": "kill"}},
                  {"setxattr": (1,), "write": (1,)}),
        "Rules": ({"rules": ["1000 * web"]}, {"setxattr": (1,)}),
    }  # fmt: skip
    for method, (values, every) in todo.items():
        for call, count in points(every):
            killed = kill_in(broker, call, count, lambda m=method, v=values: guest.call(m, **v))  # type: ignore[misc]
            kills += killed
            if killed:
                check_within(guest.name)
                restart(broker, guest)
            guest.call("Thaw", group="cell")
            guest.call(method, **values)
            guest.call("Thaw", group="cell")
            assert guest.call("Get", group="web", keys=["memory.max"])["values"] == {"memory.max": "32M"}
            if method == "Devices":
                guest.call("Devices", group="web", inherit=True)
            elif method == "Attach":
                guest.call("Attach", group="init", pids=[pid])
            elif method == "React":
                guest.call("Forget", group="web", on="oom")
            elif method == "Rules":
                guest.call("Rules", rules=[])
            if method != "React":
                assert snapshot(guest.name) == before, (method, call, count)
    assert kills >= (4 if SLOW == 1 else 1)


def check_limits(name: str, old: dict[str, str], new: dict[str, str]) -> None:
    """What binds the guest is for each limit the old value or the new one, on the limit group and on what its root
    shows, and no more than the old one where less was asked."""
    for key, v1 in (("memory.max", "memory.limit_in_bytes"), ("pids.max", "pids.max")):
        allowed = {size(old[key]), size(new[key])}
        for group in (limit_group(name), guest_root(name)):
            assert number(read(key.partition(".")[0], group, v1, key)) in allowed, (group, key)


def size(text: str) -> int:
    return int(text.removesuffix("M")) << (20 * text.endswith("M"))


def test_while_a_guest_is_made(start: Start, broker: Broker) -> None:
    """The next broker finds a mark that says so still, and does its part once the guest runs."""
    guest = start()
    guest.call("Create", group="web")
    guest.call("Rules", rules=["1000 * web"])
    place = limit_path(guest.name)
    was = os.getxattr(place, "trusted.nestrt")
    broker.stop(signal.SIGKILL)
    try:
        os.setxattr(place, "trusted.nestrt", json.dumps({**json.loads(was), "state": "creating"}).encode())
        broker.start()
        assert not served(guest)
    finally:
        os.setxattr(place, "trusted.nestrt", was)
    wait_for(lambda: served(guest), "the new broker's socket", 20)
    assert guest.call("Rules")["rules"] == ["1000 * web"]


OLD = {"memory.max": "256M", "pids.max": "60"}
LESS = {"memory.max": "128M", "pids.max": "40"}
MORE = {"memory.max": "384M", "pids.max": "80"}


def test_set_limits(start: Start, broker: Broker) -> None:
    """The host's own change, down and up: old values or new ones, on both groups; asked again it is done, mark and all;
    and the way back leads to what there was."""
    guest = start()
    guest.call("Create", group="web", settings={"memory.max": "64M"})
    broker.call("SetLimits", guest=guest.name, settings=OLD)
    before, kills = snapshot(guest.name), 0
    every = {"write": (2, 5), "setxattr": (1,)}
    for new in (LESS, MORE):
        for call, count in points(every):
            change = {"guest": guest.name, "settings": new}
            killed = kill_in(broker, call, count, lambda change=change: broker.call("SetLimits", **change))  # type: ignore[misc]
            kills += killed
            if killed:
                check_limits(guest.name, OLD, new)
                restart(broker, guest)
            broker.call("SetLimits", **change)
            check_limits(guest.name, new, new)
            assert guest.call("Get", group="/", keys=[*new])["values"] == new
            assert guest.call("Get", group="web", keys=["memory.max"])["values"] == {"memory.max": "64M"}
            broker.call("SetLimits", guest=guest.name, settings=OLD)
            assert snapshot(guest.name) == before, (new, call, count)
    assert kills >= (4 if SLOW == 1 else 1)


def test_the_hosts_devices(start: Start, broker: Broker) -> None:
    """SetLimits with device rules: never a child group with what its parent has lost."""
    guest = start()
    rules, fewer = ["c 1:3 rwm", "c 1:5 rwm", "c 1:9 r"], ["c 1:3 rw", "c 1:9 r"]
    broker.call("SetLimits", guest=guest.name, settings=OLD, devices=rules)
    guest.call("Create", group="web", devices=["c 1:5 rw"])
    before, kills = snapshot(guest.name), 0
    for call, count in points({"write": (1, 5), "setxattr": (1,), "bpf": (2,)}):
        change = {"guest": guest.name, "settings": {}, "devices": fewer}
        killed = kill_in(broker, call, count, lambda change=change: broker.call("SetLimits", **change))  # type: ignore[misc]
        kills += killed
        if killed:
            check_within(guest.name)
            restart(broker, guest)
        broker.call("SetLimits", **change)
        check_within(guest.name)
        assert guest.call("Devices", group="/")["rules"] == fewer
        broker.call("SetLimits", guest=guest.name, settings={}, devices=rules)
        guest.call("Devices", group="web", only=["c 1:5 rw"])
        assert snapshot(guest.name) == before, (call, count)
    assert kills >= (2 if SLOW == 1 else 1)


def states(guest: BrokerGuest, *pids: int) -> str:
    """The state of each process of the guest; "-" where it has ended."""
    return guest.shell(f"""for pid in {" ".join(map(str, pids))}; do
        s=$(sed 's/.*) //; s/ .*//' /proc/$pid/stat 2>/dev/null); case $s in ""|Z) s=-;; esac; printf %s $s; done""")


def test_thaw_and_kill(start: Start, broker: Broker) -> None:
    """A frozen group is thawed by asking again, one that was to be killed is killed so, and neither stays frozen."""
    guest = start()
    for group in ("cell/one", "cell/two"):
        guest.call("Create", group=group, parents=True)
    before, kills = snapshot(guest.name), 0
    for call, count in points({"write": (1,), "openat": (2,)}):
        pid = guest.spawn("exec sleep 1000")
        guest.call("Attach", group="cell/one", pids=[pid])
        guest.call("Freeze", group="cell")
        killed = kill_in(broker, call, count, lambda: guest.call("Thaw", group="cell"))
        kills += killed
        if killed:
            restart(broker, guest)
            guest.call("Thaw", group="cell")
        assert not guest.call("List", group="cell")["groups"][0]["frozen"], (call, count)
        guest.call("Kill", group="cell")
        wait_for(lambda pid=pid: states(guest, pid) == "-", "its end")  # type: ignore[misc]
        assert snapshot(guest.name) == before, (call, count)
    for call, count in points({"write": (1,), "pidfd_send_signal": (2,), "kill": (2,)}):
        pids = [guest.spawn("exec sleep 1000"), guest.spawn("exec sleep 1000")]
        for pid, group in zip(pids, ("cell/one", "cell/two"), strict=True):
            guest.call("Attach", group=group, pids=[pid])
        killed = kill_in(broker, call, count, lambda: guest.call("Kill", group="cell"))
        kills += killed
        if killed:
            restart(broker, guest)
            guest.call("Kill", group="cell")
        wait_for(lambda pids=pids: states(guest, *pids) == "--", f"their end at {call} {count}")  # type: ignore[misc]
        assert snapshot(guest.name) == before, (call, count)
    assert kills >= (2 if SLOW == 1 else 1)


def test_release_and_the_hosts_rules(start: Start, broker: Broker) -> None:
    """A guest that was to be released is so, or served as before; rules are the old ones or the new ones."""
    guest, other = start(), start()
    before, kills = snapshot(guest.name), 0
    for call, count in points({"unlink": (1,), "rmdir": (1,)}):
        kills += kill_in(broker, call, count, lambda: broker.call("Release", guest=guest.name))
        if broker.process is not None:
            broker.stop(signal.SIGKILL)
        # Its policy asks for a broker: the next one serves it, however far the last one has come.
        restart(broker, guest, other)
        assert guest.shell("grep -c guest.sock /proc/self/mountinfo") == "1", (call, count)
    lines = ["0:sleep * init"]
    for call, count in points({"setxattr": (1, 2)}):
        kills += kill_in(broker, call, count, lambda: broker.call("Rules", guest=guest.name, rules=lines))
        if broker.process is None:
            restart(broker, guest, other)
        assert broker.call("Rules", guest=guest.name)["rules"] in ([], lines)
        assert broker.call("Rules", guest=guest.name, rules=lines) == {"rules": lines}
        assert broker.call("Rules", guest=guest.name, rules=[]) == {"rules": []}
        assert snapshot(guest.name) == before, (call, count)
    assert kills >= (2 if SLOW == 1 else 1)


@pytest.mark.slow_on_vm(False)
def test_where_it_writes_what_matters(start: Start, broker: Broker, tmp_path: Path) -> None:
    """Just before one file of each method: what gives controllers to a new group's child, a limit of the guest's own,
    what freezes, what kills."""
    guest = start(*MODES["nouserns"])
    tree = v2_hierarchy()
    gives = tree is not None and (tree.group(guest_root(guest.name)) / "cgroup.subtree_control").read_text().strip()
    scratch, settings = tmp_path / "strace", {"memory.max": "64M", "pids.max": "10"}
    before = snapshot(guest.name)
    kill_at(
        broker,
        "/web/cgroup.subtree_control" if gives else "/web/db/memory.limit_in_bytes",
        lambda: guest.call("Create", group="web/db", parents=True, settings=settings),
        lambda: guest.call("Remove", group="web", recursive=True),
        scratch,
    )
    check_within(guest.name)
    restart(broker, guest)
    if not groups(limit_group(guest.name) + "/guest/web/db"):
        guest.call("Create", group="web/db", parents=True)
    guest.call("Set", group="web/db", settings=settings)
    assert guest.call("Get", group="web/db", keys=[*settings])["values"] == settings
    guest.call("Remove", group="web", recursive=True)
    assert snapshot(guest.name) == before

    guest.call("Create", group="cell")
    broker.call("SetLimits", guest=guest.name, settings=OLD)
    before = snapshot(guest.name)
    for new in (LESS, MORE):
        kill_at(
            broker,
            "/guest/pids.max",
            lambda new=new: broker.call("SetLimits", guest=guest.name, settings=new),  # type: ignore[misc]
            lambda: broker.call("SetLimits", guest=guest.name, settings=OLD),
            scratch,
        )
        check_limits(guest.name, OLD, new)
        restart(broker, guest)
        broker.call("SetLimits", guest=guest.name, settings=new)
        check_limits(guest.name, new, new)
        broker.call("SetLimits", guest=guest.name, settings=OLD)
        assert snapshot(guest.name) == before

    pids = [guest.spawn("exec sleep 1000") for _ in range(4)]
    guest.call("Attach", group="cell", pids=pids[:1])
    guest.call("Freeze", group="cell")
    frozen = "/cell/freezer.state" if has_v1("freezer") else "/cell/cgroup.freeze"
    kill_at(
        broker,
        frozen,
        lambda: guest.call("Thaw", group="cell"),
        lambda: guest.call("Freeze", group="cell"),
        scratch,
    )
    restart(broker, guest)
    assert guest.call("List", group="cell")["groups"][0]["frozen"]
    guest.call("Thaw", group="cell")
    assert not guest.call("List", group="cell")["groups"][0]["frozen"]
    guest.call("Kill", group="cell")
    wait_for(lambda: states(guest, pids[0]) == "-", "its end")

    left = iter(pids[1:])
    attach_one = lambda: guest.call("Attach", group="cell", pids=[next(left)])  # noqa: E731
    attach_one()
    kill_at(
        broker,
        frozen if has_v1("freezer") else "/cell/cgroup.kill",
        lambda: guest.call("Kill", group="cell"),
        attach_one,
        scratch,
    )
    restart(broker, guest)
    guest.call("Kill", group="cell")
    wait_for(lambda: "-" in states(guest, pids[2]), "its end")
    assert not guest.call("List", group="cell")["groups"][0]["frozen"]
    assert snapshot(guest.name) == before


def test_while_it_takes_up_a_guest(
    start: Start, broker: Broker, nestrt: Nestrt, busybox: Path, new_guest: Callable[[], str]
) -> None:
    """Killed while a launch waits for its socket: that launch fails with one line, and nothing is left."""
    guest = start()
    for call, count in points({"mkdir": (1,), "bind": (1,), "chmod": (1,), "listen": (1,), "unlink": (1,)}):
        name = new_guest()
        tracer = trace(broker, call, count)
        result = nestrt.launch("--name", name, "--rm", "--rootfs", busybox, "--broker", "required", "--", "true")
        assert broker.process is not None
        assert broker.process.wait(20 * SLOW) == -signal.SIGKILL
        tracer.wait()
        broker.process = None
        assert (result.rc, len(result.err.splitlines())) == (125, 1), result
        assert not groups(limit_group(name))
        restart(broker, guest)
        assert not (SOCKETS / name).exists()


def test_while_it_starts(start: Start, broker: Broker) -> None:
    """Killed while it finds the guests that there are, and puts its sockets into them; again and again."""
    one, two = start(), start(*MODES["root"])
    one.call("Create", group="web", settings={"memory.max": "32M"}, owner=1000)
    one.call("React", reaction={"group": "web", "on": "oom", "action": "kill"})
    before = snapshot(one.name), snapshot(two.name)
    every = {"bind": (1, 3), "chmod": (3,), "unlink": (1,), "vfork": (1, 2), "pidfd_open": (3,), "open_tree": (2,),
             "move_mount": (1,)}  # fmt: skip
    for call, count in points(every):
        broker.stop(signal.SIGKILL)
        argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
        argv += ["-e", f"inject={call}:signal=KILL:when={count}"]
        argv += [PYTHON, "-m", "nestrt", "broker", "--audit", str(broker.audit)]
        tracer = subprocess.Popen(
            argv, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(lambda one=tracer: one.poll() is not None or answers(broker), "it to end, or to serve", 20)  # type: ignore[misc]
        try:
            tracer.wait(0.3 * SLOW)  # sockets are put into guests a little later
        except subprocess.TimeoutExpired:
            os.killpg(tracer.pid, signal.SIGKILL)
            tracer.wait()
        restart(broker, one, two)
        assert (snapshot(one.name), snapshot(two.name)) == before, (call, count)
        mounts = [guest.shell("grep -c guest.sock /proc/self/mountinfo") for guest in (one, two)]
        assert mounts == ["1", "1"], (call, count)


def test_a_helper_that_takes_long_to_start(start: Start, broker: Broker) -> None:
    """On a busy machine the one that puts the socket into a guest has not begun when its time would be over: that time
    is for the guest's files to answer."""
    guest = start()
    for _ in range(10):
        broker.stop(signal.SIGKILL)
        helper = start_with_the_helper_stopped(broker)
        early, lives = bool(helper) and not served(guest), True
        try:
            time.sleep(inject.PATIENCE + 1 if early else 0)
        finally:
            try:
                os.kill(helper or os.getpid(), signal.SIGCONT)
            except ProcessLookupError:
                lives = False
        if early and lives:
            break
    else:
        raise AssertionError("it was always killed, or stopped too late")
    wait_for(lambda: served(guest), "the socket")
    assert "do not answer" not in broker.said()
    assert guest.shell("grep -c guest.sock /proc/self/mountinfo") == "1"


def start_with_the_helper_stopped(broker: Broker) -> int:
    """Start the broker; the pid of its first helper, which is stopped as soon as it is seen. 0: it was not seen."""
    stopped: list[int] = []
    ready = threading.Event()

    def stop_it() -> None:
        while not stopped and not ready.wait(0.001):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if b"nestrt.act.inject" in path.read_bytes():
                        os.kill(int(path.parent.name), signal.SIGSTOP)
                        stopped.append(int(path.parent.name))
                        break
                except OSError:  # it has ended
                    continue

    thread = threading.Thread(target=stop_it)
    thread.start()
    try:
        broker.start()
        thread.join(5 * SLOW)
    finally:
        ready.set()
        thread.join()
    return stopped[0] if stopped else 0


@pytest.mark.parametrize("first", [9, 10, 11, 12, 13])
def test_whatever_descriptors_are_free(start: Start, broker: Broker, first: int) -> None:
    """The helper gets the right ones, also where those that it is to have are open here, as others."""
    guest = start()
    found, source = mark(limit_group(guest.name)), f"{SOCKETS}/{guest.name}/guest.sock"
    code = f"""
import os
from nestrt.act import inject
os.closerange(3, 256)
while os.open("/dev/null", 0) < {first - 1}:
    pass
inject.put_socket({found["pid"]}, {found["start"]}, {source!r}, "/run/nestrt/guest.sock")
"""
    done = subprocess.run([PYTHON, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert served(guest)


def test_no_descriptor_is_left_where_there_are_too_few(start: Start) -> None:
    guest = start()
    found, source = mark(limit_group(guest.name)), f"{SOCKETS}/{guest.name}/guest.sock"
    code = f"""
import os, resource
from nestrt.act import inject
from nestrt.errors import NestrtError
os.closerange(3, 256)
most, failed, before = resource.getrlimit(resource.RLIMIT_NOFILE), 0, len(os.listdir("/proc/self/fd"))
for limit in range(4, 24):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most[1]))
    try:
        inject.put_socket({found["pid"]}, {found["start"]}, {source!r}, "/run/nestrt/guest.sock")
    except (NestrtError, OSError):
        failed += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert len(os.listdir("/proc/self/fd")) == before, (limit, os.listdir("/proc/self/fd"))
assert 9 < failed < 20, failed
"""
    done = subprocess.run([PYTHON, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert served(guest)


def test_guests_that_ended_meanwhile(start: Start, broker: Broker, nestrt: Nestrt, python: PythonRoot) -> None:
    """While nobody serves: one guest ends, another is deleted and started anew by the same name, a third goes on."""
    one, two, three = start(), start(), start()
    two.call("Create", group="team", owner=1000)
    broker.stop(signal.SIGKILL)
    assert one.process.stdin is not None
    one.process.stdin.close()
    one.process.wait(20 * SLOW)
    nestrt.run("delete", "--force", two.name).ok()
    new = start_guest(nestrt, python, two.name, *LIMITS, "--broker", "wanted")
    assert (SOCKETS / one.name).exists()
    restart(broker, three)
    assert not (SOCKETS / one.name).exists()
    wait_for(lambda: served(new), "the socket in the new guest", 20)
    assert new.refused("Create", user=1000, group="team/x").error == "NotFound"
    assert [group["name"] for group in new.call("List")["groups"]] == ["/", "/init"]


def test_every_line_of_the_audit_is_whole_or_the_last(start: Start, broker: Broker) -> None:
    """Killed while it writes them, too."""
    guest = start()
    for count in (1, 2, 3):
        guest.call("Create", group="web")
        kill_in(
            broker,
            "write",
            count,
            lambda: [guest.call("Set", group="web", settings={"pids.max": str(n)}) for n in (5, 6)],
        )
        if broker.process is None:
            restart(broker, guest)
        guest.call("Remove", group="web")
    for path in broker.audit.iterdir():
        lines = path.read_bytes().split(b"\n")
        whole = [json.loads(line) for line in lines if line.endswith(b"}")]
        assert len(whole) >= len(lines) - 4
