"""Links to files of the repository outside of docs/, which pages have so that they work in the repository too.

On the site they lead to the page that shows the file, or are no links where no page does. Links that are named by the
file of a page, such as `[costs.md](costs.md)`, get the title of the page.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["setup", "without_outside_links"]

_SHOWN = {
    "CHANGELOG.md": "/changes.md",
    "DESIGN.md": "/design.md",
    "README.md": "/start.md",
    "README.md#experiments": "/studies.md",
}
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(\w[\w./-]*)(#[^)]*)?\)")

_NAMED_BY_FILE = re.compile(r"\[[\w/-]+\.md\]\(([\w./-]+\.md)\)")


def without_outside_links(text: str, depth: int) -> str:
    """A page whose links lead to pages and are named by titles; `depth` is that of its folder below docs/."""

    def link(match: re.Match[str]) -> str:
        title, file, place = match.groups(default="")
        if match[0].count("../") <= depth:
            return match[0]  # within docs/
        page = _SHOWN.get(file + place, _SHOWN.get(file))
        return title if page is None else f"[{title}]({page})"

    return _NAMED_BY_FILE.sub(r"[](\1)", _OUTSIDE.sub(link, text))


def _on_read(app: Any, page: str, source: list[str]) -> None:
    source[0] = without_outside_links(source[0], page.count("/"))


def _on_include(app: Any, path: Any, page: str, source: list[str]) -> None:
    source[0] = _NAMED_BY_FILE.sub(r"[](\1)", source[0])


def setup(app: Any) -> dict[str, bool]:
    """Register what is done to the text of each page."""
    app.connect("source-read", _on_read)
    app.connect("include-read", _on_include)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
