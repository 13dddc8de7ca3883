"""The guest's view in a config.json: its cgroup mounts, and what lies over them. Pure.

::

    host            type cgroup, as runc and crun mount it           besides
    v1              tmpfs, and every v1 hierarchy below it
    hybrid          the same                                         type cgroup2 at /sys/fs/cgroup/unified
    v2              the v2 tree

    over it         each limit file, bound read-only; what the policy hides, under an empty tmpfs

All of them are mounted in the container's cgroup namespace, and so begin at the guest root.
"""

from __future__ import annotations

from nestrt.controllers.names import expand
from nestrt.controllers.table import canonical, limit_files
from nestrt.level.units import clean
from nestrt.plan.groups import delegated, divisible
from nestrt.plan.request import Request
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nestrt.level.policy import Policy
    from nestrt.oci.model import Mount
    from nestrt.plan.facts import Hierarchy

    Document = dict[str, Any]

CGROUP_ROOT = "/sys/fs/cgroup"
FIXED = ["nosuid", "noexec", "nodev", "relatime"]
ABOVE = ("/", "/sys", "/sys/fs")  # a recursive bind of these brings the host's cgroup mounts along
BINDS = ("bind", "rbind")
EMPTY = ["nosuid", "noexec", "nodev", "mode=755", "size=64k", "ro"]
COVER = ["bind", "ro", "nosuid", "noexec", "nodev"]


@record
class View:
    """What the guest is to see: *root* is the guest root's path, *files* the names of its control files by hierarchy,
    *private* says that ownership locks them. *sources* see Terms; *uncovers*: its root can take mounts off."""

    policy: Policy
    root: str
    hierarchies: tuple[Hierarchy, ...]
    files: dict[str, tuple[str, ...]]
    private: bool
    sources: dict[str, str] = {}
    uncovers: bool = False

    @property
    def request(self) -> Request:
        return Request("", "", (), self.policy)

    def shows(self, h: Hierarchy) -> bool:
        """Whether the policy lets the guest see *h*, a v1 hierarchy; the v2 tree it always sees."""
        wanted = self.policy.controllers
        if h.version == 2 or not h.controllers or wanted is None:
            return True
        return any(canonical(name) in wanted for name in h.controllers)


def place(h: Hierarchy) -> str:
    """Where the guest finds *h*: as the host lays its own out, "" for one that is mounted elsewhere or nowhere."""
    if h.mountpoint == CGROUP_ROOT or h.mountpoint.startswith(CGROUP_ROOT + "/"):
        return h.mountpoint
    return ""


def _of_hosts_cgroups(mount: Mount, source: str) -> bool:
    """Whether *mount* is a view, or a bind of what lies below the host's; *source* is where its source leads."""
    if any(word in BINDS for word in mount.options):
        return source == CGROUP_ROOT or source.startswith(CGROUP_ROOT + "/")
    return mount.type in ("cgroup", "cgroup2")


def _brings(mount: Mount, source: str) -> bool:
    """Whether *mount* is a bind that brings the host's cgroup mounts along."""
    return "rbind" in mount.options and source in ABOVE


def _hidden(target: str, source: str) -> Document:
    """An empty mount over the host's cgroups in a bind of *source* at *target*."""
    place = clean(target + CGROUP_ROOT[len(source.rstrip("/")) :])
    return {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": EMPTY}


def view_mounts(raw: list[Any], mounts: tuple[Mount, ...], view: View) -> list[Any]:
    """The document's mounts *raw*, parsed as *mounts*, with the policy's view in place of every cgroup mount."""
    over = covers(view)
    nothing = _entries(view, {}) if view.policy.mount == "none" else []
    hiding = [
        _hidden(clean(mount.destination), source)
        for mount in mounts
        if _brings(mount, source := clean(view.sources.get(mount.source, mount.source)))
    ]
    kept: list[Any] = []
    base: Document = {}
    at, after_sys = -1, -1
    for entry, mount in zip(raw, mounts, strict=True):
        target = clean(mount.destination if mount.destination.startswith("/") else "/" + mount.destination)
        source = clean(view.sources.get(mount.source, mount.source))
        if _of_hosts_cgroups(mount, source) or entry in nothing:
            if at < 0:
                at = len(kept)
            if not base and target == CGROUP_ROOT and mount.type in ("cgroup", "cgroup2"):
                base = entry
            continue
        if entry in over or entry in hiding:
            continue  # put there before
        above = _brings(mount, source)
        if above and view.uncovers:
            # The launching level's own cgroup mounts are below, and stay out.
            entry = {**entry, "options": ["bind" if word == "rbind" else word for word in mount.options]}
        kept.append(entry)
        if above and not view.uncovers and (cover := _hidden(target, source))["destination"] != CGROUP_ROOT:
            kept.append(cover)
        if target in ("/sys", "/sys/fs"):
            after_sys = len(kept)
    at = max(len(kept) if at < 0 and after_sys < 0 else at, after_sys)
    return [*kept[:at], *_entries(view, base), *over, *kept[at:]]


def _entries(view: View, base: Document) -> list[Document]:
    policy = view.policy
    if policy.mount == "none" or not policy.virtualize:
        return [{"destination": CGROUP_ROOT, "type": "tmpfs", "source": "tmpfs", "options": EMPTY}]
    word = "rw" if policy.mount == "rw" else "ro"
    given = [option for option in base.get("options") or FIXED if option not in ("ro", "rw")]
    options = [*given, *(option for option in FIXED[:3] if option not in given), word]
    found = [{**base, "destination": CGROUP_ROOT, "type": "cgroup", "source": "cgroup", "options": options}]
    if any(h.version == 1 for h in view.hierarchies):
        for h in view.hierarchies:
            if h.version == 2 and place(h):
                entry = {"destination": place(h), "type": "cgroup2", "source": "cgroup2", "options": [*FIXED, word]}
                found.append(entry)
    return found


def covers(view: View) -> list[Document]:
    """Mounts over parts of the view: limit files, read-only; hierarchies that the guest may not divide, or not see.

    They are mounts of the document, not its readonlyPaths and maskedPaths, so that they are there when
    createRuntime hooks run. Where a user namespace gives the guest other ids, ownership locks the files.
    """
    found: list[Document] = []
    if view.policy.mount == "none" or not view.policy.virtualize:
        return found
    for h in view.hierarchies:
        where = place(h)
        if not where:
            continue
        if not view.shows(h):
            found.append({"destination": where, "type": "tmpfs", "source": "tmpfs", "options": EMPTY})
        elif view.policy.mount == "rw" and not delegated(view.request, h):
            found.append(_cover(where, h.path(view.root)))
        elif view.policy.mount == "rw" and not view.private:
            names = divisible(view.request, h) if h.version == 2 else h.controllers
            for name in expand(limit_files(h.version, names), view.files[h.name]):
                found.append(_cover(f"{where}/{name}", h.path(view.root, name)))
    return found


def _cover(target: str, source: str) -> Document:
    return {"destination": target, "type": "bind", "source": source, "options": COVER}
