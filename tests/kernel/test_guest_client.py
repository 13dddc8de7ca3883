"""nestrt/guest/client.py in a guest made by hand, and over the same groups from the host (``--of``).

    /nestrt/client-PID             512M memory, 1.5 CPUs, the last CPU, 100 processes
                     └ guest       guest root: the same values, the host's own files; uid 100000 has the directory
                        └ init     a process with its own user, mount and cgroup namespace

Each command is run by a process in init. What it did is read back through the host's mounts.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Bundle
from support.hostside import (
    Hierarchy,
    directories,
    group_file,
    groups,
    has_v1,
    hierarchies,
    hierarchy_of,
    processes,
    read,
    v2_hierarchy,
)
from support.need import SLOW, require
from support.rootfs import CHECKOUT
from support.runner import Result

CLIENT = CHECKOUT / "nestrt" / "guest" / "client.py"
NAME = f"client-{os.getpid()}"
LIMIT = f"/nestrt/{NAME}"
ROOT = f"{LIMIT}/guest"
UID = 100_000
CPU = max(os.sched_getaffinity(0))
LIMITS = {
    "memory": ({"memory.limit_in_bytes": "512M", "memory.memsw.limit_in_bytes": "1G"},
               {"memory.max": "512M", "memory.swap.max": "512M"}),
    "pids": ({"pids.max": "100"}, {"pids.max": "100"}),
    "cpu": ({"cpu.cfs_quota_us": "150000"}, {"cpu.max": "150000 100000"}),
    "cpuset": ({"cpuset.cpus": str(CPU), "cpuset.mems": "0"}, {"cpuset.cpus": str(CPU)}),
}  # fmt: skip
STAMP = {
    "v": 1, "name": "web", "level": 1, "max_level": 3, "set_by": "host", "cpus": "renumbered", "view": "rw",
    "partition": {"cpu": True, "memory": True, "devices": True, "max_groups": 1000, "max_depth": 8},
}  # fmt: skip
MARK = {"v": 1, "name": NAME, "level": 1, "max_level": 3, "view": {"cpus": "renumbered"}, "max_groups": 1000}


EACH = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
import client
results = []
for argv in json.loads(sys.argv[2]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = client.main(argv)
    results.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


def primary() -> Hierarchy:
    return v2_hierarchy() or next(h for h in hierarchies() if h.name == "systemd")


def make_tree() -> None:
    """Limit group and guest root in every hierarchy, with LIMITS on both."""
    for hierarchy in hierarchies():
        for path in ("/nestrt", LIMIT, ROOT):
            group = hierarchy.group(path)
            if hierarchy.version == 2 and (path != "/nestrt" or hierarchy_of("memory") == hierarchy):
                for controller in (group.parent / "cgroup.controllers").read_text().split():
                    (group.parent / "cgroup.subtree_control").write_text(f"+{controller}")
            group.mkdir(exist_ok=True)
            for controller, files in LIMITS.items():
                if hierarchy_of(controller) != hierarchy:
                    continue
                for file, value in files[hierarchy.version - 1].items():
                    if path == "/nestrt" and file.startswith("cpuset.") and hierarchy.version == 1:
                        value = (group.parent / file).read_text()
                        if (group / file).read_text().strip():
                            continue
                    elif path == "/nestrt":
                        continue
                    if (group / file).exists():
                        (group / file).write_text(value)
        for file in ("", "cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control"):
            if (hierarchy.group(ROOT) / file).exists():
                os.chown(hierarchy.group(ROOT) / file, UID, UID)


def remove_tree() -> None:
    """All of it again, with what tests left in it, and /nestrt where nothing else uses it."""
    for pid in processes(LIMIT):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for directory in reversed(directories(LIMIT)):
        remove(directory)
    for parent in groups("/nestrt"):
        try:
            parent.rmdir()
        except OSError:  # another guest lives there
            pass


def remove(directory: Path) -> None:
    """rmdir, waiting for what was killed in it."""
    end = time.monotonic() + 10 * SLOW
    while directory.exists():
        try:
            directory.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


class Guest:
    """A process in namespaces of its own in init, and commands run beside it."""

    def __init__(self, userns: bool) -> None:
        self.userns = userns
        python = shlex.join(["/usr/bin/python3", "-I", str(CLIENT)])
        inside = f"{python} mount /sys/fs/cgroup && {python} create init && {python} move init $$ && echo ready && cat"
        drop = ["/usr/bin/setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"] if userns else []
        spaces = ["/usr/bin/unshare", "--cgroup", "--mount", *(["--user", "--map-root-user"] if userns else [])]
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", self.join(ROOT) + 'exec "$@"', "sh", *drop, *spaces, "/bin/sh", "-c", inside],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if self.process.stdout.readline() != "ready\n":
            require("userns" if userns else "root", self.process.communicate()[1] or "no guest started")

    @staticmethod
    def join(group: str) -> str:
        return "".join(f"echo $$ > {d}/cgroup.procs; " for d in groups(group))

    def exec(self, *argv: str) -> Result:
        """Run a program as guest root, in init."""
        enter = ["/usr/bin/nsenter", "-t", str(self.process.pid), "--cgroup", "--mount"]
        enter += ["--user", "--setuid=0", "--setgid=0"] if self.userns else []
        command = ["/bin/sh", "-c", self.join(f"{ROOT}/init") + 'exec "$@"', "sh", *enter, *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30 * SLOW, stdin=subprocess.DEVNULL)
        return Result(tuple(argv), done.returncode, done.stdout, done.stderr)

    def run(self, *argv: str) -> Result:
        """Run the client."""
        result = self.exec("/usr/bin/python3", "-I", str(CLIENT), *argv)
        assert "Traceback" not in result.err, result
        assert result.err.count("\n") == (result.rc != 0), result
        return result

    def each(self, commands: list[list[str]]) -> list[Result]:
        """Run the client's main for each command, in one process: a start takes long under emulation."""
        out = self.exec("/usr/bin/python3", "-I", "-c", EACH, str(CLIENT.parent), json.dumps(commands)).ok().out
        results = [Result(tuple(argv), *values) for argv, values in zip(commands, json.loads(out), strict=True)]
        for result in results:
            assert result.err.count("\n") == (result.rc != 0), result
        return results

    def json(self, *argv: str) -> Any:
        return json.loads(self.run(*argv, "--format", "json").ok().out)

    def stop(self) -> None:
        self.process.communicate("", timeout=10 * SLOW)


def stamp(value: bytes | None) -> None:
    directory = primary().group(ROOT)
    if value is not None:
        os.setxattr(directory, "security.nestrt", value)
    elif "security.nestrt" in os.listxattr(directory):
        os.removexattr(directory, "security.nestrt")


@pytest.fixture(scope="module", params=["userns", pytest.param("uid0", marks=pytest.mark.slow_on_vm)])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    require("root", None if os.geteuid() == 0 else "not root")
    started = None
    try:
        make_tree()
        stamp(json.dumps(STAMP).encode())
        os.setxattr(primary().group(LIMIT), "trusted.nestrt", json.dumps(MARK).encode())
        started = Guest(request.param == "userns")
        yield started
    finally:
        if started:
            started.stop()
        remove_tree()


@pytest.fixture
def group(guest: Guest, request: pytest.FixtureRequest) -> Iterator[str]:
    """A child group without limits."""
    guest.run("create", "tried").ok()
    yield "tried"
    guest.run("rm", "tried", "-r", "--kill").ok()
    assert not groups(f"{ROOT}/tried")


def host(*argv: str) -> Result:
    """``nestrt guest --of NAME`` on the host."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import nestrt.cli.guest as g; sys.exit(g.main(sys.argv[2:]))"
    command = [sys.executable, "-I", "-c", code, str(CHECKOUT), "--of", NAME, *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30 * SLOW, stdin=subprocess.DEVNULL)
    assert "Traceback" not in done.stderr
    return Result(argv, done.returncode, done.stdout, done.stderr)


def memory(path: str) -> str:
    return read("memory", path, "memory.limit_in_bytes", "memory.max")


def cpus(path: str) -> str:
    return read("cpuset", path, "cpuset.cpus", "cpuset.cpus")


def pids(path: str) -> str:
    return read("pids", path, "pids.max", "pids.max")


def test_status_says_what_the_guest_is_and_has(guest: Guest) -> None:
    status = guest.json("status")
    assert (status["name"], status["level"], status["max_level"], status["set_by"]) == ("web", 1, 3, "host")
    assert (status["view"], status["own_group"], status["cpus"]) == ("rw", "/init", 1)
    assert {"cpu", "cpuset", "memory", "pids"} <= set(status["may_divide"])
    limits = {name: limit["limit"] for name, limit in status["limits"].items()}
    assert limits["memory.max"] == limits["memory.swap.max"] == 512 << 20
    assert (limits["pids.max"], limits["cpu.max"], limits["cpuset.cpus"]) == (100, 1.5, "0")
    assert status["limits"]["memory.max"]["use"] > 0
    text = guest.run("status").ok().out
    assert "512M" in text
    assert "/init" in text


def test_create_sets_limits_in_every_hierarchy_with_guest_cpu_numbers(guest: Guest) -> None:
    guest.run("create", "web", "memory=256M", "swap=0", "cpus=0", "cpu.max=0.5", "pids=20", "cpu.weight=50").ok()
    assert len(groups(f"{ROOT}/web")) == len(hierarchies())
    assert memory(f"{ROOT}/web") == str(256 << 20)
    assert cpus(f"{ROOT}/web") == str(CPU)
    got = guest.json("get", "web")
    assert (got["memory.max"], got["memory.swap.max"], got["cpu.max"]) == (256 << 20, 0, 0.5)
    assert (got["cpu.weight"], got["cpuset.cpus"], got["pids.max"]) == (50, "0", 20)
    assert guest.run("get", "web", "memory", "cpu").ok().out == "memory.max 256M\ncpu.max 0.5\n"
    rows = {row["group"]: row for row in guest.json("ls")}
    assert rows["/web"]["processes"] == 0
    assert rows["/init"]["processes"] >= 2
    assert rows["/web"]["limits"]["memory.max"]["limit"] == 256 << 20
    assert "256M" in guest.run("ls").ok().out
    guest.run("rm", "web").ok()
    assert not groups(f"{ROOT}/web")


def test_a_new_group_takes_a_process_at_once(guest: Guest, group: str) -> None:
    sleeper = guest.exec("/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!").ok().out.strip()
    guest.run("move", group, sleeper).ok()
    held = {h: (h.group(f"{ROOT}/{group}") / "cgroup.procs").read_text().split() for h in hierarchies()}
    assert all(sleeper in found for found in held.values()), held
    refused = guest.run("rm", group)
    assert (refused.rc, sleeper in refused.err, "--kill" in refused.err) == (4, True, True)
    assert len(groups(f"{ROOT}/{group}")) == len(hierarchies())


def test_memory_and_swap_change_in_both_directions(guest: Guest, group: str) -> None:
    pairs = (("256M", "128M"), ("64M", "256M"), ("512M", "0"), ("32M", "32M"), ("300M", "100M"))
    commands = []
    for size, swap in pairs:
        commands.append(["set", group, f"memory.max={size}", f"memory.swap.max={swap}"])
        commands.append(["get", group, "memory.max", "memory.swap.max"])
    results = guest.each([*commands, ["set", group, "memory.max=64M"], ["get", group, "swap"]])
    expected = [f"memory.max {size}\nmemory.swap.max {swap}\n" for size, swap in pairs]
    assert [result.ok().out for result in results[1::2]] == [*expected, "memory.swap.max 100M\n"]
    guest.run("set", group, "memory.max=max", "swap=max").ok()


def test_quota_and_period_change_in_both_directions(guest: Guest, group: str) -> None:
    values = {"1.5": "1.5", "50000 50000": "1", "1400000 1000000": "1.4", "0.01": "0.01", "1000 10000": "0.1",
              "max": "max", "0.25": "0.25"}  # fmt: skip
    commands = [[["set", group, f"cpu.max={value}"], ["get", group, "cpu-quota"]] for value in values]
    results = guest.each([command for pair in commands for command in pair])
    assert [result.ok().out for result in results[1::2]] == [f"cpu.max {shown}\n" for shown in values.values()]


def test_more_than_the_parent_has_is_refused(guest: Guest, group: str) -> None:
    expected = {
        "memory.max=1G": "1G is more than group / has (512M)",
        "swap=1G": "more than group / has (512M)",
        "pids.max=101": "101 is more than group / has (100)",
        "cpu.max=1.6": "1.6 is more than group / has (1.5)",
        "cpus=1": "no CPU 1: this guest has 0",
        "cpuset.mems=7": "7 is more than group / has (0)",
    }
    for command in (["set", group], ["create", "other"]):
        for result in guest.each([[*command, setting] for setting in expected]):
            assert result.rc == 2
            assert expected[result.args[-1]] in result.err
    assert not groups(f"{ROOT}/other")


def test_the_guest_roots_limits_are_locked(guest: Guest) -> None:
    result = guest.run("set", "/", "memory.max=256M")
    assert result.rc == 5
    assert result.err == (
        "nestrt: cannot set memory.max of group /: it is the limit of guest web (512M), set by host; "
        "make a child group: nestrt guest create web1 memory.max=256M\n"
    )
    more = guest.run("set", "/", "memory.max=max")
    assert (more.rc, more.err.rpartition("create ")[2]) == (5, "web1 memory.max=512M\n")
    assert memory(ROOT) == str(512 << 20)
    if guest.userns:  # and the kernel says the same to a plain echo
        file = group_file("memory", "", "memory.limit_in_bytes", "memory.max")
        assert guest.exec("/bin/sh", "-c", f"echo 1G > {file}").rc != 0


WRONG = [
    (["create", "../up"], 2), (["create", "a//b"], 2), (["create", "a\nb"], 2), (["create", "x" * 256], 2),
    (["create", "memory.max"], 2), (["create", "cgroup.procs"], 2), (["create", "."], 2), (["create", ""], 2),
    (["create", "a/b"], 3), (["create", "init"], 4), (["create", "/"], 4), (["create", "n", "memory.max"], 2),
    (["create", "n", "memory.max=12Q"], 2), (["create", "n", "cpus=1-0"], 2), (["create", "n", "cpu=0.001"], 2),
    (["create", "n", "pids=-5"], 2), (["create", "n", "memory.max="], 2), (["create", "n", "nonsense.file=1"], 3),
    (["create", "n", "pids=5", "pids=6"], 2), (["create", "n", "io.max=nonsense"], 2),
    (["create", "n", "../x=1"], 2), (["create", "n", "cgroup.procs=1"], 2), (["create", "n", "cpu.weight=0"], 2),
    (["create", "n", "rdma.max=x"], 3), (["set", "nothere", "pids=1"], 3), (["get", "nothere"], 3),
    (["get", "/", "nonsense"], 3), (["get", "/", "../cgroup.procs"], 3), (["ls", "nothere"], 3),
    (["rm", "nothere"], 3), (["rm", "/"], 2), (["rm", "init"], 4), (["rm", "init", "--kill"], 4),
    (["move", "init", "999999999"], 3), (["move", "init", "x"], 2), (["move", "init", "1"], 4), ([], 2),
    (["nonsense"], 2), (["status", "--of", "x"], 2), (["mount", "/nonexistent"], 3),
    (["mount", "/mnt", "--controllers", "nonsense"], 5),
]  # fmt: skip


def test_wrong_input_gets_one_line_and_its_status(guest: Guest) -> None:
    results = guest.each([argv for argv, _ in WRONG])
    assert [(result.args, result.rc) for result in results] == [(tuple(argv), status) for argv, status in WRONG]
    assert all(result.err.startswith("nestrt: cannot ") for result in results)
    assert not groups(f"{ROOT}/n")
    assert not groups(f"{ROOT}/a")


def test_a_group_that_the_kernel_refuses_leaves_nothing(guest: Guest) -> None:
    raw = "memory.swappiness=99999" if has_v1("memory") else "memory.high=nonsense"
    result = guest.run("create", "-p", "deep/er", "pids=5", raw)
    assert (result.rc, raw.partition("=")[0] in result.err) == (1, True)
    assert not groups(f"{ROOT}/deep")


def test_settings_are_taken_back_when_one_is_refused(guest: Guest, group: str) -> None:
    raw = "memory.swappiness=99999" if has_v1("memory") else "memory.high=nonsense"
    guest.run("set", group, "pids=30").ok()
    assert guest.run("set", group, "pids=20", raw).rc == 1
    assert pids(f"{ROOT}/{group}") == "30"


def test_io_limits_reach_the_kernel(guest: Guest, group: str) -> None:
    device = ":".join(Path("/proc/partitions").read_text().splitlines()[2].split()[:2])
    guest.run("set", group, f"io.max={device} rbps=4M wiops=100").ok()
    text = read("io", f"{ROOT}/{group}", "blkio.throttle.read_bps_device", "io.max")
    assert text in (f"{device} {4 << 20}", f"{device} rbps={4 << 20} wbps=max riops=max wiops=100")
    guest.run("set", group, f"io.max={device} rbps=max wiops=max").ok()
    assert guest.run("get", group, "io").ok().out == "io.max max\n"


@pytest.mark.v1
def test_v1_throttling_is_handed_down_since_the_kernel_does_not(guest: Guest, group: str) -> None:
    disk = Path("/proc/partitions").read_text().splitlines()[2].split()[:2]
    device = ":".join(disk)
    guest.run("set", group, f"io.max={device} rbps=4M wiops=100").ok()
    guest.run("create", f"{group}/in").ok()
    assert guest.run("get", f"{group}/in", "io").ok().out == f"io.max {device} rbps=4M wiops=100\n"
    for more in ("rbps=8M", "rbps=max"):
        assert guest.run("set", f"{group}/in", f"io={device},{more}").rc == 2
    guest.run("set", f"{group}/in", f"io={device},rbps=1M").ok()
    assert guest.json("get", f"{group}/in", "io.max") == {"io.max": {device: {"rbps": 1 << 20, "wiops": 100}}}


def test_nested_groups(guest: Guest, group: str) -> None:
    guest.run("create", "-p", f"{group}/a/b/c", "memory=16M", "pids=7").ok()
    assert memory(f"{ROOT}/{group}/a/b/c") == str(16 << 20)
    assert cpus(f"{ROOT}/{group}/a/b/c") in (str(CPU), "")
    listed = [row["group"] for row in guest.json("ls", group, "-r")]
    assert listed == [f"/{group}", f"/{group}/a", f"/{group}/a/b", f"/{group}/a/b/c"]
    guest.run("set", f"{group}/a", "pids=8").ok()
    more = guest.run("set", f"{group}/a/b", "pids=9")
    assert (more.rc, f"than group /{group}/a has (8)" in more.err) == (2, True)
    assert guest.run("rm", f"{group}/a").rc == 4
    guest.run("rm", "-r", f"{group}/a").ok()


def test_rm_kill_ends_frozen_processes_too(guest: Guest, group: str) -> None:
    guest.run("create", f"{group}/in").ok()
    sleeper = guest.exec("/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!").ok().out.strip()
    guest.run("move", f"{group}/in", sleeper).ok()
    v1 = has_v1("freezer")
    if v1:
        guest.run("set", group, "freezer.state=FROZEN").ok()
        above = guest.run("rm", "--kill", f"{group}/in")
        assert (above.rc, f"group /{group} is frozen" in above.err) == (4, True)
        guest.run("set", group, "freezer.state=THAWED").ok()
    guest.run("set", f"{group}/in" if v1 else group, "freezer.state=FROZEN" if v1 else "cgroup.freeze=1").ok()
    guest.run("rm", "-r", "--kill", f"{group}/in").ok()
    assert not groups(f"{ROOT}/{group}/in")


def test_kernel_file_names_are_taken_where_they_exist(guest: Guest, group: str) -> None:
    name = "memory.soft_limit_in_bytes" if has_v1("memory") else "memory.high"
    guest.run("set", group, f"{name}=64M").ok()
    assert guest.run("get", group, name).ok().out == f"{name} {64 << 20}\n"
    guest.run("set", group, "memory.limit_in_bytes=128M").ok()
    assert memory(f"{ROOT}/{group}") == str(128 << 20)
    effective = "cpuset.effective_cpus" if has_v1("cpuset") else "cpuset.cpus.effective"
    assert guest.run("get", group, effective).ok().out == f"{effective} 0\n"


def test_only_the_guests_own_processes_can_be_moved(guest: Guest, group: str) -> None:
    result = guest.run("move", group, str(os.getpid()))
    assert (result.rc, "not in this guest" in result.err) == (4, True)


@pytest.mark.v2
def test_a_group_with_processes_cannot_divide_and_says_how_to(guest: Guest, group: str) -> None:
    sleeper = guest.exec("/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!").ok().out.strip()
    guest.run("move", group, sleeper).ok()
    result = guest.run("create", f"{group}/in", "memory=16M")
    assert result.rc == 4
    assert f"group /{group} itself holds processes ({sleeper})" in result.err
    assert not groups(f"{ROOT}/{group}/in")
    for command in result.err.partition("move them first: ")[2].strip().split("; "):
        guest.run(*command.replace("nestrt guest ", "").split()).ok()
    guest.run("create", f"{group}/in", "memory=16M").ok()
    busy = guest.run("move", group, sleeper)
    assert (busy.rc, "child groups" in busy.err) == (4, True)


def test_mount_shows_the_guest_root_laid_out_like_the_view(guest: Guest) -> None:
    script = (
        "mount -t tmpfs t /mnt && mkdir /mnt/view && /usr/bin/python3 -I {0} mount /mnt/view && "
        "grep ' /mnt/view.* - cgroup' /proc/self/mountinfo | cut -d' ' -f4,5 | tr ' ' ="
    )
    out = guest.exec("/usr/bin/unshare", "--mount", "/bin/sh", "-c", script.format(CLIENT)).ok().out.split()
    top = Path("/sys/fs/cgroup")
    places = {str(h.mountpoint.relative_to(top)).replace(".", "", 1).strip("/") for h in hierarchies()}
    assert {line.partition("=")[0] for line in out} == {"/"}
    assert {line.partition("=")[2].removeprefix("/mnt/view").strip("/") for line in out} == places
    if has_v1("pids"):
        script = "mount -t tmpfs t /mnt && /usr/bin/python3 -I {0} mount /mnt --controllers pids && ls /mnt"
        assert guest.exec("/usr/bin/unshare", "--mount", "/bin/sh", "-c", script.format(CLIENT)).ok().out == "pids\n"


BROKEN = b'{"name": 1, "partition": [], "cpus": {}, "level": "x", "set_by": null}'


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"[1]", BROKEN])
def test_works_without_a_stamp_and_with_a_broken_one(guest: Guest, value: bytes | None) -> None:
    stamp(value)
    try:
        status = guest.json("status")
        assert (status["name"], status["level"], status["limits"]["cpuset.cpus"]["limit"]) == ("", None, str(CPU))
        guest.run("create", "bare", f"cpus={CPU}", "memory=64M").ok()
        assert cpus(f"{ROOT}/bare") == str(CPU)
        assert "it is the limit of this guest (100), set by the level above" in guest.run("set", "/", "pids=5").err
        guest.run("rm", "bare").ok()
    finally:
        stamp(json.dumps(STAMP).encode())


def test_the_host_does_the_same_by_name(guest: Guest) -> None:
    host("create", "-p", "byhost/in", "memory=64M", "cpus=0", "pids=9").ok()
    assert (memory(f"{ROOT}/byhost/in"), cpus(f"{ROOT}/byhost/in")) == (str(64 << 20), str(CPU))
    assert {os.stat(d).st_uid for d in groups(f"{ROOT}/byhost/in")} == {UID}
    # It is the guest's own, as if made inside.
    guest.run("set", "byhost/in", "memory=32M", "cpus=0").ok()
    guest.run("create", "byhost/in/more").ok()
    assert json.loads(host("get", "byhost/in", "--format", "json").ok().out)["memory.max"] == 32 << 20
    assert json.loads(host("status", "--format", "json").ok().out)["cpus"] == 1
    lock = host("set", "/", "pids=50")
    assert lock.rc == 5
    assert f"make a child group: nestrt guest --of {NAME} create {NAME}1 pids.max=50" in lock.err
    assert "no CPU 1: this guest has 0" in host("set", "byhost", "cpus=1").err
    assert (host("move", "byhost", str(os.getpid())).rc, host("mount", "/mnt").rc) == (4, 5)
    host("rm", "-r", "byhost").ok()
    assert not groups(f"{ROOT}/byhost")


def test_on_the_host_itself_it_refuses() -> None:
    for argv, says in ((["create", "stray"], "--of NAME"), (["mount", "/mnt"], "host's own cgroup namespace")):
        done = subprocess.run([sys.executable, str(CLIENT), *argv], capture_output=True, text=True, timeout=30 * SLOW)
        assert (done.returncode, says in done.stderr, done.stderr.count("\n")) == (5, True, 1)
    assert not groups("/stray")


def test_a_container_of_an_engine(bundle: Bundle) -> None:
    """``--of`` finds it where the engine has put it, and a guest's claim to its name leads nowhere.

    PARENT/ID          limit group
             └ guest   guest root: what --of counts from
    """
    bundle.resources(pids={"limit": 40}).virtual().up()
    of = ("guest", "--of", bundle.id)
    bundle.nestrt.run(*of, "create", "db", "pids=20").ok()
    assert group_file("pids", f"{bundle.cgroup}/guest/db", "pids.max", "pids.max").read_text() == "20\n"
    assert bundle.nestrt.run(*of, "set", "/", "pids=50").rc == 5
    assert bundle.nestrt.run("guest", "--of", f"{bundle.id}/none", "ls").rc == 3
    for directory in bundle.groups():
        for attribute in os.listxattr(directory):
            if attribute == "trusted.nestrt":
                os.setxattr(directory, "user.nestrt", os.getxattr(directory, attribute))
                os.removexattr(directory, attribute)
    assert bundle.nestrt.run(*of, "ls").rc == 3
