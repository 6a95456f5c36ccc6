"""G = (J_θ v)ᵀ(J_θ v), the twin of the Path Kernel, as an operator on trees of parameters.

With R₂(u) = Σ_p c_p² Π_{i∈p} u_i over the paths of the lifted network, at u = θ²,

    G w = ∇R₂(u) ⊙ w + θ ⊙ (∇²R₂(u) · (θ ⊙ w))

is one Hessian-vector product. R₂(θ₁ ⊙ θ₂) = Σ_p v_p(θ₁) v_p(θ₂) has for its mixed second derivative
(J_θ v)(θ₁)ᵀ (J_θ v)(θ₂), by which the Path Kernels of two sets of weights are compared; G is that of one with itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pathjax._base.trees import check_like, multiply, ravel, total
from pathjax._interpreter.convolutions import channels_last
from pathjax._interpreter.lifting import Scaled, absolute_power, lift, power_of_two
from pathjax._interpreter.traced import TracedNetwork
from pathjax.types import Key, Mask, Params

__all__ = [
    "PathKernel",
    "count",
    "cross",
    "cross_factor",
    "dimension",
    "flat",
    "linear",
    "matrix",
    "positions",
    "random_signs",
    "restricted",
    "size",
    "trees_at",
]

# Numbers in the vectors that are multiplied at once where G is formed.
_AT_ONCE = 2**22


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "mask", "example", "exponent"],
    meta_fields=["network", "rows", "outputs"],
)
@dataclasses.dataclass(frozen=True)
class PathKernel:
    """The operator G on trees like `params`, scaled: the true G is exp(`log_scale`) times what the methods give.

    A pytree, so that it passes through jit, vmap and grad. Rows and columns of pruned weights, and of leaves that are
    not chosen, are dropped: they are zero in every result.

    Attributes:
        params: the parameters in single precision at least, pruned weights zero.
        mask: which weights are kept; None if all are.
        example: one all-ones input, (1, ...).
        exponent: the binary logarithm of the scale.
        network: the traced network, of the leaves' own types.
        rows: positions of the leaves whose weights have rows and columns.
        outputs: positions of the outputs in which paths end; None for all.
    """

    params: Params
    mask: Mask | None
    example: Float[Array, ...]
    exponent: Any
    network: TracedNetwork
    rows: frozenset[int]
    outputs: tuple[int, ...] | None

    def __repr__(self) -> str:
        total, outputs = size(self), self.network.program(self.example).outputs
        kept = "?" if self.mask is not None and _row_masks(self) is None else f"{count(self):,}"
        chosen = "all" if self.outputs is None else len(self.outputs)
        return f"PathKernel(x={self.example.shape}, outputs={chosen} of {outputs}, weights={total:,}, kept={kept})"

    @property
    def log_scale(self) -> Float[Array, ""]:
        """Natural logarithm of the factor between the scaled operator and the true one."""
        return math.log(2.0) * jnp.asarray(self.exponent, float)

    def matvec(self, tree: Params) -> Params:
        """G w for a tree w like `params`: one Hessian-vector product, some three times a gradient's cost.

        Raises ValueError for a tree of another structure.
        """
        check_like(tree, self.params, name="tree")
        return cross(self, self)(tree)

    def diagonal(self) -> Params:
        """diag(G)_i = ∂R₂/∂u_i, and u_i ∂²R₂/∂u_i² more for tied weights, as a tree like `params`.

        One gradient; for each entry of a tied leaf one Hessian-vector product.
        """

        def scaled_sum(squares: Params) -> tuple[Any, Any]:
            return _selected_sum(self, squares)

        gradient, exponent = jax.grad(scaled_sum, has_aux=True)(jax.tree.map(jnp.square, self.params))
        leaves, structure = jax.tree.flatten(_rescale(gradient, exponent - self.exponent))
        for position in self.network.tied(self.example) & self.rows:
            leaves[position] = self._entries(position)
        return restricted(self, jax.tree.unflatten(structure, leaves))

    def trace(self) -> Float[Array, ""]:
        """Tr Π = Tr G, the sum of the diagonal."""
        return total(self.diagonal())

    def _entries(self, position: int) -> Any:
        """The diagonal at one leaf, entry by entry."""
        leaves, structure = jax.tree.flatten(self.params)
        shape, dtype = leaves[position].shape, leaves[position].dtype
        zeros = [jnp.zeros_like(leaf) for leaf in leaves]
        product = linear(self, self)

        def entry(index: Any) -> Any:
            unit = jnp.zeros(math.prod(shape), dtype).at[index].set(1).reshape(shape)
            direction = jax.tree.unflatten(structure, [*zeros[:position], unit, *zeros[position + 1 :]])
            return jax.tree.leaves(product(direction))[position].ravel()[index]

        return lax.map(entry, jnp.arange(math.prod(shape)), batch_size=64).reshape(shape)


def restricted(kernel: PathKernel, tree: Params) -> Params:
    """The tree, with zeros where the kernel has no rows."""
    leaves, structure = jax.tree.flatten(tree)
    masks = [True] * len(leaves) if kernel.mask is None else jax.tree.leaves(kernel.mask)
    kept = [
        jnp.where(mask, leaf, 0) if position in kernel.rows else jnp.zeros_like(leaf)
        for position, (mask, leaf) in enumerate(zip(masks, leaves, strict=True))
    ]
    return jax.tree.unflatten(structure, kept)


def _selected_sum(kernel: PathKernel, weights: Params) -> tuple[Any, Any]:
    """Σ_p c_p² Π_{i∈p} weights_i over the paths to the chosen outputs: array and exponent of the scale."""
    # zeros keep their scale: where the sum vanishes (a layer initialised at zero) its derivatives need not
    program = kernel.network.path_program(kernel.example)
    sums: Scaled = lift(program, weights, kernel.example, phi=absolute_power(2), keep_zeros=True)
    array = sums.array if kernel.outputs is None else sums.array[:, np.array(kernel.outputs)]
    return jnp.sum(array), lax.stop_gradient(sums.exponent)


def _rescale(tree: Params, step: Any) -> Params:
    # the scale is chosen by rounded numbers, which another compilation may round otherwise
    step = jnp.where(jnp.isfinite(step), step, 0.0)
    return jax.tree.map(lambda leaf: leaf * power_of_two(step, leaf.dtype), tree)


def cross(left: PathKernel, right: PathKernel) -> Callable[[Params], Params]:
    """w ↦ (J_θ v)ᵀ_left (J_θ v)_right w, at the scale of `_cross_exponent`.

    ∂/∂θ₁ of the derivative of R₂(θ₁ ⊙ θ₂) along w in θ₂: reverse over forward mode, which is cheaper than the other way
    around where weights are convolved.
    """
    scale = _cross_exponent(left, right)

    def product(tree: Params) -> Params:
        vector = restricted(right, jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), tree, right.params))

        def slope(weights: Params) -> tuple[Any, Any]:
            along = multiply(weights, vector)
            _, derivative, exponent = jax.jvp(
                functools.partial(_selected_sum, left), (multiply(weights, right.params),), (along,), has_aux=True
            )
            return derivative, exponent

        gradient, exponent = jax.grad(slope, has_aux=True)(left.params)
        return restricted(left, _rescale(gradient, exponent - scale))

    return product


def _cross_exponent(left: PathKernel, right: PathKernel) -> Any:
    return jnp.floor((left.exponent + right.exponent) / 2)


def linear(left: PathKernel, right: PathKernel) -> Callable[[Params], Params]:
    """The same map for use in loops: what does not depend on w is computed once, about two thirds of the cost."""
    _, product = jax.linearize(cross(left, right), jax.tree.map(jnp.zeros_like, right.params))
    return channels_last(product)


def size(kernel: PathKernel) -> int:
    """The number of weights that can have rows, whatever the mask."""
    leaves = jax.tree.leaves(kernel.params)
    return sum(leaves[position].size for position in kernel.rows)


def _row_masks(kernel: PathKernel) -> list[Any] | None:
    """For each leaf of the rows, in order, which weights are kept; None where that cannot be read."""
    leaves = jax.tree.leaves(kernel.params)
    if kernel.mask is None:
        return [np.ones(leaves[position].shape, bool) for position in sorted(kernel.rows)]
    masks = jax.tree.leaves(kernel.mask)
    if any(isinstance(mask, jax.core.Tracer) for mask in masks):
        return None
    return [np.asarray(masks[position]) for position in sorted(kernel.rows)]


def count(kernel: PathKernel) -> int:
    """The number of kept weights, or of those that a mask which cannot be read may keep."""
    masks = None if kernel.mask is None else _row_masks(kernel)
    return size(kernel) if masks is None else sum(int(np.count_nonzero(mask)) for mask in masks)


def dimension(kernel: PathKernel) -> Any:
    """The number of kept weights as an array."""
    if kernel.mask is None:
        return jnp.asarray(size(kernel))
    masks = jax.tree.leaves(kernel.mask)
    return sum((jnp.sum(masks[position], dtype=jnp.int32) for position in kernel.rows), start=jnp.zeros((), jnp.int32))


def positions(kernel: PathKernel) -> np.ndarray:
    """Positions of the kept weights, or of those that may be kept, among all the parameters, raveled."""
    leaves = jax.tree.leaves(kernel.params)
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    rows = sorted(kernel.rows)
    masks = _row_masks(kernel) or [np.ones(leaves[position].shape, bool) for position in rows]
    found = [starts[position] + np.flatnonzero(mask) for position, mask in zip(rows, masks, strict=True)]
    return np.concatenate(found)


def matrix(left: PathKernel, right: PathKernel) -> Any:
    """The map of `cross` between the kept weights, in full."""
    rows, columns = positions(left), positions(right)
    product = flat(right, linear(left, right))
    zeros = jnp.zeros_like(ravel(right.params)[0])

    def column(position: Any) -> Any:
        return product(zeros.at[position].set(1))[rows]

    batch = max(1, min(len(columns), _AT_ONCE // zeros.size))
    return lax.map(column, jnp.asarray(columns), batch_size=batch).T


def trees_at(kernel: PathKernel, positions: np.ndarray, rows: Any) -> Params:
    """Stacked trees with these rows (r, kept weights) at the positions."""
    vector, unravel = ravel(kernel.params)
    return jax.vmap(lambda row: unravel(jnp.zeros_like(vector).at[positions].set(row)))(rows)


def flat(kernel: PathKernel, function: Callable[[Params], Params]) -> Callable[[jax.Array], jax.Array]:
    """A map of trees like the kernel's parameters as one of vectors (p,)."""
    _, unravel = ravel(kernel.params)
    return lambda vector: ravel(function(unravel(vector)))[0]


def random_signs(kernel: PathKernel, key: Key) -> Any:
    """Random signs on the kept weights, raveled."""
    vector, unravel = ravel(kernel.params)
    return ravel(restricted(kernel, unravel(jax.random.rademacher(key, vector.shape, vector.dtype))))[0]


def cross_factor(left: PathKernel, right: PathKernel, dtype: Any) -> Any:
    """1 or 1/√2, by which a product of `cross` comes to be in units of the root of both kernels' scales."""
    difference = _cross_exponent(left, right) - (left.exponent + right.exponent) / 2
    return jnp.exp2(difference.astype(dtype))
