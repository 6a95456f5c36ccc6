"""The Neural Tangent Kernel Θ = J_θ f (J_θ f)ᵀ: of a finite network, of infinite width, and what its spectrum says.

A finite kernel has shape (n, m, o, o): examples of the first batch, of the second, and twice the outputs. Its sum over
equal outputs is (n, m), and the kernel of each example with one other alone is (n, o, o). At infinite width the outputs
are independent and alike, so the kernel is (n, m) and stands for Θ_∞ ⊗ I.

`empirical` forms the kernel of any network, and `operator` multiplies by it where it does not fit in memory.
`mean_field` and `infinite` give the kernels of wide networks. Each entry is a sum of products of two derivatives of
outputs by weights; the kernel takes no loss and no labels.

Batches of a finite network may be arrays (n, ...) of any type, such as tokens, or trees of them, as the network takes
them. All entries of an example's outputs count: of outputs (n, t, o) there are t·o, in the order of
outputs.reshape(n, -1). A kernel of no examples has shape (0, 0, o, o).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from pathjax._base.network import (
    as_batch,
    check_batch_size,
    check_finite_inputs,
    check_inputs,
    check_params,
    kept_weights,
    masked,
)
from pathjax._base.trees import check_mask, check_second_moments
from pathjax._interpreter.jaxpr import batch_length
from pathjax._interpreter.traced import traced
from pathjax._linalg.eigenpairs import Eigenpairs
from pathjax._linalg.lapack import rounding_error
from pathjax._ntk import door, expected, layerwise
from pathjax._ntk import matrix as _matrix
from pathjax._ntk import memory as _memory
from pathjax._ntk.contractions import Form
from pathjax._ntk.expected import MeanField
from pathjax._ntk.initial import second_moments
from pathjax._ntk.operator import Operator, norm_estimate, operator, top_eigenpairs, trace_estimate
from pathjax.types import AnyArray, ApplyFn, Estimate, Inputs, Key, Mask, Params, State

__all__ = [
    "Eigenpairs",
    "MeanField",
    "Operator",
    "as_matrix",
    "condition_number",
    "empirical",
    "empirical_diagonal",
    "empirical_trace",
    "infinite",
    "mean_field",
    "mean_field_trace",
    "neural_tangents",
    "norm_estimate",
    "operator",
    "relative_distance",
    "second_moments",
    "sign_average",
    "spectrum",
    "top_eigenpairs",
    "trace_estimate",
]

_IMPLEMENTATIONS = {"jacobian": 1, "products": 2}


def empirical(
    apply: ApplyFn,
    params: Params,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    mask: Mask | None = None,
    state: State = None,
    method: str = "layerwise",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "n m o o"]:
    """Neural Tangent Kernel of a finite network, Θ_(ij)(ab) = Σ_k ∂f_a(x1_i)/∂θ_k · ∂f_b(x2_j)/∂θ_k.

    `x2=None` stands for `x1`. With a mask, θ is masked and the sum runs over the kept weights alone.
    `empirical_trace` gives the sum over equal outputs, (n, m), and `empirical_diagonal` each example paired with one
    example, (n, o, o), for less time and memory.

    "layerwise" takes one backward pass per example and output, and multiplies, layer by layer, the activations and the
    cotangents that meet at its weights. The Jacobian of a single layer is formed only where that costs less, and always
    for weights that are used twice or that meet data in other ways than in dense layers and convolutions. A mask whose
    entries are known while tracing costs less the fewer weights it keeps, and weights on no path cost nothing; a mask
    that is traced itself saves little. Wide dense layers, of which no Jacobian is formed without a mask, take several
    times as long with one that keeps more than a few hundredths of their weights.

    `batch_size` is how many examples go through the network at a time: memory is then that of two such chunks and of
    twice the result. As many chunks as this memory holds are kept, and the others go through the network once for each
    such group. It changes the result by rounding alone.

    With a `mesh` its devices, all axes of it together, compute the rows of the kernel side by side. The examples of
    `x1` are divided among them, and the weights go to all. Of one batch with itself each device computes half of its
    rows, and receives the other half from those that computed its mirror image. The result lies there by rows,
    `PartitionSpec(mesh.axis_names)`, where the number of devices divides n; otherwise whole on every device.
    `batch_size` then holds on every device.

    "jacobian" and "products" are neural-tangents' methods: the whole Jacobians, (n + m)·o·p numbers, multiplied; and
    n·m·o passes forward and backward. "layerwise" compiles itself, once for each network, shape of batch and mask; the
    others gain from `jax.jit` around the call.

    Of a batch with itself the result of "layerwise" is exactly symmetric. Rounding can leave eigenvalues slightly below
    zero, down to about −n·o·ε·λ_max with ε of its dtype.

    Assumes that the outputs of an example do not depend on the other examples of the batch (batch norm must use its
    running statistics). This is checked where values are known; under jit and vmap it is not, and neither is NaN.
    `apply` is called once for the shape of each batch and once for that of a single example.

    Raises ValueError for inputs that hold NaN or disagree in structure or shape, for an `apply` whose output is not one
    array with a row for each example or mixes examples, for a mask of another tree, and for an unknown method;
    TypeError for a mask that is not boolean and for inputs that are no arrays; ModuleNotFoundError without
    neural-tangents, for its methods. What would not fit in the memory that the
    device, or on CPUs the machine, has free is refused before it is begun, under jit while tracing: a MemoryError names
    the `batch_size` that fits. Of a result that does not fit itself, `operator` multiplies without it.

    Source: Novak et al. (2022), "Fast finite width Neural Tangent Kernel".

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.ones((4, 5)), "out": jnp.ones((5, 2))}
    >>> x1, x2 = jnp.ones((3, 4)), jnp.ones((1, 4))
    >>> kernel = empirical(apply, params, x1, x2)
    >>> kernel.shape
    (3, 1, 2, 2)
    >>> kernel[0, 0]  # 5 units that each give 4² for their outgoing weight and 4 for the incoming
    Array([[100.,  20.],
           [ 20., 100.]], dtype=float64)

    Of a batch with itself, two examples at a time, and of the network under a mask that cuts two units off:

    >>> mask = {"hidden": jnp.ones((4, 5), bool), "out": jnp.zeros((5, 2), bool).at[:3].set(True)}
    >>> masked = empirical(apply, params, x1, mask=mask, batch_size=2)
    >>> masked.shape, masked[0, 0].tolist()
    ((3, 3, 2, 2), [[60.0, 12.0], [12.0, 60.0]])
    """
    return _kernel(Form(), apply, params, x1, x2, mask, state, method, batch_size, mesh)


def empirical_trace(
    apply: ApplyFn,
    params: Params,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    mask: Mask | None = None,
    state: State = None,
    method: str = "layerwise",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "n m"]:
    """Neural Tangent Kernel of a finite network summed over equal outputs, Σ_a Θ_(ij)(aa): one number for two examples.

    The trace of `empirical` over its outputs, without the n·m·o² numbers of that: the result has o² times fewer, and
    the products of each layer's activations and cotangents take o times fewer operations. neural-tangents gives the
    mean over outputs in its place. Arguments, the passes through the network, what is assumed and the errors are those
    of `empirical`.

    Source: Novak et al. (2022), "Fast finite width Neural Tangent Kernel".

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.ones((4, 5)), "out": jnp.ones((5, 2))}
    >>> empirical_trace(apply, params, jnp.ones((3, 4)), jnp.ones((2, 4)))  # twice 5 · 4² + 5 · 4
    Array([[200., 200.],
           [200., 200.],
           [200., 200.]], dtype=float64)

    Regression with this kernel, on half of the examples, predicts the others as a wide trained network would:

    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (2, 300)), "out": jax.random.normal(keys[1], (300, 1))}
    >>> x = jax.random.normal(keys[2], (60, 2))
    >>> x_train, x_test, targets = x[:30], x[30:], x[:, 0] - x[:, 1]
    >>> weights = jnp.linalg.lstsq(empirical_trace(apply, params, x_train), targets[:30])[0]
    >>> predicted = empirical_trace(apply, params, x_test, x_train) @ weights
    >>> bool(jnp.corrcoef(predicted, targets[30:])[0, 1] > 0.9)
    True
    """
    return _kernel(Form(trace=True), apply, params, x1, x2, mask, state, method, batch_size, mesh)


def empirical_diagonal(
    apply: ApplyFn,
    params: Params,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    mask: Mask | None = None,
    state: State = None,
    method: str = "layerwise",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "n o o"]:
    """Neural Tangent Kernel of each example with itself, or with the example in its place in `x2`: Θ_(ii)(ab).

    The diagonal of `empirical` over examples, at the cost of n pairs of examples in place of n²; without `x2`, each
    example is paired with itself. Arguments, the passes through the network, what is assumed and the errors are those
    of `empirical`; besides, ValueError where the two batches have different numbers of examples.

    Source: Novak et al. (2022), "Fast finite width Neural Tangent Kernel".

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.ones((4, 5)), "out": jnp.ones((5, 2))}
    >>> kernel = empirical_diagonal(apply, params, jnp.ones((3, 4)))
    >>> kernel.shape
    (3, 2, 2)
    >>> kernel[0]
    Array([[100.,  20.],
           [ 20., 100.]], dtype=float64)
    """
    return _kernel(Form(diagonal=True), apply, params, x1, x2, mask, state, method, batch_size, mesh)


def infinite(
    kernel_fn: Callable[..., Any],
    x1: Shaped[AnyArray, "n ..."],
    x2: Shaped[AnyArray, "m ..."] | None = None,
) -> Float[Array, "n m"]:
    """Neural Tangent Kernel at infinite width, Θ_∞, in closed form; the kernel of all outputs is Θ_∞ ⊗ I.

    `kernel_fn` is the third of the functions that a network of `neural_tangents().stax` consists of. In its standard
    parameterization Θ_∞ grows with the stated widths, as a finite network's Θ does. Cost: n·m numbers per layer for
    dense networks, n·m times the squared number of pixels for convolutional ones without pooling at the end.

    Raises ValueError for inputs that are not floating point, hold NaN or disagree in shape, and for a kernel that is
    not (n, m), as of a convolutional network that ends in neither `Flatten` nor `GlobalAvgPool`.

    Source: Jacot, Gabriel, Hongler (2018), theorem 1; standard parameterization: Sohl-Dickstein et al. (2020),
    section 2.

    >>> stax = neural_tangents().stax
    >>> dense = dict(W_std=2**0.5, b_std=0.0, parameterization="standard")
    >>> _, _, kernel_fn = stax.serial(stax.Dense(64, **dense), stax.Relu(), stax.Dense(2, **dense))
    >>> infinite(kernel_fn, jnp.ones((3, 4)), jnp.ones((1, 4))).round(6)
    Array([[70.],
           [70.],
           [70.]], dtype=float64)
    """
    x1, x2 = as_batch("x1", x1), None if x2 is None else as_batch("x2", x2)
    check_inputs(reals_only=True, x1=x1)
    check_inputs(x1=x1, x2=x2)
    kernel = kernel_fn(x1, x2, get="ntk")
    expected = (len(x1), len(x1 if x2 is None else x2))
    if jnp.shape(kernel) != expected:
        raise ValueError(
            f"The infinite-width kernel has shape {jnp.shape(kernel)}, but {expected} was expected, one number per "
            "pair of examples. Let the network end in `stax.Flatten()` or `stax.GlobalAvgPool()` and a `stax.Dense`."
        )
    return cast(Array, kernel)


def mean_field(
    apply: ApplyFn,
    params: Params,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    second_moments: Params | None = None,
    mask: Mask | None = None,
    state: State = None,
    which: str = "both",
    batch_size: int | None = None,
) -> MeanField:
    """Neural Tangent Kernel expected of random weights, of any network that paths are defined for, pruned or not.

    The weights are taken to be independent, with the mean 0 and the second moments u, and the values before a gate to
    be Gaussian, as they are in wide layers. A ReLU is then open for two inputs at once with the probability
    (π − θ)/(2π), θ the angle between its values. Θ̄(x, x')_o = Σ_i E[∂f(x)_o/∂w_i ∂f(x')_o/∂w_i] sums over the paths of
    the Path Kernel's diagonal: each has the moments of its other weights, x_s x'_s, how often the gates behind w_i are
    open for both inputs, and what the gates before it pass on of a product, E[φ(a) φ(a')]/E[a a'].

    `second_moments` is a tree like `params`, with an array like each leaf or one number for all of its weights. Those
    of an initialization give the exact kernel of infinite width, that of neural-tangents' `kernel_fn`;
    `ntk.second_moments` makes them. None stands for θ²: the expectation of the network at hand over the signs of its
    weights. With a mask, pruned weights have the moment 0 and no derivative.

    `which="nngp"` leaves the tangent kernel out, for half the time. `batch_size` is how many examples of each batch are
    treated at a time.

    Exact where every layer is infinitely wide; in a finite one it is off by about 1/√width. Holds for every kind of
    layer that paths are defined for, but not for max pooling and maxout, weights that one path meets twice, sums of two
    values through the same weights, and a gate behind another one without weights between, which have no closed form:
    `sign_average` samples these. Batch norm must use running statistics. Constants that are added, such as running
    means, shift the Gaussians; the probability that two shifted ones are both positive is an integral, computed to 6
    digits or more. A
    shortcut that comes from behind a gate, as in the first ResNets, gives sums that are not Gaussian at any width: the
    kernel is then an approximation, off by 3 to 13 % for one block, and by 20 to 30 % where a mask leaves little of the
    block's branch: compare with `sign_average`. A unit that is 0 for all weights counts as open half of the time.

    Cost: for each pair of examples that of a forward pass on numbers of two kinds. Units whose weights have one moment
    are carried once; with a mask, or for θ², each is carried. Where something sums over positions, as global pooling
    does, every pair of positions is carried, the square of their number. The result may be differentiated by the second
    moments.

    Raises UnsupportedPrimitive, a ValueError, for networks that are not piecewise linear and those named above, with
    their layer; ValueError for second moments of another tree or shape, negative or not finite, for inputs that hold
    NaN or infinities, and for an unknown `which`; MemoryError, with the `batch_size` that fits.

    Source: Jacot et al. (2018); Lee et al. (2018); Cho, Saul (2009); Yang (2019), for architectures at large.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.ones((2, 5)), "out": jnp.ones((5, 1))}
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> nngp, ntk = mean_field(apply, params, x, second_moments={"hidden": 2.0, "out": 0.2})
    >>> ntk[..., 0]  # 5 units, each open half of the time: 5 · 0.2 · 1/2 by the incoming weights, 5 · 1 by the outgoing
    Array([[5.5       , 1.59154943],
           [1.59154943, 5.5       ]], dtype=float64)
    """
    if which not in ("both", "nngp"):
        raise ValueError(f"`which` is {which!r}, but must be 'both' or 'nngp'.")
    x1, x2 = as_batch("x1", x1), None if x2 is None else as_batch("x2", x2)
    check_params(params)
    check_inputs(reals_only=True, x1=x1, x2=x2)
    check_finite_inputs(x1=x1, x2=x2)
    check_batch_size(batch_size)
    mask = check_mask(mask, params)
    network = traced(apply, params, state)
    moments = jax.tree.map(jnp.square, params) if second_moments is None else second_moments
    moments = check_second_moments(moments, params)
    return expected.kernels(network, moments, mask, x1, x2, ntk=which == "both", batch_size=batch_size)


def mean_field_trace(
    apply: ApplyFn,
    params: Params,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    second_moments: Params | None = None,
    mask: Mask | None = None,
    state: State = None,
    batch_size: int | None = None,
) -> Float[Array, "n m"]:
    """Trace over outputs of the Neural Tangent Kernel expected of random weights, Σ_o Θ̄(x, x')_o.

    Arguments, assumptions, cost, errors and sources are those of `mean_field`.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.ones((2, 500)), "out": jnp.ones((500, 3))}
    >>> moments = second_moments(params, "he")
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> expected = mean_field_trace(apply, params, x, second_moments=moments)
    >>> keys = jax.random.split(jax.random.key(0))
    >>> drawn = jax.tree.map(lambda key, leaf, m: jax.random.normal(key, leaf.shape) * m**0.5,
    ...     {"hidden": keys[0], "out": keys[1]}, params, moments)
    >>> kernel = empirical_trace(apply, drawn, x)  # of one network of 500 units
    >>> bool(jnp.linalg.norm(kernel - expected) < 0.2 * jnp.linalg.norm(expected))
    True
    """
    found = mean_field(
        apply, params, x1, x2, second_moments=second_moments, mask=mask, state=state, batch_size=batch_size
    )
    return jnp.sum(cast(Array, found.ntk), axis=2)


def sign_average(
    apply: ApplyFn,
    params: Params,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    key: Key,
    samples: int,
    mask: Mask | None = None,
    state: State = None,
    batch_size: int | None = None,
) -> Estimate:
    """Estimate the Neural Tangent Kernel (n, m, o, o) averaged over random signs of the weights, with standard errors.

    E_s Θ(s ⊙ θ) over signs s of which each is 1 or −1 with probability 1/2: |θ| and the mask are held. It is what
    `mean_field` computes in closed form for wide layers, without that assumption: for every network, max pooling,
    attention and weights that are used twice included.

    The value is the mean of `samples` independent draws, and the standard error that of this mean, entry by entry.
    Cost: `samples` times that of `empirical`, whose `batch_size` and errors it has, in the memory of one draw and three
    results; on an accelerator draws run side by side where its memory allows.

    Raises ValueError for fewer than 2 samples, and what `empirical` raises.

    Source: Chan, Golub, LeVeque (1979), for the running mean and variance.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 100)), "out": jax.random.normal(keys[1], (100, 3))}
    >>> x = jax.random.normal(keys[2], (2, 4))
    >>> average = sign_average(apply, params, x, key=jax.random.key(1), samples=50)
    >>> average.value.shape, average.standard_error.shape
    ((2, 2, 3, 3), (2, 2, 3, 3))
    >>> expected = mean_field(apply, params, x).ntk[0, 1, 2]  # in closed form, for examples 0 and 1 and output 2
    >>> bool(abs(average.value[0, 1, 2, 2] - expected) < 4 * average.standard_error[0, 1, 2, 2] + 0.1 * expected)
    True
    """
    x1, x2 = as_batch("x1", x1), None if x2 is None else as_batch("x2", x2)
    check_params(params)
    check_inputs(x1=x1, x2=x2)
    check_batch_size(batch_size)
    if samples < 2:
        raise ValueError(f"`samples` is {samples}, but a standard error needs at least 2 draws of signs.")
    mask = check_mask(mask, params)
    network = traced(apply, params, state)
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None:
            network.check_outputs(params, x, name)
    return expected.sign_average(network, params, mask, x1, x2, key=key, samples=samples, batch_size=batch_size)


def neural_tangents() -> Any:
    """The package neural-tangents, whose `stax` describes networks of infinite width.

    Version 0.6.5, its last, does not import on current JAX by itself. Here it does, without TensorFlow, and after this
    call `import neural_tangents` works anywhere in the process. Its fastest finite-width methods, AUTO and
    STRUCTURED_DERIVATIVES, do not run on current JAX and are refused.

    Raises ModuleNotFoundError where neural-tangents is not installed, naming what to install.

    >>> neural_tangents().__version__
    '0.6.5'
    """
    return door.load()


def as_matrix(kernel: Float[Array, "n m o o"]) -> Float[Array, "n*o m*o"]:
    """A kernel (n, m, o, o) as a matrix (n·o, m·o), with rows and columns ordered by example, then by output.

    Entry (i·o + a, j·o + b) is Θ_(ij)(ab), so that the matrix multiplies outputs (m, o) that are raveled.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.ones((4, 5)), "out": jnp.ones((5, 3))}
    >>> matrix = as_matrix(empirical(apply, params, jnp.ones((7, 4)), jnp.ones((2, 4))))
    >>> matrix.shape, (matrix @ jnp.ones((2, 3)).ravel()).reshape(7, 3).shape
    ((21, 6), (7, 3))
    """
    return cast(Array, _matrix.as_matrix(kernel))


def spectrum(kernel: Float[Array, "n n o o"] | Float[Array, "n n o"]) -> Float[Array, " n*o"]:
    """Eigenvalues of a kernel, the largest first. Their sum is its trace.

    A kernel (n, n, o), as of `ntk.mean_field`, has one matrix for each output and is 0 between different outputs.

    Cost: (n·o)³ operations, for (n, n, o) o·n³. Rounding can leave eigenvalues of a singular kernel slightly below
    zero, down to about −n·o·ε·λ_max.

    Raises ValueError unless the kernel is that of one batch with itself, (n, n, o, o) or (n, n, o).

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.eye(4, 5), "out": jnp.ones((5, 2))}
    >>> x = jnp.eye(3, 4)  # three examples, each of which opens another unit
    >>> spectrum(empirical(apply, params, x)).round(4)  # for the sum of the two outputs, and for their difference
    Array([3., 3., 3., 1., 1., 1.], dtype=float64)
    >>> spectrum(mean_field(apply, params, x).ntk).shape
    (6,)
    """
    return cast(Array, _matrix.eigenvalues(kernel)[::-1])


def condition_number(kernel: Float[Array, "n n o o"] | Float[Array, "n n o"]) -> Float[Array, ""]:
    """Ratio of the largest to the smallest eigenvalue of a kernel, λ_max / λ_min.

    Infinite where λ_min is not above the rounding bound n·o·ε·λ_max, with ε of the kernel's dtype: the kernel is then
    singular as far as its numbers tell. Cost and errors as of `spectrum`.

    A large condition number means that gradient descent fits some directions of the outputs far later than others.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.eye(4, 5), "out": jnp.ones((5, 2))}
    >>> x = jnp.eye(3, 4)
    >>> condition_number(empirical(apply, params, x)).round(4)
    Array(3., dtype=float64)
    >>> twice = jnp.concatenate([x, x[:1]])  # with an example that comes twice
    >>> condition_number(empirical(apply, params, twice))
    Array(inf, dtype=float64)
    """
    eigenvalues = spectrum(kernel)
    largest, smallest = eigenvalues[0], eigenvalues[-1]
    is_singular = smallest <= rounding_error(eigenvalues, eigenvalues.size)
    # a finite stand-in, so that the branch not taken keeps gradients finite
    return jnp.where(is_singular, jnp.inf, largest / jnp.where(is_singular, 1.0, smallest))


def relative_distance(finite: Float[Array, "n m o o"], infinite: Float[Array, "n m"]) -> Float[Array, ""]:
    """How far a finite kernel is from the infinite-width one: ‖Θ − Θ_∞ ⊗ I‖ / ‖Θ_∞ ⊗ I‖ in the Frobenius norm.

    Falls as width^(−1/2) for a network drawn at random with the parameterization of Θ_∞. Cost: n·m·o² operations.

    Raises ValueError where the two are not kernels of the same examples.

    >>> stax = neural_tangents().stax
    >>> x1, x2 = jax.random.normal(jax.random.key(1), (6, 4)), jnp.ones((2, 4))
    >>> for width in (10, 1000):
    ...     init, apply, kernel_fn = stax.serial(stax.Dense(width), stax.Relu(), stax.Dense(3))
    ...     _, params = init(jax.random.key(0), x1.shape)
    ...     print(bool(relative_distance(empirical(apply, params, x1, x2), infinite(kernel_fn, x1, x2)) < 0.2))
    False
    True
    """
    if finite.ndim != 4 or infinite.ndim != 2 or finite.shape[:2] != infinite.shape:
        raise ValueError(
            f"A finite kernel (n, m, o, o) is compared with an infinite one (n, m) of the same examples, but shapes "
            f"{finite.shape} and {infinite.shape} came. Compute both on the same `x1` and `x2`."
        )
    limit = infinite[:, :, None, None] * jnp.eye(finite.shape[2], dtype=infinite.dtype)[None, None]
    return jnp.linalg.norm((finite - limit).ravel()) / jnp.linalg.norm(limit.ravel())


def _kernel(
    form: Form,
    apply: ApplyFn,
    params: Params,
    x1: Inputs,
    x2: Inputs | None,
    mask: Mask | None,
    state: State,
    method: str,
    batch_size: int | None,
    mesh: Mesh | None,
) -> Array:
    """Θ, or what `form` asks of it."""
    _check_method(method, batch_size, mesh)
    x1, x2 = as_batch("x1", x1), None if x2 is None else as_batch("x2", x2)
    check_params(params)
    check_inputs(x1=x1, x2=x2)
    n, m = batch_length(x1), batch_length(x1 if x2 is None else x2)
    if form.diagonal and n != m:
        raise ValueError(
            f"Each example of `x1` meets the one of `x2` in its place, but there are {n} and {m}. Pass as many, or "
            "take all pairs of examples by `ntk.empirical`."
        )
    mask = check_mask(mask, params)
    network = traced(apply, params, state)
    weights = params if mask is None else kept_weights(mask, params)
    output = network.output(x1, weights)
    if 0 in (n, m):
        examples, outputs = (n,) if form.diagonal else (n, m), () if form.trace else output.shape[1:] * 2
        return jnp.zeros((*examples, *outputs), output.dtype)
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None:
            network.check_outputs(weights, x, name)
    if method == "layerwise" and mesh is not None:
        kernel = layerwise.kernel(network, params, x1, x2, mask=mask, form=form, batch_size=batch_size, mesh=mesh)
        return cast(Array, kernel)
    if method == "layerwise":
        return cast(Array, layerwise.compiled(network, params, x1, x2, mask=mask, form=form, batch_size=batch_size))
    _check_memory(output, params, n, m, x2 is None, method, form)
    function = network if mask is None else masked(network, params, mask)
    return _by_neural_tangents(function, params, x1, x2, _IMPLEMENTATIONS[method], form)


def _check_method(method: str, batch_size: int | None, mesh: Mesh | None) -> None:
    if method != "layerwise" and method not in _IMPLEMENTATIONS:
        known = ", ".join(map(repr, ("layerwise", *_IMPLEMENTATIONS)))
        raise ValueError(f"There is no method {method!r} of the empirical kernel. Choose one of {known}.")
    check_batch_size(batch_size)
    if batch_size is not None and method != "layerwise":
        raise ValueError(f"The method {method!r} has no chunks, but `batch_size` came. Leave it or the method out.")
    if mesh is not None and method != "layerwise":
        raise ValueError(f"The method {method!r} runs on one device, but `mesh` came. Leave it or the method out.")


def _by_neural_tangents(
    network: Callable[..., Any], params: Params, x1: Inputs, x2: Inputs | None, implementation: int, form: Form
) -> Array:
    kernel_fn = door.load().empirical_ntk_fn(
        network,
        trace_axes=(1,) if form.trace else (),
        diagonal_axes=(0,) if form.diagonal else (),
        vmap_axes=0,
        implementation=implementation,
    )
    kernel = cast(Array, kernel_fn(x1, x2, params))
    # its trace is the mean over outputs
    return kernel * jax.eval_shape(network, params, x1).shape[1] if form.trace else kernel


def _check_memory(outputs: Any, params: Params, n: int, m: int, is_symmetric: bool, method: str, form: Form) -> None:
    o = outputs.shape[1]
    numbers = form.examples(n, m) * form.outputs(o)
    if method == "jacobian":
        rows = n if is_symmetric else n + m
        numbers += rows * o * sum(leaf.size for leaf in jax.tree.leaves(params))
    _memory.check_whole(numbers * outputs.dtype.itemsize, method)
