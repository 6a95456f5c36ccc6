"""Files that are either the old ones or the new ones, whenever the process is killed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from experiments.base.errors import InputError

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one step. When this returns, the new content is on the disk.

    Raises InputError where there is no room or no right to write; the file is then as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"Cannot write {path}: {error.strerror}. Every result written before is kept; once this is mended, the "
            "same command continues."
        ) from error
