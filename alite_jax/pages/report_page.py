"""One HTML page that carries everything with it."""

import base64
import html
import re
from collections.abc import Sequence
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light dark; --text: #222; --soft: #555; --page: #fff;
        --line: #e0e0e0; --block: #f6f6f6; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --soft: #a8a8a8; --page: #16181c; --line: #363a40;
          --block: #21242a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text);
       background: var(--page); max-width: 62rem; margin: 2.5rem auto;
       padding: 0 1.5rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; color: var(--soft); }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right;
         border-bottom: 1px solid var(--line); overflow-wrap: normal; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
/* Plots have dark text, so they lie on a light card on a dark page. */
img { max-width: 100%; height: auto; display: block; box-sizing: border-box;
      background: #fff; padding: .4rem; border-radius: 6px; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.6rem; margin: 1.2rem 0; }
.figures div { font-size: .85rem; color: var(--soft); }
.figures b { display: block; font-size: 1.7rem; font-weight: 600;
             color: var(--text); }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); }
code { font-size: .85em; }
pre { font-size: .8rem; background: var(--block); padding: .8rem 1rem;
      overflow-x: auto; }
/* Smaller, the text of a plot could not be read; it is moved sideways instead. */
@media (max-width: 40rem) {
  body { margin: 1.2rem auto; padding: 0 1rem; }
  th, td:not(:first-child) { white-space: nowrap; }
  img { max-width: none; width: 40rem; } }
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
        f"<h1>{_safe(title)}</h1><p>{_prose(text)}</p>",
    ]
    if figures:
        shown = (f"<div><b>{_safe(n)}</b>{_safe(what)}</div>" for n, what in figures)
        parts += ['<div class="figures">', *shown, "</div>"]
    for section in sections:
        parts += _section(section)
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _section(section: Section) -> list[str]:
    parts = [f"<h2>{_safe(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{_prose(section.text)}</p>")
    if section.rows:
        head, *rows = section.rows
        parts.append('<div class="wide"><table>' + _row(head, "th"))
        parts += [_row(row, "td") for row in rows]
        parts.append("</table></div>")
    if section.picture:
        data = base64.b64encode(section.picture).decode()
        label = _safe(section.title)
        image = f'<img alt="{label}" src="data:image/png;base64,{data}">'
        parts.append(f'<div class="wide">{image}</div>')
    if section.folded:
        text = f"<pre>{_safe(section.folded)}</pre>"
        parts.append(f"<details><summary>all</summary>{text}</details>")
    return parts


def _row(cells: Sequence[str], kind: str) -> str:
    inside = "".join(f"<{kind}>{_safe(cell)}</{kind}>" for cell in cells)
    return f"<tr>{inside}</tr>"


def _prose(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", _safe(text))


def _safe(text: str) -> str:
    return html.escape(text)
