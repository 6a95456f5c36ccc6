"""A choice of parameter leaves by name, and a mask of known entries, as static options of compiled programs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

__all__ = ["ChosenLeaves", "KnownMask"]


@dataclasses.dataclass(frozen=True)
class ChosenLeaves:
    """A predicate `prunable(key_path, leaf)` that is equal to those that choose the same leaves.

    As a static option of a compiled program it avoids compiling again for another function that chooses the same.

    Attributes:
        names: the key paths of the leaves that it chooses.
    """

    names: frozenset[str]

    def __call__(self, key_path: tuple[Any, ...], leaf: Any) -> bool:
        return keystr(key_path) in self.names

    @classmethod
    def read(cls, prunable: Callable[[tuple[Any, ...], Any], bool], params: Any) -> ChosenLeaves:
        """The leaves of `params` that a predicate chooses."""
        if isinstance(prunable, cls):
            return prunable
        leaves = tree_flatten_with_path(params)[0]
        return cls(frozenset(keystr(path) for path, leaf in leaves if prunable(path, leaf)))


class KnownMask:
    """A mask whose entries are known, so that programs can be compiled for it: equal to masks of equal entries.

    Attributes:
        mask: the mask, with arrays of NumPy.
    """

    def __init__(self, mask: Any) -> None:
        self.mask = jax.tree.map(np.asarray, mask)
        leaves, structure = jax.tree.flatten(self.mask)
        digest = hashlib.blake2b(b"".join(np.packbits(leaf).tobytes() for leaf in leaves)).digest()
        self.key = structure, tuple(leaf.shape for leaf in leaves), digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KnownMask) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @classmethod
    def read(cls, mask: Any) -> KnownMask | None:
        """The mask if it has entries and all are known, None otherwise."""
        leaves = jax.tree.leaves(mask)
        return None if not leaves or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) else cls(mask)
