"""One walk over the cgroup trees: every guest at every level, and every group of each.

The trees are the only store. A directory with a mark is a limit group; a guest
inside another one's limit group is that one's guest. Levels, parents and paths
come from where a group is, never from what a mark claims.

    /nestrt/web                      limit group, marked                     Guest "web", level 1
    /nestrt/web/guest                its guest root                          Group
    /nestrt/web/guest/init           …                                       Group
    /nestrt/web/guest/nestrt/db      limit group, marked by web              Guest "web/db", level 2, a claim
    /nestrt/web/guest/nestrt/db/guest

What it costs (Linux 6.18, CPython 3.11): 10 to 15 µs a group. A group without
children is not listed: st_nlink of a cgroup directory is 2 + the number of its
child groups (fs/kernfs/inode.c, kernfs_refresh_inode), and a listing, with all
the controller files in it, costs more than all the rest. Groups come and go
during a walk: one that is gone is left out.
"""

from __future__ import annotations

import errno
import os

from nestrt.host.marks import STAMPS, TRUSTED, Mark, escape, read_mark, read_stamp, valid_name
from nestrt.host.short import whole_name
from nestrt.plan.facts import Hierarchy
from nestrt.probe.facts import primary
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

# Nothing bounds the depth of a v1 tree. Paths are kept, so memory grows with the square of the depth.
DEEPEST = 256
# Guests in each other; what a guest claims beyond is a group. What is said of one costs what is around it and below.
MOST_LEVELS = 32
# A path of one system call has to fit PATH_MAX (4096).
LONGEST_PATH = 4000


@record
class Group:
    """A group of a guest: *path* below the mountpoint, and the *hierarchies* (names) that have it."""

    path: str
    hierarchies: tuple[str, ...]


@record
class Guest:
    """A guest, as its limit group shows it.

    *name* begins with the names of the guests around it (``web/db``); *path* is
    the limit group, in *hierarchies*. *claim* is true where *mark* is not the word of the level
    that looks: made inside a guest, or by another user. *owner* is the limit group's uid.
    *groups* are the groups below the limit group, guest root first, without those of *guests*, in order of path.
    *unread* are groups below which the walk did not go: more than 256 deep, or not permitted.
    """

    name: str
    path: str
    level: int
    mark: Mark
    claim: bool
    owner: int
    hierarchies: tuple[str, ...]
    groups: list[Group]
    guests: list[Guest]
    unread: list[str]

    @property
    def root(self) -> str:
        """The path of the guest root, whether it is there or not; without virtualization the limit group."""
        return f"{self.path}/{self.mark.root}"

    def everyone(self) -> Iterator[Guest]:
        """This guest and all inside it, outer ones first."""
        yield self
        for guest in self.guests:
            yield from guest.everyone()


@record
class View:
    """What one walk found: the *level* that looks (0: a host), its *name*, its *hierarchies* and its *guests*."""

    level: int
    name: str
    hierarchies: tuple[Hierarchy, ...]
    guests: list[Guest]

    def everyone(self) -> Iterator[Guest]:
        """All guests at all levels, outer ones first."""
        for guest in self.guests:
            yield from guest.everyone()

    def hierarchy(self, name: str) -> Hierarchy:
        """The hierarchy of that name. KeyError."""
        for hierarchy in self.hierarchies:
            if hierarchy.name == name:
                return hierarchy
        raise KeyError(name)


def open_deep(path: str, flags: int) -> int:
    """open(2) of a path of any length, in steps (openat(2)) where it is longer than PATH_MAX. OSError."""
    parent, rest = None, path
    try:
        while len(rest) > LONGEST_PATH:
            cut = rest.rindex("/", 1, LONGEST_PATH)
            deeper = os.open(rest[:cut], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
            if parent is not None:
                os.close(parent)
            parent, rest = deeper, rest[cut + 1 :]
        return os.open(rest, flags | os.O_CLOEXEC, dir_fd=parent)
    finally:
        if parent is not None:
            os.close(parent)


def at(path: str, act: Callable[[str | int], T]) -> T:
    """*act* on the directory *path*: on the path itself if it is short enough, else on a descriptor of it."""
    if len(path) <= LONGEST_PATH:
        return act(path)
    fd = open_deep(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return act(fd)
    finally:
        os.close(fd)


@record
class _Seen:
    """One directory: its path below the mountpoint, its mark, its owner (where marked), and whether it was read."""

    path: str
    mark: Mark | None
    owner: int
    read: bool


def _attributes(directory: str | int) -> list[str]:
    try:
        return os.listxattr(directory)
    except OSError as error:
        # v1 before Linux 5.7 has no user.* attributes; a v1 kernel without any says EOPNOTSUPP.
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _look_at(directory: str | int) -> tuple[Mark | None, int, int]:
    """A directory's mark, owner and number of links. OSError if it is gone."""
    names = _attributes(directory)
    mark = read_mark(directory, names) if names else None
    status = os.stat(directory)
    return mark, status.st_uid, status.st_nlink


def _look(directory: str | int) -> tuple[Mark | None, int, list[str]]:
    """A directory's mark, owner and child groups, the last first. OSError if it is gone."""
    mark, owner, links = _look_at(directory)
    children = []
    if links != 2:
        with os.scandir(directory) as entries:
            children = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        if len(children) > 1:
            children.sort(reverse=True)
    return mark, owner, children


def scan(mountpoint: str, top: str = "", inside: bool = True) -> Iterator[_Seen]:
    """Every directory at and below *top*, a parent before its children; without *inside* none below a marked one."""
    depth = top.count("/")
    may_read = os.geteuid() == 0
    queue = [(top, depth)]
    while queue:
        path, depth = queue.pop()
        try:
            mark, owner, children = at(mountpoint + path, _look)
        except PermissionError:
            yield _Seen(path, None, -1, False)
            continue
        except OSError:  # ENOENT, ENODEV: it went away
            continue
        if not (mark or may_read) and "guest" in children:
            mark = _from_stamp(mountpoint + path + "/guest")
        deep = depth >= DEEPEST and bool(children)
        yield _Seen(path, mark, owner, not deep)
        if not deep and (inside or mark is None):
            queue += [(f"{path}/{name}", depth + 1) for name in children]


def _from_stamp(root: str) -> Mark | None:
    """What the host's stamp on a guest root lets anyone know of the mark, which only root can read."""
    stamp = read_stamp(root)
    name = stamp.get("name")
    if stamp.get("attribute") != STAMPS[0] or not isinstance(name, str) or not valid_name(name):
        return None
    return Mark(STAMPS[0], name)


@record
class _Place:
    """What all hierarchies together say of one path."""

    hierarchies: list[str]
    mark: Mark | None
    owner: int
    read: bool


def _add(places: dict[str, _Place], name: str, seen: _Seen) -> None:
    place = places.get(seen.path)
    if place is None:
        places[seen.path] = _Place([name], seen.mark, seen.owner, seen.read)
        return
    place.hierarchies.append(name)
    place.read = place.read and seen.read
    # The host's word wins over a claim, then a whole mark over a short one, then the hierarchy that is read first.
    # A guest whose view lacks the host's primary hierarchy has its whole marks in another one.
    if seen.mark and (not place.mark or _weight(seen.mark) > _weight(place.mark)):
        place.mark, place.owner = seen.mark, seen.owner


def _weight(mark: Mark) -> tuple[bool, bool]:
    return mark.attribute == TRUSTED, mark.whole


def _collect(
    hierarchies: tuple[Hierarchy, ...], everywhere: bool, inside: bool = True, only: tuple[str, ...] = ()
) -> dict[str, _Place]:
    """All directories at and below the outermost marked ones, by path; with *only*, at and below these paths."""
    first = primary(hierarchies)
    places: dict[str, _Place] = {}
    tops = list(only)
    for hierarchy in (first, *(h for h in hierarchies if h is not first)):
        if (hierarchy is first and not only) or everywhere:
            top = ""
            within = False
            for seen in scan(hierarchy.mountpoint, inside=inside):
                # Parents come first and a subtree in one piece: one prefix says where we are.
                within = within and seen.path.startswith(top)
                if not within and seen.path and (seen.mark or seen.path in places):
                    within, top = True, seen.path + "/"
                    if seen.path not in places:
                        tops.append(seen.path)
                if within:
                    _add(places, hierarchy.name, seen)
        else:
            for path in tops:
                for seen in scan(hierarchy.mountpoint, path, inside):
                    _add(places, hierarchy.name, seen)
    return places


def is_own(place_owner: int, mark: Mark, level: int, host_root: bool) -> bool:
    """Whether a mark outside all guests in sight is the word of the level that looks.

    ``trusted.*`` and ``security.*`` are: nothing but CAP_SYS_ADMIN over the host sets them.
    ``user.*`` is where the looker owns the group and could not have set ``trusted.*``: root of a
    guest, or a user without privileges.
    """
    if mark.attribute in (TRUSTED, STAMPS[0]):
        return True
    return place_owner == os.geteuid() and (level > 0 or not host_root)


def is_host_root() -> bool:
    """Whether this process could set ``trusted.*``: uid 0 in the initial user namespace."""
    if os.geteuid() != 0:
        return False
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return True


def walk(hierarchies: tuple[Hierarchy, ...], everywhere: bool = False, inside: bool = True) -> View:
    """Every guest in sight, at every level.

    The primary hierarchy is walked whole, the others below the guests found there; with
    *everywhere* all are walked whole, which also finds guests of which only
    a part is left; without *inside* the groups of guests are not looked at, which may be very many.
    A group that cannot be read, or goes away, is no error.
    """
    if not hierarchies:
        return View(0, "host", (), [])
    view = empty_view(hierarchies)
    _sort_in(view, _collect(hierarchies, everywhere, inside))
    return view


def walk_to(hierarchies: tuple[Hierarchy, ...], names: Iterable[str]) -> View:
    """The view of walk(), where of the outermost guests only those have groups and guests that *names* are, or are in:
    names of guests ("web", "web/db", "web:/job"), or short ids, or paths of groups. Of the others the limit group is
    looked at.

    Where one of *names* leads into no outermost guest it is the whole view, for whoever says what is like it.
    Raises InputError for a short id of several.
    """
    view = walk(hierarchies, inside=False)
    meant: dict[str, Guest] = {}
    for name in (whole_name(each, view.guests) for each in names):
        found = [
            guest
            for guest in view.guests
            if name in (guest.name, guest.path)
            or name.startswith((guest.name + "/", guest.name + ":", guest.path + "/"))
        ]
        if not found:
            return walk(hierarchies)
        meant.update((guest.path, guest) for guest in found)
    if meant:
        whole = empty_view(hierarchies)
        _sort_in(whole, _collect(hierarchies, False, only=tuple(meant)))
        looked = {guest.path: guest for guest in whole.guests}
        # One that went away meanwhile is left out.
        view.guests[:] = [looked.get(g.path, g) for g in view.guests if g.path in looked or g.path not in meant]
    return view


def along(hierarchies: tuple[Hierarchy, ...], paths: dict[str, str]) -> View:
    """The guests on the way to the groups *paths* (by hierarchy's name), and of their groups those on the way.

    A few directories are looked at, however many there are.
    """
    view = empty_view(hierarchies)
    places: dict[str, _Place] = {}
    first = primary(hierarchies)
    may_read = os.geteuid() == 0
    for hierarchy in (first, *(h for h in hierarchies if h is not first)):
        path = paths.get(hierarchy.name, "")
        ends = [place for place, letter in enumerate(path) if letter == "/" and place] + [len(path)]
        for end in ends[:DEEPEST]:
            try:
                mark, owner, _ = at(hierarchy.mountpoint + path[:end], _look_at)
            except OSError:
                break
            if not (mark or may_read):
                mark = _from_stamp(hierarchy.mountpoint + path[:end] + "/guest")
            if mark or places or path[:end] in places:
                _add(places, hierarchy.name, _Seen(path[:end], mark, owner, True))
    _sort_in(view, places)
    return view


def empty_view(hierarchies: tuple[Hierarchy, ...]) -> View:
    """A view without guests, of the level that looks."""
    stamp = read_stamp(primary(hierarchies).mountpoint)
    level = stamp.get("level")
    level = level if type(level) is int and 0 <= level < 1000 else 0
    name = stamp.get("name")
    return View(level, name if level and isinstance(name, str) else "host", hierarchies, [])


def _sort_in(view: View, places: dict[str, _Place]) -> None:
    """Make guests and their groups of *places*."""
    host_root = is_host_root()
    around: list[Guest] = []
    for path in sorted(places, key=lambda path: path.split("/")):
        place = places[path]
        while around and not path.startswith(around[-1].path + "/"):
            around.pop()
        outer = around[-1] if around else None
        # A guest owns its root's attributes; it cannot make a guest of the root itself.
        if place.mark and len(around) < MOST_LEVELS and not (outer and path == outer.root):
            own = place.mark.name or escape(path.rpartition("/")[2])
            guest = Guest(
                name=f"{outer.name}/{own}" if outer else own,
                path=path,
                level=view.level + len(around) + 1,
                mark=place.mark,
                claim=bool(outer) or not is_own(place.owner, place.mark, view.level, host_root),
                owner=place.owner,
                hierarchies=tuple(place.hierarchies),
                groups=[],
                guests=[],
                unread=[],
            )
            (outer.guests if outer else view.guests).append(guest)
            around.append(guest)
        elif outer:
            outer.groups.append(Group(path, tuple(place.hierarchies)))
        if around and not place.read:
            around[-1].unread.append(path)
