"""What the host's commands that look open of a guest's own files: nothing. So nothing that it puts there keeps them.

    root filesystem                    FIFOs that nobody writes to, and directories, in the place of files that are
    ├ etc/passwd, hosts …              often read; inotify(7) tells of each that is opened, strace(1) of each path
    └ sys/fs/cgroup                    a tmpfs of the guest's, with FIFOs called like control files

    /nestrt/G/guest                    groups that are called like control files, each with attributes as large as the
    ├ memory.max.d, tasks2 …           kernel takes: marks that are padded, deep, or of one long text
    └ g00 … g19
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nestrt.kernel import inotify
from support.hostside import below, groups, guest_root, hierarchies, limit_group, mark
from support.need import SLOW, require
from support.rootfs import CHECKOUT
from support.runner import Nestrt, wait_for

pytestmark = pytest.mark.slow_on_vm

PATIENCE = 30.0  # seconds; whatever waits for a file of the guest waits for ever
FIFOS = (
    "etc/passwd", "etc/group", "etc/hosts", "etc/os-release", "etc/machine-id", "etc/localtime", "etc/resolv.conf",
    "etc/nsswitch.conf", "etc/ld.so.cache", "etc/ld.so.preload", "run/nestrt/guest.sock", "root/.profile",
)  # fmt: skip
DIRECTORIES = ("etc/hostname", "etc/shadow", "etc/mtab", "etc/subuid", "etc/terminfo", "nestrt/guest/client.py")
# In the guest, over its own view.
CONTROLS = (
    "cgroup.procs", "cgroup.controllers", "cgroup.events", "cgroup.type", "tasks", "memory.max", "memory.current",
    "memory.limit_in_bytes", "pids.max", "cpuset.cpus", "devices.list", "cpu.max", "cpu.stat",
)  # fmt: skip
ODD = (
    "memory.max.d", "tasks2", "cgroup.procs2", "cgroup.d", "cpuset.cpus.effective.x", "pids.max~", "devices.list.bak",
    "cgroup.clone_children2", "notify_on_release.d", "guest", "init2",
)  # fmt: skip
MANY = 20
COMMANDS = (
    "ls --format json", "tree -p", "tree @ -p --format json", "show @ --format json",
    "show /nestrt/@/guest/memory.max.d", "why @", "why @:/tasks2", "ps -t", "ps @ --format json",
    "top -b -n 1", "graph", "metrics", "events", "events --totals", "check @ --passive", "check @",
)  # fmt: skip
IN_OPEN = 0x20
OPENS = "open,openat,openat2,open_by_handle_at"
OPENED = re.compile(r"^\d+ +(\w+)\((.*)")
OF_A_PROCESS = re.compile(r"/proc/(?:self|[0-9]+)/(?:task/[0-9]+/)?(?:root|cwd|exe|map_files)\b")


@dataclass
class Odd:
    name: str
    root: Path
    pid: int
    watch: int

    def opened(self) -> bytes:
        """What inotify has told since the last time: the names of what was opened, and the places they are in."""
        try:
            return os.read(self.watch, 1 << 16)
        except BlockingIOError:
            return b""


def marks(name: str) -> tuple[bytes, ...]:
    """Of the largest size that an attribute may have, each a JSON object or nearly so."""
    largest = 65536
    plain = {"v": 1, "name": name, "level": 1, "state": "running", "pid": os.getpid(), "rootfs": "/etc"}
    raw = json.dumps(plain).encode()
    long = json.dumps({**plain, "command": ["x"]}).encode()
    deep = json.dumps({**plain, "limits": "@"}).encode()
    depth = (largest - len(deep)) // 2
    return (
        raw + b" " * (largest - len(raw)),
        long.replace(b'"x"', b'"' + b"x" * (largest - len(long) + 1) + b'"'),
        deep.replace(b'"@"', b"[" * depth + b"]" * depth),
        b"\xff" * largest,
    )


@pytest.fixture
def odd(nestrt: Nestrt, guest_name: str, make_busybox: Callable[[], Path]) -> Iterator[Odd]:
    root = make_busybox()
    (root / "sys/fs/cgroup").mkdir(parents=True, exist_ok=True)
    tops = " ".join(str(h.mountpoint) for h in hierarchies())
    script = f"""
        for top in {tops}; do
          for name in {" ".join(ODD)}; do mkdir "$top/$name"; done
          for number in $(seq 10 {9 + MANY}); do mkdir $top/g$number; done
        done
        mount -t tmpfs none /sys/fs/cgroup
        for name in {" ".join(CONTROLS)}; do mkfifo /sys/fs/cgroup/$name; done
        mkdir /sys/fs/cgroup/guest /sys/fs/cgroup/init
        mkfifo /sys/fs/cgroup/done
        exec sleep 1000
    """
    nestrt.launch("-d", "--rootfs", root, "--name", guest_name, "-m", "128M", "--", "sh", "-c", script).ok()
    pid = mark(limit_group(guest_name))["pid"]
    inside = Path(f"/proc/{pid}/root")
    command = Path(f"/proc/{pid}/cmdline")
    wait_for(lambda: command.read_bytes().startswith(b"sleep\0"), "the guest", 20)
    assert (inside / "sys/fs/cgroup/done").is_fifo()
    for name in FIFOS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)
    for name in DIRECTORIES:
        (root / name).unlink(missing_ok=True)
        (root / name).mkdir(parents=True)
    every = [path for top in groups(guest_root(guest_name)) for path in below(top)[1:]]
    kinds = marks(guest_name)
    for number, path in enumerate(every):
        os.setxattr(path, "user.nestrt", kinds[number % len(kinds)])
        os.setxattr(path, "user.nestrt.reactions", b"[" * 60000)
    watch = inotify.open()
    places = {path.parent for path in (root / name for name in (*FIFOS, *DIRECTORIES))}
    for place in (root, *places, *(root / name for name in DIRECTORIES), inside / "sys/fs/cgroup"):
        inotify.add(watch, str(place), IN_OPEN)
    yield Odd(guest_name, root, pid, watch)
    os.close(watch)


def below_the_root(text: str, odd: Odd) -> list[str]:
    """The calls in strace's output that open what is the guest's own, by whatever path."""
    found = []
    for line in text.splitlines():
        if (call := OPENED.match(line)) and call[1].startswith("open"):
            path = call[2].partition('", "')[0]
            if f'"{odd.root}' in path or f"<{odd.root}" in line or OF_A_PROCESS.search(line):
                found.append(line)
    return found


def attempt_strace() -> str:
    if not shutil.which("strace"):
        return "strace is not installed"
    done = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return done.stderr.strip()


def look(odd: Odd, argv: list[str], directory: Path) -> tuple[subprocess.CompletedProcess[bytes], list[str]]:
    """Run a command; what it has opened of the guest's own files, by what strace and inotify have seen."""
    told = directory / "strace"
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-e", f"trace={OPENS}", "-o", str(told)]
    done = subprocess.run([*strace, *argv], capture_output=True, timeout=PATIENCE * SLOW, cwd=directory, check=False)
    text = told.read_text(errors="replace")
    assert "open" in text, f"{argv}: strace has seen nothing"
    found = below_the_root(text, odd)
    if opened := odd.opened():
        found.append(f"inotify: {opened!r}")
    return done, found


def test_nothing_of_a_guests_files_is_opened(odd: Odd, tmp_path: Path) -> None:
    require("strace", attempt_strace())
    # It would be seen, by both.
    for place in (odd.root, f"/proc/{odd.pid}/root"):
        _, found = look(odd, ["ls", f"{place}/etc/hostname"], tmp_path)
        assert [line for line in found if "openat" in line], place
        assert [line for line in found if "inotify" in line], place
    wrong = []
    for command in COMMANDS:
        argv = [str(CHECKOUT / "hooks/nestrt"), *command.replace("@", odd.name).split(" ")]
        try:
            done, found = look(odd, argv, tmp_path)
        except subprocess.TimeoutExpired:
            wrong.append(f"nestrt {command}: hangs: {(tmp_path / 'strace').read_text()[-500:]}")
            continue
        if done.returncode not in (0, 1) or b"Traceback" in done.stderr:
            wrong.append(f"nestrt {command}: {done.returncode}, {done.stderr[-500:]!r}")
        wrong += [f"nestrt {command}: {line}" for line in found]
    assert not wrong, "\n".join(wrong)


def test_groups_called_like_files_are_groups(odd: Odd, nestrt: Nestrt) -> None:
    """All are listed, with the process where it is; what their marks say is no more than a claim."""
    found = json.loads(nestrt.run("tree", odd.name, "--format", "json").ok().out)
    text = json.dumps(found)
    assert all(json.dumps(f"/nestrt/{odd.name}/guest/{name}") in text or f'"{name}"' in text for name in ODD), text
    rows = json.loads(nestrt.run("ls", "--format", "json").ok().out)
    own = [row for row in rows if row["path"].startswith(f"/nestrt/{odd.name}")]
    (guest,) = [row for row in own if row["path"] == f"/nestrt/{odd.name}"]
    assert (guest["claim"], guest["level"], guest["memory"]["limit"]) == (False, 1, 128 << 20)
    assert all(row["claim"] and row["level"] == 2 for row in own if row is not guest)
