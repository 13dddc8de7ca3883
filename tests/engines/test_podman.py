"""podman from the distribution's package, with nestrt as its runtime: what a user does with containers.

::

    /nestrt-engines-PID/libpod-ID      the group that podman names: limits, processes
                       └ conmon        podman's monitors
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from support.engines import command, group_of
from support.guests import parse, script
from support.hostside import groups, read
from support.podman import IMAGE, Podman, on_terminal
from support.runner import wait_for

SLEEP = ("--", "sleep", "1000")
# capabilities(7), include/uapi/linux/capability.h
CHOWN, SYS_ADMIN, SYS_TIME = 0, 21, 25
ALL = tuple(range(41))


def status(podman: Podman, name: str) -> str:
    return str(podman.inspect(name)["State"]["Status"])


@pytest.mark.parametrize(
    ("command", "expected", "told"),
    [
        (("sh", "-c", "exit 0"), 0, ""),
        (("sh", "-c", "exit 3"), 3, ""),
        (("nosuch",), 127, 'exec: "nosuch": executable file not found in $PATH'),
        (("/nosuch/program",), 127, "no such file or directory"),
        (("/etc",), 126, "permission denied"),
        (("/etc/passwd",), 126, "permission denied"),
    ],
)
def test_exit_status(podman: Podman, command: tuple[str, ...], expected: int, told: str) -> None:
    result = podman.run("--rm", "--", *command)
    assert result.rc == expected, result
    assert told in result.err, result


def test_a_mistake_in_the_options_is_125(podman: Podman) -> None:
    result = podman.run("--rm", "--annotation", "nestrt.level.max_level=many", "--", "true")
    assert result.rc in (125, 126), result
    assert "nestrt.level.max_level" in result.err


def test_standard_streams(podman: Podman) -> None:
    """Input, output and error each go their way; the environment, directory, user and name arrive."""
    asked = 'cat; echo wrong >&2; echo "$A"; pwd; id -u; id -g; id -G; hostname'
    words = ("-i", "--rm", "-e", "A=b c", "-w", "/tmp", "-u", "1000:50", "--group-add", "60", "--hostname", "box")
    result = podman.run(*words, "--", "sh", "-c", asked, input="given\n").ok()
    assert result.out.splitlines() == ["given", "b c", "/tmp", "1000", "50", "50 60", "box"]
    assert result.err == "wrong\n"


def test_a_real_terminal(podman: Podman) -> None:
    """``run -it`` on a terminal of 33 x 111: the container's has that size, and keys arrive."""
    argv = ("podman", *podman.flags, "run", "--cgroup-parent", podman.nest.group, "--rm", "-it", IMAGE)
    asked = "while [ \"$(stty size)\" != '33 111' ]; do sleep 0.1; done; stty size; tty; read x; echo got $x; exit 4"
    env = {**podman.nest.env, **podman.env}
    rc, text = on_terminal(podman.nest.words(*argv, "sh", "-c", asked), "word\r", env=env, rows=33, columns=111)
    assert rc == 4, text
    assert "33 111" in text
    assert "/dev/pts/0" in text
    assert "got word" in text


def test_detached(podman: Podman) -> None:
    """A detached container: seen by podman and by nestrt, stopped by its own signal, logged, removed wholly."""
    program = "trap 'echo ending; exit 7' TERM; echo begun; while :; do sleep 0.1; done"
    name = podman.start("--", "sh", "-c", program)
    wait_for(lambda: "begun" in podman("logs", name).out, "the first line of its log")
    state = json.loads(podman.nest.nestrt("state", name).ok().out)
    assert state["status"] == "running"
    assert state["pid"] == podman.pid(name)
    assert podman.nest.nestrt("list", "-q").out.split() == [name]
    assert set(group_of(state["pid"]).values()) == {podman.group(name)}
    podman("stop", name).ok()
    found = podman.inspect(name)["State"]
    assert (found["Status"], found["ExitCode"]) == ("exited", 7)
    assert podman("logs", name).out.splitlines() == ["begun", "ending"]
    assert not podman.leftovers()
    podman("start", name).ok()
    assert status(podman, name) == "running"
    assert podman("rm", "-f", "-t", "0", name).rc == 0
    assert not podman.clear()


def test_exec(podman: Podman) -> None:
    name = podman.start("--memory", "64m", "-e", "A=b", "--", "sleep", "1000")
    found = podman("exec", "-e", "C=d", "-w", "/tmp", "-u", "1000", name, "sh", "-c", "echo $A$C; pwd; id -u; exit 5")
    assert (found.rc, found.out.split()) == (5, ["bd", "/tmp", "1000"]), found
    assert podman("exec", "-i", name, "cat", input="given").ok().out == "given"
    assert podman("exec", "-t", name, "tty").ok().out.strip() == "/dev/pts/0"
    rights = podman("exec", "--privileged", name, "grep", "CapEff", "/proc/self/status").ok().out.split()[1]
    assert int(rights, 16) & 1 << 21, "CAP_SYS_ADMIN is missing"
    # In the background, and in the groups of the container.
    podman("exec", "-d", name, "sh", "-c", "echo $$ > /tmp/begun; exec sleep 999").ok()
    pids = wait_for(lambda: _with_command(podman.group(name), "sleep 999"), "the command in the background")
    assert set(group_of(pids[0]).values()) == {podman.group(name)}
    # A user's rights are none, whatever the container's first process has.
    mask = podman("exec", "-u", "1000", name, "grep", "CapEff", "/proc/self/status").ok().out.split()[1]
    assert int(mask, 16) == 0
    # Its first process ends, and all others with it.
    podman("kill", name).ok()
    wait_for(lambda: not groups(podman.group(name)), "the groups to go")


@pytest.mark.parametrize(
    ("words", "expected", "told"),
    [
        (("nosuch",), 127, "executable file not found in $PATH"),
        (("/etc",), 126, "permission denied"),
        (("-w", "/nosuch", "--", "true"), 127, "no such file or directory"),
        (("sh", "-c", "kill -15 $$"), 143, ""),
    ],
)
def test_exec_refused(podman: Podman, words: tuple[str, ...], expected: int, told: str) -> None:
    name = podman.start(*SLEEP)
    options, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else ((), words)
    result = podman("exec", *options, name, *command)
    assert result.rc == expected, result
    assert told in result.err, result


def _with_command(group: str, words: str) -> list[int]:
    found = []
    for pid in read("pids", group, "cgroup.procs", "cgroup.procs").split():
        try:
            if Path("/proc", pid, "cmdline").read_text().rstrip("\0").replace("\0", " ") == words:
                found.append(int(pid))
        except OSError:  # it has ended
            continue
    return found


def test_limits(podman: Podman) -> None:
    """What is asked for stands on podman's group, is seen inside and in stats, and can be changed while it runs."""
    options = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "30", "--cpuset-cpus", "0", "--cpu-shares", "512")
    name = podman.start(*options, "--", "sleep", "1000")
    group = podman.group(name)
    assert read("memory", group, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert read("pids", group, "pids.max", "pids.max") == "30"
    assert read("cpu", group, "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    assert read("cpuset", group, "cpuset.cpus", "cpuset.cpus") == "0"
    row = json.loads(podman("stats", "--no-stream", "--format", "json", name).ok().out)[0]
    assert row["mem_usage"].split(" / ")[1] == "67.11MB", row
    assert int(row["pids"]) == 1
    podman("update", "--memory", "32m", "--cpus", "0.25", name).ok()
    assert read("memory", group, "memory.limit_in_bytes", "memory.max") == str(32 << 20)
    assert read("cpu", group, "cpu.cfs_quota_us", "cpu.max").split()[0] == "25000"


@pytest.mark.parametrize("options", [(), ("--annotation", "nestrt.level.virtualize=true")], ids=["plain", "virtual"])
def test_over_the_limit(podman: Podman, options: tuple[str, ...]) -> None:
    """A process that takes more memory than the container has is ended by the kernel; the container goes on."""
    hog = "(x=a; while :; do x=$x$x; done); echo ended $?"
    words = (*options, "--rm", "--memory", "24m", "--memory-swap", "24m")
    assert podman.run(*words, "--", "sh", "-c", hog).ok().out == "ended 137\n"


def test_pause(podman: Podman) -> None:
    name = podman.start("--", "sh", "-c", "while :; do :; done")
    pid = podman.pid(name)
    podman("pause", name).ok()
    assert json.loads(podman.nest.nestrt("state", name).ok().out)["status"] == "paused"
    before = _ticks(pid)
    time.sleep(0.2)
    assert _ticks(pid) == before
    assert podman("exec", name, "true").rc != 0
    podman("unpause", name).ok()
    wait_for(lambda: _ticks(pid) > before, "it to go on")
    podman("pause", name).ok()
    podman("rm", "-f", "-t", "0", name).ok()  # a frozen one is removed as well


def _ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_top_and_kill(podman: Podman) -> None:
    program = "trap 'echo one' USR1; echo begun; while :; do sleep 0.1; done"
    name = podman.start("--", "sh", "-c", program)
    wait_for(lambda: "begun" in podman("logs", name).out, "its trap")
    rows = podman("top", name, "pid", "hpid", "args").ok().out.splitlines()
    pid, host_pid, *words = rows[1].split()
    assert (pid, int(host_pid)) == ("1", podman.pid(name))
    assert words[0] == "sh"
    podman("kill", "-s", "USR1", name).ok()
    wait_for(lambda: "one" in podman("logs", name).out, "the signal")
    podman("kill", name).ok()
    assert podman("wait", name).ok().out.strip() == "137"


def test_pod(podman: Podman) -> None:
    """Two containers of a pod share its network, IPC and UTS namespaces, and each has its own group below the pod's."""
    podman("pod", "create", "--cgroup-parent", podman.nest.group, "--name", "duo", "--hostname", "duo").ok()
    for name in ("one", "two"):
        podman("run", "-d", "--pod", "duo", "--name", name, IMAGE, "sleep", "1000").ok()
    first, second = podman.pid("one"), podman.pid("two")
    for kind in ("net", "ipc", "uts"):
        assert os.readlink(f"/proc/{first}/ns/{kind}") == os.readlink(f"/proc/{second}/ns/{kind}")
    for kind in ("mnt", "pid"):
        assert os.readlink(f"/proc/{first}/ns/{kind}") != os.readlink(f"/proc/{second}/ns/{kind}")
    assert podman("exec", "two", "hostname").ok().out.strip() == "duo"
    assert group_of(first)["memory" if "memory" in group_of(first) else ""] != group_of(second).get("memory")
    assert len(podman("pod", "stats", "--no-stream", "duo").ok().out.splitlines()) == 4
    podman("pod", "stop", "-t", "0", "duo").ok()
    podman("pod", "start", "duo").ok()
    assert status(podman, "one") == "running"
    podman("pod", "rm", "-f", "-t", "0", "duo").ok()


def test_filesystems(podman: Podman) -> None:
    """Read-only root, tmpfs, volumes (named, bound, read-only), a device, an init: many questions, one container."""
    podman("volume", "create", "data").ok()
    path = podman.nest.write("bound", "from the host\n")
    questions = {
        "root": "touch /x",
        "tmpfs": "touch /t/x && df -k /t | tail -1",
        "volume": "echo kept > /data/x",
        "bound": "cat /bound",
        "bound-ro": "echo x > /bound",
        "null": "echo x > /dev/null",
        "device": "ls -l /dev/zzz",
        "pid1": "cat /proc/1/cmdline | tr '\\0' ' '",
        "masked": "ls -A /sys/firmware",
        "sysctl": "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        "sys": "echo 1 > /proc/sys/kernel/sysrq",
        "shm": "df -k /dev/shm | tail -1",
        "resolv": "test -s /etc/hosts",
        "dns": "grep 198.51.100.7 /etc/resolv.conf",
    }
    options = (
        *("--rm", "--read-only", "--tmpfs", "/t:size=2m", "-v", "data:/data", "-v", f"{path}:/bound:ro"),
        *("--device", "/dev/zero:/dev/zzz:r", "--init", "--sysctl", "net.ipv4.ip_unprivileged_port_start=99"),
        *("--shm-size", "3m", "--dns", "198.51.100.7"),
    )
    answers = parse(podman.run(*options, "--", "sh", "-c", script(questions)).ok().out)
    assert "Read-only" in answers.refused("root")
    assert "2048" in answers.text("tmpfs")
    answers.text("volume")
    assert answers.text("bound") == "from the host"
    assert "Read-only" in answers.refused("bound-ro")
    answers.text("null")
    assert re.search(r"\b1, +5 .*/dev/zzz", answers.text("device"))
    assert "init" in answers.text("pid1")
    assert answers["masked"].text == ""
    assert answers.text("sysctl") == "99"
    answers.refused("sys")
    assert "3072" in answers.text("shm")
    answers.text("resolv")
    answers.text("dns")
    assert podman.run("--rm", "-v", "data:/again", "--", "cat", "/again/x").ok().out == "kept\n"
    podman("volume", "rm", "data").ok()


@pytest.mark.parametrize(
    ("options", "given", "withheld", "seccomp", "no_new_privs"),
    [
        ((), (CHOWN,), (SYS_ADMIN, SYS_TIME), "2", "0"),
        (("--cap-add", "SYS_TIME", "--cap-drop", "CHOWN"), (SYS_TIME,), (CHOWN, SYS_ADMIN), "2", "0"),
        (("--cap-drop", "ALL"), (), ALL, "2", "0"),
        (("-u", "1000"), (), ALL, "2", "0"),
        (("-u", "1000", "--cap-add", "SYS_TIME"), (SYS_TIME,), (CHOWN, SYS_ADMIN), "2", "0"),
        (("--security-opt", "seccomp=unconfined"), (CHOWN,), (SYS_ADMIN,), "0", "0"),
        (("--security-opt", "no-new-privileges"), (CHOWN,), (SYS_ADMIN,), "2", "1"),
    ],
)
def test_rights(
    podman: Podman,
    options: tuple[str, ...],
    given: tuple[int, ...],
    withheld: tuple[int, ...],
    seccomp: str,
    no_new_privs: str,
) -> None:
    text = podman.run("--rm", *options, "--", "cat", "/proc/self/status").ok().out
    found = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert (found["Seccomp"], found["NoNewPrivs"]) == (seccomp, no_new_privs)
    mask = int(found["CapEff"], 16)
    assert [number for number in given if not mask >> number & 1] == []
    assert [number for number in withheld if mask >> number & 1] == []


def test_privileged(podman: Podman) -> None:
    status = "grep Seccomp: /proc/self/status"
    questions = {"mount": "mount -t tmpfs none /mnt", "devices": "ls /dev/full", "seccomp": status}
    answers = parse(podman.run("--rm", "--privileged", "--", "sh", "-c", script(questions)).ok().out)
    answers.text("mount")
    answers.text("devices")
    assert answers.text("seccomp").split() == ["Seccomp:", "0"]


@pytest.mark.parametrize(
    "options",
    [("--uidmap", "0:100000:5000", "--gidmap", "0:200000:5000"), ("--userns", "auto:size=4000")],
    ids=["mapped", "auto"],
)
def test_user_namespace(podman: Podman, options: tuple[str, ...]) -> None:
    name = podman.start(*options, "--memory", "64m", "--", "sh", "-c", "touch /made; exec sleep 1000")
    pid = podman.pid(name)
    rows = Path(f"/proc/{pid}/uid_map").read_text().split()
    assert rows[0] == "0"
    assert (int(rows[1]), int(rows[2])) in ((100000, 5000), (int(rows[1]), 4000))
    assert os.stat(f"/proc/{pid}").st_uid == int(rows[1])
    found = podman("exec", name, "sh", "-c", "id -u; stat -c '%u %g' /made; cat /proc/self/uid_map").ok().out.split()
    assert found == ["0", "0", "0", *rows]
    assert read("memory", podman.group(name), "memory.limit_in_bytes", "memory.max") == str(64 << 20)


def test_networks(podman: Podman) -> None:
    """none: loopback alone; host: the engine's own; bridge: an address, and a container reaches another."""
    nest_net = os.readlink(f"/proc/{podman.nest.holder.pid}/ns/net")
    assert podman.run("--rm", "--network", "none", "--", "ls", "/sys/class/net").ok().out.split() == ["lo"]
    assert podman.run("--rm", "--network", "host", "--", "readlink", "/proc/self/ns/net").ok().out.strip() == nest_net
    server = podman.start("--", "sh", "-c", "while :; do echo hello | nc -l -p 80; done")
    address = podman.inspect(server)["NetworkSettings"]["IPAddress"]
    assert address
    asked = f"for n in $(seq 50); do nc -w 5 {address} 80 </dev/null && exit; sleep 0.2; done; exit 1"
    assert "hello" in podman.run("--rm", "--", "sh", "-c", asked).ok().out
    joined = podman.run("--rm", "--network", f"container:{server}", "--", "ip", "-4", "addr").ok().out
    assert address in joined


def test_health_check(podman: Podman) -> None:
    name = podman.start("--health-cmd", "test -e /well", "--health-interval", "disable", "--", "sleep", "1000")
    assert podman("healthcheck", "run", name).rc == 1
    podman("exec", name, "touch", "/well").ok()
    assert podman("healthcheck", "run", name).rc == 0


def test_preserved_descriptors(podman: Podman) -> None:
    """``--preserve-fds 1`` hands the caller's descriptor 3 to the container."""
    words = ("podman", *podman.flags, "run", "--cgroup-parent", podman.nest.group, "--rm", "--preserve-fds", "1")
    argv = podman.nest.words(*words, IMAGE, "cat", "/proc/self/fd/3")
    line = " ".join(("echo through | exec", *argv, "3<&0 0</dev/null"))
    assert command(("sh", "-c", line), env={**podman.nest.env, **podman.env}).ok().out == "through\n"
