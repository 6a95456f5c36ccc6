"""Gradients and Hessian-vector products of a mean loss over many batches, with one batch in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from pathjax._base.trees import concrete
from pathjax._interpreter.traced import TracedNetwork
from pathjax.types import Params

__all__ = ["Batches", "LossFn", "check_labels", "curvature_product", "mean_gradient", "replayable"]

LossFn: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""`loss(outputs, labels)`, the mean loss of n examples with outputs (n, o) and labels (n,)."""

Batches: TypeAlias = Iterable[tuple[Any, Any]]
"""Pairs of inputs (n, ...) and integer labels (n,)."""


def mean_gradient(network: TracedNetwork, params: Params, batches: Batches, *, loss: LossFn) -> Params:
    """The gradient g of the mean loss over all examples of all batches; each batch counts by its number of examples."""

    @jax.jit
    def gradient(params: Params, x: Array, y: Array) -> Params:
        return jax.grad(lambda params: loss(network(params, x), y) * x.shape[0])(params)

    return _mean_over(lambda x, y: gradient(params, x, y), network, params, batches)


def curvature_product(
    network: TracedNetwork, params: Params, batches: Batches, vector: Params, *, loss: LossFn
) -> Params:
    """H w for a pytree w = `vector`, with H the Hessian of the mean loss over all examples of all batches."""

    @jax.jit
    def product(params: Params, vector: Params, x: Array, y: Array) -> Params:
        def slope(params: Params) -> Array:
            # reverse over forward mode: one gradient of the derivative along w
            return jax.jvp(lambda params: loss(network(params, x), y), (params,), (vector,))[1] * x.shape[0]

        return jax.grad(slope)(params)

    return _mean_over(lambda x, y: product(params, vector, x, y), network, params, batches)


def replayable(batches: Batches) -> Batches:
    """The batches in a form that can be read more than once: an iterator is read into a list."""
    return list(batches) if isinstance(batches, Iterator) else batches


def check_labels(labels: Array, outputs: int) -> None:
    """Raise TypeError for labels that are not integers, ValueError for labels outside 0 … o − 1 unless traced."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"Labels must be integers 0 … {outputs - 1}; they are {labels.dtype}. Convert with .astype(int), or take "
            "the arg max of one-hot labels."
        )
    values = concrete(labels)
    if values is None or values.size == 0:
        return
    for value in (values.min(), values.max()):
        if not 0 <= value < outputs:
            raise ValueError(f"Labels must lie in 0 … {outputs - 1}, as there are {outputs} outputs; one is {value}.")


def _mean_over(
    sum_over: Callable[[Array, Array], Params], network: TracedNetwork, params: Params, batches: Batches
) -> Params:
    """The mean over the examples of all batches, where `sum_over(x, y)` is the sum over the examples of one batch."""
    total, examples = jax.tree.map(jnp.zeros_like, params), 0
    for x, y in _labelled(network, batches):
        total, examples = jax.tree.map(jnp.add, total, sum_over(x, y)), examples + x.shape[0]
    if examples == 0:
        raise ValueError(
            "`batches` has no examples. Give at least one pair (x, y); an iterator that was read before is empty, a "
            "list is not."
        )
    return jax.tree.map(lambda leaf: leaf / examples, total)


def _labelled(network: TracedNetwork, batches: Batches) -> Iterator[tuple[Array, Array]]:
    """The batches as arrays, with shapes and labels checked; empty batches are left out."""
    for x, y in batches:
        x, y = jnp.asarray(x), jnp.asarray(y)
        if x.ndim == 0 or y.shape != x.shape[:1]:
            raise ValueError(
                f"In a batch (x, y), y must hold one label for each example of x, (n,) for (n, ...): the shapes are "
                f"{y.shape} and {x.shape}."
            )
        if x.shape[0] == 0:
            continue
        check_labels(y, network.output(x).shape[1])
        yield x, y
