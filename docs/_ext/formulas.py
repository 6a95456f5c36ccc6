"""Sets indices and exponents that are written in plain text, as in v_p, λ_max or e^(−ηΘt), as indices and exponents.

Docstrings and pages write formulas so that they can be read in an editor. Code is left as it is.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from .indices import pieces

__all__ = ["IndicesAsIndices", "setup"]


_NODES = {"text": nodes.Text, "subscript": nodes.subscript, "superscript": nodes.superscript}
_AS_THEY_ARE = (
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.raw,
    nodes.title,
    nodes.FixedTextElement,
)


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
            cut = pieces(text.astext())
            if len(cut) > 1:
                made = [nodes.Text(p.text) if p.kind == "text" else _NODES[p.kind]("", p.text) for p in cut]
                parent.replace(text, made)


def setup(app: Any) -> dict[str, bool]:
    """Register the transform."""
    app.add_post_transform(IndicesAsIndices)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
