"""``nestrt lock`` and ``unlock`` with real guests: what ran goes on, nothing changes, and all comes back as it was.

host                 nestrt lock G        nestrt broker (some)
└ /nestrt/G          limit group: the lock
  └ guest            owner: nobody that G has a number for
    ├ init           the agent, which tries
    └ web, web/in    G's own
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.broker import Broker, BrokerGuest, limit_path, running, start_guest
from support.hostside import hierarchies, mark
from support.locking import attributes, listing, prepare, start_inner, tries
from support.need import SLOW
from support.rootfs import COMMAND, PythonRoot
from support.runner import Nestrt, wait_for

Start = Callable[..., BrokerGuest]
REFUSED = ("EACCES", "EPERM", "EROFS")


@pytest.fixture
def start(nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> Start:
    return lambda *options: start_guest(nestrt, python, new_guest(), "--broker=none", *options)


def lock_attributes(name: str) -> list[str]:
    return [f"{path} {key}" for path, keys in attributes(name).items() for key in keys if ".lock" in key]


def test_all_works_nothing_works_all_works_again(nestrt: Nestrt, start: Start) -> None:
    """With a user namespace: by no way, in no hierarchy; and exactly as before afterwards."""
    guest = start("-m", "256M", "--pids", "60")
    places = prepare(guest)
    guest.python(
        f"import os\nfor place in {places!r}:\n"
        "    os.chmod(place + '/web', 0o777)\n    os.chown(place + '/web/in', 1000, 1000)\n"
    )
    for place in places[:1]:
        guest.python(f"import os\nos.chmod({place!r} + '/web/cgroup.procs', 0o666)")
    ticking = guest.spawn("while :; do echo . >> /tmp/ticks; sleep 0.05; done")
    before, marks = listing(guest.name), attributes(guest.name)

    nestrt.run("lock", guest.name).ok()
    found = tries(guest, places)
    assert {way: came for way, came in found.items() if came not in REFUSED} == {}
    user = tries_as_user(guest, places)
    assert set(user.values()) <= set(REFUSED), user
    # what runs goes on, forks stay where they are, and reading is free
    ticks = int(guest.shell("wc -l < /tmp/ticks"))
    wait_for(lambda: int(guest.shell("wc -l < /tmp/ticks")) > ticks, "the guest to go on")
    assert guest.shell("cat /proc/self/cgroup | sed 's/.*://' | sort -u") == "/init"
    assert guest.shell(f"cat {places[0]}/web/cgroup.procs") == ""
    assert listing(guest.name).keys() == before.keys()
    # both sides know
    assert mark(f"/nestrt/{guest.name}")["locked"] is True
    status = json.loads(guest.shell(f"{COMMAND} guest status --format json"))
    assert (status["locked"], status["locked_by"]) == (True, "host")
    for command in ("create new", "set web pids.max=5", "rm web/in", "move web 1"):
        told = guest.order("shell", command=f"{COMMAND} guest {command}")
        assert told["rc"] == 4, told
        assert f"locked by the host; ask there for: nestrt unlock {guest.name}" in told["err"]
    assert nestrt.run("check", guest.name, timeout=40).ok().out.count("ok") >= 8

    # once more is fine; the host's own changes are free, and what it writes stays locked
    nestrt.run("lock", guest.name).ok()
    nestrt.run("unlock", guest.name).ok()
    assert listing(guest.name) == before
    assert {path: set(keys) for path, keys in attributes(guest.name).items()} == {p: set(k) for p, k in marks.items()}
    assert mark(f"/nestrt/{guest.name}").get("locked") is None
    again = tries(guest, places)
    gone = [way for way, came in again.items() if came in REFUSED and found_before(way)]
    assert gone == [], again
    assert not guest.order("shell", command=f"kill {ticking}")["rc"]
    refused = nestrt.run("unlock", guest.name)
    assert (refused.rc, "it is not locked" in refused.err) == (4, True)
    assert nestrt.run("lock", "nestrt-no-such-guest").rc == 3


def found_before(way: str) -> bool:
    """Whether a guest with a user namespace that is not locked can do it at all."""
    return way.partition(": ")[2] in (
        "mkdir",
        "mkdir below",
        "through /proc",
        "rmdir",
        "limit",
        "chmod",
        "mark",
        "mount",
    )


def tries_as_user(guest: BrokerGuest, places: list[str]) -> dict[str, str]:
    """A user of the guest that owned web/in, and whom web was open to."""
    code = (
        "import errno, os\nresult = {}\n"
        f"for place in {places!r}:\n"
        "    for group in ('web', 'web/in'):\n"
        "        try:\n            os.mkdir(f'{place}/{group}/mine')\n            result[place + group] = 'done'\n"
        "        except OSError as error:\n            result[place + group] = errno.errorcode[error.errno]\n"
    )
    found: dict[str, str] = guest.python(code, user=1000)
    return found


@pytest.mark.parametrize("mode", ["nouserns", "root"])
def test_without_a_user_namespace_it_says_what_does_not_hold(nestrt: Nestrt, start: Start, mode: str) -> None:
    """Refused as it is; with --weak its mounts are read-only, and on v2 no group can be made by whatever mount."""
    rights = ("--capabilities", "all") if mode == "root" else ()
    guest = start("--userns", "none", *rights)
    places = prepare(guest)
    before, marks = listing(guest.name), attributes(guest.name)
    mounts = guest.shell("cat /proc/self/mountinfo")
    refused = nestrt.run("lock", guest.name)
    assert refused.rc == 5
    assert "it would not hold: process" in refused.err
    assert "CAP_SYS_ADMIN" in refused.err or mode == "nouserns"
    assert listing(guest.name) == before
    assert attributes(guest.name) == marks
    assert guest.shell("cat /proc/self/mountinfo") == mounts

    done = nestrt.run("lock", "--weak", guest.name).ok()
    assert "may make a user namespace" in done.err
    assert "clone3" in done.err or not any(h.version == 2 for h in hierarchies())
    found = tries(guest, places)
    held = {way: came for way, came in found.items() if "mount" not in way and "fork into" not in way}
    if mode == "root":
        held = {way: came for way, came in held.items() if "handle" not in way or came != "done"}
    assert set(held.values()) <= {"EROFS", "EACCES", "EPERM"}, held
    if mode == "root":  # as it was said
        v2 = [way for way in found if "mount" in way and places_of_v2(way, places)]
        assert {found[way] for way in v2} <= {"EAGAIN", "EPERM", "EACCES"}
        v1 = [found[way] for way in found if way.endswith(": mount") and way not in v2]
        assert set(v1) <= {"done"}
    nestrt.run("unlock", guest.name).ok()
    assert guest.shell("cat /proc/self/mountinfo") == mounts
    assert listing(guest.name) == before
    assert not lock_attributes(guest.name)
    guest.shell(f"mkdir {places[0]}/again")


def places_of_v2(way: str, places: list[str]) -> bool:
    v2 = {h.mountpoint.name for h in hierarchies() if h.version == 2}
    return way.partition(":")[0] in v2


@pytest.mark.slow_on_vm
def test_a_guest_of_a_guest(nestrt: Nestrt, start: Start, python: PythonRoot) -> None:
    """Level 1 locks its guest; the host locks one of level 2, alone or with the one around it; each holds by itself.

    host ── G ── nestrt/inner: a shell; what its root may do is tried by entering its namespaces
    """
    guest = start("--mount", "type=tmpfs,target=/tmp")
    tree, pid = start_inner(guest, python)
    inner = f"nsenter -t {pid} -U -m -C -- "

    def makes(group: str) -> bool:
        made: bool = guest.order("shell", command=inner + f"mkdir {tree}/{group}")["rc"] == 0
        return made

    def owner(group: str) -> int:
        return os.stat(limit_path(guest.name) / "guest" / group).st_uid

    root = "nestrt/inner/guest"
    assert makes("one")
    its, own = owner(root), owner("")
    before = listing(guest.name)
    assert its != own
    guest.shell(f"{COMMAND} lock inner")
    assert (makes("two"), owner(root)) == (False, own)
    status = nestrt.run("unlock", f"{guest.name}/inner")
    assert (status.rc, "is not locked" in status.err) == (4, True)
    # the host's lock comes on top; the level between cannot take it off
    nestrt.run("lock", f"{guest.name}/inner").ok()
    assert owner(root) == 0
    assert guest.order("shell", command=f"{COMMAND} unlock inner")["rc"] == 1
    nestrt.run("lock", guest.name).ok()
    assert guest.order("shell", command=f"mkdir {tree}/nestrt/x")["rc"] == 1
    nestrt.run("unlock", guest.name).ok()
    guest.shell(f"mkdir {tree}/x")
    assert (owner(root), owner(f"{root}/one"), owner("")) == (0, 0, own)
    inside = f"/nestrt/{guest.name}/guest/{root}"
    assert {has[0] for path, has in listing(guest.name).items() if inside in path} == {0}
    nestrt.run("lock", guest.name).ok()
    nestrt.run("unlock", f"{guest.name}/inner").ok()
    assert (owner(root), owner("")) == (0, 0)
    nestrt.run("unlock", guest.name).ok()
    assert (owner(root), owner(f"{root}/one"), owner("")) == (own, own, own)
    guest.shell(f"{COMMAND} unlock inner")
    assert (owner(root), owner(f"{root}/one")) == (its, its)
    assert makes("three")
    assert {path: owner for path, owner in listing(guest.name).items() if path in before} == before
    assert lock_attributes(guest.name) == []
    stamps = [value for keys in attributes(guest.name).values() for value in keys.values()]
    assert not [value for value in stamps if b'"locked"' in value]


def test_open_descriptors_are_looked_for(nestrt: Nestrt, start: Start) -> None:
    """What was opened for writing stays writable: such a guest is not locked; with --weak the warning names it."""
    guest = start()
    (place, *_) = prepare(guest)
    before = listing(guest.name)
    ways = {
        f"held[1] = open({place!r} + '/web/cgroup.procs', 'w')": "cgroup.procs",
        "import socket, array\na, b = held[1] = socket.socketpair()\n"
        f"fd = os.open({place!r} + '/web/cgroup.procs', os.O_WRONLY)\n"
        "a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])\n"
        "os.close(fd)": "their way",
        # a thread with a table of its own
        "import ctypes, threading\ngo, opened = threading.Event(), threading.Event()\ndef run():\n"
        "    ctypes.CDLL(None).unshare(0x400)\n"
        f"    fd = os.open({place!r} + '/web/cgroup.procs', os.O_WRONLY)\n    opened.set()\n    go.wait()\n"
        "    os.close(fd)\n"
        "held[2] = go, threading.Thread(target=run)\nheld[2][1].start()\nopened.wait()": "cgroup.procs",
    }
    for code, what in ways.items():
        guest.python("import os\n" + code)
        refused = nestrt.run("lock", guest.name)
        assert refused.rc == 4, (code, refused)
        assert what in refused.err, (code, refused.err)
        assert listing(guest.name) == before
        assert lock_attributes(guest.name) == []
        guest.python("import gc, time\nheld.pop(1, None)\na = b = 0\ngc.collect()\n"
                     "if 2 in held:\n    held[2][0].set()\n    held.pop(2)[1].join()\n"
                     "time.sleep(0.1)")  # fmt: skip
    # one that only listens is no matter
    if pressure := guest.shell(f"ls {place}/web/memory.pressure 2>/dev/null; true"):
        guest.python(f"held[1] = open({pressure!r}, 'r+b', 0)")
    nestrt.run("lock", guest.name).ok()
    nestrt.run("unlock", guest.name).ok()
    guest.python(f"held[1] = open({place!r} + '/web/cgroup.procs', 'w')")
    warned = nestrt.run("lock", "--weak", guest.name).ok()
    assert "can write by descriptor" in warned.err
    nestrt.run("unlock", guest.name).ok()


def test_frozen_before_frozen_after_and_the_host_goes_on(nestrt: Nestrt, start: Start) -> None:
    """A guest that was frozen stays so; a locked one can be changed, killed and deleted by the host."""
    guest = start("-m", "128M")
    prepare(guest)
    state = "freezer" if any("freezer" in h.controllers for h in hierarchies()) else ""
    file = (
        Path(f"/sys/fs/cgroup/freezer/nestrt/{guest.name}/freezer.state")
        if state
        else limit_path(guest.name) / "cgroup.freeze"
    )
    stop, go = ("FROZEN", "THAWED") if state else ("1", "0")
    file.write_text(stop)
    wait_for(lambda: file.read_text().strip() == stop, "the guest to stop")
    nestrt.run("lock", guest.name).ok()
    assert file.read_text().strip() == stop
    file.write_text(go)
    locked = listing(guest.name)
    nestrt.run("lock", guest.name).ok()
    assert file.read_text().strip() == go
    assert listing(guest.name) == locked
    nestrt.run("gc").ok()
    nestrt.run("delete", "--force", guest.name).ok()
    assert not limit_path(guest.name).exists()


@pytest.fixture
def broker() -> Iterator[Broker]:
    with running() as one:
        yield one


def test_the_broker_changes_nothing(
    nestrt: Nestrt, broker: Broker, python: PythonRoot, new_guest: Callable[[], str]
) -> None:
    """Every change by the broker is refused with Locked; reading and killing go on, rules stop, and all comes back."""
    guest = start_guest(nestrt, python, new_guest(), "-m", "256M")
    guest.call("Create", group="web", settings={"pids.max": "10"})
    guest.call("Rules", rules=["*:sleep * web"])
    before = listing(guest.name)
    nestrt.run("lock", guest.name).ok()
    changes: dict[str, dict[str, Any]] = {
        "Create": {"group": "new"},
        "Set": {"group": "web", "settings": {"pids.max": "5"}},
        "Remove": {"group": "web"},
        "Attach": {"group": "web", "pids": [0]},
        "Freeze": {"group": "web"},
        "Thaw": {"group": "web"},
        "Devices": {"group": "web", "deny": ["a *:* rwm"]},
        "React": {"reaction": {"group": "web", "on": "oom", "action": "kill"}},
        "Rules": {"rules": []},
    }
    for method, given in changes.items():
        refused = guest.refused(method, **given)
        assert refused.error == "Locked", (method, refused)
        assert f"guest {guest.name} is locked by the host" in refused.message
        assert refused.parameters["remedy"] == f"ask there for: nestrt unlock {guest.name}"
    assert guest.call("Get", group="web", keys=["pids.max"])["values"] == {"pids.max": "10"}
    assert guest.call("Rules")["rules"] == ["*:sleep * web"]
    pid = guest.spawn("exec sleep 1000")
    time.sleep(0.5 * SLOW**0.5)
    assert guest.shell(f"sed 's/.*://' /proc/{pid}/cgroup | sort -u") == "/init"
    assert guest.call("Kill", group="web")["processes"] == 0
    assert any("Locked" in str(entry["verdict"]) for entry in broker.entries(guest.name))
    assert listing(guest.name) == before or all(owner[0] == 0 for owner in listing(guest.name).values())
    nestrt.run("unlock", guest.name).ok()
    assert listing(guest.name) == before
    guest.call("Set", group="web", settings={"pids.max": "5"})
    guest.call("Create", group="other")
    made = [owner for path, owner in listing(guest.name).items() if "/other" in path]
    assert {owner[0] for owner in made} == {os.stat(limit_path(guest.name) / "guest").st_uid}
    assert not guest.order("shell", command=f"kill -{signal.SIGKILL} {pid}")["rc"]
    # a guest whose groups the broker has first opened while they were locked
    other = start_guest(nestrt, python, new_guest())
    nestrt.run("lock", other.name).ok()
    assert [group["name"] for group in other.call("List", recursive=True)["groups"]] == ["/", "/init"]
    nestrt.run("unlock", other.name).ok()
    other.call("Create", group="new")
    made = [owner for path, owner in listing(other.name).items() if "/new" in path]
    assert {owner[0] for owner in made} == {os.stat(limit_path(other.name) / "guest").st_uid}
