"""The Neural Tangent Kernel in the eigenbasis of the Path Kernel, Θ = J_v f · Π · (J_v f)ᵀ, without listing paths.

G = (J_θ v)ᵀ(J_θ v) has the nonzero eigenvalues of the Path Kernel Π = J_θ v (J_θ v)ᵀ. With its eigenvectors V, G V =
V Λ, the columns b_i of J_θ f · V Λ^(−1/2) are J_v f times Π's eigenvectors, and

    Θ = Σ_i λ_i b_i b_iᵀ

The eigenvalues λ_i depend on the architecture and its weights alone; the data enter through the b_i. The remainder of a
sum over the first r terms is positive semi-definite, and its trace is known. Source: Gebhart et al. (2021), section 3,
for Θ = J_v f · Π · (J_v f)ᵀ.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from pathjax._base.network import kept_weights
from pathjax._base.trees import check_mask
from pathjax._interpreter.jaxpr import is_concrete
from pathjax._interpreter.lifting import check_finite
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax._linalg.eigenpairs import Eigenpairs, SearchProgress, log_positive
from pathjax._linalg.lapack import eigh, eigvalsh, rounding_error, svd
from pathjax._ntk.matrix import square_matrix
from pathjax._path_kernel.spectrum import inverse_roots, is_nonzero, logarithms, roots, scaled_eigenvalues
from pathjax._path_kernel.twin import in_true_units, restricted, with_exponent
from pathjax.path_kernel import PathKernel, path_kernel, top_eigenpairs
from pathjax.types import AnyArray, ApplyFn, Key, Mask, Params, State

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
    """The r leading terms of Θ = Σ_i λ_i b_i b_iᵀ on one batch of n examples and o outputs.

    All fields are in true units. Of deep networks, eigenvalues may overflow to infinity in float32 where Θ does not;
    `log_eigenvalues` do not, and neither do `weighted_modes`, √λ_i b_i, from which each term of Θ is computed. Fields
    may have leading batch axes from `jax.vmap`.

    Attributes:
        eigenvalues: (r,) the λ_i of Π, descending; zero beyond the rank of G. May overflow in float32.
        data_modes: (n, o, r) the b_i, each determined up to its sign; zero where the eigenvalue is zero.
        trace: () Tr Θ, of all terms.
        layer_traces: a tree like `params` with Tr Θ_ℓ, (), at each leaf ℓ, where Θ = Σ_ℓ Θ_ℓ.
        layer_shares: a tree like `params` with the share of each mode, (r,), at each leaf: the squared norm of the
            leaf's entries in the unit eigenvector of G. The shares of a mode sum to 1 over the leaves, or to 0 if its
            eigenvalue is zero. Over all modes, Σ_i λ_i times a leaf's share is the trace of its part of Π.
        scaled_eigenvalues: (r,) for internal use: the λ_i / 2^exponent, which stay within the format.
        exponent: () for internal use: a whole number.
    """

    eigenvalues: Float[Array, " r"]
    data_modes: Float[Array, "n o r"]
    trace: Float[Array, ""]
    layer_traces: Params
    layer_shares: Params
    scaled_eigenvalues: Float[Array, " r"]
    exponent: Float[Array, ""]

    @property
    def log_scale(self) -> Float[Array, ...]:
        """Always 0: all fields are in true units, and an eigenvalue times exp(`log_scale`) is the eigenvalue itself."""
        return jnp.zeros_like(self.trace)

    @property
    def log_eigenvalues(self) -> Float[Array, "... r"]:
        """Natural logarithms of the λ_i, at any depth; −∞ where the eigenvalue is zero."""
        return logarithms(self.eigenvalues, self.scaled_eigenvalues, self.exponent[..., None])

    @property
    def weighted_modes(self) -> Float[Array, "... n o r"]:
        """√λ_i b_i = J_θ f V_i, whose squares are the diagonals of the terms of Θ; finite at any depth where Θ is."""
        return self.data_modes * roots(self.eigenvalues, self.log_eigenvalues)[..., None, None, :]

    @property
    def mode_traces(self) -> Float[Array, "... r"]:
        """λ_i ‖b_i‖², the trace of each term of Θ."""
        return jnp.sum(jnp.square(self.weighted_modes), axis=(-3, -2))

    @property
    def shares(self) -> Float[Array, "... r"]:
        """λ_i ‖b_i‖² / Tr Θ, the share of each term in the trace, in [0, 1]; zero if Tr Θ is zero."""
        positive = self.trace[..., None] > 0
        return jnp.where(positive, self.mode_traces / jnp.where(positive, self.trace[..., None], 1.0), 0.0)

    @property
    def cumulative(self) -> Float[Array, "... r"]:
        """The share of the first 1, 2, … r terms in Tr Θ."""
        return jnp.cumsum(self.shares, axis=-1)

    @property
    def remainder(self) -> Float[Array, ...]:
        """Tr(Θ − Θ_r) = Tr Θ − Σ_i λ_i ‖b_i‖², the trace of the omitted terms; nonnegative up to rounding of Tr Θ."""
        return self.trace - jnp.sum(self.mode_traces, axis=-1)

    def __repr__(self) -> str:
        """The sizes of the fields, such as `Factorization(n=20, o=10, r=50, leaves=6)`; batch axes come first."""
        *batch, n, o, r = np.shape(self.data_modes)
        batched = f"batch={tuple(batch)}, " if batch else ""
        leaves = len(jax.tree.leaves(self.layer_traces))
        return f"Factorization({batched}n={n:,}, o={o:,}, r={r:,}, leaves={leaves:,})"


class Alignment(NamedTuple):
    """How the k largest eigenvectors e_j of Θ align with the r data modes b_i of its factorization.

    Attributes:
        eigenvalues: (k,) the largest eigenvalues ν_j of Θ, descending.
        shares: (k, r) λ_i (b_i · e_j)² / ν_j, the share of mode i in ν_j. For each j they sum to 1 over all modes, and
            to at most 1 over the first r. Zero where ν_j is zero.
        overlap: (k,) the squared norm of e_j's projection onto the span of the modes: 1 for e_j in the span. For k ≤ r,
            its mean over j is the mean squared cosine of the principal angles between the two subspaces.
    """

    eigenvalues: Float[Array, " k"]
    shares: Float[Array, "k r"]
    overlap: Float[Array, " k"]


class Bounds(NamedTuple):
    """Bounds on Θ by the Path Kernel Π and the data Gram K_v: natural logarithms of both sides.

    The bounds are λ_max(Θ) ≤ λ_max(Π) · λ_max(K_v), Tr Θ ≤ λ_max(K_v) · Tr Π and Tr Θ ≤ λ_max(Π) · Tr K_v, in this
    order. Fields may have leading batch axes from `jax.vmap`.

    Attributes:
        log_top_ntk: () log λ_max(Θ).
        log_trace_ntk: () log Tr Θ.
        log_top_path_kernel: () log λ_max(Π).
        log_trace_path_kernel: () log Tr Π.
        log_top_data_gram: () log λ_max(K_v).
        log_trace_data_gram: () log Tr K_v.
    """

    log_top_ntk: Float[Array, ""]
    log_trace_ntk: Float[Array, ""]
    log_top_path_kernel: Float[Array, ""]
    log_trace_path_kernel: Float[Array, ""]
    log_top_data_gram: Float[Array, ""]
    log_trace_data_gram: Float[Array, ""]

    @property
    def log_bounds(self) -> Float[Array, "... 3"]:
        """Natural logarithms of λ_max(Π) · λ_max(K_v), λ_max(K_v) · Tr Π and λ_max(Π) · Tr K_v."""
        products = [
            self.log_top_path_kernel + self.log_top_data_gram,
            self.log_trace_path_kernel + self.log_top_data_gram,
            self.log_top_path_kernel + self.log_trace_data_gram,
        ]
        return jnp.stack(products, axis=-1)

    @property
    def slack(self) -> Float[Array, "... 3"]:
        """log₁₀ of the ratio of each bound to the quantity that it bounds: 0 if equal, ∞ if Θ alone is zero."""
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
    state: State = None,
    chunk: int = 32,
    progress: SearchProgress | None = None,
) -> Factorization:
    """Split the Neural Tangent Kernel of a batch by the Path Kernel's eigenvectors: Θ = Σ_i λ_i b_i b_iᵀ.

    The result has the `rank` leading terms: the eigenvalues λ_i of the Path Kernel, which need no data, the data modes
    b_i, (n, o) each, and the shares of the terms in the trace. `path_kernel.top_eigenpairs` gives λ_i and the
    eigenvectors of G. Each b_i takes one Jacobian-vector product over the data, and Tr Θ = ‖J_θ f‖² one gradient for
    each example and output. With a `state` (see `pathjax.types`) the network is `apply(params, state, x)`. All results
    are in true units; of deep networks the λ_i may overflow to infinity in float32, and `log_eigenvalues` do not. With
    a mask, Θ is that of the masked network and derivatives are by its kept weights. Terms with λ_i = 0 (rescaling
    symmetries, weights on no path) are zero in Θ. Eigenvalues up to 512 ε λ_max, with machine epsilon ε, count as zero
    too; each such term of Θ, at most 512 ε λ_max(Π) λ_max(K_v), is omitted.

    Memory: rank · p numbers for the eigenvectors, what `top_eigenpairs` needs to find them, and the gradients and
    activations of `chunk` passes of one example. Examples are processed one at a time, and `chunk` modes or outputs of
    one example at once. Θ is never formed. To factorize Θ between two batches, concatenate them. `progress` is that of
    `top_eigenpairs`, which takes most of the time.

    Works under jit and vmap, where values cannot be checked, and under grad. Derivatives of eigenvalues and traces
    exist at any size; those of modes, and of functions of modes, are NaN above 512 kept weights. Derivatives do not
    exist where eigenvalues of G coincide, and may then be NaN. This includes eigenvalues that are exactly zero and
    beyond `rank`, as weights on no path have them.

    Raises UnsupportedPrimitive if a layer is not piecewise linear; TypeError if the mask is not boolean; ValueError if
    `rank` is above the number of kept weights, if `chunk` is below 1, if the mask does not fit `params` or keeps no
    weight, if weights or inputs are not finite, if inputs are not floating-point, or if `apply` does not return (n, o).
    Source: Gebhart et al. (2021), section 3.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"first": jax.random.normal(keys[0], (4, 20)), "second": jax.random.normal(keys[1], (20, 3))}
    >>> x = jax.random.normal(keys[2], (10, 4))
    >>> terms = factorize(apply, params, x, rank=60, key=jax.random.key(1))
    >>> terms
    Factorization(n=10, o=3, r=60, leaves=2)
    >>> round(float(terms.cumulative[-1]), 2)  # the share of Tr Θ in the first 60 of 120 nonzero terms
    0.74
    """
    x = jnp.asarray(x)
    _check_chunk(chunk)
    network = traced(apply, params, state)
    mask = check_mask(mask, params)
    _check_network(network, params, x, mask)
    kernel = with_exponent(path_kernel(network, params, x, mask=mask))
    pairs = top_eigenpairs(kernel, rank, key=key, progress=progress)
    return cast(Factorization, network.compiled(_at_pairs, chunk=chunk)(kernel, pairs, x))


def _at_pairs(network: TracedNetwork, kernel: PathKernel, pairs: Eigenpairs, x: Array, *, chunk: int) -> Factorization:
    """The factorization from the eigenpairs of G."""
    scaled = scaled_eigenvalues(kernel, pairs)
    nonzero = is_nonzero(scaled)
    products = _products(kernel, x, pairs.eigenvectors, chunk)
    traces = _layer_traces(kernel, x, chunk)
    return Factorization(
        eigenvalues=jnp.where(nonzero, pairs.eigenvalues, 0.0),
        data_modes=_over_root_of_unit(kernel, products * inverse_roots(scaled)[None, None, :].astype(products.dtype)),
        trace=sum(jax.tree.leaves(traces), start=jnp.zeros((), products.dtype)),
        layer_traces=traces,
        layer_shares=jax.tree.map(lambda leaf: _squared_norms(leaf) * nonzero, pairs.eigenvectors),
        scaled_eigenvalues=jnp.where(nonzero, scaled, 0.0),
        exponent=kernel.exponent,
    )


def recompose(factorization: Factorization) -> Float[Array, "n n o o"]:
    """The Neural Tangent Kernel to rank r, Θ_r = Σ_i λ_i b_i b_iᵀ, with axes (n, n, o, o) as in `ntk.empirical`.

    Both Θ_r and Θ − Θ_r are positive semi-definite. Stores n²·o² numbers; takes r·n²·o² operations.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> from pathjax import ntk
    >>> params = {"first": jnp.eye(2, 3), "second": jnp.ones((3, 4))}
    >>> x = jnp.array([[1.0, 0.5], [0.0, 1.0], [2.0, -1.0]])
    >>> terms = factorize(apply, params, x, rank=18, key=jax.random.key(0))  # all 18 weights: every term
    >>> bool(jnp.allclose(recompose(terms), ntk.empirical(apply, params, x), atol=1e-6))
    True
    """
    weighted = factorization.weighted_modes
    return jnp.einsum("iar,jbr->ijab", weighted, weighted, precision=lax.Precision.HIGHEST)


def layer_kernels(
    apply: ApplyFn,
    params: Params,
    x: Float[AnyArray, "n ..."],
    *,
    mask: Mask | None = None,
    state: State = None,
) -> Params:
    """What each layer adds to the Neural Tangent Kernel, Θ = Σ_ℓ Θ_ℓ: a tree like `params` of kernels (n, n, o, o).

    With a mask, Θ is that of the masked network and derivatives are by its kept weights; with a `state` (see
    `pathjax.types`) the network is `apply(params, state, x)`. Cost: one backward pass for each example, output and
    leaf. Memory: the Jacobian with respect to one leaf at a time, n·o·p_ℓ numbers, and the kernels of all leaves.

    Raises UnsupportedPrimitive, TypeError and ValueError for networks, masks, weights and inputs as `factorize` does.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> from pathjax import ntk
    >>> params = {"first": jnp.eye(2, 3), "second": jnp.ones((3, 4))}
    >>> x = jnp.array([[1.0, 0.5], [0.0, 1.0], [2.0, -1.0]])
    >>> parts = layer_kernels(apply, params, x)
    >>> jax.tree.map(jnp.shape, parts)
    {'first': (3, 3, 4, 4), 'second': (3, 3, 4, 4)}
    >>> bool(jnp.allclose(sum(parts.values()), ntk.empirical(apply, params, x)))
    True
    """
    x, network = jnp.asarray(x), traced(apply, params, state)
    mask = check_mask(mask, params)
    _check_network(network, params, x, mask)
    return network.compiled(_of_leaves)(params, mask, x)


def _of_leaves(network: TracedNetwork, params: Params, mask: Mask | None, x: Array) -> Params:
    leaves, structure = jax.tree.flatten(params)
    masks = [jnp.ones(jnp.shape(leaf), bool) for leaf in leaves] if mask is None else jax.tree.leaves(mask)
    weights = leaves if mask is None else jax.tree.leaves(kept_weights(mask, params))

    def kernel_of_leaf(position: int) -> jax.Array:
        def outputs(leaf: jax.Array, example: jax.Array) -> jax.Array:
            replaced = [*weights[:position], leaf, *weights[position + 1 :]]
            return cast(jax.Array, network(jax.tree.unflatten(structure, replaced), example[None])[0])

        jacobian = jax.vmap(jax.jacrev(outputs), in_axes=(None, 0))(weights[position], x)
        rows = jnp.where(masks[position], jacobian, 0).reshape(*jacobian.shape[:2], -1)
        return jnp.einsum("iap,jbp->ijab", rows, rows, precision=lax.Precision.HIGHEST)

    return jax.tree.unflatten(structure, [kernel_of_leaf(position) for position in range(len(leaves))])


def bounds(
    ntk: Float[Array, "n n o o"],
    kernel: PathKernel,
    data_gram: tuple[Float[Array, "n n o"], Float[Array, "n n o"]],
    *,
    key: Key,
) -> Bounds:
    """Upper bounds on λ_max(Θ) and Tr Θ by the Path Kernel Π and the data Gram K_v, and the slack of each.

    The bounds are λ_max(Θ) ≤ λ_max(Π) · λ_max(K_v), Tr Θ ≤ λ_max(K_v) · Tr Π and Tr Θ ≤ λ_max(Π) · Tr K_v. They hold
    since Θ = J Π Jᵀ and K_v = J Jᵀ with J = J_v f; K_v is block diagonal over outputs. `ntk` comes from `ntk.empirical`
    (or `recompose`), `kernel` from `path_kernel.path_kernel`, and `data_gram` (sign and logarithm) from
    `paths.log_data_gram`, all for one network, one mask and one batch. λ_max(Π) has the accuracy of
    `path_kernel.top_eigenpairs`. Cost: one call of `path_kernel.top_eigenpairs` and (n·o)³ operations.

    Raises ValueError if `ntk` or `data_gram` is not of one batch with itself, if their shapes disagree, or if `kernel`
    has only some leaves or outputs.
    Source: λ_max(A B Aᵀ) ≤ λ_max(B) λ_max(A Aᵀ), and Tr(A B Aᵀ) = Tr(B Aᵀ A), for positive semi-definite B.

    >>> from pathjax import ntk, paths
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"first": jax.random.normal(keys[0], (4, 20)), "second": jax.random.normal(keys[1], (20, 3))}
    >>> x = jax.random.normal(keys[2], (5, 4))
    >>> kernel, gram = path_kernel(apply, params, x), paths.log_data_gram(apply, params, x)
    >>> bounded = bounds(ntk.empirical(apply, params, x), kernel, gram, key=jax.random.key(1))
    >>> bounded.slack.shape, bool((bounded.slack > 0).all())  # log₁₀ of bound over quantity, for the three bounds
    ((3,), True)
    """
    matrix = square_matrix(ntk)
    _check_whole(kernel)
    sign, log_abs = data_gram
    if sign.shape != log_abs.shape or sign.shape != ntk.shape[:3]:
        raise ValueError(
            f"The data Gram has shapes {sign.shape} and {log_abs.shape}, but an NTK of shape {ntk.shape} goes with "
            f"{ntk.shape[:3]}. Compute both on the same batch, and leave out `x2`."
        )
    largest = jnp.max(log_abs)
    scale = lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    grams = jnp.moveaxis(sign * jnp.exp(log_abs - scale), 2, 0)
    return Bounds(
        log_top_ntk=log_positive(eigvalsh(matrix)[-1]),
        log_trace_ntk=log_positive(jnp.trace(matrix)),
        log_top_path_kernel=top_eigenpairs(kernel, 1, key=key).log_eigenvalues[0],
        log_trace_path_kernel=kernel.log_trace(),
        log_top_data_gram=log_positive(jnp.max(jax.vmap(eigvalsh)(grams)[:, -1])) + scale,
        log_trace_data_gram=log_positive(jnp.sum(jnp.trace(grams, axis1=1, axis2=2))) + scale,
    )


def alignment(factorization: Factorization, ntk: Float[Array, "n n o o"], *, rank: int) -> Alignment:
    """How the `rank` largest eigenvectors of the Neural Tangent Kernel align with the data modes of a factorization.

    `ntk` is Θ, from `ntk.empirical`, on the batch of the factorization. The eigenvectors of a repeated eigenvalue are
    an arbitrary basis of its eigenspace; only sums of shares or overlaps over the eigenspace are determined. Cost:
    (n·o)³ operations.

    Raises ValueError if `ntk` is not the kernel of that batch with itself, or if `rank` is not between 1 and n·o.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> from pathjax import ntk
    >>> params = {"first": jnp.eye(2, 3), "second": jnp.ones((3, 4))}
    >>> x = jnp.array([[1.0, 0.5], [0.0, 1.0], [2.0, -1.0]])
    >>> terms = factorize(apply, params, x, rank=18, key=jax.random.key(0))  # every term of the kernel
    >>> aligned = alignment(terms, ntk.empirical(apply, params, x), rank=2)
    >>> aligned.overlap.round(4).tolist(), aligned.shares.shape, aligned.shares.sum(axis=1).round(4).tolist()
    ([1.0, 1.0], (2, 18), [1.0, 1.0])
    """
    n, o, _ = factorization.data_modes.shape
    matrix = square_matrix(ntk)
    if ntk.shape[::2] != (n, o):
        raise ValueError(
            f"The NTK has shape {ntk.shape}, but the factorization is of {n} examples and {o} outputs. Compute both on "
            "the same batch."
        )
    if not 1 <= rank <= n * o:
        raise ValueError(f"`rank` must lie between 1 and the number of Θ's eigenvectors, {n * o}, but is {rank}.")
    eigenvalues, vectors = eigh(matrix)
    eigenvalues, vectors = eigenvalues[::-1][:rank], vectors[:, ::-1][:, :rank]
    modes = factorization.weighted_modes.reshape(n * o, -1)
    nonzero = eigenvalues > rounding_error(eigenvalues, n * o)
    shares = jnp.square(vectors.T @ modes) / jnp.where(nonzero, eigenvalues, 1.0)[:, None]
    return Alignment(
        eigenvalues=eigenvalues,
        shares=jnp.where(nonzero[:, None], shares, 0.0),
        overlap=_squared_norms((_orthonormal_basis(modes).T @ vectors).T),
    )


def kernel_target_alignment(
    kernel: Float[Array, "n n"], labels: Int[AnyArray, " n"], *, centered: bool = True
) -> Float[Array, ""]:
    """How well a kernel fits the labels: its alignment ⟨K, T⟩ / (‖K‖ ‖T‖) with T_ij = 1 for equal labels, else 0.

    The product is the Frobenius inner product. If `centered`, H K H and H T H with H = I − 11ᵀ/n replace K and T, which
    makes the alignment invariant to a constant added to every entry of the kernel. In [0, 1] for a positive
    semi-definite kernel. For an NTK (n, n, o, o), pass its trace over outputs, `ntk.empirical_trace(apply, params, x)`.
    NaN if K or T is zero; a centered T is zero if all labels are equal. Cost: a few passes over n² numbers.

    Raises ValueError if the kernel is not (n, n), or if labels are not one integer per example.
    Source: Cristianini, Shawe-Taylor, Elisseeff, Kandola (2001), "On Kernel-Target Alignment", definition 1 and
    section 2 for classes; centered: Cortes, Mohri, Rostamizadeh (2012), "Algorithms for Learning Kernels Based on
    Centered Alignment", definition 4.

    >>> from pathjax import ntk
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"first": jax.random.normal(keys[0], (4, 50)), "second": jax.random.normal(keys[1], (50, 3))}
    >>> labels = jnp.arange(30) % 3
    >>> x = jax.random.normal(keys[2], (30, 4)) / 3 + jnp.eye(3, 4)[labels]  # a cluster of examples for each label
    >>> kernel = ntk.empirical_trace(apply, params, x)
    >>> fit, by_chance = (kernel_target_alignment(kernel, each) for each in (labels, jnp.sort(labels)))
    >>> bool(fit > 0.3), bool(by_chance < 0.1)
    (True, True)
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"A kernel over the examples of one batch, (n, n), was expected, but {kernel.shape} came. "
            "For an NTK (n, n, o, o), pass its trace over outputs, jnp.trace(ntk, axis1=2, axis2=3)."
        )
    labels = jnp.asarray(labels)
    if labels.shape != kernel.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"`labels` must be one integer for each of the {len(kernel)} examples, but have shape {labels.shape} and "
            f"dtype {labels.dtype}. Convert one-hot targets to labels by jnp.argmax(targets, axis=1)."
        )
    target = (labels[:, None] == labels[None, :]).astype(kernel.dtype)
    if centered:
        kernel, target = _centered(kernel), _centered(target)
    # divided by the largest entry, so that the squares in the norms neither overflow nor underflow
    kernel, target = (matrix / jnp.max(jnp.abs(matrix)) for matrix in (kernel, target))
    return jnp.sum(kernel * target) / (jnp.linalg.norm(kernel) * jnp.linalg.norm(target))


def _over_root_of_unit(kernel: PathKernel, modes: jax.Array) -> jax.Array:
    """The modes over √(2^exponent): those of G from those of G / 2^exponent."""
    half = jnp.floor(kernel.exponent / 2)
    rest = (kernel.exponent - 2 * half) / 2  # 0 or 1/2
    return cast(jax.Array, in_true_units(modes, -half) * jnp.exp2(-rest.astype(modes.dtype)))


def _products(kernel: PathKernel, x: jax.Array, vectors: Params, chunk: int) -> jax.Array:
    """J_θ f times each of r vectors, given as a tree with leaves (r, ...); shape (n, o, r)."""
    rank = len(jax.tree.leaves(vectors)[0])

    def products_of_example(example: jax.Array) -> jax.Array:
        outputs, pullback = jax.vjp(lambda params: kernel.network(params, example[None])[0], kernel.params)
        # the transposed backward pass and not jax.jvp: functions with a jax.custom_vjp rule have no forward mode
        pushforward = jax.linear_transpose(pullback, outputs)
        return cast(jax.Array, lax.map(lambda vector: pushforward((vector,))[0], vectors, batch_size=min(chunk, rank)))

    return jnp.swapaxes(lax.map(products_of_example, x), 1, 2)


def _layer_traces(kernel: PathKernel, x: jax.Array, chunk: int) -> Params:
    """Tr Θ_ℓ for each leaf ℓ: ‖∂f/∂θ_ℓ‖², summed over examples, outputs and kept weights."""

    def traces_of_example(example: jax.Array) -> Params:
        outputs, pullback = jax.vjp(lambda params: kernel.network(params, example[None])[0], kernel.params)

        def squared_gradient(cotangent: jax.Array) -> Params:
            (gradient,) = pullback(cotangent)
            return jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), restricted(kernel, gradient))

        unit_cotangents = jnp.eye(outputs.size, dtype=outputs.dtype)
        return _sum_over_first_axis(lax.map(squared_gradient, unit_cotangents, batch_size=min(chunk, outputs.size)))

    return _sum_over_first_axis(lax.map(traces_of_example, x))


def _sum_over_first_axis(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), tree)


def _squared_norms(rows: jax.Array) -> jax.Array:
    """‖row‖² for each entry of the first axis."""
    return jnp.sum(jnp.square(rows), axis=tuple(range(1, rows.ndim)))


def _orthonormal_basis(columns: jax.Array) -> jax.Array:
    """An orthonormal basis of the span of the columns, as columns; zero columns in place of missing rank.

    The columns are normalized first, so that short ones count towards the rank too.
    """
    norms = jnp.sqrt(_squared_norms(columns.T))
    unit_columns = columns / jnp.where(norms > 0, norms, 1.0)[None, :]
    basis, singular_values, _ = svd(unit_columns)
    nonzero = singular_values > rounding_error(singular_values, max(columns.shape))
    return jnp.where(nonzero[None, :], basis, 0.0)


def _centered(matrix: jax.Array) -> jax.Array:
    """H K H with H = I − 11ᵀ/n."""
    rows = matrix - jnp.mean(matrix, axis=0, keepdims=True)
    return rows - jnp.mean(rows, axis=1, keepdims=True)


def _check_whole(kernel: PathKernel) -> None:
    if kernel.outputs is not None or len(kernel.rows) != len(jax.tree.leaves(kernel.params)):
        raise ValueError(
            "`kernel` is of some leaves or outputs alone, and would bound only their part of Θ. Build it without "
            "`where` and `outputs`."
        )


def _check_chunk(chunk: int) -> None:
    if chunk < 1:
        raise ValueError(f"`chunk` must be at least 1, but is {chunk}: it is the number of passes computed at once.")


def _check_network(network: TracedNetwork, params: Params, x: jax.Array, mask: Mask | None) -> None:
    """Raise if the mask or shapes do not fit, or, unless traced, if kept weights or inputs are not finite."""
    if mask is not None:
        masks = jax.tree.leaves(mask)
        if all(map(is_concrete, masks)) and not any(np.asarray(leaf).any() for leaf in masks):
            raise ValueError("`mask` prunes every weight, so the NTK is zero. Keep at least one weight.")
    check_finite(params, mask)
    _check_inputs(x)
    weights = params if mask is None else kept_weights(mask, params)
    network.check_outputs(weights, x, "x")


def _check_inputs(x: jax.Array) -> None:
    if x.ndim == 0 or len(x) == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`x` has shape {x.shape} and dtype {x.dtype}, but a batch of at least one floating-point example, "
            "(n, ...), was expected. Convert or reshape it first."
        )
    if is_concrete(x) and not np.isfinite(np.asarray(x)).all():
        first = int((~np.isfinite(np.asarray(x))).reshape(len(x), -1).any(axis=1).argmax())
        raise ValueError(
            f"`x` holds NaN or infinity, first in example {first}, and would make Θ of that example NaN. Remove such "
            "examples, or fill the missing values."
        )
