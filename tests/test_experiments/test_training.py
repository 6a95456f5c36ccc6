import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.base.batching import in_batches
from experiments.networks import architectures
from experiments.train import training
from experiments.train.checkpoints import Checkpoints
from experiments.train.recipe import Recipe
from pathjax import masks
from tests.test_experiments import trained_on_devices

ROOT = Path(__file__).parents[2]


def apply(params, x):
    return jax.nn.relu(x @ params["first"]) @ params["second"]


STATELESS = training._Functions(
    apply=lambda params, state, x: apply(params, x), train=lambda params, state, x: (apply(params, x), state)
)


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
    run = training.trainer(STATELESS, (images, labels), (images, labels), recipe)
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


# batch norm, schedules, precision


SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def normed():
    """Two seeds of a small network with batch norm, a dense mask, keys, and 96 images of two classes."""
    network = architectures.fully_connected(SHAPE, 2, depth=1, widths={"hidden_0": 6}, batch_norm=True)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    params, state = jax.vmap(network.init)(keys)
    images = jax.random.normal(jax.random.key(7), (96, *SHAPE), jnp.float32) + 2
    labels = (images[:, 0, 0, 0] > 2).astype(jnp.int32)
    return network, params, state, jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params), keys, images, labels


def run_of(normed, *, test=slice(None), **recipe):
    network, params, state, mask, keys, images, labels = normed
    chosen = Recipe(**{"epochs": 2, "batch_size": 32, "learning_rate": 0.1} | recipe)
    run = training.trainer(network, (images, labels), (images[test], labels[test]), chosen)
    return run(params, state, mask, keys)


def test_chance_is_that_of_guesses_that_look_at_no_image():
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.3, 0.2])
    train, test = (rng.choice(3, size, p=shares) for size in (4000, 400))
    found = training.chance(train, test)
    # the best constant guess of probabilities, found by search
    grid = [(a, b, 1 - a - b) for a in np.linspace(0.01, 0.98, 98) for b in np.linspace(0.01, 0.98, 98) if a + b < 1]
    best = min(-np.mean(np.log(np.array(guess))[train]) for guess in grid)
    assert best - 1e-3 < found.loss <= best
    # accuracies of that many draws from the commonest class lie below the bound 39 times of 40
    commonest = np.bincount(test).max() / len(test)
    assert 0.96 < np.mean(rng.binomial(len(test), commonest, 4000) / len(test) <= found.accuracy) < 0.99


def test_chance_on_the_first_labels_knows_of_the_classes_that_come_later():
    by_class = np.repeat(np.arange(4), 50)
    assert training.chance(by_class, by_class, measured=50).loss == pytest.approx(np.log(4))


@pytest.mark.parametrize(
    ("losses", "accuracy", "words"),
    [
        ([2.4, 2.3, 2.3], 0.5, "the training loss never fell below 2.280 nats"),
        ([2.2, 2.31, 2.29], 0.5, "the training loss never fell below 2.280 nats"),  # where it began does not count
        ([2.4, 2.27, 2.4], 0.5, ""),
        ([2.4, 1.0, 0.1], 0.118, "the test accuracy is 0.118, and up to 0.119 is chance"),
        ([2.4, 1.0, 0.1], 0.02, "the test accuracy is 0.020"),
        ([2.4, 1.0, 0.1], 0.12, ""),
    ],
)
def test_a_training_that_learned_nothing_is_told_from_one_that_did(losses, accuracy, words):
    labels = np.arange(10).repeat(100)
    found = training.why_untrained(np.array(losses), accuracy, training.chance(labels, labels))
    assert found.startswith(words) and bool(found) == bool(words)


def test_running_statistics_follow_the_data_and_evaluation_uses_them(normed):
    network, _, state, *_, images, labels = normed
    found = run_of(normed, epochs=6)
    mean = found.state["batch_stats"]["hidden_0_norm"]["mean"]
    assert (jnp.abs(mean) > 1e-3).any() and (state["batch_stats"]["hidden_0_norm"]["mean"] == 0).all()
    one = jax.tree.map(lambda leaf: leaf[1], (found.params, found.state))
    outputs = network.apply(*one, images)
    expected = -jax.nn.log_softmax(outputs)[jnp.arange(96), labels].mean()
    np.testing.assert_allclose(found.test_loss[1], expected, rtol=1e-5)
    assert found.test_accuracy[1] == np.mean(np.asarray(outputs.argmax(axis=1) == labels))
    assert found.train_loss[1, -1] == found.test_loss[1]


def test_the_test_set_is_counted_whole_in_chunks(normed, monkeypatch):
    expected = run_of(normed, test=slice(53))
    monkeypatch.setattr(training, "_CHUNK", 20)
    found = run_of(normed, test=slice(53))
    np.testing.assert_allclose(found.test_loss, expected.test_loss, rtol=1e-6)
    np.testing.assert_allclose(found.test_accuracy, expected.test_accuracy, rtol=1e-6)


def test_schedules_are_as_published():
    def rates(momentum=0.9, **recipe):
        rule = training.optimizer(Recipe(epochs=4, learning_rate=1.0, momentum=momentum, **recipe), 10)
        params = {"kernel": jnp.zeros((1, 1))}
        state, found = rule.init(params), []
        for _ in range(40):
            updates, state = rule.update({"kernel": jnp.ones((1, 1))}, state, params)
            found.append(-float(updates["kernel"][0, 0]))
        return np.array(found) / np.cumsum(momentum ** np.arange(40))

    np.testing.assert_allclose(rates(momentum=0.0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(rates(), 1.0, rtol=1e-6)
    cosine = rates(schedule="cosine")
    np.testing.assert_allclose(cosine, 0.5 * (1 + np.cos(np.pi * np.arange(40) / 40)), rtol=1e-5, atol=1e-7)
    step = rates(schedule="step")
    np.testing.assert_allclose(step[[0, 19, 21, 29, 31, 39]], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)
    warm = rates(warmup=1.0)
    np.testing.assert_allclose(warm, np.minimum(1.0, np.arange(1, 41) / 11), rtol=1e-5)


def test_weights_decay_in_kernels_alone():
    rule = training.optimizer(Recipe(learning_rate=1.0, weight_decay=0.25), 1)
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, params), rule.init(params), params)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.25)
    assert not updates["dense"]["bias"].any() and not updates["norm"]["scale"].any()


def test_smoothed_labels_are_those_of_optax():
    outputs = jax.random.normal(jax.random.key(0), (5, 3), jnp.float32)
    labels = jnp.array([0, 2, 1, 1, 0])
    expected = optax.softmax_cross_entropy(outputs, optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.2))
    np.testing.assert_allclose(training._cross_entropy(outputs, labels, 0.2), expected, rtol=1e-5)


def test_bfloat16_trains_float32_weights_nearly_alike(normed):
    exact, rough = run_of(normed), run_of(normed, precision="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves((rough.params, rough.state))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(rough.train_loss, exact.train_loss, rtol=0.1)
    assert (rough.train_loss != exact.train_loss).any()


def test_networks_one_by_one_are_those_side_by_side(normed):
    network, params, state, mask, keys, images, labels = normed
    run = training.trainer(network, (images, labels), (images, labels), Recipe(epochs=2, batch_size=32))
    together, alone = run(params, state, mask, keys), in_batches(run, 1)(params, state, mask, keys)
    np.testing.assert_allclose(alone.train_loss, together.train_loss, rtol=1e-4)


def test_eight_devices_train_as_one(tmp_path):
    file = tmp_path / "found.npz"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, trained_on_devices.__file__, str(file)], env=environment, check=True)
    found, expected = np.load(file), trained_on_devices.trained(None)
    assert found["count"] == 8
    np.testing.assert_allclose(found["train_loss"], expected.train_loss, rtol=1e-4)
    np.testing.assert_allclose(found["test_loss"], expected.test_loss, rtol=1e-4)


@pytest.mark.long  # a study on two processes trains in `make test`
def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    files = [tmp_path / f"found_{number}.npz" for number in range(2)]
    jobs = [
        subprocess.Popen(
            [sys.executable, trained_on_devices.__file__, str(file), address, str(number)], env=environment
        )
        for number, file in enumerate(files)
    ]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    expected = trained_on_devices.trained(None)
    for file in files:
        found = np.load(file)
        assert found["count"] == 2
        np.testing.assert_allclose(found["train_loss"], expected.train_loss, rtol=1e-4)


def test_devices_that_do_not_divide_a_minibatch_are_refused(normed):
    network, *_, images, labels = normed
    mesh = cast(jax.sharding.Mesh, jax.sharding.AbstractMesh((5,), ("devices",)))
    with pytest.raises(ValueError, match="5 devices cannot share minibatches of 32: give a multiple"):
        training.trainer(network, (images, labels), (images, labels), Recipe(batch_size=32), mesh=mesh)


class _Killed(Exception):
    pass


def test_a_training_that_is_cut_off_goes_on_from_its_checkpoint_to_the_same_numbers(normed, tmp_path, monkeypatch):
    network, params, state, mask, keys, images, labels = normed
    recipe = Recipe(epochs=4, batch_size=32, checkpoint_every=2)

    def run():
        train = training.trainer(network, (images, labels), (images, labels), recipe, checkpoints=tmp_path)
        return train(params, state, mask, keys)

    whole = run()
    assert not list(tmp_path.glob("[!.]*"))
    save = Checkpoints.save

    def killed(self, epoch, state):
        save(self, epoch, state)
        raise _Killed

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(_Killed):
        run()
    monkeypatch.setattr(Checkpoints, "save", lambda self, epoch, state: epoch == 4 or pytest.fail("began anew"))
    again = run()
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_parts_of_a_training_without_momentum_are_the_whole(normed):
    network, params, state, mask, keys, images, labels = normed
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=0.2, momentum=0.0, schedule="step")
    run = training.trainer(network, (images, labels), (images, labels), recipe)
    whole, first = run(params, state, mask, keys), run(params, state, mask, keys, stop=1)
    rest = run(first.params, first.state, mask, keys, start=1)
    for one, other in zip(jax.tree.leaves(rest[:2]), jax.tree.leaves(whole[:2]), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(np.hstack([first.train_loss[:, :-1], rest.train_loss]), whole.train_loss)
    silent = run(first.params, first.state, mask, keys, start=1, with_losses=False)
    np.testing.assert_array_equal(*(each.params["hidden_0"]["kernel"] for each in (silent, rest)))
    assert np.isnan(silent.train_loss).all() and np.isnan(silent.test_accuracy).all()


def test_a_part_of_a_training_that_is_cut_off_goes_on_from_its_own_checkpoint(normed, tmp_path, monkeypatch):
    network, params, state, mask, keys, images, labels = normed
    recipe = Recipe(epochs=4, batch_size=32, checkpoint_every=1)

    def run(start, checkpoints=tmp_path):
        train = training.trainer(network, (images, labels), (images, labels), recipe, checkpoints=checkpoints)
        return train(params, state, mask, keys, start=start)

    save = Checkpoints.save

    def killed(self, epoch, state):
        save(self, epoch, state)
        if epoch == 3:
            raise _Killed

    expected = {start: run(start, checkpoints=None).train_loss for start in (0, 2)}
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", killed)
        with pytest.raises(_Killed):
            run(2)
    begun = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, epoch, state: begun.append(epoch))
    for start in (0, 2):
        np.testing.assert_array_equal(run(start).train_loss, expected[start])
    assert begun == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("changed", ["learning_rate", "images", "network"])
def test_a_checkpoint_of_another_training_is_not_gone_on_from(normed, tmp_path, monkeypatch, changed):
    network, params, state, mask, keys, images, labels = normed
    recipe = Recipe(epochs=2, batch_size=32, checkpoint_every=1)
    save = Checkpoints.save

    def killed(self, epoch, state):
        save(self, epoch, state)
        raise _Killed

    def run(network, images, recipe, checkpoints):
        train = training.trainer(network, (images, labels), (images, labels), recipe, checkpoints=checkpoints)
        return train(params, state, mask, keys)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", killed)
        with pytest.raises(_Killed):
            run(network, images, recipe, tmp_path)
    other = {
        "learning_rate": (network, images, dataclasses.replace(recipe, learning_rate=0.2)),
        "images": (network, 2 * images, recipe),
        "network": (_doubled(network), images, recipe),
    }[changed]
    again, anew = run(*other, tmp_path), run(*other, None)
    np.testing.assert_array_equal(again.train_loss, anew.train_loss)


def _doubled(network):
    """The same network with twice its outputs."""

    def train(params, state, x):
        outputs, state = network.train(params, state, x)
        return 2 * outputs, state

    return training._Functions(lambda params, state, x: 2 * network.apply(params, state, x), train)
