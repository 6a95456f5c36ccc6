"""Links to other projects, where their inventories can be had.

Builds without a network must not fail, so nothing is fetched unless `DOCS_INVENTORIES=1` is set, as the workflow that
publishes the site does; and what cannot be fetched then is left out.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

__all__ = ["fetched"]

_TIMEOUT = 20  # seconds


def fetched(projects: dict[str, str], folder: Path) -> dict[str, tuple[str, str]]:
    """The `intersphinx_mapping` of those projects whose inventory was fetched into `folder`."""
    if os.environ.get("DOCS_INVENTORIES") != "1":
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for name, address in projects.items():
        file = folder / f"{name}.inv"
        try:
            with urllib.request.urlopen(f"{address}objects.inv", timeout=_TIMEOUT) as answer:
                file.write_bytes(answer.read())
        except (urllib.error.URLError, OSError) as error:
            print(f"No links to {name}: {error}")  # noqa: T201
            continue
        mapping[name] = (address, str(file))
    return mapping
