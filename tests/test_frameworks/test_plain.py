"""A user's script of plain functions: prune at initialization, train with batch norm and dropout, evaluate, save."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathjax import masks, pruning, scores

from .another_process import read_in_another_process


def init(key):
    first, second = jax.random.split(key)
    params = {
        "first": {"w": jax.random.normal(first, (36, 24)) / 6, "scale": jnp.ones(24), "bias": jnp.zeros(24)},
        "second": {"w": jax.random.normal(second, (24, 3)) / 5, "bias": jnp.zeros(3)},
    }
    return params, {"mean": jnp.zeros(24), "var": jnp.ones(24)}


def apply(params, state, x):
    """The network in evaluation mode, with the running statistics of batch norm."""
    hidden = (x @ params["first"]["w"] - state["mean"][None]) * jax.lax.rsqrt(state["var"] + 1e-5)[None]
    hidden = jax.nn.relu(hidden * params["first"]["scale"][None] + params["first"]["bias"][None])
    return hidden @ params["second"]["w"] + params["second"]["bias"][None]


def apply_in_training(params, state, x, key):
    """The network in training mode, with the statistics of the batch and dropout, and the new running statistics."""
    hidden = x @ params["first"]["w"]
    batch = {"mean": hidden.mean(axis=0), "var": hidden.var(axis=0)}
    kept = jax.random.bernoulli(key, 0.8, (len(x), 24)) / 0.8
    hidden = (hidden - batch["mean"][None]) * jax.lax.rsqrt(batch["var"] + 1e-5)[None]
    hidden = kept * jax.nn.relu(hidden * params["first"]["scale"][None] + params["first"]["bias"][None])
    state = jax.tree.map(lambda running, new: 0.9 * running + 0.1 * new, state, batch)
    return hidden @ params["second"]["w"] + params["second"]["bias"][None], state


def images(key):
    """60 images of three classes as vectors: a class is the third of the image that is brighter."""
    labels = jnp.arange(60) % 3
    stripes = jnp.repeat(jnp.eye(3)[labels], 12, axis=1)
    return stripes + 0.3 * jax.random.normal(key, (60, 36)), labels


@pytest.mark.parametrize("method", ("synflow", "snip"))
def test_a_network_is_pruned_trained_saved_and_loaded(method, tmp_path):
    x, y = images(jax.random.key(0))

    # init
    params, state = init(jax.random.key(1))

    # prune, with batch norm in evaluation mode
    def score(params, key):
        if method == "synflow":
            return scores.synflow(apply, params, x, state=state)
        return scores.snip(apply, params, [(x, y)], state=state)

    rounds = 20 if method == "synflow" else 1
    mask = pruning.prune(score, params, density=0.2, rounds=rounds)
    kernels = 36 * 24 + 24 * 3
    assert int(masks.count(mask)) == round(0.2 * kernels)

    # train, with batch norm and dropout in training mode
    params = masks.apply_mask(mask, params)
    optimizer = masks.freeze(optax.adamw(0.02), mask)
    optimizer_state = optimizer.init(params)

    def loss(params, state, key):
        logits, state = apply_in_training(params, state, x, key)
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
