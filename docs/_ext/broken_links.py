"""Looks for links, images and scripts of a built site that lead into nothing.

    python docs/_ext/broken_links.py docs/_build/html

Addresses outside of the site are not looked at; `make docs-links` does that.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["broken_links", "main"]

_ADDRESSES = {"a": "href", "img": "src", "link": "href", "script": "src", "source": "src"}


class _Page(HTMLParser):
    """The addresses that a page names, and the places in it that can be named."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.places = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag names."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.places.add(value)
            if name == _ADDRESSES.get(tag) and value:
                self.addresses.append(value)


def _pages(folder: Path) -> list[Path]:
    """The pages of the site, without templates that its theme leaves there."""
    return [path for path in folder.rglob("*.html") if path.relative_to(folder).parts[0] != "_static"]


def broken_links(folder: Path) -> list[str]:
    """A sentence for each address of a page that names no file of the site, or no place in it."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(_pages(folder))}
    broken = []
    for path, page in pages.items():
        for address in page.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            place = unquote(parts.fragment)
            if not target.exists():
                broken.append(f"{path.relative_to(folder)} names {address}, which is not there.")
            elif target.suffix == ".html" and place:
                there = pages.get(folder / target.relative_to(folder.resolve()))
                if there is not None and place not in there.places:
                    broken.append(f"{path.relative_to(folder)} names {address}, a place that is not there.")
    return broken


def main(folder: str) -> int:
    """Print what is broken; returns the exit status."""
    broken = broken_links(Path(folder))
    for sentence in broken:
        print(sentence)  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
