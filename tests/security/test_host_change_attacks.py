"""What a hostile guest could gain by being changed from the host: exec's process, and the pids that are killed.

::

    host:      nestrt exec ──▶ process that enters ──▶ trampoline ──▶ program
                                      │ in the guest's pid namespace, seen by its processes
    guest:     catches /proc/PID/exe, opens what is the process's, freezes its groups, lies in its marks
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nestrt.act import members
from nestrt.probe.facts import primary, read_hierarchies
from support.attack_oci import CATCHER, Isolated, isolated
from support.guests import MODES, directory
from support.hostside import hierarchies, limit_group, mark, processes
from support.killing import gone
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, wait_for
from support.silent_file import silent

NewGuest = Callable[[], str]
MakeBusybox = Callable[[], Path]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Isolated]:
    with isolated(tmp_path) as found:
        yield found
        found.stop()


# CVE-2019-5736: the guest's first process looks at whatever enters, and writes to what that runs.
@pytest.mark.parametrize("mode", ["root", "userns"])
def test_the_interpreter_is_not_overwritten(
    host: Isolated, guest_name: str, make_busybox: MakeBusybox, mode: str
) -> None:
    root = make_busybox()
    words = ("--rootfs", root, "--name", guest_name, "-d", *MODES[mode], "--", "sh", "-c", CATCHER)
    host.launch(*words).ok()
    wait_for((root / "found").exists, "the attacker")
    for number in range(80):
        # Where it can, it catches one: by its own program, on a mount that cannot be written.
        if number >= 8 and (mode == "userns" or "/" in (root / "found").read_text().split("\n")):
            break
        for program in ("true", "/proc/self/exe"):
            host.run("exec", guest_name, program, "-c", "import os; os.mkdir('/tmp/python')")
            assert host.intact
    time.sleep(0.2)
    assert host.intact
    assert not (root / "tmp/python").exists()
    if mode == "root":
        assert "/" in (root / "found").read_text().split("\n")
    host.run("kill", guest_name).ok()


PRIVATE = ("mem", "environ", "maps", "fd/0", "fd/3", "cwd/.", "root/.", "exe", "auxv", "task/PID/mem")
LOOKER = f"""
: > /seen
while [ ! -e /stop ]; do
  for p in /proc/[0-9]*; do
    case "$(cat $p/cmdline | tr '\\0' ' ')" in *hooks/[n]estrt*) ;; *) continue ;; esac
    pid=${{p#/proc/}}
    # Once it is the program it is the guest's own: what was opened then is nothing.
    for name in {" ".join(PRIVATE)}; do
      file=$p/$(echo $name | sed s/PID/$pid/)
      if [ -d "$file" ] || command exec 5<"$file"; then
        case "$(cat $p/cmdline | tr '\\0' ' ')" in *hooks/[n]estrt*) echo "$name" >> /seen ;; esac
        exec 5<&-
      fi
    done
    kill -0 $pid && echo looked >> /seen
  done
done 2>/dev/null
sleep 600
"""


@pytest.mark.parametrize("mode", ["userns", "nouserns"])
@pytest.mark.slow_on_vm
def test_the_process_that_enters_is_closed(
    nestrt: Nestrt, guest_name: str, make_busybox: MakeBusybox, mode: str
) -> None:
    """Nothing of it can be opened, by root of the guest either, until it is the guest's program."""
    root = make_busybox()
    nestrt.launch("--rootfs", root, "--name", guest_name, "-d", *MODES[mode], "--", "sh", "-c", LOOKER).ok()
    wait_for((root / "seen").exists, "the looker")

    def looked() -> bool:
        nestrt.run("exec", guest_name, "true").ok()
        return "looked" in (root / "seen").read_text()

    wait_for(looked, "the looker to look", 30)
    (root / "stop").write_text("")
    assert set((root / "seen").read_text().split()) == {"looked"}


@pytest.mark.v1
@pytest.mark.slow_on_vm
def test_a_guest_that_freezes_what_enters(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """It keeps nobody waiting for ever, and what it has frozen is ended."""
    place = directory("freezer", "init")
    web = directory("freezer", "web")
    trap = f"""mkdir {web}; echo $$ > {web}/cgroup.procs; touch /tmp/ready-to-freeze
      while [ "$(wc -l < {place}/cgroup.procs)" -lt 2 ]; do :; done; echo FROZEN > {place}/freezer.state
      while :; do sleep 1; done"""
    watch = f"sh -c '{trap}' & exec sleep 1000"
    nestrt.launch("--rootfs", busybox, "--name", guest_name, "-d", "--", "sh", "-c", watch).ok()
    ready = Path(f"/proc/{mark(limit_group(guest_name))['pid']}/root/tmp/ready-to-freeze")
    wait_for(ready.exists, "the trap")
    for _ in range(10):  # until it has come in time
        begun = time.monotonic()
        result = nestrt.run("exec", guest_name, "true", timeout=60)
        assert time.monotonic() - begun < 40
        if result.rc:
            break
    assert result.rc == 125, result
    assert "keeps the new process from running" in result.err or "frozen" in result.err, result
    wait_for(lambda: not [p for p in os.listdir("/proc") if p.isdigit() and _is_exec(p, guest_name)], "all to end")
    nestrt.run("kill", guest_name).ok()


@pytest.mark.slow_on_vm
def test_a_silent_filesystem_keeps_nobody_waiting(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """FUSE where exec looks for its directory, and where update puts a node: who waits there cannot even be killed."""
    nestrt.launch("--rootfs", busybox, "--name", guest_name, "-d", "--", "sleep", "1000").ok()
    (row,) = json.loads(nestrt.run("ls", "--format", "json", guest_name).ok().out)
    with silent(row["pid"], "/mnt", "lookup"):
        result = nestrt.run("exec", "-w", "/mnt/x", guest_name, "true", timeout=40)
        assert (result.rc, "keeps the new process from running" in result.err) == (125, True), result
    with silent(row["pid"], "/dev", "lookup"):
        # By pipes, which a process that is left behind could keep open.
        command = [nestrt.command, "update", guest_name, "--device", "/dev/fuse"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=40 * SLOW, check=False)
        assert done.returncode == 0, done
        assert "the guest may use /dev/fuse, and finds no node there" in done.stderr


def _is_exec(pid: str, name: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"exec" in words and name.encode() in words


TRACED = """
import ctypes, os, time
libc = ctypes.CDLL(None)
first = os.getpid()
if os.fork() == 0:
    libc.ptrace(0x4206, first, None, None)
    print("traced", flush=True)
    time.sleep(1000)
time.sleep(1000)
"""


@pytest.mark.slow_on_vm
def test_filters_that_cannot_be_had(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    """The first process is traced by the guest: nobody else is told its filter, and nothing runs without one."""
    words = (*python.options, "--name", guest_name, *MODES["root"])
    launched = nestrt.start("launch", *words, "--", "/usr/bin/python3", "-Ic", TRACED)
    assert launched.stdout is not None
    assert launched.stdout.readline() == b"traced\n"
    refused = nestrt.run("exec", guest_name, "true")
    assert refused.rc == 125
    assert "system call filters" in refused.err
    assert "--unfiltered" in refused.err
    # What nestrt itself forbids holds all the same.
    shown = nestrt.run("exec", "--unfiltered", guest_name, "grep", "Seccomp:", "/proc/self/status").ok()
    assert shown.out.split() == ["Seccomp:", "2"]


def make(path: str, member: int, **values: object) -> None:
    """A group with a claim, and *member* in it, in every hierarchy."""
    first = primary(read_hierarchies()).mountpoint
    for hierarchy in hierarchies():
        place = hierarchy.group(path)
        place.mkdir()
        for file in ("cpuset.cpus", "cpuset.mems"):
            if hierarchy.version == 1 and (place / file).exists():
                (place / file).write_text((place.parent / file).read_text())
        (place / "cgroup.procs").write_text(str(member))
        short = {"v": 1, "name": values["name"], "id": "x"}
        text = {**short, **values} if str(hierarchy.mountpoint) == first else short
        os.setxattr(place, "user.nestrt", json.dumps(text).encode())


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.mark.slow_on_vm
def test_a_claim_of_another_process(nestrt: Nestrt) -> None:
    """A mark that names a process of the host's, outside of its groups or in them: nothing runs there."""
    name = f"nestrt-lie-{os.getpid()}"
    with subprocess.Popen(["sleep", "100"]) as inside:
        try:
            make(f"/{name}", inside.pid, name=name, state="running", pid=1, start=start_of(1))
            told = nestrt.run("exec", name, "id")
            assert (told.rc, "first process has ended" in told.err) == (125, True), told
            for hierarchy in hierarchies():
                place = hierarchy.group(f"/{name}")
                value = json.loads(os.getxattr(place, "user.nestrt"))
                value.update(pid=inside.pid, start=start_of(inside.pid))
                os.setxattr(place, "user.nestrt", json.dumps(value).encode())
            told = nestrt.run("exec", name, "id")
            assert (told.rc, "no mount namespace of its own" in told.err) == (125, True), told
        finally:
            inside.kill()
            inside.wait()
            for hierarchy in hierarchies():
                wait_for(lambda h=hierarchy: not processes_in(h.group(f"/{name}")), "its end")  # type: ignore[misc]
                hierarchy.group(f"/{name}").rmdir()


def processes_in(place: Path) -> str:
    return (place / "cgroup.procs").read_text()


# A pid that was read from cgroup.procs is another process's by the time that it is used.
def test_a_recycled_pid_is_not_killed(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    nestrt.launch("--rootfs", busybox, "--name", guest_name, "-d", "--", "sleep", "1000").ok()
    group, found = limit_group(guest_name), read_hierarchies()
    first = mark(group)["pid"]
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            assert not members.send(found, group, other.pid, signal.SIGKILL)
            assert not members.send(found, group + "x", first, signal.SIGKILL)  # a sibling whose name begins the same
            assert not members.send(found, group[:-1], first, signal.SIGKILL)
            assert not members.send(found, group, 0, signal.SIGKILL)
            assert members.send(found, group, first, signal.SIGKILL)
            wait_for(lambda: not processes(group), "the guest's end")
            assert other.poll() is None
        finally:
            other.kill()


# A process that has left some of the guest's groups, moved by the host, is the guest's all the same.
@pytest.mark.v1
def test_who_is_in_one_hierarchy_only(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    nestrt.launch("--rootfs", busybox, "--name", guest_name, "-d", "--", "sleep", "1000").ok()
    first = mark(limit_group(guest_name))["pid"]
    for hierarchy in hierarchies():
        if "pids" not in hierarchy.controllers:
            (hierarchy.mountpoint / "cgroup.procs").write_text(str(first))
    nestrt.run("kill", guest_name).ok()
    assert gone(first)
