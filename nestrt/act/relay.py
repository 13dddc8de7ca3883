"""In the foreground: the launcher stands between whoever started it and the guest's first process.

Without a terminal the guest has the launcher's descriptors 0, 1 and 2, so only
signals pass through here. With one, bytes do too::

    stdin (raw) ──▶ pending input ──▶ master ══ slave: the guest's terminal
    stdout      ◀── pending output ◀──┘

In raw mode ^C and ^Z are bytes, and the guest's terminal makes signals of them;
what arrives here as a signal was sent by someone, and is passed on. Signals are
blocked and read from a descriptor, so one poll waits for everything and none
falls between two calls.
"""

from __future__ import annotations

import os
import select

from nestrt.kernel import pidfd as pidfds
from nestrt.kernel import signalfd, terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any
else:
    import _signal  # signal.py imports enum

FORWARDED = (
    _signal.SIGHUP,
    _signal.SIGINT,
    _signal.SIGQUIT,
    _signal.SIGTERM,
    _signal.SIGUSR1,
    _signal.SIGUSR2,
    _signal.SIGCONT,
    _signal.SIGWINCH,
)
# Whose default action is to end the process, signal(7).
_DEADLY = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2)
# After the guest has ended these end the wait for whoever reads its last output.
_ENDING = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)

_CHUNK = 4096  # PIPE_BUF: a pipe that poll(2) calls writable takes this much without blocking
_RETRY_MS = 100


def hold() -> set[int]:
    """Block the signals to forward, and return what was blocked before.

    Called before the guest's first process is made, it loses none of those that
    come before ``foreground``, which leaves them blocked: a late one then does
    not end the launcher while it cleans up. The guest's process must call
    ``signalfd.set_blocked`` with the result before execve(2).
    """
    return signalfd.block(_heard())


def foreground(pid: int, pidfd: int, master: int | None = None, stdin: int = 0, stdout: int = 1) -> int:
    """Stay with the guest until its first process, the child *pid*, ends; reap it and return its exit status.

    The status is 128+n for signal n, also for one that the launcher had to see
    through: see _deliver. *master* is the guest's terminal, closed in
    the end; *stdin* is in raw mode as long as that lasts, if it is a terminal.
    Everything that the guest wrote to it has then been written to *stdout*,
    unless that was closed: the guest's terminal hangs up in that case, SIGHUP.

    Raises OSError: ECHILD if *pid* is not a child.
    """
    signals = _heard() | ({_signal.SIGTSTP} if master is not None else set())
    before = signalfd.block(signals)
    try:
        descriptor = signalfd.open(signals)
        try:
            if master is None:
                ended_by = _forward_until_end(pid, pidfd, descriptor)
            else:
                relay = _Relay(pid, pidfd, descriptor, master, stdin, stdout)
                relay.run()
                ended_by = relay.ended_by
        finally:
            os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        signalfd.set_blocked(before)
    if status == -_signal.SIGKILL and ended_by:
        return 128 + ended_by
    return status if status >= 0 else 128 - status


def blocked() -> set[int]:
    """What is blocked just now, for a launcher that does not stay."""
    return signalfd.block(set())


def _heard() -> set[int]:
    """The signals to forward, without those that are ignored on behalf of the guest too (nohup(1), `&` of a script)."""
    return {signal for signal in FORWARDED if _signal.getsignal(signal) != _signal.SIG_IGN}


def _deliver(pid: int, pidfd: int, number: int) -> int:
    """Send a signal to the guest's first process; returns it if that ended the guest, else 0.

    The first process of a pid namespace gets no signal that it has no handler for
    (pid_namespaces(7)): ``sleep`` would live through a SIGTERM that ends it anywhere
    else. Where it neither catches, ignores nor blocks one whose default is to end
    it, the default is carried out with SIGKILL.
    """
    if number in _DEADLY and not _minds(pid, number):
        pidfds.send_signal(pidfd, _signal.SIGKILL)
        return number
    pidfds.send_signal(pidfd, number)
    return 0


def _minds(pid: int, number: int) -> bool:
    """Whether process *pid* blocks, ignores or catches signal *number*: proc_pid_status(5)."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            rows = [line.split() for line in file if line.startswith(("SigBlk:", "SigIgn:", "SigCgt:"))]
    except OSError:
        return True
    return any(int(row[1], 16) >> (number - 1) & 1 for row in rows)


def _forward_until_end(pid: int, pidfd: int, signals: int) -> int:
    """Returns the signal that _deliver had to see through, or 0."""
    ended_by = 0
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(signals, select.POLLIN)
    while pidfd not in (ready := dict(poll.poll())):
        if signals not in ready:
            continue
        for number, code in signalfd.read(signals):
            # A key pressed on a terminal that both share reaches the whole process group by itself.
            if code == signalfd.SI_KERNEL and _in_our_group(pid):
                continue
            ended_by = ended_by or _deliver(pid, pidfd, number)
    return ended_by


def _in_our_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == os.getpgrp()
    except ProcessLookupError:
        return False


def fit(master: int, stdin: int = 0, stdout: int = 1) -> None:
    """Give the terminal of *master* the size of the launcher's own, if it has one."""
    size = terminal.window_size(stdin) or terminal.window_size(stdout)
    if size is not None:
        terminal.set_window_size(master, *size)


class _Relay:
    """The bytes under way between a terminal and a guest's, and what is still open."""

    def __init__(self, pid: int, pidfd: int, signals: int, master: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.ended_by = 0
        self.pidfd, self.signals, self.master, self.stdin, self.stdout = pidfd, signals, master, stdin, stdout
        self.input = b""
        self.output = b""
        self.last_typed = b"\n"
        self.input_open = True
        self.connected = True  # the master is open
        self.idle = False  # nobody has the slave open just now
        self.ended = False  # the guest's first process
        self.abandoned = False
        self.before: list[Any] | None = None

    def run(self) -> None:
        """Relay until the guest has ended and its output is out; restore the terminal and close the master."""
        os.set_blocking(self.master, False)
        try:
            self.resize()
            self.before = terminal.set_raw(self.stdin)
            while not self.abandoned and self.turn():
                pass
        finally:
            self.hang_up()
            # A terminal may be set from the background only with this blocked; else the launcher would stop here.
            blocked = signalfd.block((_signal.SIGTTOU,))
            try:
                terminal.restore(self.stdin, self.before)
            finally:
                signalfd.set_blocked(blocked)

    def turn(self) -> bool:
        """Wait for something to do and do it; return False when all is done."""
        last = self.ended and not self.output
        ready = self.wait(0 if last else _RETRY_MS if self.idle else None)
        if self.signals in ready:
            self.take_signals()
        if self.stdout in ready and self.output:
            self.write_output()
        if self.connected and ready.get(self.master, 0) & select.POLLOUT and self.input:
            self.write_input()
        if self.connected and ready.get(self.master, 0) & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self.read_output()
        elif last:
            # All of the guest's descriptors were closed before its first process could be waited for, and poll(2)
            # of a master moves what was written to the slave along first: nothing can come any more.
            return False
        if self.stdin in ready and self.wants_input():
            self.read_input()
        if self.pidfd in ready:
            self.ended, self.input = True, b""
        return True

    def wants_input(self) -> bool:
        return self.input_open and self.connected and not self.ended and len(self.input) < _CHUNK

    def wait(self, milliseconds: int | None) -> dict[int, int]:
        """What is ready, of that which there is a use for: the rest would be reported without end."""
        poll = select.poll()
        poll.register(self.signals, select.POLLIN)
        if not self.ended:
            poll.register(self.pidfd, select.POLLIN)
        if self.wants_input():
            poll.register(self.stdin, select.POLLIN)
        if self.output:
            poll.register(self.stdout, select.POLLOUT)
        reading = select.POLLIN if not self.output else 0
        writing = select.POLLOUT if self.input else 0
        if self.connected and (reading or writing) and not (self.idle and not self.ended):
            poll.register(self.master, reading | writing)
        self.idle = False
        return dict(poll.poll(milliseconds))

    def take_signals(self) -> None:
        for number, _code in signalfd.read(self.signals):
            if number == _signal.SIGWINCH:
                self.resize()
            elif self.ended:
                self.abandoned |= number in _ENDING
            elif number == _signal.SIGTSTP:
                # For the shell the launcher is the job: it stops with its terminal in order, the guest goes on.
                terminal.restore(self.stdin, self.before)
                os.kill(os.getpid(), _signal.SIGSTOP)
            else:
                if number == _signal.SIGCONT and self.before is not None:
                    terminal.set_raw(self.stdin)
                    self.resize()
                self.ended_by = self.ended_by or _deliver(self.pid, self.pidfd, number)

    def resize(self) -> None:
        """Give the guest's terminal the size of the one outside; its foreground processes hear of a change."""
        if self.connected:
            fit(self.master, self.stdin, self.stdout)

    def read_input(self) -> None:
        try:
            data = os.read(self.stdin, _CHUNK)
        except OSError:
            data = b""  # a terminal that hung up or belongs to others by now
        if data:
            self.last_typed = data[-1:]
        else:
            self.input_open = False
            # A terminal has no end of its input but this byte, which only ends a line that has begun: so once more.
            begun = self.last_typed not in (b"\n", b"\r")
            data = terminal.end_of_file(self.master) * (1 + begun)
        self.input += data

    def write_input(self) -> None:
        try:
            self.input = self.input[os.write(self.master, self.input) :]
        except BlockingIOError:
            pass
        except OSError:
            self.input = b""

    def read_output(self) -> None:
        if self.output:
            self.idle = True  # it was not asked about, and reports nevertheless that the slave is closed
            return
        try:
            self.output = os.read(self.master, 16 * _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            # EIO: no process has the slave open. While the guest lives one may open it again, by /dev/tty.
            self.idle = True
            if self.ended:
                self.hang_up()

    def write_output(self) -> None:
        try:
            self.output = self.output[os.write(self.stdout, self.output[:_CHUNK]) :]
        except BlockingIOError:
            pass
        except OSError:
            # Nobody reads any more (EPIPE, EIO): the guest must not write for ever.
            self.output = b""
            self.hang_up()

    def hang_up(self) -> None:
        if self.connected:
            self.connected = False
            os.close(self.master)
