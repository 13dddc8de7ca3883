"""``nestrt why``, ``tree``, ``ls`` and ``show`` of real guests, against the kernel's own files.

    /nestrt/G              128M, 40 processes: the host's word
    └ guest
      ├ init               sh
      ├ job                64M, 10 processes: the guest's word; sleep
      └ big                1G asked for, of which the limit group gives 128M; holds 20M
"""

from __future__ import annotations

import csv
import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.guests import MODES, inside
from support.hostside import group_file, hierarchies, processes
from support.need import SLOW
from support.nest import nest
from support.runner import Nestrt, wait_for

MIB = 1 << 20


@pytest.fixture(params=["userns", pytest.param("nouserns", marks=pytest.mark.slow_on_vm)])
def guest(nestrt: Nestrt, guest_name: str, busybox: Path, request: pytest.FixtureRequest) -> str:
    def file(group: str, v1: str, v2: str, controller: str = "memory") -> str:
        return inside(controller, group, v1, v2)

    tops = [str(h.mountpoint) for h in hierarchies()]
    script = "\n".join(
        [
            *(f"mkdir {top}/job {top}/big" for top in tops),
            f"echo {64 * MIB} > {file('/job', 'memory.limit_in_bytes', 'memory.max')}",
            f"echo {1 << 30} > {file('/big', 'memory.limit_in_bytes', 'memory.max')}",
            f"echo 10 > {file('/job', 'pids.max', 'pids.max', 'pids')}",
            "sleep 1000 & pid=$!",
            *(f"echo $pid > {top}/job/cgroup.procs" for top in tops),
            "wait",
        ]
    )
    options = ("-m", "128M", "--pids", "40", "--cpus", "0", *MODES[request.param])
    nestrt.launch("-d", "--rootfs", busybox, "--name", guest_name, *options, "--", "sh", "-c", script).ok()
    wait_for(lambda: processes(f"/nestrt/{guest_name}/guest/job"), "the sleeping process")
    return guest_name


def answer(nestrt: Nestrt, *args: str) -> Any:
    return json.loads(nestrt.run(*args, "--format", "json").ok().out)


def test_the_chain_of_a_process(nestrt: Nestrt, guest: str) -> None:
    """Who it is, at which level, under which pid; every step of its limits, what binds, and whose word that is."""
    (pid,) = processes(f"/nestrt/{guest}/guest/job")
    found = answer(nestrt, "why", str(pid))
    limit, job = f"/nestrt/{guest}", f"/nestrt/{guest}/guest/job"
    assert (found["group"], found["guest"], found["level"], found["guest_group"]) == (job, guest, 1, "/job")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    process = found["process"]
    assert process["pid"] == pid
    assert process["guest_pid"] == int(status["NSpid"].split()[-1])
    assert (process["uid"], process["guest_uid"]) == (int(status["Uid"].split()[0]), 0)
    assert process["command"] == "sleep 1000"
    limits = {one["key"]: one for one in found["limits"]}
    memory, pids = limits["memory.max"], limits["pids.max"]
    assert (memory["effective"], memory["binds"]) == (64 * MIB, job)
    assert (pids["effective"], pids["binds"]) == (10, job)
    steps = {step["group"]: step for step in memory["chain"]}
    assert list(steps)[-3:] == [limit, f"{limit}/guest", job]
    assert next(iter(steps)) == "/"
    assert (steps[limit]["limit"], steps[limit]["set_by"], steps[limit]["binds"]) == (128 * MIB, "host", False)
    assert (steps[job]["limit"], steps[job]["set_by"], steps[job]["binds"]) == (64 * MIB, guest, True)
    assert (steps[job]["guest_group"], steps[limit]["guest_group"]) == ("/job", None)
    used = int(group_file("pids", job, "pids.current", "pids.current").read_text())
    assert (pids["chain"][-1]["usage"], pids["chain"][-1]["left"], pids["left"]) == (used, 10 - used, 10 - used)
    text = nestrt.run("why", str(pid)).ok().out
    assert f"pid {pid}  sleep 1000, pid {process['guest_pid']} in its guest" in text
    (line,) = [line for line in text.splitlines() if line.split()[:2] == [job, "64M"]]
    assert "← binds" in line
    assert line.endswith(guest)
    plain = nestrt.run("why", str(pid), env={**os.environ, "LC_ALL": "C"}).ok().out
    assert "<- binds" in plain
    assert plain.isascii()


def test_a_group_that_asks_for_more_than_there_is(nestrt: Nestrt, guest: str) -> None:
    """By the guest's name for it, by its path and by its directory: the limit group gives less than was written."""
    big = f"/nestrt/{guest}/guest/big"
    directory = group_file("memory", big, "memory.limit_in_bytes", "memory.max").parent
    for name in (f"{guest}:/big", f"{guest}:big/", big, str(directory), f"{directory}//./"):
        found = answer(nestrt, "why", name, "memory")
        (memory,) = found["limits"]
        assert memory["effective"] == 128 * MIB, name
        shown = [step["limit"] for step in memory["chain"] if step["group"].endswith("/guest")]
        # What binds is the outermost that gives so little: the limit group, whatever the guest root shows.
        assert (memory["binds"], found["guest_group"]) == (f"/nestrt/{guest}", "/big")
        assert shown in ([128 * MIB], [None])
    of_guest = answer(nestrt, "why", guest, "cpus", "memory.max", "pids")
    assert [one["key"] for one in of_guest["limits"]] == ["cpuset.cpus", "memory.max", "pids.max"]
    assert of_guest["limits"][0]["effective"] == "0"
    v1 = nestrt.run("why", guest, "memory.limit_in_bytes")
    assert (v1.rc == 0) == any(h.version == 1 for h in hierarchies()), v1


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (["nosuch"], 3, "there is no such guest"),
        (["4999999"], 3, "there is no such process"),
        (["9" * 5000], 3, "there is no such guest"),
        (["/nestrt-nosuch"], 3, "no hierarchy has it"),
        (["/..", "memory"], 2, "no path of a group"),
        (["{guest}:/../.."], 2, "no path of a group"),
        (["{guest}", "memry"], 2, "the group has no such limit; "),
        (["{guest}", "--format", "{{.Nosuch}}"], 2, "there is no"),
    ],
)
@pytest.mark.slow_on_vm
def test_wrong_questions(nestrt: Nestrt, guest: str, argv: list[str], status: int, text: str) -> None:
    found = nestrt.run("why", *(word.format(guest=guest) if word.startswith("{guest}") else word for word in argv))
    assert (found.rc, found.out, found.err.count("\n")) == (status, "", 1), found
    assert text in found.err, found


def on_terminal(nestrt: Nestrt, *args: str, env: dict[str, str] | None = None) -> str:
    """What a command writes to a terminal."""
    master, slave = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", **(env or {"TERM": "xterm"})}
    with subprocess.Popen([nestrt.command, *args], stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        text = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # EIO: its last end is closed
                break
            if not data:
                break
            text += data
        process.wait(timeout=20 * SLOW)
    os.close(master)
    return text.decode()


def test_tree_ls_and_show(nestrt: Nestrt, guest: str) -> None:
    """One group, some controllers, filters, colours on a terminal only, and what the guest is shown of its limits."""
    tree = nestrt.run("tree", guest, "--controller", "memory").ok().out
    assert "/64M" in tree
    assert "pids" not in tree
    job = nestrt.run("tree", f"{guest}:/job", "-p").ok().out.splitlines()
    assert len(job) == 3, job
    assert "64M" in job[1]
    assert "sleep 1000" in job[2]
    document = answer(nestrt, "tree", f"/nestrt/{guest}/guest/job")
    (shown,) = document["guests"]
    assert [group["path"] for group in shown["groups"]][1:] == [f"/nestrt/{guest}/guest/job"]
    bad = nestrt.run("tree", guest, "--controller", "mem")
    assert (bad.rc, "no hierarchy here has it" in bad.err) == (2, True), bad

    (row,) = answer(nestrt, "ls", guest, "--filter", "state=running", "--filter", "level=1", "--filter", "claim=false")
    assert (row["name"], row["made_by"], row["runtime"], row["engine"]) == (guest, "launch", "launch", None)
    limit = int(group_file("memory", f"/nestrt/{guest}", "memory.limit_in_bytes", "memory.max").read_text())
    assert row["memory"]["limit"] == limit == 128 * MIB
    assert answer(nestrt, "ls", guest, "--filter", "state=paused") == []
    assert nestrt.run("ls", guest, "--format", "{{.Name}} {{.Memory.Effective}}").ok().out == f"{guest} {limit}\n"
    (cells,) = csv.DictReader(nestrt.run("ls", guest, "--format", "csv").ok().out.splitlines())
    assert cells["pids.effective"] == "40"
    assert f"/{limit}" in nestrt.run("ls", guest, "--raw").ok().out

    shown = answer(nestrt, "show", guest)
    assert shown["guest_limits"]["memory.max"] == 128 * MIB  # the lock shows the truth
    assert shown["guest_limits"]["cpuset.cpus"] == "0"
    assert shown["namespaces"]["cgroup"] is True
    assert {mount["target"] for mount in shown["mounts"]} >= {str(h.mountpoint) for h in hierarchies()}
    assert shown["counters"]["pids"] == int(group_file("pids", row["path"], "pids.current", "pids.current").read_text())
    assert {law["law"]: law["holds"] for law in shown["laws"]}["clamp"] is not False
    assert "in the guest" in nestrt.run("show", guest).ok().out.lower()

    coloured = on_terminal(nestrt, "tree", guest)
    assert "\x1b[1m" in coloured
    assert "▕" in coloured
    plain = on_terminal(nestrt, "tree", guest, env={"TERM": "xterm", "NO_COLOR": "1"})
    assert "\x1b" not in plain
    assert "\x1b" not in nestrt.run("tree", guest).ok().out


def test_many_guests_and_who_is_in_the_way(nestrt: Nestrt) -> None:
    """
    g0000       100 processes
      ├ init    one of them
      ├ c0      25 at most, and a guest of the guest in it: a claim
      └ c1      two, in the way of c0
    """
    with nest(12, 2, 1, parent=f"/nestrt-why-{os.getpid()}") as made:
        for _ in range(2):
            made.sleep_in("g0000/guest/c1")
        found = answer(nestrt, "why", f"{made.parent}/g0000/guest/init", "pids")
        whole = answer(nestrt, "why", f"{made.parent}/g0000/guest", "pids")
        (limit,) = found["limits"]
        assert (limit["effective"], limit["left"], limit["tightest"]) == (100, 97, f"{made.parent}/g0000")
        assert limit["in_the_way"] == [{"group": f"{made.parent}/g0000/guest/c1", "usage": 2}]
        assert whole["limits"][0]["tightest"] == f"{made.parent}/g0000"
        assert whole["limits"][0]["in_the_way"] == []  # what is below it is its own
        inner = answer(nestrt, "why", "g0000/g0000x")
        assert (inner["guest"], inner["level"], inner["claim"]) == ("g0000/g0000x", 2, True)
        steps = {step["group"]: step["set_by"] for step in inner["limits"][0]["chain"]}
        assert steps[f"{made.parent}/g0000/guest/c0"] == "g0000"
        assert steps[f"{made.parent}/g0000/guest/c0/g0000x"] == "g0000"
        assert steps[f"{made.parent}/g0000"] == "host"


@pytest.mark.slow_on_vm
def test_only_the_way_is_looked_at(nestrt: Nestrt, tmp_path: Path) -> None:
    """Of 60 guests, the directories of 59 are not opened."""
    with nest(60, 2, 0, nested=False, parent=f"/nestrt-why-{os.getpid()}") as made:
        log = tmp_path / "log"
        argv = ["strace", "-f", "-o", log, "-e", "trace=%file", nestrt.command, "why", f"{made.parent}/g0007"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60 * SLOW)
        assert done.returncode == 0, done
        looked = [line for line in log.read_text().splitlines() if f"{made.parent}/g00" in line]
        assert any("/g0007" in line for line in looked)
        assert not [line for line in looked if "/g0007" not in line and "usage" not in line and "current" not in line]

