"""One more process in a container: where it stands, whose rights it has, what it gets and what it says.

/…/ID               limit group                      without a policy all stand here
  guest/            guest root       (policy)
    init/           first process    exec lands beside it, wherever it is by now
    web/                             exec --cgroup /web lands here
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Bundle
from support.guests import directory
from support.hostside import hierarchies, v2_hierarchy
from support.killing import gone
from support.need import SLOW, require
from support.runner import wait_for

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewBundle = Callable[..., Bundle]


def told(result: Any, text: str, rc: int) -> None:
    """The verb failed with one line that has *text* in it."""
    assert result.rc == rc, result
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result
    assert text in lines[0], result


@pytest.fixture
def up(bundle: Bundle) -> Bundle:
    """A running container without a policy."""
    bundle.config["process"]["env"] += ["OWN=1", "TERM=vt100"]
    return bundle.up()


def test_flags(up: Bundle) -> None:
    def out(text: str, *options: str) -> str:
        result = up.exec("sh", "-c", text, options=options).ok()
        assert result.err == ""
        return result.out.strip()

    assert out("echo $OWN; pwd; id -u; id -g; echo $HOME").split() == ["1", "/", "0", "0", "/root"]
    assert out("pwd", "--cwd", "/tmp") == "/tmp"
    assert out("echo $A $OWN $B", "--env", "A=2", "-e", "OWN=3", "--env", "B=a=b") == "2 3 a=b"
    assert out("id -u; id -g", "--user", "1000:1001").split() == ["1000", "1001"]
    assert out("id -u", "-u", "1000") == "1000"
    assert out("id -G", "--user", "7:8", "-g", "9", "--additional-gids", "10").split() == ["8", "9", "10"]
    assert "NoNewPrivs:\t1" in out("cat /proc/self/status", "--no-new-privs")
    # Each capability is one more; the process is in all of the container's namespaces.
    assert int(out("grep CapEff /proc/self/status", "--cap", "CAP_NET_ADMIN").split()[1], 16) & (1 << 12)
    links = "for n in ipc mnt net pid uts cgroup user; do readlink /proc/self/ns/$n; readlink /proc/1/ns/$n; done"
    names = out(links).split()
    assert names[::2] == names[1::2]
    assert out("echo here; readlink /proc/self/root; hostname").split() == ["here", "/", "nestrt"]
    # As in a shell: what follows the id is the command's, options too.
    assert up.exec("echo", "-n", "--cwd").ok().out == "--cwd"


def test_a_process_from_a_file(up: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "process.json"
    process = {
        "args": ["sh", "-c", "echo $OWN-$NEW; id -u; id -G; pwd; grep CapEff /proc/self/status; umask; ulimit -n"],
        "env": ["PATH=/bin", "NEW=1"],
        "cwd": "/tmp",
        "user": {"uid": 5, "gid": 6, "additionalGids": [7], "umask": 0o27},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 66}],
    }
    file.write_text(json.dumps(process))
    result = up.verb("exec", "--process", str(file), up.id).ok()
    assert result.out.split() == ["-1", "5", "6", "7", "/tmp", "CapEff:", "0000000000000000", "0027", "66"]
    file.write_text("{")
    assert up.verb("exec", "--process", str(file), up.id).rc == 255
    assert up.verb("exec", "-p", str(tmp_path / "nowhere"), up.id).rc == 255


@pytest.mark.parametrize(
    ("args", "rc", "text"),
    [
        (["sh", "-c", "exit 0"], 0, ""),
        (["sh", "-c", "exit 42"], 42, ""),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
        (["nowhere"], 127, "executable file not found in $PATH"),
        (["/bin/nowhere"], 127, "no such file or directory"),
        (["/etc/passwd"], 126, "permission denied"),
        (["/etc"], 126, "permission denied"),
        ([""], 127, ""),
    ],
)
def test_exit_status(up: Bundle, args: list[str], rc: int, text: str) -> None:
    result = up.exec(*args)
    if rc not in (126, 127):
        assert (result.rc, result.err) == (rc, ""), result
        return
    # runc has 255 for what it could not start; engines go by the text.
    assert result.rc in (rc, 255), result
    assert text in result.err
    assert len(result.err.splitlines()) == 1


def test_standard_streams_and_detach(up: Bundle, tmp_path: Path) -> None:
    result = up.exec("sh", "-c", "cat; echo wrong >&2", input="given")
    assert (result.rc, result.out, result.err) == (0, "given", "wrong\n")
    pid_file = tmp_path / "pid"
    up.exec("sleep", "500", options=["--detach", "--pid-file", str(pid_file)]).ok()
    pid = int(pid_file.read_text())
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    for hierarchy in hierarchies():
        assert str(pid) in (hierarchy.group(up.cgroup) / "cgroup.procs").read_text().split()
    # Its parent is whoever reaps here, not the container's first process, nor anything of ours.
    os.kill(pid, 9)
    wait_for(lambda: gone(pid), "sleep to end")


# The container is only created, runs, is paused, is stopped.
def test_in_every_state(bundle: Bundle) -> None:
    bundle.shell("exec sleep 600").create().ok()
    assert bundle.exec("cat", "/proc/1/comm").ok().out == "python3\n" or bundle.exec("true").rc == 0
    bundle.start().ok()
    wait_for(lambda: bundle.exec("cat", "/proc/1/comm").ok().out == "sleep\n", "the program")
    bundle.verb("pause", bundle.id).ok()
    told(bundle.exec("true"), "cannot exec in a paused container (use --ignore-paused to override)", 255)
    waiting = bundle.begin(*bundle.globals, "exec", "--ignore-paused", bundle.id, "echo", "late")
    time.sleep(0.3 * SLOW)
    assert waiting.process.poll() is None
    bundle.verb("resume", bundle.id).ok()
    assert waiting.finish().ok().out == "late\n"
    bundle.kill().ok()
    bundle.await_status("stopped")
    told(bundle.exec("true"), "container not running", 255)
    told(bundle.verb("exec", "nobody-here", "true"), "container does not exist", 255)


def beside(bundle: Bundle, *options: str) -> set[str]:
    """The groups that a process of exec sees itself in."""
    out = bundle.exec("cat", "/proc/self/cgroup", options=options).ok().out
    return {line.split(":", 2)[2] for line in out.splitlines()}


def of(pid: int) -> dict[str, str]:
    rows = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return {row[1]: row[2] for row in rows}


# Beside the first process; also where that has been moved by the container, in some hierarchies or all of them.
@pytest.mark.slow_on_vm(False)
@pytest.mark.parametrize("policy", [False, True])
def test_it_lands_beside_the_first_process(bundle: Bundle, tmp_path: Path, policy: bool) -> None:
    if policy:
        bundle.virtual()
    bundle.namespace("cgroup")
    bundle.up()
    pid_file = tmp_path / "pid"

    def look() -> None:
        bundle.exec("sleep", "100", options=["-d", "--pid-file", str(pid_file)]).ok()
        assert of(int(pid_file.read_text())) == of(bundle.pid)

    look()
    base = f"{bundle.cgroup}/guest" if policy else bundle.cgroup
    assert set(of(bundle.pid).values()) == {f"{base}/init" if policy else base}
    assert beside(bundle) == {"/init" if policy else "/"}
    made = []
    for hierarchy in hierarchies():
        web = hierarchy.group(f"{base}/web")
        web.mkdir()
        made.append(web)
        if hierarchy.version == 1 and "cpuset" in hierarchy.controllers:
            for file in ("cpuset.cpus", "cpuset.mems"):
                (web / file).write_text((web.parent / file).read_text())
    for web in made:
        (web / "cgroup.procs").write_text(str(bundle.pid))
        look()
    assert set(of(bundle.pid).values()) == {f"{base}/web"}


# --cgroup: a child group of the container's, in all hierarchies or some; what is not below it is refused.
@pytest.mark.slow_on_vm(False)
@pytest.mark.parametrize("policy", [False, True])
def test_a_child_group(bundle: Bundle, policy: bool) -> None:
    if policy:
        bundle.virtual()
    bundle.namespace("cgroup")
    bundle.up()
    base = f"{bundle.cgroup}/guest" if policy else bundle.cgroup
    told(bundle.exec("true", options=["--cgroup", "/web"]), "no such file or directory", 255)
    for hierarchy in hierarchies():
        web = hierarchy.group(f"{base}/web")
        web.mkdir()
        if hierarchy.version == 1 and "cpuset" in hierarchy.controllers:
            for file in ("cpuset.cpus", "cpuset.mems"):
                (web / file).write_text((web.parent / file).read_text())
    assert beside(bundle, "--cgroup", "/web") == {"/web"}
    assert beside(bundle, "--cgroup", "web") == {"/web"}
    for outside in ("..", "/../..", "web/../.."):
        told(bundle.exec("true", options=["--cgroup", outside]), "is not a sub cgroup path", 255)
    v1 = next((h for h in hierarchies() if h.version == 1 and "pids" in h.controllers), None)
    if v1 is not None:
        own = "/init" if policy else "/"
        rows = bundle.exec("cat", "/proc/self/cgroup", options=["--cgroup", "pids:/web"]).ok().out.splitlines()
        found = {row.split(":")[1]: row.split(":")[2] for row in rows}
        assert found.pop("pids") == "/web"
        assert set(found.values()) == {own}


# v2: the first process's group has come to be one for groups only. Then the process goes to the first group.
@pytest.mark.slow_on_vm(False)
def test_where_the_first_process_s_group_has_controllers_enabled(bundle: Bundle) -> None:
    v2 = v2_hierarchy()
    require("cgroup-v2", None if v2 and v2.controllers else "no v2 tree with controllers")
    assert v2 is not None
    place = v2.mountpoint
    controller = min(v2.controllers)
    bundle.virtual().annotate(view__start_in=".").writable_groups()
    bundle.up(
        f"cd {place} && mkdir a a/b && echo 0 > a/b/cgroup.procs && echo +{controller} > cgroup.subtree_control && "
        f"echo +{controller} > a/cgroup.subtree_control; echo $? > /tmp/status; exec sleep 600"
    )
    wait_for(lambda: bundle.exec("cat", "/tmp/status").out == "0\n", "the controllers")
    rows = bundle.exec("cat", "/proc/self/cgroup").ok().out.splitlines()
    assert [row for row in rows if row.startswith("0::")] == ["0::/a/b"]
    told(bundle.exec("true", options=["--cgroup", "/nowhere"]), "no such file or directory", 255)
    # A group that has come to have controllers for its children: the leaf of the container takes the process.
    result = bundle.exec("cat", "/proc/self/cgroup", options=["--cgroup", f"{controller}:/a"]).ok()
    assert [row for row in result.out.splitlines() if row.startswith("0::")] == ["0::/init"]


def test_rights_are_the_container_s(new_bundle: NewBundle) -> None:
    bundle = new_bundle()
    bundle.config["process"]["capabilities"] = {
        "bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
    }  # fmt: skip
    bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
    }
    bundle.config["process"]["oomScoreAdj"] = 77
    bundle.up()
    answers = bundle.ask_running(
        {"status": "cat /proc/self/status", "mkdir": "mkdir /tmp/x", "oom": "cat /proc/self/oom_score_adj"}
    )
    status = dict(line.split(":\t", 1) for line in answers.text("status").splitlines() if ":\t" in line)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert (int(status["CapEff"], 16), int(status["CapBnd"], 16)) == (1 << 5, 1 << 5 | 1)
    assert "Permission denied" in answers.refused("mkdir")
    assert answers.text("oom") == "77"
    first = Path(f"/proc/{bundle.pid}/status").read_text()
    for key in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp"):
        assert f"{key}:\t{status[key]}" in first


# Nothing of the caller's: descriptors, environment; and only those handed on by number.
def test_nothing_leaks(up: Bundle, tmp_path: Path) -> None:
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(2)]
    for fd in fds:
        os.set_inheritable(fd, True)
    try:
        argv = [up.nestrt.command, *up.globals, "exec", up.id, "sh", "-c", "ls -l /proc/self/fd 2>/dev/null; env"]
        done = subprocess.run(
            argv, pass_fds=fds, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "SECRET": "x"}, timeout=20 * SLOW,
        )  # fmt: skip
    finally:
        for fd in fds:
            os.close(fd)
    rows = [line for line in done.stdout.splitlines() if " -> " in line]
    assert len(rows) == 3, done
    assert str(tmp_path) not in done.stdout
    assert "SECRET" not in done.stdout
    names = {line.split("=")[0] for line in done.stdout.splitlines() if "=" in line and " -> " not in line}
    assert names - {"SHLVL", "PWD"} == {"PATH", "HOME", "OWN", "TERM"}
    word = tmp_path / "word"
    word.write_text("handed\n")
    shell = f'exec 3<{word}; exec "$@"'
    argv = [up.nestrt.command, *up.globals, "exec", "--preserve-fds", "1", up.id, "sh", "-c", "cat <&3"]
    done = subprocess.run(["sh", "-c", shell, "sh", *argv], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (0, "handed\n"), done


# In a user namespace: root there, in the view of its own groups, and as an ordinary user of it.
@pytest.mark.parametrize("policy", [False, True])
def test_in_a_user_namespace(bundle: Bundle, policy: bool) -> None:
    bundle.user_namespace().namespace("cgroup")
    if policy:
        bundle.virtual()
    bundle.up()
    answers = bundle.ask_running({"id": "id -u; id -g", "map": "cat /proc/self/uid_map", "own": "touch /tmp/a"})
    assert answers.text("id").split() == ["0", "0"]
    assert answers.text("map").split() == ["0", "1600000", "65536"]
    answers.text("own")
    assert bundle.exec("id", "-u", options=["--user", "1000:1000"]).ok().out == "1000\n"
    assert beside(bundle) == {"/init" if policy else "/"}


# A user namespace that somebody else has made (a pod's).
def test_in_a_user_namespace_that_was_joined(new_bundle: NewBundle) -> None:
    pod = new_bundle().user_namespace().up()
    bundle = new_bundle()
    for kind, name in (("user", "user"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")):
        bundle.namespace(kind, f"/proc/{pod.pid}/ns/{name}")
    bundle.up()
    assert os.readlink(f"/proc/{bundle.pid}/ns/user") == os.readlink(f"/proc/{pod.pid}/ns/user")
    assert bundle.exec("cat", "/proc/self/uid_map").ok().out.split() == ["0", "1600000", "65536"]
    assert bundle.exec("id", "-u").ok().out == "0\n"


# Many at once, all with their own output and status.
def test_side_by_side(up: Bundle) -> None:
    started = [
        up.begin(*up.globals, "exec", up.id, "sh", "-c", f"echo {number}; exit {number}") for number in range(1, 9)
    ]
    for number, one in enumerate(started, 1):
        result = one.finish()
        assert (result.rc, result.out, result.err) == (number, f"{number}\n", "")


# A container at its limit of processes: moving one in is always allowed (pids.rst), and so exec works.
@pytest.mark.slow_on_vm(False)
def test_at_the_limit_of_processes(bundle: Bundle) -> None:
    bundle.resources(pids={"limit": 3}).up("sleep 600 & sleep 600 & wait")
    wait_for(lambda: len((bundle.groups()[0] / "cgroup.procs").read_text().split()) == 3, "the sleeps")
    assert bundle.exec("echo", "one more").ok().out == "one more\n"


@pytest.mark.slow_on_vm(False)
def test_exec_in_a_group_that_the_view_has(bundle: Bundle) -> None:
    bundle.virtual().up()
    place = directory("pids", "/")
    assert "init" in bundle.exec("ls", place).ok().out
