"""A user's script with Equinox: prune at initialization, train with batch norm and dropout, evaluate, save, load."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathjax import masks, pruning, scores

from .another_process import read_in_another_process


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    pool: eqx.nn.AvgPool2d
    dropout: eqx.nn.Dropout
    output: eqx.nn.Linear

    def __init__(self, key):
        conv_key, output_key = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 8, 3, padding=1, key=conv_key)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.pool = eqx.nn.AvgPool2d(2, 2)
        self.dropout = eqx.nn.Dropout(0.2)
        self.output = eqx.nn.Linear(72, 3, key=output_key)

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.conv(x), state)
        x = self.pool(jax.nn.relu(x))
        return self.output(self.dropout(x.ravel(), key=key)), state


def images(key):
    """60 images of three classes: a class is the third of the image that is brighter."""
    labels = jnp.arange(60) % 3
    stripes = jnp.repeat(jnp.eye(3)[labels], 2, axis=1)[:, None, :, None]
    return stripes + 0.3 * jax.random.normal(key, (60, 1, 6, 6)), labels


def over_batch(model):
    """The model as a function of batches: one example, one key, and one state for all."""
    return jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))


@pytest.mark.parametrize("method", ("synflow", "snip"))
def test_a_network_is_pruned_trained_saved_and_loaded(method, tmp_path):
    x, y = images(jax.random.key(0))

    # init
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(1))

    # prune, with batch norm and dropout in evaluation mode
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(params, state, x):
        model = eqx.nn.inference_mode(eqx.combine(params, static))
        return over_batch(model)(x, state, None)[0]

    def score(params, key):
        if method == "synflow":
            return scores.synflow(apply, params, x, state=state)
        return scores.snip(apply, params, [(x, y)], state=state)

    rounds = 20 if method == "synflow" else 1
    mask = pruning.prune(score, params, density=0.2, rounds=rounds)
    kernels = 3 * 3 * 8 + 3 * 3 * 8 * 3
    assert int(masks.count(mask)) == round(0.2 * kernels)

    # train, with batch norm and dropout in training mode
    params = masks.apply_mask(mask, params)
    optimizer = masks.freeze(optax.adamw(0.02), mask)
    optimizer_state = optimizer.init(params)

    def loss(params, state, keys):
        logits, state = over_batch(eqx.combine(params, static))(x, state, keys)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    @eqx.filter_jit
    def step(params, state, optimizer_state, key):
        gradient, state = jax.grad(loss, has_aux=True)(params, state, jax.random.split(key, len(x)))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return eqx.apply_updates(params, updates), state, optimizer_state

    for key in jax.random.split(jax.random.key(2), 40):
        params, state, optimizer_state = step(params, state, optimizer_state, key)
        jax.tree.map(lambda leaf, kept: np.testing.assert_array_equal(leaf[~kept], 0.0), params, mask)

    # evaluate
    assert jnp.mean(apply(params, state, x).argmax(axis=1) == y) > 0.9

    # save, and load in another process
    masks.save(tmp_path / "mask.npz", mask)
    layers = {"conv": params.conv, "norm": params.norm, "output": params.output}
    weights = {name: {"weight": layer.weight, "bias": layer.bias} for name, layer in layers.items()}
    read = read_in_another_process(tmp_path, weights)
    assert read == {"kept": round(0.2 * kernels), "pruned are 0": True}
