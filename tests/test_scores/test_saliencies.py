"""Scores by chance, magnitude and SNIP, held to their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import scores

from ..tolerances import EXACT, SINGLE


def network(dtype=jnp.float64, seed=0):
    """A ReLU network of two layers, inputs (11, 4) and labels."""
    rng = np.random.default_rng(seed)
    params = {
        "bias": rng.standard_normal(5),
        "first": rng.standard_normal((4, 5)),
        "second": rng.standard_normal((5, 3)),
    }
    x, y = rng.standard_normal((11, 4)), rng.integers(0, 3, 11)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params), jnp.asarray(x, dtype), jnp.asarray(y)


def apply(params, x):
    return jax.nn.relu(x @ params["first"] + params["bias"][None, :]) @ params["second"]


def backpropagated(params, x, y):
    """∂/∂θ of the mean cross-entropy, written out."""
    params, x, y = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x, y))
    hidden = x @ params["first"] + params["bias"]
    active = np.maximum(hidden, 0)
    logits = active @ params["second"]
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    at_logits = (shifted / shifted.sum(1, keepdims=True) - np.eye(3)[y.astype(int)]) / len(x)
    at_hidden = (at_logits @ params["second"].T) * (hidden > 0)
    return {"bias": at_hidden.sum(0), "first": x.T @ at_hidden, "second": active.T @ at_logits}


def assert_trees_close(got, want, rtol):
    assert list(got) == list(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max()), got, want)


def test_cross_entropy_is_the_mean_negative_log_probability():
    params, x, y = network()
    logits = np.asarray(apply(params, x))
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(11), np.asarray(y)])
    np.testing.assert_allclose(scores.cross_entropy(jnp.asarray(logits), y), expected, rtol=EXACT)
    np.testing.assert_allclose(scores.cross_entropy(jnp.asarray(logits), y.astype(jnp.uint8)), expected, rtol=EXACT)


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert float(scores.cross_entropy(logits, jnp.array([0]))) == 0.0
    assert float(scores.cross_entropy(logits, jnp.array([2]))) == 2e4


@pytest.mark.parametrize(("dtype", "outputs"), (("uint8", 256), ("int8", 200), ("uint32", 3)))
def test_labels_of_narrow_types_name_as_many_outputs_as_there_are(dtype, outputs):
    logits, labels = jnp.zeros((2, outputs)), np.array([0, 2], dtype)
    np.testing.assert_allclose(scores.cross_entropy(logits, jnp.asarray(labels)), np.log(outputs), rtol=EXACT)


@pytest.mark.parametrize("label", (-1, 3))
def test_traced_label_out_of_range_makes_the_loss_and_its_gradient_nan(label):
    logits, labels = jnp.zeros((2, 3)), jnp.array([0, label])
    value, slope = jax.jit(jax.value_and_grad(scores.cross_entropy))(logits, labels)
    assert np.isnan(value)
    assert np.isnan(slope[1]).all()


def test_random_scores_are_uniform_and_independent_between_leaves():
    params = {"a": jnp.ones((40, 50)), "b": jnp.ones((40, 50)), "c": jnp.ones(3, jnp.bfloat16), "d": jnp.ones((0, 2))}
    first, again, other = (scores.random(params, key=jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["a"], other["a"])
    assert abs(np.corrcoef(np.ravel(first["a"]), np.ravel(first["b"]))[0, 1]) < 0.1
    assert abs(float(first["a"].mean()) - 0.5) < 0.03
    assert 0.0 <= float(first["a"].min()) < 0.01 < 0.99 < float(first["a"].max()) < 1.0
    assert first["c"].dtype == jnp.float32
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, params)


def test_random_scores_take_keys_of_either_style():
    params = {"a": jnp.ones((3, 2))}
    new, old = scores.random(params, key=jax.random.key(3)), scores.random(params, key=jax.random.PRNGKey(3))
    np.testing.assert_array_equal(new["a"], old["a"])


def test_magnitude_is_the_absolute_value():
    params, _, _ = network()
    jax.tree.map(lambda got, leaf: np.testing.assert_array_equal(got, np.abs(leaf)), scores.magnitude(params), params)


@pytest.mark.parametrize("seed", range(3))
def test_snip_is_weight_times_gradient(seed):
    params, x, y = network(seed=seed)
    expected = {name: np.abs(slope * params[name]) for name, slope in backpropagated(params, x, y).items()}
    assert_trees_close(scores.snip(apply, params, [(x, y)]), expected, EXACT)
    single, x32, y32 = network(jnp.float32, seed)
    got = scores.snip(apply, single, [(x32, y32)])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    assert_trees_close(got, expected, SINGLE)


@pytest.mark.parametrize("ends", ((4, 8, 11), (5, 5, 10, 11), tuple(range(1, 12))))
def test_snip_does_not_depend_on_how_examples_are_batched(ends):
    params, x, y = network()
    starts = (0, *ends[:-1])
    batches = [(np.asarray(x[a:b]), np.asarray(y[a:b])) for a, b in zip(starts, ends, strict=True)]
    expected = scores.snip(apply, params, [(x, y)])
    assert_trees_close(scores.snip(apply, params, batches), expected, EXACT)
    assert_trees_close(scores.snip(apply, params, iter(batches)), expected, EXACT)
    assert_trees_close(jax.jit(lambda params: scores.snip(apply, params, batches))(params), expected, EXACT)


def test_snip_goes_under_jit_and_over_seeds():
    seeds = [network(seed=seed)[0] for seed in range(3)]
    _, x, y = network()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    for transform in (jax.vmap, lambda function: jax.jit(jax.vmap(function))):
        together = transform(lambda params: scores.snip(apply, params, [(x, y)]))(stacked)
        for index, params in enumerate(seeds):
            got = jax.tree.map(lambda leaf, i=index: leaf[i], together)
            assert_trees_close(got, scores.snip(apply, params, [(x, y)]), EXACT)
    traced = jax.jit(lambda params, x, y: scores.snip(apply, params, [(x, y)]))(seeds[0], x, y)
    assert_trees_close(traced, scores.snip(apply, seeds[0], [(x, y)]), EXACT)


def test_snip_of_a_zero_weight_is_zero():
    params, x, y = network()
    params["first"] = params["first"].at[:, 2].set(0.0)
    assert not scores.snip(apply, params, [(x, y)])["first"][:, 2].any()


def test_snip_takes_another_loss():
    params, x, y = network()
    squared = lambda outputs, labels: jnp.mean(jnp.sum((outputs - jax.nn.one_hot(labels, 3)) ** 2, 1))  # noqa: E731
    slopes = jax.grad(lambda params: squared(apply(params, x), y))(params)
    expected = jax.tree.map(lambda leaf, slope: jnp.abs(leaf * slope), params, slopes)
    got = scores.snip(apply, params, [(x[:3], y[:3]), (x[3:], y[3:])], loss=squared)
    assert_trees_close(got, expected, EXACT)


# errors


@pytest.mark.parametrize("batches", ([], iter(()), [(np.zeros((0, 4)), np.zeros(0, int))]))
def test_no_examples_are_refused(batches):
    with pytest.raises(ValueError, match="`batches` has no examples"):
        scores.snip(apply, network()[0], batches)


@pytest.mark.parametrize("label", (-1, 3))
def test_labels_out_of_range_are_refused(label):
    params, x, y = network()
    with pytest.raises(ValueError, match=rf"Labels must lie in 0 … 2, as there are 3 outputs; one is {label}"):
        scores.snip(apply, params, [(x, y.at[4].set(label))])
    with pytest.raises(ValueError, match=rf"one is {label}"):
        scores.cross_entropy(apply(params, x), y.at[4].set(label))


def test_labels_that_are_not_integers_are_refused():
    params, x, y = network()
    with pytest.raises(TypeError, match="Labels must be integers 0 … 2; they are float64"):
        scores.snip(apply, params, [(x, y.astype(float))])


def test_inputs_and_labels_of_other_length_are_refused():
    params, x, y = network()
    with pytest.raises(ValueError, match=r"one label for each example .* \(10,\) and \(11, 4\)"):
        scores.snip(apply, params, [(x, y[1:])])
    with pytest.raises(ValueError, match=r"the targets of shape \(11, 3\)\. Of one-hot targets take jnp.argmax"):
        scores.snip(apply, params, [(x, jax.nn.one_hot(y, 3))])


def test_outputs_of_another_shape_are_refused():
    params, x, y = network()
    with pytest.raises(ValueError, match=r"shape \(n, o\).*x of shape \(11, 4\) it returned \(11,\)"):
        scores.snip(lambda params, x: apply(params, x)[:, 0], params, [(x, y)])
