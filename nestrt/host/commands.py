"""Command lines of processes that do not want to be looked at.

/proc/PID/cmdline is read with the process's memory map locked, and a process that maps something over a file of a
filesystem of its own (FUSE) keeps that lock as long as it likes: the reader waits until it is killed. So a thread
reads, and where it does not come on, another one takes the rest; whoever waits is left behind, and ends with the
program: these waits are killable (mmap_read_lock_killable(), mm/memory.c), and since Linux 4.17 no page of a file is
touched. Of what else nestrt reads of a process, stat, status, uid_map, ns/ and the
files of its groups, nothing takes that lock. environ, smaps, numa_maps, pagemap, ksm_stat and map_files do, on older
kernels maps too, and are never read.

It costs one thread for each call, some 50 µs, and nothing for each process.
"""

from __future__ import annotations

import _thread
import os
import time

LONGEST_COMMAND = 4096  # bytes
# A reader that waits in the kernel for PATIENCE s is left alone until all others have been read. All such waiting
# together may take STALL s, and RECOVERY of the time that a program runs; a call takes at most half of what is left,
# so that no guest uses it up for those after it.
PATIENCE = 0.01
STALL = 0.5
RECOVERY = 0.05
MOST_READERS = 64

TYPE_CHECKING = False
if TYPE_CHECKING:
    Key = tuple[int, int]  # pid, and its start in clock ticks since boot


def read_command(pid: int, start: int) -> bytes | None:
    """The words of *pid*, each ended by a NUL; None if that process is gone. May hang: see above."""
    opened = []
    try:
        opened.append(directory := os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        # By the directory, which is one process's for ever: a number can be another one's by now.
        opened.append(stat := os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory))
        if int(os.read(stat, 4096).rpartition(b")")[2].split()[19]) != start:
            return None
        opened.append(file := os.open("cmdline", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory))
        return os.read(file, LONGEST_COMMAND)
    except (OSError, ValueError, IndexError):
        return None
    finally:
        for fd in opened:
            os.close(fd)


class _Reader:
    """A thread that reads the commands of *keys* in their order, *stop* at most; *done* is what it has read."""

    def __init__(self, keys: list[Key]) -> None:
        self.keys = keys
        self.stop = len(keys)
        self.done: list[bytes | None] = []
        self.tid = 0
        self.running = _thread.allocate_lock()
        self.running.acquire()
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        try:
            self.tid = _thread.get_native_id()
            for number, (pid, start) in enumerate(self.keys):
                if number >= self.stop:
                    break
                self.done.append(read_command(pid, start))
        finally:
            self.running.release()

    def ends(self, timeout: float) -> bool:
        """Whether it has ended, or does within *timeout* seconds."""
        if not self.running.acquire(timeout=timeout):
            return False
        self.running.release()
        return True

    def runs(self) -> bool:
        """Whether it waits for no more than a CPU, or for us."""
        try:
            with open(f"/proc/self/task/{self.tid}/stat", "rb") as file:
                return file.read(4096).rpartition(b") ")[2][:1] != b"D"
        except OSError:
            return True

    def comes_to_its_end(self) -> bool:
        """Wait until it has ended (true), or is held up."""
        seen = still = 0
        while not self.ends(PATIENCE):
            count = len(self.done)
            still = still + 1 if count == seen else 0
            seen = count
            if (still and not self.runs()) or still > STALL / PATIENCE:
                return False
        return True


class Commands:
    """Reads command lines, and remembers which readers are held up by which process. For one thread's use."""

    def __init__(self) -> None:
        self.held: dict[Key, _Reader] = {}
        self.left = STALL
        self.at = time.monotonic()

    def read(self, keys: list[Key]) -> dict[Key, bytes | None]:
        """The first LONGEST_COMMAND bytes of each process's words; None: gone. Not in it: they cannot be had.

        A process that holds up a reader is not asked again before that reader is free.
        """
        now = time.monotonic()
        self.left, self.at = min(STALL, self.left + (now - self.at) * RECOVERY), now
        self.held = {key: reader for key, reader in self.held.items() if reader.running.locked()}
        queue = [key for key in keys if key not in self.held]
        patience = self.left / 2
        readers: list[_Reader] = []
        while queue and len(self.held) < MOST_READERS and patience >= 0:
            readers.append(reader := _Reader(queue))
            if reader.comes_to_its_end():
                break
            # It may come on just now: then what it still reads is read twice, and nothing is left out.
            count = len(reader.done)
            reader.stop = count + 1
            self.held.update(dict.fromkeys(queue[count : count + 1], reader))
            queue = queue[count + 1 :]
            patience -= PATIENCE
            self.left -= PATIENCE
        found: dict[Key, bytes | None] = {}
        for reader in readers:
            began = time.monotonic()
            reader.ends(max(0.0, patience))
            waited = time.monotonic() - began
            patience -= waited
            self.left -= waited
            found.update(zip(reader.keys, list(reader.done), strict=False))
        return found
