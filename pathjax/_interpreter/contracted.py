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
    Known,
    Moments,
    Outer,
    demand_pairs,
    factored,
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


def contracted(
    left: Moments, right: Moments, dimension_numbers: Any, known: Sequence[Known | None]
) -> tuple[Moments, list[int]]:
    """The moments, and the axes of the result along which entries have weights of their own.

    `known` has the values of those operands that depend on no weight.
    """
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

    left, right = (
        operand if value is None else factored(value, operand)
        for value, operand in zip(known, (left, right), strict=True)
    )
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
        terms = _terms(a, left, lefts, leading) + _terms(b, right, rights, leading)
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


class _Term(NamedTuple):
    """An array without axes of length 1, and a letter for each of its axes."""

    array: Any
    letters: list[str]


def _terms(array: Any, operand: Moments, names: Sequence[tuple[str, str]], leading: int) -> list[_Term]:
    """The factors of moments: the array itself, or the values of which it is the outer product."""
    if not isinstance(array, Outer):
        return [_term(laid_out(array, operand.axes, leading), _letters(operand.axes, names, leading))]
    firsts = [first for first, _ in names]
    seconds = [pair[axis.kind is Kind.PAIRS] for pair, axis in zip(names, operand.axes, strict=True)]
    examples = _EXAMPLES[:leading]
    return [_term(array.left, [examples[0], *firsts]), _term(array.right, [examples[-1], *seconds])]


def _term(array: Any, letters: Sequence[str]) -> _Term:
    kept = [i for i, length in enumerate(array.shape) if length > 1]
    return _Term(array.reshape([array.shape[i] for i in kept]), [letters[i] for i in kept])


def _einsum(terms: Sequence[_Term], letters: Sequence[str]) -> Any:
    """The product of arrays, summed over all other letters than these; axes of length 1 where none has one."""
    present = {letter for term in terms for letter in term.letters}
    kept = [letter for letter in letters if letter in present]
    equation = f"{','.join(''.join(term.letters) for term in terms)}->{''.join(kept)}"
    result = jnp.einsum(equation, *(term.array for term in terms), precision=lax.Precision.HIGHEST)
    lengths = dict(zip(kept, result.shape, strict=True))
    return result.reshape([lengths.get(letter, 1) for letter in letters])
