"""Memory: what there is, and the refusal of what would not fit, before it is begun."""

from __future__ import annotations

import os
from collections.abc import Callable

import jax

__all__ = ["available", "check", "check_whole"]


def available() -> int | None:
    """Free bytes of the first device, or of the machine where the device does not say; None where neither does."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    try:
        with open("/proc/meminfo") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def check(result: int, working: Callable[[int], int], n: int, batch_size: int | None) -> None:
    """Raise MemoryError where a kernel would not fit, naming the chunks that would.

    It takes `result` bytes, and `working(c)` besides where c of its n examples are treated at a time.
    """
    free = available()
    size = min(n, n if batch_size is None else batch_size)
    if free is None or n == 0:
        return
    needed = working(size)
    if result + needed <= free:
        return
    problem = (
        f"The kernel needs about {_amount(result)} for its result and {_amount(needed)} for {size} examples at a time, "
        f"but {_amount(free)} are free."
    )
    fitting = _largest(size, lambda c: result + working(c) <= free)
    if fitting:
        raise MemoryError(f"{problem} Pass `batch_size={fitting}`, which needs {_amount(result + working(fitting))}.")
    cause = "The result alone does not fit." if result > free else "One example at a time does not fit either."
    raise MemoryError(
        f"{cause} {problem} Multiply by the kernel without forming it (`ntk.operator`), or ask for less of it "
        "(`ntk.empirical_trace`, `ntk.empirical_diagonal`)."
    )


def check_whole(needed: int, method: str) -> None:
    """Raise MemoryError where a method that has no chunks would not fit."""
    free = available()
    if free is not None and needed > free:
        raise MemoryError(
            f"The method {method!r} needs about {_amount(needed)} for whole Jacobians and its result, but "
            f"{_amount(free)} are free. Leave the method out: layer by layer no Jacobian is formed, and `batch_size` "
            "bounds the memory."
        )


def _largest(below: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to below − 1 that fits, where all smaller ones do; 0 if none does."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _amount(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"
