"""A guest as the broker serves it: its mark, its trees, who owns what in it. Nothing that the kernel does not know.

Trees are opened when somebody asks and closed when nobody has for a while: a thousand idle guests hold a socket each
and nothing else. A group is reached from the descriptor of the guest root, by components, never by a path
from the host's root; no component is ``..`` (client.parse_group()), cgroupfs has no symbolic links, and
openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS says so once more.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, TypeVar

import trio

from nestrt.broker import peer as ids
from nestrt.broker.locks import Changing, refuse_locked
from nestrt.broker.peer import IdMap, Peer
from nestrt.broker.quota import Options, Quota
from nestrt.broker.refusal import Refusal, not_permitted
from nestrt.controllers.table import by_name
from nestrt.guest import client
from nestrt.host.marks import Mark, read_mark
from nestrt.kernel import flock, mount, pidfd
from nestrt.kernel.id_maps import read_id_map
from nestrt.kernel.pidns import PidNamespace, identity
from nestrt.plan.facts import Hierarchy

T = TypeVar("T")

BENEATH = mount.RESOLVE_BENEATH | mount.RESOLVE_NO_SYMLINKS | mount.RESOLVE_NO_MAGICLINKS
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# Who owns a group where its directory belongs to the launching level: the uid there, in digits.
OWNER = ("trusted.nestrt.owner", "user.nestrt.owner")


class Tree:
    """A guest's hierarchies, open: *roots* are descriptors of the guest root, *view* works below them."""

    def __init__(self, hierarchies: tuple[Hierarchy, ...], root: str, stamp: dict[str, Any]) -> None:
        """Raises Refusal where the guest has no groups (any more), OSError: EMFILE where no more may be open."""
        self.roots: dict[str, int] = {}
        self.users = 0
        self.used = 0.0
        try:
            self.view = self._look(hierarchies, root, stamp)
        except BaseException:
            self.close()
            raise

    def _look(self, hierarchies: tuple[Hierarchy, ...], root: str, stamp: dict[str, Any]) -> client.View:
        found = []
        for h in hierarchies:
            try:
                fd = os.open(h.path(root), DIRECTORY)
            except FileNotFoundError:  # any other error would hide a hierarchy that the guest has
                continue
            self.roots[h.name] = fd
            names = tuple(name.replace("blkio", "io") for name in h.controllers)
            place = f"/proc/self/fd/{fd}"
            if h.version == 2:
                names = client.v2_controllers(place)
            options = h.options.removeprefix("none,")  # as /proc/PID/cgroup has them
            found.append(client.Hierarchy(h.version, names, place, root, "", h.name, options))
        if not found:
            raise Refusal("NotFound", f"cannot find the groups of the guest: there is no group {root}", "")
        return client.View(tuple(found), stamp, self.owner())

    def owner(self) -> tuple[int, int]:
        """Who owns the guest root; whoever locks it has it meanwhile."""
        status = os.fstat(next(iter(self.roots.values())))
        return status.st_uid, status.st_gid

    def renumber(self) -> None:
        """Guest CPU i is the i-th that the guest root has, whatever it had before."""
        self.view.__dict__.pop("cpus", None)  # a cached property: looked up again where a number is asked for

    def is_whole(self, group: str) -> bool:
        """Whether *group* is there in every hierarchy that the guest divides."""
        name = f".{group}/"
        return all(os.access(name, os.F_OK, dir_fd=self.roots[h.name]) for h in self.view.divided)

    def open(self, hierarchy: client.Hierarchy, group: str) -> int:
        """A descriptor (O_PATH) of the *group* in *hierarchy*. Raises OSError."""
        return mount.open_in_root(self.roots[hierarchy.name], "." + group, DIRECTORY, resolve=BENEATH)

    def close(self) -> None:
        for fd in self.roots.values():
            os.close(fd)
        self.roots = {}


class Served:
    """One guest. *limit* is its limit group; *mark* None until it is made. What changes several groups or files at once
    takes the *changing* lock."""

    def __init__(self, name: str, limit: str, hierarchies: tuple[Hierarchy, ...], primary: Hierarchy) -> None:
        self.name = name
        self.limit = limit
        self.hierarchies = hierarchies
        self.primary = primary
        self.mark: Mark | None = None
        self.tree: Tree | None = None
        self.changing = Changing()
        # Threads; one guest's slow kernel calls are its own to wait for, and its changes do not wait for what is read.
        self.workers = trio.CapacityLimiter(2)
        self.readers = trio.CapacityLimiter(2)
        self.directory = ""
        self.listener: socket.socket
        self.kept = False  # the listener is the one that the guest has mounted
        self.scope = trio.CancelScope()
        self.accepting = trio.CancelScope()
        self.process = -1  # a pidfd of the first process
        self.announced = time.monotonic()
        self.quota = Quota(Options())
        self.by_user: dict[int, int] = {}  # connections
        self.turns: dict[int, trio.Lock] = {}  # of users, held while a call of one is carried out
        self.unread: dict[bool, int] = {}  # bytes of replies under way, to root (True) and to others
        self.strangers = 0  # connections of processes of others, heard out
        self.ended = False
        self._gids: IdMap | None = None
        self._gids_at = 0.0
        self.connections = 0
        self.requests = 0
        self.refused = 0
        options = primary.options
        self.primary_keys = ("",) if primary.version == 2 else (options.removeprefix("none,"),)

    # -- what it is -------------------------------------------------------------------------

    def _read_mark(self) -> Mark | None:
        path = self.primary.path(self.limit)
        try:
            return read_mark(path, os.listxattr(path))
        except OSError:
            return None

    def learn(self) -> bool:
        """Read the mark, if it is there by now; whether it is."""
        self.mark = self._read_mark()
        if self.mark is not None:
            self.quota.learn(self.mark)
        return self.mark is not None

    def _is_another(self) -> bool:
        """Whether the groups of this name are no longer those of the process that began as this guest."""
        now, known = self._read_mark(), self.mark
        return self.process >= 0 and (not (now and known) or (now.pid, now.start) != (known.pid, known.start))

    @property
    def known(self) -> Mark:
        """The mark. Raises Refusal before the guest has one."""
        if self.mark is None and not self.learn():
            raise Refusal("NotFound", f"cannot find guest {self.name}: it has not been made", "try again")
        assert self.mark is not None
        return self.mark

    @property
    def root(self) -> str:
        """The guest root's path at the broker's level."""
        return f"{self.limit}/{self.known.root}"

    @property
    def ids(self) -> ids.IdMap:
        """The user ids, (inside, outside, count); () where they are the level's own."""
        return self.known.ids

    @property
    def gids(self) -> IdMap | None:
        """The group ids, likewise. The mark has none, the first process's user namespace has; None where that cannot
        be told, or is in one that it has made itself. It is looked at once, or once a second until it can be told. For
        the thread of trio."""
        if not self.ids:
            return ()
        if self._gids is None and time.monotonic() >= self._gids_at and self.alive():
            self._gids_at = time.monotonic() + 1.0
            pid = self.known.pid
            try:
                gids = tuple(read_id_map("gid_map", str(pid)))
                with PidNamespace(pid) as namespace:
                    first = namespace.user_namespace == identity(f"/proc/{pid}/ns/user")
            except (OSError, ValueError):
                return None
            if first and self.alive():
                self._gids = gids
        return self._gids

    def number(self, peer: Peer) -> None:
        """Note *peer*'s pid and gid as the guest counts them: for the audit, once for a connection."""
        gids = self.gids
        gid = ids.inside(gids, peer.gid) if gids is not None else -1
        peer.guest_gid = gid if gid >= 0 else None
        try:
            with PidNamespace(self.known.pid) as namespace:
                pid = namespace.inside(peer.pid) if peer.pid > 0 else 0
        except OSError:
            return
        # Only now is it sure that both were who they are taken for.
        if self.alive() and peer.pidfd >= 0 and not pidfd.wait(peer.pidfd, 0):
            peer.guest_pid = pid or None

    @property
    def root_uid(self) -> int:
        """The guest's root as the broker's level counts it."""
        return ids.outside(self.ids, 0)

    def alive(self) -> bool:
        """Whether its first process is known and runs."""
        return self.process >= 0 and not pidfd.wait(self.process, 0)

    @property
    def renumbered(self) -> bool:
        """Whether the guest counts its CPUs from 0."""
        view = self.known.view
        return isinstance(view, dict) and view.get("cpus") == "renumbered"

    @property
    def writes(self) -> bool:
        """Whether the guest has a view of its own that it can write to."""
        view = self.known.view
        return not isinstance(view, dict) or view.get("mount", "rw") == "rw"

    def may_divide(self, controller: str) -> bool:
        """Whether the policy lets the guest see and divide *controller* (its v2 name)."""
        mark = self.known
        seen = (mark.view or {}).get("controllers", "all")
        if isinstance(seen, list) and controller not in seen:
            return False
        switch = by_name(controller).divided_by.removeprefix("divide_")
        return not switch or (mark.partition or {}).get(switch, True) is not False

    def _divided(self, hierarchy: client.Hierarchy) -> bool:
        """Whether the guest may have groups of its own in *hierarchy*: plan.groups.delegated(), from the mark."""
        if hierarchy.version == 2 or not hierarchy.controllers:
            return True
        if "io" in hierarchy.controllers and (self.known.limits or {}).get("io"):
            return False  # v1 throttles each group by itself: a child group would have the whole once more
        return any(map(self.may_divide, hierarchy.controllers))

    def stamp(self) -> dict[str, Any]:
        """What client.View wants to know, in the host's words."""
        mark = self.known
        return {
            "name": self.name,
            "level": mark.level,
            "max_level": mark.max_level,
            "set_by": "host" if mark.level <= 1 else "the level above",
            "cpus": "renumbered" if self.renumbered else "host",
        }

    # -- its groups -------------------------------------------------------------------------

    def open(self) -> Tree:
        """The tree, opened where it is not. Raises Refusal."""
        if self.ended:
            raise Refusal("NotFound", f"cannot find the groups of guest {self.name}: it has ended", "")
        if self.tree is None:
            self.tree = Tree(self.hierarchies, self.root, self.stamp())
            if self._is_another():
                self.close()
                raise Refusal("NotFound", f"cannot find the groups of guest {self.name}: it has ended", "")
            self.tree.view.divided = tuple(h for h in self.tree.view.divided if self._divided(h))
        else:
            self.tree.renumber()
            if self.tree.view.owner != self.tree.owner():  # it was locked or unlocked
                self.tree.view.owner = owner = self.tree.owner()
                mine = (h for h in self.tree.view.hierarchies if os.stat(h.root).st_uid == owner[0])
                self.tree.view.divided = tuple(filter(self._divided, mine))
        self.tree.used = time.monotonic()
        return self.tree

    def close(self) -> None:
        """The guest has ended, or is served no longer: its groups are not opened again."""
        self.ended = True
        if self.tree is not None and not self.tree.users:
            self.tree.close()
            self.tree = None

    def close_idle(self, before: float) -> None:
        """Close the tree where nobody has used it since *before* (time.monotonic())."""
        if self.tree is not None and not self.tree.users and self.tree.used < before:
            self.tree.close()
            self.tree = None

    def refresh(self) -> None:
        """The host has changed limits: what the tree knows of the guest root is old."""
        if self.tree is not None and not self.tree.users:
            self.tree.close()
            self.tree = None
        elif self.tree is not None:
            self.tree.renumber()

    def now(self, action: Callable[[Tree], T]) -> T:
        """*action* on the tree, at once: for what the kernel answers without waiting."""
        return action(self.open())

    async def later(self, action: Callable[[Tree], T], limiter: trio.CapacityLimiter | None = None) -> T:
        """*action* on the tree in a thread, one of *limiter*'s: for what the kernel may take its time for."""
        tree = self.open()
        tree.users += 1
        try:
            found: T = await trio.to_thread.run_sync(action, tree, limiter=limiter or self.workers)
            return found
        finally:
            tree.users -= 1
            if self.ended and self.tree is tree:
                self.close()

    def group(self, tree: Tree, text: str, operation: str) -> str:
        """The checked name of a group that is there: "web" → "/web". Raises GuestError."""
        return client.existing(tree.view, text, operation)

    # -- whether it is locked -----------------------------------------------------------------

    @contextmanager
    def unlocked(self, operation: str, *groups: str) -> Iterator[None]:
        """While something about the guest's *groups* changes: nobody locks it meanwhile. Whoever wants to waits until
        then, so this is for the change itself, and not for what comes before it.

        Raises Refusal (Locked) where the level above has locked it, or locks it just now, or a guest in it that one of
        the groups belongs to.
        """
        try:
            fd = os.open(self.primary.path(self.limit), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # whatever is to change is not there
            yield
            return
        try:
            try:
                free = not flock.announced(fd)
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            if not free:
                raise Refusal("Locked", f"cannot {operation}: the guest is being locked or unlocked", "try again")
            refuse_locked(fd, operation, self.name)
            self.refuse_locked(operation, *groups)
            yield
        finally:
            os.close(fd)

    def refuse_locked(self, operation: str, *groups: str) -> None:
        """Refuse where a guest in this one that one of the *groups* belongs to is locked. Raises Refusal."""
        for one in {one for group in groups for one in (group, *client.ancestors(group))} - {"/"}:
            refuse_locked(self.primary.path(self.root + one), operation, self.name)

    # -- who may ------------------------------------------------------------------------------

    def owner(self, tree: Tree, group: str) -> int:
        """The uid, at the broker's level, of whoever may divide *group*.

        A group that the broker made for somebody where the view is read-only belongs to the launching level, so
        that nobody writes to it past the broker; its mark says for whom. A group of which somebody owns only
        some of the directories is the guest's root's.
        """
        owners: set[int] = set()
        for hierarchy in tree.view.hierarchies:
            place = hierarchy.dir(group)
            try:
                uid = os.stat(place).st_uid
            except OSError:
                continue
            owners.add(uid)
            # user.* is the word of whoever owns the directory.
            for attribute in OWNER if uid == os.geteuid() else OWNER[:1]:
                try:
                    return int(os.getxattr(place, attribute))
                except (OSError, ValueError):
                    continue
        return owners.pop() if len(owners) == 1 else self.root_uid if owners else -1

    def owns(self, tree: Tree, peer: Peer, group: str) -> bool:
        """Whether *peer* may divide *group*, stop and start what runs in it, and move its processes: the guest's root,
        or the owner of the group or of one above it."""
        if peer.root:
            return True
        if peer.user < 0:
            return False
        # The guest root is its root's alone, whoever its directory belongs to.
        return any(self.owner(tree, one) == peer.uid for one in (group, *client.ancestors(group)) if one != "/")

    def require(self, tree: Tree, peer: Peer, group: str, operation: str) -> None:
        """Refuse where *peer* does not own *group*. Raises Refusal."""
        if not self.owns(tree, peer, group):
            raise not_permitted(f"{operation} group {group}", peer.who())

    def require_above(self, tree: Tree, peer: Peer, group: str, operation: str) -> None:
        """Refuse where *peer* does not own the group above *group*: limits are for the one who gives to set."""
        if group != "/" and not self.owns(tree, peer, client.ancestors(group)[0]):
            raise not_permitted(f"{operation} group {group}", peer.who())
