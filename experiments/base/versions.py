"""The versions of the packages that decide the numbers."""

from __future__ import annotations

import configparser
import importlib.metadata
from pathlib import Path

__all__ = ["versions"]

_PACKAGES = (
    "flax",
    "jax",
    "jaxlib",
    "matfree",
    "neural-tangents",
    "numpy",
    "optax",
    "pathjax",
    "scikit-learn",
    "scipy",
)


def versions() -> dict[str, str]:
    """Each package with its version, or "not installed"."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "not installed"
    # the experiments run from the source tree, where pathjax need not be installed
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    installed["pathjax"] = setup.get("metadata", "version", fallback=installed["pathjax"])
    return installed
