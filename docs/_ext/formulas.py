"""Sets indices and exponents that are written in plain text, as in v_p, λ_max or e^(−ηΘt), as indices and exponents.

Docstrings and pages write formulas so that they can be read in an editor. Code is left as it is.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from .indices import pieces

__all__ = ["IndicesAsIndices", "setup"]


_NODES = {"subscript": nodes.subscript, "superscript": nodes.superscript}
_AS_THEY_ARE = (
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.raw,
    nodes.title,
    nodes.FixedTextElement,
)


def in_lines(text: str) -> list[nodes.Node]:
    """The text with its indices and exponents set as such, also those within an index or an exponent."""
    return [
        nodes.Text(piece.text) if piece.kind == "text" else _NODES[piece.kind]("", "", *in_lines(piece.text))
        for piece in pieces(text)
    ]


class IndicesAsIndices(SphinxPostTransform):
    """Replaces texts that have indices or exponents by their pieces."""

    default_priority = 400

    def run(self, **options: Any) -> None:
        """Go through all texts that are no code."""
        for text in list(self.document.findall(nodes.Text)):
            parent, within = text.parent, text.parent
            while within is not None and not isinstance(within, _AS_THEY_ARE):
                within = within.parent
            if within is not None or ("_" not in text and "^" not in text):
                continue
            made = in_lines(text.astext())
            if len(made) > 1:
                parent.replace(text, made)


def setup(app: Any) -> dict[str, bool]:
    """Register the transform."""
    app.add_post_transform(IndicesAsIndices)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
