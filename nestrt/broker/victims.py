"""The processes that a caller names: by its own numbers, found, held, and looked at before anything happens to them.

A pid is a claim twice over. It is the caller's number, of a pid namespace of its own, so the kernel is asked whose it
is here. And whoever has it may end while we look, and leave it to another. So a pidfd is opened first, everything
that is read of the process is read after, and counts only if the pidfd says after that that it has not ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from nestrt.broker.peer import Peer
from nestrt.broker.refusal import Refusal
from nestrt.broker.served import Tree
from nestrt.kernel import pidfd
from nestrt.kernel.pidns import LARGEST, PidNamespace
from nestrt.record import record

LONGEST_STATUS = 1 << 20  # with NGROUPS_MAX (65536) supplementary groups


@record
class Process:
    """What proc_pid_status(5) says: *uids* and *gids* are real, effective and saved, *groups* the supplementary ones,
    all as the broker's level counts them; *name* is comm; *ended* a zombie's, or that of a process whose first thread
    has ended."""

    name: str
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    parent: int
    ended: bool


def look(pid: int) -> Process | None:
    """The process, None where it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            text = file.read(LONGEST_STATUS)
    except (FileNotFoundError, ProcessLookupError):
        return None
    rows: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        key, _, value = line.partition(b":\t")
        rows.setdefault(key, value)
    # The kernel writes a newline in the name as "\\n", and a backslash as two.
    name = b"\\".join(part.replace(b"\\n", b"\n") for part in rows[b"Name"].split(b"\\\\"))
    return Process(
        name=name.decode("utf-8", "surrogateescape"),
        uids=tuple(map(int, rows[b"Uid"].split()[:3])),
        gids=tuple(map(int, rows[b"Gid"].split()[:3])),
        groups=tuple(map(int, rows.get(b"Groups", b"").split())),
        parent=int(rows[b"PPid"]),
        ended=rows[b"State"][:1] in (b"Z", b"X", b"x"),
    )


def ended(fd: int) -> bool:
    """Whether the process of a pidfd has ended, reaped or not."""
    return pidfd.wait(fd, 0)


@contextmanager
def namespace_of(peer: Peer, operation: str) -> Iterator[PidNamespace]:
    """The pid namespace that the caller's numbers are of. Raises Refusal."""
    if peer.pid <= 0:
        reason = "the caller is in no pid namespace that the broker sees"
        raise Refusal("NotPossible", f"cannot {operation}: {reason}", "ask the broker of the caller's own level")
    gone = Refusal("NotFound", f"cannot {operation}: the process that connected has ended", "connect anew")
    try:
        found = PidNamespace(peer.pid)
    except PermissionError:
        reason = "the caller has capabilities that the broker has not"
        raise Refusal("NotPossible", f"cannot {operation}: {reason}", "start the broker with all of them") from None
    except OSError:
        raise gone from None
    with found:
        # Only now is it sure that this was /proc of the process that connected.
        if peer.pidfd < 0 or ended(peer.pidfd):
            raise gone
        yield found


def find(tree: Tree, numbers: PidNamespace, peer: Peer, number: int, operation: str) -> tuple[int, int]:
    """The pid, and a pidfd for the caller to close, of the process that *peer* calls *number*; 0 is itself.

    Raises Refusal: NotFound, and BadValue for what is no process's number.
    """
    if not number:
        return peer.pid, os.dup(peer.pidfd)
    missing = Refusal("NotFound", f"cannot {operation}: no such process", "name processes by their ids")
    if not 0 < number <= LARGEST:
        raise Refusal("BadValue", f"cannot {operation}: no process has that number", "name processes by their ids")
    pid = numbers.outside(number, lambda: all_pids(tree))
    try:
        fd = pidfd.open(pid)
    except OSError:
        raise missing from None
    try:
        now = numbers.inside(pid)
        if not now or ended(fd):
            raise missing
        if now != number:
            remedy = f"name process {now}: all its threads go with it"
            raise Refusal("BadValue", f"cannot {operation}: it is a thread", remedy)
    except BaseException:
        os.close(fd)
        raise
    return pid, fd


def all_pids(tree: Tree, top: str = "/") -> Iterator[int]:
    """Every process in *top* and below, as the broker's level counts; again and again where it is in several."""
    for group in tree.view.tree(top):
        yield from tree.view.processes(group)
