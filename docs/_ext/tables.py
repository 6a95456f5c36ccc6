"""Lets long names in the cells of tables break behind dots, underscores, slashes and brackets; intervals stay whole."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["setup", "with_breaks"]

_CELL = re.compile(r"<td>.*?</td>", re.DOTALL)
_LONG = re.compile(r'(?<=<span class="pre">)[^<]{21,}')
_INTERVAL = re.compile(r"(?<=\[)([−+]?[\d.,∞]+), (?=[−+]?[\d.,∞]+\])")
_BREAK = re.compile(r"(?<=\w)(?:::|[._/(=])(?=\w)")


def with_breaks(body: str) -> str:
    """The HTML of a page with places where the long names in its tables may break, and none within intervals."""

    def of_cell(cell: re.Match[str]) -> str:
        return _LONG.sub(lambda code: _BREAK.sub(r"\g<0><wbr>", code[0]), _INTERVAL.sub("\\1,\u00a0", cell[0]))

    return _CELL.sub(of_cell, body)


def _on_page(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = with_breaks(context["body"])


def setup(app: Any) -> dict[str, bool]:
    """Register what is done to the HTML of each page."""
    app.connect("html-page-context", _on_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
