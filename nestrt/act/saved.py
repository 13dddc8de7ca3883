"""The groups that a guest made: read from the hierarchies, and made again below another guest root.

Whatever an image says, names are checked before (plan/saved.py), every write goes through a descriptor of the
new guest root, without symlinks and never above it, and the limit group over it holds as for every guest.
"""

from __future__ import annotations

import errno
import os

from nestrt.errors import KernelError
from nestrt.kernel import cgroup
from nestrt.kernel.mount import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, open_in_root
from nestrt.kernel.mountinfo import read_cgroups
from nestrt.plan.saved import Group, Tree, setting_files, shifted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.plan.facts import Hierarchy

    Ranges = tuple[tuple[int, int, int], ...]

SAFE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS


def key(hierarchy: Hierarchy) -> tuple[str, ...]:
    """What tells *hierarchy* from others, as /proc/PID/cgroup has it: () for v2."""
    if hierarchy.version == 2:
        return ()
    return tuple(name for name in hierarchy.options.split(",") if name != "none")


def read_trees(hierarchies: tuple[Hierarchy, ...], root: str, pid: int) -> tuple[Tree, ...]:
    """The groups below *root* in each hierarchy where process *pid* stands at or below it."""
    groups = read_cgroups(str(pid))
    found = []
    for hierarchy in hierarchies:
        own = groups.get(key(hierarchy), "")
        if own != root and not own.startswith(root + "/"):
            continue
        top = hierarchy.path(root)
        paths = sorted(cgroup.below(top), key=lambda path: (path.count("/"), path))
        read = [_read(hierarchy, path, path[len(top) + 1 :]) for path in (top, *paths)]
        found.append(Tree(key(hierarchy), own[len(root) + 1 :], tuple(read)))
    return tuple(found)


def _text(directory: str, name: str) -> str:
    try:
        return cgroup.read(f"{directory}/{name}")
    except OSError:
        return ""


def _read(hierarchy: Hierarchy, directory: str, path: str) -> Group:
    listing = sorted(os.listdir(directory))
    controllers = hierarchy.controllers
    if hierarchy.version == 2:
        controllers = tuple(_text(directory, "cgroup.controllers").split())
    files = []
    owners = []
    if path:
        for file in setting_files(controllers, hierarchy.version, listing):
            value = _text(directory, file.name)
            if value:
                files.append((file.name, value))
    for name in ("", *listing):
        entry = os.lstat(f"{directory}/{name}" if name else directory)
        if (name and os.path.isdir(f"{directory}/{name}")) or not (entry.st_uid or entry.st_gid):
            continue
        owners.append((name, entry.st_uid, entry.st_gid))
    rules = tuple(_text(directory, "devices.list").splitlines()) if path and "devices" in controllers else ()
    return Group(
        path,
        tuple(files),
        tuple(owners),
        tuple(_text(directory, "cgroup.subtree_control").split()) if hierarchy.version == 2 else (),
        rules,
        _text(directory, "cgroup.type") == "threaded",
    )


class Maker:
    """Makes one saved tree below the new guest root *root* of *hierarchy*. *maps* are the saved and the new user
    namespace's (uids, gids). Raises KernelError for a limit that the kernel does not take."""

    def __init__(
        self,
        hierarchy: Hierarchy,
        root: str,
        tree: Tree,
        maps: tuple[tuple[Ranges, Ranges], tuple[Ranges, Ranges]] = (((), ()), ((), ())),
    ) -> None:
        self.hierarchy = hierarchy
        self.tree = tree
        self.root = root
        self.maps = maps
        self.top = os.open(hierarchy.path(root), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.top)

    def _file(self, path: str, name: str, flags: int) -> int:
        return open_in_root(self.top, f"{path}/{name}" if path else name, flags | os.O_CLOEXEC, resolve=SAFE)

    def _get(self, path: str, name: str) -> str | None:
        try:
            fd = self._file(path, name, os.O_RDONLY)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.EINVAL):
                return None
            raise
        try:
            return os.read(fd, 1 << 20).decode("utf-8", "replace").strip()
        except OSError:
            return None
        finally:
            os.close(fd)

    def _put(self, path: str, name: str, value: str) -> None:
        fd = self._file(path, name, os.O_WRONLY)
        try:
            os.write(fd, value.encode())
        except OSError as error:
            place = f"{self.hierarchy.path(self.root)}/{path}/{name}"
            raise KernelError("restore", f"{place} (to {value[:80]!a})", error.errno or 0) from error
        finally:
            os.close(fd)

    def mkdir(self, path: str) -> None:
        """Make the group *path*, whose parent is there; one that is there already is as good."""
        above, _, name = path.rpartition("/")
        parent = self.top if not above else self._file(above, ".", os.O_PATH | os.O_DIRECTORY)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            pass
        finally:
            if parent != self.top:
                os.close(parent)
        if self.hierarchy.version == 1 and "cpuset" in self.hierarchy.controllers:
            # A cpuset without CPUs takes no process.
            for file in ("cpuset.mems", "cpuset.cpus"):
                if not self._get(path, file):
                    self._put(path, file, self._get(above, file) or "")

    def make_first(self) -> None:
        """The group of the first process, with those above it."""
        parts = self.tree.first.split("/") if self.tree.first else []
        for count in range(len(parts)):
            self.mkdir("/".join(parts[: count + 1]))

    def make_groups(self) -> None:
        """All groups, parents first, and nothing more."""
        for group in self.tree.groups:
            if group.path:
                self.mkdir(group.path)
                self._owners(group)

    def make(self) -> None:
        """All groups, parents first, with what was set there. The guest root itself holds no process by now if
        controllers are to be enabled in it."""
        for group in self.tree.groups:
            if group.path:
                self.mkdir(group.path)
                if group.threaded:
                    self._put(group.path, "cgroup.type", "threaded")
                self._settings(group)
            self._enable(group)
            if group.path:
                self._owners(group)
        self._drop()

    def _settings(self, group: Group) -> None:
        allowed = self._allowed(group.path)
        for name, value in group.files:
            if name not in allowed or self._get(group.path, name) == value:
                continue
            lines = value.splitlines() if allowed[name] == "keys" else [value]
            for line in lines:
                if line != "default 100":  # a weight's, which some kernels do not take back
                    self._put(group.path, name, line)
        if group.rules and self._get(group.path, "devices.list") != "\n".join(group.rules):
            self._put(group.path, "devices.deny", "a")
            for rule in group.rules:
                self._put(group.path, "devices.allow", rule)

    def _allowed(self, path: str) -> dict[str, str]:
        """The files of that group that may be written back: name → unit."""
        fd = self._file(path, ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            listing = os.listdir(fd)
        finally:
            os.close(fd)
        controllers = self.hierarchy.controllers
        if self.hierarchy.version == 2:
            controllers = tuple((self._get(path, "cgroup.controllers") or "").split())
        return {file.name: file.unit for file in setting_files(controllers, self.hierarchy.version, listing)}

    def _enable(self, group: Group) -> None:
        if self.hierarchy.version != 2:
            return
        have = (self._get(group.path, "cgroup.subtree_control") or "").split()
        words = [f"+{name}" for name in group.enabled if name not in have]
        words += [f"-{name}" for name in have if name not in group.enabled] if group.path else []
        if words:
            self._put(group.path, "cgroup.subtree_control", " ".join(words))

    def _owners(self, group: Group) -> None:
        (old_uids, old_gids), (new_uids, new_gids) = self.maps
        for name, uid, gid in group.owners:
            to = shifted(uid, old_uids, new_uids), shifted(gid, old_gids, new_gids)
            if None in to:
                continue
            try:
                fd = self._file(group.path, name or ".", os.O_PATH)
            except FileNotFoundError:
                continue
            try:
                os.chown(f"/proc/self/fd/{fd}", to[0] or 0, to[1] or 0)
            finally:
                os.close(fd)

    def _drop(self) -> None:
        """Remove what the plan made and the guest had removed: the first group, as a rule."""
        saved = {group.path for group in self.tree.groups}
        for name in cgroup.children(self.hierarchy.path(self.root)):
            if name not in saved:
                try:
                    os.rmdir(name, dir_fd=self.top)
                except OSError:
                    continue
