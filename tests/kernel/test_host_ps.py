"""``nestrt ps``: the processes of all guests, as ps(1) and /proc have them.

/nestrt/G            launched; with a user namespace, and without
         └ guest
           ├ init    sh, its child with two threads; one that has ended
           └ in      claim, level 2
             └ guest
               └ up  claim, level 3      sleep, in a pid namespace of its own
"""

from __future__ import annotations

import csv
import io
import json
import os
import pwd
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.byhand import enter, make_group, remove_groups
from support.hostside import groups, limit_group, processes
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, wait_for

INSIDE = """
import os, signal, sys, threading, time, ctypes
libc = ctypes.CDLL(None)
if os.fork() == 0:
    os._exit(0)  # a zombie
if os.fork() == 0:
    libc.prctl(15, b"a) R (\\x1b[2J\\n")
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    hog = bytearray(20 << 20)
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    print("ready", flush=True)
    time.sleep(1000)
time.sleep(1000)
"""


def rows_of(nestrt: Nestrt, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(nestrt.run("ps", *words, "--format", "json").ok().out)
    return found


def by_ps(pid: int, *fields: str) -> list[str]:
    words = [word for field in fields for word in ("-o", field + "=")]
    done = subprocess.run(["ps", *words, "-p", str(pid)], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture
def inner() -> Iterator[Callable[[str], list[int]]]:
    """A function that makes the guests of levels 2 and 3 inside a guest, and returns the pids in the latter."""
    tops: list[str] = []
    started: list[subprocess.Popen[bytes]] = []

    def make(name: str) -> list[int]:
        two = f"{limit_group(name)}/guest/in"
        tops.append(two)
        three = f"{two}/guest/up"
        for group in (two, f"{two}/guest", three, f"{three}/guest"):
            make_group(group)
        for group, own in ((two, "in"), (three, "up")):
            for directory in groups(group):
                os.setxattr(directory, "user.nestrt", json.dumps({"v": 1, "name": own, "command": []}).encode())
        started.append(subprocess.Popen(["unshare", "-fp", "--kill-child", "sleep", "1000"]))
        file = Path(f"/proc/{started[0].pid}/task/{started[0].pid}/children")
        child = int(wait_for(lambda: file.read_text().split(), "unshare's child")[0])
        enter(f"{three}/guest", child)
        return [child]

    yield make
    for process in started:
        process.kill()
        process.wait()
    for top in tops:
        remove_groups(top)


def test_as_ps_and_proc_have_them(
    nestrt: Nestrt, userns: str, new_guest: Callable[[], str], python: PythonRoot, inner: Callable[[str], list[int]]
) -> None:
    name = new_guest()
    options = () if userns == "userns" else ("--userns", "none")
    script = f"exec python3 -c '{INSIDE}'"
    nestrt.launch("-d", *python.options, "--name", name, *options, "--", "sh", "-c", script).ok()
    wait_for(lambda: len(processes(limit_group(name))) == 2, "its processes")
    deep = inner(name)
    hog = wait_for(lambda: [p for p in processes(limit_group(name)) if b"a) R (" in comm(p)], "a process")[0]
    wait_for(lambda: sum(map(int, stat(hog)[11:13])) >= 19 and stat(hog)[0] == "S", "its CPU time, then its sleep")
    found = {row["pid"]: row for row in rows_of(nestrt, name)}
    assert set(found) == processes(limit_group(name))
    for pid, row in found.items():
        ruid, ppid, nlwp, etimes, times, state = by_ps(pid, "ruid", "ppid", "nlwp", "etimes", "times", "s")
        assert (row["uid"], row["threads"], row["state"]) == (int(ruid), int(nlwp), state)
        assert row["parent"] == int(ppid)
        assert abs(row["elapsed"] - int(etimes)) <= 8 * SLOW
        assert abs(row["started"] + int(etimes) - time.time()) <= 8 * SLOW
        assert abs(row["cpu_usec"] // 1_000_000 - int(times)) <= 1
        assert row["pids"] == [int(word) for word in status(pid, "NSpid")]
        assert row["user"] == user(int(ruid))
    top = next(row for row in found.values() if row["guest_pid"] == 1 and row["guest"] == name)
    assert top["command"].startswith("python3 -c \nimport os, signal")
    assert (top["level"], top["guest_group"], top["group"]) == (1, "/init", f"{limit_group(name)}/guest/init")
    assert top["guest_uid"] == 0
    assert (top["uid"] == 0) is (userns == "nouserns")
    row = found[hog]
    assert (row["name"], row["parent"], row["threads"]) == ("a) R (\x1b[2J\n", top["pid"], 2)
    assert row["rss"] == int(by_ps(hog, "rss")[0]) * 1024 > 20 << 20
    assert 200_000 <= row["cpu_usec"] < 5_000_000 * SLOW
    # One that has ended and is not waited for is in no group any more (kernel/cgroup/cgroup.c, css_task_iter_advance).
    assert len(Path(f"/proc/{top['pid']}/task/{top['pid']}/children").read_text().split()) == 2
    assert {row["state"] for row in found.values()} == {"S"}
    sleeper = found[deep[0]]
    assert (sleeper["guest"], sleeper["level"], sleeper["guest_pid"]) == (f"{name}/in/up", 3, 1)
    assert (sleeper["guest_group"], sleeper["command"]) == ("/", "sleep 1000")
    forms(nestrt, name, top["pid"], hog, deep[0])


def stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) behind the name, from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def comm(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return b""


def status(pid: int, key: str) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(key + ":"))


def user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def forms(nestrt: Nestrt, name: str, first: int, hog: int, deep: int) -> None:
    """The other ways to show the same; nothing that a guest wrote reaches the terminal as it is."""
    table = nestrt.run("ps", name).ok().out
    assert (
        table.split("\n")[0].split()
        == "PID GUEST PID GUEST LEVEL USER GUEST USER GROUP S ELAPSED CPU RSS COMMAND".split()
    )
    tree = nestrt.run("ps", "-t", name).ok().out.splitlines()
    texts = [line.lstrip("│├└─ |`-").split("  ")[0] for line in tree]
    inner = [f"{name}/in", f"{name}/in/up", f"{deep} (1)"]
    assert texts[0] == "host"
    assert texts[1:3] == [name, f"{first} (1)"]
    assert texts[-3:] == inner
    assert {text.split()[0] for text in texts[3:5]} >= {str(hog)}
    for text in (table, "\n".join(tree)):
        assert "\x1b" not in text
    assert [row["guest"] for row in rows_of(nestrt, "--guest", f"{name}/in/up")] == [f"{name}/in/up"]
    assert rows_of(nestrt, "--guest", f"{name}/in") == []
    sizes = [row["rss"] for row in rows_of(nestrt, name, "--sort", "-rss")]
    assert sizes == sorted(sizes, reverse=True)
    used = [row["cpu_usec"] for row in rows_of(nestrt, name, "--sort", "cpu")]
    assert used == sorted(used)
    words = ("--sort", "-cpu", "--format", "{{.Pid}} {{.HUser}} {{.Comm}}")
    assert any(line.startswith(f"{hog} ") for line in nestrt.run("ps", name, *words).ok().out.splitlines())
    read = list(csv.DictReader(io.StringIO(nestrt.run("ps", name, "--format", "csv").ok().out)))
    assert {int(row["pid"]) for row in read} == processes(limit_group(name))
    refused: tuple[tuple[tuple[str, ...], int], ...] = (
        (("--sort", "size"), 2),
        (("-t", "--format", "json"), 2),
        (("--sort", "pid", "no-such-guest-anywhere"), 3),
        (("--guest", "no-such-guest-anywhere"), 3),
    )
    for arguments, code in refused:
        done = nestrt.run("ps", *arguments)
        assert (done.rc, done.err.count("\n")) == (code, 1), done


def test_processes_that_come_and_go(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """Each list is whole, and nothing is said of who has gone."""
    forks = "while :; do (exit 0); done"
    nestrt.launch("-d", "--rootfs", busybox, "--overlay", "--name", guest_name, "--", "sh", "-c", forks).ok()
    for _ in range(5):
        found = rows_of(nestrt, guest_name)
        assert [row["command"] for row in found if row["guest_pid"] == 1] == [f"sh -c {forks}"]
        assert all(row["command"] and row["state"] for row in found)
        assert len({row["pid"] for row in found}) == len(found)
