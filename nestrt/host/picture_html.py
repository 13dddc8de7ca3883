"""The picture as one HTML file: the SVG, the figures of all guests as a table, and a script that zooms.

Without the script the picture and the figures are there too. Nothing is fetched from anywhere: the Content Security
Policy allows this style and this script, by their hashes, and nothing else (CSP Level 3, 2.3.1).
"""

from __future__ import annotations

import base64
import hashlib

from nestrt import jsontext
from nestrt.host.picture import FULL, NEARLY
from nestrt.host.picture_layout import BUNDLE
from nestrt.host.picture_place import BETWEEN, LETTERS, SIDES, TOO_MUCH, Placed
from nestrt.host.picture_script import SCRIPT
from nestrt.host.picture_style import DARK, GAP, LEGEND, LIGHT, ROW, rules, themed
from nestrt.host.picture_svg import MOST_BARS, PATTERN, THINNEST, WIDTH, draw, sample, xml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# Of more guests the table opens with a click, which needs no script: laying it out takes a browser half a second.
SHORT_TABLE = 50
COLUMNS = ("level", "state", "memory", "cpu", "pids", "CPU time", "claim", "overcommitted")

_PAGE = """
* { box-sizing: border-box; }
body { margin: 0; padding: 16px 20px 24px; background: BACK; color: TEXT; font: 14px/1.45 FONT; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 15px; margin: 0 0 8px; overflow-wrap: anywhere; overflow: hidden; }
p { margin: 2px 0 12px; color: DIM; }
main { display: grid; grid-template-columns: minmax(0, 1fr) 300px; gap: 20px; align-items: start; }
#chart { display: block; width: 100%; cursor: default; }
#chart [role=treeitem] { cursor: pointer; } #chart [role=treeitem].free { cursor: default; }
#chart [role=treeitem]:focus { outline: none; }
#chart [role=treeitem]:hover > .edge { stroke: TEXT; stroke-width: 3; stroke-dasharray: none; }
#chart [role=treeitem]:focus > .edge { stroke: FOCUS; stroke-width: 5; stroke-dasharray: none; }
#figures { position: sticky; top: 12px; border: 1px solid EDGE; border-radius: 6px; padding: 12px 14px; }
#figures { background: BACK; }
dl { margin: 0; display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 10px; }
dt { color: DIM; } dd { margin: 0; overflow-wrap: anywhere; overflow: hidden; unicode-bidi: isolate; }
nav { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin: 0 0 10px; min-height: 30px; }
#where { display: contents; }
button, input { font: inherit; color: TEXT; background: BOX; border: 1px solid STRONG; border-radius: 6px; }
button, input { padding: 3px 10px; }
button { cursor: pointer; max-width: 260px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
button[aria-current] { background: BACK; font-weight: 600; cursor: default; }
button:focus-visible, input:focus-visible, summary:focus-visible { outline: 3px solid FOCUS; outline-offset: 1px; }
nav label { margin-left: auto; color: DIM; } #hits { color: DIM; min-width: 60px; }
.legend { list-style: none; margin: 14px 0; padding: 0; display: flex; flex-wrap: wrap; gap: 6px 22px; color: DIM; }
.legend li { display: flex; gap: 7px; align-items: center; }
details { margin-top: 8px; } summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: left; vertical-align: top; padding: 4px 12px 4px 0; border-bottom: 1px solid EDGE; }
td, tbody th { max-width: 320px; overflow: hidden; overflow-wrap: anywhere; unicode-bidi: isolate; }
[hidden] { display: none !important; }
@media (max-width: 1000px) {
  main { grid-template-columns: minmax(0, 1fr); }
  #figures { top: auto; bottom: 0; max-height: 40vh; overflow: auto; }
}
"""


def _style(theme: str) -> str:
    light, dark = (rules(palette) + rules(palette, _PAGE) for palette in (LIGHT, DARK))
    scheme = {"auto": "light dark"}.get(theme, theme)
    return f":root {{ color-scheme: {scheme}; }}\n" + themed(theme, light, dark)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(style: str, script: str) -> str:
    """The Content Security Policy of a page with these two and nothing else."""
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    )


def data(placed: Placed, least: float) -> str:
    """What the script draws from, as JSON that ends no <script> and starts no comment."""
    settings = {
        "row": ROW, "gap": GAP, "least": least, "px": WIDTH, "bundle": BUNDLE, "thinnest": THINNEST, "bars": MOST_BARS,
        "letters": LETTERS, "sides": SIDES, "nearly": NEARLY, "full": FULL, "between": BETWEEN, "mark": TOO_MUCH,
    }  # fmt: skip
    boxes: list[list[Any]] = []
    words: dict[str, int] = {}
    _list(placed, 0, boxes, words)
    text = jsontext.dumps({"settings": settings, "words": list(words), "boxes": boxes})
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _list(placed: Placed, depth: int, boxes: list[list[Any]], words: dict[str, int]) -> None:
    """A row for each box, outer ones first; what is said of it are numbers of *words*, most of which many have."""
    said = [words.setdefault(word, len(words)) for figure in placed.figures for word in figure]
    fill = None if placed.fill is None else round(placed.fill, 5)
    shown = [placed.classes, placed.name, placed.used, placed.given, placed.note]
    boxes.append([depth, *shown, round(placed.x, 9), round(placed.width, 9), fill, said])
    for each in placed.below:
        _list(each, depth + 1, boxes, words)


def _table(placed: Placed) -> Iterator[str]:
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("guest", *COLUMNS))
    yield f"<table><thead><tr>{heads}</tr></thead><tbody>\n"
    for each in placed.everyone():
        if each.classes.split()[0] == "guest":
            figures = dict(each.figures)
            cells = "".join(f"<td>{xml(figures.get(column, ''))}</td>" for column in COLUMNS)
            yield f'<tr><th scope="row">{xml(each.name)}</th>{cells}</tr>\n'
    yield "</tbody></table>\n"


def _legend() -> str:
    items = []
    for kind, fill, words in LEGEND:
        picture = f'<svg class="{kind}" width="26" height="14" aria-hidden="true">{sample(kind, fill)}</svg>'
        items.append(f"<li>{picture}<span>{words}</span></li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def html(placed: Placed, heading: str, subtitle: str, theme: str, least: float) -> Iterator[str]:
    """A whole HTML file, in pieces."""
    style = _style(theme)
    boxes, bottom = draw(placed, least)
    guests = sum(each.classes.split()[0] == "guest" for each in placed.everyone())
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy(style, SCRIPT)}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f'<meta name="referrer" content="no-referrer"><title>{xml(heading)}</title>\n'
    yield f"<style>{style}</style></head>\n<body>\n<header><h1>{xml(heading)}</h1><p>{xml(subtitle)}</p></header>\n"
    yield '<nav class="scripted" aria-label="Zoom" hidden><span id="where"></span>'
    yield '<label for="search">Find</label><input id="search" type="search" size="16" autocomplete="off" '
    yield 'spellcheck="false"><span id="hits" role="status"></span></nav>\n<main><section aria-label="Picture">\n'
    yield f'<svg id="chart" width="100%" height="{bottom}" role="group" aria-label="{xml(heading)}">{PATTERN}\n'
    yield boxes.replace("</svg><svg class", "</svg>\n<svg class")
    yield f"</svg>\n{_legend()}\n"
    yield '<p class="scripted" hidden>Click or Enter zooms in, Escape or a click on the top row out; the arrow keys '
    yield "go from box to box.</p></section>\n"
    yield '<aside id="figures" class="scripted" aria-label="Figures" hidden></aside></main>\n'
    opened = " open" if guests <= SHORT_TABLE else ""
    yield f"<details{opened}><summary>Figures of {guests} guest{'' if guests == 1 else 's'}</summary>"
    yield '<div class="table">\n'
    yield from _table(placed)
    yield f'</div></details>\n<script type="application/json" id="data">{data(placed, least)}</script>\n'
    yield f"<script>{SCRIPT}</script>\n</body></html>\n"
