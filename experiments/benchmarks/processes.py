"""Measurements in processes of their own, taken in turn.

PyTorch's threads spin while they wait, and a process that has compiled once compiles faster: only fresh processes give
the same numbers in any order.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

__all__ = ["Device", "device", "fresh", "in_turn"]


class Device(NamedTuple):
    """What JAX computes on: its platform (cpu, gpu, tpu) and the kind."""

    platform: str
    kind: str


def in_turn(*measurements: Callable[[], Any], repeats: int) -> list[Any]:
    """What each measurement gives, the least of each of its numbers over several rounds of fresh processes.

    A measurement is a function that another process can import, or a `functools.partial` of one. It returns a
    NamedTuple of numbers. In each round they run one after the other.
    """
    rounds = [[fresh(measurement) for measurement in measurements] for _ in range(repeats)]
    return [type(results[0])(*map(min, zip(*results, strict=True))) for results in zip(*rounds, strict=True)]


def fresh(measurement: Callable[[], Any]) -> Any:
    """What a function returns in a process of its own, in which JAX keeps no compiled programs on disk."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_without_compilation_cache) as pool:
        return pool.submit(measurement).result()


def device() -> Device:
    """What JAX computes on. It is to be called in a fresh process, which gives an accelerator's memory back."""
    import jax

    first = jax.devices()[0]
    return Device(first.platform, first.device_kind)


def _without_compilation_cache() -> None:
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
