"""What locking a guest's groups means, as values: who is to own them, what is remembered, and what would not hold.

A locked guest goes on running, and changes nothing about its control groups. Two things can keep it from that:

owner    Where none of its processes is in the user namespace of whoever locks, directories and files are given to an
         owner that they have no number for. CAP_DAC_OVERRIDE, CAP_CHOWN and CAP_FOWNER hold in a user namespace for
         files of which both ids are mapped there (capable_wrt_inode_uidgid(), user_namespaces(7)), so no right of the
         guest's reaches them, through no mount, old or new, and through no file handle.
mounts   Without a user namespace no owner stops the guest's root. Its mounts of cgroupfs are made read-only. A process
         with CAP_SYS_ADMIN, or one that may make a user namespace and so get that for new mounts, undoes it. And
         clone3(2) with CLONE_INTO_CGROUP asks for the group's permission alone, not for the mount's
         (kernel/cgroup/cgroup.c, cgroup_may_write()): on v2 it starts processes in other groups of its own.

On v2 cgroup.max.descendants of the limit group, which no guest reaches, holds against new groups in any case.
"""

from __future__ import annotations

from nestrt import jsontext
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Protocol

    class Task(Protocol):
        """kernel.tasks.Task."""

        @property
        def pid(self) -> int: ...
        @property
        def caps(self) -> int: ...
        @property
        def user(self) -> int: ...
        @property
        def mounts(self) -> int: ...
        @property
        def pids(self) -> int: ...
        @property
        def uids(self) -> tuple[tuple[int, int], ...]: ...
        @property
        def gids(self) -> tuple[tuple[int, int], ...]: ...


VERSION = 1
LARGEST = 1 << 15  # bytes of a record; the kernel takes 64 KiB
HIGHEST_ID = (1 << 32) - 2  # (uid_t) -1 is none
OTHERS_WRITE = 0o022
# Whoever may read a group's files may ask to be told of its events by this one: the kernel makes it writable for all
# (mm/memcontrol-v1.c, CFTYPE_WORLD_WRITABLE), and it changes nothing.
LISTENING = ("cgroup.event_control",)
# Capabilities of the locker's own user namespace that undo a read-only mount, or reach the kernel or its processes.
UNDOING = {21: "CAP_SYS_ADMIN", 16: "CAP_SYS_MODULE", 17: "CAP_SYS_RAWIO"}
CAP_SYS_PTRACE = 19


@record
class Entry:
    """A directory or file of a group: its owner and mode bits."""

    uid: int
    gid: int
    mode: int


@record
class Doc:
    """The lock as it stands on the limit group, where no guest reaches it.

    *state*: "locking" and "unlocking" are for what was killed half-way; "locked". *owner* has the ids that own locked
    groups. *thaw*: the guest was not frozen before. *key* seals the records on the groups below, which their owner
    might write. *descendants*: what cgroup.max.descendants was, "" where it is not changed. *mounts*: those
    made read-only, (mount namespace, mount id, mount point). *by*: who locks, for the guest. *weak*: what does not
    hold.
    """

    state: str
    owner: tuple[int, int]
    key: str
    by: str
    name: str
    thaw: bool = False
    descendants: str = ""
    mounts: tuple[tuple[int, int, str], ...] = ()
    weak: tuple[str, ...] = ()


def format_doc(doc: Doc) -> str:
    """The attribute's text."""
    return jsontext.dumps({"v": VERSION, **doc.__dict__})


def parse_doc(text: str) -> Doc | None:
    """The lock in *text*; None where it is none, or of another version. It was written by this level."""
    try:
        value = jsontext.loads(text)
        owner, mounts = value["owner"], value["mounts"]
        doc = Doc(
            state=str(value["state"]),
            owner=(int(owner[0]), int(owner[1])),
            key=str(value["key"]),
            by=str(value["by"]),
            name=str(value["name"]),
            thaw=value["thaw"] is True,
            descendants=str(value["descendants"]),
            mounts=tuple((int(row[0]), int(row[1]), str(row[2])) for row in mounts),
            weak=tuple(map(str, value["weak"])),
        )
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return doc if value["v"] == VERSION else None


def is_locked(name: str, entry: Entry, owner: tuple[int, int]) -> bool:
    """Whether nobody but *owner* may write the *entry* called *name*."""
    open_to_all = bool(entry.mode & OTHERS_WRITE) and name not in LISTENING
    return (entry.uid, entry.gid) == owner and not open_to_all


def locked_mode(name: str, mode: int) -> int:
    """The mode bits that the entry gets."""
    return mode if name in LISTENING else mode & ~OTHERS_WRITE


def format_record(entries: Mapping[str, Entry], key: str, inode: int) -> str:
    """What one group is to get back: [uid, gid, mode, "names separated by spaces"] for all that are alike.

    "." is the directory. Sealed with the *key*, for this group alone.
    """
    alike: dict[tuple[int, int, int], list[str]] = {}
    for name, entry in sorted(entries.items()):
        alike.setdefault((entry.uid, entry.gid, entry.mode), []).append(name)
    rows = [[*what, " ".join(names)] for what, names in alike.items()]
    text = jsontext.dumps(rows)
    return jsontext.dumps({"v": VERSION, "seal": seal(text, key, inode), "was": text})


def seal(text: str, key: str, inode: int) -> str:
    """Only who knows *key* can say this of the group with that inode number."""
    from hashlib import blake2s  # it imports OpenSSL: only where something is locked

    return blake2s(f"{inode}:{text}".encode(), key=key.encode(), digest_size=16).hexdigest()


def parse_record(text: str, key: str, inode: int) -> dict[str, Entry]:
    """What format_record() has written; {} for anything else."""
    try:
        value = jsontext.loads(text)
        if value["seal"] != seal(value["was"], key, inode):
            return {}
        rows = jsontext.loads(value["was"])
        return {name: Entry(row[0], row[1], row[2]) for row in rows for name in row[3].split(" ")}
    except (ValueError, KeyError, TypeError, IndexError):
        return {}


def is_ours(name: str, now: Entry, was: Entry, owner: tuple[int, int]) -> bool:
    """Whether an entry is as the lock has left it, or given back half-way: with its owner, and not its mode bits."""
    return is_locked(name, now, owner) or now == replace(was, mode=locked_mode(name, was.mode))


def remembered(
    now: Mapping[str, Entry], before: Mapping[str, Entry], owner: tuple[int, int]
) -> tuple[dict[str, Entry], bool]:
    """What a group is to get back, and whether that is more than is written down already (*before*).

    What is written down comes first: what is locked half-way says nothing of how it was.
    """
    found = {name: entry for name, entry in before.items() if name in now}
    new = {name: entry for name, entry in now.items() if name not in before and not is_locked(name, entry, owner)}
    return {**found, **new}, bool(new)


# Who


def _has(ranges: Iterable[tuple[int, int]], number: int) -> bool:
    return any(first <= number < first + count for first, count in ranges)


def _free(tasks: Iterable[Task], kind: str, wanted: int) -> int | None:
    """*wanted*, or else the highest id, that no user namespace of *tasks* maps."""
    ranges = {row for task in tasks for row in getattr(task, kind)}
    candidates = [wanted, HIGHEST_ID, *(first - 1 for first, _ in ranges if first), *(a + n for a, n in ranges)]
    return next((one for one in candidates if one <= HIGHEST_ID and not _has(ranges, one)), None)


def choose_owner(tasks: Iterable[Task], own: tuple[int, int], user: int) -> tuple[int, int] | None:
    """The ids that are to own the groups: the locker's *own*, or some that none of the *tasks* has a number for.

    None where ownership does not stop them: one is in *user*, the locker's user namespace, or all ids are mapped.
    """
    everyone = list(tasks)
    if any(task.user == user for task in everyone):
        return None
    uid, gid = _free(everyone, "uids", own[0]), _free(everyone, "gids", own[1])
    return None if uid is None or gid is None else (uid, gid)


def undoing(tasks: Iterable[Task], mounts: int, pids: int, makes_namespaces: bool, v2: bool) -> list[str]:
    """Why read-only mounts do not stop the *tasks*, a line for each reason; [] where they do.

    *mounts* and *pids* are the locker's own namespaces; *makes_namespaces*: whether this kernel lets anybody make
    user namespaces; *v2*: the guest has groups in v2's tree.
    """
    reasons: dict[str, set[int]] = {}
    for task in tasks:
        for number, name in UNDOING.items():
            if task.caps >> number & 1:
                what = "mount its hierarchies afresh" if number == 21 else "change the kernel itself"
                reasons.setdefault(f"has or can get {name}, and so {what}", set()).add(task.pid)
        if task.caps >> CAP_SYS_PTRACE & 1 and task.pids == pids:
            what = "has CAP_SYS_PTRACE and sees the processes of this level"
            reasons.setdefault(what, set()).add(task.pid)
        if task.mounts == mounts:
            reasons.setdefault("is in this level's own mount namespace", set()).add(task.pid)
        if makes_namespaces:
            what = "may make a user namespace, and mount its hierarchies in it (user.max_user_namespaces is not 0)"
            reasons.setdefault(what, set()).add(task.pid)
        if v2:
            reasons.setdefault("can start others in another v2 group of its own (clone3)", set()).add(task.pid)
    return [f"{name_pids(pids)} {what}" for what, pids in reasons.items()]


def name_pids(pids: Iterable[int]) -> str:
    """ "process 4711", "processes 4711 4712 and 3 more": the first few."""
    numbers = sorted(pids)
    more = f" and {len(numbers) - 4} more" if len(numbers) > 4 else ""
    return f"process{'es' if len(numbers) > 1 else ''} {' '.join(map(str, numbers[:4]))}{more}"


# What the guest is told


TOLD = ("locked", "locked_by", "unlock", "locked_below")


def _says(values: Any, doc: Doc) -> bool:
    return isinstance(values, dict) and values.get("locked_by") == doc.by and values.get("unlock") == doc.name


def tell(values: dict[str, Any], doc: Doc) -> dict[str, Any]:
    """A mark's or stamp's *values* that say the guest is locked. What another lock has said is kept for later."""
    below: Any = values
    while isinstance(below, dict):
        if _says(below, doc):
            return values
        below = below.get("locked_below")
    now = {key: values[key] for key in TOLD if key in values}
    told = {**values, "locked": True, "locked_by": doc.by, "unlock": doc.name}
    return {**told, "locked_below": now} if now.get("locked") is True else told


def untell(values: dict[str, Any], doc: Doc) -> dict[str, Any]:
    """The same without what tell() has added."""
    below = values.get("locked_below")
    if _says(values, doc):
        kept = {key: value for key, value in values.items() if key not in TOLD}
        return {**kept, **below} if isinstance(below, dict) else kept
    if not isinstance(below, dict):
        return values
    left = untell(below, doc)
    kept = {key: value for key, value in values.items() if key != "locked_below"}
    return {**kept, "locked_below": left} if left else kept


def with_state(doc: Doc, state: str, **changes: Any) -> Doc:
    """The lock, further on."""
    return replace(doc, state=state, **changes)
