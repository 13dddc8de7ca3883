"""The channel between the launcher and the guest's first process.

A Unix stream socket pair. Messages are lines: a word of the plan's Tell
("mapped", "ready"), ``terminal`` together with the master's descriptor, or
``error`` and a JSON object, after which the sender ends. The first process's
end closes when its program runs; if execve(2) failed, the trampoline writes the
errno as four bytes first.
"""

from __future__ import annotations

import _socket
import errno
import os

from nestrt import jsontext
from nestrt.errors import KernelError, NestrtError, ProgramError
from nestrt.kernel import terminal
from nestrt.kernel.board import read_board
from nestrt.kernel.trampoline import EXECUTE, failure

ERROR = "error "
TERMINAL = "terminal"


class Gone(Exception):
    """The other process ended before it said what was waited for."""


class Channel:
    """One end. *master* is the terminal's descriptor once it has come."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.master: int | None = None

    @property
    def fd(self) -> int:
        return self.sock.fileno()

    def tell(self, word: str) -> None:
        try:
            self.sock.send(word.encode() + b"\n", _socket.MSG_NOSIGNAL)
        except OSError as error:
            raise Gone(word) from error

    def tell_error(self, error: NestrtError) -> None:
        body = {k: getattr(error, k) for k in ("operation", "obj", "reason", "remedy", "status")}
        self.tell(ERROR + jsontext.dumps(body))

    def tell_terminal(self, master: int) -> None:
        self.tell(TERMINAL)
        terminal.send_fd(self.fd, master)

    def wait(self, word: str) -> None:
        """Wait for *word*; raises the other side's error, or Gone."""
        while True:
            line = self._line()
            if line == word:
                return
            if line.startswith(ERROR):
                raise received(jsontext.loads(line[len(ERROR) :]))
            if line != TERMINAL:
                raise Gone(f"{line!r} came instead of {word!r}")
            self.master = terminal.recv_fd(self.fd)

    def last_words(self) -> bytes:
        """All that comes until the other end closes: nothing if the program runs, else its errno."""
        words = b""
        while chunk := self._receive(4096):
            words += chunk
        return words

    def expect_program(self, program: str, board: int = -1) -> None:
        """Wait until the other end has become *program*, and close; raises the NestrtError that it told instead.

        *board* is where a process that a filter keeps from writing leaves what failed (kernel/seccomp.py).
        """
        words = self.last_words()
        os.close(self.sock.detach())
        if words.startswith(ERROR.encode()):
            raise received(jsontext.loads(words[len(ERROR) :].decode()))
        failed = failure(int.from_bytes(words[:4], "little"))
        if failed is None and board >= 0:
            failed = failure(read_board(board)[1])
        if failed is not None:
            what, number = failed
            raise program_error(program, number) if what == EXECUTE else KernelError(what, program, number)

    def last_error(self) -> NestrtError | None:
        """The error among all that comes until the other end closes, if there is one."""
        for line in self.last_words().decode("utf-8", "replace").splitlines():
            if line.startswith(ERROR):
                return received(jsontext.loads(line[len(ERROR) :]))
        return None

    def _receive(self, count: int) -> bytes:
        try:
            return self.sock.recv(count)
        except ConnectionResetError:  # it ended before it had read all that it was told
            return b""

    def _line(self) -> str:
        # Byte by byte: a larger read could run into the byte that carries the descriptor, and lose it.
        line = b""
        while (byte := self._receive(1)) != b"\n":
            if not byte:
                raise Gone("end of file")
            line += byte
        return line.decode()


def pair() -> tuple[Channel, Channel]:
    """Two connected channels, close-on-exec."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    return Channel(ours), Channel(theirs)


def received(body: dict[str, object]) -> NestrtError:
    """The error that the other process told."""
    error = NestrtError(str(body["operation"]), str(body["obj"]), str(body["reason"]), str(body["remedy"]))
    error.status = int(str(body["status"]))
    return error


def program_error(program: str, number: int) -> ProgramError:
    """execve(2)'s refusal in the words that engines look for, with a shell's exit status: 127 not there, else 126."""
    text = os.strerror(number)
    reason = f"exec {program}: {text[:1].lower()}{text[1:]}"
    if number == errno.ENOENT:
        return ProgramError("execute", program, reason, "name a program of the guest that has its interpreter", 127)
    remedy = (
        "give it a #! line, or a program for this machine"
        if number == errno.ENOEXEC
        else "make it an executable file (chmod +x)"
    )
    return ProgramError("execute", program, reason, remedy, 126)
