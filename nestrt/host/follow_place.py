"""One directory of a group that is watched, and what its files say."""

from __future__ import annotations

from nestrt.host import event_sources as sources
from nestrt.host.processes import read_text
from nestrt.plan.facts import Hierarchy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.event_sources import Source

LIMIT_OF_WATCHES = "/proc/sys/fs/inotify/max_user_watches"


class Place:
    """One directory, of the outermost guest *top*. *said* is what its files said last; *held* until when (monotonic s)
    a file is left alone."""

    __slots__ = ("event", "files", "frozen", "held", "hierarchy", "inode", "path", "said", "top", "watches")

    def __init__(self, hierarchy: Hierarchy, path: str, inode: int) -> None:
        self.hierarchy = hierarchy
        self.path = path
        self.inode = inode
        self.watches: dict[str, int] = {}
        self.files: dict[str, Source] = {}
        self.said: dict[str, dict[str, int]] = {}
        self.held: dict[str, float] = {}
        self.event = -1
        self.frozen = False
        self.top = ""

    def file(self, name: str) -> str:
        """The absolute path of one of its files."""
        return self.hierarchy.path(self.path or "/", name)


def most_watches() -> int:
    """How many watches may be taken: half of a user's, since whoever else needs some fails without."""
    try:
        return int(read_text(LIMIT_OF_WATCHES)) // 2
    except (OSError, ValueError):
        return 8192


def read_counts(place: Place, file: str) -> dict[str, int]:
    """What a file says, by field. OSError."""
    found = sources.parse_counts(file, read_text(place.file(file)))
    if file == "freezer.state" and found.get("frozen"):
        found["frozen"] = int(froze_itself(place))  # a group above it may be the one that was frozen
    return found


def froze_itself(place: Place) -> bool:
    """Whether it is the group itself that was told to stop, and none above it."""
    try:
        name = "cgroup.freeze" if place.hierarchy.version == 2 else "freezer.self_freezing"
        return read_text(place.file(name)).strip() == "1"
    except OSError:
        return False
