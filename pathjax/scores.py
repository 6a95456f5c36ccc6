"""Scores: how much each weight is worth keeping.

A score is a pytree like `params`; `masks.from_scores` keeps the weights of largest score. Scores that read data hold
one batch in memory at a time, except `prospr`. What scores read:

batches
    Of `snip`, `force`, `grasp` and `prospr`: an iterable of pairs (x, y) of inputs and targets, [(x, y)] for a single
    batch. x is an array (n, ...) of any type, or a tree of such arrays, as the network takes it; y is likewise what the
    loss takes. A batch may also be a dictionary with one key of the targets ("y", "label", "labels", "target" or
    "targets"); x is then the array at the other key, or the dictionary of the others where there are several.
loss
    `loss(outputs, targets)`, the mean loss of the examples of a batch, with whatever `apply` returns. By default
    `cross_entropy`, of outputs (n, o) and integer labels (n,).
inputs
    Of scores that read inputs alone: an array (n, ...) or an iterable of such arrays.
x_like
    Of scores that read no data: an array or `jax.ShapeDtypeStruct` like a batch of inputs.

Options of all scores that take `apply`
---------------------------------------
state
    Where given, the network is `apply(params, state, x)`. For what is not trained by gradients, such as the running
    statistics of batch norm; it is not scored.
prunable
    `prunable(key_path, leaf)` chooses the leaves to score, as `masks.is_kernel` does; by default all. The other leaves
    score 0 and are held constant: GraSP, the traces and NTK-SAP take no derivatives by them. (In the mean over random
    weights of `mean_field_trace` they are random as the others are, and the steps of `prospr` train them.) Raises
    ValueError where it chooses no leaf.
mask
    Which weights are kept, for the scores that must tell a pruned weight from a weight that is 0. By default, weights
    of 0 count as pruned in the leaves that `prunable` chooses, or without `prunable` in the kernels (`paths.kernels`):
    `pruning.prune` sets pruned weights to 0. For a network with kernels of 0 that are not pruned, pass a mask of True.
has_aux
    Where True, `apply` returns a pair, of which the first is the outputs and the second is ignored. With it, `snip`,
    `force`, `grasp`, `prospr` and `ntk_sap` score a network in training mode, as their authors do: batch norm takes the
    statistics of the scoring batch and returns new running ones. In Flax linen:

        def apply(params, state, x):
            return model.apply({"params": params, **state}, x, train=True, mutable=["batch_stats"])

    The examples of a batch then depend on each other, so that the split into batches matters. Without batch statistics
    it changes a score by rounding only.

Float16 and bfloat16 weights are converted to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten_with_path
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from pathjax._base.network import kept_weights
from pathjax._base.programs import Static
from pathjax._base.trees import check_like, check_mask, check_second_moments, concrete, dot, multiply, wide
from pathjax._base.weights import check_weights
from pathjax._interpreter.jaxpr import batch_length
from pathjax._interpreter.lifting import absolute_power, lift_weights, one_example, ones_like_example
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax._pruning.flows import first_example, flow, log_gram_of_outputs, mean_field_flow, mean_input
from pathjax._pruning.losses import (
    Batches,
    Loss,
    LossFn,
    check_labels,
    curvature_product,
    first_batches,
    mean_gradient,
    outputs_of,
    replayable,
    slopes_before_steps,
    train,
)
from pathjax.path_kernel import path_kernel
from pathjax.types import AnyArray, Inputs, Key, Mask, Params, Prunable, Real, Scores, XLike

__all__ = [
    "cross_entropy",
    "force",
    "grasp",
    "magnitude",
    "mean_field_trace",
    "ntk_sap",
    "path_kernel_trace",
    "prospr",
    "px",
    "random",
    "snip",
    "synflow",
    "synflow_data",
    "synflow_l2",
]


def cross_entropy(logits: Float[Array, "n o"], labels: Shaped[Array, " n"]) -> Float[Array, ""]:
    """Mean cross-entropy in nats: the mean over examples of −log softmax(logits) at the label.

    Raises TypeError for labels that are not integers, and ValueError for labels outside 0 … o − 1, logits of other
    than two axes, and labels that are not one for each example. Under `jit`, where values cannot be read, a label
    outside makes the loss and its gradient NaN.

    >>> import jax.numpy as jnp
    >>> round(float(cross_entropy(jnp.zeros((2, 3)), jnp.array([0, 2]))), 4)  # log 3
    1.0986
    """
    _check_classification(logits, labels)
    wider = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # narrow types may not hold the number of outputs
    is_valid = (wider >= 0) & (wider < logits.shape[-1])
    index = jnp.where(is_valid, wider, 0).astype(jnp.int32)
    label_logits = jnp.take_along_axis(logits, index[:, None], axis=-1)[:, 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - label_logits
    return jnp.mean(losses * jnp.where(is_valid, 1.0, jnp.nan).astype(logits.dtype))


def _check_classification(logits: Any, labels: Any) -> None:
    """Raise unless the outputs are logits (n, o) and the targets labels (n,)."""
    shape, label_shape = (tuple(getattr(array, "shape", ())) for array in (logits, labels))
    if not hasattr(logits, "shape") or len(shape) != 2 or not hasattr(labels, "shape") or label_shape != shape[:1]:
        logits_are = f"of shape {shape}" if hasattr(logits, "shape") else f"a {type(logits).__name__}"
        labels_are = f"of shape {label_shape}" if hasattr(labels, "shape") else f"a {type(labels).__name__}"
        remedy = "Pass a `loss` of your own."
        if len(shape) > 2 and label_shape == shape[:-1]:
            remedy = (
                "For a label at each place, pass loss=lambda logits, labels: "
                "scores.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.ravel())."
            )
        elif len(shape) == 2 and label_shape == shape:
            remedy = (
                "Of one-hot targets take jnp.argmax(targets, axis=-1); for other targets pass a `loss` of your own."
            )
        raise ValueError(
            f"Cross-entropy is of logits (n, o) and labels (n,), but the outputs are {logits_are} and the targets "
            f"{labels_are}. {remedy}"
        )
    check_labels(labels, shape[-1])


def random(params: Params, *, key: Key) -> Scores:
    """Independent uniform scores in [0, 1), which keep a random set of weights.

    Neither weights nor data are read. Float16 and bfloat16 leaves get float32 scores, as half precision would make ties
    common. Other libraries draw from a normal distribution; the ranks have the same distribution.

    Raises ValueError or TypeError for leaves that are no weights, as when all variables of a Flax model are passed and
    not its `variables["params"]` alone.

    >>> import jax, jax.numpy as jnp
    >>> score = random({"kernel": jnp.ones((3, 2))}, key=jax.random.key(0))["kernel"]
    >>> score.shape, bool((score >= 0).all() & (score < 1).all())
    ((3, 2), True)
    """
    check_weights(params)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.uniform(leaf_key, jnp.shape(leaf), jnp.promote_types(jnp.result_type(leaf), jnp.float32))
        for leaf_key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def magnitude(params: Params) -> Scores:
    """Magnitude: |θ|, the absolute value of each weight.

    Path form: |v_p / Π_{j ≠ i} θ_j|, the factor that the weight contributes to each of its paths. It does not depend on
    the rest of the path, so the score is not invariant under rescaling of neurons. Source: Han et al., "Learning both
    weights and connections for efficient neural networks", 2015; at initialization, the baseline of Frankle et al.,
    2021. Raises ValueError or TypeError for leaves that are no weights, as when all variables of a Flax model are
    passed and not its `variables["params"]` alone.

    >>> import jax.numpy as jnp
    >>> from pathjax import masks
    >>> score = magnitude({"kernel": jnp.array([[-2.0, 1.0, 0.5], [0.1, -3.0, 0.2]])})
    >>> masks.from_scores(score, density=0.5)["kernel"].tolist()
    [[True, True, False], [False, True, False]]
    """
    check_weights(params)
    return jax.tree.map(jnp.abs, params)


def snip(
    apply: Callable[..., Any],
    params: Params,
    batches: Batches,
    *,
    loss: LossFn = cross_entropy,
    state: Any = None,
    has_aux: bool = False,
    prunable: Prunable | None = None,
) -> Scores:
    """SNIP: how much the loss would change, to first order, if each weight were removed.

    The score is |θ ⊙ g|, where g = ∂L/∂θ is the gradient of the mean loss over all examples of all batches. Path form:
    |Σ_{p∋i} ∂L/∂v_p · v_p|, summed over the paths through the weight, each as often as it uses the weight; for θ_i
    ∂v_p/∂θ_i is v_p on these paths and 0 on others. A weight of 0 scores 0, so a pruned weight stays pruned in later
    rounds.

    Cost: one forward and one backward pass per example. `loss(outputs, labels)` must be a mean over examples; each
    batch counts by its number of examples. Each call compiles the gradient once per shape of batch. Under an outer
    `jit` all batches are unrolled into one program.

    Turn dropout off (`deterministic=True`): otherwise the score is that of one random draw of the network, the same
    draw for every batch.

    Raises ValueError where there is no example, x and y differ in length, or the loss is more than one number, and what
    `cross_entropy` raises, by default the loss; TypeError for batches that are no pairs of arrays.

    Source: Lee, Ajanthan, Torr, "SNIP: single-shot network pruning based on connection sensitivity", 2019, equations 4
    to 6. The authors and Synaptic-Flow differentiate by a multiplicative mask, which gives the same score where the
    mask is 1, and divide by the sum, which does not change ranks. Where the mask is 0 their score can be positive, so
    that later rounds can revive weights. The authors score one batch of 100 examples and prune biases too.

    >>> import jax, jax.numpy as jnp
    >>> from pathjax import masks
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 20)), "out": jax.random.normal(keys[1], (20, 3))}
    >>> x, y = jax.random.normal(keys[2], (16, 4)), jnp.arange(16) % 3
    >>> x = x.at[:, 1].set(0)  # a feature that is 0 on all data, as a pixel at the border may be
    >>> mask = masks.from_scores(snip(apply, params, [(x, y)]), density=0.5)
    >>> int(masks.count(mask)), mask["hidden"].any(axis=1).tolist()  # its weights are pruned first
    (70, [True, False, True, True])
    """
    params = jax.tree.map(wide, params)
    gradient = mean_gradient(traced(apply, params, state), params, batches, loss=_loss(loss, has_aux))
    return _zero_unscored(_magnitude_of_product(params, gradient), prunable)


def force(
    apply: Callable[..., Any],
    params: Params,
    batches: Batches,
    *,
    mask: Mask,
    loss: LossFn = cross_entropy,
    state: Any = None,
    has_aux: bool = False,
    prunable: Prunable | None = None,
) -> Scores:
    """FORCE: SNIP of a masked network that also scores the pruned weights, so that they can return.

    The score is |θ ⊙ g|, where g = ∂L/∂θ is taken at the masked weights and θ are the weights before masking. To first
    order, a pruned weight scores the change of the loss if this weight alone were restored; so it can return in
    `pruning.prune` with `revive=True`. The scores of kept weights are those of `snip` at the masked weights. Path
    form: |Σ_{p∋i} ∂L/∂v_p · v_p|, summed over the paths through the weight whose other weights are all kept.

    Cost, options and errors are those of `snip`. Also raises ValueError for a mask of another tree and TypeError for
    one that is not boolean.

    Source: de Jorge et al., "Progressive skeletonization: trimming more fat from a network at initialization", 2021.
    Synaptic-Flow's SNIP, which differentiates by the mask, is the same score. The authors take a new batch in each
    round and keep all weights that tie with the threshold.

    >>> import jax, jax.numpy as jnp
    >>> from pathjax import masks, pruning
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 20)), "out": jax.random.normal(keys[1], (20, 3))}
    >>> x, y = jax.random.normal(keys[2], (16, 4)), jnp.arange(16) % 3
    >>> def score(masked, key):  # the weights before pruning, and which of them are kept in this round
    ...     return force(apply, params, [(x, y)], mask=jax.tree.map(lambda leaf: leaf != 0, masked))
    >>> mask = pruning.prune(score, params, density=0.1, rounds=10, revive=True)
    >>> int(masks.count(mask))
    14
    """
    mask = check_mask(mask, params)
    params = jax.tree.map(wide, params)
    network = traced(apply, params, state)
    gradient = mean_gradient(network, kept_weights(mask, params), batches, loss=_loss(loss, has_aux))
    return _zero_unscored(_magnitude_of_product(params, gradient), prunable)


def grasp(
    apply: Callable[..., Any],
    params: Params,
    batches: Batches,
    *,
    loss: LossFn = cross_entropy,
    temperature: Real = 200.0,
    state: Any = None,
    has_aux: bool = False,
    prunable: Prunable | None = None,
) -> Scores:
    """GraSP: how much of the gradient's squared norm would be lost, to first order, if each weight were removed.

    The score is θ ⊙ (H g) = ½ θ ⊙ ∂‖g‖²/∂θ, half of that loss, with the gradient g and the Hessian H of the mean loss
    over all examples of all batches. It can be negative. Weights of largest score are kept. The outputs are divided by
    `temperature` before the loss.

    Path form: with e_p = ∂L/∂v_p, L'' the Hessian of L in path values and J = ∂v/∂θ, so that g = Jᵀe and ‖g‖² = eᵀΠe,

        θ_i (H g)_i = Σ_{p∋i} [v_p (L'' J g)_p + e_p (J g)_p] − g_i²

    over the paths through the weight, where no path uses a weight twice.

    Cost: one gradient and one Hessian-vector product per example, in two passes over the batches; batches from an
    iterator are all held in memory for the second pass. Each is compiled once per shape of batch. With `prunable`, g
    and H are those of the scored leaves. `loss` and the errors are those of `snip`; ValueError also for a temperature
    that is not positive.

    Source: Wang, Zhang, Grosse, "Picking winning tickets before training by preserving gradient flow", 2020, section 4.
    Their code divides −θ ⊙ H g by its absolute sum, removes the largest, leaves biases out of g (as
    `prunable=masks.is_kernel` does here), and takes 10 examples of each class.

    >>> import jax, jax.numpy as jnp
    >>> from pathjax import masks
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"] + params["bias"][None]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 20)), "out": jax.random.normal(keys[1], (20, 3))}
    >>> params["bias"] = jnp.zeros(3)
    >>> x, y = jax.random.normal(keys[2], (48, 4)), jnp.arange(48) % 3
    >>> batches = [(x[start : start + 16], y[start : start + 16]) for start in (0, 16, 32)]
    >>> score = grasp(apply, params, batches, prunable=masks.is_kernel)  # as the authors, without biases
    >>> mask = masks.from_scores(score, density=0.3)
    >>> int(masks.count(mask)), bool(mask["bias"].all())
    (42, True)
    """
    value = concrete(temperature)
    if value is not None and not value > 0:
        raise ValueError(f"`temperature` must be positive, as outputs are divided by it; it is {temperature}.")
    params = jax.tree.map(wide, params)
    network = traced(apply, params, state)

    batches, at = replayable(batches), _loss(loss, has_aux)
    gradient = mean_gradient(network, params, batches, loss=at, temperature=temperature)
    gradient = _zero_unscored(gradient, prunable)
    product = curvature_product(network, params, batches, gradient, loss=at, temperature=temperature)
    return _zero_unscored(multiply(params, product), prunable)


def prospr(
    apply: Callable[..., Any],
    params: Params,
    batches: Batches,
    *,
    steps: int = 3,
    learning_rate: ArrayLike = 0.5,
    loss: LossFn = cross_entropy,
    state: Any = None,
    has_aux: bool = False,
    prunable: Prunable | None = None,
    mask: Mask | None = None,
) -> Scores:
    """ProsPr: how much the loss after a few steps of training would change if each weight were removed before them.

    To first order that is the score |θ ⊙ ∂L(w_M)/∂w₀|, where w_M are the weights after M = `steps` steps of training
    from w₀ = θ. With the mean loss L_k of batch k and η = `learning_rate`, step k = 0 … M − 1 is w_{k+1} = w_k − η
    ∇L_k(w_k), and L is the loss of the next batch, L_M. By the chain rule, with the Hessians H_k of L_k,

        ∂L(w_M)/∂w₀ = (I − η H₀(w₀)) … (I − η H_{M−1}(w_{M−1})) ∇L_M(w_M)

    Without steps it is SNIP of the first batch. It has no path form: how a step changes the value of a path depends on
    the weights, not on path values alone. So it is not invariant under rescaling of neurons.

    `batches` must hold M + 1 batches, one for each step and one for the loss; further ones are not read, so that it may
    be an endless iterator. Give one batch several times to use it several times: [(x, y)] * 4. A `learning_rate` that
    is too large can leave a ReLU network without active units; then all scores are 0, and masks keep the first weights.

    Pruned weights (see `mask` above) score 0 and stay at 0 in the steps, as in the training that follows. All other
    weights are trained, also in leaves that `prunable` does not choose, such as biases. With `has_aux`, batch norm
    takes the statistics of each step's own batch; `state` is the same in all steps.

    Cost: M + 1 gradients and M Hessian-vector products of a batch each. M + 1 batches and M + 1 copies of the weights
    are in memory. Both are compiled once per shape of batch. Turn dropout off, as for `snip`.

    Raises ValueError where fewer than M + 1 batches hold examples, `steps` is negative, `learning_rate` is negative or
    not finite, or the loss or a weight is not finite after some step (under `jit` and `vmap`, where values cannot be
    read, scores are then NaN), and what `snip` raises.

    Source: Alizadeh et al., "Prospect pruning: finding trainable weights at initialization using meta-gradients", 2022,
    section 3. As there, the derivative is by a mask of w₀ alone, not of the updates; each step and the last loss have a
    batch of their own; and the steps train biases and norms. The authors score networks in training mode (`has_aux`).
    They prune once, where the mask is 1: that pruned weights stay at 0 in the steps is added here, for further rounds.
    Their code, whose example takes 3 steps at the rate 0.5, can also use one batch throughout, add momentum, and leave
    out the Hessians.

    >>> import jax, jax.numpy as jnp
    >>> from pathjax import masks
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": 0.5 * jax.random.normal(keys[0], (4, 20)), "out": jnp.full((20, 3), 0.2)}
    >>> x, y = jax.random.normal(keys[2], (64, 4)), jnp.arange(64) % 3
    >>> batches = [(x[start : start + 16], y[start : start + 16]) for start in (0, 16, 32, 48)]
    >>> score = prospr(apply, params, batches, steps=3, learning_rate=0.1)  # three batches to train, one for the loss
    >>> int(masks.count(masks.from_scores(score, density=0.3)))
    42
    """
    if steps < 0:
        raise ValueError(f"`steps` must be 0 or more; it is {steps}.")
    rate = concrete(learning_rate)
    if rate is not None and not 0 <= rate < float("inf"):
        raise ValueError(f"`learning_rate` must be finite and not negative; it is {learning_rate}.")
    params = jax.tree.map(wide, params)
    network, at = traced(apply, params, state), _loss(loss, has_aux)
    given = first_batches(network, params, batches, steps + 1, loss=at)
    if len(given) <= steps:
        raise ValueError(
            f"With steps={steps}, `batches` must hold {steps + 1} batches with examples, one for each step and one for "
            f"the loss after them; it holds {len(given)}. Pass more batches or fewer `steps`, or give a batch several "
            f"times: [(x, y)] * {steps + 1}. An iterator that was read before is empty, a list is not."
        )
    keep = _kept_mask(network, params, given[0][0], mask, prunable)
    params = kept_weights(keep, params)
    options: dict[str, Any] = {"kept": keep, "learning_rate": learning_rate, "loss": at}
    weights = train(network, params, given[:-1], **options)
    slopes = slopes_before_steps(network, weights, given, **options)
    _check_trained(weights, slopes, learning_rate)
    return _zero_unscored(_magnitude_of_product(params, slopes), prunable)


def _check_trained(weights: list[Params], slopes: Params, learning_rate: ArrayLike) -> None:
    """Raise ValueError if the derivative by the first weights is not finite, unless traced or without steps."""
    steps, is_sound = len(weights) - 1, concrete(_is_finite(slopes))
    if steps == 0 or is_sound is None or is_sound:
        return
    are_finite = [bool(_is_finite(each)) for each in weights[1:]]
    what, step = "The derivative of the loss is", steps
    if not all(are_finite):
        what, step = "Weights are", are_finite.index(False) + 1
    raise ValueError(
        f"{what} not finite after step {step} of {steps} with learning_rate={learning_rate}. Pass finite weights and "
        "batches, and a smaller `learning_rate` if training diverges."
    )


@jax.jit
def _is_finite(tree: Params) -> Array:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.ones((), bool)


def synflow(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    state: Any = None,
    prunable: Prunable | None = None,
) -> Scores:
    """SynFlow: the share of the path norm, the sum of |v_p| over all paths, that goes through each weight. No data.

    The share is |θ| ⊙ ∂R₁/∂|θ| / R₁ with R₁ = Σ_p |v_p|. Path form: Σ_{p∋i} |v_p| / Σ_p |v_p|, each path counted as
    often as it uses the weight. The shares sum to 1 over the weights and biases of any cut of the network, and lie in
    [0, 1] unless a path uses a weight twice. A weight of 0 has share 0; so has every weight if no path is left.
    Invariant under rescaling of neurons. The sums carry a separate exponent, so that no depth overflows in any
    floating-point type.

    Cost: one forward and one backward pass on |θ|. Only the shape and dtype of `x_like` are read.

    Raises UnsupportedPrimitive where a layer is not piecewise linear.

    Source: Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively conserving
    synaptic flow", 2020. Their code does not divide by R₁, which gives the same ranks until R₁ overflows (as for
    ResNet-56 in float32). For max pooling it follows the path through the arg max only, on an input of ones, where this
    sum takes all entries of the window.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.array([[1.0, -3.0]]), "second": jnp.ones((2, 3))}
    >>> score = synflow(apply, params, jnp.zeros((5, 1)))
    >>> score["first"].tolist()  # a quarter of the norm goes through the first hidden unit
    [[0.25, 0.75]]
    >>> round(float(score["first"].sum()), 4), round(float(score["second"].sum()), 4)  # each layer is a cut
    (1.0, 1.0)
    """
    network = traced(apply, params, state)
    return _zero_unscored(flow(network, params, ones_like_example(x_like), q=1), prunable)


def synflow_l2(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    factor: str = "squared",
    state: Any = None,
    prunable: Prunable | None = None,
) -> Scores:
    """SynFlow-L2: the share of the sum of squared path values that goes through each weight. No data.

    The share is θ² ⊙ ∂R₂/∂θ² / R₂ with R₂ = Σ_p v_p². Path form: Σ_{p∋i} v_p² / Σ_p v_p². As those of `synflow`, the
    shares sum to 1 over any cut and are invariant under rescaling of neurons. With `factor="absolute"` the score is |θ|
    ⊙ ∂R₂/∂θ² / R₂, as in three public implementations, which has neither property. Cost: one forward and one backward
    pass on θ². Only the shape and dtype of `x_like` are read.

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
    network = traced(apply, params, state)
    multiplier = None if factor == "squared" else lift_weights(params, absolute_power(1), None)
    return _zero_unscored(flow(network, params, ones_like_example(x_like), factor=multiplier, q=2), prunable)


def synflow_data(
    apply: Callable[..., Any],
    params: Params,
    inputs: Float[AnyArray, "n ..."] | Iterable[Any],
    *,
    q: Real = 1,
    state: Any = None,
    prunable: Prunable | None = None,
) -> Scores:
    """SynFlow on data: the share of a path norm, weighted by the size of the inputs, that goes through each weight.

    The mean of |x|^q over `inputs` takes the place of the all-ones input. No targets are read. With q = 1 this extends
    `synflow`, with q = 2 `synflow_l2`. Path form: Σ_{p∋i} |v_p|^q E|x_s(p)|^q divided by the same sum over all paths; a
    path that starts at a bias has 1 in place of x_s(p).

    Cost: one pass over `inputs`, an array (n, ...) or an iterable of such, for the mean; then one forward and one
    backward pass. This suffices because the path sum is affine in |x|^q.

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
    network = traced(apply, params, state)
    return _zero_unscored(flow(network, params, mean_input(inputs, absolute_power(q)), q=q), prunable)


def path_kernel_trace(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    state: Any = None,
    prunable: Prunable | None = None,
    mask: Mask | None = None,
) -> Scores:
    """The share of the Path Kernel's trace that goes through each weight. No data.

    The share is u ⊙ ∂ log Tr Π/∂u with u = θ². Path form, where no path uses a weight twice: Σ_{p∋i} Σ_{j∈p, j≠i}
    (v_p/θ_j)² / Tr Π, the part of the derivatives by all other weights that goes through weight i. Tr Π is the sum of
    the eigenvalues of Π, and so a data-free upper bound on how fast any path value can be learned. The shares do not
    sum to 1 over cuts, since a path counts once for each other weight on it; and they are not invariant under rescaling
    of neurons, since Tr Π is not. With `prunable`, Tr Π is summed over the scored leaves only; pruned weights (see
    `mask` above) are left out of Π.

    Cost: one gradient of a gradient of a path sum, about four gradients; if weights are tied, also one Hessian-vector
    product for each entry of their leaves. Only the shape and dtype of `x_like` are read.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError where no weight is kept, or for
    weights whose squares are not finite.
    Source: Gebhart et al. (2021), section 3, for Tr Π as the measure of a pruned network.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.array([[1.0, -3.0]]), "second": jnp.array([[2.0], [1.0]])}
    >>> score = path_kernel_trace(apply, params, jnp.zeros((5, 1)))
    >>> score["first"].round(3).tolist(), score["second"].round(3).tolist()  # shares of Tr Π = 2² + 1² + 1² + (−3)²
    ([[0.067, 0.6]], [[0.267], [0.067]])
    """
    params = jax.tree.map(wide, params)
    network = traced(apply, params, state)
    keep = _kept_mask(network, params, x_like, mask, prunable)

    def log_trace(params: Params) -> Array:
        return path_kernel(network, params, x_like, mask=keep, where=prunable).log_trace()

    slopes = jax.grad(log_trace)(params)
    # θ ⊙ ∂/∂θ = 2 u ⊙ ∂/∂u for u = θ²
    return _zero_unscored(jax.tree.map(lambda leaf, slope: leaf * slope / 2, params, slopes), prunable)


def mean_field_trace(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    inputs: Float[AnyArray, "n ..."] | Iterable[Any] | None = None,
    input_moments: ArrayLike | None = None,
    second_moments: Params | None = None,
    state: Any = None,
    prunable: Prunable | None = None,
    mask: Mask | None = None,
    batch_size: int = 16,
) -> Scores:
    """The share of the expected Neural Tangent Kernel's trace that goes through each weight, with data or without.

    The share is u ⊙ ∂ log Tr Θ̄/∂u. Tr Θ̄ = Σ_n Σ_o Θ̄(x_n, x_n)_o is the trace of `ntk.mean_field`, the mean of Θ over
    random weights of the second moments u. It needs no data: without `inputs`, the inputs are drawn at random too, with
    independent entries of mean 0, and only the shape and dtype of `x_like` are read. `input_moments` are their second
    moments E[x²], an array like one example or one number; by default 1. With `inputs`, an array (n, ...) or an
    iterable of such, the trace is that on the data.

    `second_moments` is a tree like `params` with an array or a number for each leaf, as `ntk.second_moments` makes it.
    None stands for θ², the mean over the signs of the weights. Pruned weights (see `mask` above) have the moment 0 and
    no derivative, and Tr Θ̄ sums over the scored leaves only, as in `path_kernel_trace`.

    Gates are held: how often a gate is open is a constant of the differentiation. Θ̄ is a sum of squared derivatives,
    Tr Θ̄ = Σ_j E[(∂f/∂w_j)²], and no weight is a factor of the derivative by itself. So the score of weight i counts
    what goes through it of the derivatives by all other weights. For ReLU,

        Σ_{p∋i} Σ_{j∈p, j≠i} 2^(−g_p) c_p² E[x_s(p)²] Π_{k∈p, k≠j} u_k / Tr Θ̄,

    with g_p the number of gates on path p and c_p its constants: that is `path_kernel_trace` with each gate open half
    of the time, and with the inputs. A leaky ReLU of slopes α and 1 has (1 + α²)/2 in place of 1/2. Of a network in
    which all paths pass equally many gates, as without shortcuts and biases, the data-free score is therefore that of
    `path_kernel_trace`. Where constants are added before a gate, or positions are averaged behind one,
    shares of open gates depend on the weights and on the inputs, and there is no such formula. The shares do not sum to
    1 over cuts, and are not invariant under rescaling of neurons: both as those of `path_kernel_trace`.

    Cost: about that of three gradients on squared weights, for each example or once without data, `batch_size` examples
    at a time, which bounds the memory. No pairs of examples are formed, and one pass over the inputs suffices. Where
    something sums over positions behind a gate, as global pooling does, every pair of positions of an example is
    carried: choose a small `batch_size` then, and expect a deep network to compile for a minute or more. The moments
    carry no separate exponent: where Tr Θ̄ is too small for the dtype, all scores are 0, and where it is too large they
    are not finite. Very deep networks need float64.

    Raises UnsupportedPrimitive for what `ntk.mean_field` refuses, such as max pooling and weights used twice, and
    without `inputs` for a network in which two uses of an input meet in a sum before any weights, as in a shortcut from
    the inputs around the first gate. ValueError for second moments of another tree or shape, negative or not finite,
    for `inputs` and `input_moments` at once, where there is no example, and for a `batch_size` below 1.
    Source: the expected kernel is that of `ntk.mean_field`; as a score, Tr Θ̄ takes the place of Tr Π in Gebhart et al.
    (2021), and of the bound on Tr Θ in Iurada et al. (2024).

    >>> import jax, jax.numpy as jnp
    >>> from pathjax import masks
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 20)), "out": jax.random.normal(keys[1], (20, 3))}
    >>> score = mean_field_trace(apply, params, jnp.zeros((1, 4)))  # without data
    >>> int(masks.count(masks.from_scores(score, density=0.1)))
    14
    >>> x = jax.random.normal(keys[2], (50, 4)) * jnp.array([[1.0, 1.0, 1.0, 0.01]])  # the last feature is tiny
    >>> on_data = mean_field_trace(apply, params, jnp.zeros((1, 4)), inputs=x)
    >>> mask = masks.from_scores(on_data, density=0.1)
    >>> bool(mask["hidden"][3].any())  # so that its weights are pruned first
    False
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, the number of examples at a time, but is {batch_size}.")
    params = jax.tree.map(wide, params)
    if inputs is not None and input_moments is not None:
        raise ValueError("`inputs` and `input_moments` both came, but the inputs are either given or drawn. Pass one.")
    network = traced(apply, params, state)
    network.path_program(one_example(x_like))  # refuses integers, as the moments of inputs are floating-point
    keep = _kept_mask(network, params, x_like, mask, prunable)
    moments = jax.tree.map(jnp.square, params) if second_moments is None else second_moments
    moments = check_second_moments(moments, params)
    shares = mean_field_flow(
        network,
        jax.tree.map(lambda moment, leaf: jnp.full(leaf.shape, moment, leaf.dtype), moments, params),
        keep,
        _moments_of_inputs(x_like, input_moments) if inputs is None else inputs,
        trained=_scored(params, prunable),
        is_drawn=inputs is None,
        batch_size=batch_size,
    )
    return _zero_unscored(shares, prunable)


def _moments_of_inputs(x_like: XLike, input_moments: Any) -> Array:
    """The second moments of the entries of one input, (1, ...)."""
    ones = wide(ones_like_example(x_like))
    if input_moments is None:
        return ones
    if jnp.shape(input_moments) not in ((), ones.shape[1:]):
        raise ValueError(
            f"`input_moments` has shape {jnp.shape(input_moments)}, but an input has {ones.shape[1:]}. Give one number "
            "for all entries, or one for each: jnp.mean(x**2, axis=0)."
        )
    values = concrete(input_moments)
    if values is not None and not ((values >= 0) & (values < jnp.inf)).all():
        raise ValueError(
            "`input_moments` has an entry that is negative, NaN or infinite; it must be a mean of squares: "
            "jnp.mean(x**2, axis=0)."
        )
    return jnp.full(ones.shape[1:], input_moments, ones.dtype)[None]


def px(
    apply: Callable[..., Any],
    params: Params,
    inputs: Float[AnyArray, "n ..."] | Iterable[Any],
    *,
    state: Any = None,
    prunable: Prunable | None = None,
    mask: Mask | None = None,
    batch_size: int = 64,
) -> Scores:
    """PX: the share of a data-weighted sum of squared path values that goes through each weight.

    The sum is R = Σ_n Σ_o K_v(x_n, x_n)_o · R_{2,o}(u) with u = θ². The share is u ⊙ ∂ log R/∂u, with K_v held
    fixed. K_v(x, x)_o = Σ_{p→o} a_p(x)² x_s(p)² is the data Gram, and R_{2,o} the sum of v_p² over the paths to
    output o. In the paper R replaces Tr Θ, by the Cauchy–Schwarz inequality. Path form: Σ_o K_o Σ_{p∋i, p→o} v_p²
    divided by the same sum over all paths, with K_o = Σ_n K_v(x_n, x_n)_o: `synflow_l2` with each output weighted
    by K_o. The shares sum to 1 over any cut and are invariant under rescaling of neurons. Paths through pruned
    weights (see `mask` above) are left out of K_v too.

    Cost: one forward pass with slopes per example, `batch_size` examples at a time, which bounds the memory; then one
    forward and one backward pass. Both sums carry a separate exponent, so that no depth overflows.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError where there is no example or
    `batch_size` is below 1.
    Source: Iurada, Ciccone, Tommasi, "Finding lottery tickets in vision models via data-driven spectral foresight
    pruning", 2024. Their code updates batch norm while scoring, does not square weights of some names, and
    takes all entries of max pooling windows; the method as published does not, and neither does this. They prune in 100
    rounds.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.array([[1.0, -1.0]]), "second": jnp.array([[1.0, 2.0, 0.0], [1.0, 0.0, 1.0]])}
    >>> score = px(apply, params, jnp.array([[1.0], [3.0]]))  # they reach outputs 0 and 1, through the first unit
    >>> [round(float(number), 4) for number in score["first"][0]]  # 1² + 2² through it, 1² through the other one
    [0.8333, 0.1667]
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, the number of examples at a time, but is {batch_size}.")
    network, inputs = traced(apply, params, state), replayable(inputs)
    keep = _kept_mask(network, params, first_example(inputs), mask, prunable)
    gram = log_gram_of_outputs(network, params, keep, inputs, batch_size)
    # only the ratios of the weights of the outputs matter: divide by the largest, so that exp does not overflow
    largest = jnp.max(gram.log_sums)
    output_weights = jnp.exp(gram.log_sums - jnp.where(jnp.isfinite(largest), largest, 0.0))
    return _zero_unscored(flow(network, params, gram.ones, keep, None, output_weights, q=2), prunable)


def ntk_sap(
    apply: Callable[..., Any],
    params: Params,
    x_like: Inputs,
    *,
    init: Callable[[Key], Params],
    key: Key,
    epsilon: Real = 0.01,
    repeats: int = 1,
    draw_inputs: Callable[[Key], Inputs] | None = None,
    state: Any = None,
    has_aux: bool = False,
    prunable: Prunable | None = None,
    mask: Mask | None = None,
) -> Scores:
    """NTK-SAP: how much the Neural Tangent Kernel's mean trace, over random weights, depends on keeping each weight.

    The score is |∂/∂m E‖f(m ⊙ θ) − f(m ⊙ (θ + εN))‖²| at the mask m, averaged over random weights θ, noise N and inputs
    x. Each of the `repeats` draws θ = `init(key)`, standard normal noise N for the scored leaves, and a batch of
    standard normal inputs with the shapes of `x_like`, an array or a tree of arrays, over whose examples the mean is
    taken. For inputs that cannot be normal, such as tokens, `draw_inputs(key)` gives a batch like `x_like`. f are all
    arrays that `apply` returns as outputs. The score depends on the architecture and the mask only: `params` gives
    which weights are 0 (see `mask` above).

    Path form: to second order in ε the mean over N is ε² Tr Θ, with Tr Θ = Tr(J_v f Π (J_v f)ᵀ). So the score is
    proportional to the derivative of the NTK's trace by the mask, averaged over weights and inputs.

    Cost: for each repeat, one gradient through two forward passes of a batch. Repeat r splits
    `jax.random.fold_in(key, r)` into the keys of the weights, the noise and the inputs. Pass another key in each round
    of pruning.

    Raises ValueError for an `epsilon` that is not positive, for no repeat, where `init` gives another tree than
    `params`, and where `draw_inputs` gives another than `x_like`.
    Source: Wang, Li, Sun, "NTK-SAP: improving neural network pruning by aligning training dynamics", 2023, algorithm 1.
    The authors prune in 20 rounds, with 1 to 5 repeats of one batch each.

    >>> import jax, jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> def init(key):
    ...     return {"first": jax.random.normal(key, (4, 3)), "second": jnp.ones((3, 2))}
    >>> params = init(jax.random.key(0))
    >>> params["first"] = params["first"].at[:, 1].set(0)  # a pruned unit
    >>> score = ntk_sap(apply, params, jnp.zeros((16, 4)), init=init, key=jax.random.key(1))
    >>> (score["second"] > 0).tolist()
    [[True, True], [False, False], [True, True]]
    """
    if not epsilon > 0:
        raise ValueError(f"`epsilon` must be positive, the size of the perturbation; it is {epsilon}.")
    if repeats < 1:
        raise ValueError(f"`repeats` must be 1 or more, the draws that are averaged; it is {repeats}.")
    check_like(jax.eval_shape(init, key), params, name="init(key)")
    network = traced(apply, jax.tree.map(wide, params), state)
    keep = _kept_mask(network, params, x_like, mask, prunable)
    # in float32 at least: half precision would round a perturbation of 0.01 away
    float_mask = jax.tree.map(lambda keep, leaf: jnp.asarray(keep, wide(leaf).dtype), keep, params)
    inputs = _NormalInputs.like(x_like) if draw_inputs is None else Static(draw_inputs)
    if draw_inputs is not None:
        check_like(jax.eval_shape(draw_inputs, key), x_like, name="draw_inputs(key)", like_name="x_like")
    options = {"init": Static(init), "inputs": inputs, "has_aux": has_aux, "scored": _scored(params, prunable)}
    gradient = network.compiled(_slopes_by_mask, **options)
    gradients = [gradient(float_mask, epsilon, jax.random.fold_in(key, repeat)) for repeat in range(repeats)]
    mean = jax.tree.map(lambda *leaves: jnp.abs(sum(leaves[1:], leaves[0])) / repeats, *gradients)
    return _zero_unscored(mean, prunable)


def _slopes_by_mask(
    network: TracedNetwork,
    float_mask: Params,
    epsilon: Any,
    key: Key,
    *,
    init: Callable[[Key], Params],
    inputs: Callable[[Key], Inputs],
    has_aux: bool,
    scored: tuple[bool, ...],
) -> Params:
    """The derivative by the mask of the mean squared change of the outputs, for one draw."""
    weights_key, noise_key, inputs_key = jax.random.split(key, 3)
    weights = jax.tree.map(wide, init(weights_key))
    noise = _zero_where_not(scored, _normal_like(noise_key, weights))
    perturbed = jax.tree.map(lambda leaf, step: leaf + jnp.asarray(epsilon, leaf.dtype) * step, weights, noise)
    x = inputs(inputs_key)

    def outputs(params: Params) -> Any:
        return outputs_of(network.outputs(params, x), has_aux)

    def squared_change(float_mask: Params) -> Array:
        change = jax.tree.map(
            jnp.subtract, outputs(multiply(float_mask, weights)), outputs(multiply(float_mask, perturbed))
        )
        return dot(change, change) / batch_length(x)

    return jax.grad(squared_change)(float_mask)


class _NormalInputs(NamedTuple):
    """Standard normal inputs, as a static option of a compiled program."""

    structure: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def like(cls, x_like: Inputs) -> _NormalInputs:
        batch_length(x_like)  # raises for what is no batch
        leaves, structure = jax.tree.flatten(x_like)
        dtypes = (jnp.promote_types(leaf.dtype, jnp.float32) for leaf in leaves)
        return cls(structure, tuple(map(jax.ShapeDtypeStruct, (leaf.shape for leaf in leaves), dtypes)))

    def __call__(self, key: Key) -> Inputs:
        keys = [key] if len(self.shapes) == 1 else jax.random.split(key, len(self.shapes))
        draws = [
            jax.random.normal(leaf_key, like.shape, like.dtype)
            for leaf_key, like in zip(keys, self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, draws)


def _loss(function: LossFn, has_aux: bool) -> Loss:
    check = _check_classification if function is cross_entropy else None
    return Loss(Static(function), has_aux, check)


@jax.jit
def _magnitude_of_product(left: Params, right: Params) -> Scores:
    return jax.tree.map(jnp.abs, multiply(left, right))


def _zero_unscored(tree: Params, prunable: Prunable | None) -> Params:
    """The tree, with zeros in the leaves that `prunable` does not choose."""
    return tree if prunable is None else _zero_where_not(_scored(tree, prunable), tree)


def _scored(params: Params, prunable: Prunable | None) -> tuple[bool, ...]:
    """Whether `prunable` chooses each leaf."""
    leaves = tree_flatten_with_path(params)[0]
    is_scored = tuple(prunable is None or bool(prunable(path, leaf)) for path, leaf in leaves)
    if not any(is_scored):
        raise ValueError(
            "`prunable` chooses no leaf, so that there is nothing to score. Kernels are usual: "
            "prunable=masks.is_kernel."
        )
    return is_scored


def _zero_where_not(is_scored: tuple[bool, ...], tree: Params) -> Params:
    leaves, structure = jax.tree.flatten(tree)
    kept = [leaf if keep else jnp.zeros_like(leaf) for leaf, keep in zip(leaves, is_scored, strict=True)]
    return jax.tree.unflatten(structure, kept)


def _kept_mask(network: TracedNetwork, params: Params, x: Any, mask: Mask | None, prunable: Prunable | None) -> Mask:
    """The mask, or if it is None: False for weights of 0 in prunable leaves, by default in the network's kernels."""
    if mask is not None:
        return check_mask(mask, params)
    may_prune = prunable or network.kernels(x)
    leaves, structure = tree_flatten_with_path(params)
    return jax.tree.unflatten(structure, [(leaf != 0) | (not may_prune(path, leaf)) for path, leaf in leaves])


def _normal_like(key: Key, tree: Params) -> Params:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.normal(leaf_key, leaf.shape, leaf.dtype) for leaf_key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, draws)
