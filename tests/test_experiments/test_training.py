import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import training
from experiments.options import Recipe
from pathjax import masks


def apply(params, x):
    return jax.nn.relu(x @ params["first"]) @ params["second"]


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), 5)
    images = jax.random.normal(keys[0], (50, 4), jnp.float32)
    labels = jnp.argmax(images[:, :3], axis=1).astype(jnp.int32)
    first = jax.random.normal(keys[1], (2, 4, 8), jnp.float32)
    second = jax.random.normal(keys[2], (2, 8, 3), jnp.float32)
    params = {"first": first, "second": second}
    mask = {"first": jax.random.bernoulli(keys[3], 0.6, first.shape), "second": jnp.abs(second) > 0.3}
    return images, labels, params, mask


def trained(problem, *, epochs=8, seeds=slice(None), learning_rate=0.1):
    images, labels, params, mask = problem
    params, mask = jax.tree.map(lambda leaf: leaf[seeds], (params, mask))
    keys = jax.vmap(jax.random.key)(jnp.arange(5, 7))[seeds]
    recipe = Recipe(learning_rate=learning_rate, batch_size=16, epochs=epochs)
    run = training.trainer(training.stateless(apply), (images, labels), (images, labels), recipe)
    return run(params, {}, mask, keys), mask


def test_training_lowers_the_loss_and_pruned_weights_stay_exactly_zero(problem):
    result, mask = trained(problem)
    assert result.train_loss.shape == (2, 9)
    assert (result.train_loss[:, -1] < result.train_loss[:, 0] / 2).all()
    assert (result.test_accuracy > 0.7).all()
    assert training.pruned_stay_zero(result.params, mask).tolist() == [True, True]
    strays = jax.tree.map(lambda leaf, kept: jnp.count_nonzero(leaf * ~kept), result.params, mask)
    assert all(count == 0 for count in jax.tree.leaves(strays))


def test_a_stray_weight_is_noticed(problem):
    _, _, params, mask = problem
    params = masks.apply_mask(mask, params)
    stray = np.argwhere(~np.asarray(mask["first"][1]))[0]
    params["first"] = params["first"].at[1, stray[0], stray[1]].set(1e-30)
    assert training.pruned_stay_zero(params, mask).tolist() == [True, False]


def test_the_first_loss_is_that_of_the_masked_network(problem):
    images, labels, params, mask = problem
    result, _ = trained(problem, epochs=1)
    logits = jax.vmap(apply, in_axes=(0, None))(masks.apply_mask(mask, params), images)
    losses = -jax.nn.log_softmax(logits)[:, jnp.arange(50), labels].mean(axis=1)
    np.testing.assert_allclose(result.train_loss[:, 0], losses, rtol=1e-6)


def test_seeds_train_as_they_would_alone(problem):
    together, _ = trained(problem, epochs=3)
    alone, _ = trained(problem, epochs=3, seeds=slice(1, 2))
    np.testing.assert_allclose(together.train_loss[1], alone.train_loss[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ([4.0, 1.0, 0.25], 15.0),
        ([0.4, 0.1], 0.0),
        ([4.0, 2.0, 1.0], np.inf),
        ([4.0, np.nan, np.nan], np.inf),
        ([4.0, 0.5, 4.0, 0.1], 10.0),
    ],
)
def test_steps_to_a_level(losses, steps):
    assert training.steps_to_level(np.array(losses), level=0.5, steps_per_epoch=10) == pytest.approx(steps)
