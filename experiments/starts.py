"""What each training of a study starts from: weights, state and mask, by the method and its variant."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base import variants
from experiments.base.batching import vmap_networks
from experiments.base.names import DENSE, LOTTERY_TICKET
from experiments.base.seeds import key_of
from experiments.base.versions import versions
from experiments.data.loading import Dataset, balanced_batch
from experiments.measure.pruning import Evidence, dense_mask, masker
from experiments.models import network_of
from experiments.networks.layers import bind
from experiments.records.trial import Trial
from experiments.setting import setting_of
from experiments.study import Cell, Model, Study
from experiments.train.checkpoints import digest
from experiments.train.tickets import Drawn, Early, Tickets
from experiments.train.training import Trained
from pathjax import masks
from pathjax.types import Mask, Params

__all__ = ["Start", "Starts", "keys_of"]


class Start(NamedTuple):
    """What networks start from, on a leading axis (s).

    Their training begins at an epoch k of the recipe: 0, but for lottery tickets that are rewound to a later one, of
    which `losses` (s, k) are the train losses before each of the first k epochs. A ticket with newly drawn weights
    begins at 0 too.
    """

    params: Params
    state: Any
    mask: Mask
    epoch: int
    losses: np.ndarray

    @property
    def network(self) -> tuple[Params, Any, Mask]:
        """The weights, the state and the mask."""
        return self.params, self.state, self.mask


class Starts:
    """What the networks of one data set and one model start from. That of a network depends on its name alone."""

    def __init__(
        self,
        study: Study,
        model: Model,
        dataset: Dataset,
        trained: Callable[..., Trained],
        batched: Callable[[Callable[..., Any]], Callable[..., Any]],
        checkpoints: Path | None = None,
    ) -> None:
        """`trained` is what `training.trainer` gives, `batched` runs a function on some networks at a time.

        `checkpoints` is a folder in which one process keeps the levels of lottery tickets.
        """
        network = network_of(model, dataset.train_images.shape[1:], dataset.classes)
        measure = study.measure
        self._init, self._batched = batched(jax.jit(vmap_networks(network.init))), batched
        self._params, self._state = jax.tree.map(jnp.asarray, self._init(keys_of(range(study.seeds), "init")))
        state = jax.tree.map(lambda leaf: leaf[0], self._state)  # running statistics begin alike
        images, labels, count = dataset.train_images, dataset.train_labels, measure.score_per_class
        numbers = range(variants.batches_read(study.method))
        scored = [balanced_batch(labels, count, after=number * count) for number in numbers]
        init = network.init  # scores are found by all that they capture: not by this whole object
        evidence = Evidence(
            jnp.asarray(images[: measure.score_inputs or None]),
            tuple((jnp.asarray(images[batch]), jnp.asarray(labels[batch])) for batch in scored),
            lambda key: init(key)[0],
        )
        trains = measure.training_mode_scores and bool(jax.tree.leaves(state))
        self._masked = masker(
            bind(network, state),
            evidence,
            rounds=measure.rounds,
            train=(lambda params, x: network.train(params, state, x)) if trains else None,
        )
        self._last_mask: tuple[Any, Mask] | None = None

        def decided_by() -> str:
            setting = setting_of(study, dataset.name, model, (LOTTERY_TICKET, study.density[0]))
            words = json.dumps(
                {key: setting[key] for key in setting.keys() - Trial.MEASURED} | versions(), sort_keys=True
            )
            return digest((words, images, labels))

        self._tickets = Tickets(
            trained,
            self._drawn,
            study.density,
            rewind=measure.rewind_epochs,
            folder=checkpoints / "tickets" if checkpoints is not None and jax.process_count() == 1 else None,
            decided_by=functools.cache(decided_by),
        )

    def search(self, cell: Cell, seeds: Sequence[int], say: Callable[[int, int], None]) -> None:
        """Find the lottery tickets of a cell, if it has any, by training; `say` as in `Tickets.search`.

        Apart from `of`, since several processes train together.
        """
        method, density = cell
        if variants.parts(method)[0] == LOTTERY_TICKET:
            self._tickets.search(density, seeds, say)

    def of(self, cell: Cell, seeds: Sequence[int]) -> Start:
        """What these seeds of a cell start from; lottery tickets have to be searched for beforehand."""
        base, variant = variants.parts(cell[0])
        params, state = self._begun(seeds)
        begun = Early(params, state, np.zeros((len(seeds), 0)))
        mask = self._mask(cell, seeds, params)
        if variant == variants.SHUFFLED:
            shuffled = self._batched(vmap_networks(lambda mask, key: masks.shuffle(mask, key=key)))
            mask = shuffled(mask, keys_of(seeds, *cell))
        if variant == variants.REINITIALIZED:
            begun = begun._replace(params=self._init(keys_of(seeds, *cell))[0])
        elif base == LOTTERY_TICKET:
            begun = self._tickets.early(seeds)
        return Start(begun.params, begun.state, mask, begun.losses.shape[1], begun.losses)

    def _mask(self, cell: Cell, seeds: Sequence[int], params: Params) -> Mask:
        """The mask that scores or trainings give, before it is shuffled.

        The last one is remembered: shuffled and re-initialized networks have that of the method itself.
        """
        method, density = cell
        base, variant = variants.parts(method)
        if base == DENSE:
            return dense_mask(params)
        if base == LOTTERY_TICKET:
            return self._tickets.mask(density, seeds)
        scored = base if variant in (variants.SHUFFLED, variants.REINITIALIZED) else method
        if self._last_mask is None or self._last_mask[0] != (scored, density, tuple(seeds)):
            masked = self._batched(lambda params, keys: self._masked(scored, density, params, keys))
            mask = masked(params, keys_of(seeds, base, density))
            self._last_mask = (scored, density, tuple(seeds)), mask
        return self._last_mask[1]

    def _begun(self, seeds: Sequence[int]) -> tuple[Params, Any]:
        """The initial parameters and states of these seeds."""
        places = np.array(seeds)
        return jax.tree.map(lambda leaf: leaf[places], (self._params, self._state))

    def _drawn(self, seeds: Sequence[int]) -> Drawn:
        return Drawn(*self._begun(seeds), keys_of(seeds, LOTTERY_TICKET))


def keys_of(seeds: Sequence[int], *names: str | float) -> jax.Array:
    """`key_of` each seed (s,)."""
    return jnp.stack([key_of(seed, *names) for seed in seeds])
