"""``--net veth`` on the real kernel, in network namespaces of the test's own.

::

    the test's process                     guests (unshare -n)        outside (unshare -n)
    10.213.0.1/22 nestrt0 ─┬─ nestrtXXXXXXXX ── eth0 10.213.0.2
      (a fresh namespace)  └─ nestrtXXXXXXXX ── eth0 10.213.0.3
    192.0.2.1/24 nestrtup0 ───────────────────────────────────────── nestrtup1 192.0.2.2/24

The test's process is the host: it moves to a network namespace of its own and
comes back at the end, so that the machine's network is never touched.
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nestrt.errors import HostError, KernelError, NotFound, StateError
from nestrt.net import nat
from nestrt.net.library import find_pyroute2
from nestrt.net.veth import connect, disconnect, interface_name, reserved
from support.need import SLOW, require
from support.runner import wait_for

# Networks do not depend on the version of cgroups.
pytestmark = pytest.mark.slow_on_vm

CLONE_NEWNET = 0x40000000  # <linux/sched.h>
CHECKOUT = str(Path(__file__).resolve().parents[2])
PORT = 7
libc = ctypes.CDLL(None, use_errno=True)

# Answers every connection with the client's address and its own label.
SERVER = f"""
import socket, sys
server = socket.create_server(("", {PORT}))
print("ready", flush=True)
while True:
    client, peer = server.accept()
    client.sendall(f"{{sys.argv[1]}} {{peer[0]}}".encode())
    client.close()
"""
# ADDRESS SECONDS [SOURCE]: prints the answer, or nothing.
CLIENT = f"""
import socket, sys
source = (sys.argv[3], 0) if len(sys.argv) > 3 else None
try:
    link = socket.create_connection((sys.argv[1], {PORT}), timeout=float(sys.argv[2]), source_address=source)
    print(link.recv(100).decode(), end="")
except OSError:
    pass
"""
PYTHON = ("/usr/bin/python3", "-IS", "-c")

Spawn = Callable[..., subprocess.Popen[str]]


class Guest:
    """A process in a network namespace of its own."""

    def __init__(self, spawn: Spawn, *options: str) -> None:
        self.spawn = spawn
        self.process = spawn("unshare", *options, "--net", "sh", "-c", "echo ready; exec sleep 600")
        self.pid = self.process.pid

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", *words]

    def run(self, *words: str) -> str:
        return subprocess.run(self.command(*words), check=True, capture_output=True, text=True).stdout

    def serve(self, label: str) -> None:
        self.spawn(*self.command(*PYTHON, SERVER, label))

    def ask(self, address: str, seconds: float = 5, *source: str) -> str:
        return self.run(*PYTHON, CLIENT, address, str(seconds * min(SLOW, 5)), *source)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """A function that starts a command and waits for the first line it prints. All are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", f"{words} did not start"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture
def host(spawn: Spawn) -> Iterator[None]:
    """Make the test's process the host of an empty network; it must be in the same one at the end."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        require("net", f"unshare(CLONE_NEWNET): {os.strerror(ctypes.get_errno())}")
    fresh = os.stat("/proc/thread-self/ns/net").st_ino
    try:
        ip("link", "set", "lo", "up")
        yield
        assert os.stat("/proc/thread-self/ns/net").st_ino == fresh
    finally:
        assert libc.setns(own, CLONE_NEWNET) == 0
        os.close(own)


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "net")


@pytest.fixture
def new_netns(spawn: Spawn, host: None) -> Callable[..., Guest]:
    return lambda *options: Guest(spawn, *options)


@pytest.fixture
def outside(new_netns: Callable[..., Guest]) -> Guest:
    """A neighbour of the host, with a server, that knows nothing of the guests' subnet."""
    neighbour = new_netns()
    ip("link", "add", "nestrtup0", "type", "veth", "peer", "name", "nestrtup1", "netns", str(neighbour.pid))
    ip("address", "add", "192.0.2.1/24", "dev", "nestrtup0")
    ip("link", "set", "nestrtup0", "up")
    neighbour.run("ip", "address", "add", "192.0.2.2/24", "dev", "nestrtup1")
    neighbour.run("ip", "link", "set", "nestrtup1", "up")
    neighbour.serve("outside")
    return neighbour


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def leftovers(state: str) -> list[str]:
    """What nestrt has in this network namespace and in *state*."""
    found = [f"interface {link['ifname']}" for link in json.loads(ip("-j", "link")) if "nestrt" in link["ifname"]]
    found += [f"table {family}" for family in tables()]
    return found + [f"reservation {address}" for address in reserved(state)]


def tables() -> list[int]:
    """The families of the nftables tables called nestrt."""
    find_pyroute2()
    from pyroute2.nftables.main import NFTables

    families = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with NFTables(nfgen_family=family) as nft:
            for table in nft.get_tables():
                if table.get_attr("NFTA_TABLE_NAME") == nat.TABLE:
                    families.append(int(table["nfgen_family"]))
    return families


def address_of(net: dict[str, str]) -> str:
    return net["address"].partition("/")[0]


def test_connect_gives_address_gateway_and_route(new_netns: Callable[..., Guest], state: str) -> None:
    guest = new_netns()
    net = connect("web", guest.pid, state)
    assert net == {
        "mode": "veth",
        "bridge": "nestrt0",
        "address": "10.213.0.2/22",
        "gateway": "10.213.0.1",
        "interface": interface_name("web"),
        "mac": "02:4e:0a:d5:00:02",
    }
    assert len(net["interface"]) <= 15
    assert reserved(state) == {"10.213.0.2": "web"}
    links = {link["ifname"]: link for link in json.loads(guest.run("ip", "-j", "address"))}
    assert set(links) == {"lo", "eth0"}
    assert "UP" in links["lo"]["flags"]
    assert "UP" in links["eth0"]["flags"]
    assert links["eth0"]["address"] == net["mac"]
    assert "default via 10.213.0.1 dev eth0" in guest.run("ip", "route")

    server = socket.create_server(("10.213.0.1", PORT))
    with server:
        client = subprocess.Popen(guest.command(*PYTHON, CLIENT, "10.213.0.1", "5"), stdout=subprocess.PIPE)
        server.settimeout(5 * SLOW)
        link, peer = server.accept()
        with link:
            link.sendall(b"hello")
        assert client.communicate()[0] == b"hello"
    assert peer[0] == "10.213.0.2"

    disconnect("web", state)
    assert leftovers(state) == []
    disconnect("web", state)
    disconnect("never", state)
    assert leftovers(state) == []


def test_nat_translates_and_lets_nothing_in(new_netns: Callable[..., Guest], outside: Guest, state: str) -> None:
    guest = new_netns()
    address = address_of(connect("web", guest.pid, state))
    assert guest.ask("192.0.2.2") == "outside 192.0.2.1"

    # A neighbour that guesses the subnet sets a route through the host. Control: the host itself gets an answer.
    guest.serve("web")
    assert ask(address) == "web 10.213.0.1"
    outside.run("ip", "route", "add", "10.213.0.0/22", "via", "192.0.2.1")
    assert outside.ask(address, 1) == ""

    # A packet with someone else's source would leave untranslated.
    guest.run("ip", "address", "add", "203.0.113.9/32", "dev", "eth0")
    outside.run("ip", "route", "add", "203.0.113.9/32", "via", "192.0.2.1")
    ip("route", "add", "203.0.113.9/32", "dev", "nestrt0")
    assert guest.ask("192.0.2.2", 1, "203.0.113.9") == ""


def test_administrators_dnat_publishes_a_port(new_netns: Callable[..., Guest], outside: Guest, state: str) -> None:
    guest = new_netns()
    address = address_of(connect("web", guest.pid, state))
    guest.serve("web")
    rules = f"""table ip nestrt-test-publish {{
        chain prerouting {{ type nat hook prerouting priority -100;
            ip daddr 192.0.2.1 tcp dport {PORT} dnat to {address}
        }}
    }}"""
    try:
        problem = subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True, check=False).stderr
    except FileNotFoundError as error:
        problem = str(error)
    require("nft", problem)
    assert outside.ask("192.0.2.1") == "web 192.0.2.2"


def ask(address: str) -> str:
    """The answer of the server at *address* to the host."""
    with socket.create_connection((address, PORT), timeout=5 * SLOW) as link:
        return link.recv(100).decode()


def test_guests_do_not_reach_each_other(new_netns: Callable[..., Guest], state: str) -> None:
    a, b = new_netns(), new_netns()
    nets = {guest: connect(name, guest.pid, state) for guest, name in ((a, "a"), (b, "b"))}
    address = address_of(nets[b])
    b.serve("b")
    assert ask(address) == "b 10.213.0.1"
    assert a.ask(address, 1) == ""

    # The isolated ports hold without the rules too.
    nat.remove()
    assert a.ask(address, 1) == ""
    # The detour, agreed between the two: frames for each other go to the gateway, which forwards.
    mac = json.loads(ip("-j", "link", "show", "nestrt0"))[0]["address"]
    for guest, other in ((a, b), (b, a)):
        guest.run("ip", "neigh", "replace", address_of(nets[other]), "lladdr", mac, "dev", "eth0")
    assert a.ask(address) == f"b {address_of(nets[a])}"
    nat.install("nestrt0", ipaddress.IPv4Network("10.213.0.0/22"))
    assert a.ask(address, 1) == ""


def test_guest_cannot_take_anothers_traffic(new_netns: Callable[..., Guest], state: str) -> None:
    a, b = new_netns(), new_netns()
    connect("a", a.pid, state)
    net = connect("b", b.pid, state)
    b.serve("b")
    a.serve("a")
    a.run("ip", "link", "set", "eth0", "address", net["mac"])
    a.run("ip", "address", "add", net["address"], "dev", "eth0")
    # Frames from b's address on a's port: a bridge that learns would move b there.
    a.ask("10.213.0.1", 0.5, address_of(net))
    assert ask(address_of(net)) == "b 10.213.0.1"


def test_ipv6_ends_at_the_bridge(new_netns: Callable[..., Guest], state: str, spawn: Spawn) -> None:
    """Else a guest's router advertisement would change the host's routes."""
    guest = new_netns()
    connect("web", guest.pid, state)
    links = json.loads(ip("-j", "-6", "address", "show", "nestrt0"))
    require("ipv6", None if links else "no IPv6 in this kernel")
    spawn(*PYTHON, SERVER.replace('create_server(("",', 'create_server(family=socket.AF_INET6, address=("::",'), "host")
    address = links[0]["addr_info"][0]["local"] + "%eth0"
    nat.remove()
    # Control; at first the addresses are tentative, until nobody else is found to have them.
    answer = wait_for(lambda: guest.ask(address, 1), "an answer", 20)
    assert answer.startswith("host fe80:")
    nat.install("nestrt0", ipaddress.IPv4Network("10.213.0.0/22"))
    assert guest.ask(address, 1) == ""


def in_child(work: Callable[[], Any]) -> tuple[int, int]:
    """Run *work* in a forked child; its pid, and a descriptor from which its result comes as JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        os.write(writing, json.dumps(work()).encode())
        status = 0
    except BaseException as error:
        os.write(writing, json.dumps(repr(error)).encode())
    finally:
        os._exit(status)


def finish(pid: int, reading: int) -> tuple[int, Any]:
    """The wait status of such a child, and its result."""
    with open(reading, encoding="utf-8") as file:
        text = file.read()
    return os.waitpid(pid, 0)[1], json.loads(text) if text else None


def test_ten_at_the_same_time(new_netns: Callable[..., Guest], state: str) -> None:
    find_pyroute2()  # before the forks: they are to meet in the kernel, not in imports
    guests = {f"guest{number}": new_netns() for number in range(10)}
    children = [in_child(lambda n=name, g=guest: connect(n, g.pid, state)) for name, guest in guests.items()]
    results = [finish(*child) for child in children]
    assert [status for status, _ in results] == [0] * 10, results
    addresses = {address_of(net) for _, net in results}
    assert addresses == {f"10.213.0.{last}" for last in range(2, 12)}
    assert set(reserved(state).values()) == set(guests)

    with socket.create_server(("10.213.0.1", PORT)) as server:
        server.settimeout(5 * SLOW)
        for guest in guests.values():
            client = subprocess.Popen(guest.command(*PYTHON, CLIENT, "10.213.0.1", "5"), stdout=subprocess.PIPE)
            link, peer = server.accept()
            link.close()
            client.communicate()
            addresses.remove(peer[0])
    assert not addresses

    children = [in_child(lambda n=name: disconnect(n, state)) for name in guests]
    results = [finish(*child) for child in children]
    assert [status for status, _ in results] == [0] * 10, results
    assert leftovers(state) == []


@pytest.mark.slow_on_vm
def test_killed_at_any_call_to_the_kernel(new_netns: Callable[..., Guest], state: str) -> None:
    """SIGKILL before the first, second, … call that may change something; disconnect removes all of it."""
    find_pyroute2()
    guest = new_netns()
    calls = {"send", "sendto", "sendmsg", "symlink", "mkdir", "write", "bind", "flock"}

    def killed_at(number: int) -> Callable[[], dict[str, str]]:
        seen = 0

        def count(_frame: Any, event: str, function: Any) -> None:
            nonlocal seen
            if event == "c_call" and function.__name__ in calls:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        def work() -> dict[str, str]:
            sys.setprofile(count)
            net = connect("web", guest.pid, state)
            sys.setprofile(None)
            return net

        return work

    left: set[str] = set()
    for number in range(1, 200):
        status, net = finish(*in_child(killed_at(number)))
        left.update(leftovers(state))
        disconnect("web", state)
        assert leftovers(state) == [], f"after a kill at call {number}"
        if net is not None:
            break
        assert os.WIFSIGNALED(status), number
    else:
        pytest.fail("connect never came to its end")
    # The kills did fall into the middle.
    assert {word.split()[0] for word in left} == {"interface", "table", "reservation"}
    assert number > 10
    guest = new_netns()
    assert connect("web", guest.pid, state)["address"] == "10.213.0.2/22"


def test_bridge_stays_for_the_others_and_dead_guests_are_no_obstacle(
    new_netns: Callable[..., Guest], state: str
) -> None:
    a, b = new_netns(), new_netns()
    connect("a", a.pid, state)
    connect("b", b.pid, state)
    disconnect("a", state)
    assert f"interface {interface_name('b')}" in leftovers(state)
    assert reserved(state) == {"10.213.0.3": "b"}
    # b's namespace goes with its process, and its interface with the namespace, some time later.
    b.process.kill()
    b.process.wait()
    disconnect("b", state)
    assert leftovers(state) == []


def test_name_in_use_own_namespace_and_no_process(new_netns: Callable[..., Guest], state: str) -> None:
    guest = new_netns()
    connect("web", guest.pid, state)
    before = leftovers(state)
    with pytest.raises(StateError, match=r"there already; run nestrt gc"):
        connect("web", new_netns().pid, state)
    assert leftovers(state) == before
    with pytest.raises(StateError, match="no network namespace of its own"):
        connect("self", os.getpid(), state)
    guest.process.kill()
    guest.process.wait()
    with pytest.raises(NotFound):
        connect("gone", guest.pid, state)
    disconnect("web", state)
    assert leftovers(state) == []


def test_subnet_avoids_the_hosts_routes(new_netns: Callable[..., Guest], state: str) -> None:
    ip("route", "add", "unreachable", "10.213.0.0/16", "table", "77")
    ip("address", "add", "10.214.1.1/32", "dev", "lo")
    guest = new_netns()
    net = connect("web", guest.pid, state)
    assert net["gateway"] == "10.215.0.1"
    assert ipaddress.IPv4Interface(net["address"]).network == ipaddress.IPv4Network("10.215.0.0/22")


def test_administrators_bridge_is_used_and_stays(new_netns: Callable[..., Guest], state: str) -> None:
    ip("link", "add", "nestrt0", "type", "bridge")
    ip("address", "add", "198.51.100.9/29", "dev", "nestrt0")
    net = [connect(f"guest{number}", new_netns().pid, state)["address"] for number in range(5)]
    assert net == [f"198.51.100.{last}/29" for last in (10, 11, 12, 13, 14)]
    with pytest.raises(HostError, match=r"every address of 198\.51\.100\.8/29 is in use"):
        connect("full", new_netns().pid, state)
    for number in range(5):
        disconnect(f"guest{number}", state)
    assert leftovers(state) == ["interface nestrt0"]


def test_foreign_interface_of_that_name_is_left_alone(new_netns: Callable[..., Guest], state: str) -> None:
    ip("link", "add", "nestrt0", "type", "veth", "peer", "name", "other")
    with pytest.raises(HostError, match="it is no bridge"):
        connect("web", new_netns().pid, state)
    disconnect("web", state)
    assert leftovers(state) == ["interface nestrt0"]


def test_failure_in_the_guest_is_undone(new_netns: Callable[..., Guest], state: str) -> None:
    guest = new_netns()
    guest.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    with pytest.raises(KernelError, match=r"cannot add interface .* of guest web: File exists"):
        connect("web", guest.pid, state)
    assert leftovers(state) == []
    guest.run("ip", "link", "del", "eth0")
    # The last of all steps fails.
    guest.run("ip", "link", "set", "lo", "up")
    guest.run("ip", "route", "add", "default", "dev", "lo")
    with pytest.raises(KernelError, match="cannot configure eth0 of guest web: File exists"):
        connect("web", guest.pid, state)
    assert leftovers(state) == []


# A program that is itself a level: it makes a guest and connects it, and prints what came of it.
LEVEL = f"""
import json, os, subprocess, sys, threading
sys.path[:0] = [{CHECKOUT!r}]
from nestrt.errors import HostError
from nestrt.net.veth import connect, disconnect
before = os.stat("/proc/thread-self/ns/net").st_ino
guest = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
guest.stdout.readline()
try:
    net = connect("inner", guest.pid, sys.argv[1])
    print(json.dumps(net))
    disconnect("inner", sys.argv[1])
except HostError as error:
    print(error)
finally:
    guest.kill()
    guest.wait()
assert os.stat("/proc/thread-self/ns/net").st_ino == before
assert threading.active_count() == 1
assert len(os.listdir("/proc/self/task")) == 1
open_files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
assert len([name for name in open_files if os.path.exists(f"/proc/self/fd/{{name}}")]) <= 4, open_files
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no children")
"""


def level(state: str, *around: str) -> list[str]:
    """What LEVEL prints, run as the commands are: isolated, without site-packages."""
    command = [*around, *PYTHON, LEVEL, state]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_level_in_a_user_namespace(new_netns: Callable[..., Guest], state: str) -> None:
    """A guest that launches guests: the subnet differs from the one that it is in itself."""
    guest = new_netns("--user", "--map-root-user")
    connect("outer", guest.pid, state)
    enter = ("nsenter", "-t", str(guest.pid), "-U", "-n", "--preserve-credentials")
    net, children = level(state + "-inner", *enter)
    assert json.loads(net)["gateway"] == "10.214.0.1"
    assert children == "no children"
    assert len(json.loads(guest.run("ip", "-j", "link"))) == 2


def test_level_without_power_over_its_network(host: None, state: str) -> None:
    os.makedirs(state)
    error, children = level(state, "unshare", "--user", "--map-root-user")
    assert error.startswith("cannot add bridge nestrt0: Operation not permitted: ")
    assert error.endswith("use --net none or --net host")
    assert children == "no children"
    assert leftovers(state) == []


def test_proc_sys_read_only(host: None, state: str) -> None:
    with open(nat.IP_FORWARD, "w") as file:
        file.write("0\n")
    covered = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    error, _ = level(state, "unshare", "--mount", "sh", "-c", covered, "sh")
    assert error == (
        "cannot turn on /proc/sys/net/ipv4/ip_forward: Read-only file system; "
        "set net.ipv4.ip_forward=1 where that can be done, or use --net none or --net host"
    )
    assert leftovers(state) == []


def test_transaction_is_whole_or_nothing(host: None) -> None:
    find_pyroute2()
    family = int(socket.AF_INET)
    bad = nat._rule(family, "absent", nat._verdict(nat.NF_DROP))
    with pytest.raises(OSError, match="No such file or directory"):
        nat._transaction([*nat._fresh_table(family), bad])
    assert tables() == []
    nat.install("nestrt0", ipaddress.IPv4Network("10.213.0.0/22"))
    nat.install("nestrt0", ipaddress.IPv4Network("10.213.0.0/22"))
    assert sorted(tables()) == [socket.AF_INET, socket.AF_INET6]
    nat.remove()
    nat.remove()
    assert tables() == []


def test_nothing_to_disconnect_imports_nothing(host: None, state: str) -> None:
    script = f"import sys; sys.path[:0] = [{CHECKOUT!r}]\nfrom nestrt.net.veth import disconnect\n"
    script += "disconnect('web', sys.argv[1]); print('pyroute2' in sys.modules)"
    result = subprocess.run([*PYTHON, script, state], check=True, capture_output=True, text=True)
    assert result.stdout == "False\n"
