"""Guests that come and go, found a little at a time: for what looks for hours, and must not walk all trees each second.

walk() looks at everything at once. A Finder remembers what it has seen and goes on from look to look, each of
which is given its time. Three passes take turns, and each rests when it has come to its end, in proportion to what
it took:

*quick*    the primary hierarchy, not into guests that are known: what was launched at this level
*inside*   the primary hierarchy, all of it: guests of guests, and all groups
*others*   the other hierarchies, below the guests: what is in those only

What has gone is noticed by the pass that comes to its place, and at once by who reads its counters: see gone().
"""

from __future__ import annotations

import os
import time

from nestrt.host.marks import Mark, read_mark
from nestrt.host.walk import (
    DEEPEST,
    LONGEST_PATH,
    View,
    _attributes,
    _from_stamp,
    _look,
    _Place,
    _sort_in,
    _weight,
    at,
    empty_view,
)
from nestrt.probe.facts import primary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nestrt.plan.facts import Hierarchy

STEPS = 16  # directories between two looks at the clock
# A pass that took 1 ms, or a view that did, is made anew after so many.
QUICK, INSIDE, OTHERS, VIEW, FIRST_VIEWS = 20.0, 40.0, 200.0, 20.0, 4.0


class _Turns:
    """Passes of one kind, one after the other. *rounds*: how many have come to their end."""

    def __init__(self, begin: Callable[[], Iterator[None]], rest: float) -> None:
        self.rounds = 0
        self._begin = begin
        self._rest = rest
        self._steps = begin()
        self._spent = 0.0
        self._next = 0.0

    def go(self, seconds: float) -> None:
        """Go on for *seconds*, or to the end of the pass."""
        start = time.monotonic()
        if start < self._next:
            return
        ended = False
        while not ended and time.monotonic() < start + seconds:
            ended = any(next(self._steps, self) is self for _ in range(STEPS))
        now = time.monotonic()
        self._spent += now - start
        if ended:
            self.rounds += 1
            self._next, self._spent = now + self._rest * self._spent, 0.0
            self._steps = self._begin()


class Finder:
    """The guests in *hierarchies*, and with *groups* all their groups, in ``view``; which begins empty.

    With *below*, only what is at and below these paths, and the guests around them.
    """

    def __init__(self, hierarchies: tuple[Hierarchy, ...], groups: bool = False, below: tuple[str, ...] = ()) -> None:
        self.view: View = empty_view(hierarchies)
        self._hierarchies = hierarchies
        self._groups = groups
        self._below = below
        # Groups on the way there, which are looked at, but not into.
        self._way = frozenset(
            path[:end] for path in below for end, letter in enumerate(path) if letter == "/" and end
        ) - frozenset(below)
        self._first = primary(hierarchies)
        self._places: dict[str, _Place] = {}
        self._quick = _Turns(lambda: self._pass(self._first, inside=False), QUICK)
        self._inside = _Turns(lambda: self._pass(self._first, inside=True), INSIDE)
        self._others = _Turns(self._other_passes, OTHERS)
        self._changed = False
        self._next = 0.0
        self._may_read = os.geteuid() == 0

    @property
    def settled(self) -> bool:
        """Whether the primary hierarchy has been seen once, all of it."""
        return self._inside.rounds > 0

    @property
    def complete(self) -> bool:
        """Whether everything has been seen once."""
        return self._inside.rounds > 0 and self._others.rounds > 0

    def look(self, seconds: float) -> bool:
        """Go on for about *seconds*; whether ``view`` is another one now."""
        complete = self.complete
        start = time.monotonic()
        self._quick.go(seconds / 2)
        self._inside.go(seconds - (time.monotonic() - start))
        if self._inside.rounds:
            self._others.go(seconds - (time.monotonic() - start))
        now = time.monotonic()
        if not self._changed or (now < self._next and self.complete == complete):
            return False
        view = empty_view(self._hierarchies)
        _sort_in(view, self._places)
        self.view = view
        self._changed = False
        self._next = now + (VIEW if complete else FIRST_VIEWS) * (time.monotonic() - now)
        return True

    def gone(self, paths: Iterable[str]) -> None:
        """Look whether these groups, of which nothing could be read, are still there."""
        for path in paths:
            self._check(path)

    def _other_passes(self) -> Iterator[None]:
        for hierarchy in self._hierarchies:
            if hierarchy is not self._first:
                yield from self._pass(hierarchy, inside=True)

    def _tops(self) -> list[str]:
        """The outermost guests."""
        found: list[str] = []
        for path in sorted(path for path, place in self._places.items() if place.mark):
            if not found or not path.startswith(found[-1] + "/"):
                found.append(path)
        return found

    def _pass(self, hierarchy: Hierarchy, inside: bool) -> Iterator[None]:
        """One pass over a hierarchy: the first one whole, another below the guests; a step for each directory."""
        tops = [""] if hierarchy is self._first else self._tops()
        if self._below:
            tops = sorted({*self._way, *self._below})
        seen: set[str] = set()
        stack = [(top, False) for top in reversed(tops)]
        while stack:
            path, within = stack.pop()
            yield
            known = self._places.get(path)
            if known and known.mark and not inside:
                seen.add(path)
                continue
            try:
                mark, owner, children = at(hierarchy.mountpoint + path, _look)
            except PermissionError:
                seen.add(path)
                continue
            except OSError:  # ENOENT, ENODEV: it went away
                continue
            if not (mark or self._may_read) and "guest" in children:
                mark = _from_stamp(hierarchy.mountpoint + path + "/guest")
            if mark and self._is_root(path):
                mark = None  # a stamp, which is called as the mark is
            if path and (mark or within or known):
                seen.add(path)
                self._found(path, hierarchy, mark, owner)
            within = within or mark is not None
            if (inside or mark is None) and path.count("/") < DEEPEST and path not in self._way:
                stack += [(f"{path}/{name}", within) for name in children]
        self._missing(hierarchy, seen, inside)

    def _is_root(self, path: str) -> bool:
        above, _, name = path.rpartition("/")
        around = self._places.get(above)
        return around is not None and around.mark is not None and around.mark.root == name

    def _found(self, path: str, hierarchy: Hierarchy, mark: Mark | None, owner: int) -> None:
        place = self._places.get(path)
        if place is None:
            if mark is None and not self._groups:
                return
            self._places[path] = place = _Place([], None, owner, True)
            self._check(path)
        elif hierarchy.name not in place.hierarchies:
            self._check(path)
        if mark is None and place.mark is None:
            return
        if mark is None or place.mark is None or (mark != place.mark and _weight(mark) >= _weight(place.mark)):
            best = self._best(path, place)
            if best != place.mark:
                place.mark, place.owner, self._changed = best, owner, True
            if best is None and not self._groups:
                self._places.pop(path, None)  # _check() may have done it: the group has gone since it was looked at

    def _best(self, path: str, place: _Place) -> Mark | None:
        """The mark that counts: of the primary hierarchy before others, unless theirs say more."""
        best: Mark | None = None
        names = [self._first.name, *(name for name in place.hierarchies if name != self._first.name)]
        for name in names:
            directory = self.view.hierarchy(name).path(path)
            try:
                mark = at(directory, lambda each: read_mark(each, _attributes(each)))
            except OSError:
                continue
            if not (mark or self._may_read):
                mark = _from_stamp(directory + "/guest")
            if mark and (best is None or _weight(mark) > _weight(best)):
                best = mark
            if best and best.whole:
                break
        return best

    def _check(self, path: str) -> None:
        """Ask again which hierarchies have the group *path*."""
        place = self._places.get(path)
        if place is None:
            return
        names = [h.name for h in self._hierarchies if _is_there(h.path(path))]
        if names != place.hierarchies:
            place.hierarchies = names
            self._changed = True
        if not names:
            del self._places[path]

    def _missing(self, hierarchy: Hierarchy, seen: set[str], inside: bool) -> None:
        """What should have been *seen* and was not."""
        outermost = None if inside else set(self._tops())
        for path, place in list(self._places.items()):
            if path in seen or hierarchy.name not in place.hierarchies or (outermost and path not in outermost):
                continue
            self._check(path)


def _is_there(directory: str) -> bool:
    if len(directory) <= LONGEST_PATH:
        return os.path.isdir(directory)
    try:
        return at(directory, lambda each: os.stat(each) is not None)
    except OSError:
        return False
