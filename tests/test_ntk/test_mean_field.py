"""Expected kernels equal neural-tangents' at infinite width, and those written out neuron by neuron everywhere."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import ntk

from .. import expectations, networks, oracles
from ..tolerances import DIFFERENCES, EXACT, HALF_THE_DIGITS, INTEGRATED, SINGLE, STANDARD_ERRORS, SUMS

relu = jax.nn.relu
mean_field: Any = ntk.mean_field  # with a tangent kernel, unless it is left out
DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# Networks of the table that have no closed form; `test_mean_field_refusals.py` has the words.
REFUSED = {
    *("max_pool", "max_pool_overlapping_same", "max_pool_of_negatives", "max_pool_at_ties", "global_max_pool"),
    *("maxout", "maxout_at_ties", "parametric_relu", "moves", *networks.names("tied")),
}


def assert_close(ours, theirs, tolerance=EXACT):
    for one, other in zip(ours, theirs, strict=True):
        scale = max(1e-300, np.max(np.abs(other), initial=0.0))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


MORE = ("batch_norm_dense", "stacked_scan", "crelu")
SHORT = [name for name in (*networks.COVERING, *MORE) if name not in REFUSED]
NAMES = [
    name if name in SHORT else pytest.param(name, marks=pytest.mark.long)
    for name in networks.names()
    if name not in REFUSED
]


# Against kernels written out neuron by neuron


@pytest.mark.parametrize("name", NAMES)
def test_kernels_of_squared_weights_under_a_mask_are_those_written_out_neuron_by_neuron(name):
    network = networks.build(name)
    kept = np.random.default_rng(7).random(network.theta.size) < 0.67
    _, unravel = ravel_pytree(network.params)
    mask = jax.tree.map(lambda leaf: leaf > 0.5, unravel(jnp.asarray(kept, network.theta.dtype)))
    ours = mean_field(network.apply, network.params, network.x, mask=mask)
    theirs = expectations.Expectation(network.graph, network.theta**2, np.asarray(network.x), kept).kernels()
    # units with one input left have correlations of 1 up to rounding, where an integral over correlations is steep too
    assert_close(ours, theirs, INTEGRATED if name == "constants" else HALF_THE_DIGITS)


@pytest.mark.parametrize("name", ["biased_mlp", "leaky_mlp", "constants", "conv_groups", "average_pool"])
def test_one_moment_for_all_weights_of_a_leaf_and_two_batches(name):
    network = networks.build(name)
    moments = {id(leaf): 0.3 + 0.1 * i for i, leaf in enumerate(jax.tree.leaves(network.params))}
    numbers = jax.tree.map(lambda leaf: moments[id(leaf)], network.params)
    x1, x2 = network.x[:2], network.x[1:] + 0.1
    ours = mean_field(network.apply, network.params, x1, x2, second_moments=numbers)
    by_weight = np.concatenate([np.full(leaf.size, moments[id(leaf)]) for leaf in jax.tree.leaves(network.params)])
    whole = expectations.Expectation(network.graph, by_weight, np.concatenate([x1, x2])).kernels()
    assert_close(ours, [kernel[: len(x1), len(x1) :] for kernel in whole])


def test_gates_of_every_angle_between_two_inputs_pass_what_cho_and_saul_say():
    def apply(params, x):
        return relu(x @ params["first"]) @ params["second"]

    directions = np.concatenate([np.linspace(0, np.pi, 60), np.geomspace(1e-8, 1e-2, 4)])
    angles = np.abs(directions[:, None] - directions[None])
    lengths = np.geomspace(0.1, 10, len(directions))
    x = lengths[:, None] * np.stack([np.cos(directions), np.sin(directions)], axis=1)
    params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 1))}
    nngp, kernel = mean_field(apply, params, jnp.asarray(x), second_moments={"first": 1.0, "second": 1.0})
    products = lengths[:, None] * lengths[None]
    ramps = products * (np.sin(angles) + (np.pi - angles) * np.cos(angles)) / (2 * np.pi)
    opened = products * np.cos(angles) * (np.pi - angles) / (2 * np.pi)
    # relative to the lengths, as ramps of opposite inputs cancel; angles near 0 and π are half lost in their cosine
    np.testing.assert_allclose(nngp[..., 0] / products, 3 * ramps / products, rtol=0, atol=EXACT)
    wrong = np.abs(kernel[..., 0] - 3 * (ramps + opened)) / products
    is_lost = np.abs(np.sin(angles)) < 1e-3
    assert np.max(wrong[~is_lost]) < EXACT and np.max(wrong[is_lost]) < HALF_THE_DIGITS


def grouped(x):
    """Grouped convolutions, channels shuffled between them, an average pool before another layer and a shortcut."""
    h = nn.relu(nn.Conv(4, (2, 2), feature_group_count=2)(x))
    h = h.reshape(len(x), 4, 4, 2, 2).swapaxes(3, 4).reshape(len(x), 4, 4, 4)
    h = nn.avg_pool(nn.Conv(4, (1, 1), feature_group_count=2)(h), (2, 2), (2, 2))
    h = h + 0.5 * nn.Conv(4, (2, 2))(nn.relu(h))
    return nn.Dense(2)(nn.relu(h).mean((1, 2)))


def transposed(x):
    """A transposed convolution, batch norm and a sum over units."""
    h = nn.BatchNorm(use_running_average=True)(nn.ConvTranspose(3, (2, 2), (2, 2))(x))
    h = nn.relu(h).reshape(len(x), -1, 6).mean(2)
    return nn.Dense(2)(nn.relu(nn.Dense(5)(h)))


@pytest.mark.parametrize("body", [grouped, transposed])
def test_one_moment_for_all_weights_of_a_leaf_is_the_same_as_one_for_each(body):
    module = networks.Body(body)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    variables = module.init(jax.random.key(1), x)
    params, rest = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}

    def apply(params, x):
        return module.apply({"params": params, **rest}, x)

    numbers = ntk.second_moments(params, "he", bias=0.1)
    arrays = jax.tree.map(lambda number, leaf: jnp.full(leaf.shape, number), numbers, params)
    once = mean_field(apply, params, x, second_moments=numbers)
    assert_close(once, mean_field(apply, params, x, second_moments=arrays), SUMS)


def open_for_both(recursion, node):
    """E[max(a, 0) max(a', 0)] and the share of weights for which a neuron is positive at both examples."""
    value, share = expectations.rectified(recursion.pair(node, node).value, *[recursion.sides(node)] * 2)
    np.fill_diagonal(share, 0.5)
    return value, share


def test_the_kernel_is_the_sum_over_listed_paths_weighted_by_their_expected_gates():
    # of the two derivatives by a weight, the values before it are rectified together, and the gates behind it are open
    network = networks.build("bias_free_mlp")
    x, u = np.asarray(network.x), network.theta**2
    recursion = expectations.Expectation(network.graph, u, x)
    origins = {edge.gate: edge.origin for edges in network.graph.edges for edge in edges}
    total = np.zeros((len(x), len(x), len(network.graph.outputs)))
    for path in oracles.paths(network.graph):
        pairs = [(origins[gate], open_for_both(recursion, origins[gate])) for gate in path.gates]
        for place in range(len(path.weights)):
            factors = [before / recursion.pair(node, node).value for node, (before, _) in pairs[:place]]
            factors += [behind for _, (_, behind) in pairs[place:]]
            others = [u[j] for j in path.weights[:place] + path.weights[place + 1 :]]
            term = np.prod(others) * np.outer(x[:, path.source], x[:, path.source])
            total[:, :, path.output] += term * np.prod([np.ones_like(term), *factors], axis=0)
    assert_close([mean_field(network.apply, network.params, network.x).ntk], [total])


def test_the_oracle_of_two_gaussians_with_means_holds_on_samples():
    # the formula for two Gaussians with means has the only approximation: an integral over correlations
    rng = np.random.default_rng(0)
    left, right = (expectations.Sides(rng.normal(size=5), rng.uniform(0.5, 2, 5)) for _ in range(2))
    covariance = np.outer(left.deviation, right.deviation) * rng.uniform(-0.99, 0.99, (5, 5))
    value, share = expectations.rectified(covariance, left, right)
    standard = rng.normal(size=(2, 400_000))
    rho = covariance[1, 2] / (left.deviation[1] * right.deviation[2])
    a = left.mean[1] + left.deviation[1] * standard[0]
    b = right.mean[2] + right.deviation[2] * (rho * standard[0] + np.sqrt(1 - rho**2) * standard[1])
    for samples, expected in (((a > 0) & (b > 0), share[1, 2]), (np.maximum(a, 0) * np.maximum(b, 0), value[1, 2])):
        error = np.std(samples) / np.sqrt(len(a))
        assert abs(np.mean(samples) - expected) < STANDARD_ERRORS * error


# Against neural-tangents


DENSE = {"W_std": 1.4, "b_std": 0.3, "parameterization": "standard"}


def initial(params):
    """The second moments of `DENSE`."""
    return jax.tree.map(lambda leaf: 0.09 if leaf.ndim < 2 else 1.96 / np.prod(leaf.shape[:-1]), params)


def layer(*shape):
    return jnp.ones(shape), jnp.ones(shape[-1])


def conv(x, weights, stride=1, padding="SAME"):
    kernel, bias = weights
    result = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=DIMENSIONS)
    return result + bias[None, None, None]


def dense(x, weights):
    return x @ weights[0] + weights[1][None]


def fully_connected():
    stax = ntk.neural_tangents().stax
    widths = (7, 20, 30, 2)
    layers = [piece for width in widths[1:] for piece in (stax.Dense(width, **DENSE), stax.Relu())][:-1]

    def apply(params, x):
        *hidden, last = params
        for weights in hidden:
            x = relu(dense(x, weights))
        return dense(x, last)

    params = [layer(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    return stax.serial(*layers)[2], apply, params, (7,)


def flattened():
    stax = ntk.neural_tangents().stax
    layers = [
        stax.Conv(5, (3, 3), (2, 2), "SAME", **DENSE),
        stax.LeakyRelu(0.1),
        stax.Conv(6, (2, 2), padding="VALID", **DENSE),
        stax.Abs(),
        stax.Flatten(),
        stax.Dense(2, **DENSE),
    ]

    def apply(params, x):
        x = jax.nn.leaky_relu(conv(x, params[0], 2), 0.1)
        x = jnp.abs(conv(x, params[1], 1, "VALID"))
        return dense(x.reshape(len(x), -1), params[2])

    return stax.serial(*layers)[2], apply, [layer(3, 3, 2, 5), layer(2, 2, 5, 6), layer(6 * 2, 2)], (5, 4, 2)


def residual():
    stax = ntk.neural_tangents().stax
    block = stax.serial(stax.Relu(), stax.Conv(4, (3, 3), padding="SAME", **DENSE))
    layers = [
        stax.Conv(4, (3, 3), padding="SAME", **DENSE),
        stax.FanOut(2),
        stax.parallel(block, stax.Identity()),
        stax.FanInSum(),
        stax.Relu(),
        stax.GlobalAvgPool(),
        stax.Dense(2, **DENSE),
    ]

    def apply(params, x):
        x = conv(x, params[0])
        x = relu(x + conv(relu(x), params[1]))
        return dense(x.mean((1, 2)), params[2])

    return stax.serial(*layers)[2], apply, [layer(3, 3, 1, 4), layer(3, 3, 4, 4), layer(4, 2)], (3, 3, 1)


@pytest.mark.filterwarnings("ignore:`FanIn` layers assume")
@pytest.mark.parametrize("twin", [fully_connected, flattened, residual])
def test_kernels_equal_those_of_neural_tangents(twin):
    kernel_fn, apply, params, shape = twin()
    x = jax.random.normal(jax.random.key(0), (7, *shape))
    x1, x2 = x[:4], x[4:]
    two = mean_field(apply, params, x1, x2, second_moments=initial(params))
    theirs = kernel_fn(x1, x2, get=("nngp", "ntk"))
    assert_close([kernel[..., 0] for kernel in two], theirs)
    np.testing.assert_allclose(two.ntk[..., 0], two.ntk[..., 1], rtol=SUMS)
    whole = mean_field(apply, params, x, second_moments=initial(params))
    assert_close([kernel[:4, 4:, 0] for kernel in whole], theirs)
    # at correlation 1 neural-tangents' angle has half of the digits, ours is 0
    own = kernel_fn(x1, None, get=("nngp", "ntk"))
    assert_close([kernel[:4, :4, 0] for kernel in whole], own, HALF_THE_DIGITS)


def test_an_example_with_itself_has_its_closed_form():
    _, apply, params, shape = fully_connected()
    x = jax.random.normal(jax.random.key(0), (3, *shape))
    ours = mean_field(apply, params, x, second_moments=initial(params))
    squares, tangents = jnp.sum(x**2, axis=1), jnp.zeros(3)  # sums over the inputs of a layer
    for kernel, _ in params:
        u, outputs = 1.96 / kernel.shape[0], kernel.shape[1]
        nngp, tangent = u * squares + 0.09, u * tangents + squares + 1
        squares, tangents = outputs * nngp / 2, outputs * tangent / 2
    np.testing.assert_allclose(jnp.diagonal(ours.nngp[..., 0]), nngp, rtol=SUMS)
    np.testing.assert_allclose(jnp.diagonal(ours.ntk[..., 0]), tangent, rtol=SUMS)


# Transformations


@cache
def small():
    network = networks.build("biased_mlp")
    moments = jax.tree.map(jnp.square, network.params)
    return network, moments


def test_kernels_are_jitted_and_vmapped_over_seeds_of_second_moments():
    network, moments = small()
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), moments)

    def kernel(moments):
        return mean_field(network.apply, network.params, network.x, second_moments=moments)

    together = jax.jit(jax.vmap(kernel))(stacked)
    for seed in (0, 1):
        assert_close([part[seed] for part in together], kernel(jax.tree.map(lambda leaf: leaf[seed], stacked)), SUMS)  # noqa: B023


@pytest.mark.parametrize("name", ["biased_mlp", "constants"])
def test_derivatives_in_the_second_moments_are_those_of_differences_also_where_inputs_are_equal(name):
    network = networks.build(name)
    x = jnp.concatenate([network.x, network.x[:1]])  # two equal examples
    moments, unravel = ravel_pytree(jax.tree.map(jnp.square, network.params))
    weights = jnp.cos(jnp.arange(float(len(x)) ** 2)).reshape(len(x), len(x), 1)

    def total(flat):
        found = mean_field(network.apply, network.params, x, second_moments=unravel(flat))
        return jnp.sum(weights * found.nngp) + jnp.sum(jnp.diagonal(found.ntk)) + jnp.sum(found.ntk[0, 1:-1])

    slope = jax.jit(jax.grad(total))(moments)
    direction, step = moments * jnp.sin(3.0 * jnp.arange(moments.size)), 1e-5
    ahead, behind = (total(moments + sign * step * direction) for sign in (1, -1))
    np.testing.assert_allclose(jnp.vdot(slope, direction), (ahead - behind) / (2 * step), rtol=10 * DIFFERENCES)


def test_derivatives_at_two_batches_with_an_example_in_common_are_finite():
    network, moments = small()
    slopes = jax.grad(
        lambda moments: mean_field(network.apply, network.params, network.x, network.x, second_moments=moments)
        .ntk.sum()
    )(moments)  # fmt: skip
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(slopes))


def test_float32_keeps_its_digits():
    network, _ = small()
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network.params)
    ours = mean_field(network.apply, single, network.x.astype(jnp.float32))
    assert ours.ntk.dtype == jnp.float32
    assert_close(ours, mean_field(network.apply, network.params, network.x), SINGLE)


# Options


def test_chunks_of_examples_change_nothing_but_rounding():
    network, _ = small()
    whole = mean_field(network.apply, network.params, network.x)
    assert_close(mean_field(network.apply, network.params, network.x, batch_size=2), whole, SUMS)
    two = mean_field(network.apply, network.params, network.x, network.x[:2] + 1, batch_size=2)
    assert_close(two, mean_field(network.apply, network.params, network.x, network.x[:2] + 1), SUMS)


def test_the_process_alone_and_the_trace():
    network, _ = small()
    both = mean_field(network.apply, network.params, network.x)
    alone = mean_field(network.apply, network.params, network.x, which="nngp")
    assert alone.ntk is None
    n, o = len(network.x), both.nngp.shape[2]
    assert repr(both) == f"MeanField(n={n}, m={n}, o={o})" and repr(alone).endswith("nngp alone)")
    np.testing.assert_allclose(alone.nngp, both.nngp, rtol=SUMS)
    trace = ntk.mean_field_trace(network.apply, network.params, network.x)
    np.testing.assert_allclose(trace, both.ntk.sum(2), rtol=SUMS)


def test_a_state_is_that_of_running_statistics():
    params = {"in": jnp.ones((3, 5)), "out": jnp.ones((5, 2))}
    x = jax.random.normal(jax.random.key(0), (4, 3))

    def normed(params, state, x):
        h = (x @ params["in"] - state["mean"][None]) / jnp.sqrt(state["var"][None])
        return relu(h) @ params["out"]

    plain = mean_field(lambda params, x: relu(x @ params["in"]) @ params["out"], params, x)
    neutral = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    assert_close(mean_field(normed, params, x, state=neutral), plain, HALF_THE_DIGITS)
    # means many deviations above 0 open every gate, so that the network is affine
    above = {"mean": jnp.full(5, -100.0), "var": jnp.full(5, 4.0)}
    nngp, tangent = mean_field(normed, params, x, state=above)
    gram = x @ x.T
    np.testing.assert_allclose(nngp[..., 0], 5 * (gram / 4 + 50.0**2), rtol=INTEGRATED)
    np.testing.assert_allclose(tangent[..., 0], 5 * (gram / 4 + 50.0**2 + gram / 4), rtol=INTEGRATED)


def test_memory_is_told_before_it_is_taken(monkeypatch):
    from pathjax._ntk import memory

    network, _ = small()
    monkeypatch.setattr(memory, "available", lambda: 4_000_000)
    with pytest.raises(MemoryError, match="batch_size="):
        inspect.unwrap(ntk.mean_field)(network.apply, network.params, jnp.ones((200, network.x.shape[1])))


# Second moments of initializations


def test_second_moments_of_initializations():
    params = {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8), "scale": jnp.ones(8)}
    into, out = 36, 72
    expected = {"lecun": 1 / into, "he": 2 / into, "glorot": 2 / (into + out), "orthogonal": 1 / out, "ntk": 1.0}
    for init, moment in expected.items():
        moments = ntk.second_moments(params, init, bias=0.25)
        np.testing.assert_allclose(moments["kernel"], moment, rtol=SUMS)
        assert (moments["bias"], moments["scale"]) == (0.25, 1.0)
    other = ntk.second_moments({"kernel": jnp.ones((8, 4, 3, 3))}, "he", in_axis=1, out_axis=0, scale=0.5)
    np.testing.assert_allclose(other["kernel"], 1 / into, rtol=SUMS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("c", [0.1, 1e-5, 0.0])
def test_collinear_examples_behind_a_shifted_gate_have_a_kernel(dtype, c):
    def apply(params, x):
        shortcut = relu(x @ params["a"])
        return relu(shortcut + shortcut @ params["c"]) @ params["d"]

    params = {name: jnp.ones((1, 1), dtype) for name in "acd"}
    kernels = ntk.mean_field(
        apply, params, jnp.array([[1.0], [1.0], [2.0]], dtype), second_moments={"a": 1.0, "c": c, "d": 1.0}
    )
    for kernel in kernels:
        assert kernel is not None
        lengths = jnp.array([1.0, 1.0, 2.0])
        np.testing.assert_allclose(kernel[..., 0], kernel[0, 0, 0] * jnp.outer(lengths, lengths), rtol=SINGLE)
