"""``nestrt broker status``, ``rules``, ``release``, ``drain``: what the host's root asks its broker.

    host       nestrt broker STATUS… ── /run/nestrt/host.sock ──▶ nestrt broker
    ├ /nestrt/A/guest          served; its agent asks, too
    │ ├ init                   where its processes start
    │ ├ hosts                  where the host's rules want some of them
    │ └ own                    where its own rules do
    ├ /nestrt/B/guest          served
    └ /nestrt-oci-t-…/A        a container that has A's name
"""

from __future__ import annotations

import csv
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nestrt.host.schema_all import schema
from support.broker import Broker, BrokerGuest, settled, start_guest
from support.bundles import Bundle
from support.guests import MODES
from support.hostside import limit_group, mark
from support.need import SLOW
from support.rootfs import CHECKOUT, COMMAND, PythonRoot
from support.runner import Nestrt, Result, wait_for
from support.served import groups_of

Start = Callable[..., BrokerGuest]
USER, OTHER = 1000, 1001


@pytest.fixture
def start(broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> Iterator[Start]:
    """Start a guest with more options; at the end the broker has let go of it."""
    if not broker.runs:
        broker.start()
    started: list[str] = []

    def begin(*options: str) -> BrokerGuest:
        started.append(new_guest())
        return start_guest(nestrt, python, started[-1], *options)

    yield begin
    nestrt.stop()
    for name in started:
        wait_for(lambda name=name: not Path("/run/nestrt/broker", name).exists(), f"the socket of {name} to go", 20)


@pytest.fixture
def ask(nestrt: Nestrt) -> Callable[..., Result]:
    """``nestrt broker WORDS``; pyroute2 is imported by the broker that the first rules are for."""
    return lambda *words, **named: nestrt.run("broker", *words, timeout=60, **named)


def refused(result: Result, status: int, *texts: str) -> None:
    """One line that says *texts*, no output, and *status*."""
    assert (result.rc, result.out) == (status, ""), result
    assert len(result.err.splitlines()) == 1, result
    for text in ("nestrt: cannot ", *texts):
        assert text in result.err, result


def served(ask: Callable[..., Result]) -> dict[str, dict[str, Any]]:
    """The rows of status, by the guests' names, which its schema allows."""
    rows = json.loads(ask("status", "--format", "json").ok().out)
    jsonschema.Draft202012Validator(schema("broker")).validate(rows)
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    return {row["name"]: row for row in rows}


def answers(guest: BrokerGuest) -> bool:
    code = "try:\n    connect().close()\n    result = True\nexcept OSError:\n    result = False\n"
    return bool(guest.python(code))


def group_of(guest: BrokerGuest, number: int) -> str:
    """The group of the process that the guest calls *number*."""
    found = guest.call("Processes", recursive=True)["processes"]
    return str({one["pid"]: one["group"] for one in found}.get(number))


def placed(guest: BrokerGuest, user: int, group: str) -> int:
    """Wait until a new process of *user*'s is in *group*; its number in the guest."""
    number = guest.spawn("exec sleep 1000", user=user)
    wait_for(lambda: group_of(guest, number) == group, f"a process of {user} in {group}")
    return number


# status


@pytest.mark.parametrize("mode", ["userns", pytest.param("nouserns", marks=pytest.mark.slow_on_vm)])
def test_status_of_two_guests(start: Start, ask: Callable[..., Result], mode: str) -> None:
    """Each with what it has asked, was refused, and has set; machines get the sockets too."""
    busy, idle = start(*MODES[mode]), start()
    before = served(ask)[busy.name]
    guest_rules = [f"{USER} * own", f"{OTHER} * other"]
    busy.call("Rules", rules=guest_rules)
    busy.call("Create", group="web", settings={"memory.max": "16M"})
    busy.call("React", reaction={"group": "web", "on": "oom", "action": "kill"})
    busy.refused("Set", group="/", settings={"memory.max": "1G"})
    busy.order("stream", method="io.nestrt.Guest.Events", parameters={}, key="events")
    ask("rules", busy.name, "-", input=f"# the host's\n\n{USER}:sleep * hosts\n").ok()
    wait_for(lambda: served(ask)[busy.name]["connections"] == 1, "the stream's connection alone")
    rows = served(ask)
    one, other = rows[busy.name], rows[idle.name]
    assert (one["level"], one["group"], one["pid"]) == (1, limit_group(busy.name), mark(limit_group(busy.name))["pid"])
    assert (one["requests"] - before["requests"], one["refused"] - before["refused"]) == (5, 1)
    assert (one["host_rules"], one["rules"], one["reactions"]) == (1, 2, 1)
    assert one["socket"] == f"/run/nestrt/broker/{busy.name}/guest.sock"
    assert (other["pid"], other["refused"]) == (mark(limit_group(idle.name))["pid"], 0)
    assert (other["host_rules"], other["rules"], other["reactions"], other["connections"]) == (0, 0, 0, 0)

    heading, *lines = ask("status").ok().out.splitlines()
    assert heading.split()[:7] == ["NAME", "LEVEL", "GROUP", "PID", "CONNECTIONS", "REQUESTS", "REFUSED"]
    assert [line.split()[:4] for line in lines if line.split()[0] == busy.name] == [
        [busy.name, "1", limit_group(busy.name), str(one["pid"])]
    ]
    found = {row["name"]: row for row in csv.DictReader(ask("status", "--format", "csv").ok().out.splitlines())}
    assert (found[busy.name]["socket"], found[busy.name]["rules"]) == (one["socket"], "2")
    shown = ask("status", "--format", "{{.Name}} {{.Reactions}}").ok().out.splitlines()
    assert {f"{busy.name} 1", f"{idle.name} 0"} <= set(shown)


@pytest.mark.slow_on_vm
def test_a_guest_that_is_announced_is_shown_before_it_is_made(start: Start, ask: Callable[..., Result]) -> None:
    start()
    one = "nestrt-t-announced"
    broker = Broker()
    try:
        broker.call("Serve", guest=one, cgroup=f"/nestrt/{one}")
        found = served(ask)[one]
        assert (found["level"], found["pid"], found["rules"], found["host_rules"]) == (None, None, 0, 0)
        assert [line.split()[1:4] for line in ask("status").ok().out.splitlines() if line.split()[0] == one] == [
            ["-", f"/nestrt/{one}", "-"]
        ]
    finally:
        ask("release", one).ok()
        broker.close()
    assert one not in served(ask)


# rules


@pytest.mark.parametrize("mode", ["userns", pytest.param("nouserns", marks=pytest.mark.slow_on_vm)])
def test_rules_place_new_processes(
    start: Start, broker: Broker, ask: Callable[..., Result], tmp_path: Path, mode: str
) -> None:
    """From a file, before the guest's own, with the guest's names; over the broker's end; until they are cleared."""
    guest = start(*MODES[mode])
    guest.call("Rules", rules=["* * own"])
    file = tmp_path / "rules"
    file.write_text("# user[:process]  controllers  destination\n\nuser:sleep * hosts/%u\n")
    assert ask("rules", guest.name).ok().out == ""
    assert ask("rules", guest.name, str(file)).ok().out == ""
    assert ask("rules", limit_group(guest.name)).ok().out == "user:sleep * hosts/%u\n"
    placed(guest, USER, "/hosts/user")
    placed(guest, OTHER, "/own")
    assert guest.call("Rules") == {"rules": ["* * own"]}, "the guest is not told of them"

    broker.restart(signal.SIGKILL)
    wait_for(lambda: answers(guest), "the socket in the guest", 20)
    placed(guest, USER, "/hosts/user")
    assert json.loads(ask("rules", guest.name, "--format", "json").ok().out) == ["user:sleep * hosts/%u"]
    cleared = ask("rules", guest.name, "--clear", "--format", "json").ok()
    assert json.loads(cleared.out) == []
    placed(guest, USER, "/own")
    settled()
    found = [(one["old"], one["new"]) for one in broker.entries(guest.name) if one["key"] == "host rules"]
    assert found == [([], ["user:sleep * hosts/%u"]), (["user:sleep * hosts/%u"], [])]


@pytest.mark.slow_on_vm
def test_bad_rules_change_nothing(start: Start, broker: Broker, ask: Callable[..., Result], tmp_path: Path) -> None:
    guest = start()
    good = f"{USER} * hosts"
    ask("rules", guest.name, "-", input=good).ok()
    bad = {
        f"{good}\n{OTHER} *\n": [f"set the rules of {guest.name}: line 2", "2 words", "write it like"],
        f"{OTHER} * ../x\n": ["line 1", "../x"],
        f"{OTHER} nothing x\n": ["no controller 'nothing'", "it has: "],
        "nobody-knows-him * x\n": ["no user 'nobody-knows-him'", "make it first"],
        f'"{OTHER} * x\n': ["a quote that does not end"],
        f"{OTHER} * \x1b[31m\n": ["cannot be printed"],
        f"{good}\n" * 300: ["more than 256 lines"],
        f"# {good}\n": ["there are none in -", "--clear"],
    }
    for text, words in bad.items():
        refused(ask("rules", guest.name, "-", input=text), 2, *words)
    refused(ask("rules", guest.name, str(tmp_path / "none")), 3, "No such file")
    refused(ask("rules", guest.name, str(tmp_path)), 1, "Is a directory")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    refused(ask("rules", guest.name, str(tmp_path / "binary")), 2, "it is no text")
    refused(ask("rules", guest.name, "-", "--clear", input=good), 2, "exclude each other")
    refused(ask("rules"), 2, "GUEST")
    assert ask("rules", guest.name).ok().out == good + "\n"
    placed(guest, USER, "/hosts")
    assert [one["new"] for one in broker.entries(guest.name) if one["key"] == "host rules"] == [[good]]


@pytest.mark.slow_on_vm
def test_from_the_host_the_guests_command_names_this_one(start: Start, nestrt: Nestrt) -> None:
    guest = start()
    told = nestrt.run("guest", "--of", guest.name, "rules")
    refused(told, 5, f"nestrt broker rules {guest.name}", "run it in the guest")
    assert "broker rules" not in nestrt.run("guest", "--of", f"{guest.name}/inner", "rules").err
    assert "broker rules" not in nestrt.run("guest", "--of", guest.name, "ps").err


# Which guest.


@pytest.mark.slow_on_vm
def test_a_guest_that_is_not_served(start: Start, ask: Callable[..., Result]) -> None:
    unserved = start("--broker", "none")
    for name in ("nestrt-nobody", unserved.name, "/nestrt/nestrt-nobody", f"{unserved.name}/inner"):
        refused(ask("rules", name), 3, f"find guest {name}", "not served", "nestrt broker status")
        refused(ask("release", name), 3, f"find guest {name}", "not served")
    assert unserved.name not in served(ask)


def test_two_guests_of_one_name(start: Start, ask: Callable[..., Result], bundle: Bundle) -> None:
    """A launched one and a container: the name alone changes neither, the limit group the one that is meant."""
    guest = start()
    bundle.id, bundle.cgroup = guest.name, f"{bundle.cgroup.rpartition('/')[0]}/{guest.name}"
    bundle.config["linux"]["cgroupsPath"] = bundle.cgroup
    options = ["nosuid", "nodev", "mode=755"]
    bundle.config["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": options})
    bundle.virtual().annotate(level__broker="required").up()
    both = (limit_group(guest.name), bundle.cgroup)
    for words in (("rules", guest.name), ("rules", guest.name, "-"), ("rules", guest.name, "--clear")):
        refused(ask(*words, input="* * x"), 2, "2 are called so", *both)
    refused(ask("release", guest.name), 2, "2 are called so", *both)
    ask("rules", bundle.cgroup, "-", input="* * theirs").ok()
    assert (ask("rules", both[0]).ok().out, ask("rules", both[1]).ok().out) == ("", "* * theirs\n")
    wait_for(lambda: set(groups_of(bundle.pid).values()) >= {f"{bundle.cgroup}/guest/theirs"}, "its process's place")
    ask("release", bundle.cgroup).ok()
    assert ask("rules", guest.name).ok().out == ""
    assert answers(guest)


# Who may, and whom there is to ask.


@pytest.mark.slow_on_vm
def test_no_broker(start: Start, broker: Broker, ask: Callable[..., Result]) -> None:
    """Ended in order, without a socket, or killed, with one that nobody listens on."""
    guest = start()
    for number in (signal.SIGTERM, signal.SIGKILL):
        broker.stop(number)
        try:
            for words in (("status",), ("rules", guest.name), ("release", guest.name), ("drain",)):
                refused(ask(*words), 5, "none listens on /run/nestrt/host.sock", "start one: nestrt broker")
            refused(ask("rules", guest.name, "-", input="* * x"), 5, "none listens")
        finally:
            broker.start()
    wait_for(lambda: answers(guest), "the socket in the guest", 20)


@pytest.mark.slow_on_vm
def test_only_root_may(start: Start, nestrt: Nestrt, ask: Callable[..., Result]) -> None:
    guest = start()
    for words in (("status",), ("rules", guest.name, "--clear"), ("release", guest.name), ("drain",)):
        command = [nestrt.command, "broker", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, user=65534, group=65534, extra_groups=[], cwd=CHECKOUT,
            timeout=60 * SLOW, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        refused(Result(tuple(command), done.returncode, done.stdout, done.stderr), 5, "only root", "run it as root")
    assert guest.name in served(ask)


def test_root_of_a_guest_is_not_the_hosts(start: Start, ask: Callable[..., Result]) -> None:
    """Without a user namespace it has the same number, and somebody has let it see the host's socket."""
    guest = start("--userns", "none", "--mount", "type=bind,source=/run/nestrt/host.sock,target=/run/nestrt/host.sock")
    told = guest.order("shell", command=f"{COMMAND} broker rules {guest.name} --clear")
    refused(Result(("in the guest",), told["rc"], told["out"], told["err"]), 5, "PermissionDenied")
    assert guest.name in served(ask)


@pytest.mark.slow_on_vm
def test_a_guests_broker_has_no_rules_to_offer(start: Start, python: PythonRoot) -> None:
    """
    host                its broker serves G
    └ G                 runs a broker of its own, which serves inner: status and release as here
      └ inner           no rules for it: G's broker does not hear what its processes do, the host's does not serve it
    """
    guest = start("--mount", "type=tmpfs,target=/var,size=16M", "--mount", "type=tmpfs,target=/mnt,size=64M")
    guest.shell("mkdir -p /var/log")
    none = guest.order("shell", command=f"{COMMAND} broker status")
    refused(Result(("in the guest",), none["rc"], none["out"], none["err"]), 5, "start one: nestrt broker")
    guest.spawn(f"exec {COMMAND} broker --audit /var/log/audit >/var/log/broker 2>&1")
    wait_for(lambda: "host.sock" in guest.shell("ls /run/nestrt").split(), "the inner broker", 60)
    mounts = " ".join(f"'{word}'" for word in python.inner_options("/mnt/root"))
    launch = f"launch -d --name inner --broker required {mounts} -- /usr/bin/sleep 1000"
    guest.shell(f"/mkroot /mnt/root; {COMMAND} {launch}")
    (row,) = json.loads(guest.shell(f"{COMMAND} broker status --format json"))
    assert (row["name"], row["level"], row["group"]) == ("inner", 2, "/nestrt/inner")
    told = guest.order("shell", command=f"echo '* * x' | {COMMAND} broker rules inner -")
    refused(Result(("in the guest",), told["rc"], told["out"], told["err"]), 5, "process events", "initial namespaces")
    assert guest.shell(f"{COMMAND} broker rules inner") == ""
    guest.shell(f"{COMMAND} broker release inner && {COMMAND} delete --force inner")
    assert json.loads(guest.shell(f"{COMMAND} broker status --format json")) == []


# release, drain


def test_release(start: Start, broker: Broker, ask: Callable[..., Result]) -> None:
    """The guest runs on without a broker, the other one is served; a broker that is started anew serves both."""
    guest, other = start(), start()
    guest.call("Create", group="web")
    assert ask("release", guest.name).ok().out == ""
    wait_for(lambda: not answers(guest), "the end of its service")
    found = served(ask)
    assert (guest.name in found, other.name in found, answers(other)) == (False, True, True)
    refused(ask("release", guest.name), 3, "not served")
    assert guest.shell("ls -d /sys/fs/cgroup/*/web /sys/fs/cgroup/web 2>/dev/null || true")
    broker.restart(signal.SIGTERM)
    wait_for(lambda: answers(guest), "its service by the next one", 20)
    assert {group["name"] for group in guest.call("List")["groups"]} >= {"/web"}


def test_drain(start: Start, broker: Broker, ask: Callable[..., Result]) -> None:
    """It ends with status 0 once what was asked is done; guests wait for the next one, and have what they had."""
    guest = start()
    ask("rules", guest.name, "-", input=f"{USER} * hosts").ok()
    assert ask("drain").ok().out == ""
    assert broker.process is not None
    assert broker.process.wait(20 * SLOW) == 0
    broker.process = None
    refused(ask("status"), 5, "none listens")
    broker.start()
    wait_for(lambda: answers(guest), "the socket in the guest", 20)
    assert ask("rules", guest.name).ok().out == f"{USER} * hosts\n"
    placed(guest, USER, "/hosts")
