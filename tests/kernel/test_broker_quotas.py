"""Quotas that one guest's policy says instead of the broker's options: at one broker, at the same time, over its end.

    host                  nestrt broker --requests 200 --connections 24 --message 8192
    ├ /nestrt/small       [broker] requests = 20, connections = 8, message = 2048
    ├ /nestrt/large       [broker] requests = 5000, connections = 40, message = "256K"
    └ /nestrt/usual       says nothing
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.broker import Broker, BrokerGuest, limit_path, running, start_guest
from support.broker_attack import run
from support.bundles import Bundle, python_bundle
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, again, wait_for

FLAGS = ("--requests", "200", "--connections", "24", "--message", "8192")
USUAL = {"requests_per_second": 200, "connections": 24, "message_bytes": 8192}
SMALL = "[broker]\nrequests = 20\nconnections = 8\nmessage = 2048\n"
LARGE = '[broker]\nrequests = 5000\nconnections = 40\nmessage = "256K"\n'
TOLD = {
    "small": {"requests_per_second": 20, "connections": 8, "message_bytes": 2048},
    "large": {"requests_per_second": 5000, "connections": 40, "message_bytes": 256 << 10},
    "usual": USUAL,
}
Start = Callable[[str], BrokerGuest]


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running(*FLAGS) as one:
        yield one


@pytest.fixture
def start(broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str], tmp_path: Path) -> Start:
    """Start a guest whose policy file is that text."""
    number = iter(range(100))

    def function(text: str) -> BrokerGuest:
        path = tmp_path / f"{next(number)}.toml"
        path.write_text(text)
        return start_guest(nestrt, python, new_guest(), "--policy", str(path))

    return function


@pytest.fixture
def three(start: Start) -> dict[str, BrokerGuest]:
    return {"small": start(SMALL), "large": start(LARGE), "usual": start("")}


def quota(guest: BrokerGuest) -> dict[str, int]:
    """What the guest is told of its own."""
    found = guest.call("Info")["quota"]
    return {key: found[key] for key in USUAL}


def at_once(guests: dict[str, BrokerGuest], code: str) -> dict[str, Any]:
    """What *code* gives in each of the *guests*, all at the same time."""
    with ThreadPoolExecutor(len(guests)) as pool:
        found = {name: pool.submit(run, guest, code) for name, guest in guests.items()}
        return {name: one.result() for name, one in found.items()}


def mark(guest: BrokerGuest) -> tuple[Path, str, dict[str, Any]]:
    """The limit group, the attribute, and what it says."""
    path = limit_path(guest.name)
    return path, "trusted.nestrt", json.loads(os.getxattr(path, "trusted.nestrt"))


ASK = """
one, replies, began = open_one(patience=60), 0, time.monotonic()
data = frame("Get", {"group": "/", "keys": ["pids.max"]})
while time.monotonic() < began + 3:
    one.sendall(data)
    while not one.recv(65536).endswith(b"\\0"):
        pass
    replies += 1
one.close()
result = replies, time.monotonic() - began
"""


def test_each_guest_has_requests_of_its_own(three: dict[str, BrokerGuest]) -> None:
    """They ask as fast as they can for three seconds: each gets its rate and a burst, and none holds up another."""

    def have_their_rates() -> None:
        for name, (replies, seconds) in at_once(three, ASK).items():
            rate = TOLD[name]["requests_per_second"]
            burst = max(rate // 4, 10)
            assert replies <= seconds * rate + burst + 1, (name, replies, seconds)
            if name != "large":  # which asks as fast as this machine can
                assert replies >= 3 * rate * 0.5 / SLOW, (name, replies, seconds)

    again(have_their_rates)


def test_more_than_the_brokers_options(three: dict[str, BrokerGuest]) -> None:
    """A call of 120,000 bytes counts as 30 requests. Ten of them at 200 a second, with a burst of 50, as the options
    say, take 1.2 s; the guest that has 5000 and 1250 waits for none."""
    code = """
one = open_one(patience=60)
data = frame("Get", {"group": "/", "keys": ["pids.max"]}, x="x" * 120000)
began = time.monotonic()
for _ in range(10):
    one.sendall(data)
    while not one.recv(65536).endswith(b"\\0"):
        pass
result = time.monotonic() - began
one.close()
"""

    def waits_for_none() -> None:
        assert run(three["large"], code) < 1.0 * SLOW

    again(waits_for_none)


def test_connections(three: dict[str, BrokerGuest]) -> None:
    code = """
many, refused = [], 0
for _ in range(60):
    one = open_one(patience=60)
    try:
        one.sendall(frame("Get", {"group": "/", "keys": ["pids.max"]}))
        reply = one.recv(65536)
    except OSError:  # it was refused before it had asked
        reply = b""
    if b"values" in reply:
        many.append(one)
    else:
        refused += 1
        one.close()
result = len(many), refused
for one in many:
    one.close()
"""
    most = {name: TOLD[name]["connections"] for name in three}
    assert at_once(three, code) == {name: [most[name], 60 - most[name]] for name in three}


def test_messages(three: dict[str, BrokerGuest]) -> None:
    """A call is as long as its quota, and not longer; one that is longer is refused by name."""
    code = """
def ask(size):
    head = b'{"method":"io.nestrt.Guest.Get","parameters":{"group":"/","keys":["pids.max"]},"x":"'
    one, found = open_one(patience=60), b""
    try:
        one.sendall(head + b"x" * (size - len(head) - 3) + b'"}\\0')
        while not found.endswith(b"\\0") and (chunk := one.recv(65536)):
            found += chunk
    except OSError:
        pass
    one.close()
    return "values" if b"values" in found else str(found)
result = [ask(size) for size in SIZES]
"""
    for name, guest in three.items():
        most = TOLD[name]["message_bytes"]
        fits, longer = run(guest, f"SIZES = [{most}, {most} + 1]\n" + code)
        assert fits == "values", name
        assert f"a call of more than {most} bytes" in longer, (name, longer)


def test_they_are_the_guests_whoever_is_the_broker(three: dict[str, BrokerGuest], broker: Broker) -> None:
    """Killed and started with other options, the broker does as the policies say, and else as its options."""
    assert {name: quota(guest) for name, guest in three.items()} == TOLD
    usual = {"requests_per_second": 77, "connections": 9, "message_bytes": 4096}
    broker.options = ("--requests", "77", "--connections", "9", "--message", "4096")
    try:
        broker.restart(signal.SIGKILL)
        for guest in three.values():
            wait_for(lambda guest=guest: guest.python(CONNECTS), "the socket in the guest", 20)  # type: ignore[misc]
        assert {name: quota(guest) for name, guest in three.items()} == {**TOLD, "usual": usual}
        served = {one["name"]: one["quota"] for one in broker.call("Guests")["guests"]}
        assert {name: served[guest.name] for name, guest in three.items()} == {**TOLD, "usual": usual}
        replies, seconds = run(three["small"], ASK)
        assert replies <= seconds * 20 + 11
    finally:
        broker.options = FLAGS
        broker.restart()


CONNECTS = "try:\n    connect().close()\n    result = True\nexcept OSError:\n    result = False\n"


def test_marks_say_no_more_than_policies(three: dict[str, BrokerGuest]) -> None:
    assert mark(three["small"])[2]["quota"] == {"requests": 20, "connections": 8, "message": 2048}
    for name, guest in three.items():
        found = mark(guest)[2]
        assert "quota_most" not in found
        assert ("quota" in found) == (name != "usual")


@pytest.mark.slow_on_vm
def test_a_damaged_mark_leaves_it_to_the_options(start: Start, broker: Broker) -> None:
    guest = start(SMALL)
    path, attribute, was = mark(guest)
    for quota_, most, expected in (
        ({"requests": -1, "connections": 1 << 62, "message": True}, None, USUAL),
        ("lots", [1], USUAL),
        ({"requests": "9", "connections": 3.5, "message": {}}, {"requests": 0}, USUAL),
        ({"requests": 10**9, "connections": 7}, {"message": 1 << 60}, {**USUAL, "connections": 7}),
        ({"requests": 900}, {"requests": 50, "connections": 9000}, {**USUAL, "requests_per_second": 50}),
    ):
        os.setxattr(path, attribute, json.dumps({**was, "quota": quota_, "quota_most": most}).encode())
        broker.restart(signal.SIGKILL)
        wait_for(lambda: guest.python(CONNECTS), "the socket in the guest", 20)
        assert quota(guest) == expected
    assert "bug" not in broker.said()


def test_status_shows_them(three: dict[str, BrokerGuest], broker: Broker, nestrt: Nestrt) -> None:
    rows = json.loads(nestrt.run("broker", "status", "--format", "json").ok().out)
    found = {row["name"]: row["quota"] for row in rows}
    assert {name: found[guest.name] for name, guest in three.items()} == TOLD
    lines = nestrt.run("broker", "status").ok().out.splitlines()
    line = next(line for line in lines if line.split()[0] == three["large"].name)
    assert {"40", "5000", "256K"} <= set(line.replace("256.0K", "256K").split())


def asked(bundle: Bundle) -> dict[str, int] | None:
    """Info's quota, as a process that the runtime's exec brings in is told it; None where nobody answers."""
    code = """
import json, socket
with socket.socket(socket.AF_UNIX) as one:
    one.settimeout(60)
    one.connect("/run/nestrt/guest.sock")
    one.sendall(b'{"method":"io.nestrt.Guest.Info"}\\0')
    found = b""
    while not found.endswith(b"\\0"):
        found += one.recv(65536)
print(json.dumps(json.loads(found[:-1])["parameters"]["quota"]))
"""
    result = bundle.exec("/usr/bin/python3", "-Ic", code, timeout=60)
    if result.rc != 0:
        assert "ConnectionRefused" in result.err, result
        return None
    found = json.loads(result.out)
    return {key: found[key] for key in USUAL}


@pytest.mark.slow_on_vm
def test_annotations_only_lower_what_the_options_say(bundle: Bundle, python: PythonRoot, broker: Broker) -> None:
    """Nothing is bound on this host: a container's user asks for fewer requests and more of all else."""
    python_bundle(bundle, python)
    options = ["nosuid", "nodev", "mode=755"]
    bundle.config["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": options})
    bundle.annotate(level__broker="required", broker__requests="50", broker__connections="10000", broker__message="1M")
    bundle.virtual().args("/usr/bin/sleep", "600").write()
    bundle.run("--detach").ok()
    assert asked(bundle) == {**USUAL, "requests_per_second": 50}
    broker.options = ("--requests", "30", "--connections", "1100", "--message", "8192")
    try:
        broker.restart(signal.SIGKILL)
        wait_for(lambda: asked(bundle) is not None, "the new broker's socket", 30)
        assert asked(bundle) == {"requests_per_second": 30, "connections": 1100, "message_bytes": 8192}
    finally:
        broker.options = FLAGS
        broker.restart()
