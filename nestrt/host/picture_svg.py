"""The picture as SVG: boxes placed and drawn, every text fit for XML.

Across, all is in percent, so that one file fills a window of any width and its letters keep their size;
down, it is in px. Each box is an <svg> of its own, which cuts off what does not fit, and has a <title>, which
browsers show under the pointer without any script.
"""

from __future__ import annotations

from nestrt.host.picture_layout import bundles
from nestrt.host.picture_place import BETWEEN, TOO_MUCH, Placed, heat, of_bundle, texts
from nestrt.host.picture_style import DARK, GAP, LEGEND, LIGHT, ROW, rules, themed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 1200  # px, where whoever shows the file does not say how wide
TOP = 112  # px of title and legend
# A part of the whole width below which even a bundle could not be pointed at.
THINNEST = 0.002
# Columns of the bars in a bundle: of more members each shows the fullest of some.
MOST_BARS = 120


def xml(text: str) -> str:
    """*text* as XML's character data or attribute value; of what XML cannot have escape() has left nothing."""
    for character, reference in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#39;")):
        text = text.replace(character, reference)
    return text


def wide(part: float) -> str:
    """A part of a width as a percentage."""
    return f"{100 * part:.4f}".rstrip("0").rstrip(".") + "%"


def title(placed: Placed) -> str:
    """What is shown under the pointer: a line for each figure, so that no name can reorder another one's."""
    return "\n".join([placed.name, *(f"{key}: {value}" for key, value in placed.figures)])


def _texts(placed: Placed, px: float) -> str:
    first, second, note = (xml(line) for line in texts(placed, px))
    parts = []
    if first:
        parts.append(f'<text class="name" x="7" y="18">{first}</text>')
    if second:
        parts.append(f'<text x="7" y="34">{second}</text>')
    if note:
        tag, between, rest = note.partition(BETWEEN) if note.startswith(TOO_MUCH) else ("", "", note)
        tag = tag and f'<tspan class="tag">{tag}</tspan>{between}'
        parts.append(f'<text class="note" x="7" y="49">{tag}{rest}</text>')
    return "".join(parts)


def draw_one(placed: Placed, x: float, y: int, width: float, bars: str = "") -> str:
    """One box; *bars* are those of a bundle."""
    classes = placed.classes.split()
    where = f'x="{wide(x)}" y="{y}" width="{wide(width)}" height="{ROW}"'
    parts = [f'<svg class="{placed.classes}" {where} role="img"><title>{xml(title(placed))}</title>']
    parts.append('<rect class="box" width="100%" height="100%"/>')
    if "open" in classes:
        parts.append('<rect width="100%" height="100%" fill="url(#hatch)"/>')
    if placed.fill:
        fill = min(1.0, placed.fill)
        parts.append(f'<rect class="fill {heat(fill)}" y="{wide(1 - fill)}" width="100%" height="{wide(fill)}"/>')
    if "over" in classes:
        parts.append(f'<rect class="strip" y="{ROW - 3}" width="100%" height="3"/>')
    parts += [bars, '<rect class="edge" width="100%" height="100%"/>', _texts(placed, width * WIDTH), "</svg>"]
    return "".join(parts)


def _bars(fills: list[float]) -> str:
    each = -(-len(fills) // MOST_BARS)
    columns = [min(1.0, max(fills[at : at + each])) for at in range(0, len(fills), each)]
    paths = {"ok": "", "warm": "", "hot": ""}
    for number, fill in enumerate(columns):
        if fill:
            high = f"{100 * fill:.1f}".removesuffix(".0")
            paths[heat(fill)] += f"M{number} 100v-{high}h1v{high}z"
    drawn = "".join(f'<path class="bar {name}" d="{path}"/>' for name, path in paths.items() if path)
    return f'<svg viewBox="0 0 {len(columns)} 100" preserveAspectRatio="none" width="100%" height="100%">{drawn}</svg>'


def draw(placed: Placed, least: float, y: int = 0) -> tuple[str, int]:
    """*placed* and all below it from *y* on, boxes narrower than *least* (a part of the width) bundled; and the
    y below the last row."""
    parts: list[str] = []
    bottom = _draw([placed], 0.0, 1.0, y, least, parts)
    return "".join(parts), bottom


def _draw(siblings: list[Placed], x: float, width: float, y: int, least: float, parts: list[str]) -> int:
    bottom = y
    for first, end in bundles([each.width * width for each in siblings], least):
        members = siblings[first:end]
        left = x + members[0].x * width
        across = max(THINNEST, sum(member.width for member in members) * width)
        bottom = max(bottom, y + ROW + GAP)
        if len(members) > 1:
            bars = _bars([member.fill or 0.0 for member in members])
            parts.append(draw_one(of_bundle(members), left, y, across, bars))
            continue
        parts.append(draw_one(members[0], left, y, across))
        if members[0].below:
            under = y + ROW + GAP
            bottom = max(bottom, _draw(members[0].below, left, members[0].width * width, under, least, parts))
    return bottom


PATTERN = (
    '<defs><pattern id="hatch" patternUnits="userSpaceOnUse" width="9" height="9" patternTransform="rotate(45)">'
    '<path class="hatch" d="M0 0V9"/></pattern></defs>'
)


def sample(kind: str, fill: str) -> str:
    """What a sample of the legend is drawn with, in a box of 26 by 14 px."""
    classes = kind.split()
    parts = ['<rect class="box" width="100%" height="100%"/>']
    if "open" in classes:
        parts.append('<rect width="100%" height="100%" fill="url(#hatch)"/>')
    if fill:
        high = {"ok": 40, "warm": 80, "hot": 95}[fill]
        parts.append(f'<rect class="fill {fill}" y="{100 - high}%" width="100%" height="{high}%"/>')
    if "over" in classes:
        parts.append('<rect class="strip" y="11" width="100%" height="3"/>')
    if "bundle" in classes:
        parts.append(_bars([0.3, 0.6, 0.8, 0.4, 0.95, 0.2]))
    return "".join(parts) + '<rect class="edge" width="100%" height="100%"/>'


def svg(placed: Placed, heading: str, subtitle: str, theme: str, least: float) -> Iterator[str]:
    """A whole SVG file, in pieces: well-formed XML without scripts and without anything from elsewhere."""
    boxes, bottom = draw(placed, least)
    root = "svg:root { width: 100%; min-width: 720px; background: BACK; }\n"
    css = themed(theme, *(rules(palette) + rules(palette, root) for palette in (LIGHT, DARK)))
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" '
    yield f'width="{WIDTH}" height="{TOP + bottom + 16}" role="group" aria-label="{xml(heading)}">\n'
    yield f"<title>{xml(heading)}</title>\n<desc>{xml(subtitle)}</desc>\n<style>{css}</style>{PATTERN}\n"
    yield '<rect class="plane" width="100%" height="100%"/>\n<svg x="1%" width="98%">\n'
    yield f'<text class="head" y="32">{xml(heading)}</text><text class="dim" y="52">{xml(subtitle)}</text>\n'
    for number, (kind, fill, words) in enumerate(LEGEND):
        x, y = (number % 4) * 190, 66 + (number // 4) * 20
        yield f'<svg class="{kind}" x="{x}" y="{y}" width="26" height="14">{sample(kind, fill)}</svg>'
        yield f'<text class="dim" x="{x + 32}" y="{y + 11}">{words}</text>\n'
    yield f'</svg>\n<svg x="1%" y="{TOP}" width="98%" height="{bottom}">\n'
    yield boxes.replace("</svg><svg class", "</svg>\n<svg class")
    yield "\n</svg>\n</svg>\n"
