"""What every measurement is made with: seconds of first and later runs, of compilation, memory, fitted slopes."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

__all__ = ["Built", "build", "check_equal", "first_and_later", "least", "peak", "seconds", "slopes"]

_ALIKE = 1e-2
"""How far results of two ways to compute the same thing may be apart: accelerators round products to ten bits."""


class Built(NamedTuple):
    """A compiled function: seconds to trace and lower it in Python and to compile it, and MB of temporary memory."""

    run: Callable[..., Any]
    trace: float
    compile: float
    planned: float


def build(function: Callable[..., Any], *arguments: Any) -> Built:
    """Trace, lower and compile a function for these arguments."""
    begin = time.perf_counter()
    lowered = jax.jit(function).lower(*arguments)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    planned = cast(Any, compiled.memory_analysis()).temp_size_in_bytes / 1e6
    return Built(compiled, middle - begin, end - middle, planned)


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of one run, until its results are there."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin


def first_and_later(function: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds of the first run, and the least of some later ones."""
    return seconds(function), min(seconds(function) for _ in range(repeats))


def least(functions: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """The least seconds of each function over several rounds, in which they run in turns."""
    rounds = [[seconds(function) for function in functions] for _ in range(repeats)]
    return [float(number) for number in np.min(rounds, axis=0)]


def peak() -> float:
    """Largest memory that this process has held, in GB; where it computes on an accelerator, of the accelerator's."""
    statistics = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"] / 1e9
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the parent held when it started this process
        (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(kib) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def check_equal(what: str, *results: float) -> None:
    """Refuse to compare ways that do not compute the same thing."""
    if not np.allclose(results, results[0], rtol=_ALIKE, atol=0):
        raise ValueError(f"{what}: the results that are compared differ: {', '.join(map(str, results))}")


def slopes(sizes: Sequence[float], times: Sequence[Sequence[float]]) -> list[float]:
    """For each column of times (sizes, columns) its exponent over the sizes, by least squares on logarithmic axes."""
    return [float(slope) for slope in np.polyfit(np.log(sizes), np.log(times), 1)[0]]
