"""Neural Tangent Transfer: a sparse network with the outputs and the Neural Tangent Kernel of a dense one.

The dense network is the teacher, the sparse one the student. No labels are read. With equal outputs and kernels the
student would train as its teacher, as far as training is linear in the weights.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path
from jaxtyping import Array, Float

from pathjax import masks, ntk
from pathjax._base.leaves import ChosenLeaves
from pathjax._base.network import as_batch, check_batch_size, check_inputs, check_params
from pathjax._base.trees import concrete
from pathjax._interpreter.jaxpr import batch_length
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax.types import AnyArray, ApplyFn, Inputs, Key, Mask, Params, Prunable, Real, State

if TYPE_CHECKING:
    import optax

__all__ = ["Transferred", "neural_tangent_transfer"]

Progress: TypeAlias = Callable[[int, int, jax.Array], None]
"""`progress(step, steps, loss)` is called after each step, with `step` from 1 to `steps`."""


class Transferred(NamedTuple):
    """A sparse student of a dense network, ready to train.

    Attributes:
        mask: which weights are kept.
        params: its weights, with pruned weights at 0.
        losses: (t,) the loss of the batch before each of the t steps.
    """

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
    prunable: Prunable | None = None,
    state: State = None,
    progress: Progress | None = None,
) -> Transferred:
    """Prune without labels: a mask and weights with nearly the outputs and Neural Tangent Kernel of the dense network.

    The dense network is `apply` at `params`. Each step lowers the loss of a batch of n examples. With student s,
    teacher t, mask m, density ρ, `kernel_weight` λ and `penalty` λ₂ it is

        λ ‖Θ_s − Θ_t‖² / (n·o)² + ‖f_s − f_t‖² / (n·o) + (λ₂/ρ) ‖m ⊙ θ_s‖²

    The last norm is over the prunable leaves. Θ is the kernel of the batch, (n·o)² numbers; with `trace` its sum over
    equal outputs, and n² takes the place of (n·o)² in the loss. Θ_s takes derivatives by kept weights only, since only
    these will be trained. The student starts at the teacher's weights. Its mask keeps the largest |θ|: exactly
    round(ρ·N) of the N weights of each prunable leaf, or of all prunable weights with `scope="global"`. The mask is
    chosen again every `refresh` steps, as long as more than `refresh` steps are left. With a `state` (see
    `pathjax.types`) the network is `apply(params, state, x)`; the state is the same for teacher and student.

    Pruned weights keep their values until the mask is chosen again; one returns if kept weights have become smaller
    than it. This is the paper's method: gradients flow through the mask, and pruned weights are not updated. With
    `straight_through` pruned weights are updated too, by the gradient at the masked weights. Steps are then much
    slower: the fast kernels of `ntk.empirical` take derivatives by kept weights only.

    `inputs` is one array (N, ...), of which each epoch draws batches of `batch_size` in a new random order from `key`;
    or an iterable of batches, arrays (n, ...) of any type or trees of them, read in its order and again from the start
    when it ends, with `batch_size` and `key` unused. `optimizer` is an optax transformation, by default Adam with
    learning rate 5e-4. `progress(step, steps, loss)` is called after each step with the loss as an array that may still
    be being computed.

    Cost: each step computes the kernels of teacher and student and the gradient of the student's. Where wide dense
    layers dominate, the gradient of the masked kernel holds n·o numbers for each weight of the largest layer. The step
    is compiled once per shape of batch, and reused by later calls with the same network, the same `optimizer` object
    and the same prunable leaves, at any density. Use `jax.vmap` for many seeds. Do not wrap this function in `jax.jit`:
    that unrolls all steps into one program.

    Raises ValueError for a density outside (0, 1] or so low that it keeps nothing; `steps`, `refresh` or `batch_size`
    below 1; inputs without examples or with NaN; an iterable that is used up; an `apply` whose output is not one array
    with a row for each example or mixes examples; and weights (names the leaf and the step) or losses (names the step)
    that are not finite. Under `vmap` and `jit`, where values cannot be read, such weights give a mask that keeps no
    prunable weight.

    Source: Liu, Zenke, "Finding trainable sparse networks through Neural Tangent Transfer", 2020. Their code differs: Θ
    is the kernel between the two halves of a batch, Θ_s includes derivatives by pruned weights, momentum still moves a
    weight for some steps after it is pruned, and a layer keeps about one weight less.

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
    check_params(params)
    network, batches = traced(apply, params, state), _batches(inputs, batch_size, key)
    first = next(batches)
    chosen = ChosenLeaves.read(prunable or network.kernels(first, params), params)
    counts = masks.kept_counts(params, density=float(density), scope=scope, prunable=chosen)
    options = _Options(optimizer or _adam(), trace, straight_through, chosen)
    compiled_step = network.compiled(_step, options=options)
    factors = jnp.asarray((kernel_weight, penalty / density))
    weights, optimizer_state = params, options.optimizer.init(params)
    mask = _largest(params, counts, scope, chosen, "At the start")
    losses = []
    for step, x in enumerate(itertools.islice(itertools.chain([first], batches), steps), start=1):
        if step == 1:
            ntk.operator(network, params, x)  # raises where Θ is not defined: outputs not (n, o), or examples mixed
        weights, optimizer_state, loss = compiled_step(weights, optimizer_state, mask, params, x, factors)
        losses.append(loss)
        if step % refresh == 0 and step < steps - refresh:
            mask = _largest(weights, counts, scope, chosen, f"After step {step} of {steps}")
        if progress is not None:
            progress(step, steps, loss)
    stacked_losses = jnp.stack(losses)
    _check_finite(stacked_losses)
    return Transferred(mask, masks.apply_mask(mask, weights), stacked_losses)


class _Options(NamedTuple):
    """The static arguments of a step: it is compiled again where they change."""

    optimizer: optax.GradientTransformation
    trace: bool
    straight_through: bool
    prunable: Prunable


def _step(
    network: TracedNetwork,
    weights: Params,
    state: Any,
    mask: Mask,
    teacher: Params,
    x: Inputs,
    factors: Array,
    *,
    options: _Options,
) -> tuple[Params, Any, Array]:
    """The weights and optimizer state after one step, and the loss before it; `factors` is (λ, λ₂/ρ)."""
    masked = masks.apply_mask(mask, weights)
    loss, slopes = jax.value_and_grad(_loss, argnums=1)(network, masked, mask, teacher, x, factors, options)
    optimizer = options.optimizer if options.straight_through else masks.freeze(options.optimizer, mask)
    updates, state = optimizer.update(slopes, state, weights)
    return jax.tree.map(lambda leaf, update: leaf + update, weights, updates), state, loss


def _loss(
    apply: ApplyFn, masked: Params, mask: Mask, teacher: Params, x: Inputs, factors: Array, options: _Options
) -> Array:
    """The loss as a function of the masked weights, by which it is differentiated."""
    student_kernel = _kernel_for_all if options.straight_through else _kernel_for_kept
    teacher_kernel = _kernel_function(options.trace)(apply, teacher, x)
    kernel_change = student_kernel(apply, masked, mask, x, options.trace) - teacher_kernel
    kernel_error = jnp.mean(jnp.square(kernel_change))
    output_error = jnp.mean(jnp.square(apply(masked, x) - apply(teacher, x)))
    norms = [jnp.sum(jnp.square(leaf)) for path, leaf in tree_leaves_with_path(masked) if options.prunable(path, leaf)]
    kernel_weight, penalty = factors.astype(output_error.dtype)
    return kernel_weight * kernel_error + output_error + penalty * sum(norms)


@functools.cache
def _adam() -> optax.GradientTransformation:
    import optax  # not at the top of the file: `import pathjax` must not need optax

    return optax.adam(5e-4)


def _kernel_function(trace: bool) -> Callable[..., Array]:
    """What computes the kernels that are compared: Θ, or its sum over equal outputs."""
    return ntk.empirical_trace if trace else ntk.empirical


def _kernel_for_kept(apply: ApplyFn, masked: Params, mask: Mask, x: Inputs, trace: bool) -> Array:
    """Θ_s, whose gradient is nonzero for kept weights only."""
    return _kernel_function(trace)(apply, masked, x, mask=mask)


def _kernel_for_all(apply: ApplyFn, masked: Params, mask: Mask, x: Inputs, trace: bool) -> Array:
    """Θ_s, whose gradient is that of the masked weights, pruned ones included."""

    def by_kept(kept: Params, x: Inputs) -> Any:
        return apply(jax.tree.map(jnp.where, mask, kept, masked), x)

    return _kernel_function(trace)(by_kept, masked, x)


def _largest(weights: Params, counts: np.ndarray, scope: str, prunable: Prunable, when: str) -> Mask:
    try:
        return masks.keep_largest(jax.tree.map(jnp.abs, weights), counts, scope=scope, prunable=prunable)
    except ValueError as error:
        raise ValueError(f"{when}, of the weights: {error}") from error


def _batches(inputs: Any, batch_size: int, key: Key) -> Iterator[Inputs]:
    """An endless iterator of batches: random ones of an array, or those of an iterable again and again."""
    if isinstance(inputs, jax.Array | np.ndarray):
        check_batch_size(batch_size)
        yield from _drawn(_checked(inputs), batch_size, key)
    if isinstance(inputs, Mapping):
        raise TypeError("`inputs` is one dictionary, but must be an array or an iterable of batches: [inputs] for one.")
    while True:
        batch = None
        for batch in inputs:
            yield _checked(batch)
        if batch is None:
            raise ValueError(
                "`inputs` has no more batches. An iterator can be read only once: give a list, or as many batches as "
                "steps."
            )


def _drawn(inputs: Array, batch_size: int, key: Key) -> Iterator[Array]:
    size = min(batch_size, len(inputs))
    for epoch in itertools.count():
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(inputs))
        for start in range(0, len(inputs) - size + 1, size):
            yield inputs[order[start : start + size]]


def _checked(batch: Any) -> Inputs:
    batch = as_batch("inputs", batch)
    check_inputs(inputs=batch)
    if batch_length(batch) == 0:
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
