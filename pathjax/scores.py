"""Scores: how much each weight is worth keeping.

A score is a pytree like `params`; `masks.from_scores` keeps the largest. Data-driven scores take `batches`, an iterable
of (x, y) with integer labels y (n,), or `inputs`, an array (n, ...) or an iterable of such; one batch is in memory at a
time, and no score depends on how the examples are split into batches.

Options of all scores of a network
----------------------------------
state
    Where given, the network is `apply(params, state, x)`: running statistics of batch norm, say. Never scored.
prunable
    `prunable(key_path, leaf)`, as `masks.is_kernel`: the leaves that are scored. The others are constants of the
    network: they score 0, and scores that are made of derivatives in all weights (GraSP, the Path Kernel's trace,
    NTK-SAP) take none in them. By default all leaves are scored. Raises ValueError where it chooses none.
mask
    Of the scores that need to know more of a pruned weight than that it is 0: what is kept. By default every weight
    but the zeros in leaves that `prunable` chooses or, without it, in leaves of two or more axes: so `pruning.prune`
    hands pruned weights over. Give a mask of True for a network whose kernels are 0 without being pruned.

Weights of half precision are taken to single precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten_with_path
from jaxtyping import Array, Float, Shaped

from pathjax._base import network as _network
from pathjax._base.trees import check_like, check_mask, concrete, multiply, wide
from pathjax._interpreter.lifting import absolute_power, lift_weights, ones_like_example
from pathjax._interpreter.traced import traced
from pathjax._pruning.flows import flow, log_gram_of_outputs, mean_input, relative
from pathjax._pruning.losses import Batches, LossFn, check_labels, curvature_product, mean_gradient, replayable
from pathjax.path_kernel import path_kernel
from pathjax.types import AnyArray, Key, Mask, Params, Prunable, Real, Scores, XLike

__all__ = [
    "cross_entropy",
    "force",
    "grasp",
    "magnitude",
    "ntk_sap",
    "path_kernel_trace",
    "px",
    "random",
    "snip",
    "synflow",
    "synflow_data",
    "synflow_l2",
]


def cross_entropy(logits: Float[Array, "n o"], labels: Shaped[Array, " n"]) -> Float[Array, ""]:
    """Mean over the examples of −log softmax(logits) at the label.

    Raises TypeError for labels that are not integers, ValueError for labels outside 0 … o − 1 where their values can be
    read. Under `jit` such a label makes the loss and its gradient NaN.

    >>> import jax.numpy as jnp
    >>> round(float(cross_entropy(jnp.zeros((2, 3)), jnp.array([0, 2]))), 4)  # log 3
    1.0986
    """
    check_labels(labels, logits.shape[-1])
    wider = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # narrow types may not hold the number of outputs
    known = (wider >= 0) & (wider < logits.shape[-1])
    label = jnp.where(known, wider, 0).astype(jnp.int32)
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


def snip(
    apply: Callable[..., Any],
    params: Params,
    batches: Batches,
    *,
    loss: LossFn = cross_entropy,
    state: Any = None,
    prunable: Prunable | None = None,
) -> Scores:
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
    params = jax.tree.map(wide, params)
    gradient = mean_gradient(traced(_network.bound(apply, state), params), params, batches, loss=loss)
    return _scored(jax.tree.map(jnp.abs, multiply(params, gradient)), prunable)


def force(
    apply: Callable[..., Any],
    params: Params,
    batches: Batches,
    *,
    mask: Mask,
    loss: LossFn = cross_entropy,
    state: Any = None,
    prunable: Prunable | None = None,
) -> Scores:
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
    params = jax.tree.map(wide, params)
    network = traced(_network.bound(apply, state), params)
    gradient = mean_gradient(network, _network.kept(mask, params), batches, loss=loss)
    return _scored(jax.tree.map(jnp.abs, multiply(params, gradient)), prunable)


def grasp(
    apply: Callable[..., Any],
    params: Params,
    batches: Batches,
    *,
    loss: LossFn = cross_entropy,
    temperature: Real = 200.0,
    state: Any = None,
    prunable: Prunable | None = None,
) -> Scores:
    """GraSP: θ ⊙ (H g), g and H the gradient and the Hessian of the mean loss over all examples of all batches.

    ½ θ ⊙ ∂‖g‖²/∂θ: to first order, by how much the squared norm of the gradient falls if the weight is removed. The
    largest are kept. The outputs are divided by `temperature` before the loss.

    Path form: with e_p = ∂L/∂v_p, L'' the Hessian of L in path values and J = ∂v/∂θ, so that g = Jᵀe and ‖g‖² = eᵀΠe,

        θ_i (H g)_i = Σ_{p∋i} [v_p (L'' J g)_p + e_p (J g)_p] − g_i²

    over the paths through the weight, where no path uses a weight twice.

    One gradient and one Hessian-vector product per example, in two passes over the batches: those of an iterator are
    kept for the second one. Each is compiled once per batch shape. With `prunable`, g and H are those of the scored
    leaves. `loss` and what is raised are as of `snip`; ValueError also for a temperature that is not positive.

    Source: Wang, Zhang, Grosse, "Picking winning tickets before training by preserving gradient flow", 2020, section 4.
    Its code scores −θ ⊙ H g over the absolute sum, removes the largest, leaves biases out of g, as
    `prunable=masks.is_kernel` does here, and takes 10 examples of each class.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, 1.0]])}
    >>> x, y = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([0, 2])
    >>> score = grasp(lambda params, x: x @ params["kernel"], params, [(x, y)], temperature=1.0)
    >>> [[round(float(number), 4) for number in row] for row in score["kernel"]]
    [[-0.0299, 0.0, -0.0055], [0.0, 0.0, 0.0]]
    """
    known = concrete(temperature)
    if known is not None and not known > 0:
        raise ValueError(f"`temperature` must be positive, as outputs are divided by it; it is {temperature}.")
    params = jax.tree.map(wide, params)
    network = traced(_network.bound(apply, state), params)

    def cooled(logits: Array, labels: Array) -> Array:
        return loss(logits / temperature, labels)

    batches = replayable(batches)
    gradient = _scored(mean_gradient(network, params, batches, loss=cooled), prunable)
    product = curvature_product(network, params, batches, gradient, loss=cooled)
    return _scored(multiply(params, product), prunable)


def synflow(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    state: Any = None,
    prunable: Prunable | None = None,
) -> Scores:
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
    network = traced(_network.bound(apply, state), params)
    return _scored(flow(network, params, ones_like_example(x_like), q=1), prunable)


def synflow_l2(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    factor: str = "squared",
    state: Any = None,
    prunable: Prunable | None = None,
) -> Scores:
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
    network = traced(_network.bound(apply, state), params)
    multiplier = None if factor == "squared" else lift_weights(params, absolute_power(1), None)
    return _scored(flow(network, params, ones_like_example(x_like), q=2, factor=multiplier), prunable)


def synflow_data(
    apply: Callable[..., Any],
    params: Params,
    inputs: Float[AnyArray, "n ..."] | Iterable[Any],
    *,
    q: Real = 1,
    state: Any = None,
    prunable: Prunable | None = None,
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
    network = traced(_network.bound(apply, state), params)
    return _scored(flow(network, params, mean_input(inputs, absolute_power(q)), q=q), prunable)


def path_kernel_trace(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    state: Any = None,
    prunable: Prunable | None = None,
    mask: Mask | None = None,
) -> Scores:
    """The share u ⊙ ∂ log Tr Π/∂u, u = θ², of the Path Kernel's trace that goes through each weight.

    Path form: Σ_{p∋i} Σ_{j∈p, j≠i} (v_p/θ_j)² / Tr Π, where no path uses a weight twice: what the weight does for the
    derivatives in all others. Tr Π is the sum of Π's eigenvalues and so, without data, an upper bound on how fast
    any path value can be learned. Not normalized over cuts: a weight is counted for each other weight of its paths.
    Not invariant under rescaling of neurons either, as Tr Π is not. With `prunable` the trace is over the scored leaves
    alone; pruned weights (see `mask` above) have no row in Π.

    One gradient of a gradient of the lifted network, some four gradients; for tied weights one Hessian-vector product
    for each entry of their leaves. Only the shape of `x_like` is read.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError where no weight is kept, or for
    weights whose squares are not finite.
    Source: Gebhart et al. (2021), section 3, for Tr Π as the measure of a pruned network.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.array([[1.0, -3.0]]), "second": jnp.array([[2.0], [1.0]])}
    >>> score = path_kernel_trace(apply, params, jnp.zeros((5, 1)))  # Tr Π = 2² + 1² + 1² + (−3)²
    >>> score["first"].round(3).tolist(), score["second"].round(3).tolist()
    ([[0.067, 0.6]], [[0.267], [0.067]])
    """
    kept, params = _kept(params, mask, prunable), jax.tree.map(wide, params)
    network = traced(_network.bound(apply, state), params)

    def trace(params: Params) -> Array:
        return path_kernel(network, params, x_like, mask=kept, where=prunable).trace()

    whole, slopes = jax.value_and_grad(trace)(params)
    return _scored(relative(multiply(params, slopes), 2 * whole), prunable)


def px(
    apply: Callable[..., Any],
    params: Params,
    inputs: Float[AnyArray, "n ..."] | Iterable[Any],
    *,
    state: Any = None,
    prunable: Prunable | None = None,
    mask: Mask | None = None,
    chunk: int = 64,
) -> Scores:
    """PX: the share u ⊙ ∂ log R/∂u of R = Σ_n Σ_o K_v(x_n, x_n)_o · R₂,o(u), u = θ², with K_v held fixed.

    K_v is the data Gram, Σ_{p→o} a_p(x)² x_s², and R₂,o the sum of v_p² over the paths to output o; by Cauchy and
    Schwarz the sum of their products stands in for Tr Θ. Path form: Σ_o K_o Σ_{p∋i, p→o} v_p² over the same sum of all
    paths, K_o = Σ_n K_v(x_n, x_n)_o: `synflow_l2` with outputs weighed by how much data reach them. Conserved over cuts
    and invariant under rescaling of neurons. Pruned weights (see `mask` above) end paths in K_v too.

    One lifted forward pass with slopes for each example, `chunk` of them at a time, then one forward and one backward
    pass. Both sums are carried with their scale.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError where there is no example or
    `chunk` is below 1.
    Source: Iurada, Ciccone, Tommasi, "Finding lottery tickets in vision models via data-driven spectral foresight
    pruning", 2024. Its code trains batch norm while it scores, leaves weights of some names unsquared and
    opens the gates of max pooling: quirks of the code, not of the method. It prunes in 100 rounds.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.array([[1.0, -1.0]]), "second": jnp.array([[1.0, 2.0, 0.0], [1.0, 0.0, 1.0]])}
    >>> score = px(apply, params, jnp.array([[1.0], [3.0]]))  # they reach outputs 0 and 1, through the first unit
    >>> [round(float(number), 4) for number in score["first"][0]]  # 1² + 2² through it, 1² through the other one
    [0.8333, 0.1667]
    """
    if chunk < 1:
        raise ValueError(f"`chunk` must be at least 1, the number of examples at a time, but is {chunk}.")
    network, kept = traced(_network.bound(apply, state), params), _kept(params, mask, prunable)
    gram = log_gram_of_outputs(network, params, kept, inputs, chunk)
    peak = jnp.max(gram.log_sums)
    reached = jnp.exp(gram.log_sums - jnp.where(jnp.isfinite(peak), peak, 0.0))
    return _scored(flow(network, params, gram.ones, q=2, mask=kept, reached=reached), prunable)


def ntk_sap(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    init: Callable[[Key], Params],
    key: Key,
    epsilon: Real = 0.01,
    repeats: int = 1,
    state: Any = None,
    prunable: Prunable | None = None,
    mask: Mask | None = None,
) -> Scores:
    """NTK-SAP: |∂/∂m E‖f(m ⊙ θ) − f(m ⊙ (θ + εN))‖²| at the mask m, over weights, inputs and noise alike.

    θ = `init(key)` is drawn anew, N is standard normal like the scored leaves, and so are inputs like `x_like`, of
    whose examples the mean is taken; one draw of all three for each of the `repeats`. Of `params`, nothing is read but
    which weights are 0 (see `mask` above): the score is of the architecture and the mask.

    Path form: to second order in ε the mean over N is ε² Tr Θ, and Tr Θ = Tr(J_v f Π (J_v f)ᵀ), so the score is the
    derivative by each weight's mask of the NTK's trace, averaged over weights and inputs.

    One gradient of two forward passes for each repeat. Draw r splits `jax.random.fold_in(key, r)` into the keys of the
    weights, the noise (one for each leaf) and the inputs. Give another key in each round.

    Raises ValueError for an `epsilon` that is not positive, for no repeat, and where `init` gives another tree.
    Source: Wang, Li, Sun, "NTK-SAP: improving neural network pruning by aligning training dynamics", 2023, algorithm 1:
    20 rounds, and 1 to 5 repeats, each of a batch.

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
    network, kept = traced(_network.bound(apply, state), jax.tree.map(wide, params)), _kept(params, mask, prunable)
    # a change of 0.01 is lost in half precision
    shares = jax.tree.map(lambda keep, leaf: jnp.asarray(keep, wide(leaf).dtype), kept, params)
    draws = jax.jit(lambda shares, key: jax.grad(perturbed)(shares, key))

    def perturbed(shares: Params, key: Key) -> Array:
        of_weights, of_noise, of_inputs = jax.random.split(key, 3)
        weights = jax.tree.map(wide, init(of_weights))
        noise = _scored(_normal_like(of_noise, weights), prunable)
        moved = jax.tree.map(lambda leaf, step: leaf + epsilon * step, weights, noise)
        x = jax.random.normal(of_inputs, x_like.shape, jnp.promote_types(x_like.dtype, jnp.float32))
        difference = network(multiply(shares, weights), x) - network(multiply(shares, moved), x)
        return jnp.sum(jnp.square(difference)) / x.shape[0]

    gradients = [draws(shares, jax.random.fold_in(key, repeat)) for repeat in range(repeats)]
    mean = jax.tree.map(lambda *leaves: jnp.abs(sum(leaves[1:], leaves[0])) / repeats, *gradients)
    return _scored(mean, prunable)


def _scored(tree: Params, prunable: Prunable | None) -> Params:
    """The tree, with zeros in the leaves that are not scored."""
    if prunable is None:
        return tree
    leaves, structure = tree_flatten_with_path(tree)
    chosen = [prunable(path, leaf) for path, leaf in leaves]
    if not any(chosen):
        raise ValueError(
            "`prunable` chooses no leaf, so that there is nothing to score. Leaves of two or more axes are usual: "
            "prunable=lambda key_path, leaf: leaf.ndim >= 2."
        )
    kept = [leaf if choose else jnp.zeros_like(leaf) for (_, leaf), choose in zip(leaves, chosen, strict=True)]
    return jax.tree.unflatten(structure, kept)


def _kept(params: Params, mask: Mask | None, prunable: Prunable | None) -> Mask:
    """Which weights are kept: the mask, or all but the zeros in leaves that are prunable, by default kernels."""
    if mask is not None:
        check_mask(mask, params)
        return mask
    leaves, structure = tree_flatten_with_path(params)
    chosen = [prunable(path, leaf) if prunable else jnp.ndim(leaf) >= 2 for path, leaf in leaves]
    kept = [(leaf != 0) | (not choose) for (_, leaf), choose in zip(leaves, chosen, strict=True)]
    return jax.tree.unflatten(structure, kept)


def _normal_like(key: Key, tree: Params) -> Params:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.normal(own, leaf.shape, leaf.dtype) for own, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, draws)
