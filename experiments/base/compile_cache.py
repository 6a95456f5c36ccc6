"""Compiled programs on the disk, so that a program is compiled once and not by every process and worker."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any

__all__ = ["use"]

_LEAST_SECONDS = 0.1
"""Programs that compile faster are not kept: to find them costs as much."""

_MOST_BYTES = 2 * 2**30
"""Size at which the programs that were not used for the longest are removed."""

_WHAT_IS_LOST = "Error writing persistent compilation cache"
"""How JAX warns, for each program, where a disk is full: what is not kept is compiled again, and nothing is lost."""

_WRITTEN, _USED = "-cache", "-atime"
"""How the names of JAX's files end: a program, and, written after it, when it was last used."""


def use() -> None:
    """From now on JAX keeps compiled programs on the disk and looks for them there, also in processes begun from here.

    The folder is what `JAX_COMPILATION_CACHE_DIR` says, else one in the user's cache, for processors like this one
    alone. Where it cannot be written, nothing is kept. JAX is not imported for it.
    """
    settings: dict[str, Any] = {
        "jax_persistent_cache_min_compile_time_secs": _LEAST_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            folder = _folder()
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # of Path.home: nobody knows where that is
            return
        if not os.access(folder, os.W_OK | os.X_OK):
            return
        _remove_unfinished(folder)
        _hide(_WHAT_IS_LOST)
        settings |= {"jax_compilation_cache_dir": str(folder), "jax_compilation_cache_max_size": _MOST_BYTES}
    for name, value in settings.items():
        if name.upper() in os.environ:
            continue
        os.environ[name.upper()] = str(value)
        if "jax" in sys.modules:  # which has read the environment already
            sys.modules["jax"].config.update(name, value)


def _hide(message: str) -> None:
    """Let no warning be printed that begins like this, in this process and in those begun from here."""
    warnings.filterwarnings("ignore", re.escape(message))
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, f"ignore:{message}"]))


def _folder() -> Path:
    """Programs for one processor do not run on another, and home folders are shared by machines of many kinds."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "pathjax" / f"programs-{_processor()}"


def _processor() -> str:
    """A hash of what the processor can do."""
    described = f"{platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        described += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed had written a part of, which JAX would read and never write again."""
    import filelock

    with contextlib.suppress(OSError, NotImplementedError), filelock.FileLock(folder / ".lockfile", timeout=10):
        for program in folder.glob(f"*{_WRITTEN}"):
            if not program.with_name(program.name.removesuffix(_WRITTEN) + _USED).exists():
                program.unlink(missing_ok=True)
