"""Pruning: loops that score, mask and score again.

One shot is `masks.from_scores` on one score; `prune` does it in rounds; `lottery_ticket` trains in between.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path
from jax.typing import ArrayLike

from pathjax import masks
from pathjax._base.programs import compiled
from pathjax._base.trees import check_like, concrete
from pathjax._pruning import selection
from pathjax.types import Key, Mask, Params, Prunable, Real, Scores

__all__ = ["Ticket", "densities", "lottery_ticket", "prune"]

ScoreFn: TypeAlias = Callable[[Params, Key | None], Scores]
"""`score(masked_params, key)`: a pytree like `params`; the largest are kept."""

TrainFn: TypeAlias = Callable[[Params, Mask, int, int, Key | None], Params]
"""`train(params, mask, start, stop, key)`: the weights after the steps from `start` up to `stop`, pruned ones held."""

InitFn: TypeAlias = Callable[[Key], Params]
"""`init(key)`: new weights."""

Progress: TypeAlias = Callable[[int, int, float], None]
"""`progress(round, rounds, density)`, called after each round, from 1 on."""

_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "exponential": lambda density, share: density**share,
    "linear": lambda density, share: 1.0 - (1.0 - density) * share,
}


def densities(
    *, density: Real, rounds: int | None = None, schedule: str | Sequence[Real] = "exponential"
) -> tuple[float, ...]:
    """The density after each round t = 1 … T: ρ^(t/T), or with schedule "linear" 1 − (1 − ρ)·t/T. The last is ρ itself.

    The `schedule` may be the densities themselves, as many as there are rounds; `rounds` can then be left out.

    Raises ValueError where a density is outside (0, 1], there is no round, the schedule is unknown, or given densities
    are not as many as the rounds or do not end at ρ.

    >>> densities(density=0.0625, rounds=4)
    (0.5, 0.25, 0.125, 0.0625)
    >>> densities(density=0.25, rounds=3, schedule="linear")
    (0.75, 0.5, 0.25)
    >>> densities(density=0.1, schedule=(0.5, 0.1, 0.1))
    (0.5, 0.1, 0.1)
    """
    selection.check_density(density)
    if not isinstance(schedule, str):
        return _given(schedule, density, rounds)
    if rounds is None:
        raise ValueError(f'The schedule "{schedule}" needs the number of `rounds`. Pass it, or pass the densities.')
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more; it is {rounds}.")
    if schedule not in _SCHEDULES:
        known = " and ".join(f'"{name}"' for name in _SCHEDULES)
        raise ValueError(f'Unknown schedule "{schedule}". The schedules are {known}.')
    between = [_SCHEDULES[schedule](density, t / rounds) for t in range(1, rounds)]
    return (*between, float(density))  # the last as given, free of rounding


def prune(
    score: ScoreFn,
    params: Params,
    *,
    density: Real,
    rounds: int | None = None,
    schedule: str | Sequence[Real] = "exponential",
    scope: str = "global",
    key: Key | None = None,
    revive: bool = False,
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

    `rounds` and `schedule` are those of `densities`: a name and a number, or the densities themselves.

    With `revive`, pruned weights may return: in each round all prunable weights compete, and all scores must be finite.
    A pruned weight is worth what it would bring back, which its 0 among the masked weights does not tell: let the
    `score` close over the weights before pruning, as FORCE needs them:

        def score(masked, key):
            kept = jax.tree.map(lambda leaf: leaf != 0, masked)
            return scores.force(apply, params, batches, mask=kept)

        prune(score, params, density=0.01, rounds=60, revive=True)

    Each round costs one score and one selection, linear in N. Both are compiled into one program, once for all rounds,
    all densities and every further call with the same `score` object, also under `jax.vmap` over seeds:
    `jax.vmap(lambda params, key: prune(score, params, density=0.1, rounds=100, key=key))(stacked_params, keys)` runs
    the rounds one by one on all seeds at once. Do not put a `jax.jit` around it: that compiles all rounds into one
    program. What `score` closes over is read while it is traced and becomes a constant of the program. With
    `jit=False`, `score` is called as it is: for data that change between calls, or that do not fit in memory (batches
    in a generator are used up after one round; give an iterable that can be read again).

    Raises ValueError for a density outside (0, 1] or which keeps nothing, for no round, an unknown schedule or scope,
    given densities that rise without `revive` or do not end at `density`, nothing prunable, a score of another tree,
    and NaN or infinite scores of weights that compete (with the leaf and the round).
    Under `vmap` and `jit` values cannot be read: then such scores end in a mask that keeps no prunable weight.

    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020,
    algorithm 1, with the exponential schedule; its code loses ties, so that its counts can be off. Revival: de Jorge et
    al., "Progressive skeletonization: trimming more fat from a network at initialization", 2021.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[3.0, -1.0, 4.0], [1.0, -5.0, 2.0]])}
    >>> mask = prune(lambda params, key: {"kernel": jnp.abs(params["kernel"])}, params, density=0.5, rounds=3)
    >>> mask["kernel"].astype(int).tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    planned = densities(density=density, rounds=rounds, schedule=schedule)
    if not revive:
        _check_falling(planned)
    counts = [masks.kept_counts(params, density=reached, scope=scope, prunable=prunable) for reached in planned]
    size = masks.kept_counts(params, density=1.0, prunable=prunable).item()
    rules: dict[str, Any] = {"scope": scope, "prunable": _Chosen.by(prunable, params), "revive": revive}
    step = compiled(_sound_round, score, static=("scope", "prunable", "revive")) if jit else None
    # made from the weights, so that under vmap it has the seeds' axis in the first round as in all others
    mask = jax.tree.map(lambda leaf: (leaf == leaf) | True, params)
    for round_, kept in enumerate(counts, start=1):
        begin, sound = (mask, params, key, round_, kept), False
        if step is not None:
            mask, sound = step(*begin, **rules)
        if sound is False or (concrete(sound) is not None and not sound):
            mask, contests = _round(score, *begin, **rules)
            _check_round(contests, f"In round {round_} of {len(counts)}")
        if progress is not None:
            progress(round_, len(counts), kept.sum().item() / size)
    return mask


class Ticket(NamedTuple):
    """A sparse network to be trained: its mask, and the weights to start from, pruned ones at 0."""

    mask: Mask
    params: Params


def lottery_ticket(
    train: TrainFn,
    params: Params,
    *,
    steps: int,
    density: Real,
    rewind: int = 0,
    pruned: Real = 0.2,
    scope: str = "global",
    key: Key | None = None,
    reinitialize: InitFn | None = None,
    prunable: Prunable = masks.is_kernel,
    progress: Progress | None = None,
) -> Ticket:
    """A lottery ticket by iterative magnitude pruning: train, prune the smallest weights, rewind the others, repeat.

    Level by level the kept weights are trained from where they were after `rewind` = k steps, to the end after `steps`,
    and the largest |θ| of the trained weights are kept: a share `pruned` of the survivors goes, until `density` is left
    with the last level. So level ℓ keeps exactly round((1 − pruned)^ℓ·N) of the N prunable weights, ties as in
    `masks.from_scores`, and nothing comes back. The ticket has the last mask, and under it the weights as they were
    after k steps, those of `params` with k = 0: train it from step k, `train(ticket.params, ticket.mask, k, steps,
    key)`, to see what it wins.

    `train(params, mask, start, stop, key)` takes masked weights through the steps from `start` up to `stop`; a schedule
    of learning rates should be read at these. What it holds of pruned weights is not read. What training carries along
    besides the weights, as momentum, starts anew at step k. It is called once with the full mask from 0 to k where
    k > 0, and once for each level from k to `steps`; `key` is folded with 0 there and with ℓ in level ℓ, and None is
    passed on. `progress(level, levels, density)` is called after each level. Density 1 has no level.

    With `reinitialize`, a function `init(key)`, no level rewinds: each trains new random weights, and so does the
    ticket, a control that tells what the mask is worth without its weights. It needs a key, and k = 0. The control of
    one ticket's mask alone is `masks.reinitialize(init, ticket.mask, key=key)`.

    Cost: as many trainings as levels, 11 for density 0.1, besides the first k steps.

    Raises ValueError for a density outside (0, 1] or which keeps nothing, a `pruned` outside (0, 1), steps that do not
    go beyond k, a k below 0, `reinitialize` without key or with k > 0, nothing prunable, weights of another tree from
    `train` or `reinitialize`, and trained weights that are NaN or infinite (with the leaf and the level).

    Source: Frankle, Carbin, "The lottery ticket hypothesis: finding sparse, trainable neural networks", 2019, and with
    k > 0 Frankle, Dziugaite, Roy, Carbin, "Linear mode connectivity and the lottery ticket hypothesis", 2020. Their
    code prunes a share of the survivors rounded up at each level, so that its counts drift from the powers.

    >>> import jax.numpy as jnp
    >>> def train(params, mask, start, stop, key):  # each step moves the weights by 1, the last most
    ...     return {"kernel": params["kernel"] + (stop - start) * jnp.array([[0.0, 1.0, 2.0, 3.0]])}
    >>> params = {"kernel": jnp.array([[1.0, 2.0, -5.0, 0.5]])}
    >>> ticket = lottery_ticket(train, params, steps=2, density=0.5, pruned=0.3)
    >>> ticket.mask["kernel"].tolist(), ticket.params["kernel"].tolist()
    ([[False, True, False, True]], [[0.0, 2.0, 0.0, 0.5]])
    """
    _check_steps(steps, rewind)
    planned = _levels(density, pruned)
    counts = [masks.kept_counts(params, density=reached, scope=scope, prunable=prunable) for reached in planned]
    size = masks.kept_counts(params, density=1.0, prunable=prunable).item()
    mask = jax.tree.map(lambda leaf: (leaf == leaf) | True, params)
    if reinitialize is not None:
        if key is None or rewind > 0:
            raise ValueError("`reinitialize` draws new weights for step 0: pass a `key`, and no `rewind`.")
        key, init_key = jax.random.split(key)
        starts = _drawn(reinitialize, params, init_key)
    elif rewind > 0:
        early = train(params, mask, 0, rewind, _folded(key, 0))
        check_like(early, params, name="train")
        starts = itertools.repeat(early)
    else:
        starts = itertools.repeat(params)
    for level, kept in enumerate(counts, start=1):
        start = masks.apply_mask(mask, next(starts))
        trained = train(start, mask, rewind, steps, _folded(key, level))
        check_like(trained, params, name="train")
        sizes = jax.tree.map(jnp.abs, trained)
        try:
            mask = masks.keep_largest(sizes, kept, scope=scope, prunable=prunable, within=mask)
        except ValueError as error:
            raise ValueError(f"In level {level} of {len(counts)}, of the trained weights: {error}") from error
        if progress is not None:
            progress(level, len(counts), kept.sum().item() / size)
    return Ticket(mask, masks.apply_mask(mask, next(starts)))


def _round(
    score: ScoreFn,
    mask: Mask,
    params: Params,
    key: Key | None,
    round_: ArrayLike,
    kept: ArrayLike,
    *,
    scope: str,
    prunable: Prunable,
    revive: bool,
) -> tuple[Mask, list[selection.Contest]]:
    """The mask after one more round, and the contests that it comes from, not yet checked."""
    round_key = _folded(key, round_)
    scores = score(masks.apply_mask(mask, params), round_key)
    check_like(scores, params, name="score")
    return selection.select(scores, kept, scope=scope, prunable=prunable, within=None if revive else mask)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """A predicate by its answers, so that another one with the same answers compiles nothing anew."""

    names: frozenset[str]

    def __call__(self, key_path: tuple[Any, ...], leaf: Any) -> bool:
        return keystr(key_path) in self.names

    @classmethod
    def by(cls, prunable: Prunable, params: Params) -> _Chosen:
        leaves = tree_flatten_with_path(params)[0]
        return cls(frozenset(keystr(path) for path, leaf in leaves if prunable(path, leaf)))


def _sound_round(score: ScoreFn, *begin: Any, **rules: Any) -> tuple[Mask, jax.Array]:
    """`_round`, with whether its contests are sound in their place.

    In one program neither the masked weights nor the scores need be written out.
    """
    mask, contests = _round(score, *begin, **rules)
    return mask, selection.sound(contests)


def _check_round(contests: list[selection.Contest], where: str) -> None:
    try:
        for contest in contests:
            selection.check(contest)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _folded(key: Key | None, number: ArrayLike) -> Key | None:
    return None if key is None else jax.random.fold_in(key, number)


def _drawn(reinitialize: InitFn, params: Params, key: Key) -> Iterator[Params]:
    """New weights, again and again."""
    for number in itertools.count():
        drawn = reinitialize(jax.random.fold_in(key, number))
        check_like(drawn, params, name="reinitialize")
        yield drawn


def _levels(density: Real, pruned: Real) -> tuple[float, ...]:
    """The densities that pruning a share of the survivors goes through, down to `density`; none where it is 1."""
    selection.check_density(density)
    if not 0.0 < pruned < 1.0:
        raise ValueError(
            f"`pruned` must lie in (0, 1), the share of the survivors that each level prunes; it is {pruned}."
        )
    # a power of 1 − pruned is reached by its level, though rounding may leave it just short
    levels = math.ceil(math.log(density) / math.log(1.0 - pruned) - 1e-9)
    return (*((1.0 - pruned) ** level for level in range(1, levels)), *[float(density)] * (levels > 0))


def _check_steps(steps: int, rewind: int) -> None:
    if not 0 <= rewind < steps:
        raise ValueError(
            f"Levels train from step `rewind` to `steps`, so that 0 ≤ rewind < steps; they are {rewind} and {steps}."
        )


def _given(schedule: Sequence[Real], density: Real, rounds: int | None) -> tuple[float, ...]:
    if len(schedule) == 0:
        raise ValueError("`schedule` is an empty sequence, but there must be one round or more. Give its densities.")
    if rounds is not None and rounds != len(schedule):
        raise ValueError(
            f"`schedule` gives the densities of {len(schedule)} rounds, but `rounds` is {rounds}. Leave `rounds` out."
        )
    for reached in schedule:
        selection.check_density(reached)
    if schedule[-1] != density:
        raise ValueError(f"`schedule` ends at {schedule[-1]}, but `density` is {density}. Let it end there.")
    return tuple(map(float, schedule))


def _check_falling(planned: Sequence[float]) -> None:
    for round_, (before, after) in enumerate(itertools.pairwise(planned), start=2):
        if after > before:
            raise ValueError(
                f"`schedule` rises from {before} to {after} in round {round_}, but a pruned weight never returns. Let "
                "it fall, or pass `revive=True`."
            )
