"""Pruning: loops that score, mask and score again.

One shot is `masks.from_scores` on one score; `prune` does it in rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax

from pathjax import masks
from pathjax._trees import check_like
from pathjax.types import Key, Mask, Params, Prunable, Scores

__all__ = ["densities", "prune"]

ScoreFn: TypeAlias = Callable[[Params, Key | None], Scores]
"""`score(masked_params, key)`: a pytree like `params`; the largest are kept."""

Progress: TypeAlias = Callable[[int, int, float], None]
"""`progress(round, rounds, density)`, called after each round, from 1 on."""

_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "exponential": lambda density, share: density**share,
    "linear": lambda density, share: 1.0 - (1.0 - density) * share,
}


def densities(*, density: float, rounds: int, schedule: str = "exponential") -> tuple[float, ...]:
    """The density after each round t = 1 … T: ρ^(t/T), or with schedule "linear" 1 − (1 − ρ)·t/T. The last is ρ itself.

    Raises ValueError where the density is outside (0, 1], there is no round, or the schedule is unknown.

    >>> densities(density=0.0625, rounds=4)
    (0.5, 0.25, 0.125, 0.0625)
    >>> densities(density=0.25, rounds=3, schedule="linear")
    (0.75, 0.5, 0.25)
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must lie in (0, 1], the share of weights to keep; it is {density}.")
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more; it is {rounds}.")
    if schedule not in _SCHEDULES:
        known = " and ".join(f'"{name}"' for name in _SCHEDULES)
        raise ValueError(f'Unknown schedule "{schedule}". The schedules are {known}.')
    between = [_SCHEDULES[schedule](density, t / rounds) for t in range(1, rounds)]
    return (*between, density)  # the last as given, free of rounding


def prune(
    score: ScoreFn,
    params: Params,
    *,
    density: float,
    rounds: int,
    schedule: str = "exponential",
    scope: str = "global",
    key: Key | None = None,
    prunable: Prunable = masks.is_kernel,
    progress: Progress | None = None,
    jit: bool = True,
) -> Mask:
    """The mask left after `rounds` rounds of scoring the kept weights and pruning those of smallest score.

    In round t, `score(masked_params, key)` is taken on the weights with the pruned ones at 0, and the largest scores
    are kept down to the density ρ_t of `densities`: exactly round(ρ_t·N) of the N prunable weights, ties as in
    `masks.from_scores`. A pruned weight never returns, whatever its score. Scores of pruned weights are not read, so
    that they may be NaN or infinite. `key` is folded with t for each round; None is passed on as it is, for a score
    that needs none. `progress(t, rounds, density)` is called after each round.

    Each round costs one score and one selection, linear in N. Both are compiled once, for all rounds, all densities
    and every further call with the same `score` object, also under `jax.vmap` over seeds: `jax.vmap(lambda params, key:
    prune(score, params, density=0.1, rounds=100, key=key))(stacked_params, keys)` runs the rounds one by one on all
    seeds at once. Do not put a `jax.jit` around it: that compiles all rounds into one program. What `score` closes
    over is read while it is traced and becomes a constant of the program. With `jit=False`, `score` is called as it
    is: for data that change between calls, or that do not fit in memory (batches in a generator are used up after one
    round; give an iterable that can be read again).

    Raises ValueError for a density outside (0, 1] or which keeps nothing, for no round, an unknown schedule or scope,
    nothing prunable, a score of another tree, and NaN or infinite scores of kept weights (with the leaf and the round).
    Under `vmap` and `jit` values cannot be read: then such scores end in a mask that keeps no prunable weight.

    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020,
    algorithm 1, with the exponential schedule; its code loses ties, so that its counts can be off.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[3.0, -1.0, 4.0], [1.0, -5.0, 2.0]])}
    >>> mask = prune(lambda params, key: {"kernel": jnp.abs(params["kernel"])}, params, density=0.5, rounds=3)
    >>> mask["kernel"].astype(int).tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    counts = [
        masks.kept_counts(params, density=density_, scope=scope, prunable=prunable)
        for density_ in densities(density=density, rounds=rounds, schedule=schedule)
    ]
    size = masks.kept_counts(params, density=1.0, prunable=prunable).item()
    # JAX keeps what it compiles for one function object, so that a later call with the same score compiles nothing
    compiled = jax.jit(score) if jit else score
    # made from the weights, so that under vmap it has the seeds' axis in the first round as in all others
    mask = jax.tree.map(lambda leaf: (leaf == leaf) | True, params)
    for round_, kept in enumerate(counts, start=1):
        masked, round_key = _begin_round(mask, params, key, round_)
        scores = compiled(masked, round_key)
        check_like(scores, params, name="score")
        try:
            mask = masks.keep_largest(scores, kept, scope=scope, prunable=prunable, within=mask)
        except ValueError as error:
            raise ValueError(f"In round {round_} of {rounds}: {error}") from error
        if progress is not None:
            progress(round_, rounds, kept.sum().item() / size)
    return mask


@jax.jit
def _begin_round(mask: Mask, params: Params, key: Key | None, round_: jax.Array) -> tuple[Params, Key | None]:
    return masks.apply_mask(mask, params), None if key is None else jax.random.fold_in(key, round_)
