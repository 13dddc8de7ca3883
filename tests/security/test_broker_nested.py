"""The broker of a guest: guests of that guest attack it, and its own root attacks the host by way of it.

    host                   nestrt broker
    ├ sleep                nobody's
    └ G                    level 1: 256M, 200 processes, CPU 0; its own nestrt broker, and all that that keeps
      ├ sleep
      ├ one                level 2: attacks, as root and as user 1000
      └ two                level 2: is served all the while, and nothing of it changes
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.broker import Broker, BrokerGuest, Refused
from support.broker_attack import everything, latency, run, starting
from support.broker_nested import MOUNTS, Inner, Level
from support.guests import MODES
from support.hostside import limit_group, processes
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, wait_for

LIMITS = ("-m", "256M", "--pids", "200", "--cpus", "0")
INNER = ("-m", "64M", "--pids", "60")
NONE = ("--userns", "none")
DISK, NULL = "b 8:0 rwm", "c 1:3 rwm"
# Level 1 in a user namespace of its own, or root of the host's with all capabilities; level 2 likewise.
# Under emulation the first one.
KINDS = ["userns-userns", "root-none", "userns-none", "root-userns"][: 4 if SLOW == 1 else 1]
Start = Callable[[str], Level]
# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm


@pytest.fixture
def start(broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> Iterator[Start]:
    """Start a guest of level 1 of one of the MODES, with its broker. At the end nobody has met a bug."""
    levels: list[Level] = []
    with starting(broker, nestrt, python, new_guest, LIMITS) as function:

        def begin(mode: str, *options: str) -> Level:
            levels.append(Level(function(*MODES[mode], *MOUNTS, *options), python))
            return levels[-1]

        yield begin
        assert not [level.said() for level in levels if "bug of nestrt" in level.said()]
        assert "bug of nestrt" not in broker.said()


def pair(start: Start, kind: str) -> tuple[Level, Inner, Inner]:
    """Level 1, "one" and "two"."""
    outer, _, inner = kind.partition("-")
    level = start(outer)
    options = (*INNER, *(NONE if inner == "none" else ()))
    return level, level.launch("one", *options), level.launch("two", *options)


def fence(name: str) -> dict[str, str]:
    """All that the host has set for a guest of level 1: its limit groups' files, owners and attributes."""
    return {key: text for key, text in everything(name).items() if "/guest" not in key}


def beside(level: Level, name: str) -> dict[str, str]:
    """The groups of level 1 and of its guests, without those of its guest *name*."""
    found = everything(level.guest.name)
    return {key: text for key, text in found.items() if f"/guest/nestrt/{name}" not in key}


def error(guest: BrokerGuest, method: str, /, **parameters: Any) -> str:
    """The short name of the refusal of *method*; "" where it was done."""
    try:
        guest.call(method, **parameters)
    except Refused as refused:
        return refused.error
    return ""


def groups_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process of the host's that is in no guest."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process.pid
    assert process.poll() is None
    process.kill()
    process.wait()


# One level down.


@pytest.mark.slow_on_vm(False)
@pytest.mark.parametrize("kind", KINDS)
def test_processes_of_others(start: Start, stranger: int, kind: str) -> None:
    """Attach and Kill with the numbers that processes of the host, of level 1 and of its other guest have, there and
    here: none of them is moved or ends."""
    level, one, two = pair(start, kind)
    inside = [level.guest.spawn("exec sleep 1000"), level.pid, *(row["pid"] for row in level.ask("Guests")["guests"])]
    mine, theirs = one.spawn("exec sleep 1000"), two.spawn("exec sleep 1000")
    top = limit_group(level.guest.name)
    outside = sorted(processes(top) - processes(f"{top}/guest/nestrt/one"))
    assert len(outside) >= 5  # two agents, two sleepers, a broker
    one.call("Create", group="cell")
    numbers = {*inside, theirs, *outside, stranger, os.getpid(), 2, 1 << 22, (1 << 31) - 1} - {mine}
    own = {int(word) for word in one.shell("ls /proc").split() if word.isdigit()}
    before = {pid: groups_of(pid) for pid in (*outside, stranger, os.getpid(), 1)}
    for number in sorted(numbers - own):
        assert error(one, "Attach", group="cell", pids=[number]) in ("NotFound", "BadValue"), number
    for number in (-1, 1 << 32, -(1 << 31)):
        assert error(one, "Attach", group="cell", pids=[number]) in ("BadValue", "InvalidParameter"), number
    # As root of a pid namespace of its own it has no number for others either.
    found = run(one, f"""
read, write = os.pipe()
def body():
    import ctypes
    assert not ctypes.CDLL(None).unshare(0x20000000)  # CLONE_NEWPID
    if os.fork() == 0:
        calls = [frame("Attach", {{"group": "cell", "pids": [n]}}) for n in {sorted(numbers - own)}]
        os.write(write, json.dumps([exchange(data)[0][0].get("error", "") for data in calls]).encode())
    os.wait()
pids = children(1, body)
os.close(write)
with os.fdopen(read) as file:
    result = json.loads(file.read() or "[]")
end(pids)
""")  # fmt: skip
    assert bool(found) == kind.endswith("-userns")  # who has no user namespace may make no other one either
    assert all(word.rpartition(".")[2] in ("NotFound", "BadValue", "NotPermitted") for word in found), found
    one.call("Attach", group="cell", pids=[mine])
    for group in ("/", "..", "../two", "/../two", "/nestrt/two", "nestrt/two/guest", "../../init", "two", "/init/.."):
        assert error(one, "Kill", group=group), group
        assert error(one, "Freeze", group=group), group
        assert error(one, "Remove", group=group, recursive=True, kill=True), group
    assert one.call("Kill", group="cell") == {"processes": 1}
    assert one.python(f"result = held['child {mine}'].wait(30)") == -9
    assert {pid: groups_of(pid) for pid in before} == before
    assert two.call("Info")["name"] == "two"


# cgroup v1: root of a user namespace may not move processes of other users, so the broker of level 1 has that done.


@pytest.mark.v1
def test_what_is_not_divided_is_not_moved(start: Start) -> None:
    """The host's broker moves in all hierarchies of level 1; where level 2 has not all of them it is told why not."""
    level = start("userns")
    level.guest.python("open('/mnt/less.toml', 'w').write('[partition]\\npids = false\\n')")
    less = level.launch("less", "--policy", "/mnt/less.toml", *INNER)
    less.call("Create", group="cell")
    pid = less.spawn("exec sleep 1000")
    before = less.shell(f"cat /proc/{pid}/cgroup")
    with pytest.raises(Refused, match="is not divided here") as refused:
        less.call("Attach", group="cell", pids=[pid])
    assert refused.value.error == "NotPossible"
    assert less.shell(f"cat /proc/{pid}/cgroup") == before


PUT_BACK = """
import sys
sys.path.insert(0, "/opt/nestrt")
from nestrt.packages import find_package
find_package("trio", "python3-trio")
from nestrt.broker import above, moves
from nestrt.broker.served import Served
from nestrt.probe.facts import primary, read_hierarchies
found = read_hierarchies(make=True)
guest = Served("one", "/nestrt/one", found, primary(found))
assert guest.learn()
divided = guest.open().view.divided
above.ask(moves.METHOD, {"group": guest.root + "/cell", "pids": [PID]})
result = [open("/proc/PID/cgroup").read(), moves._put_back(guest, PID, {h: ("/cell", "/") for h in divided})]
guest.close()
"""


@pytest.mark.v1
def test_what_was_moved_by_mistake_is_put_back(start: Start) -> None:
    """A number that has gone to a process of level 1, of another user: it is back where its parent is."""
    level, one, _ = pair(start, "userns-userns")
    one.call("Create", group="cell")
    pid = level.guest.spawn("exec sleep 1000", user=1000)
    before = level.guest.shell(f"cat /proc/{pid}/cgroup")
    moved, back = level.guest.python(PUT_BACK.replace("PID", str(pid)))
    assert "/nestrt/one/guest/cell" in moved
    assert back
    assert level.guest.shell(f"cat /proc/{pid}/cgroup") == before


NAMES = (
    "..", "../two", "../../..", "/..", "/../../nestrt/two", "init/../..", ".", "./.", "//", "/sys/fs/cgroup", "/proc/1",
    "/nestrt/two", "nestrt/two/guest", "../../../../proc/self/root", "-rf", "a/" * 300, "x" * 5000, "a\0b", "\0",
    "a\nb", "\x1b[2J", "\ud800", "cgroup.procs", "init/cgroup.procs", "memory.max", "*", "~", "$(id)", " ", "%s%n",
)  # fmt: skip
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Create", {"parents": True}), ("Create", {"owner": 1000}), ("Remove", {"recursive": True, "kill": True}),
    ("Set", {"settings": {"pids.max": "1"}}), ("Get", {}), ("List", {}), ("Freeze", {}), ("Thaw", {}), ("Kill", {}),
    ("Processes", {}), ("Attach", {"pids": [0]}), ("Devices", {"only": [NULL]}), ("Events", {}),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS[:2])
def test_names_lead_nowhere_else(start: Start, kind: str) -> None:
    """Names of groups with "..", absolute and odd ones, in every method, as root and as a user: whatever is made is
    below the guest that asks, and what is outside of it stays as it is."""
    level, one, two = pair(start, kind)
    mine, theirs = one.spawn("exec sleep 1000"), two.spawn("exec sleep 1000")
    before, limits = beside(level, "one"), fence(level.guest.name)
    calls = [(method, {"group": name, **more}) for name in NAMES for method, more in METHODS]
    calls += [("React", {"reaction": {"group": name, "on": "oom", "action": "kill"}}) for name in NAMES]
    for user in (0, 1000):
        replies = run(one, f"""
result = []
for method, parameters in {calls!r}:
    result.append(exchange(frame(method, parameters))[0])
""", user)  # fmt: skip
        for call, reply in zip(calls, replies, strict=True):
            assert len(reply) == 1, (call, reply)
            said = json.dumps(reply)
            assert "bug of nestrt" not in said, (call, reply)
            # One's own names, and no path of level 1.
            assert "/nestrt/one" not in said, (call, reply)
            if "error" not in reply[0] and call[0] not in ("Create", "Get", "List", "Processes"):
                group = call[1].get("group") or call[1]["reaction"]["group"]
                assert ".." not in group.split("/"), (call, reply)
    assert beside(level, "one") == before
    assert fence(level.guest.name) == limits
    assert two.shell(f"ls -d /proc/{theirs}")
    assert one.shell(f"ls -d /proc/{mine}")


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_level_1_has(start: Start, kind: str) -> None:
    """Level 2 asks for more than it has, than level 1 has, and than there is; level 1 gives its guest more by its
    broker than it has itself. What the host has set stands, for the kernel too."""
    level, one, two = pair(start, kind)
    limits, others = fence(level.guest.name), beside(level, "one")
    one.call("Create", group="web", settings={"memory.max": "16M"})
    for group in ("/", "web"):
        for key, value in (("memory.max", "128M"), ("memory.max", "1G"), ("memory.max", "max"), ("pids.max", "61"),
                           ("pids.max", "100000"), ("cpuset.cpus", "1"), ("cpuset.cpus", "0-1023"), ("cpu.max", "64"),
                           ("cpuset.mems", "0-7")):  # fmt: skip
            found = error(one, "Set", group=group, settings={key: value})
            if (group, key, value) in (("web", "memory.max", "max"), ("web", "cpu.max", "64")):
                continue  # no limit of its own: that of the group above binds
            assert found in ("BadValue", "NotPossible", "NotPermitted"), (group, key, value, found)
    for words in ({"only": [DISK]}, {"allow": ["a"]}, {"allow": ["c *:* rwm"]}, {"only": ["b *:* r", NULL]}):
        for group in ("/", "web"):
            assert error(one, "Devices", group=group, **words) in ("BadValue", "NotPossible", "NotPermitted"), words
    assert error(one, "Create", group="big", settings={"memory.max": "1G"}) == "BadValue"
    assert beside(level, "one") == others
    # Level 1 may write on its guest's groups what it likes.
    for change in ({"memory.max": "4G"}, {"pids.max": "100000"}, {"cpuset.cpus": "0-1023"}, {"cpu.max": "64"}):
        with suppress(Refused):
            level.ask("SetLimits", guest="one", settings=change)
    for rules in ([DISK, NULL], ["a"], ["c *:* rwm", "b *:* rwm"]):
        with suppress(Refused):
            level.ask("SetLimits", guest="one", settings={}, devices=rules)
    assert fence(level.guest.name) == limits
    assert no_disk(one)
    assert no_disk(level.guest)
    assert one.shell("grep Cpus_allowed_list /proc/self/status").split()[1] == "0"
    assert int(one.shell(f"/usr/bin/python3 -Ic '{FORKS}'")) < 200
    assert one.order("shell", command=f"echo 1000 >/proc/self/oom_score_adj; exec /usr/bin/python3 -Ic '{HOG}'")["rc"]
    assert two.call("Info")["limits"]["memory.max"]["value"] == "64M"


# How many processes may be there at once, and memory that nobody has.
FORKS = """
import os, signal
pids = []
try:
    while len(pids) < 400:
        pids.append(os.fork() or signal.pause())
except OSError:
    pass
for pid in pids:
    os.kill(pid, signal.SIGKILL)
print(len(pids))
"""
HOG = "b = bytearray(300 << 20); b[::4096] = bytes(len(b[::4096]))"


def no_disk(guest: BrokerGuest) -> bool:
    """Whether the first SCSI disk is closed to the guest: no node of it is made, or none opens."""
    made = "rm -f /dev/disk0; mknod /dev/disk0 b 8 0 && head -c1 /dev/disk0"
    found = guest.order("shell", command=made)
    return found["rc"] != 0 and "Operation not permitted" in found["err"]


# Bytes, and much of it.

FLOODS = {
    "connections": "one = open_one(); one.close()",
    "no Varlink": "one = open_one(); one.sendall(b'{\"a\":[' + b'[],' * 20000 + b'\\0'); one.recv(100); one.close()",
    "calls that nobody waits for": "one = open_one(); one.sendall(frame('Set', {'group': 'web', 'settings': {"
                                   "'pids.max': '9'}}, oneway=True) * 300); one.close()",
    "devices, which the host's broker sets": "one = open_one(); one.sendall(frame('Devices', {'group': 'web', 'only': ["
                                             "'c 1:3 rwm']}) * 20); all_of(one)",
    "replies that nobody reads": "one = open_one(); one.sendall(frame('List', {'recursive': True}) * 100);"
                                 "held.setdefault('kept', []).append(one)",
    "streams": "one = open_one(); one.sendall(frame('Events', more=True)); held.setdefault('kept', []).append(one)",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_flood_is_the_guests_own(start: Start, broker: Broker, kind: str) -> None:
    """Six processes of "one", and six of its user 1000, do nothing else; "two", level 1 at the host's broker, and its
    root at its own are served, and nobody has a mistake to tell of."""
    level, one, two = pair(start, kind)
    one.call("Create", group="web", owner=1000)
    said = broker.said(), level.said()
    for what, body in FLOODS.items():
        for user in (0, 1000) if SLOW == 1 else (0,):
            run(one, f"""
def body():
    while True:
        try:
            {body}
        except OSError:
            pass
held["flood"] = children(6 if {SLOW == 1} else 2, body, {user})
""")  # fmt: skip
            assert latency(two, 10) < 6 * SLOW, what
            assert latency(level.guest, 10) < 6 * SLOW, what
            assert len(level.ask("Guests")["guests"]) == 2
            run(one, 'end(held.pop("flood"))')
    assert (broker.said(), level.said()) == said
    # What has been asked until then has its turn first.
    wait_for(lambda: not any(row["connections"] for row in level.ask("Guests")["guests"]), "the connections to end", 40)


BAD = [
    b"\0", b"\0" * 50_000, b"x\0", b"{}\0", b"[]\0", b"\xff\xfe\0", b'{"method":1}\0', b"[" * 60_000 + b"\0",
    b'{"method":"io.nestrt.Guest.Info","parameters":[]}\0', b'{"a":' * 13_000 + b"\0", b"x" * 200_000,
    b"GET / HTTP/1.0\r\n\r\n", b'{"method":"io.nestrt.Guest.Info","parameters":{"x":NaN}}\0', bytes(range(256)) * 300,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS[:2])
def test_bytes_that_are_no_call(start: Start, kind: str) -> None:
    """Each ends its connection, with one error at most; the next one is served."""
    level, one, two = pair(start, kind)
    answers = run(one, f"""
result = []
for data in {BAD!r}:
    result.append(exchange(data))
    result.append(exchange(frame("Get", {{"group": "/", "keys": ["pids.max"]}})))
""")  # fmt: skip
    for data, (replies, _), (good, how) in zip(BAD, answers[::2], answers[1::2], strict=True):
        assert len(replies) <= 1, (data[:60], replies)
        assert all(reply["error"] == "org.varlink.service.InvalidParameter" for reply in replies), (data[:60], replies)
        assert ([reply["parameters"] for reply in good], how) == ([{"values": {"pids.max": "60"}}], "closed"), data[:60]
    assert latency(two, 3) < 6 * SLOW
    assert level.said().count("\n") == 1


@pytest.mark.parametrize("kind", KINDS[:2])
def test_the_guest_ends_in_mid_request(start: Start, broker: Broker, kind: str) -> None:
    """Killed while its processes ask for all kinds of things: level 1's broker goes on, what it listened on has gone,
    "two" notices nothing, and a new guest of that name is served, without what the old one had."""
    level, one, two = pair(start, kind)
    said, others = broker.said(), beside(level, "one")
    calls = [
        ("Create", {"group": "a/b/c", "parents": True, "settings": {"pids.max": "9", "memory.max": "16M"}}),
        ("Devices", {"group": "a", "only": [NULL]}), ("Attach", {"group": "a/b/c", "pids": [0]}),
        ("Freeze", {"group": "b"}), ("React", {"reaction": {"group": "a", "on": "oom", "action": "kill"}}),
        ("List", {"recursive": True}), ("Attach", {"group": "init", "pids": [0]}),
        ("Remove", {"group": "a", "recursive": True}),
    ]  # fmt: skip
    for _ in range(4 if SLOW == 1 else 1):
        run(one, f"""
def body():
    exchange(frame("Create", {{"group": "b"}}))
    stream = open_one()
    stream.sendall(frame("Events", more=True))
    while True:
        for method, parameters in {calls!r}:
            try:
                exchange(frame(method, parameters))
            except OSError:
                pass
children(6, body)
time.sleep(0.3)
""")  # fmt: skip
        level.end("one")
        wait_for(lambda: [row["name"] for row in level.ask("Guests")["guests"]] == ["two"], "it to notice")
        assert level.guest.shell("ls /run/nestrt/broker") == "two"
        assert latency(two, 5) < 6 * SLOW
        assert (beside(level, "one"), broker.said()) == (others, said)
        one = level.launch("one", *INNER, *(NONE if kind.endswith("none") else ()))
        assert [group["name"] for group in one.call("List")["groups"]] == ["/", "/init"]
        assert one.call("Reactions") == {"reactions": []}


@pytest.mark.parametrize("kind", KINDS[:2])
def test_its_broker_is_killed(start: Start, kind: str) -> None:
    """Meanwhile "one" puts links where its socket was, which lead to files of its own and would to level 1's: the next
    broker serves "two" again, and writes nowhere else."""
    level, one, two = pair(start, kind)
    two.call("Create", group="team/job", parents=True, owner=1000)
    others = beside(level, "one")
    level.stop()
    placed = one.order("shell", command="""
umount -l /run/nestrt/guest.sock && rm -r /run/nestrt && mkdir /mnt/away && ln -s ../../../../mnt/away /run/nestrt""")
    level.start()
    wait_for(lambda: answers(two), "the socket in two", 20)
    assert two.call("List", group="team/job", user=1000)["groups"][0]["owner"] == 1000
    if placed["rc"] == 0:
        assert one.shell("ls /mnt/away") == ""
        assert level.guest.shell("ls /mnt") == "agent\none\ntwo"
    else:  # without CAP_SYS_ADMIN nothing is unmounted
        wait_for(lambda: answers(one), "the socket in one", 20)
    assert beside(level, "one") == others


def answers(guest: BrokerGuest) -> bool:
    """Whether the guest's socket does."""
    return bool(guest.python("""
try:
    result = "parameters" in call({"method": "io.nestrt.Guest.Info", "parameters": {}})
except (OSError, TypeError):
    result = False
"""))  # fmt: skip


# Level 1's root, who has all that its broker has.


@pytest.mark.parametrize("kind", KINDS[:2])
def test_what_is_not_for_level_2(start: Start, kind: str) -> None:
    """What only the host's broker may, what only level 1's root may, and sockets of others that level 1 lets it see."""
    level = start(kind.partition("-")[0])
    options = (*INNER, *(NONE if kind.endswith("none") else ()))
    level.launch("two", *options)
    level.guest.shell("mkdir /mnt/sockets; cd /mnt/sockets; touch host above two; chmod 777 .")
    for path, name in (("host.sock", "host"), ("guest.sock", "above"), ("broker/two/guest.sock", "two")):
        level.guest.shell(f"mount --bind /run/nestrt/{path} /mnt/sockets/{name}")
    one = level.launch("one", *options, "--mount", "type=bind,source=/mnt/sockets,target=/mnt")
    limits, others = fence(level.guest.name), beside(level, "one")
    assert error(one, "Rules", rules=["* * /init"]) == "NotPossible"
    calls = [("SetLimits", {"guest": "one", "settings": {"memory.max": "4G"}}), ("Guests", {}), ("Drain", {}),
             ("Release", {"guest": "two"}), ("Audit", {}), ("Serve", {"guest": "x", "cgroup": "/nestrt/x"}),
             ("Rules", {"guest": "two", "rules": ["* * /"]}), ("Describe", {"guest": "two"})]  # fmt: skip
    for method, parameters in calls:
        assert error(one, f"io.nestrt.Host.{method}", **parameters) == "InterfaceNotFound", method
    asked = [("host", f"io.nestrt.Host.{method}", parameters) for method, parameters in calls]
    asked += [("two", method, {"group": group, **more}) for method, more in METHODS for group in ("/", "init", "new")]
    # The host's broker takes root without a user namespace of its own for what it is: root of level 1.
    asked += [("above", method, parameters) for method, parameters in (
        ("Set", {"group": "/", "settings": {"memory.max": "4G"}}), ("Devices", {"group": "/", "only": [DISK]}),
        ("Devices", {"group": "init", "allow": [DISK]}), ("Kill", {"group": "/"}), ("Freeze", {"group": "/"}),
        ("Attach", {"group": "init", "pids": [os.getpid()]}),
        ("Create", {"group": "x", "settings": {"memory.max": "1G"}}),
        ("io.nestrt.Host.SetLimits", {"guest": level.guest.name, "settings": {"memory.max": "4G"}}),
    )]  # fmt: skip
    found = run(one, f"""
result = []
for name, method, parameters in {asked!r}:
    try:
        other = open_one("/mnt/" + name)
        other.sendall(frame(method, parameters))
        other.shutdown(socket.SHUT_WR)
        result.append(all_of(other)[0].decode())
    except OSError as error:
        result.append(type(error).__name__)
""")  # fmt: skip
    for call, reply in zip(asked, found, strict=True):
        assert '"error"' in reply or reply in ("PermissionError", "BrokenPipeError"), (call, reply)
    assert fence(level.guest.name) == limits
    assert beside(level, "one") == others
    assert len(level.ask("Guests")["guests"]) == 2


FORGED = """
import json, os
kinds = {kinds!r}
start = int(open("/proc/1/stat").read().rpartition(")")[2].split()[19])
mark = {{"v": 1, "name": "evil", "id": "0" * 16, "level": 1, "state": "running", "pid": 1, "start": start,
        "broker": "required", "max_level": 9, "max_groups": 10 ** 9, "max_depth": 10 ** 9, "ids": [[0, 0, 4294967295]],
        "view": {{"mount": "rw", "controllers": "all"}}, "partition": {{"cpu": True}}, "runtime": "launch",
        "limits": {{"memory": 1 << 50, "pids": 10 ** 6, "devices": ["a"]}}, "directory": "/run/nestrt/evil"}}
made = []
for base, tops, _ in [*os.walk("/sys/fs/cgroup")]:
    if "cgroup.procs" not in os.listdir(base) or base.count("/") > 5:
        continue
    try:
        if not os.path.exists(base + "/nestrt") or "guest" in base:
            continue
        for path in ("/nestrt/evil", "/nestrt/evil/guest", "/nestrt/evil/guest/init"):
            os.makedirs(base + path, exist_ok=True)
    except OSError:
        continue
    for path, values in (("/nestrt/evil", mark), ("", {{**mark, "level": 0, "name": {name!r}, "pid": {pid}}}),
                         ("/nestrt/one", {{**mark, "name": "one"}}), ("/nestrt/one/guest", mark)):
        for kind in kinds:
            for name, text in (("nestrt", json.dumps(values)), ("nestrt.lock", "{{"), ("nestrt.owner", "0"),
                               ("nestrt.devices", "a"), ("nestrt.reactions", "x" * 4000), ("nestrt.rules", "[[[")):
                try:
                    os.setxattr(base + path, kind + "." + name, text.encode())
                    made.append([base + path, kind + "." + name])
                except OSError:
                    pass
result = made
"""


@pytest.mark.slow_on_vm(False)
@pytest.mark.parametrize("kind", KINDS)
def test_level_1s_root_forges_marks_and_state(start: Start, broker: Broker, stranger: int, kind: str) -> None:
    """
    G                      its stamp: level 0, a process of the host's, no limit
    ├ nestrt/evil          a guest that is none: process 1, the whole host's ids, all devices
    ├ nestrt/one           what its own broker knows of a guest that is one
    └ /run/nestrt          links and sockets in the place of the broker's

    Both brokers are killed and find all that. The host's serves whom it has served, and gives G what it had.
    """
    level, one, two = pair(start, kind)
    limits, sockets = fence(level.guest.name), sorted(os.listdir("/run/nestrt/broker"))
    mounts = Path("/proc/self/mountinfo").read_text()
    before = {pid: groups_of(pid) for pid in (1, stranger, os.getpid())}
    had = level.guest.call("Info")["limits"]
    level.stop()
    made = level.guest.python(FORGED.format(name="evil", pid=stranger, kinds=["user", "security", "trusted"]))
    assert len({path for path, _ in made}) >= 4, made
    level.guest.shell("""cd /run/nestrt; ln -s / broker/evil; mkdir broker/x broker/x/guest.sock; ln -s /mnt evil
ln -sf /etc/passwd host.sock; mkfifo guest.lock 2>/dev/null; ln -sfn /proc/1/root broker/link; true""")
    broker.restart()
    assert sorted(os.listdir("/run/nestrt/broker")) == sockets
    assert [row["name"] for row in broker.call("Guests")["guests"]] == [level.guest.name]
    wait_for(lambda: answers(level.guest), "the socket in level 1", 20)
    level.start()
    assert "description" in broker.call("Describe", guest=level.guest.name)
    # By its own broker, and by that of the host, for groups that it says are a guest's.
    asked: list[tuple[str, dict[str, Any]]] = [
        ("SetLimits", {"settings": {"memory.max": "1T", "pids.max": "100000", "cpuset.cpus": "0-1023"}}),
        ("SetLimits", {"settings": {}, "devices": ["a"]}), ("SetLimits", {"settings": {}, "devices": [DISK]}),
        ("Rules", {"rules": ["* * /"]}), ("Describe", {}), ("Serve", {"cgroup": "/../../../nestrt/evil"}),
        ("Serve", {"cgroup": "/nestrt/.."}), ("Serve", {"cgroup": "/"}), ("Serve", {"cgroup": "nestrt/evil"}),
        ("Release", {}),
    ]  # fmt: skip
    for name in ("evil", "one", level.guest.name, "../evil", "x"):
        for method, parameters in asked:
            with suppress(Refused):
                level.ask(method, guest=name, **parameters)
    for group in ("/", "nestrt/evil", "nestrt/evil/guest", "nestrt/one", "nestrt/one/guest", "init"):
        for words in ({"only": [DISK]}, {"allow": ["a"]}):
            found = error(level.guest, "Devices", group=group, **words)
            assert found in ("BadValue", "NotPossible", "NotPermitted", "Locked", "NotFound"), (group, found)
        found = error(level.guest, "Set", group=group, settings={"memory.max": "1T"})
        assert found in ("BadValue", "NotPossible", "NotPermitted", "Locked", "NotFound"), (group, found)
        for number in (stranger, os.getpid()):
            found = error(level.guest, "Attach", group=group, pids=[number])
            assert found in ("NotFound", "NotPossible", "Locked"), group
    assert fence(level.guest.name) == limits
    now = level.guest.call("Info")["limits"]
    assert {key: limit["value"] for key, limit in now.items()} == {key: limit["value"] for key, limit in had.items()}
    assert {pid: groups_of(pid) for pid in before} == before
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert all(map(no_disk, (level.guest, one, two)))
