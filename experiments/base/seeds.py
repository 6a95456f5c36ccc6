"""PRNG keys made from a seed and names, so that no order of work changes a number."""

from __future__ import annotations

import zlib

import jax

from pathjax.types import Key

__all__ = ["key_of"]


def key_of(seed: int, *names: str | float) -> Key:
    """The key for one use, named by words and densities. It is the same in every process, whatever ran before."""
    path = "/".join(name if isinstance(name, str) else repr(float(name)) for name in names)
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
