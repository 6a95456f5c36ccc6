"""Where numbers come from, beside the study that asks for them: versions, device, and the source tree."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path
from typing import Any

from experiments.base.versions import versions

__all__ = ["here", "source_tree"]

_ROOT = Path(__file__).parents[2]

_SOURCES = ("pathjax", "experiments")
"""What of the source tree computes numbers."""

_TIMEOUT = 20
"""Seconds after which git is given up."""


@functools.cache
def here() -> dict[str, Any]:
    """The origin of what this process computes, as JSON; found once, since a process keeps the code it has loaded.

    `versions` of packages, that of `python`, the kind of the first of the `devices` and how many there are, the
    `commit` of the source tree and whether its files were `changed` since; these two are None where there is no git
    repository.
    """
    import jax

    commit, changed = source_tree(_ROOT)
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "commit": commit,
        "changed": changed,
    }


def source_tree(root: Path) -> tuple[str | None, bool | None]:
    """The commit of a git repository, and whether files of pathjax or of the experiments differ from it."""
    if not (root / ".git").exists():  # a repository further up would be another project's
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--", *_SOURCES))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT).stdout.strip()
