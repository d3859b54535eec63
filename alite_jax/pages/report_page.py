"""One HTML page that carries everything with it."""

import base64
import html
from collections.abc import Sequence
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; color: #444; }
table { border-collapse: collapse; margin: .6rem 0;
        font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right;
         border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; color: #555; border-color: #bbb; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.6rem; margin: 1.2rem 0; }
.figures div { font-size: .85rem; color: #666; }
.figures b { display: block; font-size: 1.7rem; font-weight: 600; color: #111; }
details { margin: .6rem 0; } summary { cursor: pointer; color: #555; }
pre { font-size: .8rem; background: #f6f6f6; padding: .8rem 1rem; overflow-x: auto; }
@media (max-width: 40rem) { table { display: block; overflow-x: auto; } }
"""


class Section(NamedTuple):
    """A part of the page, of which all but the title may be empty."""

    title: str
    text: str = ""  # What is seen, in a sentence or two.
    picture: bytes = b""  # PNG.
    rows: Sequence[Sequence[str]] = ()  # Of a table, its head first.
    folded: str = ""  # Plain text that is shown on demand.


def report_page(
    title: str,
    text: str,
    figures: Sequence[tuple[str, str]],
    sections: Sequence[Section],
) -> str:
    """Returns the page; it loads nothing from elsewhere and runs no scripts.

    Below title and text are the figures that matter most, each a number and what it is.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_safe(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_safe(title)}</h1><p>{_safe(text)}</p>",
        '<div class="figures">',
        *(f"<div><b>{_safe(n)}</b>{_safe(what)}</div>" for n, what in figures),
        "</div>",
    ]
    for section in sections:
        parts += _section(section)
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _section(section: Section) -> list[str]:
    parts = [f"<h2>{_safe(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{_safe(section.text)}</p>")
    if section.rows:
        head, *rows = section.rows
        parts.append("<table>" + _row(head, "th"))
        parts += [_row(row, "td") for row in rows]
        parts.append("</table>")
    if section.picture:
        data = base64.b64encode(section.picture).decode()
        label = _safe(section.title)
        parts.append(f'<img alt="{label}" src="data:image/png;base64,{data}">')
    if section.folded:
        text = f"<pre>{_safe(section.folded)}</pre>"
        parts.append(f"<details><summary>all</summary>{text}</details>")
    return parts


def _row(cells: Sequence[str], kind: str) -> str:
    inside = "".join(f"<{kind}>{_safe(cell)}</{kind}>" for cell in cells)
    return f"<tr>{inside}</tr>"


def _safe(text: str) -> str:
    return html.escape(text)
