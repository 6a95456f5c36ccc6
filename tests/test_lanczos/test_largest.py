"""The search for the largest eigenpairs of matrices whose spectrum is written down: what it finds, and its products."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax._linalg.krylov import inner_products
from pathjax._linalg.lanczos import Known, Pairs, largest

from ..tolerances import EXACT, SINGLE_ROUNDING, SUMS

SIZE, RANK, ORDER, TOLERANCE = 700, 10, 20, 1e-6
REPEATED = np.concatenate([[3.0], np.linspace(1.06, 1.2, 4), np.repeat(np.linspace(0.9, 1.05, 40), 9)])
SPECTRA = {
    "spread": np.linspace(0, 1, SIZE) ** 4,
    "crowded": np.linspace(0.9, 1, SIZE) ** 3,
    "repeated": np.pad(REPEATED, (0, SIZE - len(REPEATED))),
    "null": np.pad([3.0, 2.0, 2.0, 1.0], (0, SIZE - 4)),
}
MOST_PRODUCTS = {"spread": 182, "crowded": 338, "repeated": 283, "null": 200}
"""No more products than these find the ten largest pairs; a fifth above what was counted."""
MOST_PRODUCTS_WITH_KNOWN_PAIRS = 64


class Found(NamedTuple):
    pairs: Pairs
    products: int


def rotation() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]


def search(matrix: Any, known: Known | None = None, *, restarts: int = 60) -> Found:
    calls: list[int] = []

    def product(vector: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return matrix @ vector

    @jax.jit
    def find(key: Any) -> Pairs:
        return largest(
            product,
            lambda key: jax.random.normal(key, (SIZE,), matrix.dtype),
            RANK,
            key=key,
            order=ORDER,
            tolerance=TOLERANCE,
            restarts=restarts,
            known=known,
        )

    pairs = find(jax.random.key(1))
    jax.effects_barrier()
    return Found(pairs, len(calls))


def check(pairs: Pairs, matrix: Any) -> None:
    """The pairs are the largest ones of a decomposition of the matrix."""
    exact = np.linalg.eigvalsh(np.asarray(matrix))[::-1][:RANK]
    vectors = np.asarray(pairs.vectors)
    assert pairs.confirmed
    np.testing.assert_allclose(pairs.values, exact, rtol=0, atol=EXACT * exact[0])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(RANK), rtol=0, atol=SUMS)
    errors = np.linalg.norm(vectors @ np.asarray(matrix) - np.asarray(pairs.values)[:, None] * vectors, axis=1)
    # the residuals are those of the very values and vectors that are handed over
    np.testing.assert_allclose(pairs.residuals, errors, rtol=0, atol=SUMS)
    assert errors.max() <= TOLERANCE * exact[0]


@pytest.mark.parametrize("name", SPECTRA)
def test_the_largest_pairs_are_found_within_a_number_of_products(name: str) -> None:
    turn = rotation()
    matrix = jnp.asarray(turn.T @ np.diag(SPECTRA[name]) @ turn)
    found = search(matrix)
    check(found.pairs, matrix)
    assert found.products <= MOST_PRODUCTS[name]


def with_known_rows(leak: float) -> tuple[Any, Known]:
    """A matrix with 40 values nine times each on known unit vectors, two of which `leak` couples, and others beside."""
    values = SPECTRA["repeated"].copy()
    turn = np.eye(SIZE)
    start = np.flatnonzero(np.bincount(np.searchsorted(np.unique(values), values)) == 9)
    is_known = np.isin(values, np.unique(values)[start])
    rest = np.flatnonzero(~is_known)
    turn[np.ix_(rest, rest)] = np.linalg.qr(np.random.default_rng(0).standard_normal((len(rest), len(rest))))[0]
    matrix = turn.T @ np.diag(values) @ turn
    positions = np.flatnonzero(is_known)
    coupling = np.zeros((SIZE, SIZE))
    coupling[positions[0], positions[1]] = coupling[positions[1], positions[0]] = leak
    order = positions[np.argsort(-values[positions])][:RANK]
    known = Known(
        values=jnp.asarray(values[order]),
        positions=jnp.asarray(order)[:, None],
        entries=jnp.ones((RANK, 1)),
        rest=lambda vector: vector.at[positions].set(0),
        image=lambda vector: jnp.asarray(values) * vector,
        probe=lambda vector: vector.at[rest].set(0),
    )
    return jnp.asarray(matrix + coupling), known


def test_known_pairs_are_not_searched_for() -> None:
    matrix, known = with_known_rows(leak=0.0)
    found = search(matrix, known)
    check(found.pairs, matrix)
    assert found.products <= MOST_PRODUCTS_WITH_KNOWN_PAIRS


def test_what_is_said_to_be_known_and_is_not_is_refuted() -> None:
    """The second largest eigenvalue, 1.4, is that of two vectors at right angles to all others."""
    matrix, known = with_known_rows(leak=0.5)
    check(search(matrix, known).pairs, matrix)


def test_pairs_that_do_not_exist_are_not_known() -> None:
    matrix, known = with_known_rows(leak=0.0)
    none = known._replace(values=jnp.full(RANK, -jnp.inf))
    check(search(matrix, none).pairs, matrix)


def test_inner_products_of_millions_of_numbers_are_right_in_single_precision() -> None:
    size = 3_000_000
    rows = jax.random.rademacher(jax.random.key(0), (3, size), jnp.float32) * jnp.float32(0.123)
    exact = np.asarray(rows, np.float64) @ np.asarray(rows[0], np.float64)
    found = jax.jit(inner_products)(rows, rows[0])
    np.testing.assert_allclose(found, exact, rtol=0, atol=10 * SINGLE_ROUNDING * exact[0])
