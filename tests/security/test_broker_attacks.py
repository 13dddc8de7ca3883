"""Guests against the broker: what they send, how they send it, who they say they are, and each other.

    host                 nestrt broker
    ├ /nestrt/A          attacks: its root, its users 1000 and 1001, and processes of theirs in all places
    └ /nestrt/B          is served all the while as if nobody else was there, and nothing of it changes
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from nestrt.broker import idl
from nestrt.broker.groups import MOST_GROUPS, MOST_KEYS
from support.broker import Broker, BrokerGuest, Refused, opened, running, settled, start_guest
from support.broker_calls import GUEST, any_call, wrong_values
from support.guests import MODES, nested
from support.hostside import groups, has_v1, hierarchies, limit_group, processes
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, wait_for

LIMITS = ("-m", "256M", "--pids", "200")
PRIVILEGED = MODES["root"]
SOCKET = "/run/nestrt/guest.sock"
Start = Callable[..., BrokerGuest]

# In the guest: what comes back for bytes, until the broker closes or is silent for a while; and many processes at once.
TOOLS = """
import array, json, os, signal, socket, sys, time

def open_one(path="/run/nestrt/guest.sock", patience=10):
    one = socket.socket(socket.AF_UNIX)
    one.connect(path)
    one.settimeout(patience)
    return one

def all_of(one):
    found = b""
    try:
        while chunk := one.recv(65536):
            found += chunk
    except OSError as error:
        return found, type(error).__name__
    return found, "closed"

def exchange(data, shut=True):
    one = open_one()
    try:
        one.sendall(data)
        if shut:
            one.shutdown(socket.SHUT_WR)
    except BrokenPipeError:
        pass
    found, how = all_of(one)
    one.close()
    return [json.loads(frame) for frame in found.split(b"\\0")[:-1]], how

def frame(method, parameters=None, **flags):
    method = method if "." in method else "io.nestrt.Guest." + method
    return json.dumps({"method": method, "parameters": parameters or {}, **flags}).encode() + b"\\0"

def children(number, body, user=0):
    found = []
    for _ in range(number):
        pid = os.fork()
        if pid:
            found.append(pid)
            continue
        try:
            if user:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            body()
        except BaseException:
            pass
        finally:
            os._exit(0)
    return found

def end(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running() as one:
        yield one


@pytest.fixture
def start(broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> Start:
    """Start a guest with more options; named like the test's own."""
    if broker.process is None:
        broker.start()
    return lambda *options: start_guest(nestrt, python, new_guest(), *LIMITS, *options)


@pytest.fixture
def quiet(broker: Broker, start: Start) -> Iterator[Broker]:
    """The broker; at the end it has said nothing more than before, and has no more descriptors."""
    said, before = broker.said(), descriptors(broker)
    yield broker
    assert broker.said() == said
    wait_for(lambda: descriptors(broker) <= before + 60, "its connections to end", 40)


def run(guest: BrokerGuest, code: str, user: int = 0) -> Any:
    """Run Python in the guest, with TOOLS."""
    return guest.python(TOOLS + code, user)


def descriptors(broker: Broker) -> int:
    assert broker.process is not None
    return len(os.listdir(f"/proc/{broker.process.pid}/fd"))


def resident(broker: Broker) -> int:
    """Its memory, in MiB."""
    assert broker.process is not None
    rows = Path(f"/proc/{broker.process.pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) // 1024 for row in rows if row.startswith("VmRSS"))


def cpu_time(broker: Broker) -> float:
    """Seconds of CPU that it has used, all threads together."""
    assert broker.process is not None
    fields = Path(f"/proc/{broker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def latency(guest: BrokerGuest, calls: int = 20) -> float:
    """Seconds that the slowest of some small calls takes."""
    found = run(guest, f"""
one = open_one(patience=60)
result = 0
for _ in range({calls}):
    began = time.monotonic()
    one.sendall(frame("Get", {{"group": "/", "keys": ["pids.max"]}}))
    assert b'"values"' in one.recv(65536)
    result = max(result, time.monotonic() - began)
one.close()
""")  # fmt: skip
    return float(found)


def group_dirs(name: str) -> list[str]:
    return sorted(str(path) for top in groups(limit_group(name)) for path in [top, *top.rglob("*")] if path.is_dir())


# What a group's files say that changes by itself.
MOVING = (
    "stat", "usage", "current", "pressure", "failcnt", "events", "peak", "time", "procs", "tasks", "threads", "local",
    "service", "serviced", "merged", "queued", "recursive", "slabinfo", "idle", "freezing",
)  # fmt: skip


def everything(name: str) -> dict[str, str]:
    """All that the host can read of a guest's groups, but for use and counters: files, owners, modes, attributes."""
    found = {}
    for path in map(Path, group_dirs(name)):
        status = path.stat()
        found[str(path)] = f"{status.st_uid}:{status.st_gid} {status.st_mode:o} {status.st_ino}"
        for attribute in os.listxattr(path):
            found[f"{path} {attribute}"] = os.getxattr(path, attribute).decode(errors="replace")
        for file in path.iterdir():
            if file.is_dir() or any(word in file.name.replace("_", ".").split(".") for word in MOVING):
                continue
            try:
                found[str(file)] = f"{file.stat().st_uid} {file.read_text()}"
            except OSError:
                continue
    return found


# Bytes.


def test_bytes_that_are_no_call(start: Start, quiet: Broker) -> None:
    """Each ends its connection, with one error at most; the next one is served."""
    guest = start()
    bad = [
        b"\0", b"\0" * 50_000, b"x\0", b"{}\0", b"[]\0", b"null\0", b"\xff\xfe\0", b'{"method":1}\0', b'{"method":"\xc3"}\0',
        b'{"method":"io.nestrt.Guest.Info","parameters":[]}\0', b"[" * 60_000 + b"\0", b'{"a":' * 13_000 + b"\0",
        b'{"method":"io.nestrt.Guest.Info","parameters":{"x":' + b"9" * 60_000 + b"}}\0", b"x" * 200_000, b" " * 70_000 + b"\0",
        b'{"method":"io.nestrt.Guest.Info","upgrade":true}\0', b'{"method":"io.nestrt.Guest.Info","more":1}\0',
        b'{"method":"io.nestrt.Guest.Info","oneway":1.0}\0', b'{"method":"io.nestrt.Guest.Info","parameters":{"x":NaN}}\0',
    ]  # fmt: skip
    answers = run(guest, f"""
result = []
for data in {bad!r}:
    result.append(exchange(data))
    result.append(exchange(frame("Get", {{"group": "/", "keys": ["pids.max"]}})))
""")  # fmt: skip
    for data, (replies, _), (good, how) in zip(bad, answers[::2], answers[1::2], strict=True):
        assert len(replies) <= 1, (data[:60], replies)
        assert all(one["error"] == "org.varlink.service.InvalidParameter" for one in replies), (data[:60], replies)
        assert ([one["parameters"] for one in good], how) == ([{"values": {"pids.max": "200"}}], "closed"), data[:60]


def test_cut_and_pipelined(start: Start) -> None:
    """Calls in one segment are answered in order; one that is cut anywhere is one call; who has shut his side gets what
    he asked for before that, and who has gone is no matter."""
    guest = start()
    replies, cut, half, gone = run(guest, """
get = frame("Get", {"group": "/", "keys": ["pids.max"]})
many = b"".join(get if n % 2 else frame("Nothing" + str(n)) for n in range(200))
replies, _ = exchange(many)
one = open_one()
for byte in get:
    one.sendall(bytes([byte]))
cut = one.recv(65536).decode()
one.close()
half = exchange(get + get[:-3])
for left in range(1, len(get)):
    one = open_one()
    one.sendall(get[:left])
    one.close()
one = open_one()
one.sendall(frame("Create", {"group": "late"}) * 3)
one.close()
result = replies, cut, half, exchange(get)[0]
""")  # fmt: skip
    assert [one.get("error", "") for one in replies[:4]] == ["org.varlink.service.MethodNotFound", "", *2 * [
        "org.varlink.service.MethodNotFound", ""]][:4]  # fmt: skip
    assert len(replies) == 200
    assert [one["parameters"]["method"] for one in replies[::2]] == [f"io.nestrt.Guest.Nothing{n}" for n in range(0, 200, 2)]
    assert json.loads(cut[:-1])["parameters"]["values"] == {"pids.max": "200"}
    assert (len(half[0]), half[1]) == (1, "closed")
    assert len(gone) == 1


def test_no_wrong_type_gets_further_than_the_interface(start: Start, quiet: Broker) -> None:
    """Each parameter of each method, with values of all other types, and with one that there is not."""
    guest = start()
    guest.call("Create", group="web", settings={"pids.max": "10"})
    before, calls = everything(guest.name), []
    for method, struct in GUEST.methods.items():
        calls += [(method, {"surplus": 1}), (method, {"group": "web", "\x1b]0;x": None})]
        for name, kind in struct.fields:
            calls += [(method, {name: value}) for value in wrong_values(kind) if value != float("inf")]
    frames = [json.dumps({"method": f"io.nestrt.Guest.{method}", "parameters": values}) for method, values in calls]
    replies = run(guest, f"""
result = []
frames = [text.encode() + b"\\0" for text in {frames!r}]
for n in range(0, len(frames), 50):
    result += exchange(b"".join(frames[n:n + 50]))[0]
""")  # fmt: skip
    assert len(replies) == len(calls)
    for call, reply in zip(calls, replies, strict=True):
        assert reply.get("error") == "org.varlink.service.InvalidParameter", (call, reply)
    assert everything(guest.name) == before


def test_more_oneway_and_both(start: Start, quiet: Broker) -> None:
    """A call that is no stream has one reply whatever it wants; oneway has none, done or refused."""
    guest = start()
    replies, how = run(guest, """
data = b""
for flags in ({}, {"more": True}, {"oneway": True}, {"more": True, "oneway": True}, {"more": False, "oneway": False}):
    data += frame("Get", {"group": "/", "keys": ["pids.max"]}, **flags)
    data += frame("Get", {"group": "/nothing"}, **flags)
    data += frame("Create", {"group": f"web{len(flags)}{len(data)}"}, **flags)
result = exchange(data)
""")  # fmt: skip
    assert [one.get("error", "").rpartition(".")[2] for one in replies] == ["", "NotFound", ""] * 3
    assert not any("continues" in one for one in replies)
    assert len(guest.call("List")["groups"]) == 2 + 5
    assert guest.refused("Events").error == "ExpectedMore"
    assert guest.refused("org.varlink.service.GetInfo.GetInfo").error == "MethodNotFound"
    assert guest.refused("io.nestrt.Host.Guests").error == "InterfaceNotFound"


# Load.


def test_a_stream_is_not_a_place_to_keep_calls(start: Start, quiet: Broker) -> None:
    """Whoever has a stream may send one call more, which waits; not a hundred megabytes of them."""
    guest = start()
    before = resident(quiet)
    sent, answered = run(guest, """
one = open_one()
one.sendall(frame("Events", more=True))
time.sleep(0.2)
one.settimeout(10)
sent = 0
try:
    while sent < 100 << 20:
        sent += one.send(frame("Get", {"group": "/"}) * 1000)
except OSError:
    pass
result = sent, exchange(frame("Info"))[0][0]["parameters"]["name"]
""")  # fmt: skip
    assert sent < 2 << 20
    assert answered == guest.name
    assert resident(quiet) < before + 8


def test_streams_that_are_closed_are_no_mistake_of_the_brokers(start: Start, quiet: Broker) -> None:
    """Nothing is told of them in the journal, which anybody could fill so (the fixture looks)."""
    guest = start()
    run(guest, """
for n in range(20):
    one = open_one()
    one.sendall(frame("Events", {"kinds": ["created"]}, more=True))
    time.sleep(0.02)
    one.close()
""")  # fmt: skip
    settled()


def test_replies_that_nobody_reads(start: Start, quiet: Broker) -> None:
    """A large reply, wanted on every connection that there may be and read on none: the broker keeps some megabytes,
    and serves all others; so it does with calls of which a byte comes now and then."""
    guest, other = start(), start()
    place = next(h.mountpoint for h in hierarchies())
    names = [f"{n:03}" + "é" * 120 for n in range(300)]
    run(guest, f"for name in {names!r}: os.mkdir('{place}/' + name)")
    before = resident(quiet)
    run(guest, """
slow = [open_one() for _ in range(60)]
for one in slow[:30]:
    one.sendall(frame("List", {"recursive": True}) * 40)
for one in slow[30:]:
    one.sendall(b"{")
held["slow"] = slow
""")  # fmt: skip
    for _ in range(3):
        assert latency(other) < 2 * SLOW
        run(guest, "for one in held['slow'][30:]: one.sendall(b' ')")
    assert run(guest, "result = len(exchange(frame('List', {'recursive': True}))[0][0]['parameters']['groups'])") == 302
    assert resident(quiet) < before + 64
    run(guest, f"[one.close() for one in held['slow']]\nfor name in {names!r}: os.rmdir('{place}/' + name)")


def test_a_thousand_connections(start: Start, quiet: Broker) -> None:
    """Of one user: 16 are held, and root of the same guest gets in. Of root: 64. Other guests notice nothing."""
    guest, other = start(), start()
    before = descriptors(quiet)
    for user, most in ((1000, 16), (0, 64)):
        held, refused = run(guest, """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
many, refused = [], 0
for n in range(1000):
    one = open_one()
    try:
        one.sendall(frame("Get", {"group": "/", "keys": ["pids.max"]}))
        reply = one.recv(65536)
    except OSError:
        reply = b""
    if b"values" in reply:
        many.append(one)
    else:
        refused += 1
        one.close()
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(read)
    time.sleep(100000)
    os._exit(0)
result = len(many), refused
for one in many:
    one.close()
open("/tmp/holder", "w").write(str(pid))
""", user)  # fmt: skip
        assert (held, refused) == (most, 1000 - most)
        if user:
            assert guest.call("Get", group="/", keys=["pids.max"])["values"] == {"pids.max": "200"}
        assert latency(other) < 2 * SLOW
        assert descriptors(quiet) <= before + 3 * 64
        guest.shell("kill -9 $(cat /tmp/holder); rm /tmp/holder")
    wait_for(lambda: guest.call("Info")["quota"]["connections_used"] == 1, "the connections to end")


FLOODS = {
    "connections": "one = open_one(); one.close()",
    "garbage": "one = open_one(); one.sendall(b'{\"a\":[' + b'[],' * 20000 + b'\\0'); one.recv(100); one.close()",
    "nothing but NULs": "one = open_one(); one.sendall(bytes(100000)); one.close()",
    "calls that nobody waits for": "one = open_one(); one.sendall(frame('Set', {'group': 'web', 'settings': {"
                                   "'pids.max': '9'}}, oneway=True) * 300); one.close()",
    "streams": "one = open_one(); one.sendall(frame('Events', more=True)); one.close()",
}  # fmt: skip


@pytest.mark.parametrize("user", [0, 1000])
def test_floods(start: Start, broker: Broker, user: int) -> None:
    """Eight processes of A do nothing else; B, and root of A, are served."""
    guest, other = start(), start()
    guest.call("Create", group="web", owner=1000)
    said, before, memory = broker.said(), descriptors(broker), resident(broker)
    for body in FLOODS.values():
        run(guest, f"""
def body():
    while True:
        try:
            {body}
        except OSError:
            pass
held["flood"] = children(8, body, {user})
""")  # fmt: skip
        assert latency(other) < 3 * SLOW
        if user:
            assert "values" in str(run(guest, 'result = exchange(frame("Get", {"group": "/", "keys": ["pids.max"]}))'))
        run(guest, 'end(held.pop("flood"))')
    assert broker.said() == said
    wait_for(lambda: descriptors(broker) <= before + 20, "the connections to end", 40)
    assert resident(broker) < memory + 32


def test_long_calls_count_as_many(start: Start) -> None:
    """64 KiB of JSON take the broker's time, wanted or not: of such calls it reads 60 a second, not 1,000."""
    guest = start()
    replies, seconds = run(guest, """
data = b'{"method":"io.nestrt.Guest.Get","parameters":{"group":"/","keys":["pids.max"]},"x":"' + b"x" * 60000 + b'"}\\0'
began, ones, replies = time.monotonic(), [open_one(patience=0.01) for _ in range(30)], 0
for one in ones:
    one.sendall(data)
while time.monotonic() < began + 3:
    for one in ones:
        try:
            if one.recv(65536):
                replies += 1
                one.settimeout(10)
                one.sendall(data)
                one.settimeout(0.01)
        except TimeoutError:
            pass
result = replies, time.monotonic() - began
""")  # fmt: skip
    assert replies <= (seconds * 1000 + 250) / 15 + 30


def test_nobody_asks_for_work_without_end(start: Start, broker: Broker) -> None:
    """One call with a thousand keys, a list of CPUs that is a million numbers long, a name a thousand groups deep: each
    is refused before it is work."""
    guest, other = start(), start()
    guest.call("Create", group="web")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("Get", {"group": "/", "keys": ["io.max"] * 4000}),
        ("Get", {"group": "/", "keys": [f"memory.{n}" for n in range(MOST_KEYS + 1)]}),
        ("Set", {"group": "web", "settings": {"cpuset.cpus": ",".join(["0-99999"] * 500)}}),
        ("Set", {"group": "web", "settings": {"cpuset.mems": ",".join(["0-9999"] * 500)}}),
        ("Create", {"group": "new", "settings": {"cpuset.cpus": ",".join(["0-99999"] * 500)}}),
        ("Create", {"group": "a/" * 2000, "parents": True}),
        ("Get", {"group": "a/" * 2000}),
        ("Set", {"group": "web", "settings": {f"pids.max{n}": "1" for n in range(3000)}}),
    ]
    began = cpu_time(broker)
    for method, parameters in calls:
        found = guest.refused(method, **parameters)
        assert found.error in ("BadValue", "QuotaExceeded", "NotFound"), (method, found)
    assert cpu_time(broker) - began < 1.5 * SLOW
    assert latency(other) < SLOW


def test_users_do_not_keep_root_waiting(start: Start) -> None:
    """
    user 1000      sixteen connections, each with a call that takes a while
    root           one call, sent after those: it waits for one of them, not for sixteen
    """
    guest = start()
    guest.call("Create", group="team", owner=1000)
    guest.call("Create", user=1000, group="team/job")
    guest.call("Attach", group="team", pids=[0])
    number = 512 if SLOW == 1 else 64
    done = run(guest, f"""
def body():
    ones = [open_one(patience=300) for _ in range(16)]
    for one in ones:
        one.sendall(frame("Attach", {{"group": "team/job", "pids": [0] * {number}}}))
    for n, one in enumerate(ones):
        one.recv(65536)
        open("/tmp/done", "a").write(".")
open("/tmp/done", "w").close()
os.chmod("/tmp/done", 0o666)
pids = children(1, body, 1000)
time.sleep(0.3)
one = open_one(patience=300)
one.sendall(frame("Set", {{"group": "team", "settings": {{"pids.max": "50"}}}}))
assert b"error" not in one.recv(65536)
result = os.path.getsize("/tmp/done")
end(pids)
""")  # fmt: skip
    assert done <= 4


# Descriptors and connections that are handed on.


def test_descriptors_that_are_sent_along_are_dropped(start: Start, quiet: Broker) -> None:
    """unix(7), SCM_RIGHTS: whoever receives without room for them has none; the kernel closes them, so the pipe ends."""
    guest = start()
    before = descriptors(quiet)
    ended = run(guest, """
one = open_one()
read, write = os.pipe()
for n in range(20):
    fds = array.array("i", [write] * 250)
    one.sendmsg([frame("Get", {"group": "/", "keys": ["pids.max"]})], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
os.close(write)
found = b""
while found.count(b"\\0") < 20:
    found += one.recv(65536)
result = os.read(read, 1) == b""
held["one"] = one
""")  # fmt: skip
    assert ended is True
    assert descriptors(quiet) <= before + 3


def test_a_connection_is_its_makers(start: Start, scratch: Path) -> None:
    """A passes a connection of its root's to a process of B, and to its own user 1000: both speak with the rights of
    who has connected, as he has given them. B's groups are not what they speak of."""
    place = scratch / "meet"
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    bind = ("--mount", f"type=bind,source={place},target=/mnt")
    guest, other = start(*bind), start(*bind)
    guest.call("Create", group="mark-of-a")
    other.spawn("true")
    pid = run(other, """
def body():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/mnt/meet")
    os.chmod("/mnt/meet", 0o777)
    listener.listen()
    one, _ = listener.accept()
    data, fds, _, _ = socket.recv_fds(one, 10, 1)
    given = socket.socket(fileno=fds[0])
    given.sendall(frame("List"))
    open("/mnt/heard.new", "wb").write(given.recv(65536))
    os.rename("/mnt/heard.new", "/mnt/heard")
result = children(1, body)[0]
""")  # fmt: skip
    wait_for((place / "meet").exists, "the other guest's socket")
    run(guest, """
one = socket.socket(socket.AF_UNIX)
one.connect("/mnt/meet")
mine = open_one()
socket.send_fds(one, [b"."], [mine.fileno()])
mine.close()
""")  # fmt: skip
    wait_for((place / "heard").exists, "what it was told")
    heard = json.loads((place / "heard").read_text()[:-1])
    assert [one["name"] for one in heard["parameters"]["groups"]] == ["/", "/init", "/mark-of-a"]
    run(other, f"end([{pid}])")


@pytest.fixture
def shared(scratch: Path) -> Iterator[Callable[[str], Path]]:
    """A directory for guests in which a socket of the host's is made visible, as a careless admin does it."""
    place = scratch / f"shared-{time.monotonic_ns()}"
    place.mkdir()
    place.chmod(0o777)

    def bind(path: str) -> Path:
        (place / "sock").touch()
        subprocess.run(["mount", "--bind", path, place / "sock"], check=True)
        return place

    yield bind
    subprocess.run(["umount", place / "sock"], check=True)


def test_another_guests_socket_is_for_nobody_else(start: Start, quiet: Broker, shared: Callable[[str], Path]) -> None:
    """B sees A's socket in a directory that both have. Its processes are in no group of A's: refused, with or without a
    user namespace; and a thousand of them cost the broker no thousand descriptors."""
    guest, third = start(), start()
    place = shared(f"/run/nestrt/broker/{guest.name}/guest.sock")
    for mode in (MODES["userns"], PRIVILEGED):
        other = start(*mode, "--mount", f"type=bind,source={place},target=/mnt")
        reply = run(other, """
one = open_one("/mnt/sock")
one.sendall(frame("Create", {"group": "mine"}))
result = all_of(one)[0].decode()
""")  # fmt: skip
        assert json.loads(reply[:-1])["error"] == "io.nestrt.Guest.NotPermitted"
        before = descriptors(quiet)
        run(other, """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held["many"] = []
for _ in range(1000):
    held["many"].append(open_one("/mnt/sock"))
""")  # fmt: skip
        assert descriptors(quiet) < before + 100
        assert latency(third) < 2 * SLOW
        assert guest.call("Get", group="/", keys=["pids.max"])["values"] == {"pids.max": "200"}
        run(other, "[one.close() for one in held.pop('many')]")
    assert [one["name"] for one in guest.call("List")["groups"]] == ["/", "/init"]


@pytest.mark.parametrize("mode", MODES)
def test_the_hosts_socket_is_not_for_guests(
    start: Start, broker: Broker, shared: Callable[[str], Path], mode: str
) -> None:
    """Without a user namespace a guest's root has the number of the host's. It sees the host's socket, and asks there
    for more memory than it was given: law 2."""
    place = shared("/run/nestrt/host.sock")
    guest = start(*MODES[mode], "--mount", f"type=bind,source={place},target=/mnt")
    for method, parameters in (
        ("SetLimits", {"guest": guest.name, "settings": {"memory.max": "4G"}}),
        ("Guests", {}), ("Drain", {}), ("Release", {"guest": guest.name}), ("Audit", {}),
    ):  # fmt: skip
        found = run(guest, f"""
try:
    one = open_one("/mnt/sock")
    one.sendall(frame("io.nestrt.Host.{method}", {parameters!r}))
    result = all_of(one)[0].decode()
except OSError as error:
    result = type(error).__name__
""")  # fmt: skip
        assert "PermissionDenied" in found or found in ("PermissionError", "BrokenPipeError"), (method, found)
    assert guest.call("Get", group="/", keys=["memory.max"])["values"] == {"memory.max": "256M"}
    assert guest.name in [one["name"] for one in broker.call("Guests")["guests"]]


def stopped(broker: Broker, action: Callable[[], Any]) -> Any:
    """*action* while the broker stands still."""
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    try:
        return action()
    finally:
        broker.process.send_signal(signal.SIGCONT)


NEXT_PID = Path("/proc/sys/kernel/ns_last_pid")


def test_a_number_that_another_process_has_by_now(
    start: Start, broker: Broker, shared: Callable[[str], Path]
) -> None:
    """
    broker      stands still for a moment: it has much to do
    B           a process connects to A's socket, leaves the connection to its child, and ends
    A           a new process gets its number
    broker      asks who it was: that number is in A's group, and its user was root
    """
    guest = start(*PRIVILEGED)
    place = shared(f"/run/nestrt/broker/{guest.name}/guest.sock")
    other = start(*PRIVILEGED, "--mount", f"type=bind,source={place},target=/mnt")

    def hand_on() -> bool:
        inside = run(other, """
read, write = os.pipe()
def body():
    one = open_one("/mnt/sock", 60)
    one.sendall(frame("Create", {"group": "stolen"}))
    if os.fork():
        return
    os.write(write, all_of(one)[0] or b"nothing")
pid = os.fork()
if pid == 0:
    body()
    os._exit(0)
while open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z":
    time.sleep(0.001)
held["read"] = read
held["pid"] = pid
os.close(write)
result = pid
""")  # fmt: skip
        outside = next(pid for pid in processes(limit_group(other.name)) if numbers(pid)[-1:] == [inside])
        run(other, "os.waitpid(held['pid'], 0)")
        NEXT_PID.write_text(str(outside - 1))
        guest.spawn("exec sleep 100")
        return outside in processes(limit_group(guest.name))

    for _ in range(50):
        taken = stopped(broker, hand_on)
        reply = run(other, "result = os.read(held['read'], 65536).decode(); os.close(held['read'])")
        assert "NotPermitted" in reply or reply == "nothing", reply
        if taken:
            break
    else:
        raise AssertionError("the number went to others, fifty times")
    assert [one["name"] for one in guest.call("List")["groups"]] == ["/", "/init"]


def numbers(pid: int) -> list[int]:
    """The process's numbers, the host's first; [] where it has gone."""
    try:
        rows = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return next(([int(word) for word in row.split()[1:]] for row in rows if row.startswith("NSpid:")), [])


# Who may.

OWN, ABOVE, OTHER, ROOT = "/team", "/", "/other", "/init"
# Method, parameters besides the group, and the groups of which user 1000 may have it done: /team is his, /team/job in it,
# /other is 1001's.
RIGHTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("List", {}, ("/", "/init", "/team", "/team/job", "/other")),
    ("Get", {}, ("/", "/init", "/team", "/team/job", "/other")),
    ("Set", {"settings": {"pids.max": "20"}}, ("/team/job",)),
    ("Set", {"settings": {"memory.oom.group": "0"}}, ()),
    ("Devices", {"only": ["c 1:3 rwm"]}, ("/team/job",)),
    ("Devices", {"deny": ["c 1:5 rwm"]}, ("/team/job",)),
    ("Devices", {"inherit": True}, ("/team/job",)),
    ("Freeze", {}, ("/team", "/team/job")),
    ("Thaw", {}, ("/team", "/team/job")),
    ("Kill", {"signal": 19}, ("/team", "/team/job")),
    ("Kill", {}, ("/team", "/team/job")),
    ("Attach", {"pids": [1]}, ()),
    ("React", {"on": "pressure", "action": "kill", "threshold": "some 1000000 2000000"}, ("/team", "/team/job")),
    ("Forget", {"on": "pressure"}, ("/team", "/team/job")),
    ("Create", {"new": True}, ("/team", "/team/job")),
    ("Remove", {}, ("/team/job",)),
]


@pytest.mark.parametrize("view", ["rw", "none"])
def test_every_method_asks_who_owns_the_group(start: Start, tmp_path: Path, view: str) -> None:
    """
    /             root's                user 1000 as himself, and as uid 0 of a user namespace of his own
    ├ init        root's
    ├ team        1000's: all below is his to limit and remove, it itself to divide, stop and end
    │ └ job
    └ other       1001's
    """
    path = tmp_path / "policy.toml"
    path.write_text(f'[level]\nbroker = "required"\n[view]\nmount = "{view}"\n')
    guest = start("--policy", str(path))
    for who in ("himself", "as root of a namespace of his own"):
        for name, owner in (("team", 1000), ("team/job", 1000), ("other", 1001)):
            guest.call("Create", group=name, owner=owner)
        before = everything(guest.name)
        for method, parameters, allowed in RIGHTS:
            for group in ("/", "/init", "/other", "/team", "/team/job"):
                values = {"group": group, **parameters}
                if method == "Create":
                    values = {"group": f"{group.rstrip('/')}/new"}
                elif method == "React":
                    values = {"reaction": values}
                reply = ask_as(guest, who, method, values)
                error = reply.get("error", "").rpartition(".")[2]
                if group in allowed:
                    assert error in ("", "NotFound", "NotPossible"), (who, method, group, reply)
                else:
                    assert error in ("NotPermitted", "NotPossible", "BadValue", "Busy"), (who, method, group, reply)
                if method == "Create" and not error:
                    guest.call("Remove", group=values["group"])
        refused = ask_as(guest, who, "Rules", {"rules": ["* * /team/job"]})
        assert refused["error"].endswith("NotPermitted")
        after = everything(guest.name)
        mine = ("/guest/team",)
        changes = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert not [key for key in changes if not any(word in key for word in mine)], who
        assert not [key for key in changes if "/guest/team/" not in key and key.endswith(("max", "cpus", "mems"))], who
        for name in ("team", "other"):
            guest.call("Remove", group=name, recursive=True)


def ask_as(guest: BrokerGuest, who: str, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The reply to a call of user 1000."""
    namespace = "" if who == "himself" else """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000):
    raise OSError(ctypes.get_errno(), "unshare")
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write("0 1000 1")
open("/proc/self/gid_map", "w").write("0 1000 1")
assert os.getuid() == 0
"""
    found: dict[str, Any] = run(guest, f"""{namespace}
result = exchange(frame({method!r}, {parameters!r}))[0][0]
""", user=1000)  # fmt: skip
    return found


def test_who_asks_is_who_has_connected(start: Start) -> None:
    """A process that gives up root, or takes it by a setuid program, is on each connection who it was when it connected
    (unix(7), SO_PEERCRED)."""
    guest = start()
    guest.call("Create", group="team", owner=1000)
    before, after = run(guest, """
read, write = os.pipe()
def body():
    first = open_one()
    os.setresgid(1000, 1000, 1000)
    os.setresuid(1000, 1000, 1000)
    second = open_one()
    found = []
    for one in (first, second):
        one.sendall(frame("Create", {"group": f"new{len(found)}"}))
        found.append(one.recv(65536).decode()[:-1])
    os.write(write, json.dumps(found).encode())
pids = children(1, body)
result = json.loads(os.read(read, 65536))
end(pids)
""")  # fmt: skip
    assert "error" not in before
    assert "NotPermitted" in after


@pytest.mark.v1
def test_a_group_that_is_only_partly_somebodys(start: Start) -> None:
    """Root gives 1000 one directory of a group by its own hand, in one hierarchy; 1000 writes in an attribute of that
    what the broker writes for owners. The group stays root's in all others."""
    guest = start()
    guest.call("Create", group="part", settings={"memory.max": "64M"})
    for hierarchy in hierarchies():
        directory = f"{hierarchy.mountpoint}/part"
        if guest.order("shell", command=f"test -d {directory}")["rc"]:
            continue
        guest.shell(f"chown 1000 {directory}")
        run(guest, f"""
for name in ("user.nestrt.owner", "trusted.nestrt.owner"):
    try:
        os.setxattr({directory!r}, name, b"1000")
    except OSError:
        pass
""", user=1000)  # fmt: skip
        assert guest.refused("Create", user=1000, group="part/new").error == "NotPermitted", directory
        assert guest.refused("Freeze", user=1000, group="part").error == "NotPermitted", directory
        guest.shell(f"chown 0 {directory}")
        run(guest, f"os.removexattr({directory!r}, 'user.nestrt.owner')")


@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_nobody_is_no_owner(start: Start, mode: str) -> None:
    """(uid_t)-1 means "as it is" to chown(2), 65536 is nobody here; no group is left of the attempt."""
    guest = start(*MODES[mode])
    for owner in ((1 << 32) - 1, 1 << 32, -1, idl.LARGEST, idl.SMALLEST, *([65536] if mode == "userns" else [])):
        found = guest.refused("Create", group="web", owner=owner)
        assert found.error == "BadValue", (owner, found)
    assert [one["name"] for one in guest.call("List")["groups"]] == ["/", "/init"]


# Races, and ends.


@pytest.mark.parametrize("mode", ["userns", "root"])
def test_groups_that_change_under_the_brokers_hands(start: Start, quiet: Broker, mode: str) -> None:
    """Processes of A's root make, remove and (v1) rename groups by hand while others have the broker do the same."""
    guest, other = start(*MODES[mode]), start()
    before = everything(other.name)
    places = [str(h.mountpoint) for h in hierarchies()]
    errors = run(guest, f"""
places = {places!r}
stop = time.monotonic() + 2
def by_hand():
    n = 0
    while time.monotonic() < stop:
        n += 1
        for place in places:
            for call, names in ((os.mkdir, ("x",)), (os.mkdir, ("x/y",)), (os.rename, ("x", "z")), (os.rename, ("z", "x")),
                                (os.rmdir, ("x/y",)), (os.rmdir, ("x",)), (os.rmdir, ("z/y",)), (os.rmdir, ("z",))):
                try:
                    call(*[f"{{place}}/{{name}}" for name in names])
                except OSError:
                    pass
def by_call():
    one = open_one(patience=60)
    n = 0
    while time.monotonic() < stop:
        n += 1
        for method, values in (("Create", {{"group": "x/y", "parents": True, "settings": {{"pids.max": "5"}}}}),
                               ("Set", {{"group": "x", "settings": {{"memory.max": "16M", "pids.max": "7"}}}}),
                               ("Create", {{"group": "x/o", "owner": 1000}}), ("List", {{"recursive": True}}),
                               ("Devices", {{"group": "x", "only": ["c 1:3 rwm"]}}), ("Freeze", {{"group": "x"}}),
                               ("Thaw", {{"group": "x"}}), ("Remove", {{"group": "x", "recursive": True, "kill": True}})):
            one.sendall(frame(method, values))
            found = b""
            while not found.endswith(b"\\0"):
                found += one.recv(65536)
            reply = json.loads(found[:-1])
            if "error" in reply:
                open("/tmp/errors", "a").write(reply["error"].rpartition(".")[2] + " " + str(reply["parameters"]) + "\\n")
open("/tmp/errors", "w").close()
pids = children(2, by_hand) + children(2, by_call)
for pid in pids:
    os.waitpid(pid, 0)
result = open("/tmp/errors").read().splitlines()
""")  # fmt: skip
    assert not [line for line in errors if "bug of nestrt" in line]
    assert everything(other.name) == before
    for name in ("x", "z"):
        if any(one["name"] == f"/{name}" for one in guest.call("List")["groups"]):
            guest.call("Remove", group=name, recursive=True, kill=True)
    assert [one["name"] for one in guest.call("List", recursive=True)["groups"]] == ["/", "/init"]


def test_more_groups_than_anybody_needs(start: Start, broker: Broker) -> None:
    """By asking, as many as the policy allows; by hand in v1's hierarchies as many as it likes, and then a list of them
    all is too long, while all else goes on."""
    guest, other = start(), start()
    place = next((h.mountpoint for h in hierarchies() if h.version == 1), None)
    number, memory = MOST_GROUPS + 50, resident(broker)
    if place and SLOW == 1:
        run(guest, f"for n in range({number}): os.mkdir('{place}/g' + str(n))")
        assert guest.refused("List").error == "QuotaExceeded"
        assert guest.refused("List", recursive=True).error == "QuotaExceeded"
        assert guest.call("Get", group="g0")["values"]
        assert latency(other) < 2
        guest.call("Create", group="web")
        guest.call("Remove", group="web")
        assert resident(broker) < memory + 32
        run(guest, f"for n in range({number}): os.rmdir('{place}/g' + str(n))")
    made = run(guest, """
frames = b"".join(frame("Create", {"group": f"g{n}"}) for n in range(20))
result = 0
while True:
    replies = exchange(frames.replace(b"g", b"h%d" % result) if False else b"".join(
        frame("Create", {"group": f"g{result + n}"}) for n in range(20)))[0]
    good = sum("error" not in one for one in replies)
    result += good
    if good < 20 or result >= 60:
        break
""") if SLOW > 1 else run(guest, """
result = 0
while True:
    replies = exchange(b"".join(frame("Create", {"group": f"g{result + n}"}) for n in range(100)))[0]
    good = sum("error" not in one for one in replies)
    result += good
    if good < 100:
        assert all(one["error"].endswith("QuotaExceeded") for one in replies if "error" in one), replies
        break
""")  # fmt: skip
    assert made == 998 if SLOW == 1 else made >= 60


def test_a_guest_that_stands_still(start: Start, broker: Broker) -> None:
    """Its agent is frozen, by the host's hand as by its own, with a call half sent and a reply not taken: others are
    served, and it is removed as any other."""
    guest, other = start(), start()
    run(guest, """
held["half"] = open_one()
held["half"].sendall(b'{"method":"io.nestrt.Guest.Get","par')
held["unread"] = open_one()
held["unread"].sendall(frame("List") * 100)
""")  # fmt: skip
    freezer = next((h for h in hierarchies() if "freezer" in h.controllers), None)
    place = freezer or next(h for h in hierarchies() if h.version == 2)
    file = place.group(f"{limit_group(guest.name)}/guest/init") / ("freezer.state" if freezer else "cgroup.freeze")
    file.write_text("FROZEN" if freezer else "1")
    assert latency(other) < 2 * SLOW
    assert guest.name in [one["name"] for one in broker.call("Guests")["guests"]]
    file.write_text("THAWED" if freezer else "0")
    assert guest.call("Info")["name"] == guest.name
    guest.call("Create", group="cell")
    pid = guest.spawn("exec sleep 1000")
    guest.call("Attach", group="cell", pids=[pid])
    guest.call("Freeze", group="cell")
    guest.call("Kill", group="cell")
    guest.call("Remove", group="cell")
    assert guest.refused("Freeze", group="init").error == "NotPossible"


def test_a_guest_that_ends_itself_in_the_midst(start: Start, broker: Broker) -> None:
    """Its root has the broker kill what runs in its first group, itself; and removes that."""
    guest, other = start(), start()
    assert guest.process.stdin is not None
    line = {"order": "call", "user": 0, "method": "io.nestrt.Guest.Remove",
            "parameters": {"group": "init", "kill": True}}  # fmt: skip
    guest.process.stdin.write(json.dumps(line).encode() + b"\n")
    guest.process.stdin.flush()
    assert guest.process.wait(20 * SLOW) == 137
    wait_for(lambda: guest.name not in str(broker.call("Guests")), "its end")
    assert latency(other) < 2 * SLOW


def test_the_same_name_again_is_another_guest(
    start: Start, broker: Broker, nestrt: Nestrt, python: PythonRoot
) -> None:
    """A is deleted in the midst of its calls, and started again at once by the same name: nothing of the former serves
    the new one, no owner, no rule, no reaction, no connection; and no descriptor of it stays with the broker."""
    guest = start()
    name, before = guest.name, descriptors(broker)
    for _ in range(3 if SLOW == 1 else 1):
        guest.call("Create", group="team", owner=1000, settings={"memory.max": "32M"})
        guest.call("Rules", rules=["1000 * team"])
        guest.call("React", reaction={"group": "team", "on": "oom", "action": "kill"})
        run(guest, """
def body():
    while True:
        exchange(frame("Create", {"group": f"x{os.getpid()}"}) + frame("Remove", {"group": f"x{os.getpid()}"}))
children(4, body)
""")  # fmt: skip
        nestrt.run("delete", "--force", name).ok()
        guest = start_guest(nestrt, python, name, *LIMITS)
        assert [one["name"] for one in guest.call("List", recursive=True)["groups"]] == ["/", "/init"]
        assert guest.call("Rules")["rules"] == []
        assert guest.call("Reactions")["reactions"] == []
        assert guest.refused("Create", user=1000, group="team/x").error == "NotFound"
        assert guest.call("Info")["quota"]["connections_used"] == 1
        assert [one["name"] for one in broker.call("Guests")["guests"]].count(name) == 1
    wait_for(lambda: descriptors(broker) <= before + 16, "the former's descriptors to be closed")


def test_guests_that_come_and_go_leave_no_descriptor(start: Start, broker: Broker) -> None:
    before = descriptors(broker)
    for _ in range(4 if SLOW == 1 else 2):
        guest = start()
        guest.call("List")
        assert guest.process.stdin is not None
        guest.process.stdin.close()
        guest.process.wait(20 * SLOW)
        wait_for(lambda guest=guest: guest.name not in str(broker.call("Guests")), "its end")  # type: ignore[misc]
    wait_for(lambda: descriptors(broker) <= before, "the descriptors to be closed", 5)


def test_what_a_guest_asked_before_it_ended_is_not_done_to_the_next(
    start: Start, broker: Broker, nestrt: Nestrt, python: PythonRoot
) -> None:
    """
    broker      stands still
    A           asks for groups, on many connections, and is deleted
    A           is another guest by now, which wants no broker
    broker      finds the calls, the end, and groups of the same name
    """
    guest = start()
    name = guest.name

    def replace() -> BrokerGuest:
        run(guest, """
for n, one in enumerate(held["ones"]):
    one.sendall(frame("Create", {"group": f"ghost{n}"}))
""")  # fmt: skip
        nestrt.run("delete", "--force", name).ok()
        return start_guest(nestrt, python, name, *LIMITS, "--broker", "none")

    for _ in range(3 if SLOW == 1 else 1):
        run(guest, "held['ones'] = [open_one() for _ in range(16)]")
        settled()
        new = stopped(broker, replace)
        settled()
        made = [path for path in group_dirs(name) if "ghost" in path]
        assert not made
        assert new.python("result = 1") == 1
        nestrt.run("delete", "--force", name).ok()
        guest = start_guest(nestrt, python, name, *LIMITS)
    assert name in str(broker.call("Guests"))


# Nothing of one guest is another's.


def test_a_storm_changes_nothing_of_another_guest(start: Start, broker: Broker) -> None:
    """Some hundred calls, right ones and wrong ones, of A's root and of a user of it: B is what it was, the host's
    limits of A stand, and the broker has found no mistake of its own."""
    guest, other = start(*MODES["nouserns"]), start()
    other.call("Create", group="web", settings={"memory.max": "64M", "pids.max": "9"}, owner=1000)
    other.call("Rules", rules=["1000 * web"])
    untouched = ("memory.limit_in_bytes", "memory.max", "pids.max", "cpuset.cpus", "cpu.cfs_quota_us", "devices.list")
    before = everything(other.name)
    limits = {k: v for k, v in everything(guest.name).items() if k.rpartition("/")[2] in untouched and "/guest/" not in k}
    said, memory = broker.said(), resident(broker)
    # A storm of Kill and Freeze ends the agent itself sooner or later: it is in init.
    methods = tuple(one for one in GUEST.methods if one not in ("Events", "Answer"))
    calls: list[str] = []

    @settings(
        max_examples=400 if SLOW == 1 else 40, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(any_call(methods))
    def collect(call: tuple[str, dict[str, Any]]) -> None:
        method, parameters = call
        if method in ("Kill", "Remove", "Freeze", "Attach") and "init" in str(parameters.get("group")):
            return
        try:
            calls.append(json.dumps({"method": f"io.nestrt.Guest.{method}", "parameters": parameters}, allow_nan=False))
        except ValueError:
            pass

    collect()
    for user in (0, 1000):
        replies = run(guest, f"""
result = []
for text in {calls!r}:
    result += exchange(text.encode("utf-8", "surrogatepass") + b"\\0")[0]
""", user)  # fmt: skip
        assert len(replies) == len(calls)
        assert not [one for one in replies if "bug of nestrt" in str(one)]
    assert everything(other.name) == before
    after = everything(guest.name)
    assert {key: after[key] for key in limits} == limits
    assert broker.said() == said
    assert resident(broker) < memory + 48
    assert len(broker.call("Guests")["guests"]) >= 2


def test_nothing_that_a_terminal_obeys_comes_out(start: Start, broker: Broker, nestrt: Nestrt) -> None:
    """Names of groups, keys, values, processes and methods with escapes and line breaks: the broker's own words and the
    audit stay lines of printable characters, and one call is one entry."""
    guest = start()
    evil = "\x1b[2J\x1b]0;owned\x07\r\n{}nestrt broker: \u202e"
    safe = evil.replace("\n", "")
    guest.call("Create", group=safe, settings={"pids.max": "5"})
    guest.call("Set", group=safe, settings={"pids.max": "6"})
    for method, values in (
        ("Create", {"group": evil}), ("Set", {"group": safe, "settings": {evil: evil}}), ("Kill", {"group": evil}),
        ("Set", {"group": safe, "settings": {"pids.max": evil}}), ("Attach", {"group": safe, "pids": [1 << 21]}),
        ("Devices", {"group": safe, "allow": [evil]}), ("Rules", {"rules": [evil]}), (evil, {}), ("Forget", {
            "group": safe, "on": evil}), ("Answer", {"id": 1, "action": evil}), ("Create", {"group": "a", "owner": 1 << 40}),
        ("React", {"reaction": {"group": safe, "on": evil, "action": evil}}),
    ):  # fmt: skip
        guest.refused(method, **values)
    run(guest, f"""
def body():
    open("/proc/self/comm", "w").write("\\x1b[2J\\r")
    os.execv("/usr/bin/sleep", [{safe!r}, "100"])
pid = children(1, body)[0]
time.sleep(0.3)
exchange(frame("Attach", {{"group": {safe!r}, "pids": [pid]}}))
exchange(frame("Kill", {{"group": {safe!r}}}))
os.waitpid(pid, 0)
exchange(frame("Remove", {{"group": {safe!r}}}))
""")  # fmt: skip
    broker.call("Audit", guest=guest.name)
    for line in broker.said().splitlines():
        assert line.isprintable()
        assert line.startswith("nestrt broker: ")
    entries = 0
    for path in broker.audit.iterdir():
        for line in path.read_bytes().split(b"\n")[:-1]:
            assert line.decode("ascii").isprintable()
            entries += json.loads(line)["guest"] == guest.name
    assert entries >= 10
    shown = nestrt.run("audit", "--audit", str(broker.audit)) if False else None
    assert shown is None or shown.out.replace("\n", "").isprintable()
    assert has_v1("memory") in (True, False)


_unused = (socket, threading, Refused, opened, nested, SOCKET)
