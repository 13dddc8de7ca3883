"""The broker with real guests: groups and limits through it, by every view, at two levels, over its own end.

    host                 nestrt broker, /run/nestrt/host.sock
    └ /nestrt/G          limit group: 256M, 60 processes
      └ guest            the socket's "/"
        ├ init           the agent, which asks
        └ web …          what it makes by asking
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from support.broker import Broker, BrokerGuest, Refused, settled, start_guest
from support.guests import MODES
from support.hostside import directories, group_file, groups
from support.need import SLOW
from support.rootfs import COMMAND, PythonRoot
from support.runner import Nestrt, wait_for
from support.served import nspid

LIMITS = ("-m", "256M", "--pids", "60")
Start = Callable[..., BrokerGuest]


@pytest.fixture
def start(broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> Start:
    """Start a guest with more options; named like the test's own."""
    if not broker.runs:
        broker.start()
    return lambda *options: start_guest(nestrt, python, new_guest(), *LIMITS, *options)


def policy(directory: Path, view: str, more: str = "") -> str:
    """The path of a policy with that view, and a broker."""
    path = directory / "policy.toml"
    path.write_text(f'[level]\nbroker = "required"\n[view]\nmount = "{view}"\n{more}')
    return str(path)


def own_file(controller: str, name: str, group: str, v1: str, v2: str) -> str:
    """What the host reads of a child group."""
    return group_file(controller, f"/nestrt/{name}/guest{group}", v1, v2).read_text().strip()


def memory(name: str, group: str) -> str:
    return own_file("memory", name, group, "memory.limit_in_bytes", "memory.max")


@pytest.mark.parametrize("view", ["rw", "ro", "none"])
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_every_view_divides_through_the_broker(start: Start, tmp_path: Path, view: str, mode: str) -> None:
    """Groups with limits come and go as asked, never with more than the guest has; where the view is not rw, the
    guest's own hand does nothing."""
    guest = start("--policy", policy(tmp_path, view), *MODES[mode])
    guest.call("Create", group="web", settings={"memory.max": "64M", "pids.max": "10"})
    assert memory(guest.name, "/web") == str(64 << 20)
    guest.call("Create", group="web/db", settings={"memory": "32M"})
    guest.call("Set", group="web", settings={"memory.max": "48M", "cpu.max": "0.5"})
    assert memory(guest.name, "/web") == str(48 << 20)
    values = guest.call("Get", group="web", keys=["memory.max", "cpu.max", "pids.max"])["values"]
    assert values == {"memory.max": "48M", "cpu.max": "0.5", "pids.max": "10"}
    found = {group["name"]: group for group in guest.call("List", recursive=True)["groups"]}
    assert set(found) == {"/", "/init", "/web", "/web/db"}
    assert found["/web/db"]["limits"]["memory.max"]["value"] == "32M"
    more = guest.refused("Set", group="web", settings={"memory.max": "1G"})
    assert (more.error, memory(guest.name, "/web")) == ("BadValue", str(48 << 20))
    assert guest.refused("Set", group="/", settings={"memory.max": "1G"}).error == "NotPossible"
    assert memory(guest.name, "") == str(256 << 20)
    guest.call("Remove", group="web", recursive=True)
    assert not any((path / "guest/web").exists() for path in groups(f"/nestrt/{guest.name}"))
    if view != "rw":
        hand = "mount -t tmpfs none /mnt; mkdir /mnt/v; mount -t cgroup2 none /mnt/v; mkdir /mnt/v/x /sys/fs/cgroup/*/x"
        guest.order("shell", command=hand)
        assert not any((path / "guest/x").exists() for path in groups(f"/nestrt/{guest.name}"))


@pytest.mark.parametrize("view", ["rw", "none"])
def test_whoever_owns_a_group_divides_it_and_no_more(start: Start, tmp_path: Path, view: str) -> None:
    """
    guest          root's
    ├ team         uid 1000's: it makes groups below, limits them, removes them; its own limit is not its to set
    │ └ job        made by 1000
    └ other        uid 1001's
    """
    guest = start("--policy", policy(tmp_path, view))
    guest.call("Create", group="team", settings={"memory.max": "64M"}, owner=1000)
    guest.call("Create", group="other", owner=1001)
    guest.call("Create", user=1000, group="team/job", settings={"memory.max": "16M"})
    assert memory(guest.name, "/team/job") == str(16 << 20)
    guest.call("Set", user=1000, group="team/job", settings={"memory.max": "32M"})
    for method, parameters in (
        ("Set", {"group": "team", "settings": {"memory.max": "128M"}}),
        ("Set", {"group": "other", "settings": {"memory.max": "1M"}}),
        ("Create", {"group": "mine"}),
        ("Create", {"group": "other/mine"}),
        ("Remove", {"group": "team"}),
        ("Remove", {"group": "other"}),
        ("Set", {"group": "/", "settings": {"memory.max": "1M"}}),
    ):
        refused = guest.refused(method, user=1000, **parameters)
        assert refused.error in ("NotPermitted", "NotPossible"), (method, parameters, refused)
    assert memory(guest.name, "/team") == str(64 << 20)
    guest.call("Remove", user=1000, group="team/job")
    owners = {group["name"]: group["owner"] for group in guest.call("List", user=1001, recursive=True)["groups"]}
    assert (owners["/team"], owners["/other"], owners["/"]) == (1000, 1001, 0)


@pytest.mark.slow_on_vm
def test_names_that_lead_elsewhere(start: Start) -> None:
    """No name reaches a group that is not the guest's, whatever method takes it."""
    guest = start()
    names = [
        "..", "../..", "web/../..", "/../x", "a//b", ".", "./a", "a/.", "x" * 256, "a\nb", "a\0b", "cgroup.x",
        "memory.y", "\ud800", "é" * 200, "a/" * 300,
    ]  # fmt: skip
    before = sorted(map(str, directories("/nestrt")))
    for name in names:
        for method, more in (
            ("Create", {"parents": True}), ("Remove", {"recursive": True, "kill": True}), ("Get", {}), ("List", {}),
            ("Set", {"settings": {"memory.max": "1M"}}),
        ):  # fmt: skip
            if method == "List" and name in ("", "/"):
                continue
            refused = guest.refused(method, group=name, **more)
            assert refused.error in ("BadValue", "NotFound", "QuotaExceeded", "InvalidParameter"), (name, refused)
    after = sorted(map(str, directories("/nestrt")))
    assert before == after


@pytest.mark.slow_on_vm
def test_names_in_every_encoding_stay_below(start: Start) -> None:
    guest = start()
    for name in ("ä", "日本", "a b", "-rf", "~", "*", "$(id)", "\x1b[31m", "web.service", "%2e%2e"):
        guest.call("Create", group=name)
        assert f"/{name}" in [group["name"] for group in guest.call("List")["groups"]]
        guest.call("Remove", group=name)


@pytest.mark.slow_on_vm
def test_files_that_are_not_for_settings(start: Start) -> None:
    """Processes, device rules, event descriptors and triggers are not written by Set, whoever asks."""
    guest = start()
    guest.call("Create", group="web")
    for key in (
        "cgroup.procs", "tasks", "devices.allow", "cgroup.event_control", "release_agent", "notify_on_release",
        "memory.pressure", "memory.pressure_level", "cgroup.kill", "cgroup.freeze", "freezer.state", "../pids.max",
        "a=b", "memory.max\n1", "", "cgroup.subtree_control/../../memory.max",
    ):  # fmt: skip
        refused = guest.refused("Set", group="web", settings={key: "1"})
        assert refused.error in ("BadValue", "NotFound", "NotPossible", "InvalidParameter"), (key, refused)
    for key in ("cgroup.procs", "tasks", "../../../../etc/shadow", "cgroup.threads"):
        assert guest.refused("Get", group="web", keys=[key]).error in ("BadValue", "NotFound"), key


def test_one_failing_setting_takes_the_others_back(start: Start) -> None:
    guest = start()
    guest.call("Create", group="web", settings={"memory.max": "64M", "pids.max": "10"})
    guest.refused("Set", group="web", settings={"pids.max": "20", "memory.max": "9G"})
    assert memory(guest.name, "/web") == str(64 << 20)
    assert own_file("pids", guest.name, "/web", "pids.max", "pids.max") == "10"
    guest.refused("Create", group="bad", settings={"memory.max": "1M", "no.such": "1"})
    assert not any((path / "guest/bad").exists() for path in groups(f"/nestrt/{guest.name}"))


def test_the_policy_says_what_may_be_divided(start: Start, tmp_path: Path) -> None:
    partition = "[partition]\nmemory = false\nmax_groups = 4\nmax_depth = 3\n"
    guest = start("--policy", policy(tmp_path, "none", partition))
    refused = guest.refused("Create", group="web", settings={"memory.max": "1M"})
    assert refused.error == "NotPossible", refused
    guest.call("Create", group="web", settings={"pids.max": "5"})
    deep = guest.refused("Create", group="web/a/b", parents=True)
    assert deep.error == "QuotaExceeded", deep
    guest.call("Create", group="two")
    assert guest.refused("Create", group="three").error == "QuotaExceeded"


def test_it_is_killed_and_comes_back(start: Start, broker: Broker) -> None:
    """Guests go on without it; a new one knows groups, owners and limits, and puts its socket into each."""
    one, two = start(), start("--userns", "none")
    one.call("Create", group="team", settings={"memory.max": "64M"}, owner=1000)
    broker.stop(signal.SIGKILL)
    assert "ConnectionRefused" in str(one.order("python", code="""
try:
    connect()
    result = "connected"
except OSError as error:
    result = type(error).__name__
"""))  # fmt: skip
    assert one.shell("echo still here") == "still here"
    broker.start()
    for guest in (one, two):
        wait_for(lambda guest=guest: answers(guest), "the socket in the guest", 20)  # type: ignore[misc]
    one.call("Create", user=1000, group="team/job")
    assert one.call("Get", group="team", keys=["memory.max"])["values"] == {"memory.max": "64M"}
    assert one.refused("Set", user=1000, group="team", settings={"memory.max": "1G"}).error == "NotPermitted"
    broker.restart(signal.SIGKILL)
    broker.restart(signal.SIGTERM)
    wait_for(lambda: answers(one), "the socket in the guest", 20)
    mounts = one.shell("grep -c guest.sock /proc/self/mountinfo")
    assert mounts == "1", "each broker's socket takes the place of the last one's"


def answers(guest: BrokerGuest) -> bool:
    code = "try:\n    connect().close()\n    result = True\nexcept OSError:\n    result = False\n"
    return bool(guest.python(code))


@pytest.mark.slow_on_vm
def test_its_socket_goes_with_the_guest(start: Start, broker: Broker) -> None:
    guest = start()
    assert guest.name in [one["name"] for one in broker.call("Guests")["guests"]]
    assert guest.process.stdin is not None
    guest.process.stdin.close()  # the agent's last order
    assert guest.process.wait(20 * SLOW) == 0
    wait_for(lambda: guest.name not in [one["name"] for one in broker.call("Guests")["guests"]], "its end", 10)
    assert not os.path.exists(f"/run/nestrt/broker/{guest.name}")


@pytest.mark.slow_on_vm
def test_no_broker_where_one_is_required(
    broker: Broker, nestrt: Nestrt, busybox: os.PathLike[str], new_guest: Callable[[], str]
) -> None:
    broker.stop()
    try:
        name = new_guest()
        result = nestrt.launch("--name", name, "--rootfs", busybox, "--broker", "required", "--", "true")
        assert result.rc == 125
        assert "its policy requires a broker" in result.err
        assert "nestrt broker" in result.err
        assert not groups(f"/nestrt/{name}")
        wanted = nestrt.launch("--name", new_guest(), "--rootfs", busybox, "--broker", "wanted", "--", "true").ok()
        assert "gets no broker" in wanted.err
        assert len(wanted.err.splitlines()) == 1
    finally:
        broker.start()


def test_a_launch_brings_its_own(
    broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]
) -> None:
    """--broker=embedded serves that guest alone, and ends with it."""
    broker.stop()
    try:
        guest = start_guest(nestrt, python, new_guest(), *LIMITS, "--broker", "embedded")
        guest.call("Create", group="web", settings={"memory.max": "32M"})
        assert memory(guest.name, "/web") == str(32 << 20)
        broker.start()  # which leaves that guest alone
        assert guest.name not in [one["name"] for one in broker.call("Guests")["guests"]]
        guest.call("Remove", group="web")
        assert guest.process.stdin is not None
        guest.process.stdin.close()
        assert guest.process.wait(20 * SLOW) == 0
        assert not os.path.exists(f"/run/nestrt/broker/{guest.name}")
        detached = nestrt.launch("--rootfs", "/", "--overlay", "-d", "--broker", "embedded", "--", "true")
        assert detached.rc == 125
    finally:
        if broker.process is None:
            broker.start()


@pytest.mark.slow_on_vm
def test_two_brokers_do_not_meet(broker: Broker, nestrt: Nestrt) -> None:
    second = nestrt.run("broker", "--audit", str(broker.audit), timeout=30)
    assert second.rc == 4
    assert "another broker" in second.err
    assert len(second.err.splitlines()) == 1


def test_the_host_changes_limits_and_the_guest_follows(start: Start, broker: Broker) -> None:
    """SetLimits reaches limit group, guest root, what the guest reads, and its CPU numbers."""
    guest = start()
    guest.call("Create", group="web", settings={"memory.max": "200M"})
    broker.call("SetLimits", guest=guest.name, settings={"memory.max": "128M", "pids.max": "40", "cpuset.cpus": "1"})
    assert guest.call("Get", group="/", keys=["memory.max", "pids.max"])["values"] == {
        "memory.max": "128M", "pids.max": "40"}  # fmt: skip
    assert own_file("memory", guest.name, "/..", "memory.limit_in_bytes", "memory.max") == str(128 << 20)
    with pytest.raises(Refused) as wrong:
        broker.call("SetLimits", guest=guest.name, settings={"memory.max": "lots"})
    assert wrong.value.error == "BadValue"
    with pytest.raises(Refused) as nobody:
        broker.call("SetLimits", guest="nestrt-nobody", settings={"memory.max": "1M"})
    assert nobody.value.error == "NotFound"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_cpu_numbers_are_the_guests_own(start: Start, broker: Broker) -> None:
    """A guest on the host's CPU 1 alone calls it 0, everywhere; on both it has 0-1 again."""
    guest = start("--cpus", "1")
    info = guest.call("Info")
    assert (info["cpus"], info["cpu_numbers"], info["limits"]["cpuset.cpus"]["value"]) == (1, "renumbered", "0")
    guest.call("Create", group="web", settings={"cpuset.cpus": "0"})
    assert own_file("cpuset", guest.name, "/web", "cpuset.cpus", "cpuset.cpus") == "1"
    assert guest.call("Get", group="web", keys=["cpuset.cpus"])["values"] == {"cpuset.cpus": "0"}
    assert guest.refused("Set", group="web", settings={"cpuset.cpus": "1"}).error == "BadValue"
    broker.call("SetLimits", guest=guest.name, settings={"cpuset.cpus": "0-1"})
    assert guest.call("Info")["cpus"] == 2
    guest.call("Set", group="web", settings={"cpuset.cpus": "0"})
    assert own_file("cpuset", guest.name, "/web", "cpuset.cpus", "cpuset.cpus") == "0"


@pytest.mark.slow_on_vm
def test_every_change_is_in_the_audit(start: Start, broker: Broker) -> None:
    guest = start()
    guest.call("Create", group="web", settings={"memory.max": "64M"})
    guest.call("Set", group="web", settings={"memory.max": "32M"})
    guest.refused("Set", user=1000, group="web", settings={"memory.max": "16M"})
    guest.call("Get", group="web")
    settled()
    made, limited, changed, refused = broker.entries(guest.name)
    assert (made["method"], made["key"], made["verdict"]) == ("Create", "group", "done")
    assert (limited["key"], limited["new"]) == ("memory.max", "64M")
    assert (changed["method"], changed["group"], changed["old"], changed["new"]) == ("Set", "/web", "64M", "32M")
    assert (changed["peer"]["user"], changed["verdict"]) == (0, "done")
    assert (refused["peer"]["user"], refused["verdict"]) == (1000, "NotPermitted")


NESTED = """
import ctypes, os, time
if os.fork() == 0:
    try:
        if USER:
            os.setgroups([])
            os.setresgid(GROUP, GROUP, GROUP)
            os.setresuid(USER, USER, USER)
        elif ctypes.CDLL(None, use_errno=True).unshare(0x20000000) or os.fork():  # CLONE_NEWPID
            time.sleep(100000)
        call({"method": "io.nestrt.Guest.Create", "parameters": {"group": f"of-{USER}"}})
        time.sleep(100000)
    finally:
        os._exit(1)
"""


@pytest.mark.parametrize("mode", ["userns", pytest.param("root", marks=pytest.mark.slow_on_vm), "map"])
def test_the_audit_has_who_asked_as_the_guest_counts(start: Start, broker: Broker, tmp_path: Path, mode: str) -> None:
    """
    guest             its pid namespace, and users and groups shifted by different numbers where the policy says so
    ├ agent           0:0, process 1
    ├ a user          1000:1001
    └ ┬ waits         0:0, and for the pid namespace that it has made
      └ asks          0:0, 1 there, another number in the guest
    """
    options = MODES.get(mode, ())
    if mode == "map":
        maps = '[user]\nnamespace = "map"\nuid_map = ["0:1700000:65536"]\ngid_map = ["0:1800000:65536"]\n'
        (tmp_path / "map.toml").write_text(f'[level]\nbroker = "required"\n{maps}')
        options = ("--policy", str(tmp_path / "map.toml"))
    guest = start(*options)
    guest.call("Create", group="agents")
    guest.python(f"USER, GROUP = 1000, 1001\n{NESTED}")
    wait_for(lambda: len(broker.entries(guest.name)) == 2, "the user's question")
    guest.python(f"USER, GROUP = 0, 0\n{NESTED}")
    wait_for(lambda: len(broker.entries(guest.name)) == 3, "the question from the other pid namespace")
    agent, user, nested = (entry["peer"] for entry in broker.entries(guest.name))
    numbers = [nspid(peer["pid"]) for peer in (agent, user, nested)]
    assert [len(each) for each in numbers] == [2, 2, 3]
    assert [peer["guest_pid"] for peer in (agent, user, nested)] == [each[1] for each in numbers]
    assert (agent["guest_pid"], numbers[2][2]) == (1, 1)
    assert [(peer["user"], peer["guest_gid"]) for peer in (agent, user, nested)] == [(0, 0), (1000, 1001), (0, 0)]
    shifts = {(peer["uid"] - peer["user"], peer["gid"] - peer["guest_gid"]) for peer in (agent, user, nested)}
    ((uids, gids),) = shifts
    assert (uids == 0) == (mode == "root")
    assert gids - uids == (100_000 if mode == "map" else 0)
    # Rules for groups count like this, too.
    broker.call("Rules", guest=guest.name, rules=["@1001 * agents"])
    code = "import os; os.setresgid(1001, 1001, 1001); os.execvp('sleep', ['sleep', '1000'])"
    guest.spawn(f'exec python3 -Ic "{code}"')
    wait_for(lambda: guest.call("List", group="agents")["groups"][0]["processes"] == 1, "the rule's process")
    # Whoever has no number there: the host's root, which sets limits.
    broker.call("SetLimits", guest=guest.name, settings={"pids.max": "50"})
    peer = broker.entries(guest.name)[-1]["peer"]
    assert (peer["guest_pid"], peer["guest_gid"]) == (None, None)


def test_a_guest_has_a_broker_for_its_own_guests(start: Start, python: PythonRoot) -> None:
    """
    host               its broker serves G
    └ G                runs a broker of its own, which serves G/inner
      └ inner          divides its memory and devices by asking that one
    """
    guest = start("--mount", "type=tmpfs,target=/var,size=16M", "--mount", "type=tmpfs,target=/mnt,size=64M")
    guest.shell("mkdir -p /var/log")
    guest.spawn(f"exec {COMMAND} broker --audit /var/log/audit >/var/log/broker 2>&1")
    wait_for(lambda: guest.shell("ls /run/nestrt") .split().count("host.sock"), "the inner broker", 60)
    mounts = " ".join(f"'{word}'" for word in python.inner_options("/mnt/root"))
    code = (
        "import json,socket\n"
        "def ask(m, **p):\n"
        "    s=socket.socket(socket.AF_UNIX); s.connect('/run/nestrt/guest.sock')\n"
        "    s.sendall(json.dumps({'method':'io.nestrt.Guest.'+m,'parameters':p}).encode()+b'\\0')\n"
        "    b=b''\n"
        "    while not b.endswith(b'\\0'): b+=s.recv(65536)\n"
        "    return json.loads(b[:-1])\n"
        "print(json.dumps([ask('Info'), ask('Create',group='db',settings={'memory.max':'16M'}), ask('Get',group='db',"
        "keys=['memory.max']), ask('Set',group='/',settings={'memory.max':'64M'}), ask('List'), "
        "ask('Devices',group='db',only=['c 1:3 rwm']), ask('Devices',group='db',allow=['b 8:0 rwm'])]))\n"
    )
    guest.python(f"open('/mnt/ask.py','w').write({code!r})")
    told = guest.shell(
        f"/mkroot /mnt/root; cp /mnt/ask.py /mnt/root/ask.py; {COMMAND} launch --name inner -m 32M --broker required "
        f"{mounts} -- /usr/bin/python3 -I /ask.py"
    )
    info, made, got, locked, listed, devices, more = json.loads(told.splitlines()[-1])
    assert (info["parameters"]["name"], info["parameters"]["level"]) == ("inner", 2)
    assert "error" not in made, made
    assert got["parameters"]["values"] == {"memory.max": "16M"}
    assert locked["error"].endswith("NotPossible")
    assert [g["name"] for g in listed["parameters"]["groups"]] == ["/", "/db", "/init"]
    # No level but the host's can set device rules: G's broker asks it to, and it looks at them as at G's own.
    assert devices == {"parameters": {"rules": ["c 1:3 rwm"], "own": True}}
    assert more["error"].endswith("BadValue"), more


@pytest.mark.slow_on_vm
def test_a_peer_that_is_not_in_the_guest(start: Start) -> None:
    """Root of the host, at the socket's place on the host: it is in no group of the guest."""
    guest = start()
    path = f"/run/nestrt/broker/{guest.name}/guest.sock"
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        one.settimeout(10 * SLOW)
        one.sendall(b'{"method":"io.nestrt.Guest.Info"}\0')
        reply = json.loads(one.recv(65536).rstrip(b"\0"))
    assert reply["error"] == "io.nestrt.Guest.NotPermitted"
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    assert not os.path.exists("/run/nestrt/guest.sock")


def test_what_the_hosts_root_may_ask(start: Start, broker: Broker) -> None:
    """Describe, Audit and Rules of a guest; Drain ends the broker in order, and the next one takes over."""
    guest = start()
    guest.call("Create", group="web", settings={"memory.max": "64M"})
    described = broker.call("Describe", guest=guest.name)["description"]
    assert described["name"] == guest.name
    assert "/web" in json.dumps(described)
    lines = broker.call("Audit", guest=guest.name, lines=1)["entries"]
    assert [(entry["group"], entry["new"]) for entry in lines] == [("/web", "64M")]
    assert broker.call("Rules", guest=guest.name) == {"rules": []}
    with pytest.raises(Refused) as unknown:
        broker.call("Describe", guest="nestrt-nobody")
    assert unknown.value.error == "NotFound"
    broker.call("Drain")
    assert broker.process is not None
    assert broker.process.wait(20 * SLOW) == 0
    broker.process = None
    broker.start()
    wait_for(lambda: answers(guest), "the socket in the guest", 20)
    assert guest.call("Get", group="web", keys=["memory.max"])["values"] == {"memory.max": "64M"}
    broker.call("Release", guest=guest.name)
    wait_for(lambda: not answers(guest), "the end of its service", 20)


def test_the_plan_says_that_a_broker_is_asked(nestrt: Nestrt, busybox: Path) -> None:
    words = ("--dry-run", "--rootfs", busybox, "--name", "web", "--", "true")
    assert "listen for" not in nestrt.launch(*words).ok().out
    told = nestrt.launch("--broker", "required", *words).ok().out
    assert "have the broker listen for web" in told
    assert "bind /run/nestrt/broker/web/guest.sock at /run/nestrt/guest.sock" in told
