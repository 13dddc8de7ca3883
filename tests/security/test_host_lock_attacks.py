"""Guests that do not want to be locked, and locks killed half-way: never more than before, and all comes back.

host                    nestrt lock G, killed after its n-th change; once more, or unlock
└ /nestrt/G             G makes groups, forks, forges what is remembered
  └ guest/…
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.broker import Broker, BrokerGuest, limit_path, start_guest
from support.broker_attack import run, starting
from support.hostside import hierarchies, mark
from support.killing import kill_at_change
from support.locking import attributes, listing, prepare, start_inner
from support.need import SLOW
from support.rootfs import COMMAND, PythonRoot
from support.runner import Nestrt, wait_for
from support.silent_file import silent

Start = Callable[..., BrokerGuest]
Owners = dict[str, tuple[int, int, int]]


@pytest.fixture
def start(nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]) -> Start:
    return lambda *options: start_guest(nestrt, python, new_guest(), "--broker=none", *options)


def is_no_looser(now: Owners, before: Owners) -> bool:
    """Whether all belongs to whom it did, or to the host's root, and is open to no more than it was."""
    return now.keys() == before.keys() and all(
        owner[0] in (0, before[path][0]) and owner[1] in (0, before[path][1]) and not owner[2] & ~before[path][2]
        for path, owner in now.items()
    )


def is_whole(guest: BrokerGuest, before: Owners) -> bool:
    """Whether the guest has all back, and runs."""
    left = [key for keys in attributes(guest.name).values() for key in keys if ".lock" in key]
    caps = [(h.group(f"/nestrt/{guest.name}") / "cgroup.max.descendants") for h in hierarchies() if h.version == 2]
    return (
        listing(guest.name) == before
        and not left
        and "locked" not in mark(f"/nestrt/{guest.name}")
        and all(path.read_text() == "1000\n" for path in caps)
        and bool(guest.python("result = 1") == 1)
    )


@pytest.mark.parametrize("mode", ["userns", "nouserns"])
@pytest.mark.slow_on_vm
def test_killed_at_any_point(nestrt: Nestrt, start: Start, tmp_path: Path, mode: str) -> None:
    """Lock and unlock killed after each of their changes (some of them): both finish what is left of either."""
    guest = start(*(() if mode == "userns" else ("--userns", "none")))
    places = prepare(guest)
    guest.python(f"import os\nos.chmod({places[0]!r} + '/web', 0o777)")
    before = listing(guest.name)
    mounts = "" if mode == "userns" else guest.shell("cat /proc/self/mountinfo")
    step, number, kills = (331 if mode == "userns" else 13) * (1 if SLOW == 1 else 4), 1, 0
    while kill_at_change(tmp_path / "errors", number, ["lock", "--weak", guest.name]):
        kills += 1
        assert is_no_looser(listing(guest.name), before), number
        if kills % 2:
            nestrt.run("lock", "--weak", guest.name).ok()
            assert guest.order("shell", command=f"mkdir {places[0]}/new")["rc"], number
        nestrt.run("unlock", guest.name).ok()
        assert is_whole(guest, before), number
        number += 1 if number < 3 else step
    assert kills > 2 / SLOW
    number = 1
    while kill_at_change(tmp_path / "errors", number, ["unlock", guest.name]):
        kills += 1
        assert is_no_looser(listing(guest.name), before), number
        if number % 3 == 0:
            nestrt.run("lock", "--weak", guest.name).ok()
            assert guest.order("shell", command=f"mkdir {places[0]}/new")["rc"], number
        nestrt.run("unlock", guest.name).ok()
        assert is_whole(guest, before), number
        nestrt.run("lock", "--weak", guest.name).ok()
        number += 1 if number < 3 else step
    assert is_whole(guest, before)
    if mounts:
        assert guest.shell("cat /proc/self/mountinfo") == mounts


def test_groups_that_come_and_go_meanwhile(nestrt: Nestrt, start: Start) -> None:
    """Processes that make and remove groups, and fork, as fast as they can: once lock has returned, nothing changes."""
    guest = start("--pids", "60")
    places = prepare(guest)
    storm = (
        "import itertools, os, sys, time\n"
        f"places = {places!r}\n"
        "for n in itertools.count():\n"
        "    for place in places:\n"
        "        try:\n            os.mkdir(f'{place}/web/s{n % 5}')\n        except OSError:\n            pass\n"
        "        try:\n            os.rmdir(f'{place}/web/s{(n + 2) % 5}')\n"
        "        except OSError:\n            pass\n"
        "    if not os.fork():\n        os._exit(0)\n"
        "    os.wait()\n"
    )
    children = [guest.spawn(f"exec python3 -ISc {json.dumps(storm)!s}".replace("\\n", "\n")) for _ in range(3)]
    wait_for(lambda: len({path for path in listing(guest.name) if "/web/s" in path}) > 1, "the storm")
    for _ in range(2):
        nestrt.run("lock", guest.name).ok()
        first = listing(guest.name)
        assert {owner[0] for owner in first.values()} == {0}
        guest.shell("sleep 0.3")
        assert listing(guest.name) == first
        nestrt.run("unlock", guest.name).ok()
    for child in children:
        guest.shell(f"kill -9 {child}")


def test_what_is_remembered_cannot_be_forged(nestrt: Nestrt, start: Start, python: PythonRoot) -> None:
    """Level 1 has no trusted attributes: its guest owns the groups that remember, and writes there before the lock.

    Its guest root's limit files, which are level 1's, stay level 1's; a lock that it forges inside changes nothing.
    """
    guest = start("--mount", "type=tmpfs,target=/tmp")
    tree, pid = start_inner(guest, python)
    forged = (
        "import os, json\n"
        f"os.mkdir('{tree}/mine')\n"
        "was = json.dumps([[0, 0, 0o666, 'cgroup.max.depth memory.max cgroup.procs .']])\n"
        f"os.setxattr('{tree}', 'user.nestrt.lock.was', json.dumps({{'v': 1, 'seal': '', 'was': was}}).encode())\n"
        "doc = {'v': 1, 'state': 'locked', 'owner': [77, 77], 'key': 'k', 'by': 'me', 'name': 'x', 'mounts': [],\n"
        "       'weak': [], 'descendants': '', 'thaw': False}\n"
        f"os.setxattr('{tree}/mine', 'user.nestrt.lock', json.dumps(doc).encode())\n"
    )
    guest.shell(f"nsenter -t {pid} -U -m -C -- python3 -ISc {json.dumps(forged)!s}".replace("\\n", "\n"))
    before = listing(guest.name)
    own = os.stat(limit_path(guest.name) / "guest").st_uid
    guest.shell(f"{COMMAND} lock inner")
    inside = "/guest/nestrt/inner/guest"
    # The host's root keeps what it made when it enabled controllers; all else is level 1's.
    owners = {owner[0] for path, owner in listing(guest.name).items() if inside in path}
    assert owners <= {own, 0}, owners
    guest.shell(f"{COMMAND} unlock inner")
    after = listing(guest.name)
    mine = {path for path in before if inside + "/mine" in path}
    assert {path for path in before if after[path] != before[path]} <= mine
    assert {after[path][0] for path in mine} <= {own, *(before[path][0] for path in mine)}
    nestrt.run("lock", guest.name).ok()
    nestrt.run("unlock", guest.name).ok()
    assert listing(guest.name) == after


@pytest.mark.slow_on_vm
def test_a_silent_filesystem_keeps_nobody_from_unlocking(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """FUSE on the way to the mounts that lock has made read-only: who waits for its answer cannot even be killed."""
    words = ("--rootfs", str(busybox), "--name", guest_name, "--userns", "none")
    nestrt.launch("-d", *words, "--", "sleep", "1000").ok()
    nestrt.run("lock", "--weak", guest_name).ok()
    (row,) = json.loads(nestrt.run("ls", "--format", "json", guest_name).ok().out)
    with silent(row["pid"], "/sys/fs", "lookup"):
        # By pipes, which a process that is left behind could keep open.
        command = [nestrt.command, "unlock", guest_name]
        assert not subprocess.run(command, capture_output=True, timeout=30 * SLOW, check=True).stderr
        # Nothing is held by whoever still waits there.
        nestrt.run("lock", "--weak", guest_name, timeout=10).ok()
        nestrt.run("unlock", guest_name, timeout=30).ok()


def test_calls_by_the_broker_do_not_keep_a_lock_out(
    nestrt: Nestrt, broker: Broker, python: PythonRoot, new_guest: Callable[[], str]
) -> None:
    """A user of the guest makes and removes groups through the broker, by six connections as fast as he can, of which
    one always waits: as soon as lock is called nothing new begins, and when it is unlocked they go on."""
    with starting(broker, nestrt, python, new_guest, ()) as begin:
        guest = begin()
        guest.call("Create", group="mine", owner=1000)
        storm = """
def storm():
    number, one = os.getpid(), open_one(patience=60)
    while True:
        for method in "Create", "Remove":
            one.sendall(frame(method, {"group": f"mine/{number}"}))
            while not one.recv(65536).endswith(b"\\0"):
                pass
held["storm"] = children(6, storm, 1000)
"""
        run(guest, storm)

        def seen() -> set[str]:
            return {path for path in listing(guest.name) if "/mine/" in path}

        wait_for(seen, "the storm")
        nestrt.run("lock", guest.name, timeout=60).ok()
        first = listing(guest.name)
        guest.shell("sleep 0.2")
        assert listing(guest.name) == first
        nestrt.run("unlock", guest.name, timeout=60).ok()
        before = seen()
        wait_for(lambda: seen() != before, "the storm to go on")
        run(guest, "end(held.pop('storm'))")
