"""The foreground relay between real terminals and real processes.

::

    test ══ outer pty ══ launcher (foreground) ══ inner pty ══ guest's process

The test holds the outer pty's master, as a terminal emulator does; the
launcher is a process that leads a session on its slave.
"""

from __future__ import annotations

import array
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nestrt.act import relay
from nestrt.kernel import signalfd, terminal
from support.need import SLOW
from support.runner import wait_for

LIMIT = 30 * SLOW  # seconds


class Launcher:
    """A process that runs *arguments* as a guest's first process, with a terminal of its own unless *plain*."""

    def __init__(
        self, *arguments: str, plain: bool = False, stdin: int | None = None, stdout: int | None = None
    ) -> None:
        self.outer, slave = pty.openpty()
        self.seen = b""
        terminal.set_window_size(slave, 33, 77)
        self.modes = termios.tcgetattr(slave)
        self.pid = os.fork()
        if self.pid == 0:
            status = 99
            try:
                # Tests may run where these are ignored: from a script, in the background.
                for number in relay.FORWARDED:
                    signal.signal(number, signal.SIG_DFL)
                terminal.make_controlling(slave)
                for there, given in enumerate((stdin, stdout)):
                    if given is not None:
                        os.dup2(given, there)
                os.closerange(3, 1000)
                status = launch(arguments, plain)
            except BaseException as error:
                os.write(2, repr(error).encode())
            finally:
                os._exit(status)
        self.slave = slave

    def type(self, text: bytes) -> None:
        os.write(self.outer, text)

    def read_until(self, wanted: bytes) -> bytes:
        """Read the outer terminal until *wanted* was there; return all up to it, and keep the rest."""
        limit = time.monotonic() + LIMIT
        seen = bytearray(self.seen)
        while seen.find(wanted, max(0, len(seen) - 65536 - len(wanted))) < 0:
            assert time.monotonic() < limit, f"no {wanted!r} in {seen[-500:]!r}"
            if select.select([self.outer], [], [], 0.1)[0]:
                seen += os.read(self.outer, 65536)
        before, _, self.seen = bytes(seen).partition(wanted)
        return before

    def status(self, typing: bytes = b"") -> int:
        """Wait for the launcher, reading what it writes and *typing* now and then; return its exit status."""
        limit = time.monotonic() + LIMIT
        while True:
            assert time.monotonic() < limit, f"still running: {self.seen[-500:]!r}"
            if select.select([self.outer], [], [], 0.05)[0]:
                self.seen += os.read(self.outer, 65536)
                continue
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            self.type(typing)

    def raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.outer)
        os.close(self.slave)


def launch(arguments: tuple[str, ...], plain: bool) -> int:
    """What a launcher does: hold signals, size the terminal, make the process, stay with it."""
    before = relay.hold()
    master = None if plain else terminal.open_guest_pty()[0]
    if master is not None:
        relay.fit(master)
    pid = os.fork()
    if pid == 0:
        try:
            signalfd.set_blocked(before)
            if master is not None:
                terminal.make_controlling(terminal.open_slave(master))
            os.execvp(arguments[0], arguments)
        finally:
            os._exit(127)
    return relay.foreground(pid, os.pidfd_open(pid), master)


@pytest.fixture
def start() -> Iterator[Callable[..., Launcher]]:
    made: list[Launcher] = []

    def make(*arguments: str, **options: object) -> Launcher:
        made.append(Launcher(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for launcher in made:
        launcher.close()


def shell(text: str) -> tuple[str, str, str]:
    return "sh", "-c", text


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("text", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_exit_status(start: Callable[..., Launcher], text: str, status: int, plain: bool) -> None:
    assert start(*shell(text), plain=plain).status() == status


def test_bytes_go_both_ways_and_the_terminal_is_restored(start: Callable[..., Launcher]) -> None:
    launcher = start(*shell("echo ready; read line; echo got $line; tty"))
    launcher.read_until(b"ready\r\n")
    assert launcher.raw()
    launcher.type(b"hello\r")
    launcher.read_until(b"hello\r\ngot hello\r\n")
    assert launcher.status() == 0
    assert b"/dev/pts/" in launcher.seen
    assert termios.tcgetattr(launcher.slave) == launcher.modes


def test_size_at_the_start_and_when_it_changes(start: Callable[..., Launcher]) -> None:
    launcher = start(*shell("stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done"))
    assert launcher.read_until(b"ready").strip() == b"33 77"
    terminal.set_window_size(launcher.outer, 50, 132)
    launcher.read_until(b"50 132")
    assert launcher.status() == 3


def test_interrupt_key_is_the_guests(start: Callable[..., Launcher]) -> None:
    launcher = start(*shell("echo ready; sleep 1000"))
    launcher.read_until(b"ready")
    # More than once: a shell that has not begun to wait for its child yet may take it for itself, and go on.
    assert launcher.status(typing=b"\x03") == 130


def test_interrupt_key_counts_once(start: Callable[..., Launcher]) -> None:
    """Without a terminal of its own the guest is in the launcher's process group and has the key's signal already."""
    program = """if True:
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        print("ready", flush=True)
        signal.sigwait({signal.SIGINT})
        print("once", flush=True)
        print("end" if signal.sigtimedwait({signal.SIGINT}, 0.5) is None else "twice", flush=True)
    """
    for plain in (True, False):
        launcher = start(sys.executable, "-IS", "-c", program, plain=plain)
        launcher.read_until(b"ready")
        launcher.type(b"\x03")
        assert launcher.status() == 0
        assert b"once\r\nend" in launcher.seen


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_signals_are_forwarded(start: Callable[..., Launcher], number: signal.Signals, plain: bool) -> None:
    name = number.name.removeprefix("SIG")
    launcher = start(
        *shell(f"trap 'echo caught; exit 42' {name}; echo ready; while :; do sleep 0.05; done"), plain=plain
    )
    launcher.read_until(b"ready")
    os.kill(launcher.pid, number)
    assert launcher.status() == 42
    assert b"caught" in launcher.seen
    assert not launcher.raw()


def test_many_signals_and_an_end_at_any_moment(start: Callable[..., Launcher]) -> None:
    """Neither a signal at the very end nor one at the very start ends the launcher or hangs it."""
    for delay in (0, 0.005, 0.01, 0.015, 0.02, 0.03):
        launcher = start(*shell("exit 5"))
        time.sleep(delay)
        while True:
            try:
                os.kill(launcher.pid, signal.SIGWINCH)
                os.kill(launcher.pid, signal.SIGCONT)
            except ProcessLookupError:
                break
            if os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        assert launcher.status() == 5
        assert not launcher.raw()


def test_all_output_arrives(start: Callable[..., Launcher]) -> None:
    size = 10 << 20
    launcher = start(*shell(f"stty raw; head -c {size} /dev/zero | tr '\\0' x; printf end"))
    assert len(launcher.read_until(b"end")) == size
    assert launcher.status() == 0


@pytest.mark.parametrize("size", [69000, 72000, 300000])
def test_output_waits_for_a_slow_reader(start: Callable[..., Launcher], size: int) -> None:
    """More than the pipe holds (64 KiB): what the terminals hold besides is read after the guest has ended."""
    out, into = os.pipe()
    launcher = start(*shell(f"stty raw; head -c {size} /dev/zero | tr '\\0' y"), stdout=into)
    os.close(into)
    time.sleep(0.5)
    assert os.waitpid(launcher.pid, os.WNOHANG) == (0, 0)
    data = b"".join(iter(lambda: os.read(out, 65536), b""))
    assert len(data) == size
    assert launcher.status() == 0
    os.close(out)


def test_a_reader_that_leaves_hangs_up_the_guest(start: Callable[..., Launcher]) -> None:
    out, into = os.pipe()
    launcher = start("yes", stdout=into)
    os.close(into)
    assert os.read(out, 2)[:1] == b"y"
    os.close(out)
    assert launcher.status() in (1, 129)
    assert not launcher.raw()


def test_nobody_reads_and_a_signal_ends_the_wait(start: Callable[..., Launcher]) -> None:
    out, into = os.pipe()
    launcher = start(*shell("trap '' TERM; stty raw; head -c 69000 /dev/zero"), stdout=into)
    os.close(into)

    def is_waiting() -> bool:
        held = array.array("i", [0])
        fcntl.ioctl(out, termios.FIONREAD, held)
        return held[0] > 0 and not living(launcher.pid)

    wait_for(is_waiting, "the guest's end, with its output on the way")
    time.sleep(0.2)
    os.kill(launcher.pid, signal.SIGTERM)
    assert launcher.status() == 0
    os.close(out)


def living(pid: int) -> list[str]:
    """The children of *pid* that have not ended."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for one in children if Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0] != "Z"]


@pytest.mark.parametrize("text", [b"one\ntwo\n", b"one\ntwo", b""])
def test_end_of_input_reaches_the_guest(start: Callable[..., Launcher], text: bytes) -> None:
    """What is no terminal ends, and the guest's terminal says so; the launcher does not spin meanwhile."""
    out, into = os.pipe()
    os.write(into, text)
    os.close(into)
    launcher = start(*shell("cat; timeout --foreground 0.5 cat && echo more; echo; echo end"), stdin=out)
    os.close(out)
    got = launcher.read_until(b"end")
    assert b"more" not in got, "it ended once"
    # The outer terminal is no input and so not raw: it adds returns of its own.
    assert text.replace(b"\n", b"\r\n") in got.replace(b"\r\r", b"\r")
    # The processor time of the launcher itself: it has slept through the half second.
    with open(f"/proc/{launcher.pid}/stat", "rb") as file:
        ticks = sum(map(int, file.read().rpartition(b")")[2].split()[11:13]))
    assert ticks / os.sysconf("SC_CLK_TCK") < 0.3
    assert launcher.status() == 0


def test_a_closed_and_reopened_guest_terminal(start: Callable[..., Launcher]) -> None:
    """With no descriptor of it open the guest still has its terminal, and the launcher does not spin."""
    launcher = start(*shell("exec </dev/null >/dev/null 2>&1; sleep 1; echo again >/dev/tty; exit 6"))
    time.sleep(0.8)
    with open(f"/proc/{launcher.pid}/stat", "rb") as file:
        ticks = sum(map(int, file.read().rpartition(b")")[2].split()[11:13]))
    assert ticks / os.sysconf("SC_CLK_TCK") < 0.3
    launcher.read_until(b"again")
    assert launcher.status() == 6


def test_stop_restores_the_terminal_and_continue_takes_it_again(start: Callable[..., Launcher]) -> None:
    launcher = start(*shell("echo ready; read line; echo got $line"))
    launcher.read_until(b"ready")
    assert launcher.raw()
    os.kill(launcher.pid, signal.SIGTSTP)
    os.waitid(os.P_PID, launcher.pid, os.WSTOPPED)
    assert not launcher.raw()
    terminal.set_window_size(launcher.slave, 10, 20)
    os.kill(launcher.pid, signal.SIGCONT)
    limit = time.monotonic() + LIMIT
    while not launcher.raw():
        assert time.monotonic() < limit
        time.sleep(0.01)
    launcher.type(b"on\r")
    launcher.read_until(b"got on")
    assert launcher.status() == 0


def test_terminal_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    outer, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    inner, _name = terminal.open_guest_pty()
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    pidfd = os.pidfd_open(pid)

    def broken(_relay: object) -> bool:
        assert termios.tcgetattr(slave) != before
        raise RuntimeError("as if")

    monkeypatch.setattr(relay._Relay, "turn", broken)
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(RuntimeError, match="as if"):
        relay.foreground(pid, pidfd, inner, slave, slave)
    assert termios.tcgetattr(slave) == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == masked
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(inner)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for descriptor in (outer, slave, pidfd):
        os.close(descriptor)


def test_ignored_signals_stay_ignored(start: Callable[..., Launcher]) -> None:
    """As under nohup(1): the guest was started with SIGHUP ignored, and the launcher does not stand for it."""
    program = "import os, sys; import unit.test_relay as t; os._exit(t.launch(tuple(sys.argv[1:]), True))"
    nohup = f"trap '' HUP; exec {sys.executable} -c '{program}' \"$@\""
    guest = (
        "import os, signal, sys, time; signal.signal(signal.SIGHUP, lambda *_: os._exit(9)); print('ready'); "
        "sys.stdin.readline(); time.sleep(0.5)"
    )
    environment = f"PYTHONPATH={os.pathsep.join(p for p in sys.path if p)}"
    launcher = start("env", environment, *shell(nohup), "sh", sys.executable, "-ISuc", guest, plain=True)
    launcher.read_until(b"ready")
    # The launcher that heeds it is the first one's guest.
    with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children", encoding="ascii") as file:
        os.kill(int(file.read()), signal.SIGHUP)
    launcher.type(b"\r")
    assert launcher.status() == 0


def test_descriptors_are_sent_whole() -> None:
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        terminal.send_fd(ours.fileno(), 0)
        received = terminal.recv_fd(theirs.fileno())
        assert os.path.samestat(os.fstat(received), os.fstat(0))
        assert not os.get_inheritable(received)
        os.close(received)
        ours.sendall(b"x")
        with pytest.raises(OSError, match="0 descriptors"):
            terminal.recv_fd(theirs.fileno())
        open_before = set(os.listdir("/proc/self/fd"))
        socket.send_fds(ours, [b"x"], [0, 1])
        with pytest.raises(OSError, match="descriptors and not one"):
            terminal.recv_fd(theirs.fileno())
        assert set(os.listdir("/proc/self/fd")) == open_before
        ours.close()
        with pytest.raises(ConnectionResetError):
            terminal.recv_fd(theirs.fileno())
        theirs.settimeout(1)
        assert theirs.fileno() >= 0


def test_only_the_multiplexer_is_taken_for_one(tmp_path: object) -> None:
    with pytest.raises(OSError, match="not the pseudo-terminal multiplexer"):
        terminal.open_guest_pty("/dev/null")
    with open(f"{tmp_path}/ptmx", "w", encoding="ascii") as file:
        assert terminal.window_size(file.fileno()) is None
        assert terminal.set_raw(file.fileno()) is None
    with pytest.raises(OSError, match="not the pseudo-terminal multiplexer"):
        terminal.open_guest_pty(f"{tmp_path}/ptmx")


def test_slave_is_opened_by_descriptor() -> None:
    master, name = terminal.open_guest_pty()
    slave = terminal.open_slave(master)
    assert os.ttyname(slave) == name
    terminal.set_window_size(master, 12, 34)
    assert struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))[:2] == (12, 34)
    assert terminal.end_of_file(master) == b"\x04"
    assert not os.get_inheritable(slave)
    assert not os.get_inheritable(master)
    os.close(slave)
    os.close(master)
