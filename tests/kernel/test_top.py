"""nestrt top: its figures against the kernel's files and systemd-cgtop's, and its screen as a person sees it.

web      a real guest: half a CPU, 64 MiB, 40 processes
├ burns all the CPU time that it gets, holds memory, writes to a disk, has processes asleep
└ one of it was killed for memory
nest     guests made by hand, some of whose names are hostile
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from nestrt.probe.facts import read_hierarchies
from support.hostside import below, group_file, guest_root, has_v1, hierarchy_of, limit_group, read
from support.need import SLOW, require
from support.nest import nest
from support.runner import Nestrt, again, wait_for
from support.screen import Terminal

pytestmark = pytest.mark.slow_on_vm

TOP = [Nestrt.command, "top"]
PARENT, OTHER = f"/nestrt-top-{os.getpid()}", f"/nestrt-top-{os.getpid()}-other"
MIB = 1 << 20
# Three that sleep, 8 MiB in memory, one killed for memory; then three burn, and one writes now and then.
BUSY = """
sleep 1000 & sleep 1000 & sleep 1000 &
dd if=/dev/zero of=/mem/held bs=1M count=8 2>/dev/null
sh -c 'dd if=/dev/zero of=/mem/more bs=1M count=100 2>/dev/null'; rm -f /mem/more
dd if=/dev/zero of=/file bs=1M count=1 conv=fsync 2>/dev/null
for burner in 1 2 3; do while :; do :; done & done
echo ready > /ready
while :; do dd if=/dev/zero of=/file bs=1M count=1 conv=fsync 2>/dev/null; sleep 0.2; done
"""


@pytest.fixture
def busy(nestrt: Nestrt, make_busybox: Any, guest_name: str) -> str:
    """The guest's name, once it burns."""
    root = make_busybox()
    (root / "mem").mkdir()
    options = ["--rootfs", root, "--name", guest_name, "--mount", "type=tmpfs,target=/mem,size=200M"]
    options += ["--cpu-quota", "0.5", "-m", "64M", "--swap", "0", "--pids", "40"]
    nestrt.launch("-d", *options, "--", "sh", "-c", BUSY).ok()
    wait_for((root / "ready").exists, "the guest to burn", 30)
    return guest_name


def rows(nestrt: Nestrt, *argv: str) -> list[dict[str, Any]]:
    found = json.loads(nestrt.run("top", "--format", "json", *argv, timeout=40).ok().out)
    assert isinstance(found, list)
    return found


def cpu_time(name: str) -> int:
    """µs, of the limit group."""
    hierarchy = hierarchy_of("cpu")
    assert hierarchy is not None
    if hierarchy.version == 1:
        return int(read("cpuacct", limit_group(name), "cpuacct.usage", "")) // 1000
    return int(read("cpu", limit_group(name), "", "cpu.stat").split()[1])


def kills(name: str) -> int:
    """On v1 they are counted in the group of who was killed."""
    top = group_file("memory", limit_group(name), ".", ".")
    v1 = has_v1("memory")
    files = [place / "memory.oom_control" for place in below(top)] if v1 else [top / "memory.events"]
    return sum(int(line.split()[1]) for file in files for line in file.read_text().splitlines() if "oom_kill " in line)


def passes_of(nestrt: Nestrt, name: str) -> tuple[list[dict[str, Any]], bool]:
    """Longer, against what the kernel counts meanwhile: half a CPU, if this machine has it to give; and whether it
    had."""
    idle = os.getloadavg()[0] < 1
    out = nestrt.run("top", "--format=json", "-n3", "-d2", name, timeout=60).ok().out
    passes = [json.loads(line) for line in out.splitlines()]
    assert len(passes) == 3
    for before, each in pairwise(passes):
        spent = (each["cpu_usec"] - before["cpu_usec"]) / (each["time"] - before["time"]) / 10_000
        assert each["cpu_percent"] == pytest.approx(spent, abs=3)
    told = (passes[1]["cpu_percent"] + passes[2]["cpu_percent"]) / 2
    assert told <= 60
    assert told >= 40 or not idle
    assert any(each["throttled_percent"] for each in passes) or not idle
    return passes, idle


@pytest.mark.slow_on_vm(False)
def test_figures(nestrt: Nestrt, busy: str) -> None:
    def measured() -> dict[str, Any]:
        first = cpu_time(busy)
        (row,) = rows(nestrt, busy)
        assert first <= row["cpu_usec"] <= cpu_time(busy)
        assert 0 < row["cpu_percent"] <= 80  # over half a second, a period of 100 ms more or less is seen
        return row

    row = again(measured)
    assert (row["name"], row["path"], row["kind"], row["state"]) == (busy, limit_group(busy), "guest", "running")
    assert (row["level"], row["claim"], row["cpu_quota"]) == (1, False, 50_000)
    assert row["cpu_quota_percent"] == pytest.approx(2 * row["cpu_percent"], abs=0.1)
    memory, pids = row["memory"], row["pids"]
    assert memory["effective"] == memory["limit"] == 64 * MIB
    assert memory["binds"] == limit_group(busy)
    assert 8 * MIB <= memory["usage"] <= 64 * MIB
    assert row["memory_percent"] == pytest.approx(100 * memory["usage"] / (64 * MIB), abs=0.1)
    assert (pids["effective"], pids["usage"] >= 4) == (40, True)
    assert row["oom_kills"] == kills(busy) >= 1
    disk = os.major(os.stat("/tmp").st_dev)  # not a tmpfs, or what a virtual machine shares
    assert row["io_write_bytes"] >= (MIB if disk else 0)
    if row["pressure"] is not None:
        assert row["pressure"]["cpu"]["some_total_usec"] > 0

    passes, idle = again(lambda: passes_of(nestrt, busy))
    assert any(each["io_write_rate"] for each in passes) or not disk

    groups = {each["path"]: each for each in rows(nestrt, "--by", "group", busy)}
    assert set(groups) == {limit_group(busy), guest_root(busy), guest_root(busy) + "/init"}
    assert groups[guest_root(busy) + "/init"]["name"] == f"{busy}:/init"
    assert groups[guest_root(busy) + "/init"]["cpu_usec"] >= row["cpu_usec"]

    podman = "{{.Name}} {{.PIDs}} {{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.BlockIO}} {{.ID}}"
    words = nestrt.run("top", "--no-stream", "--format", podman, busy).ok().out.split()
    assert words[0] == busy
    assert int(words[1]) >= 4
    assert words[2].endswith("%")
    assert words[4:6] == ["/", "64M"]
    again(lambda: compare_with_cgtop(busy, passes[2], 10 if idle else 60))


def compare_with_cgtop(name: str, row: dict[str, Any], most: float) -> None:
    """systemd-cgtop reads the same files, and works without systemd."""
    require("systemd-cgtop", "" if shutil.which("systemd-cgtop") else "there is no systemd-cgtop")
    argv = ["systemd-cgtop", "--batch", "--raw", "-n", "3", "-d", "2", limit_group(name)]
    out = subprocess.run(argv, capture_output=True, text=True, timeout=30 * SLOW).stdout
    found = [line.split() for line in out.splitlines() if line.lstrip("/").startswith(limit_group(name)[1:] + " ")]
    assert found, out
    _, tasks, cpu, memory, _, _ = found[-1]
    assert abs(int(tasks) - row["pids"]["usage"]) <= 3
    assert abs(int(memory) - row["memory"]["usage"]) <= 8 * MIB
    if cpu != "-":  # it knows cpuacct, and on v2 cpu.stat, where it takes the host for one with it
        assert abs(float(cpu) - row["cpu_percent"]) <= most


def test_forms(nestrt: Nestrt) -> None:
    with nest(4, 2, parent=OTHER):
        out = nestrt.run("top", "-p", "-r", "--no-headings", f"{OTHER}/g0000").ok().out
        first, second = (line.split() for line in out.splitlines())
        assert first[0] == "g0000"
        assert second[0] == "g0000/g0000x"
        assert second[4].endswith(f"/{64 * MIB}")
        table = list(csv.DictReader(nestrt.run("top", "--format=csv", "--filter", f"{OTHER}/").ok().out.splitlines()))
        assert {row["path"] for row in table} >= {f"{OTHER}/g0003"}
        assert {row["memory.effective"] for row in table} == {str(512 * MIB), str(64 * MIB)}
        below = [row["path"] for row in rows(nestrt, "-g", "group", "--depth", "0", f"{OTHER}/g0001")]
        assert sorted(below) == [f"{OTHER}/g0001", f"{OTHER}/g0001/guest"]
        levels = rows(nestrt, "-g", "level")
        assert levels[0]["name"].startswith("level ")
        assert nestrt.run("top", f"{OTHER}/g0000", "--format", "yaml").ok().out.startswith("- time: ")
        assert nestrt.run("top", "no-such-guest").rc == 3
        assert nestrt.run("top", "-d", "0").rc == 2
        assert nestrt.run("top", "--order", "size").rc == 2
        assert nestrt.run("top", "--format", "{{.Nothing}}").rc == 2
        # A reader that goes away ends it.
        argv = f"{Nestrt.command} top -n 0 -d 0.1 | head -1"
        subprocess.run(["sh", "-c", argv], stdout=subprocess.DEVNULL, check=True, timeout=30 * SLOW)


# The screen.


@pytest.fixture(scope="module")
def guests() -> Iterator[None]:
    """g0000 … g0011, two of them with a guest of their own."""
    with nest(12, 2, 2, parent=PARENT):
        yield


def names(text: str) -> list[str]:
    """The first words of the lines below the titles, up to the rule."""
    lines = text.splitlines()
    top = next(place for place, line in enumerate(lines) if line.startswith("NAME "))
    found = []
    for line in lines[top + 1 :]:
        if not line or line.startswith("─"):
            break
        found.append(line.split()[0])
    return found


def wait_rows(screen: Terminal, *expected: str) -> None:
    """Wait until these are the names of the first rows."""
    end = time.monotonic() + 15 * SLOW
    while "NAME " not in screen.text() or names(screen.text())[: len(expected)] != list(expected):
        assert time.monotonic() < end, f"waited for {expected}:\n{screen.text()}"
        screen.read(0.05)


def test_keys(guests: None) -> None:
    with Terminal([*TOP, "--filter", PARENT, "-d", "0.5"], 132, 30) as screen:
        screen.wait("h help", "g0000/g0000x", "512M", "by guest, order cpu")
        screen.press("n")
        screen.wait("order name")
        wait_rows(screen, "g0000", "g0000/g0000x", "g0001")
        screen.press("r")
        screen.wait("(turned)")
        wait_rows(screen, "g0011", "g0010/g0010x")
        screen.press("r", "t")
        screen.wait("order tasks", absent=["(turned)"])
        wait_rows(screen, "g0000", "g0001")  # those with a process
        screen.press("p")
        screen.wait("order path, tree")
        wait_rows(screen, "g0000", "g0000x")
        screen.press("g")
        screen.wait("by level")
        wait_rows(screen, "level", "level")
        screen.press("g")
        screen.wait("by group", "init", "c0")
        wait_rows(screen, "g0000", "guest")
        screen.press("-", "-", "-", "-", "-")
        screen.wait("depth 0", absent=[" init "])
        screen.press("+")
        screen.wait(" init ")
        screen.press("g")
        screen.wait("by guest", absent=[" init "])
        screen.press("/", "ctrl u", "g", "0", "0", "1", "1")
        screen.wait("/g0011_", absent=["g0000"])
        wait_rows(screen, "g0011")
        screen.press("enter")
        screen.wait("filter 'g0011'")
        screen.press("enter")
        screen.wait("memory.max: own 512M, effective 512M", f"{PARENT}/g0011 binds")
        screen.press("esc")
        screen.wait("g0000", absent=["binds", "filter 'g"])
        screen.press("/", PARENT, "enter")
        screen.wait(f"filter '{PARENT}'")
        screen.press("?")
        screen.wait("any key goes back", "turn the order round")
        screen.press("x", "end")
        screen.wait("g0011  level 1")
        screen.press("home", "down")
        screen.wait(f"{PARENT}/g0000/guest/c0/g0000x  claim")
        screen.press(" ")
        screen.wait("paused")
        screen.read(1.2)  # the rest of it
        paused = screen.text()
        screen.read(1.2)
        assert screen.text() == paused
        screen.press(" ", ">")
        screen.wait("every 1 s")
        screen.press("q")
        assert screen.ended() == 0
        assert screen.settings() == screen.before


def test_guests_that_come_and_go_are_noticed(guests: None) -> None:
    late = f"nestrt-top-late-{os.getpid()}"
    with Terminal([*TOP, "-d", "0.5"], 132, 40) as screen:
        screen.wait("h help", "g0000/g0000x")
        with nest(1, 0, parent=f"/{late}"):
            screen.press("/", "ctrl u", *late, "enter")
            screen.wait("g0000  level 1", f"/{late}/g0000")
        screen.wait("no guest matches")
        screen.press("q")
        assert screen.ended() == 0


def test_resizing(guests: None) -> None:
    with Terminal([*TOP, "--filter", PARENT], 80, 24) as screen:
        screen.wait("h help", "g0000", "CPU%")
        screen.resize(140, 40)
        screen.wait("THR%", "OOM", "SWAP")
        screen.resize(40, 12)
        screen.wait("CPU%", absent=["THR%"])
        screen.resize(20, 5)
        screen.wait("too small", "20x5")
        screen.resize(100, 30)
        screen.wait("h help", "g0000", absent=["too small"])
        screen.press("ctrl l")
        screen.wait("h help", "g0000")
        screen.press("q")
        assert screen.ended() == 0


def test_however_it_ends_the_terminal_is_as_it_was(guests: None) -> None:
    """SIGTERM, Ctrl-C, and a terminal that is gone."""
    for end in ("term", "ctrl c", "hang up"):
        with Terminal([*TOP, "--filter", PARENT], 100, 30) as screen:
            screen.wait("h help", "g0000")
            assert screen.settings() != screen.before
            if end == "hang up":
                screen.hang_up()
                assert screen.process.wait(20 * SLOW) in (-signal.SIGHUP, 128 + signal.SIGHUP)
                continue
            if end == "term":
                screen.signal(signal.SIGTERM)
            else:
                screen.press("ctrl c")
            assert screen.ended() == (-signal.SIGTERM if end == "term" else 0)
            assert screen.settings() == screen.before
            # Out of the alternate screen (as xterm has it, or its older way), and the cursor is back.
            assert b"\x1b[?1049l" in screen.raw or b"\x1b[?47l" in screen.raw
            assert screen.raw.rindex(b"\x1b[?25h") > screen.raw.rindex(b"\x1b[?25l")
            assert b"Traceback" not in screen.raw


def test_job_control(guests: None) -> None:
    """Ctrl-Z gives the terminal back as it was; fg, or SIGCONT after SIGSTOP, draws everything again."""
    with Terminal([*TOP, "--filter", PARENT], 100, 30) as screen:
        screen.wait("h help", "g0000")
        for _ in range(2):
            # A session leader's own signals to stop are ignored by the kernel where nobody could continue it
            # (setpgid(2): an orphaned process group), so the signal is SIGTSTP's handler's way, then SIGSTOP.
            screen.signal(signal.SIGSTOP)
            screen.stopped()
            screen.screen.reset()
            screen.signal(signal.SIGCONT)
            screen.wait("h help", "g0000")
        screen.press("q")
        assert screen.ended() == 0
        assert screen.settings() == screen.before


def test_ctrl_z_under_a_shell(guests: None) -> None:
    shell = ["sh", "-c", f"set -m; {TOP[0]} top --filter {PARENT}; echo stopped-$?; stty -a | grep -o ' -\\?icanon';"
             " read line; fg >/dev/null; echo ended-$?"]  # fmt: skip
    with Terminal(shell, 100, 30) as screen:
        screen.wait("h help", "g0000")
        screen.press("ctrl z")
        screen.wait("stopped-", "icanon", absent=["-icanon"])
        screen.press("enter")
        screen.wait("h help", "g0000", absent=["stopped-"])
        screen.press("q")
        screen.wait("ended-0")
        assert screen.ended() == 0


def test_without_colours(guests: None) -> None:
    with Terminal([*TOP, "--filter", PARENT], 100, 30, env={"NO_COLOR": "1"}) as screen:
        screen.wait("h help", "g0000")
        screen.press("q")
        assert screen.ended() == 0
        coloured = {cell.fg for line in screen.screen.buffer.values() for cell in line.values()}
        assert coloured <= {"default"}


# Hostile guests.

NAMES = (
    "\x1b[2J\x1b[31mEVIL",
    "漢字漢字",
    "e\u0301" * 9,
    "\u202eleft",
    "\x9b2J",
    "a'\"`$(reboot)%s{}",
    "x" * 200,
)


def test_names_that_a_terminal_would_obey(nestrt: Nestrt) -> None:
    """A guest's groups have such names, and its marks say such things; all columns stay where they are."""
    with nest(1, 1, parent=OTHER):
        for hierarchy in read_hierarchies():
            root = hierarchy.path(f"{OTHER}/g0000/guest")
            if not os.path.isdir(root):
                continue
            for number, name in enumerate(NAMES):
                for path in (f"{root}/{name}", f"{root}/marked {name}"):
                    os.mkdir(path)
                mark = json.dumps({"v": 1, "name": f"n{number}", "id": name, "command": [name]}, ensure_ascii=False)
                os.setxattr(f"{root}/marked {name}", "user.nestrt", mark.encode())
        with Terminal([*TOP, "--by", "group", "--filter", OTHER, "-d", "0.5"], 132, 40) as screen:
            text = screen.wait("h help", r"\x1b[2J\x1b[31mEVIL", r"\u6f22")
            state = next(line for line in text.splitlines() if line.startswith("NAME ")).index(" S ") + 1
            for _ in range(len(NAMES) + 2):
                for line in text.splitlines()[4 : 4 + len(names(text))]:
                    assert line[state] in "R-P?", line
                    assert line[state - 1 :: 2][:2] == "  ", line
                screen.press("down")
                screen.read(0.2)
                text = screen.text()
            screen.press("enter", "v", "p")
            screen.wait("order path, tree")
            assert b"\x1b[31mEVIL" not in screen.raw
            assert "漢".encode() not in screen.raw
            screen.press("q")
            assert screen.ended() == 0
        for argv in (["-p"], ["--format=csv"], ["--format=json"], ["--format={{.Name}}"], ["--format=yaml"]):
            out = nestrt.run("top", "--by=group", f"{OTHER}/g0000", *argv).ok().out
            assert "EVIL" in out
            assert "\x1b" not in out
            assert "\x9b" not in out


def test_groups_that_vanish_at_full_speed(nestrt: Nestrt) -> None:
    done = threading.Event()
    rounds = 0

    def churn() -> None:
        nonlocal rounds
        tops = [hierarchy.path(f"{OTHER}/g0000/guest") for hierarchy in read_hierarchies()]
        tops = [top for top in tops if os.path.isdir(top)]
        while not done.is_set():
            for number in range(8):
                for top in tops:
                    os.mkdir(f"{top}/v{number}")
                    os.setxattr(f"{top}/v{number}", "user.nestrt", b'{"v": 1, "name": "vanishing"}')
            for number in range(8):
                for top in tops:
                    os.rmdir(f"{top}/v{number}")
            rounds += 1

    with nest(2, 1, parent=OTHER):
        thread = threading.Thread(target=churn)
        thread.start()
        try:
            with Terminal([*TOP, "-g", "group", "--filter", OTHER, "-d", "0.1"], 120, 30) as screen:
                screen.wait("h help", "g0000")
                for key in ("p", "g", "g", "g", "enter", "down", "v", "c") * 2:
                    screen.press(key)
                    screen.read(0.2)
                assert screen.process.poll() is None, screen.text()
                screen.wait("h help")
                screen.press("q")
                assert screen.ended() == 0
                assert b"Traceback" not in screen.raw
                assert b"bug of nestrt" not in screen.raw
            nestrt.run("top", "--by=group", "--format=json", "-n", "5", "-d", "0.1", f"{OTHER}/g0000").ok()
        finally:
            done.set()
            thread.join()
    assert rounds > 3
