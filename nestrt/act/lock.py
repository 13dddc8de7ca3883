"""Lock the groups of a guest from outside, and unlock them: plan/lock.py says what that is and what holds.

limit group     trusted.nestrt.lock: the lock (Doc), of which the primary hierarchy's counts. It comes first and goes
 │              last, so that what was killed half-way is known, and the broker refuses changes from the first moment on
 └ guest root   trusted.nestrt.lock.was: who owned the directory and its files. Written before they change hands
    └ …         the same on every group below, whoever owned it

Inside a user namespace the names begin with "user." instead. The guest is frozen meanwhile: nothing appears, changes or
is opened during the walk. Killed at any point, the guest has what it had, or less, and may be frozen; lock or unlock,
called again, finishes.
"""

from __future__ import annotations

import fcntl
import os
import time

from nestrt.act import lock_mounts
from nestrt.act.lock_groups import DOC, RECORD, Groups, read_doc
from nestrt.act.members import living
from nestrt.errors import HostError, KernelError, NestrtError, StateError
from nestrt.kernel import cgroup, flock, freezer, tasks
from nestrt.plan import lock as plan
from nestrt.plan.lock import Doc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.act.lock_groups import Change
    from nestrt.plan.facts import Hierarchy

CAP = "cgroup.max.descendants"
# A write is over in a moment, and so is a message with a descriptor: looked at once more before it is refused.
LOOKS, PAUSE = 5, 0.05
PASSES = 16
PATIENCE = 20.0  # seconds: one change by the broker may end processes, which it gives 10 s
MOST_SHOWN = 4
# Opened for writing to be told of something: cgroup-v2.rst, psi.rst. They change nothing.
TRIGGERS = ("memory.pressure", "cpu.pressure", "io.pressure", "irq.pressure", *plan.LISTENING)
NO_NAMESPACES = ("/proc/sys/user/max_user_namespaces", "/proc/sys/kernel/unprivileged_userns_clone")


class Lock:
    """The lock of one guest. *limit* is its limit group, *root* its guest root (the same where it has none of its own),
    *primary* the hierarchy of whole marks, *mark* the attribute of this level's marks, *by* who locks: "host"."""

    def __init__(
        self,
        name: str,
        limit: str,
        root: str,
        hierarchies: tuple[Hierarchy, ...],
        primary: Hierarchy,
        mark: str,
        by: str,
    ) -> None:
        self.name = name
        self.what = f"guest {name}"
        self.limit = limit
        self.root = root
        self.hierarchies = tuple(h for h in hierarchies if os.path.isdir(h.path(limit)))
        self.primary = primary
        self.mark = mark
        self.by = by
        self.held = -1
        self.doc: Doc | None = None
        self.devices = frozenset(os.stat(h.mountpoint).st_dev for h in self.hierarchies)

    def __enter__(self) -> Lock:
        """Nobody else locks or unlocks it meanwhile. Raises StateError, KernelError."""
        try:
            self.held = os.open(self.primary.path(self.limit), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            flock.announce(self.held)
            self._take()
        except OSError as error:
            remedy = "nestrt ls shows all guests"
            raise KernelError("open the groups of", self.what, error.errno or 0, remedy) from error
        self.doc = read_doc(self.held, self.mark)
        return self

    def _take(self) -> None:
        """The broker keeps it from us for the time of the changes under way, and begins none (served.py)."""
        if not flock.take(self.held, PATIENCE):
            os.close(self.held)
            reason = "another nestrt locks, unlocks or changes it just now"
            raise StateError("lock", self.what, reason, "try again")

    def __exit__(self, *_: object) -> None:
        # A helper that could not be ended (lock_mounts) has the descriptor too.
        flock.announce(self.held, False)
        fcntl.flock(self.held, fcntl.LOCK_UN)
        os.close(self.held)

    # -- the lock itself

    def _write_doc(self, doc: Doc) -> None:
        try:
            os.setxattr(self.held, self.mark + DOC, plan.format_doc(doc).encode())
        except OSError as error:
            remedy = "the level that owns its limit group can: root of the host, or of the guest around it"
            raise KernelError("lock", self.what, error.errno or 0, remedy) from error
        self.doc = doc

    def _sign(self) -> None:
        """Have the limit group say so in the other hierarchies too: for a walk through a guest around it."""
        assert self.doc is not None
        for h in self.hierarchies:
            if h is not self.primary:
                os.setxattr(h.path(self.limit), self.mark + DOC, plan.format_doc(self.doc).encode())

    def _unsign(self) -> None:
        for h in self.hierarchies:
            if h is not self.primary and self.mark + DOC in os.listxattr(h.path(self.limit)):
                os.removexattr(h.path(self.limit), self.mark + DOC)
        os.removexattr(self.held, self.mark + DOC)
        self.doc = None

    def lock(self, weak: bool = False) -> Doc:
        """Lock. With *weak* also where that does not hold against everything: see Doc.weak.

        Raises StateError where nothing runs, or descriptors are open; HostError where it would not hold. Then nothing
        has changed.
        """
        before = self.doc
        pids = living(self.hierarchies, self.limit)
        if not pids:
            raise StateError("lock", self.what, "nothing of it runs", "lock it when it has started")
        thaw = (before is not None and before.thaw) or not self._frozen()
        begun = before or Doc("locking", (os.geteuid(), os.getegid()), os.urandom(16).hex(), self.by, self.name)
        self._write_doc(plan.with_state(begun, "locking", thaw=thaw, name=self.name))
        try:
            self._sign()
            self._freeze()
            found = self._judge(weak, thaw)
            self._close(found)
        except BaseException as error:
            if before is None:
                self._open_up()
            elif thaw:
                self._thaw()
            if isinstance(error, OSError):
                raise self._refused("lock", error) from error
            raise
        assert self.doc is not None
        if thaw:
            self._thaw()
        self._write_doc(plan.with_state(self.doc, "locked", thaw=False))
        return self.doc

    def unlock(self, around: Doc | None = None) -> None:
        """Give everything back as it was. Raises StateError where it is not locked by this level.

        *around*: the lock of a guest around it, whose its groups stay then.
        """
        if self.doc is None:
            raise StateError("unlock", self.what, "it is not locked", "nestrt ls shows which guests are")
        try:
            self._write_doc(plan.with_state(self.doc, "unlocking"))
            self._open_up(around)
        except OSError as error:
            raise self._refused("unlock", error) from error

    def _refused(self, operation: str, error: OSError) -> NestrtError:
        remedy = "a level above may have locked it too: only that one can give it back"
        return KernelError(operation, f"{self.what} ({error.filename or self.limit})", error.errno or 0, remedy)

    # -- stopping it meanwhile

    def _freezers(self) -> list[tuple[str, int]]:
        v1 = [(h.path(self.limit), 1) for h in self.hierarchies if h.version == 1 and "freezer" in h.controllers]
        v2 = [(h.path(self.limit), 2) for h in self.hierarchies if h.version == 2]
        return [(place, version) for place, version in v1 + v2 if _is_there(place, version)]

    def _frozen(self) -> bool:
        return any(freezer.asked(place, version) for place, version in self._freezers())

    def _freeze(self) -> None:
        if self._frozen():
            return
        places = self._freezers()
        if not places:
            raise HostError("lock", self.what, "it has no group that could be frozen", "mount the v2 tree")
        if not freezer.freeze(*places[0]):
            remedy = "see what they wait for: cat /proc/PID/stack"
            raise StateError("lock", self.what, "some of its processes do not stop", remedy)

    def _thaw(self) -> None:
        for place, version in self._freezers():
            if freezer.asked(place, version):
                freezer.thaw(place, version)

    # -- what holds

    def _judge(self, weak: bool, thaw: bool) -> Doc:
        """Who is to own the groups, and what would not hold: refused where that is anything, unless *weak*."""
        assert self.doc is not None
        reasons = self._writers(thaw)
        if reasons and not weak:
            remedy = "end them, or have them close it; with --weak what is open stays open"
            raise StateError("lock", self.what, "; ".join(reasons), remedy)
        pids = living(self.hierarchies, self.limit)
        if 0 in pids:
            reasons.append("it has processes that this level cannot see")
            if not weak:
                remedy = "lock it from a level that sees them; lock --weak does what can be done"
                raise HostError("lock", self.what, reasons[-1], remedy)
        found = tasks.read_tasks(pid for pid in pids if pid)
        own = self.doc.owner
        owner = plan.choose_owner(found, own, os.stat("/proc/self/ns/user").st_ino)
        mounts = self.doc.mounts
        if owner is None:
            mounts, more = self._close_mounts(found)
            mount, pid = (os.stat(f"/proc/self/ns/{name}").st_ino for name in ("mnt", "pid"))
            v2 = any(h.version == 2 for h in self.hierarchies)
            why = [*plan.undoing(found, mount, pid, _makes_namespaces(), v2), *more]
            if why and not weak:
                remedy = "start it with a user namespace of its own; lock --weak does what can be done"
                raise HostError("lock", self.what, f"it would not hold: {why[0]}", remedy)
            reasons += why
        elif own != owner and self._records_stand():
            owner = own  # records say what to give back, whoever has it now
        return plan.with_state(self.doc, "locking", owner=owner or own, mounts=mounts, weak=tuple(reasons))

    def _records_stand(self) -> bool:
        path = self.primary.path(self.root)
        return self.mark + RECORD in os.listxattr(path)

    def _writers(self, thaw: bool) -> list[str]:
        """Open descriptors by which it could still write, a line for each process and file; [] where there are none."""
        for look in range(LOOKS):
            found = tasks.writers(living(self.hierarchies, self.limit), self.devices)
            found = [held for held in found if held.path.rpartition("/")[2] not in TRIGGERS]
            if not found or not thaw:
                break
            if look < LOOKS - 1:
                self._thaw()
                time.sleep(PAUSE)
                self._freeze()
        lines = [f"process {held.pid} can write by descriptor {held.number}: {held.path}" for held in found]
        return lines[:MOST_SHOWN] + ([f"and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else [])

    # -- mounts, where no user namespace is

    def _close_mounts(self, found: list[tasks.Task]) -> tuple[tuple[lock_mounts.Row, ...], list[str]]:
        assert self.doc is not None
        own = os.stat("/proc/self/ns/mnt").st_ino
        rows, failed = list(self.doc.mounts), []
        for namespace, pid in {task.mounts: task.pid for task in found}.items():
            if namespace != own:
                done, wrong = lock_mounts.change(pid, True)
                rows += [row for row in done if row not in rows]
                self._write_doc(plan.with_state(self.doc, "locking", mounts=tuple(rows)))
                failed += [f"mount {line}" for line in wrong]
        inner = [task.pid for task in found if task.mounts != own]
        for held in tasks.writable_places(inner, self.devices):
            failed.append(f"process {held.pid} holds {held.path} by a mount that can be written")
        return tuple(rows), failed

    def _open_mounts(self) -> None:
        assert self.doc is not None
        pending = set(self.doc.mounts)
        for pid in living(self.hierarchies, self.limit) if pending else ():
            try:
                namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
                only = tuple(row for row in pending if row[0] == namespace)
                if only:
                    lock_mounts.change(pid, False, only)
                    pending.difference_update(only)
            except OSError:
                continue  # it has ended

    # -- groups

    def _close(self, doc: Doc) -> None:
        """Give all to the owner, until a walk finds nothing more to give."""
        self._write_doc(doc)
        for h in self.hierarchies:
            if h.version == 2:
                self._cap(h)
        groups = Groups(doc, self.mark)
        for _ in range(PASSES):
            changed = [groups.walk(h.path(self.root), groups.lock) for h in self.hierarchies]
            if not any(changed):
                break
        else:
            raise StateError("lock", self.what, "groups appear in it again and again", "see who makes them")
        if groups.others:
            inner = " ".join(sorted(other.name for other in groups.others))
            raise StateError("lock", self.what, f"{inner} in it is locked by other ids", f"nestrt unlock {inner}")
        self._tell(groups, plan.tell)

    def _cap(self, h: Hierarchy) -> None:
        """No group more than there are. What the file said before is in the lock by then."""
        assert self.doc is not None
        path = h.path(self.limit, CAP)
        if not self.doc.descendants:
            self._write_doc(plan.with_state(self.doc, "locking", descendants=cgroup.read(path)))
        rows = dict(line.split() for line in cgroup.read(h.path(self.limit, "cgroup.stat")).splitlines())
        cgroup.write(path, rows["nr_descendants"])

    def _uncap(self, h: Hierarchy) -> None:
        assert self.doc is not None
        if self.doc.descendants:
            cgroup.write(h.path(self.limit, CAP), self.doc.descendants)

    def _open_up(self, around: Doc | None = None) -> None:
        """The way back. Raises OSError."""
        assert self.doc is not None
        groups = Groups(self.doc, self.mark, around)
        self._open_mounts()
        self._tell(groups, plan.untell)
        for h in self.hierarchies:
            groups.walk(h.path(self.root), groups.unlock)
            if h.version == 2:
                self._uncap(h)
        if self.doc.thaw:
            self._thaw()
        self._unsign()

    def _tell(self, groups: Groups, change: Change) -> None:
        """Have the marks and stamps of the guest, and of the guests in it, say how it is."""
        for h in self.hierarchies:
            fd = os.open(h.path(self.limit), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                groups.tell(fd, change)
            finally:
                os.close(fd)
            groups.walk(h.path(self.root), lambda fd, _: groups.tell(fd, change))


def _is_there(place: str, version: int) -> bool:
    try:
        freezer.asked(place, version)
    except OSError:
        return False
    return True


def _makes_namespaces() -> bool:
    """Whether this kernel lets a process without CAP_SYS_ADMIN make user namespaces: user_namespaces(7); Debian's own
    switch."""
    for path in NO_NAMESPACES:
        try:
            if cgroup.read(path) == "0":
                return False
        except OSError:
            continue
    return os.path.exists("/proc/self/ns/user")
