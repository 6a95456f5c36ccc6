"""Θ layer by layer: what every weight adds, from the activations and cotangents that meet it.

A weight matrix between places t of its input and output has the Jacobian Σ_t a_t c_tᵀ. Its part of Θ is found either
from products of activations and of cotangents, Σ_ts (a_t · a'_s)(c_t · c'_s), or from the Jacobian of this one layer,
or, where weights are pruned, from the kept entries of either; whichever is predicted to cost least. Source: Novak et
al. (2022), "Fast finite width Neural Tangent Kernel", for the idea; the contractions are our own.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from pathjax._base import network as _network
from pathjax._interpreter.convolutions import channels_last
from pathjax._interpreter.jaxpr import is_concrete
from pathjax._ntk import blocks as _blocks
from pathjax._ntk import devices
from pathjax._ntk import memory as _memory
from pathjax._ntk.uses import Use, Uses, find, pull
from pathjax.types import ApplyFn, Mask, Params

__all__ = ["Form", "kernel"]

# What it costs to read or write a number, and to gather one, in multiplications inside a product of matrices: measured
# on two cores, where these take 0.04 ns.
_NUMBER = 8
_GATHERED = 80


@dataclass(frozen=True)
class Form:
    """What is wanted of Θ: with `trace` the sum over equal outputs, with `diagonal` each example with its own alone."""

    trace: bool = False
    diagonal: bool = False

    def einsum(self, subscripts: str, *operands: Any) -> Any:
        """`i` and `j` number the examples, `a` and `c` the outputs; `I`, `A` stand for what is left of both."""
        j, c = "i" if self.diagonal else "j", "a" if self.trace else "c"
        left = {"j": j, "c": c, "I": "i" if self.diagonal else "ij", "A": "" if self.trace else "ac"}
        return _einsum("".join(left.get(letter, letter) for letter in subscripts), *operands)

    def gram(self, left: Any, right: Any) -> Any:
        """Inner products of rows (n, o, p) and (m, o, p), as one product of matrices where it can be."""
        if self.diagonal:
            return self.einsum("iap,jcp->IA", left, right)
        (n, o, p), m = left.shape, len(right)
        if self.trace:
            return _einsum("ip,jp->ij", left.reshape(n, o * p), right.reshape(m, o * p))
        return _einsum("ip,jp->ij", left.reshape(n * o, p), right.reshape(m * o, p)).reshape(n, o, m, o).swapaxes(1, 2)

    def examples(self, n: int, m: int) -> int:
        """How many pairs of examples there are."""
        return n if self.diagonal else n * m

    def outputs(self, o: int) -> int:
        """How many pairs of outputs there are."""
        return o if self.trace else o * o


class Matrices(NamedTuple):
    """A use as b products of matrices: activations (n, b, t, k), cotangents (n, o, b, t, f), kept weights (b, k, f)."""

    activations: Any
    cotangents: Any
    kept: Any

    def rows(self) -> Rows:
        """The Jacobian of this layer alone."""
        if self.kept is not None and is_concrete(self.kept) and _gathers(self):
            return self._gathered()
        # in this order the product comes out as it is needed, and nothing is transposed
        jacobian = _einsum("iabtf,ibtk->iabfk", self.cotangents, self.activations)
        kept = None if self.kept is None else self.kept.swapaxes(1, 2)
        return Rows(_kept_columns(jacobian.reshape(*jacobian.shape[:2], -1), kept))

    def _gathered(self) -> Rows:
        """The same, formed for kept weights alone."""
        block, row, column = np.nonzero(self.kept)
        a, c = self.activations[:, block, :, row], self.cotangents[:, :, block, :, column]
        return Rows(_einsum("pit,piat->iap", a, c))

    def balanced(self) -> Matrices:
        """With activations and cotangents of one size, by a power of two: their Grams are in the format if Θ is."""
        a, c = _peak(self.activations), _peak(self.cotangents)
        known = (a > 0) & (c > 0) & jnp.isfinite(a) & jnp.isfinite(c)
        ratio = jnp.log2(jnp.where(known, c, 1)) - jnp.log2(jnp.where(known, a, 1))
        scale = jnp.ldexp(jnp.ones((), a.dtype), jnp.round(ratio / 2).astype(jnp.int32))
        return self._replace(activations=self.activations * scale, cotangents=self.cotangents / scale)

    def compressed(self) -> Matrices:
        """Without the inputs and the outputs that no kept weight joins."""
        if self.kept is None or not is_concrete(self.kept):
            return self
        rows, columns = np.flatnonzero(self.kept.any((0, 2))), np.flatnonzero(self.kept.any((0, 1)))
        kept = self.kept[:, rows][:, :, columns]
        a, c = _taken(self.activations, rows), _taken(self.cotangents, columns)
        return Matrices(a, c, None if kept.all() else kept)


class Rows(NamedTuple):
    """The Jacobian by some weights, (n, o, p)."""

    jacobian: Any


Part: TypeAlias = Matrices | Rows


def kernel(
    apply: ApplyFn,
    params: Params,
    x1: Any,
    x2: Any | None,
    *,
    mask: Mask | None,
    form: Form,
    batch_size: int | None,
    mesh: Mesh | None = None,
) -> Any:
    """Θ of a network on two batches, or on one: chunk by chunk of its examples, spread over the devices of a mesh."""
    weights = params if mask is None else _network.kept(mask, params)
    kept = None if mask is None else jax.tree.leaves(mask)

    def blocks(weights: Params, kept: Sequence[Any] | None, x1: Any, x2: Any | None) -> _blocks.Blocks:
        uses = find(apply, weights, x1)
        if not uses.found:
            raise ValueError(
                "No leaf of `params` reaches the outputs of `apply`, so that the kernel of its weights is zero. Pass "
                "the weights that the network uses."
            )
        _check_memory(uses, kept, form, len(x1), None if x2 is None else len(x2), batch_size)
        return _blocks.Blocks(
            lambda x: _parts(uses, kept, *uses.meet(x)),
            lambda left, right: _contracted(left, right, form),
            batch_size,
        )

    if mesh is None:
        made = blocks(weights, kept, x1, x2)
        if form.diagonal:
            return made.diagonal(x1, x2)
        return made.symmetric(x1) if x2 is None else made.rectangular(x1, x2)
    # masks that are known stay so, for what is pruned is not formed
    traced = {i: leaf for i, leaf in enumerate(kept or []) if not is_concrete(leaf)}

    def local(given: tuple[Params, dict[int, Any]], x1: Any, x2: Any | None) -> _blocks.Blocks:
        weights, masks = given
        return blocks(weights, None if kept is None else [masks.get(i, leaf) for i, leaf in enumerate(kept)], x1, x2)

    return devices.spread(local, (weights, traced), x1, x2, diagonal=form.diagonal, mesh=mesh)


def _check_memory(
    uses: Uses, mask: Sequence[Any] | None, form: Form, n: int, m: int | None, batch_size: int | None
) -> None:
    def working(size: int) -> int:
        alone = m is None and (size >= n or form.diagonal)
        return _working(uses, mask, form, [min(size, n)] if alone else [min(size, n), min(size, m or n)])

    (o,) = uses.output.shape
    numbers = form.examples(n, m or n) * form.outputs(o)
    # the sum over layers, and what is added to it
    result = 2 * numbers * uses.output.dtype.itemsize
    _memory.check(result, working, max(n, m or n), batch_size)


def _parts(uses: Uses, mask: Sequence[Any] | None, activations: Any, cotangents: Any) -> list[Part]:
    """What the leaves add to Θ on a batch; leaves that share a use, and all uses of a leaf, are taken together."""
    met = list(zip(uses.found.values(), activations, cotangents, strict=True))
    found: list[Part] = []
    rows: list[Any] = []
    for leaves in _groups([use.leaves for use in uses.found.values()]):
        mine = [entry for entry in met if entry[0].leaves <= leaves]
        part = _matrices(*mine[0], mask) if len(mine) == 1 else None
        if part is None:
            rows.extend(_rows(mine, mask))
        else:
            found.append(part.compressed())
    return [*found, Rows(jnp.concatenate(rows, axis=2))] if rows else found


def _working(uses: Uses, mask: Sequence[Any] | None, form: Form, sizes: Sequence[int]) -> int:
    """Bytes that two chunks of these sizes, or one with itself, and their largest contraction take."""
    found = []

    def probe(*met: Any) -> None:
        sides = [_parts(uses, mask, *each) for each in met]
        held = sum(_bytes(array) for side in sides for part in side for array in part[:2])
        found.append(held + max(_temporary(a, b, form) for a, b in zip(sides[0], sides[-1], strict=True)))

    jax.eval_shape(probe, *(uses.shapes(size) for size in sizes))
    return found[0]


def _contracted(left: Sequence[Part], right: Sequence[Part], form: Form) -> Any:
    """Θ of two batches from their parts: (n, m, o, o), or what `form` asks of it."""
    pairs = zip(left, right, strict=True)
    return functools.reduce(operator.add, (_contract(a, b, form) for a, b in pairs))


Contraction: TypeAlias = Callable[[Any, Any, Form], Any]


def _contract(left: Part, right: Part, form: Form) -> Any:
    return _cheapest(left, right, form)(left, right, form)


def _cheapest(left: Part, right: Part, form: Form) -> Contraction:
    if isinstance(left, Matrices) and isinstance(right, Matrices):
        costs = _costs(left, right, form)
        return min(costs, key=lambda contraction: costs[contraction])
    return _of_rows


def _temporary(left: Part, right: Part, form: Form) -> int:
    """Bytes of what the cheapest contraction forms on its way."""
    contraction = _cheapest(left, right, form)
    if isinstance(left, Rows) or isinstance(right, Rows):
        return 0
    (n, b, t, k), m = left.activations.shape, len(right.activations)
    o, f = left.cotangents.shape[1], left.cotangents.shape[-1]
    if contraction is _of_rows:
        columns = int(left.kept.sum()) if is_concrete(left.kept) and left.kept is not None else b * k * f
        numbers = (n if left is right else n + m) * o * columns
    elif contraction is _of_masked_products:
        numbers = (n if form.diagonal else m) * (o + 1) * b * f
    else:
        numbers = form.examples(n, m) * (b * t * t + (b * t * f * o if t > 1 else form.outputs(o)))
    return int(numbers) * left.cotangents.dtype.itemsize


def _costs(left: Matrices, right: Matrices, form: Form) -> dict[Contraction, int]:
    """What each contraction costs that gives this layer's part, in multiplications."""
    (n, b, t, k), m = left.activations.shape, len(right.activations)
    o, f = left.cotangents.shape[1], left.cotangents.shape[-1]
    examples, outputs = form.examples(n, m), form.outputs(o)
    batch = n if left is right else n + m
    if left.kept is None or not is_concrete(left.kept):
        jacobian, columns = batch * o * b * k * f * (t + _NUMBER), b * k * f
    else:
        columns = int(left.kept.sum())
        jacobian = min(_cost_of_gathering(left), _cost_of_all(left)) * batch // max(n, 1)
    costs: dict[Contraction, int] = {_of_rows: jacobian + examples * outputs * columns}
    if left.kept is None:
        dense = t * t * (k + o * f) + outputs * t * f + _NUMBER * (t * t + o * t * f)
        costs[_of_products] = examples * b * (k + outputs * f if t == 1 else dense)
    elif t == 1:
        pairs = n * (n // 2 + 1) if left is right and not form.diagonal else examples
        costs[_of_masked_products] = pairs * b * (k * f + outputs * f + _NUMBER * (k + 2 * o * f))
    return costs


def _of_rows(left: Part, right: Part, form: Form) -> Any:
    mine = left.rows() if isinstance(left, Matrices) else left
    theirs = mine if left is right else right.rows() if isinstance(right, Matrices) else right
    return form.gram(mine.jacobian, theirs.jacobian)


def _of_products(left: Matrices, right: Matrices, form: Form) -> Any:
    mine = left.balanced()
    left, right = mine, mine if left is right else right.balanced()
    if left.activations.shape[1:3] == (1, 1):
        alike = form.einsum("ik,jk->I", left.activations[:, 0, 0], right.activations[:, 0, 0])
        return form.einsum("I,IA->IA", alike, form.gram(left.cotangents[:, :, 0, 0], right.cotangents[:, :, 0, 0]))
    if left.activations.shape[2] == 1:
        alike = form.einsum("ibtk,jbtk->Ib", left.activations, right.activations)
        along = form.einsum("iabtf,jcbtf->IAb", left.cotangents, right.cotangents)
        return form.einsum("Ib,IAb->IA", alike, along)
    alike = form.einsum("ibtk,jbsk->Ibts", left.activations, right.activations)
    moved = form.einsum("Ibts,jcbsf->Icbtf", alike, right.cotangents)
    return form.einsum("iabtf,Icbtf->IA", left.cotangents, moved)


def _of_masked_products(left: Matrices, right: Matrices, form: Form) -> Any:
    """Σ_kf a_k a'_k M_kf c_f c'_f with the kept weights M, for a layer with one place."""
    (a, c), (others, theirs) = ((side.activations[:, :, 0], side.cotangents[:, :, :, 0]) for side in (left, right))
    kept = jnp.asarray(left.kept, a.dtype)

    def row(a: Any, c: Any, others: Any, theirs: Any) -> Any:
        """One example with those of the other batch."""
        joined = _einsum("jbk,bkf->jbf", a[None] * others, kept)
        subscripts = "abf,jabf->j" if form.trace else "abf,jcbf->jac"
        return _einsum(subscripts, c, joined[:, None] * theirs)

    if form.diagonal:
        return jax.vmap(lambda a, c, other, its: row(a, c, other[None], its[None])[0])(a, c, others, theirs)
    # row by row, for together they take n times the memory, and longer
    if left is not right:
        return lax.map(lambda one: row(one[0], one[1], others, theirs), (a, c))

    def ahead(i: Any) -> Any:
        """One example with itself and those after it, half way round."""
        at = (i + jnp.arange(len(a) // 2 + 1)) % len(a)
        return row(a[i], c[i], a[at], c[at])

    halves = lax.map(ahead, jnp.arange(len(a)))
    return _blocks.unfolded(halves[:, :, None, None])[:, :, 0, 0]


def _gathers(layer: Matrices) -> bool:
    return _cost_of_gathering(layer) < _cost_of_all(layer)


def _cost_of_gathering(layer: Matrices) -> int:
    """What the Jacobian of kept weights costs where factors are gathered first."""
    n, o, _, t, _ = layer.cotangents.shape
    return _GATHERED * n * (o + 1) * t * int(layer.kept.sum())


def _cost_of_all(layer: Matrices) -> int:
    """What it costs where the Jacobian of all weights is formed first."""
    n, o, b, t, f = layer.cotangents.shape
    k = layer.activations.shape[-1]
    return n * o * (b * k * f * (t + _NUMBER) + _NUMBER * int(layer.kept.sum()))


def _bytes(array: Any) -> int:
    return int(array.size) * array.dtype.itemsize


def _einsum(subscripts: str, *operands: Any) -> Any:
    # full precision: accelerators would otherwise round the factors to half of float32's digits
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST)


def _peak(array: Any) -> Any:
    """The largest size of an entry."""
    return jnp.max(jnp.abs(lax.stop_gradient(array)), initial=0.0)


def _taken(array: Any, columns: np.ndarray) -> Any:
    """These entries along the last axis."""
    return array if len(columns) == array.shape[-1] else array[..., columns]


def _groups(uses: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """The leaves in groups, such that no use has leaves of two groups."""
    groups: list[frozenset[int]] = []
    for leaves in uses:
        meeting = [group for group in groups if group & leaves]
        groups = [*(group for group in groups if not group & leaves), leaves.union(*meeting)]
    return groups


def _rows(met: Sequence[tuple[Use, Any, Any]], mask: Sequence[Any] | None) -> list[Any]:
    """The Jacobian by each leaf of these uses; that by a leaf used several times is a sum."""

    def of_example(activations: Any, cotangents: Any) -> dict[int, Any]:
        together = zip(met, activations, cotangents, strict=True)
        return pull([part for (use, *_), a, c in together for part in use.pull(a, c)])

    found = channels_last(jax.vmap(of_example))([entry[1] for entry in met], [entry[2] for entry in met])
    return [
        _kept_columns(part.reshape(*part.shape[:2], -1), None if mask is None else mask[leaf])
        for leaf, part in found.items()
    ]


def _kept_columns(rows: Any, kept: Any) -> Any:
    """The columns of kept weights: gathered where the mask is known, so that what is pruned costs nothing."""
    if kept is None:
        return rows
    if is_concrete(kept):
        return _taken(rows, np.flatnonzero(np.asarray(kept)))
    return jnp.where(jnp.ravel(kept)[None, None], rows, 0)


def _matrices(
    use: Use, activations: Sequence[Any], cotangents: Sequence[Any], mask: Sequence[Any] | None
) -> Matrices | None:
    """A dense or convolutional layer as products of matrices, if that is what the use is."""
    shapers = {"dot_general": _of_dot, "conv_general_dilated": _of_conv}
    weights = [operand for operand in use.operands if operand is not None]
    if use.equation.name not in shapers or len(weights) != 1 or weights[0].moves is None:
        return None
    (leaf,), moves = weights[0].leaves, weights[0].moves
    kept = None if mask is None else _moved(moves, mask[leaf])
    return shapers[use.equation.name](use, activations[0], cotangents[0], kept)


def _moved(moves: Callable[[Any], Any], kept: Any) -> Any:
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
    patches = _patches(images.reshape(-1, *images.shape[2:]), kernel[2:], params)
    k = math.prod(kernel[1:])
    a = patches.reshape(n, groups, k, -1).swapaxes(2, 3)
    c = cotangents.transpose(0, 1, *(axis + 2 for axis in numbers.out_spec))
    c = c.reshape(n, o, groups, kernel[0] // groups, -1).swapaxes(3, 4)
    if kept is not None:
        kept = kept.transpose(numbers.rhs_spec).reshape(groups, kernel[0] // groups, k).swapaxes(1, 2)
    return Matrices(a, c, kept)


def _patches(images: Any, window: Sequence[int], params: dict[str, Any]) -> Any:
    """What each place of a convolution's window sees of images (n, c, ...): (n, c, *window, *outputs).

    By slices, one axis after the other: as a convolution it would be one of feature groups, which are slow on CPUs.
    """
    dilated = zip(params["padding"], params["lhs_dilation"], strict=True)
    edges = [(low, high, dilation - 1) for (low, high), dilation in dilated]
    seen = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), (0, 0, 0), *edges])
    steps = zip(window, params["window_strides"], params["rhs_dilation"], strict=True)
    for axis, (size, stride, dilation) in enumerate(steps, 2):
        reach = (seen.shape[axis] - (size - 1) * dilation - 1) // stride * stride + 1
        slices = [lax.slice_in_dim(seen, i * dilation, i * dilation + reach, stride, axis) for i in range(size)]
        seen = jnp.stack(slices, axis=axis + len(window))  # behind the outputs and the windows of the axes before
    order = [*range(2 + len(window), 2 + 2 * len(window)), *range(2, 2 + len(window))]
    return seen.transpose(0, 1, *order)
