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

from pathjax._lifting import absolute_power, lift_weights, ones_like_example, open_sum
from pathjax._trees import check_mask
from pathjax.types import AnyArray, ApplyFn, Key, Mask, Params, Real, Scores, XLike

__all__ = ["cross_entropy", "force", "magnitude", "random", "snip", "synflow", "synflow_data", "synflow_l2"]

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


def synflow(apply: ApplyFn, params: Params, x_like: XLike) -> Scores:
    """SynFlow, normalized: the share |θ| ⊙ ∂R₁/∂|θ| / R₁ of the path norm R₁ = Σ_p |v_p| through each weight.

    Path form: Σ_{p∋i} |v_p| / Σ_p |v_p|, each path counted as often as it uses the weight. Shares lie in [0, 1] where
    no weight is met twice, and sum to 1 over the weights and biases of any cut of the network, at any depth and in any
    floating-point type: the sums are carried with their scale. A weight of 0 has share 0, and so has every weight of a
    network without a path. Invariant under rescaling of neurons. One forward and one backward pass on |θ|; only the
    shape of `x_like` is read.

    Raises UnsupportedPrimitive where a layer is not piecewise linear.

    Source: Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively conserving
    synaptic flow", 2020. Its code does not divide by R₁, which ranks alike until R₁ overflows (as for ResNet-56 in
    float32); it sends max pooling through its arg max on ones, where a sum over paths takes all entries.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.array([[1.0, -3.0]]), "second": jnp.ones((2, 3))}
    >>> synflow(apply, params, jnp.zeros((5, 1)))["first"].tolist()
    [[0.25, 0.75]]
    """
    weights = lift_weights(params, jnp.abs, None)
    return _flow(apply, weights, ones_like_example(x_like), q=1, factor=weights)


def synflow_l2(apply: ApplyFn, params: Params, x_like: XLike, *, factor: str = "squared") -> Scores:
    """SynFlow-L2: the share θ² ⊙ ∂R₂/∂θ² / R₂ of R₂ = Σ_p v_p², the Path Kernel's natural norm, through each weight.

    Path form: Σ_{p∋i} v_p² / Σ_p v_p². Conserved over cuts and invariant under rescaling of neurons, as `synflow` is.
    With `factor="absolute"` the score is |θ| ⊙ ∂R₂/∂θ² / R₂, as three public implementations have it: neither
    conserved nor invariant. One forward and one backward pass on θ²; only the shape of `x_like` is read.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError for another `factor`.
    Source: Gebhart et al. (2021), section 4.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.array([[1.0, -3.0]]), "second": jnp.ones((2, 3))}
    >>> synflow_l2(apply, params, jnp.zeros((5, 1)))["first"].round(2).tolist()
    [[0.1, 0.9]]
    """
    if factor not in ("squared", "absolute"):
        raise ValueError(f'`factor` must be "squared" or "absolute", not {factor!r}.')
    weights = lift_weights(params, jnp.square, None)
    multiplier = weights if factor == "squared" else lift_weights(params, jnp.abs, None)
    return _flow(apply, weights, ones_like_example(x_like), q=2, factor=multiplier)


def synflow_data(
    apply: ApplyFn, params: Params, inputs: Float[AnyArray, "n ..."] | Iterable[Any], *, q: Real = 1
) -> Scores:
    """SynFlow with the inputs' distribution: E|x|^q in place of the all-ones input, q = 1 or 2.

    Path form: Σ_{p∋i} |v_p|^q E|x_s(p)|^q over the same sum of all paths; a path from a bias has 1 for x. Since the
    open-gated network is linear in its lifted input, the mean input gives the mean over inputs: one forward and one
    backward pass, after one look at the inputs, an array (n, ...) or an iterable of such. q = 1 augments `synflow`,
    q = 2 `synflow_l2`.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError where there is no example.
    Source: Gebhart et al. (2021), section 4.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((2, 4)), "second": jnp.ones((4, 3))}
    >>> inputs = jnp.array([[1.0, 0.0], [-2.0, 1.0], [0.0, 0.0]])
    >>> synflow_data(apply, params, inputs)["first"][:, 0].round(4).tolist()  # 3 to 1, over four units
    [0.1875, 0.0625]
    """
    phi = absolute_power(q)
    weights = lift_weights(params, phi, None)
    return _flow(apply, weights, _mean_input(inputs, phi), q=q, factor=weights)


def _flow(apply: ApplyFn, weights: Params, inputs: Array, *, q: Real, factor: Params) -> Scores:
    """`factor` ⊙ ∂ log R/∂ weights for the open-gated sum R, zero where there is no path."""

    def mass(weights: Params) -> Array:
        return open_sum(apply, weights, inputs, q=q).array

    total, slopes = jax.value_and_grad(mass)(weights)
    alive = total > 0
    per_mass = jnp.where(alive, 1.0 / jnp.where(alive, total, 1.0), 0.0)
    return jax.tree.map(lambda weight, slope: weight * slope * per_mass.astype(slope.dtype), factor, slopes)


def _mean_input(inputs: Any, phi: Callable[[Any], Any]) -> Array:
    """The mean of φ(x) over all examples, (1, ...)."""
    batches = [inputs] if isinstance(inputs, jax.Array | np.ndarray) else inputs
    total, examples = jnp.zeros(()), 0
    for batch in map(jnp.asarray, batches):
        if not jnp.issubdtype(batch.dtype, jnp.floating):
            raise ValueError(
                f"`inputs` must be floating-point, but are {batch.dtype}. Convert and standardize them first."
            )
        total, examples = total + phi(batch).sum(axis=0), examples + len(batch)
    if examples == 0:
        raise ValueError("`inputs` has no examples. Give at least one; an iterator that was read before is empty.")
    return (total / examples)[None]


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


def force(apply: ApplyFn, params: Params, batches: Batches, *, mask: Mask, loss: LossFn = cross_entropy) -> Scores:
    """FORCE: |θ ⊙ g|, where g = ∂L/∂θ is taken at the masked weights, and θ are the weights before they were masked.

    A pruned weight scores what the loss would change, to first order, if it came back alone; so `pruning.prune` with
    `revive` lets it return. Of kept weights, and with a mask that keeps everything, the score is that of `snip`. Path
    form: |Σ_{p∋i} ∂L/∂v_p · v_p| over the paths through the weight whose other weights are all kept.

    Cost, options and errors as of `snip`; ValueError for a mask of another tree, TypeError for one that is not boolean.

    Source: de Jorge et al., "Progressive skeletonization: trimming more fat from a network at initialization", 2021.
    Synaptic-Flow's SNIP, which differentiates by the mask, is the same. The authors take a new batch for each round,
    and keep all of the weights that tie.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[1.0, 0.5, -1.0], [2.0, 0.0, 1.0]])}
    >>> mask = {"kernel": jnp.array([[True, False, True], [True, True, True]])}
    >>> x, y = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([0, 2])
    >>> force(lambda params, x: x @ params["kernel"], params, [(x, y)], mask=mask)["kernel"].round(3).tolist()
    [[0.167, 0.061, 0.045], [0.0, 0.0, 0.0]]
    """
    check_mask(mask, params)
    masked = jax.tree.map(lambda kept, leaf: jnp.where(kept, leaf, 0), mask, params)
    gradient, _ = _mean_gradient(apply, masked, batches, loss=loss)
    return jax.tree.map(lambda leaf, slope: jnp.abs(leaf * slope), params, gradient)
