"""Sets the lists of the attributes of results, and the types of properties, in words that a reader knows."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

__all__ = ["WordsOfFields", "setup"]


class WordsOfFields(SphinxPostTransform):
    """Attributes in place of "Variables", a dash in place of two hyphens, and `Array` without its private module."""

    default_priority = 6

    def run(self, **options: Any) -> None:
        """Go through all texts."""
        for text in list(self.document.findall(nodes.Text)):
            shown = re.sub(r"\b(?:jax\.)?jaxlib\._jax\.(?=Array)", "", text.astext())
            if shown == "Variables" and isinstance(text.parent, nodes.field_name):
                shown = "Attributes"
            elif shown == " -- ":
                shown = " – "
            if shown != text.astext():
                text.parent.replace(text, nodes.Text(shown))


def setup(app: Any) -> dict[str, bool]:
    """Register the transform."""
    app.add_post_transform(WordsOfFields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
