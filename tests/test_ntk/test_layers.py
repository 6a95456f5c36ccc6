"""Biases are rows of layers, dead weights have no part, and chunks may be held: the kernel is that of Jacobians."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import ntk
from pathjax._interpreter.traced import TracedNetwork
from pathjax._ntk import layerwise
from pathjax._ntk.uses import find

from .test_layerwise import assert_close, convolutions, jacobian, oracle, random_mask

SHAPES = {"w": (4, 6), "b": (6,), "v": (6, 2), "c": (2,), "s": ()}


def plain(params, x):
    return jax.nn.relu(x @ params["w"] + params["b"][None]) @ params["v"] + params["c"][None]


def scalar(params, x):
    """A bias that all outputs of a layer share, and one that is no leaf but computed from one."""
    return jax.nn.relu(x @ params["w"] + params["s"]) @ params["v"] + jnp.square(params["c"])[None]


def reused(params, x):
    """One bias of two layers."""
    hidden = jax.nn.relu(x @ params["w"] + params["b"][None])
    return jax.nn.relu(hidden @ (params["v"] @ params["v"].T) + params["b"][None]) @ params["v"]


def read_twice(params, x):
    """A layer whose result is read beside its bias too."""
    result = x @ params["w"]
    return (jax.nn.relu(result + params["b"][None]) + result) @ params["v"]


def read_first(params, x):
    """The same, where the bias is read before the result is."""
    result = x @ params["v"][:4]
    return jnp.concatenate([result + params["c"][None], result], axis=1)


def placewise(params, x):
    """A bias for each place of a layer with several, and one for each of its outputs."""
    places = x[:, :, None] * jnp.ones((1, 1, 2))
    a = jnp.einsum("ntk,kf->ntf", places, params["v"].T) + params["w"][None]
    return jax.nn.relu(jnp.einsum("ntf,fg->ntg", a, params["v"]) + params["c"][None, None]).sum(axis=1)


def transposed(params, x):
    """Outputs before places, and biases that are moved before they are added."""
    result = jnp.einsum("kf,nkt->nft", params["w"], x[:, :, None] * jnp.arange(1.0, 4)[None, None])
    return jnp.einsum("nft,fg->ng", jax.nn.relu(result + params["b"][None, ::-1, None]), params["v"])


NETWORKS = (plain, scalar, reused, read_twice, read_first, placewise, transposed)


def drawn(seed=0, n=5):
    draw = np.random.default_rng(seed).normal
    return {name: jnp.asarray(draw(size=shape)) for name, shape in SHAPES.items()}, jnp.asarray(draw(size=(n, 4)))


@pytest.mark.parametrize("mask", ["dense", "known", "traced"])
@pytest.mark.parametrize("apply", NETWORKS, ids=lambda apply: apply.__name__)
def test_every_bias_has_its_part(apply, mask):
    params, x = drawn()
    kept = None if mask == "dense" else random_mask(params, 0.6)
    rows = jacobian(apply, params, x, kept)
    if mask == "traced":
        kernel = jax.jit(lambda kept: ntk.empirical(apply, params, x, mask=kept))(kept)
    else:
        kernel = ntk.empirical(apply, params, x, mask=kept)
    assert_close(kernel, oracle(rows, rows))


@pytest.mark.parametrize(
    ("apply", "count"), [(plain, 2), (scalar, 2), (read_twice, 3), (read_first, 2), (placewise, 2), (transposed, 3)]
)
def test_biases_are_joined_to_the_layers_that_nothing_else_reads(apply, count):
    params, x = drawn()
    assert len(find(TracedNetwork(apply, params), params, x).by_step) == count


class Deep(nn.Module):
    """Four layers with biases, some with a strided convolution in front."""

    convolutional: bool = False

    @nn.compact
    def __call__(self, x):
        if self.convolutional:
            x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
            x = nn.avg_pool(nn.relu(nn.Conv(6, (3, 3), feature_group_count=2)(x)), (2, 2))
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(12)(x))
        return nn.Dense(3)(x)


@pytest.mark.parametrize("biases", [True, False], ids=["kept", "pruned"])
@pytest.mark.parametrize("density", [0.02, 0.08, 0.2])
@pytest.mark.parametrize("convolutional", [False, True])
def test_weights_that_lie_on_no_path_have_no_part(convolutional, density, biases):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 6, 1)))
    network = Deep(convolutional)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float) + 0.3, network.init(jax.random.key(0), x))
    mask = jax.tree.map(lambda leaf, keep: keep | (biases & (leaf.ndim == 1)), params, random_mask(params, density))
    rows = jacobian(network.apply, params, x, mask)
    assert_close(ntk.empirical(network.apply, params, x, mask=mask), oracle(rows, rows))


def test_a_derivative_rule_of_the_network_counts_and_not_its_paths():
    @jax.custom_jvp
    def straight(x):
        return 0 * x

    straight.defjvps(lambda tangent, result, x: tangent)

    def apply(params, x):
        return straight(jax.nn.relu(x @ params["w"]) @ params["v"])

    params, x = drawn()
    mask = {**random_mask(params, 0.9), "v": jnp.arange(12).reshape(6, 2) > 3}
    rows = jacobian(apply, params, x, mask)
    assert np.abs(rows).max() > 0
    assert_close(ntk.empirical(apply, params, x, mask=mask), oracle(rows, rows))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("held", [1, 2, 3, 7])
def test_any_number_of_chunks_may_be_held(held, batch_size, monkeypatch):
    monkeypatch.setattr(layerwise, "_held", lambda *_: held)
    apply, params, x = convolutions()
    x = jnp.concatenate([x, 2 * x])[:7]
    rows = jacobian(apply, params, x)
    kernel = jax.jit(lambda params: ntk.empirical(apply, params, x, batch_size=batch_size))(params)
    np.testing.assert_array_equal(kernel, kernel.transpose(1, 0, 3, 2))
    assert_close(kernel, oracle(rows, rows))
    two = jax.jit(lambda params: ntk.empirical(apply, params, x[:5], x, batch_size=batch_size))(params)
    assert_close(two, oracle(rows[:5], rows))
