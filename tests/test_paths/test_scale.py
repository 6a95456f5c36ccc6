"""Path sums and shares in float32 at depths where path values leave the format, against float64."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from pathjax import masks, paths, scores
from pathjax._interpreter import lifting
from pathjax._interpreter.traced import traced

from .. import architectures
from ..tolerances import SINGLE

SMALLEST = 1e-35  # a thousand times the smallest normal number of float32

SCORES = {1: scores.synflow, 2: scores.synflow_l2}


class Deep(NamedTuple):
    """A network in one precision, and `run`, which compiles a function of its parameters where that is cheaper."""

    apply: Callable[[Any, Any], Any]
    params: Any
    x: Any
    run: Callable[[Callable[[Any], Any]], Callable[[Any], Any]]


def dense(depth: int, dtype: Any, *, rolled: bool, width: int = 8, scale: float = 1.0) -> Deep:
    """A narrow network of `depth` layers of Kaiming's deviation times `scale`, with biases."""
    rng = np.random.default_rng(0)
    drawn = {
        "w": rng.normal(size=(depth, width, width)) * np.sqrt(2 / width) * scale,
        "b": rng.normal(size=(depth, width)) * 0.1,
        "out": rng.normal(size=(width, 3)),
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), drawn)

    def layer(h: Any, weights: Any) -> tuple[Any, None]:
        return jax.nn.relu(h @ weights["w"] + weights["b"][None]), None

    def apply(params: Any, x: Any) -> Any:
        stacked = {"w": params["w"], "b": params["b"]}
        if rolled:
            x, _ = jax.lax.scan(layer, x, stacked)
        else:
            for i in range(depth):
                x, _ = layer(x, jax.tree.map(operator.itemgetter(i), stacked))
        return x @ params["out"]

    return Deep(apply, params, jnp.ones((1, width), dtype), jax.jit if rolled else lambda function: function)


def resnet_110(dtype: Any) -> Deep:
    module = functools.partial(architectures.ResNet, width=2, blocks=(18, 18, 18))
    network = architectures.linen(module, (8, 8, 3), dtype=dtype)
    return Deep(network.apply, network.params, network.x, lambda function: function)


NETWORKS: dict[str, Callable[[Any], Deep]] = {
    "1,000 layers, rolled": functools.partial(dense, 1000, rolled=True),
    "1,000 layers that vanish": functools.partial(dense, 1000, rolled=True, scale=0.1),
    "100 layers, unrolled": functools.partial(dense, 100, rolled=False, scale=30.0),
    "ResNet-110": resnet_110,
}


class Sums(NamedTuple):
    log_norm: Any
    shares: Any


@functools.cache
def computed(name: str, q: int, dtype: str) -> Sums:
    network = NETWORKS[name](jnp.dtype(dtype))

    def sums(params: Any) -> Sums:
        norm = paths.log_path_norm(network.apply, params, network.x, q=q)
        return Sums(norm, SCORES[q](network.apply, params, network.x))

    return jax.tree.map(np.asarray, network.run(sums)(network.params))


LONG = {("ResNet-110", 1), ("ResNet-110", 2), ("100 layers, unrolled", 1)}
CASES = [
    pytest.param(name, q, marks=[pytest.mark.long] if (name, q) in LONG else []) for name in NETWORKS for q in (1, 2)
]


@pytest.mark.parametrize(("name", "q"), CASES)
def test_log_path_norms_in_float32_equal_those_in_float64(name: str, q: int) -> None:
    single, double = computed(name, q, "float32").log_norm, computed(name, q, "float64").log_norm
    assert single.dtype == np.float32
    assert np.isfinite(double)
    np.testing.assert_allclose(single, double, rtol=SINGLE)


@pytest.mark.parametrize(("name", "q"), CASES)
def test_shares_in_float32_rank_weights_as_float64_does(name: str, q: int) -> None:
    """All that float32 holds with bits to spare: a share of 1e-70, as of a bias before 100 layers, is zero there."""
    single, double = (computed(name, q, dtype).shares for dtype in ("float32", "float64"))
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(shares)]) for shares in (single, double))
    normal = b > SMALLEST
    assert a.dtype == np.float32
    assert np.all(np.isfinite(a))
    assert np.all(a[~normal] <= 2 * SMALLEST)
    np.testing.assert_allclose(a[normal], b[normal], rtol=SINGLE)
    sample = np.random.default_rng(0).permutation(np.flatnonzero(normal))[:5_000]
    assert scipy.stats.kendalltau(a[sample], b[sample]).statistic > 0.9999


@pytest.mark.parametrize(("name", "q"), CASES)
def test_masks_from_float32_shares_are_those_of_float64(name: str, q: int) -> None:
    single, double = (
        ravel_pytree(masks.from_scores(shares, density=0.01, prunable=lambda path, leaf: True))[0]
        for shares in (computed(name, q, dtype).shares for dtype in ("float32", "float64"))
    )
    assert single.sum() == double.sum() == round(0.01 * single.size)
    assert 1000 * (single & ~double).sum() <= double.sum()


@pytest.mark.parametrize(("name", "q"), CASES)
def test_shares_of_every_cut_sum_to_one(name: str, q: int) -> None:
    """A layer's weights, and the biases of it and of all later layers, at which the other paths start."""
    shares = computed(name, q, "float32").shares
    if name == "ResNet-110":
        cuts = np.array([sum(leaf.sum() for leaf in shares["Dense_0"].values())])
    else:
        biases = np.cumsum(shares["b"].sum(axis=1, dtype=np.float64)[::-1])[::-1]
        cuts = np.append(shares["w"].sum(axis=(1, 2)) + biases, shares["out"].sum())
    np.testing.assert_allclose(cuts, 1.0, rtol=0, atol=SINGLE)


def test_pruned_weights_contribute_nothing_whatever_their_values() -> None:
    network = dense(20, jnp.float32, rolled=True)
    flat, unravel = ravel_pytree(network.params)
    kept = np.random.default_rng(0).random(flat.size) < 0.7
    mask = jax.tree.map(lambda leaf: leaf > 0.5, unravel(jnp.asarray(kept, flat.dtype)))

    @jax.jit
    def sums(params: Any) -> Any:
        norms = [paths.log_path_norm(network.apply, params, network.x, q=q, mask=mask) for q in (0.5, 1, 2)]
        gates = [paths.path_sum(network.apply, params, network.x, gates=gates, mask=mask) for gates in ("open", "data")]
        gram = paths.log_data_gram(network.apply, params, network.x, mask=mask)
        slopes = jax.grad(lambda p: paths.log_path_norm(network.apply, p, network.x, mask=mask))(params)
        return norms, gates, gram, paths.log_path_count(network.apply, params, network.x, mask=mask), slopes

    expected = sums(network.params)
    assert np.all(np.isfinite(ravel_pytree(expected)[0]))
    for value in (0.0, 1e30, np.inf, np.nan):
        found = sums(unravel(jnp.where(kept, flat, jnp.asarray(value, flat.dtype))))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("rolled", [True, False])
def test_a_dead_network_has_norm_minus_infinity_and_no_shares(rolled: bool) -> None:
    network = dense(10, jnp.float32, rolled=rolled)
    params = network.params | {"w": network.params["w"].at[4].set(0.0), "b": jnp.zeros_like(network.params["b"])}
    for q, score in SCORES.items():
        norm, slopes = jax.value_and_grad(lambda p, q=q: paths.log_path_norm(network.apply, p, network.x, q=q))(params)
        assert norm == -np.inf
        shares = score(network.apply, params, network.x)
        for leaf in jax.tree.leaves((slopes, shares)):
            np.testing.assert_array_equal(leaf, 0.0)


def test_a_network_without_unpruned_paths_counts_none() -> None:
    network = dense(10, jnp.float32, rolled=True)
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), network.params)
    mask["out"] = jnp.zeros_like(mask["out"])
    assert paths.log_path_count(network.apply, network.params, network.x, mask=mask) == -np.inf
    assert paths.log_path_norm(network.apply, network.params, network.x, mask=mask) == -np.inf


def test_a_network_may_mix_types() -> None:
    """Kernels in single precision among inputs, statistics and biases in double precision."""
    network = architectures.build("ResNet-20")
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.ndim > 1 else leaf, network.params)
    mixed = jax.jit(lambda params: paths.log_path_norm(network.apply, params, network.x))(single)
    exact = jax.jit(lambda params: paths.log_path_norm(network.apply, params, network.x))(network.params)
    np.testing.assert_allclose(mixed, exact, rtol=SINGLE)


def test_a_known_zero_keeps_vanishing_sums_for_derivatives() -> None:
    """The mean 0 of a batch norm at initialization has no scale that could push small sums out of the format."""
    depth, weight = 40, jnp.asarray(1e-6, jnp.float32)

    def apply(params: Any, x: Any) -> Any:
        for _ in range(depth):
            x = jax.nn.relu((x - jnp.zeros((1, 1), jnp.float32)) * params)
        return x

    x = jnp.ones((1, 1), jnp.float32)
    params = jnp.full((1, 1), weight)
    total = lifting.open_sum(traced(apply, params).path_program(x), params, x, q=1, keep_zeros=True)
    np.testing.assert_allclose(total.log_abs(), depth * np.log(1e-6), rtol=SINGLE)
