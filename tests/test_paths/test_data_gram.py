"""The data Gram over pairs of examples against listed paths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import paths

from .. import models, oracles
from ..tolerances import EXACT


@pytest.mark.parametrize("name", models.names())
def test_data_gram_equals_that_of_listed_paths(name: str) -> None:
    network, listed = models.build(name), models.listed(name)
    flat, unravel = ravel_pytree(network.params)
    kept = np.random.default_rng(3).random(flat.size) < 0.8
    mask = jax.tree.map(lambda leaf: leaf > 0.5, unravel(jnp.asarray(kept, flat.dtype)))
    gram = jax.jit(lambda params, a, b, mask: paths.log_data_gram(network.apply, params, a, b, mask=mask))
    sign, log_abs = gram(network.params, network.x, network.x[::-1][:2], mask)
    x = np.asarray(network.x)
    exact = oracles.data_gram(network.graph, listed, network.theta, x, x[::-1][:2], kept)
    np.testing.assert_allclose(sign * np.exp(log_abs), exact, rtol=EXACT, atol=EXACT * max(1.0, np.abs(exact).max()))


def test_one_batch_gives_a_symmetric_gram() -> None:
    network = models.build("leaky_mlp")
    sign, log_abs = paths.log_data_gram(network.apply, network.params, network.x)
    gram = np.moveaxis(np.asarray(sign * jnp.exp(log_abs)), -1, 0)
    np.testing.assert_allclose(gram, np.swapaxes(gram, 1, 2), rtol=EXACT)
    assert np.linalg.eigvalsh(gram).min() > -1e-9
