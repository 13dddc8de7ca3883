"""The command "nestrt launch": its options, one by one, and what it leaves.

    terminal or pipe ── launcher ── first process, pid 1 of the guest
                        signals ─▶
                        ◀─ status
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from support.guests import MODES, ask, inside
from support.hostside import groups, is_v2_only, limit_group, mark, processes, read
from support.need import SLOW
from support.runner import Nestrt, leftovers, wait_for


def quiet(name: str) -> list[str]:
    """Processes of nestrt itself that have to do with the guest *name*."""
    return [line for line in leftovers(name) if line.startswith("process ")]


def as_at_a_login() -> None:
    """Take back that a shell has what it starts with "&" ignore these; the launcher then leaves them alone."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


# --- status, signals, standard input and output ---


# The status is the program's own, its descriptors are the launcher's own, and it has no others.
def test_status_and_descriptors(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    command = "cat; echo err >&2; ls /proc/self/fd; exit 7"
    options = ("--rootfs", busybox, "--name", new_guest(), "--rm")
    result = nestrt.launch(*options, "--", "sh", "-c", command, input="a line\nanother")
    assert (result.rc, result.err) == (7, "err\n")
    assert result.out == "a line\nanother0\n1\n2\n3\n"  # 3 is the directory that ls reads
    assert nestrt.launch(*options, "true").rc == 0  # -- may be left out


# 128+n where a signal ended it, sent from outside; a handler's own status where it has one.
def test_signals_reach_the_guest(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    names = ("HUP", "INT", "QUIT", "USR1", "USR2", "TERM")
    traps = "".join(f"trap 'echo {name}' {name}; " for name in names[:-1]) + "trap 'echo TERM; exit 42' TERM; "
    name = new_guest()
    command = f"{traps} echo ready; while :; do sleep 0.1; done"
    options = ("--rootfs", busybox, "--name", name)
    process = nestrt.start("launch", *options, "--", "sh", "-c", command, preexec_fn=as_at_a_login)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    for word in names:
        process.send_signal(getattr(signal, f"SIG{word}"))
        assert process.stdout.readline() == word.encode() + b"\n"
    assert process.wait(20 * SLOW) == 42

    name = new_guest()
    process = nestrt.start("launch", "--rootfs", busybox, "--name", name, "--rm", "--", "sleep", "1000")
    pid = wait_for(lambda: processes(limit_group(name)) and mark(limit_group(name)).get("pid"), "the guest")
    os.kill(pid, signal.SIGKILL)
    assert process.wait(20 * SLOW) == 128 + signal.SIGKILL
    assert leftovers(name) == []

    # pid 1 has no default actions: what would end "sleep" anywhere else ends the guest.
    name = new_guest()
    process = nestrt.start("launch", "--rootfs", busybox, "--name", name, "--", "sleep", "1000")
    wait_for(lambda: processes(limit_group(name)) and mark(limit_group(name)).get("pid"), "the guest")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20 * SLOW) == 128 + signal.SIGTERM


# --- -d, --log, --rm, names ---


# Detached: the name is printed, the program runs, and nestrt has no process. Then state after state.
def test_detached(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, tmp_path: Path) -> None:
    name, log = new_guest(), tmp_path / "log"
    command = "echo out; echo err >&2; readlink /proc/self/fd/0; trap 'exit 0' TERM; while :; do sleep 0.1; done"
    options = ("--rootfs", busybox, "--name", name, "--log", log, "--rm")
    result = nestrt.launch("-d", *options, "--", "sh", "-c", command)
    assert (result.rc, result.out, result.err) == (0, f"{name}\n", "")
    assert wait_for(lambda: log.read_text().count("\n") == 3 and log.read_text(), "the log") == "out\nerr\n/dev/null\n"
    assert log.stat().st_mode & 0o777 == 0o600
    assert quiet(name) == []
    pid = mark(limit_group(name))["pid"]
    assert pid in processes(limit_group(name))
    assert mark(limit_group(name))["state"] == "running"

    again = nestrt.launch(*options, "true")
    assert again.rc == 125
    in_use = f"guest {name}: the name is in use; choose another, or: nestrt delete {name}"
    assert again.err == f"nestrt: cannot launch {in_use}\n"
    refused = nestrt.run("delete", name)
    assert refused.rc == 4
    assert "of its processes run" in refused.err
    assert name not in nestrt.run("gc").ok().out
    assert pid in processes(limit_group(name))

    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not processes(limit_group(name)), "the guest to end")
    assert groups(limit_group(name)) != []
    assert name in nestrt.run("gc").ok().out.splitlines()
    assert leftovers(name) == []
    gone = nestrt.run("delete", name)
    assert (gone.rc, gone.out) == (3, "")
    assert gone.err.startswith(f"nestrt: cannot find container {name}: container does not exist")


# In the foreground, --rm takes everything away at once; without it the groups stay to be looked at, until delete.
def test_what_stays_after_the_end(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    name = new_guest()
    assert nestrt.launch("--rootfs", busybox, "--name", name, "--rm", "--", "true").ok().err == ""
    assert leftovers(name) == []
    nestrt.launch("--rootfs", busybox, "--name", name, "--", "true").ok()
    assert len(groups(limit_group(name))) == len(leftovers_of_kind(name, "group"))
    assert name not in nestrt.run("gc").ok().out.splitlines()
    assert nestrt.launch("--rootfs", busybox, "--name", name, "--", "true").rc == 125
    assert nestrt.run("delete", name).ok().out == ""
    assert leftovers(name) == []
    # Without a name one is made up, and is the hostname.
    made = nestrt.launch("--rootfs", busybox, "--rm", "--", "hostname").ok().out.strip()
    assert len(made) == 9, made
    assert leftovers(made) == []


def leftovers_of_kind(name: str, kind: str) -> list[str]:
    return [line for line in leftovers(name) if line.startswith(kind + " ")]


# --dry-run: the plan, one line a step, and nothing else.
def test_dry_run(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    options = ("--rootfs", busybox, "--name", guest_name, "-m", "64M", "--net", "veth", "--rm")
    result = nestrt.launch("--dry-run", *options, "--", "touch", "/root/touched").ok()
    assert result.err == ""
    lines = result.out.splitlines()
    assert {line.split()[0] for line in lines} == {"host", "guest"}
    assert lines[-1] == "guest  execute touch /root/touched"
    assert f"host   reserve the name: /run/nestrt/guests/{guest_name}" in lines
    file = inside("memory", limit_group(guest_name), "memory.limit_in_bytes", "memory.max")
    assert f"host   write '67108864' to {file}" in lines
    assert leftovers(guest_name) == []
    assert not (busybox / "root/touched").exists()


# --- what the program finds ---


# Environment, directory, user, hostname.
def test_environment_of_the_program(
    nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAKEN", "over")
    monkeypatch.setenv("LEFT", "behind")
    name = new_guest()
    options = ("--rootfs", busybox, "--name", name, "--rm", "-e", "A=b c", "-e", "E=", "-e", "TAKEN", "-e", "ABSENT")
    result = nestrt.launch(*options, "--workdir", "/tmp", "--", "sh", "-c", "env; pwd; id; hostname").ok()
    lines = result.out.splitlines()
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    shell = {"SHLVL=1", "PWD=/tmp"}  # ash adds these
    assert set(lines[:-3]) - shell == {path, "HOME=/root", "container=nestrt", "A=b c", "E=", "TAKEN=over"}
    assert lines[-3:] == ["/tmp", "uid=0(root) gid=0(root)", name]

    for user, expected in (
        ("1000", "uid=1000(user) gid=1000(user)"),
        ("1000:65534", "uid=1000(user) gid=65534(nogroup)"),
        ("user", "uid=1000(user) gid=1000(user)"),
        ("nobody:user", "uid=65534(nobody) gid=1000(user)"),
        ("4242", "uid=4242 gid=0(root)"),
    ):
        look = "id; hostname; grep CapEff /proc/self/status; touch /bin/x"
        options = ("--rootfs", busybox, "--name", new_guest(), "--rm", "--user", user, "--hostname", "web-1.example")
        result = nestrt.launch(*options, "--", "sh", "-c", look)
        assert result.out.splitlines()[:2] == [expected, "web-1.example"], user
        assert result.out.split()[-1] == "0" * 16
        assert "Permission denied" in result.err


# Binds, read-only and not, of a directory and of a file; tmpfs with a size; targets that are not there are made.
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_mounts(
    nestrt: Nestrt, guest_name: str, make_busybox: Callable[[], Path], tmp_path: Path, mode: str
) -> None:
    shared, fixed, file = tmp_path / "shared", tmp_path / "fixed", tmp_path / "file"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    fixed.mkdir()
    file.write_text("text\n")
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(directory.stat().st_mode | 0o055)
    answers = ask(
        nestrt,
        {
            "through": "echo from the guest > /shared/note",
            "fixed": "touch /deep/er/fixed/x",
            "file": "cat /etc/extra; echo x > /etc/extra",
            "size": "df -k /mnt | tail -1; dd if=/dev/zero of=/mnt/x bs=64k count=20",
            "read-only tmpfs": "touch /opt/x",
            "mode": "stat -c %a /mnt",
            "up": "ls /shared/..",
        },
        *("--rootfs", make_busybox(), "--name", guest_name),
        *("--mount", f"type=bind,source={shared},target=/shared", "--mount", f"src={fixed},dst=/deep/er/fixed,ro"),
        *("--mount", f"type=bind,source={file},target=/etc/extra,readonly"),
        *("--mount", "type=tmpfs,target=/mnt,size=1M,mode=1770", "--mount", "type=tmpfs,target=/opt,ro"),
        *MODES[mode],
    )
    answers.text("through")
    assert (shared / "note").read_text() == "from the guest\n"
    assert "Read-only file system" in answers.refused("fixed")
    assert answers["file"].text.startswith("text\n")
    assert "Read-only file system" in answers.refused("file")
    assert answers["size"].text.split()[1] == "1024"
    assert "No space left" in answers.refused("size")
    assert "Read-only file system" in answers.refused("read-only tmpfs")
    assert answers.text("mode") == "1770"
    assert "root" in answers.text("up").split()


# --read-only: the root and nothing else. --overlay: what is written is gone. / of the host itself is safe under one.
def test_read_only_and_overlay(
    nestrt: Nestrt, new_guest: Callable[[], str], make_busybox: Callable[[], Path]
) -> None:
    root = make_busybox()
    writes = {"root": "touch /root/x", "etc": "echo x >> /etc/passwd"}
    questions = {**writes, "run": "touch /run/x", "shm": "touch /dev/shm/x"}
    for mode in ("userns", "nouserns"):
        answers = ask(nestrt, questions, "--rootfs", root, "--name", new_guest(), "--read-only", *MODES[mode])
        for name in writes:
            assert "Read-only file system" in answers.refused(name)
        for name in ("run", "shm"):
            answers.text(name)
    answers = ask(nestrt, questions, "--rootfs", root, "--name", new_guest(), "--overlay", *MODES["nouserns"])
    for name in questions:
        answers.text(name)
    assert not (root / "root/x").exists()
    assert "x" not in (root / "etc/passwd").read_text().splitlines()

    traces = {"write": "touch /nestrt-was-here && ls /nestrt-was-here", "machine": "head -1 /etc/os-release"}
    answers = ask(nestrt, traces, "--rootfs", "/", "--overlay", "--name", new_guest(), *MODES["nouserns"])
    answers.text("write")
    assert answers.text("machine") == Path("/etc/os-release").read_text().splitlines()[0]
    assert not Path("/nestrt-was-here").exists()


# --net: a namespace with loopback up, or the host's own.
def test_net(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    questions = {
        "links": "ls /sys/class/net",
        "up": "ip -o link show lo",
        "loopback": "ping -c 1 127.0.0.1",
        "namespace": "readlink /proc/self/ns/net",
    }
    options = ("--rootfs", busybox)
    none = ask(nestrt, questions, *options, "--name", new_guest())
    assert none.text("links") == "lo"
    assert "UP" in none.text("up")
    assert "1 packets received" in none.text("loopback")
    own = os.readlink("/proc/self/ns/net")
    assert none.text("namespace") != own
    del questions["loopback"]
    for mode in ("userns", "nouserns"):
        host = ask(nestrt, questions, *options, "--name", new_guest(), "--net", "host", *MODES[mode])
        assert host.text("namespace") == own
        if mode == "nouserns":
            assert set(host.text("links").split()) == set(os.listdir("/sys/class/net"))


# --device: the rule, and the node, of a device that no guest has by itself: the kernel's log, c 1:11.
def test_device(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    questions = {
        "node": "stat -c %t:%T /dev/kmsg",
        "read": ": < /dev/kmsg",
        "write": ": >> /dev/kmsg",
        "devices": "ls /dev",
    }
    usual = {"console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout"}
    for device, write in (("/dev/kmsg:r", False), ("c 1:11 r", False), ("/dev/kmsg", True)):
        answers = ask(nestrt, questions, "--rootfs", busybox, "--name", new_guest(), "--device", device, *MODES["root"])
        assert answers.text("node") == "1:b"
        answers.text("read")
        if write:
            answers.text("write")
        else:
            assert "Operation not permitted" in answers.refused("write")
        assert "kmsg" in answers.text("devices").split()
    del questions["write"]  # it would make a file
    answers = ask(nestrt, questions, "--rootfs", busybox, "--name", new_guest(), *MODES["root"])
    answers.refused("node")
    assert set(answers.text("devices").split()) <= usual | {"tty", "urandom", "zero"}


# --swap is of swap alone; v1's file counts memory with it. "max" asks for no limit.
def test_swap_and_max(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    name, files = new_guest(), ("memory.memsw.limit_in_bytes", "memory.swap.max")
    nestrt.launch("--rootfs", busybox, "--name", name, "--memory=64M", "--swap", "16M", "--", "true").ok()
    assert read("memory", limit_group(name), *files) == str((16 if is_v2_only() else 80) << 20)
    name = new_guest()
    nestrt.launch("--rootfs", busybox, "--name", name, "-mmax", "--pids", "max", "--cpu-quota=max", "true").ok()
    unlimited = ("max", "max", "max 100000") if is_v2_only() else ("9223372036854771712", "max", "-1")
    for (controller, v1, v2), value in zip(
        (
            ("memory", "memory.limit_in_bytes", "memory.max"),
            ("pids", "pids.max", "pids.max"),
            ("cpu", "cpu.cfs_quota_us", "cpu.max"),
        ),
        unlimited,
        strict=True,
    ):
        assert read(controller, limit_group(name), v1, v2) == value


# --- -t ---


class Terminal:
    """A real terminal with "nestrt launch -t" as its foreground program."""

    def __init__(self, argv: list[str], rows: int, columns: int) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.seen = b""
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "vt220"},
            preexec_fn=self.at_login,  # noqa: PLW1509 (no threads here)
        )
        self.slave = slave

    @staticmethod
    def at_login() -> None:
        as_at_a_login()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def read(self) -> None:
        if select.select([self.master], [], [], 0.05)[0]:
            self.seen += os.read(self.master, 4096)

    def expect(self, text: bytes) -> None:
        """Wait until the screen has shown *text*, and forget what came up to it."""

        def shown() -> bool:
            self.read()
            return text in self.seen

        wait_for(shown, f"{text!r} on the terminal", 20)
        self.seen = self.seen.partition(text)[2]


# A shell at a terminal: keys, ^C, the size and its changes; afterwards the terminal is as it was.
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_terminal(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    command = (
        "trap 'echo interrupted' INT; trap 'echo size $(stty size)' WINCH; tty; ls -l /dev/console | cut -c1;"
        " echo size $(stty size) $TERM; echo rea''dy; read line; echo got $line; while :; do read x && exit $x; done"
    )
    argv = [nestrt.command, "launch", "-t", "--rootfs", str(busybox), "--name", guest_name, *MODES[mode]]
    terminal = Terminal([*argv, "--", "sh", "-c", command], 31, 97)
    nestrt.started.append(terminal.process)
    terminal.expect(b"/dev/pts/0\r\n")
    terminal.expect(b"c\r\n")
    terminal.expect(b"size 31 97 vt220\r\n")
    terminal.expect(b"ready\r\n")
    terminal.type(b"some text\r")
    terminal.expect(b"got some text\r\n")
    terminal.resize(40, 120)
    terminal.expect(b"size 40 120\r\n")
    terminal.type(b"\x03")
    terminal.expect(b"interrupted\r\n")
    terminal.type(b"5\r")
    wait_for(lambda: terminal.read() or terminal.process.poll() is not None, "the end", 20)
    assert terminal.process.returncode == 5
    assert termios.tcgetattr(terminal.slave) == terminal.before
    os.close(terminal.slave)
    os.close(terminal.master)


# Without a terminal of its own the launcher relays pipes; -t with -d is refused.
def test_terminal_over_pipes(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    options = ("--rootfs", busybox, "--name", new_guest(), "--rm", "-t")
    result = nestrt.launch(*options, "--", "sh", "-c", "test -t 0 && test -t 1 && cat", input="by pipe\n")
    assert result.rc == 0, result
    assert result.out.splitlines() == ["by pipe", "by pipe"]  # the terminal's echo, and cat
    refused = nestrt.launch("-td", "--rootfs", busybox, "--name", new_guest(), "--", "true")
    assert (refused.rc, refused.out) == (125, "")
    assert refused.err == (
        "nestrt: cannot use -t with -d: no process stays to relay the terminal; leave one of them out\n"
    )
