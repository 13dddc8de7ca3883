"""What a guest's mounts show of the control groups, by /proc/PID/mountinfo (proc_pid_mountinfo(5)).

The fourth field of a cgroup mount is the path of its root as the reader's cgroup namespace sees
it (cgroup_show_path(), kernel/cgroup/cgroup.c): read by the launching level it says what the mount begins with,
whatever namespace made it, and whether it is a directory or a cover over one file::

    81 79 0:35 /nestrt/web/guest            /sys/fs/cgroup/pids          rw…  the view
    82 81 0:35 /nestrt/web/guest/pids.max   /sys/fs/cgroup/pids/pids.max ro…  a cover in it

A guest can have a hundred thousand mounts (sysctl fs.mount-max), with names that are its own
to choose: what is read is bounded, and a path is compared by its components.
"""

from __future__ import annotations

from nestrt.host.laws_subject import Key, read
from nestrt.record import record

# Bytes of mountinfo that are read: 100,000 mounts of usual names.
LARGEST = 1 << 24
MOST = 4096  # of cgroup mounts
CGROUP = ("cgroup", "cgroup2")


@record
class CgroupMount:
    """A mount of cgroupfs: its *root* in the hierarchy *key* (as in /proc/PID/cgroup), where it is, whether it is
    *read_only*, whether it was *copied* from the caller's own mounts, and whether another mount *hides* it."""

    key: Key
    root: str
    target: str
    read_only: bool
    copied: bool
    hidden: bool


@record
class _Line:
    number: int
    parent: int
    root: str
    target: str
    read_only: bool
    fstype: str
    super_options: str


def unescape(text: str) -> str:
    """Undo the kernel's octal escapes of space, tab, newline, backslash and, in a root, of "#"."""
    if "\\" not in text:
        return text
    head, *rest = text.split("\\")
    try:
        return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)
    except ValueError:
        return text


def lines(text: str) -> list[_Line]:
    """Every mount of a mountinfo's *text*, in its order."""
    found = []
    for row in text.split("\n"):  # not splitlines(): a name may hold what else it breaks at
        left, dash, right = row.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not dash or len(fields) < 6 or len(tail) < 3:
            continue
        options = tail[2]
        read_only = "ro" in fields[5].split(",") or "ro" in options.split(",")
        found.append(
            _Line(int(fields[0]), int(fields[1]), unescape(fields[3]), unescape(fields[4]), read_only, tail[0], options)
        )
    return found


def key_of(fstype: str, super_options: str, keys: tuple[Key, ...]) -> Key | None:
    """Which of the hierarchies *keys* a mount is of; None for one that has no process of ours."""
    if fstype == "cgroup2":
        return ()
    words = set(super_options.split(","))
    return next((key for key in keys if key and words.issuperset(key)), None)


def below(path: str, top: str) -> bool:
    """Whether *path* is *top* or below it, by components."""
    return path == top or top == "/" or path.startswith(top + "/")


class Hiding:
    """Which mounts no path leads to: another one lies on top, or on a directory above, or what holds them is hidden."""

    def __init__(self, found: list[_Line]) -> None:
        self.known = {line.number: line for line in found}
        self.on: dict[int, set[str]] = {}
        for line in found:
            if line.parent != line.number:
                self.on.setdefault(line.parent, set()).add(line.target)
        self.answers: dict[int, bool] = {}

    def hides(self, line: _Line) -> bool:
        """Whether *line* is hidden."""
        return self._is_covered(line) or self._is_cut_off(line)

    def _is_covered(self, line: _Line) -> bool:
        return line.target in self.on.get(line.number, ())

    def _is_cut_off(self, line: _Line) -> bool:
        """Whether no path leads to where *line* is mounted. Every mount is looked at once, however they are stacked."""
        chain: list[_Line] = []
        at: _Line | None = line
        while at is not None and at.number not in self.answers:
            self.answers[at.number] = False  # a cycle, which the kernel makes none of, ends here
            chain.append(at)
            at = self.known.get(at.parent)
        cut = at is not None and self.answers[at.number]
        for one in reversed(chain):
            cut = cut or self._lies_under(one)
            self.answers[one.number] = cut
        return cut

    def _lies_under(self, line: _Line) -> bool:
        """Whether another mount lies on a directory of the same parent above *line*, or on the parent's own root."""
        parent = self.known.get(line.parent)
        # What is on top of a mount's root is reached where that would be.
        if parent is None or parent is line or line.target == parent.target:
            return False
        beside, at = self.on[parent.number], line.target
        while (at := at.rpartition("/")[0]) and at != parent.target:
            if at in beside:
                return True
        return self._is_covered(parent)


def cgroup_mounts(pid: int, keys: tuple[Key, ...], copies: bool) -> tuple[tuple[CgroupMount, ...], bool]:
    """The cgroup mounts that *pid* sees, and whether all of mountinfo was read.

    *keys* are the hierarchies of its /proc/PID/cgroup. With *copies* those are marked that the caller has too, which a
    new mount namespace begins with. OSError.
    """
    text = read(f"/proc/{pid}/mountinfo", LARGEST)
    complete = len(text) < LARGEST and (not text or text.endswith("\n"))
    if " - cgroup" not in text:
        return (), complete
    found = lines(text)
    relevant = [line for line in found if line.fstype in CGROUP]
    own: set[tuple[str, str, str]] = set()
    if copies:
        mine = lines(read("/proc/self/mountinfo", LARGEST))
        own = {(line.root, line.target, line.super_options) for line in mine if line.fstype in CGROUP}
    complete = complete and len(relevant) <= MOST
    del relevant[MOST:]
    hiding = Hiding(found)
    mounts = []
    for line in relevant:
        key = key_of(line.fstype, line.super_options, keys)
        # One of a hierarchy that has no line in /proc/PID/cgroup is of a controller that has been given up meanwhile.
        mounts.append(
            CgroupMount(
                key=(line.super_options,) if key is None else key,
                root=line.root.removesuffix("//deleted"),
                target=line.target,
                read_only=line.read_only,
                copied=(line.root, line.target, line.super_options) in own,
                hidden=hiding.hides(line),
            )
        )
    return tuple(mounts), complete
