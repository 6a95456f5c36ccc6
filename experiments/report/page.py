"""The parts of an HTML page that needs no other file: figures with captions, paragraphs, tables."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.report import drawing

__all__ = [
    "Illustration",
    "document",
    "drawn",
    "illustrated",
    "note",
    "pairs",
    "paragraph",
    "scrolled",
    "section",
    "text",
]


class Illustration(NamedTuple):
    """A drawn figure with its file name, its title, what it shows, and what these results show in it.

    Lines of `finding` after the first become a list.
    """

    name: str
    png: bytes
    svg: bytes
    title: str
    caption: str
    finding: str


def drawn(figure: Figure) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG."""
    return drawing.png(figure), drawing.svg(figure)


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page; parts that are empty are left out."""
    return _PAGE.replace("{title}", text(title)).replace("{body}", "\n".join(part for part in parts if part))


def illustrated(number: int, picture: Illustration) -> str:
    """The figure in the page, under its title and over its caption."""
    picture_svg = _inline(picture.svg.decode(), prefix=f"f{number}-", label=picture.title)
    first, *more = picture.finding.split("\n")
    entries = f"<ul>{''.join(f'<li>{text(line)}</li>' for line in more)}</ul>" if more else ""
    return (
        f'<h2>{text(picture.title)}</h2><figure><div class="scroll">{picture_svg}</div><figcaption>'
        f"<b>Figure {number}.</b> {text(picture.caption)} "
        f"<em>Here:</em> {text(first)}{entries}</figcaption></figure>"
    )


def _inline(picture_svg: str, *, prefix: str, label: str) -> str:
    """An SVG file as a part of a page: names of its own, the page's colors, and nothing that points elsewhere."""
    picture_svg = picture_svg[picture_svg.index("<svg") :]
    picture_svg = re.sub(r"<metadata>.*?</metadata>", "", picture_svg, flags=re.DOTALL)
    picture_svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", picture_svg)
    picture_svg = re.sub(r"\n +", "\n", picture_svg)
    # what is less than a hundredth of a point cannot be seen, and is much of a large figure
    picture_svg = re.sub(r'<path d="[^"]*"(?= clip)', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), picture_svg)
    picture_svg = re.sub(r'\bid="', f'id="{prefix}', picture_svg)
    picture_svg = re.sub(r'href="#', f'href="#{prefix}', picture_svg)
    picture_svg = re.sub(r"url\(#", f"url(#{prefix}", picture_svg)
    names = {drawing.INK: "ink", drawing.MUTED: "muted", drawing.GRID: "grid", drawing.PAPER: "paper"}
    for color, name in names.items():
        picture_svg = picture_svg.replace(color, f"var(--{name})")
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', picture_svg)[:2]
    picture_svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", picture_svg, count=2)
    size = f'style="min-width:{min(float(width), 620):.0f}px;max-width:{1.4 * float(width):.0f}px"'
    return picture_svg.replace("<svg", f'<svg role="img" aria-label="{text(label)}" {size}', 1)


def section(title: str) -> str:
    """The title of a section."""
    return f"<h2>{text(title)}</h2>"


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph, of a kind that the style sheet knows: "lead" or "caption"."""
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def note(words: str) -> str:
    """A paragraph that stands out."""
    return f'<p class="note">{text(words)}</p>'


def scrolled(content: str) -> str:
    """A box that scrolls sideways, so that the page does not."""
    return f'<div class="scroll">{content}</div>'


def pairs(named: Mapping[str, str]) -> str:
    """A table of names and values."""
    rows = "".join(f"<tr><th>{text(key)}</th><td>{text(value)}</td></tr>" for key, value in named.items())
    return scrolled(f'<table class="pairs"><tbody>{rows}</tbody></table>')


def text(words: str) -> str:
    """The words as HTML."""
    return html.escape(str(words))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root { --ink: #1b1f24; --muted: #66707c; --grid: #dde1e6; --paper: #ffffff; --ground: #f5f6f8; --accent: #2f7fc1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --muted: #98a2ae; --grid: #323941; --paper: #191d22; --ground: #111418; --accent: #6db0e8; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: clamp(1.4rem, 4.5vw, 2rem); line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
.lead { font-size: 1.06rem; max-width: 46rem; }
.caption { font-size: .9rem; color: var(--muted); margin-top: .5rem; }
.note { border-left: 3px solid var(--accent); padding-left: .75rem; }
p, figcaption { max-width: 46rem; }
figure { margin: 0; }
figcaption ul { margin: .4rem 0 0; padding-left: 1.2rem; }
figcaption { margin-top: .75rem; color: var(--ink); font-size: .95rem; }
.scroll { overflow-x: auto; background: var(--paper); border: 1px solid var(--grid); border-radius: 8px; }
figure .scroll { padding: .75rem; }
@media (max-width: 40rem) { figure .scroll::after { content: "swipe sideways to see the whole picture";
  position: sticky; left: 0; display: block; font-size: .75rem; color: var(--muted); } }
svg { display: block; width: 100%; height: auto; margin: 0 auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; white-space: nowrap;
  width: 100%; }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--grid); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 4.5rem; }
tbody th { text-align: left; font-weight: 600; position: sticky; left: 0; background: var(--paper); }
thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
.section th { color: var(--muted); padding-top: 1rem; }
.pairs th, .pairs td { text-align: left; white-space: normal; }
.pairs th { font-weight: 500; color: var(--muted); width: 45%; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
