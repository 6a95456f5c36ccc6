"""How far pruned networks' Neural Tangent Kernels are from those expected of random weights, over the width.

The expected kernel is `ntk.mean_field` under the same mask. It takes the second moments of the initialization, which is
right where the mask is drawn without looking at the weights, or the squares of the weights at hand, θ², which is right
also where the mask was picked by their sizes: their signs are then still random.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base.names import DENSE
from experiments.base.seeds import key_of
from experiments.measure.widths import PIXEL, Slope, fitted_slope, images, is_pruned, of_width, spelled_means
from experiments.networks.layers import OUTPUTS, Network, bind
from pathjax import masks, ntk, pruning, scores
from pathjax.types import ApplyFn, Key, Mask, Params

__all__ = ["INITIALIZATION", "KINDS", "READS_WEIGHTS", "SQUARES", "PrunedSweep", "measure", "table"]

INITIALIZATION, SQUARES = "initialization", "squares"
"""Which second moments the expected kernel takes: E[θ²] over initializations, or θ² of the network at hand."""

_ROUNDS = 20
"""Rounds in which SynFlow prunes."""


class PrunedSweep(NamedTuple):
    """Relative distances (widths, seeds) to the expected kernel, of one model under masks of one kind.

    `moments` says which second moments the expected kernel takes, and `density` which share of the weights all masks of
    the sweep were to keep, but for the dense network that stands beside them.
    """

    model: str
    kind: str
    density: float
    moments: str
    widths: tuple[int, ...]
    distances: np.ndarray

    @property
    def kept(self) -> float:
        """The density: 1 where there is no mask."""
        return 1.0 if self.kind == DENSE else self.density

    @property
    def slope(self) -> Slope:
        """The exponent of the width, from a straight line for each seed on logarithmic axes."""
        return fitted_slope(self.widths, self.distances)

    def __str__(self) -> str:
        where = f"{self.model}, {self.kind}, density {self.kept:g}, moments of {self.moments}"
        return f"{where}: {self.slope}; {spelled_means(self.widths, self.distances)}"


class _Case(NamedTuple):
    """What a mask may be chosen by, besides the weights and a key: the network, the images, and the kept share."""

    network: Network
    apply: ApplyFn
    x: jax.Array
    density: float

    def prunable(self, path: tuple[Any, ...], leaf: jax.Array) -> bool:
        """As `widths.is_pruned`."""
        return is_pruned(self.network, path, leaf)


def measure(
    model: str, *, kinds: Sequence[str], density: float, widths: Sequence[int], seeds: int
) -> list[PrunedSweep]:
    """The distances of networks drawn with the seeds 0, 1, ... on a few images of noise, for both second moments."""
    distances = np.stack([_distances(of_width(model, width), kinds, density, seeds) for width in widths])
    return [
        PrunedSweep(model, kind, density, moments, tuple(widths), distances[:, :, place, which])
        for which, moments in enumerate((INITIALIZATION, SQUARES))
        for place, kind in enumerate(kinds)
    ]


def _distances(network: Network, kinds: Sequence[str], density: float, seeds: int) -> np.ndarray:
    """The distances (seeds, kinds, moments)."""
    case = _Case(network, bind(network, {}), images(), density)
    init = jax.jit(network.init)

    @jax.jit
    def both(params: Params, mask: Mask) -> jax.Array:
        kernel = ntk.empirical(case.apply, params, case.x, mask=mask)
        known: tuple[Any, ...] = (ntk.second_moments(params, "he"), None)
        expected = [
            ntk.mean_field(case.apply, params, case.x, second_moments=moments, mask=mask).ntk for moments in known
        ]
        return jnp.stack([_relative_distance(kernel, one) for one in expected])

    def of_seed(seed: int) -> list[np.ndarray]:
        keys = jax.random.split(key_of(seed, "widths"))
        params, _ = init(keys[0])
        return [np.asarray(both(params, KINDS[kind](case, params, keys[1]))) for kind in kinds]

    return np.array([of_seed(seed) for seed in range(seeds)])


def _relative_distance(kernel: jax.Array, expected: Any) -> jax.Array:
    """‖Θ − Θ̄‖ / ‖Θ̄‖ in the Frobenius norm, of Θ (n, n, o, o) and Θ̄ (n, n, o), which is 0 between two outputs."""
    whole = expected[..., None] * jnp.eye(expected.shape[2], dtype=expected.dtype)[None, None]
    return jnp.linalg.norm((kernel - whole).ravel()) / jnp.linalg.norm(whole.ravel())


def _dense(case: _Case, params: Params, key: Key) -> Mask:
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)


def _random(case: _Case, params: Params, key: Key) -> Mask:
    """The same share of each kernel, at random."""
    return _at_random(case, params, key, case.density)


def _random_by_layer(case: _Case, params: Params, key: Key) -> Mask:
    """Twice the share of the first kernel that is pruned, the share of the second, half of the third, and so on."""
    shares = [min(1.0, factor * case.density) for factor in (2.0, 1.0, 0.5)]
    drafts = [_at_random(case, params, key, share) for share in shares]
    pruned = [layer.name for layer in case.network.layers[1:]]
    return drafts[0] | {name: drafts[place % len(drafts)][name] for place, name in enumerate(pruned)}


def _at_random(case: _Case, params: Params, key: Key, share: float) -> Mask:
    draft = scores.random(params, key=key)
    return masks.from_scores(draft, density=share, scope="local", prunable=case.prunable)


def _blocks(case: _Case, params: Params, key: Key) -> Mask:
    """Groups of units that read the same group alone, as many as leave the density nearest to the share."""
    groups = round(1 / case.density)
    return _by_place(case, params, lambda read, written: np.floor(groups * read) == np.floor(groups * written))


def _band(case: _Case, params: Params, key: Key) -> Mask:
    """Units in a ring that read those near to their own place."""

    def is_near(read: np.ndarray, written: np.ndarray) -> np.ndarray:
        apart = np.abs(read - written)
        return np.asarray(np.minimum(apart, 1 - apart) < case.density / 2)

    return _by_place(case, params, is_near)


def _by_place(case: _Case, params: Params, is_kept: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Mask:
    """Of the kernels between hidden units those weights whose two units, at places in [0, 1), satisfy a condition."""
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    for layer in case.network.layers[1:-1]:
        shape = params[layer.name]["kernel"].shape
        read, written = ((np.arange(count) + 0.5) / count for count in shape[-2:])
        kept = jnp.asarray(np.broadcast_to(is_kept(read[:, None], written[None]), shape))
        mask[layer.name] = mask[layer.name] | {"kernel": kept}
    return mask


def _magnitude(case: _Case, params: Params, key: Key) -> Mask:
    """The largest weights of all kernels together."""
    return masks.from_scores(scores.magnitude(params), density=case.density, prunable=case.prunable)


def _synflow(case: _Case, params: Params, key: Key) -> Mask:
    like = jax.ShapeDtypeStruct((1, *case.x.shape[1:]), case.x.dtype)
    apply = case.apply  # alone, so that one compiled program serves all seeds

    def score(masked: Params, key: Key | None) -> Params:
        return scores.synflow(apply, masked, like)

    return pruning.prune(score, params, density=case.density, rounds=_ROUNDS, prunable=case.prunable)


def _snip(case: _Case, params: Params, key: Key) -> Mask:
    """The weights of largest |θ ∂L/∂θ| on the images themselves, with labels drawn at random."""
    labels = jax.random.randint(key, (len(case.x),), 0, case.network.widths[OUTPUTS])
    score = scores.snip(case.apply, params, [(case.x, labels)], loss=_loss)
    return masks.from_scores(score, density=case.density, prunable=case.prunable)


def _loss(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of logits as images of usual size would give them."""
    return scores.cross_entropy(outputs / PIXEL, labels)


KINDS: dict[str, Callable[[_Case, Params, Key], Mask]] = {
    DENSE: _dense,
    "random": _random,
    "random by layer": _random_by_layer,
    "blocks": _blocks,
    "band": _band,
    "magnitude": _magnitude,
    "synflow": _synflow,
    "snip": _snip,
}
"""Masks by what they are called."""

READS_WEIGHTS = ("magnitude", "synflow", "snip")
"""Kinds of masks that are picked by the weights: by their sizes alone, and of SNIP also by their signs and the data."""


def table(sweeps: Sequence[PrunedSweep]) -> str:
    """The distances as CSV, a row for each network and kind of second moments."""
    with io.StringIO(newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("model", "mask", "density", "moments", "width", "seed", "distance"))
        for sweep in sweeps:
            for width, distances in zip(sweep.widths, sweep.distances, strict=True):
                rows.writerows(
                    (sweep.model, sweep.kind, f"{sweep.kept:g}", sweep.moments, width, seed, f"{distance:.6g}")
                    for seed, distance in enumerate(distances)
                )
        return file.getvalue()
