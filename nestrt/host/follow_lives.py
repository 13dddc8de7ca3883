"""Whether guests live: a guest has started when it has a process, and ended when it has none any more."""

from __future__ import annotations

from nestrt.host.event import Known
from nestrt.host.follow_place import Place
from nestrt.host.processes import pids_in, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.follow_tree import Tree


class Lives:
    """Of the guests in *tree*. *populated* is by limit group: whether it has a process, None if it never had one."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.populated: dict[str, bool | None] = {}

    def look(self, guest: Known, now: float) -> None:
        """Tell whether the guest has a process, where that is news."""
        running, before = self._is_populated(guest), self.populated.get(guest.path)
        if running and not before:
            self._started(guest, now)
        elif before and running is False:
            self.populated[guest.path] = False
            self._tree.report("ended", guest.path, now)

    def stirred(self, place: Place, now: float) -> None:
        """The cgroup.events of a group have changed: a guest that has had no process yet has one, or has had one."""
        guest = self._tree.guests.known.get(place.path)
        if guest is None or place.path not in self.populated or self.populated[place.path] is not None:
            return
        try:
            frozen = "frozen 1" in read_text(place.file("cgroup.events"))
        except OSError:
            frozen = False
        if not frozen or self._is_populated(guest):
            self._started(guest, now)
            self.look(guest, now)

    def _started(self, guest: Known, now: float) -> None:
        self.populated[guest.path] = True
        self._tree.report("started", guest.path, now, detail=guest.started(), source="mark")

    def _is_populated(self, guest: Known) -> bool | None:
        """None where its limit group has gone, or nothing says so."""
        for hierarchy in self._tree.hierarchies:
            try:
                if hierarchy.version == 2:
                    return "populated 1" in read_text(hierarchy.path(guest.path, "cgroup.events"))
            except OSError:
                return None
        groups = [path for path in self._tree.groups if path == guest.path or path.startswith(guest.path + "/")]
        return any(pids_in(self._tree.primary.path(path)) for path in groups)
