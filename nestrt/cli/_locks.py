"""What ``nestrt lock`` and ``nestrt unlock`` have in common: from a name to the lock of a guest."""

from __future__ import annotations

import os

from nestrt.act.lock import Lock
from nestrt.act.lock_groups import read_doc
from nestrt.errors import HostError, NotFound
from nestrt.host.marks import TRUSTED, USER, escape
from nestrt.host.sight import find
from nestrt.host.walk import Guest, View, walk
from nestrt.probe.facts import primary, read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from nestrt.plan.lock import Doc

INITIAL = "0 0 4294967295"  # /proc/self/uid_map of the first user namespace


def own_mark() -> str:
    """The attribute that this level's marks have: trusted.* takes CAP_SYS_ADMIN in the first user namespace."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        first = file.read().split() == INITIAL.split()
    return TRUSTED if first and os.geteuid() == 0 else USER


def locks_of(names: list[str], operation: str = "lock") -> Iterator[tuple[Lock, Guest, View]]:
    """The lock of each guest called so. Raises NotFound, InputError; HostError where the caller is not root."""
    if os.geteuid() != 0:
        raise HostError(operation, "guests", "only root of this level can", "run it as root")
    hierarchies = read_hierarchies(make=True)
    # Guests may have very many groups: they are not looked at for a guest of this level.
    views = [walk(hierarchies, inside=False)]
    for name in names:
        try:
            guest = find(views[0], name)
        except NotFound:
            if len(views) == 1:
                views.append(walk(hierarchies))
            guest = find(views[1], name)
        yield (*lock_of(views[-1], guest), views[-1])


def lock_of(view: View, guest: Guest) -> tuple[Lock, Guest]:
    """The lock of *guest*."""
    by = "host" if not view.level else f"level {view.level} ({view.name})"
    root = guest.root if guest.mark.virtualize else guest.path
    first = next(h for h in (primary(view.hierarchies), *view.hierarchies) if h.name in guest.hierarchies)
    return Lock(escape(guest.name), guest.path, root, view.hierarchies, first, own_mark(), by), guest


def locked_around(view: View, guest: Guest) -> Doc | None:
    """This level's lock of the innermost locked guest around *guest*."""
    found = None
    for outer in view.everyone():  # outer ones first
        if guest.path.startswith(outer.path + "/"):
            found = read_doc(primary(view.hierarchies).path(outer.path), own_mark()) or found
    return found
