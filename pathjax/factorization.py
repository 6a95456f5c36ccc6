"""Θ = J_v f · Π · (J_v f)ᵀ without listing paths: the Neural Tangent Kernel in the eigenbasis of the Path Kernel.

With G V = V Λ for Π's twin G = (J_θ v)ᵀ(J_θ v), the columns of B = J_θ f · V Λ^(−1/2) are J_v f times Π's eigenvectors,
and

    Θ = Σ_i λ_i b_i b_iᵀ

λ_i is the architecture and its weights, b_i adds the data. Cut off at r terms, what is missing is positive
semi-definite, and its trace is known. Source: Gebhart et al. (2021), section 3, for the factorization.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from pathjax._base import network as _network
from pathjax._base.trees import check_mask
from pathjax._interpreter.jaxpr import is_concrete
from pathjax._interpreter.lifting import check_finite
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax._linalg.lapack import eigh, eigvalsh, rounding_error, svd
from pathjax._ntk.matrix import square_matrix
from pathjax._path_kernel.spectrum import inverse_roots, is_nonzero
from pathjax._path_kernel.twin import restricted
from pathjax.path_kernel import PathKernel, path_kernel, top_eigenpairs
from pathjax.types import AnyArray, ApplyFn, Key, Mask, Params

__all__ = [
    "Alignment",
    "Bounds",
    "Factorization",
    "alignment",
    "bounds",
    "factorize",
    "kernel_target_alignment",
    "layer_kernels",
    "recompose",
]


class Factorization(NamedTuple):
    """The r leading terms of Θ = Σ_i λ_i b_i b_iᵀ on one batch.

    Eigenvalues and modes carry a scale, so that depth does not matter: the true λ_i is exp(`log_scale`) times
    `eigenvalues`, the true b_i is exp(−`log_scale` / 2) times `data_modes`. In λ_i b_i b_iᵀ the two cancel, so that the
    terms of Θ are those of the fields as they stand. All properties work on batched fields, as `jax.vmap` gives them.

    Attributes:
        eigenvalues: (r,) of Π, descending; zero where G has none left.
        data_modes: (n, o, r) the b_i, zero where the eigenvalue is; each is determined up to its sign.
        log_scale: () natural logarithm of the scale.
        trace: () Tr Θ of the whole kernel.
        layer_traces: a tree like `params`, for each leaf ℓ () the trace of its part in Θ = Σ_ℓ Θ_ℓ.
        layer_shares: a tree like `params`, for each leaf (r,) its share of the mode: the squared length of its part of
            G's unit eigenvector. Over the leaves they sum to 1, or to 0 for a mode that is zero, and over all modes
            λ_i times the share of a leaf sums to the trace of its part of Π.
    """

    eigenvalues: Float[Array, " r"]
    data_modes: Float[Array, "n o r"]
    log_scale: Float[Array, ""]
    trace: Float[Array, ""]
    layer_traces: Params
    layer_shares: Params

    @property
    def mode_traces(self) -> Float[Array, "... r"]:
        """λ_i ‖b_i‖², the trace of each term."""
        return self.eigenvalues * jnp.sum(jnp.square(self.data_modes), axis=(-3, -2))

    @property
    def shares(self) -> Float[Array, "... r"]:
        """The share of Tr Θ that each term carries, in [0, 1]; zero where Θ is."""
        live = self.trace[..., None] > 0
        return jnp.where(live, self.mode_traces / jnp.where(live, self.trace[..., None], 1.0), 0.0)

    @property
    def cumulative(self) -> Float[Array, "... r"]:
        """The share of Tr Θ that the first 1, 2, … r terms carry."""
        return jnp.cumsum(self.shares, axis=-1)

    @property
    def remainder(self) -> Float[Array, ...]:
        """Tr(Θ − Θ_r) = Tr Θ − Σ_i λ_i ‖b_i‖², what truncation left; not negative but for rounding of Tr Θ."""
        return self.trace - jnp.sum(self.mode_traces, axis=-1)

    def __repr__(self) -> str:
        """Sizes alone, as `Factorization(n=20, o=10, r=50, leaves=6)`; after those of axes of `jax.vmap` in front."""
        *batch, n, o, r = np.shape(self.data_modes)
        batched = f"batch={tuple(batch)}, " if batch else ""
        leaves = len(jax.tree.leaves(self.layer_traces))
        return f"Factorization({batched}n={n:,}, o={o:,}, r={r:,}, leaves={leaves:,})"


class Alignment(NamedTuple):
    """How the largest eigenvectors e_j of Θ lie to the data modes b_i of its factorization.

    Attributes:
        eigenvalues: (k,) the largest of Θ, descending.
        shares: (k, r) λ_i (b_i · e_j)² / ν_j, the share of Θ's eigenvalue ν_j that mode i carries; over all modes they
            sum to 1, over the first r to less. Zero where ν_j is zero.
        overlap: (k,) the squared length of e_j within the span of the modes, 1 where it lies in it. Its mean is that of
            the squared cosines of the principal angles between the two subspaces, for k ≤ r.
    """

    eigenvalues: Float[Array, " k"]
    shares: Float[Array, "k r"]
    overlap: Float[Array, " k"]


class Bounds(NamedTuple):
    """The largest eigenvalues and the traces of Θ, Π and K_v, as natural logarithms, and how tightly they bound Θ's.

    λ_max(Θ) ≤ λ_max(Π) · λ_max(K_v), Tr Θ ≤ λ_max(K_v) · Tr Π and Tr Θ ≤ λ_max(Π) · Tr K_v.
    """

    log_top_ntk: Float[Array, ""]
    log_trace_ntk: Float[Array, ""]
    log_top_path_kernel: Float[Array, ""]
    log_trace_path_kernel: Float[Array, ""]
    log_top_data_gram: Float[Array, ""]
    log_trace_data_gram: Float[Array, ""]

    @property
    def log_bounds(self) -> Float[Array, "... 3"]:
        """Logarithms of the three right-hand sides, in the order above."""
        products = [
            self.log_top_path_kernel + self.log_top_data_gram,
            self.log_trace_path_kernel + self.log_top_data_gram,
            self.log_top_path_kernel + self.log_trace_data_gram,
        ]
        return jnp.stack(products, axis=-1)

    @property
    def slack(self) -> Float[Array, "... 3"]:
        """By how many decades each bound lies above what it bounds: 0 where it is reached, ∞ above a kernel of 0."""
        bounded = jnp.stack([self.log_top_ntk, self.log_trace_ntk, self.log_trace_ntk], axis=-1)
        both_zero = (bounded == -jnp.inf) & (self.log_bounds == -jnp.inf)
        return jnp.where(both_zero, 0.0, (self.log_bounds - bounded) / np.log(10.0))


def factorize(
    apply: ApplyFn,
    params: Params,
    x: Float[AnyArray, "n ..."],
    *,
    rank: int,
    key: Key,
    mask: Mask | None = None,
    chunk: int = 32,
) -> Factorization:
    """The NTK of a batch in the eigenbasis of the Path Kernel, Θ = Σ_i λ_i b_i b_iᵀ, up to the largest `rank` terms.

    `path_kernel.top_eigenpairs` gives λ_i and the eigenvectors; b_i takes one Jacobian-vector product over the data,
    Tr Θ = ‖J_θ f‖² one gradient for each example and output. With a mask, everything is that of the masked network and
    its kept weights. What G's null space holds (rescaling symmetries, dead weights) is in that of J_θ f too: there
    eigenvalue and mode are zero and nothing of Θ is lost. Eigenvalues up to 512 ε λ_max, ε the rounding of the type,
    count as zero with them: at most 512 ε λ_max(Π) λ_max(K_v) is lost with each.

    Examples go one at a time, with `chunk` of their modes or outputs at once. In memory are rank · p numbers of
    eigenvectors, what `top_eigenpairs` needs to find them, the gradients of `chunk` outputs and the activations of
    `chunk` forward passes of one example. Θ itself is never formed. For Θ between two batches factorize them as one.

    Goes through jit and vmap, which see no values and therefore no bad ones, and through grad. Eigenvalues and traces
    have derivatives at any size, modes and what is made of them up to 512 kept weights, and NaN above. They have none
    where eigenvalues of G coincide, and may then be NaN, also for eigenvalues of exactly zero beyond the rank, as
    weights on no path have them.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, TypeError for a mask that is not boolean, and
    ValueError for a rank above the number of kept weights, a mask of another tree or one that keeps nothing, for
    weights or inputs that are not finite, inputs that are not floating point, and for an `apply` whose output is not
    (n, o).

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.eye(2, 3), "second": jnp.ones((3, 2))}
    >>> found = factorize(apply, params, jnp.ones((4, 2)), rank=12, key=jax.random.key(0))
    >>> found.data_modes.shape, round(float(found.trace), 4), round(float(found.cumulative[-1]), 4)
    ((4, 2, 12), 48.0, 1.0)
    """
    x = jnp.asarray(x)
    _check_chunk(chunk)
    network = traced(apply, params)
    _check_network(network, params, x, mask)
    kernel = path_kernel(network, params, x, mask=mask)
    pairs = top_eigenpairs(kernel, rank, key=key)
    nonzero = is_nonzero(pairs.eigenvalues)
    products = _products(kernel, x, pairs.eigenvectors, chunk)
    traces = _layer_traces(kernel, x, chunk)
    return Factorization(
        eigenvalues=jnp.where(nonzero, pairs.eigenvalues, 0.0),
        data_modes=products * inverse_roots(pairs.eigenvalues)[None, None, :].astype(products.dtype),
        log_scale=_log_scale(kernel),
        trace=sum(jax.tree.leaves(traces), start=jnp.zeros((), products.dtype)),
        layer_traces=traces,
        layer_shares=jax.tree.map(lambda leaf: _squared_length(leaf) * nonzero, pairs.eigenvectors),
    )


def recompose(factorization: Factorization) -> Float[Array, "n n o o"]:
    """Θ_r = Σ_i λ_i b_i b_iᵀ: the NTK, as `ntk.empirical` orders it, as far as the factorization goes.

    Positive semi-definite, and so is Θ − Θ_r. n²·o² numbers, r times as many operations.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.eye(2, 3), "second": jnp.ones((3, 2))}
    >>> found = factorize(apply, params, jnp.ones((4, 2)), rank=12, key=jax.random.key(0))
    >>> recompose(found)[0, 1].round(4)  # 2 units that each give 1 for their outgoing weight and 2 for the incoming
    Array([[6., 4.],
           [4., 6.]], dtype=float64)
    """
    weighted = factorization.data_modes * jnp.sqrt(factorization.eigenvalues)[None, None, :]
    return jnp.einsum("iar,jbr->ijab", weighted, weighted, precision=lax.Precision.HIGHEST)


def layer_kernels(apply: ApplyFn, params: Params, x: Float[AnyArray, "n ..."], *, mask: Mask | None = None) -> Params:
    """The parts of Θ = Σ_ℓ Θ_ℓ: a tree like `params` with the part (n, n, o, o) of each leaf in its place.

    One backward pass for each output and leaf; holds the Jacobian by one leaf at a time, n·o·p_ℓ numbers.

    Raises ValueError as `factorize` does.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.eye(2, 3), "second": jnp.ones((3, 2))}
    >>> parts = layer_kernels(apply, params, jnp.ones((4, 2)))
    >>> parts["second"][0, 1]
    Array([[2., 0.],
           [0., 2.]], dtype=float64)
    """
    x, network = jnp.asarray(x), traced(apply, params)
    _check_network(network, params, x, mask)
    leaves, structure = jax.tree.flatten(params)
    kept = [jnp.ones(jnp.shape(leaf), bool) for leaf in leaves] if mask is None else jax.tree.leaves(mask)
    masked = leaves if mask is None else jax.tree.leaves(_network.kept_weights(mask, params))

    def part(position: int) -> jax.Array:
        def outputs(leaf: jax.Array, example: jax.Array) -> jax.Array:
            changed = [*masked[:position], leaf, *masked[position + 1 :]]
            return cast(jax.Array, network(jax.tree.unflatten(structure, changed), example[None])[0])

        jacobian = jax.vmap(jax.jacrev(outputs), in_axes=(None, 0))(masked[position], x)
        rows = jnp.where(kept[position], jacobian, 0).reshape(*jacobian.shape[:2], -1)
        return jnp.einsum("iap,jbp->ijab", rows, rows, precision=lax.Precision.HIGHEST)

    return jax.tree.unflatten(structure, [part(position) for position in range(len(leaves))])


def bounds(
    ntk: Float[Array, "n n o o"],
    kernel: PathKernel,
    data_gram: tuple[Float[Array, "n n o"], Float[Array, "n n o"]],
    *,
    key: Key,
) -> Bounds:
    """What Π and the data Gram K_v allow Θ to be at most, and how far below it Θ is.

    λ_max(Θ) ≤ λ_max(Π) · λ_max(K_v), Tr Θ ≤ λ_max(K_v) · Tr Π and Tr Θ ≤ λ_max(Π) · Tr K_v, as Θ = J Π Jᵀ and
    K_v = J Jᵀ, block diagonal over outputs. `ntk` comes from `ntk.empirical` (or `recompose`), `kernel` from
    `path_kernel.path_kernel`, `data_gram` (sign and logarithm) from `paths.log_data_gram`: of one network, one mask and
    one batch. λ_max(Π) is as exact as `path_kernel.top_eigenpairs` finds it. Cost: that, and (n·o)³ operations.

    Raises ValueError where `ntk` and `data_gram` are not kernels of one batch with itself, and for a `kernel` of some
    leaves or outputs alone.
    Source: λ_max(A B Aᵀ) ≤ λ_max(B) λ_max(A Aᵀ), and Tr(A B Aᵀ) = Tr(B Aᵀ A), for positive semi-definite B.

    >>> from pathjax import paths
    >>> apply = lambda params, x: x @ params  # one linear layer: every weight is a path, and Π is the identity
    >>> params, x = jnp.ones((2, 3)), jnp.eye(2)
    >>> kernel, gram = path_kernel(apply, params, x), paths.log_data_gram(apply, params, x)
    >>> ntk = jnp.einsum("ij,ab->ijab", x @ x.T, jnp.eye(3))
    >>> bounds(ntk, kernel, gram, key=jax.random.key(0)).slack.round(6).tolist()
    [0.0, 0.0, 0.0]
    """
    matrix = square_matrix(ntk)
    _check_whole(kernel)
    sign, log_abs = data_gram
    if sign.shape != log_abs.shape or sign.shape != ntk.shape[:3]:
        raise ValueError(
            f"The data Gram has shapes {sign.shape} and {log_abs.shape}, but an NTK of shape {ntk.shape} goes with "
            f"{ntk.shape[:3]}. Compute both on the same batch, without `x2`."
        )
    top = top_eigenpairs(kernel, 1, key=key).eigenvalues[0]
    largest = jnp.max(log_abs)
    scale = lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    grams = jnp.moveaxis(sign * jnp.exp(log_abs - scale), 2, 0)
    return Bounds(
        log_top_ntk=_log(eigvalsh(matrix)[-1]),
        log_trace_ntk=_log(jnp.trace(matrix)),
        log_top_path_kernel=_log(top) + _log_scale(kernel),
        log_trace_path_kernel=_log(kernel.trace()) + _log_scale(kernel),
        log_top_data_gram=_log(jnp.max(jax.vmap(eigvalsh)(grams)[:, -1])) + scale,
        log_trace_data_gram=_log(jnp.sum(jnp.trace(grams, axis1=1, axis2=2))) + scale,
    )


def alignment(factorization: Factorization, ntk: Float[Array, "n n o o"], *, rank: int) -> Alignment:
    """How the `rank` largest eigenvectors of Θ lie to the data modes of a factorization.

    `ntk` is Θ itself, from `ntk.empirical`, on the batch of the factorization. An eigenvector of a repeated eigenvalue
    is any in its eigenspace; sums over such a space are determined. Cost: (n·o)³ operations.

    Raises ValueError where `ntk` is not the kernel of that batch with itself and where `rank` is not between 1 and n·o.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.eye(2, 3), "second": jnp.ones((3, 2))}
    >>> found = factorize(apply, params, jnp.ones((4, 2)), rank=12, key=jax.random.key(0))
    >>> aligned = alignment(found, recompose(found), rank=1)
    >>> aligned.overlap.round(4).tolist(), aligned.shares.sum(axis=1).round(4).tolist()
    ([1.0], [1.0])
    """
    n, o, _ = factorization.data_modes.shape
    matrix = square_matrix(ntk)
    if ntk.shape[::2] != (n, o):
        raise ValueError(
            f"An NTK of shape {ntk.shape} came, but the factorization is of {n} examples and {o} outputs. "
            "Compute both on the same batch."
        )
    if not 1 <= rank <= n * o:
        raise ValueError(f"`rank` must lie between 1 and the number of Θ's eigenvectors, {n * o}, but is {rank}.")
    values, vectors = eigh(matrix)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    modes = (factorization.data_modes * jnp.sqrt(factorization.eigenvalues)[None, None, :]).reshape(n * o, -1)
    nonzero = values > rounding_error(values, n * o)
    parts = jnp.square(vectors.T @ modes) / jnp.where(nonzero, values, 1.0)[:, None]
    return Alignment(
        eigenvalues=values,
        shares=jnp.where(nonzero[:, None], parts, 0.0),
        overlap=_squared_length((_basis(modes).T @ vectors).T),
    )


def kernel_target_alignment(
    kernel: Float[Array, "n n"], labels: Int[AnyArray, " n"], *, centered: bool = True
) -> Float[Array, ""]:
    """Kernel–target alignment ⟨K, T⟩ / (‖K‖ ‖T‖) in the Frobenius inner product, T_ij = 1 where labels agree, else 0.

    `centered` takes H K H and H T H in place of K and T, with H = I − 11ᵀ/n: the centered alignment, which a constant
    added to a kernel does not raise. In [0, 1] for a positive semi-definite kernel. Of an NTK (n, n, o, o) take
    `jnp.trace(ntk, axis1=2, axis2=3)`, the kernel of its outputs together. NaN where K or T vanishes, as T does when
    centered if all labels are the same.

    Raises ValueError where the labels are not one integer for each example.
    Source: Cristianini, Shawe-Taylor, Elisseeff, Kandola (2001), "On Kernel-Target Alignment", definition 1 and
    section 2 for classes; centered: Cortes, Mohri, Rostamizadeh (2012), "Algorithms for Learning Kernels Based on
    Centered Alignment", definition 4.

    >>> labels = jnp.array([0, 0, 1, 2])
    >>> round(float(kernel_target_alignment(jnp.eye(4), labels, centered=False)), 4)  # 4 / (√4 · √6)
    0.8165
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"A kernel over the examples of one batch, (n, n), was expected, but {kernel.shape} came. "
            "Of an NTK (n, n, o, o) take jnp.trace(ntk, axis1=2, axis2=3)."
        )
    labels = jnp.asarray(labels)
    if labels.shape != kernel.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"`labels` must be one integer for each of the {len(kernel)} examples, but have shape {labels.shape} and "
            f"dtype {labels.dtype}. Turn one-hot targets into labels with jnp.argmax(targets, axis=1)."
        )
    target = (labels[:, None] == labels[None, :]).astype(kernel.dtype)
    if centered:
        kernel, target = _centered(kernel), _centered(target)
    kernel, target = (matrix / jnp.max(jnp.abs(matrix)) for matrix in (kernel, target))  # squares stay in the format
    return jnp.sum(kernel * target) / (jnp.linalg.norm(kernel) * jnp.linalg.norm(target))


def _log_scale(kernel: PathKernel) -> jax.Array:
    """`kernel.log_scale` in the type of the weights."""
    return math.log(2.0) * kernel.exponent.astype(jnp.result_type(*jax.tree.leaves(kernel.params)))


def _products(kernel: PathKernel, x: jax.Array, vectors: Params, chunk: int) -> jax.Array:
    """J_θ f times each of the vectors, a tree of leaves (r, ...): (n, o, r)."""
    rank = len(jax.tree.leaves(vectors)[0])

    def of_example(example: jax.Array) -> jax.Array:
        outputs, pull = jax.vjp(lambda params: kernel.network(params, example[None])[0], kernel.params)
        # the transpose of the backward pass, as functions with a backward rule of their own have no forward one
        push = jax.linear_transpose(pull, outputs)
        return cast(jax.Array, lax.map(lambda vector: push((vector,))[0], vectors, batch_size=min(chunk, rank)))

    return jnp.swapaxes(lax.map(of_example, x), 1, 2)


def _layer_traces(kernel: PathKernel, x: jax.Array, chunk: int) -> Params:
    """For each leaf ‖∂f/∂θ_ℓ‖², summed over examples, outputs and kept weights."""

    def of_example(example: jax.Array) -> Params:
        outputs, pull = jax.vjp(lambda params: kernel.network(params, example[None])[0], kernel.params)

        def squares(cotangent: jax.Array) -> Params:
            (gradient,) = pull(cotangent)
            return jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), restricted(kernel, gradient))

        units = jnp.eye(outputs.size, dtype=outputs.dtype)
        return _summed(lax.map(squares, units, batch_size=min(chunk, outputs.size)))

    return _summed(lax.map(of_example, x))


def _summed(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), tree)


def _squared_length(rows: jax.Array) -> jax.Array:
    """‖row‖² for each entry of the first axis."""
    return jnp.sum(jnp.square(rows), axis=tuple(range(1, rows.ndim)))


def _basis(columns: jax.Array) -> jax.Array:
    """Orthonormal columns that span what the columns, of any lengths, do; zero columns for what they lack in rank."""
    lengths = jnp.sqrt(_squared_length(columns.T))
    units = columns / jnp.where(lengths > 0, lengths, 1.0)[None, :]
    basis, sizes, _ = svd(units)
    return jnp.where((sizes > rounding_error(sizes, max(columns.shape)))[None, :], basis, 0.0)


def _centered(matrix: jax.Array) -> jax.Array:
    """H K H with H = I − 11ᵀ/n."""
    rows = matrix - jnp.mean(matrix, axis=0, keepdims=True)
    return rows - jnp.mean(rows, axis=1, keepdims=True)


def _log(number: jax.Array) -> jax.Array:
    """Natural logarithm, −∞ for zero and for what rounding left below it."""
    live = number > 0
    return jnp.where(live, jnp.log(jnp.where(live, number, 1.0)), -jnp.inf)


def _check_whole(kernel: PathKernel) -> None:
    if kernel.outputs is not None or len(kernel.rows) != len(jax.tree.leaves(kernel.params)):
        raise ValueError(
            "`kernel` is of some leaves or outputs alone, which bounds no more than their part of Θ. Build it without "
            "`where` and `outputs`."
        )


def _check_chunk(chunk: int) -> None:
    if chunk < 1:
        raise ValueError(f"`chunk` must be at least 1, the number of passes at a time, but is {chunk}.")


def _check_network(network: TracedNetwork, params: Params, x: jax.Array, mask: Mask | None) -> None:
    """Raise where trees or shapes do not fit and, as far as values can be read, where they are not finite."""
    if mask is not None:
        check_mask(mask, params)
        kept = jax.tree.leaves(mask)
        if all(map(is_concrete, kept)) and not any(np.asarray(leaf).any() for leaf in kept):
            raise ValueError(
                "`mask` prunes every weight, so that nothing is left to factorize. Keep at least one weight."
            )
    check_finite(params, mask)
    _check_inputs(x)
    weights = params if mask is None else _network.kept_weights(mask, params)
    _network.check_outputs(network, weights, x, "x")


def _check_inputs(x: jax.Array) -> None:
    if x.ndim == 0 or len(x) == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`x` has shape {x.shape} and dtype {x.dtype}, but a batch of at least one floating-point example, "
            "(n, ...), was expected. Convert or reshape it first."
        )
    if is_concrete(x) and not np.isfinite(np.asarray(x)).all():
        first = int((~np.isfinite(np.asarray(x))).reshape(len(x), -1).any(axis=1).argmax())
        raise ValueError(
            f"`x` holds NaN or infinity, first in example {first}, and would make its part of Θ so. Remove or fill "
            "such examples."
        )
