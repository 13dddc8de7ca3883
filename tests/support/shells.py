"""Shells as a user has them: in a terminal, with a key for completion and one to go."""

from __future__ import annotations

import os
import pty
import select
import signal
import time
from pathlib import Path

from support.need import SLOW
from support.rootfs import CHECKOUT

# What the shell calls when the line is entered: the words that the line has become. Completion itself
# starts the program, which no function is in the way of.
TAKE = "printf '%s\\0' \"$@\" > FILE.new; mv FILE.new FILE; "
START = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "PS1=; bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; source <(nestrt completion bash);"
        " nestrt() { " + TAKE + "}; echo 'rea''dy'",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "PS1=; unset zle_bracketed_paste; autoload -Uz compinit; compinit -u -D; source <(nestrt completion zsh);"
        " nestrt() { " + TAKE + "}; print 'rea''dy'",
    ),
}


class Terminal:
    """An interactive *shell* in *directory*, where it has no files of its own."""

    def __init__(self, shell: str, directory: Path) -> None:
        self.taken = directory / "taken"
        words, start = START[shell]
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(directory)
                path = f"{CHECKOUT}/hooks:/usr/sbin:/usr/bin:/sbin:/bin"
                environment = {
                    "TERM": "dumb",
                    "PATH": path,
                    "HOME": str(directory),
                    "LC_ALL": "C.UTF-8",
                    "COLUMNS": "300",
                }
                os.execvpe(words[0], words, environment)
            finally:
                os._exit(127)
        self.type(start.replace("FILE", str(self.taken)) + "\r")
        self.read("ready\r\n")

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read(self, text: str, seconds: float = 20.0) -> str:
        """What comes up to *text*; AssertionError where it does not come."""
        got = ""
        end = time.monotonic() + seconds * SLOW
        while text not in got:
            assert select.select([self.master], [], [], max(0, end - time.monotonic()))[0], got
            got += os.read(self.master, 65536).decode(errors="replace")
        return got

    def complete(self, line: str) -> list[str]:
        """The words that *line* is after a tab, when it is entered."""
        self.taken.unlink(missing_ok=True)
        self.type(line + "\t")
        # The shell reads no key before it has completed the word.
        self.type("\r")
        end = time.monotonic() + 20 * SLOW
        got = ""
        while not self.taken.exists():
            assert time.monotonic() < end, got
            if select.select([self.master], [], [], 0.01)[0]:
                got += os.read(self.master, 65536).decode(errors="replace")
        return self.taken.read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.master)
