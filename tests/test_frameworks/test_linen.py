"""A user's script with Flax linen: prune at initialization, train with batch norm and dropout, evaluate, save, load."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from pathjax import masks, pruning, scores

from .another_process import read_in_another_process


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(3)(x)


def images(key):
    """60 images of three classes: a class is the third of the image that is brighter."""
    labels = jnp.arange(60) % 3
    stripes = jnp.repeat(jnp.eye(3)[labels], 2, axis=1)[:, :, None, None]
    return stripes + 0.3 * jax.random.normal(key, (60, 6, 6, 1)), labels


@pytest.mark.parametrize("method", ("synflow", "snip"))
def test_a_network_is_pruned_trained_saved_and_loaded(method, tmp_path):
    model = Net()
    x, y = images(jax.random.key(0))

    # init
    variables = model.init(jax.random.key(1), x)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}

    # prune, with batch norm in evaluation mode
    def apply(params, state, x):
        return model.apply({"params": params, **state}, x)

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

    def loss(params, state, key):
        logits, state = model.apply(
            {"params": params, **state}, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    @jax.jit
    def step(params, state, optimizer_state, key):
        gradient, state = jax.grad(loss, has_aux=True)(params, state, key)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), state, optimizer_state

    for key in jax.random.split(jax.random.key(2), 40):
        params, state, optimizer_state = step(params, state, optimizer_state, key)
        jax.tree.map(lambda leaf, kept: np.testing.assert_array_equal(leaf[~kept], 0.0), params, mask)

    # evaluate
    assert jnp.mean(apply(params, state, x).argmax(axis=1) == y) > 0.9

    # save, and load in another process
    masks.save(tmp_path / "mask.npz", mask)
    read = read_in_another_process(tmp_path, params)
    assert read == {"kept": round(0.2 * kernels), "pruned are 0": True}
