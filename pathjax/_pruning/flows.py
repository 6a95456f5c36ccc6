"""Shares of open-gated sums through each weight, and the inputs that such sums begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pathjax._base.trees import multiply
from pathjax._interpreter.lifting import absolute_power, lift, lift_weights, one_example, ones_like_example, pair_sum
from pathjax._interpreter.traced import TracedNetwork
from pathjax.types import Mask, Params, Real, Scores

__all__ = ["OutputGram", "flow", "log_gram_of_outputs", "mean_input", "relative"]


def flow(
    network: TracedNetwork,
    params: Params,
    inputs: Array,
    *,
    q: Real,
    mask: Mask | None = None,
    factor: Params | None = None,
    reached: Array | None = None,
) -> Scores:
    """`factor` ⊙ ∂ log R/∂ φ(θ) for the open-gated sum R and φ(θ) = |θ|^q, zero where there is no path.

    `inputs` (1, ...) are φ(x) already. The factor is φ(θ) itself by default: then this is the share of R that goes
    through each weight. R is the sum over outputs, each times its number in `reached` (o,) where that is given.
    """
    phi = absolute_power(q)
    weights = lift_weights(params, phi, mask)
    program = network.path_program(jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))

    def mass(weights: Params) -> Array:
        output = lift(program, weights, inputs, phi=phi, patches=True).array[0]
        return jnp.sum(output if reached is None else output * reached.astype(output.dtype))

    total, slopes = jax.value_and_grad(mass)(weights)
    return relative(multiply(weights if factor is None else factor, slopes), total)


def relative(tree: Params, whole: Array) -> Params:
    """The tree over `whole`, zero where that is zero."""
    factor = jnp.where(whole > 0, 1.0 / jnp.where(whole > 0, whole, 1.0), 0.0)
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)


def _input_batches(inputs: Any) -> Iterator[Array]:
    """The inputs in batches, checked, without those of no example."""
    batches = [inputs] if isinstance(inputs, jax.Array | np.ndarray) else inputs
    empty = True
    for batch in map(jnp.asarray, batches):
        if not jnp.issubdtype(batch.dtype, jnp.floating):
            raise ValueError(
                f"`inputs` must be floating-point, but are {batch.dtype}. Convert and standardize them first."
            )
        if len(batch):
            empty = False
            yield batch
    if empty:
        raise ValueError("`inputs` has no examples. Give at least one; an iterator that was read before is empty.")


def mean_input(inputs: Any, phi: Callable[[Any], Any]) -> Array:
    """The mean of φ(x) over all examples, (1, ...)."""
    total, examples = jnp.zeros(()), 0
    for batch in _input_batches(inputs):
        total, examples = total + phi(batch).sum(axis=0), examples + len(batch)
    return (total / examples)[None]


class OutputGram(NamedTuple):
    """log Σ_n K_v(x_n, x_n)_o for each output (o,), and an example of ones, (1, ...), of the inputs' shape."""

    log_sums: Array
    ones: Array


def log_gram_of_outputs(network: TracedNetwork, params: Params, kept: Mask, inputs: Any, chunk: int) -> OutputGram:
    """How much data reach each output, over all examples, `chunk` of them at a time."""
    ones, real = (lift_weights(params, function, kept) for function in (jnp.ones_like, lambda leaf: leaf))

    @jax.jit
    def of_batch(ones: Params, real: Params, batch: Array) -> Array:
        program = network.path_program(one_example(batch))

        def of_example(x: Array) -> Array:
            return pair_sum(program, ones, real, x, x).log_abs()

        return jax.nn.logsumexp(lax.map(of_example, batch, batch_size=min(chunk, len(batch))), axis=0)

    total, example = jnp.asarray(-jnp.inf), jnp.zeros(())
    for batch in _input_batches(inputs):
        total, example = jnp.logaddexp(total, of_batch(ones, real, batch)), ones_like_example(batch)
    return OutputGram(lax.stop_gradient(total), example)
