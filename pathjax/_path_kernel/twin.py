"""G = (J_θ v)ᵀ(J_θ v), which has the nonzero eigenvalues of the Path Kernel, as an operator on trees of parameters.

With R₂(u) = Σ_p c_p² Π_{i∈p} u_i over the paths of the lifted network, at u = θ²,

    G w = ∇R₂(u) ⊙ w + θ ⊙ (∇²R₂(u) · (θ ⊙ w))

is one Hessian-vector product. The mixed second derivative of R₂(θ₁ ⊙ θ₂) = Σ_p v_p(θ₁) v_p(θ₂) by θ₁ and θ₂ is
(J_θ v)(θ₁)ᵀ (J_θ v)(θ₂), which compares the Path Kernels of two sets of weights; for θ₁ = θ₂ it is G.

The methods of a `PathKernel` give true numbers, which in a deep network may leave the format. All else in this package
computes with G / 2^exponent, whose entries stay within it: `cross`, `linear`, `matrix`, `scaled_diagonal` and
`scaled_trace`; `in_true_units` and `log_in_true_units` convert what a user reads.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pathjax._base.leaves import KnownMask
from pathjax._base.trees import check_like, multiply, ravel, total
from pathjax._interpreter.convolutions import channels_last
from pathjax._interpreter.lifting import absolute_power, lift
from pathjax._interpreter.scaled import Scaled, power_of_two
from pathjax._interpreter.traced import TracedNetwork
from pathjax._linalg.eigenpairs import log_positive
from pathjax.types import Key, Mask, Params

__all__ = [
    "PathKernel",
    "count",
    "cross",
    "cross_factor",
    "dimension",
    "flat",
    "in_true_units",
    "linear",
    "log_in_true_units",
    "matrix",
    "positions",
    "random_normal",
    "random_signs",
    "restricted",
    "run",
    "run_at_mask",
    "scaled_derivatives",
    "scaled_diagonal",
    "scaled_trace",
    "size",
    "trees_at",
    "with_exponent",
]

# G is formed in blocks of columns, with at most 2^22 numbers in the vectors that it multiplies at once.
_AT_ONCE = 2**22


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "mask", "example", "exponent", "network"],
    meta_fields=["rows", "outputs"],
)
@dataclasses.dataclass(frozen=True)
class PathKernel:
    """The operator G on trees like `params`: products with it, its diagonal and its trace.

    All methods give true numbers. In a deep network these may overflow to infinity in float32, or underflow to zero;
    `log_trace` and `log_diagonal` do neither.

    A pytree, so that it passes through jit, vmap and grad. G has no rows and columns for pruned weights, nor for leaves
    outside `rows`: their entries are zero in every result. Made by `path_kernel`.

    >>> from pathjax import path_kernel
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    >>> kernel = path_kernel.path_kernel(apply, params, jnp.zeros((5, 1)))
    >>> kernel.diagonal()["second"].round(4).tolist()  # how fast the paths through each weight train by it
    [[0.25, 0.25, 0.25], [0.25, 0.25, 0.25]]
    >>> product = kernel.matvec(params)  # a tree like the weights
    >>> jax.tree.map(jnp.shape, product)
    {'first': (1, 2), 'second': (2, 3)}
    >>> bool(jnp.allclose(jnp.log(kernel.trace()), kernel.log_trace()))
    True

    Attributes:
        params: the parameters in float32 or wider, with pruned weights set to zero.
        mask: True for kept weights; None if all are kept.
        example: one all-ones input, (1, ...).
        exponent: for internal use: a whole number such that G / 2^exponent stays finite, or None where it has not been
            needed yet.
        network: the network, traced for parameters of their original types.
        rows: positions of the parameter leaves whose weights have rows and columns in G.
        outputs: indices of the outputs at which paths end; None for all.
    """

    params: Params
    mask: Mask | None
    example: Float[Array, ...]
    exponent: Any
    network: TracedNetwork
    rows: frozenset[int]
    outputs: tuple[int, ...] | None

    def __repr__(self) -> str:
        total, outputs = size(self), self.network.output(self.example).shape[1]
        kept = "?" if self.mask is not None and _row_masks(self) is None else f"{count(self):,}"
        chosen = "all" if self.outputs is None else len(self.outputs)
        return f"PathKernel(x={self.example.shape}, outputs={chosen} of {outputs}, rows={total:,}, kept={kept})"

    @property
    def log_scale(self) -> Float[Array, ""]:
        """Always 0: all numbers are in true units, and a result times exp(`log_scale`) is the result itself."""
        return jnp.zeros((), float)

    def matvec(self, tree: Params) -> Params:
        """The product G w with a tree w like `params`, as such a tree: about the cost of three gradients.

        G w = ∇R₂ ⊙ w + θ ⊙ (∇²R₂ (θ ⊙ w)), with R₂ the sum of v_p² over all paths as a function of θ². In true units:
        may overflow to infinity in float32 for deep networks. A product is linear in w, so pass w / c for G w / c;
        `log_trace` bounds how large G is.

        Raises ValueError unless the tree has the structure of `params`.
        """
        return run(_matvec, (self,), check_like(tree, self.params, name="tree"))

    def diagonal(self) -> Params:
        """The diagonal of G, for each weight the sum of (∂v_p/∂θ_i)² over its paths, as a tree like `params`.

        With R₂(u) = Σ_p v_p² at u = θ² it is ∂R₂/∂u_i, plus u_i ∂²R₂/∂u_i² for tied weights, which a path may use
        twice. In true units: may overflow to infinity in float32 for deep networks; `log_diagonal` does not. Costs one
        gradient, and one Hessian-vector product for each entry of a tied leaf.
        """
        return run(_diagonal, (self,))

    def log_diagonal(self) -> Params:
        """Natural logarithms of the entries of `diagonal`, finite at any depth; −∞ where an entry is zero."""
        return run(_log_diagonal, (self,))

    def trace(self) -> Float[Array, ""]:
        """The trace of the Path Kernel, Tr Π = Tr G: the sum of its eigenvalues, and of `diagonal`.

        In true units: may overflow to infinity in float32 for deep networks; `log_trace` does not.
        """
        return cast(Array, run(_trace, (self,)))

    def log_trace(self) -> Float[Array, ""]:
        """The natural logarithm of the trace, finite at any depth, as its derivative is; −∞ where the trace is zero."""
        return cast(Array, run(_log_trace, (self,)))


def run(function: Callable[..., Any], kernels: tuple[PathKernel, ...], *arguments: Any, **static: Any) -> Any:
    """function(*kernels, *arguments, **static), compiled once for each network, choice of rows and outputs, and types.

    The kernels are of one network; `function` is one of a module. One program serves every mask.
    """
    return kernels[0].network.compiled(_run, function=function, **static)(kernels, *arguments)


def _run(
    network: TracedNetwork, kernels: Sequence[PathKernel], *arguments: Any, function: Callable[..., Any], **static: Any
) -> Any:
    return function(*kernels, *arguments, **static)


def run_at_mask(function: Callable[..., Any], kernels: tuple[PathKernel, ...], *arguments: Any, **static: Any) -> Any:
    """function(*kernels, *arguments, **static), compiled once for the kernels' masks, whose entries it can read.

    Masks that are being traced are handed over as they are.
    """
    known = tuple(KnownMask.read(kernel.mask) for kernel in kernels)
    kernels = tuple(map(with_exponent, kernels))
    stripped = tuple(
        kernel if mask is None else dataclasses.replace(kernel, mask=None)
        for kernel, mask in zip(kernels, known, strict=True)
    )
    return kernels[0].network.compiled(_run_at_mask, function=function, known=known, **static)(stripped, *arguments)


def _run_at_mask(
    network: TracedNetwork,
    kernels: Sequence[PathKernel],
    *arguments: Any,
    function: Callable[..., Any],
    known: Sequence[KnownMask | None],
    **static: Any,
) -> Any:
    masked = [
        kernel if mask is None else dataclasses.replace(kernel, mask=mask.mask)
        for kernel, mask in zip(kernels, known, strict=True)
    ]
    return function(*masked, *arguments, **static)


def _matvec(kernel: PathKernel, tree: Params) -> Params:
    return in_true_units(*_product_with_exponent(kernel, kernel, tree))


def _diagonal(kernel: PathKernel) -> Params:
    return in_true_units(*_diagonal_with_exponent(kernel))


def _log_diagonal(kernel: PathKernel) -> Params:
    diagonal, exponent = _diagonal_with_exponent(kernel)
    return jax.tree.map(lambda leaf: log_in_true_units(leaf, exponent), diagonal)


def _trace(kernel: PathKernel) -> Any:
    diagonal, exponent = _diagonal_with_exponent(kernel)
    return in_true_units(total(diagonal), exponent)


def _log_trace(kernel: PathKernel) -> Any:
    diagonal, exponent = _diagonal_with_exponent(kernel)
    return log_in_true_units(total(diagonal), exponent)


def with_exponent(kernel: PathKernel) -> PathKernel:
    """The kernel with its `exponent`, which takes a forward pass of the lifted network where it is not there yet."""
    if kernel.exponent is not None:
        return kernel
    exponent = kernel.network.compiled(_exponent)(kernel.params, kernel.example)
    return dataclasses.replace(kernel, exponent=exponent)


def _exponent(network: TracedNetwork, params: Params, example: Any) -> Any:
    """The binary logarithm of the scale of Σ_p v_p², as a whole number; 0 where the sum is 0."""
    squares = jax.tree.map(jnp.square, params)
    sums = lift(network.path_program(example), squares, example, phi=absolute_power(2), keep_zeros=True)
    return _finite_exponent(sums.exponent)


def _finite_exponent(exponent: Any) -> Any:
    exponent = jnp.asarray(lax.stop_gradient(exponent), jnp.float32)
    return jnp.where(jnp.isfinite(exponent), exponent, 0.0)


def in_true_units(tree: Any, exponent: Any) -> Any:
    """The tree times 2^exponent; infinity above the format, zero below it."""

    def scaled(leaf: Any) -> Any:
        form = jnp.finfo(leaf.dtype)
        remaining = jnp.asarray(exponent, jnp.float32)
        # In three factors, each within the format: 2^exponent alone may overflow where its product with a small number
        # does not, and infinity times zero would be NaN. Three take any normal number out of the format.
        for _ in range(3):
            step = jnp.clip(remaining, form.minexp, form.maxexp - 1)
            leaf, remaining = leaf * power_of_two(step, leaf.dtype), remaining - step
        return leaf

    return jax.tree.map(scaled, tree)


def log_in_true_units(numbers: Any, exponent: Any) -> Any:
    """Natural logarithms of the numbers times 2^exponent; −∞ for zero and negative numbers."""
    return log_positive(numbers) + math.log(2.0) * jnp.asarray(exponent, numbers.dtype)


def scaled_diagonal(kernel: PathKernel) -> Params:
    """diag(G) / 2^exponent, of a kernel with its exponent."""
    diagonal, exponent = _diagonal_with_exponent(kernel)
    return _rescale(diagonal, exponent - kernel.exponent)


def scaled_derivatives(kernel: PathKernel) -> Params:
    """∂R₂/∂u / 2^exponent: diag(G) at weights that are not tied."""
    gradient, exponent = _derivatives_with_exponent(kernel)
    return restricted(kernel, _rescale(gradient, exponent - kernel.exponent))


def _derivatives_with_exponent(kernel: PathKernel) -> tuple[Params, Any]:
    def scaled_sum(squares: Params) -> tuple[Any, Any]:
        return _selected_sum(kernel, squares)

    squares = multiply(kernel.params, kernel.params)
    gradient, exponent = jax.grad(scaled_sum, has_aux=True)(squares)
    return gradient, _finite_exponent(exponent)


def _diagonal_with_exponent(kernel: PathKernel) -> tuple[Params, Any]:
    """diag(G) / 2^exponent, with an exponent that it finds on its way."""
    gradient, exponent = _derivatives_with_exponent(kernel)
    leaves, structure = jax.tree.flatten(gradient)
    for position in kernel.network.tied(kernel.example) & kernel.rows:
        leaves[position] = _entries(dataclasses.replace(kernel, exponent=exponent), position)
    return restricted(kernel, jax.tree.unflatten(structure, leaves)), exponent


def scaled_trace(kernel: PathKernel) -> Any:
    """Tr G / 2^exponent."""
    return total(scaled_diagonal(kernel))


def _entries(kernel: PathKernel, position: int) -> Any:
    """The scaled diagonal at one leaf: one product with a unit vector for each entry."""
    leaves, structure = jax.tree.flatten(kernel.params)
    shape, dtype = leaves[position].shape, leaves[position].dtype
    zeros = [jnp.zeros_like(leaf) for leaf in leaves]
    product = linear(kernel, kernel)

    def entry(index: Any) -> Any:
        unit = jnp.zeros(math.prod(shape), dtype).at[index].set(1).reshape(shape)
        direction = jax.tree.unflatten(structure, [*zeros[:position], unit, *zeros[position + 1 :]])
        return jax.tree.leaves(product(direction))[position].ravel()[index]

    return lax.map(entry, jnp.arange(math.prod(shape)), batch_size=64).reshape(shape)


def restricted(kernel: PathKernel, tree: Params) -> Params:
    """The tree, with zeros at weights for which the kernel has no row."""
    leaves, structure = jax.tree.flatten(tree)
    masks = [True] * len(leaves) if kernel.mask is None else jax.tree.leaves(kernel.mask)
    kept = [
        jnp.where(mask, leaf, 0) if position in kernel.rows else jnp.zeros_like(leaf)
        for position, (mask, leaf) in enumerate(zip(masks, leaves, strict=True))
    ]
    return jax.tree.unflatten(structure, kept)


def _selected_sum(kernel: PathKernel, weights: Params) -> tuple[Any, Any]:
    """Σ_p c_p² Π_{i∈p} weights_i over the paths to the chosen outputs, as a number and the exponent of its scale."""
    # keep_zeros: where the sum is zero, as with a layer initialized at zero, its derivatives may be nonzero
    program = kernel.network.path_program(kernel.example)
    sums: Scaled = lift(program, weights, kernel.example, phi=absolute_power(2), keep_zeros=True)
    array = sums.array if kernel.outputs is None else sums.array[:, np.array(kernel.outputs)]
    return jnp.sum(array), lax.stop_gradient(sums.exponent)


def _rescale(tree: Params, shift: Any) -> Params:
    """The tree times 2^shift; unchanged if the shift is not finite."""
    # The shift need not be 0 for the kernel's own sum: its scale depends on rounding, which depends on compilation.
    shift = jnp.where(jnp.isfinite(shift), shift, 0.0)
    return jax.tree.map(lambda leaf: leaf * power_of_two(shift, leaf.dtype), tree)


def cross(left: PathKernel, right: PathKernel) -> Callable[[Params], Params]:
    """w ↦ (J_θ v)ᵀ_left (J_θ v)_right w, divided by 2 to the power `_cross_exponent`.

    It is the gradient by θ₁ of the derivative of R₂(θ₁ ⊙ θ₂) by θ₂ along w. Reverse over forward mode, since forward
    over reverse mode is slower for convolutions.
    """
    scale_exponent = _cross_exponent(left, right)

    def product(tree: Params) -> Params:
        image, exponent = _product_with_exponent(left, right, tree)
        return _rescale(image, exponent - scale_exponent)

    return product


def _product_with_exponent(left: PathKernel, right: PathKernel, tree: Params) -> tuple[Params, Any]:
    """(J_θ v)ᵀ_left (J_θ v)_right w, divided by 2 to the power of an exponent that it finds on its way."""
    vector = restricted(right, jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), tree, right.params))

    def derivative_along_vector(weights: Params) -> tuple[Any, Any]:
        direction = multiply(weights, vector)
        _, derivative, exponent = jax.jvp(
            functools.partial(_selected_sum, left), (multiply(weights, right.params),), (direction,), has_aux=True
        )
        return derivative, exponent

    gradient, exponent = jax.grad(derivative_along_vector, has_aux=True)(left.params)
    return restricted(left, gradient), _finite_exponent(exponent)


def _cross_exponent(left: PathKernel, right: PathKernel) -> Any:
    """The mean of the two kernels' exponents, rounded down."""
    left, right = with_exponent(left), with_exponent(right)
    return jnp.floor((left.exponent + right.exponent) / 2)


def linear(left: PathKernel, right: PathKernel) -> Callable[[Params], Params]:
    """The map of `cross` for use in loops: the part that does not depend on w is computed once."""
    _, product = jax.linearize(cross(left, right), jax.tree.map(jnp.zeros_like, right.params))
    return channels_last(product)


def size(kernel: PathKernel) -> int:
    """The number of weights in the leaves that have rows, pruned ones included."""
    leaves = jax.tree.leaves(kernel.params)
    return sum(leaves[position].size for position in kernel.rows)


def _row_masks(kernel: PathKernel) -> list[Any] | None:
    """The masks of the leaves that have rows, in order of position; None if the mask is not known while tracing."""
    leaves = jax.tree.leaves(kernel.params)
    if kernel.mask is None:
        return [np.ones(leaves[position].shape, bool) for position in sorted(kernel.rows)]
    masks = jax.tree.leaves(kernel.mask)
    if any(isinstance(mask, jax.core.Tracer) for mask in masks):
        return None
    return [np.asarray(masks[position]) for position in sorted(kernel.rows)]


def count(kernel: PathKernel) -> int:
    """The number of kept weights that have rows; all of `size` if the mask is not known while tracing."""
    masks = None if kernel.mask is None else _row_masks(kernel)
    return size(kernel) if masks is None else sum(int(np.count_nonzero(mask)) for mask in masks)


def dimension(kernel: PathKernel) -> Any:
    """The number of kept weights that have rows, as an array, so that the mask may be traced."""
    if kernel.mask is None:
        return jnp.asarray(size(kernel))
    masks = jax.tree.leaves(kernel.mask)
    return sum((jnp.sum(masks[position], dtype=jnp.int32) for position in kernel.rows), start=jnp.zeros((), jnp.int32))


def positions(kernel: PathKernel) -> np.ndarray:
    """Raveled indices of the kept weights that have rows; of all that have rows if the mask is not known."""
    leaves = jax.tree.leaves(kernel.params)
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    rows = sorted(kernel.rows)
    masks = _row_masks(kernel) or [np.ones(leaves[position].shape, bool) for position in rows]
    indices = [starts[position] + np.flatnonzero(mask) for position, mask in zip(rows, masks, strict=True)]
    return np.concatenate(indices)


def matrix(left: PathKernel, right: PathKernel) -> Any:
    """The map of `cross` as a dense matrix, with the kept weights of `left` as rows and those of `right` as columns."""
    rows, columns = positions(left), positions(right)
    product = flat(right, linear(left, right))
    zeros = jnp.zeros_like(ravel(right.params)[0])

    def column(position: Any) -> Any:
        return product(zeros.at[position].set(1))[rows]

    batch = max(1, min(len(columns), _AT_ONCE // zeros.size))
    return lax.map(column, jnp.asarray(columns), batch_size=batch).T


def trees_at(kernel: PathKernel, positions: np.ndarray, rows: Any) -> Params:
    """Stacked trees, one for each of `rows` (r, kept weights): its numbers at `positions`, zeros elsewhere."""
    vector, unravel = ravel(kernel.params)
    return jax.vmap(lambda row: unravel(jnp.zeros_like(vector).at[positions].set(row)))(rows)


def flat(kernel: PathKernel, function: Callable[[Params], Params]) -> Callable[[jax.Array], jax.Array]:
    """A function of trees like the kernel's parameters, as a function of vectors (p,)."""
    _, unravel = ravel(kernel.params)
    return lambda vector: ravel(function(unravel(vector)))[0]


def random_signs(kernel: PathKernel, key: Key) -> Any:
    """A vector (p,) of random signs at the kept weights that have rows, zeros elsewhere."""
    return _random(kernel, key, jax.random.rademacher)


def random_normal(kernel: PathKernel, key: Key) -> Any:
    """A vector (p,) of normal numbers at the kept weights that have rows, zeros elsewhere.

    Searches for eigenvectors start from it. Signs are often exactly at right angles to one: two to (1, 1), half of the
    time.
    """
    return _random(kernel, key, jax.random.normal)


def _random(kernel: PathKernel, key: Key, draw: Callable[..., Any]) -> Any:
    vector, unravel = ravel(kernel.params)
    return ravel(restricted(kernel, unravel(draw(key, vector.shape, vector.dtype))))[0]


def cross_factor(left: PathKernel, right: PathKernel, dtype: Any) -> Any:
    """1 or 1/√2: a result of `cross` times this factor has the geometric mean of both kernels' scales as its unit."""
    difference = _cross_exponent(left, right) - (left.exponent + right.exponent) / 2
    return jnp.exp2(difference.astype(dtype))
