"""Files that a process killed at any moment leaves whole: replaced in one step, or with whole lines appended."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from experiments.base.errors import InputError

__all__ = ["append_lines", "cannot_write", "cut_end", "is_of_the_disk", "write_atomically"]

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


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
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append whole lines in one write; when this returns, they are on the disk. Nothing else of the file is touched.

    A process that is killed meanwhile may leave the first part of what it appended, whose last line is not ended.
    Raises InputError where there is no room or no right to write; the file then has what it had before.
    """
    data = "".join(f"{line}\n" for line in lines).encode()
    is_new = not path.exists()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _append(descriptor, data)
        finally:
            os.close(descriptor)
        if is_new:
            _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def cut_end(path: Path, count: int) -> None:
    """Take the last `count` bytes from a file. Raises InputError where it cannot be written."""
    try:
        with path.open("r+b") as file:
            file.truncate(os.fstat(file.fileno()).st_size - count)
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def _append(descriptor: int, data: bytes) -> None:
    """Write all of the data and sync it, or leave the file as long as it was."""
    length = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(data):  # one write, but where a disk is filling up
            written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, length)
            os.fsync(descriptor)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_of_the_disk(error: OSError) -> bool:
    """Whether a disk is full or may not be written to, so that whatever is written next fails too."""
    return error.errno in _OF_THE_DISK


def cannot_write(path: Path | str, error: OSError) -> InputError:
    """What a user has to know of an error in writing."""
    return InputError(
        f"Cannot write {path}: {error.strerror}. Every result written before is kept; once this is mended, the "
        "same command continues."
    )
