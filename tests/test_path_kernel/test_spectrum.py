"""Eigenpairs and spectral density against G formed in full."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import path_kernel

from .. import models, oracles
from ..tolerances import EXACT


def mlp(params: Any, x: Any) -> Any:
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias[None])
    return x @ params[-1][0]


def parameters(*widths: int) -> Any:
    keys = jax.random.split(jax.random.key(3), len(widths))
    return [
        (jax.random.normal(key, (i, o)) * np.sqrt(2 / i), 0.1 * jnp.ones(o))
        for key, i, o in zip(keys, widths[:-1], widths[1:], strict=False)
    ]


def dense_eigenvalues(kernel: path_kernel.PathKernel) -> Any:
    flat, unravel = ravel_pytree(kernel.params)
    columns = jax.vmap(lambda row: ravel_pytree(kernel.matvec(unravel(row)))[0])(jnp.eye(flat.size))
    return np.linalg.eigvalsh(np.asarray(columns))[::-1]


@pytest.fixture(scope="module")
def large() -> path_kernel.PathKernel:
    """More parameters than are decomposed densely."""
    params = parameters(9, 20, 20, 3)
    mask = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(0).random(leaf.shape) < 0.7), params)
    return path_kernel.path_kernel(mlp, params, jnp.ones((4, 9)), mask=mask)


@pytest.mark.parametrize("name", ["bias_free_mlp", "tied_square"])
def test_small_kernels_are_decomposed_exactly(name: str) -> None:
    network = models.build(name)
    kernel = path_kernel.path_kernel(network.apply, network.params, network.x)
    values, vectors = path_kernel.top_eigenpairs(kernel, 4, key=jax.random.key(0))
    twin = oracles.twin(models.listed(name), network.theta)
    np.testing.assert_allclose(values * jnp.exp(kernel.log_scale), np.linalg.eigvalsh(twin)[::-1][:4], rtol=EXACT)
    columns = jax.vmap(lambda tree: ravel_pytree(tree)[0])(vectors)
    scaled = values[:, None] * jnp.exp(kernel.log_scale) * columns
    np.testing.assert_allclose(columns @ twin, scaled, atol=1e-9 * float(jnp.max(jnp.abs(scaled))))


def test_lanczos_finds_the_largest_eigenpairs(large: path_kernel.PathKernel) -> None:
    values, vectors = jax.jit(lambda kernel, key: path_kernel.top_eigenpairs(kernel, 3, key=key))(
        large, jax.random.key(1)
    )
    np.testing.assert_allclose(values, dense_eigenvalues(large)[:3], rtol=1e-8)
    for i in range(3):
        vector = jax.tree.map(lambda leaf, i=i: leaf[i], vectors)
        product = ravel_pytree(large.matvec(vector))[0]
        np.testing.assert_allclose(product, values[i] * ravel_pytree(vector)[0], atol=1e-6 * values[0])


def test_density_integrates_to_the_trace(large: path_kernel.PathKernel) -> None:
    density = path_kernel.spectral_density(large, order=20, samples=30, key=jax.random.key(0))
    np.testing.assert_allclose(density.weights.sum(axis=1), 1.0, rtol=EXACT)
    kept = sum(int(leaf.sum()) for leaf in jax.tree.leaves(large.mask))
    estimates = (density.nodes * density.weights).sum(axis=1) * kept
    error = float(estimates.std(ddof=1) / np.sqrt(30))
    assert abs(float(estimates.mean()) - float(large.trace())) < 4 * error
    # one row is exact for every polynomial of degree below 2 · order on its own random vector
    assert float(density.nodes.max()) <= dense_eigenvalues(large)[0] * (1 + 1e-9)


def test_bias_free_mlp_loses_one_dimension_per_hidden_unit() -> None:
    network = models.build("bias_free_mlp")
    kernel = path_kernel.path_kernel(network.apply, network.params, network.x)
    eigenvalues = dense_eigenvalues(kernel)
    hidden = sum(leaf.shape[1] for leaf in jax.tree.leaves(network.params)[:-1])
    assert int(np.sum(eigenvalues > 1e-10 * eigenvalues[0])) == len(eigenvalues) - hidden


def test_rescaling_a_hidden_unit_changes_the_kernel_and_not_the_network() -> None:
    params = parameters(3, 4, 2)
    (first, bias), *rest = params
    rescaled = [(first * 3.0, bias * 3.0), (rest[0][0] / 3.0, rest[0][1])]
    x = jax.random.normal(jax.random.key(0), (5, 3))
    np.testing.assert_allclose(mlp(params, x), mlp(rescaled, x), rtol=EXACT)
    traces = [
        float(kernel.trace() * jnp.exp(kernel.log_scale))
        for kernel in (path_kernel.path_kernel(mlp, p, x) for p in (params, rescaled))
    ]
    assert abs(traces[0] / traces[1] - 1) > 0.1


def test_zero_last_layer_keeps_its_own_derivatives() -> None:
    params = parameters(3, 4, 2)
    params[-1] = (jnp.zeros_like(params[-1][0]), params[-1][1])
    kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 3)))
    (first, bias), _ = params
    mass = (jnp.square(first).sum(0) + jnp.square(bias)).sum() * 2  # two outputs
    np.testing.assert_allclose(kernel.trace() * jnp.exp(kernel.log_scale), mass, rtol=EXACT)


def linear(params: Any, x: Any) -> Any:
    return x @ params


@pytest.mark.parametrize("jit", [False, True])
def test_kernels_of_fewer_dimensions_than_steps_have_their_largest_eigenvalue(jit: bool) -> None:
    # G of a linear layer on ones is the identity: one step exhausts what a start can reach
    kernel = path_kernel.path_kernel(linear, jnp.ones((30, 20)), jnp.ones((1, 30)))
    find = lambda k: path_kernel.top_eigenpairs(k, 1, key=jax.random.key(0))  # noqa: E731
    values, vectors = (jax.jit(find) if jit else find)(kernel)
    np.testing.assert_allclose(values * jnp.exp(kernel.log_scale), 1.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(vectors**2), 1.0, rtol=1e-6)
    density = path_kernel.spectral_density(kernel, order=20, samples=3, key=jax.random.key(0))
    nodes = density.nodes * jnp.exp(density.log_scale)
    np.testing.assert_allclose((density.weights * nodes**2).sum(axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("kept", [0.02, 0.05])
def test_heavily_pruned_kernels_keep_their_largest_eigenvalue(dtype: Any, kept: float) -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters(64, 64, 64, 10))
    rng = np.random.default_rng(2)
    mask = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) < kept), params)
    find = lambda k: path_kernel.top_eigenpairs(k, 1, key=jax.random.key(0))[0]  # noqa: E731
    kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 64), dtype), mask=mask)
    exact = find(kernel)
    assert np.isfinite(exact).all()
    assert exact[0] > 0
    np.testing.assert_allclose(jax.jit(find)(kernel), exact, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 10**6])
def test_impossible_ranks_are_refused(large: path_kernel.PathKernel, rank: int) -> None:
    with pytest.raises(ValueError, match="`rank` must lie between 1 and the number of kept weights"):
        path_kernel.top_eigenpairs(large, rank, key=jax.random.key(0))


def test_a_mask_of_another_tree_is_refused() -> None:
    params = parameters(3, 4, 2)
    with pytest.raises(ValueError, match=r"`mask` must be a pytree of the same structure as `params`"):
        path_kernel.path_kernel(mlp, params, jnp.ones((1, 3)), mask={"a": True})
