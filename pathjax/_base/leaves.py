"""A choice of parameter leaves by name, which can be a static option of a compiled program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.tree_util import keystr, tree_flatten_with_path

__all__ = ["ChosenLeaves"]


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
