"""Products with the kernel, and what follows from them, are those of the kernel formed by dense Jacobians."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import ntk

from ..networks import build
from ..tolerances import EXACT, HALF, ROUNDING, SINGLE, STANDARD_ERRORS
from .test_layerwise import convolutions, jacobian, looped, random_mask, smooth, tied

KEY = jax.random.key(0)
NETWORKS = (("conv_same_stride", False), ("recurrent_scan", True))


def matrix(apply, params, x, mask=None):
    """Θ as n·o rows, from listed derivatives."""
    rows = jacobian(apply, params, x, mask)
    flat = rows.reshape(-1, rows.shape[-1])
    return flat @ flat.T


def assert_close(actual, expected, tolerance=EXACT):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max(initial=0)))


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def check_products(apply, params, x, mask, batch_size):
    dense = matrix(apply, params, x, mask)
    shape = ntk.operator(apply, params, x).shape
    vector = draw(shape, 7)

    def product(params, vector):
        kernel = ntk.operator(apply, params, x, mask=mask, batch_size=batch_size)
        return kernel.matvec(vector), kernel.trace()

    found, trace = jax.jit(product)(params, vector)
    assert_close(found, (dense @ vector.ravel()).reshape(shape))
    assert_close(trace, np.trace(dense))


@pytest.mark.parametrize(("name", "masked"), NETWORKS)
def test_products_are_those_with_the_dense_kernel(name, masked):
    network = build(name)
    mask = random_mask(network.params) if masked else None
    check_products(network.apply, network.params, network.x, mask, None)


@jax.custom_vjp
def doubling(x, w):
    return x @ w


doubling.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, c: (2 * c @ kept[1].T, 2 * kept[0].T @ c))


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("which", [tied, looped], ids=lambda which: which.__name__)
def test_products_hold_for_any_network_in_any_chunks(which, batch_size):
    apply, params, x = smooth(which)
    check_products(apply, params, x, None, batch_size)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("which", [tied, looped], ids=lambda which: which.__name__)
def test_products_of_two_batches_are_those_with_their_dense_kernel(which, batch_size):
    apply, params, x = smooth(which)
    other = jnp.concatenate([x[1:], 2 * x[:1], -x])
    mask = random_mask(params)
    kernel = ntk.operator(apply, params, x, other, mask=mask, batch_size=batch_size)
    rows, columns = (jacobian(apply, params, batch, mask) for batch in (x, other))
    vector = draw(kernel.shape, 3)
    found = jax.jit(lambda kernel, vector: kernel.matvec(vector))(kernel, vector)
    assert kernel.shape == (len(other), found.shape[1])
    assert_close(found, jnp.einsum("iap,jbp,jb->ia", rows, columns, vector))
    assert f"(n={len(x)}, m={len(other)}, o=" in repr(kernel)


def test_a_kernel_of_two_batches_has_products_alone():
    apply, params, x = smooth(tied)
    kernel = inspect.unwrap(ntk.operator)(apply, params, x, x[:1])
    for refused in (
        kernel.trace,
        lambda: ntk.trace_estimate(kernel, key=KEY, samples=2),
        lambda: ntk.norm_estimate(kernel, key=KEY, samples=2),
        lambda: ntk.top_eigenpairs(kernel, 1, key=KEY),
    ):
        with pytest.raises(ValueError, match="one batch with itself was expected, but this operator is of two"):
            refused()
    with pytest.raises(ValueError, match="x2"):
        ntk.operator(apply, params, x, x[:, :1])


def test_rules_that_go_backward_alone_hold_forward_too():
    _, params, x = smooth(tied)
    check_products(lambda params, x: jnp.tanh(doubling(x[:, 0], params["w"])), params, x, None, None)


def test_products_of_convolutions_do_not_depend_on_the_chunks():
    apply, params, x = convolutions()
    check_products(apply, params, x, random_mask(params), 2)


def test_a_call_that_runs_at_once_gives_the_same_product():
    apply, params, x = smooth(tied)
    kernel = ntk.operator(apply, params, x)
    vector = draw(kernel.shape)
    assert_close(kernel.matvec(vector), jax.jit(ntk.Operator.matvec)(kernel, vector), ROUNDING)


def test_products_can_be_vmapped_over_seeds_and_differentiated():
    apply, params, x = smooth(tied)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]), params)
    vector = draw((3, 4))

    def quadratic(params, batch_size):
        kernel = ntk.operator(apply, params, x, batch_size=batch_size)
        return jnp.vdot(vector, kernel.matvec(vector))

    def expected(params):
        flat, unravel = ravel_pytree(params)
        rows = jax.jacobian(lambda flat: apply(unravel(flat), x))(flat)
        return jnp.sum(jnp.square(jnp.einsum("iap,ia->p", rows, vector)))

    oracle = jax.jit(jax.vmap(jax.grad(expected)))(both)
    for batch_size in (None, 2):
        found = jax.jit(jax.vmap(jax.grad(lambda params, c=batch_size: quadratic(params, c))))(both)
        for leaf, like in zip(*map(jax.tree.leaves, (found, oracle)), strict=True):
            assert_close(leaf, like)


# Estimates


@pytest.mark.parametrize("batch_size", [None, 2])
def test_estimates_lie_about_the_exact_values_as_their_errors_say(batch_size):
    apply, params, x = smooth(tied)
    dense = matrix(apply, params, x)

    def both(key):
        kernel = ntk.operator(apply, params, x, batch_size=batch_size)
        first, second = jax.random.split(key)
        return ntk.trace_estimate(kernel, key=first, samples=40), ntk.norm_estimate(kernel, key=second, samples=400)

    estimates = jax.jit(jax.vmap(both))(jax.random.split(KEY, 30))
    for (value, error), exact in zip(estimates, (np.trace(dense), np.linalg.norm(dense)), strict=True):
        scores = (np.asarray(value) - exact) / np.asarray(error)
        assert abs(scores.mean()) < 3 / np.sqrt(30)
        assert 0.6 < scores.std() < 1.5


def test_sign_probes_have_the_variance_that_is_stated():
    apply, params, x = smooth(tied)
    dense = matrix(apply, params, x)
    kernel = ntk.operator(apply, params, x)
    error = jax.jit(lambda key: ntk.trace_estimate(kernel, key=key, samples=4000).standard_error)(KEY)
    variance = 2 * (np.sum(dense**2) - np.sum(np.diag(dense) ** 2))
    np.testing.assert_allclose(float(error) ** 2 * 4000, variance, rtol=STANDARD_ERRORS * np.sqrt(2 / 4000))


def test_a_kernel_of_zeros_has_a_norm_of_zero_without_error():
    def constant(params, x):
        return x + 0 * params

    def norm(params):
        return ntk.norm_estimate(ntk.operator(constant, params, jnp.ones((2, 3))), key=KEY, samples=3)

    assert tuple(map(float, norm(jnp.ones(())))) == (0, 0)
    assert jax.grad(lambda params: norm(params).value)(jnp.ones(())) == 0


# Eigenpairs


def wide(params, x):
    """Enough rows for the iteration: 130 examples of 4 outputs."""
    return jnp.tanh(x @ params["hidden"]) @ params["out"]


def wide_example():
    params = {"hidden": draw((6, 8), 1) / 3, "out": draw((8, 4), 2)}
    return params, draw((130, 6), 3)


def test_eigenpairs_of_few_rows_are_those_of_the_matrix():
    apply, params, x = smooth(tied)
    kernel = ntk.operator(apply, params, x)
    values, vectors, *_ = jax.jit(lambda kernel: ntk.top_eigenpairs(kernel, 12, key=KEY))(kernel)
    dense = matrix(apply, params, x)
    assert_close(values, np.linalg.eigvalsh(dense)[::-1])
    assert_close(dense @ vectors.reshape(12, -1).T, values[:, None].T * vectors.reshape(12, -1).T)


def test_eigenpairs_of_many_rows_are_found_by_products():
    params, x = wide_example()
    dense = matrix(wide, params, x)
    kernel = ntk.operator(wide, params, x, batch_size=50)
    values, vectors, residuals, _ = ntk.top_eigenpairs(kernel, 5, key=KEY, tolerance=EXACT)
    flat = np.asarray(vectors).reshape(5, -1)
    errors = np.linalg.norm(dense @ flat.T - np.asarray(values)[None] * flat.T, axis=0) / values[0]
    np.testing.assert_allclose(residuals, errors, rtol=0, atol=10 * ROUNDING)
    assert residuals.max() < EXACT
    assert vectors.shape == (5, 130, 4)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(dense)[::-1][:5], rtol=EXACT)
    np.testing.assert_allclose(flat @ flat.T, np.eye(5), rtol=0, atol=EXACT)
    np.testing.assert_allclose(dense @ flat.T, np.asarray(values)[None] * flat.T, rtol=0, atol=EXACT * float(values[0]))


def test_eigenvalues_can_be_differentiated_whether_formed_or_iterated():
    params, x = wide_example()

    def largest(params, count):
        return ntk.top_eigenpairs(ntk.operator(wide, params, x[:count]), 1, key=KEY, tolerance=1e-10)[0][0]

    def expected(params, count):
        flat, unravel = ravel_pytree(params)
        rows = jax.jacobian(lambda flat: wide(unravel(flat), x[:count]))(flat).reshape(4 * count, -1)
        return jnp.linalg.eigvalsh(rows.T @ rows)[-1]

    for count in (10, 130):
        found, oracle = (jax.jit(jax.grad(each), static_argnums=1)(params, count) for each in (largest, expected))
        for leaf, like in zip(*map(jax.tree.leaves, (found, oracle)), strict=True):
            assert_close(leaf, like)


def test_a_search_that_ends_too_early_warns():
    params, x = wide_example()
    kernel = ntk.operator(wide, params, x)
    with pytest.warns(UserWarning, match=r"Eigenpairs of the Neural Tangent Kernel: after 1 rounds.*larger `order`"):
        ntk.top_eigenpairs(kernel, 3, key=KEY, order=2, restarts=1, tolerance=1e-12)


def test_error_bars_are_as_long_as_estimates_scatter():
    network = build("biased_mlp")
    kernel = ntk.operator(network.apply, network.params, draw(network.x.shape, 1))
    keys = jax.random.split(KEY, 400)
    for estimate in (ntk.trace_estimate, ntk.norm_estimate):
        found = jax.jit(jax.vmap(lambda key, estimate=estimate: estimate(kernel, key=key, samples=40)))(keys)
        error = 1 / np.sqrt(2 * 400)  # relative, of a standard deviation of 400 values
        np.testing.assert_allclose(found.standard_error.mean(), found.value.std(ddof=1), rtol=STANDARD_ERRORS * error)


# What formats do


def test_eigenvalues_of_single_precision_have_their_derivative_in_double_precision_sessions():
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), wide_example())

    def largest(params):
        return ntk.top_eigenpairs(ntk.operator(wide, params, x), 2, key=KEY)[0].sum()

    def expected(params):
        flat, unravel = ravel_pytree(params)
        rows = jax.jacobian(lambda flat: wide(unravel(flat), x.astype(jnp.float64)))(flat).reshape(4 * len(x), -1)
        return jnp.linalg.eigvalsh(rows.T @ rows)[-2:].sum()

    slopes = jax.jit(jax.grad(largest))(params)
    exact = jax.jit(jax.grad(expected))(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params))
    for leaf, wider in zip(*map(jax.tree.leaves, (slopes, exact)), strict=True):
        assert leaf.dtype == jnp.float32
        assert_close(leaf, wider, SINGLE)


@pytest.mark.parametrize("count", [10, 130])
def test_half_precision_has_its_eigenpairs_in_single_precision(count):
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide_example())
    values, vectors, *_ = ntk.top_eigenpairs(ntk.operator(wide, params, x[:count]), 2, key=KEY, tolerance=1e-2)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, x[:count]))
    exact = np.linalg.eigvalsh(matrix(wide, *single))[::-1]
    assert values.dtype == vectors.dtype == jnp.float32
    np.testing.assert_allclose(values, exact[:2], rtol=HALF)


def test_kernels_whose_squares_leave_single_precision_have_their_eigenpairs():
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), wide_example())
    plain, tiny = (
        ntk.top_eigenpairs(ntk.operator(lambda p, x, c=c: c * wide(p, x), params, x), 3, key=KEY)[0]
        for c in (1.0, 1e-11)
    )
    np.testing.assert_allclose(tiny * 1e22, plain, rtol=SINGLE)


def test_products_that_are_not_finite_give_no_eigenvalues():
    params, x = wide_example()
    broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), params)
    values, vectors, *_ = jax.jit(lambda p: ntk.top_eigenpairs(ntk.operator(wide, p, x), 2, key=KEY))(broken)
    assert np.isnan(values).all() and np.isnan(vectors).all()


def test_numpy_inputs_can_go_in_chunks():
    params, x = wide_example()
    few = np.asarray(x[:5])
    whole = ntk.empirical(wide, params, few)
    assert_close(ntk.empirical(wide, params, few, batch_size=2), whole)
    vector = draw((5, 4))
    assert_close(ntk.operator(wide, params, few, batch_size=2).matvec(vector), jnp.einsum("ijab,jb->ia", whole, vector))


# Bad input


def test_weights_that_no_output_depends_on_are_refused():
    with pytest.raises(ValueError, match="No leaf of `params` reaches the outputs"):
        ntk.empirical(lambda params, x: x @ jnp.ones((3, 2)), {"w": jnp.ones((3, 2))}, jnp.ones((4, 3)))


def test_what_an_operator_cannot_mean_is_refused():
    apply, params, x = smooth(tied)
    make = inspect.unwrap(ntk.operator)
    kernel = make(apply, params, x)
    with pytest.raises(ValueError, match=r"multiplies arrays of shape \(3, 4\).*\(4, 3\) came. Reshape it"):
        kernel.matvec(jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="`batch_size` is 0.*Pass 1 or more"):
        make(apply, params, x, batch_size=0)
    with pytest.raises(ValueError, match=r"it returned \(3,\)"):
        make(lambda params, x: x[:, 0, 0] * params["w"][0, 0], params, x)
    with pytest.raises(ValueError, match="`mask` must be a pytree of the same structure"):
        make(apply, params, x, mask={"w": params["w"] > 0})
    with pytest.raises(ValueError, match="`rank` must lie between 1 and the number of rows n·o, 12, but is 13"):
        ntk.top_eigenpairs(kernel, 13, key=KEY)
    with pytest.raises(ValueError, match="`order` and `restarts` must be at least 1"):
        ntk.top_eigenpairs(kernel, 2, key=KEY, order=0)
    with pytest.raises(ValueError, match="`samples` must be at least 1, but is 0"):
        ntk.trace_estimate(kernel, key=KEY, samples=0)
