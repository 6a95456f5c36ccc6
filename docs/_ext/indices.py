"""Finds indices and exponents in plain text, as in v_p, λ_max or e^(−ηΘt)."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Piece", "pieces"]


class Piece(NamedTuple):
    """A part of a text: its `kind` is "text", "subscript" or "superscript"."""

    kind: str
    text: str


_LETTER = r"A-Za-zΑ-Ωα-ωℓ∂"
_BELOW = rf"\{{[^{{}}]*\}}|\([^()\s]*\)(?:\([^()\s]*\))*|(?:max|min|in|out)\b|[{_LETTER}0-9∞]{{1,2}}(?![A-Za-z0-9_=])"
_ABOVE = r"\{[^{}]*\}|\([^()]*(?:\([^()]*\)[^()]*)*\)|[−-]?\d+\.\d+|[−-]?[\wℓ∞]+"
_INDEX = re.compile(
    # An index follows one letter, as in v_p, ηΘ_c, x'_s and x1_i, or the end of an expression: a longer word of Latin
    # letters, such as log_trace, is a name.
    rf"(?:(?<![A-Za-z0-9_ℓ])([{_LETTER}]\d?'*)|(?<=[)\]‖|²ᵀ]))_({_BELOW})"
    rf"|(?<=\S)\^({_ABOVE})"
)


def pieces(text: str) -> list[Piece]:
    """The text, cut into what stands on the line, below it and above it."""
    cut, end = [], 0
    for match in _INDEX.finditer(text):
        letter, below, above = match.groups()
        cut.append(Piece("text", text[end : match.start()] + (letter or "")))
        if below is not None:
            cut.append(Piece("subscript", below[1:-1] if below.startswith("{") else below))
        else:
            cut.append(Piece("superscript", above[1:-1] if above[0] in "{(" else above))
        end = match.end()
    cut.append(Piece("text", text[end:]))
    return [piece for piece in cut if piece.text]
