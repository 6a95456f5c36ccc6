"""Masks applied, described, and held during training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathjax import masks

from ..tolerances import EXACT, SINGLE_ROUNDING

MASK = {
    "bias": jnp.array([True, True, True]),
    "kernel": jnp.array([[True, False, True], [False, True, False]]),
    "none": jnp.zeros((0, 4), bool),
}


def test_pruned_weights_vanish_even_where_they_are_not_finite():
    params = {"bias": jnp.ones(3), "kernel": jnp.array([[1.0, jnp.nan, 2.0], [jnp.inf, 3.0, -jnp.inf]])}
    params["none"] = jnp.zeros((0, 4))
    for apply in (masks.apply_mask, jax.jit(masks.apply_mask)):
        assert apply(MASK, params)["kernel"].tolist() == [[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]
        assert apply(MASK, params)["bias"].tolist() == [1.0, 1.0, 1.0]


def test_no_mask_means_dense():
    params = {"kernel": jnp.ones((2, 3))}
    assert masks.apply_mask(None, params) is params


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16, jnp.float64))
def test_masked_weights_keep_their_dtype(dtype):
    assert masks.apply_mask({"w": MASK["kernel"]}, {"w": jnp.ones((2, 3), dtype)})["w"].dtype == dtype


def test_gradients_reach_kept_weights_only():
    gradient = jax.grad(lambda params: jnp.sum(masks.apply_mask(MASK, params)["kernel"] ** 2))(
        jax.tree.map(lambda leaf: jnp.ones(leaf.shape), MASK)
    )
    np.testing.assert_array_equal(gradient["kernel"], 2.0 * MASK["kernel"])


def test_masks_of_another_tree_are_refused():
    with pytest.raises(ValueError, match=r"`mask` has no leaf at \['none'\]"):
        masks.apply_mask({"bias": MASK["bias"], "kernel": MASK["kernel"], "none": None}, MASK)
    with pytest.raises(ValueError, match=r"`mask` at \['w'\] has shape \(2, 3\)"):
        masks.apply_mask({"w": MASK["kernel"]}, {"w": jnp.ones((3, 2))})
    with pytest.raises(TypeError, match=r"`mask` must have boolean leaves; at \['w'\]"):
        masks.apply_mask({"w": jnp.ones((2, 3))}, {"w": jnp.ones((2, 3))})


def test_density_and_count_read_prunable_leaves():
    everything = lambda path, leaf: True  # noqa: E731
    assert int(masks.count(MASK)) == 3
    assert float(masks.density(MASK)) == 0.5
    assert int(masks.count(MASK, prunable=everything)) == 6
    assert float(jax.jit(lambda mask: masks.density(mask, prunable=everything))(MASK)) == pytest.approx(
        6 / 9, rel=SINGLE_ROUNDING
    )
    assert float(masks.density({"bias": MASK["bias"]})) == 1.0
    assert jax.vmap(masks.count)({"w": jnp.stack([MASK["kernel"], ~MASK["kernel"]])}).tolist() == [3, 3]


def test_statistics_describe_each_leaf():
    assert masks.statistics(MASK) == (
        ("['bias']", 3, 3, 1.0),
        ("['kernel']", 3, 6, 0.5),
        ("['none']", 0, 0, 1.0),
    )


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "sgd with decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
    "noisy": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1)),
    "rmsprop": optax.rmsprop(0.1, momentum=0.9),
}


def problem(seed=0):
    """Least squares in two layers: params, mask and gradient."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "bias": jnp.zeros(3),
        "one": jax.random.normal(keys[0], (4, 5)),
        "two": jax.random.normal(keys[1], (5, 3)),
    }
    mask = masks.from_scores(jax.tree.map(jnp.abs, params), density=0.4)
    x, y = jax.random.normal(keys[2], (7, 4)), jax.random.normal(keys[3], (7, 3))

    def loss(params):
        outputs = jax.nn.relu(x @ params["one"]) @ params["two"] + params["bias"][None, :]
        return jnp.mean((outputs - y) ** 2)

    return params, mask, jax.grad(loss)


def like(params):
    return lambda node: isinstance(node, dict) and list(node) == list(params)


def train(optimizer, params, gradient, steps=20):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_and_their_state_stay_exactly_zero(name):
    params, mask, gradient = problem()
    optimizer = masks.freeze(OPTIMIZERS[name], mask)
    trained, state = train(optimizer, masks.apply_mask(mask, params), gradient)
    like_params = [part for part in jax.tree.leaves(state, is_leaf=like(params)) if like(params)(part)]
    assert like_params or name in ("sgd", "noisy")
    for tree in (trained, *like_params):
        for kept, leaf in zip(jax.tree.leaves(mask), jax.tree.leaves(tree), strict=True):
            assert not np.any(np.asarray(leaf)[~np.asarray(kept)])
    assert all(np.all(leaf != params[path]) for path, leaf in trained.items() if path == "bias")


@pytest.mark.parametrize("name", ("sgd", "momentum", "adam", "adamw"))
def test_kept_weights_train_as_in_the_masked_network(name):
    params, mask, gradient = problem()
    masked = masks.apply_mask(mask, params)
    # the gradient of the masked network is zero at pruned weights
    expected, _ = train(OPTIMIZERS[name], masked, lambda params: masks.apply_mask(mask, gradient(params)))
    trained, _ = train(masks.freeze(OPTIMIZERS[name], mask), masked, gradient)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=EXACT), trained, expected)


def test_frozen_gradient_descent_equals_a_masked_loop():
    params, mask, gradient = problem()
    trained, _ = train(masks.freeze(optax.sgd(0.1), mask), masks.apply_mask(mask, params), gradient)
    by_hand = {name: np.where(mask[name], leaf, 0.0) for name, leaf in params.items()}
    for _ in range(20):
        slopes = gradient(by_hand)
        by_hand = {
            name: leaf - 0.1 * np.asarray(slopes[name]) * np.asarray(mask[name]) for name, leaf in by_hand.items()
        }
    for name, leaf in trained.items():
        np.testing.assert_allclose(leaf, by_hand[name], rtol=EXACT)


def test_gradients_that_are_not_finite_at_pruned_weights_do_no_harm():
    params, mask, _ = problem()
    gradients = jax.tree.map(lambda kept: jnp.where(kept, 1.0, jnp.nan), mask)
    optimizer = masks.freeze(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), mask)
    params = masks.apply_mask(mask, params)
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    zeros = jax.tree.map(lambda kept: jnp.where(kept, 1.0, 0.0), mask)
    expected = optimizer.update(zeros, optimizer.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, (updates, state), expected)
    jax.tree.map(lambda update, kept: np.testing.assert_array_equal(update != 0, kept), updates, mask)


def test_one_vmap_trains_many_masks():
    params, _, gradient = problem()
    scores = [jax.tree.map(lambda leaf, s=seed: jnp.cos(leaf + s), params) for seed in range(3)]
    many = [masks.from_scores(score, density=0.4) for score in scores]

    def run(mask):
        return train(masks.freeze(optax.adamw(0.1), mask), masks.apply_mask(mask, params), gradient, steps=5)[0]

    together = jax.jit(jax.vmap(run))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *many))
    for index, mask in enumerate(many):
        jax.tree.map(
            lambda got, want, i=index: np.testing.assert_allclose(got[i], want, rtol=EXACT), together, run(mask)
        )


def test_extra_arguments_reach_the_optimizer():
    def update(updates, state, params=None, *, scale, **_):
        return jax.tree.map(lambda leaf: leaf * scale, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    optimizer = masks.freeze(inner, {"w": MASK["kernel"]})
    params = masks.apply_mask({"w": MASK["kernel"]}, {"w": jnp.ones((2, 3))})
    gradients = {"w": jnp.ones((2, 3))}
    updates, _ = optimizer.update(gradients, optimizer.init(params), scale=3.0)
    np.testing.assert_array_equal(updates["w"], 3.0 * MASK["kernel"])


def test_frozen_optimizer_refuses_another_tree():
    optimizer = masks.freeze(optax.sgd(0.1), {"w": MASK["kernel"]})
    with pytest.raises(ValueError, match=r"`mask` has no leaf at \['v'\]"):
        optimizer.init({"v": jnp.ones((2, 3))})
