"""Second moments behind a product such as `lax.dot_general` of independent weights and activations.

With weights w of moments u, Σ_c w_oc a_c has the moments Σ_c u_oc K_c. Where the entries that are summed over are no
weights of their own, the moments of every two of them are needed.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from pathjax._interpreter.moments import (
    Axis,
    Kind,
    Moments,
    demand_pairs,
    is_own,
    joined,
    laid_out,
    mapped,
    product,
    without_pairs,
)

__all__ = ["contracted"]

# Names of axes in sums of products: of the examples, and of all others.
_EXAMPLES = "YZ"
_LETTERS = string.ascii_lowercase + string.ascii_uppercase[:-2]


class _Named(NamedTuple):
    """An axis of the result, the letters for its entries and for those of its right axis, and whether these are weights
    of their own."""

    axis: Axis
    letters: tuple[str, str]
    is_own: bool


def contracted(left: Moments, right: Moments, dimension_numbers: Any) -> tuple[Moments, list[int]]:
    """The moments, and the axes of the result along which entries have weights of their own."""
    (summed_left, summed_right), (batch_left, batch_right) = dimension_numbers
    summed = list(zip(summed_left, summed_right, strict=True))
    batch = list(zip(batch_left, batch_right, strict=True))
    # entries of weights are independent: where they are each multiplied, only those with themselves count
    for i, j in [*summed, *batch]:
        if is_own(left, i) or is_own(right, j):
            left, right = without_pairs(left, i), without_pairs(right, j)
    for i, j in summed:
        if not (is_own(left, i) or is_own(right, j)):
            demand_pairs(left, i)
            demand_pairs(right, j)

    letters = iter(_LETTERS)
    lefts, rights = _pairs_of_letters(left, letters), _pairs_of_letters(right, letters)
    for i, j in [*summed, *batch]:
        rights[j] = lefts[i]
    named = [_batch(left, i, right, j, lefts[i]) for i, j in batch]
    named += _remaining(left, lefts, {*summed_left, *batch_left})
    named += _remaining(right, rights, {*summed_right, *batch_right})
    axes = tuple(one.axis for one in named)
    names = [one.letters for one in named]
    equal_terms = _equal_terms(left, right, summed)

    def contract(leading: int, a: Any, b: Any) -> Any:
        terms = [
            _lettered(laid_out(array, operand.axes, leading), operand.axes, letters, leading)
            for array, operand, letters in ((a, left, lefts), (b, right, rights))
        ]
        return equal_terms * _einsum(terms, _letters(axes, names, leading))

    return product(axes, mapped(contract, left, right), left, right), [i for i, one in enumerate(named) if one.is_own]


def _pairs_of_letters(operand: Moments, letters: Iterator[str]) -> list[tuple[str, str]]:
    return [(next(letters), next(letters)) for _ in operand.axes]


def _batch(left: Moments, i: int, right: Moments, j: int, letters: tuple[str, str]) -> _Named:
    a, b = left.axes[i], right.axes[j]
    axis = Axis(a.size, joined(a.kind, b.kind), a.labels | b.labels)
    return _Named(axis, letters, is_own(left, i) or is_own(right, j))


def _remaining(operand: Moments, letters: Sequence[tuple[str, str]], taken: set[int]) -> list[_Named]:
    return [_Named(axis, letters[i], is_own(operand, i)) for i, axis in enumerate(operand.axes) if i not in taken]


def _equal_terms(left: Moments, right: Moments, summed: Sequence[tuple[int, int]]) -> int:
    """How many equal terms each sum has, along axes that are stored once."""
    count = 1
    for i, j in summed:
        kinds = {left.axes[i].kind, right.axes[j].kind}
        if not kinds & {Kind.EACH, Kind.PAIRS}:
            count *= left.axes[i].size ** (2 if kinds == {Kind.SAME} else 1)
    return count


def _letters(axes: Sequence[Axis], names: Sequence[tuple[str, str]], leading: int) -> list[str]:
    """The letter of each axis of an array of moments."""
    rights = [second for (_, second), axis in zip(names, axes, strict=True) if axis.kind is Kind.PAIRS]
    return [*_EXAMPLES[:leading], *(first for first, _ in names), *rights]


def _lettered(
    array: Any, axes: Sequence[Axis], names: Sequence[tuple[str, str]], leading: int
) -> tuple[Any, list[str]]:
    """The array without axes of length 1, and a letter for each that is left."""
    kept = [i for i, length in enumerate(array.shape) if length > 1]
    letters = _letters(axes, names, leading)
    return array.reshape([array.shape[i] for i in kept]), [letters[i] for i in kept]


def _einsum(terms: Sequence[tuple[Any, list[str]]], letters: Sequence[str]) -> Any:
    """The product of two arrays, summed over all other letters than these; axes of length 1 where neither has one."""
    (a, of_a), (b, of_b) = terms
    kept = [letter for letter in letters if letter in {*of_a, *of_b}]
    equation = f"{''.join(of_a)},{''.join(of_b)}->{''.join(kept)}"
    result = jnp.einsum(equation, a, b, precision=lax.Precision.HIGHEST)
    lengths = dict(zip(kept, result.shape, strict=True))
    return result.reshape([lengths.get(letter, 1) for letter in letters])
