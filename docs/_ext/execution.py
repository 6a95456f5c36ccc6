"""How tutorials are executed, and when they are executed again."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["fingerprint", "quiet_profile"]


def fingerprint(root: Path) -> str:
    """A hash of all that decides what a tutorial prints, besides its own cells."""
    sources = [*root.glob("pathjax/**/*.py"), *root.glob("experiments/**/*.py"), *root.glob("experiments/**/*.toml")]
    locks = [root / "requirements.txt", root / "docs" / "requirements.txt"]
    total = hashlib.sha256()
    for path in [*sorted(sources), *locks]:
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()[:16]


def quiet_profile(folder: Path) -> Path:
    """A folder of settings for the processes that execute: not the user's, and without remarks on their sockets."""
    profile = folder / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text("c = get_config()\nc.IPKernelApp.log_level = 40\n")
    return folder
