"""What every benchmark measures with: least seconds, peak memory, the machine, slopes on logarithmic axes."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

__all__ = ["least", "machine", "peak", "seconds", "slopes"]


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of one run, until its results are there."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin


def least(functions: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """The least seconds of each function over several rounds, in which they run in turns."""
    rounds = [[seconds(function) for function in functions] for _ in range(repeats)]
    return [float(number) for number in np.min(rounds, axis=0)]


def peak() -> float:
    """Largest memory that this process has held, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def machine() -> str:
    """What the numbers were measured on."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores{load}"


def slopes(sizes: Sequence[int], times: Sequence[Sequence[float]]) -> list[float]:
    """For each column of times (sizes, columns) its exponent over the sizes, by least squares on logarithmic axes."""
    return [float(slope) for slope in np.polyfit(np.log(sizes), np.log(times), 1)[0]]
