"""Iterative pruning: score the weights, prune the lowest, and repeat until the wanted density is reached.

`sparsify` prunes a network and freezes its optimizer in one call. `prune` takes any score, which it computes anew in
every round; `lottery_ticket` trains between rounds; `densities` gives the schedule.
Pruning in one shot is `masks.from_scores` on one score.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten_with_path, tree_map_with_path
from jax.typing import ArrayLike

from pathjax import masks
from pathjax._base.arguments import parameter_names, takes
from pathjax._base.kernels import prunable_leaves
from pathjax._base.leaves import ChosenLeaves
from pathjax._base.programs import Kept, kept_for
from pathjax._base.trees import check_like, concrete, in_own_containers
from pathjax._pruning import selection
from pathjax._pruning.freezing import is_optimizer
from pathjax._pruning.losses import kernels_of, replayable
from pathjax.types import ApplyFn, Key, Mask, Params, Prunable, Real, Scores, State

if TYPE_CHECKING:
    import optax

__all__ = ["Sparse", "Ticket", "densities", "lottery_ticket", "prune", "sparsify"]

ScoreFn: TypeAlias = Callable[[Params, Key | None], Scores]
"""`score(masked_params, key)` returns scores, a pytree like `params`; the weights of largest score are kept."""

TrainFn: TypeAlias = Callable[..., Any]
"""`train(params, mask, start, stop, key)` gives the weights after steps `start` … `stop` − 1, pruned weights fixed.

With a state it is `train(params, state, mask, start, stop, key)`, which gives the weights and the state.
"""

InitFn: TypeAlias = Callable[[Key], Params]
"""`init(key)` returns new random weights."""

Progress: TypeAlias = Callable[[int, int, float], None]
"""`progress(round, rounds, density)` is called after each round, with `round` from 1 to `rounds`."""

_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "exponential": lambda density, share: density**share,
    "linear": lambda density, share: 1.0 - (1.0 - density) * share,
}


def densities(
    *, density: Real, rounds: int | None = None, schedule: str | Sequence[Real] = "exponential"
) -> tuple[float, ...]:
    """The density after each of T = `rounds` rounds of pruning, the last of which is exactly ρ = `density`.

    After round t it is ρ^(t/T) with schedule "exponential" and 1 − (1 − ρ)·t/T with "linear". `schedule` may also be a
    sequence with the density after each round; `rounds` can then be left out.

    Raises ValueError where a density is outside (0, 1], `rounds` is below 1 or missing, the schedule is unknown, or a
    sequence of densities is empty, has another length than `rounds`, or does not end at ρ.

    >>> densities(density=0.0625, rounds=4)
    (0.5, 0.25, 0.125, 0.0625)
    >>> densities(density=0.25, rounds=3, schedule="linear")
    (0.75, 0.5, 0.25)
    >>> densities(density=0.1, schedule=(0.5, 0.1, 0.1))
    (0.5, 0.1, 0.1)
    """
    selection.check_density(density)
    if not isinstance(schedule, str):
        return _checked_schedule(schedule, density, rounds)
    if rounds is None:
        raise ValueError(f'The schedule "{schedule}" needs the number of `rounds`. Pass it, or pass the densities.')
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more; it is {rounds}.")
    if schedule not in _SCHEDULES:
        known = " and ".join(f'"{name}"' for name in _SCHEDULES)
        raise ValueError(f'Unknown schedule "{schedule}". The schedules are {known}.')
    before_last = [_SCHEDULES[schedule](density, t / rounds) for t in range(1, rounds)]
    return (*before_last, float(density))  # the formula would round the last one


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
    """Prune in rounds: score the kept weights, prune those of smallest score, repeat; gives the mask of kept weights.

    Round t calls `score(masked_params, key)` with pruned weights at 0, and keeps exactly round(ρ_t·N) of the N prunable
    weights, those of largest score; ties are broken as in `masks.from_scores`. ρ_t is the density that
    `densities(density=…, rounds=…, schedule=…)` gives for round t. A pruned weight never returns; its score is not read
    and may be NaN or infinite. Round t gets `jax.random.fold_in(key, t)` as its key, or None where `key` is None.
    `progress(t, rounds, density)` is called after each round.

    With `revive`, pruned weights can return: in each round all prunable weights compete, and all scores must be finite.
    The score of a pruned weight then needs its value before pruning, which `masked_params` do not hold. So let `score`
    close over the unpruned weights, as for FORCE:

        def score(masked, key):
            kept = jax.tree.map(lambda leaf: leaf != 0, masked)
            return scores.force(apply, params, batches, mask=kept)

        prune(score, params, density=0.01, rounds=60, revive=True)

    Cost: in each round one call of `score` and one selection, which is linear in N. `score` is compiled at the first
    call, once for all rounds and all densities; so is the selection, except on one CPU, where NumPy selects. Later
    calls use the same programs where `score` has the same code and captures the same: a lambda that is written anew,
    with the same `apply` and the same array objects. It is compiled again where a captured array of JAX, list or object
    is a new one, even of equal content; so make these once, outside of a loop over seeds or densities. To prune many
    seeds at once, use `jax.vmap(lambda params, key: prune(score, params, density=0.1, rounds=100,
    key=key))(stacked_params, keys)`, which compiles one program for the scores and one for the selection. Do not wrap
    `prune` in `jax.jit`: that unrolls all rounds into one program.

    `score` must be pure, and what it captures is constant during a call. A list, an attribute or a global variable that
    has changed before the next call is noticed; what has changed between two rounds is not. Pass `jit=False` to call
    `score` itself in every round: for data that change between rounds, or do not fit in memory. A generator of batches
    is then used up after one round, so give an iterable that can be read again.

    Raises ValueError for a density outside (0, 1] or so low that it keeps nothing, no round, an unknown schedule or
    scope, a schedule that rises (without `revive`) or does not end at `density`, no prunable leaf, a score of another
    tree, and a NaN or infinite score of a weight that may be kept (names the leaf and the round). Under `vmap` and
    `jit`, where values cannot be read, such a score gives a mask that keeps no prunable weight.

    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020,
    algorithm 1, with the exponential schedule; their code prunes all weights that tie with the threshold, so it can
    keep fewer. Revival: de Jorge et al., "Progressive skeletonization: trimming more fat from a network at
    initialization", 2021.

    >>> import jax, jax.numpy as jnp
    >>> from pathjax import masks, scores
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0))
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 20)), "out": jax.random.normal(keys[1], (20, 3))}
    >>> def score(masked_params, key):
    ...     return scores.synflow(apply, masked_params, jnp.zeros((1, 4)))
    >>> mask = prune(score, params, density=0.25, rounds=20)
    >>> int(masks.count(mask)), jax.tree.map(jnp.shape, mask)
    (35, {'hidden': (4, 20), 'out': (20, 3)})
    """
    _check_score(score)
    planned = densities(density=density, rounds=rounds, schedule=schedule)
    if not revive:
        _check_falling(planned)
    options: dict[str, Any] = {"scope": scope, "prunable": ChosenLeaves.read(prunable, params), "revive": revive}
    return _after_rounds(score, params, (), planned, options, key=key, progress=progress, jit=jit)


def _after_rounds(
    score: Callable[..., Scores],
    params: Params,
    read: tuple[Any, ...],
    planned: Sequence[float],
    options: dict[str, Any],
    *,
    key: Key | None,
    progress: Progress | None,
    jit: bool = True,
) -> Mask:
    """The mask after rounds that keep the planned densities, by score(masked_params, key, *read)."""
    chosen, scope = options["prunable"], options["scope"]
    counts = [masks.kept_counts(params, density=after, scope=scope, prunable=chosen) for after in planned]
    size = masks.kept_counts(params, density=1.0, prunable=chosen).item()
    compiled_ballot = kept_for(score, Kept).compiled(_compiled_ballot, **options) if jit else None
    # Computed from the weights, so that under vmap the first masks have the seeds' axis, as all later masks have.
    leaves = tree_flatten_with_path(params)[0]
    places = [place for place, leaf in enumerate(leaves) if chosen(*leaf)]
    kept_masks = [(leaves[place][1] == leaves[place][1]) | True for place in places]
    for round_, kept in enumerate(counts, start=1):
        arguments = (kept_masks, params, key, round_, read)
        if compiled_ballot is None:
            kept_masks, can_return = _checked_round(score, arguments, kept, len(counts), options)
        else:
            ballot = compiled_ballot(*arguments)
            rankings, can_return = selection.rank(ballot.ordinals, kept), ballot.can_return
            kept_masks = selection.masks_of(rankings)
            is_sound = concrete(selection.sound(rankings))
            # After unsound scores of a compiled round, the same round runs uncompiled: it can raise and name the leaf.
            if is_sound is not None and not is_sound:
                kept_masks, can_return = _checked_round(score, arguments, kept, len(counts), options)
        if options["revive"]:
            _check_can_return(can_return, round_)
        if progress is not None:
            progress(round_, len(counts), kept.sum().item() / size)
    return selection.as_mask(dict(zip(places, kept_masks, strict=True)), params)


class Sparse(NamedTuple):
    """A pruned network, ready to train: the weights, with pruned ones at 0, and an optimizer that keeps them there.

    Attributes:
        params: the weights to start from.
        optimizer: the optax optimizer, frozen by the mask.
        mask: which weights are kept.
    """

    params: Params
    optimizer: optax.GradientTransformationExtraArgs
    mask: Mask


def sparsify(
    score: Callable[..., Scores],
    apply: ApplyFn,
    params: Params,
    data: Any,
    optimizer: optax.GradientTransformation,
    *,
    density: Real,
    rounds: int,
    scope: str = "global",
    state: State = None,
    key: Key | None = None,
    prunable: Prunable | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Sparse:
    """Prune a network before training, and freeze its optimizer: all that a training script needs, in one call.

    `score` is one of the `pathjax.scores` that take `apply`, and `data` is what that score reads: `x_like` for
    `scores.synflow`, a list of batches (x, y) for `scores.snip`. All other `options`, such as `loss=` and `has_aux=` of
    `scores.snip` or `init=` of `scores.ntk_sap`, are handed on to the score. `rounds` is 100 for SynFlow and 1 for
    SNIP, as in their papers. The weights of the network's kernels are pruned (`paths.kernels`), unless `prunable`
    chooses other leaves. The `key` is for scores that draw random numbers; each round gets a key of its own.

    Not for `scores.random` and `scores.magnitude`, which read no network: use `masks.from_scores`. Not for
    `scores.force` either, which needs the mask of the round: use `prune` with `revive=True`.

    With a `state` (see `pathjax.types`) the network is `apply(params, state, x)`.

    The result is a `Sparse`: the masked weights, the frozen optimizer and the mask. The steps are `prune`,
    `masks.apply_mask` and `masks.freeze`; call these yourself for other schedules or for revival. Cost and errors are
    theirs and those of the score. Another call compiles again if `data` is another object. Also raises TypeError for an
    `optimizer` that is none of optax.

    Source: that of the score, in `pathjax.scores`.

    >>> import jax, jax.numpy as jnp, optax
    >>> from pathjax import masks, scores
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> params = {"first": jax.random.normal(jax.random.key(0), (4, 20)), "second": jnp.ones((20, 3))}
    >>> params, optimizer, mask = sparsify(
    ...     scores.synflow, apply, params, jnp.zeros((8, 4)), optax.adam(1e-3), density=0.1, rounds=100
    ... )
    >>> int(masks.count(mask)), sum(int(jnp.count_nonzero(leaf)) for leaf in params.values())
    (14, 14)
    >>> optimizer_state = optimizer.init(params)  # from here on train as usual
    >>> gradient = jax.grad(lambda params: apply(params, jnp.ones((8, 4))).sum())(params)
    >>> updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
    >>> params = optax.apply_updates(params, updates)
    >>> sum(int(jnp.count_nonzero(leaf)) for leaf in params.values())
    14
    """
    _check_optimizer(optimizer, data)
    _check_takes_network(score, {} if key is None else {"key": key}, options)
    data = replayable(data)
    bound = functools.partial(score, **options)  # compared by what it holds, so that equal options compile once
    chosen = ChosenLeaves.read(prunable or kernels_of(apply, params, state, data), params)

    def score_of_round(masked: Params, key: Key | None, state: State) -> Scores:
        keys = {} if key is None else {"key": key}
        return bound(apply, masked, data, state=state, prunable=chosen, **keys)

    planned = densities(density=density, rounds=rounds)
    selected: dict[str, Any] = {"scope": scope, "prunable": chosen, "revive": False}
    # the state is handed over and not captured: another one compiles nothing
    mask = _after_rounds(score_of_round, params, (state,), planned, selected, key=key, progress=progress)
    return Sparse(masks.apply_mask(mask, params), masks.freeze(optimizer, mask), mask)


def _check_takes_network(score: Callable[..., Any], keys: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise TypeError unless the score takes what `sparsify` calls it with."""
    given = {"state": None, "prunable": None} | keys | options
    try:
        inspect.signature(score).bind(None, None, None, **given)
    except ValueError:  # a function that does not tell
        return
    except TypeError as error:
        raise TypeError(
            f"`sparsify` calls score(apply, params, data, {', '.join(f'{name}=' for name in given)}), but `score` "
            f"takes {parameter_names(score)}: {error}. For `scores.random` and `scores.magnitude`, which read no "
            "network, make the mask by `masks.from_scores`; for `scores.force`, which needs the mask of each round, "
            "use `prune` with `revive=True`."
        ) from error


def _check_optimizer(optimizer: Any, data: Any) -> None:
    """Raise TypeError unless the optimizer has `init` and `update`, before anything is scored."""
    if is_optimizer(optimizer):
        return
    if is_optimizer(data):
        raise TypeError(
            "The arguments `data` and `optimizer` of `sparsify` are swapped: write sparsify(score, apply, params, "
            "data, optimizer, ...)."
        )
    raise TypeError(
        f"`optimizer` is a {type(optimizer).__name__}, but an optax optimizer has `init` and `update`. Write "
        "sparsify(score, apply, params, data, optimizer, ...), with optax.adam(1e-3) for example."
    )


class Ticket(NamedTuple):
    """A sparse network to train: its mask, and what to start from.

    Attributes:
        mask: which weights are kept.
        params: the weights at the rewind step, with pruned weights at 0.
        state: the state at the rewind step, such as the running statistics of batch norm; None where there is none.
    """

    mask: Mask
    params: Params
    state: State = None


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
    state: State = None,
    prunable: Prunable = masks.is_kernel,
    progress: Progress | None = None,
) -> Ticket:
    """Find a lottery ticket: train, prune the smallest weights, rewind the others, and repeat.

    This is iterative magnitude pruning. Each level trains the kept weights from step k = `rewind` to step `steps`,
    starting from their values at step k, and then prunes a share `pruned` of them, those of smallest |θ|. Level ℓ keeps
    exactly round((1 − pruned)^ℓ·N) of the N prunable weights, the last level round(density·N); ties are broken as in
    `masks.from_scores`. A pruned weight never returns. The ticket holds the last mask and the masked weights of step k,
    which for k = 0 are those of `params`. Train it from step k: `train(ticket.params, ticket.mask, k, steps, key)`.

    `train(params, mask, start, stop, key)` must run the steps `start` … `stop` − 1, so a schedule of learning rates
    should be read at these steps; the values it returns for pruned weights are not read. Optimizer state is not carried
    over: momentum starts at zero in step k. `train` is called once for each level and, if k > 0, once before them with
    a mask of all True for steps 0 … k − 1. Its key is `jax.random.fold_in(key, ℓ)` in level ℓ, with ℓ = 0 for the call
    before the levels, or None where `key` is None. `progress(level, levels, density)` is called after each level. With
    `density=1` there is no level.

    With a `state`, such as the running statistics of batch norm, training is `train(params, state, mask, start, stop,
    key)` and returns a pair, the weights and the state. Each level starts from the state of step k, as from its
    weights; the ticket holds that state, with which its training starts: `train(ticket.params, ticket.state,
    ticket.mask, k, steps, key)`.

    With `reinitialize`, a function `init(key)`, each level trains new random weights in place of rewound ones, and the
    ticket holds new random weights too: a control for what the mask is worth without its weights. It needs k = 0 and a
    `key`, which is split in two, for `train` and for `init`. To redraw the weights of a finished ticket only, use
    `masks.reinitialize(init, ticket.mask, key=key)`.

    Cost: one training per level, ⌈log(density)/log(1 − pruned)⌉ in all (11 for density 0.1), and the first k steps.

    Raises ValueError for a density outside (0, 1] or so low that it keeps nothing, `pruned` outside (0, 1), k below 0
    or not below `steps`, `reinitialize` without a key or with k > 0, no prunable leaf, weights of another tree from
    `train` or `reinitialize`, and trained weights that are NaN or infinite (names the leaf and the level).

    Source: Frankle, Carbin, "The lottery ticket hypothesis: finding sparse, trainable neural networks", 2019, and with
    k > 0 Frankle, Dziugaite, Roy, Carbin, "Linear mode connectivity and the lottery ticket hypothesis", 2020. Their
    code rounds the number of pruned weights up in each level, so its counts drift away from (1 − pruned)^ℓ·N.

    >>> import jax, jax.numpy as jnp, optax
    >>> from pathjax import masks
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 20)), "out": jax.random.normal(keys[1], (20, 3))}
    >>> x = jax.random.normal(keys[2], (32, 4))
    >>> @jax.jit
    ... def slope(params):
    ...     return jax.grad(lambda p: jnp.mean((jax.nn.relu(x @ p["hidden"]) @ p["out"] - x[:, :3]) ** 2))(params)
    >>> def train(params, mask, start, stop, key):
    ...     optimizer = masks.freeze(optax.sgd(0.01), mask)
    ...     optimizer_state = optimizer.init(params)
    ...     for step in range(start, stop):
    ...         updates, optimizer_state = optimizer.update(slope(params), optimizer_state, params)
    ...         params = optax.apply_updates(params, updates)
    ...     return params
    >>> show = lambda level, levels, density: print(f"level {level} of {levels}: density {density:.2f}")
    >>> ticket = lottery_ticket(train, params, steps=5, density=0.5, progress=show)
    level 1 of 4: density 0.80
    level 2 of 4: density 0.64
    level 3 of 4: density 0.51
    level 4 of 4: density 0.50
    >>> trained = train(ticket.params, ticket.mask, 0, 5, None)
    >>> int(masks.count(ticket.mask)), sum(int(jnp.count_nonzero(leaf)) for leaf in trained.values())
    (70, 70)
    """
    _check_steps(steps, rewind)
    _check_train(train, has_state=state is not None)
    planned = _levels(density, pruned)
    params, state = in_own_containers((params, state))  # those of the start, whatever `train` does to its model
    counts = [masks.kept_counts(params, density=after, scope=scope, prunable=prunable) for after in planned]
    size = masks.kept_counts(params, density=1.0, prunable=prunable).item()
    mask = jax.tree.map(lambda leaf: (leaf == leaf) | True, params)
    if reinitialize is not None:
        if key is None or rewind > 0:
            raise ValueError("`reinitialize` draws new weights for step 0: pass a `key`, and no `rewind`.")
        key, init_key = jax.random.split(key)
        starts = _drawn(reinitialize, params, init_key)
    elif rewind > 0:
        early, state = _trained(train, params, state, mask, 0, rewind, _folded(key, 0))
        starts = itertools.repeat(early)
    else:
        starts = itertools.repeat(params)
    for level, kept in enumerate(counts, start=1):
        start = masks.apply_mask(mask, next(starts))
        trained, _ = _trained(train, start, state, mask, rewind, steps, _folded(key, level))
        sizes = jax.tree.map(jnp.abs, trained)
        try:
            mask = masks.keep_largest(sizes, kept, scope=scope, prunable=prunable, within=mask)
        except ValueError as error:
            raise ValueError(f"In level {level} of {len(counts)}, of the trained weights: {error}") from error
        if progress is not None:
            progress(level, len(counts), kept.sum().item() / size)
    return Ticket(mask, masks.apply_mask(mask, next(starts)), state)


def _check_train(train: TrainFn, *, has_state: bool) -> None:
    """Raise TypeError unless `train` takes the arguments that it is called with, which a state adds one to."""
    called = f"train(params, {'state, ' if has_state else ''}mask, start, stop, key)"
    if takes(train, 6 if has_state else 5):
        return
    given = "a `state=` was given" if has_state else "no `state=` was given"
    remedy = (
        "Let `train` take the state as its second argument and return a pair, the weights and the state; or leave "
        "`state=` out."
        if has_state
        else "If `train` takes a state, pass the one to start from as `state=`."
    )
    raise TypeError(
        f"`train` takes the arguments {parameter_names(train)}, but {given}, so it is called as {called}. {remedy}"
    )


def _trained(train: TrainFn, params: Params, state: State, *rest: Any) -> tuple[Params, State]:
    """The weights and the state after training, both checked."""
    if state is None:
        trained = train(params, *rest)
    else:
        result = train(params, in_own_containers(state), *rest)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(
                f"`train` returned a {type(result).__name__}, but with a `state` it must return a pair, the weights "
                "and the state after training."
            )
        trained, after = result
        state = check_like(after, state, name="the state that `train` returned", like_name="state")
    return in_own_containers((check_like(trained, params, name="train"), state))


class _Ballot(NamedTuple):
    """What decides a round: the scores as integers, in the groups that are ranked together.

    Attributes:
        ordinals: those of each group, as `selection.ordinals` gives them.
        can_return: whether any pruned weight has a score other than 0.
    """

    ordinals: list[list[jax.Array]]
    can_return: jax.Array


def _compiled_ballot(kept: Kept, *arguments: Any, **options: Any) -> _Ballot:
    groups, can_return = _scored(kept.function(), *arguments, **options)
    return _Ballot([selection.ordinals(group.scores, group.within) for group in groups], can_return)


def _checked_round(
    score: Callable[..., Scores], arguments: tuple[Any, ...], kept: ArrayLike, rounds: int, options: dict[str, Any]
) -> tuple[list[Any], jax.Array]:
    """The masks of the prunable leaves after a round that is not compiled, and whether any pruned weight has a score.

    Raises ValueError, naming the round and the leaf, for scores that are not finite.
    """
    groups, can_return = _scored(score, *arguments, **options)
    contests = selection.contests(groups, kept)
    try:
        for contest in contests:
            selection.check(contest)
    except ValueError as error:
        raise ValueError(f"In round {arguments[3]} of {rounds}: {error}") from error
    return selection.masks_of([contest.ranking for contest in contests]), can_return


def _scored(
    score: Callable[..., Scores],
    kept_masks: list[Any],
    params: Params,
    key: Key | None,
    round_: ArrayLike,
    read: tuple[Any, ...],
    *,
    scope: str,
    prunable: Prunable,
    revive: bool,
) -> tuple[list[selection.Entrants], jax.Array]:
    """The leaves that are ranked together, with their scores at the masked weights, and whether any may return."""
    remaining = iter(kept_masks)
    masked = tree_map_with_path(
        lambda path, leaf: jnp.where(next(remaining), leaf, 0) if prunable(path, leaf) else jnp.asarray(leaf), params
    )
    scores = check_like(score(masked, _folded(key, round_), *read), params, name="score")
    groups = selection.entrants(prunable_leaves(scores, prunable), None if revive else kept_masks, scope=scope)
    if not revive:
        return groups, jnp.zeros((), bool)
    pairs = zip((leaf for group in groups for leaf in group.scores), kept_masks, strict=True)
    return groups, jnp.any(jnp.stack([jnp.any((leaf != 0) & ~kept_before) for leaf, kept_before in pairs]))


def _check_score(score: Any) -> None:
    """Raise TypeError unless `score` can be called with masked weights and a key."""
    if not callable(score):
        raise TypeError(
            f"`score` is a {type(score).__name__}, but each round calls it: pass a function score(masked_params, key), "
            "such as lambda masked, key: scores.synflow(apply, masked, x). For scores that are computed once, use "
            "masks.from_scores."
        )
    if not takes(score, 2):
        wrapped = "score(masked)" if takes(score, 1) else "scores.synflow(apply, masked, x)"
        raise TypeError(
            f"`score` takes the arguments {parameter_names(score)}, but each round calls score(masked_params, key). "
            f"Wrap it, for example: lambda masked, key: {wrapped}."
        )


def _check_can_return(can_return: Any, round_: int) -> None:
    """Raise ValueError in a round with pruned weights, unless traced, where no pruned weight has a score."""
    value = concrete(can_return)
    if round_ > 1 and value is not None and not value:
        raise ValueError(
            f"In round {round_} every pruned weight has the score 0, so that none can return, though `revive=True`. "
            "The score must not multiply by the masked weights: let it close over the weights before pruning, as "
            "scores.force does with `mask`, or leave `revive` out."
        )


def _folded(key: Key | None, number: ArrayLike) -> Key | None:
    return None if key is None else jax.random.fold_in(key, number)


def _drawn(reinitialize: InitFn, params: Params, key: Key) -> Iterator[Params]:
    """New random weights at each step of the iterator."""
    for number in itertools.count():
        drawn = reinitialize(jax.random.fold_in(key, number))
        yield check_like(drawn, params, name="reinitialize")


def _levels(density: Real, pruned: Real) -> tuple[float, ...]:
    """The density after each level that prunes a share `pruned` of what is left, down to `density`; empty for 1."""
    selection.check_density(density)
    if not 0.0 < pruned < 1.0:
        raise ValueError(
            f"`pruned` must lie in (0, 1), the share of the survivors that each level prunes; it is {pruned}."
        )
    # 1e-9: for density = (1 − pruned)^ℓ the quotient may round to just above ℓ, and ceil would add a level
    levels = math.ceil(math.log(density) / math.log(1.0 - pruned) - 1e-9)
    return (*((1.0 - pruned) ** level for level in range(1, levels)), *[float(density)] * (levels > 0))


def _check_steps(steps: int, rewind: int) -> None:
    if not 0 <= rewind < steps:
        raise ValueError(
            f"Each level trains from step `rewind` to `steps`: 0 ≤ rewind < steps; they are {rewind} and {steps}."
        )


def _checked_schedule(schedule: Sequence[Real], density: Real, rounds: int | None) -> tuple[float, ...]:
    if len(schedule) == 0:
        raise ValueError("`schedule` is an empty sequence. Give the density after each round, at least one.")
    if rounds is not None and rounds != len(schedule):
        raise ValueError(
            f"`schedule` gives the densities of {len(schedule)} rounds, but `rounds` is {rounds}. Leave `rounds` out."
        )
    for after in schedule:
        selection.check_density(after)
    if schedule[-1] != density:
        raise ValueError(
            f"`schedule` ends at {schedule[-1]}, but `density` is {density}. The last density must be `density`."
        )
    return tuple(map(float, schedule))


def _check_falling(planned: Sequence[float]) -> None:
    for round_, (before, after) in enumerate(itertools.pairwise(planned), start=2):
        if after > before:
            raise ValueError(
                f"`schedule` rises from {before} to {after} in round {round_}, but a pruned weight never returns. Give "
                "densities that fall, or pass `revive=True`."
            )
