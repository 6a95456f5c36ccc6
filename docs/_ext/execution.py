"""When tutorials are executed again."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["fingerprint"]


def fingerprint(root: Path) -> str:
    """A hash of all that decides what a tutorial prints, besides its own cells."""
    sources = [*root.glob("pathjax/**/*.py"), *root.glob("experiments/**/*.py"), *root.glob("experiments/**/*.toml")]
    locks = [root / "requirements.txt", root / "docs" / "requirements.txt"]
    total = hashlib.sha256()
    for path in [*sorted(sources), *locks]:
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()[:16]
