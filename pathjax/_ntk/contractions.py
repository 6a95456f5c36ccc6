"""What one layer adds to Θ, from its activations and cotangents, by the contraction that is predicted to cost least.

A weight matrix between places t of its input and output has the Jacobian Σ_t a_t c_tᵀ. Its part of Θ is found either
from products of activations and of cotangents, Σ_ts (a_t · a'_s)(c_t · c'_s), or from the Jacobian of this one layer,
or, where weights are pruned, from the kept entries of either; whichever is predicted to cost least. Source: Novak et
al. (2022), "Fast finite width Neural Tangent Kernel", for the idea; the contractions are our own.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._interpreter.jaxpr import is_concrete
from pathjax._ntk import blocks as _blocks

__all__ = ["Form", "Matrices", "Part", "Rows", "Survivors", "contracted", "kept_columns", "temporary"]

# The cost of reading or writing a number, and of gathering one, in units of a multiplication inside a product of
# matrices, as measured on a CPU.
_NUMBER = 8
_GATHERED = 80

# How much longer a multiplication takes in products with as many columns as there are outputs, and the cost of one step
# of a loop.
_SKINNY = 2
_STEP = 2_000_000


@dataclass(frozen=True)
class Form:
    """Which entries of Θ are computed: with `trace` the sum over equal outputs, with `diagonal` pairs i = j alone."""

    trace: bool = False
    diagonal: bool = False

    def einsum(self, subscripts: str, *operands: Any) -> Any:
        """A sum of products over pairs of examples `i`, `j` and pairs of outputs `a`, `c`.

        In the result `I` stands for both examples and `A` for both outputs. With `diagonal` j is i; with `trace` c is
        a, and is summed over.
        """
        j, c = "i" if self.diagonal else "j", "a" if self.trace else "c"
        letters = {"j": j, "c": c, "I": "i" if self.diagonal else "ij", "A": "" if self.trace else "ac"}
        return _einsum("".join(letters.get(letter, letter) for letter in subscripts), *operands)

    def gram(self, left: Any, right: Any) -> Any:
        """Inner products of rows (n, o, p) and (m, o, p), as one product of matrices where it can be."""
        if self.diagonal:
            return self.einsum("iap,jcp->IA", left, right)
        (n, o, p), m = left.shape, len(right)
        if self.trace:
            return _einsum("ip,jp->ij", left.reshape(n, o * p), right.reshape(m, o * p))
        return _einsum("ip,jp->ij", left.reshape(n * o, p), right.reshape(m * o, p)).reshape(n, o, m, o).swapaxes(1, 2)

    def examples(self, n: int, m: int) -> int:
        """How many pairs of examples have entries."""
        return n if self.diagonal else n * m

    def outputs(self, o: int) -> int:
        """How many pairs of outputs are multiplied."""
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
        # an einsum may multiply in the other order, and then transposes the product, which is far larger
        jacobian = lax.dot_general(
            self.cotangents.transpose(0, 2, 3, 1, 4),
            self.activations,
            (((2,), (2,)), ((0, 1), (0, 1))),
            precision=lax.Precision.HIGHEST,
        )
        n, o = self.cotangents.shape[:2]
        kept = None if self.kept is None else self.kept.swapaxes(1, 2)
        return Rows(kept_columns(jacobian.swapaxes(1, 2).reshape(n, o, -1), kept))

    def _gathered(self) -> Rows:
        """The same, formed for kept weights alone."""
        block, row, column = np.nonzero(self.kept)
        a, c = self.activations[:, block, :, row], self.cotangents[:, :, block, :, column]
        return Rows(_einsum("pit,piat->iap", a, c))

    def balanced(self) -> Matrices:
        """The same product, with activations and cotangents scaled to equal size by a power of two.

        So the inner products of neither overflow or underflow, unless the kernel does.
        """
        a, c = _peak(self.activations), _peak(self.cotangents)
        has_ratio = (a > 0) & (c > 0) & jnp.isfinite(a) & jnp.isfinite(c)
        ratio = jnp.log2(jnp.where(has_ratio, c, 1)) - jnp.log2(jnp.where(has_ratio, a, 1))
        scale = jnp.ldexp(jnp.ones((), a.dtype), jnp.round(ratio / 2).astype(jnp.int32))
        return self._replace(activations=self.activations * scale, cotangents=self.cotangents / scale)

    @property
    def columns(self) -> int:
        """How many weights have a column in the Jacobian."""
        (_, b, _, k), f = self.activations.shape, self.cotangents.shape[-1]
        return int(self.kept.sum()) if self.kept is not None and is_concrete(self.kept) else b * k * f

    def stored(self) -> Part:
        """The Jacobian of this layer where it has fewer numbers than the activations and the cotangents do."""
        (_, b, t, k), (_, o, *_, f) = self.activations.shape, self.cotangents.shape
        return self.rows() if o * self.columns <= b * t * (k + o * f) else self.balanced()


class Rows(NamedTuple):
    """The Jacobian by some weights, (n, o, p)."""

    jacobian: Any


Part: TypeAlias = Matrices | Rows


class Survivors(NamedTuple):
    """The inputs and the outputs of a layer that some kept weight connects.

    Attributes:
        inputs: their positions; None for all.
        outputs: their positions; None for all.
        kept: which weights (b, k, f) between them are kept; None if all are, or if there is no mask.
    """

    inputs: np.ndarray | None
    outputs: np.ndarray | None
    kept: Any

    @classmethod
    def read(cls, kept: Any) -> Survivors:
        """Those of a mask (b, k, f); all, unless its entries are known."""
        if kept is None or not is_concrete(kept):
            return cls(None, None, kept)
        has_kept = kept.any((0, 2)), kept.any((0, 1))
        kept = kept[:, has_kept[0]][:, :, has_kept[1]]
        inputs, outputs = (None if some.all() else np.flatnonzero(some) for some in has_kept)
        return cls(inputs, outputs, None if kept.all() else kept)

    @property
    def are_fewer(self) -> bool:
        """Whether there are inputs or outputs that no kept weight connects."""
        return self.inputs is not None or self.outputs is not None

    def matrices(self, activations: Any, cotangents: Any) -> Matrices:
        """The layer as products of matrices, without the others."""
        a = activations if self.inputs is None else activations[..., self.inputs]
        c = cotangents if self.outputs is None else cotangents[..., self.outputs]
        return Matrices(a, c, self.kept)


def contracted(left: Sequence[Part], right: Sequence[Part], form: Form) -> Any:
    """Θ of two batches from the parts of their layers: (n, m, o, o), or what `form` asks of it."""
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


def temporary(left: Part, right: Part, form: Form) -> int:
    """Bytes of the intermediate results of the cheapest contraction."""
    contraction = _cheapest(left, right, form)
    if isinstance(left, Rows) or isinstance(right, Rows):
        return 0
    (n, b, t, _), m = left.activations.shape, right.activations.shape[0]
    o, f = left.cotangents.shape[1], left.cotangents.shape[-1]
    if contraction is _of_rows:
        numbers = (n if left is right else n + m) * o * left.columns
    elif contraction is _of_masked_products:
        numbers = (n if form.diagonal else m) * (o + 1) * b * f
    else:
        numbers = form.examples(n, m) * (b * t * t + (b * t * f * o if t > 1 else form.outputs(o)))
    return int(numbers) * left.cotangents.dtype.itemsize


def _costs(left: Matrices, right: Matrices, form: Form) -> dict[Contraction, int]:
    """The cost, in multiplications, of each contraction that gives this layer's part."""
    (n, b, t, k), m = left.activations.shape, right.activations.shape[0]
    o, f = left.cotangents.shape[1], left.cotangents.shape[-1]
    examples, outputs = form.examples(n, m), form.outputs(o)
    batch = n if left is right else n + m
    if left.kept is None or not is_concrete(left.kept):
        jacobian = batch * o * b * k * f * (t + _NUMBER)
    else:
        jacobian = min(_cost_of_gathering(left), _cost_of_all(left)) * batch // max(n, 1)
    costs: dict[Contraction, int] = {_of_rows: jacobian + examples * outputs * left.columns}
    if left.kept is None:
        dense = t * t * (k + o * f) + outputs * t * f + _NUMBER * (t * t + o * t * f)
        costs[_of_products] = examples * b * (k + outputs * f if t == 1 else dense)
    elif t == 1:
        pairs = n * (n // 2 + 1) if left is right and not form.diagonal else examples
        steps = 0 if form.diagonal else _STEP * n
        costs[_of_masked_products] = steps + _SKINNY * pairs * b * (k * f + outputs * f + _NUMBER * (k + 2 * o * f))
    return costs


def _of_rows(left: Part, right: Part, form: Form) -> Any:
    left_rows = left.rows() if isinstance(left, Matrices) else left
    if left is right:
        return form.gram(left_rows.jacobian, left_rows.jacobian)
    right_rows = right.rows() if isinstance(right, Matrices) else right
    return form.gram(left_rows.jacobian, right_rows.jacobian)


def _of_products(left: Matrices, right: Matrices, form: Form) -> Any:
    if left.activations.shape[1:3] == (1, 1):
        activations = form.einsum("ik,jk->I", left.activations[:, 0, 0], right.activations[:, 0, 0])
        cotangents = form.gram(left.cotangents[:, :, 0, 0], right.cotangents[:, :, 0, 0])
        return form.einsum("I,IA->IA", activations, cotangents)
    if left.activations.shape[2] == 1:
        activations = form.einsum("ibtk,jbtk->Ib", left.activations, right.activations)
        cotangents = form.einsum("iabtf,jcbtf->IAb", left.cotangents, right.cotangents)
        return form.einsum("Ib,IAb->IA", activations, cotangents)
    activations = form.einsum("ibtk,jbsk->Ibts", left.activations, right.activations)
    weighted = form.einsum("Ibts,jcbsf->Icbtf", activations, right.cotangents)
    return form.einsum("iabtf,Icbtf->IA", left.cotangents, weighted)


def _of_masked_products(left: Matrices, right: Matrices, form: Form) -> Any:
    """Σ_kf a_k a'_k M_kf c_f c'_f with the kept weights M, for a layer with one place."""
    (a1, c1), (a2, c2) = ((side.activations[:, :, 0], side.cotangents[:, :, :, 0]) for side in (left, right))
    kept = jnp.asarray(left.kept, a1.dtype)

    def row(a: Any, c: Any, a2: Any, c2: Any) -> Any:
        """One example, with activations a and cotangents c, with all of a batch."""
        weighted = _einsum("jbk,bkf->jbf", a[None] * a2, kept)
        subscripts = "abf,jabf->j" if form.trace else "abf,jcbf->jac"
        return _einsum(subscripts, c, weighted[:, None] * c2)

    if form.diagonal:
        return jax.vmap(lambda a, c, other_a, other_c: row(a, c, other_a[None], other_c[None])[0])(a1, c1, a2, c2)
    # row by row, for all rows at once take n times the memory, and longer
    if left is not right:
        return lax.map(lambda example: row(example[0], example[1], a2, c2), (a1, c1))

    def half_row(i: Any) -> Any:
        """One example with itself and those after it, modulo their number, up to half of them."""
        columns = (i + jnp.arange(len(a1) // 2 + 1)) % len(a1)
        return row(a1[i], c1[i], a1[columns], c1[columns])

    half_rows = lax.map(half_row, jnp.arange(len(a1)))
    return _blocks.unfolded(half_rows[:, :, None, None])[:, :, 0, 0]


def _gathers(layer: Matrices) -> bool:
    return _cost_of_gathering(layer) < _cost_of_all(layer)


def _cost_of_gathering(layer: Matrices) -> int:
    """The cost of the Jacobian of kept weights, if their activations and cotangents are gathered first."""
    n, o, _, t, _ = layer.cotangents.shape
    return _GATHERED * n * (o + 1) * t * int(layer.kept.sum())


def _cost_of_all(layer: Matrices) -> int:
    """The cost of the Jacobian of kept weights, if that of all weights is formed first."""
    n, o, b, t, f = layer.cotangents.shape
    k = layer.activations.shape[-1]
    return n * o * (b * k * f * (t + _NUMBER) + _NUMBER * int(layer.kept.sum()))


def _einsum(subscripts: str, *operands: Any) -> Any:
    # full precision: accelerators would otherwise round the factors to half of float32's digits
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST)


def _peak(array: Any) -> Any:
    """The largest absolute value of an entry."""
    return jnp.max(jnp.abs(lax.stop_gradient(array)), initial=0.0)


def kept_columns(rows: Any, kept: Any) -> Any:
    """The columns of kept weights: gathered where the mask is known, so that what is pruned costs nothing."""
    if kept is None:
        return rows
    if is_concrete(kept):
        columns = np.flatnonzero(np.asarray(kept))
        return rows if len(columns) == rows.shape[-1] else rows[..., columns]
    return jnp.where(jnp.ravel(kept)[None, None], rows, 0)
