"""/proc/PID/mountinfo and /proc/PID/cgroup (proc(5), cgroups(7))."""

from __future__ import annotations

from nestrt.record import record


@record
class Mount:
    """One line of mountinfo: *root* is the part of the filesystem that is mounted at *target*."""

    root: str
    target: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes of space, tab, newline and backslash."""
    if "\\" not in text:
        return text
    for escape, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, char)
    return text


def parse(text: str) -> list[Mount]:
    """Parse mountinfo: ``id parent maj:min root target options [optional…] - type source superoptions``."""
    mounts = []
    for line in text.split("\n"):  # names may hold whatever else ends a line for Python
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(tail) < 3:
            continue
        mounts.append(
            Mount(
                root=_unescape(fields[3]),
                target=_unescape(fields[4]),
                options=tuple(fields[5].split(",")),
                fstype=tail[0],
                source=_unescape(tail[1]),
                super_options=tuple(tail[2].split(",")),
            )
        )
    return mounts


def read_mounts(pid: str = "self") -> list[Mount]:
    """The mounts that process *pid* sees."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return parse(file.read())


def parse_cgroups(text: str) -> dict[tuple[str, ...], str]:
    """Parse /proc/PID/cgroup: controllers (``("name=systemd",)``, ``()`` for v2) → path."""
    groups = {}
    for line in filter(None, text.split("\n")):
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        groups[tuple(names.split(",")) if names else ()] = path
    return groups


def read_cgroups(pid: str | int = "self") -> dict[tuple[str, ...], str]:
    """The groups of process *pid*, as seen from the reader's cgroup namespace."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return parse_cgroups(file.read())
