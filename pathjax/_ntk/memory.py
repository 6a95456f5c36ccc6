"""How much memory is free, and errors for kernels that would not fit, raised before the computation starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

__all__ = ["available", "check", "check_whole", "free_in_container", "largest_that_fits"]


def available() -> int | None:
    """Free bytes on the first device, or on the host and in its container if the device does not report them.

    None if nothing does.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    try:
        with open("/proc/meminfo") as file:
            free = next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        return min(free, free_in_container())
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


class _Version(NamedTuple):
    """Where a version of Linux's control groups keeps what concerns memory, and what its files are called."""

    folder: str
    controller: str
    limit: str
    used: str
    droppable: str


_VERSIONS = (
    _Version("", "", "memory.max", "memory.current", "inactive_file"),
    _Version("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_in_container(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """What is left of the tightest limit on the process's memory, its container's or that of a group around it.

    Files that the system can drop from memory count as free. Without a limit, more than any machine has.
    """
    free = [sys.maxsize]
    for version in _VERSIONS:
        for folder in _groups(root / version.folder, version.controller, membership):
            try:
                limit, used = (int((folder / name).read_text()) for name in (version.limit, version.used))
                lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                dropped = next((int(size) for name, size in lines if name == version.droppable), 0)
            except (OSError, ValueError):  # no such group, or its limit is "max"
                continue
            free.append(max(0, limit - used + dropped))
    return min(free)


def _groups(root: Path, controller: str, membership: Path) -> list[Path]:
    """The folders of the group of this process and of those around it. In a container the outermost is its own."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return [root]
    paths = [path for _, controllers, path in lines if controller in controllers.split(",") and ".." not in path]
    group = root.joinpath(*paths[0].split("/")) if paths else root
    return [group, *(folder for folder in group.parents if folder.is_relative_to(root))]


def check(result: int, working: Callable[[int], int], n: int, batch_size: int | None) -> int:
    """The bytes that a kernel needs. Raise MemoryError if it would not fit; the message names a `batch_size` that fits.

    The kernel of n examples takes `result` bytes for its entries, and `working(c)` bytes for computing c examples at a
    time.
    """
    free = available()
    size = min(n, n if batch_size is None else batch_size)
    needed = working(size)
    if free is None or result + needed <= free:
        return result + needed
    problem = (
        f"The kernel needs about {_amount(result)} for its result and {_amount(needed)} for {size} examples at a time, "
        f"but {_amount(free)} are free."
    )
    fitting = largest_that_fits(size, lambda c: result + working(c) <= free)
    if fitting:
        total = _amount(result + working(fitting))
        raise MemoryError(f"{problem} Pass `batch_size={fitting}`, which needs {total} in all.")
    cause = "The result alone does not fit." if result > free else "One example at a time does not fit either."
    raise MemoryError(
        f"{cause} {problem} Multiply by the kernel without forming it (`ntk.operator`), or compute only a part of it "
        "(`ntk.empirical_trace`, `ntk.empirical_diagonal`)."
    )


def check_whole(needed: int, method: str) -> None:
    """Raise MemoryError if a method that cannot process examples in batches needs more bytes than are free."""
    free = available()
    if free is not None and needed > free:
        raise MemoryError(
            f"The method {method!r} needs about {_amount(needed)} for whole Jacobians and its result, but "
            f"{_amount(free)} are free. Leave the method out: the default, layer by layer, forms no Jacobian, and "
            "`batch_size` bounds its memory."
        )


def largest_that_fits(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest of 1, …, limit − 1 that fits, by bisection; 0 if none does."""
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _amount(count: int) -> str:
    """A number of bytes in decimal units, such as `1.5 MB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"
