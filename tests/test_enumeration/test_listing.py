"""The listing equals the oracle's, path by path, on every network of the table."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import enumeration, ntk

from .. import networks, oracles
from ..tolerances import EXACT, ROUNDING, SUMS

NAMES = networks.names()


@cache
def enumerated(name: str) -> enumeration.Paths:
    network = networks.build(name)
    return enumeration.enumerate_paths(network.apply, network.params, network.x, limit=5_000)


def ours_sorted(paths: enumeration.Paths) -> list[tuple[Any, ...]]:
    """(output, source, weights, coefficient) of each path with its position, in an order that both listings share."""
    rows = zip(*(np.asarray(a).tolist() for a in _columns(paths)), strict=True)
    keys = [
        (output, source, tuple(sorted(i for i in factors if i >= 0)), round(coefficient, 9), position)
        for position, (output, source, factors, coefficient) in enumerate(rows)
    ]
    return sorted(keys)


def _columns(paths: enumeration.Paths) -> tuple[Any, ...]:
    return paths.outputs, paths.sources, paths.factors, paths.coefficients


def theirs_sorted(listed: list[oracles.Path]) -> list[tuple[Any, ...]]:
    return sorted(
        (path.output, path.source, tuple(sorted(path.weights)), round(path.coefficient, 9), position)
        for position, path in enumerate(listed)
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_path_is_listed_once(name: str) -> None:
    ours, theirs = ours_sorted(enumerated(name)), theirs_sorted(networks.listed(name))
    assert [row[:-1] for row in ours] == [row[:-1] for row in theirs]


@pytest.mark.parametrize("name", NAMES)
def test_values_and_jacobian_equal_the_oracles(name: str) -> None:
    network, listed, paths = networks.build(name), networks.listed(name), enumerated(name)
    order = [row[-1] for row in ours_sorted(paths)]
    oracle_order = [row[-1] for row in theirs_sorted(listed)]
    values = np.asarray(enumeration.path_values(paths, network.params))[order]
    np.testing.assert_allclose(values, oracles.values(listed, network.theta)[oracle_order], rtol=EXACT, atol=ROUNDING)
    jacobian = np.asarray(enumeration.path_jacobian(paths, network.params))[order]
    np.testing.assert_allclose(
        jacobian, oracles.jacobian(listed, network.theta)[oracle_order], rtol=EXACT, atol=ROUNDING
    )


@pytest.mark.parametrize("name", NAMES)
def test_activations_carry_the_network_and_its_ntk(name: str) -> None:
    network, listed, paths = networks.build(name), networks.listed(name), enumerated(name)
    activations = np.asarray(enumeration.path_activations(paths, network.apply, network.params, network.x))
    outputs = activations @ np.asarray(enumeration.path_values(paths, network.params))
    np.testing.assert_allclose(outputs, network.apply(network.params, network.x), rtol=EXACT, atol=SUMS)
    kernel = np.asarray(enumeration.path_kernel(paths, network.params))
    composed = np.einsum("nok,kl,mpl->nmop", activations, kernel, activations, optimize=True)
    exact = oracles.neural_tangent_kernel(network.graph, listed, network.theta, np.asarray(network.x))
    np.testing.assert_allclose(composed, exact, rtol=EXACT, atol=EXACT * np.max(np.abs(exact)))


def test_listed_factors_compose_to_the_ntk_of_neural_tangents() -> None:
    network, paths = networks.build("leaky_mlp"), enumerated("leaky_mlp")
    activations = enumeration.path_activations(paths, network.apply, network.params, network.x)
    kernel = enumeration.path_kernel(paths, network.params)
    composed = np.einsum("nok,kl,mpl->nmop", activations, kernel, activations, optimize=True)
    exact = ntk.empirical(network.apply, network.params, network.x)
    np.testing.assert_allclose(composed, exact, rtol=EXACT, atol=EXACT * np.max(np.abs(exact)))


def mlp(params: Any, x: Any) -> Any:
    for kernel in params[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ params[-1]


def test_limit_names_the_exact_count() -> None:
    params = [jnp.ones((30, 40)), jnp.ones((40, 50)), jnp.ones((50, 7))]
    with pytest.raises(ValueError, match=r"420,000 paths, more than `limit` = 1,000\. Raise the limit"):
        enumeration.enumerate_paths(mlp, params, jnp.ones((2, 30)), limit=1_000)


def test_counts_past_any_float_are_still_refused() -> None:
    params = [jnp.ones((200, 200))] * 150
    with pytest.raises(ValueError, match=r"about 2\.854e\+347 paths"):
        enumeration.enumerate_paths(mlp, params, jnp.ones((2, 200)), limit=1_000)


def test_float32_and_float64_list_the_same_paths() -> None:
    network = networks.build("leaky_mlp")
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network.params)
    paths = enumeration.enumerate_paths(network.apply, single, network.x.astype(jnp.float32), limit=5_000)
    assert ours_sorted(paths) == ours_sorted(enumerated("leaky_mlp"))
    assert enumeration.path_values(paths, single).dtype == jnp.float32


def test_other_parameters_and_inputs_than_the_listed_are_refused() -> None:
    network, paths = networks.build("biased_mlp"), enumerated("biased_mlp")
    with pytest.raises(ValueError, match=r"`params` has 3 entries, but the paths were listed for"):
        enumeration.path_values(paths, jnp.ones(3))
    with pytest.raises(ValueError, match="coordinates per example"):
        enumeration.path_activations(paths, network.apply, network.params, jnp.ones((2, 99)))


def test_paths_without_weights_have_values_of_the_default_precision():
    # found by the fuzz, FUZZ_SEED=20261138: a mean of inputs, and no parameter
    paths = enumeration.enumerate_paths(lambda params, x: jnp.mean(x, axis=1), [], jnp.ones((2, 3, 2)), limit=10)
    values = enumeration.path_values(paths, [])
    assert values.dtype == jnp.zeros(0).dtype
    np.testing.assert_allclose(values, np.full(6, 1 / 3), rtol=EXACT)


def test_a_network_that_leaves_out_its_last_outputs_has_the_paths_of_the_others():
    # found by the fuzz, FUZZ_SEED=20261160: entries left out at the end have cells of their own
    first, second = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([[5.0, 6.0, 7.0], [8.0, 9.0, 10.0]])
    paths = enumeration.enumerate_paths(
        lambda params, x: (jnp.maximum(x @ params[0], 0) @ params[1])[:, :2],
        [first, second],
        jnp.ones((1, 2)),
        limit=50,
    )
    expected = [
        (output, source, first[source, hidden] * second[hidden, output])
        for output in range(2)
        for source in range(2)
        for hidden in range(2)
    ]
    values = enumeration.path_values(paths, [first, second])
    found = zip(paths.outputs.tolist(), paths.sources.tolist(), values.tolist(), strict=True)
    assert sorted(found) == sorted((output, source, float(value)) for output, source, value in expected)
