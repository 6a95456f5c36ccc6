"""The finite-width kernel equals the product of dense Jacobians, and refuses what it cannot mean."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import ntk

from ..networks import build
from ..tolerances import DIFFERENCES, EXACT, SINGLE

METHODS = ("layerwise", "jacobian", "products")
# one network of the table for each way in which weights meet inputs; compiling for all of them takes minutes
NETWORKS = (
    "one_of_each",
    "one_output",
    "zero_weights",
    "tied_transpose",
    "linen_mlp",
    "conv_same_stride",
    "batch_norm_dense",
    "recurrent_scan",
)
every_method = pytest.mark.parametrize("method", METHODS)

# what a user meets without the run-time type checker that tests install, whose words would come first
unchecked = inspect.unwrap(ntk.empirical)
# one compilation takes less time than the many small ones of a call that runs at once
empirical = jax.jit(ntk.empirical, static_argnums=0, static_argnames="method")


def assert_close(actual, expected, tolerance=EXACT):
    """Equal up to `tolerance`, relative to the largest entry."""
    assert actual.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def oracle(apply, params, x1, x2, mask):
    """The kernel by listing every derivative: Jacobians at the masked weights, columns of pruned weights taken out."""
    kept = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mask)])
    masked = jax.tree.map(lambda leaf, keep: jnp.where(keep, leaf, 0), params, mask)
    vector, unravel = ravel_pytree(masked)
    jacobian = jax.jit(jax.jacobian(lambda vector, x: apply(unravel(vector), x)))
    left, right = (np.asarray(jacobian(vector, x))[:, :, kept] for x in (x1, x2))
    return np.einsum("iap,jbp->ijab", left, right)


def random_mask(params, seed=0, density=0.6):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) < density), params)


def dense_mask(params):
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)


def apply(params, x):
    """A small network with two outputs, smooth in its weights almost everywhere."""
    return jnp.tanh(x @ params["hidden"]) @ params["out"] + params["bias"][None]


def example(seed=0, n=3, m=2, outputs=2, dtype=float):
    rng = np.random.default_rng(seed)
    shapes = {"hidden": (4, 5), "out": (5, outputs), "bias": (outputs,)}
    params = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    return params, jnp.asarray(rng.normal(size=(n, 4)), dtype), jnp.asarray(rng.normal(size=(m, 4)), dtype)


@every_method
@pytest.mark.parametrize("name", NETWORKS)
def test_kernel_of_a_network_equals_the_product_of_its_jacobians(name, method):
    network = build(name)
    kernel = jax.jit(lambda params, mask: ntk.empirical(network.apply, params, network.x, mask=mask, method=method))
    for mask in (dense_mask(network.params), random_mask(network.params)):
        expected = oracle(network.apply, network.params, network.x, network.x, mask)
        assert_close(kernel(network.params, mask), expected)


@every_method
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize(("n", "m"), [(3, 2), (1, 4)])
def test_batches_of_different_size_give_a_rectangular_kernel(method, n, m, outputs):
    params, x1, x2 = example(n=n, m=m, outputs=outputs)
    kernel = empirical(apply, params, x1, x2, method=method)
    assert_close(kernel, oracle(apply, params, x1, x2, dense_mask(params)))


@every_method
def test_a_call_that_runs_at_once_gives_the_same_kernel(method):
    params, x1, x2 = example()
    assert_close(ntk.empirical(apply, params, x1, x2, method=method), empirical(apply, params, x1, x2, method=method))


@every_method
def test_no_second_batch_means_the_first_one_twice(method):
    params, x, _ = example()
    assert_close(empirical(apply, params, x, method=method), empirical(apply, params, x, x, method=method))


@every_method
def test_no_mask_means_that_all_weights_are_kept(method):
    params, x, _ = example()
    expected = empirical(apply, params, x, mask=dense_mask(params), method=method)
    assert_close(empirical(apply, params, x, method=method), expected)


@every_method
def test_an_empty_mask_gives_a_kernel_of_zeros(method):
    params, x, _ = example()
    nothing = jax.tree.map(jnp.zeros_like, dense_mask(params))
    assert not empirical(apply, params, x, mask=nothing, method=method).any()


def test_a_pruned_weight_may_hold_anything():
    params, x, _ = example()
    mask = random_mask(params)
    spoilt = jax.tree.map(lambda leaf, kept: jnp.where(kept, leaf, jnp.inf), params, mask)
    assert_close(empirical(apply, spoilt, x, mask=mask), empirical(apply, params, x, mask=mask))


@every_method
@pytest.mark.parametrize("masked", [False, True])
def test_kernel_is_symmetric_and_positive_semidefinite(method, masked):
    params, x, _ = example(n=6)
    kernel = empirical(apply, params, x, mask=random_mask(params) if masked else None, method=method)
    matrix = np.asarray(ntk.as_matrix(kernel))
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=EXACT * np.abs(matrix).max())
    eigenvalues = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert eigenvalues[0] >= -EXACT * eigenvalues[-1]


@every_method
def test_single_precision_agrees_with_double(method):
    single = empirical(apply, *example(dtype=jnp.float32), method=method)
    assert single.dtype == jnp.float32
    assert_close(single, empirical(apply, *example(), method=method), SINGLE)


@every_method
def test_seeds_can_be_vmapped_and_jitted(method):
    seeds = (0, 1, 2)
    many = [example(seed) for seed in seeds]
    _, x1, x2 = many[0]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(weights for weights, *_ in many))
    masks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(random_mask(many[0][0], seed) for seed in seeds))

    def kernel(params, mask):
        return empirical(apply, params, x1, x2, mask=mask, method=method)

    together = jax.jit(jax.vmap(kernel))(params, masks)
    for seed, weights in zip(seeds, (weights for weights, *_ in many), strict=True):
        assert_close(together[seed], kernel(weights, random_mask(many[0][0], seed)))


@every_method
def test_gradient_of_the_trace_equals_a_finite_difference(method):
    params, x, _ = example()
    mask = random_mask(params)

    def trace(params):
        return jnp.einsum("iiaa->", empirical(apply, params, x, mask=mask, method=method))

    direction = jax.tree.map(jnp.cos, params)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.vdot(a, b), jax.grad(trace)(params), direction)))
    step = 1e-5
    ahead, behind = (jax.tree.map(lambda w, d, s=s: w + s * d, params, direction) for s in (step, -step))
    np.testing.assert_allclose(slope, (trace(ahead) - trace(behind)) / (2 * step), rtol=DIFFERENCES)


# Bad input


def test_an_unknown_method_is_refused_with_the_known_ones():
    params, x, _ = example()
    with pytest.raises(ValueError, match="no method 'fast'.*Choose one of 'layerwise', 'jacobian', 'products'"):
        unchecked(apply, params, x, method="fast")


@pytest.mark.parametrize("name", ["x1", "x2"])
def test_nan_inputs_are_refused_with_the_first_example_that_holds_one(name):
    params, x1, x2 = example(n=3, m=3)
    inputs = {"x1": x1, "x2": x2}
    inputs[name] = inputs[name].at[1, 2].set(jnp.nan)
    with pytest.raises(ValueError, match=f"`{name}` holds NaN, first in example 1"):
        unchecked(apply, params, **inputs)


def test_inputs_without_a_batch_axis_are_refused():
    with pytest.raises(ValueError, match=r"`x1` is a single number.*\(n, ...\)"):
        unchecked(apply, example()[0], jnp.ones(()))


def test_batches_of_different_examples_are_refused():
    params, x, _ = example()
    with pytest.raises(ValueError, match=r"`x1` have shape \(4,\) and those of `x2` \(5,\).*number of examples"):
        unchecked(apply, params, x, jnp.ones((2, 5)))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (lambda y: y[:, 0], r"it returned \(3,\).*single output the shape \(n, 1\)"),
        (lambda y: y[:2], r"it returned \(2, 2\)"),
        (lambda y: (y, y), r"a pytree of arrays \(3, 2\), \(3, 2\)"),
    ],
)
def test_outputs_that_are_not_a_row_per_example_are_refused(head, words):
    params, x, _ = example()
    with pytest.raises(ValueError, match=words):
        unchecked(lambda params, x: head(apply(params, x)), params, x)


def test_a_network_that_mixes_examples_is_refused():
    def centred(params, x):
        outputs = apply(params, x)
        return outputs - outputs.mean(axis=0, keepdims=True)

    params, x, _ = example()
    with pytest.raises(ValueError, match="other outputs in the batch than alone.*running statistics"):
        unchecked(centred, params, x)


def test_a_mask_of_another_tree_is_refused_at_its_key_path():
    params, x, _ = example()
    mask = dense_mask(params)
    without_bias = {name: leaf for name, leaf in mask.items() if name != "bias"}
    with pytest.raises(ValueError, match=r"`mask` has no leaf at \['bias'\]"):
        unchecked(apply, params, x, mask=without_bias)
    with pytest.raises(ValueError, match=r"`mask` at \['out'\] has shape \(2, 5\)"):
        unchecked(apply, params, x, mask={**mask, "out": mask["out"].T})
    with pytest.raises(TypeError, match=r"`mask` must have boolean leaves; at \['out'\] it has float64"):
        unchecked(apply, params, x, mask={**mask, "out": jnp.ones((5, 2))})


def test_params_without_derivatives_are_refused_at_their_key_path():
    params, x, _ = example()
    with pytest.raises(ValueError, match=r"`params` at \['step'\] has dtype int32.*out of `params`"):
        unchecked(apply, {**params, "step": jnp.ones((), jnp.int32)}, x)
    with pytest.raises(ValueError, match="`params` has no leaves"):
        unchecked(lambda params, x: x, {}, x)
