"""Guests against the broker: who may what, what changes under its hands, what is where it puts its socket, and each
other.

    host                 nestrt broker
    ├ /nestrt/A          attacks: its root, its users 1000 and 1001, and what it has made of its files
    └ /nestrt/B          nothing of it changes
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from nestrt.act import inject
from nestrt.broker import idl
from nestrt.broker.groups import MOST_GROUPS
from nestrt.errors import StateError
from support.broker import Broker, BrokerGuest, limit_path, settled, start_guest
from support.broker_attack import SOCKET, descriptors, everything, group_dirs, latency, resident, run, starting, stopped
from support.broker_calls import GUEST, any_call
from support.guests import MODES
from support.hostside import hierarchies, limit_group
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, wait_for

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


# Who may.

# Method, parameters besides the group, and the groups of which user 1000 may have it done: /team is his and /team/job
# is in it, /other is 1001's.
RIGHTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("List", {}, ("/", "/init", "/team", "/team/job", "/other")),
    ("Get", {}, ("/", "/init", "/team", "/team/job", "/other")),
    ("Set", {"settings": {"pids.max": "20"}}, ("/team/job",)),
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


@pytest.mark.slow_on_vm(False)
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
    namespace = (
        ""
        if who == "himself"
        else """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: whoever changes his user is not, and may not write his maps then
if libc.unshare(0x10000000):
    raise OSError(ctypes.get_errno(), "unshare")
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write("0 1000 1")
open("/proc/self/gid_map", "w").write("0 1000 1")
assert os.getuid() == 0
"""
    )
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
first = int(open("/proc/self/uid_map").read().split()[1])
os.setxattr({directory!r}, "user.nestrt.owner", str(first + 1000).encode())
""", user=1000)  # fmt: skip
        assert guest.refused("Create", user=1000, group="part/new").error == "NotPermitted", directory
        assert guest.refused("Freeze", user=1000, group="part").error == "NotPermitted", directory
        guest.shell(f"chown 0 {directory}")
        run(guest, f"os.removexattr({directory!r}, 'user.nestrt.owner')")


@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_nobody_is_no_owner(start: Start, mode: str) -> None:
    """(uid_t)-1 means "as it is" to chown(2); no group is left of the attempt."""
    guest = start(*MODES[mode])
    for owner in ((1 << 32) - 1, 1 << 32, -1, idl.LARGEST, idl.SMALLEST, *([1 << 20] if mode == "userns" else [])):
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
            for call, names in ((os.mkdir, ("x",)), (os.mkdir, ("x/y",)), (os.rename, ("x", "z")),
                                (os.rename, ("z", "x")), (os.rmdir, ("x/y",)), (os.rmdir, ("x",)),
                                (os.rmdir, ("z/y",)), (os.rmdir, ("z",))):
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
                               ("Thaw", {{"group": "x"}}),
                               ("Remove", {{"group": "x", "recursive": True, "kill": True}})):
            one.sendall(frame(method, values))
            found = b""
            while not found.endswith(b"\\0"):
                found += one.recv(65536)
            reply = json.loads(found[:-1])
            if "error" in reply:
                open("/tmp/errors", "a").write(str(reply) + "\\n")
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
        assert latency(other) < 6
        guest.call("Create", group="web")
        guest.call("Remove", group="web")
        assert resident(broker) < memory + 32
        run(guest, f"for n in range({number}): os.rmdir('{place}/g' + str(n))")
    most = 1000 if SLOW == 1 else 40
    made = run(guest, f"""
result = 0
while result < {most}:
    replies = exchange(b"".join(frame("Create", {{"group": f"g{{result + n}}"}}) for n in range(20)))[0]
    result += sum("error" not in one for one in replies)
    refused = [one["error"] for one in replies if "error" in one]
    if refused:
        assert set(refused) == {{"io.nestrt.Guest.QuotaExceeded"}}, refused
        break
""")  # fmt: skip
    assert made == (998 if SLOW == 1 else most)


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
    assert latency(other) < 6 * SLOW
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
    assert latency(other) < 6 * SLOW


def connections(guest: BrokerGuest) -> int:
    return int(guest.call("Info")["quota"]["connections_used"])


def test_the_same_name_again_is_another_guest(start: Start, broker: Broker, nestrt: Nestrt, python: PythonRoot) -> None:
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
        wait_for(lambda guest=guest: connections(guest) == 1, "the connections to end")  # type: ignore[misc]
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


# Places in the guest where the broker puts its socket when it starts.

PLACES = {
    "a link to the socket's place": "rm -f guest.sock; ln -s /mnt/target guest.sock",
    "a link to a directory": "cd ..; rm -rf nestrt; ln -s /mnt nestrt",
    "a link that leads up": "cd ..; rm -rf nestrt; ln -s ../../../.. nestrt",
    "a FIFO": "rm -f guest.sock; mkfifo guest.sock",
    "a directory": "rm -f guest.sock; mkdir guest.sock",
    "a file": "rm -f guest.sock; echo mine > guest.sock",
    "a device": "rm -f guest.sock; mknod guest.sock c 1 3",
    "a mount": "touch mine; mount --bind mine guest.sock",
    "nothing": "cd ..; rm -rf nestrt",
    "nothing that may be written": "rm -f guest.sock; mount -o remount,ro /run",
    "procfs": "mount -t proc none .",
    "its own group": "mount -t cgroup2 none .",
}


@pytest.mark.slow_on_vm(False)
def test_the_socket_is_put_nowhere_else(start: Start, broker: Broker, scratch: Path) -> None:
    """
    host      /…/witness          a directory of the host's, in each guest at /mnt
    guests    /run/nestrt         made into everything that it is not meant to be, by root with all capabilities
    broker    starts again        each gets its socket or does not; no file and no mount of the host's is made
    """
    witness = scratch / "witness-of-mounts"
    witness.mkdir(exist_ok=True)
    options = ("--mount", "type=tmpfs,target=/run,size=1M", "--mount", f"type=bind,source={witness},target=/mnt")
    guests = {what: start(*PRIVILEGED, *options) for what in PLACES}
    inner = start(*options)
    for what, command in PLACES.items():
        guests[what].shell(f"cd /run/nestrt; umount -l guest.sock; {command}")
    inner.shell("mount -t tmpfs none /run/nestrt; ln -s /mnt/target /run/nestrt/guest.sock")
    own = guests["its own group"]
    before = everything(own.name)
    mounts = Path("/proc/self/mountinfo").read_text()
    broker.restart()
    ordinary = start()
    assert latency(ordinary) < 6 * SLOW
    asked = """
try:
    found = exchange(frame("Info"))[0]
    result = found[0]["parameters"]["name"] if found else ""
except OSError as error:
    result = type(error).__name__
"""
    unwilling = {"a link to a directory", "a link that leads up", "a directory", "procfs", "its own group",
                 "nothing that may be written"}  # fmt: skip
    for what, guest in guests.items():
        if what not in unwilling:
            wait_for(lambda guest=guest: run(guest, asked) == guest.name, f"the socket in place of {what}")  # type: ignore[misc]
    settled()
    for what in unwilling:
        assert run(guests[what], asked) != guests[what].name, what
    assert not os.listdir(witness)
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert everything(own.name) == before
    for line in broker.said().splitlines():
        assert line.isprintable()
        assert "bug of nestrt" not in line


# A filesystem of the guest's own, which takes every question and answers none but the first.
FUSE = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
if not os.path.exists("/dev/fuse"):
    os.mknod("/dev/fuse", 0o020600, os.makedev(10, 229))
fd = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"silent", b"/run/nestrt", b"fuse", 0, data):
    raise OSError(ctypes.get_errno(), "mount")
def serve():
    os.setsid()
    while True:
        request = os.read(fd, 1 << 18)
        size, opcode, unique = struct.unpack_from("<IIQ", request)
        if opcode == 26:  # FUSE_INIT
            reply = struct.pack("<IIIIHHII", 7, 31, 0, 0, 0, 0, 4096, 0) + bytes(32)
            os.write(fd, struct.pack("<IiQ", 16 + len(reply), 0, unique) + reply)
children(1, serve)
os.close(fd)
time.sleep(0.3)
"""


def test_a_filesystem_that_never_answers(
    start: Start, broker: Broker, nestrt: Nestrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it cannot even be killed. The broker serves the others meanwhile, ends when it is told to, and
    whoever puts something there himself is back after a while; with the guest goes the helper that has waited."""
    guest = start(*PRIVILEGED, "--device", "c 10:229 rwm")
    run(guest, FUSE)
    broker.restart()
    other = start()
    assert latency(other) < 6 * SLOW
    began = time.monotonic()
    assert broker.stop() == 0
    assert time.monotonic() - began < 8 * SLOW
    broker.start()
    monkeypatch.setattr(inject, "PATIENCE", 0.5 * SLOW)
    monkeypatch.setattr(inject, "KILL_PATIENCE", 0.2)
    mark = json.loads(os.getxattr(limit_path(guest.name), "trusted.nestrt"))
    source = f"/run/nestrt/broker/{guest.name}/guest.sock"
    with pytest.raises(StateError, match="do not answer"):
        inject.put_socket(mark["pid"], mark["start"], source, SOCKET)
    nestrt.run("delete", "--force", guest.name).ok()

    def reaped() -> bool:
        inject._reap()
        return not inject._unreaped

    wait_for(reaped, "the helper to end")


# Nothing of one guest is another's.


def test_a_storm_changes_nothing_of_another_guest(start: Start, broker: Broker) -> None:
    """Some hundred calls, right ones and wrong ones, of A's root and of a user of it: B is what it was, the host's
    limits of A stand, and the broker has found no mistake of its own."""
    guest, other = start(*MODES["nouserns"]), start()
    other.call("Create", group="web", settings={"memory.max": "64M", "pids.max": "9"}, owner=1000)
    other.call("Rules", rules=["1000 * web"])
    untouched = ("memory.limit_in_bytes", "memory.max", "pids.max", "cpuset.cpus", "cpu.cfs_quota_us", "devices.list")
    before = everything(other.name)
    limits = {
        k: v for k, v in everything(guest.name).items() if k.rpartition("/")[2] in untouched and "/guest/" not in k
    }
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
        ("Devices", {"group": safe, "allow": [evil]}), ("Rules", {"rules": [evil]}), (evil, {}),
        ("Forget", {"group": safe, "on": evil}), ("Answer", {"id": 1, "action": evil}),
        ("Create", {"group": "a", "owner": 1 << 40}),
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
    shown = nestrt.run("audit", "--directory", broker.audit).ok()
    assert shown.out.replace("\n", "").isprintable()
