"""What is predicted from expected gates: with and without data, and why it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.measure import expected_gates as measured
from experiments.measure.expected_gates import LabelledImages
from pathjax import dynamics, ntk
from tests.test_experiments.examples import stateless

CLASSES, STEPS = 3, 5


def network(params, x):
    return jax.nn.relu(x @ params["first"]) @ params["second"]


def pooled(params, x):
    return jax.lax.reduce_window(network(params, x), -jnp.inf, jax.lax.max, (1, 2), (1, 1), "SAME")


def problem(apply=network, test=6):
    """The function, two networks with masks, and the images it was given."""
    keys = jax.random.split(jax.random.key(0), 5)
    params = {"first": jax.random.normal(keys[0], (2, 4, 6)), "second": jax.random.normal(keys[1], (2, 6, CLASSES))}
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool).at[:, 0, 0].set(False), params)
    train = LabelledImages(2 + jax.random.normal(keys[2], (30, 4)), jnp.arange(30) % 2)
    batch = LabelledImages(train.images[:5], train.labels[:5])
    held_out = LabelledImages(jax.random.normal(keys[3], (test, 4)), jnp.arange(test) % 2)
    run = measured.expected_gates(stateless(apply), batch, train, held_out, classes=CLASSES, steps=STEPS, key=keys[4])
    return run, params, mask, train, batch, held_out


def test_curves_are_those_of_each_network_from_its_own_kernels():
    run, params, mask, train, batch, _ = problem()
    found = run(params, {}, mask)
    assert found.why_not == "" and found.no_data.shape == found.moments.shape == found.inputs.shape == (2, STEPS + 1)
    for seed in range(2):
        alone, kept = jax.tree.map(lambda leaf, at=seed: leaf[at], (params, mask))
        kernels = ntk.mean_field(network, alone, batch.images, mask=kept)
        assert kernels.ntk is not None
        top = max(np.linalg.eigvalsh(kernels.ntk[:, :, c])[-1] for c in range(CLASSES))
        p = np.array([0.5, 0.5, 0.0])  # the third class is in no image
        expected = dynamics.expected_loss(
            kernels.ntk,
            jnp.arange(STEPS + 1),
            learning_rate=0.5 / top,
            nngp=kernels.nngp,
            target_means=jnp.asarray(p - 1 / 3),
            target_variances=jnp.asarray(p * (1 - p)),
            flow=False,
        )
        np.testing.assert_allclose(found.inputs[seed], expected, rtol=1e-5)
        np.testing.assert_allclose(found.log_tops[seed, 2], np.log(top), rtol=1e-5)


def test_without_data_nothing_of_the_images_is_read():
    run, params, mask, train, batch, held_out = problem()
    doubled = [each._replace(images=each.images * 2 + 1) for each in (batch, train, held_out)]
    keys = jax.random.split(jax.random.key(0), 5)
    again = measured.expected_gates(stateless(network), *doubled, classes=CLASSES, steps=STEPS, key=keys[4])
    other = again(params, {}, mask)
    found = run(params, {}, mask)
    np.testing.assert_array_equal(found.no_data, other.no_data)
    assert not np.allclose(found.moments, other.moments) and not np.allclose(found.inputs, other.inputs)


def test_normal_images_have_the_mean_and_the_covariance_of_the_data():
    images = jax.random.uniform(jax.random.key(0), (40, 2, 2)) * jnp.array([1.0, 5.0])[None, None] + 3
    drawn = np.asarray(measured.normal_images(images, 20_000, jax.random.key(1))).reshape(-1, 4)
    flat = np.asarray(images).reshape(-1, 4)
    np.testing.assert_allclose(drawn.mean(axis=0), flat.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(flat.T, bias=True), atol=0.08)


def test_regression_solves_for_the_targets_of_each_output():
    rng = np.random.default_rng(0)
    features, tests, targets = rng.normal(size=(4, 6)), rng.normal(size=(8, 6)), rng.normal(size=(4, 2))
    scales = np.array([1.0, 3.0])
    kernel, cross = (np.einsum("ip,jp,c->ijc", each, features, scales) for each in (features, tests))
    outputs = tests @ np.linalg.pinv(features) @ targets
    labels = outputs.argmax(axis=1)
    assert measured.regression_accuracy(kernel, cross, targets, labels) == 1
    labels[:2] = 1 - labels[:2]
    assert measured.regression_accuracy(kernel, cross, targets, labels) == 0.75
    nothing = np.zeros_like(kernel)
    assert measured.regression_accuracy(nothing, np.zeros_like(cross), targets, np.zeros(8)) == 1


def test_without_test_images_there_is_no_accuracy():
    run, params, mask, *_ = problem(test=0)
    assert np.isnan(run(params, {}, mask).regression_accuracy).all()


@pytest.mark.parametrize("error", [MemoryError("Too large.\nmore"), None])
def test_networks_that_are_refused_or_too_large_have_a_reason_and_no_curves(monkeypatch, error):
    run, params, mask, *_ = problem(network if error else pooled)
    if error:
        monkeypatch.setattr(ntk, "mean_field", lambda *_, **__: (_ for _ in ()).throw(error))
    found = run(params, {}, mask)
    assert found.no_data.shape == found.inputs.shape == (2, 0) and np.isnan(found.regression_accuracy).all()
    assert found.log_tops.shape == (2, 3) and np.isnan(found.log_tops).all()
    assert found.why_not == "Too large." if error else "pooling" in found.why_not
