"""The share of a path sum that goes through each weight, and the input and output weights of such sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pathjax._base.arguments import check_has_numbers, check_no_shape, check_not_function
from pathjax._base.trees import multiply, wide
from pathjax._interpreter import mean_field
from pathjax._interpreter.jaxpr import UnsupportedPrimitive, check_batch
from pathjax._interpreter.lifting import absolute_power, lift, lift_weights, one_example, ones_like_example, pair_sum
from pathjax._interpreter.traced import TracedNetwork
from pathjax.types import Mask, Params, Real, Scores

__all__ = [
    "OutputGram", "first_example", "flow", "log_gram_of_outputs", "mean_field_flow", "mean_input", "relative",
]  # fmt: skip


def flow(
    network: TracedNetwork,
    params: Params,
    inputs: Array,
    mask: Mask | None = None,
    factor: Params | None = None,
    output_weights: Array | None = None,
    *,
    q: Real,
) -> Scores:
    """The share φ(θ) ⊙ ∂ log R/∂φ(θ) of the path sum R that goes through each weight, φ(θ) = |θ|^q; 0 where R is 0.

    R = Σ_o r_o Σ_{p→o} φ(v_p)·φ(x_s(p)), with open gates. `inputs` (1, ...) holds φ(x), not x. `output_weights` (o,)
    holds the weights r_o of the outputs, 1 by default. A `factor` takes the place of the φ(θ) in front of the
    derivative. Compiled once for each network and q.
    """
    network.path_program(
        jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
    )  # what is refused is refused before compiling
    return cast(Scores, network.compiled(_flow, q=q)(params, inputs, mask, factor, output_weights))


def _flow(
    network: TracedNetwork,
    params: Params,
    inputs: Array,
    mask: Mask | None,
    factor: Params | None,
    output_weights: Array | None,
    *,
    q: Real,
) -> Scores:
    phi = absolute_power(q)
    weights = lift_weights(params, phi, mask)
    program = network.path_program(jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))

    def path_sum(weights: Params) -> Array:
        output = lift(program, weights, inputs, phi=phi, patches=True).array[0]
        return jnp.sum(output if output_weights is None else output * output_weights.astype(output.dtype))

    total, slopes = jax.value_and_grad(path_sum)(weights)
    return relative(multiply(weights if factor is None else factor, slopes), total)


def relative(tree: Params, total: Array) -> Params:
    """The tree divided by `total`; zeros where `total` is 0."""
    factor = jnp.where(total > 0, 1.0 / jnp.where(total > 0, total, 1.0), 0.0)
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)


def _input_batches(inputs: Any) -> Iterator[Array]:
    """The batches of the inputs, with their dtype checked; empty batches are left out."""
    if isinstance(inputs, Mapping):
        raise TypeError(
            "`inputs` is one dictionary, but must be an array (n, ...) or an iterable of such arrays. Pass the array "
            "that the layers multiply, and close over the others in `apply`, or pass them in `state`."
        )
    check_no_shape("inputs", inputs)
    if isinstance(inputs, jax.ShapeDtypeStruct):  # an iterator is no tree to look through
        check_has_numbers("inputs", inputs)
    check_not_function("inputs", inputs)
    batches = [inputs] if isinstance(inputs, jax.Array | np.ndarray) else inputs
    empty = True
    for given in batches:
        check_batch(given)
        batch = jnp.asarray(given)
        if not jnp.issubdtype(batch.dtype, jnp.floating):
            raise ValueError(
                f"`inputs` must be floating-point, but are {batch.dtype}. Convert and standardize them first."
            )
        if len(batch):
            empty = False
            yield batch
    if empty:
        raise ValueError("`inputs` has no examples. Give at least one; an iterator that was read before is empty.")


def first_example(inputs: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one example of the inputs."""
    return one_example(next(_input_batches(inputs)))


def mean_input(inputs: Any, phi: Callable[[Any], Any]) -> Array:
    """The mean of φ(x) over all examples, (1, ...)."""
    total, examples = jnp.zeros(()), 0
    for batch in _input_batches(inputs):
        total, examples = total + phi(batch).sum(axis=0), examples + len(batch)
    return (total / examples)[None]


class OutputGram(NamedTuple):
    """log Σ_n K_v(x_n, x_n)_o of each output (o,), and one example of ones (1, ...) with the shape of the inputs."""

    log_sums: Array
    ones: Array


def log_gram_of_outputs(network: TracedNetwork, params: Params, kept: Mask, inputs: Any, batch_size: int) -> OutputGram:
    """log Σ_n K_v(x_n, x_n)_o over the examples of all batches, `batch_size` of them computed at a time."""
    log_gram = network.compiled(_log_gram, batch_size=batch_size)
    total, example = jnp.asarray(-jnp.inf), jnp.zeros(())
    for batch in _input_batches(inputs):
        total, example = jnp.logaddexp(total, log_gram(params, kept, batch)), ones_like_example(batch)
    return OutputGram(lax.stop_gradient(total), example)


def _log_gram(network: TracedNetwork, params: Params, kept: Mask, batch: Array, *, batch_size: int) -> Array:
    """log Σ_n K_v(x_n, x_n)_o over the examples of one batch."""
    ones, real = (lift_weights(params, function, kept) for function in (jnp.ones_like, lambda leaf: leaf))
    program = network.path_program(one_example(batch))

    def of_example(x: Array) -> Array:
        return pair_sum(program, ones, real, x, x).log_abs()

    return jax.nn.logsumexp(lax.map(of_example, batch, batch_size=min(batch_size, len(batch))), axis=0)


def mean_field_flow(
    network: TracedNetwork,
    second_moments: Params,
    kept: Mask,
    inputs: Any,
    *,
    trained: tuple[bool, ...],
    is_drawn: bool,
    batch_size: int,
) -> Scores:
    """The share u ⊙ ∂ log T/∂u of T = Σ_n Σ_o Θ̄(x_n, x_n)_o through each weight, gates held; 0 where T is 0.

    u are the second moments. Derivatives inside Θ̄ are by the weights in `trained` leaves. If `is_drawn`, the inputs
    (1, ...) hold the second moments of inputs that are drawn at random. Of `batch_size` examples at a time.
    """
    run = network.compiled(_trace_and_slopes, trained=trained, is_drawn=is_drawn, batch_size=batch_size)
    sums: Any = None
    for batch in _input_batches(inputs):
        network.path_program(one_example(batch))  # what is refused is refused before compiling
        try:
            of_batch = run(second_moments, kept, batch)
        except UnsupportedPrimitive as error:
            if is_drawn:
                error.add_note("Without `inputs` these are drawn at random, and count as weights that all uses share.")
            raise
        sums = of_batch if sums is None else jax.tree.map(jnp.add, sums, of_batch)
    total, slopes = sums
    return relative(multiply(second_moments, slopes), total)


def _trace_and_slopes(
    network: TracedNetwork,
    second_moments: Params,
    kept: Mask,
    batch: Array,
    *,
    trained: tuple[bool, ...],
    is_drawn: bool,
    batch_size: int,
) -> tuple[Array, Params]:
    """Σ_n Σ_o Θ̄(x_n, x_n)_o over the examples of one batch, and its derivative by the second moments."""
    program, kept_leaves = network.path_program(one_example(batch)), jax.tree.leaves(kept)
    batch = batch.astype(jnp.result_type(wide(batch), *jax.tree.leaves(second_moments)))

    def trace(second_moments: Params, batch: Array) -> Array:
        leaves = jax.tree.leaves(second_moments)

        def of_example(x: Array) -> Array:
            found = mean_field.trace(program, leaves, kept_leaves, x[None], trained=trained, is_drawn=is_drawn)
            return cast(Array, found)

        return jnp.sum(jax.vmap(of_example)(batch))

    def add(sums: Any, batch: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(trace)(second_moments, batch)), None

    # derivatives are added up, so that only those of one chunk of examples are in memory
    sums: Any = (jnp.zeros((), batch.dtype), jax.tree.map(jnp.zeros_like, second_moments))
    whole = len(batch) - len(batch) % batch_size
    if whole:
        sums, _ = lax.scan(add, sums, batch[:whole].reshape(-1, batch_size, *batch.shape[1:]))
    return add(sums, batch[whole:])[0] if whole < len(batch) else sums
