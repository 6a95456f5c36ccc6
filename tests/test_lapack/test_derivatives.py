"""The values and derivatives are those of jnp.linalg, of any order, and under vmap too."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax._linalg import lapack

from ..tolerances import EXACT

PAIRS = {
    "eigh": (lapack.eigh, lambda matrix: tuple(jnp.linalg.eigh(matrix))),
    "svd": (lapack.svd, lambda matrix: tuple(jnp.linalg.svd(matrix, full_matrices=False))),
    "singular_values": (lapack.singular_values, lambda matrix: jnp.linalg.svd(matrix, compute_uv=False)),
}
CASES = pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("eigh", (4, 4), float),
        ("svd", (5, 3), float),
        ("svd", (3, 5), float),
        ("svd", (3, 3), complex),
        ("singular_values", (3, 5), float),
        ("singular_values", (5, 3), complex),
    ],
)


def drawn(shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, *shape), dtype)


def derivatives(function: Any) -> Any:
    """(matrix, direction) -> the value, its derivative along the direction, and first and second gradients."""

    def weighed(matrix: Any) -> Any:
        parts = jax.tree.leaves(function(matrix))
        return sum(jnp.vdot(jnp.cos(jnp.arange(part.size)), jnp.abs(part + 1).ravel() ** 2) for part in parts)

    def everything(matrix: Any, direction: Any) -> Any:
        along = lambda matrix: jnp.vdot(direction, jax.grad(weighed)(matrix)).real  # noqa: E731
        pushed = jax.jvp(function, (matrix,), (direction,))
        return pushed, jax.grad(weighed)(matrix), jax.grad(along)(matrix)

    return everything


def assert_close(found: Any, expected: Any) -> None:
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=EXACT, atol=EXACT * np.max(np.abs(theirs)))


@CASES
def test_derivatives_of_both_modes_and_orders_are_those_of_jax(name: str, shape: Any, dtype: Any) -> None:
    ours, theirs = (derivatives(function) for function in PAIRS[name])
    matrices, directions = drawn(shape, dtype, 0), drawn(shape, dtype, 1)
    alone = jax.jit(theirs)
    expected = [alone(*each) for each in zip(matrices, directions, strict=True)]
    assert_close(jax.jit(ours)(matrices[0], directions[0]), expected[0])
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
    assert_close(jax.jit(jax.vmap(ours))(matrices, directions), together)


def test_gradients_of_a_mapped_function_are_those_of_each() -> None:
    matrices = drawn((4, 4), float, 0)
    sums = lambda function: lambda matrices: jnp.sum(jnp.sin(function(matrices)))  # noqa: E731
    found = jax.jit(jax.grad(sums(jax.vmap(lapack.eigvalsh))))(matrices)
    expected = jax.jit(jax.grad(sums(jnp.linalg.eigvalsh)))
    assert_close(list(found), [expected(matrix) for matrix in matrices])


def test_repeated_values_have_the_derivatives_that_they_have_in_jax() -> None:
    repeated = jnp.stack([jnp.eye(3), jnp.diag(jnp.array([2.0, 2.0, 1.0]))])
    for ours, theirs in (
        (lapack.eigvalsh, jnp.linalg.eigvalsh),
        (lapack.singular_values, lambda matrix: jnp.linalg.svd(matrix, compute_uv=False)),
    ):
        found = jax.jit(jax.vmap(jax.grad(lambda matrix, of=ours: of(matrix) @ jnp.arange(3.0))))(repeated)
        expected = jax.jit(jax.grad(lambda matrix, of=theirs: of(matrix) @ jnp.arange(3.0)))
        assert_close(list(found), [expected(matrix) for matrix in repeated])


def test_only_some_arguments_may_be_batched() -> None:
    solve = lapack.one_by_one(jnp.linalg.solve)
    matrix, columns = jnp.diag(jnp.array([1.0, 2.0, 4.0])), drawn((3, 2), float, 0)
    found = jax.vmap(solve, in_axes=(None, 0))(matrix, columns)
    assert_close(list(found), [jnp.linalg.solve(matrix, each) for each in columns])


def test_batches_of_batches_and_of_nothing() -> None:
    matrices = drawn((2, 3, 3), float, 0)
    found = jax.vmap(jax.vmap(lapack.eigvalsh))(matrices)
    assert_close(list(found.reshape(4, 3)), [jnp.linalg.eigvalsh(each) for each in matrices.reshape(4, 3, 3)])
    assert jax.vmap(lapack.eigvalsh)(matrices[:0, 0]).shape == (0, 3)
