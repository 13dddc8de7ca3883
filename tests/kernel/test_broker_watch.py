"""Events and reactions through the daemon: asked for by processes of guests, over their own end.

    host                 nestrt broker, killed and started again
    └ /nestrt/G          limit group: 256M
      └ guest
        ├ init           the agent: subscribes, registers, answers
        └ web            16M: what runs out of memory
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.broker import Broker, BrokerGuest, Refused, start_guest
from support.guests import MODES
from support.hostside import group_file, has_v1, processes, v2_hierarchy
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, wait_for

Start = Callable[..., BrokerGuest]
# Enters the group by its view's own files, where there is one, and takes 40 MiB.
HOG = """
import mmap, sys, time
memory = mmap.mmap(-1, 40 << 20)
for at in range(0, 40 << 20, 4096):
    memory[at] = 1
time.sleep(1000)
"""


@pytest.fixture
def start(broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> Start:
    return lambda *options: start_guest(nestrt, python, new_guest(), "-m", "256M", *options)


PASSED: dict[str, list[dict[str, Any]]] = {}  # events by guest, that nobody has asked for yet


def subscribe(broker: Broker, guest: BrokerGuest, *kinds: str) -> None:
    """A stream called "s", which is told of what happens from now on."""
    PASSED[guest.name] = []
    guest.order("stream", key="s", method="io.nestrt.Guest.Events", parameters={"kinds": list(kinds)})
    next_event(guest, "listening")


def next_event(guest: BrokerGuest, kind: str, text: str = "") -> dict[str, Any]:
    """The next event of that kind, with *text* in its detail. Others that come before it are there for later: what
    happens at once may be told in any order."""
    passed = PASSED.setdefault(guest.name, [])
    for number in range(1000):
        if number == len(passed):
            reply = guest.order("next", key="s", seconds=10 * SLOW)
            assert "parameters" in reply, (reply, passed)
            passed.append(reply["parameters"]["event"])
        event = passed[number]
        if event["kind"] == kind and text in (event.get("detail") or ""):
            return passed.pop(number)
    raise AssertionError(passed)


def hog(guest: BrokerGuest) -> int:
    """Start one in /web; its pid in the guest."""
    pid = guest.spawn(f"kill -STOP $$; exec /usr/bin/python3 -ISc '{HOG}'")
    guest.shell(f"until grep -q 'State:.T' /proc/{pid}/status; do sleep 0.05; done")
    guest.call("Attach", group="web", pids=[pid])
    guest.shell(f"kill -CONT {pid}")
    return pid


def held(guest: BrokerGuest) -> bool:
    group = f"/nestrt/{guest.name}/guest/web"
    if has_v1("memory"):
        return "oom_kill_disable 1" in group_file("memory", group, "memory.oom_control", "x").read_text()
    return group_file("memory", group, "x", "memory.high").read_text().strip() != "max"


@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_a_guest_is_told_and_asked(start: Start, broker: Broker, mode: str) -> None:
    guest = start(*MODES[mode])
    subscribe(broker, guest, "created", "removed", "populated", "oom", "oom_kill", "reaction")
    guest.call("Create", group="web", settings={"memory.max": "16M", "memory.swap.max": "0"})
    assert next_event(guest, "created")["group"] == "/web"
    reaction = {"group": "web", "on": "oom", "action": "tell", "seconds": 50.0, "step": "16M", "most": "96M"}
    guest.call("React", reaction=reaction)
    pid = hog(guest)
    assert next_event(guest, "populated")["group"] in ("/", "/web")
    asked = next_event(guest, "reaction", "answer")
    assert (asked["group"], asked["key"], asked["seconds"]) == ("/web", "oom", 50.0)
    guest.call("Answer", id=asked["id"], action="raise")
    next_event(guest, "reaction", "memory.max 16M → 32M")
    asked = next_event(guest, "reaction", "answer")
    guest.call("Answer", id=asked["id"], action="kill")
    next_event(guest, "reaction", "kill: ")
    wait_for(lambda: not processes(f"/nestrt/{guest.name}/guest/web"), "the group's end")
    assert pid
    guest.call("Remove", group="web")
    assert next_event(guest, "removed")["group"] == "/web"
    assert guest.call("Reactions")["reactions"] == []


# Killed, at the worst moment, and started again: the process in the group does not wait for the dead one, and the new
# one knows what was registered.
def test_what_was_registered_survives_the_broker(start: Start, broker: Broker) -> None:
    guest = start()
    guest.call("Create", group="web", settings={"memory.max": "16M", "memory.swap.max": "0"})
    reaction = {"group": "/web", "on": "oom", "action": "tell", "seconds": 60.0, "fallback": "freeze"}
    subscribe(broker, guest, "reaction", "created")
    guest.call("React", reaction=reaction)
    assert held(guest)
    hog(guest)
    next_event(guest, "reaction", "answer")
    broker.stop(signal.SIGKILL)
    wait_for(lambda: not processes(f"/nestrt/{guest.name}/guest/web"), "the kernel's killer")
    assert not held(guest)
    broker.start()
    wait_for(lambda: held(guest), "the new broker")
    found = wait_for(lambda: asked_again(guest), "the new broker's answers")
    assert [(one["group"], one["action"], one["seconds"]) for one in found] == [("/web", "tell", 60.0)]
    # In order: nothing waits for it either.
    assert broker.stop(signal.SIGTERM) == 0
    assert not held(guest)
    broker.start()


def asked_again(guest: BrokerGuest) -> Any:
    try:
        return guest.call("Reactions")["reactions"]
    except (Refused, AssertionError):
        return None


# A user of the guest subscribes too; a reaction for what is not his he does not get.
def test_users_of_a_guest(start: Start) -> None:
    guest = start()
    guest.call("Create", group="web", settings={"memory.max": "16M"}, owner=1000)
    guest.call("React", user=1000, reaction={"group": "web", "on": "oom", "action": "kill"})
    more = {"group": "web", "on": "oom", "action": "raise", "step": "1M", "most": "99M"}
    assert guest.refused("React", user=1000, reaction=more).error == "NotPermitted"
    assert guest.refused("React", user=1000, reaction={**more, "group": "init"}).error == "NotPermitted"
    assert guest.refused("Events").error == "ExpectedMore"
    guest.call("Forget", user=1000, group="web", on="oom")


def inotify_watches(pid: int) -> int:
    """How many watches a process has: proc_pid_fdinfo(5)."""
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            count += Path(f"/proc/{pid}/fdinfo/{fd}").read_text().count("inotify wd:")
        except FileNotFoundError:
            continue
    return count


# Without a subscriber the broker has no watch; one that goes away without a word leaves none.
def test_a_subscriber_that_vanishes_leaves_nothing(start: Start, broker: Broker) -> None:
    guest = start()

    def watches() -> int:
        assert broker.process is not None
        return inotify_watches(broker.process.pid)

    assert watches() == 0
    guest.python(
        """
import json, os
read, write = os.pipe()
pid = os.fork()
if not pid:
    one = connect()
    one.sendall(json.dumps({"method": "io.nestrt.Guest.Events", "parameters": {}, "more": True}).encode() + b"\\0")
    one.recv(100000)
    os.write(write, b".")  # it listens
    while b'"created"' not in one.recv(100000):
        pass
    os._exit(0)
os.close(write)
os.read(read, 1)
os.close(read)
result = pid
"""
    )
    wait_for(lambda: watches() > 0, "the watches")
    guest.call("Create", group="web")  # which it is told of, and then it goes
    wait_for(lambda: watches() == 0, "their end")
    assert v2_hierarchy() or has_v1("memory")
