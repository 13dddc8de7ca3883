"""How wide the boxes of a picture are: pure functions of numbers, the same rules as in picture_script.py.

A box is as wide as what its group was given is of what the group around it has. Of siblings

    64M   128M  (no limit)   in 512M:   |64M |  128M  |   no limit: what is left    |
    512M  512M               in 512M:   |     512M     |     512M     |  2.0 times as much as there is
    64M   128M               in 512M:   |64M |  128M  |        nobody's             |

Boxes too thin to be told apart are bundled with their neighbours until the bundle is wide enough to have a name.
"""

from __future__ import annotations

from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Siblings without a limit can use what the others leave, and be seen where these leave nothing.
LEAST_LEFT = 0.1
# A bundle is as wide as so many of the thinnest boxes that stand alone: room for "20 more".
BUNDLE = 6
# Rounding of sums, not overcommitment.
ROUNDING = 1e-9


@record
class Shares:
    """The *widths* of siblings, each a part of the width around them, and the *left* part, which nobody has.

    *total* is what the siblings with a limit were given, as a multiple of what the group
    around them has: more than 1.0 is overcommitted. Where *scaled* the limited ones are drawn narrower than that.
    """

    widths: tuple[float, ...]
    left: float
    total: float
    scaled: bool


def shares(capacity: int, given: Sequence[int | None]) -> Shares:
    """How siblings with these limits (None: without one) divide *capacity*. No limit counts as more than *capacity*."""
    count = len(given)
    if not count:
        return Shares((), 1.0, 0.0, False)
    if capacity <= 0:
        return Shares((1.0 / count,) * count, 0.0, 0.0, False)
    limited = [None if amount is None else min(max(amount, 0), capacity) / capacity for amount in given]
    total = sum(part for part in limited if part is not None)
    without = limited.count(None)
    rest = 0.0
    if without:
        # All of them without one: there is nothing to keep it from.
        rest = 1.0 if without == count or total == 0.0 else max(1.0 - total, LEAST_LEFT)
    scale = min(1.0, (1.0 - rest) / total) if total > 0.0 else 1.0
    widths = tuple(rest / without if part is None else part * scale for part in limited)
    left = max(0.0, 1.0 - sum(widths))
    return Shares(widths, left if left > ROUNDING else 0.0, total, total > 0.0 and scale < 1.0 - ROUNDING)


def is_overcommitted(found: Shares) -> bool:
    """Whether the limits add up to more than there is, rounding aside."""
    return found.total > 1.0 + ROUNDING


def bundles(widths: Sequence[float], least: float) -> list[tuple[int, int]]:
    """Siblings of these *widths* as they are drawn: (first, end) each, one box for a range of one, else a bundle.

    Only boxes narrower than *least*, all in a row, are bundled, until the bundle is BUNDLE times as wide.
    """
    found: list[tuple[int, int]] = []
    first, width = -1, 0.0
    for number, each in enumerate(widths):
        if each >= least:
            if first >= 0:
                found.append((first, number))
            found.append((number, number + 1))
            first, width = -1, 0.0
            continue
        if first < 0:
            first = number
        width += each
        if width >= BUNDLE * least:
            found.append((first, number + 1))
            first, width = -1, 0.0
    if first >= 0:
        found.append((first, len(widths)))
    return found
