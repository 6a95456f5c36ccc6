"""The oracle held to independent truth: JAX's own outputs and derivatives, and closed forms."""

from __future__ import annotations

import ast
from functools import cache
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from . import oracles
from .networks import build, listed, names
from .oracles import Graph
from .tolerances import SUMS

SEEDS = (0, 1)
every_network = pytest.mark.parametrize("name", names())
every_seed = pytest.mark.parametrize("seed", SEEDS)


def assert_close(actual, expected, tolerance):
    """Equal up to `tolerance`, relative to the largest entry."""
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@cache
def reference(name, seed=0):
    """JAX's outputs (n, o) and their derivative (n, o, p), as a compiled function of raveled parameters and x."""
    net = build(name, seed)
    _, unravel = ravel_pytree(net.params)

    def apply(theta, x):
        return net.apply(unravel(theta), x)

    both = jax.jit(lambda theta, x: (apply(theta, x), jax.jacobian(apply)(theta, x)))
    return lambda theta, x: jax.tree.map(np.asarray, both(theta, x))


def random_mask(net, seed):
    return np.random.default_rng(seed).random(net.theta.size) < 0.7


@every_network
@every_seed
def test_paths_recompose_outputs_derivative_and_kernel(name, seed):
    """Σ_p v_p a_p x_s = f, J_v f · J_θ v = J_θ f and J_v f · Π · (J_v f)ᵀ = J_θ f (J_θ f)ᵀ."""
    net, paths = build(name, seed), listed(name, seed)
    x = np.asarray(net.x)
    outputs, derivative = reference(name, seed)(net.theta, x)
    a = oracles.activations(net.graph, paths, net.theta, x)
    assert_close(oracles.outputs(net.graph, net.theta, x), outputs, SUMS)
    assert_close(a @ oracles.values(paths, net.theta), outputs, SUMS)
    assert_close(a @ oracles.jacobian(paths, net.theta), derivative, SUMS)
    kernel = oracles.neural_tangent_kernel(net.graph, paths, net.theta, x)
    assert_close(kernel, np.einsum("nop,mqp->nmoq", derivative, derivative), SUMS)


@every_network
def test_masked_paths_are_those_of_the_masked_network(name):
    net, paths = build(name), listed(name)
    x, mask = np.asarray(net.x), random_mask(net, 0)
    outputs, derivative = reference(name)(net.theta * mask, x)
    a = oracles.activations(net.graph, paths, net.theta, x, mask)
    assert_close(a @ oracles.values(paths, net.theta, mask), outputs, SUMS)
    assert_close(a @ oracles.jacobian(paths, net.theta, mask), derivative * mask, SUMS)
    alive = [path for path, keep in zip(paths, oracles.is_kept(paths, mask), strict=True) if keep]
    assert oracles.path_count(paths, mask) == len(alive)
    for q in (0, 1, 2):
        assert oracles.path_norm(paths, net.theta, q, mask) == pytest.approx(
            oracles.path_norm(alive, net.theta, q), rel=SUMS
        )


@pytest.mark.parametrize("name", names("monotone"))
def test_open_path_sum_is_a_forward_pass_on_powers(name):
    """Where positive weights and inputs open every gate, the sum is the network itself on powers."""
    net, paths = build(name), listed(name)
    x, mask = np.asarray(net.x), random_mask(net, 1)
    for q in (1, 2):
        power, _ = reference(name)(np.abs(net.theta * mask) ** q, np.abs(x) ** q)
        assert_close(oracles.path_sum(net.graph, paths, net.theta, x, q=q, mask=mask), power, SUMS)
    count, _ = reference(name)(1.0 * mask, np.ones_like(x))
    assert_close(oracles.path_sum(net.graph, paths, net.theta, x, q=0, mask=mask), count, 0)
    assert oracles.path_count(paths, mask) == count[0].sum()


@every_network
def test_path_jacobian_obeys_euler_and_finite_differences(name):
    """Σ_i θ_i ∂v_p/∂θ_i counts the weights on p; complex steps give single columns, zero and tied weights included."""
    net, paths = build(name), listed(name)
    jacobian = oracles.jacobian(paths, net.theta)
    lengths = np.array([len(path.weights) for path in paths])
    assert_close(jacobian @ net.theta, lengths * oracles.values(paths, net.theta), SUMS)
    for i in (0, net.theta.size // 2, net.theta.size - 1):
        step = net.theta + 1e-30j * (np.arange(net.theta.size) == i)
        assert_close(jacobian[:, i], np.imag(oracles.values(paths, step)) / 1e-30, SUMS)


@every_network
def test_twin_and_path_kernel_share_trace_and_squares(name):
    net = build(name)
    kernel, twin = oracles.path_kernel(listed(name), net.theta), oracles.twin(listed(name), net.theta)
    assert np.trace(twin) == pytest.approx(np.trace(kernel), rel=SUMS)
    assert (twin**2).sum() == pytest.approx((kernel**2).sum(), rel=SUMS)


@every_network
def test_path_mass_is_the_derivative_of_the_log_norm(name):
    """Σ_{p∋i} n_ip |v_p|^q = |θ_i|^q ∂R_q/∂|θ_i|^q, by a complex step."""
    net, paths = build(name), listed(name)
    mass = oracles.path_mass(paths, net.theta, 2)
    for i in (0, net.theta.size // 2, net.theta.size - 1):
        u = net.theta**2 * np.exp(1e-30j * (np.arange(net.theta.size) == i))
        norm = sum(path.coefficient**2 * np.prod([u[j] for j in path.weights]) for path in paths)
        assert_close(mass[i], np.imag(norm) / 1e-30, SUMS)


@pytest.mark.parametrize(
    ("name", "widths", "bias"),
    [
        ("bias_free_mlp", (4, 5, 3, 2), False),
        ("biased_mlp", (3, 4, 3, 2), True),
        ("linen_mlp", (3, 4, 3, 2), True),
        ("one_layer", (4, 3), False),
        ("one_output", (3, 4, 1), True),
        ("one_hidden_unit", (3, 1, 2), True),
        ("deep_narrow_mlp", (2,) * 7, False),
    ],
)
def test_mlp_path_count_is_the_product_of_widths_plus_bias_paths(name, widths, bias):
    count = prod(widths) + bias * sum(prod(widths[depth:]) for depth in range(1, len(widths)))
    assert len(listed(name)) == oracles.path_count(listed(name)) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("max_pool", 7 * 7 * 2 * 2 + 4 * 4 * 2 * 2 + 2),
        ("crelu", (3 + 1) * 8 * 2),
        ("maxout", 6 * (3 + 1) * 2),
        ("parametric_relu", 2 * (1 + 4 * 2 * (1 + 3 * 2 * (1 + 3)))),
        ("absolute_value", 6 * (3 + 1) * 2),
    ],
)
def test_open_gates_count_every_rival_and_both_slopes(name, count):
    assert len(listed(name)) == count


def test_rank_of_twin_is_weights_less_hidden_units():
    net = build("bias_free_mlp")
    assert np.linalg.matrix_rank(oracles.twin(listed(net.name), net.theta)) == net.theta.size - (5 + 3)


def test_data_gram_of_one_hidden_layer_counts_units_open_on_both():
    net = build("nnx_mlp")
    bare = [path for path in listed(net.name) if path.source != oracles.ONE]
    x1, x2 = np.asarray(net.x), np.asarray(net.x)[:2] + 0.5
    kernel, bias = np.asarray(net.params["first"]["kernel"][...]), np.asarray(net.params["first"]["bias"][...])
    both = ((x1 @ kernel + bias > 0)[:, None] & (x2 @ kernel + bias > 0)[None]).sum(-1)
    gram = oracles.data_gram(net.graph, bare, net.theta, x1, x2)
    for output in range(2):
        assert_close(gram[..., output], (x1 @ x2.T) * both, SUMS)


def test_data_gates_of_a_relu_network_select_paths():
    net, paths = build("biased_mlp"), listed("biased_mlp")
    x = np.asarray(net.x)
    a = oracles.activations(net.graph, paths, net.theta, x)
    total = oracles.path_sum(net.graph, paths, net.theta, x, q=2, gates="data")
    assert_close(total, a**2 @ oracles.values(paths, net.theta) ** 2, SUMS)


def test_padding_gives_no_neuron_and_no_path():
    graph = Graph()
    graph.finish(oracles.pad(graph.inputs((2,)), [(1, 1)]))
    paths = oracles.paths(graph)
    assert [(path.source, path.output) for path in paths] == [(0, 1), (1, 2)]
    np.testing.assert_array_equal(oracles.outputs(graph, np.zeros(0), np.ones((1, 2))), [[0, 1, 1, 0]])


def test_oracle_imports_neither_jax_nor_the_library():
    tree = ast.parse(Path(oracles.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "collections.abc", "math", "numpy", "typing"}


@every_network
def test_table_is_float64_and_small(name):
    net = build(name)
    leaves = [*jax.tree.leaves(net.params), net.x]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float64")}
    assert 0 < len(listed(name)) <= 2_000
    np.testing.assert_array_equal(net.theta, ravel_pytree(net.params)[0])
