"""How much memory is free, and errors for kernels that would not fit, raised before the computation starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax

__all__ = ["available", "check", "check_whole"]


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
        return min(free, *_free_in_container())
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


# The limit of a container on its processes' memory and what they take, of Linux's control groups in both versions.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def _free_in_container() -> list[int]:
    """What is left of each limit that the process's container sets; files that can be dropped from memory are free."""
    free = [sys.maxsize]
    for limit, used, statistics, droppable in _LIMITS:
        try:
            taken = int(Path(used).read_text())
            lines = (line.split() for line in Path(statistics).read_text().splitlines())
            dropped = next((int(size) for name, size in lines if name == droppable), 0)
            free.append(max(0, int(Path(limit).read_text()) - taken + dropped))
        except (OSError, ValueError):  # no such group, or its limit is "max"
            continue
    return free


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
    fitting = _largest_that_fits(size, lambda c: result + working(c) <= free)
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


def _largest_that_fits(limit: int, fits: Callable[[int], bool]) -> int:
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
