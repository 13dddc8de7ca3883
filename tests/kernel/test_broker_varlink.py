"""The broker's interfaces as others speak them: Varlink's own client for Python, and the bytes that README.md shows.

    guest                      io.nestrt.Guest   ◀── varlink (PyPI), which reads the interface and checks what it sends
    └ /run/nestrt/guest.sock                         and gets by it; socat and Python, with README.md's words
    host                       io.nestrt.Host    ◀── varlink
    └ /run/nestrt/host.sock
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nestrt.broker import idl
from support.broker import HOST_SOCKET, Broker, BrokerGuest, start_guest
from support.need import SLOW, require
from support.rootfs import CHECKOUT, OPT, PythonRoot
from support.runner import Nestrt

with warnings.catch_warnings():
    # Where nothing keeps it compiled: it has doc strings with a backslash.
    warnings.simplefilter("ignore")
    import varlink

LIMITS = ("-m", "256M", "--pids", "60")
SITE = str(Path(varlink.__file__).parents[1]).replace(str(CHECKOUT), OPT)
# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm
SERVICE, GUEST, HOST = "org.varlink.service", "io.nestrt.Guest", "io.nestrt.Host"

# In the guest: each test adds what sets result.
CLIENT = f"""
import socket, sys
if {SITE!r} not in sys.path:
    sys.path.append({SITE!r})
import varlink

client = varlink.Client("unix:/run/nestrt/guest.sock")

def opened(name):
    one = socket.socket(socket.AF_UNIX)
    one.settimeout({30 * SLOW})
    one.connect("/run/nestrt/guest.sock")
    return client.open(name, connection=one)

def error(function, *args, **named):
    try:
        return ["no error", function(*args, **named)]
    except varlink.VarlinkError as found:
        return [found.error(), found.parameters()]

def members(description):
    return sorted(varlink.Interface(description).members)
"""


@pytest.fixture
def guest(broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> BrokerGuest:
    return start_guest(nestrt, python, new_guest(), *LIMITS)


@contextmanager
def host() -> Iterator[Any]:
    """Varlink's client at the host's socket."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(30 * SLOW)
        one.connect(HOST_SOCKET)
        yield varlink.Client(f"unix:{HOST_SOCKET}").open(HOST, connection=one)


def without_nulls(value: Any) -> Any:
    """As the client gives it: an optional field that is null is not there."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def names_of(interface: str) -> list[str]:
    found = idl.interface(interface)
    return sorted([*found.types, *found.methods, *found.errors])


def test_it_tells_what_it_is(guest: BrokerGuest) -> None:
    """Each socket has its own interface and no other one's; the foreign parser finds in it what the broker's does."""
    info, texts, other, wrong = guest.python(CLIENT + f"""
with opened("{SERVICE}") as service:
    info = service.GetInfo()
    texts = {{name: service.GetInterfaceDescription(name)["description"] for name in info["interfaces"]}}
    other = error(service.GetInterfaceDescription, "{HOST}")
    wrong = error(opened, "io.nestrt.None")
result = [info, {{name: members(text) for name, text in texts.items()}}, other, wrong]
""")  # fmt: skip
    assert info["interfaces"] == [SERVICE, GUEST]
    assert (info["product"], info["vendor"]) == ("nestrt broker", "nestrt")
    assert texts == {SERVICE: names_of(SERVICE), GUEST: names_of(GUEST)}
    assert other == [f"{SERVICE}.InterfaceNotFound", {"interface": HOST}]
    assert wrong == [f"{SERVICE}.InterfaceNotFound", {"interface": "io.nestrt.None"}]
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(30 * SLOW)
        one.connect(HOST_SOCKET)
        client = varlink.Client(f"unix:{HOST_SOCKET}")
        assert client.get_interfaces(one) == [SERVICE, HOST]
        found = client.get_interface(HOST, one)
        assert (found.name, sorted(found.members)) == (HOST, names_of(HOST))
        assert varlink.Interface(client.get_interface(SERVICE, one).get_description()).name == SERVICE


@pytest.mark.slow_on_vm(False)
def test_groups_come_and_go_and_errors_say_why(guest: BrokerGuest) -> None:
    made, values, again, locked, missing, left = guest.python(CLIENT + f"""
with opened("{GUEST}") as broker:
    broker.Create(group="web", settings={{"memory.max": "64M", "pids.max": "10"}}, owner=1000)
    made = broker.List(recursive=True)
    broker.Set("web", {{"memory.max": "48M"}})
    values = broker.Get(group="web", keys=["memory.max", "pids.max"])
    again = error(broker.Set, "web", {{"pids.max": "many"}})
    locked = error(broker.Set, group="/", settings={{"memory.max": "1G"}})
    broker.Remove("web")
    missing = error(broker.Get, group="web")
    left = [group["name"] for group in broker.List()["groups"]]
result = [made, values, again, locked, missing, left]
""")  # fmt: skip
    found = {group["name"]: group for group in made["groups"]}
    assert set(found) == {"/", "/init", "/web"}
    assert (found["/web"]["owner"], found["/web"]["limits"]["memory.max"]["value"]) == (1000, "64M")
    assert values == {"values": {"memory.max": "48M", "pids.max": "10"}}
    for (name, parameters), expected in ((again, "BadValue"), (locked, "NotPossible"), (missing, "NotFound")):
        assert name == f"{GUEST}.{expected}"
        assert set(parameters) == {"message", "remedy"}
        assert all(type(text) is str for text in parameters.values())
        assert parameters["message"]
    assert "'many' is not a number" in again[1]["message"]
    assert left == ["/", "/init"]


# What each method replies is of the types that the interface says: the client drops and refuses what is not.
CALLS = """
    broker.Create(group="web", settings={"memory.max": "64M"})
    keep("Info")
    keep("List", recursive=True)
    keep("Processes", recursive=True)
    keep("Devices", group="web", only=["c 1:3 rwm"])
    keep("Freeze", group="web")
    keep("Thaw", group="web")
    keep("Kill", group="web", signal=9)
    reaction = {"group": "web", "on": "oom", "action": "tell", "seconds": 2.5, "fallback": "kill"}
    keep("React", reaction=reaction)
    keep("Reactions")
    keep("Forget", group="web", on="oom")
    keep("Rules", rules=["1000 * web"])
    keep("Attach", group="web", pids=[])
    keep("Get", group="web")
    result = found, error(broker.Answer, id=7, action="kill")
"""


def test_every_reply_is_what_the_interface_says(guest: BrokerGuest) -> None:
    found, answered = guest.python(CLIENT + f"""
found = {{}}
def keep(name, **given):
    found[name] = getattr(broker, name)(**given)
with opened("{GUEST}") as broker:{CALLS}""")  # fmt: skip
    for name in ("Info", "List", "Processes", "Reactions", "Rules", "Get", "Devices"):
        given = {"List": {"recursive": True}, "Processes": {"recursive": True}}
        raw = guest.call(name, **given.get(name, {"group": "web"} if name in ("Get", "Devices") else {}))
        seen = found[name]
        if name == "Reactions":
            assert raw == {"reactions": []}  # forgotten since
            assert seen["reactions"][0]["seconds"] == 2.5
            continue
        for one in (raw, seen):  # what changes from one call to the next
            one.get("quota", {}).pop("connections_used", None)
            uses = [one.get("limits", {}), *(group["limits"] for group in one.get("groups", ()))]
            for limits in uses:
                for limit in limits.values():
                    limit.pop("use", None)
        assert seen == without_nulls(raw), name
    assert found["Devices"] == {"rules": ["c 1:3 rwm"], "own": True}
    assert found["Kill"] == {"processes": 0}
    assert [found[name] for name in ("Freeze", "Thaw", "React", "Forget", "Attach")] == [{}] * 5
    assert answered[0] == f"{GUEST}.NotFound"


def test_events_are_a_stream(guest: BrokerGuest) -> None:
    """With more they come one by one, from the reply that says so on; without it the call is refused."""
    events, refused = guest.python(CLIENT + f"""
with opened("{GUEST}") as stream, opened("{GUEST}") as broker:
    refused = error(broker.Events, group="/")
    replies = stream.Events(group="/", kinds=["created", "removed"], _more=True)
    events = [next(replies)]
    broker.Create(group="web")
    events.append(next(replies))
    broker.Remove(group="web")
    events.append(next(replies))
result = events, refused
""")  # fmt: skip
    assert [(reply["event"]["kind"], reply["event"]["group"]) for reply in events] == [
        ("listening", "/"), ("created", "/web"), ("removed", "/web"),
    ]  # fmt: skip
    assert all(type(reply["event"]["time"]) is float for reply in events)
    assert refused[0] == f"{SERVICE}.ExpectedMore"


def test_what_the_host_asks(guest: BrokerGuest) -> None:
    guest.call("Create", group="web", settings={"memory.max": "64M"})
    with host() as broker:
        (found,) = [one for one in broker.Guests()["guests"] if one["name"] == guest.name]
        assert (found["level"], found["cgroup"]) == (1, f"/nestrt/{guest.name}")
        assert broker.Describe(guest.name)["description"]["name"] == guest.name
        assert broker.SetLimits(guest=guest.name, settings={"pids.max": "50"}) == {}
        assert broker.Rules(guest=guest.name) == {"rules": []}
        with pytest.raises(varlink.VarlinkError) as caught:
            broker.Describe("nestrt-nobody")
        assert caught.value.error() == f"{HOST}.NotFound"
        assert set(caught.value.parameters()) == {"message", "remedy"}


def test_the_audit_is_one_list_or_a_stream_of_them(guest: BrokerGuest) -> None:
    """Both ways a reply is a list of lines, so a client that goes by types has one form to read."""
    guest.call("Create", group="web", settings={"memory.max": "64M", "pids.max": "20"})
    with host() as broker:
        entries = broker.Audit(guest=guest.name, lines=2)["entries"]
        assert [entry["new"] for entry in entries] == ["64M", "20"]
        assert broker.Audit(guest=guest.name, lines=0)["entries"] == []
        replies = broker.Audit(guest=guest.name, lines=1, _more=True)
        assert [entry["new"] for entry in next(replies)["entries"]] == ["20"]
        guest.call("Set", group="web", settings={"memory.max": "48M"})
        later = next(replies)["entries"]
        assert [(entry["method"], entry["old"], entry["new"]) for entry in later] == [("Set", "64M", "48M")]
        replies.close()
    with host() as broker:
        replies = broker.Audit(guest=guest.name, lines=0, _more=True)
        assert next(replies)["entries"] == [], "no sign that it follows"
        guest.call("Set", group="web", settings={"memory.max": "32M"})
        assert [entry["new"] for entry in next(replies)["entries"]] == ["32M"]
        replies.close()


# -- README.md, The bytes ---------------------------------------------------------------------------------------------


def shown() -> list[tuple[str, str]]:
    """The commands of that section, and what README.md says they write."""
    text = (CHECKOUT / "README.md").read_text()
    section = text.partition("### The bytes\n")[2].partition("\n#")[0]
    rows = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    found = re.findall(r"^# ((?:.*\\\n)*.*)\n(.*)$", "\n".join(rows), re.MULTILINE)
    assert sum(row.startswith("# ") for row in rows) == len(found)
    return found


def test_the_bytes_of_the_readme(guest: BrokerGuest) -> None:
    """Each request as it stands there, by the program there; and by socat where that is another one of the shell's."""
    require("socat", "" if shutil.which("socat") else "socat is not installed")
    guest.call("Create", group="web", settings={"memory.max": "64M"})
    commands = shown()
    pipes = [command for command, _ in commands if " | " in command]
    (socat,) = [command.partition(" | ")[2] for command in pipes if "socat" in command]
    for command, reply in commands:
        request, pipe, reader = command.partition(" | ")
        if pipe and not has(reader):
            command = f"{request} | {socat}"
        assert guest.shell(command) == reply, command
    assert len(commands) >= 3
    assert guest.call("List", group="web")["groups"][0]["frozen"]


def has(reader: str) -> bool:
    """Whether the program that *reader* begins with is here; of the two called nc only one knows Unix sockets."""
    name = reader.replace("\\\n", " ").split()[0]
    if name == "nc":
        done = subprocess.run(["sh", "-c", "nc -h 2>&1"], capture_output=True, text=True)
        return "-U" in done.stdout
    return shutil.which(name) is not None
