"""Every score of a network against what it sums over listed paths, in plain NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import scores

from .. import networks, oracles
from ..tolerances import DIFFERENCES, EXACT

NAMES = ["biased_mlp", "leaky_mlp", "residual_dense", "linen_mlp", "batch_norm_dense", "max_pool"]


class Case:
    """A network, its paths with their values, and everything that a loss says of path values at labelled data."""

    def __init__(self, name: str, temperature: float = 1.0) -> None:
        network, self.paths = networks.build(name), networks.listed(name)
        self.network, self.theta, self.x = network, network.theta, network.x
        self.y = jnp.arange(len(network.x)) % network.apply(network.params, network.x).shape[1]
        self.uses = np.zeros((len(self.paths), len(self.theta)))
        for p, path in enumerate(self.paths):
            np.add.at(self.uses[p], list(path.weights), 1.0)
        self.values = oracles.values(self.paths, self.theta)
        self.jacobian = oracles.jacobian(self.paths, self.theta)
        # J_v f of the outputs over the temperature
        self.activations = oracles.activations(network.graph, self.paths, self.theta, np.asarray(self.x)) / temperature
        logits = self.activations @ self.values
        self.probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        self.probabilities /= self.probabilities.sum(axis=1, keepdims=True)
        self.n = len(self.x)

    @property
    def slopes(self) -> np.ndarray:
        """e_p = ∂L/∂v_p (k,)."""
        errors = (self.probabilities - np.eye(self.probabilities.shape[1])[np.asarray(self.y)]) / self.n
        return np.einsum("no,nok->k", errors, self.activations)

    def curvature(self, vector: np.ndarray) -> np.ndarray:
        """L'' w for a vector w over paths (k,)."""
        along = self.activations @ vector
        mean = (self.probabilities * along).sum(axis=1, keepdims=True)
        return np.einsum("no,nok->k", self.probabilities * (along - mean) / self.n, self.activations)


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def assert_equal(found: Any, expected: np.ndarray) -> None:
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(flat(found), expected, rtol=EXACT, atol=EXACT * np.abs(expected).max())


@pytest.mark.parametrize("name", [*NAMES, "tied_square"])
def test_snip_is_the_loss_along_the_paths_through_a_weight(name: str) -> None:
    case = Case(name)
    found = scores.snip(case.network.apply, case.network.params, [(case.x, case.y)])
    assert_equal(found, np.abs(case.uses.T @ (case.slopes * case.values)))


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("name", NAMES)
def test_grasp_is_the_change_of_the_gradients_norm_along_paths(name: str, temperature: float) -> None:
    case = Case(name, temperature)
    gradient = case.jacobian.T @ case.slopes
    moved = case.jacobian @ gradient
    expected = case.uses.T @ (case.values * case.curvature(moved) + case.slopes * moved) - gradient**2
    found = scores.grasp(case.network.apply, case.network.params, [(case.x, case.y)], temperature=temperature)
    assert_equal(found, expected)


def trace_shares(case: Case, mask: np.ndarray | None = None) -> np.ndarray:
    """Σ_{p∋i} Σ_{j∈p, j≠i} (∂v_p/∂θ_j)² over the sum of all, the derivatives by kept weights alone."""
    squares = oracles.jacobian(case.paths, case.theta, mask) ** 2
    return (case.uses.T @ squares.sum(axis=1) - (case.uses * squares).sum(axis=0)) / squares.sum()


@pytest.mark.parametrize("name", NAMES)
def test_path_kernel_trace_sums_the_other_derivatives_of_the_paths(name: str) -> None:
    case = Case(name)
    found = jax.jit(lambda params: scores.path_kernel_trace(case.network.apply, params, case.x))(case.network.params)
    assert_equal(found, trace_shares(case))


def test_path_kernel_trace_of_tied_weights_is_its_derivative() -> None:
    case, step = Case("tied_square"), 1e-6
    expected = np.zeros(len(case.theta))
    for i in range(len(expected)):
        ends = []
        for sign in (1, -1):
            theta = case.theta.copy()
            theta[i] += sign * step
            ends.append(np.log((oracles.jacobian(case.paths, theta) ** 2).sum()))
        expected[i] = case.theta[i] / 2 * (ends[0] - ends[1]) / (2 * step)
    found = scores.path_kernel_trace(case.network.apply, case.network.params, case.x)
    np.testing.assert_allclose(flat(found), expected, rtol=DIFFERENCES, atol=0.1 * DIFFERENCES)


@pytest.mark.parametrize("name", [*NAMES, "tied_square", "heads_of_unequal_width"])
def test_px_weighs_the_paths_to_an_output_by_the_data_that_reach_it(name: str) -> None:
    case = Case(name)
    reached = (case.activations**2).sum(axis=(0, 2))
    masses = case.values**2 * reached[[path.output for path in case.paths]]
    found = scores.px(case.network.apply, case.network.params, case.x)
    assert_equal(found, case.uses.T @ masses / masses.sum())
    split = scores.px(case.network.apply, case.network.params, iter([case.x[:1], case.x[1:]]), chunk=1)
    assert_equal(split, case.uses.T @ masses / masses.sum())


def test_px_and_the_trace_drop_pruned_weights_from_both_factors() -> None:
    case = Case("biased_mlp")
    params = case.network.params
    vector, unravel = ravel_pytree(params)
    kernels = flat(jax.tree.map(lambda leaf: jnp.full(leaf.shape, leaf.ndim >= 2), params))
    keep = (np.random.default_rng(1).random(len(vector)) < 0.7) | ~kernels
    masked = unravel(jnp.where(keep, vector, 0))
    mask = jax.tree.map(lambda leaf: leaf > 0, unravel(jnp.asarray(keep, vector.dtype)))

    alive = oracles.is_kept(case.paths, keep)
    activations = oracles.activations(case.network.graph, case.paths, case.theta, np.asarray(case.x), keep)
    reached = (activations**2 * alive).sum(axis=(0, 2))
    masses = oracles.values(case.paths, case.theta, keep) ** 2 * reached[[path.output for path in case.paths]]
    for options in ({}, {"mask": mask}):
        assert_equal(scores.px(case.network.apply, masked, case.x, **options), case.uses.T @ masses / masses.sum())
        found = scores.path_kernel_trace(case.network.apply, masked, case.x, **options)
        assert_equal(found, trace_shares(case, keep))
