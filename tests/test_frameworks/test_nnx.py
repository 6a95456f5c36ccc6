"""A user's script with Flax NNX: prune at initialization, train with batch norm and dropout, evaluate, save, load."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pathjax import masks, pruning, scores

from .another_process import read_in_another_process


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.output = nnx.Linear(72, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        return self.output(self.dropout(x.reshape(len(x), -1)))


def images(key):
    """60 images of three classes: a class is the third of the image that is brighter."""
    labels = jnp.arange(60) % 3
    stripes = jnp.repeat(jnp.eye(3)[labels], 2, axis=1)[:, :, None, None]
    return jnp.asarray(stripes + 0.3 * jax.random.normal(key, (60, 6, 6, 1)), jnp.float32), labels


@pytest.mark.parametrize("method", ("synflow", "snip"))
def test_a_network_is_pruned_trained_saved_and_loaded(method, tmp_path):
    x, y = images(jax.random.key(0))

    # init
    model = Net(nnx.Rngs(params=1, dropout=2))

    # prune, with batch norm and dropout in evaluation mode
    model.eval()
    graphdef, params, state = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

    def apply(params, state, x):
        return nnx.merge(graphdef, params, state)(x)

    def score(params, key):
        if method == "synflow":
            return scores.synflow(apply, params, x, state=state)
        return scores.snip(apply, params, [(x, y)], state=state)

    rounds = 20 if method == "synflow" else 1
    mask = pruning.prune(score, params, density=0.2, rounds=rounds)
    kernels = 3 * 3 * 8 + 3 * 3 * 8 * 3
    assert int(masks.count(mask)) == round(0.2 * kernels)

    # train, with batch norm and dropout in training mode
    nnx.update(model, masks.apply_mask(mask, params))
    optimizer = nnx.Optimizer(model, masks.freeze(optax.adamw(0.02), mask), wrt=nnx.Param)
    model.train()

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(40):
        step(model, optimizer)
        weights = nnx.state(model, nnx.Param)
        jax.tree.map(lambda leaf, kept: np.testing.assert_array_equal(leaf[~kept], 0.0), weights, mask)

    # evaluate
    model.eval()
    assert jnp.mean(model(x).argmax(axis=1) == y) > 0.9

    # save, and load in another process
    masks.save(tmp_path / "mask.npz", mask)
    read = read_in_another_process(tmp_path, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert read == {"kept": round(0.2 * kernels), "pruned are 0": True}
