"""A guest that tries to hurt whoever looks at it: nothing hangs, lies or executes.

    /nestrt/G/guest             128M
    ├ init                      processes whose names and words are escape sequences
    ├ ESC[31mred, $(touch …),   group names: terminal codes, markup, shell, CSV formulas, bytes that are no UTF-8
    │ <script>…, =cmd|…, \\xff
    ├ marked                    a mark as large as the kernel takes, naming the guest itself
    ├ churn                     groups made and removed as fast as it goes
    └ d/d/d/…                   5,000 levels, where the kernel has no cap (v1)
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hostside import groups, hierarchies, processes
from support.need import SLOW
from support.rootfs import CHECKOUT
from support.runner import Nestrt, wait_for

DEEP = 5000
PATIENCE = 15.0  # s for one command: none takes one
NAMES = (
    r"\033[31mred\033]0;title\007", r"\302\233 2J", r"\342\200\256rtl\342\200\250line", r"\377\376bytes", r"a\rb",
    r"$(touch @)", r"`touch @`", r"; touch @ #", r"<script>alert(1)</script>", r'"><svg onload=alert(1)>', r"]]>&amp;",
    r"=cmd|calc!A0", r"{{.Name}}", r"%s%n", r"-rf", r"--help", r"name\{x=\"1\"\} 5", r"\134x1b[31m",
)  # fmt: skip


@pytest.fixture
def hostile(nestrt: Nestrt, guest_name: str, busybox: Path, tmp_path: Path) -> Iterator[str]:
    """The guest's name. What it would execute touches tmp_path/pwned."""
    top = hierarchies()[0].mountpoint
    tops = " ".join(str(h.mountpoint) for h in hierarchies())
    pwned = str(tmp_path / "pwned")
    # A name of a group has no slash.
    names = " ".join(shlex.quote(name.replace("@", "pwned")) for name in NAMES)
    script = f"""
        for top in {tops}; do
          for name in {names}; do mkdir -p "$top/$(printf "$name")" 2>/dev/null; done
          mkdir $top/marked $top/churn
        done
        for name in {names}; do
          sh -c 'printf "$0" > /proc/$$/comm; sleep 1000; :' "$(printf "$name")" &
        done
        (while :; do
          mkdir {top}/churn/$((n % 7)) {top}/churn/$((n % 7))/inner; rmdir {top}/churn/*/inner {top}/churn/*
          n=$((n + 1))
        done) 2>/dev/null &
        wait
    """
    nestrt.launch(
        "-d", "--rootfs", busybox, "--name", guest_name, "-m", "128M", "--pids", "100", "--", "sh", "-c", script,
        cwd=tmp_path,
    ).ok()  # fmt: skip
    wait_for(lambda: len(processes(f"/nestrt/{guest_name}/guest/init")) > len(NAMES), "the guest", 20)
    command = ["\x1b]0;own\x07", "x" * 200]
    mark = {"v": 1, "name": guest_name, "pid": os.getpid(), "state": "running", "command": command}
    raw = json.dumps(mark).encode()
    for directory in groups(f"/nestrt/{guest_name}/guest/marked"):
        os.setxattr(directory, "user.nestrt", raw + b" " * (65536 - len(raw)))
        os.setxattr(directory, "user.other", b"x" * 60000)
    deep = next((h for h in hierarchies() if h.version == 1), None)
    made = _dig(deep.group(f"/nestrt/{guest_name}/guest")) if deep else []
    yield guest_name
    for parent in reversed(made):
        os.rmdir("d", dir_fd=parent)
        os.close(parent)
    assert not os.path.exists(pwned)


def _dig(top: Path) -> list[int]:
    made = []
    parent = os.open(top, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d", dir_fd=parent)
        made.append(parent)
        parent = os.open("d", os.O_RDONLY, dir_fd=parent)
    os.close(parent)
    return made


COMMANDS = (
    "ls", "ls --format json", "ls --format csv", "ls --format yaml", "ls --format {{.Name}}|{{.Command}}|{{.Path}}",
    "tree", "tree -p", "tree @ -p --format json", "tree @ --format yaml", "show @", "show @ --format json",
    "show /nestrt/@/guest/marked", "why @", "why @:/churn", "why @:/churn --format json", "why @:/d/d/d/d",
    "ps", "ps -t", "ps --format json", "ps --format csv", "top -b -n 1", "top -b -n 2 -d 0.1 --format json",
    "graph", "graph --format html", "graph @ --by pids", "metrics", "events", "events --format json",
    "check @ --passive", "ls --format openmetrics",
)  # fmt: skip


def _describe(command: str, done: subprocess.CompletedProcess[bytes], seconds: float) -> str:
    return f"nestrt {command}: {seconds:.1f} s, {done.returncode}, {done.stderr[-300:]!r}"


def _problems(command: str, done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """What is wrong with what a command wrote."""
    found = []
    text = done.stdout.decode(errors="strict")
    if any(not line.isprintable() for line in text.replace("\t", " ").split("\n")):
        bad = next(line for line in text.replace("\t", " ").split("\n") if not line.isprintable())
        found.append(f"a line that is not printable: {bad[:200]!a}")
    if any(not line.isprintable() for line in done.stderr.decode().split("\n")):
        found.append("standard error is not printable")
    if done.returncode not in (0, 1):
        found.append("its status")
    try:
        lines = command.startswith(("events", "top"))  # an object in each
        if "--format json" in command and not lines:
            json.loads(text)
        elif "--format json" in command:
            [json.loads(line) for line in text.splitlines()]
        elif command in ("graph", "graph @ --by pids"):
            root = xml.fromstring(text)
            if any("script" in element.tag.lower() for element in root.iter()):
                found.append("a script in the SVG")
    except (ValueError, xml.ParseError) as error:
        found.append(f"it cannot be read: {error}")
    for markup in ("<script>alert", "<svg onload"):
        if command.startswith("graph") and markup in text:
            found.append(f"markup of the guest's: {markup}")
    return found


@pytest.mark.slow_on_vm
def test_nothing_hangs_lies_or_executes(nestrt: Nestrt, hostile: str, tmp_path: Path) -> None:
    wrong = []
    for command in COMMANDS:
        argv = [str(CHECKOUT / "hooks/nestrt"), *command.replace("@", hostile).split(" ")]
        begin = time.monotonic()
        try:
            done = subprocess.run(argv, capture_output=True, timeout=PATIENCE * SLOW, cwd=tmp_path, check=False)
        except subprocess.TimeoutExpired:
            wrong.append(f"nestrt {command}: hangs")
            continue
        print(_describe(command, done, time.monotonic() - begin))
        wrong += [f"{_describe(command, done, time.monotonic() - begin)}: {bad}" for bad in _problems(command, done)]
    assert not wrong, "\n".join(wrong)
    # What it is, and what it has, are what the host says, whatever a mark inside claims.
    (row,) = [row for row in json.loads(nestrt.run("ls", "--format", "json").ok().out) if row["name"] == hostile]
    assert (row["claim"], row["level"], row["memory"]["limit"]) == (False, 1, 128 << 20)
    everyone = json.loads(nestrt.run("ls", "--format", "json").ok().out)
    claims = [row for row in everyone if row["path"].startswith(f"/nestrt/{hostile}/")]
    assert all(row["claim"] and row["level"] == 2 for row in claims)
    assert claims
