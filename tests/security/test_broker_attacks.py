"""Guests against the broker: what they send and how, how much of it, and whose socket and descriptors it is.

    host                 nestrt broker
    ├ /nestrt/A          attacks: its root, and its user 1000
    └ /nestrt/B          is served all the while as if nobody else was there
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nestrt.broker.groups import MOST_KEYS
from support.broker import Broker, BrokerGuest, settled
from support.broker_attack import cpu_time, descriptors, everything, latency, resident, run, starting, stopped
from support.broker_calls import GUEST, wrong_values
from support.guests import MODES
from support.hostside import hierarchies, limit_group, processes
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, again, wait_for

LIMITS = ("-m", "256M", "--pids", "200")
PRIVILEGED = MODES["root"]
Start = Callable[..., BrokerGuest]
# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm


@pytest.fixture
def start(broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> Iterator[Start]:
    """Start a guest with more options; named like the test's own."""
    with starting(broker, nestrt, python, new_guest, LIMITS) as function:
        yield function


@pytest.fixture
def quiet(broker: Broker, start: Start) -> Iterator[Broker]:
    """The broker; at the end it has said nothing more than before, and has no more descriptors."""
    said, before = broker.said(), descriptors(broker)
    yield broker
    assert broker.said() == said
    wait_for(lambda: descriptors(broker) <= before + 60, "its connections to end", 40)


# Bytes.


@pytest.mark.slow_on_vm(False)
def test_bytes_that_are_no_call(start: Start, quiet: Broker) -> None:
    """Each ends its connection, with one error at most; the next one is served."""
    guest = start()
    bad = [
        b"\0", b"\0" * 50_000, b"x\0", b"{}\0", b"[]\0", b"null\0", b"\xff\xfe\0", b'{"method":1}\0',
        b'{"method":"\xc3"}\0', b'{"method":"io.nestrt.Guest.Info","parameters":[]}\0',
        b"[" * 60_000 + b"\0", b'{"a":' * 13_000 + b"\0",
        b'{"method":"io.nestrt.Guest.Info","parameters":{"x":' + b"9" * 60_000 + b"}}\0", b"x" * 200_000,
        b" " * 70_000 + b"\0",
        b'{"method":"io.nestrt.Guest.Info","upgrade":true}\0', b'{"method":"io.nestrt.Guest.Info","more":1}\0',
        b'{"method":"io.nestrt.Guest.Info","oneway":1.0}\0',
        b'{"method":"io.nestrt.Guest.Info","parameters":{"x":NaN}}\0',
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
    assert [one["parameters"]["method"] for one in replies[::2]] == [
        f"io.nestrt.Guest.Nothing{n}" for n in range(0, 200, 2)
    ]
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
            calls += [(method, {name: value}) for value in wrong_values(kind) if "inf" not in repr(value)]
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
    replies, _ = run(guest, """
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
    """A reply of almost a megabyte, wanted by two users on all the connections that they may have and read on none: the
    broker keeps 16 MiB of them, closes the others, and serves root and everybody else; so it does with calls of which
    a byte comes now and then."""
    guest, other = start(), start()
    place = next(h.mountpoint for h in hierarchies())
    # In JSON each of these bytes takes six, "\\udcff".
    number, tail = (850, 250) if SLOW == 1 else (60, 60)
    run(guest, f"for n in range({number}): os.mkdir(b'{place}/%03d' % n + b'\\xff' * {tail})")
    before = resident(quiet)
    run(guest, """
def body():
    slow = [open_one(patience=60) for _ in range(15)]
    for n, one in enumerate(slow):
        one.sendall(b"{" if n < 3 else frame("List", {"recursive": True}))
    look = select.poll()
    for one in slow:
        look.register(one, select.POLLRDHUP)
    while True:
        time.sleep(0.1)
        for one in slow[:3]:
            one.sendall(b" ")
        with open(f"/tmp/closed-{os.getuid()}", "w") as file:
            file.write(str(len(look.poll(0))))
held["slow"] = children(1, body, 1000) + children(1, body, 1001)
""")  # fmt: skip
    closed = "cat /tmp/closed-1000 /tmp/closed-1001 2>/dev/null"
    if SLOW == 1:
        wait_for(lambda: int(guest.order("shell", command=closed)["out"] or 0), "one to be closed", 25)
    assert latency(other) < 6 * SLOW
    kept = run(guest, """
result = len(exchange(frame("List", {"recursive": True}), patience=60)[0][0]["parameters"]["groups"])
""")  # fmt: skip
    assert kept == number + 2
    assert resident(quiet) < before + 40
    run(guest, f"end(held['slow'])\nfor n in range({number}): os.rmdir(b'{place}/%03d' % n + b'\\xff' * {tail})")


def test_a_thousand_connections(start: Start, quiet: Broker) -> None:
    """Of one user: 16 are held, and root of the same guest gets in. Of root: 64. Other guests notice nothing."""
    guest, other = start(), start()
    before = descriptors(quiet)
    for user, most in ((1000, 16), (0, 64)):
        found = run(guest, f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
def body():
    many, refused = [], 0
    for n in range(1000):
        try:
            one = open_one()
            one.sendall(frame("Get", {{"group": "/", "keys": ["pids.max"]}}))
            reply = one.recv(65536)
        except OSError:
            reply = b""
        if b"values" in reply:
            many.append(one)
        else:
            refused += 1
            one.close()
    os.write(write, json.dumps([len(many), refused]).encode())
    time.sleep(100000)
read, write = os.pipe()
held["many"] = children(1, body, {user})
result = json.loads(os.read(read, 100))
os.close(read)
os.close(write)
""")  # fmt: skip
        assert found == [most, 1000 - most]
        if user:
            assert guest.call("Get", group="/", keys=["pids.max"])["values"] == {"pids.max": "200"}
        assert latency(other) < 6 * SLOW
        assert descriptors(quiet) <= before + 3 * 64
        run(guest, "end(held.pop('many'))")
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
    """Six processes of A do nothing else; B, and root of A, are served."""
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
held["flood"] = children(6, body, {user})
""")  # fmt: skip
        assert latency(other, 10) < 6 * SLOW
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
    assert cpu_time(broker) - began < 3 * SLOW
    assert latency(other) < 6 * SLOW


def test_users_do_not_keep_root_waiting(start: Start) -> None:
    """
    user 1000      sixteen connections, each with a call that takes a while
    root           one call, sent after those: it waits for one of them, not for sixteen
    """
    guest = start()
    guest.call("Create", group="team", owner=1000)
    guest.call("Create", user=1000, group="team/home")
    guest.call("Create", user=1000, group="team/job")
    number = 512 if SLOW == 1 else 64
    code = f"""
if os.path.exists("/tmp/go"):
    os.unlink("/tmp/go")
def body():
    while not os.path.exists("/tmp/go"):
        time.sleep(0.01)
    ones = [open_one(patience=300) for _ in range(16)]
    for one in ones:
        one.sendall(frame("Attach", {{"group": "team/job", "pids": [0] * {number}}}))
    for n, one in enumerate(ones):
        one.recv(65536)
        open("/tmp/done", "a").write(".")
open("/tmp/done", "w").close()
os.chmod("/tmp/done", 0o666)
pids = children(1, body, 1000)
assert not [one for one in exchange(frame("Attach", {{"group": "team/home", "pids": pids}}))[0] if "error" in one]
open("/tmp/go", "w").close()
time.sleep(0.3)
one = open_one(patience=300)
before = os.path.getsize("/tmp/done")
one.sendall(frame("Set", {{"group": "team", "settings": {{"pids.max": "50"}}}}))
assert b"error" not in one.recv(65536)
result = before, os.path.getsize("/tmp/done") - before
end(pids)
"""

    def waits_for_few() -> None:
        before, done = run(guest, code)
        assert before < 12, "they were done before root asked"
        assert done <= 4

    again(waits_for_few)


# Descriptors and connections that are handed on.


def test_descriptors_that_are_sent_along_are_dropped(start: Start, quiet: Broker) -> None:
    """unix(7), SCM_RIGHTS: whoever receives without room for them has none, the kernel closes them, the pipe ends."""
    guest = start()
    before = descriptors(quiet)
    ended = run(guest, """
one = open_one()
read, write = os.pipe()
for n in range(20):
    fds = array.array("i", [write] * 250)
    one.sendmsg([frame("Get", {"group": "/", "keys": ["pids.max"]})], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    assert b"values" in one.recv(65536)
os.close(write)
result = os.read(read, 1) == b""
held["one"] = one
""")  # fmt: skip
    assert ended is True
    assert descriptors(quiet) <= before + 20


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
    listener.bind("/mnt/meet.new")
    os.chmod("/mnt/meet.new", 0o777)
    listener.listen()
    os.rename("/mnt/meet.new", "/mnt/meet")
    one, _ = listener.accept()
    data, fds, _, _ = socket.recv_fds(one, 10, 1)
    given = socket.socket(fileno=fds[0])
    given.settimeout(10)
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
        assert latency(third) < 6 * SLOW
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


NEXT_PID = Path("/proc/sys/kernel/ns_last_pid")


def test_a_number_that_another_process_has_by_now(start: Start, broker: Broker, shared: Callable[[str], Path]) -> None:
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
wait, go = os.pipe()
def body():
    one = open_one("/mnt/sock", 60)
    one.sendall(frame("Create", {"group": "stolen"}))
    if os.fork() == 0:
        os.close(go)
        os.write(write, all_of(one)[0] or b"nothing")
    else:
        os.read(wait, 1)
held["number"] = (children(1, body)[0], go, read)
os.close(write)
os.close(wait)
result = held["number"][0]
""")  # fmt: skip
        outside = next(pid for pid in processes(limit_group(other.name)) if numbers(pid)[-1:] == [inside])
        run(other, "os.write(held['number'][1], b'.'); os.waitpid(held['number'][0], 0); os.close(held['number'][1])")
        NEXT_PID.write_text(str(outside - 1))
        guest.spawn("exec sleep 100")
        return outside in processes(limit_group(guest.name))

    for _ in range(50):
        taken = stopped(broker, hand_on)
        reply = run(other, "result = os.read(held['number'][2], 65536).decode(); os.close(held['number'][2])")
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
