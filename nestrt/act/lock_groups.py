"""The groups of a guest that is locked or unlocked: owners and mode bits, and what is remembered of them.

Groups are walked by descriptors, from the guest root down: no path of the guest's is followed, and none is too long.
A guest inside that is locked by itself stays so when the one around it is unlocked: its groups' records are handed
over to its own lock, and back.
"""

from __future__ import annotations

import errno
import os

from nestrt import jsontext
from nestrt.kernel import deep
from nestrt.plan import lock as plan
from nestrt.plan.lock import Doc, Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[dict[str, object], Doc], dict[str, object]]

DOC, RECORD = ".lock", ".lock.was"  # after the name of the level's marks
MARKS = ("trusted.nestrt", "user.nestrt", "security.nestrt")
LONGEST_MARK = 16384  # host.marks.LARGEST
GONE = (errno.ENOENT, errno.ENODEV)


def read_doc(directory: str | int, mark: str) -> Doc | None:
    """The lock on a limit group by the level whose marks are called *mark*; None where it has none."""
    try:
        return plan.parse_doc(os.getxattr(directory, mark + DOC).decode())
    except (OSError, ValueError):
        return None


class Groups:
    """All groups that *doc* is for. *mark* is the attribute of this level's marks, *around* the lock of a guest around,
    which the groups belong to when this one is gone. *others*: locks found inside, with another owner."""

    def __init__(self, doc: Doc, mark: str, around: Doc | None = None) -> None:
        self.doc = doc
        self.mark = mark
        self.around = around
        self.others: list[Doc] = []

    def walk(self, top: str, act: Callable[[int, Doc | None], bool]) -> bool:
        """Call *act* with every group from the directory *top* down, and with the lock of the innermost guest inside
        that has one of its own. Whether it has changed anything. Raises OSError."""
        changed, depth = False, 0
        inner: list[tuple[int, Doc]] = []

        def enter(fd: int) -> None:
            nonlocal changed, depth
            depth += 1
            try:
                # Its limit group itself is not the guest's, but of the one around it.
                changed = act(fd, inner[-1][1] if inner else None) or changed
                if depth > 1 and self.mark + DOC in os.listxattr(fd) and (found := read_doc(fd, self.mark)):
                    inner.append((depth, found))
            except OSError as error:
                if error.errno not in GONE:
                    raise

        def leave(fd: int, name: str) -> None:
            nonlocal depth
            if inner and inner[-1][0] == depth:
                inner.pop()
            depth -= 1

        try:
            deep.walk(top, enter, leave)
        except FileNotFoundError:
            pass  # no such hierarchy in its view, or the host has just removed it
        return changed

    def _record(self, fd: int, key: str) -> dict[str, Entry]:
        try:
            return plan.parse_record(os.getxattr(fd, self.mark + RECORD).decode(), key, os.fstat(fd).st_ino)
        except (OSError, ValueError):
            return {}

    def _write(self, fd: int, entries: dict[str, Entry], key: str) -> None:
        text = plan.format_record(entries, key, os.fstat(fd).st_ino)
        os.setxattr(fd, self.mark + RECORD, text.encode())

    def lock(self, fd: int, inner: Doc | None) -> bool:
        """Give one group to the owner; whether anything had to be given."""
        owner = self.doc.owner
        # What says so with "user." may be the word of a guest that does not want to be locked.
        if inner is not None and inner.owner != owner and self.mark.startswith("trusted."):
            self.others += [inner] if inner not in self.others else []
            return False
        now = _entries(fd)
        was, more = plan.remembered(now, self._record(fd, self.doc.key), owner)
        if more:
            self._write(fd, was, self.doc.key)
        changed = False
        for name, entry in now.items():
            if not plan.is_locked(name, entry, owner):
                _give(fd, name, Entry(*owner, plan.locked_mode(name, entry.mode)), mode_first=True)
                changed = True
        return changed

    def unlock(self, fd: int, inner: Doc | None) -> bool:
        """Give one group back, or leave it to the lock that goes on."""
        was, now = self._record(fd, self.doc.key), _entries(fd)
        if heir := inner or self.around:
            if was:
                self._write(fd, was, heir.key)
            return False
        for name in sorted(was, reverse=True):  # "." comes last: from then on the guest may change everything
            if name in now and plan.is_ours(name, now[name], was[name], self.doc.owner):
                _give(fd, name, was[name], mode_first=False)
        if self.mark + RECORD in os.listxattr(fd):
            os.removexattr(fd, self.mark + RECORD)
        return bool(was)

    def tell(self, fd: int, change: Change) -> bool:
        """Rewrite the whole marks and the stamps of one group; one that is no JSON, or too long, stays as it is."""
        for attribute in MARKS:
            try:
                raw = os.getxattr(fd, attribute)
                values = jsontext.loads(raw.decode()) if len(raw) <= LONGEST_MARK else None
                if isinstance(values, dict) and "level" in values and (new := change(values, self.doc)) != values:
                    data = jsontext.dumps(new).encode()
                    if len(data) <= LONGEST_MARK:
                        os.setxattr(fd, attribute, data)
            except (OSError, ValueError):
                continue
        return False


def _entries(fd: int) -> dict[str, Entry]:
    status = os.fstat(fd)
    found = {".": Entry(status.st_uid, status.st_gid, status.st_mode & 0o7777)}
    with os.scandir(fd) as listing:
        for item in listing:
            if not item.is_dir(follow_symlinks=False):
                one = item.stat(follow_symlinks=False)
                found[item.name] = Entry(one.st_uid, one.st_gid, one.st_mode & 0o7777)
    return found


def _give(fd: int, name: str, to: Entry, mode_first: bool) -> None:
    """Owner and mode bits of one file, or "." of the group itself: on no way does anybody get more than before."""
    for step in ("mode", "owner") if mode_first else ("owner", "mode"):
        if step == "owner" and name == ".":
            os.fchown(fd, to.uid, to.gid)
        elif step == "owner":
            os.chown(name, to.uid, to.gid, dir_fd=fd, follow_symlinks=False)
        elif name == ".":
            os.fchmod(fd, to.mode)
        else:
            os.chmod(name, to.mode, dir_fd=fd)
