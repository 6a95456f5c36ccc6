"""Neural Tangent Transfer: a sparse network that starts as its dense teacher does, and would train alike.

No labels are read: what is matched are the outputs and the Neural Tangent Kernel of the teacher.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path
from jaxtyping import Array, Float

from pathjax import masks, ntk
from pathjax._base import network as _network
from pathjax._base.programs import compiled
from pathjax._base.trees import concrete
from pathjax._interpreter.traced import traced
from pathjax.types import AnyArray, ApplyFn, Key, Mask, Params, Prunable, Real

if TYPE_CHECKING:
    import optax

__all__ = ["Transferred", "neural_tangent_transfer"]

Progress: TypeAlias = Callable[[int, int, jax.Array], None]
"""`progress(step, steps, loss)`, called after each step, from 1 on."""


class Transferred(NamedTuple):
    """A sparse student: its mask, its weights with pruned ones at 0, and the loss of each step before it was taken."""

    mask: Mask
    params: Params
    losses: Float[Array, " t"]


def neural_tangent_transfer(
    apply: ApplyFn,
    params: Params,
    inputs: AnyArray | Iterable[Any],
    *,
    density: Real,
    steps: int,
    key: Key,
    batch_size: int = 64,
    kernel_weight: Real = 1e-3,
    penalty: Real = 1e-5,
    optimizer: optax.GradientTransformation | None = None,
    refresh: int = 100,
    scope: str = "local",
    trace: bool = False,
    straight_through: bool = False,
    prunable: Prunable = masks.is_kernel,
    progress: Progress | None = None,
) -> Transferred:
    """A mask and weights whose outputs and Neural Tangent Kernel are near those of the dense network `params`.

    The loss of a batch of n examples, with student s, teacher t, mask m, and `kernel_weight` λ and `penalty` λ₂, is

        λ ‖Θ_s − Θ_t‖² / (n·o)² + ‖f_s − f_t‖² / (n·o) + (λ₂/ρ) ‖m ⊙ θ_s‖²

    The last sum runs over prunable leaves. Θ is the kernel of the batch with itself, (n·o)² numbers, and with `trace`
    its sum over equal outputs, n². Θ_s is of kept weights alone, which are those that will train. The student begins at
    the teacher's weights; its mask keeps the largest |θ|, exactly round(ρ·N) of the N of each prunable leaf (all
    together with `scope="global"`), and is chosen again every `refresh` steps, while more than `refresh` are left.

    Between two choices pruned weights are held where they were, and come back where kept ones have shrunk below them.
    So the paper has it: gradients flow through the mask, and masked weights are not updated. With `straight_through`
    they are, by the gradient at the masked weights, as if they had been there; a step takes 4 to 30 times as long then,
    as the fast kernel has derivatives by kept weights alone.

    `inputs` are one array (N, ...), of which each pass draws batches of `batch_size` in a new order by `key`; or they
    are batches, an iterable that is read in its order, and again when it ends, for which `batch_size` and `key` are not
    read. The `optimizer` is one of optax, Adam at 5e-4 unless given. `progress(step, steps, loss)` is called after each
    step; its loss is an array that is not waited for.

    Cost of a step with an unmasked kernel of the batch as the unit: about 4 where convolutions dominate and 14 where
    wide dense layers do, whose masked kernel takes n·o numbers of memory for each weight of the largest. The step is
    compiled once per batch shape, also for further calls with the same `apply`, `optimizer` and `prunable` objects, at
    any density; a `jax.vmap` over seeds runs them side by side. Do not put a `jax.jit` around it: that compiles all
    steps into one program.

    Raises ValueError for a density outside (0, 1] or which keeps nothing, for no step, `refresh` or `batch_size` below
    1, inputs without examples, not floating point or with NaN, an iterable that is used up, an `apply` whose output is
    not (n, o) or mixes examples, and weights (with the leaf and the step) or losses (with the step) that are not
    finite. Under `vmap` and `jit` values cannot be read: then such weights end in a mask that keeps no prunable weight.

    Source: Liu, Zenke, "Finding trainable sparse networks through Neural Tangent Transfer", 2020. Their code differs: Θ
    is between the two halves of a batch, Θ_s counts derivatives by pruned weights too, momentum moves a weight on
    for some steps after it was pruned, and a layer keeps about one weight less.

    >>> import jax, jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"first": jax.random.normal(keys[0], (4, 20)), "second": jax.random.normal(keys[1], (20, 3))}
    >>> inputs = jax.random.normal(keys[2], (8, 4))
    >>> student = neural_tangent_transfer(apply, params, inputs, density=0.25, steps=30, key=keys[0], refresh=10)
    >>> masks.count(student.mask).item(), student.losses.shape, bool(student.losses[-1] < student.losses[0])
    (35, (30,), True)
    """
    _check_steps(steps, refresh)
    _network.check_params(params)
    counts = masks.kept_counts(params, density=float(density), scope=scope, prunable=prunable)
    rule = _Rule(optimizer or _adam(), trace, straight_through, prunable)
    advance = compiled(_step, apply, static=("rule",))
    factors = jnp.asarray((kernel_weight, penalty / density))
    weights, state = params, rule.optimizer.init(params)
    mask = _largest(params, counts, scope, prunable, "At the start")
    losses = []
    for step, x in enumerate(itertools.islice(_batches(inputs, batch_size, key), steps), start=1):
        if step == 1:
            _network.check_outputs(traced(apply, params), params, x, "inputs")
        weights, state, loss = advance(weights, state, mask, params, x, factors, rule=rule)
        losses.append(loss)
        if step % refresh == 0 and step < steps - refresh:
            mask = _largest(weights, counts, scope, prunable, f"After step {step} of {steps}")
        if progress is not None:
            progress(step, steps, loss)
    found = jnp.stack(losses)
    _check_finite(found)
    return Transferred(mask, masks.apply_mask(mask, weights), found)


class _Rule(NamedTuple):
    """What a step is compiled for, besides the network and shapes."""

    optimizer: optax.GradientTransformation
    trace: bool
    straight_through: bool
    prunable: Prunable


def _step(
    apply: ApplyFn, weights: Params, state: Any, mask: Mask, teacher: Params, x: Array, factors: Array, *, rule: _Rule
) -> tuple[Params, Any, Array]:
    kept = masks.apply_mask(mask, weights)
    loss, slopes = jax.value_and_grad(_loss, argnums=1)(apply, kept, mask, teacher, x, factors, rule)
    optimizer = rule.optimizer if rule.straight_through else masks.freeze(rule.optimizer, mask)
    updates, state = optimizer.update(slopes, state, weights)
    return jax.tree.map(lambda leaf, update: leaf + update, weights, updates), state, loss


def _loss(apply: ApplyFn, weights: Params, mask: Mask, teacher: Params, x: Array, factors: Array, rule: _Rule) -> Array:
    """The loss at masked weights, to be differentiated by these."""
    student = (_kernel_at if rule.straight_through else _kernel_of)(apply, weights, mask, x, rule.trace)
    kernels = jnp.mean(jnp.square(student - _kernel_function(rule.trace)(apply, teacher, x)))
    outputs = jnp.mean(jnp.square(apply(weights, x) - apply(teacher, x)))
    norms = [jnp.sum(jnp.square(leaf)) for path, leaf in tree_leaves_with_path(weights) if rule.prunable(path, leaf)]
    kernel_weight, penalty = factors.astype(outputs.dtype)
    return kernel_weight * kernels + outputs + penalty * sum(norms)


@functools.cache
def _adam() -> optax.GradientTransformation:
    import optax  # here, so that `import pathjax` stays light

    return optax.adam(5e-4)


def _kernel_function(trace: bool) -> Callable[..., Array]:
    """Of the kernels compared: Θ, or its sum over equal outputs."""
    return ntk.empirical_trace if trace else ntk.empirical


def _kernel_of(apply: ApplyFn, weights: Params, mask: Mask, x: Array, trace: bool) -> Array:
    """Θ by kept weights, with derivatives by these alone."""
    return _kernel_function(trace)(apply, weights, x, mask=mask)


def _kernel_at(apply: ApplyFn, weights: Params, mask: Mask, x: Array, trace: bool) -> Array:
    """Θ by kept weights, with derivatives by all."""

    def of_kept(kept: Params, x: Array) -> Any:
        return apply(jax.tree.map(jnp.where, mask, kept, weights), x)

    return _kernel_function(trace)(of_kept, weights, x)


def _largest(weights: Params, counts: np.ndarray, scope: str, prunable: Prunable, when: str) -> Mask:
    try:
        return masks.keep_largest(jax.tree.map(jnp.abs, weights), counts, scope=scope, prunable=prunable)
    except ValueError as error:
        raise ValueError(f"{when}, of the weights: {error}") from error


def _batches(inputs: Any, batch_size: int, key: Key) -> Iterator[Array]:
    """Batches without end."""
    if isinstance(inputs, jax.Array | np.ndarray):
        _network.check_batch_size(batch_size)
        yield from _drawn(_checked(inputs), batch_size, key)
    while True:
        batch = None
        for batch in inputs:
            yield _checked(batch)
        if batch is None:
            raise ValueError(
                "`inputs` has no more batches. An iterator that was read before is empty: give a list, or as many "
                "batches as steps."
            )


def _drawn(inputs: Array, batch_size: int, key: Key) -> Iterator[Array]:
    size = min(batch_size, len(inputs))
    for epoch in itertools.count():
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(inputs))
        for start in range(0, len(inputs) - size + 1, size):
            yield inputs[order[start : start + size]]


def _checked(batch: Any) -> Array:
    batch = jnp.asarray(batch)
    _network.check_inputs(inputs=batch)
    if len(batch) == 0:
        raise ValueError("`inputs` has a batch without examples. Give at least one example in each.")
    return batch


def _check_steps(steps: int, refresh: int) -> None:
    for name, number in (("steps", steps), ("refresh", refresh)):
        if number < 1:
            raise ValueError(f"`{name}` must be 1 or more; it is {number}.")


def _check_finite(losses: Array) -> None:
    values = concrete(losses)
    if values is not None and not np.isfinite(values).all():
        step = int(np.isfinite(values).argmin())
        raise ValueError(
            f"The loss is {values[step]} in step {step + 1} of {len(values)}. Lower the learning rate of the "
            "`optimizer`, or `kernel_weight`, or scale the inputs down."
        )
