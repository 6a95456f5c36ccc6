"""Θ layer by layer: what every weight adds, from the activations and cotangents that meet it.

A weight matrix between places t of its input and output has the Jacobian Σ_t a_t c_tᵀ. Its part of Θ is found either
from products of activations and of cotangents, Σ_ts (a_t · a'_s)(c_t · c'_s), or from the Jacobian of this one layer,
whichever takes fewer multiplications. Source: Novak et al. (2022), "Fast finite width Neural Tangent Kernel", for the
idea; the contractions are our own.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._jaxpr import is_concrete
from pathjax._uses import Use, Uses

__all__ = ["Part", "contract", "parts"]


class Matrices(NamedTuple):
    """A use as b products of matrices: activations (n, b, t, k), cotangents (n, o, b, t, f), kept weights (b, k, f)."""

    activations: Any
    cotangents: Any
    kept: Any

    def rows(self) -> Rows:
        """The Jacobian of this layer alone."""
        jacobian = _einsum("ibtk,iabtf->iabkf", self.activations, self.cotangents)
        return Rows(_kept_columns(jacobian.reshape(*jacobian.shape[:2], -1), self.kept))


class Rows(NamedTuple):
    """The Jacobian by some weights, (n, o, p)."""

    jacobian: Any


Part: TypeAlias = Matrices | Rows


def parts(uses: Uses, mask: Sequence[Any] | None, x: Any) -> list[Part]:
    """What the leaves add to Θ on a batch; leaves that share a use, and all uses of a leaf, are taken together."""
    activations, cotangents = uses.meet(x)
    met = list(zip(uses.found.values(), activations, cotangents, strict=True))
    found: list[Part] = []
    for leaves in _groups([use.leaves for use in uses.found.values()]):
        mine = [entry for entry in met if entry[0].leaves <= leaves]
        part = _matrices(*mine[0], mask) if len(mine) == 1 else None
        found.append(_rows(mine, mask) if part is None else part)
    return found


def contract(left: Sequence[Part], right: Sequence[Part]) -> Any:
    """Θ (n, m, o, o) of two batches from their parts."""
    pairs = zip(left, right, strict=True)
    return functools.reduce(operator.add, (_contract(a, b) for a, b in pairs))


def _contract(left: Part, right: Part) -> Any:
    if isinstance(left, Matrices) and isinstance(right, Matrices):
        if _takes_products(left, right):
            return _of_products(left, right)
        left, right = left.rows(), right.rows()
    return _einsum("iap,jcp->ijac", left[0], right[0])


def _of_products(left: Matrices, right: Matrices) -> Any:
    alike = _einsum("ibtk,jbsk->ijbts", left.activations, right.activations)
    if alike.shape[-2:] == (1, 1):
        along = _einsum("iabtf,jcbsf->ijacb", left.cotangents, right.cotangents)
        return _einsum("ijb,ijacb->ijac", alike[..., 0, 0], along)
    moved = _einsum("ijbts,jcbsf->ijcbtf", alike, right.cotangents)
    return _einsum("iabtf,ijcbtf->ijac", left.cotangents, moved)


def _takes_products(left: Matrices, right: Matrices) -> bool:
    """Whether products of activations and cotangents take fewer multiplications than the layer's Jacobian."""
    if left.kept is not None:
        return False
    (n, b, t, k), m = left.activations.shape, len(right.activations)
    o, f = left.cotangents.shape[1], left.cotangents.shape[-1]
    products = n * m * b * (t * t * k + o * o * f if t == 1 else t * t * (k + o * f) + o * o * t * f)
    jacobian = (n + m) * o * b * t * k * f + n * m * o * o * b * k * f
    return products < jacobian


def _einsum(subscripts: str, *operands: Any) -> Any:
    # full precision: accelerators would otherwise round the factors to half of float32's digits
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST)


def _groups(uses: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """The leaves in groups, such that no use has leaves of two groups."""
    groups: list[frozenset[int]] = []
    for leaves in uses:
        meeting = [group for group in groups if group & leaves]
        groups = [*(group for group in groups if not group & leaves), leaves.union(*meeting)]
    return groups


def _rows(met: Sequence[tuple[Use, Any, Any]], mask: Sequence[Any] | None) -> Rows:
    """The Jacobian by all leaves of these uses; that by a leaf used several times is a sum."""
    sums: dict[int, Any] = {}
    for use, activations, cotangents in met:
        for leaf, part in jax.vmap(use.pull)(activations, cotangents).items():
            sums[leaf] = sums[leaf] + part if leaf in sums else part
    columns = [
        _kept_columns(part.reshape(*part.shape[:2], -1), None if mask is None else mask[leaf])
        for leaf, part in sums.items()
    ]
    return Rows(jnp.concatenate(columns, axis=2))


def _kept_columns(rows: Any, kept: Any) -> Any:
    """The columns of kept weights: gathered where the mask is known, so that what is pruned costs nothing."""
    if kept is None:
        return rows
    if is_concrete(kept):
        return rows[:, :, np.flatnonzero(np.asarray(kept))]
    return jnp.where(jnp.ravel(kept)[None, None], rows, 0)


def _matrices(use: Use, activations: Sequence[Any], cotangents: Sequence[Any], mask: Any) -> Matrices | None:
    """A dense or convolutional layer as products of matrices, if that is what the use is."""
    shapers = {"dot_general": _of_dot, "conv_general_dilated": _of_conv}
    weights = [operand for operand in use.operands if operand is not None]
    if use.equation.name not in shapers or len(weights) != 1 or weights[0].moves is None:
        return None
    (leaf,), moves = weights[0].leaves, weights[0].moves
    kept = None if mask is None else _moved(moves, mask[leaf])
    return shapers[use.equation.name](use, activations[0], cotangents[0], kept)


def _moved(moves: Any, kept: Any) -> Any:
    """A leaf's mask as its layer reads it; at once where it is known."""
    if not is_concrete(kept):
        return moves(jnp.asarray(kept))
    with jax.ensure_compile_time_eval():
        return np.asarray(moves(jnp.asarray(kept)))


def _of_dot(use: Use, activations: Any, cotangents: Any, kept: Any) -> Matrices:
    side = use.operands.index(None)
    contracted, batched = use.equation.params["dimension_numbers"]
    shapes = [like.shape for like in use.equation.inputs]
    free = [
        [axis for axis in range(len(shape)) if axis not in (*gone, *shared)]
        for shape, gone, shared in zip(shapes, contracted, batched, strict=True)
    ]
    b, k, t, f = (
        math.prod(shapes[at][axis] for axis in axes)
        for at, axes in (
            (side, batched[side]),
            (side, contracted[side]),
            (side, free[side]),
            (1 - side, free[1 - side]),
        )
    )
    n, o = cotangents.shape[:2]
    order = [axis + 1 for axis in (*batched[side], *free[side], *contracted[side])]
    a = activations.transpose(0, *order).reshape(n, b, t, k)
    c = cotangents.reshape(n, o, b, t, f) if side == 0 else cotangents.reshape(n, o, b, f, t).swapaxes(3, 4)
    other = (*batched[1 - side], *contracted[1 - side], *free[1 - side])
    return Matrices(a, c, None if kept is None else kept.transpose(other).reshape(b, k, f))


def _of_conv(use: Use, activations: Any, cotangents: Any, kept: Any) -> Matrices | None:
    """A convolution as a product with patches, one for each feature group."""
    params = use.equation.params
    if use.operands.index(None) != 0 or params["batch_group_count"] != 1:
        return None
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel = [use.equation.inputs[1].shape[axis] for axis in numbers.rhs_spec]
    n, o = cotangents.shape[:2]
    images = activations.transpose(0, *(axis + 1 for axis in numbers.lhs_spec))
    settings = {name: params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")}
    patches = lax.conv_general_dilated_patches(
        images.reshape(-1, *images.shape[2:]), kernel[2:], **settings, precision=lax.Precision.HIGHEST
    )
    k = math.prod(kernel[1:])
    a = patches.reshape(n, groups, k, -1).swapaxes(2, 3)
    c = cotangents.transpose(0, 1, *(axis + 2 for axis in numbers.out_spec))
    c = c.reshape(n, o, groups, kernel[0] // groups, -1).swapaxes(3, 4)
    if kept is not None:
        kept = kept.transpose(numbers.rhs_spec).reshape(groups, kernel[0] // groups, k).swapaxes(1, 2)
    return Matrices(a, c, kept)
