"""What the docstring of a dataclass says of its attributes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

__all__ = ["fields_of"]


def fields_of(kind: type) -> Iterator[tuple[str, str]]:
    """The names of a dataclass's attributes and what its docstring says of them, under "Attributes:"."""
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    for entry in re.split(r"\n(?= {4}\S)", "\n" + listed)[1:]:
        names, _, text = entry.strip().partition(": ")
        yield names, text
