"""Eigenpairs and spectral density against G formed in full."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import masks, path_kernel, scores
from pathjax._path_kernel import spectrum, twin

from .. import networks, oracles
from ..tolerances import (
    DIFFERENCES,
    EXACT,
    HALF_THE_DIGITS,
    ROUNDING,
    SINGLE,
    SINGLE_ROUNDING,
    STANDARD_ERRORS,
    SUMS,
)


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


@dataclasses.dataclass(frozen=True)
class Listed:
    """The paths of an `mlp` over kept weights, listed in NumPy: which weights are kept (p,), and ∂v/∂θ (k, p)."""

    kept: np.ndarray
    jacobian: np.ndarray

    @property
    def twin(self) -> np.ndarray:
        """G (kept, kept), without rows and columns for pruned weights."""
        columns = self.jacobian[:, self.kept]
        return columns.T @ columns

    @property
    def eigenvalues(self) -> np.ndarray:
        """All eigenvalues of G, descending, one for each kept weight."""
        return np.linalg.eigvalsh(self.twin)[::-1]


def raveled(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def list_paths(params: Any, mask: Any = None) -> Listed:
    theta = raveled(params).astype(np.float64)
    kept = np.ones(theta.size, bool) if mask is None else raveled(mask)
    leaves, start = [], 0
    for leaf in jax.tree.leaves(params):
        leaves.append(start + np.arange(leaf.size).reshape(leaf.shape))
        start += leaf.size
    graph = oracles.Graph()
    nodes = graph.inputs(leaves[0].shape[:1])
    for kernel, bias in zip(leaves[:-2:2], leaves[1:-2:2], strict=True):
        nodes = graph.relu(graph.dense(nodes, kernel, bias))
    graph.finish(graph.dense(nodes, leaves[-2]))  # `mlp` leaves the last bias out
    return Listed(kept, oracles.jacobian(oracles.paths(oracles.pruned(graph, kept)), theta, kept))


@jax.jit
def _all_products(kernel: path_kernel.PathKernel) -> Any:
    flat, unravel = ravel_pytree(kernel.params)
    return jax.vmap(lambda row: ravel_pytree(kernel.matvec(unravel(row)))[0])(jnp.eye(flat.size))


@pytest.fixture(scope="module")
def large() -> path_kernel.PathKernel:
    """More parameters than are decomposed densely."""
    params = parameters(9, 24, 24, 3)
    mask = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(0).random(leaf.shape) < 0.7), params)
    return path_kernel.path_kernel(mlp, params, jnp.ones((4, 9)), mask=mask)


@pytest.fixture(scope="module")
def listed(large: path_kernel.PathKernel) -> Listed:
    return list_paths(large.params, large.mask)


def test_products_with_the_large_kernel_are_those_of_listed_paths(
    large: path_kernel.PathKernel, listed: Listed
) -> None:
    exact = np.zeros((listed.kept.size, listed.kept.size))
    exact[np.ix_(listed.kept, listed.kept)] = listed.twin
    found = _all_products(large)
    np.testing.assert_allclose(found, exact, rtol=0, atol=EXACT * exact.max())


@pytest.mark.parametrize("name", ["bias_free_mlp", "tied_square"])
def test_small_kernels_are_decomposed_exactly(name: str) -> None:
    network = networks.build(name)
    kernel = path_kernel.path_kernel(network.apply, network.params, network.x)
    values, vectors, *_ = path_kernel.top_eigenpairs(kernel, 4, key=jax.random.key(0))
    twin = oracles.twin(networks.listed(name), network.theta)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(twin)[::-1][:4], rtol=EXACT)
    columns = jax.vmap(lambda tree: ravel_pytree(tree)[0])(vectors)
    scaled = values[:, None] * columns
    np.testing.assert_allclose(columns @ twin, scaled, rtol=0, atol=EXACT * float(jnp.max(jnp.abs(scaled))))


def test_lanczos_finds_the_largest_eigenpairs(large: path_kernel.PathKernel, listed: Listed) -> None:
    values, vectors, *_ = jax.jit(lambda kernel, key: path_kernel.top_eigenpairs(kernel, 3, key=key))(
        large, jax.random.key(1)
    )
    np.testing.assert_allclose(values, listed.eigenvalues[:3], rtol=EXACT)
    for i in range(3):
        vector = jax.tree.map(lambda leaf, i=i: leaf[i], vectors)
        product = ravel_pytree(large.matvec(vector))[0]
        # by the search's own tolerance, which eigenvalues surpass by far: their errors are of second order
        scaled = values[i] * ravel_pytree(vector)[0]
        np.testing.assert_allclose(product, scaled, rtol=0, atol=10 * HALF_THE_DIGITS * values[0])


def test_density_integrates_to_the_trace(large: path_kernel.PathKernel, listed: Listed) -> None:
    density = path_kernel.spectral_density(large, order=20, samples=30, key=jax.random.key(0))
    np.testing.assert_allclose(density.weights.sum(axis=1), 1.0, rtol=EXACT)
    estimates = (density.nodes * density.weights).sum(axis=1) * listed.kept.sum()
    error = estimates.std(ddof=1) / np.sqrt(30)
    np.testing.assert_allclose(large.trace(), np.trace(listed.twin), rtol=EXACT)
    assert abs(estimates.mean() - np.trace(listed.twin)) < STANDARD_ERRORS * error
    # one row is exact for every polynomial of degree below 2 · order on its own random vector
    assert density.nodes.max() <= listed.eigenvalues[0] * (1 + EXACT)


def test_bias_free_mlp_loses_one_dimension_per_hidden_unit() -> None:
    network = networks.build("bias_free_mlp")
    kernel = path_kernel.path_kernel(network.apply, network.params, network.x)
    eigenvalues = np.linalg.eigvalsh(np.asarray(_all_products(kernel)))[::-1]
    twin = oracles.twin(networks.listed("bias_free_mlp"), network.theta)
    exact = np.linalg.eigvalsh(twin)[::-1]
    np.testing.assert_allclose(eigenvalues, exact, rtol=0, atol=EXACT * exact[0])
    hidden = sum(leaf.shape[1] for leaf in jax.tree.leaves(network.params)[:-1])
    assert int(np.sum(eigenvalues > 1e-10 * eigenvalues[0])) == len(eigenvalues) - hidden


def test_rescaling_a_hidden_unit_changes_the_kernel_and_not_the_network() -> None:
    params = parameters(3, 4, 2)
    (first, bias), *rest = params
    rescaled = [(first * 3.0, bias * 3.0), (rest[0][0] / 3.0, rest[0][1])]
    x = jax.random.normal(jax.random.key(0), (5, 3))
    np.testing.assert_allclose(mlp(params, x), mlp(rescaled, x), rtol=EXACT)
    traces = [float(kernel.trace()) for kernel in (path_kernel.path_kernel(mlp, p, x) for p in (params, rescaled))]
    assert abs(traces[0] / traces[1] - 1) > 0.1


def test_zero_last_layer_keeps_its_own_derivatives() -> None:
    params = parameters(3, 4, 2)
    params[-1] = (jnp.zeros_like(params[-1][0]), params[-1][1])
    kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 3)))
    (first, bias), _ = params
    mass = (jnp.square(first).sum(0) + jnp.square(bias)).sum() * 2  # two outputs
    np.testing.assert_allclose(kernel.trace(), mass, rtol=EXACT)


def linear(params: Any, x: Any) -> Any:
    return x @ params


def sum_of_outputs(params: Any, x: Any) -> Any:
    return jnp.sum(x @ params, axis=1, keepdims=True)


@pytest.mark.parametrize("jit", [False, True])
def test_kernels_of_fewer_dimensions_than_steps_have_their_largest_eigenvalue(jit: bool) -> None:
    # G of a linear layer on ones is the identity: one step exhausts what a start can reach
    kernel = path_kernel.path_kernel(linear, jnp.ones((30, 20)), jnp.ones((1, 30)))
    find = lambda k: path_kernel.top_eigenpairs(k, 1, key=jax.random.key(0))  # noqa: E731
    values, vectors, *_ = (jax.jit(find) if jit else find)(kernel)
    np.testing.assert_allclose(values, 1.0, rtol=EXACT)
    np.testing.assert_allclose(jnp.sum(vectors**2), 1.0, rtol=EXACT)
    density = path_kernel.spectral_density(kernel, order=20, samples=3, key=jax.random.key(0))
    nodes = density.nodes
    np.testing.assert_allclose((density.weights * nodes**2).sum(axis=1), 1.0, rtol=EXACT)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("kept", [0.02, 0.05])
def test_heavily_pruned_kernels_keep_their_largest_eigenvalue(dtype: Any, kept: float) -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters(64, 64, 64, 10))
    rng = np.random.default_rng(2)
    mask = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) < kept), params)
    find = lambda k: path_kernel.top_eigenpairs(k, 1, key=jax.random.key(0))[0]  # noqa: E731
    kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 64), dtype), mask=mask)
    exact = list_paths(params, mask).eigenvalues[:1]
    for values in (find(kernel), jax.jit(find)(kernel)):
        np.testing.assert_allclose(values, exact, rtol=SINGLE_ROUNDING)


def test_many_pairs_of_a_pruned_kernel_stay_orthonormal_in_single_precision() -> None:
    """Ten outputs' biases alone give ten eigenvalues of 1, far above the others."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters(64, 100, 100, 10))
    mask = masks.from_scores(scores.magnitude(params), density=0.05, prunable=lambda path, leaf: True)
    kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 64), jnp.float32), mask=mask)
    values, vectors, *_ = path_kernel.top_eigenpairs(kernel, 24, key=jax.random.key(0))
    exact = list_paths(params, mask).eigenvalues
    np.testing.assert_allclose(values, exact[:24], rtol=0, atol=10 * SINGLE_ROUNDING * exact[0])
    rows = jax.vmap(lambda tree: ravel_pytree(tree)[0])(vectors)
    np.testing.assert_allclose(rows @ rows.T, np.eye(24), rtol=0, atol=2 * SINGLE_ROUNDING)
    products = jax.lax.map(lambda tree: ravel_pytree(kernel.matvec(tree))[0], vectors)
    assert np.linalg.norm(products - values[:, None] * rows, axis=1).max() <= 10 * SINGLE_ROUNDING * values[0]


@pytest.mark.parametrize("rank", [0, 10**6])
def test_impossible_ranks_are_refused(large: path_kernel.PathKernel, rank: int) -> None:
    with pytest.raises(ValueError, match="`rank` must lie between 1 and the number of kept weights"):
        path_kernel.top_eigenpairs(large, rank, key=jax.random.key(0))


def test_a_mask_of_another_tree_is_refused() -> None:
    params = parameters(3, 4, 2)
    with pytest.raises(ValueError, match=r"`mask` must be a pytree of the same structure as `params`"):
        path_kernel.path_kernel(mlp, params, jnp.ones((1, 3)), mask={"a": True})


# Restarts


def twice(params: Any, x: Any) -> Any:
    """Two networks side by side: with equal weights, every eigenvalue comes twice."""
    return jnp.concatenate([mlp(each, x) for each in params], axis=1)


def assert_eigenpairs(kernel: path_kernel.PathKernel, values: Any, vectors: Any, tolerance: float) -> None:
    columns = np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(vectors), np.float64)
    products = np.asarray(jax.vmap(lambda tree: ravel_pytree(kernel.matvec(tree))[0])(vectors))
    np.testing.assert_allclose(columns @ columns.T, np.eye(len(columns)), rtol=0, atol=2 * tolerance)
    errors = np.linalg.norm(products - np.asarray(values)[:, None] * columns, axis=1)
    assert errors.max() <= 1.01 * tolerance * float(values[0])


def test_residuals_are_within_the_tolerance(large: path_kernel.PathKernel, listed: Listed) -> None:
    find = lambda: path_kernel.top_eigenpairs(large, 6, key=jax.random.key(1), tolerance=HALF_THE_DIGITS, order=8)  # noqa: E731
    values, vectors, *_ = find()
    assert_eigenpairs(large, values, vectors, HALF_THE_DIGITS)
    np.testing.assert_allclose(values, listed.eigenvalues[:6], rtol=EXACT)
    np.testing.assert_array_equal(values, find()[0])


@pytest.mark.parametrize("is_small", [True, False])
def test_residuals_are_those_of_products_with_the_kernel(large: path_kernel.PathKernel, is_small: bool) -> None:
    kernel = path_kernel.path_kernel(mlp, parameters(3, 4, 2), jnp.ones((1, 3))) if is_small else large
    asked = 1e-3
    pairs = path_kernel.top_eigenpairs(kernel, 4, key=jax.random.key(0), tolerance=asked)
    columns = jax.vmap(lambda tree: ravel_pytree(tree)[0])(pairs.eigenvectors)
    products = jax.vmap(lambda tree: ravel_pytree(kernel.matvec(tree))[0])(pairs.eigenvectors)
    errors = jnp.linalg.norm(products - pairs.eigenvalues[:, None] * columns, axis=1) / pairs.eigenvalues[0]
    # what rounding is, both ways of multiplication round in their own way
    np.testing.assert_allclose(pairs.residuals, errors, rtol=SINGLE_ROUNDING, atol=10 * ROUNDING)
    assert pairs.residuals.max() < (100 * ROUNDING if is_small else asked)
    assert is_small or pairs.residuals.max() > 1e-12


def test_repeated_eigenvalues_come_with_all_their_vectors() -> None:
    half = parameters(9, 16, 8, 3)
    kernel = path_kernel.path_kernel(twice, [half, half], jnp.ones((1, 9)))
    values, vectors, *_ = path_kernel.top_eigenpairs(kernel, 5, key=jax.random.key(2))
    exact = np.repeat(list_paths(half).eigenvalues, 2)
    np.testing.assert_allclose(values, exact[:5], rtol=EXACT)
    assert_eigenpairs(kernel, values, vectors, 10 * HALF_THE_DIGITS)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_each_unit_of_the_last_hidden_layer_has_an_eigenvalue_as_often_as_there_are_other_outputs(
    pruned: bool, traced: bool
) -> None:
    params = parameters(9, 24, 24, 8)
    # eigenvalues of the last layer do not depend on its weights, and all others fall with them
    params[-1] = (0.2 * params[-1][0], params[-1][1])
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    if pruned:
        mask = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(0).random(leaf.shape) < 0.8), params)

    def find(params: Any, mask: Any) -> Any:
        kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 9)), mask=mask)
        return path_kernel.top_eigenpairs(kernel, 20, key=jax.random.key(0))

    pairs = (jax.jit(find) if traced else find)(params, mask)
    exact = list_paths(params, mask).eigenvalues
    assert np.sum(np.abs(np.diff(exact[:20])) < EXACT * exact[0]) >= 8
    np.testing.assert_allclose(pairs.eigenvalues, exact[:20], rtol=EXACT)
    kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 9)), mask=mask)
    assert_eigenpairs(kernel, pairs.eigenvalues, pairs.eigenvectors, 100 * HALF_THE_DIGITS)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outputs", [2, 4])
def test_a_direction_that_only_a_random_start_reaches_is_found_from_any_key(outputs: int, seed: int) -> None:
    # equal biases: signs are exactly at right angles to them for half of the keys, and then no product leads there
    first, second = parameters(20, 30, outputs)
    params = [(0.05 * first[0], 0 * first[1]), (0.05 * second[0], second[1])]

    def with_last_bias(params: Any, x: Any) -> Any:
        return mlp(params, x) + params[-1][1][None]

    kernel = path_kernel.path_kernel(with_last_bias, params, jnp.ones((1, 20)))
    found = path_kernel.top_eigenpairs(kernel, outputs, key=jax.random.key(seed)).eigenvalues
    np.testing.assert_allclose(found, np.ones(outputs), rtol=EXACT)


def test_a_small_layer_that_is_no_last_one_is_told_beside_a_large_one_that_is() -> None:
    """Weights of one size in each column, scaled by output: diag(G) is equal along rows, yet the rows are coupled."""
    rng = np.random.default_rng(1)
    signs = np.sign(rng.standard_normal((16, 2)))
    params = {
        "a1": np.full((3, 20_000), np.sqrt(0.001)),
        "a2": rng.standard_normal((20_000, 2)) * 1e-3 / np.sqrt(20_000),
        "w": 0.05 * signs / 4,
        "g": np.full(2, 0.05),
    }

    def net(p: Any, x: Any) -> Any:
        return jnp.maximum(x[:, :3] @ p["a1"], 0) @ p["a2"] + (x @ p["w"]) * p["g"][None]

    single = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()}
    kernel = twin.with_exponent(path_kernel.path_kernel(net, single, jnp.ones((1, 16), jnp.float32)))
    known = spectrum._known(kernel, 5)
    assert known is not None
    probe = known.probe(jax.random.normal(jax.random.key(0), (twin.size(kernel),), jnp.float32))
    parts = ravel_pytree(single)[1](probe)
    # the leaf that is no last layer has as much of the vector that checks as the one that is
    np.testing.assert_allclose([jnp.linalg.norm(parts[name]) for name in ("a2", "w")], [1, 1], rtol=SINGLE)


def test_constant_weights_do_not_make_hidden_layers_pass_for_the_last() -> None:
    """All entries of diag(G) in a hidden layer are equal here, and its width is the number of outputs."""
    params = [(jnp.ones((60, 8)), jnp.zeros(8)), (jnp.ones((8, 8)), jnp.zeros(8)), (jnp.ones((8, 8)), jnp.zeros(8))]
    kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 60)))
    pairs = path_kernel.top_eigenpairs(kernel, 12, key=jax.random.key(0))
    exact = list_paths(params).eigenvalues
    np.testing.assert_allclose(pairs.eigenvalues, exact[:12], rtol=0, atol=EXACT * exact[0])


def test_fewer_nonzero_eigenvalues_than_rank_are_followed_by_null_vectors() -> None:
    # of a linear layer on ones, only the weights to the chosen output move: an identity of 30 among 600
    kernel = path_kernel.path_kernel(linear, jnp.ones((30, 20)), jnp.ones((1, 30)), outputs=[3])
    values, vectors, *_ = path_kernel.top_eigenpairs(kernel, 33, key=jax.random.key(0), order=4)
    np.testing.assert_allclose(values, [1.0] * 30 + [0.0] * 3, rtol=0, atol=SUMS)
    assert_eigenpairs(kernel, values, vectors, SUMS)


@pytest.mark.parametrize("seed", range(3))
def test_a_kernel_of_zeros_has_zeros_for_eigenvalues_and_vectors_of_length_one(seed: int) -> None:
    dtype = jnp.float32
    params = jax.tree.map(lambda leaf: (0 * leaf).astype(dtype), parameters(20, 20, 20, 3))
    kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 20), dtype))
    values, vectors, residuals, _ = path_kernel.top_eigenpairs(kernel, 3, key=jax.random.key(seed))
    np.testing.assert_array_equal(values, 0.0)
    np.testing.assert_array_equal(residuals, 0.0)
    # a vector of random signs: its 860 equal squares, added one after another, would round to one side
    assert_eigenpairs(kernel, values, vectors, SINGLE_ROUNDING)


def test_a_missed_tolerance_is_said_in_numbers(large: path_kernel.PathKernel) -> None:
    with pytest.warns(UserWarning, match="after 1 rounds, the largest residual is") as said:
        values, vectors, *_ = path_kernel.top_eigenpairs(large, 4, key=jax.random.key(0), order=4, restarts=1)
    columns = jax.vmap(lambda tree: ravel_pytree(tree)[0])(vectors)
    products = jax.vmap(lambda tree: ravel_pytree(large.matvec(tree))[0])(vectors)
    missed = jnp.linalg.norm(products - values[:, None] * columns, axis=1).max() / values[0]
    assert f"is {float(missed):.2g} · λ_max" in str(said[0].message)
    # G is the identity, and of one output, so that no pair is known beforehand: each start gives one
    repeated = path_kernel.path_kernel(sum_of_outputs, jnp.ones((30, 20)), jnp.ones((1, 30)))
    with pytest.warns(UserWarning, match="2 of 5 eigenpairs were found"):
        path_kernel.top_eigenpairs(repeated, 5, key=jax.random.key(0), restarts=2)


def test_pairs_that_no_new_start_has_confirmed_are_said_to_be_so(large: path_kernel.PathKernel) -> None:
    with pytest.warns(UserWarning, match="within the tolerance, but no new start has confirmed"):
        path_kernel.top_eigenpairs(large, 2, key=jax.random.key(0), order=100, restarts=1)


def test_products_that_are_not_finite_give_no_eigenvalues(large: path_kernel.PathKernel) -> None:
    def find(params: Any) -> Any:
        kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 9)))
        return path_kernel.top_eigenpairs(kernel, 2, key=jax.random.key(0))[0]

    params = parameters(9, 24, 24, 3)
    both = [
        jax.tree.map(lambda leaf, value=value: leaf.at[(0,) * leaf.ndim].set(value), params) for value in (0.1, jnp.nan)
    ]
    found = jax.jit(jax.vmap(find))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *both))
    np.testing.assert_allclose(found[0], list_paths(both[0]).eigenvalues[:2], rtol=EXACT)
    assert np.isnan(found[1]).all()


def test_a_traced_mask_of_fewer_weights_than_rank_gives_zeros() -> None:
    params = parameters(20, 20, 20, 3)
    mask = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
    path = ((2, 4), (4, 0), (0, 1))
    mask = [(kernel.at[at].set(True), bias) for (kernel, bias), at in zip(mask, path, strict=True)]

    @jax.jit
    def find(mask: Any) -> Any:
        kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 20)), mask=mask)
        values, vectors, *_ = path_kernel.top_eigenpairs(kernel, 5, key=jax.random.key(0))
        return values, vectors

    values, vectors = find(mask)
    weights = [kernel[at] for (kernel, _), at in zip(params, path, strict=True)]
    top = sum(np.prod([w for w in weights if w is not left]) ** 2 for left in weights)  # one path, so rank 1
    np.testing.assert_allclose(values, [top, 0, 0, 0, 0], rtol=0, atol=SUMS * top)
    assert all(not np.asarray(leaf[3:]).any() for leaf in jax.tree.leaves(vectors))


def test_eigenvalues_have_their_derivative_and_eigenvectors_say_that_they_have_none() -> None:
    params = parameters(9, 20, 20, 3)

    def logarithm(params: Any) -> Any:
        kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 9)))
        pairs = path_kernel.top_eigenpairs(kernel, 1, key=jax.random.key(0), tolerance=EXACT)
        return pairs.log_eigenvalues[0]

    direction = jax.tree.map(jnp.cos, params)
    slope = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (jax.grad(logarithm)(params), direction))))  # noqa: B905
    moved = [jax.tree.map(lambda a, b, t=t: a + t * b, params, direction) for t in (-1e-6, 1e-6)]
    low, high = (np.log(list_paths(each).eigenvalues[0]) for each in moved)
    np.testing.assert_allclose(slope, (high - low) / 2e-6, rtol=DIFFERENCES)

    def coordinate(params: Any) -> Any:
        kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 9)))
        return path_kernel.top_eigenpairs(kernel, 1, key=jax.random.key(0))[1][0][0][0, 0, 0]

    assert np.isnan(jax.grad(coordinate)(params)[0][0]).all()


def test_seeds_can_be_mapped_over() -> None:
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, jnp.flip(leaf) * 1.5]), parameters(9, 20, 20, 3))

    def find(params: Any) -> Any:
        kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 9)))
        return path_kernel.top_eigenpairs(kernel, 2, key=jax.random.key(0))[0]

    both = jax.vmap(find)(stacked)
    for i in range(2):
        exact = list_paths(jax.tree.map(lambda leaf, i=i: leaf[i], stacked)).eigenvalues[:2]
        np.testing.assert_allclose(both[i], exact, rtol=EXACT)


# Functions of the spectrum


def test_rescaling_symmetries_are_the_null_space() -> None:
    network = networks.build("bias_free_mlp")
    kernel = path_kernel.path_kernel(network.apply, network.params, network.x)
    layers = [np.asarray(layer["w"]) for layer in network.params]
    symmetries = []
    for depth, kernel_in in enumerate(layers[:-1]):
        for unit in range(kernel_in.shape[1]):
            moved = [np.zeros_like(layer) for layer in layers]
            moved[depth][:, unit] = kernel_in[:, unit]
            moved[depth + 1][unit] = -layers[depth + 1][unit]
            symmetries.append(moved)
            product = kernel.matvec([{"w": jnp.asarray(layer)} for layer in moved])
            np.testing.assert_allclose(ravel_pytree(product)[0], 0.0, rtol=0, atol=SUMS * float(kernel.trace()))
    values, *_ = path_kernel.top_eigenpairs(kernel, sum(layer.size for layer in layers), key=jax.random.key(0))
    assert int(np.sum(values > 1e-10 * values[0])) == len(values) - len(symmetries)
    nonzero = np.asarray(values)[: len(values) - len(symmetries)]
    np.testing.assert_allclose(path_kernel.smallest(kernel, key=jax.random.key(0)), nonzero[-1], rtol=EXACT)


def test_estimates_are_within_their_error_bars(large: path_kernel.PathKernel, listed: Listed) -> None:
    true = np.maximum(listed.eigenvalues, 0)
    key = jax.random.key(4)
    assert true.size > 512
    determinant = jax.jit(lambda k: path_kernel.log_determinant(k, 0.5, key=key, order=30, samples=20))(large)
    rank = jax.jit(lambda k: path_kernel.effective_rank(k, key=key, samples=40))(large)
    for (value, error), exact, most in (
        (determinant, np.log(true + 0.5).sum(), 20.0),
        (rank, true.sum() ** 2 / np.sum(true**2), 10.0),
    ):
        assert abs(value - exact) < STANDARD_ERRORS * error
        assert 0 < error < most


def test_error_bars_are_as_long_as_estimates_scatter(large: path_kernel.PathKernel) -> None:
    moved = jax.tree.map(lambda leaf: leaf + 0.5 * jnp.cos(100 * leaf), large.params)

    @jax.jit
    def estimates(params: Any, other: Any, keys: Any) -> Any:
        kernels = [path_kernel.path_kernel(mlp, each, jnp.ones((1, 9))) for each in (params, other)]

        def of_key(key: Any) -> Any:
            return [
                path_kernel.effective_rank(kernels[0], key=key, samples=30),
                path_kernel.cosine(*kernels, key=key, samples=30),
                path_kernel.relative_change(*kernels, key=key, samples=30),
            ]

        return jax.lax.map(of_key, keys)

    for found in estimates(large.params, moved, jax.random.split(jax.random.key(5), 150)):
        error = 1 / np.sqrt(2 * 150)  # relative, of a standard deviation of 150 values
        np.testing.assert_allclose(found.standard_error.mean(), found.value.std(ddof=1), rtol=STANDARD_ERRORS * error)


def test_a_single_sample_has_no_error_bar(large: path_kernel.PathKernel, listed: Listed) -> None:
    value, error = path_kernel.effective_rank(large, key=jax.random.key(0), samples=1)
    exact = np.trace(listed.twin) ** 2 / np.sum(listed.twin**2)
    assert exact / 3 < value < 3 * exact
    assert np.isnan(error)


def bottleneck(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params[0]) @ params[1]


def test_condition_is_right_where_it_can_be_resolved_and_nan_elsewhere(large: path_kernel.PathKernel) -> None:
    # of one hidden unit with weights a in and b out, the eigenvalues are |a|² + |b|², |a|², |b|² and 0
    a, b = (jax.random.normal(jax.random.key(i), (300,)) * (i + 1) for i in range(2))
    kernel = path_kernel.path_kernel(bottleneck, [a[:, None], b[None]], jnp.ones((1, 300)))
    low, high = sorted([float(a @ a), float(b @ b)])
    find = lambda k, **options: path_kernel.condition_number(k, key=jax.random.key(0), **options)  # noqa: E731
    np.testing.assert_allclose(find(kernel), (low + high) / low, rtol=EXACT)
    smallest = path_kernel.smallest(kernel, key=jax.random.key(0))
    np.testing.assert_allclose(smallest, low, rtol=EXACT)
    assert np.isnan(jax.jit(lambda k: find(k, order=12))(large))


@pytest.mark.parametrize(("dtype", "constant"), [(jnp.float32, 1e-2), (jnp.float64, 1e-5)])
def test_small_eigenvalues_with_a_small_part_of_the_start_are_seen(dtype: Any, constant: float) -> None:
    """Eigenvalues 1, 600 times, and constant², 20 times; more weights than are decomposed densely."""
    params = {"w": jnp.ones((30, 20), dtype), "b": jnp.ones(20, dtype)}

    def apply(params: Any, x: Any) -> Any:
        return x @ params["w"] + (jnp.asarray(constant, dtype) * params["b"])[None]

    kernel = path_kernel.path_kernel(apply, params, jnp.ones((1, 30), dtype))
    found = path_kernel.condition_number(kernel, key=jax.random.key(0))
    # the small eigenvalues are a thousand roundings of the largest in float32, and a million in float64
    np.testing.assert_allclose(found, constant**-2, rtol=SINGLE)


# Memory and types


def test_memory_of_eigenpairs_is_within_its_bound() -> None:
    params = parameters(400, 400, 400, 3)
    kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 400)))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    order, rank, bytes_each = 12, 4, 8
    find = jax.jit(lambda k, key: path_kernel.top_eigenpairs(k, rank, key=key, order=order))
    product = jax.jit(lambda k: k.matvec(k.params))

    def vectors(lowered: Any) -> float:
        memory = lowered.compile().memory_analysis()
        return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / (bytes_each * size)

    stored, beside = vectors(find.lower(kernel, jax.random.key(0))), vectors(product.lower(kernel))
    assert order + rank < stored < order + 2 * rank + 15 + beside


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_widened_before_it_is_squared(dtype: Any) -> None:
    params = jax.tree.map(lambda leaf: (300 * leaf).astype(dtype), parameters(9, 8, 3))
    kernel = path_kernel.path_kernel(mlp, params, jnp.ones((1, 9), dtype))
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    reference = path_kernel.path_kernel(mlp, single, jnp.ones((1, 9), jnp.float32))
    found, expected = (path_kernel.top_eigenpairs(k, 3, key=jax.random.key(0))[0] for k in (kernel, reference))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=SINGLE_ROUNDING)
    np.testing.assert_allclose(kernel.trace(), reference.trace(), rtol=SINGLE_ROUNDING)
    np.testing.assert_allclose(found, list_paths(single).eigenvalues[:3], rtol=10 * SINGLE_ROUNDING)


def test_masks_that_are_not_boolean_are_refused() -> None:
    params = parameters(9, 8, 3)
    with pytest.raises(TypeError, match="`mask` must have boolean leaves"):
        path_kernel.path_kernel(mlp, params, jnp.ones((1, 9)), mask=jax.tree.map(jnp.ones_like, params))


# Comparisons


def test_cosine_is_within_its_error_bar_and_one_for_proportional_kernels(
    large: path_kernel.PathKernel, listed: Listed
) -> None:
    moved = jax.tree.map(lambda leaf: leaf + 0.5 * jnp.cos(100 * leaf), large.params)
    other = path_kernel.path_kernel(mlp, moved, jnp.ones((1, 9)), mask=large.mask)
    value, error = path_kernel.cosine(large, other, key=jax.random.key(0), samples=40)
    one, two = listed.jacobian, list_paths(moved, large.mask).jacobian
    inner, *squares = (np.sum((left.T @ right) ** 2) for left, right in ((one, two), (one, one), (two, two)))
    exact = inner / np.sqrt(squares[0] * squares[1])
    assert 0 < error < 0.1
    assert abs(value - exact) < STANDARD_ERRORS * error
    change, error = path_kernel.relative_change(large, other, key=jax.random.key(0), samples=40)
    assert 0 < error < 0.1 * change
    assert abs(change - np.sqrt((squares[0] - 2 * inner + squares[1]) / squares[0])) < STANDARD_ERRORS * error
    # a change whose square is no number of float32: v_p is of the twentieth degree
    chain = [jnp.full((20, 1, 1), size, jnp.float32) for size in (1.0, 4.0)]

    def product_of_all(weights: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, w: (h @ w, None), x, weights)[0]

    far = [path_kernel.path_kernel(product_of_all, each, jnp.ones((1, 1), jnp.float32)) for each in chain]
    change, _ = path_kernel.relative_change(*far, key=jax.random.key(0))
    np.testing.assert_allclose(change, 4.0**38, rtol=10 * SINGLE_ROUNDING)
    # v_p is homogeneous in the weights of a network without biases, so Π only changes its scale
    kernels = [
        path_kernel.path_kernel(bottleneck, [jnp.full((300, 1), size), jnp.full((1, 250), size)], jnp.ones((1, 300)))
        for size in (1.0, 3e-9)
    ]
    value, error = path_kernel.cosine(*kernels, key=jax.random.key(0), samples=3)
    np.testing.assert_allclose([value, error], [1.0, 0.0], rtol=0, atol=SUMS)


def test_comparison_is_blind_to_the_scale_of_hidden_units_only_through_paths() -> None:
    """Rescaling moves G and Π, and the two networks share their paths' values: the cosine says how much Π moved."""
    (first, bias), *rest = parameters(3, 4, 2)
    rescaled = [(first * 3.0, bias * 3.0), (rest[0][0] / 3.0, rest[0][1])]
    left, right = (path_kernel.path_kernel(mlp, p, jnp.ones((1, 3))) for p in ([(first, bias), *rest], rescaled))
    value, error = path_kernel.cosine(left, right, key=jax.random.key(0))
    one, two = (list_paths(p).jacobian for p in ([(first, bias), *rest], rescaled))
    inner, *squares = (np.sum((a.T @ b) ** 2) for a, b in ((one, two), (one, one), (two, two)))
    np.testing.assert_allclose(value, inner / np.sqrt(squares[0] * squares[1]), rtol=EXACT)
    assert 0.3 < value < 0.99
    assert error == 0
    np.testing.assert_allclose(path_kernel.cosine(right, left, key=jax.random.key(0)).value, value, rtol=EXACT)


def test_overlap_of_a_kernel_with_itself_is_one(large: path_kernel.PathKernel) -> None:
    pairs = path_kernel.top_eigenpairs(large, 4, key=jax.random.key(0), tolerance=1e-9)
    np.testing.assert_allclose(path_kernel.overlap(large, pairs, large, pairs), 1.0, rtol=EXACT)
    fewer = jax.tree.map(lambda leaf: leaf[:2], pairs)
    np.testing.assert_allclose(path_kernel.overlap(large, fewer, large, pairs), 1.0, rtol=EXACT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"apply": lambda p, x: mlp(p, x)}, "The two kernels are of different functions `apply`"),
        ({"outputs": [0]}, "The two kernels are of different outputs or shapes of inputs"),
        ({"params": parameters(3, 5, 2)}, r"`right.params` at \[0\]\[0\] has shape \(3, 5\)"),
    ],
)
def test_kernels_that_share_no_paths_are_not_compared(options: Any, words: str) -> None:
    arguments = {"apply": mlp, "params": parameters(3, 4, 2), "outputs": None}

    def kernel(apply: Any, params: Any, outputs: Any) -> path_kernel.PathKernel:
        return path_kernel.path_kernel(apply, params, jnp.ones((1, 3)), outputs=outputs)

    left, right = kernel(**arguments), kernel(**(arguments | options))
    with pytest.raises(ValueError, match=words):
        path_kernel.cosine(left, right, key=jax.random.key(0))


def test_kernels_of_different_states_are_not_compared() -> None:
    """A state is on the paths: with another one the products of two kernels are not those of either network."""

    def scaled(params: Any, state: Any, x: Any) -> Any:
        return mlp(params, x * state["scale"][None])

    def kernel(scale: float, count: int) -> path_kernel.PathKernel:
        state = {"scale": jnp.array([1.0, scale, 1.0]), "count": jnp.array(count), "key": jax.random.key(count)}
        return path_kernel.path_kernel(cast(Any, scaled), parameters(3, 4, 2), jnp.ones((1, 3)), state=state)

    same, other = kernel(2.0, 1), kernel(3.0, 0)
    key, pairs = jax.random.key(0), path_kernel.top_eigenpairs(same, 2, key=jax.random.key(0))
    # random keys and counters may differ
    np.testing.assert_allclose(path_kernel.cosine(kernel(2.0, 0), same, key=key).value, 1.0, rtol=EXACT)
    for compare in (
        lambda left, right: path_kernel.change_and_cosine(left, right, key=key),
        lambda left, right: path_kernel.overlap(left, pairs, right, pairs),
    ):
        with pytest.raises(ValueError, match="The two kernels are of different states"):
            compare(same, other)
        assert all(jnp.isnan(leaf) for leaf in jax.tree.leaves(jax.jit(compare)(same, other)))
        assert not any(jnp.isnan(leaf) for leaf in jax.tree.leaves(jax.jit(compare)(same, kernel(2.0, 0))))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda kernel, key: path_kernel.top_eigenpairs(kernel, 2, key=key, order=0), "`order` and `restarts` must be"),
        (lambda kernel, key: path_kernel.top_eigenpairs(kernel, 2, key=key, restarts=0), "`order` and `restarts` must"),
        (lambda kernel, key: path_kernel.log_determinant(kernel, 0.0, key=key), "`epsilon` must be positive, but is 0"),
        (lambda kernel, key: path_kernel.log_determinant(kernel, 1.0, key=key, order=0), "`order` must be at least 1"),
        (lambda kernel, key: path_kernel.effective_rank(kernel, key=key, samples=0), "`samples` must be at least 1"),
        (lambda kernel, key: path_kernel.smallest(kernel, key=key, order=-1), "`order` must be at least 1, but is -1"),
        (lambda kernel, key: path_kernel.cosine(kernel, kernel, key=key, samples=0), "`samples` must be at least 1"),
    ],
)
def test_impossible_options_are_refused(large: path_kernel.PathKernel, call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(large, jax.random.key(0))
