"""Listing many paths: the same sums as without a list, at a size where every array of it has to be lean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import listing
from pathjax import enumeration, paths

from ..tolerances import EXACT


def test_sums_over_many_listed_paths_equal_lifted_sums() -> None:
    params, x = listing.network((20, 20, 25, 20), seed=0)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    listed = enumeration.enumerate_paths(listing.apply, params, x, limit=200_000)
    assert len(listed) == 200_000
    values = np.asarray(enumeration.path_values(listed, params))
    for q in (1, 2):
        norm = paths.log_path_norm(listing.apply, params, x, q=q)
        np.testing.assert_allclose(np.log(np.sum(np.abs(values) ** q)), norm, rtol=EXACT)


def test_a_listing_is_as_lean_as_its_columns() -> None:
    params, x = listing.network((20, 20, 25, 20), seed=0)
    listed = enumeration.enumerate_paths(listing.apply, params, x, limit=200_000)
    rows = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(listed)) / len(listed)
    assert rows <= 50
