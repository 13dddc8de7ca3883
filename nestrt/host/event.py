"""Events: what happens to guests and their groups, as the host tells it.

An event as JSON has always these fields; what is not known, or does not apply, is null::

    {"time": 1763770000.123456,     seconds since 1970
     "kind": "oom_kill",            see KINDS
     "name": "web/db", "level": 2,  the guest; null with kind "lost" where it may have been any
     "claim": true,                 the guest is one by the word of another guest, or of another user
     "path": "/nestrt/web/guest/nestrt/db/guest/job",   the group as this level names it
     "group": "/job",               as the guest does; null where it cannot see it: its limit group
     "key": "memory.max",           the limit that was hit, or the resource that there is pressure on
     "count": 1,                    how often, since the event of this kind before this one
     "total": 17,                   how often since the group is there
     "detail": "…",                 a text for people; of "started" the command
     "task": "sh", "pid": 4711, "uid": 100000,          who was killed
     "binds": "/nestrt/web",        the group that had no memory left, for which he was killed; null: the machine
     "source": "groups"}            who says so: groups (their files), kernel (its log), mark, audit, nestrt
"""

from __future__ import annotations

from nestrt.host.marks import TRUSTED, Mark, escape
from nestrt.host.walk import is_own
from nestrt.plan.request import PARENT
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Kind: what it means.
KINDS = {
    "started": "a guest's first process runs",
    "ended": "its last process, or its limit group, has gone",
    "created": "a group was made",
    "removed": "a group was removed",
    "oom": "a group had no memory left at its limit",
    "oom_kill": "a process was killed, since there was no memory left",
    "limit": "a limit was hit: memory.max, memory.swap.max or pids.max",
    "high": "memory.high was exceeded",
    "frozen": "a group was frozen",
    "thawed": "it was thawed",
    "pressure": "processes of a guest had to wait for memory, I/O or CPUs",
    "change": "a guest had the broker change something, or root a command: the audit",
    "refused": "that was refused: the audit",
    "lost": "there were more events than could be followed",
}
# The audit has a command of its own.
USUAL = frozenset(KINDS) - {"change", "refused"}

MOST_ENDED = 256  # guests that have gone and are still known by their place
LONGEST_DETAIL = 1000


@record
class Event:
    """See above. *name* and *path* are "" where they are null."""

    time: float
    kind: str
    name: str = ""
    level: int = -1
    claim: bool = False
    path: str = ""
    group: str | None = None
    key: str | None = None
    count: int | None = None
    total: int | None = None
    detail: str | None = None
    task: str | None = None
    pid: int | None = None
    uid: int | None = None
    binds: str | None = None
    source: str = "groups"

    def row(self) -> dict[str, Any]:
        """The JSON object above."""
        row = {name: getattr(self, name) for name in FIELDS}
        row["time"] = round(self.time, 6)
        row["name"], row["path"] = self.name or None, self.path or None
        row["level"] = self.level if self.level >= 0 else None
        return row


FIELDS = (
    "time", "kind", "name", "level", "claim", "path", "group", "key", "count", "total", "detail", "task", "pid", "uid",
    "binds", "source",
)  # fmt: skip


@record
class Known:
    """A guest: *path* is its limit group, *root* its guest root."""

    name: str
    path: str
    root: str
    level: int
    claim: bool
    mark: Mark

    def started(self) -> str | None:
        """What made it, and its command: the detail of its start."""
        words = ([f"by {self.mark.made_by}:"] if self.mark.made_by else []) + list(self.mark.command)
        return " ".join(words)[:LONGEST_DETAIL] or None


def from_row(row: dict[str, Any]) -> Event | None:
    """The event of a JSON object that row() made; None of any other."""
    found: dict[str, Any] = {}
    for field, types in _TYPES.items():
        value = row.get(field)
        if value is None:
            continue
        if type(value) not in types:
            return None
        found[field] = value
    return Event(**found) if "time" in found and found.get("kind") in KINDS else None


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(FIELDS, (str,)),
    **dict.fromkeys(("level", "count", "total", "pid", "uid"), (int,)),
    "time": (float, int),
    "claim": (bool,),
}


class Guests:
    """The guests of this level and below, by the place of their limit groups."""

    def __init__(self, level: int, host_root: bool) -> None:
        self.level = level
        self.host_root = host_root
        self.known: dict[str, Known] = {}
        self._ended: dict[str, Known] = {}

    def add(self, path: str, mark: Mark, owner: int) -> Known:
        """The guest whose limit group is *path*, as its *mark* and the *owner* (uid) of the group say."""
        outer = self.around(path)
        own = mark.name or escape(path.rpartition("/")[2])
        found = Known(
            name=f"{outer.name}/{own}" if outer else own,
            path=path,
            root=f"{path}/{mark.root}",
            level=(outer.level if outer else self.level) + 1,
            claim=outer is not None or not is_own(owner, mark, self.level, self.host_root),
            mark=mark,
        )
        self.known[path] = found
        self._ended.pop(path, None)
        return found

    def remove(self, path: str) -> None:
        """A limit group has gone. What is told of it late is still told with its name."""
        found = self.known.pop(path, None)
        if found:
            self._ended[path] = found
            if len(self._ended) > MOST_ENDED:
                del self._ended[next(iter(self._ended))]

    def around(self, path: str) -> Known | None:
        """The innermost guest in whose limit group, or below, the group *path* is; not the one whose it is."""
        return self.of(path.rpartition("/")[0])

    def of(self, path: str) -> Known | None:
        """The innermost guest to which the group *path* belongs."""
        while path:
            if found := self.known.get(path):
                # A guest owns the attributes of its root, and does not make a guest of that.
                return found
            path = path.rpartition("/")[0]
        return None

    def top(self, path: str) -> str:
        """The limit group of the outermost guest to which *path* belongs, "" if to none."""
        at = 0
        while (at := path.find("/", at + 1)) > 0:
            if path[:at] in self.known:
                return path[:at]
        return path if path in self.known else ""

    def gone(self, path: str) -> Known | None:
        """A guest that has ended, or one whose *path* says that it was one, for what the kernel still knows of it."""
        above = path
        while above:
            if above in self._ended:
                return self._ended[above]
            above = above.rpartition("/")[0]
        return by_place(path, self.level)

    def event(self, kind: str, path: str, guest: Known | None, time: float, **more: Any) -> Event:
        """An event of the group *path*, which belongs to *guest*."""
        if guest is None:
            return Event(time, kind, path=path, **more)
        return Event(time, kind, guest.name, guest.level, guest.claim, path, group_of(guest, path), **more)


def group_of(guest: Known, path: str) -> str | None:
    """The group *path* as the guest names it; None where it cannot see it."""
    if path == guest.root:
        return "/"
    return path.removeprefix(guest.root) if path.startswith(guest.root + "/") else None


def by_place(path: str, level: int) -> Known | None:
    """The guest to which a group belonged that is no more there: limit groups have a child ``guest``, by which
    "/nestrt/web/guest/nestrt/db/guest/x" was a group of "web/db".

    Only the host makes groups in PARENT. Anywhere else it may have been a user who has groups of his own, so there the
    place is all that it is called by, and it is a claim.
    """
    parts = path.split("/")
    ends = [at for at in range(2, len(parts)) if parts[at] == "guest"]
    if not ends:
        return None
    limit = "/".join(parts[: ends[-1]])
    own = ends[0] == 3 and "/" + parts[1] == PARENT
    names = [escape(parts[2] if own else "/".join(parts[: ends[0]])), *(escape(parts[at - 1]) for at in ends[1:])]
    mark = Mark(TRUSTED, names[-1])
    return Known("/".join(names), limit, limit + "/guest", level + len(ends), len(ends) > 1 or not own, mark)
