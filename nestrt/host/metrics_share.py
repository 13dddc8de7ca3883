"""Who is shown where there is no room for all: nobody can crowd out others by making more."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")


def share(items: list[T], owners: list[str], depths: list[int], most: int) -> list[T]:
    """At most *most* of *items*, in their order; owners[i] and depths[i] are of items[i].

    Each owner has the same room, and what one does not need goes to the others; of one owner's, those of the
    smallest depth come first.
    """
    if len(items) <= most:
        return items
    by_owner: dict[str, list[int]] = {}
    for number, owner in enumerate(owners):
        by_owner.setdefault(owner, []).append(number)
    kept: list[int] = []
    left, waiting = most, len(by_owner)
    for numbers in sorted(by_owner.values(), key=len):
        part = min(len(numbers), left // waiting)
        kept += sorted(numbers, key=lambda number: (depths[number], number))[:part]
        left -= part
        waiting -= 1
    return [items[number] for number in sorted(kept)]
