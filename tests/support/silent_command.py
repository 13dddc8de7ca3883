"""A process whose command line cannot be read: whoever tries waits for its memory map, which it keeps locked.

Run as ``python silent_command.py PATH NAME`` where PATH is a file whose pages are never written (silent_file.py). What
is mapped over a changed page of it waits until that is written: since Linux 6.16; before, FUSE's writes kept nobody
waiting.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.need import SLOW
from support.silent_file import silent

PAGE = 4096


def hold(path: str, name: str) -> None:
    """Lock this process's memory map for ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    fd = os.open(path, os.O_RDWR)
    os.fstat(fd)
    page = libc.mmap(None, PAGE, 3, 1, fd, 0)
    ctypes.memset(page, 1, 1)
    libc.prctl(15, name.encode())
    libc.mmap(page, PAGE, 3, 0x32, -1, 0)


def _is_held(pid: int, name: str) -> bool:
    return f"({name}) D" in Path(f"/proc/{pid}/stat").read_text()


@contextmanager
def silent_commands(directory: Path, *names: str) -> Iterator[list[int]]:
    """The pids of such processes, one of each name; *directory* is for files."""
    # At the end all are killed, which does not help before the filesystems are gone; then waited for.
    with ExitStack() as waits, ExitStack() as stack:
        keeper = waits.enter_context(subprocess.Popen(["unshare", "-m", "sleep", "1000"]))
        stack.callback(keeper.kill)
        started = []
        end = time.monotonic() + 20 * SLOW
        while Path(f"/proc/{keeper.pid}/comm").read_text() != "sleep\n" and time.monotonic() < end:
            time.sleep(0.01)
        for name in names:
            file = directory / f"silent-{name}"
            file.write_bytes(bytes(PAGE))
            stack.enter_context(silent(keeper.pid, str(file), "write"))
            command = ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", sys.executable, __file__, str(file), name]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
            process = waits.enter_context(subprocess.Popen(command, env=environment))
            stack.callback(process.kill)
            started.append(process.pid)
        for pid, name in zip(started, names, strict=True):
            while not _is_held(pid, name):
                assert time.monotonic() < end, f"{name} does not get stuck"
                time.sleep(0.01)
        yield started


if __name__ == "__main__":
    hold(*sys.argv[1:])
