"""Lottery tickets: masks that iterative magnitude pruning finds by training, whose levels all densities share."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base.wording import all_digits
from experiments.train.checkpoints import digest
from experiments.train.training import Trained
from pathjax import masks
from pathjax.types import Key, Mask, Params

__all__ = ["PRUNED", "Tickets", "levels"]

PRUNED = 0.2
"""The share of the weights left that each level prunes."""


def levels(density: float) -> int:
    """How many trainings it takes to find the mask of a density.

    >>> [levels(density) for density in (1.0, 0.8, 0.5, 0.1, 0.01)]
    [0, 1, 4, 11, 21]
    """
    # 1e-9: of density = 0.8^ℓ the quotient may round to just above ℓ
    return math.ceil(math.log(density) / math.log(1.0 - PRUNED) - 1e-9)


class Drawn(NamedTuple):
    """New networks, on a leading axis (s): weights, states, and the keys of their lottery tickets."""

    params: Params
    state: Any
    keys: Key


class Early(NamedTuple):
    """What a lottery ticket is rewound to: weights, state, and the train losses (k,) before each epoch until then."""

    params: Params
    state: Any
    losses: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Shelf:
    """The masks of one network on the disk, if there is a folder. What cannot be read or written harms nothing."""

    folder: Path | None

    def load(self, name: str, params: Params) -> Mask | None:
        """The mask that was saved under a name, for weights like `params`; None where there is none."""
        with contextlib.suppress(OSError, ValueError):
            if self.folder is not None:
                return jax.device_get(masks.load(self.folder / f"{name}.npz", params))
        return None

    def save(self, name: str, mask: Mask) -> None:
        """Save a mask under a name, whole or not at all."""
        with contextlib.suppress(OSError):
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                masks.save(self.folder / f"{name}.npz", mask)


@dataclasses.dataclass
class _Search:
    """How far the search for the tickets of one network has come: `mask` is that after so many levels."""

    early: Early
    key: Key
    shelf: _Shelf
    mask: Mask
    level: int
    found: dict[float, Mask]


class Tickets:
    """The lottery tickets of one data set and network, by density and seed.

    Each level trains the kept weights from their values after `rewind` epochs to the end of the recipe, and prunes the
    smallest fifth of them, all layers together; the last level prunes to the density. This is
    `pathjax.pruning.lottery_ticket`, of several networks side by side. Before its last level a density has the levels
    of all lower ones, so each level of a seed is trained once, and no mask depends on which densities are asked for.

    With a `folder`, the mask of each level is kept there, so that a search that was cut off goes on behind its last
    level, as does one for a lower density.
    """

    def __init__(
        self,
        trained: Callable[..., Trained],
        drawn: Callable[[Sequence[int]], Drawn],
        densities: Sequence[float],
        *,
        rewind: int,
        folder: Path | None = None,
        decided_by: Callable[[], str] = str,
    ) -> None:
        """`trained` is what `training.trainer` gives, and `drawn(seeds)` new networks; `densities` are all of interest.

        `decided_by()` has all that decides the masks beside the new networks, their keys, and `rewind`.
        Level ℓ of a network, and with ℓ = 0 the epochs before all levels, takes the order of its minibatches from
        `jax.random.fold_in(key, ℓ)`.
        """
        self._trained, self._drawn, self._rewind = trained, drawn, rewind
        self._densities, self._folder, self._decided_by = densities, folder, decided_by
        self._searches: dict[int, _Search] = {}

    def search(self, density: float, seeds: Sequence[int], say: Callable[[int, int], None]) -> None:
        """Train until the tickets of these seeds are found.

        `say(level, levels)` is called before each level. Raises ValueError where trained weights are not finite.
        """
        self._begin([seed for seed in seeds if seed not in self._searches])
        of_seeds = [self._searches[seed] for seed in seeds]
        last = levels(density)
        while searches := [search for search in of_seeds if density not in search.found and search.level < last]:
            say(1 + min(search.level for search in searches), last)
            params, state, mask = _stacked([(*search.early[:2], search.mask) for search in searches])
            keys = jnp.stack([jax.random.fold_in(search.key, search.level + 1) for search in searches])
            trained = self._trained(params, state, mask, keys, start=self._rewind, with_losses=False)
            weights = jax.device_get(trained.params)
            for place, search in enumerate(searches):
                self._prune(search, jax.tree.map(lambda leaf, place=place: leaf[place], weights))

    def mask(self, density: float, seeds: Sequence[int]) -> Mask:
        """The masks of tickets that were searched for, seeds leading."""
        return _stacked([self._searches[seed].found[density] for seed in seeds])

    def early(self, seeds: Sequence[int]) -> Early:
        """What the tickets of these seeds are rewound to, seeds leading."""
        return Early(*_stacked([tuple(self._searches[seed].early) for seed in seeds]))

    def _begin(self, seeds: Sequence[int]) -> None:
        """Begin the search of new seeds, by the epochs to whose end their weights are rewound."""
        if not seeds:
            return
        params, state, keys = self._drawn(seeds)
        dense = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
        early = Early(params, state, np.zeros((len(seeds), 0)))
        if self._rewind:
            first = jnp.stack([jax.random.fold_in(key, 0) for key in keys])
            trained = self._trained(params, state, dense, first, stop=self._rewind)
            early = Early(trained.params, trained.state, trained.train_loss[:, :-1])
        on_host = jax.device_get((early, dense, (params, state)))
        for place, seed in enumerate(seeds):
            of_seed, mask, drawn = jax.tree.map(lambda leaf, place=place: leaf[place], on_host)
            folder = None
            if self._folder is not None:
                folder = self._folder / digest((drawn, keys[place], str(self._rewind), self._decided_by()))
            search = _Search(of_seed, keys[place], _Shelf(folder), mask, 0, {1.0: mask})
            self._take_up(search)
            self._searches[seed] = search

    def _take_up(self, search: _Search) -> None:
        """Go on behind the last level on the shelf that lies before every density that is not there."""
        params, load = search.early.params, search.shelf.load
        for density in self._densities:
            if (mask := load(_of_density(density), params)) is not None:
                search.found[density] = mask
        lacking = [levels(density) for density in self._densities if density not in search.found]
        for level in range(min(lacking, default=1) - 1, 0, -1):
            if (mask := load(_of_level(level), params)) is not None:
                search.mask, search.level = mask, level
                return

    def _prune(self, search: _Search, trained: Params) -> None:
        """Prune the smallest weights of a training: to the densities that this level ends at, and for the next one."""
        search.level += 1
        sizes = jax.tree.map(np.abs, trained)

        def pruned(density: float) -> Mask:
            counts = masks.kept_counts(sizes, density=density)
            try:
                return jax.device_get(masks.keep_largest(sizes, counts, within=search.mask))
            except ValueError as error:
                raise ValueError(f"In level {search.level} of the lottery ticket: {error}") from error

        for density in self._densities:
            if levels(density) == search.level:
                search.found[density] = pruned(density)
                search.shelf.save(_of_density(density), search.found[density])
        if max(map(levels, self._densities)) > search.level:
            search.mask = pruned((1.0 - PRUNED) ** search.level)
            search.shelf.save(_of_level(search.level), search.mask)


def _of_level(level: int) -> str:
    return f"level-{level}"


def _of_density(density: float) -> str:
    return f"density-{all_digits(density)}"


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
