"""The SynFlow family against the shares of listed paths, and the conservation that defines it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import scores

from .. import networks, oracles
from ..tolerances import EXACT, SINGLE

NAMES = ["biased_mlp", "leaky_mlp", "residual_dense", "tied_square", "linen_mlp"]


def mlp(params: Any, x: Any) -> Any:
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias[None])
    kernel, bias = params[-1]
    return x @ kernel + bias[None]


def parameters(*widths: int, dtype: Any = jnp.float64, scale: float = 2.0) -> Any:
    keys = jax.random.split(jax.random.key(3), len(widths))
    return [
        (jax.random.normal(key, (i, o), dtype) * np.sqrt(scale / i).astype(dtype), jnp.zeros(o, dtype))
        for key, i, o in zip(keys, widths[:-1], widths[1:], strict=False)
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("q", [1, 2])
def test_score_is_the_share_of_listed_paths(name: str, q: int) -> None:
    network, listed = networks.build(name), networks.listed(name)
    score = {1: scores.synflow, 2: scores.synflow_l2}[q]
    shares = jax.jit(lambda params: score(network.apply, params, network.x))(network.params)
    theirs = oracles.path_mass(listed, network.theta, q) / oracles.path_norm(listed, network.theta, q)
    np.testing.assert_allclose(ravel_pytree(shares)[0], theirs, rtol=EXACT, atol=EXACT)


def test_absolute_factor_is_the_peers_score() -> None:
    network, listed = networks.build("biased_mlp"), networks.listed("biased_mlp")
    ours = scores.synflow_l2(network.apply, network.params, network.x, factor="absolute")
    theirs = oracles.path_mass(listed, network.theta, 2) / oracles.path_norm(listed, network.theta, 2)
    np.testing.assert_allclose(ravel_pytree(ours)[0], theirs / np.abs(network.theta), rtol=EXACT)


@pytest.mark.parametrize("q", [1, 2])
def test_data_shares_weigh_paths_by_their_inputs(q: int) -> None:
    network, listed = networks.build("biased_mlp"), networks.listed("biased_mlp")
    x = np.asarray(network.x)
    # a path's mass is |v_p|^q times the mean of |x|^q at its source, or 1 at a bias
    mean = np.append((np.abs(x.reshape(len(x), -1)) ** q).mean(axis=0), 1.0)
    masses = oracles.magnitudes(listed, network.theta, q) * np.array([mean[path.source] for path in listed])
    theirs = np.zeros(len(network.theta))
    for path, mass in zip(listed, masses, strict=True):
        theirs[list(path.weights)] += mass / masses.sum()
    whole = scores.synflow_data(network.apply, network.params, network.x, q=q)
    np.testing.assert_allclose(ravel_pytree(whole)[0], theirs, rtol=EXACT, atol=EXACT)
    split = scores.synflow_data(network.apply, network.params, iter([network.x[:1], network.x[1:]]), q=q)
    np.testing.assert_allclose(ravel_pytree(split)[0], theirs, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("q", [1, 2])
def test_shares_of_every_layer_sum_to_one_at_any_depth(q: int) -> None:
    params = parameters(10, *[30] * 25, 4, dtype=jnp.float32, scale=1e5)
    score = {1: scores.synflow, 2: scores.synflow_l2}[q]
    shares = jax.jit(lambda params: score(mlp, params, jnp.ones((1, 10), jnp.float32)))(params)
    sums = np.array([float(kernel.sum()) for kernel, _ in shares])
    np.testing.assert_allclose(sums, 1.0, rtol=SINGLE)


def test_a_dead_network_scores_zero() -> None:
    params = parameters(3, 4, 4, 2)
    params[1] = (jnp.zeros((4, 4)), params[1][1])
    for score in (scores.synflow, scores.synflow_l2):
        shares = score(mlp, params, jnp.ones((1, 3)))
        assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(shares))


def test_rescaling_a_hidden_unit_keeps_shares() -> None:
    (first, bias), (second, last) = parameters(3, 4, 2)
    bias = bias + 0.3
    scale = jnp.array([[1.0, 10.0, 1.0, 0.1]])
    for score in (scores.synflow, scores.synflow_l2):
        before = score(mlp, [(first, bias), (second, last)], jnp.ones((1, 3)))
        rescaled = [(first * scale, bias * scale[0]), (second / scale.T, last)]
        after = score(mlp, rescaled, jnp.ones((1, 3)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=EXACT), before, after)


def test_bad_arguments_are_refused_with_the_remedy() -> None:
    params = parameters(3, 4, 2)
    with pytest.raises(ValueError, match='`factor` must be "squared" or "absolute", not \'cubed\''):
        scores.synflow_l2(mlp, params, jnp.ones((1, 3)), factor="cubed")
    with pytest.raises(ValueError, match="`inputs` has no examples"):
        scores.synflow_data(mlp, params, iter([]))
    with pytest.raises(ValueError, match=r"`inputs` must be floating-point, but are int"):
        scores.synflow_data(mlp, params, jnp.ones((2, 3), jnp.int32))
    with pytest.raises(ValueError, match=r"No path rule for `tanh` \(test_flow\.py:\d+\)"):
        scores.synflow(lambda p, x: jnp.tanh(mlp(p, x)), params, jnp.ones((1, 3)))
