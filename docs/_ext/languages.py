"""Colors the code of pages that name no language: examples of Python with their results, and lines for a shell."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["language_of", "setup"]

_COMMANDS = re.compile(r"(\.venv/bin/)?(python|make|pip|sbatch|cp)\b|\w+=\$\(")


def language_of(code: str) -> str | None:
    """The language of a piece of code, or None."""
    if code.startswith(">>> "):
        return "pycon"
    return "bash" if _COMMANDS.match(code) else None


def _on_read(app: Any, document: Any) -> None:
    from docutils import nodes

    for block in document.findall(nodes.literal_block):
        if block.get("language", "none") in ("none", "default"):
            block["language"] = language_of(block.astext()) or block.get("language", "none")


def setup(app: Any) -> dict[str, bool]:
    """Register what is done to a page that was read."""
    app.connect("doctree-read", _on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
