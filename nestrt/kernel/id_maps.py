"""A user namespace's ids: /proc/PID/uid_map and gid_map, user_namespaces(7)."""

from __future__ import annotations

import os


def write_id_map(pid: int, kind: str, ranges: tuple[tuple[int, int, int], ...]) -> None:
    """Write /proc/PID/uid_map or gid_map (*kind*): (inside, outside, count) triples.

    Raises OSError: EPERM (no CAP_SETUID over the parent namespace, ids that are
    not mapped there), EINVAL (overlapping or too many lines).
    """
    text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges)
    fd = os.open(f"/proc/{pid}/{kind}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read_id_map(kind: str, pid: str = "self") -> list[tuple[int, int, int]]:
    """The (inside, outside, count) triples of /proc/PID/uid_map or gid_map."""
    with open(f"/proc/{pid}/{kind}", encoding="ascii") as file:
        rows = [line.split() for line in file]
    return [(int(a), int(b), int(c)) for a, b, c in rows]
