"""Types for argparse that say in words what they take."""

from __future__ import annotations

import argparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 1 << 31


def between(least: float, most: float, convert: Callable[[str], float] = int) -> Callable[[str], float]:
    """A number in this range; NaN is in none."""

    def number(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:60]!a} is no number from {least:.10g} to {most:.10g}")
        return value

    return number


count = between(0, MOST)


class Named:
    """What *convert* makes of a word; completion offers the *names*."""

    def __init__(self, names: tuple[str, ...], convert: Callable[[str], object] = str) -> None:
        self.names = names
        self.convert = convert

    def __call__(self, text: str) -> object:
        return self.convert(text)
