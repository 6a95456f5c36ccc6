"""Scores: how much each weight is worth keeping.

A score is a pytree like `params`; `masks.from_scores` keeps the largest. Data-driven scores take `batches`, an iterable
of (x, y) with integer labels y (n,), one batch in memory at a time, and do not depend on how the examples are split
into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from pathjax.types import ApplyFn, Key, Params, Scores

__all__ = ["cross_entropy", "magnitude", "random", "snip"]

LossFn: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""`loss(outputs, labels)`: outputs (n, o) and labels (n,) to the mean over the n examples."""

Batches: TypeAlias = Iterable[tuple[Any, Any]]
"""Pairs of inputs (n, ...) and integer labels (n,)."""


def cross_entropy(logits: Float[Array, "n o"], labels: Shaped[Array, " n"]) -> Float[Array, ""]:
    """Mean over the examples of −log softmax(logits) at the label.

    Raises TypeError for labels that are not integers, ValueError for labels outside 0 … o − 1 where their values can be
    read. Under `jit` such a label makes the loss and its gradient NaN.

    >>> import jax.numpy as jnp
    >>> round(float(cross_entropy(jnp.zeros((2, 3)), jnp.array([0, 2]))), 4)  # log 3
    1.0986
    """
    _check_labels(labels, logits.shape[-1])
    known = (labels >= 0) & (labels < logits.shape[-1])
    label = jnp.where(known, labels, 0).astype(jnp.int32)
    picked = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.mean(losses * jnp.where(known, 1.0, jnp.nan).astype(logits.dtype))


def random(params: Params, *, key: Key) -> Scores:
    """Independent uniform scores in [0, 1): which weights are kept is left to chance.

    Path form: none; the score reads neither weights nor data. Leaves of less than 32 bits get float32 scores, so that
    ties stay rare. Peers draw from a normal distribution, which ranks alike.

    >>> import jax, jax.numpy as jnp
    >>> score = random({"kernel": jnp.ones((3, 2))}, key=jax.random.key(0))["kernel"]
    >>> score.shape, bool((score >= 0).all() & (score < 1).all())
    ((3, 2), True)
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.uniform(leaf_key, jnp.shape(leaf), jnp.promote_types(jnp.result_type(leaf), jnp.float32))
        for leaf_key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def magnitude(params: Params) -> Scores:
    """|θ|, the absolute value of each weight.

    Path form: the factor that the weight gives to each of its paths, |v_p / Π_{j ≠ i} θ_j|, whatever the rest of the
    path. So it is not invariant under rescaling of neurons. Source: Han et al., "Learning both weights and connections
    for efficient neural networks", 2015; at initialization, the baseline of Frankle et al., 2021.

    >>> import jax.numpy as jnp
    >>> magnitude({"kernel": jnp.array([[-2.0, 1.0, 0.5]])})["kernel"].tolist()
    [[2.0, 1.0, 0.5]]
    """
    return jax.tree.map(jnp.abs, params)


def snip(apply: ApplyFn, params: Params, batches: Batches, *, loss: LossFn = cross_entropy) -> Scores:
    """SNIP: |θ ⊙ g|, g = ∂L/∂θ the gradient of the mean loss over all examples of all batches.

    To first order, what the loss would change if the weight were removed. Path form: |Σ_{p∋i} ∂L/∂v_p · v_p|, the sum
    over the paths through the weight (counted as often as they use it), since θ_i ∂v_p/∂θ_i is v_p on those paths and 0
    on others. A weight of 0 scores 0, so that a pruned weight stays pruned in later rounds.

    One forward and one backward pass per example. `loss(outputs, labels)` must be a mean over examples; each batch
    counts by its size. The gradient is compiled once per batch shape, in each call that is not itself under `jit`;
    there, all batches are traced into one program.

    Raises ValueError where there is no example, x and y differ in length, an output is not (n, o), or a label is
    outside 0 … o − 1; TypeError for labels that are not integers. Values of traced labels cannot be read: see
    `cross_entropy`.

    Source: Lee, Ajanthan, Torr, "SNIP: single-shot network pruning based on connection sensitivity", 2019, equations 4
    to 6. The authors and Synaptic-Flow differentiate by a multiplicative mask, which for a mask of ones is the same,
    and divide by the sum, which ranks alike; with a mask of zeros their gradient need not vanish, so that several
    rounds can revive weights. The authors score one batch of 100 examples and prune biases too.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, 1.0]])}
    >>> x, y = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([0, 2])
    >>> snip(lambda params, x: x @ params["kernel"], params, [(x, y)])["kernel"].round(3).tolist()
    [[0.167, 0.0, 0.045], [0.0, 0.0, 0.0]]
    """
    gradient, _ = _mean_gradient(apply, params, batches, loss=loss)
    return jax.tree.map(lambda leaf, slope: jnp.abs(leaf * slope), params, gradient)


def _mean_gradient(apply: ApplyFn, params: Params, batches: Batches, *, loss: LossFn) -> tuple[Params, int]:
    """∂/∂θ of the mean loss over all examples, and the number of examples."""

    @jax.jit
    def add_gradient(total: Params, params: Params, x: Array, y: Array) -> Params:
        def summed_loss(params: Params) -> Array:
            return loss(apply(params, x), y) * x.shape[0]

        return jax.tree.map(jnp.add, total, jax.grad(summed_loss)(params))

    total, examples = jax.tree.map(jnp.zeros_like, params), 0
    for x, y in _labelled(apply, params, batches):
        total, examples = add_gradient(total, params, x, y), examples + x.shape[0]
    if examples == 0:
        raise ValueError(
            "`batches` has no examples. Give at least one pair (x, y); an iterator that was read before is empty, a "
            "list is not."
        )
    return jax.tree.map(lambda leaf: leaf / examples, total), examples


def _labelled(apply: ApplyFn, params: Params, batches: Batches) -> Iterator[tuple[Array, Array]]:
    """The batches as arrays, checked, without those of no example."""
    outputs: dict[Any, Any] = {}
    for x, y in batches:
        x, y = jnp.asarray(x), jnp.asarray(y)
        if x.ndim == 0 or y.shape != x.shape[:1]:
            raise ValueError(
                f"In a batch (x, y), y must hold one label for each example of x, (n,) for (n, ...): the shapes are "
                f"{y.shape} and {x.shape}."
            )
        if x.shape[0] == 0:
            continue
        batch_like = (x.shape, x.dtype)
        if batch_like not in outputs:
            outputs[batch_like] = jax.eval_shape(apply, params, x)
        shape = jnp.shape(outputs[batch_like])
        if len(shape) != 2 or shape[0] != x.shape[0]:
            raise ValueError(
                f"`apply` must take inputs (n, ...) to outputs (n, o); it took {x.shape} to {shape}. "
                "Reshape its output."
            )
        _check_labels(y, shape[1])
        yield x, y


def _check_labels(labels: Array, outputs: int) -> None:
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"Labels must be integers 0 … {outputs - 1}; they are {labels.dtype}. Convert with .astype(int), or take "
            "the arg max of one-hot labels."
        )
    if isinstance(labels, jax.core.Tracer) or labels.size == 0:
        return
    values = np.asarray(labels)
    for value in (values.min(), values.max()):
        if not 0 <= value < outputs:
            raise ValueError(f"Labels must lie in 0 … {outputs - 1}, as there are {outputs} outputs; one is {value}.")
