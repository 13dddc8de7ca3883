"""Boxes placed: where each is, what stands in it where there is room, and what is said of it."""

from __future__ import annotations

import unicodedata

from nestrt.host.picture import FULL, NEARLY, Box, amount, percent, used_of
from nestrt.host.picture_layout import Shares, is_overcommitted, shares
from nestrt.level.units import MAX
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Figures = tuple[tuple[str, str], ...]

# px of a letter in the name (13 px, bold), the figures (12 px) and the note (11 px); of the widest common fonts.
LETTERS = (8.4, 7.4, 6.8)
SIDES = 10  # px that letters keep from the sides of their box, both together
BETWEEN = " · "
TOO_MUCH = "▲"


@record
class Placed:
    """A box and where it is: *x* and *width* are parts of the box around it.

    *classes* are its CSS classes, *fill* is how full it is, from 0 to 1, None where that is not known. In it stand
    *name*, *used*, *given* and *note* ("" for none); *figures* (what, how much) are all there is to say.
    """

    x: float
    width: float
    classes: str
    name: str
    used: str
    given: str
    note: str
    figures: Figures
    fill: float | None
    below: list[Placed]

    def everyone(self) -> Iterator[Placed]:
        """This one and all below it, outer ones first."""
        yield self
        for each in self.below:
            yield from each.everyone()


def heat(fill: float | None) -> str:
    """How full: "ok", "warm" or "hot"."""
    return "ok" if fill is None or fill < NEARLY else "warm" if fill < FULL else "hot"


def place(box: Box, by: str, x: float = 0.0, width: float = 1.0) -> Placed:
    """*box* and all below it, laid out by the resource *by*."""
    inside = shares(box.part.given, [None if each.part.own == MAX else each.part.given for each in box.below])
    below, at = [], 0.0
    for each, part in zip(box.below, inside.widths, strict=True):
        below.append(place(each, by, at, part))
        at += part
    used = used_of(by, box.part)
    figures, note = box.figures, box.note
    if is_overcommitted(inside):
        note = BETWEEN.join([f"{TOO_MUCH} {inside.total:.1f}× given", *([note] if note else [])])
        figures += (("overcommitted", f"limits below it add up to {inside.total:.1f} times as much as it has"),)
    if inside.scaled:
        figures += (("not to scale", "below it boxes are narrower than what they were given, to show all of them"),)
    if box.below and inside.left > 0.0:
        below.append(_nobodys(box, by, at, inside))
    given = amount(by, box.part.given)
    return Placed(x, width, _classes(box, inside), box.name, used, given, note, figures, box.part.fill, below)


def _nobodys(box: Box, by: str, at: float, inside: Shares) -> Placed:
    rest = amount(by, round(box.part.given * inside.left))
    figures = (("not given", f"{rest} of {box.name}: no limit below it allows the use of this"),)
    return Placed(at, inside.left, "free", "not given", "", rest, "", figures, None, [])


def _classes(box: Box, inside: Shares) -> str:
    found = [box.kind]
    if box.part.own == MAX and box.kind != "level":
        found.append("open")
    if is_overcommitted(inside):
        found.append("over")
    if box.claim:
        found.append("claim")
    if box.state == "stopped":
        found.append("off")
    return " ".join(found)


def of_bundle(members: list[Placed]) -> Placed:
    """What is said of several boxes that are drawn as one."""
    fullest = max(members, key=lambda member: member.fill or 0.0)
    first, last = members[0].name, members[-1].name
    figures: Figures = (("first", first), ("last", last))
    if fullest.fill is not None:
        figures += (("fullest", f"{fullest.name}, {percent(fullest.fill)}"),)
    width = sum(member.width for member in members)
    return Placed(members[0].x, width, "bundle", f"{len(members)} more", "", first, f"… {last}", figures, None, [])


def _long(text: str) -> int:
    """How many letters wide *text* is, about: those of East Asia are two."""
    return len(text) if text.isascii() else sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def fitting(texts: list[str], letters: float) -> str:
    """The first of *texts* that has at most so many letters, "" if none has."""
    return next((text for text in texts if _long(text) <= letters), "")


def shortened(name: str, most: int) -> str:
    """*name* in *most* letters: what is left out is in the middle, since many names begin alike."""
    end = (most - 1) // 2
    return f"{name[: most - 1 - end]}…{name[len(name) - end :]}"


def texts(placed: Placed, px: float) -> tuple[str, str, str]:
    """The lines that stand in a box of *px* width, each the longest that fits: name, figures, note."""
    name, figures, note = ((px - SIDES) / letter for letter in LETTERS)
    bundle = placed.classes == "bundle"
    last = f"+{placed.name.partition(' ')[0]}" if bundle else placed.name.rpartition("/")[2]
    first = fitting([placed.name, last], name)
    most = int(name) // (1 + (_long(last) > len(last)))
    if not first and most >= 4 and not bundle:
        first = shortened(last, most)
    if bundle and not first:
        return "", "", ""
    if bundle:
        second = [placed.given]
    elif placed.fill is None:
        second = [f"{placed.used} of {placed.given}" if placed.used else placed.given]
    else:
        part = percent(placed.fill)
        second = [f"{placed.used} of {placed.given}{BETWEEN}{part}", f"{placed.used}{BETWEEN}{part}", part]
    words = placed.note.split(BETWEEN)
    third = [BETWEEN.join(words[:end]) for end in range(len(words), 0, -1)]
    return first, fitting(second, figures), fitting(third, note)
