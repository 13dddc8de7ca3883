"""Attacks of containers on the runtime, and a machine on which a success of theirs hurts nobody.

The interpreter that nestrt runs in is what CVE-2019-5736 wants to overwrite. So a test runs
nestrt in a mount namespace of its own, where a copy lies over the interpreter's file::

    /usr/bin/python3.11   the machine's                 /usr/bin/python3.11   the copy: what is attacked
         everybody else                                      nestrt, as the test starts it
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.runner import Nestrt

INTERPRETER = Path(os.path.realpath("/usr/bin/python3"))

# A shell that looks at every process it can see, keeps a descriptor of what it finds it running, and writes to that
# for as long as it is not the shell's own program: while it runs (ETXTBSY), and after it has gone.
# /found has the names of what was caught.
CATCHER = r"""
own=$(readlink /proc/self/exe)
: > /found
n=0
while :; do
  for p in /proc/[0-9]*; do
    if command exec 5<"$p/exe"; then
      name=$(readlink "/proc/self/fd/5")
      if [ "$name" != "$own" ] && [ -n "$name" ]; then
        echo "$name" >> /found
        n=$((n + 1))
        case $n in
          1) exec 6<&5 ;; 2) exec 7<&5 ;; 3) exec 8<&5 ;; *) exec 9<&5; n=0 ;;
        esac
      fi
      exec 5<&-
    fi
  done
  for fd in 6 7 8 9; do
    echo "taken over" > /proc/self/fd/$fd
  done
done 2>/dev/null
"""


def digest(path: Path) -> str:
    """What the file has in it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Isolated(Nestrt):
    """nestrt in a mount namespace of its own, with a copy of the interpreter that may be lost."""

    def __init__(self, copy: Path, holder: int) -> None:
        super().__init__()
        self.copy = copy
        self.before = digest(copy)
        script = copy.with_name("nestrt")
        script.write_text(f'#!/bin/sh\nexec nsenter --mount=/proc/{holder}/ns/mnt -- {super().command} "$@"\n')
        script.chmod(0o755)
        self.command = str(script)

    @property
    def intact(self) -> bool:
        """Whether nobody has written to the copy."""
        return digest(self.copy) == self.before


@contextmanager
def isolated(directory: Path) -> Iterator[Isolated]:
    """An Isolated whose copy is made in *directory*; the machine's interpreter is checked at the end."""
    before = digest(INTERPRETER)
    copy = directory / INTERPRETER.name
    shutil.copy(INTERPRETER, copy)
    script = 'mount --make-rprivate / && mount --bind "$1" "$2" && echo ready && exec sleep 600'
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(copy), str(INTERPRETER)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield Isolated(copy, holder.pid)
    finally:
        holder.kill()
        holder.communicate()
        assert digest(INTERPRETER) == before
