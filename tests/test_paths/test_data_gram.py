"""The data Gram over pairs of examples against listed paths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import paths

from .. import networks, oracles
from ..tolerances import EXACT


@pytest.mark.parametrize("name", networks.names())
def test_data_gram_equals_that_of_listed_paths(name: str) -> None:
    network, listed = networks.build(name), networks.listed(name)
    flat, unravel = ravel_pytree(network.params)
    kept = np.random.default_rng(3).random(flat.size) < 0.8
    mask = jax.tree.map(lambda leaf: leaf > 0.5, unravel(jnp.asarray(kept, flat.dtype)))
    gram = jax.jit(lambda params, a, b, mask: paths.log_data_gram(network.apply, params, a, b, mask=mask))
    sign, log_abs = gram(network.params, network.x, network.x[::-1][:2], mask)
    x = np.asarray(network.x)
    exact = oracles.data_gram(network.graph, listed, network.theta, x, x[::-1][:2], kept)
    np.testing.assert_allclose(sign * np.exp(log_abs), exact, rtol=EXACT, atol=EXACT * max(1.0, np.abs(exact).max()))


@pytest.mark.parametrize("chunk", [1, 3, 4, 20, 1000])
@pytest.mark.parametrize("others", [None, 4])
def test_chunks_change_nothing(chunk: int, others: int | None) -> None:
    network = networks.build("leaky_mlp")
    x = np.random.default_rng(0).normal(size=(9, 3))
    x1, x2 = x[:5], None if others is None else x[5 : 5 + others]
    sign, log_abs = paths.log_data_gram(network.apply, network.params, x1, x2, chunk=chunk)
    exact = oracles.data_gram(network.graph, networks.listed("leaky_mlp"), network.theta, x1, x2)
    np.testing.assert_allclose(sign * np.exp(log_abs), exact, rtol=EXACT, atol=EXACT)


def test_one_batch_gives_a_symmetric_gram() -> None:
    network = networks.build("leaky_mlp")
    x = jax.random.normal(jax.random.key(0), (7, 3))
    sign, log_abs = paths.log_data_gram(network.apply, network.params, x, chunk=9)
    gram = np.moveaxis(np.asarray(sign * jnp.exp(log_abs)), -1, 0)
    np.testing.assert_array_equal(gram, np.swapaxes(gram, 1, 2))
    assert np.linalg.eigvalsh(gram).min() > -EXACT


def test_one_half_of_the_pairs_is_computed() -> None:
    seen = []

    def pair(a: jax.Array, b: jax.Array) -> jax.Array:
        jax.debug.callback(lambda a, b: seen.append((int(a), int(b))), a, b)
        return a * b

    table = paths._over_pairs(pair, jnp.arange(6), jnp.arange(6), chunk=1, upper=True)
    jax.effects_barrier()
    assert sorted(seen) == [(i, j) for i in range(6) for j in range(i, 6)]
    np.testing.assert_array_equal(table, np.outer(np.arange(6), np.arange(6)))


@pytest.mark.parametrize(("n", "m"), [(1, 200), (200, 1), (3, 70), (17, 16)])
def test_blocks_of_two_batches_compute_few_pairs_twice(n: int, m: int) -> None:
    seen = []

    def pair(a: jax.Array, b: jax.Array) -> jax.Array:
        jax.debug.callback(lambda a, b: seen.append((int(a), int(b))), a, b)
        return a * b

    table = paths._over_pairs(pair, jnp.arange(n), jnp.arange(m), chunk=64, upper=False)
    jax.effects_barrier()
    np.testing.assert_array_equal(table, np.outer(np.arange(n), np.arange(m)))
    assert set(seen) == set(np.ndindex(n, m))
    assert len(seen) <= 1.2 * n * m


def test_what_is_not_finite_is_refused() -> None:
    network = networks.build("leaky_mlp")
    broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), network.params)
    with pytest.raises(ValueError, match="has a kept weight that is NaN or infinite"):
        paths.log_data_gram(network.apply, broken, network.x)
    with pytest.raises(ValueError, match="`x2` holds NaN or infinity, first in example 1"):
        paths.log_data_gram(network.apply, network.params, network.x, network.x.at[1, 0].set(jnp.nan))


def test_without_any_path_signs_are_zero() -> None:
    network = networks.build("leaky_mlp")
    mask = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), network.params)
    sign, log_abs = paths.log_data_gram(network.apply, network.params, network.x, mask=mask)
    assert jnp.all(sign == 0) and jnp.all(log_abs == -jnp.inf)


def test_examples_of_two_shapes_and_empty_chunks_are_refused() -> None:
    network = networks.build("one_layer")
    with pytest.raises(ValueError, match=r"`x1` have shape \(4,\) and those of `x2` \(5,\)"):
        paths.log_data_gram(network.apply, network.params, network.x, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="`chunk` must be at least 1"):
        paths.log_data_gram(network.apply, network.params, network.x, chunk=0)
