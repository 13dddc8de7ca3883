"""Colours, classes and texts that the SVG and the HTML form of a picture share.

Colours are told apart by people who see less of them (Okabe and Ito, "Color Universal Design"), and none
stands alone: a fill is also as high as it is full, no limit is also hatched, too much is also said.
"""

from __future__ import annotations

import re

from nestrt.record import record

# px: a row of boxes, and between the rows.
ROW, GAP = 58, 4
FONT = "system-ui, 'DejaVu Sans', 'Liberation Sans', Helvetica, Arial, sans-serif"


@record
class Palette:
    """Colours as #rrggbb. *text* has to be readable on *box*, *ok*, *warm*, *hot* and *level*, *dim* on *back* too."""

    back: str
    text: str
    dim: str
    box: str
    edge: str
    strong: str
    hatch: str
    ok: str
    warm: str
    hot: str
    level: str
    over: str
    focus: str


LIGHT = Palette(
    back="#ffffff", text="#14181d", dim="#47515c", box="#eef1f5", edge="#b9c2cc", strong="#5a6673", hatch="#d3dae2",
    ok="#a3cdf0", warm="#f8cd74", hot="#f59a74", level="#dfe5ec", over="#a3286f", focus="#0b57d0",
)  # fmt: skip
DARK = Palette(
    back="#12161b", text="#f2f5f8", dim="#b4bfca", box="#232a32", edge="#46515d", strong="#8b98a6", hatch="#37414c",
    ok="#1d5c92", warm="#7d570b", hot="#a03d1b", level="#2f3843", over="#e48cbb", focus="#8ab8ff",
)  # fmt: skip

# What a legend has to explain: the classes of a sample box, and the words.
LEGEND = (
    ("guest", "ok", "used, below 75%"),
    ("guest", "warm", "75% and more"),
    ("guest", "hot", "90% and more"),
    ("guest open", "", "no limit of its own"),
    ("guest claim", "", "a claim"),
    ("guest over", "", "more given than there is"),
    ("bundle", "", "several, too thin to draw"),
)

_RULES = """
.text, text { fill: TEXT; font-family: FONT; font-size: 12px; }
.plane { fill: BACK; }
text.head { font-size: 20px; font-weight: 600; }
text.name { font-weight: 600; font-size: 13px; }
text.dim { fill: DIM; }
text.note { font-size: 11px; }
.group text.name { font-weight: 400; }
.box { fill: BOX; }
.level > .box { fill: LEVEL; }
.free > .box { fill: none; }
.free text { fill: DIM; font-weight: 400; }
.hatch { fill: none; stroke: HATCH; stroke-width: 3; }
.fill, .bar { fill: OK; }
.fill.warm, .bar.warm { fill: WARM; }
.fill.hot, .bar.hot { fill: HOT; }
.edge { fill: none; stroke: EDGE; stroke-width: 1; }
.guest > .edge, .level > .edge { stroke: STRONG; stroke-width: 1.5; }
.claim > .edge { stroke-dasharray: 5 3; }
.bundle > .edge { stroke-dasharray: 1 2; stroke: STRONG; }
.free > .edge { stroke-dasharray: 2 4; }
.strip { fill: OVER; }
.tag { fill: OVER; font-weight: 700; }
.off text.name { fill: DIM; font-style: italic; }
"""


def rules(palette: Palette, template: str = _RULES) -> str:
    """CSS rules, by default those of the boxes, in the colours of *palette*: a colour is its name in capitals."""
    text = template
    for name in sorted(palette.FIELDS, key=len, reverse=True):  # type: ignore[attr-defined]
        text = re.sub(rf"\b{name.upper()}\b", getattr(palette, name), text)
    return text.replace("FONT", FONT)


def themed(theme: str, light: str, dark: str) -> str:
    """CSS of a theme: "light", "dark", or with "auto" what the reader's system prefers."""
    if theme == "auto":
        return f"{light}@media (prefers-color-scheme: dark) {{{dark}}}\n"
    return light if theme == "light" else dark


def contrast(one: str, other: str) -> float:
    """How well *one* is read on *other*, from 1 to 21; WCAG 2.2, "contrast ratio"."""
    bright, dull = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dull + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
